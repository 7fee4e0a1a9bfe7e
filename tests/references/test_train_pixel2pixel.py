import pytest
import torch
import torch.nn.functional as F

from references.edgeailite.engine.train_pixel2pixel import PixelCrossEntropy


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 3.0, 0.5])])
def test_loss_is_that_of_torch(weight):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    target[0, :2] = 255
    loss = PixelCrossEntropy(weight)(logits, target)
    expected = F.cross_entropy(logits, target.long(), weight, ignore_index=255)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not logits.grad[0, :, :2].any()


@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_batch_without_labels_has_no_loss(weight):
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = PixelCrossEntropy(weight)(logits, torch.full((1, 4, 5), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()
