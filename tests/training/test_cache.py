"""Images that were decoded once and kept: the same pixels, shared by all who read, in no more memory than is spare."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cv_hf.finetuning import finetune, open_recipe, prepare
from cv_hf.launch import _environments
from cv_hf.training import samples
from cv_hf.training.cache import ImageCache, image_cache
from cv_hf.training.memory import memory_free

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory here")

SIZE = (20, 30)


def noise(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


class Reads(Dataset):
    """Images that are drawn if they are not found; an item is whether it was found, and its pixels."""

    def __init__(self, cache: ImageCache, length: int):
        self.cache, self.length = cache, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[bool, np.ndarray]:
        found = self.cache.get(index)
        if found is None:
            self.cache.put(index, noise(index), (40, 60))
        return found is not None, noise(index) if found is None else found[0]


def test_what_is_kept_comes_back():
    cache = ImageCache(5)
    assert cache.get(3) is None
    # A part of another array, as crops are.
    part = noise(0, (50, 60))[10:30, 5:50]
    cache.put(3, part, (100, 120))
    cache.put(1, noise(1), SIZE)
    pixels, whole = cache.get(3)
    assert np.array_equal(pixels, part)
    assert whole == (100, 120)
    pixels[:] = 0
    assert np.array_equal(cache.get(3)[0], part)
    assert np.array_equal(cache.get(1)[0], noise(1))
    assert [cache.get(index) for index in (0, 2, 4)] == [None] * 3


def held(cache: ImageCache) -> int:
    return os.fstat(cache._file).st_blocks * 512


def test_no_more_is_kept_than_a_quarter_of_what_is_free():
    free = 400_000_000

    def kept(share: float) -> int:
        cache = ImageCache(200, share, free=lambda: free - held(cache))
        for index in range(200):
            cache.put(index, noise(index, (1000, 1000)), (1000, 1000))
        assert held(cache) <= free * share / 4
        return sum(cache.get(index) is not None for index in range(200))

    # It looks every 16 MB, which is five or six of these images.
    assert 100 // 3 - 6 <= kept(1.0) <= 100 // 3
    assert 25 // 3 - 6 <= kept(0.25) <= 25 // 3


def test_an_image_too_large_for_the_rest_is_passed_over():
    cache = ImageCache(2, free=lambda: 400_000_000)
    cache.put(0, np.zeros((6000, 6000, 3), np.uint8), (6000, 6000))
    cache.put(1, noise(1), SIZE)
    assert cache.get(0) is None
    assert np.array_equal(cache.get(1)[0], noise(1))


def _fill(cache: ImageCache, numbers: range) -> None:
    for number in numbers:
        cache.put(number, noise(number, (1000, 1000)), (1000, 1000))


def test_workers_keep_no_more_together():
    fork = multiprocessing.get_context("fork")
    cache = ImageCache(80, free=lambda: 200_000_000 - held(cache))
    started = [fork.Process(target=_fill, args=(cache, range(first, 80, 8))) for first in range(8)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert 20_000_000 < held(cache) <= 50_000_000


def test_what_is_kept_is_given_back_when_memory_is_scarce():
    free = 10**9
    cache = ImageCache(3, free=lambda: free)
    cache.put(0, noise(0, (1000, 1000)), SIZE)
    cache.drop_if_scarce()
    assert cache.get(0) is not None
    free = 2_000_000
    cache.drop_if_scarce()
    assert held(cache) < 100_000
    cache.put(1, noise(1), SIZE)
    # And what another was about to write when it was dropped.
    os.pwrite(cache._file, bytes(1000), 10**6)
    assert [cache.get(index) for index in range(3)] == [None] * 3


@pytest.mark.parametrize("call", ["pwrite", "pread", "preadv", "fstat"])
def test_a_system_that_fails_costs_nothing_but_what_is_kept(monkeypatch: pytest.MonkeyPatch, call: str):
    cache = ImageCache(3)
    cache.put(0, noise(0), SIZE)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    cache.put(1, noise(1), SIZE)
    kept = cache.get(0)
    monkeypatch.undo()
    assert kept is None if call.startswith("pread") else np.array_equal(kept[0], noise(0))
    assert cache.get(1) is None or call in ("preadv", "fstat")
    assert np.array_equal(cache.get(0)[0], noise(0))


def test_without_locks_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    def refused(*args):
        raise OSError(37, "No locks available")

    cache = ImageCache(3)
    monkeypatch.setattr("cv_hf.training.cache.fcntl.lockf", refused)
    cache.put(0, noise(0), SIZE)
    cache.drop_if_scarce()
    assert cache.get(0) is None


def test_where_nobody_says_what_is_free_nothing_is_kept():
    asked = []

    def untold() -> int:
        asked.append(None)
        raise FileNotFoundError("/proc/meminfo")

    cache = ImageCache(3, free=untold)
    for index in range(3):
        cache.put(index, noise(index), SIZE)
    assert len(asked) == 1
    cache.drop_if_scarce()
    assert cache.get(0) is None


def test_memory_is_looked_after_in_every_epoch_and_evaluation(recipe, monkeypatch: pytest.MonkeyPatch):
    looked = []
    monkeypatch.setattr(ImageCache, "drop_if_scarce", lambda cache: looked.append(cache))
    train = {"num_train_epochs": 3, "max_steps": -1, "eval_strategy": "epoch", "save_strategy": "no"}
    finetune(recipe(train=train))
    assert len(looked) == 3 + 3


def test_an_entry_that_is_half_written_is_none():
    cache = ImageCache(2)
    cache.put(0, noise(0), SIZE)
    place, *sizes = cache._read_entry(1)
    cache._write_entry(1, place, *sizes[:2], 0, 0)
    assert cache.get(0) is None
    cache._write_entry(1, place, 0, 0, *sizes[2:])
    assert cache.get(0) is None


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_share_it_however_they_are_started(method: str):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    length = 40
    cache = ImageCache(length)
    loader = DataLoader(Reads(cache, length), batch_size=4, num_workers=2, multiprocessing_context=method)
    assert not any(found for batch in loader for found in batch[0])
    # What they have kept, the process that began them finds, and those that it begins after them.
    assert all(np.array_equal(cache.get(index)[0], noise(index)) for index in range(length))
    if method == "fork":
        assert all(found for batch in loader for found in batch[0])


def _put_all(cache: ImageCache, numbers: range, ready: multiprocessing.synchronize.Barrier) -> None:
    ready.wait()
    for number in numbers:
        cache.put(number, noise(number, (20 + number % 7, 30)), SIZE)


def test_two_never_write_to_one_place():
    fork = multiprocessing.get_context("fork")
    count, processes = 300, 4
    cache, ready = ImageCache(count * processes), fork.Barrier(processes)
    started = [
        fork.Process(target=_put_all, args=(cache, range(first, count * processes, processes), ready))
        for first in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    for number in range(count * processes):
        assert np.array_equal(cache.get(number)[0], noise(number, (20 + number % 7, 30)))


def test_it_is_sent_to_nobody_else():
    with pytest.raises(TypeError, match="process that is being started"):
        pickle.dumps(ImageCache(1))


def test_processes_of_one_machine_share_a_quarter(monkeypatch: pytest.MonkeyPatch):
    for variables in _environments(4):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", variables["LOCAL_WORLD_SIZE"])
        assert image_cache(10)._share == 0.25
    for unset in ("", "0"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", unset)
        assert image_cache(10)._share == 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_the_same_and_decodes_each_image_once(recipe, monkeypatch: pytest.MonkeyPatch, tmp_path, workers):
    decoded = tmp_path / "decoded"
    original = samples.decode_array

    def counted(image, *args, **kwargs):
        with decoded.open("a") as file:
            file.write(f"{image['path']}\n")
        return original(image, *args, **kwargs)

    monkeypatch.setattr(samples, "decode_array", counted)

    def losses(cached: bool) -> tuple[list[float], list[str]]:
        decoded.write_text("")
        train = {"num_train_epochs": 3, "max_steps": -1, "logging_steps": 1, "dataloader_num_workers": workers}
        train |= {"eval_strategy": "no", "save_strategy": "no", "cache_images": cached}
        values = {**recipe("vit", train=train), "run_dir": str(tmp_path / str(cached))}
        whole, task = open_recipe(values)
        _, _, trainer = prepare(whole, task, Path(values["run_dir"]), None)
        cache = trainer.cache
        trainer.train()
        assert trainer.cache is None
        assert cache is None or not cache._closing.alive
        return [line["loss"] for line in trainer.state.log_history if "loss" in line], decoded.read_text().split()

    (plain, each), (kept, once) = losses(False), losses(True)
    assert kept == plain
    assert len(once) == len(set(once)) == len(set(each))
    # Not all are read in an epoch whose last batch would not be full.
    assert len(each) > 2 * len(once)


def test_what_was_repaired_is_said_in_every_epoch(recipe, photos, tmp_path: Path):
    copied = shutil.copytree(photos, tmp_path / "photos")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(copied / "train" / "red" / "0.png")
    values = recipe(data={"id": str(copied)}, train={"eval_strategy": "no", "save_strategy": "no"})
    whole, task = open_recipe(values)
    splits, _, trainer = prepare(whole, task, tmp_path / "run", None)
    place = next(i for i, row in enumerate(splits.train) if row["file"].endswith("red/0.png"))
    for epoch in range(2):
        assert [code for code, *_ in trainer.train_dataset[(epoch, place)]["findings"]] == ["sixteen-bit"]
    assert trainer.train_dataset.cache.get(place) is None


def test_a_system_without_such_files_trains_without(recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "memfd_create")
    values = recipe(train={"max_steps": 2, "eval_strategy": "no", "save_strategy": "no"})
    assert finetune(values).metrics["train"]["steps"] == 2


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """(cgroup lines, {file: content}) -> memory_free on a machine with a million bytes free and such control groups."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1_000_000))

    def make(lines: str, files: dict[str, str]) -> int:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(lines)
        for name, content in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return memory_free(tmp_path)

    return make


def test_memory_is_that_of_the_machine_where_nothing_limits_it(machine):
    assert machine("0::/user.slice\n", {"user.slice/memory.max": "max\n", "user.slice/memory.current": "5\n"}) == 10**6


def test_memory_is_what_a_batch_job_is_allowed(machine):
    # The limit stands two groups above the process; what was read from files is as good as free.
    files = {
        "job/memory.max": "700000\n",
        "job/memory.current": "600000\n",
        "job/memory.stat": "anon 200000\ninactive_file 300000\nactive_file 5\n",
        "job/step/task/memory.max": "max\n",
        "job/step/task/memory.current": "500000\n",
    }
    assert machine("0::/job/step/task\n", files) == 400_000


def test_memory_is_what_a_container_of_the_first_version_is_allowed(machine):
    # Its own group is at the top, whatever the path.
    files = {
        "memory/memory.limit_in_bytes": "300000\n",
        "memory/memory.usage_in_bytes": "100000\n",
        "memory/memory.stat": "cache 1\ntotal_inactive_file 50000\n",
    }
    assert machine("5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/docker/a\n", files) == 250_000


def test_memory_is_what_does_not_slow_a_process_down(machine):
    files = {"job/memory.max": "max\n", "job/memory.high": "500000\n", "job/memory.current": "450000\n"}
    assert machine("0::/job\n", files) == 50_000


def test_memory_beyond_its_limit_is_none(machine):
    files = {"memory.max": "100\n", "memory.current": "400\n"}
    assert machine("0::/\n", files) == 0
