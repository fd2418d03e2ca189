"""Reading datasets: one reader per format, the label contract, and what was found to be wrong."""

from cv_hf.data.columns import find_column
from cv_hf.data.detect import detect_format
from cv_hf.data.doctor import Diagnosis, check, task_shown
from cv_hf.data.findings import CODES, NAMES_KEPT, Findings
from cv_hf.data.images import UnreadableImage, check_images, decode, decode_array, image_suffixes, read_header
from cv_hf.data.labels import LabelMap, from_class_names
from cv_hf.data.load import Splits, TrainedOn, fingerprint, is_of_run, load_split, load_splits
from cv_hf.data.paths import check_name
from cv_hf.data.source import Source

__all__ = [
    "CODES",
    "NAMES_KEPT",
    "Diagnosis",
    "Findings",
    "LabelMap",
    "Source",
    "Splits",
    "TrainedOn",
    "UnreadableImage",
    "check",
    "check_images",
    "check_name",
    "decode",
    "decode_array",
    "detect_format",
    "find_column",
    "fingerprint",
    "from_class_names",
    "image_suffixes",
    "is_of_run",
    "load_split",
    "load_splits",
    "read_header",
    "task_shown",
]
