import pytest
import torch

from edgeailite.quantization.arithmetic.least_squares import (
    damped_gram,
    ridge,
    round_with_feedback,
)


def _data(groups=2, rows=400, inputs=9, outputs=5, seed=0):
    """Correlated inputs (G, n, d), weights (G, O, d) and scales (G, O)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(groups, rows, 3, generator=generator)
    x = mixed @ torch.randn(groups, 3, inputs, generator=generator)
    x += 0.1 * torch.randn(groups, rows, inputs, generator=generator)
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    return x, weight, weight.abs().amax(2) / 7


def _gram(x):
    return x.mT @ x / x.shape[1]


@pytest.mark.parametrize("seed", range(5))
def test_feedback_leaves_less_error_than_the_nearest_integers(seed):
    x, weight, scale = _data(seed=seed)
    integers = round_with_feedback(weight, scale, -8, 7, damped_gram(_gram(x), 0.01))
    assert torch.equal(integers, integers.round())
    assert integers.min() >= -8
    assert integers.max() <= 7
    nearest = (weight / scale[..., None]).round().clamp(-8, 7)

    def error(found):
        return float((x @ (found * scale[..., None] - weight).mT).square().mean())

    assert error(integers) < 0.5 * error(nearest)


def test_feedback_of_inputs_that_do_not_depend_on_each_other_is_nearest_rounding():
    _, weight, scale = _data()
    gram = torch.eye(9).expand(2, 9, 9) * torch.arange(1.0, 10.0)
    nearest = (weight / scale[..., None]).round().clamp(-8, 7)
    assert torch.equal(round_with_feedback(weight, scale, -8, 7, gram), nearest)


def test_many_columns_are_rounded_as_one_by_one():
    """Blocks of columns hand their errors on as single ones do."""
    x, weight, scale = _data(groups=1, rows=600, inputs=150, outputs=4)
    gram = damped_gram(_gram(x), 0.01)
    found = round_with_feedback(weight, scale, -8, 7, gram)[0]
    order = gram[0].diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(gram[0][order][:, order].double())
    left = (weight[0] / scale[0][:, None])[:, order].double()
    expected = torch.empty_like(left)
    for column in range(150):
        expected[:, column] = left[:, column].round().clamp(-8, 7)
        error = (left[:, column] - expected[:, column]) / inverse[column, column]
        left = left - error[:, None] * inverse[column]
        inverse = inverse - inverse[:, [column]] @ inverse[[column]] / inverse[column, column]
    assert (found[:, order] == expected).float().mean() > 0.97


def test_ridge_lies_between_the_data_and_the_given_weights():
    x, weight, _ = _data(rows=2000)
    given = torch.zeros_like(weight)
    cross = x.mT @ (x @ weight.mT) / x.shape[1]
    near, _ = ridge(_gram(x), cross, given, 1e-6)
    torch.testing.assert_close(x @ near.mT, x @ weight.mT, rtol=0.0, atol=0.02)
    far, damped = ridge(_gram(x), cross, given, 1e6)
    assert far.abs().max() < 1e-4
    torch.testing.assert_close(damped, damped_gram(_gram(x), 1e6))
