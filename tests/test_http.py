"""Downloads from a Hub that fails: what passes goes on where it stopped, what does not is one readable error, and a
damaged file of the cache is named. Pushes are in tests/publish/test_push.py."""

from __future__ import annotations

import io
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.utils import _http, httpx

from cv_hf import http
from cv_hf.cli import main
from cv_hf.config import DataConfig, load_recipe
from cv_hf.data import check
from cv_hf.errors import CvHfError, HubError, ModelError
from cv_hf.tasks import get_task
from tests.data.test_hub_reader import load as load_dataset
from tests.data.test_hub_reader import parquet
from tests.hub import LoopbackHub
from tests.models.test_build import build


@pytest.fixture(autouse=True)
def waits(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    """The seconds of each wait, which none takes; no fault is left to the next test."""
    asked: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", asked.append)
    hooks = {"request": [_http.hf_request_event_hook]}
    set_client_factory(lambda: httpx.Client(event_hooks=hooks, timeout=None, verify=False, trust_env=False))
    yield asked
    hub.faults.clear()
    set_client_factory(_http.default_client_factory)


class Kind:
    """A model or a dataset of the Hub, and how cv_hf loads it."""

    def __init__(self, hub: LoopbackHub, folder: Path | None) -> None:
        self.hub, self.folder = hub, folder
        self.table = parquet(8)

    def add(self, name: str) -> str:
        name = f"tester/{'model' if self.folder else 'dataset'}-{name}"
        if self.folder:
            self.hub.add_repo(name, folder=self.folder)
        else:
            self.hub.add_repo(name, type="dataset", files={"train.parquet": self.table})
        return name

    def load(self, name: str) -> None:
        (build if self.folder else load_dataset)(name)

    def failure(self, name: str) -> str:
        with pytest.raises(CvHfError) as error:
            self.load(name)
        assert 1 <= len(str(error.value).splitlines()) <= 2, error.value
        assert error.value.__cause__ is None
        self.code = error.value.exit_code
        return str(error.value)


@pytest.fixture(params=["model", "dataset"])
def kind(request: pytest.FixtureRequest, hub: LoopbackHub, tiny: Callable[..., Path]) -> Kind:
    return Kind(hub, tiny("vit") if request.param == "model" else None)


REQUESTS = {
    "model": [
        ("HEAD", "/config.json"),
        ("GET", "/resolve/.*/config.json"),
        ("GET", "/resolve/.*/preprocessor_config.json"),
        ("HEAD", "/model.safetensors"),
        ("GET", "^/lfs/"),
    ],
    "dataset": [
        ("GET", "/api/datasets/[^/]*/[^/]*$"),
        ("GET", "/tree/"),
        ("HEAD", "/train.parquet"),
        ("GET", "^/lfs/"),
    ],
}
FAULTS = {str(status): {"status": status} for status in (401, 403, 404, 409, 412, 413, 500, 503)}
FAULTS["429"] = {"status": 429, "headers": {"Retry-After": "7"}}
FAULTS["cut"] = {"cut_after": 50}
FAULTS["truncated"] = {"truncate_to": 50}


DOWNLOADS = [
    (kind, number, name)
    for kind, requests in REQUESTS.items()
    for number, (method, _) in enumerate(requests)
    for name in FAULTS
    if method != "HEAD" or "status" in FAULTS[name]  # its answer has no body to cut
]


@pytest.mark.parametrize(("kind", "number", "name"), DOWNLOADS, indirect=["kind"])
def test_a_download_that_fails_is_an_error_of_two_lines(hub, kind, waits, number, name):
    method, path = REQUESTS["model" if kind.folder else "dataset"][number]
    repo_id = kind.add(f"{name}-{number}")
    planted = hub.fault(method, path, times=None, **FAULTS[name])
    message = kind.failure(repo_id)
    assert planted.hits <= 8
    assert sum(waits) < 60
    assert repo_id in message
    assert kind.code == (2 if name in ("401", "403") else 3), message
    if kind.code == 3:
        assert "Nothing is lost" in message
        assert "same command again" in message or "run the command again" in message
    planted.times = 0
    kind.load(repo_id)


def test_a_download_that_was_cut_goes_on_where_it_stopped(hub, kind, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # 10 MB; what is less than one is fetched again
    repo_id = kind.add("resumed")
    hub.requests.clear()
    cut = hub.fault("GET", "^/lfs/", cut_after=500, times=2)
    kind.load(repo_id)
    assert cut.hits == 2
    sent = [request.status for request in hub.requests if request.path.startswith("/lfs/")]
    assert sent == [200, 206, 206], "the rest alone is asked for (206 Partial Content)"


@pytest.mark.parametrize("answer", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}])
def test_a_hub_that_asks_for_a_day_is_not_waited_for(hub, kind, waits, answer):
    for number, (method, path) in enumerate(REQUESTS["model" if kind.folder else "dataset"]):
        repo_id = kind.add(f"day-{number}-{next(iter(answer)).lower()}")
        planted = hub.fault(method, path, status=429, headers=answer, times=None)
        assert "429" in kind.failure(repo_id)
        assert (kind.code, planted.hits <= 2, sum(waits)) == (3, True, 0)
        planted.times = 0


def test_a_hub_that_never_answers_is_given_up(hub, kind, monkeypatch):
    """HEAD has a limit of the client's own, a minute."""
    monkeypatch.setattr(http, "SILENCE", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    for number, (method, path) in enumerate(REQUESTS["model" if kind.folder else "dataset"]):
        if method == "HEAD":
            continue
        repo_id = kind.add(f"silent-{number}")
        planted = hub.fault(method, path, delay=1000, times=None)
        kind.failure(repo_id)
        assert kind.code == 3
        planted.times = 0


def test_weights_of_another_hash_are_refused(hub, kind):
    """As long as they should be, and wrong: the client looks at the length alone."""
    repo_id = kind.add("altered")
    planted = hub.fault("GET", "^/lfs/", alter=True)
    message = kind.failure(repo_id)
    assert (kind.code, planted.hits) == (3, 1)
    assert "is damaged" in message
    mend(message)
    kind.load(repo_id)


def mend(message: str) -> None:
    """Run the command that an error of a damaged file ends with."""
    command = shlex.split(message.rpartition(": ")[2])
    assert command[0] == "rm"
    subprocess.run(command, check=True)


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "header": lambda content: b"\xff" * 16 + content[16:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_the_cache_is_named_with_what_mends_it(kind, damage):
    repo_id = kind.add(f"cached-{damage}")
    kind.load(repo_id)
    name = repo_id.split("/")[1]
    files = [*Path(constants.HF_HUB_CACHE).glob(f"models--tester--{name}/blobs/*")]
    files += Path(datasets.config.HF_DATASETS_CACHE).glob(f"tester___{name}/*/*/*/*.*")
    assert len(files) == (3 if kind.folder else 2)
    for file in files:
        whole = file.read_bytes()
        file.unlink()  # a table that is mapped into memory must not change under it
        file.write_bytes(DAMAGES[damage](whole))
        message = kind.failure(repo_id)
        assert kind.code == 3
        assert f"the cached file {file} is damaged" in message
        mend(message)
        kind.load(repo_id)


def test_a_damaged_table_of_the_hubs_cache_is_named(hub, kind, tmp_path):
    if kind.folder:
        return
    repo_id = kind.add("table")
    kind.load(repo_id)
    shutil.rmtree(next(Path(datasets.config.HF_DATASETS_CACHE).glob("tester___dataset-table")))
    blob = next(
        path
        for path in Path(constants.HF_HUB_CACHE).glob("datasets--tester--dataset-table/blobs/*")
        if path.read_bytes()[:4] == b"PAR1"
    )
    blob.write_bytes(blob.read_bytes()[:-4] + b"xxxx")
    message = kind.failure(repo_id)
    assert f"the cached file {blob} is damaged" in message
    mend(message)
    kind.load(repo_id)


def test_a_damaged_image_in_a_table_costs_itself_alone(hub):
    """The image is a finding with its name; the rest of the dataset is read."""
    table = pq.read_table(io.BytesIO(parquet(8))).to_pylist()
    table[3]["image"]["bytes"] = table[3]["image"]["bytes"][:40]
    content = io.BytesIO()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_list(table, features=features).to_parquet(content)
    hub.add_repo("tester/one-bad", type="dataset", files={"train.parquet": content.getvalue()})
    diagnosis = check(DataConfig(id="tester/one-bad"), get_task("image-classification"), echo=lambda line: None)
    (finding,) = diagnosis.findings.to_dict().values()
    assert [name.split()[-1] for name in finding["files"]] == ["3.png"]


def test_damaged_weights_of_a_folder_are_named(tiny, tmp_path):
    shutil.copytree(tiny("vit"), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    for content in (b"", weights.read_bytes()[:1000], b"\xff" * 16 + weights.read_bytes()[16:]):
        weights.write_bytes(content)
        with pytest.raises(ModelError, match="is damaged") as error:
            build(tmp_path / "model")
        assert str(weights) in str(error.value)
        assert len(str(error.value).splitlines()) == 2


def test_shards_are_looked_at_too(hub, tiny, tmp_path):
    from transformers import AutoModelForImageClassification

    AutoModelForImageClassification.from_pretrained(tiny("vit")).save_pretrained(tmp_path, max_shard_size="8KB")
    (tmp_path / "preprocessor_config.json").write_bytes((tiny("vit") / "preprocessor_config.json").read_bytes())
    hub.add_repo("tester/shards", folder=tmp_path)
    last = sorted(tmp_path.glob("*.safetensors"))[-1].name
    hub.fault("GET", f"^/lfs/.*/{last}", alter=True)
    with pytest.raises(HubError, match="is damaged"):
        build("tester/shards")
    hub.fault("GET", "^/lfs/", status=500, times=None)
    hub.add_repo("tester/shards-500", files={path.name: path for path in tmp_path.iterdir()})
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--tester--shards")
    with pytest.raises(HubError, match="status 500"):
        build("tester/shards-500")


def test_a_program_keeps_its_own_settings_of_the_client():
    mine: list[str] = []
    set_client_factory(lambda: httpx.Client(event_hooks={"request": [lambda request: mine.append(str(request.url))]}))
    client = get_session()
    with http.limited_client():
        with pytest.raises(httpx.ConnectError):
            get_session().get("http://127.0.0.1:9/")
        assert mine == ["http://127.0.0.1:9/"]
        assert get_session() is not client
    assert get_session().event_hooks["response"] == []


def test_training_does_not_die_of_a_push(hub, recipe, tmp_path, capsys):
    """The model, its scores and its card are on disk, and the command that is printed pushes them in one commit."""
    values = recipe(train={"max_steps": 1}, hub={"repo_id": "tester/after-training"})
    file = tmp_path / "recipe.yaml"
    file.write_text(load_recipe(values).to_yaml())
    planted = hub.fault("POST", "/commit/", status=503, message="Down", times=None)
    assert main(["train", str(file)]) == 3
    cause, command = capsys.readouterr().err.splitlines()[-2:]
    assert cause == "cv-hf: pushing to tester/after-training: the Hub answered 503 (Down)."
    assert planted.hits == 4
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= {"model", "metrics.json", "recipe.yaml", "log.jsonl", "checkpoints"}
    assert {path.name for path in (run / "model").iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    planted.times = 0
    words = shlex.split(command.partition("To go on: ")[2])
    assert words == ["cv-hf", "push", str(run), "tester/after-training"]
    assert main(words[1:]) == 0
    assert len(hub.repo("tester/after-training").commits) == 2
