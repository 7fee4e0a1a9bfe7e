"""Networks of ``capture_sweep.py``: those of the libraries that people take their networks from.

Every library is imported where one of its networks is built. No network downloads weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

CLASSES = 10
# A network gets the first of these sides that it takes.
SIDES = (96, 128, 160, 192, 224, 256, 300)

# The smallest model of each module of timm 1.0, without timm's own `test_...` networks.
TIMM_FAMILIES = {
    "beit": "beit_base_patch16_224", "byoanet": "halonet_h1", "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224", "coat": "coat_tiny", "convit": "convit_tiny",
    "convmixer": "convmixer_768_32", "convnext": "convnext_zepto_rms", "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240", "csatv2": "csatv2", "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny", "davit": "davit_tiny", "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224", "densenet": "densenet121", "dla": "dla46x_c",
    "dpn": "dpn48b", "edgenext": "edgenext_xx_small", "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0", "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1", "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0", "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0", "fastvit": "fastvit_t8", "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny", "gemma4_vit": "gemma4_vit_167m", "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b", "hgnet": "hgnetv2_b0", "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny", "hrnet": "hrnet_w18_small", "iformer": "iformer_t",
    "inception_next": "inception_next_atto", "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3", "inception_v4": "inception_v4", "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s", "lowformer": "lowformer_b0", "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256", "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224", "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base", "mobilevit": "mobilevit_xxs", "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap", "nasnet": "nasnetalarge",
    "nest": "nest_tiny", "nextvit": "nextvit_small", "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224", "pnasnet": "pnasnet5large", "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m", "rdnet": "rdnet_tiny", "regnet": "regnetx_002",
    "repghost": "repghostnet_050", "repvit": "repvit_m1", "res2net": "res2next50",
    "resnest": "resnest14d", "resnet": "resnet10t", "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100", "selecsls": "selecsls42", "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s", "shvit": "shvit_s1", "sknet": "skresnet18",
    "starnet": "starnet_s050", "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224", "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224", "tresnet": "tresnet_m", "twins": "twins_svt_small",
    "vgg": "vgg11", "visformer": "visformer_tiny", "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224", "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224", "vovnet": "ese_vovnet19b_slim_dw", "xception": "legacy_xception",
    "xception_aligned": "xception41p", "xcit": "xcit_nano_12_p8_224",
}  # fmt: skip
# Further ones, with the padding of TensorFlow, which depends on the input's shape.
TIMM_SAME_PADDING = ("tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100")
YOLOS = ("yolov8n", "yolo11n", "yolo26n", "yolov8n-seg")
SMP_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")
# DPT takes no other encoders than timm's vision transformers.
SMP_DPT_ENCODERS = (
    "tu-vit_tiny_patch16_224", "tu-deit_tiny_patch16_224", "tu-vit_small_patch32_224",
)  # fmt: skip
_TOKENS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 96}
# Classifiers of transformers: model type, and how its configuration gets small.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1]},
    "regnet": {"embedding_size": 32, "hidden_sizes": [64, 128, 192, 256], "depths": [1, 1, 2, 1]},
    "bit": {"embedding_size": 64, "hidden_sizes": [128, 128, 256, 256], "depths": [1, 1, 2, 1]},
    "mobilenet_v1": {}, "mobilenet_v2": {}, "mobilevit": {"image_size": 96}, "mobilevitv2": {},
    "efficientnet": {
        "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "image_size": 96,
    },
    "convnext": {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 2, 1]},
    "convnextv2": {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 2, 1]},
    "poolformer": {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]},
    "segformer": {},
    "pvt_v2": {"image_size": 96},
    "swin": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "image_size": 224},
    "swinv2": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "image_size": 256},
    "focalnet": {"embed_dim": 32, "depths": [1, 1, 2, 1], "image_size": 96},
    "vit": {**_TOKENS, "intermediate_size": 128},
    "beit": {**_TOKENS, "intermediate_size": 128},
    "dinov2": {**_TOKENS, "patch_size": 16},
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network of the sweep.

    Attributes:
        make: Builds it, with random weights.
        sides: Sides of the square input; the first one that it takes counts.
    """

    make: Callable[[], nn.Module]
    sides: Callable[[], tuple[int, ...]] = lambda: SIDES


class Predictions(nn.Module):
    """The raw predictions of a YOLO, in both modes the ones that its loss reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """(N, 3, H, W) to a dict of tensors; evaluation returns ``(decoded, predictions)``."""
        result = self.model(x)
        return result if self.training else result[1]


def torchvision_networks() -> dict[str, Network]:
    """Every classifier, every segmentation network, the backbone of every detector."""
    from torchvision import models

    found = {}
    for name in models.list_models(module=models):
        found[f"classification/{name}"] = Network(partial(make_torchvision, name))
    for name in models.list_models(module=models.segmentation):
        found[f"segmentation/{name}"] = Network(partial(make_torchvision, name))
    for name in models.list_models(module=models.detection):
        found[f"detection/{name}"] = Network(partial(make_detection_backbone, name))
    return found


def make_torchvision(name: str) -> nn.Module:
    """Build a classifier or a segmentation network."""
    from torchvision import models

    if name in models.list_models(module=models.segmentation):
        return models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES)
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = 112 if name == "vit_h_14" else 96
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}
    return models.get_model(name, weights=None, num_classes=CLASSES, **options)


def make_detection_backbone(name: str) -> nn.Module:
    """Build what a detector computes on the image: a dict of feature maps."""
    from torchvision import models

    return models.get_model(name, weights=None, weights_backbone=None).backbone


def timm_networks() -> dict[str, Network]:
    """A model of each family."""
    names = {f"{family}/{name}": name for family, name in TIMM_FAMILIES.items()}
    names |= {f"same_padding/{name}": name for name in TIMM_SAME_PADDING}
    return {
        key: Network(partial(make_timm, name), partial(timm_sides, name))
        for key, name in names.items()
    }


def timm_modules() -> set[str]:
    """Modules of ``timm.models`` that hold networks."""
    import timm

    return {module for module in timm.list_modules() if timm.list_models(module=module)}


def make_timm(name: str) -> nn.Module:
    """Build a classifier of timm."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES)


def timm_sides(name: str) -> tuple[int, ...]:
    """Sides that a model of timm may take; its own alone if that is fixed."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    own = settings.input_size[-1]
    return (own,) if settings.fixed_input_size else (*(s for s in SIDES if s < own), own)


def ultralytics_networks() -> dict[str, Network]:
    """YOLOs as they are, and their raw predictions, which both modes return."""
    found = {}
    for name in YOLOS:
        found[name] = Network(partial(make_yolo, name))
        found[f"{name}-predictions"] = Network(partial(make_predictions, name))
    return found


def make_yolo(name: str) -> nn.Module:
    """Build a detector, or a segmenter of instances."""
    from ultralytics.nn import tasks

    kind = tasks.SegmentationModel if name.endswith("-seg") else tasks.DetectionModel
    return kind(f"{name}.yaml", nc=CLASSES, verbose=False)


def make_predictions(name: str) -> nn.Module:
    """Build a YOLO that returns the same in both modes."""
    return Predictions(make_yolo(name))


def smp_networks() -> dict[str, Network]:
    """Every decoder, each with three encoders."""
    import segmentation_models_pytorch as smp

    found = {}
    for decoder in smp.MODEL_ARCHITECTURES_MAPPING:
        for encoder in SMP_DPT_ENCODERS if decoder == "dpt" else SMP_ENCODERS:
            found[f"{decoder}/{encoder}"] = Network(partial(make_smp, decoder, encoder))
    return found


def make_smp(decoder: str, encoder: str) -> nn.Module:
    """Build a segmentation network."""
    import segmentation_models_pytorch as smp

    return smp.create_model(decoder, encoder, encoder_weights=None, classes=CLASSES)


def transformers_networks() -> dict[str, Network]:
    """Image classifiers and one segmentation network, which return dataclasses."""
    found = {
        f"{kind}/classification": Network(partial(make_transformer, kind)) for kind in TRANSFORMERS
    }
    found["segformer/segmentation"] = Network(make_segformer)
    return found


def make_transformer(kind: str) -> nn.Module:
    """Build a classifier from a small configuration."""
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.for_model(kind, num_labels=CLASSES, **TRANSFORMERS[kind])
    return AutoModelForImageClassification.from_config(config)


def make_segformer() -> nn.Module:
    """Build a segmentation network from its default configuration, MiT-B0."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES))


# Package that is imported, and what makes the list of its networks.
LIBRARIES: dict[str, tuple[str, Callable[[], dict[str, Network]]]] = {
    "timm": ("timm", timm_networks),
    "ultralytics": ("ultralytics", ultralytics_networks),
    "segmentation-models-pytorch": ("segmentation_models_pytorch", smp_networks),
    "transformers": ("transformers", transformers_networks),
    "torchvision": ("torchvision", torchvision_networks),
}


def list_networks(library: str) -> dict[str, Network]:
    """Networks of a library by name, ``library/...``.

    Raises:
        ModuleNotFoundError: The library, or a package that it needs, is not installed.
    """
    package, make = LIBRARIES[library]
    importlib.import_module(package)
    return {f"{library}/{name}": network for name, network in make().items()}
