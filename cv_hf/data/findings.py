"""What was dropped, repaired or noted while the data was read: a code, a count and the files' names.

Nothing is dropped or changed silently: each case is counted here, printed, and written to metrics.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cv_hf.errors import DataError

NAMES_KEPT = 20


@dataclass(frozen=True)
class Code:
    """One kind of finding: what happened to the sample (or, when `noted`, that nothing happened), and its meaning."""

    severity: Literal["dropped", "repaired", "noted"]
    meaning: str


CODES: dict[str, Code] = {
    "unreadable-image": Code("dropped", "the image cannot be decoded"),
    "missing-image": Code("dropped", "there is no image: no such file, or an empty cell"),
    "path-outside": Code("dropped", "the path leads out of the dataset's folder"),
    "missing-label": Code("dropped", "the sample has no label"),
    "unreadable-annotation": Code("dropped", "a box, or a file of boxes, that cannot be read"),
    "box-not-finite": Code("dropped", "a box that is not four finite numbers"),
    "box-inverted": Code("dropped", "a box that ends before it begins"),
    "box-zero-area": Code("dropped", "a box without width or height"),
    "box-outside": Code("dropped", "a box that lies outside of its image"),
    "box-without-label": Code("dropped", "a box without a class"),
    "box-unknown-label": Code("dropped", "a box of a class that is not among the labels"),
    "orphan-annotation": Code("dropped", "an annotation of an image that the annotation file does not list"),
    "object-without-mask": Code("dropped", "an object that has no mask, only a box or a class"),
    "mask-unreadable": Code("dropped", "the mask of an object, or a part of it, that cannot be read"),
    "mask-too-few-points": Code("dropped", "a polygon of fewer than three points"),
    "mask-empty": Code("dropped", "the mask of an object that has no pixel in its image"),
    "mask-size-mismatch": Code("dropped", "a mask of another size than its image"),
    "missing-mask": Code("dropped", "there is no mask: no such file, or an empty cell"),
    "unreadable-mask": Code("dropped", "the file of a mask cannot be decoded"),
    "lossy-mask": Code(
        "dropped", "the mask is a JPEG, whose compression changes its values; make PNGs of the originals"
    ),
    "orphan-mask": Code("dropped", "a mask without an image"),
    "segment-unreadable": Code("dropped", "a segment without an id of its own, which becomes void"),
    "segment-without-label": Code("dropped", "a segment without a class, which becomes void"),
    "segment-unknown-label": Code("dropped", "a segment of a class that is not among the labels, which becomes void"),
    "segment-without-pixels": Code("dropped", "a segment that has no pixel in its mask"),
    "unlisted-segments": Code("dropped", "pixels of segments that are not in segments_info, which become void"),
    "missing-split": Code("noted", "a split that the dataset names, without its files or without annotations"),
    "unlisted": Code("noted", "an annotated image that no list of a split names, left out"),
    "unannotated-image": Code("noted", "an image without an annotation file of its own, left out"),
    "sixteen-bit": Code(
        "repaired",
        "16-bit grey, of which the high byte is read; pipeline() would clip the file to white, so convert it to 8 bits",
    ),
    "float-image": Code(
        "repaired",
        "floating-point values from 0 to 1, read as 0 to 255; pipeline() would read the file as black, so convert it "
        "to 8 bits",
    ),
    "mask-unknown-value": Code("repaired", "values in a mask that are no label, read as ignored"),
    "box-clipped": Code("repaired", "a box that reaches out of its image, cut at the border"),
    "size-mismatch": Code("noted", "the image is of another size than its annotations say; its own counts"),
    "first-frame": Code("noted", "the file holds several frames, and the first is the image, as for pipeline()"),
    "suffix-mismatch": Code("noted", "the file is of another format than its suffix says, and is read as what it is"),
    "not-an-image": Code("noted", "a file among the images with a suffix that no image format has"),
    "class-without-samples": Code("noted", "the training split has no sample of this class"),
}


@dataclass
class Findings:
    """Counts of findings, each counted once per code and file name however often it is met.

    Plain data: picklable, and mergeable over the worker processes that decode images.
    """

    _reasons: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, code: str, name: str, reason: str = "") -> None:
        """Count `code` for the file or sample called `name`."""
        if code not in CODES:
            raise KeyError(f"unknown finding code {code!r}")
        self._reasons.setdefault(code, {}).setdefault(name, reason)

    def drop(self, code: str, name: str, reason: str, on_bad_sample: str) -> None:
        """Count a sample that is dropped, or refuse it when `on_bad_sample` is "stop".

        Raises:
            DataError: names the sample, and how to go on without it.
        """
        if on_bad_sample == "stop":
            raise DataError(
                f"{name}: {reason or CODES[code].meaning} ({code}).\n"
                "Mend or remove it, or set data.on_bad_sample: skip to go on without such samples."
            )
        self.add(code, name, reason)

    def merge(self, other: Findings) -> None:
        """Add what another process or step found; what both have counts once."""
        for code, reasons in other._reasons.items():
            for name, reason in reasons.items():
                self.add(code, name, reason)

    def count(self, code: str) -> int:
        return len(self._reasons.get(code, ()))

    def __contains__(self, code: object) -> bool:
        return code in self._reasons

    def __iter__(self) -> Iterator[str]:
        """The codes found, dropped samples first."""
        order = list(CODES)
        return iter(sorted(self._reasons, key=order.index))

    def __len__(self) -> int:
        return sum(len(reasons) for reasons in self._reasons.values())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-ready: {code: {severity, count, meaning, files (the first 20), reasons (of those that have one)}}."""
        found = {}
        for code in self:
            first = list(self._reasons[code].items())[:NAMES_KEPT]
            found[code] = {
                "severity": CODES[code].severity,
                "count": self.count(code),
                "meaning": CODES[code].meaning,
                "files": [name for name, _ in first],
                "reasons": {name: reason for name, reason in first if reason},
            }
        return found

    def summary(self) -> str:
        """One line per code, for the terminal; "" when nothing was found."""
        lines = []
        for code in self:
            names = list(self._reasons[code])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(
                f"{len(names)} {CODES[code].severity}: {code}: {CODES[code].meaning}: {', '.join(names[:3])}{more}"
            )
        return "\n".join(lines)
