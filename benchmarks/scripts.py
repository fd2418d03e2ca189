"""The way of Transformers' example scripts, written anew from what they are published to do.

That is `examples/pytorch/{image-classification,object-detection,semantic-segmentation,instance-segmentation}/run_*.py`:
a transform per example by PIL and torchvision, or by albumentations and the image processor; a float32 Trainer with its
defaults, no loader workers among them; predictions gathered, post-processed and given to torchmetrics. Where the
installed versions refuse what they do, the nearest that runs stands here, and says so.

`python -m benchmarks.scripts MODEL DATA OUT`: as a program, image classification only, with what it imports.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import evaluate  # noqa: F401 (the scripts import it)
import numpy as np
import torch
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.image_transforms import center_to_corners_format

MODELS = {
    "image-classification": AutoModelForImageClassification,
    "object-detection": AutoModelForObjectDetection,
    "semantic-segmentation": AutoModelForSemanticSegmentation,
    "instance-segmentation": AutoModelForUniversalSegmentation,
}


def script_trainer(task: str, model: Path, data: Path, out: Path, *, batch_size: int, **arguments: Any) -> Trainer:
    """The Trainer that a script builds, on pictures of `benchmarks.photos`.

    Args:
        task: as a recipe names it.
        model: the checkpoint folder.
        data: the folder of pictures.
        out: the script's `--output_dir`.
        batch_size: of training and evaluation.
        arguments: further TrainingArguments, as on the script's command line.
    """
    splits, names = {
        "image-classification": _classes,
        "object-detection": _boxes,
        "semantic-segmentation": _maps,
        "instance-segmentation": _instances,
    }[task](data)
    processor = AutoImageProcessor.from_pretrained(model)
    id2label = dict(enumerate(names))
    config = AutoConfig.from_pretrained(model, id2label=id2label, label2id={name: i for i, name in id2label.items()})
    built = MODELS[task].from_pretrained(model, config=config, ignore_mismatched_sizes=True)
    make = {
        "image-classification": _classification,
        "object-detection": _detection,
        "semantic-segmentation": _semantic,
        "instance-segmentation": _instance,
    }[task]
    transforms, more, own = make(processor, id2label)
    return Trainer(
        model=built,
        args=TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            report_to="none",
            **{"remove_unused_columns": False, **own, **arguments},
        ),
        train_dataset=splits["train"].with_transform(transforms[0]),
        eval_dataset=splits["validation"].with_transform(transforms[1]),
        processing_class=processor,
        **more,
    )


def _rows(data: Path, split: str) -> tuple[list[dict[str, Any]], list[str]]:
    content = json.loads((data / "annotations" / f"{split}.json").read_text())
    objects: dict[int, dict[str, list]] = {
        row["id"]: {"bbox": [], "category": [], "area": []} for row in content["images"]
    }
    for one in content["annotations"]:
        found = objects[one["image_id"]]
        found["bbox"].append(one["bbox"])
        found["category"].append(one["category_id"] - 1)
        found["area"].append(one["area"])
    rows = [
        {
            "image_id": row["id"],
            "image": str(data / "images" / split / row["file_name"]),
            "label": str(data / "masks" / split / f"{row['id']:04d}.png"),
            "annotation": str(data / "instances" / split / f"{row['id']:04d}.png"),
            "objects": objects[row["id"]],
        }
        for row in content["images"]
    ]
    return rows, [category["name"] for category in content["categories"]]


def _columns(data: Path, names: Sequence[str]) -> tuple[dict[str, datasets.Dataset], list[str]]:
    splits = {}
    for split in ("train", "validation"):
        rows, classes = _rows(data, split)
        made = datasets.Dataset.from_list([{name: row[name] for name in names} for row in rows])
        for name in {"image", "label", "annotation"} & set(names):
            made = made.cast_column(name, datasets.Image())
        splits[split] = made
    return splits, classes


def _classes(data: Path) -> tuple[Mapping[str, datasets.Dataset], list[str]]:
    files = {split: str(data / "classes" / split / "**") for split in ("train", "validation")}
    splits = datasets.load_dataset("imagefolder", data_files=files)
    return splits, splits["train"].features["label"].names


def _boxes(data: Path) -> tuple[dict[str, datasets.Dataset], list[str]]:
    return _columns(data, ["image_id", "image", "objects"])


def _maps(data: Path) -> tuple[dict[str, datasets.Dataset], list[str]]:
    splits, classes = _columns(data, ["image", "label"])
    return splits, ["background", *classes]


def _instances(data: Path) -> tuple[dict[str, datasets.Dataset], list[str]]:
    splits, classes = _columns(data, ["image", "annotation"])
    return splits, ["background", *classes]


def _edges(processor: Any) -> tuple[int, int]:
    size = dict(processor.size)
    return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"], size["shortest_edge"])


def _classification(processor: Any, id2label: Mapping[int, str]) -> tuple[tuple, dict, dict]:
    size = _edges(processor)
    normalize = Normalize(mean=processor.image_mean, std=processor.image_std)
    train = Compose([RandomResizedCrop(size), RandomHorizontalFlip(), ToTensor(), normalize])
    validation = Compose([Resize(size), CenterCrop(size), ToTensor(), normalize])

    def transform(examples: dict[str, list], each: Callable) -> dict[str, list]:
        examples["pixel_values"] = [each(image.convert("RGB")) for image in examples["image"]]
        return examples

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["label"] for example in examples]),
        }

    # The script's accuracy is evaluate.load("accuracy"), which fetches a program from the Hub.
    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float((np.argmax(found.predictions, axis=1) == found.label_ids).mean())}

    transforms = (partial(transform, each=train), partial(transform, each=validation))
    return transforms, {"data_collator": collate, "compute_metrics": accuracy}, {}


def _detection(processor: Any, id2label: Mapping[int, str]) -> tuple[tuple, dict, dict]:
    import albumentations as A

    edge = _edges(processor)[0]
    boxes = {"format": "coco", "label_fields": ["category", "area"], "clip": True}
    train = A.Compose(
        [
            A.Compose(
                [
                    A.SmallestMaxSize(max_size=edge, p=1.0),
                    A.RandomSizedBBoxSafeCrop(height=edge, width=edge, p=1.0),
                ],
                p=0.2,
            ),
            A.OneOf(
                [
                    A.Blur(blur_limit=7, p=0.5),
                    A.MotionBlur(blur_limit=7, p=0.5),
                    A.Defocus(radius=(1, 5), alias_blur=(0.1, 0.25), p=0.1),
                ],
                p=0.1,
            ),
            A.Perspective(p=0.1),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(p=0.5),
            A.HueSaturationValue(p=0.1),
        ],
        bbox_params=A.BboxParams(**boxes, min_area=25),
    )
    validation = A.Compose([A.NoOp()], bbox_params=A.BboxParams(**boxes))

    def transform(examples: dict[str, list], augment: Callable) -> Any:
        images, annotations = [], []
        for image_id, image, objects in zip(examples["image_id"], examples["image"], examples["objects"], strict=True):
            # The script's `area` is that of before, which misses its box once one is dropped.
            found = augment(
                image=np.array(image.convert("RGB")),
                bboxes=objects["bbox"],
                category=objects["category"],
                area=objects["area"],
            )
            images.append(found["image"])
            each = zip(found["category"], found["area"], found["bboxes"], strict=True)
            annotations.append(
                {
                    "image_id": image_id,
                    "annotations": [
                        {
                            "image_id": image_id,
                            "category_id": int(category),
                            "iscrowd": 0,
                            "area": area,
                            "bbox": [float(edge) for edge in box],
                        }
                        for category, area, box in each
                    ],
                }
            )
        result = processor(images=images, annotations=annotations, return_tensors="pt")
        result.pop("pixel_mask", None)
        return result

    def collate(batch: list) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([one["pixel_values"] for one in batch]),
            "labels": [one["labels"] for one in batch],
        }

    transforms = (partial(transform, augment=train), partial(transform, augment=validation))
    more = {"data_collator": collate, "compute_metrics": partial(_box_map, processor=processor, id2label=id2label)}
    return transforms, more, {"eval_do_concat_batches": False}


class _Output:
    def __init__(self, **fields: Any):
        vars(self).update(fields)


@torch.no_grad()
def _box_map(found: Any, processor: Any, id2label: Mapping[int, str]) -> dict[str, float]:
    """Of all predictions of the split at once, kept until now."""
    from torchmetrics.detection import MeanAveragePrecision

    sizes, targets, predictions = [], [], []
    for batch in found.label_ids:
        sizes.append(torch.tensor(np.array([target["orig_size"] for target in batch])))
        for target in batch:
            height, width = target["orig_size"]
            boxes = center_to_corners_format(torch.tensor(target["boxes"])) * torch.tensor(
                [[width, height, width, height]]
            )
            targets.append({"boxes": boxes, "labels": torch.tensor(target["class_labels"])})
    for batch, batch_sizes in zip(found.predictions, sizes, strict=True):
        output = _Output(logits=torch.tensor(batch[1]), pred_boxes=torch.tensor(batch[2]))
        predictions += processor.post_process_object_detection(output, threshold=0.0, target_sizes=batch_sizes)
    metric = MeanAveragePrecision(box_format="xyxy", class_metrics=True)
    metric.update(predictions, targets)
    return _named(metric.compute(), id2label)


def _named(metrics: dict[str, torch.Tensor], id2label: Mapping[int, str]) -> dict[str, float]:
    per_class = {name: metrics.pop(f"{name}_per_class") for name in ("map", "mar_100")}
    for index, number in enumerate(metrics.pop("classes").reshape(-1).tolist()):
        for name, values in per_class.items():
            metrics[f"{name}_{id2label[number]}"] = values.reshape(-1)[index]
    return {name: round(value.item(), 4) for name, value in metrics.items()}


def _semantic(processor: Any, id2label: Mapping[int, str]) -> tuple[tuple, dict, dict]:
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    height, width = _edges(processor)
    last = [A.Normalize(mean=processor.image_mean, std=processor.image_std, max_pixel_value=255.0), ToTensorV2()]
    train = A.Compose(
        [
            A.PadIfNeeded(min_height=height, min_width=width, border_mode=0, fill=255, fill_mask=255),
            A.RandomCrop(height=height, width=width),
            A.HorizontalFlip(p=0.5),
            *last,
        ]
    )
    validation = A.Compose([A.Resize(height=height, width=width), *last])

    def transform(examples: dict[str, list], augment: Callable) -> dict[str, torch.Tensor]:
        found = [
            augment(image=np.array(image.convert("RGB")), mask=np.array(target))
            for image, target in zip(examples["image"], examples["label"], strict=True)
        ]
        return {
            "pixel_values": torch.stack([one["image"] for one in found]).to(torch.float),
            "labels": torch.stack([one["mask"] for one in found]).to(torch.long),
        }

    transforms = (partial(transform, augment=train), partial(transform, augment=validation))
    return transforms, {"data_collator": default_data_collator}, {}


def _instance(processor: Any, id2label: Mapping[int, str]) -> tuple[tuple, dict, dict]:
    import albumentations as A

    train = A.Compose([A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5), A.HueSaturationValue(p=0.1)])
    validation = A.Compose([A.NoOp()])

    def transform(examples: dict[str, list], augment: Callable) -> dict[str, list]:
        batch: dict[str, list] = {"pixel_values": [], "mask_labels": [], "class_labels": []}
        for image, annotation in zip(examples["image"], examples["annotation"], strict=True):
            found = augment(image=np.array(image), mask=np.array(annotation)[..., :2])
            pairs = np.unique(found["mask"].reshape(-1, 2), axis=0)
            inputs = processor(
                images=[found["image"]],
                segmentation_maps=[found["mask"][..., 1]],
                instance_id_to_semantic_id={int(instance): int(semantic) for semantic, instance in pairs},
                return_tensors="pt",
            )
            for name, values in batch.items():
                values.append(inputs[name][0])
        return batch

    def collate(examples: list[dict]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "class_labels": [example["class_labels"] for example in examples],
            "mask_labels": [example["mask_labels"] for example in examples],
        }

    transforms = (partial(transform, augment=train), partial(transform, augment=validation))
    own = {"eval_do_concat_batches": False, "batch_eval_metrics": True}
    return transforms, {"data_collator": collate, "compute_metrics": _MaskMap(processor, id2label)}, own


class _MaskMap:
    """Counts batch by batch; masks of all queries at the size of the ground truth, which is the model's input."""

    def __init__(self, processor: Any, id2label: Mapping[int, str]):
        from torchmetrics.detection import MeanAveragePrecision

        self.processor, self.id2label = processor, id2label
        self.metric = MeanAveragePrecision(iou_type="segm", class_metrics=True)

    @torch.no_grad()
    def __call__(self, found: Any, compute_result: bool = False) -> dict[str, float] | None:
        masks, labels = found.label_ids
        targets = [{"masks": each.to(torch.bool), "labels": kinds} for each, kinds in zip(masks, labels, strict=True)]
        sizes = [target["masks"].shape[-2:] for target in targets]
        output = _Output(class_queries_logits=found.predictions[0], masks_queries_logits=found.predictions[1])
        answers = self.processor.post_process_instance_segmentation(
            output, threshold=0.0, target_sizes=sizes, return_binary_maps=True
        )
        predictions = [
            {
                "masks": answer["segmentation"].to(torch.bool),
                "labels": torch.tensor([one["label_id"] for one in answer["segments_info"]]),
                "scores": torch.tensor([one["score"] for one in answer["segments_info"]]),
            }
            if answer["segments_info"]
            else {
                "masks": torch.zeros([0, *size], dtype=torch.bool),
                "labels": torch.tensor([]),
                "scores": torch.tensor([]),
            }
            for answer, size in zip(answers, sizes, strict=True)
        ]
        self.metric.update(predictions, targets)
        if not compute_result:
            return None
        metrics = _named(self.metric.compute(), self.id2label)
        self.metric.reset()
        return metrics


if __name__ == "__main__":
    import sys

    model, data, out = sys.argv[1:4]
    more = dict(word.split("=") for word in sys.argv[4:])
    trainer = script_trainer(
        "image-classification",
        Path(model),
        Path(data),
        Path(out),
        batch_size=int(more.pop("batch_size", 8)),
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        **{name: int(value) for name, value in more.items()},
    )
    trainer.train()
