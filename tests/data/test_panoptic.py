"""Panoptic segmentation: COCO panoptic folders and such columns, against loops over the pixels, and damaged."""

from __future__ import annotations

import io
import json
import types
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_hf.config import DataConfig
from cv_hf.data import LabelMap, coco_panoptic, panoptic
from cv_hf.data.detect import detect_format
from cv_hf.data.load import load_split, load_splits
from cv_hf.data.sample import scattered_digits
from cv_hf.errors import DataError
from tests.data.boxed import photo, write
from tests.data.samples import SHARED

TASK = types.SimpleNamespace(
    name="panoptic-segmentation",
    canonical=panoptic.canonical,
    label_map=panoptic.label_map,
    clean=panoptic.clean,
    strata=panoptic.strata,
    encode=panoptic.encode,
    present=panoptic.present,
    formats=("panoptic",),
    moved="mask",
)
SIZE = (40, 60)
CATEGORIES = [{"id": 4, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
LABELS = LabelMap(("cat", "sky"), (4, 9), things=("cat",))
# Ids of which red, green and blue count, and void at the left.
IDS = np.zeros(SIZE, np.int64)
IDS[:, 10:], IDS[5:20, 20:30], IDS[25:35, 40:50] = 3, 70_000, 515
SEGMENTS = [
    {"id": 70_000, "category_id": 4, "iscrowd": 0, "area": 150, "bbox": [20, 5, 10, 15]},
    {"id": 3, "category_id": 9, "iscrowd": 0, "area": 1750},
    {"id": 515, "category_id": 4, "iscrowd": 1, "area": 100},
]


def load(id, **data):
    lines = []
    return load_splits(DataConfig(id=str(id), **data), TASK, 0, lines.append), lines


def rgb(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)


def picture(pixels, format="PNG"):
    content = io.BytesIO()
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(content, format)
    return content.getvalue()


def expected(ids, segments):
    """The numbers of the segments, pixel by pixel."""
    numbers = {segment["id"]: number for number, segment in enumerate(segments, 1)}
    return [[numbers.get(int(id), 0) for id in row] for row in ids]


def codes(findings):
    return {code: entry["files"] for code, entry in findings.to_dict().items()}


def content(names=("a", "b", "c", "d"), segments=SEGMENTS, **more):
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 60, "height": 40} for n, name in enumerate(names, 5)]
    annotations = [
        {"image_id": n, "file_name": f"{name}.png", "segments_info": segments} for n, name in enumerate(names, 5)
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES} | more


LAYOUTS = {
    "official": ("annotations/panoptic_{}2017.json", "annotations/panoptic_{}2017/", "{}2017/"),
    "official, PNGs beside": ("annotations/panoptic_{}2017.json", "panoptic_{}2017/", "{}2017/"),
    "panoptic folder": ("panoptic/{}.json", "panoptic/{}/", "images/{}/"),
    "one folder of each": ("panoptic_{}.json", "panoptic/", "images/"),
    "masks folder": ("{}.json", "masks/{}/", "images/{}/"),
    "split folders": ("{}/panoptic.json", "{}/panoptic/", "{}/images/"),
    "all in one": ("{}.json", "", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("same_names", [False, True])
def test_layouts(tmp_path, layout, same_names):
    file, masks, images = LAYOUTS[layout]
    if same_names and layout == "all in one":
        pytest.skip("a folder holds no two files of one name")
    files = {}
    for split in ("train", "val"):
        each = content([f"{split}{n}" for n in range(3)])
        for n, (image, annotation) in enumerate(zip(each["images"], each["annotations"], strict=True)):
            image["file_name"] = f"{split}{n}.png" if same_names else f"{split}{n}.jpg"
            files[images.format(split) + image["file_name"]] = photo(format="PNG") if same_names else None
            files[masks.format(split) + annotation["file_name"]] = picture(rgb(IDS))
        files[file.format(split)] = each
    root = write(tmp_path / "set", files)
    assert detect_format(DataConfig(id=root), TASK.formats) == "panoptic"
    splits, lines = load(root)
    assert splits.labels == LABELS
    assert not len(splits.findings)
    assert "data: segments: 1 classes of things, 1 of stuff" in lines
    assert (len(splits.train), len(splits.validation)) == (3, 3)
    for split, part in (("train", splits.train), ("val", splits.validation)):
        for n, row in enumerate(part):
            assert Path(row["mask"]["path"]) == Path(root) / (masks.format(split) + f"{split}{n}.png")
            assert Path(row["image"]["path"]).parent == (Path(root) / images.format(split))
            fitted, found = panoptic.fit(row, SIZE, splits.labels)
            assert not found
            assert fitted["mask"].tolist() == expected(IDS, SEGMENTS)
    one, _ = load(Path(root) / file.format("train"))
    assert len(one.train) + len(one.validation) == 3
    assert one.labels == LABELS


def test_folders_can_be_given(tmp_path):
    files = {"a/train.json": content(), **{f"photos/{name}.jpg": None for name in "abcd"}}
    files |= {f"ids/{name}.png": picture(rgb(IDS)) for name in "abcd"}
    root = Path(write(tmp_path, files))
    with pytest.raises(DataError, match=r"its PNGs, as a.png, are not in.*\n.*data.masks"):
        coco_panoptic.read(str(root / "a"))
    with pytest.raises(DataError, match=r"its images, as a.jpg, are not in.*\n.*data.images"):
        coco_panoptic.read(str(root / "a"), masks=str(root / "ids"))
    with pytest.raises(DataError, match=r"data.masks: there is no folder"):
        coco_panoptic.read(str(root / "a"), masks=str(root / "gone"))
    splits, _ = load(root / "a", images=str(root / "photos"), masks=str(root / "ids"))
    assert panoptic.fit(splits.train[0], SIZE, splits.labels)[0]["mask"].tolist() == expected(IDS, SEGMENTS)


def test_a_large_file_is_told_from_instances(tmp_path):
    files = {f"train2017/{n}.jpg": None for n in range(3)} | {
        f"annotations/panoptic_train2017/{n}.png": picture(rgb(IDS)) for n in range(3)
    }
    large = content(["0", "1", "2"])
    # The start of the file has nothing but images, as the official one.
    large["images"] = [each | {"license": "x" * 40_000} for each in large["images"]]
    root = write(tmp_path, files | {"annotations/panoptic_train2017.json": large})
    file = str(tmp_path / "annotations" / "panoptic_train2017.json")
    assert '"segments_info"' not in Path(file).read_text()[: 1 << 16]
    assert detect_format(DataConfig(id=root)) == detect_format(DataConfig(id=file)) == "panoptic"
    assert load(root)[0].labels == LABELS


def fit(ids, segments, pixels=None, size=SIZE, format="PNG", labels=LABELS):
    names = {None: None} | {source: n for n, source in enumerate(labels.sources)}
    rows = [{"area": 1.0, "iscrowd": False, **each, "category_id": names[each["category_id"]]} for each in segments]
    mask = {"bytes": picture(rgb(ids) if pixels is None else pixels, format), "path": None}
    return panoptic.fit({"mask": mask, "segments_info": rows, "file": "a.jpg"}, size, labels)


def test_the_map_of_segments():
    fitted, found = fit(IDS, SEGMENTS)
    assert not found
    assert fitted["mask"].dtype == np.uint8
    assert fitted["mask"].tolist() == expected(IDS, SEGMENTS)
    segments = fitted["segments"]
    assert {name: (values.tolist(), values.dtype) for name, values in segments.items()} == {
        "category": ([0, 1, 0], np.int64),
        "iscrowd": ([False, False, True], bool),
        "area": ([150, 1750, 100], np.int64),
    }


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_ids_equal_a_loop_over_the_pixels(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    known = data.draw(st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=5, unique=True))
    values = data.draw(st.lists(st.sampled_from([0, *known]), min_size=height * width, max_size=height * width))
    ids = np.array(values).reshape(height, width)
    listed = data.draw(st.permutations(known))[: data.draw(st.integers(0, len(known)))]
    lost = data.draw(st.sets(st.sampled_from(known)))
    segments = [{"id": id, "category_id": None if id in lost else 9} for id in listed]
    fitted, found = fit(ids, segments, size=(height, width))
    kept = [each for each in segments if each["category_id"] is not None and each["id"] in values]
    reasons = {code: name for code, name, _ in found}
    assert ("unlisted-segments" in reasons) == bool(set(values) - set(listed) - {0})
    gone = [name for code, name, _ in found if code == "segment-without-pixels"]
    assert gone == [f"a.jpg segment {id}" for id in listed if id not in values and id not in lost]
    if segments and not kept:
        assert fitted is None
    else:
        assert fitted["mask"].tolist() == expected(ids, kept)
        assert fitted["segments"]["area"].tolist() == [values.count(each["id"]) for each in kept]


def test_pictures_of_every_mode():
    small = np.where(IDS == 70_000, 200, np.where(IDS == 515, 7, IDS))
    listed = [{"id": id, "category_id": 4} for id in (200, 3, 7)]
    right = expected(small, listed)
    for pixels in (small.astype(np.uint8), small.astype(np.uint16)):
        assert fit(small, listed, pixels)[0]["mask"].tolist() == right
    assert fit(small, listed, np.dstack([rgb(small), np.full(SIZE, 9, np.uint8)]))[0]["mask"].tolist() == right
    assert fit(small, listed, small.astype(np.int32), format="TIFF")[0]["mask"].tolist() == right
    palette = PIL.Image.fromarray(small.astype(np.uint8))
    palette.putpalette(bytes(range(256)) * 3)
    assert fit(small, listed, palette)[0]["mask"].tolist() == right
    # A program that makes files smaller may put the colours of an RGB mask in a palette.
    optimised = PIL.Image.fromarray(rgb(IDS)).quantize(8)
    assert (np.asarray(optimised.convert("RGB")) == rgb(IDS)).all()
    assert fit(IDS, SEGMENTS, optimised)[0]["mask"].tolist() == expected(IDS, SEGMENTS)
    sixteen = np.full(SIZE, 40_000, np.uint16)
    assert fit(IDS, [{"id": 40_000, "category_id": 9}], sixteen)[0]["mask"].all()


def test_many_segments_need_a_wider_map():
    ids = np.arange(1, 2401).reshape(SIZE)
    segments = [{"id": id, "category_id": 4} for id in range(2400, 0, -1)]
    fitted, _ = fit(ids, segments)
    assert fitted["mask"].dtype == np.uint16
    assert fitted["mask"].tolist() == (2401 - ids).tolist()
    assert fit(ids, segments[-255:])[0]["mask"].dtype == np.uint8
    assert fit(ids, segments[-256:])[0]["mask"].dtype == np.uint16


@pytest.mark.parametrize(
    ("mask", "code", "reason"),
    [
        (b"no image", "unreadable-mask", ""),
        (None, "missing-mask", ""),
        (picture(rgb(IDS), "JPEG"), "lossy-mask", ""),
        (picture(IDS.astype(np.float32), "TIFF"), "unreadable-mask", "its mode is F"),
        (picture(rgb(IDS.T)), "mask-size-mismatch", "40x60, in an image of 60x40"),
        (picture(rgb(np.full(SIZE, 9))), "unlisted-segments", "2400 pixels of 9"),
    ],
)
def test_a_mask_that_cannot_be_used(mask, code, reason):
    row = {"mask": {"bytes": mask, "path": None}, "segments_info": [{"id": 5, "category_id": 0}], "file": "a.jpg"}
    fitted, found = panoptic.fit(row, SIZE, LABELS)
    assert fitted is None
    assert found[0][:2] == (code, "a.jpg")
    assert reason in found[0][2]


def test_an_unannotated_image_and_what_is_void():
    fitted, found = fit(np.zeros(SIZE, int), [])
    assert not found
    assert not fitted["mask"].any()
    assert len(fitted["segments"]["category"]) == 0
    lost = [{**each, "category_id": None} if each["id"] == 3 else each for each in SEGMENTS]
    fitted, found = fit(IDS, lost)
    assert not found
    assert fitted["mask"].tolist() == expected(IDS, [SEGMENTS[0], SEGMENTS[2]])
    fitted, found = fit(IDS, SEGMENTS[:2])
    assert found == [("unlisted-segments", "a.jpg", "100 pixels of 515")]
    assert fitted["mask"].tolist() == expected(IDS, SEGMENTS[:2])
    fitted, found = fit(IDS, [{"id": 8, "category_id": 4}, *SEGMENTS])
    assert found == [("segment-without-pixels", "a.jpg segment 8", "")]
    assert fitted["mask"].tolist() == expected(IDS, SEGMENTS)


def test_every_fault_of_a_file(tmp_path):
    bad = [
        {"id": 0, "category_id": 4},
        {"id": -1, "category_id": 4},
        {"id": 3, "category_id": 9},
        {"id": 3, "category_id": 4},
        {"id": 5},
        {"id": 6, "category_id": 77},
        {"category_id": 4},
        "segment",
    ]
    each = content("abcdefgh")
    each["annotations"][1]["segments_info"] = bad
    each["annotations"][2] = "annotation"
    each["annotations"][3] |= {"image_id": 4}
    each["annotations"][4] |= {"segments_info": None}
    each["annotations"][5] |= {"file_name": "../../x.png"}
    each["annotations"].append(each["annotations"][0])
    files = {f"images/{name}.jpg": None for name in "abcdefgh"}
    files |= {f"panoptic/{name}.png": picture(rgb(IDS)) for name in "abcdef"}
    root = write(tmp_path / "set", files | {"train.json": each, "val.json": content("ab")})
    splits, _ = load(root)
    assert codes(splits.findings) == {
        "path-outside": ["../../x.png"],
        "unreadable-annotation": ["train.json: annotation 2", "train.json: annotation 4", "train.json: annotation 8"],
        "orphan-annotation": ["train.json: annotation 3"],
        "missing-mask": ["panoptic/g.png", "panoptic/h.png"],
        "unannotated-image": ["c.jpg", "d.jpg", "e.jpg"],
        "segment-unreadable": [
            "train.json: image 6 segment 6", "train.json: image 6 segment 7", "train[1] images/b.jpg segment 0",
            "train[1] images/b.jpg segment -1", "train[1] images/b.jpg segment 3",
        ],
        "segment-without-label": ["train[1] images/b.jpg segment 5"],
        "segment-unknown-label": ["train[1] images/b.jpg segment 6"],
    }  # fmt: skip
    assert [row["file"] for row in splits.train] == ["train[0] images/a.jpg", "train[1] images/b.jpg"]
    assert [each["category_id"] for each in splits.train[1]["segments_info"]] == [1, None, None]
    assert panoptic.strata(splits.train) == ["cat", "sky"]
    assert panoptic.present(splits.train) == {"cat", "sky"}
    with pytest.raises(DataError, match=r"Mend or remove it, or set data.on_bad_sample: skip"):
        load(root, on_bad_sample="stop")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"annotations": [{"image_id": 99, "file_name": "a.png", "segments_info": []}]}, "none of its 1 annotations"),
        ({"categories": [{"name": "cat"}]}, "a category has no id"),
        ({"images": [{"id": 1}]}, "image 0 of the list has no id"),
        ({"images": None}, "it has no list of images"),
    ],
)
def test_files_that_are_refused(tmp_path, more, match):
    root = write(tmp_path, {"train.json": content() | more, "images/a.jpg": None, "panoptic/a.png": picture(rgb(IDS))})
    with pytest.raises(DataError, match=match):
        coco_panoptic.read(root)
    other = write(tmp_path / "other", {"notes.json": {"notes": []}})
    with pytest.raises(DataError, match="there is no COCO panoptic annotation file"):
        coco_panoptic.read(other)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(-9, 10**6), min_size=3, max_size=3, unique=True), st.sets(st.integers(0, 2)))
def test_gapped_category_ids_and_things(tmp_path_factory, ids, things):
    segments = [{"id": id, "category_id": ids[n]} for n, id in enumerate((70_000, 3, 515))]
    categories = [{"id": id, "name": f"class {id}", "isthing": int(n in things)} for n, id in enumerate(ids)]
    each = content("ab", segments, categories=categories)
    files = {f"images/{name}.jpg": None for name in "ab"} | {f"panoptic/{n}.png": picture(rgb(IDS)) for n in "ab"}
    splits, _ = load(write(tmp_path_factory.mktemp("gapped"), files | {"train.json": each}))
    assert splits.labels.sources == tuple(sorted(ids))
    assert splits.labels.things == tuple(f"class {id}" for id in sorted(ids) if ids.index(id) in things)
    fitted, _ = panoptic.fit(splits.train[0], SIZE, splits.labels)
    assert fitted["segments"]["category"].tolist() == [sorted(ids).index(id) for id in ids]


def test_things_and_stuff_must_be_declared(tmp_path):
    plain = [{key: value for key, value in each.items() if key != "isthing"} for each in CATEGORIES]
    files = {f"images/{name}.jpg": None for name in "abcd"} | {f"panoptic/{n}.png": picture(rgb(IDS)) for n in "abcd"}
    root = write(tmp_path, files | {"train.json": content(categories=plain)})
    with pytest.raises(DataError, match=r"nothing says which.*\n.*stuff: data.stuff=\[...\] \(of cat, sky, ...\)"):
        load(root)
    assert load(root, stuff=["sky"])[0].labels == LABELS
    assert load(root, stuff=[])[0].labels.things == ("cat", "sky")
    with pytest.raises(DataError, match=r"data.stuff: 'skye' is none of the labels. Did you mean 'sky'"):
        load(root, stuff=["skye"])
    # A model knows it, whatever the data says.
    split, _ = load_split(DataConfig(id=root), TASK, LabelMap(("sky", "cat"), (1, 2), things=("cat",)), "train")
    assert {each["category_id"] for row in split for each in row["segments_info"]} == {0, 1}
    write(tmp_path, {"train.json": content(), "val.json": content(categories=plain)})
    with pytest.raises(DataError, match="category 4 has another isthing elsewhere"):
        load(root)


def test_renamed_labels_keep_what_they_are(tmp_path):
    files = {f"images/{name}.jpg": None for name in "abcd"} | {f"panoptic/{n}.png": picture(rgb(IDS)) for n in "abcd"}
    root = write(tmp_path, files | {"train.json": content()})
    assert load(root, labels={"sky": "heaven", "cat": "tiger"})[0].labels == LabelMap(
        ("heaven", "tiger"), (9, 4), things=("tiger",)
    )
    splits, _ = load(root, labels=["cat"])
    assert splits.labels == LabelMap(("cat",), (4,), things=("cat",))
    assert splits.findings.count("segment-unknown-label") == 4
    fitted, found = panoptic.fit(splits.train[0], SIZE, splits.labels)
    assert not found
    assert fitted["mask"].tolist() == expected(IDS, [SEGMENTS[0], SEGMENTS[2]])
    # The ignored value is no fault.
    splits, _ = load(root, labels={4: "cat"}, ignore_index=9)
    assert not len(splits.findings)


def table(segments, feature, number=8, mask="label", **more):
    columns = {
        "image": [{"bytes": photo(), "path": f"{n}.jpg"} for n in range(number)],
        mask: [{"bytes": picture(rgb(IDS)), "path": None}] * number,
        "segments_info": [segments] * number if isinstance(segments, dict) else [segments[:]] * number,
    }
    features = {"image": datasets.Image(), mask: datasets.Image(), "segments_info": feature}
    for name, (values, kind) in more.items():
        columns[name], features[name] = values, kind
    made = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(made)
    return {"data/train-00000-of-00001.parquet": made.getvalue()}


WHOLE, TEXT = datasets.Value("int64"), datasets.Value("string")
FEATURE = {"id": WHOLE, "category_id": WHOLE, "iscrowd": WHOLE, "area": WHOLE}


def plain(segments, **more):
    return [{key: each[key] for key in ("id", "category_id", "iscrowd", "area")} | more for each in segments]


def test_a_dataset_of_the_hub(hub):
    hub.add_repo("tester/panoptic", type="dataset", files=table(plain(SEGMENTS), datasets.List(FEATURE)))
    with pytest.raises(DataError, match="nothing says which classes"):
        load("tester/panoptic")
    splits, lines = load("tester/panoptic", labels={4: "cat", 9: "sky"}, stuff=["sky"])
    assert splits.labels == LABELS
    assert not len(splits.findings)
    assert any("columns: image from image, mask from label, segments_info from segments_info" in line for line in lines)
    assert splits.train[0]["mask"]["bytes"] == picture(rgb(IDS))
    for row in splits.train:
        fitted, found = panoptic.fit(row, SIZE, splits.labels)
        assert not found
        assert fitted["mask"].tolist() == expected(IDS, SEGMENTS)
        assert fitted["segments"]["iscrowd"].tolist() == [False, False, True]
    assert load("tester/panoptic", stuff=["9"])[0].labels == LabelMap(("4", "9"), (4, 9), things=("4",))


NAMES = {4: "cat", 9: "sky"}
CLASSES = datasets.ClassLabel(names=["sky", "cat"])
SHAPES = {
    "lists": (
        {key: [each[key] for each in plain(SEGMENTS)] for key in FEATURE},
        {key: datasets.List(value) for key, value in FEATURE.items()},
        LABELS,
        {"labels": {4: "cat", 9: "sky"}},
    ),
    "text": (
        [{"id": each["id"], "category": NAMES[each["category_id"]]} for each in SEGMENTS],
        datasets.List({"id": datasets.Value("uint32"), "category": TEXT}),
        LabelMap(("cat", "sky"), ("cat", "sky"), things=("cat",)),
        {},
    ),
    "ClassLabel": (
        [{"id": each["id"], "label": int(each["category_id"] == 4)} for each in SEGMENTS],
        datasets.List({"id": WHOLE, "label": CLASSES}),
        LabelMap(("sky", "cat"), (0, 1), things=("cat",)),
        {},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_segments_in_other_shapes(tmp_path, shape):
    segments, feature, labels, more = SHAPES[shape]
    splits, _ = load(write(tmp_path, table(segments, feature, mask="mask")), stuff=["sky"], **more)
    assert splits.labels == labels
    assert not len(splits.findings)
    fitted, found = panoptic.fit(splits.train[0], SIZE, splits.labels)
    assert not found
    assert fitted["mask"].tolist() == expected(IDS, SEGMENTS)
    assert [labels.names[index] for index in fitted["segments"]["category"]] == ["cat", "sky", "cat"]


def test_isthing_in_the_segments(tmp_path):
    feature = datasets.List({**FEATURE, "isthing": datasets.Value("bool")})
    segments = [each | {"isthing": each["category_id"] == 4} for each in plain(SEGMENTS)]
    splits, _ = load(write(tmp_path / "a", table(segments, feature)))
    assert splits.labels == LabelMap(("4", "9"), (4, 9), things=("4",))
    assert set(splits.train[0]["segments_info"][0]) == {"id", "category_id", "area", "iscrowd"}
    segments[2]["isthing"] = False
    with pytest.raises(DataError, match=r"'4' is a thing in some segments and stuff in others; set data.stuff"):
        load(write(tmp_path / "b", table(segments, feature)))


def test_tables_that_are_wrong(tmp_path):
    lists = {key: datasets.List(value) for key, value in FEATURE.items()}
    good = {key: [each[key] for each in plain(SEGMENTS)] for key in FEATURE}
    made = io.BytesIO()
    columns = {
        "image": [{"bytes": photo(), "path": f"{n}.jpg"} for n in range(6)],
        "mask": [{"bytes": picture(rgb(IDS)), "path": None}] * 5 + [None],
        "segments_info": [good, good, good, good | {"id": [3]}, None, good],
    }
    features = {"image": datasets.Image(), "mask": datasets.Image(), "segments_info": lists}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(made)
    splits, _ = load(write(tmp_path, {"train.parquet": made.getvalue()}), stuff=["9"], splits={"validation": 0.4})
    found = codes(splits.findings)
    assert found.pop("unreadable-annotation") == ["3.jpg", "4.jpg"]
    assert list(found.values()) == [["5.jpg"]]  # the row without a mask
    assert len(splits.train) + len(splits.validation) == 3
    plainly = {"image": datasets.Image(), "mask": datasets.Image(), "label": WHOLE}
    without = datasets.Dataset.from_dict({"image": [], "mask": [], "label": []}, features=datasets.Features(plainly))
    with pytest.raises(DataError, match=r"no column of segments was found.*\n.*segments_info=NAME"):
        panoptic.canonical(without, DataConfig(id="x"))
    with pytest.raises(DataError, match="'label' is no column of segments"):
        panoptic.canonical(without, DataConfig(id="x", columns={"segments_info": "label"}))


def test_nothing_is_decoded_before_fit(tmp_path):
    files = {f"images/{name}.jpg": None for name in "abcd"}
    files |= {f"panoptic/{name}.png": b"no image" for name in "abcd"}
    splits, _ = load(write(tmp_path, files | {"train.json": content()}))
    assert len(splits.train) == 3
    assert panoptic.fit(splits.train[0], SIZE, LABELS)[1][0][0] == "unreadable-mask"


def test_the_embedded_sample(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")
    root = scattered_digits(tmp_path / "digits", train=4, validation=2, test=2)
    splits, _ = load(root)
    assert splits.labels.things == tuple(str(digit) for digit in range(10))
    assert set(splits.findings) <= {"class-without-samples"}
    for row in splits.train:
        pixels = np.asarray(PIL.Image.open(row["mask"]["path"]), np.int64)
        ids = pixels @ [1, 256, 256**2]
        fitted, found = panoptic.fit(row, ids.shape, splits.labels)
        semantic = np.asarray(PIL.Image.open(row["mask"]["path"].replace("/panoptic/", "/masks/")))
        assert not found
        assert (np.array([0, *fitted["segments"]["category"]])[fitted["mask"]] == semantic).all()
        assert (fitted["mask"] > 0).all()


@pytest.mark.skipif(not (SHARED / "nuclei").is_dir(), reason="the nuclei are not here")
def test_nuclei():
    splits, _ = load(SHARED / "nuclei")
    assert splits.labels == LabelMap(("nucleus", "background"), (1, 2), things=("nucleus",))
    assert (len(splits.train), len(splits.validation)) == (45, 20)
    assert not len(splits.findings)
    known = json.loads((SHARED / "nuclei" / "panoptic_val.json").read_text())
    named = {each["file_name"]: each for each in known["annotations"]}
    for row in splits.validation:
        ids = np.asarray(PIL.Image.open(row["mask"]["path"]), np.int64) @ [1, 256, 256**2]
        fitted, found = panoptic.fit(row, ids.shape, splits.labels)
        assert not found
        segments = named[Path(row["mask"]["path"]).name]["segments_info"]
        assert fitted["segments"]["category"].tolist() == [each["category_id"] - 1 for each in segments]
        assert fitted["segments"]["area"].tolist() == [each["area"] for each in segments]
        for number, each in enumerate(segments, 1):
            assert ((fitted["mask"] == number) == (ids == each["id"])).all()
