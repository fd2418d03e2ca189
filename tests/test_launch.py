"""`cv-hf train --nproc 2`: one run, one voice, the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from PIL import Image

from cv_hf.errors import Interrupted
from cv_hf.finetuning import finetune, resumable
from cv_hf.launch import _environments, launch


def train(values: dict, file, *arguments: str) -> subprocess.CompletedProcess:
    file.write_text(json.dumps(values))  # JSON is YAML
    command = [sys.executable, "-m", "cv_hf", "train", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def steps(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "loss" in line for name in ("loss", "grad_norm")]


def test_two_processes_train_as_one(recipe, tmp_path):
    """A batch of 8 is 8, or 4 and 4; a model without dropout and batch norm."""
    values = recipe("timm_vit", train={"max_steps": 3})
    alone = finetune({**values, "run_dir": str(tmp_path / "1")}).metrics
    done = train(values, tmp_path / "recipe.yaml", "--nproc", "2", "--run-dir", str(tmp_path / "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the model is") == 1
    assert "[rank" not in done.stderr
    assert "reducer" not in done.stderr
    both = json.loads((tmp_path / "2" / "metrics.json").read_text())
    assert len(steps(tmp_path / "1")) == 6
    assert steps(tmp_path / "2") == pytest.approx(steps(tmp_path / "1"), rel=1e-5)
    assert both["test"]["num_samples"] == alone["test"]["num_samples"] == 12
    assert both["test"]["loss"] == pytest.approx(alone["test"]["loss"], rel=1e-5)


def test_wrong_input_is_said_once(recipe, tmp_path):
    failed = train(recipe("vit", eval={"metric": "acuracy"}), tmp_path / "recipe.yaml", "--nproc", "2")
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "Did you mean 'accuracy'" in failed.stderr


def test_a_photo_that_only_the_second_process_decodes_stops_both(recipe, photos, tmp_path):
    """Its header and its end are right; its middle is not. Evaluation gives it to rank 1, rank 0 waits in gather."""
    copied = tmp_path / "photos"
    shutil.copytree(photos, copied)
    file = sorted((copied / "validation").rglob("*.png"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"."), Image.open(file) as image:
        image.load()
    values = recipe(data={"id": str(copied), "on_bad_sample": "stop"}, train={"max_steps": 1})
    failed = train(values, tmp_path / "recipe.yaml", "--nproc", "2")
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) <= 2
    assert failed.stderr.startswith(f"cv-hf: validation/{file.parent.name}/{file.name}: ")
    assert "Traceback" not in failed.stderr


def test_the_command_that_goes_on_starts_as_many(tmp_path, monkeypatch):
    def told() -> str:
        with pytest.raises(Interrupted) as stopped, resumable(tmp_path):
            raise KeyboardInterrupt
        return str(stopped.value).splitlines()[1]

    alone = f"To go on: cv-hf train {tmp_path / 'recipe.yaml'} --resume"
    assert told() == alone
    for name, value in _environments(2)[0].items():
        monkeypatch.setenv(name, value)
    assert told() == f"{alone} --nproc 2"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads by Linux's names of them")
def test_no_thread_of_gloo_outlives_python(tmp_path):
    """One that does may end the process with SIGABRT once all is done. What is registered first is called last."""
    (tmp_path / "script.py").write_text(
        textwrap.dedent(f"""
            import atexit, glob, torch
            from pathlib import Path

            def threads():
                names = [Path(file).read_text().strip() for file in glob.glob("/proc/self/task/*/comm")]
                return sum("gloo" in name for name in names)

            atexit.register(lambda: print(threads()))
            import cv_hf.inference
            torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
            model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
            model(torch.ones(1, 2)).sum().backward()
            model.itself, model = model, None
            print(threads() > 0)
        """)
    )
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "0"]


@pytest.fixture
def fake(tmp_path):
    """(body) -> a command that runs this Python with `rank` at hand."""

    def make(body: str) -> list[str]:
        file = tmp_path / "fake.py"
        start = "import os, signal, sys, time\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\n"
        file.write_text(start + textwrap.dedent(body))
        return [sys.executable, str(file)]

    return make


def test_the_one_with_an_error_for_the_user_decides(fake, capfd):
    """Rank 0 fails first, of the lost connection; rank 1 speaks after it, and noise follows what it says."""
    body = """
        if rank == 0:
            raise RuntimeError("Connection closed by peer")
        time.sleep(0.4)
        print("noise\\ncv-hf: what\\nhow\\nmore noise", file=sys.stderr)
        sys.exit(3)
    """
    assert launch(2, [], command=fake(body)) == 3
    assert capfd.readouterr().err == "cv-hf: what\nhow\n"


def test_an_error_counts_though_its_process_never_ends(fake, capfd, monkeypatch):
    monkeypatch.setattr("cv_hf.launch.PATIENCE", 0.5)
    body = """
        if rank == 1:
            print("cv-hf: what", file=sys.stderr, flush=True)
        time.sleep(60)
    """
    assert launch(2, [], command=fake(body)) == 2
    assert capfd.readouterr().err == "cv-hf: what\n"


def test_the_others_are_ended_before_they_can_complain(fake, capfd):
    body = """
        if rank == 1:
            print("cv-hf: what", file=sys.stderr)
            sys.exit(2)
        time.sleep(60)
    """
    assert launch(3, [], command=fake(body)) == 2
    assert capfd.readouterr().err == "cv-hf: what\n"


def test_without_one_the_end_of_the_first_failure_is_shown(fake, capfd):
    assert launch(2, [], command=fake("if rank == 1: raise ValueError('a bug')\ntime.sleep(60)")) == 1
    assert capfd.readouterr().err.endswith("ValueError: a bug\n")
    assert launch(2, [], command=fake("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")) == 137
    assert capfd.readouterr().err == "cv-hf: process 1 was ended by SIGKILL.\n"


def test_warnings_of_a_good_run_are_kept_once(fake, capfd):
    assert launch(2, [], command=fake("print('out'); print('a warning', file=sys.stderr)")) == 0
    assert capfd.readouterr() == ("out\n", "a warning\n")


LAUNCHER = """
import sys
from cv_hf import launch
launch.PATIENCE = launch.GRACE = float(sys.argv[2])
sys.exit(launch.launch(2, sys.argv[3:], command=[sys.executable, sys.argv[1]]))
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_sigterm_leaves_no_process(fake, tmp_path, deaf):
    """Neither where the processes save and speak, nor where they hear no signal but SIGKILL."""
    body = f"""
        if {deaf}:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            Path(sys.argv[1], str(rank)).write_text(str(os.getpid()) + "\\n")
            time.sleep(120)
        except KeyboardInterrupt:
            print("cv-hf: interrupted; to go on: ...", file=sys.stderr)
            sys.exit(130)
    """
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, "-c", LAUNCHER, fake(body)[1], "1" if deaf else "60", str(pids)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        deadline = time.monotonic() + 120
        while len(started := [f for f in pids.iterdir() if f.read_text().endswith("\n")]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 130
    assert said == ("cv-hf: interrupted.\n" if deaf else "cv-hf: interrupted; to go on: ...\n")
    for file in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_the_handler_of_sigterm_is_put_back(fake):
    before = signal.getsignal(signal.SIGTERM)
    launch(1, [], command=fake(""))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("rank", [0, 1])
def test_on_a_terminal_bars_are_shown_and_one_error(fake, tmp_path, rank):
    """All fail of the same input, or rank 0 of the connection that rank 1's error has cut."""
    pty = pytest.importorskip("pty")
    body = f"""
        if rank == 0:
            print(f"\\r50% {{sys.stderr.isatty()}}", end="", file=sys.stderr, flush=True)
            time.sleep(0.3)
        if rank < {rank}:
            raise RuntimeError("Connection closed by peer")
        print("cv-hf: what\\nhow", file=sys.stderr)
        sys.exit(2)
    """
    master, slave = pty.openpty()
    command = [sys.executable, "-c", LAUNCHER, fake(body)[1], "1"]
    done = subprocess.run(command, stderr=slave)
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert done.returncode == 2
    assert shown.count("50% True") == 1
    assert shown.count("cv-hf: what") == shown.count("how") == 1
    assert "Traceback" not in shown
