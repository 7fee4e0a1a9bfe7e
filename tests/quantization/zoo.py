"""Small nets, one for each thing that a graph may hold: name, maker, shapes of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeailite.quantization.modules.pact2 import NoQAct, QAct

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIDE = {1: 16, 2: 8, 3: 6}


class Case(NamedTuple):
    """One net of the zoo."""

    make: Callable[[], nn.Module]
    shapes: list[tuple[int, ...]]


ZOO: dict[str, Case] = {}
IMAGE = (3, 8, 8)


class Net(nn.Module):
    """A convolution on each input, then a function of the results and of the modules it uses."""

    def __init__(
        self,
        body: Callable[..., object],
        channels: list[int],
        inputs: list[int],
        **modules: nn.Module,
    ) -> None:
        super().__init__()
        self.stems = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(inputs, channels, strict=True)
        )
        self.parts = nn.ModuleDict(modules)
        self.body = body

    def forward(self, *inputs: Tensor) -> object:
        return self.body(self.parts, *(s(x) for s, x in zip(self.stems, inputs, strict=False)))


class _OneInput(Net):
    def forward(self, x: Tensor) -> object:  # fx has no length for *inputs
        return self.body(self.parts, *(stem(x) for stem in self.stems))


def _body(
    name: str, body: Callable[..., object], channels: int | list[int] = 8, shape=IMAGE, **modules
):
    """A net whose stems, one for each entry of `channels`, all read the one input."""
    widths = [channels] if isinstance(channels, int) else channels
    makers = dict(modules)
    ZOO[name] = Case(
        lambda: _OneInput(
            body, widths, [shape[0]] * len(widths), **{k: make() for k, make in makers.items()}
        ),
        [shape],
    )


def _layers(name: str, make: Callable[[], list[nn.Module]], shape: tuple[int, ...] = IMAGE) -> None:
    ZOO[name] = Case(lambda: nn.Sequential(*make()), [shape])


def _image(dims: int) -> tuple[int, ...]:
    return (3, *[SIDE[dims]] * dims)


# ---- layers -------------------------------------------------------------------------------------

for dims in (1, 2, 3):
    conv, deconv, norm = CONVOLUTIONS[dims], TRANSPOSED[dims], BATCH_NORMS[dims]
    _layers(
        f"conv{dims}d",
        lambda conv=conv, norm=norm: [
            conv(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(),
            conv(8, 8, 3, padding=1, groups=8), norm(8), nn.ReLU6(),
            conv(8, 6, 3, stride=2, groups=2), nn.Hardtanh(),
            conv(6, 5, 1),
        ],
        _image(dims),
    )  # fmt: skip
    _layers(
        f"conv_transpose{dims}d",
        lambda deconv=deconv, norm=norm: [
            deconv(3, 8, 3, padding=1), norm(8), nn.ReLU(),
            deconv(8, 8, 4, stride=2, padding=1, groups=8, bias=False), norm(8),
            deconv(8, 6, 3, groups=2, output_padding=1, stride=2), nn.ReLU(),
            deconv(6, 4, 2),
        ],
        _image(dims),
    )  # fmt: skip
_layers("linear", lambda: [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5, bias=False)], (12,))
_layers(
    "linear_with_batch_norm",
    lambda: [nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)], (12,),
)  # fmt: skip
_layers("linear_on_sequences", lambda: [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)], (7, 12))
_layers(
    "batch_norm_without_affine",
    lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 4, 1)],
)
_layers(
    "dilated_reflect_padding",
    lambda: [
        nn.Conv2d(3, 8, 3, padding=2, dilation=2, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding="same"),
    ],
)  # fmt: skip
_layers(
    "batch_norm_first",
    lambda: [
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ],
)
_layers("relu_alone", lambda: [nn.ReLU(), nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.ReLU()])


_layers("conv_transpose_with_multiplier", lambda: [
    nn.ConvTranspose2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1),
])  # fmt: skip


class WeightStandardization(nn.Conv2d):
    """A subclass whose weight is computed in the graph: its layer stays in float."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


_layers("computed_weight", lambda: [
    nn.Conv2d(3, 4, 1), nn.ReLU(), WeightStandardization(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1),
])  # fmt: skip


class FunctionalLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 3, 3, 3) / 5), nn.Parameter(torch.randn(8))
        self.norm = nn.BatchNorm2d(8)
        self.w2 = nn.Parameter(torch.randn(8, 1, 3, 3) / 3)
        self.w3 = nn.Parameter(torch.randn(8, 3, 2, 2) / 3)
        self.w4, self.b4 = nn.Parameter(torch.randn(5, 6) / 3), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(F.conv2d(x, self.w1, self.b1, padding=1)))
        x = F.relu6(F.conv2d(x, self.w2, stride=1, padding=1, groups=8))
        x = F.conv_transpose2d(x, self.w3, None, 2, 0, 0, 2).clamp(-2.0, 2.0)
        return F.linear(x.mean((2, 3)), self.w4, bias=self.b4)


ZOO["functional_layers"] = Case(FunctionalLayers, [IMAGE])


# ---- arithmetic ---------------------------------------------------------------------------------

_body("add", lambda m, a, b: a + b, [8, 8])
_body("add_then_relu", lambda m, a, b: F.relu(torch.add(a, b)), [8, 8])
_body("add_of_relus", lambda m, a, b: F.relu(a).add(b.relu()), [8, 8])
_body("add_to_itself", lambda m, a: a + a)
_body("sub", lambda m, a, b: torch.relu(a) - b, [8, 8])
_body("mul", lambda m, a, b: a * b, [8, 8])
_body("mul_of_relus", lambda m, a, b: torch.relu(a).mul(torch.relu(b)), [8, 8])
_body("square", lambda m, a: a * a)
_body("squeeze_and_excite", lambda m, a: F.relu(a) * F.relu6(m["fc"](a.mean((2, 3), keepdim=True))),
      fc=lambda: nn.Conv2d(8, 8, 1))  # fmt: skip
_body("cat", lambda m, a, b: torch.cat([a, F.relu(b)], dim=1), [8, 4])
_body("cat_of_relus_then_conv", lambda m, a, b: m["conv"](torch.cat((F.relu(a), F.relu(b)), 1)),
      [8, 4], conv=lambda: nn.Conv2d(12, 5, 3))  # fmt: skip
_body("cat_with_itself", lambda m, a: torch.cat([a, a], 1))
_body("stack", lambda m, a, b: torch.stack([a, b], dim=2).flatten(1, 2), [8, 8])
_body("add_broadcast", lambda m, a, b: a + b.mean((2, 3), keepdim=True), [8, 8])
_body("add_of_input", lambda m, a, b: (a + b) + b, [8, 8])

# ---- pools and means ----------------------------------------------------------------------------

for height, width in ((2, 3), (1, 7), (3, 4), (7, 7), (8, 8), (12, 12), (14, 14)):
    _body(
        f"mean_of_{height * width}",
        lambda m, a: m["fc"](torch.flatten(F.relu(a).mean((2, 3)), 1)),
        shape=(3, height, width), fc=lambda: nn.Linear(8, 5),
    )  # fmt: skip
    _body(
        f"global_pool_of_{height * width}",
        lambda m, a: m["fc"](torch.flatten(m["pool"](a), 1)),
        shape=(3, height, width), fc=lambda: nn.Linear(8, 5), pool=lambda: nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip
_body("avg_pool", lambda m, a: F.avg_pool2d(m["pool"](F.relu(a)), 3, 1, 1),
      pool=lambda: nn.AvgPool2d(2))  # fmt: skip
_body("avg_pool_3", lambda m, a: m["pool"](a), pool=lambda: nn.AvgPool2d(3, 2, 1))
_body("avg_pool_3_no_pad", lambda m, a: m["pool"](a), shape=(3, 9, 9),
      pool=lambda: nn.AvgPool2d(3, 3, 0))  # fmt: skip
_body("avg_pool_without_pad_count", lambda m, a: m["pool"](a),
      pool=lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False))  # fmt: skip
_body("max_pool", lambda m, a: F.max_pool2d(m["pool"](F.relu(a)), 3, 1, 1),
      pool=lambda: nn.MaxPool2d(2))  # fmt: skip
_body("max_pool_of_signed", lambda m, a: m["pool"](a), pool=lambda: nn.MaxPool2d(3, 2, 1))
_body("adaptive_pools", lambda m, a: F.adaptive_max_pool2d(a, 2) + F.adaptive_avg_pool2d(a, (2, 2)))
_layers(
    "pools_1d",
    lambda: [nn.Conv1d(3, 8, 3), nn.MaxPool1d(2), nn.AvgPool1d(3), nn.Conv1d(8, 4, 1)],
    (3, 26),
)
_layers(
    "pools_3d",
    lambda: [nn.Conv3d(3, 4, 1), nn.MaxPool3d(2), nn.AvgPool3d(2), nn.ReLU()],
    (3, 8, 8, 8),
)

# ---- resize -------------------------------------------------------------------------------------

for factor in (2, 4):
    _body(f"nearest_x{factor}", lambda m, a, f=factor: F.interpolate(F.relu(a), scale_factor=f))
    _body(
        f"bilinear_x{factor}",
        lambda m, a, f=factor: m["conv"](
            F.interpolate(F.relu(a), scale_factor=f, mode="bilinear", align_corners=False)
        ),
        conv=lambda: nn.Conv2d(8, 4, 1),
    )
_body("bilinear_to_size_of", lambda m, a: F.relu(a) + F.interpolate(
      m["pool"](a), size=(8, 8), mode="bilinear"), pool=lambda: nn.MaxPool2d(2))  # fmt: skip
_body(
    "upsample_module",
    lambda m, a: m["up"](a),
    up=lambda: nn.Upsample(scale_factor=2, mode="nearest"),
)

# ---- moves --------------------------------------------------------------------------------------


def _shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)


class ShuffleUnit(nn.Module):
    """A stride-1 unit of ShuffleNet v2 as torchvision writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch2 = nn.Sequential(
            nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.stem(x).chunk(2, dim=1)
        return self.fc(_shuffle(torch.cat((x1, self.branch2(x2)), dim=1), 2).mean([2, 3]))


ZOO["shuffle_unit"] = Case(ShuffleUnit, [IMAGE])
_body(
    "flatten_then_linear", lambda m, a: m["fc"](torch.flatten(a, 1)), fc=lambda: nn.Linear(512, 5)
)
_body("view_then_linear", lambda m, a: m["fc"](a.view(a.size(0), -1)), fc=lambda: nn.Linear(512, 5))
_body("reshape_permute", lambda m, a: m["fc"](a.permute(0, 2, 3, 1).reshape(-1, 64, 8)),
      fc=lambda: nn.Linear(8, 5))  # fmt: skip
_body("transpose_unsqueeze", lambda m, a: a.transpose(1, 2).unsqueeze(1).squeeze(1))
_body("slice", lambda m, a: m["conv"](a[:, 2:6, 1:, ::2]), conv=lambda: nn.Conv2d(4, 4, 1))
_body("chunk", lambda m, a: a.chunk(2, 1)[0] + torch.chunk(a, 2, 1)[1])
_body("split", lambda m, a: torch.relu(torch.split(a, [2, 6], 1)[1]))
_body("split_with_names",
      lambda m, a: m["conv"](torch.split(a, split_size_or_sections=4, dim=1)[1]),
      conv=lambda: nn.Conv2d(4, 4, 1))  # fmt: skip
_body("unbind", lambda m, a: a.unbind(1)[3])
_body("dropout", lambda m, a: F.dropout(m["drop"](F.relu(a)), 0.2, False), drop=nn.Dropout)
_body("zero_pad", lambda m, a: m["conv"](F.pad(m["pad"](a), (1, 0, 0, 2))),
      pad=lambda: nn.ZeroPad2d(1), conv=lambda: nn.Conv2d(8, 4, 3))  # fmt: skip
_body("zero_pad_of_relu", lambda m, a: m["conv"](F.pad(F.relu(a), (1, 1, 1, 1))),
      conv=lambda: nn.Conv2d(8, 4, 3))  # fmt: skip
_body("reflection_pad", lambda m, a: F.pad(a, (1, 1, 1, 1), mode="reflect"))
_body("pixel_shuffle", lambda m, a: F.pixel_unshuffle(m["up"](a), 2), up=lambda: nn.PixelShuffle(2))
_body("channel_shuffle", lambda m, a: m["mix"](a), mix=lambda: nn.ChannelShuffle(4))
_body("moved_then_relu", lambda m, a: torch.relu(torch.flatten(a, 1)))
_body("expand", lambda m, a: a[:, :1].expand(-1, 4, -1, -1) + a[:, 4:])

# ---- units of known networks --------------------------------------------------------------------


class Residual(nn.Module):
    """ResNet's block: one ReLU module used at two call sites, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        y += x
        return self.fc(F.adaptive_avg_pool2d(self.relu(y), 1).flatten(1))


class Dense(nn.Module):
    """DenseNet's layers: batch norm and ReLU before the convolution, concatenation after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 3, padding=1, bias=False)
        self.norm3, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 5)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(self.relu(self.norm2(x)))], 1)
        return self.fc(F.relu(self.norm3(x)).mean((2, 3)))


class SharedConvolution(nn.Module):
    """One convolution at two call sites, with two ranges; its batch norm is shared as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.conv(F.relu(self.conv(x)))


class SharedUnit(nn.Module):
    """Convolution and batch norm, both at two call sites: RetinaNet's heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.unit = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.unit(x), self.unit(F.max_pool2d(x, 2))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.a(x) + self.b(y)
        return F.relu(z), self.head(z)


class InputReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x) + x, self.b(x)], 1)


class FloatInTheMiddle(nn.Module):
    """A sigmoid has no integer form: it runs in float between two grids."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(x * torch.sigmoid(self.b(x)))


class Transformer(nn.Module):
    """One block on 16 tokens: layer norm, self-attention, GELU, residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, stride=2)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


_body("matrix_product", lambda m, a, b: torch.matmul(a, b.transpose(2, 3)), [8, 8])
_body("matrix_operator", lambda m, a, b: F.relu(a @ b.flip(1)), [4, 4])
_body("einsum", lambda m, a, b: torch.einsum("nchw,nkhw->nck", a, b), [8, 6])
ZOO["transformer"] = Case(Transformer, [IMAGE])
ZOO["residual"] = Case(Residual, [IMAGE])
ZOO["dense"] = Case(Dense, [IMAGE])
ZOO["shared_convolution"] = Case(SharedConvolution, [IMAGE])
ZOO["shared_unit"] = Case(SharedUnit, [IMAGE])
ZOO["two_inputs"] = Case(TwoInputs, [IMAGE, (4, 8, 8)])
ZOO["input_read_twice"] = Case(InputReadTwice, [IMAGE])
ZOO["float_in_the_middle"] = Case(FloatInTheMiddle, [IMAGE])
_layers("qact", lambda: [nn.Conv2d(3, 4, 1), nn.Tanh(), QAct(), nn.MaxPool2d(2)])
_layers("noqact", lambda: [nn.Conv2d(3, 4, 1), NoQAct(), nn.ReLU(), nn.Conv2d(4, 4, 1)])
_layers("noqact_behind_relu", lambda: [nn.Conv2d(3, 4, 1), nn.ReLU(), NoQAct(), nn.Conv2d(4, 4, 1)])
_body("two_outputs_of_one_value", lambda m, a: (F.relu(a), a), 8)
