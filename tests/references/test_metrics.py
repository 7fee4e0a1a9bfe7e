import pytest
import torch
import torch.nn.functional as F

from references.edgeailite.engine.metrics import LossMetric, SegmentationMetrics

CPU = torch.device("cpu")


def _one_hot(labels, classes):
    return 20.0 * F.one_hot(torch.tensor(labels), classes).permute(2, 0, 1)[None].float()


def test_iou_by_hand():
    metrics = SegmentationMetrics(["a", "b", "c", "d"], CPU)
    target = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]], dtype=torch.uint8)
    metrics.update(_one_hot([[0, 0, 1, 1], [1, 2, 3, 0]], 4), target[None])
    results = metrics.compute()
    # a: 2 of 3; b: 2 right, 1 missed, 1 wrong; c is predicted and d is ignored, neither occurs.
    assert results["iou"] == {
        "a": pytest.approx(200 / 3), "b": pytest.approx(50.0), "c": None, "d": None
    }  # fmt: skip
    assert results["miou"] == pytest.approx((200 / 3 + 50) / 2)
    assert results["accuracy"] == pytest.approx(400 / 6)
    assert results["loss"] == pytest.approx(2 * 20 / 6, rel=1e-4)


def test_batches_count_as_their_union_and_targets_may_differ_in_size():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 8, 12)
    targets = [torch.randint(0, 5, size) for size in ((8, 12), (16, 24), (9, 7))]
    whole, parts = SegmentationMetrics("abcde", CPU), SegmentationMetrics("abcde", CPU)
    whole.update(logits, targets)
    for image, target in zip(logits, targets, strict=True):
        parts.update(image[None], [target])
    assert whole.compute() == parts.compute()
    assert whole.num_images == parts.num_images == 3


def test_nothing_labelled():
    metrics = SegmentationMetrics(["a", "b"], CPU)
    metrics.update(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255))
    results = metrics.compute()
    assert (results["loss"], results["miou"], results["accuracy"]) == (0.0, 0.0, 0.0)
    assert results["iou"] == {"a": None, "b": None}


def test_loss_metric_weights_by_images():
    metric = LossMetric(CPU)
    metric.update(torch.zeros(3, 2), torch.zeros(3), torch.tensor(1.0))
    metric.update(torch.zeros(1, 2), torch.zeros(1), torch.tensor(5.0))
    assert metric.compute() == {"loss": 2.0}
    assert metric.num_images == 4
