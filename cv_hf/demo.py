"""`python -m cv_hf.demo`: the whole road in a few minutes, offline, on real images and real pretrained weights."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from cv_hf.errors import CheckFailed, CvHfError

ENOUGH = 0.97
ENOUGH_MAP_50 = 0.3
# An answer without any digit has a mean IoU of 0.48, and nothing of the others.
ENOUGH_SEGMENTED = {
    "semantic": ("mean_iou", 0.6),
    "instance": ("mask_map_50", 0.3),
    "panoptic": ("pq_things", 0.2),
    "universal": ("pq_things", 0.1),
}

# What other code would run; it knows nothing of cv_hf.
_FRESH = """
import json, sys
from transformers import pipeline
classify = pipeline("image-classification", model=sys.argv[1])
print(json.dumps(classify(json.loads(sys.argv[2]))))
"""


def classification(folder: Path) -> None:
    """Fine-tune ImageNet-pretrained EfficientNet-Lite0 on handwritten digits and prove that pipeline() loads it.

    Raises:
        CheckFailed: pipeline() in a fresh process answers something else than the trained model did.
    """
    print("1/4  EfficientNet-Lite0 (ImageNet weights) and 1,797 handwritten digits", flush=True)
    from cv_hf.data.sample import digits
    from cv_hf.environment import quiet
    from cv_hf.models.sample import efficientnet_lite0

    quiet()
    model, data = efficientnet_lite0(folder / "efficientnet_lite0"), digits(folder / "digits")
    recipe = folder / "digits.yaml"
    recipe.write_text(f"# cv-hf train {recipe}\n{yaml.safe_dump(_recipe(model, data), sort_keys=False)}", "utf-8")

    print(f"2/4  cv-hf train {recipe}", flush=True)
    from cv_hf.finetuning import finetune
    from cv_hf.inference import load_trained, predict_files

    run = finetune(recipe)

    print("3/4  the same model through transformers.pipeline(), in a fresh process", flush=True)
    files = [str(sorted((data / "test" / str(digit)).iterdir())[0]) for digit in range(10)]
    ours = predict_files(load_trained(run.model), files)
    command = [sys.executable, "-c", _FRESH, str(run.model), json.dumps(files)]
    fresh = subprocess.run(command, text=True, capture_output=True)
    if fresh.returncode:
        raise CheckFailed(f"pipeline() failed: {fresh.stderr.strip().splitlines()[-1]}")
    theirs = json.loads(fresh.stdout)
    for file, answer in zip(files, theirs, strict=True):
        mine = ours[file]["prediction"][0]
        print(f"     {Path(file).parent.name}: {answer[0]['label']} {answer[0]['score']:.4f}")
        if answer[0]["label"] != mine["label"] or abs(answer[0]["score"] - mine["score"]) > 1e-4:
            raise CheckFailed(f"{file}: pipeline() says {answer[0]}, the trained model said {mine}.")

    print(f"4/4  test accuracy {run.metrics['test']['accuracy']:.4f} on {run.metrics['test']['num_samples']} images")
    if run.metrics["test"]["accuracy"] < ENOUGH:
        raise CheckFailed(
            f"the accuracy should be at least {ENOUGH}; something on this machine is not as it should be."
        )
    print(f"     picture of predictions: {run.folder / 'predictions' / 'sheet.png'}")
    python = os.path.relpath(sys.executable)
    command = "cv-hf" if "VIRTUAL_ENV" in os.environ else f"{Path(python).parent}/cv-hf"
    print(f"""
Next:
  {command} predict {run.folder} IMAGE|DIR         predict your own images
  {command} init YOUR_FOLDER_OR_HUB_DATASET        write a recipe for your own data
  {command} push {run.folder} USER/NAME            publish the model on the Hub""")


def detection(folder: Path) -> None:
    """Train a small RT-DETR, of which the backbone alone is pretrained, to find handwritten digits on photographs.

    Raises:
        CheckFailed: pipeline() in a fresh process answers something else than the trained model did, or too little.
    """
    print("1/4  RT-DETR on EfficientNet-Lite0 (ImageNet weights), digits scattered over photographs", flush=True)
    from cv_hf.data.sample import scattered_digits
    from cv_hf.environment import quiet
    from cv_hf.models.sample import rt_detr_efficientnet_lite0

    quiet()
    model = rt_detr_efficientnet_lite0(folder / "rt_detr_efficientnet_lite0")
    data = scattered_digits(folder / "scattered_digits")
    recipe = folder / "scattered_digits.yaml"
    values = _detection_recipe(model, data)
    recipe.write_text(f"# cv-hf train {recipe}\n{yaml.safe_dump(values, sort_keys=False)}", "utf-8")

    print(f"2/4  cv-hf train {recipe}", flush=True)
    from cv_hf.finetuning import finetune

    run = finetune(recipe)

    print(f"3/4  cv-hf verify {run.folder} --data {data}", flush=True)
    _verify(run.folder, data)

    score = run.metrics["test"]["map_50"]
    print(f"4/4  test mAP50 {score:.4f}, mAP {run.metrics['test']['map']:.4f} on 100 images")
    if score < ENOUGH_MAP_50:
        raise CheckFailed(
            f"mAP50 should be at least {ENOUGH_MAP_50}; something on this machine is not as it should be."
        )
    print(f"     picture of predictions: {run.folder / 'predictions' / 'sheet.png'}")


def segmentation(folder: Path) -> None:
    """Train small models, of which the backbones alone are pretrained, to segment handwritten digits on photographs.

    Digits are one class: models of masks take far longer until they read them.

    Raises:
        CheckFailed: pipeline() in a fresh process answers something else than the trained model did, or too little.
    """
    from cv_hf.data.sample import scattered_digits
    from cv_hf.environment import quiet
    from cv_hf.finetuning import finetune
    from cv_hf.models import sample

    quiet()
    data = scattered_digits(folder / "unread_digits", read=False)
    makers = {
        "semantic": sample.deeplab_mobilenet_v2,
        "instance": sample.mask2former_efficientnet_lite0,
        "panoptic": sample.mask2former_efficientnet_lite0,
        "universal": sample.oneformer_efficientnet_lite0,
    }
    for number, (task, make) in enumerate(makers.items(), 1):
        recipe = folder / f"unread_digits_{task}.yaml"
        values = _segmentation_recipe(task, make(folder / make.__name__), data)
        recipe.write_text(f"# cv-hf train {recipe}\n{yaml.safe_dump(values, sort_keys=False)}", "utf-8")
        print(f"{number}/4  cv-hf train {recipe}", flush=True)
        run = finetune(recipe)
        print(f"     cv-hf verify {run.folder} --data {data}", flush=True)
        _verify(run.folder, data)
        name, enough = ENOUGH_SEGMENTED[task]
        score = run.metrics["test"][name]
        print(f"     test {name} {score:.4f} on {run.metrics['test']['num_samples']} images")
        if score < enough:
            raise CheckFailed(f"{name} should be at least {enough}; something on this machine is not as it should be.")
        print(f"     picture of predictions: {run.folder / 'predictions' / 'sheet.png'}", flush=True)


def _verify(run: Path, data: Path) -> None:
    from cv_hf.verify import failure, verify

    verdict = verify(run, str(data), limit=20)
    print("\n".join(f"     {line}" for line in verdict.lines()))
    if not verdict.passed:
        raise failure(verdict, run)


def _segmentation_recipe(task: str, model: Path, data: Path) -> dict:
    return {
        "task": f"{task}-segmentation",
        "model": {"id": str(model), "image_size": 192},
        # Each image is cut anew in every epoch; a mirrored or recoloured digit is another one.
        "data": {"id": str(data)},
        "augment": [{"RandomResizedCrop": {"scale": [0.5, 1.0]}}],
        "train": {
            "max_steps": 1000,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "backbone_lr": 3e-4,
            "warmup_steps": 25,
            "eval_strategy": "no",
            "save_strategy": "no",
            # DeepLab normalizes over images pooled to one pixel: it needs several, and rounds badly in bfloat16.
            **({"max_steps": 250, "batch_size": 8, "bf16": False} if task == "semantic" else {}),
        },
        "run_dir": str(data.parent / f"run_{task}"),
    }


def _detection_recipe(model: Path, data: Path) -> dict:
    return {
        "task": "object-detection",
        "model": {"id": str(model), "image_size": 192},
        "data": {"id": str(data)},
        # A mirrored or recoloured digit is another one.
        "augment": [{"BBoxSafeRandomCrop": {"p": 0.5}}],
        "train": {
            "num_train_epochs": 8,
            "batch_size": 8,
            "learning_rate": 5e-4,
            "backbone_lr": 2e-4,
            "ema": 0.99,
            "multi_scale": None,
            "eval_strategy": "no",
            "save_strategy": "no",
        },
        "run_dir": str(data.parent / "run_detection"),
    }


def _recipe(model: Path, data: Path) -> dict:
    return {
        "task": "image-classification",
        "model": {"id": str(model), "image_size": 64},
        "data": {"id": str(data)},
        # A mirrored or recoloured digit is another one, so the default augmentations do not fit here.
        "augment": [{"RandomResizedCrop": {"scale": [0.8, 1.0], "ratio": [0.9, 1.1]}}],
        # At 64 pixels the convolutions are too small for bfloat16 to pay.
        "train": {"num_train_epochs": 6, "batch_size": 32, "learning_rate": 1e-3, "bf16": False, "fp16": False},
        "run_dir": str(data.parent / "run"),
    }


# Each demo with the folders of its runs.
DEMOS = {
    "classification": (classification, ["run"]),
    "detection": (detection, ["run_detection"]),
    "segmentation": (segmentation, [f"run_{task}" for task in ENOUGH_SEGMENTED]),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cv_hf.demo", description=__doc__)
    parser.add_argument("task", nargs="?", choices=list(DEMOS), default="classification")
    parser.add_argument("--dir", default="runs/demo", type=Path, help="where everything is written")
    arguments = parser.parse_args()
    folder = arguments.dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        demo, runs = DEMOS[arguments.task]
        for name in runs:
            shutil.rmtree(folder / name, ignore_errors=True)
        demo(folder)
    except CvHfError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
