"""Local datasets of every layout, read through load_splits as a recipe would."""

from __future__ import annotations

import csv
import io
import json
import os
import types
from collections import Counter

import datasets
import pytest

from cv_hf.config import DataConfig
from cv_hf.data import LabelMap, decode, detect_format, load_split, load_splits
from cv_hf.errors import DataError
from tests.data.samples import SHARED, TASK, images, png, write


def load(id, seed=0, **data):
    lines = []
    splits = load_splits(DataConfig(id=str(id), **data), TASK, seed, lines.append)
    splits_and_lines = types.SimpleNamespace(**vars(splits), lines=lines)
    for split in (splits.train, splits.validation, splits.test):
        if split is not None:
            assert split.features["image"] == datasets.Image(decode=False)
            for row in split:
                image, _ = decode(row["image"], row["file"])
                assert image.mode == "RGB"
    return splits_and_lines


def written_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def jsonl(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def stop(match, **data):
    with pytest.raises(DataError, match=match) as error:
        load(**data)
    assert len(str(error.value).splitlines()) <= 2
    assert error.value.exit_code == 2


# Folders of images


def test_class_folders(tmp_path):
    root = write(tmp_path / "pets", images("dog", "cat", "zebra", number=7) | {".git/x": b"", "README.md": b"pets"})
    splits = load(root)
    assert splits.labels.names == ("cat", "dog", "zebra")
    assert splits.train.features["label"].names == ["cat", "dog", "zebra"]
    assert (len(splits.train), len(splits.validation), splits.test) == (18, 3, None)
    for row in [*splits.train, *splits.validation]:
        assert row["file"].split("/")[0] == splits.labels.names[row["label"]]
        assert row["image"]["path"] == os.path.join(root, row["file"])
        assert row["image"]["bytes"] is None
    assert len(splits.findings) == 0
    assert splits.lines == [
        "data: validation is held out of train: 3 samples, 0.15 of each label, seed 0",
        "data: splits: train from train",
        f"data: {root}: imagefolder; train 18, validation 3; 3 labels",
    ]


def test_split_folders(tmp_path):
    root = write(tmp_path, images("train/dog", "train/cat", "valid/cat", "valid/ant", "test/dog", "extra/dog"))
    (tmp_path / "train/empty").mkdir()
    splits = load(root)
    # Classes of all splits share one numbering; `extra` is no split unless the recipe says so.
    assert splits.labels.names == ("ant", "cat", "dog", "empty")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 8, 4)
    assert set(splits.test["label"]) == {2}
    assert splits.findings.to_dict()["unused-folder"]["files"] == ["extra"]
    assert splits.findings.to_dict()["class-without-samples"]["files"] == ["ant", "empty"]
    assert "class-without-samples" in splits.lines[-1]
    assert "data: splits: train from train, validation from valid, test from test" in splits.lines
    splits = load(root, splits={"train": "extra", "validation": "train", "test": "valid"})
    assert "data: splits: train from extra, validation from train, test from valid" in splits.lines
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 8, 8)
    stop("there is no split 'vaild'. Did you mean 'valid'", id=root, splits={"validation": "vaild"})


def test_a_test_folder_without_classes_is_left_out(tmp_path):
    splits = load(write(tmp_path, images("train/dog", "train/cat", "test")))
    assert splits.test is None
    assert splits.lines[0] == "data: the split test has no labels, and is left out"
    write(tmp_path, images("val"))
    stop("no sample is left in validation", id=str(tmp_path))


def test_a_class_called_train_is_a_class(tmp_path):
    splits = load(write(tmp_path, images("train", "car", "boat")))
    assert splits.labels.names == ("boat", "car", "train")


def test_images_below_class_folders_belong_to_the_class(tmp_path):
    splits = load(write(tmp_path, images("cat/indoor/dark", "cat/outdoor", "dog")))
    assert Counter(splits.train["label"]) == {0: 7, 1: 3}


@pytest.mark.parametrize(
    ("folders", "inner"),
    [
        (["dataset/train/cat", "dataset/train/dog", "dataset/validation/cat"], "dataset"),
        (["dataset/train", "dataset/val"], "dataset"),
        (["dataset/cat", "dataset/dog"], "dataset"),
        (["a/b/train/cat", "a/b/val/cat", "a/b/extra"], "a/b"),
        (["a/b/cat/indoor", "a/b/dog", "a/b/cat"], "a/b"),
    ],
)
def test_a_folder_above_the_dataset_is_refused(folders, inner, tmp_path):
    write(tmp_path, images(*folders, "__MACOSX/dataset/cat", "__MACOSX/other"))
    stop(rf"data\.id: {tmp_path}/{inner}$", id=str(tmp_path))


def test_a_folder_above_metadata_is_refused(tmp_path):
    rows = [{"file_name": f"{index}.png", "label": "ab"[index % 2]} for index in range(4)]
    write(tmp_path, images("dataset") | {"dataset/metadata.csv": written_csv(rows)})
    stop(rf"data\.id: {tmp_path}/dataset$", id=str(tmp_path))


def test_what_macos_adds_to_an_archive_is_ignored(tmp_path):
    splits = load(write(tmp_path, images("cat", "dog", "cat/__MACOSX", "__MACOSX/cat")))
    assert splits.labels.names == ("cat", "dog")
    assert len(splits.train) + len(splits.validation) == 8


def test_one_class_with_images_and_folders_is_a_class(tmp_path):
    assert load(write(tmp_path, images("cat", "cat/indoor"))).labels.names == ("cat",)


def test_files_that_are_left_out_are_named(tmp_path):
    files = {"cat/notes.txt": b"x", "cat/.DS_Store": b"x", "loose.png": None, "cat/empty.png": b""}
    splits = load(write(tmp_path, images("cat", "dog") | files))
    found = {code: entry["files"] for code, entry in splits.findings.to_dict().items()}
    assert found == {
        "missing-label": ["loose.png"],
        "not-an-image": ["cat/notes.txt"],
        "empty-image": ["cat/empty.png"],
    }
    assert len(splits.train) + len(splits.validation) == 8
    stop("loose.png: .*missing-label", id=str(tmp_path), on_bad_sample="stop")


def test_photos_that_are_not_decoded_are_dropped_by_name(tmp_path):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    photos = {"cat/IMG_1.HEIC": heic, "cat/IMG_2.jpg": heic, "cat/3.JPG": heic[:8] + b"mif1" + heic[12:]}
    photos |= {"dog/DSC_2.NEF": b"raw", "dog/4.jpg": b"\0\0\0\x18ftypmp42\0\0\0\0isomiso2"}
    splits = load(write(tmp_path, images("cat", "dog") | photos))
    found = splits.findings.to_dict()
    assert list(found) == ["unreadable-image", "photo-format"]
    assert found["unreadable-image"]["files"] == ["dog/4.jpg"]
    assert found["photo-format"]["reasons"] == {
        "cat/3.JPG": "HEIC is not decoded here: convert it to JPEG",
        "cat/IMG_1.HEIC": "HEIC is not decoded here: convert it to JPEG",
        "cat/IMG_2.jpg": "HEIC is not decoded here: convert it to JPEG",
        "dog/DSC_2.NEF": "NEF is not decoded here: convert it to JPEG",
    }
    assert "which is not read; convert it to JPEG: " in splits.lines[-1]
    assert len(splits.train) + len(splits.validation) == 8
    stop("is not decoded here: convert it to JPEG", id=str(tmp_path), on_bad_sample="stop")


def test_links_out_of_the_folder_are_refused(tmp_path):
    write(tmp_path / "outside", images("secret"))
    root = write(tmp_path / "pets", images("cat", "dog"))
    (tmp_path / "pets/cat/inner.png").symlink_to(tmp_path / "pets/dog/0.png")
    (tmp_path / "pets/cat/loop").symlink_to(tmp_path / "pets/cat")
    (tmp_path / "pets/cat/leak.png").symlink_to(tmp_path / "outside/secret/0.png")
    (tmp_path / "pets/cat/leaks").symlink_to(tmp_path / "outside/secret")
    splits = load(root)
    assert splits.findings.to_dict()["path-outside"]["files"] == ["cat/leak.png", "cat/leaks"]
    assert len(splits.train) + len(splits.validation) == 9
    stop("cat/leak.png: .*path-outside", id=root, on_bad_sample="stop")
    (tmp_path / "pets/bird").symlink_to(tmp_path / "outside/secret")
    stop("bird is a link that leads out", id=root)


def test_a_link_to_the_folder_itself_is_followed(tmp_path):
    write(tmp_path / "pets", images("cat", "dog"))
    (tmp_path / "link").symlink_to(tmp_path / "pets")
    assert len(load(tmp_path / "link").train) == 6


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata(name, tmp_path):
    rows = [{"file_name": f"{index}.png", "species": "cat" if index % 2 else "dog", "age": index} for index in range(8)]
    content = written_csv(rows) if name.endswith("csv") else jsonl(rows)
    root = write(tmp_path, {f"{index}.png": None for index in range(8)} | {name: content})
    splits = load(root, columns={"label": "species"})
    assert splits.lines[-2] == "data: splits: train from train; columns: image from file_name, label from species"
    assert splits.labels.names == ("cat", "dog")
    for row in splits.train:
        assert splits.labels.names[row["label"]] == ("cat" if int(row["file"][0]) % 2 else "dog")
    stop(r"no label column .* species \(string\), age \(int64\)", id=root)


def test_metadata_per_split_and_above_the_splits(tmp_path):
    def rows(folder=""):
        return [{"file_name": f"{folder}{index}.png", "label": "ab"[index % 2]} for index in range(4)]

    files = images("train", "val")
    per_split = files | {"train/metadata.csv": written_csv(rows()), "val/metadata.csv": written_csv(rows())}
    above = files | {"metadata.jsonl": jsonl(rows("train/") + rows("val/"))}
    for name, content in {"per": per_split, "above": above}.items():
        splits = load(write(tmp_path / name, content))
        assert splits.train["file"][:] == [f"train/{index}.png" for index in range(4)]
        assert splits.validation["file"][:] == [f"val/{index}.png" for index in range(4)]


def test_folders_without_classes(tmp_path):
    stop("holds images, but no labels", id=write(tmp_path / "flat", images(".")))
    (tmp_path / "nothing").mkdir()
    stop("holds nothing that is read", id=str(tmp_path / "nothing"))
    stop("no folders of classes", id=str(tmp_path / "flat"), format="imagefolder")
    root = write(tmp_path / "bad", {"cat/0.png": b"", "cat/1.png": b"x", "dog/0.png": b"", "dog/1.png": b""})
    stop(r"no sample is left in train\.\n.*unreadable-image", id=root)


# Tables


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("labels", [["cat", "dog"], [3, 7], [False, True]])
def test_tables_of_paths(suffix, labels, tmp_path):
    rows = [{"image": f"pictures/{index}.png", "label": labels[index % 2]} for index in range(8)]
    root = write(tmp_path, {f"pictures/{index}.png": None for index in range(8)})
    path = tmp_path / f"table.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        content = {"jsonl": jsonl(rows), "json": json.dumps(rows).encode()}.get(suffix) or written_csv(rows)
        path.write_bytes(content.replace(b",", b"\t") if suffix == "tsv" else content)
    for id in (path, root) if suffix != "json" else (path,):
        splits = load(id)
        assert splits.labels == LabelMap(tuple(str(label) for label in labels), tuple(labels))
        assert (len(splits.train), len(splits.validation)) == (6, 2)
        for row in splits.train:
            index = int(row["file"].removeprefix("pictures/").removesuffix(".png"))
            assert row["label"] == index % 2
            assert row["image"]["path"] == str(tmp_path / "pictures" / f"{index}.png")


@pytest.mark.parametrize(
    "text",
    [
        "\ufefffile;label\r\nbilder/{0}.png;Kätzchen\r\nbilder/{1}.png;Hund\r\n",
        "sep=;\nfile;label\nbilder/{0}.png;Kätzchen\nbilder/{1}.png;Hund\n",
        "file\tlabel\nbilder/{0}.png\tKätzchen\nbilder/{1}.png\tHund\n",
        "file|label\nbilder/{0}.png|Kätzchen\nbilder/{1}.png|Hund\n",
        ' file , label \nbilder/{0}.png , Kätzchen\nbilder/{1}.png, "Hund" \n',
        "file,label\nbilder/{0}.png,Kätzchen,\nbilder/{1}.png,Hund,\n",
        '"file";"label";"a, b, c"\n"bilder/{0}.png";"Kätzchen";1,5\n"bilder/{1}.png";"Hund";2\n',
        "file;label\nbilder\\{0}.png;Kätzchen\nbilder\\{1}.png;Hund\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    head, *rows = text.splitlines(keepends=True)
    start = head + (rows.pop(0) if head.startswith("sep=") else "")
    body = "".join("".join(rows).format(2 * number, 2 * number + 1) for number in range(4))
    write(tmp_path, {f"bilder/{index}.png": None for index in range(8)})
    (tmp_path / "tabelle.csv").write_bytes((start + body).encode())
    for id in (tmp_path, tmp_path / "tabelle.csv"):
        splits = load(id)
        assert splits.labels.names == ("Hund", "Kätzchen")
        assert (len(splits.train), len(splits.validation)) == (6, 2)
        for row in splits.train:
            assert row["label"] == (int(row["file"].removeprefix("bilder/").removesuffix(".png")) + 1) % 2


@pytest.mark.parametrize("path", ["{}.png", "{}", "C:\\data\\photos\\{}.png", "/home/me/photos/{}.png"])
@pytest.mark.parametrize("folder", ["images", "photos", "train"])
def test_tables_beside_a_folder_of_images(tmp_path, folder, path):
    """Whose name is none of a class; the paths may be those of another machine."""
    rows = [{"image": path.format(f"p{index}"), "label": "ab"[index % 2]} for index in range(8)]
    root = write(tmp_path, {f"{folder}/p{index}.png": None for index in range(8)} | {"train.csv": written_csv(rows)})
    splits = load(root)
    assert splits.labels.names == ("a", "b")
    assert (len(splits.train), len(splits.validation)) == (6, 2)
    for row in splits.train:
        assert row["file"] == f"{folder}/p{int(row['file'][-5])}.png"
        assert row["label"] == int(row["file"][-5]) % 2


def test_paths_of_another_machine_that_would_be_one(tmp_path):
    rows = [{"image": f"/home/{'ab'[index % 2]}/{index // 2}.png", "label": "ab"[index % 2]} for index in range(8)]
    root = write(tmp_path, {f"images/{index}.png": None for index in range(8)} | {"train.csv": written_csv(rows)})
    stop("no sample is left", id=root)


def test_tables_of_embedded_images(tmp_path):
    content = [png(index) for index in range(8)]
    labels = [index % 2 for index in range(8)]
    names = datasets.ClassLabel(names=["cat", "dog"])
    tables = {
        "feature": ([{"bytes": image, "path": None} for image in content], datasets.Image()),
        "struct": (
            [{"bytes": image, "path": "x.png"} for image in content],
            {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        ),
        "binary": (content, datasets.Value("binary")),
    }
    for name, (column, feature) in tables.items():
        rows = datasets.Dataset.from_dict(
            {"picture": column, "target": labels}, features=datasets.Features({"picture": feature, "target": names})
        )
        root = tmp_path / name / "data"
        root.mkdir(parents=True)
        rows.select(range(5)).to_parquet(root / "train-00000-of-00002.parquet")
        rows.select(range(5, 8)).to_parquet(root / "train-00001-of-00002.parquet")
        rows.to_parquet(root / "test-00000-of-00001.parquet")
        splits = load(tmp_path / name)
        assert splits.source.format == "parquet"
        assert splits.labels.names == ("cat", "dog")
        assert [row["image"]["bytes"] for row in splits.test] == content
        assert splits.test["label"][:] == labels
        expected = "test[3] x.png" if name == "struct" else "test[3]"
        assert splits.test["file"][3] == expected
        assert len(splits.train) + len(splits.validation) == 8


def test_embedded_bad_images_are_found_when_they_are_decoded(tmp_path):
    rows = datasets.Dataset.from_dict({"image": [png(), png(), b"no image"] * 2, "label": [0, 1, 1] * 2})
    rows.to_parquet(tmp_path / "train.parquet")
    splits = load_splits(DataConfig(id=str(tmp_path)), TASK, 0, lambda line: None)
    assert len(splits.train) + len(splits.validation) == 6


def test_paths_do_not_leave_the_folder(tmp_path):
    write(tmp_path / "outside", {"secret.png": None})
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "data/link.png").symlink_to(tmp_path / "outside/secret.png")
    (tmp_path / "data/linked").symlink_to(tmp_path / "outside")
    outside = ["../outside/secret.png", str(tmp_path / "outside/secret.png"), "link.png", "linked/secret.png", "."]
    good = [f"inner/{index}.png" for index in range(6)]
    named = [*good[:5], str(tmp_path / "data" / good[5])]
    rows = [{"image": name, "label": index % 2} for index, name in enumerate(named + outside)]
    root = write(tmp_path / "data", dict.fromkeys(good) | {"train.csv": written_csv(rows)})
    splits = load(root)
    assert sorted(splits.findings.to_dict()["path-outside"]["files"]) == sorted(outside)
    assert len(splits.train) + len(splits.validation) == 6
    stop("path-outside", id=root, on_bad_sample="stop")


def test_the_recipe_names_the_folder_of_the_images(tmp_path):
    write(tmp_path / "pictures", {f"{index}.png": None for index in range(4)} | {"../else/x.png": None})
    names = ["0.png", str(tmp_path / "pictures/1.png"), "2.png", "3.png", str(tmp_path / "else/x.png")]
    rows = [{"path": name, "label": index % 2} for index, name in enumerate(names)]
    write(tmp_path / "tables", {"train.jsonl": jsonl(rows)})
    splits = load(tmp_path / "tables", images=str(tmp_path / "pictures"))
    assert sorted(splits.train["file"][:] + splits.validation["file"][:]) == [f"{index}.png" for index in range(4)]
    assert splits.findings.count("path-outside") == 1
    stop(r"no sample is left in train\.\n.*missing-image", id=str(tmp_path / "tables"))
    stop("there is no folder", id=str(tmp_path / "tables"), images=str(tmp_path / "gone"))


def test_labels_called_na_are_labels_and_empty_cells_are_not(tmp_path):
    rows = [{"image": f"{index}.png", "label": ["NA", "None", "nan", ""][index % 4]} for index in range(12)]
    root = write(tmp_path, {f"{index}.png": None for index in range(12)} | {"train.csv": written_csv(rows)})
    splits = load(root)
    assert splits.labels.names == ("NA", "None", "nan")
    assert splits.findings.to_dict()["missing-label"]["files"] == ["3.png", "7.png", "11.png"]


def test_integers_with_empty_cells_stay_integers(tmp_path):
    rows = [{"image": f"{index}.png", "label": [1, 10, 2, ""][index % 4]} for index in range(12)]
    root = write(tmp_path, {f"{index}.png": None for index in range(12)} | {"train.csv": written_csv(rows)})
    splits = load(root)
    assert splits.labels == LabelMap(("1", "2", "10"), (1, 2, 10))
    assert splits.findings.count("missing-label") == 3


def test_tables_that_cannot_be_read(tmp_path):
    write(
        tmp_path,
        {
            "empty.csv": b"",
            "header.csv": b"image,label\n",
            "bad.jsonl": b'{"image": 1}\n{"image"\n',
            "mixed.jsonl": b'{"image": "a.png", "label": 1}\n{"image": "b.png", "label": "x"}\n',
            "rows.json": b'{"image": 1}',
            "bad.parquet": b"PAR1 not really PAR1",
            "float.csv": b"image,label\na.png,0.5\nb.png,1.5\n",
            "more.csv": b"image,label\na.png,cat,dog\nb.png,cat,owl\n",
            "latin.csv": "image,label\nä.png,é\n".encode("latin-1"),
        },
    )
    stop("empty.csv: .*cannot be read", id=str(tmp_path / "empty.csv"))
    stop("header.csv: .*no rows", id=str(tmp_path / "header.csv"))
    stop("bad.jsonl: line 2", id=str(tmp_path / "bad.jsonl"))
    stop("mixed.jsonl: .*cannot be read", id=str(tmp_path / "mixed.jsonl"))
    stop("list of rows", id=str(tmp_path / "rows.json"))
    stop("bad.parquet: .*cannot be read", id=str(tmp_path / "bad.parquet"))
    stop("not a whole number", id=str(tmp_path / "float.csv"))
    stop("more.csv: .*more cells", id=str(tmp_path / "more.csv"))
    stop("latin.csv: .*cannot be read.* UTF-8", id=str(tmp_path / "latin.csv"))


def test_a_test_split_without_labels_is_left_out(tmp_path):
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    rows = [{"image": {"bytes": png(), "path": None}, "label": index % 2} for index in range(6)]
    hidden = [{**row, "label": -1} for row in rows]
    (tmp_path / "a").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a/train.parquet")
    datasets.Dataset.from_list(hidden, features=features).to_parquet(tmp_path / "a/test.parquet")
    splits = load(tmp_path / "a")
    assert splits.test is None
    assert len(splits.findings) == 0
    assert splits.lines[0] == "data: the split test has no labels, and is left out"
    root = write(
        tmp_path / "b",
        images(".") | {"train.csv": written_csv([{"image": f"{i}.png", "label": i % 2} for i in range(4)])},
    )
    write(tmp_path / "b", {"test.csv": written_csv([{"image": f"{i}.png"} for i in range(4)])})
    splits = load(root)
    assert splits.test is None
    assert splits.lines[0].startswith("data: the split test is left out: no label column")
    stop("no label column", id=root, splits={"test": "test"})


# What the recipe says


@pytest.fixture
def pets(tmp_path):
    return write(tmp_path / "pets", images("train/cat", "train/dog", "train/owl", "val/cat", number=10))


def test_a_number_per_class_is_exact(pets):
    splits = load(pets, splits={"validation": 3, "test": 2})
    assert Counter(splits.validation["label"]) == {0: 3, 1: 3, 2: 3}
    assert Counter(splits.test["label"]) == {0: 2, 1: 2, 2: 2}
    files = [splits.train["file"][:], splits.validation["file"][:], splits.test["file"][:]]
    assert len({name for split in files for name in split}) == 30
    stop("class cat has 10 samples", id=pets, splits={"validation": 10})


def test_the_same_seed_holds_out_the_same_files_wherever_the_folder_stands(pets, tmp_path):
    moved = write(tmp_path / "elsewhere/pets", images("train/cat", "train/dog", "train/owl", number=10))
    first, second = (load(id, splits={"validation": 0.3}).validation["file"][:] for id in (pets, moved))
    assert first == second
    assert load(pets, seed=1, splits={"validation": 0.3}).validation["file"][:] != first


def test_max_samples(pets):
    splits = load(pets, max_samples=6)
    assert Counter(splits.train["label"]) == {0: 2, 1: 2, 2: 2}
    assert len(splits.validation) == 6


def test_labels_of_the_recipe(pets, tmp_path):
    splits = load(pets, labels=["owl", "dog", "cat"])
    assert splits.labels == LabelMap(("owl", "dog", "cat"), (2, 1, 0))
    assert all(row["file"].split("/")[1] == splits.labels.names[row["label"]] for row in splits.train)
    assert load(pets, labels={"cat": "Katze", "dog": "Hund", "owl": "Eule"}).labels.names == ("Katze", "Hund", "Eule")
    (tmp_path / "pets/names.txt").write_text("owl\ncat\ndog\n")
    assert load(pets, labels="names.txt").labels.names == ("owl", "cat", "dog")
    stop(r"label 'owl' is not in the label map \(cat, dog\)", id=pets, labels=["cat", "dog"])


def test_the_columns_that_were_found_are_printed(tmp_path):
    rows = [{"label": f"{index}.png", "tags": ["a"], "image": "ab"[index % 2]} for index in range(4)]
    root = write(tmp_path, images(".") | {"training.jsonl": jsonl(rows), "dev.jsonl": jsonl(rows)})
    start = "data: splits: train from training, validation from dev; columns: image from label, "
    assert start + "label from image" in load(root, columns={"image": "label", "label": "image"}).lines
    assert start + "labels from tags" in load(root, columns={"image": "label", "labels": "tags"}).lines


def test_the_home_folder_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, images("photos/cat", "photos/dog") | {"photos/names.txt": b"dog\ncat\n"})
    data = DataConfig(id="~/photos", labels="names.txt")
    splits = load_splits(data, TASK, 0, print)
    assert splits.labels.names == ("dog", "cat")
    assert len(load_split(data, TASK, splits.labels, "train", print)[0]) == 8
    rows = [{"image": f"{index}.png", "label": "ab"[index % 2]} for index in range(4)]
    write(tmp_path, {"tables/train.csv": written_csv(rows)})
    assert len(load("~/tables", images="~/photos/cat").train) == 2
    stop(f"no file or folder {tmp_path}/phots. Did you mean '{tmp_path}/photos'", id="~/phots")


def test_wrong_columns(tmp_path):
    rows = [{"file": f"{index}.png", "species": "a", "name": "b", "size": index} for index in range(4)]
    root = write(tmp_path, images(".") | {"train.csv": written_csv(rows)})
    stop("columns.label: there is no column 'specie'. Did you mean 'species'", id=root, columns={"label": "specie"})
    stop(r"no label column was found among: species \(string\), name \(string\), size \(int64\)\.\nName it", id=root)
    stop("'lable' is not a column of this task.*Did you mean 'label'", id=root, columns={"lable": "species"})
    stop("one label per image", id=root, columns={"labels": "size"})
    splits = load(root, columns={"label": "species"})
    assert splits.labels.names == ("a",)


def test_a_split_for_a_model_that_has_its_labels(pets, tmp_path):
    model = LabelMap(("owl", "cat", "dog", "ant"), (0, 1, 2, 3))
    lines = []
    rows, findings = load_split(DataConfig(id=pets), TASK, model, "train", lines.append)
    assert rows.features["label"].names == list(model.names)
    assert all(row["file"].split("/")[1] == model.names[row["label"]] for row in rows)
    assert len(rows) == 30
    assert len(findings) == 0
    rows, _ = load_split(DataConfig(id=pets), TASK, model, None, lines.append)
    assert set(rows["label"]) == {1}
    assert len(load_split(DataConfig(id=pets), TASK, model, "validation", lines.append)[0]) == 10
    with pytest.raises(DataError, match="label 'owl' is not in the labels of the model"):
        load_split(DataConfig(id=pets), TASK, LabelMap(("cat", "dog"), (0, 1)), "train", lines.append)
    with pytest.raises(DataError, match="there is no split 'tset'"):
        load_split(DataConfig(id=pets), TASK, model, "tset", lines.append)
    extra = write(tmp_path / "more", images("train2017/cat", "fold/cat", "trial/cat", number=2))
    assert len(load_split(DataConfig(id=extra), TASK, model, "train", lines.append)[0]) == 2
    two = write(tmp_path / "two", {"a.parquet": None, "b.parquet": None})
    for name in ("a", "b"):
        rows = datasets.Dataset.from_dict({"image": [png()] * 3, "label": ["cat", "cat", "owl"]})
        rows.to_parquet(tmp_path / f"two/{name}.parquet")
    with pytest.raises(DataError, match="no test or validation split; name one with --split: a, b"):
        load_split(DataConfig(id=two), TASK, model, None, lines.append)
    assert load_split(DataConfig(id=two), TASK, model, "b", lines.append)[0]["label"][:] == [1, 1, 0]
    assert len(load_split(DataConfig(id=extra), TASK, model, "fold", lines.append)[0]) == 2


# Telling the format


def test_formats_are_told_apart(tmp_path):
    layouts = {
        "imagefolder": images("cat", "dog"),
        "coco": images("images") | {"annotations/train.json": b'{"images": [], "annotations": []}'},
        "panoptic": {"a.json": b'{"images": [], "annotations": [{"segments_info": []}]}'},
        "voc": images("JPEGImages") | {"Annotations/0.xml": b"<annotation/>"},
        "yolo": images("images/train") | {"labels/train/0.txt": b"", "data.yaml": b""},
        "parquet": images("pictures") | {"labels.csv": b"image,label\npictures/0.png,a\n"},
    }
    for format_, files in layouts.items():
        assert detect_format(DataConfig(id=write(tmp_path / format_, files))) == format_
    write(tmp_path / "imagefolder", {"notes.csv": b"a,b\n"})
    assert detect_format(DataConfig(id=str(tmp_path / "imagefolder"))) == "imagefolder"
    stop("coco holds boxes, for task: object-detection, not for image-classification", id=str(tmp_path / "coco"))
    for id in ("mnist", "user/name", "user/name.v2"):
        assert detect_format(DataConfig(id=id)) == "hub"


def test_paths_that_do_not_exist(tmp_path):
    write(tmp_path, images("clothing/cat"))
    stop("no file or folder .*/clothes.* Did you mean .*/clothing'", id=str(tmp_path / "clothes"))
    stop("no file or folder ./gone", id="./gone")
    stop("no file or folder train.csv", id="train.csv")
    stop("no file or folder .*/a/b/c. Nor is there .*/a/b", id=str(tmp_path / "a/b/c"))
    stop("no file or folder gone", id="gone", format="imagefolder")
    stop("archive", id=write(tmp_path, {"a.zip": b""}) + "/a.zip")
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    stop("save_to_disk", id=str(tmp_path / "saved"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is absent")
def test_real_photos():
    splits = load(SHARED / "clothing")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (400, 120, 120)
    assert len(splits.labels) == 10
    for split, number in ((splits.train, 40), (splits.validation, 12), (splits.test, 12)):
        assert Counter(split["label"]) == dict.fromkeys(range(10), number)
    assert len(splits.findings) == 0
    voc = SHARED / "bccd"
    assert detect_format(DataConfig(id=str(voc))) == "voc"


def test_a_table_whose_images_all_lie_outside_says_so(tmp_path):
    write(tmp_path, images("elsewhere/cat"))
    rows = "".join(f"{tmp_path}/elsewhere/cat/{number}.png,cat\n" for number in range(5))
    for split in ("train", "test"):
        write(tmp_path, {f"data/{split}.csv": f"file_name,label\n{rows}".encode()})
    stop("no sample is left in train", id=str(tmp_path / "data"))
    write(tmp_path, images("data/cat"))
    inside = "".join(f"cat/{number}.png,cat\n" for number in range(5))
    write(tmp_path, {"data/train.csv": f"file_name,label\n{inside}".encode()})
    splits = load(tmp_path / "data", format="parquet")
    assert splits.test is None
    assert splits.findings.count("path-outside") == 5
