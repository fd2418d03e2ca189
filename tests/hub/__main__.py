"""python -m tests.hub --folder DIR: serve DIR/models/USER/NAME and DIR/datasets/USER/NAME until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import threading
from pathlib import Path

from . import LoopbackHub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    with LoopbackHub() as hub:
        users = {"me"}
        for kind in ("model", "dataset"):
            for path in sorted((folder / f"{kind}s").glob("*/*/")):
                users.add(path.parent.name)
                hub.add_repo(f"{path.parent.name}/{path.name}", kind, folder=path)
        hub.add_token("hf_local", user="me", role="write", orgs=sorted(users - {"me"}))
        for name, value in hub.environment("hf_local").items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
