"""Sample in, sample out: augmentations that move an image and its targets together, and pictures for people."""

from __future__ import annotations

from cv_hf.transforms.augment import Augment, build_augment
from cv_hf.transforms.pictures import captioned, contact_sheet

__all__ = ["Augment", "build_augment", "captioned", "contact_sheet"]
