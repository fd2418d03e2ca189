"""Batch normalization of one image on a CPU: its gradients against those of two copies, which PyTorch gets right."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import batch_norm

from cv_hf.config import ModelConfig
from cv_hf.models import build_model

LABELS = {"id2label": {0: "ant", 1: "bee"}, "label2id": {"ant": 0, "bee": 1}}


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_one_image_are_those_of_two_copies(tiny, training):
    config = ModelConfig(id=str(tiny("rt_detr")), config={"dropout": 0.0})
    model = build_model(config, "AutoModelForObjectDetection", LABELS).model.double().train(training)
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    gradients = []
    for copies in (1, 2):
        model.zero_grad()
        outputs = model(image.expand(copies, -1, -1, -1))
        (outputs.logits.square().sum() / copies).backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    one, two = gradients
    assert one.keys() == two.keys()
    assert any("decoder_input_proj" in name for name in one)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-4, atol=1e-9)


def test_pytorch_still_needs_it():
    torch.manual_seed(0)
    sequence = torch.randn(1, 100, 4)
    gradient = sequence[:, 10:74].transpose(1, 2).view(1, 4, 8, 8)
    found = []
    for each in (gradient, gradient.contiguous()):
        bias = torch.zeros(4, requires_grad=True)
        batch_norm(torch.randn(1, 4, 8, 8), None, None, torch.ones(4), bias, True).backward(each)
        found.append(bias.grad)
    torch.testing.assert_close(found[1], gradient.sum((0, 2, 3)))
    assert not torch.allclose(found[0], found[1])
