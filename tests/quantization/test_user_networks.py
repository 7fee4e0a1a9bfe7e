"""Networks as people write them: captured as they are, trained, exported, equal in every value."""

import copy
from collections.abc import Mapping
from dataclasses import is_dataclass

import pytest
import torch
from torch import Tensor

from edgeailite.quantization.report import build_report
from edgeailite.quantization.verify import verify
from edgeailite.quantization.wrappers import QATFxModule
from tests.quantization.helpers import randomize_batch_norms
from tests.quantization.user_networks import NETWORKS

# An open batch size takes torch's exporter another second.
READ_BATCH_SIZE = ("detector", "crnn_lstm", "crnn_gru", "siamese")
RECURRENT = ("crnn_lstm", "crnn_gru")
each_network = pytest.mark.parametrize("name", list(NETWORKS))


def inputs_of(name, size=2):
    def noise(shape):
        if isinstance(shape, dict):
            return {key: noise(each) for key, each in shape.items()}
        return torch.randn(size, *shape)

    return tuple(noise(shape) for shape in NETWORKS[name].shapes)


def tensors(output):
    """All tensors of an output, by their place."""
    if isinstance(output, Tensor):
        return {"": output}
    if is_dataclass(output):
        output = vars(output)
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    return {f"{key}.{k}": t for key, item in items for k, t in tensors(item).items()}


def loss_of(output):
    return sum(y.square().mean() for y in tensors(output).values())


def wrap(model, qconfig_type, example):
    return QATFxModule(
        model,
        qconfig_type=qconfig_type,
        example_inputs=example,
        total_epochs=4,
        num_batch_norm_update_epochs=False,
        verbose=False,
    )


def run(model, inputs, training):
    """Output and, in training mode, the gradients; always with the same random numbers."""
    model.train(training)
    torch.manual_seed(3)
    output = model(*copy.deepcopy(inputs))
    gradients = {}
    if training:
        loss_of(output).backward()
        parameters = getattr(model, "module", model).named_parameters()
        gradients = {n: p.grad for n, p in parameters if p.grad is not None}
    return output, gradients


def assert_same(expected, actual):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            actual[key], value, rtol=0, atol=0, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize(
    ("name", "with_example"),
    [(n, True) for n in NETWORKS]
    + [(n, False) for n, c in NETWORKS.items() if not c.needs_example],
)
def test_captured_network_is_the_written_one(name, with_example):
    model, inputs = randomize_batch_norms(NETWORKS[name].make()), inputs_of(name)
    wrapper = wrap(copy.deepcopy(model), "DISABLED", inputs if with_example else None)
    for training in (False, True):
        expected, gradients = run(model, inputs, training)
        actual, found = run(wrapper, inputs, training)
        assert type(actual) is type(expected)
        assert_same(tensors(expected), tensors(actual))
        assert_same(gradients, found)
    assert_same(model.state_dict(), wrapper.module.state_dict())


@each_network
def test_quantized_network_trains_and_is_equal_in_every_value(name, tmp_path):
    model, inputs = randomize_batch_norms(NETWORKS[name].make()), inputs_of(name)
    reference = copy.deepcopy(model).eval()
    wrapper = wrap(model, "WC8SYMP2_AT8SYMP2", inputs)
    wrapper.train()
    optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], lr=1e-4)
    before = copy.deepcopy(wrapper.module.state_dict())
    loss_of(wrapper(*inputs)).backward()
    optimizer.step()
    after = wrapper.module.state_dict()
    trained = [n for n, p in wrapper.module.named_parameters() if p.grad is not None]
    assert any(not torch.equal(before[n], after[n]) for n in trained)
    wrapper.calibrate([inputs, inputs_of(name)])
    reference.load_state_dict({key: after[key] for key in reference.state_dict()})
    quantized, floats = tensors(wrapper(*inputs)), tensors(reference(*inputs))
    for key, value in floats.items():
        error = (quantized[key] - value).square().sum() / value.square().sum()
        assert error < 0.1, key
    path = wrapper.export(
        inputs if len(inputs) > 1 else inputs[0],
        tmp_path / "model.onnx",
        dynamic_batch=name in READ_BATCH_SIZE,
    )
    found = verify(wrapper, [inputs], path)
    assert found.exact, str(found)
    if name in RECURRENT:
        assert any(
            f.operation.startswith(("LSTM", "GRU")) for f in build_report(wrapper).floats.values()
        )
