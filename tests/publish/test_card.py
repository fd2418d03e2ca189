"""The model card: metadata that the Hub reads, and names from a dataset that stay text."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cv_hf.config import Recipe, load_recipe
from cv_hf.data import from_class_names
from cv_hf.publish import write_card
from cv_hf.publish.card import text
from cv_hf.tasks import get_task

TASK = get_task("image-classification")
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
SCORES = {"accuracy": 0.512345678901, "f1_macro": 0.25, "loss": 1.5, "num_samples": 8}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](https://example.com/x.png)",
    "<https://example.com>",
    "https://example.com",
    "[x]: https://example.com",
    "a|b",
    "a\\|b",
    "a\\",
    "`a`",
    "```\na",
    "**a** _b_ ~~c~~",
    "a\nb\r\nc\u2028d",
    "\n\n# title\n\n---\n",
    "&lt;b&gt; &amp;",
    "\u202eevil\u202c",
    "a\x1b[31mb\x00",
    "x" * 10_000,
    "|" * 300,
    "",
    "---",
    "- a",
    "1. a",
    "> a",
]
LABELS = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=60), st.text(alphabet=list("<>[]()!|\\`*_~#&;:/-\n ax1."), max_size=60)
)


def recipe(**data: Any) -> Recipe:
    values = {"task": TASK.name, "model": {"id": "user/base"}, "data": {"id": "user/data", **data}}
    return load_recipe(values)


def card(folder: Path, labels: list[str], what: Recipe | None = None, name: str = "run", **metrics: Any) -> Path:
    """Write a card as a run of that name would, with these labels, and return its path."""
    path = folder / name / "model" / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    per_class = {label: {"precision": 0.5, "recall": 1.0, "support": 4} for label in labels}
    names = [label or "empty" for label in labels]
    scored = {"train": {}, "test": {**SCORES, "per_class": per_class, **metrics.pop("test", {})}, **metrics}
    columns = ["image", "label"]
    write_card(
        path,
        what or recipe(),
        TASK,
        from_class_names(names),
        scored,
        columns=columns,
        model_commit=COMMIT,
        data_commit=COMMIT[::-1],
    )
    return path


def tokens(markdown: str) -> list:
    """The Markdown's tokens, those within lines too."""
    found = []
    for token in MARKDOWN.parse(markdown):
        found += [token, *(token.children or [])]
    return found


def plain(markdown: str) -> str:
    """What a reader sees of one paragraph."""
    inline = [token for token in MARKDOWN.parse(markdown) if token.type == "inline"]
    return "".join(child.content for token in inline for child in token.children)


def body(path: Path) -> str:
    return ModelCard.load(path).text


@pytest.mark.parametrize("label", HOSTILE)
def test_a_hostile_name_is_text(label):
    kinds = {token.type for token in tokens(f"see {text(label)} here")}
    assert kinds <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}


@settings(max_examples=300, deadline=None)
@given(LABELS)
@example("a&b")
@example("1 < 2 > 0, a_b*c")
def test_a_reader_sees_the_name_itself(label):
    shown = plain(f"x{text(label)}x")[1:-1]
    assert "\n" not in text(label)
    assert len(shown) <= 80
    seen = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in label).split())
    if len(seen) <= 80 and seen.isascii():
        assert shown == seen


def test_directions_and_control_characters_are_gone():
    assert text("\u202eevil\u2066 \x1b[2Jname\x00") == r"evil \[2Jname"


def test_bare_addresses_are_no_links():
    """The Hub's Markdown, unlike the one here, makes links of these two."""
    assert text("see WWW.example.com") == r"see WWW\.example.com"
    assert text("https://example.com") == r"https\://example.com"


@settings(max_examples=60, deadline=None)
@given(st.lists(LABELS, min_size=1, max_size=4, unique=True))
def test_labels_add_rows_to_the_table_and_nothing_else(tmp_path_factory, labels):
    path = card(tmp_path_factory.getbasetemp(), [label or "empty" for label in labels], name="fuzzed")
    harmless = card(tmp_path_factory.getbasetemp(), [f"label {n}" for n in range(len(labels))], name="harmless")
    ours, plainly = (MARKDOWN.parse(body(file)) for file in (path, harmless))
    assert [token.type for token in ours] == [token.type for token in plainly]
    cells = [token.content for before, token in pairwise(ours) if before.type == "td_open"]
    per_class = [cells[start : start + 4] for start in range(len(cells) - 4 * len(labels), len(cells), 4)]
    assert [row[1:] for row in per_class] == [["0.5000", "1.0000", "4"]] * len(labels)
    kinds = {token.type for token in tokens(body(path))}
    assert kinds.isdisjoint({"html_block", "html_inline", "link_open", "image", "em_open", "strong_open", "s_open"})


IDS = st.sampled_from(["yes", "null", "1e5", "123", "2024-01-01", "a/yes", "---", "a/~b"])
IDS |= st.from_regex(r"[A-Za-z0-9._-]{1,9}(/[A-Za-z0-9._-]{1,9})?", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(
    model=IDS,
    data=IDS,
    config=st.none() | st.text(max_size=20),
    name=st.text(alphabet=st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
)
@example(model="a", data="b", config="\n---\n", name="x\n---\ny: 1")
@example(model="a", data="b", config="a\x85b", name="\x85")
@example(model="a", data="b", config="[", name="'\"")
def test_front_matter_parses_whatever_the_names(tmp_path_factory, model, data, config, name):
    values = {"task": TASK.name, "model": {"id": model}, "data": {"id": data, "config": config}}
    if name in (".", "..") or any(os.path.exists(part) for part in (model, data)):
        return
    path = card(tmp_path_factory.getbasetemp(), ["a", "b"], load_recipe(values), name=name)
    metadata = path.read_text(encoding="utf-8").split("\n---\n")[0].removeprefix("---\n")
    index = yaml.safe_load(metadata)["model-index"][0]
    assert index["name"] == (" ".join(name.split()) if name.isprintable() else index["name"])
    assert index["name"].isprintable()
    loaded = ModelCard.load(path)
    assert loaded.data.base_model == model
    assert loaded.data.datasets == [data]
    assert {(result.dataset_type, result.dataset_name) for result in loaded.data.eval_results} == {(data, data)}
    if config and config.isprintable():
        assert loaded.data.eval_results[0].dataset_config == " ".join(config.split())
    assert loaded.text.lstrip().startswith("# ")


def test_metadata_holds_the_scores_as_measured(tmp_path):
    data = ModelCard.load(card(tmp_path, ["a", "b"])).data
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        name: SCORES[name] for name in ("accuracy", "f1_macro", "loss")
    }
    for result in data.eval_results:
        assert (result.task_type, result.dataset_split) == ("image-classification", "test")
        assert result.dataset_revision == COMMIT[::-1]
    assert data.pipeline_tag == "image-classification"
    assert data.library_name == "transformers"


def test_commits_are_named(tmp_path):
    words = body(card(tmp_path, ["a"]))
    assert f"user/base (commit `{COMMIT}`) fine-tuned" in words
    assert f"on user/data (commit `{COMMIT[::-1]}`)" in words


def test_a_score_that_cannot_be_told_is_left_out(tmp_path):
    data = ModelCard.load(card(tmp_path, ["a", "b"], test={"f1_macro": None})).data
    assert [result.metric_type for result in data.eval_results] == ["accuracy", "loss"]


def test_paths_of_the_machine_stay_out(tmp_path):
    (tmp_path / "secret" / "pets").mkdir(parents=True)
    values = {"task": TASK.name, "model": {"id": str(tmp_path / "secret")}, "data": {"id": f"{tmp_path}/secret/pets/"}}
    path = card(tmp_path, ["a", "b"], load_recipe(values))
    assert str(tmp_path) not in path.read_text()
    assert "secret" in body(path)
    data = ModelCard.load(path).data
    assert data.base_model is None
    assert data.datasets is None
    assert {(result.dataset_type, result.dataset_name) for result in data.eval_results} == {("local", "pets")}


def test_findings_are_listed_and_inert(tmp_path):
    findings = {"unreadable-image": {"count": 2, "files": ["<b>.png", "a|b.png"]}}
    words = body(card(tmp_path, ["a"], findings=findings))
    assert r"- unreadable-image: 2 (&lt;b&gt;.png, a\|b.png)" in words
    assert "html_inline" not in {token.type for token in tokens(words)}
