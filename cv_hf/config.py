"""The recipe: what a user writes, checked, with every default in one place.

A recipe is values only. Keys that are not known are refused; `train:` additionally takes every field of
`transformers.TrainingArguments` by its own name, except those that would contradict a key of the recipe
(`REPLACED` names what to write instead).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from cv_hf.errors import RecipeError, did_you_mean

TASKS = (
    "image-classification",
    "object-detection",
    "semantic-segmentation",
    "instance-segmentation",
    "panoptic-segmentation",
    "universal-segmentation",
)
FORMATS = ("hub", "imagefolder", "coco", "voc", "yolo", "masks", "panoptic", "parquet")

_STREAMED = "evaluation streams into the task's metrics; there is nothing to set"
_COMMANDS = "the command (cv-hf train, eval or predict)"
_HUB = "hub.repo_id and hub.private, or `cv-hf push`"
REPLACED: dict[str, str] = {
    "output_dir": "run_dir",
    "per_device_train_batch_size": "train.batch_size (over all devices)",
    "per_device_eval_batch_size": "eval.batch_size",
    "auto_find_batch_size": "train.batch_size and train.gradient_accumulation_steps",
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_private_repo": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "hub_token": "the HF_TOKEN environment variable",
    "metric_for_best_model": "eval.metric",
    "greater_is_better": "eval.metric (each metric knows its direction)",
    "load_best_model_at_end": "eval.metric (model/ always holds the best checkpoint)",
    "resume_from_checkpoint": "cv-hf train --resume",
    "do_train": _COMMANDS,
    "do_eval": _COMMANDS,
    "do_predict": _COMMANDS,
    "local_rank": "cv-hf train --nproc, torchrun or accelerate launch",
    "remove_unused_columns": "data.columns",
    "label_names": "data.columns",
    "train_sampling_strategy": "train.seed (images are shuffled anew every epoch)",
    "length_column_name": "nothing: images have no length",
    "prediction_loss_only": _STREAMED,
    "eval_do_concat_batches": _STREAMED,
    "eval_use_gather_object": _STREAMED,
    "eval_accumulation_steps": _STREAMED,
    "include_for_metrics": _STREAMED,
    "batch_eval_metrics": _STREAMED,
    "bf16_full_eval": "train.bf16 (the published score is always that of the precision pipeline() uses)",
    "fp16_full_eval": "train.fp16 (the published score is always that of the precision pipeline() uses)",
}


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Share = Annotated[float, Field(gt=0.0, lt=1.0)]
PerClass = Annotated[int, Field(ge=1)]


class ModelConfig(Section):
    """Which checkpoint to start from, and what to change in it."""

    id: str
    revision: str | None = None
    image_size: PerClass | tuple[PerClass, PerClass] | None = None
    freeze: Literal["none", "backbone"] = "none"
    config: dict[str, Any] = {}
    trust_remote_code: bool = False


class DataConfig(Section):
    """Which dataset to read, and what cannot be found by itself.

    `splits` maps `train`, `validation` and `test` to a split name of the source, to a share of the training split
    (0.15), or to a number of samples per class (an integer); the last two are held out of training, stratified.
    """

    id: str
    images: str | None = None
    masks: str | None = None
    format: Literal[FORMATS] | None = None  # type: ignore[valid-type]
    config: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "validation", "test"], str | PerClass | Share] | None = None
    columns: dict[str, str] = {}
    box_format: Literal["xywh", "xyxy", "cxcywh_norm"] | None = None
    labels: list[str] | str | dict[int | str, str] | None = None
    ignore_index: int | None = None
    max_samples: PerClass | None = None
    on_bad_sample: Literal["skip", "stop"] = "skip"

    @field_validator("splits")
    @classmethod
    def _train_is_named(cls, splits: dict[str, Any] | None) -> dict[str, Any] | None:
        if splits and not isinstance(splits.get("train", ""), str):
            raise ValueError("train must be the name of a split")
        return splits


class TrainConfig(Section):
    """What `transformers.TrainingArguments` lacks; its own fields stand beside these, under their own names."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    batch_size: PerClass = 16
    backbone_lr: Annotated[float, Field(gt=0.0)] | None = None
    ema: Share | None = None
    early_stopping: PerClass | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The TrainingArguments fields that the recipe sets."""
        return dict(self.model_extra or {})


class EvalConfig(Section):
    """`metric` chooses the best checkpoint; null: the task's first."""

    metric: str | None = None
    batch_size: PerClass | None = None


class HubConfig(Section):
    """Where the trained model is pushed."""

    repo_id: str
    private: bool = False


class Recipe(Section):
    """A whole recipe. `task`, `model.id` and `data.id` are required."""

    task: Literal[TASKS]  # type: ignore[valid-type]
    model: ModelConfig
    data: DataConfig
    augment: list[str | dict[str, dict[str, Any] | None]] | None = None
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    hub: HubConfig | None = None
    run_dir: str | None = None

    def to_yaml(self) -> str:
        """The recipe as YAML, every value written out, in the order of the documentation."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(recipe: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: a YAML file, a mapping of the same shape, or a Recipe.
        overrides: `key.sub=value` texts; the value is read as YAML.

    Raises:
        RecipeError: names the key or value at fault, and where it stands.
    """
    where = "recipe"
    if isinstance(recipe, (str, Path)):
        where = str(recipe)
        values = _read_yaml(Path(recipe))
    elif isinstance(recipe, Recipe):
        values = recipe.model_dump(mode="json")
    else:
        values = dict(recipe)
    for override in overrides:
        values = _override(values, override)
    if isinstance(recipe, (str, Path)) and values.get("run_dir") is None:
        values["run_dir"] = f"runs/{Path(recipe).stem}"
    try:
        checked = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first_error(error)}") from None
    try:
        arguments = check_training_arguments(checked.train.arguments)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    own = {name: getattr(checked.train, name) for name in TrainConfig.model_fields}
    return checked.model_copy(update={"train": TrainConfig(**own, **arguments)})


def load_section(values: Mapping[str, Any]) -> DataConfig:
    """A data section by itself, for the commands that have no recipe; RecipeError as for a whole one."""
    try:
        return DataConfig.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise RecipeError(f"data: {_first_error(error)}") from None


def check_training_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as TrainingArguments wants them ("1e-4", which YAML reads as text, becomes a number).

    Raises:
        RecipeError: a field that is not there, that another key replaces, or a value of another type.
    """
    if not values:
        return {}
    fields = _training_argument_types()
    checked = {}
    for name, value in values.items():
        if name in REPLACED:
            raise RecipeError(f"train.{name} is not used here. Use instead: {REPLACED[name]}.")
        if name not in fields:
            near = did_you_mean(name, [*fields, *TrainConfig.model_fields])
            raise RecipeError(f"train.{name} is not a known key.{near}")
        try:
            checked[name] = fields[name].validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise RecipeError(f"train.{name}: {reason[0].lower()}{reason[1:]} (got {value!r}).") from None
    return checked


@lru_cache(maxsize=1)
def _training_argument_types() -> dict[str, TypeAdapter]:
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    config = ConfigDict(arbitrary_types_allowed=True, use_enum_values=True)
    adapters = {}
    for name, field in TrainingArguments.__dataclass_fields__.items():
        if field.init:
            # A dataclass inside (accelerator_config, ...) is written as a mapping and built by Trainer itself.
            hint = hints[name] | dict if "dict" in str(hints[name]) else hints[name]
            adapters[name] = TypeAdapter(Annotated[hint, Field()], config=config)
    return adapters


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases (a few lines of them can expand to gigabytes) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "cannot be read"
        raise RecipeError(
            f"{path}: the recipe {reason}. `cv-hf recipes list` shows ready ones, `cv-hf init DATA` writes one."
        ) from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is `key: value` lines (task, model, data, ...).")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}:{line} not valid YAML: {getattr(error, 'problem', error)}.") from None
    except RecursionError:
        raise RecipeError(f"{where}: nested too deeply.") from None


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{override!r}: an override is written key.sub=value, as in train.batch_size=8.")
    value = _parse_yaml(text, override)
    values = dict(values)
    section = values
    *parents, last = key.split(".")
    for parent in parents:
        below = section.get(parent)
        if below is not None and not isinstance(below, Mapping):
            raise RecipeError(f"{override!r}: {parent} is a value, not a section.")
        section[parent] = dict(below or {})
        section = section[parent]
    section[last] = value
    return values


def _first_error(error: ValidationError) -> str:
    errors = error.errors()
    first = errors[0]
    # pydantic appends the tried type of a union to the path; the user wrote only the keys.
    keys = [str(part) for part in first["loc"]]
    known: type[BaseModel] | None = Recipe
    path = []
    for key in keys:
        path.append(key)
        if known is None or key not in known.model_fields:
            break
        annotation = known.model_fields[key].annotation
        parts = typing.get_args(annotation) or (annotation,)
        known = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
        if known is None and len(keys) > len(path) and first["type"] != "extra_forbidden":
            if not str(keys[len(path)]).isidentifier() or typing.get_origin(annotation) not in (dict, list):
                break
    name = ".".join(path)
    more = f" ({len(errors) - 1} more)" if len({tuple(e["loc"][:2]) for e in errors}) > 1 else ""
    if first["type"] == "extra_forbidden":
        fields = known.model_fields if known else {}
        return f"{name} is not a known key.{did_you_mean(path[-1], fields)}{more}"
    if first["type"] == "missing":
        return f"{name} is missing.{more}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{name}: {reason[0].lower()}{reason[1:]} (got {str(first['input'])[:80]!r}).{more}"
