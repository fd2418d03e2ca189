"""The moving average of the weights: what is evaluated, kept as the best checkpoint, and published."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback

TRAINING_WEIGHTS = "training_weights.safetensors"


class EMA(TrainerCallback):
    """An exponential moving average of a model's weights and floating-point buffers, after every optimizer step.

    The decay grows as min(decay, (1 + step) / (10 + step)), so that a short training is not averaged with its start
    (Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, for the average; the growth is
    that of TensorFlow's ExponentialMovingAverage). It follows from the step alone, so a resumed run goes on exactly.

    Attributes:
        model: a copy of the model, in evaluation mode, that holds the average.
    """

    def __init__(self, model: PreTrainedModel, decay: float):
        self.decay = decay
        self.training = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model.to(next(self.training.parameters()).device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        with torch.no_grad():
            current = self.training.state_dict()
            seen = set()
            for name, average in self.model.state_dict().items():
                # Tied weights stand there once for each name, and would be averaged as often.
                if average.data_ptr() in seen and average.numel():
                    continue
                seen.add(average.data_ptr())
                if average.is_floating_point():
                    average.lerp_(current[name].to(average.dtype), 1 - decay)
                else:
                    average.copy_(current[name])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where there is no best checkpoint to go back to, the average is what training ends with."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self.training.load_state_dict(self.model.state_dict())

    def save(self, folder: str) -> None:
        """Write the average as the checkpoint's model, and beside it the weights that training goes on from."""
        self.model.save_pretrained(folder)
        # Tied weights share memory, which the format does not have.
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.training.state_dict().items()}
        save_file(weights, Path(folder) / TRAINING_WEIGHTS)

    def load(self, folder: str) -> None:
        """Go on from a checkpoint, whose average the training model holds by now.

        Raises:
            FileNotFoundError: the checkpoint was written without an average.
        """
        self.model.load_state_dict(self.training.state_dict())
        self.training.load_state_dict(load_file(Path(folder) / TRAINING_WEIGHTS))
