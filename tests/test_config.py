"""The recipe: what is taken, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from cv_hf.config import (
    _USUAL,
    REPLACED,
    ModelConfig,
    Recipe,
    TrainConfig,
    check_training_arguments,
    load_recipe,
    load_section,
)
from cv_hf.errors import CvHfError, RecipeError
from cv_hf.tasks import get_task
from cv_hf.training import arguments, progress, resolve, training_arguments

LEAST = {"task": "image-classification", "model": {"id": "user/model"}, "data": {"id": "user/data"}}
FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}


def refused(values: Any, overrides: tuple[str, ...] = ()) -> str:
    """The text of the error that a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(values, overrides)
    return str(caught.value)


def section(name: str, **values: Any) -> dict[str, Any]:
    return {**LEAST, name: {**LEAST.get(name, {}), **values}}


# Keys and values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({**LEAST, "trian": {}}, "trian", "train"),
        ({"task": LEAST["task"], "modle": LEAST["model"], "data": LEAST["data"]}, "modle", "model"),
        (section("model", freez="none"), "model.freez", "freeze"),
        (section("data", split={}), "data.split", "splits"),
        (section("train", learnin_rate=1), "train.learnin_rate", "learning_rate"),
        (section("train", batchsize=1), "train.batchsize", "batch_size"),
        (section("eval", metrics="f1"), "eval.metrics", "metric"),
        (section("hub", repo="user/name"), "hub.repo", "repo_id"),
        (section("train", lr=1), "train.lr", "train.learning_rate"),
        (section("train", epochs=1), "train.epochs", "train.num_train_epochs"),
        (section("train", image_size=32), "train.image_size", "model.image_size"),
        ({**LEAST, "lr": 1}, "lr", "train.learning_rate"),
        ({**LEAST, "batch_size": 1}, "batch_size", "train.batch_size"),
        ({**LEAST, "weight_decay": 1}, "weight_decay", "train.weight_decay"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(values, key, near):
    assert f"recipe: {key} is not a known key. Did you mean {near!r}?" in refused(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({key: LEAST[key] for key in ("task", "model")}, "data is missing."),
        ({**LEAST, "model": {}}, "model.id is missing."),
        ({**LEAST, "model": "user/model"}, "model: should be a section of `key: value` lines (got 'user/model')."),
        (section("model", id=3), "model.id: input should be a valid string (got 3)."),
        (section("model", image_size=[3]), "model.image_size: should be an integer or [height, width] (got [3])."),
        (section("model", image_size=0), "model.image_size: should be an integer or [height, width] (got 0)."),
        (section("model", freeze="head"), "model.freeze: input should be 'none' or 'backbone' (got 'head')."),
        (section("data", splits={"validation": 1.5}), "data.splits.validation: should be the name of a split, a share"),
        (section("data", splits={"valid": "x"}), "input should be 'train', 'validation' or 'test' (got 'valid')."),
        (section("data", splits={"train": 0.5}), "data.splits: train must be the name of a split"),
        (section("data", labels=[False, True]), "quote a name that is a number, yes or no (got [False, True])."),
        (section("data", format="coc"), "data.format: input should be 'hub', 'imagefolder', 'coco'"),
        ({**LEAST, "augment": [3]}, "augment.0: should be a name or {name: {argument: value}} (got 3)."),
        (section("train", batch_size="many"), "train.batch_size: input should be a valid integer"),
        (section("train", batch_size=0), "train.batch_size: input should be greater than or equal to 1 (got 0)."),
        (section("train", learning_rate="fast"), "train.learning_rate: input should be a valid number"),
        (section("train", max_steps=1.5), "train.max_steps: input should be a valid integer"),
        (section("train", optim="adamw_torc"), "train.optim: there is no 'adamw_torc', only adamw_torch, "),
        (section("train", optim="adamw_torc"), "... Did you mean 'adamw_torch'?"),
        (section("train", lr_scheduler_type="cosin"), "train.lr_scheduler_type: there is no 'cosin', only linear, "),
        (section("train", lr_scheduler_type="cosin"), " Did you mean 'cosine'?"),
        (section("train", eval_strategy="never"), "train.eval_strategy: there is no 'never', only no, steps, epoch."),
        (section("train", bf16="maybe"), "train.bf16: input should be a valid boolean"),
        ({**LEAST, "task": "image-clasification"}, "task: input should be 'image-classification', 'object-detection'"),
    ],
)
def test_a_value_of_another_type_is_named(values, message):
    assert message in refused(values)


def test_text_that_is_a_number_becomes_one(tmp_path):
    """YAML 1.1, which PyYAML reads, takes 1e-4 for text."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(LEAST) + "train: {learning_rate: 1e-4, backbone_lr: 1e-5, max_steps: '7'}\n")
    train = load_recipe(file).train
    assert train.arguments == {"learning_rate": 0.0001, "max_steps": 7}
    assert train.backbone_lr == 0.00001


@pytest.mark.parametrize("name", ["eval_strategy", "save_strategy", "logging_strategy"])
def test_a_strategy_of_no_is_a_word(tmp_path, name):
    """YAML 1.1 takes no for false."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(LEAST) + f"train: {{{name}: no}}\n")
    assert load_recipe(file).train.arguments == {name: "no"}
    assert load_recipe(LEAST, [f"train.{name}=no"]).train.arguments == {name: "no"}
    assert "got True" in refused(LEAST, (f"train.{name}=yes",))


def test_a_section_left_empty_is_the_default(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(LEAST) + "train:\n  # batch_size: 8\neval:\n")
    assert load_recipe(file) == load_recipe({**LEAST, "run_dir": "runs/recipe"})


def test_a_section_by_itself_is_refused_in_the_same_words():
    assert load_section({"id": "user/data", "format": None}).id == "user/data"
    with pytest.raises(RecipeError, match=r"^data\.format: input should be 'hub'"):
        load_section({"id": "user/data", "format": "zip"})
    with pytest.raises(RecipeError, match=r"^data\.colums is not a known key\. Did you mean 'columns'"):
        load_section({"id": "user/data", "colums": {}})


# Overrides ----------------------------------------------------------------------------------------------------------


def test_overrides_replace_add_and_are_read_as_yaml():
    given = section("train", batch_size=4)
    overrides = ["train.batch_size=8", "train.learning_rate=1e-3", "data.splits.validation=0.2", "augment=[]"]
    recipe = load_recipe(given, [*overrides, "hub.repo_id=user/name", "model.image_size=[64, 32]", "run_dir=a=b"])
    assert recipe.train.batch_size == 8
    assert recipe.train.arguments == {"learning_rate": 0.001}
    assert recipe.data.splits == {"validation": 0.2}
    assert recipe.augment == []
    assert recipe.hub.repo_id == "user/name"
    assert recipe.model.image_size == (64, 32)
    assert recipe.run_dir == "a=b"
    assert given == section("train", batch_size=4), "the caller's mapping is left alone"
    assert load_recipe(recipe, ["hub=null"]).hub is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size", "an override is written key.sub=value"),
        ("=8", "an override is written key.sub=value"),
        ("train..x=8", "an override is written key.sub=value"),
        ("task.name=x", "task is a value, not a section"),
        ("train.batch_size=[", "not valid YAML"),
        ("train.batch_siz=8", "train.batch_siz is not a known key. Did you mean 'batch_size'?"),
    ],
)
def test_an_override_that_cannot_be_used_is_refused(override, message):
    assert message in refused(LEAST, (override,))


# TrainingArguments --------------------------------------------------------------------------------------------------


def default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def another(field: dataclasses.Field) -> Any:
    """A value of the field's type that is not its default; None where the type does not tell."""
    value = default(field)
    if "dict" in str(field.type):
        return None
    if isinstance(value, bool) or (value is None and "bool" in str(field.type)):
        return not value
    if isinstance(value, float):
        return value + 0.5
    if isinstance(value, int):
        return value + 1 if value >= 0 else 7
    if value is None and "int" in str(field.type):
        return 7
    return 0.5 if value is None and "float" in str(field.type) else None


def built(name: str, value: Any, folder: Path) -> Any:
    """A recipe's TrainingArguments."""
    recipe = resolve(load_recipe(section("train", **{name: value})), get_task(LEAST["task"]))
    return training_arguments(recipe, folder, "accuracy", True)


def plain(name: str, value: Any, folder: Path) -> Any:
    """TrainingArguments by themselves; what they need of other fields is what a recipe sets."""
    needed = {"eval_strategy": "epoch", "save_strategy": "epoch", "use_cpu": not torch.accelerator.is_available()}
    given = {**needed, name: value}
    best = "no" not in (given["eval_strategy"], given["save_strategy"])
    return TrainingArguments(output_dir=str(folder), **given, load_best_model_at_end=best)


def test_a_name_of_other_tools_leads_to_a_key():
    for name, place in _USUAL.items():
        section, _, key = place.rpartition(".")
        assert key in {"": Recipe, "model": ModelConfig, "train": TrainConfig}[section].model_fields.keys() | FIELDS
        assert name not in FIELDS.keys() - REPLACED.keys()


def test_every_name_in_replaced_is_a_field():
    assert REPLACED.keys() - FIELDS.keys() == set()
    assert FIELDS.keys() & TrainConfig.model_fields.keys() == set()
    contradicting = {name for name in FIELDS if name.startswith(("per_device_", "hub_", "do_"))}
    contradicting |= {"output_dir", "push_to_hub", "metric_for_best_model", "greater_is_better", "local_rank"}
    assert len(contradicting) == 16
    assert contradicting <= REPLACED.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_training_arguments_is_passed_or_refused(name, tmp_path):
    """Passed: its default and another value arrive as TrainingArguments themselves would keep them.

    Where there is no accelerator, `use_cpu: false` cannot be had.
    """
    if name in REPLACED:
        message = refused(section("train", **{name: default(FIELDS[name])}))
        assert message == f"recipe: train.{name} is not used here; {REPLACED[name]}."
        return
    # Some fields set environment variables, for Accelerate to read.
    with mock.patch.dict(os.environ):
        for value in (default(FIELDS[name]), another(FIELDS[name])):
            if value is None and default(FIELDS[name]) is not None:
                continue
            if name == "use_cpu" and not value and not torch.accelerator.is_available():
                continue
            try:
                expected = getattr(plain(name, value, tmp_path), name)
            except (TypeError, ValueError, ImportError, NotImplementedError):
                with pytest.raises(RecipeError, match=r"^train: "):
                    built(name, value, tmp_path)
            else:
                assert getattr(built(name, value, tmp_path), name) == expected
                assert check_training_arguments({name: value}) == {name: value}


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: &x [1]\nb: *x\n", "line 2 not valid YAML: aliases (*name) are not allowed."),
        (b"task: a\nmodel: {id: x}\ntask: b\n", "line 3 not valid YAML: 'task' stands twice."),
        (b"model: {id: x, id: y}\n", "line 1 not valid YAML: 'id' stands twice."),
        (b"task: \xff\xfe\n", "the recipe is not UTF-8 text."),
        (b"", "a recipe is `key: value` lines"),
        (b"# nothing but this\n", "a recipe is `key: value` lines"),
        (b"- task\n", "a recipe is `key: value` lines"),
        (b"task: [\n", "line 2 not valid YAML"),
        (b"task: \0\n", "not valid YAML"),
        (b"task: !!python/object/apply:os.system [ls]\n", "line 1 not valid YAML: could not determine a constructor"),
        (b"? [a, b]\n: c\n", "line 1 not valid YAML: found unhashable key."),
        (b"task: !!int x\n", "not valid YAML: invalid literal for int()"),
        (b"task: !!bool x\n", "not valid YAML: 'x'."),
        (b"!!map [a]", "not valid YAML"),
        (b"[" * 5000, "nested too deeply."),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    text = refused(file)
    assert text.startswith(f"{file}:")
    assert message in text
    assert len(text.splitlines()) <= 2


def test_a_recipe_that_is_not_there_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path, "no\0name"):
        assert "the recipe cannot be read. `cv-hf recipes list` shows ready ones" in refused(path)


def test_a_date_is_text(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("task: image-classification\nmodel: {id: a, revision: 2024-02-30}\ndata: {id: b}\n")
    assert load_recipe(file).model.revision == "2024-02-30"


def test_a_recipe_survives_its_own_yaml(tmp_path):
    values = {
        **LEAST,
        "model": {"id": "user/model", "image_size": [64, 48], "config": {"drop": 0.1, "text": "a: b"}},
        "data": {
            "id": "user/data",
            "revision": "1e4",
            "splits": {"validation": 0.2, "test": 3, "train": "tr"},
            "labels": {0: "no", 1: "Äpfel", 2: "#3"},
        },
        "augment": ["HorizontalFlip", {"ColorJitter": {"p": 0.5}}, {"Rotate": None}],
        "train": {"learning_rate": 1e-5, "max_grad_norm": float("inf"), "lr_scheduler_kwargs": {"num_cycles": 1}},
        "hub": {"repo_id": "user/name", "private": True},
        "run_dir": "runs/[a] b",
    }
    recipe = load_recipe(values)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(file) == recipe
    assert list(yaml.safe_load(recipe.to_yaml())) == list(Recipe.model_fields), "in the order of the documentation"


# Whatever it is, a CvHfError of two lines or a recipe ---------------------------------------------------------------


def keys_of(model: Any) -> st.SearchStrategy:
    return st.sampled_from(sorted(model.model_fields)) | st.text(max_size=6) | st.integers()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a/b", "none", "hub"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = {
    name: next(part for part in (hint, *getattr(hint, "__args__", ())) if hasattr(part, "model_fields"))
    for name, hint in ((name, field.annotation) for name, field in Recipe.model_fields.items())
    if "Config" in str(hint)
}
RECIPES = st.fixed_dictionaries(
    {"task": st.just(LEAST["task"]) | VALUES},
    optional={name: st.dictionaries(keys_of(part), VALUES, max_size=4) | VALUES for name, part in SECTIONS.items()},
)


def check_outcome(recipe: Any, overrides: tuple[str, ...] = ()) -> None:
    try:
        loaded = load_recipe(recipe, overrides)
    except CvHfError as error:
        text = str(error)
        assert 1 <= len(text.splitlines()) <= 2, text
        assert len(text) < 1200
        assert text.isprintable() or "\n" in text
    else:
        assert load_recipe(yaml.safe_load(loaded.to_yaml())).to_yaml() == loaded.to_yaml()


@settings(max_examples=300, deadline=None)
@given(RECIPES, st.booleans())
def test_any_mapping_is_a_recipe_or_an_error_of_two_lines(values, complete):
    if complete:
        for name in ("model", "data"):
            values[name] = {**LEAST[name], **(values[name] if isinstance(values.get(name), dict) else {})}
    check_outcome(values)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab:.,= \n-[]{}?!&*#'\"|>%@`~1e\\\0\x1b<")), max_size=40) | st.text())
def test_any_text_is_a_recipe_or_an_error_of_two_lines(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    for content in (text, yaml.safe_dump(LEAST) + text):
        file.write_text(content, encoding="utf-8", errors="surrogatepass", newline="")
        check_outcome(file)
    check_outcome(LEAST, (text,))
    check_outcome(LEAST, (f"train.{text}",))


@pytest.mark.parametrize(("cores", "processes", "workers"), [(2, 1, (0, 1)), (16, 2, (2, 7)), (64, 1, (8, 8))])
def test_workers_are_as_many_as_the_cores_that_the_line_about_waiting_counts_allow(
    monkeypatch, cores, processes, workers
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert f"on {cores} core(s)" in progress.starvation(1.0, 1.0, 0)
    assert tuple(arguments._workers(processes, accelerated) for accelerated in (False, True)) == workers
