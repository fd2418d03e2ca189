"""Datasets of the loopback Hub, by unmodified clients."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cv_hf.config import DataConfig
from cv_hf.data import LabelMap, decode, load_splits
from cv_hf.data import hub as hub_reader
from cv_hf.errors import CvHfError, DataError, HubError
from tests.data.samples import TASK, png

NAMES = ["cat", "dog"]


def parquet(number, first=0):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = [
        {"image": {"bytes": png(index), "path": f"{index}.png"}, "label": index % 2}
        for index in range(first, first + number)
    ]
    content = io.BytesIO()
    datasets.Dataset.from_list(rows, features=features).to_parquet(content)
    return content.getvalue()


def load(id, **data):
    lines = []
    return load_splits(DataConfig(id=id, **data), TASK, 0, lines.append), lines


def refused(kind, match, id, **data):
    with pytest.raises(kind, match=match) as error:
        load(id, **data)
    assert 1 <= len(str(error.value).splitlines()) <= 2
    assert error.value.exit_code == {DataError: 2, HubError: 3}[kind]
    assert error.value.__cause__ is None


def test_a_dataset_of_parquet_files(hub):
    files = {"data/train-00000-of-00001.parquet": parquet(8), "data/test-00000-of-00001.parquet": parquet(4, 8)}
    repository = hub.add_repo("tester/pets", type="dataset", files=files)
    splits, lines = load("tester/pets")
    assert splits.labels == LabelMap(("cat", "dog"), (0, 1))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 2, 4)
    assert splits.source.commit == huggingface_hub.HfApi().dataset_info("tester/pets").sha
    assert len(splits.source.commit) == 40
    assert [row["image"]["bytes"] for row in splits.test] == [png(index) for index in range(8, 12)]
    assert splits.test["file"][:] == ["8.png", "9.png", "10.png", "11.png"]
    assert "columns: image from image, label from label" in lines[-2]
    assert lines[-1].startswith(f"data: tester/pets at {splits.source.commit[:8]}: hub; train 6")
    old = splits.source.commit
    repository.commit({"data/train-00000-of-00001.parquet": parquet(20)})
    assert len(load("tester/pets", revision=old)[0].train) == 6
    newer, _ = load("tester/pets")
    assert newer.source.commit != old
    assert len(newer.train) + len(newer.validation) == 20
    refused(DataError, "no revision 'nope'", "tester/pets", revision="nope")


def test_a_push_between_resolving_and_loading_changes_nothing(hub, monkeypatch):
    repository = hub.add_repo("tester/moving", type="dataset", files={"train.parquet": parquet(8)})
    old = hub_reader._resolve("tester/moving", None)
    repository.commit({"train.parquet": parquet(20)})
    monkeypatch.setattr(hub_reader, "_resolve", lambda id, revision: old)
    source = hub_reader.read("tester/moving")
    assert (source.commit, len(source.splits["train"])) == (old, 8)


def test_a_dataset_of_image_files(hub):
    files = {f"{split}/{name}/{i}.png": png(i) for split in ("train", "test") for name in NAMES for i in range(4)}
    hub.add_repo("tester/folders", type="dataset", files=files)
    splits, _ = load("tester/folders")
    assert splits.labels.names == ("cat", "dog")
    assert sorted(splits.test["file"]) == sorted(f"test/{name}/{i}.png" for name in NAMES for i in range(4))
    assert Counter(splits.train["label"]) == {0: 3, 1: 3}
    for row in splits.test:
        assert decode(row["image"], row["file"])[0].size == (8, 8)
        assert splits.labels.names[row["label"]] == row["file"].split("/")[1]


def test_paths_of_this_machine_are_not_read(hub, tmp_path, capfd):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    rows = [{"image": {"bytes": png(index), "path": str(secret)}, "label": index % 2} for index in range(8)]
    rows += [{"image": {"bytes": None, "path": path}, "label": 0} for path in (str(secret), "relative.png")]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    content = io.BytesIO()
    # Not by to_parquet, which would embed the file.
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), content)
    hub.add_repo("tester/leak", type="dataset", files={"train.parquet": content.getvalue()})
    splits, _ = load("tester/leak")
    assert len(splits.train) + len(splits.validation) == 8
    assert all(row["image"]["bytes"] for row in splits.train)
    assert splits.train["file"][0].startswith("train[0] secret.png")
    found = {code: entry["files"] for code, entry in splits.findings.to_dict().items()}
    assert found == {"missing-image": ["relative.png"], "path-outside": [str(secret)]}
    assert capfd.readouterr() == ("", "")
    refused(DataError, "secret.png: .*path-outside", "tester/leak", on_bad_sample="stop")


def test_paths_in_a_column_of_text_are_not_read_either(hub, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    rows = [{"image": str(secret), "label": "cat"}, {"image": "relative.png", "label": "dog"}] * 4
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    hub.add_repo("tester/text", type="dataset", files={"train.parquet": content.getvalue()})
    refused(DataError, "secret.png: .*path-outside", "tester/text", on_bad_sample="stop")
    refused(DataError, "no .*image|none of|path-outside|missing-image", "tester/text")


def test_private_datasets(hub, monkeypatch):
    hub.add_repo("tester/secret", type="dataset", private=True, files={"train.parquet": parquet(8)})
    assert len(load("tester/secret")[0].train) == 6
    monkeypatch.setenv("HF_TOKEN", "")
    refused(DataError, "not found .*private and no token is set", "tester/secret")
    hub.add_token("hf_stranger", user="stranger")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    refused(DataError, "not found .*the token in use cannot read it", "tester/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    refused(DataError, "tester/secret.*hf auth login|refused the token", "tester/secret")


def test_gated_datasets(hub, monkeypatch):
    hub.add_repo("owner/gated", type="dataset", gated=True, files={"train.parquet": parquet(8)})
    hub.add_token("hf_other", user="other", role="read")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    refused(DataError, "owner/gated is gated", "owner/gated")


def test_configurations(hub):
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("big", "small"))
    card = f"---\nconfigs:\n{configs}---\n"
    files = {"README.md": card, "big.parquet": parquet(12), "small.parquet": parquet(8)}
    hub.add_repo("tester/configs", type="dataset", files=files)
    assert len(load("tester/configs", config="big")[0].train) == 10
    refused(DataError, "several configurations.\nSet data.config to one of: big, small", "tester/configs")
    refused(DataError, "no configuration 'bog'. Did you mean 'big'", "tester/configs", config="bog")


def test_what_is_not_there(hub):
    refused(DataError, "nobody/nothing was not found", "nobody/nothing")
    refused(DataError, r"phots was not found on the Hub \(nor is there a file or folder phots here\)", "phots")
    refused(DataError, "'nothing at all' is neither a file", "nothing at all")
    hub.add_repo("tester/empty", type="dataset", files={"notes.md": "nothing"})
    refused(DataError, "tester/empty cannot be loaded", "tester/empty")


def test_scripts_do_not_run(hub, tmp_path):
    proof = tmp_path / "ran"
    script = f"open({str(proof)!r}, 'w')\n"
    hub.add_repo("tester/script", type="dataset", files={"script.py": script, "README.md": "# x"})
    refused(DataError, "loading script.*\n.*refs/convert/parquet", "tester/script")
    assert not proof.exists()


def test_a_failing_hub_is_not_the_users_fault(hub):
    hub.add_repo("tester/flaky", type="dataset", files={"train.parquet": parquet(8)})
    fault = hub.fault("GET", r"/api/datasets/tester/flaky", times=None, status=500)
    refused(HubError, "tester/flaky: .*500.*\n.*same command again", "tester/flaky")
    fault.times = 0
    assert len(load("tester/flaky")[0].train) == 6


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("HEAD", "/resolve/", {"status": 500}),
        ("GET", "/tree/", {"status": 503}),
        ("GET", "/lfs/", {"status": 429}),
        ("GET", "/lfs/", {"cut_after": 100}),
    ],
)
def test_a_hub_that_fails_half_way(method, path, fault, hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub waits 23 s between its tries
    name = f"tester/half-{method}-{len(hub.requests)}".lower()
    repository = hub.add_repo(name, type="dataset", files={"train.parquet": parquet(8)})
    planted = hub.fault(method, path, times=None, **fault)
    try:
        refused(HubError, name, name)
        assert planted.hits
        planted.times = 0
        first, _ = load(name)
        repository.commit({"train.parquet": parquet(12)})
        # The cache holds the first commit now, which must not be taken for the second.
        planted.times = None
        refused(HubError, name, name)
    finally:
        planted.times = 0
    assert load(name)[0].source.commit != first.source.commit


def test_an_unreachable_hub(hub):
    code = """
from cv_hf.data import hub
from cv_hf.errors import CvHfError
try:
    hub.read("phots")
except CvHfError as error:
    print(type(error).__name__, error.exit_code, str(error).replace("\\n", " | "))
"""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("HubError 3 dataset phots: the Hub cannot be reached")
    assert "nor is there a file or folder phots here" in run.stdout


def test_offline_reads_what_was_downloaded(hub, tmp_path):
    hub.add_repo("tester/cached", type="dataset", files={"train.parquet": parquet(8)})
    code = """
import sys
from cv_hf.data import hub
from cv_hf.errors import CvHfError
try:
    source = hub.read(sys.argv[1], revision=sys.argv[2] or None)
    print(len(source.splits["train"]), source.commit)
except CvHfError as error:
    print(type(error).__name__, error.exit_code, str(error).replace("\\n", " | "))
"""

    def read(id, offline, revision=""):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline}
        command = [sys.executable, "-c", code, id, revision]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    online = read("tester/cached", "0")
    assert online.split()[0] == "8", online
    asked = len(hub.requests)
    assert read("tester/cached", "1") == online
    assert read("tester/cached", "1", online.split()[1]) == online
    assert read("tester/cached", "1", "a" * 40).startswith("DataError 2 dataset tester/cached: offline")
    other = read("tester/other", "1")
    assert other.startswith("DataError 2 dataset tester/other: offline (HF_HUB_OFFLINE), and not in")
    assert "nor is there a file or folder tester/other here" in other
    assert len(hub.requests) == asked


def test_a_folder_of_the_same_name_does_not_shadow_the_hub(hub, tmp_path, monkeypatch):
    hub.add_repo("tester/shadow", type="dataset", files={"train.parquet": parquet(8)})
    (tmp_path / "tester/shadow").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert len(load("tester/shadow", format="hub")[0].train) == 6
    (tmp_path / "tester/local").mkdir()
    refused(DataError, "not found on the Hub, or is private", "tester/local", format="hub")
    refused(DataError, "holds nothing that is read", "tester/shadow")


def test_every_error_is_for_the_user():
    for error in (RuntimeError("x\ny"), ValueError(), OSError("disk full")):
        explained = hub_reader._explained(error, "a/b", None, None)
        assert isinstance(explained, CvHfError)
        assert "\n" not in str(explained)
