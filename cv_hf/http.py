"""What the Hub's client leaves to its callers: limits of waiting, and whether what it has on disk is what the Hub has.

By itself it waits for an answer without end, or as long as one asks it to, and looks at the size of a download alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, set_client_factory
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import _http, hf_raise_for_status, httpx, parse_ratelimit_headers

# Seconds after which a Hub that neither says nor takes anything has failed.
SILENCE = 120.0
# Seconds that are waited in all because the Hub asks for it (Retry-After).
PATIENCE = 300.0


@contextmanager
def limited_client() -> Iterator[None]:
    """Let no request of huggingface_hub, and so of datasets and transformers, wait longer than SILENCE or PATIENCE.

    A Hub that asks for more is an HfHubHTTPError like any other refusal. Settings of a client that a program has made
    its own stay.
    """
    ordinary = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    waited = 0.0

    def limit(request: httpx.Request) -> None:
        # Here and not in the client's settings, since many a request says None.
        given = request.extensions.get("timeout", {})
        longest = {"connect": min(30.0, SILENCE), "read": SILENCE, "write": SILENCE, "pool": SILENCE}
        chosen = {kind: seconds if given.get(kind) is None else given[kind] for kind, seconds in longest.items()}
        request.extensions = {**request.extensions, "timeout": chosen}

    def check(response: httpx.Response) -> None:
        nonlocal waited
        if response.status_code < 400:
            return
        response.read()
        waited += asked_to_wait(response)
        # The client sends a conflicting creation again, at once and for ever.
        if waited > PATIENCE or (response.status_code == 409 and "conflicting operation" in response.text):
            hf_raise_for_status(response)

    def limited() -> httpx.Client:
        client = ordinary()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", ()), limit],
            "response": [*hooks.get("response", ()), check],
        }
        return client

    set_client_factory(limited)
    try:
        yield
    finally:
        set_client_factory(ordinary)


def asked_to_wait(response: httpx.Response) -> float:
    """The seconds that a busy Hub asks to wait, 0 where it does not."""
    limits = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    after = response.headers.get("Retry-After", "").strip()
    return float(after) if re.fullmatch(r"[0-9]{1,9}", after) else 0.0


def snapshot(repo_id: str, repo_type: str, commit: str) -> Path:
    """The folder of the cache in which the files of a commit are."""
    name = repo_folder_name(repo_id=repo_id, repo_type=repo_type)
    return Path(constants.HF_HUB_CACHE) / name / "snapshots" / commit


def damaged(files: Iterable[str | Path]) -> Path | None:
    """The first of some files of the Hub's cache that is not what the Hub has, by the hash that the cache names it by.

    Returns:
        the file to delete, so that it is fetched again; None where all are whole, or stand in no cache.
    """
    for path in map(os.path.realpath, files):
        name = os.path.basename(path)
        if os.path.basename(os.path.dirname(path)) == "blobs" and os.path.isfile(path) and not _is_hash_of(name, path):
            return Path(path)
    return None


def _is_hash_of(name: str, path: str) -> bool:
    """Whether a name is the hash of a file, as far as it is one: SHA-256 of large files, that of git of others."""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", name):
        digest = hashlib.sha1(b"blob %d\0" % os.path.getsize(path))
    else:
        return True
    with open(path, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == name
