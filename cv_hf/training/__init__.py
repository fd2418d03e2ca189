"""Training: arguments for this machine, a thin Trainer, streaming evaluation."""

from __future__ import annotations

from cv_hf.training.arguments import choose_metric, data_seed, describe, resolve, training_arguments
from cv_hf.training.evaluation import evaluate, forward, gathered, recorder
from cv_hf.training.samples import EvalSamples, TrainSamples, collate_train
from cv_hf.training.scales import Scales, find_scales
from cv_hf.training.trainer import LogFile, Progress, Trainer, newest_checkpoint, takes_mask

__all__ = [
    "EvalSamples",
    "LogFile",
    "Progress",
    "Scales",
    "TrainSamples",
    "Trainer",
    "choose_metric",
    "collate_train",
    "data_seed",
    "describe",
    "evaluate",
    "find_scales",
    "forward",
    "gathered",
    "newest_checkpoint",
    "recorder",
    "resolve",
    "takes_mask",
    "training_arguments",
]
