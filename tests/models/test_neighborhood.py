"""Neighborhood attention pixel by pixel, and Transformers' DiNAT with it, alone and as a backbone."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DinatConfig

import cv_hf
from cv_hf.config import ModelConfig
from cv_hf.models import build_model, neighborhood
from cv_hf.models.neighborhood import enable_dinat, neighborhood_attention, neighborhood_weights
from tests.tiny import tiny_model
from tests.tiny_detection import DETECTION_FAMILIES
from tests.tiny_segmentation import SEGMENTATION_FAMILIES

# Before DiNAT's own module is imported, which a NATTEN of today forbids.
enable_dinat()
modeling_dinat = importlib.import_module("transformers.models.dinat.modeling_dinat")

DINAT = {
    "model_type": "dinat",
    "embed_dim": 8,
    "depths": [2, 1, 1, 1],
    "num_heads": [2, 2, 4, 4],
    "kernel_size": 3,
    "dilations": [[1, 3], [2], [1], [1]],
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.3,
    "drop_path_rate": 0.3,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
LAST_THREE = {**DINAT, "out_features": ["stage2", "stage3", "stage4"]}
# height, width, kernel size, dilation: odd, even and oblong maps of one block and of many, the smallest there can be,
# and dilations that leave maps of unequal length.
MAPS = [
    (3, 3, 3, 1),
    (8, 9, 3, 1),
    (7, 16, 7, 1),
    (19, 10, 5, 1),
    (6, 6, 1, 3),
    (6, 7, 3, 2),
    (21, 14, 7, 2),
    (17, 23, 5, 3),
    (12, 29, 3, 4),
]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(neighborhood, "_CHUNK", 5000)
    monkeypatch.setattr(neighborhood, "_CHUNKS", 10**6)


def maps(height, width, kernel, *, batch=2, heads=2, size=3, dtype=torch.float64):
    """Random queries, keys, values and bias, all of which want gradients."""
    generator = torch.Generator().manual_seed(height * width + kernel)
    shapes = [(batch, height, width, heads, size)] * 3 + [(heads, 2 * kernel - 1, 2 * kernel - 1)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def reference(query, key, value, bias, dilation=1):
    """A pixel at a time, as the papers define it: those of its row's and column's residue that are nearest to it."""
    height, width, heads, size = query.shape[1:]
    kernel = (bias.shape[-1] + 1) // 2

    def nearest(place, length):
        return sorted(sorted(range(place % dilation, length, dilation), key=lambda other: abs(other - place))[:kernel])

    out = []
    for i in range(height):
        for j in range(width):
            seen = [(y, x) for y in nearest(i, height) for x in nearest(j, width)]
            ys, xs = zip(*seen, strict=True)
            places = [((y - i) // dilation + kernel - 1, (x - j) // dilation + kernel - 1) for y, x in seen]
            offsets = torch.stack([bias[:, down, across] for down, across in places], dim=-1)
            scores = torch.einsum("bhd,bnhd->bhn", query[:, i, j], key[:, ys, xs]) / size**0.5 + offsets
            out.append(torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), value[:, ys, xs]))
    return torch.stack(out, dim=1).view(-1, height, width, heads, size)


@pytest.mark.parametrize("shape", MAPS)
def test_each_pixel_attends_to_its_nearest(shape, small_chunks):
    *shape, dilation = shape
    inputs = maps(*shape)
    expected = reference(*inputs, dilation)
    out = neighborhood_attention(*inputs, dilation)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    grad = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(result, inputs, grad) for result in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_gradients(dilation, dropout, small_chunks):
    def attention(*inputs):
        torch.manual_seed(0)
        return neighborhood_attention(*inputs, dilation, dropout)

    assert torch.autograd.gradcheck(attention, maps(6, 10, 3, batch=1, size=2), fast_mode=True)


def test_the_bias_is_that_of_the_key_relative_to_the_query():
    query, key, value, bias = maps(9, 10, 5)
    bias = torch.zeros_like(bias)
    bias[:, 4 + 2, 4 - 1] = 1e4
    out = neighborhood_attention(query, key, value, bias)
    assert torch.equal(out[:, 2:7, 2:8], value[:, 4:9, 1:7])
    # The window of the last row reaches four rows up and none down; that of the first column no column to the left.
    bias = torch.zeros_like(bias)
    bias[:, 0, 8] = 1e4
    out = neighborhood_attention(query, key, value, bias)
    assert torch.equal(out[:, 8, 0], value[:, 4, 4])


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (7, 2), (5, 3)])
def test_equal_to_natten(kernel, dilation):
    natten = pytest.importorskip("natten", reason="NATTEN is not installed; its source package builds without CUDA")
    query, key, value, bias = maps(21, 16, kernel, size=32, dtype=torch.float32)
    out = neighborhood_attention(query, key, value, torch.zeros_like(bias), dilation)
    queries = (query.detach(), key.detach(), value.detach())  # it has no backward pass on a CPU
    expected = natten.na2d(*queries, kernel_size=kernel, dilation=dilation, backend="flex-fna")
    torch.testing.assert_close(out, expected)


def test_weights_are_those_that_values_are_summed_with():
    query, key, value, bias = maps(9, 8, 3)
    weights = neighborhood_weights(query, key, bias, dilation=2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 9, 8, dtype=torch.float64))
    # Of the pixel at (8, 1): rows 4, 6, 8 and columns 1, 3, 5.
    seen = value[:, 4::2, 1:6:2].flatten(1, 2)
    expected = torch.einsum("bhn,bnhd->bhd", weights[:, :, 8, 1], seen)
    torch.testing.assert_close(neighborhood_attention(query, key, value, bias, 2)[:, 8, 1], expected)


def test_dropout_keeps_the_mean():
    query, key, value, bias = maps(16, 16, 5)
    out = neighborhood_attention(query, key, torch.ones_like(value), bias, 1, 0.5)[..., 0]
    assert out.std() > 0.1
    assert out.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("shape", "kernel", "dilation", "why"), [((9, 9), 4, 1, "even"), ((6, 9), 3, 3, "6 x 9")])
def test_what_cannot_be(shape, kernel, dilation, why):
    for function in (neighborhood_attention, lambda query, key, _, *rest: neighborhood_weights(query, key, *rest)):
        with pytest.raises(ValueError, match=why):
            function(*maps(*shape, kernel), dilation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    config = DinatConfig(**{**DINAT, "drop_path_rate": 0.0, "layer_scale_init_value": 0.5})
    module = modeling_dinat.NeighborhoodAttention(config, 16, 2, 3, 2).eval()
    torch.nn.init.normal_(module.rpb)
    pixels = torch.randn(2, 12, 9, 16)

    def run():
        (out,) = module(pixels)
        return out, torch.autograd.grad(out.float().square().sum(), list(module.parameters()))

    expected, expected_grads = run()
    with torch.autocast("cpu", dtype=dtype):
        out, grads = run()
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.02 * expected.abs().max().item())
    # Of one scale for all: the gradient of the keys' bias, which adds the same to all scores of a query, is 0.
    scale = max(grad.abs().max().item() for grad in expected_grads)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, wanted, rtol=0, atol=0.02 * scale)


class Largest(TorchDispatchMode):
    """The most elements that one tensor had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_memory_is_that_of_the_maps():
    for edge in (48, 96):
        inputs = maps(edge, edge, 7, batch=1, size=8, dtype=torch.float32)
        kept: list[int] = []
        with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(partial(_note, kept), lambda saved: saved):
            neighborhood_attention(*inputs).sum().backward()
        assert largest.elements <= 2**20
        assert sum(kept) < 4.1 * inputs[0].numel()


def _note(kept, tensor):
    kept.append(tensor.numel())
    return tensor


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_module_computes_what_the_papers_do(dilation):
    torch.manual_seed(0)
    module = modeling_dinat.NeighborhoodAttention(DinatConfig(**DINAT), 8, 2, 3, dilation).eval().double()
    torch.nn.init.normal_(module.rpb)
    pixels = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    heads = [layer(pixels).view(2, 6, 9, 2, 4) for layer in (module.query, module.key, module.value)]
    expected = reference(*heads, module.rpb, dilation).flatten(3)
    out, weights = module(pixels, output_attentions=True)
    torch.testing.assert_close(out, expected)
    assert weights.shape == (2, 2, 6, 9, 9)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "rpb": (2, 5, 5),
        **{f"{name}.weight": (8, 8) for name in ("query", "key", "value")},
        **{f"{name}.bias": (8,) for name in ("query", "key", "value")},
    }


def test_transformers_own_attention_is_still_wrong(monkeypatch):
    """When this fails, see in Transformers whether `enable_dinat` is still needed."""
    monkeypatch.setattr(transformers.utils, "is_natten_available", lambda: False)
    spec = importlib.util.spec_from_file_location("transformers.models.dinat.untouched", modeling_dinat.__file__)
    untouched = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, untouched.__name__, untouched)
    spec.loader.exec_module(untouched)
    given = []
    monkeypatch.setattr(untouched, "natten2dqkrpb", lambda query, *rest: given.append(tuple(query.shape)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        untouched.NeighborhoodAttention(DinatConfig(**DINAT), 8, 2, 3, 1)(torch.zeros(1, 6, 9, 8))
    # NATTEN wants (batch, heads, height, width, size); this is (batch, width, height, heads, size).
    assert given == [(1, 9, 6, 2, 4)]
    assert not untouched.DinatPreTrainedModel.supports_gradient_checkpointing
    if importlib.util.find_spec("natten") is None:
        with pytest.raises(ImportError, match="requires the natten library"):
            untouched.DinatModel(DinatConfig(**DINAT))


def test_enabling_again_changes_nothing():
    before = dict(vars(modeling_dinat))
    enable_dinat()
    assert vars(modeling_dinat) == before


def test_gradient_checkpointing(monkeypatch):
    torch.manual_seed(0)
    config = DinatConfig(**{**DINAT, "hidden_dropout_prob": 0.0, "drop_path_rate": 0.0}, num_labels=3)
    model = modeling_dinat.DinatForImageClassification(config).train()
    pixels, calls = torch.randn(2, 3, 48, 64), []
    attention = neighborhood_attention
    monkeypatch.setattr(neighborhood, "neighborhood_attention", lambda *args: calls.append(1) or attention(*args))

    def gradients():
        calls.clear()
        torch.manual_seed(1)
        loss = model(pixel_values=pixels, labels=torch.tensor([0, 2])).loss
        return len(calls), torch.autograd.grad(loss, list(model.parameters())), len(calls)

    forward, expected, both = gradients()
    assert (forward, both) == (5, 5)
    model.gradient_checkpointing_enable()
    forward, grads, both = gradients()
    assert (forward, both) == (5, 10)
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [
        ("upernet_swin", "AutoModelForSemanticSegmentation"),
        ("maskformer", "AutoModelForUniversalSegmentation"),
        ("mask2former", "AutoModelForUniversalSegmentation"),
        ("oneformer", "AutoModelForUniversalSegmentation"),
        ("detr_panoptic", "AutoModelForUniversalSegmentation"),
        ("detr", "AutoModelForObjectDetection"),
        ("conditional_detr", "AutoModelForObjectDetection"),
        ("dab-detr", "AutoModelForObjectDetection"),
        ("deformable_detr", "AutoModelForObjectDetection"),
    ],
)
def test_as_a_backbone(family, auto_class, tmp_path, monkeypatch):
    families = SEGMENTATION_FAMILIES if family in SEGMENTATION_FAMILIES else DETECTION_FAMILIES
    around = dict(families[family].config)
    around["backbone_config"] = LAST_THREE if family == "deformable_detr" else DINAT
    around.update({"auxiliary_in_channels": 32} if family == "upernet_swin" else {})
    around.update({"is_training": False} if family == "oneformer" else {})
    monkeypatch.setitem(families, "with_dinat", dataclasses.replace(families[family], config=around))
    folder = tiny_model("with_dinat", tmp_path / "made")
    cls = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    assert cls in getattr(transformers, auto_class)._model_mapping.values() or family == "detr_panoptic"
    model = cls.from_pretrained(folder).eval()
    torch.manual_seed(0)
    inputs = {"pixel_values": torch.randn(2, 3, 64, 96)}
    if family == "oneformer":
        inputs["task_inputs"] = torch.ones(2, 24, dtype=torch.long)
    answers = outputs(model, inputs)
    torch.testing.assert_close(outputs(model, inputs), answers)
    alone = outputs(model, {name: tensor[:1] for name, tensor in inputs.items()})
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, answers[name][:1], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(outputs(cls.from_pretrained(tmp_path / "saved"), inputs), answers)

    # In evaluation mode: stochastic depth may leave out all images of so small a batch.
    model(**inputs, **targets(family)).loss.backward()
    tables = {name: parameter.grad for name, parameter in model.named_parameters() if name.endswith(".rpb")}
    assert len(tables) == 5
    assert all(grad is not None and grad.abs().sum() > 0 for grad in tables.values())


def outputs(model, inputs):
    with torch.no_grad():
        found = model(**inputs)
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor) and value.ndim > 1}


def targets(family):
    masks = torch.zeros(2, 64, 96)
    masks[0, 8:40, 16:64] = masks[1, 40:, 30:] = 1
    if family == "upernet_swin":
        return {"labels": torch.stack([masks[0], masks[1]]).long()}
    if family in ("maskformer", "mask2former", "oneformer"):
        return {"mask_labels": [masks] * 2, "class_labels": [torch.tensor([0, 1])] * 2}
    boxes = torch.tensor([[0.42, 0.38, 0.5, 0.5], [0.66, 0.81, 0.69, 0.38]])
    objects = {"class_labels": torch.tensor([0, 1]), "boxes": boxes}
    return {"labels": [{**objects, "masks": masks} if family == "detr_panoptic" else objects] * 2}


def test_a_recipe_trains_it(recipe):
    run = cv_hf.finetune(recipe("dinat", train={"gradient_checkpointing": True}))
    assert run.metrics["train"]["steps"] == 3
    assert cv_hf.load_trained(run.model).model.config.model_type == "dinat"


def test_pipeline_in_another_process_beside_a_natten_of_today(tmp_path, tiny):
    (tmp_path / "natten").mkdir()
    for name in ("__init__", "functional"):
        (tmp_path / "natten" / f"{name}.py").write_text("")
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    folder = str(tiny("dinat"))
    script = (
        "import json, sys; from transformers import pipeline; import cv_hf; cv_hf.enable_dinat()\n"
        "print(json.dumps(pipeline('image-classification', model=sys.argv[1], device='cpu')(sys.argv[2])))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}",
            folder,
            tmp_path / "a.png",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    built = build_model(ModelConfig(id=folder), "AutoModelForImageClassification", {})
    with torch.no_grad():
        image = PIL.Image.open(tmp_path / "a.png")
        scores = built.model(**built.processor([image], return_tensors="pt")).logits.softmax(-1)[0]
    answer = {entry["label"]: entry["score"] for entry in json.loads(done.stdout.splitlines()[-1])}
    assert answer == pytest.approx({built.model.config.id2label[i]: s for i, s in enumerate(scores.tolist())}, abs=1e-6)
