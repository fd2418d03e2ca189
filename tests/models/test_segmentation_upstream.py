"""What Transformers does otherwise than its segmenters' papers, and what is done about it.

A test that fails at its "upstream" part tells that Transformers has been mended: the workaround can go.
"""

from __future__ import annotations

import inspect
import sys

import accelerate.utils
import PIL.Image
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, OneFormerProcessor
from transformers.loss import loss_rf_detr
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.models.maskformer.modeling_maskformer import MaskFormerLoss

from cv_hf.config import ModelConfig
from cv_hf.models import build_model, segmentation, target_form
from cv_hf.models.counts import sharing
from tests.models.test_segmentation_families import AUTO, MASKS, built_for, targets
from tests.tiny_segmentation import SEGMENTATION_FAMILIES


def plain(tiny, family, **config):
    """The model as Transformers has it, with the weights of `built_for`."""
    auto = getattr(transformers, SEGMENTATION_FAMILIES[family].architecture)
    model = auto(AutoConfig.from_pretrained(tiny(family), num_labels=3, **config))
    model.load_state_dict(built_for(tiny, family).model.state_dict(), strict=False)
    return model.eval()


@pytest.mark.parametrize("family", MASKS)
def test_masks_are_counted_once(tiny, family, monkeypatch):
    assert inspect.signature(accelerate.utils.reduce).parameters["reduction"].default == "mean"
    labels, device = [torch.zeros(5), torch.zeros(3)], torch.device("cpu")

    class Four:
        _shared_state = {"backend": "gloo"}
        num_processes = 4

    theirs = plain(tiny, family).criterion
    module = sys.modules[type(theirs).__module__]
    monkeypatch.setattr(module, "PartialState", Four)
    monkeypatch.setattr(module, "reduce", lambda tensor: tensor)  # the mean of four that have as many
    assert theirs.get_num_masks(labels, device).item() == 2.0
    ours = built_for(tiny, family).model.criterion
    assert ours.get_num_masks(labels, device) == 8.0
    assert ours.get_num_masks([torch.zeros(0)], device) == 1.0
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(4))
    with sharing(1.0):
        assert ours.get_num_masks(labels, device) == 8.0


@pytest.mark.parametrize("family", MASKS)
def test_masks_of_booleans(tiny, family):
    built = built_for(tiny, family)
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), **targets(target_form(built.model))}
    if family == "oneformer":
        inputs |= {"text_inputs": built.processor.texts(["panoptic"] * 2, inputs["class_labels"])}
        inputs |= built.processor.prompt("panoptic", 2)
    with pytest.raises(NotImplementedError, match="Bool"):
        plain(tiny, family)(**inputs)


@pytest.mark.parametrize("family", ["upernet_swin", "beit_semantic", "mobilevit_semantic", "mobilenet_v2_semantic"])
def test_a_batch_of_one(tiny, family):
    size = SEGMENTATION_FAMILIES[family].size
    inputs = {"pixel_values": torch.rand(1, 3, *size), "labels": torch.zeros(1, *size, dtype=torch.int64)}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        plain(tiny, family).train()(**inputs)
    model = built_for(tiny, family).model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [module.running_mean.clone() for module in norms]
    assert model(**inputs).loss.isfinite()
    assert all(module.training for module in norms)
    moved = [not torch.equal(module.running_mean, mean) for module, mean in zip(norms, before, strict=True)]
    assert True in moved
    assert False in moved


@pytest.mark.parametrize("family", ["segformer_semantic", "upernet_swin", "beit_semantic", "sapiens2_semantic"])
def test_a_batch_without_a_label(tiny, family):
    size = SEGMENTATION_FAMILIES[family].size
    inputs = {"pixel_values": torch.rand(2, 3, *size), "labels": torch.full((2, *size), 255)}
    assert plain(tiny, family)(**inputs).loss.isnan()
    model = built_for(tiny, family).model.train()
    loss = model(**inputs).loss
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    inputs["labels"][0, 0, 0] = 1
    assert model(**inputs).loss > 0


def layer_outputs(decoder, run):
    """The outputs of each layer of a decoder during `run`, and what it returns."""
    kept = []
    hooks = [layer.register_forward_hook(lambda *call: kept.append(call[2])) for layer in decoder.layers]
    outputs = run()
    for hook in hooks:
        hook.remove()
    return kept, outputs


def test_every_layer_of_maskformer(tiny):
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), **targets(target_form(plain(tiny, "maskformer")))}
    inputs["mask_labels"] = [masks.float() for masks in inputs["mask_labels"]]
    with pytest.raises(TypeError):
        plain(tiny, "maskformer", use_auxiliary_loss=True)(**inputs)
    theirs = plain(tiny, "maskformer").eval()
    built = built_for(tiny, "maskformer")
    assert built.model.config.use_auxiliary_loss is False
    with torch.no_grad():
        states, outputs = layer_outputs(theirs.model.transformer_module.decoder, lambda: theirs(**inputs))
        criterion = MaskFormerLoss(3, theirs.matcher, theirs.weight_dict, theirs.config.no_object_weight)
        expected = outputs.loss
        for state in states[:-1]:
            state = theirs.model.transformer_module.decoder.layernorm(state)
            masks = torch.einsum("bqc,bchw->bqhw", theirs.mask_embedder(state), outputs[_PIXELS])
            labels = inputs["mask_labels"], inputs["class_labels"]
            terms = criterion(masks, theirs.class_predictor(state), *labels)
            expected = expected + sum(theirs.weight_dict[name] * term for name, term in terms.items())
        ours = built.model.eval()(**inputs)
    assert len(states) == 3
    torch.testing.assert_close(ours.loss, expected)
    assert torch.equal(ours.masks_queries_logits, outputs.masks_queries_logits)
    assert not any("kept" in module.__dict__ for module in built.model.modules())


_PIXELS = "pixel_decoder_last_hidden_state"


def test_every_layer_of_detr(tiny):
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), **targets(target_form(plain(tiny, "detr_panoptic")))}
    theirs = plain(tiny, "detr_panoptic").eval()
    with torch.no_grad():
        other = plain(tiny, "detr_panoptic", auxiliary_loss=True).eval()(**inputs)
        states, outputs = layer_outputs(theirs.detr.model.decoder, lambda: theirs(**inputs))
        # Turned on, it is another model.
        assert not torch.allclose(other.logits, outputs.logits, atol=1e-3)
        expected = outputs.loss
        for state in states[:-1]:
            state = theirs.detr.model.decoder.layernorm(state)
            boxes = theirs.detr.bbox_predictor(state).sigmoid()
            logits = theirs.detr.class_labels_classifier(state)
            loss, _, _ = ForObjectDetectionLoss(logits, inputs["labels"], "cpu", boxes, theirs.config)
            expected = expected + loss
        ours = built_for(tiny, "detr_panoptic").model.eval()(**inputs)
    torch.testing.assert_close(ours.loss, expected)
    assert torch.equal(ours.logits, outputs.logits)


def test_detr_that_was_trained_with_all_layers_stays_that_model(tiny, tmp_path):
    theirs = plain(tiny, "detr_panoptic", auxiliary_loss=True).eval()
    theirs.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(tiny("detr_panoptic")).save_pretrained(tmp_path)
    model = build_model(ModelConfig(id=str(tmp_path)), AUTO["panoptic"], {}).model
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), **targets(target_form(model))}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).loss, theirs(**inputs).loss)


def test_mask2former_needs_its_layers(tiny):
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(TypeError):
        plain(tiny, "mask2former", use_auxiliary_loss=False)(images)
    assert built_for(tiny, "mask2former").model.config.use_auxiliary_loss


def test_dpt_needs_its_auxiliary_head(tiny, tmp_path):
    inputs = {"pixel_values": torch.rand(1, 3, 32, 32), "labels": torch.zeros(1, 32, 32, dtype=torch.int64)}
    theirs = plain(tiny, "dpt_semantic", use_auxiliary_head=False)
    with pytest.raises(UnboundLocalError):
        theirs(**inputs)
    theirs.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(tiny("dpt_semantic")).save_pretrained(tmp_path)
    built = build_model(ModelConfig(id=str(tmp_path)), AUTO["semantic"], {})
    assert built.report.new
    assert all(name.startswith("auxiliary_head.") for name in built.report.new)
    assert built.model(**inputs).loss.isfinite()


def test_rf_detr_without_an_object(tiny):
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), **targets(segmentation.TargetForm("objects"), (0, 0))}
    assert plain(tiny, "rf_detr_instance").train()(**inputs).loss.shape != ()
    assert built_for(tiny, "rf_detr_instance").model.train()(**inputs).loss.shape == ()


@pytest.mark.parametrize("batch", [1, 3])
def test_points_of_rf_detr(tiny, batch, monkeypatch):
    seen = []
    original = loss_rf_detr.pair_wise_dice_loss
    monkeypatch.setattr(
        loss_rf_detr, "pair_wise_dice_loss", lambda *masks: seen.append(masks[0].shape[1]) or original(*masks)
    )
    counts = (2,) * batch
    inputs = {"pixel_values": torch.rand(batch, 3, 64, 64), **targets(segmentation.TargetForm("objects"), counts)}
    with torch.no_grad():
        plain(tiny, "rf_detr_instance").eval()(**inputs)
        theirs, seen[:] = set(seen), []
        built_for(tiny, "rf_detr_instance").model.eval()(**inputs)
    assert theirs == {4 * 12 * batch // 4}  # of the boxes: 4 numbers for each of 12 queries
    assert set(seen) == {16 * 16 // 4}


def test_certain_predictions_of_rf_detr(tiny):
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), **targets(segmentation.TargetForm("objects"))}
    for model, finite in ((plain(tiny, "rf_detr_instance"), False), (built_for(tiny, "rf_detr_instance").model, True)):
        with torch.no_grad():
            model.model.class_embed.bias.fill_(40.0)
            assert model.train()(**inputs).loss.isfinite() == finite


def test_rf_detr_evaluates_its_one_group(tiny):
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64), **targets(segmentation.TargetForm("objects"))}

    def loss(model):
        torch.manual_seed(0)
        with torch.no_grad():
            return model.eval()(**inputs).loss.item()

    for model, changes in ((plain(tiny, "rf_detr_instance"), True), (built_for(tiny, "rf_detr_instance").model, False)):
        before = loss(model)
        model.config.group_detr = 1
        assert (loss(model) != before) == changes


@pytest.mark.parametrize(
    ("family", "subtask", "kind"),
    [
        ("beit_semantic", "semantic", "maps"),
        ("mobilevit_semantic", "semantic", "maps"),
        ("mobilenet_v2_semantic", "semantic", "maps"),
        ("eomt", "semantic", "masks"),
        ("eomt_split", "semantic", "masks"),
        ("eomt_split", "panoptic", "masks"),
    ],
)
def test_processors_that_misplace_masks(tiny, family, subtask, kind):
    config, processor = AutoConfig.from_pretrained(tiny(family)), AutoImageProcessor.from_pretrained(tiny(family))
    try:
        assert not segmentation._lands(processor, kind, config, subtask)
    except TypeError:
        assert family == "eomt_split"  # its panoptic post-processing knows no split images


def test_eomts_processor_knows_no_square():
    processor = transformers.EomtImageProcessor(size={"height": 64, "width": 64})
    image = PIL.Image.new("RGB", (90, 40))
    assert processor(image, return_tensors="pt")["pixel_values"].shape[2:] == (64, 64)
    outputs = segmentation.imitated(torch.ones(64, 64, dtype=torch.bool), "masks", AutoConfig.for_model("eomt"))
    with pytest.raises((TypeError, KeyError, ValueError, RuntimeError)):
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(40, 90)])


def oneformer_inputs(built):
    wanted = targets(target_form(built.model), dtype=torch.float32)
    texts = built.processor.texts(["panoptic"] * 2, wanted["class_labels"])
    return {"pixel_values": torch.rand(2, 3, 64, 64), **built.processor.prompt("panoptic", 2)}, texts, wanted


def test_oneformers_dropout_in_evaluation(tiny):
    inputs, texts, _ = oneformer_inputs(built_for(tiny, "oneformer"))
    theirs, ours = plain(tiny, "oneformer").eval(), built_for(tiny, "oneformer").model.eval()
    with torch.no_grad():
        first, second = (theirs(**inputs, text_inputs=texts).masks_queries_logits for _ in range(2))
        assert not torch.equal(first, second)
        first, second = (ours(**inputs, text_inputs=texts).masks_queries_logits for _ in range(2))
        assert torch.equal(first, second)


def test_oneformers_loss_is_no_number_of_its_own(tiny):
    built = built_for(tiny, "oneformer")
    inputs, texts, wanted = oneformer_inputs(built)
    assert plain(tiny, "oneformer")(**inputs, text_inputs=texts, **wanted).loss.shape == (1,)
    assert built.model(**inputs, text_inputs=texts, **wanted).loss.shape == ()


def test_oneformer_reads_texts_from_left_to_right(tiny):
    """As in the paper's code: the end of a text sees what is before it, and nothing behind."""
    built = built_for(tiny, "oneformer")
    _, texts, _ = oneformer_inputs(built)
    longer = texts.clone()
    longer[..., -1] = 7  # behind the end, where the features are taken
    for model, blind in ((plain(tiny, "oneformer"), True), (built.model, False)):
        with torch.no_grad():
            mapper = model.eval().model.text_mapper
            assert torch.equal(mapper(texts), mapper(longer)) != blind


def test_oneformers_main_input_is_a_list(tiny):
    assert isinstance(plain(tiny, "oneformer").main_input_name, list)
    assert built_for(tiny, "oneformer").model.main_input_name == "pixel_values"


def test_oneformers_processor_counts_the_batch(tiny):
    """The texts of the second image tell of the first one's objects."""
    built = built_for(tiny, "oneformer")
    maps = [torch.full((64, 64), 1), torch.full((64, 64), 2)]
    images = [PIL.Image.new("RGB", (64, 64))] * 2
    whole = OneFormerProcessor(built.processor.image_processor, built.processor.tokenizer, 32, 24)
    theirs = whole(images, ["semantic"] * 2, segmentation_maps=maps, return_tensors="pt")["text_inputs"]
    ours = built.processor.texts(["semantic"] * 2, [[1], [2]])
    assert torch.equal(theirs[0], ours[0])
    assert not torch.equal(theirs[1], ours[1])
    assert torch.equal(theirs[1, 0], ours[0, 0])
    assert torch.equal(theirs[1, 1], ours[1, 0])


def test_oneformers_processor_without_a_class_file(tiny):
    outputs = segmentation.imitated(torch.ones(64, 64, dtype=torch.bool), "masks", AutoConfig.for_model("oneformer"))
    processor = transformers.OneFormerImageProcessor()
    with pytest.raises(TypeError):
        processor.post_process_instance_segmentation(outputs, target_sizes=[(64, 64)])
    processor = built_for(tiny, "oneformer").processor
    assert processor.post_process_instance_segmentation(outputs, target_sizes=[(64, 64)])[0]["segments_info"]


def test_pipeline_does_not_mask_the_padding_of_a_prompt(tiny, tmp_path):
    """OneFormerProcessor puts zeros behind a prompt; the pipeline what the tokenizer pads with."""
    theirs = transformers.AutoTokenizer.from_pretrained(tiny("oneformer"))
    assert theirs.pad_token_id != 0
    padded = theirs(["the task is semantic"], padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    ours = built_for(tiny, "oneformer").processor.prompt("semantic", 1)["task_inputs"]
    assert not torch.equal(padded, ours)
    length = (ours != 0).sum()
    assert torch.equal(padded[:, :length], ours[:, :length])
    whole = OneFormerProcessor(built_for(tiny, "oneformer").processor.image_processor, theirs, 32, 24)
    masked = whole(PIL.Image.new("RGB", (64, 64)), ["semantic"], return_tensors="pt")["task_inputs"]
    assert torch.equal(masked, ours)
