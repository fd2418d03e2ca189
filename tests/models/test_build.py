from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, BertConfig, BertModel

from cv_hf.config import ModelConfig
from cv_hf.errors import HubError, ModelError
from cv_hf.models import build_model
from tests.tiny import tiny_model, tiny_model_like


def build(folder, names=("ant", "bee", "cat"), auto_class="AutoModelForImageClassification", **model):
    names = dict(enumerate(names))
    fields = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    return build_model(ModelConfig(id=str(folder), **model), auto_class, fields)


def fails(error, match, folder, **model):
    with pytest.raises(error, match=match) as raised:
        build(folder, **model)
    assert str(raised.value).count("\n") <= 1
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return str(raised.value)


@pytest.mark.parametrize("family", ["vit", "timm_efficientnet", "perceiver", "swiftformer"])
def test_a_head_is_reused_for_the_same_labels_only(tiny, family):
    same = [f"class_{index}" for index in range(5)]
    trained = AutoModelForImageClassification.from_pretrained(tiny(family)).state_dict()
    kept = build(tiny(family), same)
    assert kept.report.new == []
    assert all(torch.equal(tensor, trained[name]) for name, tensor in kept.model.state_dict().items())
    for other in (same[::-1], ["a", "b", "c", "d", "e"]):
        built = build(tiny(family), other)
        changed = {name for name, tensor in built.model.state_dict().items() if not torch.equal(tensor, trained[name])}
        assert changed
        assert changed == set(built.report.new)
        assert built.report.reused + len(built.report.new) == len(trained)


def test_no_fields_change_nothing(tiny):
    built = build_model(ModelConfig(id=str(tiny("vit"))), "AutoModelForImageClassification", {})
    assert built.model.config.id2label == {index: f"class_{index}" for index in range(5)}
    assert built.report.new == []


def test_report_lines(tiny):
    lines = "\n".join(build(tiny("vit_bare")).report.lines())
    assert "classifier.bias, classifier.weight" in lines
    assert "pooler.dense.weight" in lines
    assert "38 tensors" in lines


def test_half_precision_checkpoints_are_trained_in_float32(tiny, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(tiny("vit"), dtype=torch.float16)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((tiny("vit") / "preprocessor_config.json").read_bytes())
    built = build(tmp_path)
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.float32}
    built.model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "float32"


def test_timm_labels_are_replaced_a_second_time(tiny, tmp_path):
    first = build(tiny("timm_hub"), ["ant", "bee", "cat"])
    first.model.save_pretrained(tmp_path / "first")
    second = build(tmp_path / "first", ["x", "y"])
    second.model.save_pretrained(tmp_path / "second")
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["label_names"], config["num_classes"]) == (["x", "y"], 2)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "second")
    assert again.config.id2label == {0: "x", 1: "y"}
    assert again(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)


def test_configuration_fields(tiny):
    config = build(tiny("vit"), config={"hidden_dropout_prob": 0.25}).model.config
    assert config.hidden_dropout_prob == 0.25
    built = build(tiny("clip"), config={"vision_config": {"attention_dropout": 0.5}})
    assert built.model.config.vision_config.attention_dropout == 0.5
    assert built.model.config.vision_config.patch_size == 8
    timm = build(tiny("timm_vit"), config={"model_args": {"drop_path_rate": 0.3}}).model
    assert timm.config.model_args == {"img_size": 32, "drop_path_rate": 0.3}
    assert timm.timm_model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"hiden_dropout_prob": 0.1}, r"model\.config\.hiden_dropout_prob .* Did you mean 'hidden_dropout_prob'\?"),
        ({"hidden_dropout_prob": "much"}, r"model\.config\.hidden_dropout_prob: .*expected"),
        ({"num_labels": 4}, r"follows from the data"),
        ({"id2label": {0: "a"}}, r"follows from the data"),
        ({"image_size": 64}, r"write model\.image_size"),
        ({"num_hidden_layers": 3}, r"backbone weights failed to load: 16 tensors"),
    ],
)
def test_wrong_configuration_fields(tiny, config, match):
    fails(ModelError, match, tiny("vit"), config=config)


def test_models_of_another_kind(tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    message = fails(ModelError, "is a bert model, which has no ImageClassification head", tmp_path)
    assert "vit" in message
    assert "swin" in message


def test_folders_that_hold_no_model(tiny, tmp_path):
    fails(ModelError, "holds no model", tmp_path)
    (tmp_path / "config.json").write_text("{")
    fails(ModelError, "cannot be loaded", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit_of_tomorrow"}')
    fails(ModelError, "cannot be loaded.*vit_of_tomorrow", tmp_path)
    fails(ModelError, "neither a folder here nor a Hub id", "a b/c d")


def test_pickle_is_not_read(tiny, tmp_path, hub):
    for file in tiny("vit").iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(tiny("vit") / "model.safetensors"), tmp_path / "pytorch_model.bin")
    fails(ModelError, "no model.safetensors; pickle files can run code", tmp_path)
    hub.add_repo("models/pickled", folder=tmp_path)
    fails(ModelError, "refs/pr/", "models/pickled")
    assert hub.count("GET", "pytorch_model.bin") == hub.count("HEAD", "pytorch_model.bin") == 0
    assert hub.count("GET", "models/pickled/discussions") == 0


def test_damaged_and_incomplete_folders(tiny, tmp_path):
    for file in tiny("vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").unlink()
    fails(ModelError, "has no preprocessor_config.json", tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((tiny("vit") / "preprocessor_config.json").read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fails(ModelError, "model.safetensors is damaged", tmp_path)


def test_code_of_others_is_not_run(tiny, tmp_path):
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Strange"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "strange.py").write_text("raise SystemExit('ran')")
    fails(ModelError, "set model.trust_remote_code: true", tmp_path)


def test_sharded_checkpoints(tiny, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(tiny("vit"))
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (tmp_path / "preprocessor_config.json").write_bytes((tiny("vit") / "preprocessor_config.json").read_bytes())
    assert build(tmp_path).report.reused == 38


def test_the_hub_commit_is_kept(tiny, hub):
    repository = hub.add_repo("models/vit", folder=tiny("vit"))
    first = repository.commits[0].id
    repository.commit({"README.md": b"later"})
    built = build("models/vit")
    assert built.commit == repository.commits[0].id != first
    assert build("models/vit", revision=first).commit == first
    assert build(tiny("vit")).commit is None


def test_raw_timm_checkpoints_of_the_hub(tiny, hub):
    hub.add_repo("models/timm", folder=tiny("timm_hub"))
    built = build("models/timm")
    assert built.report.new == ["timm_model.fc.bias", "timm_model.fc.weight"]
    assert built.commit


def test_what_the_hub_refuses(tiny, hub, monkeypatch):
    hub.add_repo("models/open", folder=tiny("vit"))
    hub.add_repo("strangers/private", private=True, folder=tiny("vit"))
    fails(ModelError, r"neither a folder here nor a model on the Hub.*\n.*HF_TOKEN", "models/none")
    fails(ModelError, "HF_TOKEN", "strangers/private")
    fails(ModelError, "has no revision 'v9'", "models/open", revision="v9")
    hub.add_repo("models/gated", gated=True, folder=tiny("vit"))
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "")
        fails(ModelError, "gated|HF_TOKEN", "models/gated")


@pytest.mark.parametrize("what", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_hub_that_fails(tiny, hub, what, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    name = f"models/failing-{what[:5]}"
    hub.add_repo(name, folder=tiny("vit"))
    fault = hub.fault(path=f"{name}.*{what}", status=500, times=None)
    try:
        fails(HubError, "could not be fetched from the Hub", name)
    finally:
        hub.faults.remove(fault)
    assert fault.hits


def test_offline(tiny, hub, tmp_path, monkeypatch):
    AutoModelForImageClassification.from_pretrained(tiny("vit")).save_pretrained(tmp_path, max_shard_size="8KB")
    (tmp_path / "preprocessor_config.json").write_bytes((tiny("vit") / "preprocessor_config.json").read_bytes())
    hub.add_repo("models/cached-shards", folder=tmp_path)
    hub.add_repo("models/cached-timm", folder=tiny("timm_hub"))
    online = [build(name).commit for name in ("models/cached-shards", "models/cached-timm")]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [build(name).commit for name in ("models/cached-shards", "models/cached-timm")] == online
    fails(ModelError, "not in the local cache, and HF_HUB_OFFLINE", "models/never-seen")


def test_tiny_models_like_a_type(tmp_path):
    assert build(tiny_model_like("swinv2", tmp_path / "a")).model.config.model_type == "swinv2"
    timm = build(tiny_model_like("timm_wrapper", tmp_path / "b", architecture="test_convnext"))
    assert timm.model.config.architecture == "test_convnext"


def test_same_seed_same_tiny_model(tiny, tmp_path):
    again = load_file(tiny_model("vit", tmp_path) / "model.safetensors")
    other = load_file(tiny_model("vit", tmp_path / "other", seed=1) / "model.safetensors")
    for name, tensor in load_file(tiny("vit") / "model.safetensors").items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, other[name])


def test_dispensable_tensors_may_be_missing(tiny, tmp_path):
    for file in tiny("dinov2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("mask_token")}
    assert len(kept) == len(tensors) - 1
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert "dinov2.embeddings.mask_token" in build(tmp_path).report.new
