"""Pretrained models, made ready to be fine-tuned: loading, input size, freezing, pixel values."""

from cv_hf.models.build import Built, LoadReport, build_model
from cv_hf.models.needs import Needs, loss_needs
from cv_hf.models.oneformer import PromptedProcessor, whole_config
from cv_hf.models.parts import freeze_backbone, head_parameters
from cv_hf.models.pixels import PixelMap, pixel_map, resizer
from cv_hf.models.segmentation import TargetForm, target_form

__all__ = [
    "Built",
    "LoadReport",
    "Needs",
    "PixelMap",
    "PromptedProcessor",
    "TargetForm",
    "build_model",
    "freeze_backbone",
    "head_parameters",
    "loss_needs",
    "pixel_map",
    "resizer",
    "target_form",
    "whole_config",
]
