"""`model/`: weights, configuration and processor as Transformers reads them, and `cv_hf.json` with what it has no place
for: the task and the label map."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from cv_hf.data import LabelMap
from cv_hf.errors import ModelError

NOTES = "cv_hf.json"


def save_model_folder(model: Any, processor: Any, task: str, labels: LabelMap, folder: Path) -> Path:
    """Write the folder aside and put it in place in one step, so that it is never seen half written."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if not _inside_config(processor):
        processor.save_pretrained(partial)
    notes = {"task": task, "labels": labels.to_dict()}
    (partial / NOTES).write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def write_arguments(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Add to the notes what pipeline() is to be called with: found by scoring, which needs the folder first."""
    notes = {**read_notes(str(folder)), "pipeline": dict(arguments)}
    partial = folder / f".{NOTES}.partial"
    partial.write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / NOTES)


def read_notes(model_id: str) -> dict[str, Any]:
    """The notes kept beside the weights, {"task": ..., "labels": ..., "pipeline": arguments}; empty for models that cv_hf did not train.

    Raises:
        ModelError: the notes are there and cannot be read.
    """
    path = Path(model_id) / NOTES
    if not Path(model_id).is_dir():
        try:
            path = Path(huggingface_hub.hf_hub_download(model_id, NOTES))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
            # Whether the repository is there at all is said by loading the model, with a better message.
            return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from None


def _inside_config(processor: Any) -> bool:
    """timm's processor is configured inside config.json, which the model writes."""
    return type(processor).__name__ == "TimmWrapperImageProcessor"
