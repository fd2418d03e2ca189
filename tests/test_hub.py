"""The loopback Hub, proved with the clients as they are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, httpx
from huggingface_hub.utils.sha import git_hash
from PIL import Image

from tests.hub import LoopbackHub

ROOT = Path(__file__).parents[1]
RANDOM = np.random.default_rng(0)
SMALL, LARGE, HUGE = (RANDOM.bytes(size) for size in (500, 3_000, 25_000))


@pytest.fixture(autouse=True)
def _plain_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub(lfs_threshold=2_000, part_size=10_000, page_size=3) as hub:
        hub.add_token("hf_alice", user="alice")
        hub.add_token("hf_reader", user="alice", role="read")
        hub.add_token("hf_bob", user="bob", orgs=["zoo"])
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(hub.url, token="hf_alice")


def adding(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def read(path: str) -> bytes:
    return Path(path).read_bytes()


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_upload_is_one_commit_and_comes_back_the_same(
    hub: LoopbackHub, api: HfApi, tmp_path: Path, repo_type: str
) -> None:
    files = {
        "README.md": b"---\nlicense: mit\n---\nCats.",
        "empty.txt": b"",
        "a/b c/größe.txt": b"text",
        "small.dat": SMALL,
        "weights.safetensors": LARGE,
        "huge": HUGE,
    }
    url = api.create_repo("alice/cats", repo_type=repo_type, private=True)
    assert (url.repo_id, url.repo_type) == ("alice/cats", repo_type)
    made = api.create_commit("alice/cats", adding(files), commit_message="Add", repo_type=repo_type)

    repo = hub.repo("alice/cats")
    assert repo.files() == files
    assert [commit.title for commit in repo.commits] == ["Add", "initial commit"]
    assert repo.commits[0].id == made.oid
    assert hub.count("POST", "/commit/") == 1
    assert hub.count("PUT", r"^/lfs/\w{64}$") == 2
    assert hub.count("PUT", r"^/lfs/\w{64}/part/") == 3

    folder = Path(api.snapshot_download("alice/cats", repo_type=repo_type, cache_dir=tmp_path))
    assert folder.name == made.oid
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found.pop(".gitattributes")
    assert found == files

    link = huggingface_hub.hf_hub_url("alice/cats", "{}", repo_type=repo_type, endpoint=hub.url)
    for path, etag in {"README.md": git_hash(files["README.md"]), "huge": sha256(HUGE).hexdigest()}.items():
        metadata = huggingface_hub.get_hf_file_metadata(link.replace("%7B%7D", path), token="hf_alice")
        assert (metadata.etag, metadata.size, metadata.commit_hash) == (etag, len(files[path]), made.oid)
    assert not any(request.authorization for request in hub.requests if request.path.startswith("/lfs/"))


def test_upload_folder_is_one_commit(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    for path, content in {"one.txt": b"1", "sub/two.bin": LARGE}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    api.create_repo("alice/m")
    api.upload_folder(repo_id="alice/m", folder_path=tmp_path)
    assert hub.repo("alice/m").files() == {"one.txt": b"1", "sub/two.bin": LARGE}
    assert hub.count("POST", "/commit/") == 1


def test_content_that_is_known_is_not_sent_again(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("alice/m", files={"w.bin": LARGE, "a.txt": b"a"})
    api.create_repo("alice/n")
    api.create_commit("alice/n", adding({"other.bin": LARGE}), commit_message="Same content")
    api.create_commit("alice/m", adding({"w.bin": LARGE, "a.txt": b"a"}), commit_message="Nothing new")
    assert hub.repo("alice/n").files() == {"other.bin": LARGE}
    assert hub.count("PUT") == 0
    assert hub.count("POST", "alice/m/commit/") == 0


def test_revisions(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    repo = hub.add_repo("alice/m", files={"v.txt": b"1", "old/x": b"x"})
    first = repo.commits[0].id
    api.create_tag("alice/m", tag="v1")
    api.create_branch("alice/m", branch="dev/next")
    second = api.create_commit(
        "alice/m", [*adding({"v.txt": b"2"}), CommitOperationDelete("old/")], commit_message="Two"
    ).oid
    api.upload_file(path_or_fileobj=b"dev", path_in_repo="v.txt", repo_id="alice/m", revision="dev/next")

    def at(revision: str) -> bytes:
        return read(api.hf_hub_download("alice/m", "v.txt", revision=revision, cache_dir=tmp_path))

    assert [at(revision) for revision in ("main", second, second[:8])] == [b"2"] * 3
    assert [at(revision) for revision in ("v1", first, first[:8])] == [b"1"] * 3
    assert at("dev/next") == b"dev"
    assert api.list_repo_files("alice/m") == [".gitattributes", "v.txt"]
    assert "old/x" in api.list_repo_files("alice/m", revision="v1")
    assert api.model_info("alice/m").sha == second
    assert api.model_info("alice/m", revision="v1").sha == first
    assert [commit.commit_id for commit in api.list_repo_commits("alice/m")][:2] == [second, first]
    refs = api.list_repo_refs("alice/m")
    assert ({ref.name for ref in refs.branches}, refs.tags[0].target_commit) == ({"main", "dev/next"}, first)
    with pytest.raises(RevisionNotFoundError):
        at("v2")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("alice/m", "missing", cache_dir=tmp_path)
    api.delete_tag("alice/m", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/m", revision="v1")
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        api.delete_file("missing", "alice/m")


def test_private_and_gated(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("alice/secret", private=True, files={"a.txt": b"a"})
    hub.add_repo("alice/gated", gated=True, files={"a.txt": b"a"})
    for token, status in {False: 401, "hf_bob": 404}.items():
        with pytest.raises(RepositoryNotFoundError) as error:
            HfApi(hub.url, token=token).hf_hub_download("alice/secret", "a.txt", cache_dir=tmp_path)
        assert error.value.response.status_code == status
    for token, status in {False: 401, "hf_reader": 403}.items():
        with pytest.raises(GatedRepoError) as error:
            HfApi(hub.url, token=token).hf_hub_download("alice/gated", "a.txt", cache_dir=tmp_path)
        assert error.value.response.status_code == status
    for token in ("hf_alice", "hf_reader"):
        other = HfApi(hub.url, token=token)
        assert read(other.hf_hub_download("alice/secret", "a.txt", cache_dir=tmp_path / token)) == b"a"
    api.update_repo_settings("alice/secret", private=False)
    assert not HfApi(hub.url, token=False).model_info("alice/secret").private
    api.delete_repo("alice/secret")
    assert not api.repo_exists("alice/secret")


def test_token_roles(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_repo("alice/m", private=True)
    hub.add_token("hf_fine", user="alice", role="fineGrained", permissions={"alice/m": ["repo.write"]})
    reader, fine, unknown = (HfApi(hub.url, token=token) for token in ("hf_reader", "hf_fine", "hf_unknown"))
    assert (api.whoami()["name"], api.whoami()["auth"]["accessToken"]["role"]) == ("alice", "write")
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert fine.whoami()["auth"]["accessToken"]["fineGrained"]["scoped"][0]["entity"]["name"] == "alice/m"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        unknown.whoami()
    with pytest.raises(HfHubHTTPError) as error:
        unknown.model_info("alice/m")
    assert error.value.response.status_code == 401

    for writer in (api, fine):
        writer.auth_check("alice/m", write=True)
        writer.upload_file(path_or_fileobj=b"x", path_in_repo=f"{id(writer)}.txt", repo_id="alice/m")
    for forbidden in (
        lambda: reader.auth_check("alice/m", write=True),
        lambda: reader.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/m"),
        lambda: reader.create_repo("alice/new"),
        lambda: fine.create_repo("alice/new"),
        lambda: api.create_repo("zoo/new"),
        lambda: reader.delete_repo("alice/m"),
    ):
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            forbidden()
    reader.auth_check("alice/m")
    assert HfApi(hub.url, token="hf_bob").create_repo("zoo/new").repo_id == "zoo/new"
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("alice/m")
    assert error.value.response.status_code == 409
    assert api.create_repo("alice/m", exist_ok=True).repo_id == "alice/m"


def test_listing_goes_over_all_pages(hub: LoopbackHub, api: HfApi) -> None:
    files = {f"{folder}/{number}.txt": b"x" for folder in "abc" for number in range(4)}
    hub.add_repo("alice/d", type="dataset", files={**files, "w.bin": LARGE})
    assert api.list_repo_files("alice/d", repo_type="dataset") == [".gitattributes", *sorted(files), "w.bin"]
    top = list(api.list_repo_tree("alice/d", repo_type="dataset", expand=True))
    assert [entry.path for entry in top] == [".gitattributes", "a", "b", "c", "w.bin"]
    assert (top[-1].lfs.sha256, top[-1].last_commit.title) == (sha256(LARGE).hexdigest(), "Upload files")
    assert [entry.path for entry in api.list_repo_tree("alice/d", "b", repo_type="dataset")] == sorted(files)[4:8]
    found = api.get_paths_info("alice/d", ["a", "w.bin", "missing"], repo_type="dataset")
    assert [entry.path for entry in found] == ["a", "w.bin"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("alice/d", "missing", repo_type="dataset"))


def test_id_without_user(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("beans", type="dataset", files={"data/train.txt": b"bean"})
    assert api.dataset_info("beans", revision="main").sha == api.dataset_info("beans").sha
    assert api.list_repo_files("beans", repo_type="dataset") == [".gitattributes", "data/train.txt"]
    path = api.hf_hub_download("beans", "data/train.txt", repo_type="dataset", cache_dir=tmp_path)
    assert read(path) == b"bean"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("beans")


def test_file_system_reads_ranges(hub: LoopbackHub) -> None:
    hub.add_repo("alice/d", type="dataset", private=True, files={"data/w.bin": HUGE, "a.txt": b"text"})
    files = HfFileSystem(endpoint=hub.url, token="hf_alice", skip_instance_cache=True)
    assert files.glob("datasets/alice/d/**/*.bin") == ["datasets/alice/d/data/w.bin"]
    with files.open("datasets/alice/d/data/w.bin", block_size=100) as file:
        file.seek(20_000)
        assert file.read(50) == HUGE[20_000:20_050]
    assert files.cat_file("datasets/alice/d/data/w.bin", start=-7) == HUGE[-7:]
    assert {r.status for r in hub.requests if r.path.startswith("/lfs/")} == {206}
    url = f"{hub.url}/datasets/alice/d/resolve/main/a.txt"
    beyond = get_session().get(url, headers={"Range": "bytes=4-", "Authorization": "Bearer hf_alice"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */4")


def test_cut_download_resumes(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    # The client keeps what it has received in steps of 10 MiB, and asks for the rest of the file only after one.
    content = RANDOM.bytes(constants.DOWNLOAD_CHUNK_SIZE + 1_000)
    hub.add_repo("alice/m", files={"w.bin": content})
    fault = hub.fault("GET", "w.bin", cut_after=len(content) - 500)
    assert read(api.hf_hub_download("alice/m", "w.bin", cache_dir=tmp_path)) == content
    assert fault.hits == 1
    assert [request.status for request in hub.requests if request.method == "GET"] == [200, 206]


def test_damaged_downloads(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("alice/m", files={"w.bin": HUGE})
    hub.fault("GET", "w.bin", truncate_to=100)
    with pytest.raises(OSError, match="Consistency check failed"):
        api.hf_hub_download("alice/m", "w.bin", cache_dir=tmp_path)
    hub.fault("GET", "w.bin", alter=True)
    damaged = read(api.hf_hub_download("alice/m", "w.bin", cache_dir=tmp_path))
    assert len(damaged) == len(HUGE)
    assert sha256(damaged).hexdigest() != sha256(HUGE).hexdigest()


@pytest.mark.parametrize(("status", "headers"), [(500, {}), (503, {}), (429, {"Retry-After": "0"})])
def test_passing_failures(hub: LoopbackHub, api: HfApi, status: int, headers: dict[str, str]) -> None:
    api.create_repo("alice/m")
    fault = hub.fault("POST", "/preupload/", status=status, headers=headers)
    api.create_commit("alice/m", adding({"a.txt": b"a"}), commit_message="Add")
    assert fault.hits == 1
    assert [request.status for request in hub.requests if "/preupload/" in request.path] == [status, 200]
    assert hub.repo("alice/m").files() == {"a.txt": b"a"}


@pytest.mark.parametrize("status", [401, 403, 404, 409, 413, 500])
def test_refused_commit_changes_nothing(hub: LoopbackHub, api: HfApi, status: int) -> None:
    api.create_repo("alice/m")
    hub.fault("POST", "/commit/", status=status, message="Out of order")
    with pytest.raises(HfHubHTTPError, match="Out of order") as error:
        api.create_commit("alice/m", adding({"a.txt": b"a"}), commit_message="Add")
    assert error.value.response.status_code == status
    assert hub.repo("alice/m").files() == {}


def test_conflicting_commit(hub: LoopbackHub, api: HfApi) -> None:
    seen = hub.add_repo("alice/m", files={"a.txt": b"1"}).commits[0].id
    hub.repo("alice/m").commit({"a.txt": b"2"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        api.create_commit("alice/m", adding({"a.txt": b"3"}), commit_message="Late", parent_commit=seen)
    assert error.value.response.status_code == 412
    assert hub.repo("alice/m").files() == {"a.txt": b"2"}


@pytest.mark.parametrize("content", [LARGE, HUGE], ids=["basic", "multipart"])
def test_cut_upload_is_sent_again(hub: LoopbackHub, api: HfApi, content: bytes) -> None:
    api.create_repo("alice/m")
    fault = hub.fault("PUT", "^/lfs/", cut_after=1_000)
    api.create_commit("alice/m", adding({"w.bin": content}), commit_message="Add")
    assert fault.hits == 1
    assert [request.status for request in hub.requests if request.method == "PUT"][:2] == [0, 200]
    assert hub.repo("alice/m").files() == {"w.bin": content}
    assert hub.count("POST", "/commit/") == 1


def test_damaged_upload_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo("alice/m")
    hub.fault("PUT", "^/lfs/", alter=True)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'w\.bin'") as error:
        api.create_commit("alice/m", adding({"w.bin": LARGE}), commit_message="Add")
    assert "does not match the SHA-256" in str(error.value.__cause__)
    assert hub.count("POST", "/commit/") == 0


def test_slow_answer_and_stopped_hub(hub: LoopbackHub) -> None:
    hub.add_repo("alice/m")
    hub.fault("GET", "alice/m", delay=1.0)
    with pytest.raises(httpx.ReadTimeout):
        HfApi(hub.url).model_info("alice/m", timeout=0.1)
    assert HfApi(hub.url).model_info("alice/m", timeout=10).id == "alice/m"
    hub.stop()
    with pytest.raises(httpx.NetworkError):
        HfApi(hub.url).model_info("alice/m")


def test_card_metadata(hub: LoopbackHub, api: HfApi) -> None:
    config = json.dumps({"architectures": ["SwinForImageClassification"], "model_type": "swin"})
    card = "---\nlicense: mit\ntags: [vision]\n---\n# Cats"
    hub.add_repo("alice/m", files={"config.json": config, "README.md": card})
    info = api.model_info("alice/m", files_metadata=True)
    assert (info.pipeline_tag, info.library_name, info.card_data.license) == (
        "image-classification",
        "transformers",
        "mit",
    )
    assert {sibling.rfilename: sibling.size for sibling in info.siblings}["config.json"] == len(config)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit("alice/m", adding({"README.md": b"---\na: [\n---\n"}), commit_message="Bad")


CLIENTS = """
import json, sys, threading
import numpy as np, torch
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from huggingface_hub import HfApi
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTForImageClassification,
    ViTImageProcessor, pipeline,
)
from transformers.utils.hub import list_repo_templates

torch.set_num_threads(1)
folder = sys.argv[1]
found = {}

pictures = load_dataset("alice/pictures")
found["pictures"] = {split: [[r["image"].getpixel((0, 0)), r["label"]] for r in pictures[split]] for split in pictures}
found["names"] = pictures["train"].features["label"].names
extra = load_dataset("alice/pictures", "extra", split="train")
found["extra"] = [row["image"].size for row in extra]

table = pictures["train"].cast_column("image", Image())
table.push_to_hub("alice/table", "small", private=True)
first = HfApi().dataset_info("alice/table").sha
table.select([0]).push_to_hub("alice/table", "small")
sizes = [len(load_dataset("alice/table", "small", revision=r, split="train")) for r in (first, "main")]
back = load_dataset("alice/table", "small", revision=first, split="train")
found["table"] = sizes
found["same"] = all(
    np.array_equal(a["image"], b["image"]) and a["label"] == b["label"] for a, b in zip(table, back, strict=True)
)
streamed = load_dataset("alice/table", "small", split="train", streaming=True)
found["streamed"] = [row["label"] for row in streamed]

config = ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
    id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
)
torch.manual_seed(0)
model = ViTForImageClassification(config).eval()
processor = ViTImageProcessor(size={"height": 32, "width": 32})
model.push_to_hub("alice/vit", private=True)
processor.push_to_hub("alice/vit")

image = table[0]["image"]
with torch.inference_mode():
    wanted = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0].tolist()
loaded = AutoModelForImageClassification.from_pretrained("alice/vit")
found["weights"] = all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
found["config"] = AutoConfig.from_pretrained("alice/vit").id2label[1]
found["processor"] = AutoImageProcessor.from_pretrained("alice/vit").size["height"]
found["templates"] = list_repo_templates("alice/vit", local_files_only=False)
for arguments in ({"task": "image-classification"}, {}):
    scores = {answer["label"]: answer["score"] for answer in pipeline(**arguments, model="alice/vit")(image)}
    np.testing.assert_allclose([scores["cat"], scores["dog"]], wanted, atol=1e-6)

model.config.save_pretrained(folder)
torch.save(model.state_dict(), folder + "/pytorch_model.bin")
HfApi().create_repo("alice/pickled")
HfApi().upload_folder(repo_id="alice/pickled", folder_path=folder)
AutoModelForImageClassification.from_pretrained("alice/pickled")
for thread in threading.enumerate():
    if thread.name == "Thread-auto_conversion":
        found["conversion"] = True
        thread.join(30)
        assert not thread.is_alive()
print(json.dumps(found))
"""


def test_datasets_and_transformers(hub: LoopbackHub, tmp_path: Path) -> None:
    for number, path in enumerate(("train/cat/0", "train/cat/1", "train/dog/0", "test/dog/1", "more/a", "more/b")):
        file = tmp_path / "pictures" / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30 + number), (10 * number, 0, 0)).save(file)
    configs = "configs:\n- config_name: main\n  default: true\n  data_files:\n"
    configs += "  - {split: train, path: 'train/**'}\n  - {split: test, path: 'test/**'}\n"
    configs += "- config_name: extra\n  drop_labels: true\n  data_files: 'more/*'\n"
    (tmp_path / "pictures/README.md").write_text(f"---\n{configs}---\n")
    hub.add_repo("alice/pictures", type="dataset", private=True, folder=tmp_path / "pictures")
    (tmp_path / "model").mkdir()

    environment = {**os.environ, **hub.environment("hf_alice"), "HF_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [sys.executable, "-c", CLIENTS, str(tmp_path / "model")],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "pictures": {"train": [[[0, 0, 0], 0], [[10, 0, 0], 0], [[20, 0, 0], 1]], "test": [[[30, 0, 0], 1]]},
        "names": ["cat", "dog"],
        "extra": [[40, 34], [40, 35]],
        "table": [3, 1],
        "same": True,
        "streamed": [0],
        "weights": True,
        "config": "dog",
        "processor": 32,
        "templates": [],
        "conversion": True,
    }
    assert {r.status for r in hub.requests} <= {200, 206, 302, 404, 409}
    strangers = {r.path for r in hub.requests if not r.path.startswith("/")}
    assert all("datasets-server." in path or "safetensors-convert" in path for path in strangers), strangers
