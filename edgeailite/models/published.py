"""Weights that others have published, by model: one answer for each registered name.

A model with a counterpart takes the published weights by ``load_weights`` and computes what the
counterpart computes, in evaluation and in training mode. The tests compare each pair, bit by bit.
"""

__all__ = ["PUBLISHED", "PUBLISHED_ENCODERS", "UNPUBLISHED"]

_REGNETX = {
    "regnetx400mf": "pycls/RegNetX-400MF",
    "regnetx800mf": "torchvision/regnet_x_800mf",
    "regnetx1p6gf": "torchvision/regnet_x_1_6gf",
    "regnetx3p2gf": "torchvision/regnet_x_3_2gf",
}

PUBLISHED: dict[str, str] = {
    "mobilenetv2_tv_x1": "torchvision/mobilenet_v2",
    "mobilenetv2_x1": "torchvision/mobilenet_v2",
    "mobilenetv3_large_x1": "torchvision/mobilenet_v3_large",
    "mobilenetv3_small_x1": "torchvision/mobilenet_v3_small",
    **{f"{name}_x1": published for name, published in _REGNETX.items()},
    "regnetx400mf_x1_bgr": "pycls/RegNetX-400MF",
    "regnetx800mf_x1_bgr": "pycls/RegNetX-800MF",
    "regnetx1p6gf_x1_bgr": "pycls/RegNetX-1.6GF",
    "regnetx3p2gf_x1_bgr": "pycls/RegNetX-3.2GF",
    "resnet18_x1": "torchvision/resnet18",
    "resnet50_x1": "torchvision/resnet50",
    "shufflenetv2_x1p0": "torchvision/shufflenet_v2_x1_0",
    "shufflenetv2_x1p5": "torchvision/shufflenet_v2_x1_5",
    "vgg16_x1": "torchvision/vgg16_bn",
}
"""Library and name of the counterpart."""

PUBLISHED_ENCODERS: dict[str, str] = {
    "mobilenetv2_tv": "torchvision/mobilenet_v2",
    "resnet50": "torchvision/resnet50",
    **_REGNETX,
}
"""Counterparts of the segmentation models' encoders; their decoders have none."""

UNPUBLISHED: dict[str, str] = {
    "mobilenetv1_x1": "no library publishes weights under its names",
    "mobilenetv2_tv_x2_t2": "a variant of the historical model zoo",
    "mobilenetv3_lite_large_x1": "without squeeze-and-excitation and hard swish",
    "mobilenetv3_lite_small_x1": "without squeeze-and-excitation and hard swish",
    "resnet50_xp5": "half the width",
}
"""Reasons why a model has no counterpart."""
