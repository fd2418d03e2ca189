"""Pushing a run: who may write is asked before training, and a push is one commit without paths of this machine.

What may pass by itself (the Hub is busy, or silent) is tried again, a few times and for a few minutes. A commit names
the one that it follows, so that one whose answer was lost is found by the next attempt, and never made twice.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from cv_hf import http
from cv_hf.data.detect import looks_like_a_path
from cv_hf.errors import CvHfError, DataError, HubError, Interrupted, causes, printable
from cv_hf.http import asked_to_wait, limited_client
from cv_hf.publish.card import THIS_FOLDER

_T = TypeVar("_T")
_ATTEMPTS = 4
# What may pass by itself. 409: another operation is going on; 412: another commit came first.
_PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}

# A push takes these and nothing else, whatever a user or a tool has left in the folder.
_SUFFIXES = {".json", ".safetensors", ".md", ".yaml", ".txt", ".model", ".png"}
# What an earlier push, with other shards or another library, may have left; its other files are the user's.
_WEIGHTS = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
_PATHS = {"model": ("id",), "data": ("id", "images", "masks", "labels")}


def check_name(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository, without asking the Hub.

    Raises:
        DataError: it is not of the form.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DataError(f"hub.repo_id: {error}") from None


def check_can_write(repo_id: str, retry: str = "start again", echo: Callable[[str], None] = print) -> str:
    """Make sure that the token may write to a model repository; return the user's name.

    Args:
        repo_id: "user/name", or "name" for the token's own user.
        retry: what to do once the Hub answers.
        echo: called with a line for each attempt that failed.

    Raises:
        HubError: no token, a token that cannot write there, or no answer from the Hub.
        DataError: not the form of a repository's name.
    """
    check_name(repo_id)
    doing = f"checking the right to write to {repo_id}"
    return _persistently(lambda: _who_may_write(HfApi(), repo_id), doing, retry, echo)


def _who_may_write(api: HfApi, repo_id: str) -> str:
    who = api.whoami()
    owner = repo_id.split("/")[0] if "/" in repo_id else who["name"]
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise HubError(
            f"hub: the token of {who['name']} can only read, so {repo_id} could not be pushed.\n"
            "Make one with the write role at https://huggingface.co/settings/tokens and set HF_TOKEN."
        )
    try:
        api.auth_check(_full_name(repo_id, who["name"]), write=True)
    except RepositoryNotFoundError:
        organisations = {org["name"] for org in who.get("orgs", []) if org.get("roleInOrg", "write") != "read"}
        if owner not in {who["name"], *organisations}:
            raise HubError(
                f"hub: {who['name']} cannot create {repo_id}: {owner} is neither that user nor one of its "
                "organisations.\nSet hub.repo_id to a name of your own."
            ) from None
        scopes = token.get("fineGrained", {}).get("scoped", [])
        granted = {right for scope in scopes if scope["entity"].get("name") == owner for right in scope["permissions"]}
        if token.get("role") == "fineGrained" and "repo.write" not in granted:
            raise HubError(
                f"hub: the token of {who['name']} may not create repositories of {owner}, so not {repo_id}.\n"
                "Give it write access to all of them at https://huggingface.co/settings/tokens."
            ) from None
    return who["name"]


def push(run: Path, repo_id: str, *, private: bool = False, echo: Callable[[str], None] = print) -> str:
    """Push a run's `model/` and its recipe in one commit; return the repository's address.

    Files of an earlier push that this one does not have are removed in the same commit.

    Args:
        run: the run directory.
        repo_id: "user/name", or "name" for the token's own user.
        private: of a repository that is made here.
        echo: called with a line for each attempt that failed.

    Raises:
        HubError: the Hub refused or failed; nothing on disk changed.
        DataError: the run has no finished model.
    """
    model = run / "model"
    if not (model / "config.json").is_file():
        raise DataError(f"{run}: there is no finished model/ in it to push. Train first, or name the run's folder.")
    if not (model / "README.md").is_file():
        # The last file that a run writes there.
        raise DataError(
            f"{run}: its model/ has no card (README.md), as scoring it was not finished.\n"
            f"Go on: {shlex.join(['cv-hf', 'train', str(run / 'recipe.yaml'), '--resume'])}"
        )
    retry = shlex.join(["cv-hf", "push", str(run), repo_id, *(["--private"] if private else [])])
    repo_id = _full_name(repo_id, check_can_write(repo_id, retry, echo))
    paths = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
    files: dict[str, Path | bytes] = {
        name: path for name, path in paths.items() if path.suffix in _SUFFIXES and not name.startswith(".")
    }
    if (run / "recipe.yaml").is_file():
        files["recipe.yaml"] = _without_paths((run / "recipe.yaml").read_text(encoding="utf-8")).encode()
    card = paths["README.md"].read_text(encoding="utf-8")
    files["README.md"] = card.replace(THIS_FOLDER, f'model="{repo_id}"').encode()
    return _persistently(lambda: _commit(HfApi(), repo_id, files, private), f"pushing to {repo_id}", retry, echo)


def _commit(api: HfApi, repo_id: str, files: Mapping[str, Path | bytes], private: bool) -> str:
    """Bring a repository to hold these files, in one commit on top of the newest; none if it holds them already."""
    try:
        head = api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private)
        head = api.model_info(repo_id)
    there = [sibling.rfilename for sibling in head.siblings or ()]
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in files.items()]
        + [CommitOperationDelete(name) for name in there if name.endswith(_WEIGHTS) and name not in files],
        commit_message="Fine-tuned with cv_hf",
        parent_commit=head.sha,
    )
    return str(commit.repo_url)


def _without_paths(recipe: str) -> str:
    """A recipe as others can use it: of a path of this machine its last part alone, and nowhere to write or push to."""
    values = yaml.safe_load(recipe)
    for section, keys in _PATHS.items():
        for key in keys:
            value = values[section].get(key)
            if isinstance(value, str) and (looks_like_a_path(value) or Path(value).exists()):
                values[section][key] = Path(value).resolve().name
    return yaml.safe_dump({**values, "hub": None, "run_dir": None}, sort_keys=False, allow_unicode=True)


def _persistently(attempt: Callable[[], _T], doing: str, retry: str, echo: Callable[[str], None]) -> _T:
    """Call `attempt` until it succeeds, fails for good, or patience is at its end.

    Raises:
        HubError: two lines: what failed and why, and the command that goes on.
    """
    first = None
    with limited_client():
        for number in range(1, _ATTEMPTS + 1):
            try:
                return attempt()
            except CvHfError:
                raise
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted while {doing}.\nNothing is lost. To go on: {retry}") from None
            except Exception as error:
                reason, pause = _reason(error), _pause(error, number)
            first = time.monotonic() if first is None else first
            if pause is None or number == _ATTEMPTS or time.monotonic() + pause > first + http.PATIENCE:
                break
            echo(f"{doing}: {reason}; trying again in {pause:g} s")
            time.sleep(pause)
    raise HubError(f"{doing}: {reason}.\nNothing is lost. To go on: {retry}")


def _pause(error: Exception, number: int) -> float | None:
    """Seconds to wait after the failure of an attempt; None where another would fail alike."""
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            # The storage answers 400 to bytes that were damaged on their way.
            damaged = cause.response.status_code == 400 and "Error while uploading" in str(error)
            if cause.response.status_code not in _PASSING and not damaged:
                return None
            return max(asked_to_wait(cause.response), 2.0 ** (number - 1))
        if isinstance(cause, (httpx.TransportError, json.JSONDecodeError)):
            return 2.0 ** (number - 1)
    return None


def _reason(error: Exception) -> str:
    # A failed upload arrives as a RuntimeError around what the Hub answered.
    chain = causes(error)
    for cause in chain:
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no token; run `hf auth login` or set HF_TOKEN"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            seconds = asked_to_wait(cause.response)
            wait = f", and asks to wait {seconds:g} s" if seconds else ""
            message = cause.server_message or str(cause)
            return f"the Hub answered {cause.response.status_code} ({_line(message)}){wait}"
        if isinstance(cause, httpx.TimeoutException):
            return f"the Hub did not answer within {http.SILENCE:g} s"
        if isinstance(cause, httpx.TransportError):
            return f"the Hub cannot be reached ({_line(cause) or type(cause).__name__})"
        if isinstance(cause, json.JSONDecodeError):
            return "the Hub's answer cannot be read"
    return _line(chain[-1]) or type(chain[-1]).__name__


def _line(message: object) -> str:
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return printable(lines[0] if lines else "")[:160].rstrip(".")


def _full_name(repo_id: str, user: str) -> str:
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"
