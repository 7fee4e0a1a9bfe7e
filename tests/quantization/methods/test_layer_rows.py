import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeailite.quantization import PTCFxModule
from edgeailite.quantization.methods.layer_rows import rows_of_batches
from edgeailite.quantization.modules.layer_calls import layer_calls

LAYERS = {
    "pointwise": (nn.Conv2d(4, 6, 1), (3, 4, 5, 7)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 8, 9)),
    "dilated": (nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), padding=(2, 0)), (3, 4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (3, 4, 6, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 6, 6)),
    "same": (nn.Conv2d(4, 6, 4, padding="same"), (3, 4, 6, 6)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 6, 6)),
    "one axis": (nn.Conv1d(4, 6, 3, padding=1), (3, 4, 11)),
    "three axes": (nn.Conv3d(2, 3, 2), (2, 2, 4, 3, 5)),
    "linear": (nn.Linear(4, 6), (5, 4)),
    "linear of tokens": (nn.Linear(4, 6), (3, 7, 4)),
}


class _Called(nn.Module):
    """A layer's function on a parameter, as some networks write it."""

    def __init__(self, function, shape):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.function(x, self.weight)


FUNCTIONS = {
    "function": (lambda x, w: F.conv2d(x, w, None, 2, 1, groups=2), (6, 2, 3, 3), (3, 4, 8, 9)),
    "function same": (lambda x, w: F.conv2d(x, w, padding="same"), (6, 4, 3, 5), (3, 4, 6, 6)),
    "function of one axis": (lambda x, w: F.conv1d(x, w, dilation=2), (6, 4, 3), (3, 4, 11)),
    "function linear": (F.linear, (6, 4), (3, 7, 4)),
}
LAYERS |= {name: (_Called(f, w), x) for name, (f, w, x) in FUNCTIONS.items()}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_weights_times_rows_are_the_outputs(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    model = PTCFxModule(
        nn.Sequential(layer), qconfig_type="WC8_AT8", example_inputs=x, verbose=False
    ).eval()
    call = layer_calls(model.module)[0]
    with torch.no_grad():
        outputs = call.layer.operate(x, call.weight, None)
        rows = rows_of_batches(call, [x, x], [outputs, outputs], 40)
        groups = call.layer.num_groups
        weight = call.weight.reshape(groups, -1, call.weight[0].numel())
        torch.testing.assert_close(rows.inputs @ weight.mT, rows.outputs, rtol=1e-4, atol=1e-5)
    assert rows.inputs.shape[0] == groups
    assert 4 <= rows.inputs.shape[1] <= 80
