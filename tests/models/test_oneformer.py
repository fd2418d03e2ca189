"""OneFormer: trained with prompts and texts, saved so that pipeline() needs the checkpoint and nothing else."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
    AutoTokenizer,
    OneFormerProcessor,
    pipeline,
)

from cv_hf.config import ModelConfig
from cv_hf.errors import ModelError
from cv_hf.models import build_model, target_form
from cv_hf.models.oneformer import SUBTASKS, PromptedProcessor
from tests.models.test_segmentation_families import targets
from tests.tiny_segmentation import point_class_info_elsewhere

AUTO = ("AutoModelForUniversalSegmentation",)
NAMES = {0: "road", 1: "car", 2: "man"}
FIELDS = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}, "things": ["man", "car"]}
CLASSES = [[2, 1, 1, 0], [0]]


def build(folder, **model):
    return build_model(ModelConfig(id=str(folder), **model), AUTO, FIELDS)


@pytest.fixture
def built(tiny):
    torch.manual_seed(0)
    return build(tiny("oneformer"))


@pytest.fixture
def picture():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def batch(built, subtasks=("panoptic", "semantic")):
    wanted = targets(target_form(built.model), (4, 1))
    wanted["class_labels"] = [torch.tensor(ids) for ids in CLASSES]
    prompts = torch.cat([built.processor.prompt(subtask, 1)["task_inputs"] for subtask in subtasks])
    return {
        "pixel_values": torch.rand(2, 3, 64, 64),
        "task_inputs": prompts,
        "text_inputs": built.processor.texts(subtasks, CLASSES),
        **wanted,
    }


def save(built, folder):
    built.model.save_pretrained(folder)
    built.processor.save_pretrained(folder)


def test_texts(built):
    """As `_get_semantic_dict` and its kin in oneformer_unified_dataset_mapper.py of github.com/SHI-Labs/OneFormer."""
    processor, tokenizer = built.processor, built.processor.tokenizer
    for subtasks, expected in (
        (("panoptic", "semantic"), (["road", "car", "car", "man"], ["road"])),
        (("semantic", "instance"), (["road", "car", "man"], ["road"])),
    ):
        texts = processor.texts(subtasks, CLASSES)
        assert texts.shape == (2, 12, 32)
        assert texts.dtype == torch.int64
        for rows, names, subtask in zip(texts, expected, subtasks, strict=True):
            article = "an" if subtask == "instance" else "a"
            wanted = [f"a photo with a {name}" for name in names]
            wanted += [f"{article} {subtask} photo"] * (12 - len(names))
            for row, text in zip(rows.tolist(), wanted, strict=True):
                ids = tokenizer(text)["input_ids"]
                assert row == ids + [0] * (32 - len(ids))


def test_more_masks_than_texts(built):
    texts = built.processor.texts(["panoptic", "panoptic"], [[1] * 40, []])
    assert (texts[0] == texts[0, 0]).all()
    assert (texts[1] == texts[1, 0]).all()
    assert not torch.equal(texts[0, 0], texts[1, 0])


def test_prompts_are_what_the_pipeline_says(built, tmp_path, picture):
    save(built, tmp_path)
    answering = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    whole = OneFormerProcessor.from_pretrained(tmp_path)
    for subtask in SUBTASKS:
        ours = built.processor.prompt(subtask, 2)["task_inputs"]
        assert ours.shape == (2, 24)
        theirs = answering.preprocess(picture, subtask=subtask)
        assert torch.equal(theirs["task_inputs"], ours[:1])
        inputs = built.processor(images=[picture], return_tensors="pt")
        assert set(inputs) == {"pixel_values", "pixel_mask"}
        assert torch.equal(theirs["pixel_values"], inputs["pixel_values"])
        assert torch.equal(whole(picture, [subtask], return_tensors="pt")["task_inputs"], ours[:1])


def test_the_processor_is_an_image_processor(built, picture):
    processor = pickle.loads(pickle.dumps(built.processor))
    assert isinstance(processor, PromptedProcessor)
    assert processor.to_dict() == built.processor.image_processor.to_dict()
    assert processor.num_text == 12
    assert not hasattr(processor, "post_process_object_detection")
    inputs = processor(picture, return_tensors="pt")
    with torch.no_grad():
        outputs = built.model(**inputs, **processor.prompt("semantic", 1))
    assert processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])[0].shape == (60, 90)


def test_what_is_saved(built, tmp_path):
    save(built, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["is_training"] is False
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = json.loads((tmp_path / name).read_text())
        settings = settings.get("image_processor", settings)
        assert settings["metadata"] == {
            "0": "road",
            "1": "car",
            "2": "man",
            "thing_ids": [1, 2],
            "class_names": ["road", "car", "man"],
        }
        assert settings["num_text"] == 12
        assert not settings["class_info_file"]
        assert not settings.get("repo_path")
    text = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert str(tmp_path.parent) not in text
    assert "shi-labs" not in text
    for auto in (AutoProcessor, OneFormerProcessor):
        processor = auto.from_pretrained(tmp_path)
        assert (processor.task_seq_length, processor.max_seq_length) == (24, 32)
        assert processor.image_processor.metadata["thing_ids"] == [1, 2]
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == 0


SCRIPT = """
import json, sys
import numpy as np, PIL.Image
from transformers import pipeline
assert not any(name.startswith("cv_hf") for name in sys.modules)
answering = pipeline("image-segmentation", model=sys.argv[1], device="cpu")
image = PIL.Image.open(sys.argv[2])
def told(subtask):
    answer = answering(image, subtask=subtask, threshold=0.0)
    return [[one["label"], one["score"], np.array(one["mask"]).tolist()] for one in answer]
print(json.dumps([[told(subtask), told(subtask)] for subtask in ("semantic", "instance", "panoptic")]))
"""


def test_a_process_without_us_and_a_hub_without_more(tiny, hub, tmp_path, picture):
    """The repository alone answers all three subtasks, twice alike, and as the model in memory."""
    shutil.copytree(tiny("oneformer"), tmp_path / "source")
    point_class_info_elsewhere(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    hub.add_repo("tester/oneformer-source", files=files)
    torch.manual_seed(0)
    built = build("tester/oneformer-source")
    folder = tmp_path / "model"
    save(built, folder)
    hub.add_repo("tester/oneformer-trained", files={path.name: path.read_bytes() for path in folder.iterdir()})
    picture.save(tmp_path / "picture.png")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, "tester/oneformer-trained", str(tmp_path / "picture.png")]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    answers = dict(zip(SUBTASKS, json.loads(run.stdout), strict=True))
    assert not [request for request in hub.requests if "shi-labs" in request.path]
    for subtask, (first, second) in answers.items():
        assert first == second
        inputs = built.processor(images=[picture], return_tensors="pt")
        with torch.no_grad():
            outputs = built.model(**inputs, **built.processor.prompt(subtask, 1))
        post_process = getattr(built.processor, f"post_process_{subtask}_segmentation")
        if subtask == "semantic":
            expected = post_process(outputs, target_sizes=[(60, 90)])[0].numpy()
            assert first
            for label, _, mask in first:
                assert ((np.array(mask) > 0) == (expected == FIELDS["label2id"][label])).mean() > 0.99
            continue
        expected = post_process(outputs, threshold=0.0, overlap_mask_area_threshold=0.5, target_sizes=[(60, 90)])[0]
        told = [(NAMES[each["label_id"]], pytest.approx(each["score"], abs=1e-4)) for each in expected["segments_info"]]
        assert [(label, score) for label, score, _ in first] == told


def test_training_goes_on_from_what_was_saved(built, tmp_path):
    built.model.train()
    optimizer = torch.optim.SGD(built.model.parameters(), lr=1e-2)
    built.model(**batch(built)).loss.backward()
    optimizer.step()
    save(built, tmp_path)
    again = build(tmp_path)
    assert again.report.new == []
    assert again.report.unused == []
    state = again.model.state_dict()
    assert any("text_mapper" in name for name in state)
    assert all(torch.equal(state[name], tensor) for name, tensor in built.model.state_dict().items())
    plain = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    assert plain.model.text_mapper is None


def test_checkpoints_without_the_reader_of_texts(tiny, tmp_path):
    shutil.copytree(tiny("oneformer"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "text_mapper" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_training": False}))
    built = build(tmp_path)
    new = {name for name in built.report.new if "text_mapper" in name}
    assert new == {name for name in weights if "text_mapper" in name}
    assert built.model.train()(**batch(built)).loss.isfinite()


def test_class_info_in_another_repository(tiny, tmp_path, hub):
    shutil.copytree(tiny("oneformer"), tmp_path, dirs_exist_ok=True)
    point_class_info_elsewhere(tmp_path)
    with pytest.raises(Exception, match="oneformer_demo"):  # not there, or not in the cache
        AutoImageProcessor.from_pretrained(tmp_path)
    before = len(hub.requests)
    built = build(tmp_path)
    assert len(hub.requests) == before
    assert built.processor.metadata["class_names"] == list(NAMES.values())
    untouched = build_model(ModelConfig(id=str(tmp_path)), AUTO, {})
    assert untouched.processor.metadata["thing_ids"] == [0, 1, 2, 3, 4]


def test_things_stay_those_of_the_checkpoint(built, tmp_path):
    save(built, tmp_path)
    again = build_model(ModelConfig(id=str(tmp_path)), AUTO, {})
    assert again.processor.metadata == built.processor.metadata
    assert again.processor.metadata["thing_ids"] == [1, 2]


def test_no_tokenizer(tiny, tmp_path):
    shutil.copytree(tiny("oneformer"), tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        build(tmp_path)


def test_dropout_follows_the_mode(built, picture):
    inputs = {**built.processor(picture, return_tensors="pt"), **built.processor.prompt("panoptic", 1)}
    model = built.model.train()
    with torch.no_grad():
        assert not torch.equal(model(**inputs).masks_queries_logits, model(**inputs).masks_queries_logits)
        model.eval()
        first = model(**inputs)
        assert torch.equal(first.masks_queries_logits, model(**inputs).masks_queries_logits)
        assert first.text_queries is None
        for _ in range(2):  # evaluation in the middle of training
            model.train()
            assert model(**batch(built)).text_queries is not None
            model.eval()
            assert torch.equal(first.masks_queries_logits, model(**inputs).masks_queries_logits)
        assert model.config.is_training is False


def test_the_contrastive_loss(built):
    """The paper's, of (B, queries x channels): cross-entropy of similarities, both ways, times 0.5."""
    model = built.model.eval()
    inputs = batch(built)
    texts = inputs.pop("text_inputs")
    with torch.no_grad():
        torch.manual_seed(0)
        without = model(**inputs).loss
        torch.manual_seed(0)
        outputs = model(**inputs, text_inputs=texts)
        queries, words = outputs.transformer_decoder_contrastive_queries.flatten(1), outputs.text_queries.flatten(1)
        assert queries.shape == words.shape
        similar = nn.functional.normalize(queries, dim=1) @ nn.functional.normalize(words, dim=1).T
        logits = similar * model.criterion.logit_scale.exp().clamp(max=100)
        both = [nn.functional.cross_entropy(each, torch.arange(2)) for each in (logits, logits.T)]
    torch.testing.assert_close(outputs.loss - without, 0.5 * sum(both), rtol=1e-4, atol=1e-4)
    assert sum(both) > 0


def test_texts_train_their_reader(built):
    model = built.model.train()
    model(**batch(built)).loss.backward()
    for name, parameter in model.model.text_mapper.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


def test_a_copy_is_a_model_of_its_own(built):
    other = copy.deepcopy(built.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    inputs = batch(built)
    torch.manual_seed(0)
    expected = build_loss(built.model, inputs)
    torch.manual_seed(0)
    assert not torch.equal(build_loss(other, inputs), expected)
    other.load_state_dict(built.model.state_dict())
    torch.manual_seed(0)
    assert torch.equal(build_loss(other, inputs), expected)


def build_loss(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).loss
