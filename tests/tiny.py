"""Tiny random checkpoints with their image processors: every image-classification family here, detectors beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)

from cv_hf.models.neighborhood import enable_dinat


@dataclass(frozen=True)
class Family:
    """How a tiny model of a family is made.

    Attributes:
        model_type: the configuration's model_type.
        config: fields of the configuration.
        processor: the image processor's class name and its arguments; None for timm, whose config.json holds it.
        size: (height, width) of the model's input.
        architecture: the model class, where the family has several or the checkpoint is not a classifier.
        square_only: why the input must be square, where it must.
        fixed_size: why model.image_size cannot be changed, where it cannot.
    """

    model_type: str
    config: Mapping[str, Any]
    processor: tuple[str, Mapping[str, Any]] | None
    size: tuple[int, int] = (32, 32)
    architecture: str | None = None
    square_only: str | None = None
    fixed_size: str | None = None
    raw_timm: bool = field(default=False)


_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_DINO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
_TEXT = {**_VIT, "vocab_size": 99, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
_PATCHES = {"image_size": 32, "patch_size": 8}
_SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 2}
_BEIT = {**_VIT, **_PATCHES, "use_relative_position_bias": True, "out_indices": [0, 1]}
_PYRAMID = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
}

_SQUARE = {"height": 32, "width": 32}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _exact(**more: Any) -> tuple[str, Mapping[str, Any]]:
    return "ViTImageProcessor", {"size": _SQUARE, **more}


def _cropped(name: str, **more: Any) -> tuple[str, Mapping[str, Any]]:
    return name, {"size": {"shortest_edge": 36}, "crop_size": _SQUARE, "do_center_crop": True, **more}


def _convnext(name: str = "ConvNextImageProcessor") -> tuple[str, Mapping[str, Any]]:
    return name, {"size": {"shortest_edge": 32}, "crop_pct": 0.875, **_IMAGENET}


def _timm(
    architecture: str, size: int = 32, pretrained_cfg: Mapping[str, Any] = {}, **model_args: Any
) -> dict[str, Any]:
    preparation = {
        "input_size": [3, size, size],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": _IMAGENET["image_mean"],
        "std": _IMAGENET["image_std"],
        **pretrained_cfg,
    }
    return {"architecture": architecture, "model_args": model_args or None, "pretrained_cfg": preparation}


_BY_EDGE = "ConvNextImageProcessor knows the shortest edge only"

TINY_FAMILIES: dict[str, Family] = {
    "beit": Family("beit", _BEIT, ("BeitImageProcessor", {"size": _SQUARE})),
    "bit": Family(
        "bit",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2},
        _cropped("BitImageProcessor"),
    ),
    "clip": Family(
        "clip",
        {"text_config": _TEXT, "vision_config": {**_VIT, **_PATCHES}, "projection_dim": 8},
        _cropped("CLIPImageProcessor"),
        architecture="CLIPModel",
        square_only="its configuration has one edge",
    ),
    "convnext": Family(
        "convnext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, _convnext(), square_only=_BY_EDGE
    ),
    "convnextv2": Family(
        "convnextv2", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, _convnext(), square_only=_BY_EDGE
    ),
    "cvt": Family(
        "cvt", {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}, _convnext(), square_only=_BY_EDGE
    ),
    "data2vec-vision": Family("data2vec-vision", _BEIT, ("BeitImageProcessor", {"size": _SQUARE})),
    "deit": Family("deit", {**_VIT, **_PATCHES}, _cropped("DeiTImageProcessor")),
    "deit_distilled": Family(
        "deit",
        {**_VIT, **_PATCHES},
        _cropped("DeiTImageProcessor"),
        architecture="DeiTForImageClassificationWithTeacher",
    ),
    "dinat": Family(
        "dinat",
        {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "kernel_size": 3, "dilations": [[1, 3], [1]]},
        _exact(**_IMAGENET),
    ),
    "dinov2": Family("dinov2", {**_DINO, **_PATCHES}, _cropped("BitImageProcessor", **_IMAGENET)),
    "dinov2_bare": Family(
        "dinov2", {**_DINO, **_PATCHES}, _cropped("BitImageProcessor", **_IMAGENET), architecture="Dinov2Model"
    ),
    "dinov2_with_registers": Family(
        "dinov2_with_registers",
        {**_DINO, **_PATCHES, "num_register_tokens": 2},
        _cropped("BitImageProcessor", **_IMAGENET),
    ),
    "donut-swin": Family("donut-swin", _SWIN, ("DonutImageProcessor", {"size": _SQUARE, "do_align_long_axis": False})),
    "efficientnet": Family(
        "efficientnet",
        {
            "image_size": 32,
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "kernel_sizes": [3, 3, 5],
            "in_channels": [32, 8, 16],
            "out_channels": [8, 16, 16],
            "strides": [1, 2, 2],
            "num_block_repeats": [1, 1, 1],
            "expand_ratios": [1, 2, 2],
            "hidden_dim": 1280,
        },
        ("EfficientNetImageProcessor", {"size": _SQUARE}),
    ),
    "focalnet": Family(
        "focalnet",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        _cropped("BitImageProcessor", **_IMAGENET),
    ),
    "hgnet_v2": Family(
        "hgnet_v2",
        {
            "embedding_size": 8,
            "depths": [1, 1],
            "hidden_sizes": [16, 16],
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 16],
            "stage_mid_channels": [8, 8],
            "stage_out_channels": [16, 16],
            "stage_num_blocks": [1, 1],
            "stage_downsample": [False, True],
            "stage_downsample_strides": [2, 2],
            "stage_light_block": [False, True],
            "stage_kernel_size": [3, 3],
            "stage_numb_of_layers": [2, 2],
        },
        _exact(**_IMAGENET),
    ),
    "hiera": Family(
        "hiera",
        {
            "embed_dim": 8,
            "image_size": [32, 32],
            "patch_size": [3, 3],
            "patch_stride": [2, 2],
            "patch_padding": [1, 1],
            "depths": [1, 1, 1],
            "num_heads": [1, 1, 2],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False, False],
        },
        _cropped("BitImageProcessor", **_IMAGENET),
    ),
    "ijepa": Family("ijepa", {**_VIT, **_PATCHES}, _exact()),
    "imagegpt": Family(
        "imagegpt",
        {"vocab_size": 9, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
        (
            "ImageGPTImageProcessor",
            {
                "size": {"height": 8, "width": 8},
                "clusters": [[r, g, b] for r in (-0.8, 0.8) for g in (-0.8, 0.8) for b in (-0.8, 0.8)],
            },
        ),
        size=(8, 8),
        fixed_size="a pixel is a token of a sequence of fixed length",
    ),
    "levit": Family(
        "levit",
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 32],
            "num_attention_heads": [1, 1, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        ("LevitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        size=(64, 64),
        square_only="its configuration has one edge",
    ),
    "levit_teacher": Family(
        "levit",
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 32],
            "num_attention_heads": [1, 1, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        ("LevitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        size=(64, 64),
        architecture="LevitForImageClassificationWithTeacher",
        square_only="its configuration has one edge",
    ),
    "metaclip_2": Family(
        "metaclip_2",
        {"text_config": _TEXT, "vision_config": {**_VIT, **_PATCHES}, "projection_dim": 8},
        _cropped("CLIPImageProcessor"),
        square_only="its configuration has one edge",
    ),
    "mobilenet_v1": Family(
        "mobilenet_v1",
        {"image_size": 32, "depth_multiplier": 0.1, "classifier_dropout_prob": 0.2},
        _cropped("MobileNetV1ImageProcessor"),
    ),
    "mobilenet_v2": Family(
        "mobilenet_v2",
        {"image_size": 32, "depth_multiplier": 0.1, "expand_ratio": 2.0, "classifier_dropout_prob": 0.2},
        _cropped("MobileNetV2ImageProcessor"),
    ),
    "mobilevit": Family(
        "mobilevit",
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 16],
            "num_attention_heads": 2,
        },
        _cropped("MobileViTImageProcessor"),
    ),
    "mobilevitv2": Family(
        "mobilevitv2",
        {"image_size": 64, "width_multiplier": 0.125, "n_attn_blocks": [1, 1, 1]},
        ("MobileViTImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
        size=(64, 64),
    ),
    "perceiver": Family(
        "perceiver",
        {
            "num_latents": 4,
            "d_latents": 16,
            "num_blocks": 1,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 1,
            "image_size": 32,
        },
        ("PerceiverImageProcessor", {"size": _SQUARE, "crop_size": {"height": 36, "width": 36}}),
        square_only="its configuration has one edge",
    ),
    "poolformer": Family(
        "poolformer",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]},
        ("PoolFormerImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": _SQUARE, "crop_pct": 0.9}),
    ),
    "pp_lcnet": Family(
        "pp_lcnet",
        {
            "scale": 1.0,
            "block_configs": [
                [[3, 8, 8, 1, False]],
                [[3, 8, 8, 2, False]],
                [[3, 8, 8, 2, False]],
                [[3, 8, 16, 2, False]],
                [[5, 16, 16, 2, True]],
            ],
            "stem_channels": 8,
            "class_expand": 32,
        },
        ("PPLCNetImageProcessor", {"resize_short": 36, "crop_size": 32}),
    ),
    "pvt": Family(
        "pvt",
        {**_PYRAMID, "image_size": 32},
        ("PvtImageProcessor", {"size": _SQUARE}),
        square_only="its configuration has one edge",
    ),
    "pvt_v2": Family("pvt_v2", {**_PYRAMID, "image_size": 32}, ("PvtImageProcessor", {"size": _SQUARE})),
    "regnet": Family(
        "regnet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
        _convnext(),
        square_only=_BY_EDGE,
    ),
    "resnet": Family(
        "resnet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        _convnext(),
        square_only=_BY_EDGE,
    ),
    "segformer": Family(
        "segformer",
        {**_PYRAMID, "decoder_hidden_size": 8},
        ("SegformerImageProcessor", {"size": _SQUARE}),
    ),
    "siglip": Family(
        "siglip",
        {"text_config": _TEXT, "vision_config": {**_VIT, **_PATCHES}},
        ("SiglipImageProcessor", {"size": _SQUARE}),
        square_only="its configuration has one edge",
    ),
    "siglip2": Family(
        "siglip2",
        {"text_config": _TEXT, "vision_config": {**_VIT, "patch_size": 8, "num_patches": 16}},
        ("Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16}),
        fixed_size="its processor keeps the aspect ratio and returns patches",
    ),
    "swiftformer": Family(
        "swiftformer",
        {"image_size": 32, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
        _exact(**_IMAGENET),
    ),
    "swin": Family("swin", _SWIN, _exact(**_IMAGENET)),
    "swinv2": Family("swinv2", _SWIN, _exact(**_IMAGENET)),
    "textnet": Family(
        "textnet",
        {
            "image_size": [32, 32],
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 8, 16, 16],
        },
        ("TextNetImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": _SQUARE, "do_center_crop": True}),
    ),
    "timm_efficientnet": Family("timm_wrapper", _timm("test_efficientnet"), None),
    "timm_hub": Family("timm_wrapper", _timm("test_resnet"), None, raw_timm=True),
    "timm_vgg": Family("timm_wrapper", _timm("vgg11", mlp_ratio=0.002), None),
    "timm_vit": Family("timm_wrapper", _timm("test_vit", img_size=32), None),
    "vit": Family("vit", {**_VIT, **_PATCHES}, _exact()),
    "vit_bare": Family("vit", {**_VIT, **_PATCHES}, _exact(), architecture="ViTModel"),
    "vit_mae": Family(
        "vit_mae",
        {
            **_VIT,
            **_PATCHES,
            "decoder_hidden_size": 16,
            "decoder_num_attention_heads": 2,
            "decoder_num_hidden_layers": 1,
            "decoder_intermediate_size": 16,
        },
        _exact(**_IMAGENET),
        architecture="ViTMAEForPreTraining",
    ),
    "vit_msn": Family("vit_msn", {**_VIT, **_PATCHES}, _exact(**_IMAGENET)),
}

# Families of Transformers that cannot be trained as image classifiers, and why; a test asserts that it is still so.
UNTRAINABLE = {
    "pp_lcnet": "forward() takes no labels, returns no loss, and calls its logits last_hidden_state",
    "shieldgemma2": "its two outputs are a language model's scores of Yes and No: there is no head to replace",
}


_ARCHITECTURES = {**MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, **MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}


def _families() -> dict[str, Family]:
    """The families of every task."""
    from tests.tiny_detection import DETECTION_FAMILIES
    from tests.tiny_segmentation import SEGMENTATION_FAMILIES

    return {**TINY_FAMILIES, **DETECTION_FAMILIES, **SEGMENTATION_FAMILIES}


def tiny_model(family: str | Family, folder: str | Path, num_labels: int = 5, seed: int = 0) -> Path:
    """Write a tiny random checkpoint of a family, of whatever task, with its image processor, and return its folder.

    Weights are drawn from `seed`; batch norms get running statistics other than their initial ones.
    """
    enable_dinat()
    recipe = family if isinstance(family, Family) else _families()[family]
    names = {index: f"class_{index}" for index in range(num_labels)}
    config = AutoConfig.for_model(recipe.model_type, **recipe.config)
    config.id2label, config.label2id = names, {name: index for index, name in names.items()}
    architecture = recipe.architecture or _ARCHITECTURES[recipe.model_type]
    if isinstance(architecture, tuple):
        architecture = architecture[0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config)
        _stir(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.raw_timm:
        _save_as_timm(model, folder)
        return folder
    model.save_pretrained(folder)
    if recipe.processor is not None:
        name, arguments = recipe.processor
        getattr(transformers, name)(**arguments).save_pretrained(folder)
    if recipe.model_type == "oneformer":
        from tests.tiny_segmentation import write_clip_tokenizer

        write_clip_tokenizer(folder)
    return folder


def tiny_model_like(model_type: str, folder: str | Path, num_labels: int = 5, **config: Any) -> Path:
    """Write a tiny checkpoint of a Transformers model_type; for timm_wrapper, `architecture` may name timm's."""
    if model_type == "timm_wrapper":
        architecture = config.get("architecture", "test_efficientnet")
        named = {
            recipe.config["architecture"]: family for family, recipe in TINY_FAMILIES.items() if not recipe.processor
        }
        if architecture not in named:
            TINY_FAMILIES[architecture] = Family("timm_wrapper", _timm(architecture), None)
        return tiny_model(named.get(architecture, architecture), folder, num_labels)
    family = next(family for family, recipe in _families().items() if recipe.model_type == model_type)
    return tiny_model(family, folder, num_labels)


@torch.no_grad()
def _stir(model: torch.nn.Module) -> None:
    """Move every tensor away from the zeros and ones it starts with, so that a wrong one shows in the outputs."""
    for parameter in model.parameters():
        if parameter.requires_grad or parameter.numel() > 1:  # D-FINE keeps constants of its loss as parameters
            parameter.add_(0.05 * torch.randn_like(parameter))
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:  # frozen ones as well
            if module.weight is not None:
                # RT-DETR and its kin begin near 0, through which nothing of the image passes.
                module.weight.copy_(1 + 0.1 * torch.randn_like(module.weight))
            module.running_mean.add_(0.1 * torch.randn_like(module.running_mean))
            module.running_var.mul_(1 + 0.1 * torch.rand_like(module.running_var))


def _save_as_timm(model: torch.nn.Module, folder: Path) -> None:
    """Write what timm itself uploads: its own config.json and unprefixed keys."""
    config = model.config
    card = {
        "architecture": config.architecture,
        "num_classes": config.num_labels,
        "num_features": model.timm_model.num_features,
        "label_names": list(config.id2label.values()),
        "pretrained_cfg": {**config.pretrained_cfg, "num_classes": config.num_labels, "classifier": "fc"},
    }
    (folder / "config.json").write_text(json.dumps(card, indent=2))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.timm_model.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
