"""Sample in, sample out: augmentations that move an image and its targets together, and pictures for people."""

from __future__ import annotations

from cv_hf.transforms.augment import Augment, build_augment, shrink
from cv_hf.transforms.masks import pack, present, resize_map, unpack
from cv_hf.transforms.pictures import (
    TILE,
    Scored,
    Segment,
    captioned,
    class_colour,
    contact_sheet,
    draw_boxes,
    draw_segments,
)

__all__ = [
    "TILE",
    "Augment",
    "Scored",
    "Segment",
    "build_augment",
    "captioned",
    "class_colour",
    "contact_sheet",
    "draw_boxes",
    "draw_segments",
    "pack",
    "present",
    "resize_map",
    "shrink",
    "unpack",
]
