"""Finding the columns that a task needs: as the recipe says, else by feature type, else by their usual names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
from datasets.table import ConcatenationTable

from cv_hf.errors import DataError, did_you_mean, printable

IMAGE_NAMES = ("image", "img", "picture", "photo", "images", "pixel_values", "file_name", "filename", "image_path",
               "file_path", "filepath", "path", "file", "jpg", "jpeg", "png", "image_name", "image_filename",
               "image_file", "img_path", "img_name")  # fmt: skip
# Of text, whose values may be file names without their suffix.
IMAGE_IDS = ("image_id", "imageid", "img_id", "image", "id")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "fine_label", "classes", "categories", "tags", "tag",
               "y", "cls", "class_name", "class_id", "label_name", "label_id", "targets", "choice")  # fmt: skip
MASK_NAMES = ("mask", "annotation", "semantic_segmentation", "segmentation_mask", "semantic_mask", "segmentation",
              "segmentation_map", "label", "labels", "gt", "ground_truth", "masks", "annotations", "seg", "seg_mask",
              "semantic", "target", "mask_file_name", "mask_path", "label_path")  # fmt: skip


def find_column(
    features: Mapping[str, Any],
    canonical: str,
    *,
    kind: Callable[[Any], bool],
    usual_names: Sequence[str],
    fits: Callable[[Any], bool] = lambda feature: True,
    given: Mapping[str, str] | None = None,
) -> str:
    """Return the name of the source column for a canonical one.

    Args:
        features: the dataset's features.
        canonical: the canonical column, for instance "label".
        kind: whether a feature is of the very type of this column; the only such column is it.
        usual_names: tried in this order, regardless of case, where types do not decide.
        fits: whether a feature can be read as this column at all; others are not taken by name.
        given: the recipe's `data.columns`, {canonical: source}.

    Raises:
        DataError: lists the columns with their types, and says which key names the right one.
    """
    if given and canonical in given:
        name = given[canonical]
        if name not in features:
            near = did_you_mean(name, features)
            raise DataError(
                f"data.columns.{canonical}: there is no column {name!r}.{near} Columns: {listed(features)}."
            )
        return name
    of_kind = [name for name, feature in features.items() if kind(feature)]
    if len(of_kind) == 1:
        return of_kind[0]
    candidates = of_kind or [name for name, feature in features.items() if fits(feature)]
    by_lower = {name.lower(): name for name in reversed(candidates)}
    for usual in usual_names:
        if usual in by_lower:
            return by_lower[usual]
    what = f"more than one column could be the {canonical}" if of_kind else f"no {canonical} column was found"
    raise DataError(f"{what} among: {listed(features)}.\nName it: data.columns.{canonical}=NAME.")


def check_given(given: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse a key of `data.columns` that is no canonical column of the task.

    Raises:
        DataError: names the key and the canonical columns.
    """
    for canonical in given:
        if canonical not in known:
            near = did_you_mean(canonical, known)
            raise DataError(f"data.columns: {canonical!r} is not a column of this task ({', '.join(known)}).{near}")


def listed(features: Mapping[str, Any]) -> str:
    """The columns with their types, for an error."""
    shown = [f"{printable(name)[:60]} ({type_name(feature)})" for name, feature in list(features.items())[:40]]
    return ", ".join(shown + (["..."] if len(features) > 40 else [])) or "none"


def type_name(feature: Any) -> str:
    if is_list(feature):
        return f"list of {type_name(feature.feature)}"
    if isinstance(feature, datasets.Value):
        return feature.dtype.removeprefix("large_")
    return "struct" if isinstance(feature, dict) else type(feature).__name__


def is_list(feature: Any) -> bool:
    """Whether a column holds a list in each row."""
    return isinstance(feature, (datasets.List, datasets.LargeList))


def is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image)


def can_be_image(feature: Any) -> bool:
    """An image, its bytes, a struct of path and bytes, or a path."""
    if isinstance(feature, dict):
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    return is_image(feature) or (
        isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
    )


def find_image(features: Mapping[str, Any], given: Mapping[str, str] | None = None) -> str:
    """The column of the images; see `find_column`."""
    return find_column(features, "image", kind=is_image, usual_names=IMAGE_NAMES, fits=can_be_image, given=given)


def keep_columns(dataset: datasets.Dataset, sources: Mapping[str, str]) -> datasets.Dataset:
    """Keep the columns of `sources`, {canonical: source}, under their canonical names; see `sources_of`."""
    kept = _whole(dataset.select_columns(list(sources.values())))
    # In two steps: the source may call the label "image" and the image "label".
    kept = kept.rename_columns({source: f"_{canonical}" for canonical, source in sources.items()})
    kept = kept.rename_columns({f"_{canonical}": canonical for canonical in sources})
    kept = kept.cast_column("image", datasets.Image(decode=False))
    kept._source_columns = dict(sources)
    return kept


def _whole(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same rows, of which those parts are gone that have lost all of their columns.

    To datasets such a part of a table, on disk or in memory, has no rows, and no column can be added beside it.
    """
    blocks = [[part for part in parts if part.column_names] for parts in getattr(dataset.data, "blocks", ())]
    if not blocks or blocks == dataset.data.blocks:
        return dataset
    return datasets.Dataset(ConcatenationTable.from_blocks(blocks), dataset.info, indices_table=dataset._indices)


def sources_of(kept: datasets.Dataset) -> dict[str, str]:
    """What `keep_columns` took each column from, {canonical: source}; the next step on the rows forgets it."""
    return getattr(kept, "_source_columns", {})
