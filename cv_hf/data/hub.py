"""Datasets of the Hub, by huggingface_hub's and datasets' own clients: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE apply."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import httpx

from cv_hf.data.columns import can_be_image, find_image, is_image
from cv_hf.data.findings import Findings
from cv_hf.data.paths import Inside, resolve_images
from cv_hf.data.source import Source
from cv_hf.errors import CvHfError, DataError, HubError, causes, did_you_mean
from cv_hf.http import damaged, limited_client, snapshot

_COMMIT = re.compile(r"[0-9a-f]{40}")
_RETRY = "Nothing is lost: run the same command again; what was downloaded is kept."


def read(
    id: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    column: str | None = None,
    findings: Findings | None = None,
    on_bad_sample: str = "skip",
) -> Source:
    """Read a dataset of the Hub, at exactly one commit.

    Args:
        id: "user/name" or "name".
        config: the dataset's configuration, if it has several.
        revision: branch, tag or commit; None: main.
        column: the image column, where it is not found by itself.
        findings: filled with what was left out: images that are paths of this machine, not files of the dataset.
        on_bad_sample: "skip" or "stop".

    Raises:
        DataError: no such dataset, revision or configuration; no access; or a dataset that needs a script.
        HubError: the Hub cannot be reached or failed.
    """
    with limited_client():
        commit = _resolve(id, revision)
        try:
            # With hf:// a folder of the same name in the working directory is not taken for it.
            loaded = datasets.load_dataset(f"hf://datasets/{id}", config, revision=commit or revision)
        except Exception as error:  # builders of all formats, each with its own tree of errors
            raise _explained(error, id, config, commit or revision) from None
    splits = {str(name): split for name, split in loaded.items()}
    cached = _cached_commit(splits)
    if commit is None:
        commit = cached
        if revision and _COMMIT.fullmatch(revision) and commit != revision:
            raise DataError(
                f"dataset {id}: offline (HF_HUB_OFFLINE), and the cache has commit {commit}, not {revision}."
            )
    elif cached not in (commit, None):
        # When the Hub fails, datasets falls back on whatever it has in its cache.
        raise HubError(f"dataset {id}: the Hub failed to give commit {commit}.\n{_RETRY}")
    findings = Findings() if findings is None else findings
    downloaded = Inside(huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE)
    for name, split in splits.items():
        for each in _image_columns(split.features, column):
            splits[name] = resolve_images(splits[name], each, downloaded, findings, on_bad_sample)
    return Source(id, "hub", splits, commit=commit)


def _image_columns(features: datasets.Features, given: str | None) -> list[str]:
    """The columns of images; and the one that the task will read as such, which may be text with paths."""
    columns = [name for name, feature in features.items() if is_image(feature)]
    try:
        found = find_image(features, {"image": given} if given else None)
    except DataError:
        return columns  # the task says what it misses
    return [*columns, found] if found not in columns and can_be_image(features[found]) else columns


def _resolve(id: str, revision: str | None) -> str | None:
    """The commit that a revision stands for now; None offline."""
    try:
        return huggingface_hub.HfApi().dataset_info(id, revision=revision).sha
    except hub_errors.OfflineModeIsEnabled:
        return None
    except Exception as error:
        raise _explained(error, id, None, revision) from None


def _explained(error: Exception, id: str, config: str | None, revision: str | None) -> CvHfError:
    """What a failure of the Hub's clients means for the user."""
    chain = causes(error)
    for cause in chain:
        if isinstance(cause, CvHfError):
            return cause
        if isinstance(cause, hub_errors.HFValidationError):
            return DataError(f"data.id: {id!r} is neither a file or folder here nor a Hub id (user/name).")
        if isinstance(cause, hub_errors.GatedRepoError) or "gated dataset" in str(cause):
            return DataError(
                f"dataset {id} is gated: ask for access on its page, {_page(id)},\n"
                "and log in with `hf auth login` or HF_TOKEN."
            )
        if isinstance(cause, hub_errors.RevisionNotFoundError):
            return DataError(f"dataset {id} has no revision {revision!r} (data.revision): a branch, tag or commit.")
        if isinstance(cause, hub_errors.RepositoryNotFoundError):
            return DataError(
                f"dataset {id} was not found on the Hub{_or_here(id)}, or is private and {_token()} cannot read it.\n"
                "Check data.id; for a private dataset, log in with `hf auth login` or HF_TOKEN."
            )
        is_http = isinstance(cause, hub_errors.HfHubHTTPError) and cause.response is not None
        if is_http and not isinstance(cause, hub_errors.EntryNotFoundError):
            status = cause.response.status_code
            if status in (401, 403):
                return DataError(f"dataset {id}: the Hub refused {_token()} ({status}).\nLog in with `hf auth login`.")
            return HubError(f"dataset {id}: the Hub answered with error {status}.\n{_RETRY}")
        if isinstance(cause, ConnectionError) and huggingface_hub.constants.HF_HUB_OFFLINE:
            return DataError(
                f"dataset {id}: offline (HF_HUB_OFFLINE), and not in the cache{_or_here(id)}.\n"
                "Load it once while online, or give a local folder as data.id."
            )
        if isinstance(cause, (httpx.HTTPError, ConnectionError, TimeoutError)):
            return HubError(
                f"dataset {id}: the Hub cannot be reached ({type(cause).__name__}){_or_here(id)}.\n{_RETRY}"
            )
    if revision and (found := _damaged(id, revision)) is not None:
        file, remove = found
        return HubError(
            f"dataset {id}: the cached file {file} is damaged.\n"
            f"Nothing else is lost. Delete it and run the command again: {remove}"
        )
    text = str(error)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):  # those of a dataset's files come wrapped
        return HubError(f"dataset {id}: the Hub's answer cannot be read.\n{_RETRY}")
    if "Consistency check failed" in "".join(map(str, chain)):
        return HubError(f"dataset {id}: a file that the Hub sent ended too early.\n{_RETRY}")
    if "LocalEntryNotFoundError" in text:  # all that datasets passes on of an error 500
        return HubError(f"dataset {id}: the Hub failed while its files were looked up.\n{_RETRY}")
    if "scripts are no longer supported" in text:
        return DataError(
            f"dataset {id} needs a loading script, which the datasets library no longer runs.\n"
            "Try data.revision: refs/convert/parquet, where the Hub keeps a converted copy."
        )
    if "Config name is missing" in text or text.startswith("BuilderConfig"):
        configs = re.findall(r"'([^']+)'", text.partition("[")[2].partition("]")[0])
        wrong = f"no configuration {config!r}." + did_you_mean(config, configs) if config else "several configurations."
        return DataError(f"dataset {id} has {wrong}\nSet data.config to one of: {', '.join(configs)}.")
    reason = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
    return DataError(f"dataset {id} cannot be loaded: {reason[0][:300]}")


def _damaged(id: str, commit: str) -> tuple[Path, str] | None:
    """A file of the caches that is to blame for an error, and the command that removes it."""
    file = damaged(snapshot(id, "dataset", commit).rglob("*"))
    if file is not None:
        return file, shlex.join(["rm", str(file)])
    for table in sorted(Path(datasets.config.HF_DATASETS_CACHE).glob(f"*/*/*/{commit}/*")):
        try:
            if table.suffix == ".json":
                json.loads(table.read_text(encoding="utf-8"))
            elif table.suffix == ".arrow":
                with pa.memory_map(str(table)) as content:
                    pa.ipc.open_stream(content).read_all()
        except (OSError, ValueError):  # Arrow's errors are of these two
            return table, shlex.join(["rm", "-r", str(table.parent)])
    return None


def _token() -> str:
    return "the token in use" if huggingface_hub.get_token() else "no token is set, which"


def _or_here(id: str) -> str:
    return "" if Path(id).exists() else f" (nor is there a file or folder {id} here)"


def _page(id: str) -> str:
    return f"{huggingface_hub.constants.ENDPOINT}/datasets/{id}"


def _cached_commit(splits: Mapping[str, datasets.Dataset]) -> str | None:
    """The commit in the path of the cached files: .../<configuration>/<version>/<commit>/<name>.arrow."""
    for split in splits.values():
        for file in split.cache_files:
            for part in reversed(Path(file["filename"]).parts):
                if _COMMIT.fullmatch(part):
                    return part
    return None


def download(id: str, name: str, splits: Mapping[str, datasets.Dataset]) -> Path | None:
    """A file of the dataset that splits were read from, at their commit.

    Returns:
        its path in the cache; None where the dataset has no such file, none is known offline, or the splits are local.

    Raises:
        DataError: no access.
        HubError: the Hub cannot be reached or failed.
    """
    commit = _cached_commit(splits)
    if commit is None:
        return None
    try:
        with limited_client():
            return Path(huggingface_hub.hf_hub_download(id, name, repo_type="dataset", revision=commit))
    except Exception as error:
        chain = causes(error)
        missing = any(isinstance(cause, hub_errors.RemoteEntryNotFoundError) for cause in chain)
        if missing or huggingface_hub.constants.HF_HUB_OFFLINE:
            return None
        raise _explained(chain[-1], id, None, commit) from None
