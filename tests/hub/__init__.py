"""A Hugging Face Hub on the loopback interface for unmodified huggingface_hub, datasets and transformers clients.

    with LoopbackHub() as hub:
        hub.add_token("hf_alice", user="alice", role="write")
        hub.add_repo("alice/cats", type="dataset", private=True, files={"a.txt": b"..."})
        subprocess.run(command, env={**os.environ, **hub.environment("hf_alice"), "HF_HOME": str(tmp_path)})
        assert hub.repo("alice/model").files()["config.json"] == ...
        assert hub.count("POST", "/commit/") == 1

`huggingface_hub` reads HF_ENDPOINT, HF_HUB_DISABLE_XET and HF_HUB_OFFLINE when it is imported: put `hub.environment()`
into `os.environ` before that, or pass `endpoint=hub.url` to `HfApi`. Nothing here imports any of the clients.

Endpoints (`REPO` is `user/name` or `name`; `TYPE` is `models` or `datasets`; `REV` a branch, tag or commit id):

    GET    /api/whoami-v2
    POST   /api/validate-yaml
    POST   /api/repos/create                           DELETE /api/repos/delete
    GET    /api/TYPE/REPO[/revision/REV]               PUT    /api/TYPE/REPO/settings
    GET    /api/TYPE/REPO/auth-check[/write]           GET    /api/TYPE/REPO/discussions  (none)
    GET    /api/TYPE/REPO/tree/REV[/PATH]              POST   /api/TYPE/REPO/paths-info/REV
    GET    /api/TYPE/REPO/refs                         GET    /api/TYPE/REPO/commits/REV
    POST   /api/TYPE/REPO/branch/NAME, /tag/REV        DELETE /api/TYPE/REPO/branch/NAME, /tag/NAME
    POST   /api/TYPE/REPO/preupload/REV                POST   /api/TYPE/REPO/commit/REV  (NDJSON)
    POST   /[datasets/]REPO.git/info/lfs/objects/batch, /verify (basic and multipart transfer)
    GET    /[datasets/]REPO/resolve/REV/PATH           a regular file, or a redirect of an LFS file to the storage

The large file storage listens on a port of its own, as the Hub's has a host of its own, so that clients drop the token:

    GET /lfs/SHA256/NAME    PUT /lfs/SHA256    PUT /lfs/SHA256/part/N    POST /lfs/SHA256/complete

Everything else is a 404. Pull requests, Xet, Spaces, listing and search are not spoken. `hub.environment()` also makes
the hub the proxy for all other hosts, for which it answers 404: a test never leaves the machine, and `hub.requests`
shows who tried.
"""

from .faults import Fault
from .server import LoopbackHub, Request
from .store import Blob, Commit, Repository, Token

__all__ = ["Blob", "Commit", "Fault", "LoopbackHub", "Repository", "Request", "Token"]
