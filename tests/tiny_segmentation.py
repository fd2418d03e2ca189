"""Tiny random segmenters, one for every family that can be trained, with their image processors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tiny import _BEIT, _PATCHES, _PYRAMID, _SQUARE, _VIT, Family
from tests.tiny_detection import _DETR, _LW_DETR, _RF_DINOV2

_SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "image_size": 64,
    "patch_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_UPERNET = {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_channels": 8}
_FOUR = {**_BEIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}
_POINTS = {"train_num_points": 64}
_PIXEL_DECODER = {
    "backbone_config": _SWIN,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 2,
    "num_queries": 12,
    **_POINTS,
}
_EOMT = {
    **_VIT,
    "num_hidden_layers": 3,
    "num_blocks": 2,
    "num_queries": 12,
    "num_upscale_blocks": 1,
    "image_size": 64,
    "patch_size": 16,
    "num_register_tokens": 1,
    **_POINTS,
}
_DINOV2 = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    **_PATCHES,
    "out_indices": [1, 2, 3, 4],
    "apply_layernorm": False,
    "reshape_hidden_states": False,
    "num_register_tokens": 1,
}
_SIXTY_FOUR = {"height": 64, "width": 64}
_ASPECT = {"shortest_edge": 64, "longest_edge": 96}


def _semantic(
    model_type: str, name: str, config: Mapping[str, Any], processor: tuple[str, Mapping[str, Any]], **more: Any
) -> Family:
    return Family(model_type, config, processor, architecture=f"{name}ForSemanticSegmentation", **more)


SEMANTIC_FAMILIES: dict[str, Family] = {
    "segformer_semantic": _semantic(
        "segformer",
        "Segformer",
        {**_PYRAMID, "decoder_hidden_size": 8},
        ("SegformerImageProcessor", {"size": _SIXTY_FOUR, "do_reduce_labels": True}),
        size=(64, 64),
    ),
    "upernet_swin": _semantic(
        "upernet",
        "UperNet",
        {**_UPERNET, "backbone_config": _SWIN, "auxiliary_in_channels": 32},
        ("SegformerImageProcessor", {"size": _SIXTY_FOUR}),
        size=(64, 64),
    ),
    "upernet_convnext": _semantic(
        "upernet",
        "UperNet",
        {**_UPERNET, "backbone_config": _CONVNEXT, "auxiliary_in_channels": 16},
        ("SegformerImageProcessor", {"size": _SIXTY_FOUR}),
        size=(64, 64),
    ),
    "beit_semantic": _semantic(
        "beit",
        "Beit",
        _FOUR,
        ("BeitImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": _SQUARE, "do_center_crop": True}),
    ),
    "data2vec_semantic": _semantic(
        "data2vec-vision",
        "Data2VecVision",
        _FOUR,
        ("BeitImageProcessor", {"size": _SQUARE}),
        square_only="its forward divides the one edge",
    ),
    "dpt_semantic": _semantic(
        "dpt",
        "DPT",
        {
            **_VIT,
            **_PATCHES,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
        },
        ("DPTImageProcessor", {"size": _SQUARE, "do_reduce_labels": True}),
        square_only="its table of positions is square",
    ),
    "mobilevit_semantic": _semantic(
        "mobilevit",
        "MobileViT",
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 16],
            "num_attention_heads": 2,
            "output_stride": 8,
            "aspp_out_channels": 8,
        },
        ("MobileViTImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": _SQUARE}),
    ),
    "mobilevitv2_semantic": _semantic(
        "mobilevitv2",
        "MobileViTV2",
        {"image_size": 64, "width_multiplier": 0.125, "n_attn_blocks": [1, 1, 1], "aspp_out_channels": 8},
        ("MobileViTImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": _SIXTY_FOUR}),
        size=(64, 64),
    ),
    "mobilenet_v2_semantic": _semantic(
        "mobilenet_v2",
        "MobileNetV2",
        {"image_size": 33, "depth_multiplier": 0.1, "expand_ratio": 2.0, "output_stride": 8},
        (
            "MobileNetV2ImageProcessor",
            {"size": {"shortest_edge": 33}, "crop_size": {"height": 33, "width": 33}, "do_center_crop": True},
        ),
        size=(33, 33),
    ),
    "sapiens2_semantic": _semantic(
        "sapiens2",
        "Sapiens2",
        {
            **_VIT,
            "num_key_value_attention_heads": 2,
            "num_first_full_attention_layers": 1,
            "num_last_full_attention_layers": 1,
            "image_size": [64, 32],
            "patch_size": 8,
            "num_register_tokens": 1,
            "head_config": {"upsample_out_channels": [8, 8], "conv_out_channels": [8]},
        },
        ("Sapiens2ImageProcessor", {"size": {"height": 64, "width": 32}}),
        size=(64, 32),
    ),
    "tipsv2_dpt_semantic": _semantic(
        "tipsv2_dpt",
        "Tipsv2Dpt",
        {
            "backbone_config": _DINOV2,
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "reassemble_factors": [4, 2, 1, 0.5],
        },
        ("Tipsv2DptImageProcessor", {"size": _SQUARE}),
    ),
}

UNIVERSAL_FAMILIES: dict[str, Family] = {
    "detr_panoptic": Family(
        "detr",
        {**_DETR, "encoder_attention_heads": 8},
        ("DetrImageProcessor", {"size": _ASPECT}),
        size=(64, 64),
        architecture="DetrForSegmentation",
    ),
    "eomt": Family(
        "eomt",
        {**_EOMT, "mlp_ratio": 2},
        ("EomtImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True}),
        size=(64, 64),
        architecture="EomtForUniversalSegmentation",
        square_only="its configuration has one edge",
    ),
    "eomt_dinov3": Family(
        "eomt_dinov3",
        _EOMT,
        ("EomtImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True}),
        size=(64, 64),
        architecture="EomtDinov3ForUniversalSegmentation",
        square_only="its configuration has one edge",
    ),
    "eomt_split": Family(
        "eomt",
        {**_EOMT, "mlp_ratio": 2},
        ("EomtImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": None}, "do_split_image": True}),
        size=(64, 64),
        architecture="EomtForUniversalSegmentation",
        square_only="its configuration has one edge",
    ),
    "mask2former": Family(
        "mask2former",
        {**_PIXEL_DECODER, "feature_size": 32, "mask_feature_size": 32},
        ("Mask2FormerImageProcessor", {"size": _ASPECT, "ignore_index": 255, "do_reduce_labels": True}),
        size=(64, 64),
        architecture="Mask2FormerForUniversalSegmentation",
    ),
    "maskformer": Family(
        "maskformer",
        {
            "backbone_config": _SWIN,
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "decoder_config": {
                "model_type": "detr",
                "d_model": 32,
                "decoder_layers": 3,
                "decoder_ffn_dim": 32,
                "decoder_attention_heads": 2,
                "num_queries": 12,
                "dropout": 0.0,
            },
        },
        ("MaskFormerImageProcessor", {"size": _ASPECT, "ignore_index": 255}),
        size=(64, 64),
        architecture="MaskFormerForInstanceSegmentation",
    ),
    "oneformer": Family(
        "oneformer",
        {
            **_PIXEL_DECODER,
            "hidden_dim": 64,
            "conv_dim": 64,
            "mask_dim": 64,
            "num_queries": 14,
            "text_encoder_width": 64,
            "text_encoder_num_layers": 1,
            "text_encoder_vocab_size": 600,
            "text_encoder_context_length": 32,
            "text_encoder_n_ctx": 2,
            "task_seq_len": 24,
            "is_training": True,
        },
        ("OneFormerImageProcessor", {"size": _ASPECT, "num_text": 12, "ignore_index": 255}),
        size=(64, 64),
        architecture="OneFormerForUniversalSegmentation",
    ),
}

INSTANCE_FAMILIES: dict[str, Family] = {
    "rf_detr_instance": Family(
        "rf_detr",
        {**_LW_DETR, "backbone_config": _RF_DINOV2, "mask_point_sample_ratio": 4},
        ("RfDetrImageProcessor", {"size": _SIXTY_FOUR, "do_pad": False}),
        size=(64, 64),
        architecture="RfDetrForInstanceSegmentation",
        square_only="its windows are square",
    ),
}

SEGMENTATION_FAMILIES = {**SEMANTIC_FAMILIES, **UNIVERSAL_FAMILIES, **INSTANCE_FAMILIES}


def write_clip_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer that knows letters only; as in CLIP's own, "!" is number 0 and the end the last."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)


def point_class_info_elsewhere(folder: Path) -> None:
    """Make a OneFormer's processor name its class info in another repository, as the published ones do."""
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings.update(repo_path="shi-labs/oneformer_demo", class_info_file="ade20k_panoptic.json")
    path.write_text(json.dumps(settings))


# Families of Transformers that cannot be trained as segmenters of images, and why; a test asserts that it is still so.
UNTRAINABLE_SEGMENTERS = {"videomt": "clips of a video"}
