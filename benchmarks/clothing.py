"""Transfer learning on 400 photos: EfficientNet-Lite0 from ImageNet weights, and from random ones for contrast."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from cv_hf.finetuning import finetune
from cv_hf.models.sample import efficientnet_lite0

RECIPE = Path(__file__).with_suffix(".yaml")
DATA = Path("../shared/data/clothing")


def clothing(folder: Path) -> list[dict[str, Any]]:
    """One row per initialisation; none where the photos are not there."""
    if not DATA.is_dir():
        print(f"clothing: {DATA} is not there, left out", file=sys.stderr)
        return []
    rows = []
    for weights, pretrained in (("ImageNet", True), ("random", False)):
        name = "efficientnet_lite0" if pretrained else "efficientnet_lite0_random"
        model = efficientnet_lite0(folder / name, pretrained=pretrained)
        run = folder / f"clothing_{weights}"
        shutil.rmtree(run, ignore_errors=True)
        start = time.monotonic()
        metrics = finetune(RECIPE, [f"model.id={model}", f"run_dir={run}"]).metrics
        rows.append(
            {
                "weights": weights,
                "test accuracy": f"{metrics['test']['accuracy']:.3f}",
                "test macro F1": f"{metrics['test']['f1_macro']:.3f}",
                "training images/s": f"{metrics['train']['samples_per_second']:.0f}",
                "minutes in all": f"{(time.monotonic() - start) / 60:.1f}",
            }
        )
    return rows
