"""Checkpoints that are complete or absent, and what a recipe may change before training goes on from one.

A checkpoint is written aside (`.checkpoint-N.partial`), its manifest (size and SHA-256 of each file) last; all is on
the disk before it gets its name. Whatever is removed loses its name first. So a process killed at any moment leaves no
folder named `checkpoint-N` that is not whole, and what other causes have damaged is told from its manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from cv_hf.config import TrainConfig
from cv_hf.errors import RecipeError, causes

MANIFEST = "manifest.json"
_NAME = re.compile(r"(\.?)checkpoint-(\d+)(\.partial)?")

# What a resumed run may set otherwise, by the reason why. A change of anything else would make it another training.
_LENGTH = "the learning rate follows the new length from here on"
_SEEN = "it changes what is measured and kept, not what is learnt"
_MACHINE = "it changes how fast the machine computes the same steps, and their last digits at most"
_AFTER = "it is used after training"
_WHERE = "the samples themselves are compared"
MAY_CHANGE: dict[str, str] = {
    **dict.fromkeys(("run_dir", "data.id", "data.images", "data.masks"), _WHERE),
    "hub": _AFTER,
    "model.trust_remote_code": "the weights are those of the checkpoint",
    "data.on_bad_sample": "it says whether to go on",
    "eval.batch_size": _SEEN,
    "train.early_stopping": "it says when to stop",
    **dict.fromkeys(("train.num_train_epochs", "train.max_steps"), _LENGTH),
    **{
        f"train.{name}": _SEEN
        for name in (
            *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
            *("log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "include_num_input_tokens_seen"),
            *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics", "debug"),
            *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "logging_nan_inf_filter"),
            *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
            "enable_jit_checkpoint",
        )
    },
    **{
        f"train.{name}": _MACHINE
        for name in (
            *("gradient_accumulation_steps", "activation_checkpointing", "activation_checkpointing_kwargs"),
            *("gradient_checkpointing", "gradient_checkpointing_kwargs", "bf16", "fp16", "tf32", "full_determinism"),
            *("torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "use_cpu"),
            *(
                "dataloader_num_workers",
                "dataloader_pin_memory",
                "dataloader_persistent_workers",
                "dataloader_in_order",
            ),
            *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_find_unused_parameters"),
            "cache_images",
            *("ddp_bucket_cap_mb", "ddp_backend", "ddp_timeout", "ddp_static_graph"),
        )
    },
}


def partial_of(final: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return final.with_name(f".{final.name}.partial")


def seal(folder: Path, notes: Mapping[str, Any]) -> None:
    """Write the manifest of a folder, and see to it that all of the folder is on the disk.

    Args:
        notes: what else the manifest holds, JSON-ready.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    write_text(folder / MANIFEST, json.dumps({**notes, "files": files}, indent=1) + "\n")
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def put_in_place(partial: Path, final: Path) -> None:
    """Give a sealed folder its name."""
    remove(final)
    os.replace(partial, final)
    _sync(final.parent)


def remove(folder: Path) -> None:
    """Take the name from a folder, then the rest of it."""
    if folder.exists():
        nameless = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(nameless, ignore_errors=True)
        os.replace(folder, nameless)
        shutil.rmtree(nameless, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove what saving and removing have left when they were cut short."""
    for left in folder.glob(".checkpoint-*"):
        shutil.rmtree(left, ignore_errors=True)


def rotate(folder: Path, newest: Path, best: str | None, limit: int | None) -> None:
    """Remove the oldest checkpoints beyond a limit, never the newest nor the best.

    Args:
        newest: the one just written; those of later steps, which could not be used, are left for training to replace.
        best: the best one's path.
    """
    if not limit or limit < 1:
        return
    found = {int(match[2]): path for path, match in _checkpoints(folder) if not match[1]}
    last = int(newest.name.rpartition("-")[2])
    kept = {newest.name, *([Path(best).name] if best else [])}
    for step in sorted((step for step in found if step < last), reverse=True):
        if found[step].name in kept:
            continue
        if len(kept) < limit:
            kept.add(found[step].name)
        else:
            remove(found[step])


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where it is complete."""
    if not folder.is_dir():
        return "it is not there"
    try:
        manifest = read_manifest(folder)
        files = [(name, said["size"], said["sha256"]) for name, said in manifest["files"].items()]
    except FileNotFoundError:
        return "saving it was not finished" if folder.name.startswith(".") else f"it has no {MANIFEST}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, size, _ in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of its {size} bytes"
    # Sizes of all first: they are quick to compare.
    for name, _, digest in files:
        try:
            if _sha256(folder / name) != digest:
                return f"{name} is not what was written (its SHA-256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def newest_checkpoint(folder: Path, echo: Callable[[str], None] | None = None, *, writes: bool = True) -> str | None:
    """The newest complete checkpoint of a run, or None.

    Args:
        folder: the run's `checkpoints/`.
        echo: told of each newer one that was passed over, and why.
        writes: give one that was written whole, and lost the race for its name, that name.
    """
    found = sorted(_checkpoints(folder), key=lambda one: (-int(one[1][2]), one[1][1]))
    for path, match in found:
        reason = fault(path)
        if reason is None:
            final = path.with_name(f"checkpoint-{match[2]}")
            if path == final or not writes:
                return str(path)
            put_in_place(path, final)
            return str(final)
        if echo is not None:
            echo(f"passed over {path}: {reason}")
    return None


def size_of(folder: Path) -> int:
    """The bytes of all files of a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: its notes, and `files`."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def check_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path, echo: Callable[[str], None]
) -> None:
    """Compare the notes of a checkpoint with those of the run that would go on from it, field by field.

    Args:
        before, now: {"recipe": the resolved recipe, "samples": what `data` told of the splits}; what one of them lacks
            is not compared.
        checkpoint: where `before` is from.
        echo: told of each change that training goes on with.

    Raises:
        RecipeError: names what may not change, with both values.
    """
    run = checkpoint.parent.parent
    changed = _differences(before.get("recipe"), now.get("recipe"))
    refused = {name: values for name, values in changed.items() if name not in MAY_CHANGE}
    if refused:
        words = "; ".join(f"{name} was {_shown(old)}, is {_shown(new)}" for name, (old, new) in refused.items())
        raise RecipeError(
            f"{checkpoint}: training cannot go on as another: {words}.\n"
            f"Go on as it was: cv-hf train {run / 'recipe.yaml'} --resume; or start a new run, in another --run-dir."
        )
    if "samples" in before and "samples" in now and before["samples"] != now["samples"]:
        split = next(name for name in before["samples"] if before["samples"][name] != now["samples"].get(name))
        old, new = (notes["samples"].get(split, {}).get("count", 0) for notes in (before, now))
        raise RecipeError(
            f"{checkpoint}: the data is not what it was: {split} had {old} samples, and has {new}"
            f"{' of other names or classes' if old == new else ''}.\n"
            "Bring back the data as it was, or start a new run, in another --run-dir."
        )
    if (before.get("recipe") or {}).get("train", {}).get("save_only_model"):
        raise RecipeError(
            f"{checkpoint}: was saved with train.save_only_model, so training cannot go on from it.\n"
            "Start a new run, in another --run-dir."
        )
    for name, (old, new) in changed.items():
        if name != "run_dir":
            echo(f"resuming with {name} {_shown(new)} instead of {_shown(old)}: {MAY_CHANGE[name]}")


def write_text(path: Path, text: str) -> None:
    """Write a file aside, sync it and put it in place in one step, so that it is never seen half written."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)


def disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space, whichever library tells."""
    return any(
        getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # safetensors and torch.save have exceptions of their own, the latter without a reason.
        or re.search(
            r"No space left|Disk quota|File too large|os error (28|122|27)\b|PytorchStreamWriter|iostream error",
            str(cause),
        )
        or re.search(r"inline_container.*unexpected pos", str(cause), re.DOTALL)
        for cause in causes(error)
    )


def _differences(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Each key, as `train.seed`, that two recipes set otherwise, with both values."""
    if before is None or now is None:
        return {}
    old, new = _flat(before), _flat(now)
    names = [*old, *(name for name in new if name not in old)]
    pairs = {name: (old.get(name, _default(name)), new.get(name, _default(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for section, values in recipe.items():
        if isinstance(values, Mapping) and section != "hub":
            flat.update({f"{section}.{name}": value for name, value in values.items()})
        else:
            flat[section] = values
    return flat


def _default(name: str) -> Any:
    """What a key means that is not there."""
    name = name.removeprefix("train.")
    return getattr(
        TrainConfig.model_fields.get(name) or TrainingArguments.__dataclass_fields__.get(name), "default", None
    )


def learnt(train: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `train` section decides what is learnt, and not only how fast."""
    return {name: value for name, value in train.items() if MAY_CHANGE.get(f"train.{name}") != _MACHINE}


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checkpoints(folder: Path) -> list[tuple[Path, re.Match]]:
    if not folder.is_dir():
        return []
    found = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir() if path.is_dir()]
    return [(path, match) for path, match in found if match and bool(match[1]) == bool(match[3])]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows does not open folders
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
