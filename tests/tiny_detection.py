"""Tiny random detectors, one for every family of AutoModelForObjectDetection, with their image processors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.tiny import Family

_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_RESNET_LAST_THREE = {**_RESNET, "out_features": ["stage2", "stage3", "stage4"]}
_TIMM = {
    "model_type": "timm_backbone",
    "backbone": "test_resnet",
    "out_indices": [1, 2, 3, 4],
    "use_pretrained_backbone": False,
}
_RT_RESNET = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_indices": [2, 3, 4],
}
_HGNET = {
    "model_type": "hgnet_v2",
    "embedding_size": 8,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 8, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [8, 8, 16, 16],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "use_learnable_affine_block": True,
    "out_indices": [2, 3, 4],
}
_DINOV3 = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 16,
    "image_size": 96,
    "num_register_tokens": 1,
    "layerscale_value": 1.0,
    "out_indices": [1, 2, 3],
    "apply_layernorm": False,
}
_TRANSFORMER = {
    "encoder_layers": 1,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 2,
    "num_queries": 12,
}
_DETR = {**_TRANSFORMER, "d_model": 32, "dropout": 0.0, "backbone_config": _RESNET}
# Its fourth level, of stride 64, must have more than one pixel.
_DEFORMABLE = {**_DETR, "backbone_config": _RESNET_LAST_THREE, "num_feature_levels": 4, "disable_custom_kernels": True}
_RT_DETR = {
    **_TRANSFORMER,
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 10,
    "backbone_config": _RT_RESNET,
}
_D_FINE = {**_RT_DETR, "hidden_expansion": 0.5, "lqe_hidden_dim": 8, "backbone_config": _HGNET}
_LW_DETR = {
    "d_model": 32,
    "hidden_expansion": 0.5,
    "c2f_num_blocks": 1,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_n_points": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
    "dropout": 0.0,
    "num_queries": 12,
    "group_detr": 2,
}
_LW_VIT = {
    "model_type": "lw_detr_vit",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 64,
    "pretrain_image_size": 64,
    "patch_size": 8,
    "num_windows": 4,
    "window_block_indices": [0, 2],
    "out_indices": [1, 3],
}
_RF_DINOV2 = {
    "model_type": "rf_detr_dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 64,
    "patch_size": 8,
    "num_windows": 2,
    "out_features": ["stage1", "stage3"],
}


def _keeps_aspect(name: str, shortest: int = 64) -> tuple[str, Mapping[str, Any]]:
    return name, {"size": {"shortest_edge": shortest, "longest_edge": shortest * 3 // 2}}


def _square(name: str, **more: Any) -> tuple[str, Mapping[str, Any]]:
    return name, {"size": {"height": 64, "width": 64}, **more}


def _family(
    model_type: str, config: Mapping[str, Any], processor: tuple[str, Mapping[str, Any]], **more: Any
) -> Family:
    return Family(model_type, config, processor, size=(64, 64), **more)


DETECTION_FAMILIES: dict[str, Family] = {
    "conditional_detr": _family("conditional_detr", _DETR, _keeps_aspect("ConditionalDetrImageProcessor")),
    "d_fine": _family("d_fine", _D_FINE, _square("RTDetrImageProcessor")),
    "dab-detr": _family(
        "dab-detr",
        {**{name: value for name, value in _DETR.items() if name != "d_model"}, "hidden_size": 32},
        _keeps_aspect("ConditionalDetrImageProcessor"),
    ),
    "deformable_detr": _family("deformable_detr", _DEFORMABLE, _keeps_aspect("DeformableDetrImageProcessor", 80)),
    "deformable_detr_two_stage": _family(
        "deformable_detr",
        {**_DEFORMABLE, "two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 12},
        _keeps_aspect("DeformableDetrImageProcessor", 80),
    ),
    "deimv2": _family("deimv2", _D_FINE, _square("RTDetrImageProcessor")),
    "deimv2_dinov3": _family(
        "deimv2", {**_D_FINE, "backbone_config": _DINOV3}, _square("RTDetrImageProcessor", do_normalize=True)
    ),
    "detr": _family("detr", _DETR, _keeps_aspect("DetrImageProcessor")),
    "detr_timm": _family("detr", {**_DETR, "backbone_config": _TIMM}, _keeps_aspect("DetrImageProcessor")),
    "lw_detr": _family(
        "lw_detr",
        {**_LW_DETR, "backbone_config": _LW_VIT, "projector_scale_factors": [1.0]},
        _square("DeformableDetrImageProcessor", do_pad=False),
    ),
    "rf_detr": _family(
        "rf_detr", {**_LW_DETR, "backbone_config": _RF_DINOV2}, _square("RfDetrImageProcessor", do_pad=False)
    ),
    "rt_detr": _family("rt_detr", _RT_DETR, _square("RTDetrImageProcessor")),
    "rt_detr_v2": _family("rt_detr_v2", _RT_DETR, _square("RTDetrImageProcessor")),
    "table-transformer": _family("table-transformer", _DETR, _keeps_aspect("DetrImageProcessor")),
    "yolos": _family(
        "yolos",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": [64, 96],
            "patch_size": 16,
            "num_detection_tokens": 12,
        },
        _keeps_aspect("YolosImageProcessor"),
    ),
}

# Families of Transformers that cannot be trained as detectors, and why; a test asserts that it is still so.
UNTRAINABLE_DETECTORS = {
    "pp_doclayout_v2": "does not support training",
    "pp_doclayout_v3": "does not support training",
    "pp_doclayout_v4": "does not support training",
    "pp_ocrv5_mobile_det": "takes no labels",
    "pp_ocrv5_server_det": "takes no labels",
    "pp_ocrv6_medium_det": "takes no labels",
    "pp_ocrv6_small_det": "takes no labels",
}
