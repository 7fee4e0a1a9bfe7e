import operator

import pytest
import torch
from torch import fx, nn

from edgeailite.xnn.layers.elementwise import AddBlock, CatBlock, MultBlock, SubtractBlock

ARITHMETIC = [(AddBlock, operator.add), (SubtractBlock, operator.sub), (MultBlock, operator.mul)]


@pytest.mark.parametrize(("block", "op"), ARITHMETIC)
@pytest.mark.parametrize("as_list", [False, True])
def test_arithmetic_folds_from_the_left(block, op, as_list):
    a, b, c = torch.randn(3, 2, 4, 5, 5)
    out = block()([a, b, c]) if as_list else block()(a, b, c)
    assert torch.equal(out, op(op(a, b), c))


@pytest.mark.parametrize(("block", "op"), ARITHMETIC)
def test_arithmetic_broadcasts(block, op):
    a, b = torch.randn(2, 4, 5, 5), torch.randn(1, 4, 1, 1)
    assert torch.equal(block()(a, b), op(a, b))


@pytest.mark.parametrize("block", [AddBlock, SubtractBlock, MultBlock])
@pytest.mark.parametrize("as_list", [False, True])
def test_arithmetic_with_one_tensor_raises(block, as_list):
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=rf"{block.__name__} got 1 tensor\(s\).*at least 2"):
        block()([x] if as_list else x)


@pytest.mark.parametrize("dim", [1, -1])
def test_cat_joins_along_its_axis(dim):
    tensors = torch.randn(3, 2, 4, 5, 5).unbind()
    assert torch.equal(CatBlock(dim)(*tensors), torch.cat(tensors, dim))
    assert torch.equal(CatBlock(dim)(list(tensors)), torch.cat(tensors, dim))


def test_cat_without_tensors_raises():
    with pytest.raises(ValueError, match=r"CatBlock got 0 tensor\(s\)"):
        CatBlock()([])


def test_cat_shows_its_axis():
    assert repr(CatBlock(2)) == "CatBlock(dim=2)"


def test_blocks_trace_to_plain_operations_in_both_call_forms():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add, self.sub, self.mul, self.cat = (
                AddBlock(), SubtractBlock(), MultBlock(), CatBlock(),
            )  # fmt: skip

        def forward(self, x, y):
            return self.cat([self.add(x, y), self.sub((x, y)), self.mul([x, y, x])])

    net = Net()
    traced = fx.symbolic_trace(net)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [operator.add, operator.sub, operator.mul, operator.mul, torch.cat]
    x, y = torch.randn(2, 1, 3, 4, 4)
    assert torch.equal(traced(x, y), net(x, y))
