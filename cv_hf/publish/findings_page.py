"""The findings of a dataset on one page: HTML that needs no other file, with pictures of the first of each kind."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from faster_coco_eval.core import mask as coco_mask

from cv_hf.boxes import TO_XYWH, xywh_to_xyxy
from cv_hf.data import CODES, Diagnosis, UnreadableImage, decode, panoptic, semantic
from cv_hf.data.annotations import decode_mask, upright_mask
from cv_hf.data.images import image_suffixes
from cv_hf.data.paths import Inside
from cv_hf.transforms import Segment, class_colour, draw_boxes, draw_segments

PICTURES = 8
# The longer edge of a picture.
_EDGE = 320
# So wide and high at least a box is drawn, or nobody would see one without area.
_LEAST = 8
_LISTED = 200
_BOX = re.compile(rf"\b({'|'.join(sorted(TO_XYWH, key=len, reverse=True))}) \[([^\]]*)\]")
_READING = re.compile(r"as (\w+) from \(([^)]*)\) to \(([^)]*)\)")
_PART = re.compile(r" (box|object|segment) -?\d+$")
_RED = "#e02020"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1c1e21 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .2rem } p { margin: .2rem 0 .8rem }
h2 span { color: #fff; border-radius: .3rem; padding: .05rem .45rem; margin-right: .5rem; font-size: .85rem }
.error { background: #c62828 } .warning { background: #b26a00 } .note { background: #546e7a }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
figure { margin: 0; max-width: 36rem } figure img { max-height: 20rem; max-width: 100%; vertical-align: top }
figcaption { font-size: .85rem; color: #555; max-width: 22rem; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .15rem .9rem .15rem 0; text-align: left }
td.number, th.number { text-align: right } li { overflow-wrap: anywhere }
"""


def write_findings(diagnosis: Diagnosis, file: Path) -> None:
    """Write the page.

    Args:
        diagnosis: of the dataset.
        file: where; its folder is made.
    """
    findings = diagnosis.findings
    numbers = ", ".join(f"{number} {name}{'s' * (number != 1)}" for name, number in findings.by_severity().items())
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        # Nothing on the page runs or is fetched, whatever a name in the data looks like.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; """
        """style-src 'unsafe-inline'">""",
        f"<title>Findings in {_text(diagnosis.data.id)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Findings in {_text(diagnosis.data.id)}</h1>",
        f"<p>{_text(diagnosis.task.name)}, {_text(diagnosis.source.format)}: {numbers}.</p>",
        _classes(diagnosis),
    ]
    shown = _Pictures(diagnosis)
    for code in findings:
        known, reasons = CODES[code], findings.reasons(code)
        fix = f" <code>--fix</code> {escape(known.fix)}." if known.fix else ""
        parts.append(
            f'<h2 id="{code}"><span class="{known.severity}">{known.severity}</span>{len(reasons)} {code}</h2>'
        )
        parts.append(f"<p>{escape(known.meaning[0].upper() + known.meaning[1:])}.{fix}</p>")
        names = list(reasons.items())
        figures = [(name, reason, shown(code, name, reason)) for name, reason in names[:PICTURES]]
        if any(picture is not None for _, _, picture in figures):
            parts.append('<div class="pictures">' + "".join(_figure(*each) for each in figures) + "</div>")
            names = names[PICTURES:]
        listed = "".join(f"<li>{_caption(name, reason)}</li>" for name, reason in names[:_LISTED])
        parts.append(f"<ul>{listed}</ul>" if listed else "")
        parts.append(f"<p>and {len(names) - _LISTED} more</p>" if len(names) > _LISTED else "")
    parts.append("" if len(findings) else "<p>Nothing found.</p>")
    parts.append("</body></html>\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    # A name of a file that is no text is shown as far as it is.
    file.write_bytes("\n".join(filter(None, parts)).encode("utf-8", "replace"))


def _text(value: object) -> str:
    # A name may turn the direction of the text that follows it.
    return f"<bdi>{escape(str(value))}</bdi>"


def _caption(name: str, reason: str) -> str:
    return f"{_text(name)}: {_text(reason)}" if reason else _text(name)


def _figure(name: str, reason: str, picture: PIL.Image.Image | None) -> str:
    image = ""
    if picture is not None:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=80)
        image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode("ascii")}">'
    return f"<figure>{image}<figcaption>{_caption(name, reason)}</figcaption></figure>"


def _classes(diagnosis: Diagnosis) -> str:
    """The table of what each split holds."""
    splits = list(diagnosis.rows)
    head = "".join(f'<th class="number">{_text(name)}</th>' for name in splits)
    rows = ["".join(f'<td class="number">{len(diagnosis.rows[name])}</td>' for name in splits)]
    titles = ["images"]
    for label in diagnosis.labels.names[:_LISTED]:
        titles.append(label)
        rows.append("".join(f'<td class="number">{diagnosis.counts[name][label]}</td>' for name in splits))
    body = "".join(f"<tr><td>{_text(title)}</td>{row}</tr>" for title, row in zip(titles, rows, strict=True))
    return f"<table><tr><th></th>{head}</tr>{body}</table>"


class _Pictures:
    """Pictures of findings, by their code, name and reason."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        self.diagnosis = diagnosis
        self.places = {
            file: (name, row) for name, split in diagnosis.raw.items() for row, file in enumerate(split["file"][:])
        }
        self.encoded = {
            file: (name, row) for name, split in diagnosis.rows.items() for row, file in enumerate(split["file"][:])
        }

    def __call__(self, code: str, name: str, reason: str) -> PIL.Image.Image | None:
        """The picture; None where there is nothing to see."""
        file = name if name in self.places else _PART.sub("", name)
        try:
            other = self.diagnosis.others.get((code, name))
            if other is not None:
                return _beside(_small(self._image(file)), _small(self._image(other)))
            image = self._image(file, code)
            return image if image is None else self._drawn(code, file, reason, image)
        except (UnreadableImage, OSError):
            return None

    def _row(self, file: str) -> Mapping[str, Any] | None:
        """The row of a file, encoded where it still is after cleaning."""
        if file in self.encoded:
            name, row = self.encoded[file]
            return self.diagnosis.rows[name][row]
        if file in self.places:
            name, row = self.places[file]
            return self.diagnosis.raw[name][row]
        return None

    def _image(self, file: str, code: str = "") -> PIL.Image.Image | None:
        row, root = self._row(file), self.diagnosis.source.root
        if row is not None:
            return decode(row["image"], file)[0]
        # What was left out in reading, as a mask without an image.
        if root is None or Path(file).suffix.lower() not in image_suffixes() or not Inside(root).holds(root / file):
            return None
        path = root / file
        return _visible(decode_mask({"path": str(path)}, file)) if code == "orphan-mask" else decode(path)[0]

    def _drawn(self, code: str, file: str, reason: str, image: PIL.Image.Image) -> PIL.Image.Image:
        row, size, small = self._row(file), (image.height, image.width), _small(image)
        scale = small.width / image.width
        found = _BOX.search(reason)
        drawn = {code: _box(found, size)} if found else {}
        if code == "box-format-ambiguous":
            drawn = {each[1]: _numbers(f"{each[2]}, {each[3]}") for each in _READING.finditer(reason)}
        drawn = {text: corners * scale for text, corners in drawn.items() if np.isfinite(corners).all()}
        if drawn:
            corners = [_visible_corners(each) for each in drawn.values()]
            others = (xywh_to_xyxy(self._boxes(file, size)) * scale).tolist()
            colours = [_RED] if code in drawn else [class_colour(text, names=list(drawn)) for text in drawn]
            return _small(draw_boxes(small, corners, list(drawn), colours, truth=others), 2)
        if row is None or self.diagnosis.fit is None or file not in self.encoded:
            return small
        if code in ("mask-unknown-value", "unlisted-segments"):
            of_segments = "segments_info" in row
            labels = self.diagnosis.labels
            lost = panoptic.unlisted_pixels(row, size) if of_segments else semantic.unknown_pixels(row, labels, size)
            return _small(_overlaid(small, [Segment(lost, _RED, "of no label")]), 2)
        if isinstance(row.get("mask"), Mapping):
            try:
                return _beside(small, _small(_visible(upright_mask(row["mask"], file, size, row["image"])[0])))
            except UnreadableImage:
                return small
        fitted, _ = self.diagnosis.fit(row, size, self.diagnosis.labels)
        objects = (fitted or {}).get("objects", {})
        if objects.get("segmentation"):
            segments, names = [], self.diagnosis.labels.names
            for number, (mask, category) in enumerate(zip(objects["segmentation"], objects["category"], strict=True)):
                colour = class_colour(names[category], number, names)
                segments.append(Segment(coco_mask.decode(dict(mask)).astype(bool), colour, names[category]))
            return _small(_overlaid(small, segments), 2)
        return small

    def _boxes(self, file: str, size: tuple[int, int]) -> np.ndarray:
        """The boxes (n, 4), xywh, that are left in an image."""
        row = self._row(file) if file in self.encoded else None
        if row is not None and self.diagnosis.fit is not None:
            row, _ = self.diagnosis.fit(row, size, self.diagnosis.labels)
        return np.reshape((row or {}).get("objects", {}).get("bbox", []), (-1, 4))


def _box(found: re.Match[str], size: tuple[int, int]) -> np.ndarray:
    """The corners of a box that a reason tells, xyxy in pixels of its image of (height, width)."""
    return xywh_to_xyxy(TO_XYWH[found[1]](_numbers(found[2])[None], [size]))[0]


def _numbers(text: str) -> np.ndarray:
    return np.array([float(number) for number in text.split(",")])


def _visible_corners(corners: np.ndarray) -> list[float]:
    """Corners in order, of a box that is wide and high enough to be seen."""
    ordered = np.sort(corners.reshape(2, 2), axis=0)
    missing = np.maximum(0, _LEAST - (ordered[1] - ordered[0]))
    return (ordered + np.stack([-missing, missing]) / 2).reshape(-1).tolist()


def _overlaid(image: PIL.Image.Image, segments: list[Segment]) -> PIL.Image.Image:
    def fitting(mask: np.ndarray) -> np.ndarray:
        return np.asarray(PIL.Image.fromarray(mask).resize(image.size, PIL.Image.Resampling.NEAREST))

    return draw_segments(image, [[segment._replace(mask=fitting(segment.mask)) for segment in segments]])


def _small(image: PIL.Image.Image | None, factor: float = 1) -> PIL.Image.Image | None:
    if image is None:
        return None
    scale = factor * _EDGE / max(image.size)
    if scale >= 1:
        # Enlarged pixels stay pixels.
        return image.resize((image.width * int(scale), image.height * int(scale)), PIL.Image.Resampling.NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, PIL.Image.Resampling.LANCZOS)


def _beside(*pictures: PIL.Image.Image | None) -> PIL.Image.Image | None:
    """Pictures beside one another, brought to the height of the highest."""
    there = [picture for picture in pictures if picture is not None]
    if not there:
        return None
    height = max(picture.height for picture in there)
    there = [picture.resize((max(1, round(picture.width * height / picture.height)), height)) for picture in there]
    whole = PIL.Image.new("RGB", (sum(picture.width + 8 for picture in there) - 8, height), "white")
    left = 0
    for picture in there:
        whole.paste(picture, (left, 0))
        left += picture.width + 8
    return whole


def _visible(mask: PIL.Image.Image) -> PIL.Image.Image:
    """The picture of a mask with values stretched to what an eye can tell apart."""
    if len(mask.getbands()) > 1:
        return mask.convert("RGB")
    values = np.asarray(mask).astype(np.float64)
    ranks = np.unique(values, return_inverse=True)[1].reshape(values.shape)
    return PIL.Image.fromarray((255 * ranks / max(1, ranks.max())).astype(np.uint8)).convert("RGB")
