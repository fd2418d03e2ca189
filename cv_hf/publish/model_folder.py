"""`model/`: weights, configuration and processor as Transformers reads them, and what it has no place for.

`cv_hf.json` holds the task, the label map, the arguments for pipeline() and what was trained on; `evidence.json` the
answers of the model in memory, which `cv-hf verify` compares with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from cv_hf.config import Recipe
from cv_hf.data import LabelMap, Splits, fingerprint
from cv_hf.errors import ModelError

NOTES = "cv_hf.json"
EVIDENCE = "evidence.json"


def save_model_folder(model: Any, processor: Any, task: str, labels: LabelMap, folder: Path) -> Path:
    """Write the folder aside and put it in place in one step, so that it is never seen half written."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if not _inside_config(processor):
        processor.save_pretrained(partial)
    _write(partial / NOTES, {"task": task, "labels": labels.to_dict()})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def write_arguments(
    folder: Path,
    arguments: Mapping[str, Any],
    evidence: Mapping[str, Any],
    validation: Mapping[str, Any],
    trained_on: Mapping[str, Any] = {},
) -> None:
    """Add what is found by scoring, which needs the folder first.

    Args:
        folder: the model's.
        arguments: what pipeline() is to be called with, kept in the notes.
        evidence: {SHA-256 of an image's file: {"answer": of the model in memory, before it was saved, "arguments": that
            show as much}}.
        validation: metrics of the validation split; if they have a score threshold for each class, the notes keep it.
        trained_on: what `data_notes` gives, kept in the notes.
    """
    per_class = validation.get("per_class", {})
    thresholds = {name: scores["threshold"] for name, scores in per_class.items() if "threshold" in scores}
    notes = {**read_notes(str(folder)), "pipeline": dict(arguments), "trained_on": dict(trained_on)}
    _write(folder / EVIDENCE, evidence)
    _write(folder / NOTES, {**notes, "thresholds": thresholds} if thresholds else notes)


def data_notes(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """What tells the data of a run again, without a path of this machine.

    Returns:
        {"data": what the recipe says of it, of a path the last part as `id` and no other; "hub": whether the id is one
        of the Hub; "seed": of what was held out; "samples": counts and hashes of the names, see `fingerprint`}
    """
    hub = splits.source.format == "hub"
    data = recipe.data.model_dump(mode="json", exclude_defaults=True, exclude={"images", "masks"})
    if isinstance(recipe.data.labels, str):
        data["labels"] = dict(zip(map(str, splits.labels.sources), splits.labels.names, strict=True))
    return {
        "data": {**data, "id": recipe.data.id if hub else Path(recipe.data.id).resolve().name},
        "hub": hub,
        "seed": recipe.train.arguments["seed"],
        "samples": fingerprint(splits),
    }


def read_evidence(model_id: str) -> dict[str, Any]:
    """The evidence kept beside the weights, as `write_arguments` takes it; may be empty.

    Raises:
        ModelError: it is there and cannot be read.
    """
    evidence = _read(model_id, EVIDENCE)
    for witness in evidence.values():
        if not (isinstance(witness, dict) and "answer" in witness and isinstance(witness.get("arguments"), dict)):
            raise ModelError(f"{model_id}: {EVIDENCE} is not what training wrote. Take it from the training's folder.")
    return evidence


def read_notes(model_id: str) -> dict[str, Any]:
    """The notes kept beside the weights: {"task": ..., "labels": ..., "pipeline": arguments, "trained_on": as
    `data_notes` gives it}; empty for models that cv_hf did not train.

    Raises:
        ModelError: the notes are there and cannot be read.
    """
    notes = _read(model_id, NOTES)
    for key, kind in (("task", str), ("labels", dict), ("pipeline", dict), ("thresholds", dict), ("trained_on", dict)):
        if key in notes and not isinstance(notes[key], kind):
            raise ModelError(f"{model_id}: {key} in {NOTES} is not what training wrote. Take it from there.")
    return notes


def _write(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _read(model_id: str, name: str) -> dict[str, Any]:
    path = Path(model_id) / name
    if not Path(model_id).is_dir():
        try:
            path = Path(huggingface_hub.hf_hub_download(model_id, name))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
            # Whether the repository is there at all is said by loading the model, with a better message.
            return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({str(error)[:200]}).") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: cannot be read (it holds no object).")
    return values


def _inside_config(processor: Any) -> bool:
    """timm's processor is configured inside config.json, which the model writes."""
    return type(processor).__name__ == "TimmWrapperImageProcessor"
