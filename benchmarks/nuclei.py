"""Small segmenters, of which the backbone alone is pretrained, on 38 microscope images of cell nuclei."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from cv_hf.finetuning import finetune
from cv_hf.models.sample import (
    deeplab_mobilenet_v2,
    mask2former_efficientnet_lite0,
    oneformer_efficientnet_lite0,
)
from cv_hf.verify import verify

DATA = Path("../shared/data/nuclei")
# The model and the metrics of each recipe, nuclei_NAME.yaml.
RECIPES = {
    "instance": (mask2former_efficientnet_lite0, ("mask_map", "mask_map_50")),
    "panoptic": (mask2former_efficientnet_lite0, ("pq", "pq_things", "pq_stuff")),
    "universal": (oneformer_efficientnet_lite0, ("pq", "mask_map", "mask_map_50", "mean_iou")),
    "semantic": (deeplab_mobilenet_v2, ("mean_iou", "dice", "pixel_accuracy")),
}


def nuclei(folder: Path) -> list[dict[str, Any]]:
    """For each task the curve on the images held out of training, the score on the test images, and verify's word."""
    if not DATA.is_dir():
        print(f"nuclei: {DATA} is not there, left out", file=sys.stderr)
        return []
    return [row for name in RECIPES for row in _rows(folder, name)]


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    make, shown = RECIPES[name]
    model = make(folder / make.__name__)
    run = folder / f"nuclei_{name}"
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    recipe = Path(__file__).with_name(f"nuclei_{name}.yaml")
    metrics = finetune(recipe, [f"model.id={model}", f"run_dir={run}"]).metrics
    minutes = (time.monotonic() - start) / 60
    verdict = verify(run, str(DATA))
    print("\n".join(verdict.lines()))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [
        {"task": name, "step": line["step"], "split": "held out", "scores": _scores(line, shown, "eval_")}
        for line in log
        if f"eval_{shown[0]}" in line
    ]
    test = {"task": name, "step": "best", "split": "test", "scores": _scores(metrics["test"], shown)}
    checked = f"{verdict.images} images agree" if verdict.passed else f"{len(verdict.differences)} images differ"
    return [
        *({**row, "minutes in all": "", "verify": ""} for row in curve),
        {**test, "minutes in all": f"{minutes:.1f}", "verify": checked},
    ]


def _scores(metrics: dict[str, Any], names: tuple[str, ...], prefix: str = "") -> str:
    return ", ".join(f"{name} {metrics[prefix + name]:.3f}" for name in names)
