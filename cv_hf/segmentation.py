"""What the tasks of segmentation share: targets and truth from maps of segments, answers as pipeline() gives them.

Ground truth travels as a map of segment numbers, see cv_hf.transforms.masks, and what each number is: `segments`
{`category` (n,), `iscrowd` (n,)}. Where segments are the classes themselves there is no `segments`, and the number of a
class is its id + 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask

from cv_hf.boxes import xywh_to_cxcywh_norm
from cv_hf.data import LabelMap
from cv_hf.metrics import Accumulator, DetectionAccumulator, PanopticAccumulator, SemanticAccumulator
from cv_hf.models import (
    PIPELINE_ARGUMENTS,
    Needs,
    PromptedProcessor,
    instance_masks,
    instance_segments,
    panoptic_segments,
    semantic_maps,
)
from cv_hf.runs import from_mask
from cv_hf.transforms import Segment, class_colour, draw_segments, pack, present, unpack

# Where a mask begins: at a probability of a half but for models whose masks are cut before they are probabilities.
MASK_THRESHOLDS = {"rf_detr": 0.0}
# At which panoptic segments are measured, and which the card tells: overlaps are judged as in the papers' evaluation,
# and a model of few images is seldom as sure as they ask (0.8).
PANOPTIC_THRESHOLDS = {"threshold": 0.5, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.8}
PANOPTIC_NOTE = """Panoptic quality is measured at these thresholds, with the segments of a stuff class joined, as its
definition asks; `pipeline()` leaves them apart."""
# So many segments of an image are kept as evidence.
SUREST = 10
# Two answers agree in a segment whose score differs by no more than this, and whose mask overlaps so far or differs in
# so few pixels: one on the border of two segments may fall to either.
SCORE_TOLERANCE = 1e-4
SAME_IOU = 0.99
SAME_PIXELS = 4

AUGMENT = (
    {"RandomResizedCrop": {"scale": [0.3, 1.0]}},
    {"HorizontalFlip": {"p": 0.5}},
    {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.0, "p": 0.5}},
)
# As Mask2Former is trained (Cheng et al., 2022): clipped gradients, a backbone that moves ten times slower.
TRAIN_DEFAULTS = {
    "num_train_epochs": 30,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "backbone_lr": 1e-5,
    "weight_decay": 0.05,
    "max_grad_norm": 0.01,
    "warmup_steps": 0.05,
    "lr_scheduler_type": "cosine",
}


class MaskAccumulator(DetectionAccumulator):
    """COCO's average precision of masks, its names beginning with `mask_`."""

    def __init__(self, label_names: Sequence[str]) -> None:
        super().__init__(label_names, masks=True)

    def compute(self) -> dict[str, Any]:
        """As DetectionAccumulator: `mask_map`, `mask_map_50`, `mask_mar_100`, ..., and so in `per_class`."""
        measured = super().compute()
        per_class = {name: _mask_named(scores) for name, scores in measured.pop("per_class").items()}
        return {**_mask_named(measured), "per_class": per_class}


def shared(reader: ModuleType) -> dict[str, Any]:
    """The fields of Task that the tasks of segmentation have alike; those of the data are functions of their reader."""
    names = ("canonical", "clean", "encode", "fit", "label_map", "present", "strata")
    return {
        **{name: getattr(reader, name) for name in names},
        "pipeline": "image-segmentation",
        "augment": AUGMENT,
        "moved": "mask",
        "model_fields": model_fields,
        "train_sample": train_sample,
        "targets": targets,
        "eval_loss": False,
        "predict": predict,
        "shown": None,
        "surest": surest,
        "compare": compare,
        "score_answers": score_answers,
        "truth": truth,
        "draw": draw,
        "tile": 400,
    }


def model_fields(labels: LabelMap, columns: Sequence[str]) -> dict[str, Any]:
    """Configuration fields that decide the head."""
    fields: dict[str, Any] = {"id2label": labels.id2label, "label2id": labels.label2id}
    return fields if labels.things is None else {**fields, "things": labels.things}


def train_sample(image: np.ndarray, row: Mapping[str, Any], augment: Any) -> dict[str, Any]:
    """Augment the image with the map of its segments.

    Returns:
        `image`; `mask`, the map (H, W) or (H, W, layers); and `segments`, where numbers are not classes.
    """
    segments = row.get("segments")
    if "objects" in row:
        masks = row["objects"]["segmentation"]
        # The image may have been read smaller.
        numbered = pack(masks, tuple(masks[0]["size"]) if masks else image.shape[:2])
        segments = {name: row["objects"][name] for name in ("category", "iscrowd")}
    else:
        numbered = row["mask"]
    augmented = augment(image, mask=numbered)
    sample = {"image": augmented["image"], "mask": augmented["mask"]}
    return sample if segments is None else {**sample, "segments": segments}


def targets(rows: Sequence[Mapping[str, Any]], labels: LabelMap, needs: Needs) -> dict[str, Any]:
    """What the model's loss takes, from samples whose `mask` stands at the size of the model's input.

    Returns:
        `labels` (B, H, W), class ids and the ignored value; or `mask_labels`, per image (n, H, W), and `class_labels`,
        per image (n,); or `labels`, per image {`class_labels`, `masks`, `boxes` (n, 4), cxcywh relative to the input}.
        For a model that is told its task in words, `task_inputs` and `text_inputs` too.
    """
    if needs.kind == "maps":
        maps = np.stack([class_map(row) for row in rows])
        # Of unsigned numbers 0 becomes the greatest, which of 8 bits is the usual ignored value itself.
        nothing = np.iinfo(maps.dtype).max
        maps -= maps.dtype.type(1)
        ids = torch.from_numpy(maps).to(torch.int64)
        if needs.ignore_index != nothing:
            ids.masked_fill_(ids == nothing, needs.ignore_index)
        return {"labels": ids}
    found = [_objects(row, labels) for row in rows]
    classes = [torch.from_numpy(each) for _, each in found]
    if needs.kind == "objects":
        return {
            "labels": [
                {
                    "class_labels": each,
                    "masks": torch.from_numpy(masks),
                    "boxes": torch.from_numpy(_boxes(masks, row.get("shape"))),
                }
                for (masks, _), each, row in zip(found, classes, rows, strict=True)
            ]
        }
    made: dict[str, Any] = {
        "mask_labels": [torch.from_numpy(masks) for masks, _ in found],
        "class_labels": classes,
    }
    if needs.prompter is not None:
        subtasks = [row["subtask"] for row in rows]
        made["task_inputs"] = torch.cat([needs.prompter.prompt(subtask, 1)["task_inputs"] for subtask in subtasks])
        made["text_inputs"] = needs.prompter.texts(subtasks, [each.tolist() for each in classes])
    return made


def class_map(row: Mapping[str, Any]) -> np.ndarray:
    """The map (H, W) of class ids + 1, 0 where there is none."""
    if "segments" not in row:
        return row["mask"]
    categories = np.asarray(row["segments"]["category"], np.int64)
    return np.concatenate([[0], categories + 1]).astype(_fitting(categories))[row["mask"]]


def instances(row: Mapping[str, Any], labels: LabelMap) -> dict[str, Any]:
    """The objects of the row, {`segmentation`: RLE, `category`, `area`, `iscrowd`}; of a panoptic map, its things."""
    if "objects" in row:
        return row["objects"]
    segments = {name: np.asarray(row["segments"][name]) for name in ("category", "iscrowd")}
    kept = np.flatnonzero(things(labels)[segments["category"]])
    masks = [row["mask"] == number for number in (kept + 1).tolist()]
    return {
        "segmentation": [from_mask(mask) for mask in masks],
        "category": segments["category"][kept],
        "area": np.array([mask.sum() for mask in masks], np.float64),
        "iscrowd": segments["iscrowd"][kept],
    }


def panoptic_truth(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as PanopticAccumulator takes it."""
    found = zip(row["segments"]["category"], row["segments"]["iscrowd"], strict=True)
    info = [{"id": number, "category_id": int(c), "iscrowd": bool(crowd)} for number, (c, crowd) in enumerate(found, 1)]
    return {"segmentation": row["mask"], "segments_info": info}


def stuff(labels: LabelMap) -> list[int]:
    """The ids of the classes that are not countable."""
    return np.flatnonzero(~things(labels)).tolist()


def accumulators(labels: LabelMap) -> dict[str, Accumulator]:
    """An empty accumulator for each subtask; in ground truth of the semantic one, -1 is no class."""
    return {
        "semantic": SemanticAccumulator(labels.names, ignore_index=-1),
        "instance": MaskAccumulator(labels.names),
        "panoptic": PanopticAccumulator(labels.names, things(labels).tolist()),
    }


def count(accumulator: Accumulator, outputs: Any, group: Any, processor: Any, labels: LabelMap) -> None:
    """Count one batch for the subtask of its group.

    Class maps, of which pixels without a class in the ground truth do not count; overlapping objects, at most 100 an
    image, however low their scores; or panoptic segments at the thresholds that the card tells, those of a stuff class
    joined.
    """
    sizes = [row["size"] for row in group.rows]
    processor = _images_alone(processor)
    if group.subtask == "semantic":
        found: Any = semantic_maps(outputs, processor, sizes)
        known: Any = [class_map(row).astype(np.int32) - 1 for row in group.rows]
    elif group.subtask == "instance":
        found = instance_masks(outputs, processor, sizes)
        known = [instances(row, labels) for row in group.rows]
    else:
        found = panoptic_segments(outputs, processor, sizes, PANOPTIC_THRESHOLDS, fuse=stuff(labels))
        known = [panoptic_truth(row) for row in group.rows]
    accumulator.update(found, known, group.ids)


def score_answers(
    answers: Sequence[Sequence[Mapping[str, Any]]],
    rows: Iterable[Mapping[str, Any]],
    labels: LabelMap,
    arguments: Mapping[str, Any],
) -> dict[str, float]:
    """The metrics that answers of one subtask give alone.

    Of instances it is the precision of the segments shown, which is less than that of all objects, overlapping; of
    panoptic segments those of a stuff class are joined, which pipeline() leaves apart.
    """
    subtask = arguments["subtask"]
    accumulator = accumulators(labels)[subtask]
    ids = labels.label2id
    for index, (answer, row) in enumerate(zip(answers, rows, strict=True)):
        if subtask == "instance":
            found: Any = {
                "masks": [one["segmentation"] for one in answer],
                "scores": [one["score"] for one in answer],
                "labels": [ids[one["label"]] for one in answer],
            }
            known: Any = instances(row, labels)
        elif subtask == "semantic":
            painting = painted(answer, row["size"], labels.names)
            found = np.array([-1, *(ids[one["label"]] for one in painting["segments_info"])])[painting["segmentation"]]
            known = class_map(row).astype(np.int32) - 1
        else:
            found = painted(answer, row["size"], [labels.names[place] for place in stuff(labels)])
            found["segments_info"] = [
                {"id": one["id"], "label_id": ids[one["label"]]} for one in found["segments_info"]
            ]
            known = panoptic_truth(row)
        accumulator.update([found], [known], [index])
    measured = accumulator.compute()
    names = {"semantic": ("mean_iou", "pixel_accuracy"), "instance": ("mask_map", "mask_map_50"), "panoptic": ("pq",)}
    suffix = " of the segments shown" if subtask == "instance" else ""
    return {f"{name}{suffix}": measured[name] for name in names[subtask] if measured[name] is not None}


def predict(
    outputs: Any, config: Any, processor: Any, sizes: Sequence[tuple[int, int]], arguments: Mapping[str, Any]
) -> list[list[dict[str, Any]]]:
    """What pipeline("image-segmentation") answers: for each image [{score, label, segmentation}], in its order.

    `segmentation` is COCO's compressed RLE of what is an image of black and white there; `score` is None for the
    semantic subtask.
    """
    processor = _images_alone(processor)
    if arguments["subtask"] == "semantic":
        return [
            [
                {"score": None, "label": config.id2label[index], "segmentation": from_mask(found == index)}
                for index in np.unique(found).tolist()
            ]
            for found in semantic_maps(outputs, processor, sizes)
        ]
    thresholds = {name: arguments.get(name, value) for name, value in PIPELINE_ARGUMENTS.items()}
    segment = instance_segments if arguments["subtask"] == "instance" else panoptic_segments
    return [
        [
            {
                "score": one["score"],
                "label": config.id2label[one["label_id"]],
                "segmentation": from_mask(image["segmentation"] == one["id"]),
            }
            for one in image["segments_info"]
        ]
        for image in segment(outputs, processor, sizes, thresholds)
    ]


def surest(prediction: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """The segments of the highest scores, and the threshold that shows them; a semantic map is kept whole."""
    scores = sorted((one["score"] for one in prediction if one["score"] is not None), reverse=True)
    threshold = scores[SUREST] if len(scores) > SUREST else 0.0
    return [one for one in prediction if one["score"] is None or one["score"] > threshold], {"threshold": threshold}


def compare(
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    arguments: Mapping[str, Any],
) -> tuple[float, str]:
    """The share of the image that the largest segment has which only one of two answers has, and which it is.

    Segments are the same that have a class, a score and a mask within the tolerances. One whose score lies at the
    threshold may be missing. Which of several instances has a pixel that all claim is not compared: pipeline() paints
    them in the order of an unsorted `topk`, which a difference in the last digit of any score can change.
    """
    threshold = {**PIPELINE_ARGUMENTS, **arguments}["threshold"]
    free = set(range(len(theirs)))
    lone: list[tuple[Mapping[str, Any], str]] = []
    mine_clear, theirs_clear = _uncontested(ours, theirs) if arguments.get("subtask") == "instance" else (ours, theirs)
    overlaps = _iou(mine_clear, theirs_clear)
    for mine, clear, overlap in zip(ours, mine_clear, overlaps, strict=True):
        alike = (place for place in free if _same(clear, theirs_clear[place], float(overlap[place])))
        partner = max(alike, key=lambda place: overlap[place], default=None)
        if partner is None:
            lone.append((mine, "not by pipeline(), but"))
        else:
            free.remove(partner)
    lone += [(theirs[place], "by pipeline() alone, not") for place in sorted(free)]
    worst, words = 0.0, ""
    for one, whose in lone:
        if one["score"] is not None and abs(one["score"] - threshold) <= SCORE_TOLERANCE:
            continue
        share = _area(one) / (size[0] * size[1])
        if share > worst:
            score = "" if one["score"] is None else f" {one['score']:.4f}"
            worst, words = share, f"{one['label']!r}{score} on {100 * share:.2f} % of the image {whose}"
    return worst, words


def painted(answer: Iterable[Mapping[str, Any]], size: tuple[int, int], joined: Iterable[str] = ()) -> dict[str, Any]:
    """An answer as a map {`segmentation` (H, W), `segments_info` [{id, label}]}; segments of a joined label are one."""
    found = np.zeros(size, np.int32)
    numbers: dict[str, int] = {}
    info: list[dict[str, Any]] = []
    for one in answer:
        number = numbers.get(one["label"])
        if number is None:
            info.append({"id": len(info) + 1, "label": one["label"]})
            number = info[-1]["id"]
            if one["label"] in joined:
                numbers[one["label"]] = number
        found[_decoded(one["segmentation"])] = number
    return {"segmentation": found, "segments_info": info}


def truth(row: Mapping[str, Any], labels: LabelMap) -> list[dict[str, Any]]:
    """The row as an answer is, every score None; of classes, where these are the segments."""
    if "objects" in row:
        found = zip(row["objects"]["category"], row["objects"]["segmentation"], strict=True)
    elif "segments" in row:
        found = ((c, from_mask(row["mask"] == number)) for number, c in enumerate(row["segments"]["category"], 1))
    else:
        numbers = np.unique(row["mask"])
        found = ((number - 1, from_mask(row["mask"] == number)) for number in numbers[numbers > 0].tolist())
    return [{"score": None, "label": labels.names[int(c)], "segmentation": rle} for c, rle in found]


def draw(
    image: Any,
    prediction: Sequence[Mapping[str, Any]],
    truth: Sequence[Mapping[str, Any]] | None,
    labels: LabelMap,
    tile: int | None,
) -> Any:
    """The image under its segments with a legend; beside it, where it is known, under those of the ground truth."""
    if truth is None:
        return draw_segments(image, [_segments(prediction, labels)], tile=tile)
    pair = [_segments(answer, labels) for answer in (prediction, truth)]
    return draw_segments(image, pair, titles=("prediction", "truth"), tile=tile)


def geometry(one: Mapping[str, Any]) -> dict[str, Any]:
    """The box, area and mask of a segment, as COCO's annotations have them."""
    rle = dict(one["segmentation"])
    return {"bbox": coco_mask.toBbox(rle).tolist(), "area": float(coco_mask.area(rle)), "segmentation": rle}


def _images_alone(processor: Any) -> Any:
    """The image processor, of one that writes prompts as well."""
    return processor.image_processor if isinstance(processor, PromptedProcessor) else processor


def _segments(answer: Sequence[Mapping[str, Any]], labels: LabelMap) -> list[Segment]:
    """Segments of one class have shades of its colour."""
    seen: dict[str, int] = {}
    found = []
    for one in answer:
        number = seen[one["label"]] = seen.get(one["label"], -1) + 1
        colour = class_colour(one["label"], number, labels.names)
        found.append(Segment(_decoded(one["segmentation"]), colour, one["label"]))
    return found


def _decoded(rle: Mapping[str, Any]) -> np.ndarray:
    return coco_mask.decode(dict(rle)).astype(bool)


def _mask_named(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {f"mask_{name}" if name.startswith(("map", "mar")) else name: value for name, value in scores.items()}


def things(labels: LabelMap) -> np.ndarray:
    """Which classes are countable, bool (classes,); all of them where the data does not tell."""
    return np.array([labels.things is None or name in labels.things for name in labels.names], bool)


def _objects(row: Mapping[str, Any], labels: LabelMap) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, H, W), bool, and classes (n,) of what is to be found in a sample: no crowd, nothing cut away."""
    if "segments" not in row or row["subtask"] == "semantic":
        numbered = class_map(row)
        numbers = np.unique(numbered)
        numbers = numbers[numbers > 0]
        return unpack(numbered, numbers.tolist()), numbers.astype(np.int64) - 1
    classes = np.asarray(row["segments"]["category"], np.int64)
    kept = present(row["mask"], len(classes)) & ~np.asarray(row["segments"]["iscrowd"], bool)
    if row["subtask"] == "instance":
        kept &= things(labels)[classes]
    numbers = np.flatnonzero(kept)
    return unpack(row["mask"], (numbers + 1).tolist()), classes[numbers]


def _boxes(masks: np.ndarray, shape: tuple[int, int] | None) -> np.ndarray:
    """The boxes around masks (n, H, W), relative to `shape`, the image's (height, width) in it; None: to all of it."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = columns[0], rows[0]
        found.append([left, top, columns[-1] + 1 - left, rows[-1] + 1 - top])
    return xywh_to_cxcywh_norm(found, shape or masks.shape[1:]).astype(np.float32)


def _fitting(categories: np.ndarray) -> type[np.unsignedinteger]:
    return np.uint8 if categories.max(initial=0) < 2**8 - 1 else np.uint16


def _uncontested(*answers: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Answers without the pixels that some segment has in each of them."""
    rles = [[dict(one["segmentation"]) for one in answer] for answer in answers]
    if not all(rles):
        return [list(answer) for answer in answers]
    everywhere = coco_mask.merge([coco_mask.merge(each) for each in rles], intersect=True)
    elsewhere = ~_decoded(everywhere)
    return [
        [{**one, "segmentation": from_mask(_decoded(one["segmentation"]) & elsewhere)} for one in answer]
        for answer in answers
    ]


def _same(mine: Mapping[str, Any], other: Mapping[str, Any], iou: float) -> bool:
    if mine["label"] != other["label"] or (mine["score"] is None) != (other["score"] is None):
        return False
    if mine["score"] is not None and not abs(mine["score"] - other["score"]) <= SCORE_TOLERANCE:
        return False
    # |A xor B| from the areas and the IoU.
    differing = (_area(mine) + _area(other)) * (1 - iou) / (1 + iou)
    return iou >= SAME_IOU or differing <= SAME_PIXELS


def _area(one: Mapping[str, Any]) -> float:
    return float(coco_mask.area(dict(one["segmentation"])))


def _iou(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    rles = [[dict(one["segmentation"]) for one in answer] for answer in (ours, theirs)]
    return np.asarray(coco_mask.iou(*rles, [0] * len(theirs)))
