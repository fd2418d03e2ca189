"""Canonical splits and predictions written in other formats, and read back the same by the readers here.

Files are written below a folder that is given; images are copied as they are, but get the suffix of their format, and
16-bit grey and floating point become 8 bits as they are read.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import yaml

from cv_hf.boxes import xywh_to_cxcywh_norm, xywh_to_xyxy, xyxy_to_xywh
from cv_hf.data.annotations import upright_size
from cv_hf.data.detection import coco_ids
from cv_hf.data.images import decode, image_formats
from cv_hf.data.labels import LabelMap
from cv_hf.data.paths import is_hidden
from cv_hf.data.splits import role_of
from cv_hf.errors import DataError

_YOLO_KEYS = {"train": "train", "validation": "val", "test": "test"}


def to_coco(
    split: datasets.Dataset, labels: LabelMap, file_names: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """A canonical split as COCO annotations.

    Args:
        split: columns `image`, `image_id`, `objects` (category: contiguous ids; with or without segmentation) and
            `file`.
        labels: of the split.
        file_names: of the images; None: the column `file`.

    Returns:
        {"images", "annotations", "categories"}: sizes from the images' headers, upright; ids of annotations from 1, as
        pycocotools takes 0 for "no match"; `area` that of the box where there is none.

    Raises:
        UnreadableImage: an image whose size cannot be read.
    """
    ids = coco_ids(labels)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": source, "name": name} for source, name in zip(ids, labels.names, strict=True)],
    }
    fields = ["bbox", "category", "area", "iscrowd"]
    fields += ["segmentation"] if "segmentation" in split.features["objects"] else []
    for index, row in enumerate(split):
        height, width = upright_size(row["image"], row.get("file"))
        name = row["file"] if file_names is None else file_names[index]
        content["images"].append({"id": row["image_id"], "file_name": name, "width": width, "height": height})
        objects = row["objects"]
        for box, category, area, crowd, *mask in zip(*(objects[name] for name in fields), strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": row["image_id"],
                    "category_id": ids[category],
                    "bbox": box,
                    "area": box[2] * box[3] if area is None else area,
                    "iscrowd": int(crowd),
                    **({"segmentation": mask[0]} if mask else {}),
                }
            )
    return content


def coco_answers(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    sizes: Mapping[str, tuple[int, int]],
    labels: LabelMap,
    geometry: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """Answers of pipeline() as COCO annotations with scores.

    Args:
        predictions: of each file, [{label, score, ...}].
        sizes: (height, width) of each image.
        labels: category ids are those of the data that the model was trained on, where these are numbers, else 1, 2,
            ...
        geometry: (one answer) -> its `bbox` (absolute xywh), `area` and the like.
    """
    ids = coco_ids(labels)
    images, annotations = [], []
    for number, (file, found) in enumerate(predictions.items(), 1):
        height, width = sizes[file]
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        for one in found:
            annotation = {"id": len(annotations) + 1, "image_id": number}
            category = ids[labels.label2id[one["label"]]]
            more = {"category_id": category, **geometry(one), "iscrowd": 0, "score": one["score"]}
            annotations.append({**annotation, **more})
    categories = [{"id": id, "name": name} for id, name in zip(ids, labels.names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(
    image_ids: Sequence[int | str], predictions: Sequence[Mapping[str, Any]], labels: LabelMap
) -> list[dict[str, Any]]:
    """Predictions as COCO's results: [{image_id, category_id, bbox (absolute xywh), score}, ...].

    Args:
        image_ids: of each image.
        predictions: of each image, {"boxes" (n, 4) absolute xyxy, "scores" (n,), "labels" (n,) contiguous ids}, in
            arrays or tensors.
    """
    ids = coco_ids(labels)
    results = []
    for image_id, prediction in zip(image_ids, predictions, strict=True):
        boxes = xyxy_to_xywh(prediction["boxes"]).tolist()
        scores = np.asarray(prediction["scores"], np.float64).tolist()
        for box, score, label in zip(boxes, scores, np.asarray(prediction["labels"]).tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score})
    return results


def write_coco(splits: Mapping[str, datasets.Dataset], labels: LabelMap, folder: str | Path) -> None:
    """Write annotations/instances_SPLIT.json and the images in SPLIT/."""
    folder = Path(folder)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        names = _file_names(split, set())
        _copy_images(split, names, folder / name)
        text = json.dumps(to_coco(split, labels, names), ensure_ascii=False)
        (folder / "annotations" / f"instances_{name}.json").write_text(text, encoding="utf-8")


def write_yolo(splits: Mapping[str, datasets.Dataset], labels: LabelMap, folder: str | Path) -> int:
    """Write data.yaml, images/SPLIT and labels/SPLIT; class numbers are the contiguous ids.

    Returns:
        the number of crowd regions left out, since YOLO has none.
    """
    folder = Path(folder)
    left_out = 0
    config: dict[str, Any] = {"path": "."}
    for name, split in splits.items():
        names = _file_names(split, set())
        _copy_images(split, names, folder / "images" / name)
        (folder / "labels" / name).mkdir(parents=True, exist_ok=True)
        config[_YOLO_KEYS.get(role_of(name) or "", name)] = f"images/{name}"
        for row, file in zip(split, names, strict=True):
            boxes, categories = _ordinary(row["objects"])
            relative = xywh_to_cxcywh_norm(boxes, upright_size(row["image"], file)).tolist()
            lines = (" ".join([str(id), *map(_digits, box)]) for id, box in zip(categories, relative, strict=True))
            text = "".join(f"{line}\n" for line in lines)
            left_out += sum(row["objects"]["iscrowd"])
            (folder / "labels" / name / f"{Path(file).stem}.txt").write_text(text, encoding="utf-8")
    config |= {"nc": len(labels), "names": dict(enumerate(labels.names))}
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return left_out


def write_voc(splits: Mapping[str, datasets.Dataset], labels: LabelMap, folder: str | Path) -> int:
    """Write Annotations, JPEGImages and ImageSets/Main/SPLIT.txt; classes go by name.

    Returns:
        the number of crowd regions left out, since Pascal VOC has none.

    Raises:
        DataError: a class name that XML cannot hold.
    """
    for name in labels.names:
        # XML has no control characters, and readers strip names.
        if name != name.strip() or not name or re.search(r"[\x00-\x1f\ufffe\uffff\ud800-\udfff]", name):
            raise DataError(f"the class name {name!r} cannot be written to XML; rename it in data.labels.")
    folder = Path(folder)
    left_out = 0
    taken: set[str] = set()
    for path in ("Annotations", "ImageSets/Main"):
        (folder / path).mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        names = _file_names(split, taken)
        _copy_images(split, names, folder / "JPEGImages")
        for row, file in zip(split, names, strict=True):
            root = ET.Element("annotation")
            ET.SubElement(root, "folder").text = "JPEGImages"
            ET.SubElement(root, "filename").text = file
            size = ET.SubElement(root, "size")
            height, width = upright_size(row["image"], file)
            for key, value in (("width", width), ("height", height), ("depth", 3)):
                ET.SubElement(size, key).text = str(value)
            boxes, categories = _ordinary(row["objects"])
            for corners, category in zip(xywh_to_xyxy(boxes).tolist(), categories, strict=True):
                item = ET.SubElement(root, "object")
                ET.SubElement(item, "name").text = labels.names[category]
                for key in ("truncated", "difficult"):
                    ET.SubElement(item, key).text = "0"
                box = ET.SubElement(item, "bndbox")
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
                    ET.SubElement(box, key).text = _digits(value)
            left_out += sum(row["objects"]["iscrowd"])
            ET.indent(root)
            ET.ElementTree(root).write(folder / "Annotations" / f"{Path(file).stem}.xml", encoding="utf-8")
        listed = "".join(f"{Path(file).stem}\n" for file in names)
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(listed, encoding="utf-8")
    return left_out


def write_imagefolder(splits: Mapping[str, datasets.Dataset], labels: LabelMap, folder: str | Path) -> None:
    """Write SPLIT/CLASS/image; or SPLIT/image and SPLIT/metadata.jsonl, where an image may have several labels, or a
    name cannot be that of a folder.

    Args:
        splits: columns `image` and `label` or `labels`, contiguous ids, none of them null.
        labels: of the splits.
        folder: where they are written.
    """
    folder = Path(folder)
    as_folders = not any(is_hidden(name) or re.search(r"[/\\\x00]", name) or not name.strip() for name in labels.names)
    for name, split in splits.items():
        names = _file_names(split, set())
        single = "label" in split.column_names
        lines = []
        for file, row in zip(names, split, strict=True):
            if single and as_folders:
                _copy_image(row["image"], folder / name / labels.names[row["label"]] / file)
                continue
            _copy_image(row["image"], folder / name / file)
            label = labels.names[row["label"]] if single else [labels.names[index] for index in row["labels"]]
            lines.append(json.dumps({"file_name": file, "label" if single else "labels": label}, ensure_ascii=False))
        if lines:
            (folder / name / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for label in labels.names if as_folders and single else ():
            # A class without images keeps its place.
            (folder / name / label).mkdir(parents=True, exist_ok=True)


def write_masks(
    splits: Mapping[str, datasets.Dataset],
    masks: Callable[[Mapping[str, Any]], np.ndarray],
    labels: LabelMap,
    folder: str | Path,
) -> None:
    """Write images/SPLIT, masks/SPLIT of contiguous ids, 255 where no class is, and id2label.json.

    Args:
        splits: column `image`, and what `masks` takes.
        masks: (row) -> (H, W), 0 where no class is, else the contiguous id + 1.
        labels: of the splits.
        folder: where they are written.

    Raises:
        DataError: more classes than a mask of 8 bits has values.
    """
    if len(labels) > 255:
        raise DataError(f"masks of {len(labels)} classes cannot be written with 8 bits.")
    folder = Path(folder)
    for name, split in splits.items():
        names = _file_names(split, set())
        (folder / "masks" / name).mkdir(parents=True, exist_ok=True)
        for file, row in zip(names, split, strict=True):
            _copy_image(row["image"], folder / "images" / name / file)
            values = (masks(row).astype(np.int64) - 1) % 256
            PIL.Image.fromarray(values.astype(np.uint8)).save(folder / "masks" / name / f"{Path(file).stem}.png")
    text = json.dumps(labels.id2label, ensure_ascii=False, indent=2)
    (folder / "id2label.json").write_text(text + "\n", encoding="utf-8")


def write_panoptic(
    splits: Mapping[str, datasets.Dataset],
    segments: Callable[[Mapping[str, Any]], tuple[np.ndarray, Mapping[str, np.ndarray]]],
    labels: LabelMap,
    folder: str | Path,
) -> None:
    """Write COCO panoptic: images/SPLIT, panoptic/SPLIT.json and panoptic/SPLIT of PNG files.

    Args:
        splits: column `image`, and what `segments` takes.
        segments: (row) -> map (H, W) of the numbers of segments from 1, 0 being void; and {category, iscrowd, area} of
            each of them.
        labels: of the splits; says which classes are things.
        folder: where they are written.
    """
    folder, ids = Path(folder), coco_ids(labels)
    categories = [
        {"id": source, "name": name, "isthing": int(name in (labels.things or ()))}
        for source, name in zip(ids, labels.names, strict=True)
    ]
    for name, split in splits.items():
        names = _file_names(split, set())
        (folder / "panoptic" / name).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number, (file, row) in enumerate(zip(names, split, strict=True), 1):
            _copy_image(row["image"], folder / "images" / name / file)
            numbers, found = segments(row)
            png = f"{Path(file).stem}.png"
            channels = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
            PIL.Image.fromarray(channels).save(folder / "panoptic" / name / png)
            height, width = numbers.shape
            images.append({"id": number, "file_name": file, "width": width, "height": height})
            info = [
                {"id": place, "category_id": ids[category], "area": int(area), "iscrowd": int(crowd)}
                for place, (category, area, crowd) in enumerate(
                    zip(found["category"], found["area"], found["iscrowd"], strict=True), 1
                )
            ]
            annotations.append({"image_id": number, "file_name": png, "segments_info": info})
        content = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(content, ensure_ascii=False)
        (folder / "panoptic" / f"{name}.json").write_text(text, encoding="utf-8")


def _ordinary(objects: Mapping[str, Any]) -> tuple[list[list[float]], list[int]]:
    """Boxes and categories, crowd regions left out."""
    kept = [index for index, crowd in enumerate(objects["iscrowd"]) if not crowd]
    return [objects["bbox"][index] for index in kept], [objects["category"][index] for index in kept]


def _digits(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return repr(float(value)).removesuffix(".0")


def _file_names(split: datasets.Dataset, taken: set[str]) -> list[str]:
    """A file name for each image, its own where no other has it; different without suffix and case of letters too.

    The suffix is that of its format, or of the PNG that it is converted to.
    """
    names = []
    for index, image in enumerate(split["image"]):
        own = Path(image["path"] or "image")
        stem, number = own.stem, index
        while stem.lower() in taken:
            stem, number = f"{own.stem}_{number}", number + 1
        taken.add(stem.lower())
        names.append(f"{stem}{_suffix(image, own.suffix)}")
    return names


def _suffix(image: Mapping[str, Any], own: str) -> str:
    mode, format_ = _kind(image)
    if _is_converted(mode):
        return ".png"
    known = PIL.Image.registered_extensions()
    # Phones name MPO files .jpg, and MPO begins as a JPEG does.
    if known.get(own.lower()) in (format_, "JPEG" if format_ == "MPO" else format_):
        return own
    return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(format_, f".{format_.lower()}")


def _is_converted(mode: str) -> bool:
    return mode == "F" or mode.startswith("I")


def _kind(image: Mapping[str, Any]) -> tuple[str, str]:
    """The mode and the format of an image."""
    upright_size(image)  # names what cannot be read
    content = image["bytes"]
    with PIL.Image.open(image["path"] if content is None else io.BytesIO(content), formats=image_formats()) as opened:
        return opened.mode, opened.format


def _copy_images(split: datasets.Dataset, names: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(split["image"], names, strict=True):
        _copy_image(image, folder / name)


def _copy_image(image: Mapping[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_converted(_kind(image)[0]):
        decode(image)[0].save(target)
    elif image["bytes"] is not None:
        target.write_bytes(image["bytes"])
    else:
        shutil.copyfile(image["path"], target)
