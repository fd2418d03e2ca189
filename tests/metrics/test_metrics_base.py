"""The adapter: an evaluate.Metric without files, locks or network."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import datasets
import evaluate
import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from cv_hf.errors import DataError
from cv_hf.metrics import ClassificationMetric, MultiLabelMetric, SampleRecords

NAMES = ["cat", "dog", "eel"]
RIGHT = {"predictions": np.eye(3), "references": [0, 1, 2]}
WRONG = {"predictions": np.eye(3), "references": [1, 2, 0]}


@pytest.mark.parametrize("kind", [ClassificationMetric, MultiLabelMetric])
def test_is_an_evaluate_metric_that_describes_itself(kind):
    metric = kind(NAMES)
    assert isinstance(metric, evaluate.Metric)
    assert metric.description
    assert metric.module_type == "metric"
    assert metric.inputs_description in metric.compute.__doc__
    assert "stored examples: 0" in repr(metric)


def test_compute_starts_anew():
    metric = ClassificationMetric(NAMES)
    metric.add_batch(**WRONG)
    assert len(metric) == 3
    assert metric.compute()["accuracy"] == 0
    assert len(metric) == 0
    metric.add_batch(**RIGHT)
    assert metric.compute()["accuracy"] == 1
    with pytest.raises(DataError, match="no sample"):
        metric.compute()


def test_add_add_batch_and_compute_count_alike():
    whole = ClassificationMetric(NAMES).compute(**WRONG)
    one_by_one, with_last_batch = ClassificationMetric(NAMES), ClassificationMetric(NAMES)
    for scores, label in zip(WRONG["predictions"], WRONG["references"], strict=True):
        one_by_one.add(prediction=scores, reference=label)
    with_last_batch.add_batch(predictions=WRONG["predictions"][:1], references=WRONG["references"][:1])
    last = with_last_batch.compute(predictions=WRONG["predictions"][1:], references=WRONG["references"][1:])
    assert one_by_one.compute() == whole == last


def test_add_takes_tensors_of_any_precision():
    metric = ClassificationMetric(NAMES)
    metric.add(
        prediction=torch.tensor([0.0, 1.0, 0.0], dtype=torch.bfloat16, requires_grad=True), reference=torch.tensor(1)
    )
    assert metric.compute()["accuracy"] == 1


def test_merge_drops_samples_seen_twice():
    one, other = ClassificationMetric(NAMES), ClassificationMetric(NAMES)
    one.add_batch(**RIGHT, sample_ids=["a", "b", "c"])
    other.add_batch(predictions=np.eye(3)[[0, 0]], references=[0, 1], sample_ids=["c", "d"])
    one.merge(pickle.loads(pickle.dumps(other)))
    result = one.compute()
    assert result["num_samples"] == 4
    assert result["accuracy"] == 0.75


def test_numbers_counted_by_the_metric_itself_are_no_identity():
    """Two processes would both count 0, 1, 2, and every sample of the second be taken for a duplicate."""
    numbered, named = ClassificationMetric(NAMES), ClassificationMetric(NAMES)
    numbered.add_batch(**RIGHT)
    named.add_batch(**RIGHT, sample_ids=[7, 8, 9])
    for one, other in ((numbered, named), (named, numbered)):
        with pytest.raises(DataError, match="sample_ids"):
            one.merge(other)
    with pytest.raises(DataError, match="for all batches or for none"):
        numbered.add_batch(**RIGHT, sample_ids=[7, 8, 9])
    with pytest.raises(DataError, match="for all batches or for none"):
        named.add_batch(**RIGHT)


def test_missing_inputs_are_named():
    with pytest.raises(DataError, match="both predictions and references"):
        ClassificationMetric(NAMES).compute(predictions=np.eye(3))
    with pytest.raises(DataError, match="2 sample ids for 3 samples"):
        ClassificationMetric(NAMES).add_batch(**RIGHT, sample_ids=[0, 1])


def test_works_in_evaluate_combine():
    both = evaluate.combine([ClassificationMetric(NAMES), ClassificationMetric(NAMES[::-1])])
    both.add_batch(**RIGHT)
    both.add(prediction=[1.0, 0.0, 0.0], reference=2)
    result = both.compute()
    assert result["classification_metric_0_accuracy"] == result["classification_metric_1_accuracy"] == 0.75
    assert result["classification_metric_0_per_class"]["cat"] == result["classification_metric_1_per_class"]["eel"]


def test_gives_the_pipelines_accuracy_in_evaluate_evaluator(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    images, labels = [PIL.Image.fromarray(pixels) for pixels in noise], [0, 1, 2, 0, 1, 2]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    result = evaluate.evaluator("image-classification").compute(
        str(tmp_path),
        datasets.Dataset.from_dict({"image": images, "label": labels}, features=features),
        metric=ClassificationMetric(NAMES),
        label_mapping=config.label2id,
    )
    pipe = transformers.pipeline("image-classification", model=str(tmp_path))
    best = [pipe(picture)[0]["label"] for picture in images]
    assert result["accuracy"] == np.mean([name == NAMES[label] for name, label in zip(best, labels, strict=True)])
    assert result["num_samples"] == 6


def test_records_hold_each_id_once_and_pickle_compactly():
    records = SampleRecords(np.dtype([("value", "i4")]))
    for start in range(0, 1000, 7):
        ids = np.arange(start, start + 10) % 1000
        records.add(ids, np.array([(i,) for i in ids], dtype=[("value", "i4")]))
    assert len(records) == 1000
    copy = pickle.loads(pickle.dumps(records))
    assert sorted(copy.array["value"].tolist()) == list(range(1000))
    assert len(pickle.dumps(records)) < 1000 * (4 + 5) + 500
    copy.add([1000, 5], np.array([(-1,), (-2,)], dtype=[("value", "i4")]))
    assert copy.array["value"].tolist() == [*records.array["value"].tolist(), -1]


def test_ids_are_compared_by_value():
    records = SampleRecords(np.dtype([("value", "i4")]))
    for ids in ([1, 2], np.array([1, 2]), torch.tensor([1, 2]), [np.int32(1), torch.tensor(2)]):
        records.add(ids, np.zeros(2, records.array.dtype))
    assert len(records) == 2


# While importing, libraries probe for a temporary folder and for IPv6; only connections are looked for then.
WATCHED = """
import json, os, sys
seen, imported = [], False
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        seen.append(event)
    elif imported and event == "open":
        mode, flags = args[1], args[2]
        if set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(f"open {args[0]}")
    elif imported and event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "socket.bind"):
        seen.append(f"{event} {args}")
sys.addaudithook(watch)
import numpy as np
from cv_hf.metrics import ClassificationMetric, MultiLabelMetric
imported = True
single, multi = ClassificationMetric(["a", "b"]), MultiLabelMetric(["a", "b"])
single.add_batch(predictions=np.eye(2), references=[0, 1])
multi.add_batch(predictions=np.eye(2), references=np.eye(2))
print(json.dumps([single.compute()["accuracy"], multi.compute()["map"], seen]))
"""


def test_writes_no_file_and_calls_no_network(tmp_path):
    """In a home that cannot be made, since a file is in its place (which stops root as well)."""
    (tmp_path / "file").touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(tmp_path / "file"), "HF_HOME": str(tmp_path / "file" / "hf"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [1.0, 1.0, []]
    assert os.listdir(tmp_path) == ["file"]
