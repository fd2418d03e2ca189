"""What the loopback Hub holds: tokens, repositories, commits and blobs, all in memory."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from hashlib import sha1, sha256
from pathlib import Path

READ, WRITE = "repo.content.read", "repo.write"
GITATTRIBUTES = ".gitattributes"
LFS_SUFFIXES = (".7z", ".arrow", ".bin", ".ckpt", ".gz", ".h5", ".jpeg", ".jpg", ".model", ".msgpack", ".npy", ".npz")
LFS_SUFFIXES += (".onnx", ".parquet", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".tar", ".tiff", ".webp", ".zip")


@dataclass(frozen=True)
class Blob:
    """A file's content. A large file is kept in git as a pointer to its SHA-256."""

    content: bytes = field(repr=False)
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @cached_property
    def oid(self) -> str:
        """The id that git gives to what it stores: the content, or the pointer."""
        stored = self.pointer if self.lfs else self.content
        return sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A snapshot: `tree` maps each path, "/" between its parts, to its blob."""

    parent: str | None
    tree: Mapping[str, Blob] = field(repr=False)
    title: str
    message: str = ""
    author: str = "system"
    seconds: float = field(default_factory=time.time)

    @cached_property
    def id(self) -> str:
        about = f"{self.parent} {self.author} {self.seconds}\n{self.title}\n{self.message}\n"
        return sha1((about + listing(self.tree)).encode()).hexdigest()

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def listing(tree: Mapping[str, Blob]) -> str:
    return "".join(f"{blob.oid} {path}\n" for path, blob in sorted(tree.items()))


@dataclass(frozen=True)
class Token:
    """An access token. A fine-grained one has `permissions`, by user, organization or repository id."""

    user: str
    role: str = "write"
    orgs: tuple[str, ...] = ()
    permissions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def may(self, permission: str, repo_id: str) -> bool:
        namespace = repo_id.split("/")[0]
        if self.role == "fineGrained":
            granted = {p for name in (namespace, repo_id) for p in self.permissions.get(name, ())}
            return bool(granted & {permission, WRITE})
        return namespace in (self.user, *self.orgs) and (permission == READ or self.role == "write")


class Repository:
    """A model or dataset repository with its history.

    Every repository begins, as on the Hub, with a commit of its `.gitattributes`.
    """

    def __init__(self, store: Store, repo_id: str, type: str, private: bool, gated: bool) -> None:
        self.store, self.id, self.type, self.private, self.gated = store, repo_id, type, private, gated
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in store.lfs_suffixes)
        first = Commit(None, {GITATTRIBUTES: Blob(attributes.encode())}, "initial commit")
        self.history = {first.id: first}
        self.branches = {"main": first.id}
        self.tags: dict[str, str] = {}

    def resolve(self, revision: str = "main") -> Commit | None:
        """The commit of a branch, a tag, or a commit id of at least 7 digits."""
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        commit_id = self.branches.get(name) or self.tags.get(name)
        if commit_id is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [known for known in self.history if known.startswith(revision)]
            commit_id = found[0] if len(found) == 1 else None
        return self.history[commit_id] if commit_id else None

    def log(self, head: Commit) -> Iterable[Commit]:
        """`head` and its ancestors, newest first."""
        while True:
            yield head
            if head.parent is None:
                return
            head = self.history[head.parent]

    @property
    def commits(self) -> list[Commit]:
        """The commits of main, newest first."""
        return list(self.log(self.history[self.branches["main"]]))

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path to content, without the `.gitattributes` that the Hub itself adds."""
        commit = self.resolve(revision)
        if commit is None:
            raise KeyError(f"{self.id} has no revision {revision}")
        return {path: blob.content for path, blob in commit.tree.items() if path != GITATTRIBUTES}

    def commit(self, files: Mapping[str, bytes | str | Path], message: str = "Upload files") -> Commit:
        """Add or replace files on main, past all protocol."""
        return self.apply({path: self.store.blob(path, content) for path, content in files.items()}, message)

    def apply(
        self,
        changes: Mapping[str, Blob | None],
        title: str,
        message: str = "",
        author: str = "system",
        branch: str = "main",
    ) -> Commit:
        """Commit changes: a path's new blob, or None to delete it."""
        head = self.history[self.branches[branch]]
        tree = {path: blob for path, blob in {**head.tree, **changes}.items() if blob is not None}
        commit = Commit(head.id, dict(sorted(tree.items())), title, message, author)
        self.history[commit.id] = commit
        self.branches[branch] = commit.id
        return commit

    def last_change(self, head: Commit, path: str) -> Commit:
        """The last commit that touched a file, or anything in a folder."""

        def state(commit: Commit) -> str:
            return listing({p: b for p, b in commit.tree.items() if p == path or p.startswith(path + "/")})

        wanted, last = state(head), head
        for commit in self.log(head):
            if state(commit) != wanted:
                break
            last = commit
        return last


class Store:
    def __init__(self, lfs_threshold: int, lfs_suffixes: Iterable[str]) -> None:
        self.lfs_threshold, self.lfs_suffixes = lfs_threshold, tuple(lfs_suffixes)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: dict[str, Token] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock = threading.RLock()

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        """Whether a file goes to the large file storage: by suffix, by size, or because it is binary."""
        return size > 0 and (path.endswith(self.lfs_suffixes) or size > self.lfs_threshold or b"\0" in sample)

    def blob(self, path: str, content: bytes | str | Path) -> Blob:
        if isinstance(content, Path):
            content = content.read_bytes()
        elif isinstance(content, str):
            content = content.encode()
        blob = Blob(content, self.is_large(path, len(content), content[:512]))
        if blob.lfs:
            self.large[blob.sha256] = content
        return blob
