"""Several processes: calibration and training give what one process gives on the joint batch."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QATFxModule,
    QuantCalibrateModule,
    QuantTrainModule,
    TINPUTinyMLPTQFxModule,
    TrainingMethods,
)
from edgeailite.quantization.modules.pact2 import quantizers

METHODS = TrainingMethods("all", damping=0.1, distillation=0.5, freeze_oscillations=0.1)
X = (8, 3, 8, 8)
PRESETS = ("WC8_AT8", "WC8SYMP2_AT8SYMP2R4", "WC8P2_AT8P2", "WC4M4_AT8")


def _net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def _calibrators():
    """Every kind of calibration, by name."""
    example = torch.rand(1, *X[1:])
    made = {"pact2": QuantCalibrateModule(_net(), dummy_input=example)}
    for preset in PRESETS:
        made[preset] = PTCFxModule(_net(), example_inputs=example, qconfig_type=preset)
    for kind in (GenericTinyMLPTQFxModule, TINPUTinyMLPTQFxModule):
        made[kind.__name__] = kind(_net(), total_epochs=1, example_inputs=example, verbose=False)
    return made


def _calibrate(data, part):
    """State of each kind of wrapper after all batches, of which this process sees a part."""
    states = {}
    for name, wrapper in _calibrators().items():
        wrapper.train()
        with torch.no_grad():
            for batch in data:
                wrapper(part(batch))
        states[name] = wrapper.module.state_dict()
    return states


def _train(data, part, distribute):
    """State of each kind of wrapper after a step per batch."""
    states = {}
    example = torch.rand(1, *X[1:])
    for name, wrapper in {
        "pact2": QuantTrainModule(_net(), dummy_input=example, total_epochs=1),
        "fx": QATFxModule(_net(), example_inputs=example, total_epochs=1),
        "methods": QATFxModule(_net(), example_inputs=example, total_epochs=1, methods=METHODS),
    }.items():
        # Batch statistics differ between a half and the whole: they are frozen.
        for module in wrapper.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for quantizer in quantizers(wrapper.module).values():
            quantizer._batches_to_observe = 1  # learn from the second batch on
        model = distribute(wrapper)
        optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.05)
        for batch in data:
            optimizer.zero_grad()
            model(part(batch)).square().mean().backward()
            optimizer.step()
        states[name] = wrapper.module.state_dict()
    return states


def _on_rank(rank: int, folder: str, data: torch.Tensor) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def part(batch):
        return batch.chunk(2)[rank].contiguous()

    states = {"calibrated": _calibrate(data, part)}
    states["trained"] = _train(data, part, DistributedDataParallel)
    torch.save(states, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def data():
    return torch.randn(3, *X, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def together(data, tmp_path_factory):
    """States on both processes."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_on_rank, args=(str(folder), data), nprocs=2)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in (0, 1)]


def _assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        for key, value in expected[name].items():
            torch.testing.assert_close(
                actual[name][key], value, rtol=1e-5, atol=2e-6, msg=f"{name}: {key}"
            )


@pytest.mark.parametrize("what", ["calibrated", "trained"])
def test_all_processes_end_with_the_same_state(together, what):
    first, second = (states[what] for states in together)
    for name in first:
        for key, value in first[name].items():
            assert torch.equal(value, second[name][key]), f"{name}: {key}"


def test_calibration_equals_that_of_one_process_on_the_joint_batch(together, data):
    _assert_close(together[0]["calibrated"], _calibrate(data, lambda batch: batch))


def test_training_equals_that_of_one_process_on_the_joint_batch(together, data):
    alone = _train(data, lambda batch: batch, lambda wrapper: wrapper)
    _assert_close(together[0]["trained"], alone)
