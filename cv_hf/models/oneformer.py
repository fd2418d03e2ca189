"""OneFormer: its prompts and texts, its class metadata inside the checkpoint, and its two modes.

Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation", 2023 (https://arxiv.org/abs/2211.06220);
their code: github.com/SHI-Labs/OneFormer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, OneFormerProcessor, PreTrainedConfig, PreTrainedModel

from cv_hf.errors import ModelError

SUBTASKS = ("semantic", "instance", "panoptic")
_FILLERS = {"semantic": "a semantic photo", "instance": "an instance photo", "panoptic": "a panoptic photo"}
# Where a processor takes its classes from: nowhere. Published ones name a file in another repository.
NO_CLASS_FILE = {"class_info_file": "", "repo_path": None}


class PromptedProcessor:
    """An image processor with the tokenizer of OneFormer's prompts, used as an image processor is.

    What it does not have is asked of the image processor.

    Attributes:
        image_processor: OneFormerImageProcessor, whose `metadata` holds the classes.
        tokenizer: CLIP's, padded with token 0, as in the paper's code and OneFormerProcessor. The pipeline pads with
            whatever the tokenizer pads with, and the model reads the numbers of the tokens.
        task_length: tokens of a prompt.
        text_length: tokens of a text.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, task_length: int, text_length: int):
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.task_length = task_length
        self.text_length = text_length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "image_processor":
            raise AttributeError(name)
        return getattr(self.image_processor, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        """Return `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W), without a prompt."""
        values = self.image_processor(images=images, **options)
        values.pop("task_inputs", None)
        return values

    def prompt(self, subtask: str, count: int) -> dict[str, torch.Tensor]:
        """`task_inputs` (count, task_length): one of SUBTASKS, as pipeline() says it to the model."""
        return {"task_inputs": self._tokens([f"the task is {subtask}"], self.task_length).expand(count, -1)}

    def texts(self, subtasks: Sequence[str], classes: Sequence[Iterable[int]]) -> torch.Tensor:
        """The texts (B, num_text, text_length) that the contrastive loss compares a batch's queries with.

        Args:
            subtasks: of each image.
            classes: of each image, the class ids of its targets, one for each mask.

        A text for each mask of an image, in the order of the classes, and then fillers. Transformers' processor counts
        the masks of all images of the batch so far.
        """
        rows = []
        for subtask, ids in zip(subtasks, classes, strict=True):
            ids = [int(index) for index in ids]
            ids = sorted(set(ids) if subtask == "semantic" else ids)
            texts = [f"a photo with a {self.metadata[str(index)]}" for index in ids[: self.num_text]]
            rows.append(texts + [_FILLERS[subtask]] * (self.num_text - len(texts)))
        distinct = list(dict.fromkeys(text for row in rows for text in row))
        tokens = self._tokens(distinct, self.text_length)
        places = {text: place for place, text in enumerate(distinct)}
        return tokens[torch.tensor([[places[text] for text in row] for row in rows])]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what pipeline(), AutoProcessor and OneFormerProcessor load from the folder alone."""
        whole = OneFormerProcessor(self.image_processor, self.tokenizer, self.text_length, self.task_length)
        whole.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def _tokens(self, texts: list[str], length: int) -> torch.Tensor:
        return self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")[
            "input_ids"
        ]


def prompted(
    image_processor: Any, model: PreTrainedModel, name: str, things: Sequence[str] | None, **source: Any
) -> PromptedProcessor:
    """Wrap the image processor of a OneFormer, with its tokenizer and its classes.

    Args:
        image_processor: loaded with NO_CLASS_FILE.
        model: whose configuration has the labels.
        name: the checkpoint that holds the tokenizer.
        things: names of the countable classes; None: those that the processor knows, else all.
        source: revision and trust_remote_code.

    Raises:
        ModelError: the checkpoint has no tokenizer.
    """
    config = model.config
    tokenizer = AutoTokenizer.from_pretrained(name, **source)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    names = dict(sorted((int(index), label) for index, label in config.id2label.items()))
    known = getattr(image_processor, "metadata", None)
    if things is not None or known is None or known["class_names"] != list(names.values()):
        countable = names if things is None else [index for index, label in names.items() if label in set(things)]
        image_processor.metadata = {
            **{str(index): label for index, label in names.items()},
            "thing_ids": list(countable),
            "class_names": list(names.values()),
        }
    image_processor.num_text = config.num_queries - config.text_encoder_n_ctx
    processor = PromptedProcessor(image_processor, tokenizer, config.task_seq_len, config.text_encoder_context_length)
    if len({tuple(processor.prompt(subtask, 1)["task_inputs"][0].tolist()) for subtask in SUBTASKS}) < len(SUBTASKS):
        # Where its files are missing, Transformers makes a tokenizer that knows no word.
        raise ModelError(
            f"{name} has no tokenizer that tells its subtasks apart.\n"
            "Copy tokenizer.json, or vocab.json and merges.txt, from the model it was made from."
        )
    return processor


def mend(model: PreTrainedModel) -> None:
    """Let a model that was built with `is_training` train and predict as its paper says, in place.

    With `text_inputs` it reads them, and the contrastive loss is taken; without, it predicts. Dropout follows
    `model.train()` and `model.eval()` (the pixel decoder's follows the configuration in Transformers), and the
    configuration, from now on, is that of a model that predicts.
    """
    model.config.is_training = False
    model.main_input_name = "pixel_values"  # a list in Transformers, which Trainer cannot look up
    model.register_forward_pre_hook(_choose_mode, with_kwargs=True)
    if model.config.contrastive_temperature is not None:
        model.criterion.forward = partial(_contrastive_loss, model.criterion.forward)
    for layer in model.model.text_mapper.text_encoder.transformer.layers:
        layer.self_attn.register_forward_pre_hook(_look_back, with_kwargs=True)


def whole_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the configuration of a model with all of its weights; OneFormer's would leave out what reads texts."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "is_training"):
        config.is_training = True
    return config


def _choose_mode(model: PreTrainedModel, inputs: Any, named: Mapping[str, Any]) -> None:
    model.model.is_training = named.get("text_inputs") is not None
    for layer in model.model.pixel_level_module.decoder.encoder.layers:
        layer.is_training = model.training


def _contrastive_loss(forward: Any, *outputs: Any, **more: Any) -> dict[str, torch.Tensor]:
    if more.get("text_queries") is not None:
        more["calculate_contrastive_loss"] = True
    return forward(*outputs, **more)


def _look_back(attention: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let a token see those before it alone. Transformers makes this mask and never uses it.

    As in text_transformer.py of github.com/SHI-Labs/OneFormer (`attention`).
    """
    length = inputs[0].shape[0]
    mask = torch.full((length, length), float("-inf"), device=inputs[0].device, dtype=inputs[0].dtype).triu(1)
    return inputs, {**named, "attn_mask": mask}
