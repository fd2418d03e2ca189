"""Pretrained models, made ready to be fine-tuned: loading, input size, freezing, pixel values."""

from cv_hf.models.build import Built, LoadReport, build_model, check_is_there
from cv_hf.models.needs import Needs, loss_needs
from cv_hf.models.neighborhood import neighborhood_attention, uses_dinat
from cv_hf.models.oneformer import PromptedProcessor, whole_config
from cv_hf.models.parts import freeze_backbone, head_parameters
from cv_hf.models.pixels import PixelMap, pixel_map, resizer
from cv_hf.models.segmentation import TargetForm, target_form
from cv_hf.models.segments import (
    PIPELINE_ARGUMENTS,
    instance_masks,
    instance_segments,
    panoptic_segments,
    semantic_maps,
)

__all__ = [
    "PIPELINE_ARGUMENTS",
    "Built",
    "LoadReport",
    "Needs",
    "PixelMap",
    "PromptedProcessor",
    "TargetForm",
    "build_model",
    "check_is_there",
    "freeze_backbone",
    "head_parameters",
    "instance_masks",
    "instance_segments",
    "loss_needs",
    "neighborhood_attention",
    "panoptic_segments",
    "pixel_map",
    "resizer",
    "semantic_maps",
    "target_form",
    "uses_dinat",
    "whole_config",
]
