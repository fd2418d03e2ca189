from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
)

from cv_hf.config import ModelConfig
from cv_hf.models import build_model, freeze_backbone, head_parameters

NAMES = {0: "ant", 1: "bee", 2: "cat"}


def build(folder, **model):
    fields = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
    return build_model(ModelConfig(id=str(folder), **model), "AutoModelForImageClassification", fields).model


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("vit", {"classifier.weight", "classifier.bias"}),
        ("timm_efficientnet", {"timm_model.classifier.weight", "timm_model.classifier.bias"}),
        ("timm_vgg", {"timm_model.head.fc.weight", "timm_model.head.fc.bias"}),
        ("swiftformer", {f"{layer}.{kind}" for layer in ("norm", "head", "dist_head") for kind in ("weight", "bias")}),
        ("imagegpt", {"score.weight"}),
        ("perceiver", {f"perceiver.decoder.decoder.final_layer.{kind}" for kind in ("weight", "bias")}),
    ],
)
def test_the_head(tiny, family, head):
    assert head_parameters(build(tiny(family))) == head


def rt_detr():
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            encoder_in_channels=[8, 8, 8],
            encoder_hidden_dim=16,
            d_model=16,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=5,
        )
    )


def mask2former():
    backbone = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], image_size=32, patch_size=2,
                          out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone,
            hidden_dim=32,
            feature_size=32,
            mask_feature_size=32,
            encoder_layers=1,
            decoder_layers=2,
            dim_feedforward=16,
            encoder_feedforward_dim=16,
            num_attention_heads=2,
            num_queries=4,
        )
    )


def segformer():
    return SegformerForSemanticSegmentation(
        SegformerConfig(depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    )


@pytest.mark.parametrize(
    ("make", "encoder"),
    [(rt_detr, "model.backbone."), (mask2former, "model.pixel_level_module.encoder."), (segformer, "segformer.")],
)
def test_the_backbone_of_other_tasks_is_the_image_encoder(make, encoder):
    model = make()
    backbone = {name for name, _ in model.named_parameters()} - head_parameters(model)
    assert backbone
    assert backbone == {name for name, _ in model.named_parameters() if name.startswith(encoder)}
    freeze_backbone(model)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == backbone


@pytest.mark.parametrize(
    ("family", "config", "dropouts"),
    [
        ("vit", {"hidden_dropout_prob": 0.5}, 0),
        ("timm_vit", {"model_args": {"img_size": 32, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5}}, 0),
        ("timm_vit", {"model_args": {"img_size": 32, "drop_rate": 0.5}}, 1),
        ("timm_vit", {"model_args": {"img_size": 32, "drop_path_rate": 0.5}}, 0),
        ("mobilenet_v2", {"classifier_dropout_prob": 0.5}, 1),
    ],
)
def test_dropout_of_the_frozen_part_is_off_and_of_the_head_on(tiny, family, config, dropouts):
    model = build(tiny(family), config=config)
    images = torch.rand(2, 3, 32, 32)

    def two_passes():
        model.train()
        with torch.no_grad():
            return model(images).logits, model(images).logits

    torch.manual_seed(0)
    first, second = two_passes()
    assert not torch.equal(first, second)
    freeze_backbone(model)
    first, second = two_passes()
    assert torch.equal(first, second) == (dropouts == 0)
    on = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training and module.p]
    assert len(on) <= 1


def test_freezing_survives_copies_and_leaves_no_trace(tiny, tmp_path):
    model = build(tiny("resnet"))
    keys = list(model.state_dict())
    freeze_backbone(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.train()
        before = twin.resnet.embedder.embedder.normalization.running_mean.clone()
        twin(torch.rand(2, 3, 32, 32))
        assert torch.equal(before, twin.resnet.embedder.embedder.normalization.running_mean)
        assert twin.training
        assert not twin.resnet.training
    model.train()
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((tiny("resnet") / "preprocessor_config.json").read_bytes())
    again = build(tmp_path)
    assert all(parameter.requires_grad for parameter in again.parameters())
    again.train()
    again(torch.rand(2, 3, 32, 32))
    assert again.resnet.training
