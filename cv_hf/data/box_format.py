"""Which format boxes have: proved by the images that they must lie in, or an error; never a guess."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cv_hf.boxes import TO_XYWH, xywh_to_xyxy
from cv_hf.errors import DataError

# A box that leaves its image by no more pixels is inside: annotations are rounded, and count pixels from 0 or 1.
_SLACK = 1.0
# By more than this share of the image a box lies outside for another reason than a careless hand.
_CLEARLY = 0.05
# The share of damaged boxes that a proof survives, and a share that damage alone cannot reach.
_DAMAGED = 0.01
_MANY = 0.1


@dataclass(frozen=True)
class Proof:
    """What the boxes say of each format.

    Attributes:
        format: what is proved, or None.
        number: how many boxes lie in their image in one format at least; others say nothing.
        kept: format -> how many of them do in it.
    """

    format: str | None
    number: int
    kept: dict[str, int]

    def __str__(self) -> str:
        inside = self.kept[self.format or ""]
        amount = f"all {inside}" if inside == self.number else f"{inside} of {self.number}"
        return f"proved: only {self.format} keeps {amount} boxes inside their images"


def fitting(formats: Sequence[str], boxes: np.ndarray) -> tuple[str, ...]:
    """Of some formats those that boxes (n, 4) can have: relative ones or pixels, all of them where that is not clear.

    Raises:
        DataError: boxes in pixels, where the formats are of relative ones alone.
    """
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(boxes):
        return tuple(formats[:1])
    relative = (np.abs(boxes) <= 1 + _CLEARLY).all(axis=1).mean()
    if _MANY < relative < 1 - _MANY:
        return tuple(formats)
    kept = tuple(name for name in formats if name.endswith("_norm") == (relative > _MANY))
    if not kept:
        raise DataError(
            "the names of their numbers say that boxes are given by their centre, which is read relative to the image\n"
            "(0 to 1), but they are pixels. Write them as x, y, width, height, from the left and top of the box."
        )
    return kept


def prove(boxes: np.ndarray, sizes: np.ndarray, formats: Collection[str] = TO_XYWH) -> Proof:
    """Find the format that boxes have.

    It is the only one that keeps all of them inside their images, if each other format fails clearly (a box inverted,
    or outside by more than a careless annotation) or for three boxes. Or, as a few boxes of a dataset may be damaged,
    one that fails for at most 1 % of the boxes and ten times less often than any other. Or the only one that does not
    fail clearly, if others do for a tenth of the boxes. Numbers that are all at most 1 are relative: as pixels they
    would be no box.

    Args:
        boxes: (n, 4) as they stand in the data.
        sizes: (n, 2) the (height, width) of each one's image.
        formats: those that come into question.
    """
    usable = np.isfinite(boxes).all(axis=1) & (sizes > 0).all(axis=1)
    boxes, sizes = boxes[usable], sizes[usable]
    edges = sizes[:, ::-1]
    relative = (np.abs(boxes) <= 1).all(axis=1)
    inside, fails, clearly = {}, {}, {}
    for name in formats:
        convert = TO_XYWH[name]
        corners = xywh_to_xyxy(convert(boxes, sizes))
        extent = corners[:, 2:] - corners[:, :2]
        overhang = np.maximum(-corners[:, :2], corners[:, 2:] - edges)
        impossible = (extent < 0).any(axis=1) | (relative & (not name.endswith("_norm")))
        fails[name] = impossible | (overhang > _SLACK).any(axis=1)
        clearly[name] = impossible | (overhang > np.maximum(_SLACK, _CLEARLY * edges)).any(axis=1)
        inside[name] = ~fails[name] & (extent > 0).all(axis=1)
    telling = np.any(list(inside.values()), axis=0)
    number = int(telling.sum())
    kept = {name: int(places.sum()) for name, places in inside.items()}
    failures = {name: int((places & telling).sum()) for name, places in fails.items()}
    clear = {name: int((places & telling).sum()) for name, places in clearly.items()}
    best = min(formats, key=lambda name: (failures[name], clear[name]))
    others = [name for name in formats if name != best]
    least = min((failures[name] for name in others), default=number)
    proved = number > 0 and (
        (failures[best] == 0 and all(clear[name] or failures[name] >= 3 for name in others))
        or (failures[best] <= _DAMAGED * number and least >= max(3, 10 * failures[best]))
        or (clear[best] == 0 and all(clear[name] >= _MANY * number for name in others))
    )
    return Proof(best if proved else None, number, kept)


class AmbiguousBoxFormat(DataError):
    """Boxes whose format is not proved; `name` is that of the box shown."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def uncertain(proof: Proof, names: Sequence[str], boxes: np.ndarray, sizes: np.ndarray) -> AmbiguousBoxFormat:
    """The error for boxes whose format is not proved, with one box as an example.

    Args:
        names: what to call the boxes; the first is shown.
        boxes: as `prove` takes them.
        sizes: as `prove` takes them.
    """
    likely = sorted((name for name in proof.kept if proof.kept[name]), key=lambda name: -proof.kept[name])
    shown = [name for name in likely if proof.kept[name] >= 0.9 * proof.kept[likely[0]]] or [*proof.kept][:2]
    height, width = sizes[0].tolist()
    spans = []
    for name in shown:
        left, top, right, bottom = xywh_to_xyxy(TO_XYWH[name](boxes[:1], sizes[:1]))[0].tolist()
        spans.append(f"as {name} from ({left:g}, {top:g}) to ({right:g}, {bottom:g})")
    counts = ", ".join(f"{name} keeps {proof.kept[name]}" for name in shown)
    example = ", ".join(f"{value:g}" for value in boxes[0].tolist())
    return AmbiguousBoxFormat(
        f"the format of the boxes is not certain: of {len(boxes)} boxes {counts} inside their images.\n"
        f"Set data.box_format; {names[0]}, [{example}] of {width:g}x{height:g} pixels, is {', '.join(spans)}.",
        names[0],
    )
