"""What runs here: versions and devices, for a bug report (no paths, names or tokens); and a quick, quiet start."""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "cv_hf",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "evaluate",
    "accelerate",
    "huggingface_hub",
    "albumentations",
    "timm",
    "pillow",
    "numpy",
)


def report() -> dict[str, str]:
    """What runs here: Python, packages, processor, accelerators, and what the Hub client is told."""
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if not devices and torch.accelerator.is_available():
        devices = [str(torch.accelerator.current_accelerator())]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "cores": str(os.cpu_count()),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "accelerators": ", ".join(devices) or "none",
        "HF_ENDPOINT": os.environ.get("HF_ENDPOINT", "not set"),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "not set"),
        "token": "set" if _has_token() else "not set",
    }


@contextmanager
def importing() -> Iterator[None]:
    """Import what a program needs, with no garbage collected meanwhile, nor looked for in it later.

    That takes a quarter of the time otherwise, and as long again when the program ends, since both go through all that
    was imported. Nothing happens in a process that has imported torch, which is more than this program.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def quiet() -> None:
    """Leave the terminal to this program's own lines: of the libraries below only errors, and the bars of what is
    downloaded or uploaded where somebody watches."""
    import datasets
    import huggingface_hub
    import transformers

    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
