"""A push is one commit; when it fails, the disk is as it was and the message holds the command that goes on."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from time import sleep

import pytest
import yaml
from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http, httpx

from cv_hf import http
from cv_hf.config import load_recipe
from cv_hf.errors import DataError, HubError, Interrupted
from cv_hf.publish import check_can_write, push
from cv_hf.publish import hub as pushing
from cv_hf.publish.card import THIS_FOLDER
from tests.hub import LoopbackHub


@pytest.fixture(autouse=True)
def waits(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    """The seconds of each wait, of the client's and of ours, which none takes; no fault is left to the next test."""
    asked: list[float] = []
    monkeypatch.setattr(pushing.time, "sleep", asked.append)
    # The loopback Hub speaks no TLS, whose certificates take longest to load.
    hooks = {"request": [_http.hf_request_event_hook]}
    set_client_factory(lambda: httpx.Client(event_hooks=hooks, timeout=None, verify=False, trust_env=False))
    yield asked
    hub.faults.clear()
    set_client_factory(_http.default_client_factory)


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


def test_a_model_that_was_not_scored_to_its_end_is_not_pushed(run):
    """A run killed in scoring leaves a model without its card, its threshold and its evidence."""
    (run / "model" / "README.md").unlink()
    with pytest.raises(DataError) as caught:
        push(run, "tester/no-card")
    assert str(caught.value).splitlines() == [
        f"{run}: its model/ has no card (README.md), as scoring it was not finished.",
        f"Go on: cv-hf train '{run}/recipe.yaml' --resume",
    ]


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


# Every request of a push, in their order, and every way in which it can fail.
REQUESTS = {
    "whoami": ("GET", "/whoami"),
    "may I write": ("GET", "/auth-check"),
    "what is there": ("GET", r"/api/models/tester/[^/]+$"),
    "create": ("POST", "/repos/create"),
    "card": ("POST", "/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "upload": ("PUT", "^/lfs/"),
    "verify": ("POST", "/lfs/verify"),
    "commit": ("POST", "/commit/"),
}
PASSING = {
    "409": {"status": 409},
    "412": {"status": 412},
    "429": {"status": 429, "headers": {"Retry-After": "7"}},
    "500": {"status": 500},
    "503": {"status": 503},
    "silence": {"delay": 3},
    "cut": {"status": 599, "cut_after": 10},
    "lost": {"status": 500, "lost": True},
}
FINAL = {str(status): {"status": status} for status in (401, 403, 404, 413)}
# The client takes a 401 for a repository that is not there, which this user may create; an answer that is empty cannot
# be cut; what was uploaded before its verification failed is not verified again.
NO_MATTER = {("may I write", "401"), ("may I write", "cut"), *(("verify", name) for name in PASSING)}


def fault(hub: LoopbackHub, request: str, how: dict, times: int | None):
    method, path = REQUESTS[request]
    how = {"message": "Not now", **how}
    if "cut_after" in how and method == "GET":
        how = {**how, "status": None}
    return hub.fault(method, path, times=times, **how)


PASSED = [
    (request, name)
    for request, (method, _) in REQUESTS.items()
    for name in PASSING
    if (request, name) != ("may I write", "cut") and (method != "GET" or name != "lost")
]
ENDED = [
    (request, name)
    for request in REQUESTS
    for name in (*FINAL, "409", "503", "cut")
    if (request, name) not in NO_MATTER
]


@pytest.mark.parametrize(("request_", "name"), PASSED)
def test_what_passes_is_tried_again_and_ends_in_one_commit(hub, run, waits, request_, name, monkeypatch):
    monkeypatch.setattr(http, "SILENCE", 1.0)
    hub.store.large.clear()
    repo_id = f"tester/{name}-{request_.replace(' ', '-')}"
    planted = fault(hub, request_, PASSING[name], times=1)
    push(run, repo_id)
    assert planted.hits == 1
    repository = hub.repo(repo_id)
    assert len(repository.commits) == 2
    assert set(repository.files()) == {"README.md", "config.json", "model.safetensors", "recipe.yaml"}
    assert 1 <= len(waits) <= 2
    if name == "429":
        assert max(waits) in (7, 8), "as long as the Hub asks, and a second more by its own client"


@pytest.mark.parametrize(("request_", "name"), ENDED)
def test_what_does_not_pass_ends_with_the_cause_and_the_command(hub, run, waits, request_, name):
    how = {**PASSING, **FINAL}[name]
    hub.store.large.clear()
    repo_id = f"tester/{name}-for-good-{request_.replace(' ', '-')}"
    planted = fault(hub, request_, how, times=None)
    message = failure(run, repo_id, private=True)
    assert message.endswith(f"Nothing is lost. To go on: cv-hf push '{run}' {repo_id} --private")
    cause = message.splitlines()[0]
    if name == "cut":
        assert "the Hub cannot be reached" in cause or "answered 599" in cause, cause
    else:
        assert f"the Hub answered {how['status']} (" in cause, cause
    assert planted.hits <= (24 if name in PASSING else 2)
    assert sum(waits) < 300
    planted.times = 0
    push(run, repo_id, private=True)
    assert len(hub.repo(repo_id).commits) == 2
    assert hub.repo(repo_id).files()["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("answer", [{"status": 500}, {"status": 504}, {"cut_after": 0}, {"delay": 3}])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, run, answer, monkeypatch):
    monkeypatch.setattr(http, "SILENCE", 1.0)
    hub.add_repo("tester/lost", files={"pytorch_model.bin": b"of an earlier push"})
    lost = hub.fault("POST", "/commit/", lost=True, message="Gateway timeout", **answer)
    assert push(run, "tester/lost") == f"{hub.url}/tester/lost"
    assert lost.hits == 1
    assert [commit.title for commit in hub.repo("tester/lost").commits][:2] == ["Fine-tuned with cv_hf", "Upload files"]
    assert set(hub.repo("tester/lost").files()) == {"README.md", "config.json", "model.safetensors", "recipe.yaml"}


def test_a_commit_that_comes_late_is_not_followed_by_a_second(hub, run, monkeypatch):
    """The first attempt's commit is made after the second has looked: the second must not stand on another's ground."""
    monkeypatch.setattr(http, "SILENCE", 1.0)
    hub.fault("POST", "/commit/", delay=2)
    seen = []
    commit = pushing._commit

    def looked(*arguments):
        seen.append(len(hub.repo("tester/late").commits) if seen else 1)
        if len(seen) == 2:
            ours = pushing.HfApi.create_commit

            def late(api, *args, **kwargs):
                while len(hub.repo("tester/late").commits) < 2:
                    sleep(0.05)  # until the first has landed
                return ours(api, *args, **kwargs)

            monkeypatch.setattr(pushing.HfApi, "create_commit", late)
        return commit(*arguments)

    monkeypatch.setattr(pushing, "_commit", looked)
    push(run, "tester/late")
    assert seen[:2] == [1, 1], "the first commit had not landed when the second attempt looked"
    assert len(hub.repo("tester/late").commits) == 2


def test_somebody_elses_commit_in_between_stays(hub, run, monkeypatch):
    repository = hub.add_repo("tester/busy")
    ours = pushing.HfApi.create_commit

    def interrupted(api, *arguments, **options):
        if len(repository.commits) == 1:
            repository.commit({"notes.md": b"by hand"})
        return ours(api, *arguments, **options)

    monkeypatch.setattr(pushing.HfApi, "create_commit", interrupted)
    push(run, "tester/busy")
    assert [commit.title for commit in repository.commits] == [
        "Fine-tuned with cv_hf",
        "Upload files",
        "initial commit",
    ]
    assert repository.files()["notes.md"] == b"by hand"


def test_a_repository_that_somebody_makes_meanwhile(hub, run):
    """Another process creates it between the look and the creation: the Hub's 409 with its address."""
    hub.add_repo("tester/twice")
    first = hub.fault("GET", "/api/models/tester/twice$", status=404, headers={"X-Error-Code": "RepoNotFound"})
    push(run, "tester/twice")
    assert first.hits == 1
    assert len(hub.repo("tester/twice").commits) == 2


def test_the_client_does_not_create_for_ever(hub, run):
    """It repeats this answer at once and without an end."""
    text = "Cannot create repo: another conflicting operation is in progress"
    busy = hub.fault("POST", "/repos/create", status=409, message=text, times=None)
    assert "the Hub answered 409 (Cannot create repo" in failure(run, "tester/conflicting")
    assert busy.hits == 4


@pytest.mark.parametrize("request_", ["whoami", "preupload", "upload", "commit"])
@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}])
def test_a_hub_that_asks_for_a_day_is_not_waited_for(hub, run, waits, request_, headers):
    planted = fault(hub, request_, {"status": 429, "headers": headers}, times=None)
    message = failure(
        run, f"tester/a-day-{request_}-{len(headers['Retry-After' if 'Retry-After' in headers else 'RateLimit'])}"
    )
    assert "the Hub answered 429 (" in message
    assert "and asks to wait 86400 s" in message
    assert (planted.hits, waits) == (1, [])


def test_a_hub_that_never_answers_is_given_up(hub, run, monkeypatch):
    monkeypatch.setattr(http, "SILENCE", 0.5)
    slow = hub.fault("POST", "/commit/", delay=30, times=None)
    assert "the Hub did not answer within 0.5 s" in failure(run, "tester/silent")
    assert slow.hits == 4


def test_patience_ends(hub, run, monkeypatch):
    monkeypatch.setattr(http, "PATIENCE", 2.5)
    busy = hub.fault("GET", "/whoami", status=503, times=None)
    failure(run, "tester/patience")
    assert busy.hits == 3


def test_a_page_instead_of_an_answer(hub, run, monkeypatch):
    """What a proxy in between says is not JSON."""
    ours = pushing.HfApi.create_commit
    pages = []

    def page(api, *arguments, **options):
        if not pages:
            pages.append(json.loads)
            json.loads("<html>Bad gateway</html>")
        return ours(api, *arguments, **options)

    monkeypatch.setattr(pushing.HfApi, "create_commit", page)
    push(run, "tester/page")
    assert len(hub.repo("tester/page").commits) == 2


def test_the_clients_own_settings_are_back_after_a_push(hub, run):
    from huggingface_hub import get_session

    before = get_session().timeout, get_session().event_hooks
    hub.fault("POST", "/commit/", status=413, times=None)
    failure(run, "tester/settings")
    assert (get_session().timeout, get_session().event_hooks) == before


def test_ctrl_c_in_a_push_ends_with_the_command(hub, run, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing.HfApi, "create_commit", stop)
    with pytest.raises(Interrupted, match="interrupted while pushing") as stopped:
        push(run, "tester/stopped")
    assert str(stopped.value).endswith(f"To go on: cv-hf push '{run}' tester/stopped")


def test_a_cut_upload_fails_and_the_next_push_completes_it(hub, run):
    fault = hub.fault("PUT", "/lfs/", cut_after=10, times=None)
    message = failure(run, "tester/cut")
    assert 1 < fault.hits <= 24, "the client itself tries again"
    assert "To go on: cv-hf push" in message
    assert len(hub.repo("tester/cut").commits) == 1
    hub.faults.clear()
    push(run, "tester/cut")
    assert hub.repo("tester/cut").files()["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()


def test_bytes_that_are_damaged_on_their_way_are_sent_again(hub, run):
    damaged = hub.fault("PUT", "/lfs/", alter=True)
    push(run, "tester/damaged")
    assert damaged.hits == 1
    assert hub.repo("tester/damaged").files()["model.safetensors"] == (run / "model/model.safetensors").read_bytes()
    hub.store.large.clear()
    damaged.times, damaged.hits = None, 0
    assert "the Hub answered 400 (BadDigest" in failure(run, "tester/damaged-always")
    assert damaged.hits <= 24


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
