"""Small networks that do what symbolic tracing loses or cannot follow."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Result:
    scores: torch.Tensor
    features: torch.Tensor


class Tricky(nn.Module):
    """A convolution with batch norm, something tricky, and one more convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.make()

    def make(self):
        """Make the modules that `trick` calls; none here."""

    def forward(self, x):
        return self.trick(self.norm(self.first(x)))


class UnusedModule(Tricky):
    def make(self):
        self.relu = nn.ReLU(inplace=True)

    def trick(self, x):
        self.relu(x)
        return self.last(x)


class UnusedFunction(Tricky):
    def trick(self, x):
        F.relu(x, inplace=True)
        return self.last(x)


class UnusedMethod(Tricky):
    def trick(self, x):
        x.relu_()
        return self.last(x)


class OverwrittenSkip(Tricky):
    def make(self):
        self.relu = nn.ReLU(inplace=True)

    def trick(self, x):
        skip = x
        return self.last(self.relu(x)) + skip


class AddedToAlias(Tricky):
    def trick(self, x):
        same = x
        same += 1
        return self.last(x)


class NumbersAreNoTensors(Tricky):
    def trick(self, x):
        size = x.shape[-1]
        same = size
        size += 2
        return F.interpolate(self.last(x), size=size) + same


class ViewOfOverwritten(Tricky):
    def trick(self, x):
        flat = x.flatten(1)
        x.relu_()
        return flat


class CopyOfOverwritten(Tricky):
    def trick(self, x):
        before = x.clone()
        x.relu_()
        return self.last(x) + before


class OverwrittenSlice(Tricky):
    def trick(self, x):
        x[:, :4].mul_(0)
        return self.last(x)


class OverwrittenChunk(Tricky):
    def forward(self, x):
        x = x * 1  # autograd allows no change of one of several views of what needs a gradient
        left, right = x.chunk(2, 2)
        left.mul_(2)
        return self.norm(self.first(x + torch.cat([right, left], 2)))


class OverwrittenReshape(Tricky):
    def trick(self, x):
        x.view(x.shape[0], -1).clamp_(0, 0.5)
        return self.last(x)


class AssignedItem(Tricky):
    def trick(self, x):
        x[:, 0] = 1.0
        return self.last(x)


class AssignedConstant(Tricky):
    def trick(self, x):
        mask = torch.ones(x.shape[2])
        mask[0] = 0
        return self.last(x) * mask[:, None]


class MaskedFill(Tricky):
    def trick(self, x):
        x.masked_fill_(x > 1, 0.0)
        return self.last(x)


class CountedSteps(Tricky):
    def make(self):
        self.register_buffer("steps", torch.zeros(()))

    def trick(self, x):
        self.steps += 1
        return self.last(x) * self.steps


class WithoutGradient(Tricky):
    def make(self):
        self.frozen = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())

    def trick(self, x):
        with torch.no_grad():
            y = self.frozen(x)
        return self.last(y)


class BranchOnSize(Tricky):
    def trick(self, x):
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.last(F.max_pool2d(x, 2))


class DropoutBehindBranch(Tricky):
    def trick(self, x):
        if x.shape[-1] > 4:
            x = F.dropout(x, 0.5, self.training)
        return self.last(x)


class OnlyInTraining(Tricky):
    def trick(self, x):
        if self.training:
            x = x * (torch.rand(x.shape[0], 1, 1, 1) + 0.5)
        return self.last(x)


class RecurrentBehindBranch(Tricky):
    def make(self):
        self.rnn = nn.LSTM(8, 8, batch_first=True, bidirectional=True)

    def trick(self, x):
        if x.shape[-1] > 2:
            x = self.last(x)
        y, (hidden, _) = self.rnn(x.flatten(2).transpose(1, 2))
        return y, hidden


class LeafInLeaf(Tricky):
    def make(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def trick(self, x):
        if x.shape[-1] > 2:
            x = self.last(x)
        return self.encoder(x.flatten(2).transpose(1, 2))


class OutputSize(Tricky):
    def make(self):
        self.up = nn.ConvTranspose2d(8, 8, 3, 2, 1)

    def trick(self, x):
        if x.shape[-1] > 2:
            x = self.last(x)
        return self.up(x[:, :, ::2, ::2], output_size=x.shape[-2:])


class TiedModules(Tricky):
    def trick(self, x):
        if x.shape[-1] > 2:
            x = self.last(x)
        return self.last(x)


class AuxiliaryHead(Tricky):
    def make(self):
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.drop = nn.Dropout(0.3)

    def trick(self, x):
        other = self.head(x) if self.training else None
        y = self.last(self.drop(x))
        return (y, other) if self.training else y.softmax(1)


class RawInTraining(Tricky):
    """As detectors do: training returns the feature maps, evaluation what it decodes of them."""

    def trick(self, x):
        maps = [self.last(x), self.last(x[:, :, ::2, ::2])]
        if self.training:
            return {"maps": maps}
        if x.shape[-1] > 2:
            flat = torch.cat([m.flatten(2) for m in maps], 2)
        return flat.sigmoid(), maps


class NestedResult(Tricky):
    def trick(self, x):
        if x.shape[-1] > 2:
            x = x * 2
        return {"scores": self.last(x), "features": [x, (x + 1, None)]}


class DataclassResult(Tricky):
    def trick(self, x):
        if x.shape[-1] > 2:
            x = x * 2
        return Result(self.last(x), x)


BY_TRACING = [
    UnusedModule,
    UnusedFunction,
    UnusedMethod,
    OverwrittenSkip,
    AddedToAlias,
    NumbersAreNoTensors,
    ViewOfOverwritten,
    CopyOfOverwritten,
    MaskedFill,
    WithoutGradient,
    AuxiliaryHead,
]
BY_EXPORT = [
    OverwrittenSlice,
    OverwrittenChunk,
    OverwrittenReshape,
    AssignedItem,
    AssignedConstant,
    OnlyInTraining,
    RawInTraining,
    CountedSteps,
    BranchOnSize,
    DropoutBehindBranch,
    RecurrentBehindBranch,
    LeafInLeaf,
    OutputSize,
    TiedModules,
    NestedResult,
    DataclassResult,
]
