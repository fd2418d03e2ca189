"""One loopback Hub for the whole session. It must stand before huggingface_hub is imported, which reads HF_ENDPOINT once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.hub import LoopbackHub

_HUB = LoopbackHub().start()
_HUB.add_token("hf_tests_write", user="tester", role="write")
_HOME = tempfile.mkdtemp(prefix="cv_hf-tests-")
os.environ.update(_HUB.environment(token="hf_tests_write"))
os.environ.update(HF_HOME=_HOME, NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.pop("HF_HUB_OFFLINE", None)

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def hub() -> LoopbackHub:
    """The Hub that HF_ENDPOINT names, with the write token of user `tester` in HF_TOKEN."""
    return _HUB


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)
