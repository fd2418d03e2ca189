"""Tables with a row for each box: read as images with objects, compared with what pandas groups of the same rows."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pandas as pd
import pytest

from cv_hf.config import DataConfig
from cv_hf.data import check, classification, detect_format, load_split
from cv_hf.data.box_rows import edges
from cv_hf.errors import DataError
from cv_hf.starter import task_of
from cv_hf.tasks.object_detection import TASK
from tests.data.boxed import load, photo, write

WIDTH, HEIGHT = 60, 40
# Corners of boxes in pixels, by image: one has none. Those of a.jpg do not stand together.
TRUTH = [
    ("a.jpg", "cat", 1, 2, 30, 20),
    ("b.jpg", "dog", 10, 10, 59, 39),
    ("a.jpg", "owl", 0.5, 0, 60, 40),
    ("c.jpg", None, None, None, None, None),
    ("d.jpg", "cat", 3, 5, 9, 33),
]
IMAGES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")


def table_of(layout):
    """The rows in one of the layouts that are found, as a DataFrame."""
    truth = pd.DataFrame(TRUTH, columns=["image", "label", "x1", "y1", "x2", "y2"])
    w, h = truth.x2 - truth.x1, truth.y2 - truth.y1
    corners = [truth.x1, truth.y1, truth.x2, truth.y2]
    image, label = truth.image, truth.label
    columns = {
        "tensorflow": {
            "filename": image, "width": WIDTH, "height": HEIGHT, "class": label,
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)),
        },
        "retinanet": {
            "image_path": image, **dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True)), "class_name": label
        },
        "open images": {
            "ImageID": image.str.removesuffix(".jpg"), "Source": "xclick", "LabelName": label, "Confidence": 1,
            "XMin": truth.x1 / WIDTH, "XMax": truth.x2 / WIDTH, "YMin": truth.y1 / HEIGHT, "YMax": truth.y2 / HEIGHT,
            "IsGroupOf": [0, 1, 0, 0, 0],
        },
        "kaggle": {"image_id": image.str.removesuffix(".jpg"), "x": truth.x1, "y": truth.y1, "w": w, "h": h,
                   "label": label},
        "with the size of the image": {
            "image": image, "width": WIDTH, "height": HEIGHT, "bbox_x": truth.x1, "bbox_y": truth.y1, "bbox_w": w,
            "bbox_h": h, "category": label,
        },
        "left and top": {"image_name": image, "left": truth.x1, "top": truth.y1, "width": w, "height": h,
                         "label": label},
        "centres": {"image": image, "label": label, "x_center": (truth.x1 + w / 2) / WIDTH,
                    "y_center": (truth.y1 + h / 2) / HEIGHT, "width": w / WIDTH, "height": h / HEIGHT},
        "text": {"file_name": image, "label": label,
                 "bbox": [None if np.isnan(x) else f"[{x}, {y}, {a}, {b}]"
                          for x, y, a, b in zip(truth.x1, truth.y1, w, h, strict=True)]},
    }  # fmt: skip
    return pd.DataFrame(columns[layout])


LAYOUTS = {
    "tensorflow": "xyxy", "retinanet": "xyxy", "open images": "xyxy_norm", "kaggle": "xywh", "left and top": "xywh",
    "with the size of the image": "xywh", "centres": "cxcywh_norm", "text": "xywh",
}  # fmt: skip


def expected():
    """{image: [(label, xywh), ...]} of TRUTH."""
    truth = pd.DataFrame(TRUTH, columns=["image", "label", "x1", "y1", "x2", "y2"])
    found = {}
    for image, part in truth.groupby("image", sort=False):
        part = part.dropna()
        found[image] = [(r.label, [r.x1, r.y1, r.x2 - r.x1, r.y2 - r.y1]) for r in part.itertuples()]
    return found


def objects_by_image(split, labels):
    found = {}
    for row in split:
        objects = row["objects"]
        boxes = [list(np.round(box, 4)) for box in objects["bbox"]]
        found[row["file"].split("/")[-1].split(" ")[-1]] = list(
            zip([labels.names[index] for index in objects["category"]], boxes, strict=True)
        )
    return found


def read(path, **columns):
    data = DataConfig(id=str(path), **columns)
    lines = []
    diagnosis = check(data, TASK, lines.append)
    return objects_by_image(diagnosis.rows["train"], diagnosis.labels), diagnosis, lines


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_boxes_become_images_with_objects(tmp_path, layout, suffix):
    write(tmp_path, dict.fromkeys(IMAGES))
    table, path = table_of(layout), tmp_path / f"boxes.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    data = DataConfig(id=str(path))
    assert task_of(data).name == "object-detection"
    # The name of a list, or of text, says nothing of its format.
    found, diagnosis, (line, *findings) = read(path, box_format="xywh" if layout == "text" else None)
    assert found == expected()
    assert diagnosis.labels.names == ("cat", "dog", "owl")
    assert f"boxes: {LAYOUTS[layout]}, " in line
    assert ("names of their numbers" in line) == (layout != "text")
    # What lies on the whole image is noted, wherever it stands.
    assert set(diagnosis.findings) <= {"box-covers-image", "near-duplicate", "duplicate-image", "class-imbalance"}, (
        findings
    )
    crowds = [row["objects"]["iscrowd"] for row in diagnosis.rows["train"]]
    assert crowds == [[False, False], [layout == "open images"], [], [False]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_semicolons_and_decimal_commas(tmp_path, layout):
    """As Excel writes a table in German."""
    write(tmp_path, dict.fromkeys(IMAGES))
    table_of(layout).to_csv(tmp_path / "boxes.csv", index=False, sep=";", decimal=",", encoding="utf-8-sig")
    assert task_of(DataConfig(id=str(tmp_path))).name == "object-detection"
    found, _, _ = read(tmp_path, box_format="xywh" if layout == "text" else None)
    assert found == expected()


@pytest.mark.parametrize(
    "names",
    [
        ("train/_annotations.csv", "valid/_annotations.csv", "{split}/{name}"),
        ("train_labels.csv", "valid_labels.csv", "images/{split}/{name}"),
        ("data/train_labels.csv", "data/valid_labels.csv", "images/{name}"),
        ("data/train.csv", "data/valid.csv", "data/images/{name}"),
    ],
)
def test_folders_as_exports_and_tutorials_have_them(tmp_path, names):
    *tables, place = names
    for split, table in zip(("train", "valid"), tables, strict=True):
        write(tmp_path, {place.format(split=split, name=name): None for name in IMAGES})
        (tmp_path / table).parent.mkdir(exist_ok=True)
        table_of("tensorflow").to_csv(tmp_path / table, index=False)
    assert detect_format(DataConfig(id=str(tmp_path))) == "parquet"
    splits = load(tmp_path)
    assert objects_by_image(splits.train, splits.labels) == expected()
    assert objects_by_image(splits.validation, splits.labels) == expected()
    assert set(splits.findings) == set()
    held, _ = load_split(DataConfig(id=str(tmp_path)), TASK, splits.labels, "valid", lambda line: None)
    assert objects_by_image(held, splits.labels) == expected()


def test_metadata_of_a_folder_of_images(tmp_path):
    write(tmp_path, dict.fromkeys(IMAGES))
    table_of("tensorflow").rename(columns={"filename": "file_name"}).to_csv(tmp_path / "metadata.csv", index=False)
    assert detect_format(DataConfig(id=str(tmp_path))) == "imagefolder"
    assert read(tmp_path)[0] == expected()


def test_embedded_images_are_told_apart_by_their_bytes(tmp_path):
    pictures = {name: photo(WIDTH + index, HEIGHT) for index, name in enumerate(IMAGES)}
    table = table_of("retinanet")
    # One name for all, as some exports have it.
    table["image"] = [{"bytes": pictures[name], "path": "image.jpg"} for name in table.pop("image_path")]
    table.to_parquet(tmp_path / "t.parquet", index=False)
    _, diagnosis, _ = read(tmp_path / "t.parquet")
    rows = diagnosis.rows["train"]
    found = {row["image"]["bytes"]: [list(np.round(box, 4)) for box in row["objects"]["bbox"]] for row in rows}
    assert found == {pictures[name]: [box for _, box in objects] for name, objects in expected().items()}


BAD = {
    "box-not-finite": ("d.jpg", "cat", "x", 5, 9, 33),
    "box-inverted": ("d.jpg", "cat", 9, 5, 3, 33),
    "box-zero-area": ("d.jpg", "cat", 9, 5, 9, 33),
    "box-outside": ("d.jpg", "cat", 70, 5, 90, 33),
    "box-clipped": ("d.jpg", "cat", 50, 5, 69, 33),
    "box-huge": ("d.jpg", "cat", 0, 0, 1e7, 1e7),
    "box-without-label": ("d.jpg", None, 3, 6, 9, 33),
    "missing-image": ("gone.jpg", "cat", 3, 6, 9, 33),
    "path-outside": ("../out.jpg", "cat", 3, 6, 9, 33),
}


@pytest.mark.parametrize("code", BAD)
def test_a_bad_row_is_found_as_in_coco(tmp_path, code):
    """The finding is what the same box gets in a COCO file, but for what only rows can be."""
    write(tmp_path, dict.fromkeys(IMAGES))
    table = table_of("tensorflow").astype(object)
    file, label, *box = BAD[code]
    table.loc[len(table)] = [file, WIDTH, HEIGHT, label, *box]
    table.to_csv(tmp_path / "t.csv", index=False)
    found, diagnosis, _ = read(tmp_path / "t.csv")
    place = "d.jpg box 1" if code.startswith("box") else file
    assert list(diagnosis.findings.reasons(code)) == [place]
    if code != "box-clipped":
        assert {name: found[name] for name in IMAGES} == expected()
    if code in ("box-not-finite", "box-without-label", "missing-image", "path-outside"):
        return
    x1, y1, x2, y2 = box
    coco = {
        "images": [{"id": 1, "file_name": "d.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 5, 6, 28]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    other = check(DataConfig(id=str(tmp_path / "coco.json")), TASK, lambda line: None)
    assert list(other.findings.reasons(code)) == [place]


def test_most_rows_may_be_without_a_class_name_of_the_usual_kind(tmp_path):
    """A class "none" of rows without a box is no class."""
    write(tmp_path, dict.fromkeys(IMAGES))
    table = table_of("tensorflow")
    table.loc[3, "class"] = "none"
    table.to_csv(tmp_path / "t.csv", index=False)
    assert read(tmp_path / "t.csv")[1].labels.names == ("cat", "dog", "owl")


def test_columns_and_format_of_the_recipe(tmp_path):
    write(tmp_path, dict.fromkeys(IMAGES))
    path = tmp_path / "t.csv"
    table = table_of("retinanet")
    table.columns = ["picture of it", "a", "b", "c", "d", "what"]
    table.to_csv(path, index=False)
    columns = {"image": "picture of it", "bbox": "a, b, c, d", "category": "what"}
    found, _, (line, *_) = read(path, columns=columns)
    assert found == expected()
    assert "boxes: xyxy, proved" in line
    assert read(path, columns=columns, box_format="xyxy")[0] == expected()
    # What the recipe says counts for more than a name.
    table.columns = ["image", "x1", "y1", "x2", "y2", "label"]
    table.x2, table.y2 = table.x2 - table.x1, table.y2 - table.y1
    table.to_csv(path, index=False)
    assert read(path, box_format="xywh")[0] == expected()
    for bbox, message in (
        ("x1,y1,x2,yy", "column 'yy' is not there. Columns: x1"),
        ("x1,y1,x2", "'x1,y1,x2' are not four columns"),
        ("x1,y1,x2,x2", "are not four columns"),
    ):
        with pytest.raises(DataError, match=message):
            read(path, columns={"bbox": bbox})


@pytest.mark.parametrize(
    ("head", "row", "message"),
    [
        ("image,x1,y1,x2,y2,cx,cy,w,h,class", "a.jpg,1,2,3,4,2,3,2,2,cat", "could be x1, y1, x2, y2 or cx, cy, w, h"),
        ("image,x1,y1,x2,y2,x3,y3,x4,y4,class", "a.jpg,1,2,3,4,2,3,2,2,cat", "x3, y3, x4, y4 are corners of quad"),
        ("image,bbox,class", "a.jpg,left of the tree,cat", "'bbox' holds text, but not the four numbers"),
        ("image,xmin,ymin,xmax,ymax", "a.jpg,1,2,30,40", r"have no classes.*data.labels=\[face\]"),
        ("image,a,b,c,d,class", "a.jpg,1,2,3,4,cat\na.jpg,1,2,3,4,dog", r"same image.*\(a, b, c, d\).*bbox=a,b,c,d"),
        ("a.jpg,1,2,3,4,cat", "b.jpg,1,2,3,4,cat", "its first line holds values"),
    ],
)
def test_boxes_that_are_not_clear_are_never_taken_for_classes(tmp_path, head, row, message):
    write(tmp_path, dict.fromkeys(IMAGES))
    (tmp_path / "t.csv").write_text(f"{head}\n{row}\n")
    with pytest.raises(DataError, match=f"(?s){message}"):
        task_of(DataConfig(id=str(tmp_path / "t.csv")))


def test_centres_in_pixels_are_refused(tmp_path):
    write(tmp_path, dict.fromkeys(IMAGES))
    (tmp_path / "t.csv").write_text("image,cx,cy,w,h,class\na.jpg,20,20,10,10,cat\n")
    with pytest.raises(DataError, match="by their centre"):
        read(tmp_path / "t.csv")


def test_relative_x_and_y_are_of_a_corner_or_the_centre(tmp_path):
    """The names leave it open, so only the images decide, or nobody."""
    write(tmp_path, dict.fromkeys(IMAGES))
    path = tmp_path / "t.csv"
    path.write_text("image,x,y,w,h,class\na.jpg,0.5,0.5,0.2,0.2,cat\nb.jpg,0.4,0.5,0.2,0.3,cat\n")
    with pytest.raises(DataError, match=r"is not certain.*cxcywh_norm"):
        load(path, splits={"validation": 0.5})
    path.write_text("image,x,y,w,h,class\na.jpg,0.5,0.5,1,1,cat\nb.jpg,0.4,0.5,0.8,0.9,cat\n")
    _, _, (line, *_) = read(path)
    assert "boxes: cxcywh_norm, proved" in line


def test_pixels_and_relative_ones_in_one_table_are_not_certain(tmp_path):
    write(tmp_path, dict.fromkeys(IMAGES))
    (tmp_path / "t.csv").write_text("image,xmin,ymin,xmax,ymax,class\na.jpg,0.1,0.1,0.5,0.6,cat\nb.jpg,3,4,30,20,cat\n")
    assert "box-format-ambiguous" in read_findings(tmp_path / "t.csv")


def read_findings(path):
    return set(check(DataConfig(id=str(path)), TASK, lambda line: None).findings)


def test_classification_refuses_several_boxes_of_an_image(tmp_path):
    table = table_of("retinanet").dropna()
    images = [{"bytes": None, "path": str(tmp_path / name)} for name in table.image_path]
    rows = datasets.Dataset.from_pandas(table.drop(columns="image_path"), preserve_index=False)
    rows = rows.add_column("image", images, feature=datasets.Image(decode=False))
    with pytest.raises(DataError, match=r"4 rows are boxes \(x1, y1, x2, y2\) of 3 images.*\n.*object-detection"):
        classification.canonical(rows, DataConfig(id="x"))
    # With a row for each image, as of cars or birds, the class may well be the image's.
    assert classification.canonical(rows.select([0, 1, 3]), DataConfig(id="x")).column_names == ["image", "label"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("xMin yMin xMax yMax width height", "xMin yMin xMax yMax"),
        ("x y w h width height", "x y w h"),
        ("bbox.x bbox.y bbox.width bbox.height", "bbox.x bbox.y bbox.width bbox.height"),
        ("ymin xmin ymax xmax", "xmin ymin xmax ymax"),
        ("x y width", None),
        ("x1 y1 x2", None),
    ],
)
def test_four_names_of_a_box(names, found):
    four = edges(names.split())
    assert (None if four is None else " ".join(four.names)) == found


def test_a_table_of_the_hub(hub, tmp_path):
    pictures = {name: photo(WIDTH + index, HEIGHT) for index, name in enumerate(IMAGES)}
    table = table_of("tensorflow")
    images = [{"bytes": pictures[name], "path": name} for name in table.pop("filename")]
    rows = datasets.Dataset.from_pandas(table, preserve_index=False).add_column(
        "image", images, feature=datasets.Image(decode=False)
    )
    content = io.BytesIO()
    rows.to_parquet(content)
    hub.add_repo("tester/rows", type="dataset", files={"train.parquet": content.getvalue()})
    found, diagnosis, _ = read("tester/rows")
    assert (found, diagnosis.source.format) == (expected(), "hub")


def test_lists_of_objects_beside_paths_in_parquet(tmp_path):
    """The paths become a part of the table that is in memory, and the rest of it stays on disk."""
    write(tmp_path, dict.fromkeys(IMAGES))
    objects = [
        {"bbox": [box for _, box in each], "category": [name for name, _ in each]} for each in expected().values()
    ]
    datasets.Dataset.from_dict({"image": list(expected()), "objects": objects}).to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", box_format="xywh")[0] == expected()
