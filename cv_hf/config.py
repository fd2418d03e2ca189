"""The recipe: what a user writes, checked, with every default in one place.

A recipe is values only. Keys that are not known are refused; `train:` additionally takes every field of
`transformers.TrainingArguments` by its own name, except those that would contradict a key of the recipe
(`REPLACED` names what to write instead).
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import EnumMeta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

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

_STREAMED = "evaluation streams into the task's metrics, so there is nothing to set"
_COMMANDS = "use the command (cv-hf train, eval or predict)"
_HUB = "use hub.repo_id and hub.private, or `cv-hf push`"
REPLACED: dict[str, str] = {
    "output_dir": "use run_dir",
    "per_device_train_batch_size": "use train.batch_size (over all devices)",
    "per_device_eval_batch_size": "use eval.batch_size",
    "auto_find_batch_size": "use train.batch_size and train.gradient_accumulation_steps",
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_private_repo": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "hub_token": "use the HF_TOKEN environment variable",
    "metric_for_best_model": "use eval.metric",
    "greater_is_better": "use eval.metric (each metric knows its direction)",
    "load_best_model_at_end": "use eval.metric (model/ always holds the best checkpoint)",
    "resume_from_checkpoint": "use cv-hf train --resume",
    "do_train": _COMMANDS,
    "do_eval": _COMMANDS,
    "do_predict": _COMMANDS,
    "local_rank": "use cv-hf train --nproc, torchrun or accelerate launch",
    "remove_unused_columns": "use data.columns",
    "label_names": "use data.columns",
    "train_sampling_strategy": "use train.seed (images are shuffled anew every epoch)",
    "length_column_name": "images have no length",
    "prediction_loss_only": _STREAMED,
    "eval_do_concat_batches": _STREAMED,
    "eval_use_gather_object": _STREAMED,
    "eval_accumulation_steps": _STREAMED,
    "include_for_metrics": _STREAMED,
    "batch_eval_metrics": _STREAMED,
    "bf16_full_eval": "use train.bf16 (the published score is always that of the precision pipeline() uses)",
    "fp16_full_eval": "use train.fp16 (the published score is always that of the precision pipeline() uses)",
}
# What other tools call a key.
_USUAL = {
    **dict.fromkeys(("lr", "lr0", "base_lr"), "train.learning_rate"),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "n_epochs"), "train.num_train_epochs"),
    **dict.fromkeys(("batch", "bs", "train_batch_size"), "train.batch_size"),
    **dict.fromkeys(("optimizer", "optimiser"), "train.optim"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "train.lr_scheduler_type"),
    **dict.fromkeys(("imgsz", "img_size", "input_size"), "model.image_size"),
    **dict.fromkeys(("workers", "num_workers"), "train.dataloader_num_workers"),
    **dict.fromkeys(("output", "out_dir", "output_dir"), "run_dir"),
}
_STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _either(expected: str) -> WrapValidator:
    """Say what is expected in one phrase, where pydantic would name each member of the union."""

    def check(value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise PydanticCustomError("either", "{expected}", {"expected": f"should be {expected}"}) from None

    return WrapValidator(check)


Share = Annotated[float, Field(gt=0.0, lt=1.0)]
PerClass = Annotated[int, Field(ge=1)]
# `~` is the home folder, as in a shell; no id of the Hub begins with it.
Place = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser()) if path.startswith("~") else path)]
ImageSize = Annotated[PerClass | tuple[PerClass, PerClass], _either("an integer or [height, width]")]
Scale = Annotated[float, Field(ge=0.25, le=4.0)]
Scales = Annotated[
    tuple[Scale, Scale],
    AfterValidator(lambda scales: tuple(sorted(scales))),
    _either("[least, greatest] factor of the model's input size, as [0.75, 1.25]"),
]
Part = Annotated[
    str | PerClass | Share, _either("the name of a split, a share between 0 and 1, or a number of samples per class")
]
Labels = Annotated[
    list[str] | str | dict[int | str, str],
    _either("a list of names, {id: name} or a file; quote a name that is a number, yes or no"),
]
Augmentation = Annotated[str | dict[str, dict[str, Any] | None], _either("a name or {name: {argument: value}}")]


class ModelConfig(Section):
    """Which checkpoint to start from, and what to change in it."""

    id: Place
    revision: str | None = None
    image_size: ImageSize | None = None
    freeze: Literal["none", "backbone"] = "none"
    config: dict[str, Any] = {}
    trust_remote_code: bool = False


class DataConfig(Section):
    """Which dataset to read, and what cannot be found by itself.

    `splits` maps `train`, `validation` and `test` to a split name of the source, to a share of the training split
    (0.15), or to a number of samples per class (an integer); the last two are held out of training, stratified.
    """

    id: Place
    images: Place | None = None
    masks: Place | None = None
    format: Literal[FORMATS] | None = None  # type: ignore[valid-type]
    config: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "validation", "test"], Part] | None = None
    columns: dict[str, str] = {}
    box_format: Literal["xywh", "xyxy", "cxcywh_norm", "xywh_norm", "xyxy_norm"] | None = None
    labels: Labels | None = None
    stuff: list[str] | None = None
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

    model_config = ConfigDict(extra="allow")

    batch_size: PerClass = 16
    backbone_lr: Annotated[float, Field(gt=0.0)] | None = None
    ema: Share | None = None
    multi_scale: Scales | None = None
    early_stopping: PerClass | None = None
    cache_images: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """The TrainingArguments fields that the recipe sets."""
        return dict(self.model_extra or {})

    @property
    def given(self) -> dict[str, Any]:
        """What the recipe sets: a task's default does not replace a null that stands in it."""
        return self.model_dump(exclude_unset=True)


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
    augment: list[Augmentation] | None = None
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    hub: HubConfig | None = None
    run_dir: str | None = None

    def to_yaml(self) -> str:
        """The recipe as YAML, every value written out, in the order of the documentation."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


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
        values = recipe.model_dump(exclude_unset=True)
    else:
        values = dict(recipe)
    for override in overrides:
        values = _override(values, override)
    if isinstance(recipe, (str, Path)) and values.get("run_dir") is None:
        values["run_dir"] = f"runs/{Path(recipe).stem}"
    # A section whose lines are all commented out reads as null.
    values = {key: value for key, value in values.items() if value is not None}
    try:
        checked = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first_error(error)}") from None
    try:
        arguments = check_training_arguments(checked.train.arguments)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return checked.model_copy(update={"train": TrainConfig(**{**checked.train.given, **arguments})})


def load_section(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> DataConfig:
    """A data section by itself, for the commands that have no recipe; RecipeError as for a whole one.

    Args:
        values: the section's keys; a None is left to its default.
        overrides: `data.key=value` texts.
    """
    whole: dict[str, Any] = {"data": {key: value for key, value in values.items() if value is not None}}
    for override in overrides:
        whole = _override(whole, override)
    if other := whole.keys() - {"data"}:
        raise RecipeError(f"{sorted(other)[0]} is not a key of data; here only data.key=value can be said.")
    try:
        return DataConfig.model_validate(whole["data"])
    except ValidationError as error:
        raise RecipeError(_first_error(error, "data")) from None


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
            raise RecipeError(f"train.{name} is not used here; {REPLACED[name]}.")
        if name not in fields:
            near = _meant(name, [*fields, *TrainConfig.model_fields])
            raise RecipeError(f"train.{_key(name)} is not a known key.{near}")
        if value is False and name in _STRATEGIES:
            value = "no"  # which YAML reads as false
        known = _training_argument_choices().get(name)
        if known and isinstance(value, str) and value not in known:
            near = did_you_mean(value, known)
            raise RecipeError(f"train.{name}: there is no {value!r:.80}, only {_clipped(', '.join(known))}.{near}")
        try:
            checked[name] = fields[name].validate_python(value)
        except ValidationError as error:
            reason = _clipped(error.errors()[0]["msg"])
            raise RecipeError(f"train.{name}: {reason[0].lower()}{reason[1:]} (got {_clipped(repr(value))}).") from None
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


@lru_cache(maxsize=1)
def _training_argument_choices() -> dict[str, list[str]]:
    """What a field can be, where TrainingArguments takes any text and refuses it later."""
    from transformers import TrainingArguments

    return {
        name: [choice.value for choice in part]
        for name, hint in typing.get_type_hints(TrainingArguments).items()
        for part in typing.get_args(hint)
        if isinstance(part, EnumMeta)
    }


_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")} | {None}


class BoundedComposer:
    """What keeps a YAML loader from taking a machine's memory or an hour: before it in the list of base classes.

    A value that an alias repeats must be a scalar: a few lines of aliases of aliases can expand to gigabytes.
    """

    most_values = 100_000
    _values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._values += 1
        if self._values > self.most_values:
            raise yaml.composer.ComposerError(None, None, f"more than {self.most_values} values", event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.events.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            raise yaml.composer.ComposerError(None, None, "an alias (*name) of a list or mapping", event.start_mark)
        if isinstance(node, yaml.ScalarNode) and not node.value.isascii():
            # JSON writes a letter beyond the first plane as two halves, which YAML leaves apart.
            try:
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise yaml.composer.ComposerError(None, None, "half of a letter (\\ud800)", event.start_mark) from None
        return node


class _PlainLoader(BoundedComposer, yaml.SafeLoader):
    """YAML of values only: no aliases (a few lines of them can expand to gigabytes), repeated keys, dates or bytes."""

    yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in _PLAIN}
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag in _PLAIN]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep=deep)
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return mapping


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
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
        raise RecipeError(f"{where}:{line} not valid YAML: {_clipped(getattr(error, 'problem', error))}.") from None
    except (ValueError, LookupError) as error:  # a value that is not of the type that its tag says
        raise RecipeError(f"{where}: not valid YAML: {_clipped(error)}.") from None
    except RecursionError:
        raise RecipeError(f"{where}: nested too deeply.") from None


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{override!r}: an override is written key.sub=value, as in train.batch_size=8.")
    value = _parse_yaml(text, repr(override))
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


def _first_error(error: ValidationError, prefix: str = "") -> str:
    """One line about what is wrong; `prefix` is the section, where only that was validated."""
    errors = error.errors()
    # A key that is not known explains one that is missing.
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    path = [*([prefix] if prefix else []), *(part for part in first["loc"] if part != "[key]")]
    name = ".".join(map(_key, path))
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        section: Any = Recipe
        for key in path[:-1]:
            hint = section.model_fields[key].annotation
            section = next(part for part in (hint, *typing.get_args(hint)) if hasattr(part, "model_fields"))
        return f"{name} is not a known key.{_meant(path[-1], section.model_fields)}{more}"
    if first["type"] == "missing":
        return f"{name} is missing.{more}"
    reason = _clipped(first["msg"].removeprefix("Value error, "))
    if first["type"] in ("model_type", "dict_type"):
        reason = "should be a section of `key: value` lines"
    return f"{name}: {reason[0].lower()}{reason[1:]} (got {_clipped(repr(first['input']))}).{more}"


def _meant(name: str, known: Iterable[str]) -> str:
    """Did you mean: what other tools call so, that name in another section, or the nearest in its own."""
    sections = {"train": TrainConfig, "model": ModelConfig, "data": DataConfig, "eval": EvalConfig}
    places = [f"{section}.{name}" for section, keys in sections.items() if name in keys.model_fields]
    if name in _training_argument_types() and name not in REPLACED:
        places.append(f"train.{name}")
    place = _USUAL.get(name) or next(iter(places), None)
    return f" Did you mean {place!r}?" if place else did_you_mean(name, known)


def _key(key: Any) -> str:
    """A key as it can stand in one line of a terminal."""
    return _clipped(key if str(key).isprintable() else ascii(key))


def _clipped(value: Any, limit: int = 200) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[:limit]}..."
