import torch

from edgeailite.quantization.methods.images import num_images, split, spread


def _numbered(*sizes):
    batches, first = [], 0
    for size in sizes:
        batches.append((torch.arange(first, first + size),))
        first += size
    return batches


def _numbers(batches):
    return torch.cat([batch[0] for batch in batches]).tolist()


def test_every_fourth_image_is_held_out():
    learned, held = split(_numbered(5, 1, 6))
    assert _numbers(held) == [3, 7, 11]
    assert _numbers(learned) == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def test_few_images_still_give_both():
    learned, held = split(_numbered(2))
    assert (_numbers(learned), _numbers(held)) == ([0], [1])
    learned, held = split(_numbered(1))
    assert (_numbers(learned), _numbers(held)) == ([0], [0])


def test_images_are_spread_over_all_batches():
    assert _numbers(spread(_numbered(4, 4), 4)) == [0, 2, 4, 6]
    batches = _numbered(4, 4)
    assert spread(batches, 8) is batches


def test_all_inputs_of_an_image_stay_together():
    x = torch.arange(8)
    batch = ({"left": x, "right": [x * 10]}, torch.tensor(3.0), "mode")
    assert num_images(batch) == 8
    (learned,), (held,) = split([batch])
    assert held[0]["left"].tolist() == [3, 7]
    assert held[0]["right"][0].tolist() == [30, 70]
    assert learned[1:] == batch[1:]
    assert len(learned[0]["left"]) == 6


def test_a_batch_whose_tensors_differ_in_length_is_one_image():
    batches = [(torch.zeros(4), torch.zeros(2)) for _ in range(4)]
    learned, held = split(batches)
    assert len(learned) == 3
    assert held[0] is batches[3]
