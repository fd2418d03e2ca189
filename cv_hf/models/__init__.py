"""Pretrained models, made ready to be fine-tuned: loading, input size, freezing, parameter groups, pixel values."""

from cv_hf.models.build import Built, LoadReport, build_model
from cv_hf.models.parts import freeze_backbone, head_parameters, parameter_groups
from cv_hf.models.pixels import PixelMap, pixel_map

__all__ = [
    "Built",
    "LoadReport",
    "PixelMap",
    "build_model",
    "freeze_backbone",
    "head_parameters",
    "parameter_groups",
    "pixel_map",
]
