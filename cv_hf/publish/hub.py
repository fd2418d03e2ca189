"""Pushing a run: who may write is asked before training, and a push is one commit without paths of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from cv_hf.data.detect import looks_like_a_path
from cv_hf.errors import CvHfError, DataError, HubError, causes
from cv_hf.publish.card import THIS_FOLDER

# A push takes these and nothing else, whatever a user or a tool has left in the folder.
_SUFFIXES = {".json", ".safetensors", ".md", ".yaml", ".txt", ".model", ".png"}
# What an earlier push, with other shards or another library, may have left; its other files are the user's.
_WEIGHTS = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
_PATHS = {"model": ("id",), "data": ("id", "images", "masks", "labels")}


def check_can_write(repo_id: str, retry: str = "start again") -> str:
    """Make sure that the token may write to a model repository; return the user's name.

    Args:
        repo_id: "user/name", or "name" for the token's own user.
        retry: what to do once the Hub answers.

    Raises:
        HubError: no token, a token that cannot write there, or no answer from the Hub.
        DataError: not the form of a repository's name.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DataError(f"hub.repo_id: {error}") from None
    api = HfApi()
    with _hub(f"checking the right to write to {repo_id}", retry):
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
            granted = {
                right for scope in scopes if scope["entity"].get("name") == owner for right in scope["permissions"]
            }
            if token.get("role") == "fineGrained" and "repo.write" not in granted:
                raise HubError(
                    f"hub: the token of {who['name']} may not create repositories of {owner}, so not {repo_id}.\n"
                    "Give it write access to all of them at https://huggingface.co/settings/tokens."
                ) from None
    return who["name"]


def push(run: Path, repo_id: str, *, private: bool = False) -> str:
    """Push a run's `model/` and its recipe in one commit; return the repository's address.

    Files of an earlier push that this one does not have are removed in the same commit.

    Raises:
        HubError: the Hub refused or failed; nothing on disk changed.
        DataError: the run has no finished model.
    """
    model = run / "model"
    if not (model / "config.json").is_file():
        raise DataError(f"{run}: there is no finished model/ in it to push. Train first, or name the run's folder.")
    retry = shlex.join(["cv-hf", "push", str(run), repo_id, *(["--private"] if private else [])])
    check_can_write(repo_id, retry)
    paths = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
    files: dict[str, Path | bytes] = {
        name: path for name, path in paths.items() if path.suffix in _SUFFIXES and not name.startswith(".")
    }
    if (run / "recipe.yaml").is_file():
        files["recipe.yaml"] = _without_paths((run / "recipe.yaml").read_text(encoding="utf-8")).encode()
    api = HfApi()
    with _hub(f"pushing to {repo_id}", retry):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if "README.md" in paths:
            card = paths["README.md"].read_text(encoding="utf-8")
            files["README.md"] = card.replace(THIS_FOLDER, f'model="{repo_id}"').encode()
        stale = [name for name in api.list_repo_files(repo_id) if name.endswith(_WEIGHTS) and name not in files]
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()]
            + [CommitOperationDelete(name) for name in stale],
            commit_message="Fine-tuned with cv_hf",
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


@contextmanager
def _hub(doing: str, retry: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one HubError of two lines."""
    try:
        yield
    except CvHfError:
        raise
    except Exception as error:
        raise HubError(f"{doing}: {_reason(error)}.\nNothing is lost. To go on: {retry}") from None


def _reason(error: Exception) -> str:
    # A failed upload arrives as a RuntimeError around what the Hub answered.
    chain = causes(error)
    for cause in chain:
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no token; run `hf auth login` or set HF_TOKEN"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            message = (cause.server_message or str(cause)).strip().splitlines() or [""]
            return f"the Hub answered {cause.response.status_code} ({message[0][:160]})"
    message = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
    return f"the Hub cannot be reached ({message[0][:160]})"


def _full_name(repo_id: str, user: str) -> str:
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"
