"""A small RT-DETR, from an ImageNet backbone and nothing else, on 292 photographs of blood cells."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from cv_hf.finetuning import finetune
from cv_hf.models.sample import rt_detr_efficientnet_lite0

RECIPE = Path(__file__).with_suffix(".yaml")
DATA = Path("../shared/data/bccd")


def bccd(folder: Path) -> list[dict[str, Any]]:
    """The curve on the photos that are held out of training, and the score on the test split."""
    if not DATA.is_dir():
        print(f"bccd: {DATA} is not there, left out", file=sys.stderr)
        return []
    model = rt_detr_efficientnet_lite0(folder / "rt_detr_efficientnet_lite0")
    run = folder / "bccd"
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    metrics = finetune(RECIPE, [f"model.id={model}", f"run_dir={run}"]).metrics
    minutes = (time.monotonic() - start) / 60
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [
        {"epoch": f"{line['epoch']:.0f}", "split": "held out", **_scores(line, "eval_"), "minutes in all": ""}
        for line in log
        if "eval_map" in line
    ]
    test = {"epoch": "best", "split": "test", **_scores(metrics["test"], "")}
    return [*rows, {**test, "minutes in all": f"{minutes:.1f}"}]


def _scores(metrics: dict[str, Any], prefix: str) -> dict[str, str]:
    return {name: f"{metrics[prefix + name]:.3f}" for name in ("map", "map_50", "map_75")}
