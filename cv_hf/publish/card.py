"""The model card: what the model is, what it scored and on what, and how to use it.

Names come from a dataset, so nothing of them is trusted: everything is escaped before it stands in Markdown.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cv_hf.config import Recipe
from cv_hf.data import LabelMap
from cv_hf.task import Task


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
    """
    split = "test" if "test" in metrics else "validation"
    scores = {name: metrics[split][name] for name in task.metrics(labels, columns) if name in metrics[split]}
    name = path.parent.resolve().parent.name
    metadata = _metadata(recipe, task, name, split, scores, model_commit, data_commit)
    path.write_text(f"---\n{metadata}\n---\n\n{_body(recipe, task, labels, name, metrics, split, scores)}", "utf-8")


def text(value: Any, limit: int = 80) -> str:
    """A value as inert Markdown on one line: no HTML, link, emphasis, table cell or direction override in it."""
    line = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in str(value))
    line = " ".join(line.split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return re.sub(r"([\\`*_{}\[\]()#+!|~:])", r"\\\1", html.escape(line, quote=False))


def _metadata(
    recipe: Recipe, task: Task, name: str, split: str, scores: Mapping[str, float], model_commit: Any, data_commit: Any
) -> str:
    on_hub = not Path(recipe.data.id).exists()
    results = [
        EvalResult(
            task_type=task.name,
            dataset_type=recipe.data.id if on_hub else "local",
            dataset_name=recipe.data.id if on_hub else Path(recipe.data.id).name,
            dataset_config=recipe.data.config,
            dataset_split=split,
            dataset_revision=data_commit,
            metric_type=metric,
            metric_value=round(value, 6),
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
    recipe: Recipe,
    task: Task,
    labels: LabelMap,
    name: str,
    metrics: Mapping[str, Any],
    split: str,
    scores: Mapping[str, float],
) -> str:
    repo = recipe.hub.repo_id if recipe.hub else "path/to/this/folder"
    rows = "\n".join(f"| {text(metric)} | {value:.4f} |" for metric, value in scores.items())
    per_class = metrics[split].get("per_class", {})
    kinds = list(next(iter(per_class.values()), {}))
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

{text(recipe.model.id)} fine-tuned for {task.name} on {text(recipe.data.id)}, {len(labels.names)} classes.

```python
from transformers import pipeline

model = pipeline("{task.pipeline}", model="{repo}")
print(model("photo.jpg"))
```

## Scores on the {split} split

| metric | value |
|---|---:|
{rows}

Measured on {metrics[split].get("num_samples", "all")} images with these weights, reloaded in float32, and the image
processor saved beside them: the same computation that `pipeline()` does.
{classes}
## Training

`recipe.yaml` in this repository is the whole configuration, every default written out. To train it again:

```bash
pip install cv_hf
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
