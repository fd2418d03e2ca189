"""Several processes of one command on this machine, one per device, as torchrun starts them.

torchrun itself ends a failed run with a traceback of its own and one exit code for everything; here the user sees what
the failing process said, and its code.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `cv-hf ARGUMENTS` in so many processes; return the exit code of the first that failed, or 0.

    The first process has the terminal. Of the others only the errors are shown, and only where the first had none.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # One thread each, as torchrun does, unless the user has said otherwise: the processes share the cores.
    common["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = [sys.executable, "-m", "cv_hf", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(processes)]
        running = []
        for rank, log in enumerate(logs):
            environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("wb") as errors:
                quiet = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": errors}
                running.append(subprocess.Popen(command, env=environment, **quiet))
        try:
            code = _first_failure(running)
        except KeyboardInterrupt:
            # The terminal has sent it to all of them; each says or saves what it has.
            code = max(process.wait() for process in running)
        spoke = running[0].poll() == code
        for process in running:
            process.terminate()
        codes = [process.wait() for process in running]
        if code and not spoke:
            sys.stderr.write(logs[codes.index(code)].read_text(errors="replace"))
    return code


def _first_failure(running: Sequence[subprocess.Popen]) -> int:
    while True:
        codes = [process.poll() for process in running]
        failed = [code for code in codes if code]
        if failed:
            # Wrong input fails in all of them at once: let the first one finish what it has to say.
            time.sleep(1)
            return running[0].poll() or failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)
