"""Every recipe, unmodified, for two steps: from ids of the Hub to a model that pipeline() loads."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cv_hf import recipes
from cv_hf.config import Recipe, load_recipe
from tests.hub import LoopbackHub

RECIPES = recipes.names()
OWNER = "hf_tests_recipes"


@dataclass(frozen=True)
class Timm:
    """A repository as timm uploads it: timm's own configuration and weights."""

    architecture: str
    arguments: Mapping[str, Any]


# What stands in for each model: a family of tests/tiny.py, or an architecture of timm.
MODELS: dict[str, str | Timm] = {
    "AnnaZhang/lwdetr_tiny_60e_coco": "lw_detr",
    "IDEA-Research/dab-detr-resnet-50": "dab-detr",
    "Intel/dpt-large-ade": "dpt_semantic",
    "PekingU/rtdetr_v2_r18vd": "rt_detr_v2",
    "PekingU/rtdetr_v2_r50vd": "rt_detr_v2",
    "Roboflow/rf-detr-nano": "rf_detr",
    "Roboflow/rf-detr-seg-nano": "rf_detr_instance",
    "SenseTime/deformable-detr": "deformable_detr",
    "apple/deeplabv3-mobilevit-small": "mobilevit_semantic",
    "apple/mobilevitv2-1.0-imagenet1k-256": "mobilevitv2",
    "apple/mobilevitv2-1.0-voc-deeplabv3": "mobilevitv2_semantic",
    "facebook/convnextv2-tiny-1k-224": "convnextv2",
    "facebook/deit-base-distilled-patch16-384": "deit_distilled",
    "facebook/detr-resnet-101-panoptic": "detr_panoptic",
    "facebook/detr-resnet-50": "detr_timm",
    "facebook/dinov2-small": "dinov2_bare",
    "facebook/mask2former-swin-tiny-coco-instance": "mask2former",
    "facebook/mask2former-swin-tiny-coco-panoptic": "mask2former",
    "facebook/maskformer-swin-tiny-ade": "maskformer",
    "facebook/maskformer-swin-tiny-coco": "maskformer",
    "google/deeplabv3_mobilenet_v2_1.0_513": "mobilenet_v2_semantic",
    "google/mobilenet_v2_1.0_224": "mobilenet_v2",
    "google/vit-base-patch16-224-in21k": "vit_bare",
    "hustvl/yolos-tiny": "yolos",
    "microsoft/beit-base-finetuned-ade-640-640": "beit_semantic",
    "microsoft/beit-base-patch16-224": "beit",
    "microsoft/conditional-detr-resnet-50": "conditional_detr",
    "microsoft/cvt-13": "cvt",
    "microsoft/resnet-50": "resnet",
    "microsoft/swin-tiny-patch4-window7-224": "swin",
    "microsoft/swinv2-tiny-patch4-window16-256": "swinv2",
    "microsoft/table-transformer-detection": "table-transformer",
    "nvidia/mit-b0": "segformer",
    "nvidia/segformer-b0-finetuned-ade-512-512": "segformer_semantic",
    "openmmlab/upernet-convnext-tiny": "upernet_convnext",
    "openmmlab/upernet-swin-tiny": "upernet_swin",
    "shi-labs/dinat-mini-in1k-224": "dinat",
    "shi-labs/oneformer_ade20k_swin_tiny": "oneformer",
    "shi-labs/oneformer_coco_swin_large": "oneformer",
    "timm/efficientnet_b0.ra_in1k": Timm("test_efficientnet", {}),
    "timm/vgg16.tv_in1k": Timm("vgg11", {"mlp_ratio": 0.002}),
    "tue-mps/coco_panoptic_eomt_small_640_2x": "eomt",
    "ustc-community/dfine-small-coco": "d_fine",
}


@dataclass(frozen=True)
class Objects:
    """A column of objects.

    Attributes:
        members: in the dataset's order; the type of a number, "text", "null", "polygons", "rle", a list of class names
            or their number for a ClassLabel; for `box` the type of its four numbers.
        classes: the names or ids that are seen, where there is no ClassLabel.
        xyxy: boxes end in their right and bottom edge, not in width and height.
        of_lists: a struct of lists, as most are; else a list of structs.
        box: the member that is the box.
    """

    members: Mapping[str, Any]
    classes: Sequence[Any] = (0, 1)
    xyxy: bool = False
    of_lists: bool = True
    box: str = "bbox"


@dataclass(frozen=True)
class Map:
    """A column of images whose pixels tell the object that is there.

    Attributes:
        of: "class": its class; "object": in red its class, in green its number; "segment": its number in segments_info,
            in red, green and blue.
        classes: the ids of those that are seen.
        background: the id of what is around them.
    """

    of: str
    classes: Sequence[int]
    background: int = 0


@dataclass(frozen=True)
class Segments:
    """A list of structs that says what the segments of a Map are; its members in the dataset's order."""

    members: Sequence[str]
    map: Map


@dataclass(frozen=True)
class Instances:
    """Lists with an entry for each object: of its masks, or with class names of its ClassLabel."""

    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Data:
    """A dataset's form.

    Attributes:
        columns: in the dataset's order; "image", "text", "null", the type of a number, Objects, Map, Segments,
            Instances, the names or the number of classes, a list of class names in a tuple of one for several labels
            per image, or a mapping that each row repeats.
        splits: images per class here; two of the classes have any.
        config: the name of its configuration.
        size, mode: of its images.
        labels: what its file id2label.json holds.
    """

    columns: Mapping[str, Any]
    splits: Mapping[str, int]
    config: str = "default"
    size: tuple[int, int] = (40, 32)
    mode: str = "RGB"
    labels: Mapping[int, str] | None = None


THREE = {"train": 4, "validation": 2, "test": 2}
BEANS = ["angular_leaf_spot", "bean_rust", "healthy"]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
           "Residential", "River", "SeaLake"]  # fmt: skip
FASHION = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
AID = ["airplane", "bare soil", "buildings", "cars", "chaparral", "court", "dock", "field", "grass", "mobile home",
       "pavement", "sand", "sea", "ship", "tanks", "trees", "water"]  # fmt: skip
FASHIONPEDIA = ["shirt, blouse", "top, t-shirt, sweatshirt", *(f"part {number}" for number in range(44))]
CPPE5 = ["Coverall", "Face_Shield", "Gloves", "Goggles", "Mask"]
SIZE = {"width": "int64", "height": "int64"}
COCO_MAP = Map("segment", (1, 184), background=187)
COCO_PANOPTIC = {
    "label": COCO_MAP,
    "segments_info": Segments(("id", "category_id", "iscrowd", "bbox", "area"), COCO_MAP),
    "image_id": "int64",
    "image": "image",
}
CLOTHES = ["Background", *(f"clothes {number}" for number in range(1, 17)), "Scarf"]
FOODS = ["background", *(f"food {number}" for number in range(1, 103)), "other ingredients"]
SIDEWALK = ["unlabeled", "flat-road", *(f"seen {number}" for number in range(2, 34)), "void-unclear"]
PANNUKE = ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"]
TILE = {"crs": "EPSG:32618", "transform": [0.1], "bounds": [0.0], "width": 40, "height": 32, "count": 3,
        "dtypes": ["uint8"], "nodata": 0.0}  # fmt: skip

DATASETS: dict[str, Data] = {
    "CanopyRS/QuebecTrees": Data(
        {
            "height": "int64",
            "width": "int64",
            "fold": "text",
            "raster_name": "text",
            "location": "text",
            "image": "image",
            "tile_name": "text",
            "annotations": Objects(
                {"bbox": "float64", "segmentation": "rle", "area": "float64", "iscrowd": "int64", "category": "text"},
                classes=("ACPE", "ACRU"),
            ),
            "tile_metadata": TILE,
        },
        THREE,
    ),
    "EPFL-ECEO/coralscapes": Data({"image": "image", "label": Map("class", (1, 39))}, THREE),
    "EduardoPacheco/FoodSeg103": Data(
        {"image": "image", "label": Map("class", (1, 103)), "classes_on_image": "ids", "id": "int64"},
        {"train": 4, "validation": 2},
        labels=dict(enumerate(FOODS)),
    ),
    "RationAI/PanNuke": Data(
        {"image": "image", "instances": Instances(), "categories": Instances(PANNUKE), "tissue": 19},
        {"fold1": 4, "fold2": 2, "fold3": 2},
    ),
    "amyeroberts/filtered-coco-panoptic-val2017-people": Data(COCO_PANOPTIC, {"train": 8}),
    "mattmdjaga/human_parsing_dataset": Data(
        {"image": "image", "mask": Map("class", (1, 17))}, {"train": 20}, labels=dict(enumerate(CLOTHES))
    ),
    "merve/UIIS": Data(
        {
            "image": "image",
            "image_id": "int64",
            "annotations": Objects(
                {
                    "area": "float64",
                    "bbox": "float64",
                    "category_id": "int64",
                    "id": "int64",
                    "image_id": "int64",
                    "iscrowd": "int64",
                    "segmentation": "polygons",
                },
                classes=(1, 2),
                of_lists=False,
            ),
        },
        {"train": 8, "val": 2},
    ),
    "nielsr/breast-cancer": Data({"image": "image", "label": Map("class", (1, 1))}, {"train": 8}),
    "nielsr/coco-panoptic-val2017": Data(COCO_PANOPTIC, {"train": 8}),
    "qubvel-hf/ade20k-mini": Data(
        {
            "image": "image",
            "annotation": Map("object", (1, 2)),
            "semantic_class_to_id": {"background": 0, "car": 2, "person": 1},
        },
        {"train": 8, "validation": 2},
    ),
    "segments/sidewalk-semantic": Data(
        {"pixel_values": "image", "label": Map("class", (1, 34))}, {"train": 8}, labels=dict(enumerate(SIDEWALK))
    ),
    "WKLI22/scanbank_hf": Data(
        {
            "image_id": "int64",
            "image": "image",
            "height": "int64",
            "width": "int64",
            "objects": Objects({"area": "int64", "bbox": "int64", "category": "int64", "id": "int64"}),
        },
        {"train": 20, "test": 2},
    ),
    "Zexanima/website_screenshots_image_dataset": Data(
        {
            "image_id": "int64",
            "image": "image",
            **SIZE,
            "url": "null",
            "date_captured": "text",
            "objects": Objects(
                {
                    "area": "int64",
                    "bbox": "int64",
                    "category_id": "int64",
                    "id": "int64",
                    "image_id": "int64",
                    "iscrowd": "int64",
                    "segmentation": "nulls",
                },
                classes=(1, 3),
                of_lists=False,
            ),
        },
        {"train": 4, "valid": 2, "test": 2},
    ),
    "agyaatcoder/PlantDoc": Data(
        {
            "image_id": "int64",
            "image": "image",
            **SIZE,
            "objects": Objects(
                {"id": "int64", "area": "int64", "bbox": "float32", "category": "text"},
                classes=("Apple leaf", "Tomato leaf yellow virus"),
            ),
        },
        {"train": 8, "test": 2},
    ),
    "detection-datasets/fashionpedia": Data(
        {
            "image_id": "int64",
            "image": "image",
            **SIZE,
            "objects": Objects(
                {"bbox_id": "int64", "category": FASHIONPEDIA, "bbox": "float64", "area": "int64"}, xyxy=True
            ),
        },
        {"train": 4, "val": 2},
    ),
    "iwake/cdla": Data(
        {
            "image": "image",
            "objects": Objects({"bbox": "float64", "categories": "int64", "id": "int64", "area": "float64"}),
        },
        {"train": 16, "validation": 2, "test": 2},
    ),
    "rishitdagli/cppe-5": Data(
        {
            "image_id": "int64",
            "image": "image",
            "width": "int32",
            "height": "int32",
            "objects": Objects({"id": "int64", "area": "int64", "bbox": "float32", "category": CPPE5}),
        },
        {"train": 8, "test": 2},
    ),
    "AI-Lab-Makerere/beans": Data({"image_file_path": "text", "image": "image", "labels": BEANS}, THREE),
    "dpdl-benchmark/oxford_flowers102": Data({"image": "image", "label": 102}, THREE),
    "ethz/food101": Data({"image": "image", "label": 101}, {"train": 4, "validation": 2}),
    "jonathan-roberts1/AID_MultiLabel": Data({"label": (AID,), "image": "image"}, {"train": 8}),
    "microsoft/cats_vs_dogs": Data({"image": "image", "labels": ["cat", "dog"]}, {"train": 8}),
    "timm/eurosat-rgb": Data({"image": "image", "label": EUROSAT, "image_id": "text"}, THREE, size=(64, 64)),
    "timm/oxford-iiit-pet": Data(
        {"image": "image", "label": 37, "image_id": "text", "label_cat_dog": ["cat", "dog"]}, {"train": 6, "test": 2}
    ),
    "uoft-cs/cifar10": Data({"img": "image", "label": CIFAR10}, {"train": 6, "test": 2}, "plain_text", (32, 32)),
    "uoft-cs/cifar100": Data(
        {"img": "image", "fine_label": 100, "coarse_label": 20}, {"train": 24, "test": 2}, "cifar100", (32, 32)
    ),
    "zalando-datasets/fashion_mnist": Data(
        {"image": "image", "label": FASHION}, {"train": 104, "test": 2}, "fashion_mnist", (28, 28), "L"
    ),
}


def test_every_recipe_is_here_and_listed() -> None:
    files = set(recipes.folder().rglob("*.yaml")) | set(recipes.folder().rglob("*.yml"))
    assert set(RECIPES.values()) == files
    loaded = [load_recipe(path) for path in RECIPES.values()]
    tasks = Counter(recipe.task for recipe in loaded)
    assert min(tasks["image-classification"], tasks["object-detection"], tasks["semantic-segmentation"]) >= 8
    assert min(tasks["instance-segmentation"], tasks["panoptic-segmentation"], tasks["universal-segmentation"]) >= 2
    assert {recipe.model.id for recipe in loaded} == set(MODELS)
    assert {recipe.data.id for recipe in loaded} == set(DATASETS)
    for name, path in RECIPES.items():
        assert f"[{name}]({path.relative_to(recipes.folder()).as_posix()})" in recipes.table()
        assert path.read_text(encoding="utf-8").startswith(f"# cv-hf train recipes/{name}.yaml\n")


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[1].glob("benchmarks/*.yaml")), ids=lambda file: file.stem
)
def test_recipe_of_a_benchmark_is_one(file: Path) -> None:
    assert load_recipe(file).task


def test_readme_is_the_table() -> None:
    readme = (recipes.folder() / "README.md").read_text(encoding="utf-8")
    assert readme == recipes.table() + "\n", "run: python -m cv_hf.recipes > recipes/README.md"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_unmodified(name: str, hub: LoopbackHub, tmp_path: Path) -> None:
    import transformers

    from cv_hf import finetune
    from cv_hf.tasks import get_task
    from cv_hf.training import resolve

    overrides = ["train.max_steps=2", f"run_dir={json.dumps(str(tmp_path / 'run'))}"]
    recipe = load_recipe(RECIPES[name], overrides)
    serve_model(hub, recipe, tmp_path / "served")
    serve_dataset(hub, recipe.data.id)

    run = finetune(RECIPES[name], overrides)

    saved = load_recipe(run.folder / "recipe.yaml")
    assert saved.model_dump() == resolve(recipe, get_task(recipe.task)).model_dump()

    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train"]["steps"] == 2
    tested = "test" in DATASETS[recipe.data.id].splits or "test" in (recipe.data.splits or {})
    assert not any(code.startswith("box") for code in metrics["findings"]), metrics["findings"]
    assert {"train", "validation"} | ({"test"} if tested else set()) <= set(metrics)
    numbers = list(_numbers(metrics))
    assert len(numbers) > 10
    assert all(math.isfinite(number) for number in numbers)

    classes = _class_names(recipe)
    task = get_task(recipe.task)
    model = transformers.pipeline(task.pipeline, model=str(run.model))
    assert dict(enumerate(classes)) == model.model.config.id2label
    image = PIL.Image.effect_noise((48, 40), 60).convert("RGB")
    if task.pipeline == "image-segmentation":
        _check_segments(model, image, task.subtasks, classes)
        assert set(metrics["findings"]) <= {"class-without-samples"}
        if recipe.data.stuff:
            assert {"pq_things", "pq_stuff"} <= set(metrics["validation"])
        return
    answer = model(image, threshold=0.0) if recipe.task == "object-detection" else model(image)
    assert all(found["label"] in classes and 0 <= found["score"] <= 1 for found in answer)
    if recipe.task == "object-detection":
        assert len(answer) >= 10
        assert all(set(found["box"]) == {"xmin", "ymin", "xmax", "ymax"} for found in answer)
    else:
        assert len(answer) == min(5, len(classes))


def _check_segments(model: Any, image: PIL.Image.Image, subtasks: Sequence[str], classes: Sequence[str]) -> None:
    for subtask in subtasks:
        answer = model(image, subtask=subtask, threshold=0.0)
        assert answer or subtask != "semantic"
        for found in answer:
            assert found["label"] in classes
            assert found["mask"].size == image.size
            assert found["score"] is None if subtask == "semantic" else 0 <= found["score"] <= 1


def serve_model(hub: LoopbackHub, recipe: Recipe, folder: Path) -> None:
    """Put a tiny model under the recipe's id; the weights on its revision alone, if it names one."""
    try:
        hub.repo(recipe.model.id, "model")
    except KeyError:
        pass
    else:
        return
    import timm
    import torch

    from tests.tiny import tiny_model

    like = MODELS[recipe.model.id]
    if isinstance(like, Timm):
        torch.manual_seed(0)
        model = timm.create_model(like.architecture, **like.arguments)
        timm.models.save_for_hf(model, folder, safe_serialization=True)
    else:
        tiny_model(like, folder)
    files = {path.name: path for path in folder.iterdir()}
    revision = recipe.model.revision
    weights = {"model.safetensors": files.pop("model.safetensors")} if revision else {}
    repository = hub.add_repo(recipe.model.id, files=files)
    if revision:
        repository.branches[revision] = repository.branches["main"]
        blobs = {path: repository.store.blob(path, content) for path, content in weights.items()}
        repository.apply(blobs, "Adding `safetensors` variant of this model", branch=revision)


def serve_dataset(hub: LoopbackHub, repo_id: str) -> None:
    """Put a tiny dataset under this id, as `push_to_hub` uploads one: parquet files and a card with the features."""
    try:
        hub.repo(repo_id, "dataset")
    except KeyError:
        pass
    else:
        return
    import datasets

    hub.add_token(OWNER, user="recipes", orgs=[known.split("/")[0] for known in DATASETS])
    data = DATASETS[repo_id]
    features = datasets.Features({name: _feature(kind) for name, kind in data.columns.items()})
    random = np.random.default_rng(0)
    splits = {}
    for split, per_class in data.splits.items():
        rows = [
            {name: _value(name, kind, index, data, random) for name, kind in data.columns.items()}
            for index in range(2 * per_class)
        ]
        splits[split] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(splits).push_to_hub(repo_id, config_name=data.config, token=OWNER)
    if data.labels:
        repository = hub.repo(repo_id, "dataset")
        content = json.dumps({str(value): name for value, name in data.labels.items()}).encode()
        repository.apply({"id2label.json": repository.store.blob("id2label.json", content)}, "Upload id2label.json")


def _feature(kind: Any) -> Any:
    import datasets

    if isinstance(kind, tuple):
        return datasets.List(datasets.ClassLabel(names=kind[0]))
    if isinstance(kind, int):
        return datasets.ClassLabel(num_classes=kind)
    if isinstance(kind, list):
        return datasets.ClassLabel(names=kind)
    if isinstance(kind, Mapping):
        return {name: _feature_of(value) for name, value in kind.items()}
    if isinstance(kind, Segments):
        return datasets.List({name: _feature("ids" if name == "bbox" else "int64") for name in kind.members})
    if isinstance(kind, Instances):
        return datasets.List(_feature(kind.names) if kind.names else datasets.Image(mode="1"))
    if isinstance(kind, Objects):
        members = {name: _feature(member) for name, member in kind.members.items()}
        members[kind.box] = datasets.List(members[kind.box])
        if kind.of_lists:
            return {name: datasets.List(member) for name, member in members.items()}
        return datasets.List(members)
    if kind == "rle":
        return {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
    if kind == "polygons":
        return datasets.List(datasets.List(datasets.Value("float64")))
    if kind in ("ids", "nulls"):
        return datasets.List(datasets.Value("int64" if kind == "ids" else "null"))
    is_image = kind == "image" or isinstance(kind, Map)
    return datasets.Image() if is_image else datasets.Value("string" if kind == "text" else kind)


def _feature_of(value: Any) -> Any:
    import datasets

    if isinstance(value, list):
        return datasets.List(_feature_of(value[0]))
    return datasets.Value({int: "int64", float: "float64", str: "string"}[type(value)])


def _value(name: str, kind: Any, index: int, data: Data, random: np.random.Generator) -> Any:
    if kind == "image":
        shape = data.size[::-1] if data.mode == "L" else (*data.size[::-1], 3)
        return PIL.Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
    if kind == "text":
        return f"image_{index}"
    if kind == "null":
        return None
    if kind == "ids":
        return [0, 1]
    if isinstance(kind, str):
        return {"width": data.size[0], "height": data.size[1]}.get(name, index)
    if isinstance(kind, Mapping):
        return dict(kind)
    if isinstance(kind, Map):
        return _map(kind, index, data.size)
    if isinstance(kind, Segments):
        return _segments(kind, index, data.size)
    if isinstance(kind, Instances):
        boxes = _boxes(index, data.size)
        if kind.names:
            return [place for place, _ in boxes]
        return [PIL.Image.fromarray(_inside(box, data.size)) for _, box in boxes]
    if isinstance(kind, Objects):
        return _objects(kind, index, data.size)
    return [[index % 5, 9], [], [3]][index % 3] if isinstance(kind, tuple) else index % 2


def _boxes(index: int, size: tuple[int, int]) -> list[tuple[int, list[int]]]:
    """Two boxes (xywh) of one class, and in every other image one of the other that ends in the image's corner."""
    width, height = size
    boxes = [[1, 2, 10, 8], [3 + index % 5, 4, 12, 9], [width - 16, height - 14, 16, 14]][: 2 + index % 2]
    return [((index + number // 2) % 2, box) for number, box in enumerate(boxes)]


def _inside(box: list[int], size: tuple[int, int]) -> np.ndarray:
    x, y, w, h = box
    mask = np.zeros(size[::-1], bool)
    mask[y : y + h, x : x + w] = True
    return mask


def _objects(kind: Objects, index: int, size: tuple[int, int]) -> Any:
    from faster_coco_eval.core import mask as coco_mask

    found = []
    for number, (place, (x, y, w, h)) in enumerate(_boxes(index, size)):
        box = [x, y, x + w, y + h] if kind.xyxy else [x, y, w, h]
        known = {kind.box: box, "area": w * h, "iscrowd": 0, "segmentation": []}
        for name, member in kind.members.items():
            if name.startswith("categor"):
                known[name] = place if isinstance(member, list) else kind.classes[place]
            if member == "polygons":
                known[name] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            if member == "rle":
                rle = coco_mask.encode(np.asfortranarray(_inside([x, y, w, h], size), np.uint8))
                known[name] = {"size": list(size[::-1]), "counts": rle["counts"].decode()}
        found.append({name: known.get(name, 3 * index + number) for name in kind.members})
    return {name: [each[name] for each in found] for name in kind.members} if kind.of_lists else found


def _map(kind: Map, index: int, size: tuple[int, int]) -> PIL.Image.Image:
    numbered, classes = _numbered(kind, index, size)
    if kind.of == "class":
        return PIL.Image.fromarray(classes[numbered].astype(np.uint8))
    channels = [classes[numbered], numbered] if kind.of == "object" else [numbered + 1, np.full_like(numbered, 3)]
    return PIL.Image.fromarray(np.stack([*channels, np.zeros_like(numbered)], axis=-1).astype(np.uint8))


def _segments(kind: Segments, index: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    numbered, classes = _numbered(kind.map, index, size)
    found = []
    for number, category in enumerate(classes.tolist()):
        rows, columns = np.nonzero(numbered == number)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
        known = {"id": number + 1 + 256 * 3, "category_id": category, "iscrowd": 0, "bbox": box, "area": len(rows)}
        found.append({name: known[name] for name in kind.members})
    return found


def _numbered(kind: Map, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The number of the object at each pixel, 0 around them, and the class of each number."""
    numbered = np.zeros(size[::-1], np.int64)
    classes = [kind.background]
    for place, box in _boxes(index, size):
        numbered[_inside(box, size)] = len(classes)
        classes.append(kind.classes[place])
    return numbered, np.array(classes)


def _class_names(recipe: Recipe) -> list[str]:
    if recipe.data.labels:
        return list(recipe.data.labels.values() if isinstance(recipe.data.labels, dict) else recipe.data.labels)
    columns, named = DATASETS[recipe.data.id].columns, DATASETS[recipe.data.id].labels
    if named:
        return [name for value, name in named.items() if value != recipe.data.ignore_index]
    if "semantic_class_to_id" in columns:
        return [name for name, value in columns["semantic_class_to_id"].items() if value]
    for objects in columns.values():
        if isinstance(objects, Instances) and objects.names:
            return list(objects.names)
        if isinstance(objects, Objects):
            named = [member for member in objects.members.values() if isinstance(member, list)]
            return named[0] if named else [str(source) for source in objects.classes]
    column = recipe.data.columns.get("label") or next(name for name in ("label", "labels") if name in columns)
    kind = columns[column]
    if isinstance(kind, int):
        return [str(index) for index in range(kind)]
    return list(kind[0] if isinstance(kind, tuple) else kind)


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value
