"""Segments against the functions of Transformers' own image processors, bit for bit, on made-up outputs."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from faster_coco_eval.core import mask as coco_mask
from torch.nn import functional
from transformers import ImageSegmentationPipeline

from cv_hf.models import segments
from cv_hf.models.segments import instance_masks, instance_segments, panoptic_segments, semantic_maps

# (width, height) of the mask logits is never that of the image; 47 x 31 is no multiple of a vector.
MASKS = [(24, 32), (31, 47)]
SIZES = [(97, 131), (20, 33), (150, 64)]
THRESHOLDS = (0.0, 0.5, 0.9, 1.1)
QUERY_FAMILIES = ("Mask2Former", "MaskFormer", "OneFormer", "Eomt", "Detr", "RfDetr")
MAPS = [(family, "") for family in QUERY_FAMILIES] + [(family, "Pil") for family in QUERY_FAMILIES[:5]]
PANOPTIC = [entry for entry in MAPS if entry[0] != "RfDetr"]
LOGIT_PROCESSORS = (
    "BeitImageProcessor",
    "BeitImageProcessorPil",
    "DPTImageProcessor",
    "DPTImageProcessorPil",
    "MobileNetV2ImageProcessor",
    "MobileNetV2ImageProcessorPil",
    "MobileViTImageProcessor",
    "MobileViTImageProcessorPil",
    "Sapiens2ImageProcessor",
    "SegformerImageProcessor",
    "SegformerImageProcessorPil",
    "Tipsv2DptImageProcessor",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads split a tensor where a vectorised sigmoid then ends with scalars."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def class_info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("class_info")
    (folder / "classes.json").write_text(json.dumps({"0": {"name": "cat", "isthing": 1}}))
    return folder


def make_processor(family: str, variant: str, class_info: Path, edge: int = 80) -> Any:
    kind = getattr(transformers, f"{family}ImageProcessor{variant}")
    if family == "OneFormer":
        return kind(repo_path=str(class_info), class_info_file="classes.json")
    if family == "Eomt":
        return kind(size={"shortest_edge": edge, "longest_edge": edge})
    return kind()


def blobs(generator: torch.Generator, queries: int, height: int, width: int) -> torch.Tensor:
    """Mask logits of smooth discs, a few of them covering nothing."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    center = torch.rand(queries, 2, generator=generator)[:, :, None, None]
    radius = torch.rand(queries, generator=generator)[:, None, None] * 0.5 - 0.05
    return 20 * (radius - ((y - center[:, 0]) ** 2 + (x - center[:, 1]) ** 2).sqrt())


def make_outputs(
    family: str,
    kind: str,
    masks: tuple[int, int] = MASKS[0],
    batch: int = 1,
    queries: int = 9,
    classes: int = 4,
    seed: int = 0,
) -> SimpleNamespace:
    """Outputs of a family: random, blobs, ties (each query twice, some of two classes) or empty (no mask anywhere)."""
    generator = torch.Generator().manual_seed(seed)
    width = classes if family == "RfDetr" else classes + 1
    logits = torch.randn(batch, queries, width, generator=generator) * 4
    if family == "RfDetr":
        logits -= 2
    if kind in ("blobs", "ties"):
        mask_logits = torch.stack([blobs(generator, queries, *masks) for _ in range(batch)])
    else:
        mask_logits = torch.randn(batch, queries, *masks, generator=generator) * 3
    if kind == "ties":
        logits, mask_logits = (values[:, torch.arange(queries) // 2] for values in (logits, mask_logits))
        logits[:, -4:, 0] = logits[:, -4:, 1]
    if kind == "empty":
        mask_logits = -mask_logits.abs()
    names = segments._QUERIES[family]
    return SimpleNamespace(**{names[0]: logits, names[1]: mask_logits}, patch_offsets=None)


def one_by_one(outputs: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """A batch of one for each image, as pipeline() makes."""
    fields = {name: value for name, value in vars(outputs).items() if value is not None}
    for index in range(len(next(iter(fields.values())))):
        rest = {name: value[index : index + 1] for name, value in fields.items()}
        yield SimpleNamespace(**{"patch_offsets": None, **rest})


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> int:
    """The number of segments that are the same."""
    for our, their in zip(ours, theirs, strict=True):
        assert our["segmentation"].dtype == np.int32
        np.testing.assert_array_equal(our["segmentation"], their["segmentation"].numpy())
        assert our["segments_info"] == their["segments_info"]
    return sum(len(image["segments_info"]) for image in ours)


def compare(function: str, processor: Any, outputs: SimpleNamespace, sizes: list, arguments: dict[str, float]) -> int:
    ours = {"panoptic": panoptic_segments, "instance": instance_segments}[function]
    method = getattr(processor, f"post_process_{function}_segmentation")
    taken = set(inspect.signature(method).parameters)
    # EoMT has no more for instances, and pipeline() fails on its processor of Pillow's.
    there = {name: value for name, value in arguments.items() if name in taken or "kwargs" in taken}
    if "label_ids_to_fuse" in taken:
        there["label_ids_to_fuse"] = set()
    theirs = [
        method(single, target_sizes=[size], **there)[0] for single, size in zip(one_by_one(outputs), sizes, strict=True)
    ]
    return assert_same(ours(outputs, processor, sizes, arguments), theirs)


FUNCTIONS = [("instance", *entry) for entry in MAPS] + [("panoptic", *entry) for entry in PANOPTIC]


@pytest.mark.parametrize(("function", "family", "variant"), FUNCTIONS)
@pytest.mark.parametrize("kind", ["random", "blobs", "ties", "empty"])
def test_segments_are_those_of_transformers(
    function: str, family: str, variant: str, kind: str, class_info: Path
) -> None:
    processor = make_processor(family, variant, class_info)
    found = 0
    for seed, (masks, size) in enumerate(itertools.product(MASKS, SIZES)):
        outputs = make_outputs(family, kind, masks, seed=seed)
        for threshold in THRESHOLDS:
            others = {"mask_threshold": (0.5, 0.2)[seed % 2], "overlap_mask_area_threshold": (0.5, 0.0, 0.8)[seed % 3]}
            number = compare(function, processor, outputs, [size], {"threshold": threshold, **others})
            assert threshold < 1 or number == 0
            found += number
    assert found or kind in ("random", "empty")


@pytest.mark.parametrize(("function", "family", "variant"), [entry for entry in FUNCTIONS if not entry[2]])
@pytest.mark.parametrize(("queries", "classes"), [(1, 1), (12, 1), (12, 90), (40, 3)])
def test_any_number_of_queries_and_classes_in_a_batch(
    function: str, family: str, variant: str, queries: int, classes: int, class_info: Path
) -> None:
    processor = make_processor(family, variant, class_info)
    outputs = make_outputs(family, "blobs", batch=3, queries=queries, classes=classes)
    arguments = {"threshold": 0.3, "mask_threshold": 0.4, "overlap_mask_area_threshold": 0.1}
    compare(function, processor, outputs, [(70, 90), (90, 70), (64, 64)], arguments)


@pytest.mark.parametrize(("function", "family", "variant"), [entry for entry in FUNCTIONS if not entry[2]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_as_there(
    function: str, family: str, variant: str, dtype: torch.dtype, class_info: Path
) -> None:
    processor = make_processor(family, variant, class_info)
    outputs = make_outputs(family, "blobs")
    for name in segments._QUERIES[family]:
        setattr(outputs, name, getattr(outputs, name).to(dtype))
    for size in SIZES:
        compare(
            function,
            processor,
            outputs,
            [size],
            {"threshold": 0.3, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.1},
        )


@pytest.mark.parametrize("variant", ["", "Pil"])
@pytest.mark.parametrize("edge", [32, 48, 99])
def test_eomt_at_sizes_that_go_through_either_kernel(variant: str, edge: int, class_info: Path) -> None:
    processor = make_processor("Eomt", variant, class_info, edge)
    for function, kind in itertools.product(("instance", "panoptic"), ("blobs", "random")):
        outputs = make_outputs("Eomt", kind)
        for size in SIZES:
            compare(
                function,
                processor,
                outputs,
                [size],
                {"threshold": 0.2, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.1},
            )


def test_arguments_are_those_of_pipeline() -> None:
    parameters = inspect.signature(ImageSegmentationPipeline.postprocess).parameters
    assert {name: parameters[name].default for name in segments.PIPELINE_ARGUMENTS} == segments.PIPELINE_ARGUMENTS


def test_segments_of_pipelines_arguments_without_any(class_info: Path) -> None:
    processor = make_processor("Mask2Former", "", class_info)
    outputs = make_outputs("Mask2Former", "blobs", queries=30)
    outputs.class_queries_logits *= 3
    outputs.masks_queries_logits *= 3
    theirs = processor.post_process_instance_segmentation(outputs, 0.9, 0.5, 0.5, target_sizes=[(80, 90)])
    assert assert_same(instance_segments(outputs, processor, [(80, 90)]), theirs)


@pytest.mark.parametrize(("family", "variant"), [entry for entry in MAPS if entry[0] != "RfDetr"])
@pytest.mark.parametrize("classes", [1, 4, 40])
def test_semantic_maps_of_queries(family: str, variant: str, classes: int, class_info: Path) -> None:
    processor = make_processor(family, variant, class_info)
    for kind, masks in itertools.product(("random", "blobs", "ties"), MASKS):
        outputs = make_outputs(family, kind, masks, batch=3, queries=12, classes=classes)
        ours = semantic_maps(outputs, processor, SIZES)
        theirs = [
            processor.post_process_semantic_segmentation(single, target_sizes=[size])[0]
            for single, size in zip(one_by_one(outputs), SIZES, strict=True)
        ]
        for our, their in zip(ours, theirs, strict=True):
            assert our.dtype == np.uint16
            np.testing.assert_array_equal(our, their.numpy())


@pytest.mark.parametrize("name", LOGIT_PROCESSORS)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_semantic_maps_of_logits(name: str, order: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = getattr(transformers, name)()
    assert segments._family(None, processor) in segments._LOGITS
    for classes, shape in itertools.product((1, 3, 19, 33), MASKS):
        logits = torch.randn(3, classes, *shape, generator=torch.Generator().manual_seed(classes))
        # Rounded: equal scores, so that the order of the classes decides.
        for values, at_once in itertools.product((logits, logits.round()), (0, 2**26)):
            monkeypatch.setattr(segments, "_AT_ONCE", at_once)
            outputs = SimpleNamespace(logits=values.contiguous(memory_format=order))
            theirs = processor.post_process_semantic_segmentation(outputs, target_sizes=SIZES)
            for our, their in zip(semantic_maps(outputs, processor, SIZES), theirs, strict=True):
                np.testing.assert_array_equal(our, their.numpy())


def test_semantic_maps_of_eomts_patches(class_info: Path) -> None:
    processor = make_processor("Eomt", "", class_info, edge=64)
    processor.do_split_image, processor.size = True, {"shortest_edge": 64, "longest_edge": None}
    sizes = [(70, 100), (130, 64), (50, 50)]
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    offsets = processor(images, return_tensors="pt")["patch_offsets"]
    outputs = make_outputs("Eomt", "blobs", batch=len(offsets))
    outputs.patch_offsets = offsets
    assert len(offsets) > len(sizes)
    theirs = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for our, their in zip(semantic_maps(outputs, processor, sizes), theirs, strict=True):
        np.testing.assert_array_equal(our, their.numpy())


@pytest.mark.parametrize("shape", [(100, 31, 47), (7, 33, 41), (1, 5, 5), (50, 25, 67)])
def test_one_sigmoid_is_rounded_as_all_at_once(shape: tuple[int, int, int]) -> None:
    masks = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 6
    ours = [segments._sigmoid(mask, index, len(masks)) for index, mask in enumerate(masks)]
    assert torch.equal(torch.stack(ours), masks.sigmoid())


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (20, 33), (481, 641)])
def test_one_mask_is_resized_as_all_at_once(size: tuple[int, int]) -> None:
    masks = torch.randn(21, 31, 47, generator=torch.Generator().manual_seed(0))
    resized = segments._resized(masks.__getitem__, len(masks), size)
    theirs = functional.interpolate(masks[None], size, mode="bilinear")[0]
    assert torch.equal(torch.stack([resized(index) for index in range(len(masks))]), theirs)


@pytest.mark.parametrize("classes", [3, 4, 17, 50])
def test_channels_last_blocks_are_resized_as_all_at_once(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_AT_ONCE", 0)
    logits = torch.randn(1, classes, 31, 47, generator=torch.Generator().manual_seed(0))
    logits = logits.contiguous(memory_format=torch.channels_last)
    ours = np.max([plane for plane, _ in segments._planes(logits[0], (200, 300))], axis=0)
    theirs = functional.interpolate(logits, (200, 300), mode="bilinear")[0].amax(0)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize(("order", "together"), [(torch.contiguous_format, {1}), (torch.channels_last, {32, 28})])
def test_a_large_semantic_map_never_holds_all_classes(
    order: torch.memory_format, together: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resized, interpolate = [], functional.interpolate

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        resized.append(interpolate(*args, **kwargs))
        return resized[-1]

    monkeypatch.setattr(functional, "interpolate", counted)
    monkeypatch.setattr(segments, "_AT_ONCE", 32 * 100 * 200)
    logits = torch.randn(1, 60, 8, 8).contiguous(memory_format=order)
    semantic_maps(SimpleNamespace(logits=logits), transformers.SegformerImageProcessor(), [(100, 200)])
    assert {part.shape[1] for part in resized} == together


def crowded(family: str) -> SimpleNamespace:
    """Four squares side by side: sky, car, sky, car; each certain."""
    outputs = make_outputs(family, "blobs", (32, 128), queries=4, classes=2)
    classes, masks = (getattr(outputs, name) for name in segments._QUERIES[family])
    classes[:] = -10
    masks[:] = -10
    for query, label in enumerate((0, 1, 0, 1)):
        classes[:, query, label] = 10
        masks[:, query, :, 32 * query : 32 * query + 32] = 10
    return outputs


@pytest.mark.parametrize("family", [entry[0] for entry in PANOPTIC if not entry[1]])
def test_a_fused_class_is_one_segment(family: str, class_info: Path) -> None:
    processor = make_processor(family, "", class_info, edge=128)
    if family == "Eomt":
        processor.size = {"shortest_edge": 32, "longest_edge": 128}
    (found,) = panoptic_segments(crowded(family), processor, [(32, 128)], fuse=[0])
    sky, first, second = found["segments_info"]
    assert [segment["label_id"] for segment in (sky, first, second)] == [0, 1, 1]
    expected = np.repeat([sky["id"], first["id"], sky["id"], second["id"]], 32)
    assert len({sky["id"], first["id"], second["id"]}) == 3
    # Between two squares, resizing through 384 x 384 may move the border by a pixel.
    middle = np.arange(128) % 32 % 31 != 0
    np.testing.assert_array_equal(found["segmentation"][:, middle], np.tile(expected, (32, 1))[:, middle])


@pytest.mark.parametrize("family", ["Mask2Former", "MaskFormer", "OneFormer", "Detr"])
def test_transformers_still_gives_ids_out_twice_when_it_fuses(family: str, class_info: Path) -> None:
    """Fails when Transformers mends it: then compare with it, as for EoMT."""
    processor = make_processor(family, "", class_info)
    (found,) = processor.post_process_panoptic_segmentation(
        crowded(family), label_ids_to_fuse={0}, target_sizes=[(32, 128)]
    )
    assert [(segment["id"], segment["label_id"]) for segment in found["segments_info"]] == [
        (1, 0),
        (2, 1),
        (1, 0),
        (2, 1),
    ]


@pytest.mark.parametrize("kind", ["random", "blobs", "ties"])
def test_eomt_fuses_as_transformers_does(kind: str, class_info: Path) -> None:
    processor = make_processor("Eomt", "", class_info)
    outputs = make_outputs("Eomt", kind, queries=20)
    for size in SIZES:
        theirs = processor.post_process_panoptic_segmentation(outputs, [size], 0.2, 0.5, 0.1, stuff_classes=[0, 2])
        arguments = {"threshold": 0.2, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.1}
        assert_same(panoptic_segments(outputs, processor, [size], arguments, fuse=[0, 2]), theirs)


def decoded(found: dict[str, Any]) -> np.ndarray:
    return np.stack([coco_mask.decode(mask) for mask in found["masks"]])


@pytest.mark.parametrize("family", ["Mask2Former", "MaskFormer", "RfDetr"])
@pytest.mark.parametrize("kind", ["random", "blobs", "ties", "empty"])
def test_instance_masks_are_the_binary_maps_of_transformers(family: str, kind: str, class_info: Path) -> None:
    processor = make_processor(family, "", class_info)
    for masks, size in itertools.product(MASKS, SIZES):
        outputs = make_outputs(family, kind, masks)
        (found,) = instance_masks(outputs, processor, [size], top=9)
        (theirs,) = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, mask_threshold=0.0, target_sizes=[size], return_binary_maps=True
        )
        infos = theirs["segments_info"]
        assert found["labels"].tolist() == [info["label_id"] for info in infos]
        assert [round(float(score), 6) for score in found["scores"]] == [info["score"] for info in infos]
        if infos:
            np.testing.assert_array_equal(decoded(found), theirs["segmentation"].numpy())
    assert (kind == "empty") == (not infos)


@pytest.mark.parametrize("family", ["OneFormer", "Eomt", "Detr"])
def test_instance_masks_by_the_definition(family: str, class_info: Path) -> None:
    processor = make_processor(family, "", class_info, edge=90)
    outputs = make_outputs(family, "blobs", (32, 48), queries=6)
    classes, masks = (getattr(outputs, name)[0] for name in segments._QUERIES[family])
    size = (120, 180)
    if family == "Eomt":
        # The image is 90 wide and 60 high within the square of 90.
        masks = functional.interpolate(masks[None], (90, 90), mode="bilinear")[0][:, :60]
    masks = functional.interpolate(masks[None], size, mode="bilinear")[0]
    expected = []
    for probabilities, mask in zip(classes.softmax(-1)[:, :-1], masks, strict=True):
        inside = mask > 0
        for label, score in enumerate(probabilities.tolist()):
            if family != "Detr":
                score *= mask[inside].sigmoid().mean().item()
            elif score < probabilities.max():
                continue
            expected.append((score, label, inside.numpy()))
    expected = [entry for entry in expected if entry[2].any()]
    expected.sort(key=lambda entry: -entry[0])
    (found,) = instance_masks(outputs, processor, [size])
    order = np.argsort(-found["scores"], kind="stable")
    assert len(order) == len(expected) > 4
    np.testing.assert_allclose(found["scores"][order], [score for score, *_ in expected], rtol=1e-5)
    assert found["labels"][order].tolist() == [label for _, label, _ in expected]
    np.testing.assert_array_equal(decoded(found)[order], np.stack([mask for *_, mask in expected]))


@pytest.mark.parametrize("family", QUERY_FAMILIES)
def test_the_best_instances_alone_are_kept(family: str, class_info: Path) -> None:
    processor = make_processor(family, "", class_info)
    outputs = make_outputs(family, "random", batch=2, queries=12)
    few = instance_masks(outputs, processor, [(50, 90), (90, 50)], top=3)
    for image, size in zip(few, ([50, 90], [90, 50]), strict=True):
        assert len(image["masks"]) == len(image["scores"]) == len(image["labels"]) == 3
        assert [mask["size"] for mask in image["masks"]] == [size] * 3
        assert image["scores"].dtype == np.float32
        assert image["labels"].dtype == np.int64


@pytest.mark.parametrize("family", QUERY_FAMILIES)
def test_several_threads_answer_as_one_does(family: str, class_info: Path) -> None:
    processor = make_processor(family, "", class_info)
    outputs = make_outputs(family, "random", batch=5, queries=12)
    sizes = [(50 + 30 * number, 190 - 30 * number) for number in range(5)]
    alone = instance_masks(outputs, processor, sizes)
    torch.set_num_threads(3)
    together = instance_masks(outputs, processor, sizes)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
    assert len({tuple(image["masks"][0]["size"]) for image in alone}) == 5
    np.testing.assert_equal(together, alone)


@pytest.mark.parametrize("family", ["Mask2Former", "Eomt"])
def test_an_unknown_image_processor_answers_itself(
    family: str, class_info: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = make_processor(family, "", class_info)
    outputs, sizes = make_outputs(family, "blobs", batch=2, queries=20), [(60, 90), (90, 60)]
    arguments = {"threshold": 0.3, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.1}

    def answers() -> list[Any]:
        return [
            semantic_maps(outputs, processor, sizes),
            instance_segments(outputs, processor, sizes, arguments),
            panoptic_segments(outputs, processor, sizes, arguments),
        ]

    known = answers()
    masks = instance_masks(outputs, processor, sizes, top=5)
    monkeypatch.setattr(type(processor), "__module__", "transformers_modules.someones")
    assert segments._family(outputs, processor) is None
    for ours, theirs in zip(known, answers(), strict=True):
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_equal(our, their)
    theirs = instance_masks(outputs, processor, sizes, top=5)
    for our, their in zip(masks, theirs, strict=True):
        assert 0 < len(their["masks"]) <= 5
        if family == "Mask2Former":
            assert max(our["scores"]) == pytest.approx(max(their["scores"]), abs=1e-6)
