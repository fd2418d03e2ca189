"""Tests that can fail: `python -m tests.mutate [NAME ...]` plants one fault at a time in a copy of the project.

Each fault names the test that must turn red by it, and that is green without it. `make mutate` tries all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """A fault: `right`, which stands once in `file`, becomes `wrong`, and `test` fails."""

    file: str
    right: str
    wrong: str
    test: str


FAULTS = {
    "ids off by one": Fault(
        "cv_hf/data/labels.py",
        "return {source: index for index, source in enumerate(self.sources) if source is not None}",
        "return {source: index for index, source in enumerate(self.sources, 1) if source is not None}",
        "tests/data/test_labels.py::test_source_to_contiguous_to_name",
    ),
    "xywh read as xyxy": Fault(
        "cv_hf/boxes.py",
        "return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)",
        "return boxes",
        "tests/test_boxes.py::test_against_one_box_at_a_time",
    ),
    "another mean of the pixels": Fault(
        "cv_hf/models/pixels.py",
        "offset=tuple(black.tolist())",
        "offset=tuple((black + 0.1).tolist())",
        "tests/models/test_pixels.py::test_against_the_formula",
    ),
    "the best checkpoint by the other direction": Fault(
        "cv_hf/finetuning.py",
        'training_arguments(recipe, folder / "checkpoints", metric, known[metric])',
        'training_arguments(recipe, folder / "checkpoints", metric, not known[metric])',
        "tests/training/test_trajectories.py::test_model_holds_the_best_checkpoint_not_the_last",
    ),
    "the ignored value taken for what is predicted": Fault(
        "cv_hf/metrics/semantic.py",
        "table[self.ignore_index] = 0",
        "table[:, self.ignore_index] = 0",
        "tests/metrics/test_metrics_semantic.py::test_predictions_of_class_0_are_wrong_where_the_truth_is_another",
    ),
    "areas not filtered with their boxes": Fault(
        "cv_hf/tasks/object_detection.py",
        'np.array(objects["area"], np.float64)[kept] * share',
        'np.array(objects["area"], np.float64)[: len(kept)] * share',
        "tests/training/test_object_detection.py::test_everything_about_a_box_moves_as_one",
    ),
    "raw weights in place of the average": Fault(
        "cv_hf/training/ema.py",
        "self.model.load_state_dict(self.training.state_dict())\n        self.training",
        "self.training",
        "tests/training/test_ema.py::test_a_resumed_run_follows_the_uninterrupted_one",
    ),
    "augmentations that ignore their seed": Fault(
        "cv_hf/transforms/augment.py",
        "generator = np.random.default_rng((self.seed, *key))",
        "generator = np.random.default_rng()",
        "tests/transforms/test_augment.py::test_the_stream_is_the_same_for_any_number_of_workers_and_new_in_every_epoch",
    ),
    "every epoch augmented alike": Fault(
        "cv_hf/transforms/augment.py",
        "generator = np.random.default_rng((self.seed, *key))",
        "generator = np.random.default_rng((self.seed, key[1]))",
        "tests/transforms/test_augment.py::test_the_stream_is_the_same_for_any_number_of_workers_and_new_in_every_epoch",
    ),
    "samples of two processes counted twice": Fault(
        "cv_hf/metrics/base.py",
        "for sample_id in self._ids.keys() & other._ids.keys():",
        "for sample_id in ():",
        "tests/metrics/test_metrics_semantic.py::TestMerging",
    ),
    "segments that overlap by half are matched": Fault(
        "cv_hf/metrics/panoptic.py",
        "matched = iou > 0.5",
        "matched = iou >= 0.5",
        "tests/metrics/test_metrics_panoptic.py::test_worked_by_hand",
    ),
    "crowds counted as objects": Fault(
        "cv_hf/metrics/panoptic.py",
        "iou = np.where(same & ~crowd, ",
        "iou = np.where(same, ",
        "tests/metrics/test_metrics_panoptic.py::test_worked_by_hand",
    ),
    "a checkpoint renamed before it is on the disk": Fault(
        "cv_hf/training/checkpoints.py",
        "        _sync(path)\n    write_text",
        "    write_text",
        "tests/training/test_checkpoints.py::test_what_was_written_is_on_the_disk_before_it_has_a_name",
    ),
    "a damaged checkpoint gone on from": Fault(
        "cv_hf/training/checkpoints.py",
        'return f"{name} has {path.stat().st_size} of its {size} bytes"',
        "continue",
        "tests/training/test_checkpoints.py::test_a_damaged_checkpoint_is_passed_over_by_name",
    ),
    "the last micro-batch weighed like a whole one": Fault(
        "cv_hf/training/trainer.py",
        'batch["weight"] = size * processes * len(batches) / sum(whole)',
        'batch["weight"] = 1.0',
        "tests/training/test_trajectories.py::test_the_last_micro_batch_of_an_epoch_counts_by_its_size",
    ),
    "neighborhoods cut at the border": Fault(
        "cv_hf/models/neighborhood.py",
        "return torch.minimum((places - kernel // 2).clamp(min=0), lengths - kernel)",
        "return (places - kernel // 2).clamp(min=0)",
        "tests/models/test_neighborhood.py::test_each_pixel_attends_to_its_nearest",
    ),
    "labels written as HTML": Fault(
        "cv_hf/publish/card.py",
        "html.escape(line, quote=False)",
        "line",
        "tests/publish/test_card.py::test_a_hostile_name_is_text",
    ),
}


def main() -> int:
    names = sys.argv[1:] or list(FAULTS)
    unknown = set(names) - set(FAULTS)
    if unknown:
        print(f"no fault {', '.join(sorted(unknown))}; there are: {'; '.join(FAULTS)}", file=sys.stderr)
        return 2
    seen = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "docs")
        shutil.copytree(PROJECT, copy, ignore=ignored)
        if not _passes(copy, [FAULTS[name].test for name in names]):
            print("the tests fail without any fault", file=sys.stderr)
            return 1
        for name in names:
            fault = FAULTS[name]
            file = copy / fault.file
            text = file.read_text(encoding="utf-8")
            if text.count(fault.right) != 1:
                print(f"{name}: {fault.file} has changed; give the fault its new place", file=sys.stderr)
                return 1
            file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
            red = not _passes(copy, [fault.test])
            file.write_text(text, encoding="utf-8")
            seen += red
            print(f"{'seen' if red else 'NOT SEEN'}: {name}: {fault.test}", flush=True)
    print(f"{seen} of {len(names)} faults seen")
    return 0 if seen == len(names) else 1


def _passes(copy: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *dict.fromkeys(tests)]
    # The copy comes before the installed project.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
