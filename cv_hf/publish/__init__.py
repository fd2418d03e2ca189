"""What leaves the machine: the model folder that pipeline() loads, its card, and the push."""

from __future__ import annotations

from cv_hf.publish.card import write_card
from cv_hf.publish.hub import check_can_write, check_name, push
from cv_hf.publish.model_folder import data_notes, read_evidence, read_notes, save_model_folder, write_arguments

__all__ = [
    "check_can_write",
    "check_name",
    "data_notes",
    "push",
    "read_evidence",
    "read_notes",
    "save_model_folder",
    "write_arguments",
    "write_card",
]
