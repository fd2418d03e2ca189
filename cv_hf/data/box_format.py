"""Which format boxes have: proved by the images that they must lie in, or an error; never a guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cv_hf.boxes import TO_XYWH, xywh_to_xyxy
from cv_hf.errors import DataError

# A box that leaves its image by no more pixels is inside: annotations are rounded, and count pixels from 0 or 1.
_SLACK = 1.0
# By more than this share of the image a box lies outside for another reason than a careless hand.
_CLEARLY = 0.05
# The damaged boxes that a proof survives; other readings must then fail for more than `_REFUTED`.
_DAMAGED = 0.01
_REFUTED = 0.05


@dataclass(frozen=True)
class Proof:
    """What the boxes say of each format.

    Attributes:
        possible: the formats that the boxes can have; the proof has succeeded if it is one.
        number: how many boxes lie in their image in one format at least; others say nothing.
        kept: format -> how many of them lie in their image.
    """

    possible: tuple[str, ...]
    number: int
    kept: dict[str, int]

    def __str__(self) -> str:
        (name,) = self.possible
        inside = self.kept[name]
        amount = f"all {inside}" if inside == self.number else f"{inside} of {self.number}"
        return f"proved: only {name} keeps {amount} boxes inside their images"


def prove(boxes: np.ndarray, sizes: np.ndarray) -> Proof:
    """Find the formats that boxes can have.

    A format is refuted by a box that would be inverted, or clearly outside its image, and that another format keeps
    inside. Where every format is refuted, some boxes are damaged: then it is the one that at most 1 % of them refute,
    if more than 5 % refute each other. Numbers that are all at most 1 are relative, as pixels they would be no box.

    Args:
        boxes: (n, 4) as they stand in the data.
        sizes: (n, 2) the (height, width) of each one's image.
    """
    usable = np.isfinite(boxes).all(axis=1) & (sizes > 0).all(axis=1)
    boxes, sizes = boxes[usable], sizes[usable]
    inside, against = {}, {}
    relative = (np.abs(boxes) <= 1).all(axis=1)
    for name, convert in TO_XYWH.items():
        corners = xywh_to_xyxy(convert(boxes, sizes))
        extent = corners[:, 2:] - corners[:, :2]
        edges = sizes[:, ::-1]
        overhang = np.maximum(-corners[:, :2], corners[:, 2:] - edges)
        as_pixels = relative & (not name.endswith("_norm"))
        inside[name] = (extent > 0).all(axis=1) & (overhang <= _SLACK).all(axis=1) & ~as_pixels
        inverted = (extent < 0).any(axis=1)
        against[name] = inverted | (overhang > np.maximum(_SLACK, _CLEARLY * edges)).any(axis=1) | as_pixels
    telling = np.any(list(inside.values()), axis=0)
    number = int(telling.sum())
    kept = {name: int(found.sum()) for name, found in inside.items()}
    share = {name: (found & telling).sum() / max(1, number) for name, found in against.items()}
    possible = [name for name in TO_XYWH if share[name] == 0 and kept[name]]
    if not possible:
        possible = [name for name in TO_XYWH if share[name] <= _DAMAGED and kept[name]]
        if any(share[name] <= _REFUTED for name in TO_XYWH if name not in possible[:1]):
            possible = []
    return Proof(tuple(possible), number, kept)


def ambiguous(proof: Proof, names: Sequence[str], boxes: np.ndarray, sizes: np.ndarray) -> DataError:
    """The error for boxes whose format is not proved, with one box as an example.

    Args:
        names: what to call the boxes, (n,).
        boxes, sizes: as `prove` takes them.
    """
    shown = proof.possible or tuple(name for name, kept in proof.kept.items() if kept) or ("xywh", "xyxy")
    box = boxes[0].tolist()
    height, width = sizes[0].tolist()
    spans = []
    for name in shown:
        left, top, right, bottom = xywh_to_xyxy(TO_XYWH[name](boxes[:1], sizes[:1]))[0].tolist()
        spans.append(f"as {name} from ({left:g}, {top:g}) to ({right:g}, {bottom:g})")
    if proof.possible:
        why = f"{' and '.join(shown)} each keep all {proof.number} boxes inside their images"
    else:
        counts = ", ".join(f"{name} {proof.kept[name]}" for name in shown)
        why = f"no format keeps the {len(boxes)} boxes inside their images ({counts})"
    example = f"{names[0]} {[round(value, 4) for value in box]} of {width:g}x{height:g} pixels is " + ", ".join(spans)
    return DataError(f"the format of the boxes is not certain: {why}.\nSet data.box_format; {example}.")
