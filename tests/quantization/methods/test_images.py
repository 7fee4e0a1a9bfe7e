import pytest
import torch
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods.images import divisible, num_images, split, spread


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


class _Fixed(nn.Module):
    """Says how many images a batch has."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x):
        return self.layer(x.reshape(8, 12))


class _Mixed(nn.Module):
    """Sums images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x) + self.layer(x).sum(0)


@pytest.mark.parametrize(("make", "divides"), [(_Fixed, False), (_Mixed, False), (None, True)])
def test_batches_stay_whole_where_images_alone_are_something_else(make, divides):
    torch.manual_seed(0)
    network = nn.Linear(3, 4) if make is None else make()
    data = [(torch.randn(8, 12) if make is _Fixed else torch.randn(8, 3),) for _ in range(4)]
    wrapper = PTCFxModule(network, example_inputs=data[0][0], verbose=False).eval()
    batches = divisible(wrapper.module, data)
    _, held = split(batches)
    assert num_images(batches[0]) == (8 if divides else 1)
    assert sum(len(batch[0]) for batch in held) == 8
    wrapper.calibrate([x for (x,) in data], quality="fast")
    assert any(gain.kept for gain in wrapper.post_training)
