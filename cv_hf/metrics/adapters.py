"""The accumulators as evaluate.Metric, for use in other code."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import datasets
import evaluate

from cv_hf.errors import DataError
from cv_hf.metrics.base import Accumulator
from cv_hf.metrics.classification import PREDICTED, MultiLabelAccumulator, SingleLabelAccumulator
from cv_hf.metrics.detection import DetectionAccumulator
from cv_hf.metrics.panoptic import PanopticAccumulator
from cv_hf.metrics.semantic import SemanticAccumulator

COCO = """@inproceedings{lin2014microsoft,
  title={Microsoft {COCO}: Common Objects in Context},
  author={Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva and
    Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle={European Conference on Computer Vision},
  year={2014}
}"""

VOC = """@article{everingham2010pascal,
  title={The {PASCAL} Visual Object Classes ({VOC}) Challenge},
  author={Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal={International Journal of Computer Vision},
  volume={88},
  number={2},
  pages={303--338},
  year={2010}
}"""

PANOPTIC = """@inproceedings{kirillov2019panoptic,
  title={Panoptic Segmentation},
  author={Kirillov, Alexander and He, Kaiming and Girshick, Ross and Rother, Carsten and Doll{\\'a}r, Piotr},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages={9404--9413},
  year={2019}
}"""


class StreamingMetric(evaluate.Metric):
    """An accumulator as an evaluate.Metric, to be filled by `add`/`add_batch` and read by `compute`.

    evaluate.Metric itself keeps all predictions in Arrow files under locks and computes from them at the end. Here
    nothing is written or kept but the accumulator, so evaluate's options for files and processes do not apply: gather
    the metrics of several processes (they are picklable) and `merge` them.

    Args:
        accumulator: makes an empty accumulator; called again after each `compute`.
        description: what the metric is, in Markdown.
        features: the columns `predictions` and `references`, as evaluate documents a metric's inputs.
        citation: BibTeX of the paper that defines it, if any.
        inputs_description: shapes and units of the inputs.
    """

    def __init__(
        self,
        accumulator: Callable[[], Accumulator],
        *,
        description: str,
        features: datasets.Features | list[datasets.Features],
        citation: str = "",
        inputs_description: str = "",
    ) -> None:
        self._declared = evaluate.MetricInfo(
            description=description, citation=citation, features=features, inputs_description=inputs_description
        )
        self._new_accumulator = accumulator
        self._reset()
        super().__init__()

    def add_batch(
        self, *, predictions: Any = None, references: Any = None, sample_ids: Sequence[Hashable] | None = None
    ) -> None:
        """Count a batch.

        Args:
            predictions: one entry per sample.
            references: one entry per sample.
            sample_ids: one per sample, by which duplicates are dropped; None: every sample counts, and the metric
                cannot be merged.

        Raises:
            DataError: inputs that do not fit the metric or each other.
        """
        if predictions is None or references is None:
            raise DataError("a metric needs both predictions and references.")
        if len(self.accumulator) and (sample_ids is None) != self._numbered:
            raise DataError("sample_ids must be given for all batches or for none.")
        numbered = sample_ids is None
        if numbered:
            sample_ids = range(len(self.accumulator), len(self.accumulator) + len(references))
        self.accumulator.update(predictions, references, sample_ids)
        self._numbered = numbered

    def add(
        self,
        *,
        prediction: Any = None,
        reference: Any = None,
        sample_id: Hashable | None = None,
        predictions: Any = None,
        references: Any = None,
    ) -> None:
        """Count one sample.

        Args:
            prediction: the sample's entry, without a batch dimension.
            reference: the sample's entry.
            sample_id: as in `add_batch`.
            predictions: the same as `prediction`; evaluate.combine calls it so.
            references: the same as `reference`.
        """
        prediction = predictions if prediction is None else prediction
        reference = references if reference is None else reference
        self.add_batch(
            predictions=None if prediction is None else [prediction],
            references=None if reference is None else [reference],
            sample_ids=None if sample_id is None else [sample_id],
        )

    def compute(
        self, *, predictions: Any = None, references: Any = None, sample_ids: Sequence[Hashable] | None = None
    ) -> dict[str, Any]:
        """Count a last batch, if one is given; return the metric of all samples and start anew.

        Raises:
            DataError: no sample was counted, or inputs as in `add_batch`.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, sample_ids=sample_ids)
        result = self.accumulator.compute()
        self._reset()
        return result

    def merge(self, other: StreamingMetric) -> None:
        """Count what another metric of the same kind has counted; samples with the same id count once.

        Raises:
            DataError: a metric of another kind, or samples that were added without ids, so that those of two metrics
                cannot be told apart.
        """
        if self._numbered or other._numbered:
            raise DataError("metrics can only be merged when their samples were added with sample_ids.")
        self.accumulator.merge(other.accumulator)

    def __len__(self) -> int:
        return len(self.accumulator)

    def _reset(self) -> None:
        self.accumulator = self._new_accumulator()
        self._numbered = False

    def _info(self) -> evaluate.MetricInfo:
        return self._declared

    def _build_data_dir(self) -> None:
        """The base class makes a folder in the user's cache here; nothing would ever be put into it."""


class ClassificationMetric(StreamingMetric):
    """Single-label classification as an evaluate.Metric; see SingleLabelAccumulator for inputs and results.

    metric = ClassificationMetric(["cat", "dog"])
    metric.add_batch(predictions=logits, references=labels)
    metric.compute()["accuracy"]
    """

    def __init__(self, label_names: Sequence[str]) -> None:
        super().__init__(
            partial(SingleLabelAccumulator, label_names),
            description="Accuracy, top-5 accuracy, macro F1, per-class scores and confusion matrix.",
            features=[
                datasets.Features(
                    predictions=datasets.List(datasets.Value("float32")), references=datasets.Value("int64")
                ),
                datasets.Features(predictions=datasets.Value("int64"), references=datasets.Value("int64")),
            ],
            inputs_description="predictions: scores (batch, num_labels) or class ids (batch,); "
            "references: class ids (batch,).",
        )


class MultiLabelMetric(StreamingMetric):
    """Multi-label classification as an evaluate.Metric; see MultiLabelAccumulator for inputs and results."""

    def __init__(self, label_names: Sequence[str], threshold: float = PREDICTED) -> None:
        super().__init__(
            partial(MultiLabelAccumulator, label_names, threshold),
            description="Mean average precision, F1, subset accuracy and per-class scores.",
            features=datasets.Features(
                predictions=datasets.List(datasets.Value("float32")), references=datasets.List(datasets.Value("int64"))
            ),
            inputs_description="predictions: logits (batch, num_labels); references: multi-hot (batch, num_labels).",
        )


class DetectionMetric(StreamingMetric):
    """Object detection or instance segmentation as an evaluate.Metric; see DetectionAccumulator for inputs and results.

    metric = DetectionMetric(["cat", "dog"])
    metric.add_batch(predictions=processor.post_process_object_detection(...), references=rows["objects"])
    metric.compute()["map"]
    """

    def __init__(self, label_names: Sequence[str], masks: bool = False) -> None:
        numbers = datasets.List(datasets.Value("float64"))
        found, sought = (
            {"boxes": datasets.List(datasets.List(datasets.Value("float32")))},
            {"bbox": datasets.List(numbers)},
        )
        if masks:
            rle = {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
            found, sought = {"masks": datasets.List(rle)}, {"segmentation": datasets.List(rle)}
        super().__init__(
            partial(DetectionAccumulator, label_names, masks),
            description="COCO's average precision and recall, and the score thresholds with the best F1.",
            citation=COCO,
            features=datasets.Features(
                predictions={
                    **found,
                    "scores": datasets.List(datasets.Value("float32")),
                    "labels": datasets.List(datasets.Value("int64")),
                },
                references={
                    **sought,
                    "category": datasets.List(datasets.Value("int64")),
                    "area": numbers,
                    "iscrowd": datasets.List(datasets.Value("bool")),
                },
            ),
            inputs_description="predictions, of each image: boxes (n, 4), xyxy in pixels, scores (n,), labels (n,); "
            "references, of each image: bbox (m, 4), xywh in pixels, category (m,), area (m,), iscrowd (m,). Of masks: "
            "masks (n,) for boxes and segmentation (m,) for bbox, COCO's compressed RLE.",
        )


class SemanticMetric(StreamingMetric):
    """Semantic segmentation as an evaluate.Metric; see SemanticAccumulator for inputs and results.

    metric = SemanticMetric(["road", "sky"], ignore_index=255)
    metric.add_batch(predictions=processor.post_process_semantic_segmentation(...), references=masks)
    metric.compute()["mean_iou"]
    """

    def __init__(self, label_names: Sequence[str], ignore_index: int | None = 255) -> None:
        maps = datasets.List(datasets.List(datasets.Value("int64")))
        super().__init__(
            partial(SemanticAccumulator, label_names, ignore_index),
            description="Mean IoU, Dice, pixel and mean accuracy, per-class scores and confusion matrix of pixels.",
            citation=VOC,
            features=datasets.Features(predictions=maps, references=maps),
            inputs_description="predictions and references, of each image: class ids (height, width).",
        )


class PanopticMetric(StreamingMetric):
    """Panoptic segmentation as an evaluate.Metric; see PanopticAccumulator for inputs and results.

    metric = PanopticMetric(["cat", "sky"], things=[True, False])
    metric.add_batch(predictions=processor.post_process_panoptic_segmentation(...), references=rows)
    metric.compute()["pq"]
    """

    def __init__(self, label_names: Sequence[str], things: Sequence[bool]) -> None:
        number = datasets.Value("int64")
        maps = datasets.List(datasets.List(number))
        super().__init__(
            partial(PanopticAccumulator, label_names, things),
            description="Panoptic, segmentation and recognition quality of all classes, of things and of stuff.",
            citation=PANOPTIC,
            features=datasets.Features(
                predictions={"segmentation": maps, "segments_info": datasets.List({"id": number, "label_id": number})},
                references={
                    "segmentation": maps,
                    "segments_info": datasets.List(
                        {"id": number, "category_id": number, "iscrowd": datasets.Value("bool")}
                    ),
                },
            ),
            inputs_description="predictions and references, of each image: segmentation (height, width), segment ids; "
            "segments_info, of each segment: id, and the class as label_id or, with iscrowd, as category_id.",
        )
