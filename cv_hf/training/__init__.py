"""Training: arguments for this machine, a thin Trainer, streaming evaluation."""

from __future__ import annotations

from cv_hf.training.arguments import (
    choose_metric,
    data_seed,
    describe,
    local_processes,
    resolve,
    training_arguments,
)
from cv_hf.training.cache import image_cache
from cv_hf.training.checkpoints import (
    check_changes,
    disk_full,
    fault,
    learnt,
    newest_checkpoint,
    read_manifest,
    write_text,
)
from cv_hf.training.evaluation import evaluate, forward, gathered, recorder
from cv_hf.training.lock import locked
from cv_hf.training.preflight import Preflight, memory_error, out_of_memory, preflight
from cv_hf.training.progress import Progress
from cv_hf.training.samples import EvalSamples, TrainSamples, collate_train
from cv_hf.training.scales import Scales, find_scales
from cv_hf.training.trainer import LogFile, Trainer, megabytes, takes_mask

__all__ = [
    "EvalSamples",
    "LogFile",
    "Preflight",
    "Progress",
    "Scales",
    "TrainSamples",
    "Trainer",
    "check_changes",
    "choose_metric",
    "collate_train",
    "data_seed",
    "describe",
    "disk_full",
    "evaluate",
    "fault",
    "find_scales",
    "forward",
    "gathered",
    "image_cache",
    "learnt",
    "local_processes",
    "locked",
    "megabytes",
    "memory_error",
    "newest_checkpoint",
    "out_of_memory",
    "preflight",
    "read_manifest",
    "recorder",
    "resolve",
    "takes_mask",
    "training_arguments",
    "write_text",
]
