"""Names that want to be code, archives that want out, and secrets: what a run prints and leaves behind.

Files that are damaged are in tests/data/test_fuzz.py, names in Markdown and its metadata in tests/publish/test_card.py.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from cv_hf.cli import main
from cv_hf.config import load_recipe
from cv_hf.errors import CvHfError, DataError, printable, printable_lines, redacted
from cv_hf.inference import images_dataset, load_trained
from cv_hf.publish import read_evidence
from cv_hf.transforms import class_colour
from cv_hf.transforms.pictures import captioned
from tests.data.samples import png
from tests.data.test_hub_reader import load
from tests.hub import LoopbackHub

LABELS = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "\"quoted\" 'label' \\",
    "line\nbreak\r\nTo go on: rm -r ~",
    "\u202ertl\u2066",
    "x" * 10_000,
    "\x1b[2J\x07\x9b31m",
    "a: b # c",
    "---\n- x",
    "|a|b|",
    "🦊 é",
    "../../etc/passwd",
    "*a &b {c} !!python/x",
    "{{x}} ${x} $(x) %s",
]
FILES = [
    "a\nb.png",
    "\x1b[2Jx.png",
    "\u202egnp.exe.png",
    "😀" * 60 + ".png",
    "<b>'\".png",
    "x" * 240 + ".png",
    "[x](y).png",
]
# What moves a cursor, colours, rings, or turns a line around.
ACTING = {*map(chr, range(32)), *map(chr, range(127, 160)), *"\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e"}
ACTING |= set("\u2066\u2067\u2068\u2069") - {"\n"}


def harmless(text: str) -> bool:
    return not (set(text) & (ACTING - {"\n"}))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """A folder with `data`, whose labels are hostile, and `pictures`, whose names are."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "data").mkdir()
    rows = []
    for number, label in enumerate(LABELS):
        for each in range(4):
            (folder / "data" / f"{number}_{each}.png").write_bytes(png(10 * number + each))
            rows.append({"file_name": f"{number}_{each}.png", "label": label})
    (folder / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pictures").mkdir()
    for name in FILES:
        (folder / "pictures" / name).write_bytes(png(1))
    return folder


def said(capsys: pytest.CaptureFixture[str], *argv: str | Path, code: int = 0) -> str:
    """What a command prints to standard output; and it ended with this code."""
    assert main([str(word) for word in argv]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def test_hostile_labels_from_init_to_push(work, tiny, hub, capsys):
    data, run, recipe = work / "data", work / "run", work / "recipe.yaml"
    printed = said(capsys, "init", data, "--out", recipe, "--model", tiny("vit"))
    assert "<script>" in printed
    printed += said(capsys, "train", recipe, "train.max_steps=1", "--run-dir", run, f"data.labels={json.dumps(LABELS)}")
    assert load_recipe(run / "recipe.yaml").data.labels == LABELS, "the whole recipe, labels in it, is read back"
    printed += said(capsys, "eval", run, "--data", data, "--json", work / "scores.json")
    printed += said(capsys, "check", data, "--html", work / "check.html")
    printed += said(capsys, "verify", run, "--data", data, "--limit", "2")
    printed += said(capsys, "predict", run, work / "pictures", "--out", work / "out")
    printed += said(capsys, "push", run, "tester/hostile")
    assert harmless(printed)
    assert not any(line.startswith("To go on") for line in printed.splitlines()), "no line is a label's own"
    # The command that verifies has the labels of the recipe.
    assert max(len(line) for line in printed.splitlines() if not line.startswith("  cv-hf verify")) < 2000

    notes = json.loads((run / "model" / "cv_hf.json").read_text(encoding="utf-8"))
    assert notes["labels"]["names"] == LABELS
    card_is_inert((run / "model" / "README.md").read_text(encoding="utf-8"))
    card_is_inert(hub.repo("tester/hostile").files()["README.md"].decode())
    page_is_inert((work / "check.html").read_text(encoding="utf-8"), [label for label in LABELS if "\r" not in label])
    for page in run.rglob("*.html"):
        page_is_inert(page.read_text(encoding="utf-8"), [])
    predictions = json.loads((work / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert {Path(file).name for file in predictions} == set(FILES)
    pictures = sorted((work / "out").glob("*.png"))
    assert len(pictures) == len(FILES)
    for path in pictures:
        assert path.name.replace("_", "").replace("-", "").replace(".", "").isalnum()
        assert len(os.fsencode(path.name)) < 256
        Image.open(path).load()
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)
    written = [path for path in run.rglob("*") if path.is_file()]
    assert all(harmless(path.name) and len(path.name) < 100 for path in written)


def card_is_inert(text: str) -> None:
    """Metadata and Markdown as the Hub reads them, in which no label is a tag, a link or a row."""
    card = ModelCard(text)
    assert yaml.safe_load(card.data.to_yaml())
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [token for block in markdown.parse(card.text) for token in (block, *(block.children or []))]
    kinds = {token.type for token in tokens}
    assert kinds.isdisjoint({"html_block", "html_inline", "link_open", "image"})
    assert sum(token.type == "tr_open" for token in tokens) >= len(LABELS)
    assert harmless(card.text)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_is_inert(text: str, labels: list[str]) -> None:
    page = Page()
    page.feed(text)
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed", "form", "b"})
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    shown = "".join(page.words)
    assert [label for label in labels if label not in shown] == []


def test_errors_are_harmless_whatever_they_name(work, tiny, capsys):
    model, recipe = tiny("vit"), work / "evil.yaml"
    capsys.readouterr()
    recipe.write_text("task: image-classification\nmodel: {id: a}\ndata: {id: b}\n")
    commands = [
        ("train", recipe, "da\x1b[2Jta.x=1"),
        ("train", recipe, "data.x\u202e=1"),
        ("eval", model, "--data", "no\x1b[31m\n/such/folder"),
        ("predict", model, "no\x07.png", "--task", "image-classification"),
        ("recipes", "show", "\u202etxt"),
        ("push", "no\x1b]0;title\x07", "a/b"),
    ]
    for argv in commands:
        assert main([str(word) for word in argv]) == 2
        printed = capsys.readouterr()
        assert harmless(printed.out + printed.err), ascii(printed.err)
        assert printed.err.startswith("cv-hf: ")


def test_file_names_that_are_no_text_are_refused(tmp_path, capsys):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(name, "wb") as file:
        file.write(png(1))
    with pytest.raises(DataError, match=r"\\udcff\\udcfe.png: the name of this file is not UTF-8. Rename it."):
        images_dataset([tmp_path])


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_printable_text_acts_on_no_terminal_and_loses_nothing(text):
    shown = printable(text)
    assert shown.isprintable()
    assert printable_lines(text).count("\n") == text.count("\n")
    assert text.isprintable() == (shown == text)
    assert str(CvHfError(text)) == printable_lines(text)
    quoted = json.dumps(text, ensure_ascii=False)
    assert json.loads(printable_lines(quoted)) == json.loads(quoted), "JSON on a terminal stays the same JSON"


@pytest.mark.parametrize("label", LABELS, ids=range(len(LABELS)))
def test_pictures_take_any_label(label):
    assert len(class_colour(label, 2)) == 7
    assert captioned(Image.new("RGB", (8, 8)), [label, label], class_colour(label)).width == 200


# Models ---------------------------------------------------------------------------------------------------------------


def _places(value: object, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*path, key))


@pytest.mark.parametrize("name", ["cv_hf.json", "evidence.json", "config.json", "preprocessor_config.json"])
def test_whatever_a_model_says_of_itself_is_an_error_of_two_lines(name, tiny, tmp_path):
    """Each value of its files replaced in turn; weights and code are in tests/models/test_build.py."""
    folder = tmp_path / "model"
    shutil.copytree(tiny("vit"), folder)
    names = [f"class_{number}" for number in range(5)]
    labels = {"names": names, "sources": [0, 1, 2, 3, 4], "ignore_index": None}
    notes = {"task": "image-classification", "labels": labels, "pipeline": {"top_k": 3}}
    (folder / "cv_hf.json").write_text(json.dumps(notes))
    (folder / "evidence.json").write_text(json.dumps({"abc": {"answer": [], "arguments": {"top_k": 1}}}))
    load_trained(folder)
    whole = (folder / name).read_text()
    changed = [b"", b"\xff\xfe", b"[" * 5000, b"{", b"null", b"[]", b'"x"', b"1"]
    places = list(_places(json.loads(whole)))
    for *above, last in places if len(places) < 25 else places[::3]:
        for value in (None, -1, [], {"a": 1}):
            content = json.loads(whole)
            container = content
            for key in above:
                container = container[key]
            container[last] = value
            changed.append(json.dumps(content).encode())
    refusals = 0
    for content in changed:
        (folder / name).write_bytes(content)
        try:
            load_trained(folder)
            read_evidence(str(folder))
        except CvHfError as error:
            refusals += len(str(error).splitlines()) <= 2
            continue
        refusals += 1
    assert refusals == len(changed)


# Archives -------------------------------------------------------------------------------------------------------------


def _zip(name: str, secret: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        rows = []
        for number in range(8):
            archive.writestr(f"{number}.png", png(number))
            rows.append({"file_name": f"{number}.png", "label": "ab"[number % 2]})
        link = zipfile.ZipInfo(name)
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(secret))
        rows.append({"file_name": name, "label": "a"})
        archive.writestr("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return content.getvalue()


def _tar(name: str, secret: Path, kind: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:

        def add(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, str(secret)
            archive.addfile(member, io.BytesIO(data))

        for number in range(8):
            add(f"{number}.png", png(number))
            add(f"{number}.cls", str(number % 2).encode())
        add(f"{name}.png", b"" if kind != tarfile.REGTYPE else png(5), kind)
        add(f"{name}.cls", b"0")
    return content.getvalue()


ESCAPES = {
    "zip-dots": lambda out, secret: _zip(f"../../../../../../../..{out}", secret),
    "zip-absolute": lambda out, secret: _zip(str(out), secret),
    "zip-link": lambda out, secret: _zip("link.png", secret),
    "zip-secret": lambda out, secret: _zip(str(secret), secret),
    "tar-dots": lambda out, secret: _tar(f"../../../../../../../..{out}", secret, tarfile.REGTYPE),
    "tar-absolute": lambda out, secret: _tar(str(out), secret, tarfile.REGTYPE),
    "tar-link": lambda out, secret: _tar("link", secret, tarfile.SYMTYPE),
    "tar-hard-link": lambda out, secret: _tar("link", secret, tarfile.LNKTYPE),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_archives_of_the_hub_neither_write_nor_read_outside(hub, tmp_path, name):
    """They are opened by datasets; archives on disk are not opened at all."""
    out, secret = tmp_path / "out" / "evil.png", tmp_path / "secret.png"
    out.parent.mkdir()
    secret.write_bytes(png(99))
    content = ESCAPES[name](out, secret)
    hub.add_repo(f"tester/{name}", type="dataset", files={f"train.{name[:3]}": content})
    try:
        splits, _ = load(f"tester/{name}")
    except DataError:
        pass
    else:
        images = [row["image"] for split in (splits.train, splits.validation) for row in split]
        assert images
        read = [image["bytes"] or Path(image["path"]).read_bytes() for image in images]
        assert png(99) not in read
    assert list(out.parent.iterdir()) == []
    for suffix in ("zip", "tar", "tar.gz"):
        (tmp_path / f"set.{suffix}").write_bytes(content)
        with pytest.raises(DataError, match="is an archive; unpack it and give the folder"):
            load(str(tmp_path / f"set.{suffix}"))


# Secrets --------------------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "SecretSecretSecretSecretSecret1234"


def test_tokens_are_left_out_of_text(monkeypatch):
    assert redacted(f"Bearer {TOKEN}, hf_hub_download") == "Bearer ***, hf_hub_download"
    assert redacted("https://me:password@host/a?b=c@d") == "https://***@host/a?b=c@d"
    monkeypatch.setenv("HF_TOKEN", "of-another-form")
    assert redacted("x of-another-form y") == "x *** y"
    assert str(CvHfError(f"a {TOKEN}")) == "a ***"


def test_the_token_is_nowhere(work, tiny, hub: LoopbackHub, monkeypatch, capfd, tmp_path):
    """Neither printed nor written, by a run that is pushed and by every way in which one fails, though the Hub repeats
    it in its answers and the user writes it where it does not belong."""
    hub.add_token(TOKEN, user="secretive", role="write")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    commands: list[tuple[int, list[object]]] = [(0, ["init", work / "data", "--out", recipe, "--model", tiny("vit")])]
    train = ["train", recipe, "train.max_steps=1", "hub.repo_id=secretive/model", "train.report_to=none"]
    commands += [(0, [*train, "--run-dir", run]), (0, ["env"])]
    for argv in (argv for _, argv in commands):
        assert main([str(word) for word in argv]) == 0, capfd.readouterr().err
    wrong = [
        (2, ["train", recipe, f"train.hub_token={TOKEN}"]),
        (2, ["train", recipe, f"model.id=https://user:{TOKEN}@huggingface.co/a/b"]),
        (2, ["train", recipe, f"data.id={TOKEN}"]),
        (2, ["train", recipe, f"train.batch_size={TOKEN}"]),
        (2, ["eval", f"secretive/{TOKEN}", "--data", work / "data", "--task", "image-classification"]),
        (3, ["push", run, "secretive/refused"]),
        (3, ["train", recipe, "hub.repo_id=secretive/x", "--run-dir", tmp_path / "other"]),
    ]
    text = f"the token {TOKEN} at https://secretive:{TOKEN}@huggingface.co may not"
    faults = [hub.fault("POST", "/repos/create|/commit/", status=403, message=text, times=None)]
    for code, argv in wrong:
        if argv[0] == "train" and code == 3:
            faults.append(hub.fault("GET", "/whoami", status=403, message=text, times=None))
        assert main([str(word) for word in argv]) == code, argv
    for fault in faults:
        hub.faults.remove(fault)
    printed = capfd.readouterr()
    assert "***" in printed.err
    assert "token: set" in printed.out
    kept = [path for folder in (tmp_path, work) for path in folder.rglob("*") if path.is_file()]
    assert len(kept) > 10
    found = [path for path in kept if TOKEN.encode() in path.read_bytes()]
    found += [name for name, content in hub.repo("secretive/model").files().items() if TOKEN.encode() in content]
    assert (TOKEN in printed.out + printed.err, found) == (False, [])


def test_an_address_with_a_password_is_not_reported(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", f"https://me:{TOKEN}@hub.example")
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert "https://***@hub.example" in printed
    assert TOKEN not in printed
