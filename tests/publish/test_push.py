"""A push is one commit; when it fails, the disk is as it was and the message holds the command that goes on."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import _http

from cv_hf.config import load_recipe
from cv_hf.errors import DataError, HubError
from cv_hf.publish import check_can_write, push
from cv_hf.publish.card import THIS_FOLDER
from tests.hub import LoopbackHub


@pytest.fixture(autouse=True)
def _clean(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    """No fault is left to the next test, and retries of the client do not wait."""
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    yield
    hub.faults.clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What is pushed of a run, with things beside it that are not."""
    folder = tmp_path / "my run"
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "vit"}')
    (model / "model.safetensors").write_bytes(f"weights of {tmp_path}".encode())  # new to the Hub
    (model / "README.md").write_text(f"---\ntags: [x]\n---\n\npipeline({THIS_FOLDER})\n")
    for unwanted in ("training_args.bin", "old.pkl", "optimizer.pt", ".secret.json", ".cache/a.json"):
        (model / unwanted).parent.mkdir(exist_ok=True)
        (model / unwanted).write_bytes(b"no")
    data, labels = tmp_path / "photos", tmp_path / "names.txt"
    data.mkdir()
    labels.write_text("a\nb\n")
    values = {
        "task": "image-classification",
        "model": {"id": "user/base", "revision": "main"},
        "data": {"id": str(data), "images": f"{data}/", "labels": str(labels)},
        "hub": {"repo_id": "tester/x"},
        "run_dir": str(folder),
    }
    (folder / "recipe.yaml").write_text(load_recipe(values).to_yaml())
    (folder / "metrics.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Path -> hash of everything in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in files}


def failure(run: Path, repo_id: str, **options: bool) -> str:
    """The text of the error that a push fails with; the disk is left as it was."""
    before = contents(run.parent)
    with pytest.raises(HubError) as caught:
        push(run, repo_id, **options)
    assert contents(run.parent) == before
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_push_is_one_commit_of_what_the_model_needs(hub, run):
    before = contents(run)
    url = push(run, "tester/one", private=True)
    assert url == f"{hub.url}/tester/one"
    repository = hub.repo("tester/one")
    assert repository.private
    assert [commit.title for commit in repository.commits] == ["Fine-tuned with cv_hf", "initial commit"]
    files = repository.files()
    assert set(files) == {"README.md", "config.json", "model.safetensors", "recipe.yaml"}
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert 'pipeline(model="tester/one")' in files["README.md"].decode()
    assert contents(run) == before


def test_the_pushed_recipe_can_be_used_by_others(hub, run, tmp_path):
    push(run, "tester/recipe")
    text = hub.repo("tester/recipe").files()["recipe.yaml"].decode()
    assert str(tmp_path) not in text
    ours, theirs = yaml.safe_load((run / "recipe.yaml").read_text()), yaml.safe_load(text)
    assert theirs["data"] == {**ours["data"], "id": "photos", "images": "photos", "labels": "names.txt"}
    assert theirs["hub"] is None
    assert theirs["run_dir"] is None
    same = ("task", "model", "augment", "train", "eval")
    assert {key: theirs[key] for key in same} == {key: ours[key] for key in same}
    load_recipe(theirs)


def test_a_second_push_updates_in_one_commit_and_removes_old_weights(hub, run):
    user = push(run, "second").removeprefix(hub.url + "/").split("/")[0]
    assert user == "tester", "a name without a user is that of the token"
    repository = hub.repo("tester/second")
    old = {"model-00001-of-00002.safetensors": b"a", "model.safetensors.index.json": b"{}", "pytorch_model.bin": b"p"}
    repository.commit({**old, "notes.md": b"the user's own", "tokenizer.json": b"{}"})
    (run / "model" / "config.json").write_text('{"model_type": "swin"}')
    push(run, "tester/second")
    assert len(repository.commits) == 4
    files = repository.files()
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "notes.md",
        "tokenizer.json",
    }
    assert json.loads(files["config.json"]) == {"model_type": "swin"}


def test_a_failed_commit_tells_the_command_that_goes_on(hub, run):
    hub.fault("POST", "/commit/", status=500, message="Something broke")
    message = failure(run, "tester/flaky", private=True)
    assert "the Hub answered 500 (Something broke)" in message
    assert message.endswith(f"To go on: cv-hf push '{run}' tester/flaky --private")
    assert len(hub.repo("tester/flaky").commits) == 1
    push(run, "tester/flaky", private=True)
    assert len(hub.repo("tester/flaky").commits) == 2


@pytest.mark.parametrize(("status", "path"), [(403, "/commit/"), (401, "/preupload/"), (403, "/repos/create")])
def test_a_refused_push_names_the_answer(hub, run, status, path):
    hub.fault("POST", path, status=status, message="Not you", times=None)
    message = failure(run, f"tester/refused-{status}-{path.strip('/').replace('/', '-')}")
    assert f"the Hub answered {status} (" in message


def test_a_cut_upload_fails_and_the_next_push_completes_it(hub, run):
    fault = hub.fault("PUT", "/lfs/", cut_after=10, times=None)
    message = failure(run, "tester/cut")
    assert fault.hits > 1, "the client itself tries again"
    assert "To go on: cv-hf push" in message
    assert len(hub.repo("tester/cut").commits) == 1
    hub.faults.clear()
    push(run, "tester/cut")
    assert hub.repo("tester/cut").files()["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()


def test_a_run_without_a_model_is_no_affair_of_the_hub(hub, tmp_path):
    asked = len(hub.requests)
    with pytest.raises(DataError, match="there is no finished model/ in it"):
        push(tmp_path, "tester/nothing")
    with pytest.raises(DataError, match=r"hub\.repo_id"):
        check_can_write("not a name")
    assert len(hub.requests) == asked


# Who may write ------------------------------------------------------------------------------------------------------


def refusal(repo_id: str) -> str:
    with pytest.raises(HubError) as caught:
        check_can_write(repo_id)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.fixture
def as_token(hub, monkeypatch):
    def use(token: str, **about) -> None:
        if about:
            hub.add_token(token, **about)
        monkeypatch.setenv("HF_TOKEN", token)

    return use


def test_who_may_write(hub, as_token):
    hub.add_repo("zoo/there")
    hub.add_repo("other/private", private=True)
    as_token("hf_keeper", user="keeper", orgs=["zoo"])
    for repo_id in ("keeper/new", "new", "zoo/new", "zoo/there"):
        assert check_can_write(repo_id) == "keeper"
    for repo_id in ("other/new", "other/private"):
        assert f"keeper cannot create {repo_id}" in refusal(repo_id)
    hub.add_repo("other/public")
    assert "the Hub answered 403" in refusal("other/public")


def test_a_token_that_reads_only(as_token):
    as_token("hf_reader", user="keeper", role="read")
    assert "the token of keeper can only read" in refusal("keeper/new")


def test_a_fine_grained_token_may_write_where_it_says(hub, as_token):
    hub.add_repo("keeper/there")
    as_token("hf_fine", user="keeper", role="fineGrained", permissions={"keeper/there": ["repo.write"]})
    assert check_can_write("keeper/there") == "keeper"
    assert "may not create repositories of keeper" in refusal("keeper/new")
    as_token("hf_finer", user="keeper", role="fineGrained", permissions={"keeper": ["repo.write"]})
    assert check_can_write("keeper/new") == "keeper"


def test_no_token_and_a_wrong_one(monkeypatch, as_token):
    as_token("hf_unknown")
    assert "the Hub answered 401 (Invalid user token." in refusal("keeper/new")
    monkeypatch.delenv("HF_TOKEN")
    assert os.environ.get("HF_TOKEN") is None
    assert "there is no token; run `hf auth login` or set HF_TOKEN" in refusal("keeper/new")
