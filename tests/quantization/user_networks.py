"""Networks as people write them: in-place activations, functions, sizes computed from shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Case(NamedTuple):
    """A network and the shapes of its inputs; `needs_example`: it reads sizes of its input."""

    make: Callable[[], nn.Module]
    shapes: Any
    needs_example: bool = False


# ---- a detector in the manner of YOLOv8: C2f, SPPF, a pyramid, a head on two scales --------------


def autopad(k, p=None):
    if p is None:
        p = k // 2 if isinstance(k, int) else [x // 2 for x in k]
    return p


class Conv(nn.Module):
    default_act = nn.SiLU(inplace=True)

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, autopad(k, p), groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = self.default_act if act is True else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c1, c2, shortcut=True, e=0.5):
        super().__init__()
        c_ = int(c2 * e)
        self.cv1 = Conv(c1, c_, 3)
        self.cv2 = Conv(c_, c2, 3)
        self.add = shortcut and c1 == c2

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, c1, c2, n=1, shortcut=False, e=0.5):
        super().__init__()
        self.c = int(c2 * e)
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv((2 + n) * self.c, c2, 1)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c, shortcut, e=1.0) for _ in range(n))

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, c1, c2, k=5):
        super().__init__()
        c_ = c1 // 2
        self.cv1 = Conv(c1, c_, 1)
        self.cv2 = Conv(c_ * 4, c2, 1)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Detect(nn.Module):
    def __init__(self, nc, ch):
        super().__init__()
        self.nc, self.nl = nc, len(ch)
        self.cv2 = nn.ModuleList(nn.Conv2d(x, 4, 1) for x in ch)
        self.cv3 = nn.ModuleList(nn.Sequential(Conv(x, 8, 3), nn.Conv2d(8, nc, 1)) for x in ch)

    def forward(self, x):
        for i in range(self.nl):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        shape = x[0].shape
        flat = torch.cat([xi.view(shape[0], self.nc + 4, -1) for xi in x], 2)
        box, cls = flat.split((4, self.nc), 1)
        return torch.cat((box, cls.sigmoid()), 1), x


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), C2f(8, 16, 1, True))
        self.deep = nn.Sequential(Conv(16, 16, 3, 2), SPPF(16, 16))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck = Conv(32, 16, 1)
        self.detect = Detect(3, (16, 16))

    def forward(self, x):
        p3 = self.stem(x)
        p4 = self.deep(p3)
        p3 = self.neck(torch.cat([self.up(p4), p3], dim=1))
        return self.detect([p3, p4])


# ---- U-Net that pads to its skip ----------------------------------------------------------------


class DoubleConv(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x1, x2):
        x1 = self.up(x1)
        diff_y = x2.size()[2] - x1.size()[2]
        diff_x = x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [diff_x // 2, diff_x - diff_x // 2, diff_y // 2, diff_y - diff_y // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(8, 16))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(16, 32))
        self.up1, self.up2 = Up(32, 16), Up(16, 8)
        self.outc = nn.Conv2d(8, 3, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        return self.outc(self.up2(self.up1(x3, x2), x1))


# ---- SegNet: unpooling with the indices of the pooling ------------------------------------------


class SegNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv11, self.bn11 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv21, self.bn21 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.conv21d, self.bn21d = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv11d = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x11 = F.relu(self.bn11(self.conv11(x)))
        x1p, id1 = F.max_pool2d(x11, kernel_size=2, stride=2, return_indices=True)
        x21 = F.relu(self.bn21(self.conv21(x1p)))
        x2p, id2 = self.pool(x21)
        x2d = F.max_unpool2d(x2p, id2, kernel_size=2, stride=2, output_size=x21.size())
        x21d = F.relu(self.bn21d(self.conv21d(x2d)))
        x1d = F.max_unpool2d(x21d, id1, kernel_size=2, stride=2)
        return self.conv11d(x1d)


# ---- ESPNet: pyramids of dilated convolutions, PReLU, an attribute called `modules` -------------


class CBR(nn.Module):
    def __init__(self, n_in, n_out, k_size, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, k_size, stride, (k_size - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)
        self.act = nn.PReLU(n_out)

    def forward(self, input):
        output = self.conv(input)
        output = self.bn(output)
        return self.act(output)


class BR(nn.Module):
    def __init__(self, n_out):
        super().__init__()
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)
        self.act = nn.PReLU(n_out)

    def forward(self, input):
        return self.act(self.bn(input))


class DilatedParallelResidualBlock(nn.Module):
    def __init__(self, n_in, n_out, add=True):
        super().__init__()
        n = n_out // 4
        self.c1 = nn.Conv2d(n_in, n, 1, bias=False)
        self.d1 = nn.Conv2d(n, n_out - 3 * n, 3, padding=1, bias=False)
        self.d2 = nn.Conv2d(n, n, 3, padding=2, dilation=2, bias=False)
        self.d4 = nn.Conv2d(n, n, 3, padding=4, dilation=4, bias=False)
        self.d8 = nn.Conv2d(n, n, 3, padding=8, dilation=8, bias=False)
        self.bn = BR(n_out)
        self.add = add

    def forward(self, input):
        output1 = self.c1(input)
        d1, d2 = self.d1(output1), self.d2(output1)
        d4, d8 = self.d4(output1), self.d8(output1)
        add1 = d2
        add2 = add1 + d4
        add3 = add2 + d8
        combine = torch.cat([d1, add1, add2, add3], 1)
        if self.add:
            combine = input + combine
        return self.bn(combine)


class InputProjection(nn.Module):
    """The image, averaged down."""

    def __init__(self, times):
        super().__init__()
        self.pool = nn.ModuleList()
        for _ in range(times):
            self.pool.append(nn.AvgPool2d(3, stride=2, padding=1))

    def forward(self, input):
        for pool in self.pool:
            input = pool(input)
        return input


class ESPNetEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.level1 = CBR(3, 8, 3, 2)
        self.sample1 = InputProjection(1)
        self.b1 = BR(11)
        self.level2 = CBR(11, 16, 3, 2)
        self.level2_blocks = nn.ModuleList(DilatedParallelResidualBlock(16, 16) for _ in range(1))


class ESPNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = ESPNetEncoder()
        self.modules = []
        for m in self.encoder.children():
            self.modules.append(m)
        self.up = nn.ConvTranspose2d(16, 4, 2, stride=2, padding=0, output_padding=0, bias=False)
        self.classifier = nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False)

    def forward(self, input):
        output0 = self.modules[0](input)
        inp1 = self.modules[1](input)
        output0_cat = self.modules[2](torch.cat([output0, inp1], 1))
        output1 = self.modules[3](output0_cat)
        for layer in self.modules[4]:
            output1 = layer(output1)
        return self.classifier(self.up(output1))


# ---- CRNN: convolutions, a recurrent layer, a linear one ----------------------------------------


class CRNN(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d((4, 1)),
        )  # fmt: skip
        self.rnn = kind(16, 8, bidirectional=True)
        self.embedding = nn.Linear(16, 5)

    def forward(self, input):
        conv = self.cnn(input)
        b, c, h, w = conv.size()  # noqa: RUF059 -- as it is mostly written
        assert h == 1, "the height of conv must be 1"
        conv = conv.squeeze(2)
        conv = conv.permute(2, 0, 1)  # [w, b, c]
        recurrent, _ = self.rnn(conv)
        t, b, h = recurrent.size()
        output = self.embedding(recurrent.view(t * b, h))
        return output.view(t, b, -1)


# ---- ConvNeXt: layer scale, stochastic depth by its function -------------------------------------


def drop_path(x, drop_prob: float = 0.0, training: bool = False):
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1 - drop_prob
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = x.new_empty(shape).bernoulli_(keep_prob)
    return x * random_tensor.div_(keep_prob)


class DropPath(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return drop_path(x, self.drop_prob, self.training)


class LayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-6, data_format="channels_last"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.data_format = data_format
        self.normalized_shape = (normalized_shape,)

    def forward(self, x):
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim, path_rate, layer_scale_init_value=0.5):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = (
            nn.Parameter(layer_scale_init_value * torch.ones(dim))
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path = DropPath(path_rate) if path_rate > 0.0 else nn.Identity()

    def forward(self, x):
        input = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.norm(x)
        x = self.pwconv2(self.act(self.pwconv1(x)))
        if self.gamma is not None:
            x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return input + self.drop_path(x)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=4, stride=4), LayerNorm(8, data_format="channels_first")
        )
        self.blocks = nn.Sequential(ConvNeXtBlock(8, 0.0), ConvNeXtBlock(8, 0.5))
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.head(self.norm(x.mean([-2, -1])))


# ---- several inputs and outputs -----------------------------------------------------------------


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.cnn1 = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.fc1 = nn.Sequential(nn.Linear(8 * 5 * 5, 16), nn.ReLU(inplace=True), nn.Linear(16, 8))
        self.out = nn.Linear(8, 1)

    def forward_once(self, x):
        output = self.cnn1(x)
        output = output.view(output.size()[0], -1)
        return self.fc1(output)

    def forward(self, input1, input2):
        output1 = self.forward_once(input1)
        output2 = self.forward_once(input2)
        return output1, output2, self.out(torch.abs(output1 - output2))


class Backbone(nn.Module):
    """A residual block; its skip is taken in front of an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        identity = x
        x = self.relu(x)
        x = self.bn2(self.conv2(x))
        x += identity
        F.relu_(x)
        return x


class Segmenter(nn.Module):
    """A dict of two predictions at the size of the input, the auxiliary one in training too."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.classifier, self.aux_classifier = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        input_shape = x.shape[-2:]
        features = self.backbone(x)
        result = {}
        for name, head in (("out", self.classifier), ("aux", self.aux_classifier)):
            y = head(features)
            if y.shape[-2:] != input_shape:
                y = F.interpolate(y, size=input_shape, mode="bilinear", align_corners=False)
            result[name] = y
        return result


@dataclass
class ClassifierOutput:
    logits: Tensor
    features: Tensor | None = None


class Classifier(nn.Module):
    """Returns a dataclass; checks the shape of what it is given."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 5)

    def forward(self, pixel_values):
        if pixel_values.shape[1] != 3:
            raise ValueError(f"expected 3 channels, got {pixel_values.shape[1]}")
        features = self.backbone(pixel_values)
        logits = self.head(self.dropout(features.mean(dim=(2, 3))))
        return ClassifierOutput(logits=logits, features=features)


class DepthCompletion(nn.Module):
    """Takes a dict: an image and sparse depth, which a mask says where to believe."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.depth = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, batch):
        image, depth = batch["image"], batch["depth"]
        valid = (depth > 0).float()
        x = torch.cat([self.backbone(image), F.relu(self.depth(depth * valid))], 1)
        return self.head(x)


NETWORKS = {
    "detector": Case(Detector, ((3, 16, 16),), True),
    "unet": Case(UNet, ((3, 18, 22),)),
    "segnet": Case(SegNet, ((3, 16, 16),)),
    "espnet": Case(ESPNet, ((3, 16, 16),)),
    "crnn_lstm": Case(lambda: CRNN(nn.LSTM), ((1, 8, 24),), True),
    "crnn_gru": Case(lambda: CRNN(nn.GRU), ((1, 8, 24),), True),
    "convnext": Case(ConvNeXt, ((3, 16, 16),), True),
    "siamese": Case(Siamese, ((1, 16, 16), (1, 16, 16))),
    "dict_output": Case(Segmenter, ((3, 16, 16),), True),
    "dataclass_output": Case(Classifier, ((3, 16, 16),), True),
    "dict_input": Case(DepthCompletion, ({"image": (3, 16, 16), "depth": (1, 16, 16)},), True),
}
