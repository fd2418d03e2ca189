"""The fast path against a plain one, written out here: the same losses in training, the same pixels in evaluation.

Plain is: Pillow, albumentations as anyone calls it, the saved image processor for each image by itself, the model as
`from_pretrained` gives it, torch.optim.AdamW. Draws are those of (seed, epoch, index), as CONTRIBUTING.md has it, and
what a model draws in its forward begins at the same seed in both. RT-DETR's gradients through its boxes are not those
of Transformers but of its paper (tests/models/test_detection_upstream.py), and so `mend` is of the plain model as well.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from faster_coco_eval.core import mask as coco_mask
from torch.nn import functional as F
from transformers.image_utils import load_image
from transformers.utils import ModelOutput

from cv_hf.config import ModelConfig
from cv_hf.finetuning import open_recipe, prepare
from cv_hf.models import build_model, detection
from cv_hf.tasks import get_task
from cv_hf.training import EvalSamples, forward
from tests.tiny import TINY_FAMILIES, UNTRAINABLE
from tests.tiny_detection import DETECTION_FAMILIES
from tests.tiny_segmentation import SEGMENTATION_FAMILIES

SEED, WARM_UP, LEAST_VISIBLE = 42, 2, 0.1
# Two orders of the same float32 sums: a loss is one of some thousand terms, each rounded by 6e-8 of itself, so that the
# first agree to 1e-5. AdamW's first updates are as large for a gradient that is rounding alone as for any other, so
# that later ones have a digit less.
FIRST, LATER = 1e-5, 1e-4
# Of the size itself, and by an operation that albumentations does itself as well where the recipe chooses its ways.
CROP = {"RandomResizedCrop": {"scale": [0.3, 1.0], "area_for_downscale": "image"}}
RESIZE = {"Resize": {"area_for_downscale": "image"}}
FLIP = {"HorizontalFlip": {"p": 0.5}}
JITTER = {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.0, "p": 0.8}}

TASKS = {
    "vit": "image-classification",
    "rt_detr": "object-detection",
    "segformer_semantic": "semantic-segmentation",
    "mask2former": "instance-segmentation",
}
# What trains at the rate of the backbone.
BACKBONES = {
    "vit": None,
    "rt_detr": "model.backbone.",
    "segformer_semantic": "segformer.",
    "mask2former": "model.pixel_level_module.encoder.",
}


@pytest.fixture
def prepared(recipe: Callable, detection_recipe: Callable, segmentation_recipe: Callable, tmp_path: Path) -> Callable:
    """(family, augment) -> the recipe, splits, the plain model, its saved processor, the Trainer before it trains."""

    def make(family: str, augment: Sequence[Any]) -> tuple[Any, Any, torch.nn.Module, Any, Any]:
        train = {"max_steps": 5, "learning_rate": 1e-3, "warmup_steps": WARM_UP, "save_strategy": "no"}
        # Sizes drawn for a batch are of the device, after all that is compared here.
        train |= {"eval_strategy": "no", **({"multi_scale": None} if family == "rt_detr" else {})}
        if family == "vit":
            values = recipe(family, train=train)
        elif family == "rt_detr":
            values = detection_recipe(family, train=train)
        else:
            values = segmentation_recipe(TASKS[family], family, train={**train, "backbone_lr": 1e-4})
        whole, task = open_recipe({**values, "augment": list(augment)})
        splits, built, trainer = prepare(whole, task, Path(values["run_dir"]), None)
        built.model.save_pretrained(tmp_path / "plain")
        built.processor.save_pretrained(tmp_path / "plain")
        plain = type(built.model).from_pretrained(tmp_path / "plain")
        if family == "rt_detr":
            detection.mend(plain)
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "plain")
        return whole, splits, plain, processor, trainer

    return make


def seeded(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Let each forward of a model begin at a seed of its own; the list is filled with its inputs and its weights."""
    seen: list[dict[str, Any]] = []

    def before(module: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        torch.manual_seed(len(seen))
        weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        seen.append({"inputs": inputs, "weights": weights})

    model.register_forward_pre_hook(before, with_kwargs=True)
    return seen


def trained(trainer: Any) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """The lines of the log, and what the model was given in each step."""
    seen = seeded(trainer.model)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line], seen


class Plain:
    """Batches of a family, read as a script would."""

    def __init__(self, family: str, processor: Any, train: Any, operations: Sequence[Any], *, resized: bool):
        self.family, self.processor, self.resized = family, processor, resized
        self.paths = [Path(row["image"]["path"]) for row in train]
        boxes = A.BboxParams("coco", ["category_id"], min_visibility=LEAST_VISIBLE, clip=True)
        self.compose = A.Compose(operations, bbox_params=boxes if family == "rt_detr" else None)
        self.moves = {"rt_detr": self.boxes, "segformer_semantic": self.map, "mask2former": self.masks}.get(family)

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Shuffled anew every epoch; images that differ in size are padded below and on the right."""
        for epoch in range(100):
            order = np.random.default_rng((SEED, epoch)).permutation(len(self.paths)).tolist()
            for start in range(0, len(order), batch_size):
                yield self.together([self.sample(epoch, index) for index in order[start : start + batch_size]])

    def sample(self, epoch: int, index: int) -> dict[str, Any]:
        generator = np.random.default_rng((SEED, epoch, index))
        self.compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        with PIL.Image.open(self.paths[index]) as opened:
            image = np.array(opened.convert("RGB"))
        if self.moves is not None:
            return self.moves(self.paths[index], image)
        label = sorted({path.parent.name for path in self.paths}).index(self.paths[index].parent.name)
        return {**self.processed(self.compose(image=image)["image"]), "labels": torch.tensor(label)}

    def processed(self, image: np.ndarray, **targets: Any) -> dict[str, Any]:
        """What the processor makes of one image; it resizes where the augmentation has not done so."""
        more = {} if self.resized else {"do_resize": False}
        made = self.processor(images=PIL.Image.fromarray(image), return_tensors="pt", **more, **targets)
        return {name: made[name][0] for name in ("pixel_values", "labels") if name in made}

    def truth(self, path: Path, file: Path) -> list[dict[str, Any]]:
        content = json.loads(file.read_text())
        (number,) = (image["id"] for image in content["images"] if image["file_name"] == path.name)
        ids = sorted(category["id"] for category in content["categories"])
        of_image = [one for one in content["annotations"] if one["image_id"] == number]
        return [{**one, "category_id": ids.index(one["category_id"])} for one in of_image]

    def boxes(self, path: Path, image: np.ndarray) -> dict[str, Any]:
        known = self.truth(path, path.parents[1] / "annotations" / "instances_train.json")
        moved = self.compose(
            image=image, bboxes=[one["bbox"] for one in known], category_id=[one["category_id"] for one in known]
        )
        found = [
            {"bbox": list(box), "category_id": int(kind), "area": box[2] * box[3], "iscrowd": 0}
            for box, kind in zip(moved["bboxes"], moved["category_id"], strict=True)
        ]
        made = self.processed(moved["image"], annotations={"image_id": 0, "annotations": found})
        labels = {name: made["labels"][name] for name in ("class_labels", "boxes")}
        return {"pixel_values": made["pixel_values"], "labels": labels}

    def map(self, path: Path, image: np.ndarray) -> dict[str, Any]:
        with PIL.Image.open(path.parents[2] / "masks" / "train" / path.name) as opened:
            moved = self.compose(image=image, mask=np.array(opened))
        return self.processed(moved["image"], segmentation_maps=moved["mask"])

    def masks(self, path: Path, image: np.ndarray) -> dict[str, Any]:
        known = self.truth(path, path.parents[2] / "annotations" / "train.json")
        masks = [coco_mask.decode(one["segmentation"]) for one in known]
        moved = (
            self.compose(image=image, masks=np.array(masks)) if masks else {**self.compose(image=image), "masks": []}
        )
        made = self.processed(moved["image"])
        size = made["pixel_values"].shape[1:]
        masks = torch.zeros(0, *size)
        if known:
            masks = torch.from_numpy(np.array(moved["masks"]))[None].float()
            masks = F.interpolate(masks, size=size, mode="nearest-exact")[0]
        left = masks.flatten(1).any(1)
        classes = torch.tensor([one["category_id"] for one in known], dtype=torch.long)
        return {**made, "mask_labels": masks[left], "class_labels": classes[left]}

    def together(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sizes = [sample["pixel_values"].shape[1:] for sample in samples]
        height, width = (max(edges) for edges in zip(*sizes, strict=True))

        def padded(tensor: torch.Tensor) -> torch.Tensor:
            return F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))

        batch: dict[str, Any] = {"pixel_values": torch.stack([padded(sample["pixel_values"]) for sample in samples])}
        if self.family == "mask2former":
            batch["pixel_mask"] = torch.stack([padded(torch.ones(size, dtype=torch.long)) for size in sizes])
            batch["mask_labels"] = [padded(sample["mask_labels"]) for sample in samples]
            batch["class_labels"] = [sample["class_labels"] for sample in samples]
        elif self.family == "rt_detr":
            batch["labels"] = [sample["labels"] for sample in samples]
        else:
            batch["labels"] = torch.stack([sample["labels"] for sample in samples])
        return batch


def optimizer_of(model: torch.nn.Module, family: str, train: Any) -> torch.optim.Optimizer:
    """Four groups: the backbone and the rest, each with and without weight decay."""
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        backbone = BACKBONES[family] is not None and name.startswith(BACKBONES[family])
        if parameter.requires_grad:
            groups.setdefault((backbone, name in decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": train.backbone_lr if backbone else train.arguments["learning_rate"],
                "weight_decay": train.arguments["weight_decay"] if decays else 0.0,
            }
            for (backbone, decays), parameters in groups.items()
        ]
    )


def plain_training(
    model: torch.nn.Module, batches: Iterator[dict[str, Any]], family: str, train: Any
) -> list[tuple[float, float]]:
    """Loss and norm of the gradients before they are clipped, step by step."""
    optimizer = optimizer_of(model, family, train)
    steps, most = train.arguments["max_steps"], train.arguments.get("max_grad_norm", 1.0)

    def rate(step: int) -> float:
        if step < WARM_UP:
            return step / WARM_UP
        return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    seeded(model)
    model.train()
    found = []
    for _ in range(steps):
        loss = model(**next(batches)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
        found.append((loss.item(), norm.item()))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return found


class Pillow(A.RandomResizedCrop):
    """The part that albumentations draws, resized by Pillow."""

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        part = PIL.Image.fromarray(img).crop(crop_coords)
        return np.array(part.resize(self.size[::-1], PIL.Image.Resampling.BILINEAR))


def operation(entry: dict[str, dict[str, Any]], family: str) -> A.BasicTransform:
    """As a recipe names it, ending at the size of the tiny model."""
    ((name, arguments),) = entry.items()
    edge = 32 if family == "vit" else 64
    size = {"RandomResizedCrop": {"size": (edge, edge)}, "Resize": {"height": edge, "width": edge}}.get(name, {})
    kind = Pillow if name == "RandomResizedCrop" and "area_for_downscale" not in arguments else getattr(A, name)
    return kind(**size, **arguments)


def plain_of(family: str, processor: Any, splits: Any, augment: Sequence[Any]) -> Plain:
    sized = any(name in entry for entry in augment for name in ("RandomResizedCrop", "Resize"))
    operations = [operation(entry, family) for entry in augment]
    return Plain(family, processor, splits.train, operations, resized=not sized)


@pytest.mark.parametrize(
    ("family", "augment"),
    [
        ("vit", [CROP, FLIP, JITTER]),
        ("vit", []),  # the whole processor, of a batch at once
        ("rt_detr", [RESIZE, FLIP, JITTER]),
        ("segformer_semantic", [CROP, FLIP, JITTER]),
        ("mask2former", [CROP, FLIP, JITTER]),
    ],
)
def test_losses_are_those_of_a_plain_loop(prepared, family, augment):
    """Images are resized by the same kernel, so that pixels are equal but for rounding."""
    whole, splits, model, processor, trainer = prepared(family, augment)
    log, _ = trained(trainer)
    batches = plain_of(family, processor, splits, augment).batches(whole.train.batch_size)
    found = plain_training(model, batches, family, whole.train)
    for step, (line, (loss, norm)) in enumerate(zip(log, found, strict=True)):
        digits = FIRST if step == 0 else LATER
        assert line["loss"] == pytest.approx(loss, rel=digits), step
        assert line["grad_norm"] == pytest.approx(norm, rel=10 * digits), step


@pytest.mark.parametrize(
    ("family", "augment"),
    [
        ("vit", [{"RandomResizedCrop": {}}, FLIP]),
        ("rt_detr", [FLIP]),
        ("segformer_semantic", [FLIP]),
        ("mask2former", [FLIP]),
    ],
)
def test_a_faster_resizing_is_a_step_of_a_pixel_and_no_more_in_the_loss(prepared, family, augment):
    """From the weights that the Trainer had before each step, with what Pillow or the processor makes of the images.

    Pixels differ by one 8-bit step at most. Loss may differ by what its own gradient says of these differences, each
    taken as adding up: first order, with as much again for the rest of it.
    """
    whole, splits, model, processor, trainer = prepared(family, augment)
    log, seen = trained(trainer)
    batches = plain_of(family, processor, splits, augment).batches(whole.train.batch_size)
    scale = processor.rescale_factor / torch.tensor(processor.image_std if processor.do_normalize else [1.0] * 3)
    seeded(model)
    model.train()
    for line, given in zip(log, seen, strict=True):
        batch = next(batches)
        model.load_state_dict(given["weights"])
        difference = (batch["pixel_values"] - given["inputs"]["pixel_values"]).abs()
        assert (difference / scale.view(3, 1, 1)).max() <= 1.001
        for name in batch.keys() - {"pixel_values"}:
            assert_alike(batch[name], given["inputs"][name])
        batch["pixel_values"].requires_grad_()
        loss = model(**batch).loss
        (slope,) = torch.autograd.grad(loss, batch["pixel_values"])
        bound = 2 * (slope.abs() * difference).sum().item() + FIRST * loss.item()
        assert abs(line["loss"] - loss.item()) <= bound


def assert_alike(mine: Any, other: Any) -> None:
    """Tensors alike, or lists and dicts of such; masks may be of any type."""
    if isinstance(mine, list):
        for one, another in zip(mine, other, strict=True):
            assert_alike(one, another)
    elif isinstance(mine, dict):
        for name, value in mine.items():
            assert_alike(value, other[name])
    else:
        torch.testing.assert_close(mine, other.to(mine.dtype), rtol=0, atol=1e-6)


class Recorder(torch.nn.Module):
    """In the place of a model: keeps what it is given, and answers in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.given: list[dict[str, torch.Tensor]] = []

    def forward(self, **inputs: torch.Tensor) -> ModelOutput:
        self.given.append(inputs)
        layers = torch.zeros(2, dtype=torch.bfloat16)
        return ModelOutput(logits=torch.full((2,), 0.7, dtype=torch.bfloat16), ids=torch.arange(2), layers=(layers,))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos as they come: grey, transparent, turned by EXIF, far larger than a tiny model takes, two of one size."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)

    def noise(*size: int) -> PIL.Image.Image:
        return PIL.Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    noise(50, 70, 3).save(folder / "0.png")
    noise(300, 411, 3).resize((411, 300)).save(folder / "1.jpg", quality=80)
    noise(60, 90, 3).save(folder / "2.jpg", exif=exif)
    noise(33, 21).save(folder / "3.png")
    noise(40, 40, 4).save(folder / "4.png")
    noise(50, 70, 3).save(folder / "5.png")
    return [folder / name for name in ("0.png", "1.jpg", "2.jpg", "3.png", "4.png", "5.png")]


def kinds() -> dict[str, str]:
    """Tiny families, and the task of each; of classifiers that prepare images alike, one."""
    trained = {family: made for family, made in TINY_FAMILIES.items() if made.model_type not in UNTRAINABLE}
    alike = {repr(made.processor or made.config["architecture"]): family for family, made in trained.items()}
    tasks = dict.fromkeys(alike.values(), "image-classification")
    tasks |= dict.fromkeys(DETECTION_FAMILIES, "object-detection")
    for family, made in SEGMENTATION_FAMILIES.items():
        semantic = (made.architecture or "").endswith("SemanticSegmentation")
        tasks[family] = "semantic-segmentation" if semantic else "instance-segmentation"
    return tasks


@pytest.mark.parametrize(("family", "name"), kinds().items())
def test_evaluation_gives_the_model_what_the_saved_processor_makes(tiny, files, tmp_path, family, name):
    """Bit for bit, in batches, of files read as pipeline() reads them."""
    fields = {"id2label": {0: "ant", 1: "bee"}, "label2id": {"ant": 0, "bee": 1}}
    built = build_model(ModelConfig(id=str(tiny(family))), get_task(name).auto_class, fields)
    for part in (built.model, built.processor):  # timm's processor is in the model's configuration
        part.save_pretrained(tmp_path)
    saved = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    rows = {"image": [{"path": str(file), "bytes": None} for file in files], "file": [file.name for file in files]}
    samples = EvalSamples(datasets.Dataset.from_dict(rows), built.processor)
    model, seen = Recorder(), 0
    batches = forward(model, samples, range(len(files)), batch_size=4, on_findings=lambda found: None)
    for group, _ in batches:
        given = model.given[-1]
        for place, number in enumerate(group.ids):
            wanted = saved(images=load_image(str(files[number])), return_tensors="pt")
            # Of OneFormer's words, which are no pixels, pipeline() makes its own.
            names = {name for name, values in wanted.items() if isinstance(values, torch.Tensor) and len(values)}
            assert names == given.keys() - {"task_inputs"}
            for name in names:
                torch.testing.assert_close(given[name][place], wanted[name][0], rtol=0, atol=0)
            seen += 1
    assert seen == len(files)


def test_evaluation_has_images_as_training_has_and_scores_in_float32(tiny, files):
    built = build_model(ModelConfig(id=str(tiny("resnet"))), get_task("image-classification").auto_class, {})
    rows = {"image": [{"path": str(file), "bytes": None} for file in files], "file": [file.name for file in files]}
    samples = EvalSamples(datasets.Dataset.from_dict(rows), built.processor)
    model = Recorder()
    for _, outputs in forward(model, samples, range(len(files)), batch_size=4, on_findings=lambda found: None):
        assert model.given[-1]["pixel_values"].is_contiguous(memory_format=torch.channels_last)
        assert outputs.logits.dtype == outputs["logits"].dtype == torch.float32
        assert outputs.logits.tolist() == torch.full((2,), 0.7, dtype=torch.bfloat16).tolist()
        assert (outputs.ids.dtype, outputs.layers[0].dtype) == (torch.int64, torch.bfloat16)
    assert len(model.given) > 1
