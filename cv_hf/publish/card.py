"""The model card: what the model is, what it scored and on what, and how to use it.

Names come from a dataset, so nothing of them is trusted: everything is escaped before it stands in Markdown.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cv_hf.config import Recipe
from cv_hf.data import LabelMap
from cv_hf.models import uses_dinat
from cv_hf.task import Task

# Transformers' own DiNAT cannot run without a package that no longer fits it.
_DINAT = "import cv_hf\n\ncv_hf.enable_dinat()\n\n"
# How the card's example names the model until a push gives it a repository.
THIS_FOLDER = 'model="path/to/this/folder"'


def write_card(
    path: Path,
    recipe: Recipe,
    task: Task,
    labels: LabelMap,
    metrics: Mapping[str, Any],
    *,
    columns: Sequence[str],
    model_commit: str | None,
    data_commit: str | None,
    arguments: Mapping[str, Any] = {},
) -> None:
    """Write a README.md with the Hub's metadata.

    Args:
        path: the file to write.
        recipe: the resolved recipe.
        task: its task.
        labels: the label map.
        metrics: as in metrics.json.
        columns: the canonical columns, which decide the metrics.
        model_commit: the base model's commit on the Hub, or None for a folder.
        data_commit: the dataset's commit on the Hub, or None for files.
        arguments: what pipeline() is to be called with, found on the validation split.
    """
    split = "test" if "test" in metrics else "validation"
    # A metric is None where the split cannot tell it (no positive sample of any class).
    measured = {name: metrics[split].get(name) for name in task.metrics(labels, columns)}
    scores = {name: value for name, value in measured.items() if value is not None}
    name = _one_line(path.parent.resolve().parent.name) or task.name
    metadata = _metadata(recipe, task, name, split, scores, data_commit)
    body = _body(
        task,
        labels,
        name,
        metrics,
        split,
        scores,
        model=_origin(recipe.model.id, model_commit),
        data=_origin(recipe.data.id, data_commit),
        prelude=_DINAT if _is_dinat(path.parent) else "",
        call="".join(f", {key}={value!r}" for key, value in arguments.items()),
    )
    path.write_text(f"---\n{metadata}\n---\n\n{body}", "utf-8")


def _is_dinat(folder: Path) -> bool:
    file = folder / "config.json"
    return file.is_file() and uses_dinat(json.loads(file.read_text(encoding="utf-8")))


def text(value: Any, limit: int = 80) -> str:
    """A value as inert Markdown on one line: no HTML, link, emphasis, table cell or direction override in it."""
    line = _one_line(value)
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    line = re.sub(r"([\\`*_{}\[\]()#+!|~:])", r"\\\1", html.escape(line, quote=False))
    # The Hub makes links of bare addresses; those with a scheme have lost their colon above.
    return re.sub(r"(?i)\bwww(?=\.)", r"\g<0>\\", line)


def _one_line(value: Any) -> str:
    """Without control characters, line ends and direction overrides."""
    return " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in str(value)).split())


def _public(id: str) -> str:
    """An id of the Hub as it is; of a path of this machine its last part alone."""
    return _one_line(Path(id).resolve().name if Path(id).exists() else id)


def _origin(id: str, commit: str | None) -> str:
    return f"{text(_public(id))} (commit `{commit}`)" if commit else text(_public(id))


def _metadata(
    recipe: Recipe, task: Task, name: str, split: str, scores: Mapping[str, float], data_commit: str | None
) -> str:
    on_hub = not Path(recipe.data.id).exists()
    results = [
        EvalResult(
            task_type=task.name,
            dataset_type=recipe.data.id if on_hub else "local",
            dataset_name=_public(recipe.data.id),
            dataset_config=recipe.data.config and _one_line(recipe.data.config),
            dataset_split=split,
            dataset_revision=data_commit,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in scores.items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task.pipeline,
        tags=["cv_hf", "vision"],
        base_model=recipe.model.id if not Path(recipe.model.id).exists() else None,
        datasets=[recipe.data.id] if on_hub else None,
        metrics=[name for name in scores if name != "loss"],
        model_name=name,
        eval_results=results,
    ).to_yaml()


def _body(
    task: Task,
    labels: LabelMap,
    name: str,
    metrics: Mapping[str, Any],
    split: str,
    scores: Mapping[str, float],
    *,
    model: str,
    data: str,
    call: str,
    prelude: str,
) -> str:
    rows = "\n".join(f"| {text(metric)} | {value:.4f} |" for metric, value in scores.items())
    per_class = metrics[split].get("per_class", {})
    # A threshold that was chosen on the split of the scores, and the F1 that it has there, would flatter.
    kinds = list(next(iter(per_class.values()), {}))
    kinds = [kind for kind in kinds if kind not in ("threshold", "f1")] if "threshold" in kinds else kinds
    table = [
        f"| {text(label)} | " + " | ".join(_number(values[kind]) for kind in kinds) + " |"
        for label, values in per_class.items()
    ]
    classes = (
        "\n## Each class\n\n"
        + f"| class | {' | '.join(text(kind) for kind in kinds)} |\n|---|{'---:|' * len(kinds)}\n"
        + "\n".join(table)
        + "\n"
        if table
        else ""
    )
    findings = "".join(
        f"- {text(code)}: {found['count']} ({', '.join(text(file) for file in found['files'][:5])})\n"
        for code, found in metrics.get("findings", {}).items()
    )
    return f"""# {text(name)}

{model} fine-tuned for {task.name} on {data}, {len(labels)} classes.

```python
{prelude}from transformers import pipeline

model = pipeline("{task.pipeline}", {THIS_FOLDER})
print(model("photo.jpg"{call}))
```
{f"{chr(10)}{task.call_note}{chr(10)}" if call and task.call_note else ""}
## Scores on the {split} split

| metric | value |
|---|---:|
{rows}

Measured on {metrics[split].get("num_samples", "all")} images with these weights, reloaded in float32, and the image
processor saved beside them: the same computation that `pipeline()` does.
{classes}
## Training

`recipe.yaml` in this repository is the whole configuration, every default written out. To train it again, with cv_hf
installed and `data.id` where the data is:

```bash
cv-hf train recipe.yaml
```
{f"{chr(10)}## Findings in the data{chr(10)}{chr(10)}{findings}" if findings else ""}
## Limits

The scores hold for images like those of the dataset. They say nothing of other cameras, light, places or people, and
nothing of groups that the dataset does not tell apart; measure on your own data before you rely on them.
"""


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
