"""Sample in, sample out: augmentations that move an image and its targets together, and pictures for people."""

from __future__ import annotations

from cv_hf.transforms.augment import Augment, build_augment
from cv_hf.transforms.pictures import TILE, captioned, contact_sheet, draw_boxes

__all__ = ["TILE", "Augment", "build_augment", "captioned", "contact_sheet", "draw_boxes"]
