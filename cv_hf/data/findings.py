"""What is wrong in a dataset, and what was dropped or repaired in reading it: a code, a count and the files' names.

Nothing is dropped or changed silently: each case is counted here, printed, and written to metrics.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cv_hf.errors import DataError, printable

NAMES_KEPT = 20

Severity = Literal["error", "warning", "note"]
# What a severity says of the data; the worst comes first everywhere.
SEVERITIES: dict[Severity, str] = {
    "error": "something is lost, or a score would be false",
    "warning": "all is used, though perhaps not as it was meant",
    "note": "good to know",
}


@dataclass(frozen=True)
class Code:
    """One kind of finding.

    Attributes:
        severity: see `SEVERITIES`.
        effect: what reading does with the sample, object or pixels.
        meaning: in a phrase.
        fix: what `cv-hf check --fix` does about it in the copy that it writes, or "".
    """

    severity: Severity
    effect: Literal["dropped", "repaired", "noted"]
    meaning: str
    fix: str = ""


_IMAGE_OUT = "leaves the image out"
_OBJECT_OUT = "leaves the object out"
_ANNOTATION_OUT = "leaves it out"
_AS_READ = "writes it as it is read"
# Data is read for a recipe, by itself, or for a model that has labels already.
_LABELS = "the labels (data.labels, else the data's own; in scoring, the model's)"

CODES: dict[str, Code] = {
    "unreadable-image": Code("error", "dropped", "the image cannot be decoded", _IMAGE_OUT),
    "photo-format": Code(
        "error",
        "dropped",
        "a photo of a phone or camera (HEIC, raw), which is not read; convert it to JPEG",
        _IMAGE_OUT,
    ),
    "truncated-image": Code("error", "dropped", "the file of the image ends too early", _IMAGE_OUT),
    "empty-image": Code("error", "dropped", "the file of the image has no bytes", _IMAGE_OUT),
    "decompression-bomb": Code(
        "error", "dropped", "the image says that it has more than 179 million pixels, and is not decoded", _IMAGE_OUT
    ),
    "missing-image": Code("error", "dropped", "there is no image: no such file, or an empty cell", _ANNOTATION_OUT),
    "path-outside": Code("error", "dropped", "the path leads out of the dataset's folder", _ANNOTATION_OUT),
    "missing-label": Code("error", "dropped", "the sample has no label", _IMAGE_OUT),
    "unknown-label": Code("error", "dropped", f"the sample has a label that is not among {_LABELS}", _IMAGE_OUT),
    "conflicting-labels": Code(
        "error", "noted", "the same image, byte for byte, stands under different classes", "leaves all of them out"
    ),
    "duplicate-across-splits": Code(
        "error",
        "noted",
        "the same image, byte for byte, is in another split too",
        "keeps that of test, else validation",
    ),
    "unreadable-annotation": Code(
        "error", "dropped", "a box, or a file of boxes, that cannot be read", _ANNOTATION_OUT
    ),
    "box-format-ambiguous": Code(
        "error", "noted", "boxes fit their images in more than one format, and data.box_format does not say which"
    ),
    "box-not-finite": Code("error", "dropped", "a box that is not four finite numbers", _OBJECT_OUT),
    "box-inverted": Code("error", "dropped", "a box that ends before it begins", _OBJECT_OUT),
    "box-zero-area": Code("error", "dropped", "a box without width or height", _OBJECT_OUT),
    "box-outside": Code("error", "dropped", "a box that lies outside of its image", _OBJECT_OUT),
    "box-huge": Code("error", "dropped", "a box more than ten times as wide or as high as its image", _OBJECT_OUT),
    "box-without-label": Code("error", "dropped", "a box without a class", _OBJECT_OUT),
    "box-unknown-label": Code("error", "dropped", f"a box of a class that is not among {_LABELS}", _OBJECT_OUT),
    "orphan-annotation": Code(
        "error", "dropped", "an annotation of an image that the annotation file does not list", _ANNOTATION_OUT
    ),
    "object-without-mask": Code("error", "dropped", "an object that has no mask, only a box or a class", _OBJECT_OUT),
    "mask-unreadable": Code(
        "error", "dropped", "the mask of an object, or a part of it, that cannot be read", _OBJECT_OUT
    ),
    "mask-too-few-points": Code("error", "dropped", "a polygon of fewer than three points", "leaves the polygon out"),
    "mask-empty": Code("error", "dropped", "the mask of an object that has no pixel in its image", _OBJECT_OUT),
    "mask-size-mismatch": Code("error", "dropped", "a mask of another size than its image", "leaves what it is of out"),
    "missing-mask": Code("error", "dropped", "there is no mask: no such file, or an empty cell", _IMAGE_OUT),
    "unreadable-mask": Code("error", "dropped", "the file of a mask cannot be decoded", _IMAGE_OUT),
    "lossy-mask": Code(
        "error",
        "dropped",
        "the mask is a JPEG, whose compression changes its values; make PNGs of the originals",
        _IMAGE_OUT,
    ),
    "orphan-mask": Code("error", "dropped", "a mask without an image", _ANNOTATION_OUT),
    "segment-unreadable": Code("error", "dropped", "a segment without an id of its own, which becomes void", _AS_READ),
    "segment-without-label": Code("error", "dropped", "a segment without a class, which becomes void", _AS_READ),
    "segment-unknown-label": Code(
        "error", "dropped", f"a segment of a class that is not among {_LABELS}, which becomes void", _AS_READ
    ),
    "segment-without-pixels": Code("error", "dropped", "a segment that has no pixel in its mask", _AS_READ),
    "unlisted-segments": Code(
        "error", "dropped", "pixels of segments that are not in segments_info, which become void", _AS_READ
    ),
    "mask-unknown-value": Code(
        "error", "repaired", f"values in a mask that are not among {_LABELS}, read as ignored", _AS_READ
    ),
    "missing-split": Code(
        "warning", "noted", "a split that the dataset names, without its files or without annotations"
    ),
    "unused-folder": Code(
        "warning",
        "noted",
        "a folder of images beside those of splits that is not called as a split is, left out; data.splits may name it",
    ),
    "box-clipped": Code("warning", "repaired", "a box that reaches out of its image, cut at the border", _AS_READ),
    "box-turned": Code(
        "warning",
        "repaired",
        "a box of the pixels as stored, as the size in its annotations shows, turned upright with its image",
        _AS_READ,
    ),
    "mask-turned": Code(
        "warning",
        "repaired",
        "a mask of the pixels as stored, as its size shows, turned upright with its image",
        _AS_READ,
    ),
    "box-duplicate": Code("warning", "noted", "the same box of the same class stands twice in an image", _OBJECT_OUT),
    "mask-void": Code("warning", "noted", "no pixel of the mask has a class"),
    "sixteen-bit": Code(
        "warning",
        "repaired",
        "16-bit grey, of which the high byte is read; pipeline() would clip the file to white, so convert it to 8 bits",
        "converts it",
    ),
    "float-image": Code(
        "warning",
        "repaired",
        "floating-point values from 0 to 1, read as 0 to 255; pipeline() would read the file as black, so convert it "
        "to 8 bits",
        "converts it",
    ),
    "size-mismatch": Code(
        "warning", "noted", "the image is of another size than its annotations say; its own counts", _AS_READ
    ),
    "suffix-mismatch": Code(
        "warning",
        "noted",
        "the file is of another format than its suffix says, and is read as what it is",
        "gives it the suffix of its format",
    ),
    "only-one-class": Code("warning", "noted", "all samples are of one class, so that any model is right"),
    "duplicate-image": Code(
        "warning", "noted", "the same image, byte for byte, is in this split already", "keeps the first"
    ),
    "near-duplicate-across-splits": Code("warning", "noted", "an image in another split looks the same"),
    "class-without-samples": Code("warning", "noted", "the training split has no sample of this class"),
    "class-missing-in-split": Code("warning", "noted", "a split has no sample of a class that is trained on"),
    "unused-label": Code("warning", "noted", "no split has a sample of this class"),
    "similar-labels": Code("warning", "noted", "two labels differ in nothing but case, spaces or punctuation"),
    "first-frame": Code(
        "note", "noted", "the file holds several frames, and the first is the image, as for pipeline()"
    ),
    "exif-rotated": Code("note", "noted", "EXIF says that the picture is to be turned, which reading does"),
    "cmyk-image": Code("note", "noted", "the image is CMYK, and its colours are converted without its profile"),
    "palette-image": Code("note", "noted", "the image has a palette of at most 256 colours"),
    "alpha-image": Code("note", "noted", "the image has transparency, which is dropped: what it hides is seen"),
    "box-covers-image": Code("note", "noted", "a box that covers more than 95 % of its image"),
    "near-duplicate": Code("note", "noted", "an image in the same split looks the same"),
    "image-size-outlier": Code(
        "note", "noted", "the image has more than 16 times the pixels of the median image, or less than a 16th"
    ),
    "mask-background-only": Code("note", "noted", "the mask shows nothing but background"),
    "class-imbalance": Code(
        "note", "noted", "the training split has less than a tenth as many of this class as of the most frequent one"
    ),
    "gapped-ids": Code("note", "noted", "numbers between those of the classes that stand for none"),
    "unlisted": Code("note", "noted", "an annotated image that no list of a split names, left out"),
    "unannotated-image": Code("note", "noted", "an image without an annotation file of its own, left out"),
    "not-an-image": Code("note", "noted", "a file among the images with a suffix that no image format has"),
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
                f"{printable(name)}: {printable(reason or CODES[code].meaning)} ({code}).\n"
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

    def reasons(self, code: str) -> dict[str, str]:
        """Each name that has the finding, in the order of finding them, with the reason, or ""."""
        return dict(self._reasons.get(code, {}))

    def by_severity(self) -> dict[str, int]:
        """How many findings are of each severity."""
        return {
            severity: sum(self.count(code) for code in self if CODES[code].severity == severity)
            for severity in SEVERITIES
        }

    def __contains__(self, code: object) -> bool:
        return code in self._reasons

    def __iter__(self) -> Iterator[str]:
        """The codes found, the worst first."""
        order = list(CODES)
        return iter(sorted(self._reasons, key=order.index))

    def __len__(self) -> int:
        return sum(len(reasons) for reasons in self._reasons.values())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """JSON-ready: {code: {severity, effect, count, meaning, files (the first 20), reasons (of those with one)}}."""
        found = {}
        for code in self:
            first = list(self._reasons[code].items())[:NAMES_KEPT]
            found[code] = {
                "severity": CODES[code].severity,
                "effect": CODES[code].effect,
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
            known = CODES[code]
            effect = "" if known.effect == "noted" else f" ({known.effect})"
            shown = ", ".join(printable(name)[:120] for name in names[:3])
            lines.append(f"{known.severity}: {len(names)} {code}{effect}: {known.meaning}: {shown}{more}")
        return "\n".join(lines)


def table() -> str:
    """All codes as Markdown: docs/findings.md."""
    parts = [
        "# Findings",
        "",
        "What `cv-hf check` finds, and what reading finds before every training; codes are stable. An error makes",
        "`cv-hf check` end with exit code 1, with `--strict` a warning too. This file is written by",
        "`python -m cv_hf.data > docs/findings.md`.",
    ]
    for severity, meaning in SEVERITIES.items():
        parts += ["", f"## {severity.capitalize()}: {meaning}", "", "| code | meaning | reading | `--fix` |"]
        parts += ["|---|---|---|---|"]
        for code, known in CODES.items():
            if known.severity == severity:
                effect = "" if known.effect == "noted" else known.effect
                parts.append(f"| `{code}` | {known.meaning} | {effect} | {known.fix} |")
    return "\n".join(parts)
