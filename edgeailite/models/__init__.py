"""Models by name: ``create_model("mobilenetv2_tv_x1", num_classes=10)``."""

from edgeailite.models import classification, segmentation
from edgeailite.models.registry import create_model, list_models, register_model

__all__ = ["classification", "create_model", "list_models", "register_model", "segmentation"]
