"""The embedded sample: real photographs and scans that come inside packages, written as ordinary image files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from cv_hf.errors import DataError


def digits(folder: Path, seed: int = 0) -> Path:
    """Write scikit-learn's 1,797 handwritten digits as an image folder, unless it is there; return it.

    70 % train, 10 % validation, 20 % test, stratified; 8x8 grey PNG files, one folder per digit. They are the test
    part of https://archive.ics.uci.edu/dataset/80 (CC BY 4.0), written by 13 people.

    Raises:
        DataError: scikit-learn is not installed.
    """
    if folder.is_dir():
        return folder
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("the digits are not installed. Install them: pip install 'cv_hf[demo]'") from None
    source = load_digits()
    images = np.round(source.images * (255 / 16)).astype(np.uint8)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    rng = np.random.default_rng(seed)
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(source.target == digit))
        train, validation = round(0.7 * len(indices)), round(0.8 * len(indices))
        parts = {"train": indices[:train], "validation": indices[train:validation], "test": indices[validation:]}
        for split, chosen in parts.items():
            target = partial / split / str(digit)
            target.mkdir(parents=True)
            for index in chosen:
                Image.fromarray(images[index]).save(target / f"{index:04d}.png")
    os.replace(partial, folder)
    return folder
