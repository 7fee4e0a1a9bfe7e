import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from edgeailite.models import create_model, list_models
from edgeailite.models.segmentation import (
    BiFPNDecoder,
    DeepLabV3PlusDecoder,
    FPNDecoder,
    SegmentationModel,
    UNetDecoder,
    bifpn,
)
from edgeailite.quantization import (
    GenericTinyMLPTQFxModule,
    PTCFxModule,
    QuantCalibrateModule,
    TINPUTinyMLPTQFxModule,
)
from edgeailite.quantization.export.argmax import append_argmax
from edgeailite.quantization.verify import verify
from edgeailite.xnn.layers import AddBlock, CatBlock, ConvNormAct
from edgeailite.xnn.utils import model_complexity

onnxruntime = pytest.importorskip("onnxruntime")

# GMAC at 3x384x768 with 19 classes, as published.
PUBLISHED = {
    "deeplabv3plus_mobilenetv2_tv_edgeailite": 3.5,
    "deeplabv3plus_resnet50_edgeailite": 39.6,
    "deeplabv3plus_regnetx800mf_edgeailite": 11.2,
    "fpn_aspp_mobilenetv2_tv_edgeailite": 3.8,
    "fpn_aspp_regnetx800mf_edgeailite": 8.8,
    "unet_aspp_mobilenetv2_tv_edgeailite": 2.2,
    "unet_aspp_resnet50_edgeailite": 35.5,
    "bifpn_aspp_regnetx800mf_edgeailite": 9.6,
}
SMALL = [f"{f}_mobilenetv2_tv_edgeailite" for f in ("deeplabv3plus", "unet_aspp", "bifpn_aspp")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_complexity_is_as_published(name):
    report = model_complexity(create_model(name, num_classes=19), (1, 3, 384, 768))
    assert report.gmacs == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", list_models("_edgeailite"))
def test_output_has_the_size_of_the_input(name):
    model = create_model(name, num_classes=5).eval()
    shape = (2 * model.input_multiple, 3 * model.input_multiple)
    with torch.no_grad():
        assert model(torch.randn(1, 3, *shape)).shape == (1, 5, *shape)


def test_four_families_on_six_encoders_under_both_spellings():
    names = list_models("_edgeailite")
    assert len(names) == 24
    for name in ("fpn_aspp_resnet50_edgeailite", "deeplabv3plus_mobilenetv2_tv_edgeailite"):
        other = name.replace("_aspp_", "_aspp_edgeailite_").replace("plus_", "plus_edgeailite_")
        other = other.removesuffix("_edgeailite")
        assert other not in names
        ours, theirs = (create_model(n, num_classes=3).state_dict() for n in (name, other))
        assert ours.keys() == theirs.keys()


def test_unknown_family_gets_the_nearest_names():
    with pytest.raises(ValueError, match="deeplabv3plus_mobilenetv2_tv_edgeailite"):
        create_model("deeplabv3_mobilenetv2_edgeailite")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("deeplabv3plus_mobilenetv2_tv_edgeailite", (120, 160), "multiples of 16.*: 128x160"),
        ("fpn_aspp_mobilenetv2_tv_edgeailite", (100, 20), "multiples of 32.*: 96x32"),
    ],
)
def test_size_that_the_strides_do_not_divide_raises(name, size, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=3)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("name", SMALL)
def test_modules_are_used_once_and_learn(name):
    model = create_model(name, num_classes=3)
    calls = []
    for module in model.modules():
        if not list(module.children()) or isinstance(module, AddBlock | CatBlock):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert len(calls) == len(set(calls))
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.dim() > 1)


def test_copies_and_pickles_keep_the_size_check():
    model = create_model(SMALL[0], num_classes=3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match="multiples of 16"):
            twin(torch.zeros(1, 3, 40, 40))


class TinyEncoder(nn.Module):
    """Five features of few channels, as the decoders take them."""

    channels = (16, 16, 16, 16, 16)

    def __init__(self, output_stride):
        super().__init__()
        strides = (2, 2, 2, 2, output_stride // 16)
        layers = zip((3, *self.channels), self.channels, strides, strict=False)
        self.layers = nn.ModuleList(ConvNormAct(i, o, 3, s) for i, o, s in layers)

    def forward(self, x):
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return tuple(features)


DECODERS = {
    "deeplabv3plus": (DeepLabV3PlusDecoder, 16),
    "fpn": (FPNDecoder, 32),
    "unet": (UNetDecoder, 32),
    "bifpn": (BiFPNDecoder, 32),
}
PTC = partial(PTCFxModule, qconfig_type="WC8SYMP2_AT8SYMP2")
WRAPPERS = {
    "pact2": lambda model, x: QuantCalibrateModule(model, dummy_input=x),
    "fx": lambda model, x: PTC(model, example_inputs=x),
    "generic": lambda model, x: GenericTinyMLPTQFxModule(model, 1, example_inputs=x, verbose=False),
    "tinpu": lambda model, x: TINPUTinyMLPTQFxModule(model, 1, example_inputs=x, verbose=False),
}
CASES = [(family, "pact2") for family in DECODERS]
CASES += [("deeplabv3plus", wrapper) for wrapper in WRAPPERS if wrapper != "pact2"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the NPU computes.*:UserWarning")
@pytest.mark.parametrize(("family", "wrapper"), CASES)
def test_quantized_model_equals_its_onnx_file_in_every_logit(
    family, wrapper, tmp_path, monkeypatch
):
    # A block that others follow, and the last; the exporter's time is that of the layers.
    monkeypatch.setattr(bifpn, "_BLOCKS", 2)
    decoder, output_stride = DECODERS[family]
    encoder = TinyEncoder(output_stride)
    model = SegmentationModel(encoder, decoder(encoder.channels, 4, 16), output_stride)
    shape = (2, 3, 64, 64)
    quantized = WRAPPERS[wrapper](model, torch.zeros(1, *shape[1:]))
    with torch.no_grad():
        quantized.train()
        for _ in range(2):
            quantized(torch.randn(shape))
    quantized.eval()
    path = tmp_path / "model.onnx"
    quantized.export(torch.zeros(1, *shape[1:]), path, dynamic_batch=True)
    x = torch.randn(shape)
    comparison = verify(quantized, [x], path)
    assert sum(comparison.mismatches.values()) == 0
    assert comparison.num_values == 2 * 4 * 64 * 64
    append_argmax(path, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (classes,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(classes), quantized(x).argmax(1))
