"""Faster kernels give the same outputs and gradients, and leave the model what it was."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import nn
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

from cv_hf.models.kernels import quicken


class Net(nn.Module):
    """A depthwise and a plain convolution between frozen batch norms of two libraries."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.detr = DetrFrozenBatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 1)
        self.timm = FrozenBatchNormAct2d(8)
        for norm in (self.detr, self.timm):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, name).data.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.timm(self.plain(self.detr(self.deep(x))))


def outputs(model: nn.Module, *, autocast: bool) -> list[torch.Tensor]:
    """The output and all gradients, the input's among them."""
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [y, *torch.autograd.grad((y.float() ** 2).sum(), [x, *learnt])]


@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_and_gradients_stay_the_same(autocast: bool):
    plain, quick = Net(), Net()
    assert quicken(quick, depthwise=True) == {"frozen batch norms": 2, "depthwise convolutions": 1}
    exact = outputs(plain, autocast=False)
    for mine, other, truth in zip(
        outputs(quick, autocast=autocast), outputs(plain, autocast=autocast), exact, strict=True
    ):
        if autocast:  # both round, and neither by more than bfloat16 does
            scale = truth.abs().max()
            assert (mine.float() - truth).abs().max() <= 0.02 * scale
            assert (mine.float() - other.float()).abs().max() <= 0.03 * scale
        else:
            torch.testing.assert_close(mine, other)


def test_depthwise_convolutions_run_in_float32_and_answer_as_autocast_does():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3))
    assert quicken(model, depthwise=True)["depthwise convolutions"] == 1
    seen = []
    original = nn.Conv2d._conv_forward

    def watched(self, x, weight, bias):
        seen.append((self.groups, x.dtype, torch.is_autocast_enabled("cpu")))
        return original(self, x, weight, bias)

    nn.Conv2d._conv_forward = watched
    try:
        with torch.autocast("cpu", torch.bfloat16):
            first = model[0](torch.randn(1, 4, 9, 9))
            assert first.dtype == torch.bfloat16
            model[1:](first)
    finally:
        nn.Conv2d._conv_forward = original
    assert seen == [(4, torch.float32, False), (2, torch.bfloat16, True), (1, torch.bfloat16, True)]


def test_depthwise_convolutions_that_learn_nothing_run_in_half_precision():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    features = torch.randn(1, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(features)
        quicken(model, depthwise=True)
        assert torch.equal(model(features), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model(features), expected)


def test_frozen_batch_norms_keep_the_precision_of_their_features():
    model = Net()
    quicken(model, depthwise=False)
    assert model.detr(torch.randn(1, 8, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_batch_norm_that_is_another_is_left_alone():
    class FrozenBatchNorm2d(DetrFrozenBatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    assert quicken(nn.Sequential(FrozenBatchNorm2d(3)), depthwise=True)["frozen batch norms"] == 0


def test_a_copy_uses_its_own_weights_and_saves_the_same_names():
    model = Net()
    names = list(model.state_dict())
    quicken(model, depthwise=True)
    copied = copy.deepcopy(model)
    copied.deep.weight.data.zero_()
    copied.detr.weight.data.zero_()
    assert copied.deep(torch.ones(1, 8, 3, 3)).std() < model.deep(torch.ones(1, 8, 3, 3)).std()
    torch.testing.assert_close(copied.detr(torch.ones(1, 8, 1, 1)).flatten(), copied.detr.bias)
    assert not torch.equal(model.detr(torch.ones(1, 8, 1, 1)).flatten(), model.detr.bias)
    assert list(copied.state_dict()) == list(model.state_dict()) == names
