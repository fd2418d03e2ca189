"""The Hub's endpoints. Each function answers one, given the request's handler and the named parts of its path."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha1, sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlencode

import yaml

from .store import WRITE, Blob, Commit, Repository, listing

if TYPE_CHECKING:
    from .server import _Handler as Handler

KIND, REPO, REV = r"(?P<kind>models|datasets)", r"(?P<repo_id>[^/]+(?:/[^/]+)??)", r"(?P<rev>refs/[^/]+/[^/]+|[^/]+)"
API = f"/api/{KIND}/{REPO}"
GIT = rf"/(?:(?P<kind>datasets)/)?{REPO}"
TASKS = {
    "ImageClassification": "image-classification",
    "ObjectDetection": "object-detection",
    "SemanticSegmentation": "image-segmentation",
    "InstanceSegmentation": "image-segmentation",
    "UniversalSegmentation": "image-segmentation",
    "Segmentation": "image-segmentation",
}
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []


class HubError(Exception):
    """An error as the Hub answers it; `code` is its X-Error-Code (RepoNotFound, EntryNotFound, ...)."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.message = status, message
        named = {"X-Error-Message": message, "X-Error-Code": code}
        self.headers = {**{name: value for name, value in named.items() if value}, **(headers or {})}


def route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def commit_of(repository: Repository, revision: str) -> Commit:
    commit = repository.resolve(revision)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def file_info(path: str, blob: Blob) -> dict[str, Any]:
    info = {"type": "file", "oid": blob.oid, "size": len(blob.content), "path": path}
    if blob.lfs:
        info["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return info


def folder_info(path: str, tree: Mapping[str, Blob]) -> dict[str, Any]:
    within = {name: blob for name, blob in tree.items() if name.startswith(path + "/")}
    return {"type": "directory", "oid": sha1(listing(within).encode()).hexdigest(), "size": 0, "path": path}


def with_last_commit(repository: Repository, head: Commit, entry: dict[str, Any]) -> dict[str, Any]:
    last = repository.last_change(head, entry["path"])
    return {**entry, "lastCommit": {"id": last.id, "title": last.title, "date": last.date}}


def card_data(commit: Commit) -> dict[str, Any]:
    readme = commit.tree.get("README.md")
    return front_matter(readme.content.decode(errors="replace")) if readme else {}


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the dashes; raises yaml.YAMLError."""
    found = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    return data if isinstance(data, dict) else {}


@route("GET", "/api/whoami-v2")
def whoami(http: Handler) -> None:
    token = http.token
    if token is None:
        raise HubError(401, "Invalid username or password.")
    access: dict[str, Any] = {"displayName": "tests", "role": token.role}
    if token.role == "fineGrained":
        kinds = {repo_id: kind for kind, repo_id in http.hub.store.repositories}
        kinds |= {token.user: "user", **dict.fromkeys(token.orgs, "org")}
        scoped = [
            {"entity": {"_id": name, "type": kinds.get(name, "model"), "name": name}, "permissions": list(granted)}
            for name, granted in token.permissions.items()
        ]
        access["fineGrained"] = {"global": [], "scoped": scoped}
    user = {"type": "user", "id": token.user, "name": token.user, "fullname": token.user.title()}
    orgs = [{"type": "org", "id": org, "name": org, "roleInOrg": "write"} for org in token.orgs]
    http.reply({**user, "isPro": False, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}})


@route("POST", "/api/validate-yaml")
def validate_yaml(http: Handler) -> None:
    try:
        data = front_matter(http.json["content"])
    except yaml.YAMLError as error:
        return http.reply({"errors": [{"message": f"YAML: {error}"}], "warnings": []}, 400)
    http.reply({"errors": [], "warnings": [] if data else [{"message": "empty or missing yaml metadata in repo card"}]})


@route("POST", "/api/repos/create")
def create_repo(http: Handler) -> None:
    asked, token = http.json, http.token
    if token is None:
        raise HubError(401, "Invalid username or password.")
    kind, namespace = asked.get("type") or "model", asked.get("organization") or token.user
    repo_id = f"{namespace}/{asked['name']}"
    if not token.may(WRITE, repo_id):
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    answer = {"url": f"{http.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}", "name": repo_id}
    with http.hub.store.lock:
        if (kind, repo_id) in http.hub.store.repositories:
            return http.reply({"error": f"You already created this {kind} repo", **answer}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        http.hub.add_repo(repo_id, kind, private)
    http.reply(answer)


@route("DELETE", "/api/repos/delete")
def delete_repo(http: Handler) -> None:
    asked = http.json
    repo_id = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
    repository = http.repo(asked.get("type") or "model", repo_id, write=True)
    del http.hub.store.repositories[repository.type, repo_id]
    http.reply()


@route("GET", API + "/auth-check(?P<write>/write)?")
def auth_check(http: Handler, kind: str, repo_id: str, write: str | None = None) -> None:
    check_gate(http, http.repo(kind, repo_id, write=bool(write)))
    http.reply()


@route("PUT", API + "/settings")
def settings(http: Handler, kind: str, repo_id: str) -> None:
    repository, asked = http.repo(kind, repo_id, write=True), http.json
    repository.private = asked.get("visibility", "private" if repository.private else "public") == "private"
    repository.private = asked.get("private", repository.private)
    repository.gated = bool(asked.get("gated", repository.gated))
    http.reply({"private": repository.private})


@route("GET", API + "/discussions")
def discussions(http: Handler, kind: str, repo_id: str) -> None:
    http.repo(kind, repo_id)
    http.reply({"discussions": [], "count": 0, "start": 0, "numClosedDiscussions": 0})


@route("GET", API + "/refs")
def refs(http: Handler, kind: str, repo_id: str) -> None:
    repository = http.repo(kind, repo_id)

    def named(names: Mapping[str, str], group: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{group}/{n}", "targetCommit": target} for n, target in names.items()]

    groups = {"branches": named(repository.branches, "heads"), "tags": named(repository.tags, "tags")}
    http.reply({**groups, "converts": [], "pullRequests": []})


@route("POST", API + "/branch/(?P<name>[^/]+)")
def create_branch(http: Handler, kind: str, repo_id: str, name: str) -> None:
    repository = http.repo(kind, repo_id, write=True)
    if name in repository.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{name}")
    repository.branches[name] = commit_of(repository, http.json.get("startingPoint", "main")).id
    http.reply({})


@route("POST", f"{API}/tag/{REV}")
def create_tag(http: Handler, kind: str, repo_id: str, rev: str) -> None:
    repository, name = http.repo(kind, repo_id, write=True), http.json["tag"]
    if name in repository.tags:
        raise HubError(409, f"Tag reference exists already: refs/tags/{name}")
    repository.tags[name] = commit_of(repository, rev).id
    http.reply({})


@route("DELETE", API + "/(?P<group>branch|tag)/(?P<name>[^/]+)")
def delete_ref(http: Handler, kind: str, repo_id: str, group: str, name: str) -> None:
    repository = http.repo(kind, repo_id, write=True)
    names = repository.branches if group == "branch" else repository.tags
    if name not in names or (group == "branch" and name == "main"):
        raise HubError(404, f"Reference does not exist: {name}", "RevisionNotFound")
    del names[name]
    http.reply({})


@route("GET", f"{API}/commits/{REV}")
def commits(http: Handler, kind: str, repo_id: str, rev: str) -> None:
    repository = http.repo(kind, repo_id)
    http.reply(
        [
            {"id": c.id, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
            for c in repository.log(commit_of(repository, rev))
        ]
    )


@route("GET", rf"{API}/tree/{REV}(?:/(?P<path>.*))?")
def tree(http: Handler, kind: str, repo_id: str, rev: str, path: str = "") -> None:
    repository = http.repo(kind, repo_id)
    commit = commit_of(repository, rev)
    folder = path.strip("/") + "/" if path.strip("/") else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, blob in commit.tree.items():
        if name.startswith(folder):
            parts = name.removeprefix(folder).split("/")
            for parent in (folder + "/".join(parts[:depth]) for depth in range(1, len(parts))):
                if parent not in entries:
                    entries[parent] = folder_info(parent, commit.tree)
            entries[name] = file_info(name, blob)
    if folder and not entries:
        raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound", {"X-Repo-Commit": commit.id})
    found = sorted(entries.values(), key=lambda entry: entry["path"])
    if http.query.get("recursive", "").lower() not in ("true", "1"):
        found = [entry for entry in found if "/" not in entry["path"].removeprefix(folder)]
    start = int(http.query.get("cursor", 0))
    end, headers = start + http.hub.page_size, {}
    if end < len(found):
        following = urlencode({**http.query, "cursor": end})
        headers["Link"] = f'<{http.hub.url}{http.path.split("?")[0]}?{following}>; rel="next"'
    page = found[start:end]
    if http.query.get("expand", "").lower() in ("true", "1"):
        page = [with_last_commit(repository, commit, entry) for entry in page]
    http.reply(page, headers=headers)


@route("POST", f"{API}/paths-info/{REV}")
def paths_info(http: Handler, kind: str, repo_id: str, rev: str) -> None:
    repository = http.repo(kind, repo_id)
    commit = commit_of(repository, rev)
    if "json" in http.headers.get("Content-Type", ""):
        asked = http.json
    else:
        form = parse_qs(http.body.decode())
        asked = {"paths": form.get("paths", []), "expand": form.get("expand") == ["true"]}
    found = []
    for path in asked["paths"]:
        if path in commit.tree:
            found.append(file_info(path, commit.tree[path]))
        elif any(name.startswith(path + "/") for name in commit.tree):
            found.append(folder_info(path, commit.tree))
    http.reply([with_last_commit(repository, commit, entry) for entry in found] if asked.get("expand") else found)


@route("POST", f"{API}/preupload/{REV}")
def preupload(http: Handler, kind: str, repo_id: str, rev: str) -> None:
    commit = commit_of(http.repo(kind, repo_id, write=True), rev)
    answer = []
    for asked in http.json["files"]:
        large = http.hub.store.is_large(asked["path"], asked["size"], base64.b64decode(asked["sample"]))
        known = commit.tree.get(asked["path"])
        info = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answer.append({**info, "oid": known.etag} if known else info)
    http.reply({"files": answer, "commitOid": commit.id})


@route("POST", GIT + r"\.git/info/lfs/objects/batch")
def lfs_batch(http: Handler, repo_id: str, kind: str = "models") -> None:
    repository, asked = http.repo(kind, repo_id, write=True), http.json
    prefix = "datasets/" if repository.type == "dataset" else ""
    verify = {"href": f"{http.hub.url}/{prefix}{repo_id}.git/info/lfs/verify"}
    multipart = "multipart" in asked.get("transfers", ())
    objects = []
    for wanted in asked["objects"]:
        oid, size, part_size = wanted["oid"], wanted["size"], http.hub.part_size
        answer = {"oid": oid, "size": size, "authenticated": True}
        base = f"{http.hub.storage_url}/lfs/{oid}"
        if oid not in http.hub.store.large:
            upload: dict[str, Any] = {"href": base}
            if multipart and size > part_size:
                numbers = range(1, -(-size // part_size) + 1)
                parts = {str(number): f"{base}/part/{number}" for number in numbers}
                upload = {"href": f"{base}/complete", "header": {"chunk_size": str(part_size), **parts}}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    http.reply({"transfer": "multipart" if multipart else "basic", "objects": objects})


@route("POST", GIT + r"\.git/info/lfs/verify")
def lfs_verify(http: Handler, repo_id: str, kind: str = "models") -> None:
    http.repo(kind, repo_id, write=True)
    if len(http.hub.store.large.get(http.json["oid"], b"")) != http.json["size"]:
        raise HubError(404, "The uploaded object is missing or has another size")
    http.reply()


def store_large(http: Handler, oid: str, content: bytes) -> None:
    if sha256(content).hexdigest() != oid:
        raise HubError(400, "BadDigest: the content does not match the SHA-256 that was announced")
    http.hub.store.large[oid] = content


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})/part/(?P<number>[0-9]+)")
def lfs_part(http: Handler, oid: str, number: str) -> None:
    with http.hub.store.lock:
        http.hub.store.parts.setdefault(oid, {})[int(number)] = http.body
    http.reply(headers={"ETag": f'"{sha256(http.body).hexdigest()}"'})


@route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/complete")
def lfs_complete(http: Handler, oid: str) -> None:
    parts = http.hub.store.parts.get(oid, {})
    contents = [parts.get(part["partNumber"], b"") for part in http.json["parts"]]
    if [part["etag"].strip('"') for part in http.json["parts"]] != [sha256(part).hexdigest() for part in contents]:
        raise HubError(400, "InvalidPart: a part is missing or its ETag is another one")
    store_large(http, oid, b"".join(contents))
    http.hub.store.parts.pop(oid, None)
    http.reply({"success": True})


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_upload(http: Handler, oid: str) -> None:
    store_large(http, oid, http.body)
    http.reply()


@route("GET", "/lfs/(?P<oid>[0-9a-f]{64})/(?P<name>.+)")
def lfs_download(http: Handler, oid: str, name: str) -> None:
    if oid not in http.hub.store.large:
        raise HubError(404, "NoSuchKey")
    send_content(http, http.hub.store.large[oid], oid, name)


def send_content(http: Handler, content: bytes, etag: str, name: str, headers: Mapping[str, str] | None = None) -> None:
    """Answer a file, or the part of it that a Range header asks for."""
    named = f"inline; filename*=UTF-8''{quote(name.split('/')[-1])}"
    about = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Disposition": named, **(headers or {})}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", http.headers.get("Range", ""))
    if wanted is None or wanted[0] == "bytes=-":
        return http.reply(content, headers=about)
    size = len(content)
    if wanted[1]:
        start, end = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
    else:
        start, end = max(size - int(wanted[2]), 0), size - 1
    if start >= size or start > end:
        raise HubError(416, "Requested range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    http.reply(content[start : end + 1], 206, {**about, "Content-Range": f"bytes {start}-{end}/{size}"})


@route("POST", f"{API}/commit/{REV}")
def commit(http: Handler, kind: str, repo_id: str, rev: str) -> None:
    repository, store = http.repo(kind, repo_id, write=True), http.hub.store
    if http.query.get("create_pr"):
        raise HubError(501, "The loopback Hub has no pull requests")
    lines = [json.loads(line) for line in http.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    with store.lock:
        branch = rev.removeprefix("refs/heads/")
        if branch not in repository.branches:
            raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        head = repository.history[repository.branches[branch]]
        if not head.id.startswith(header.get("parentCommit") or head.id):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, Blob | None] = {}
        for line in lines:
            changes.update(changes_of(line["key"], line["value"], head, store.large))
        made = repository.apply(changes, header["summary"], header.get("description", ""), http.token.user, branch)
    prefix = "datasets/" if repository.type == "dataset" else ""
    url = f"{http.hub.url}/{prefix}{repo_id}/commit/{made.id}"
    http.reply({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def changes_of(key: str, value: dict[str, Any], head: Commit, large: Mapping[str, bytes]) -> dict[str, Blob | None]:
    """What one line of a commit changes: path to its new blob, or None."""
    if key == "header":
        return {}
    path = value["path"]
    if key == "file":
        return {path: Blob(base64.b64decode(value["content"]))}
    if key == "lfsFile":
        if value["oid"] not in large:
            raise HubError(400, f"Your push was rejected: {path} points to a large file that was not uploaded")
        return {path: Blob(large[value["oid"]], lfs=True)}
    if key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [name for name in head.tree if (name == path if key == "deletedFile" else name.startswith(folder))]
        if not gone:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        return dict.fromkeys(gone)
    raise HubError(400, f"Unknown operation {key}")


@route("GET", f"{GIT}/resolve/{REV}/(?P<path>.+)")
def resolve(http: Handler, repo_id: str, rev: str, path: str, kind: str = "models") -> None:
    repository = http.repo(kind, repo_id)
    check_gate(http, repository)
    commit = commit_of(repository, rev)
    about = {"X-Repo-Commit": commit.id}
    blob = commit.tree.get(path)
    if blob is None:
        raise HubError(404, "Entry not found", "EntryNotFound", about)
    if not blob.lfs:
        return send_content(http, blob.content, blob.etag, path, about)
    linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content)), "ETag": f'"{blob.etag}"'}
    http.reply(b"", 302, {**about, **linked, "Location": f"{http.hub.storage_url}/lfs/{blob.sha256}/{quote(path)}"})


def check_gate(http: Handler, repository: Repository) -> None:
    """Only those who may write get at a gated repository's files: nobody else has been granted access."""
    if not repository.gated or (http.token and http.token.may(WRITE, repository.id)):
        return
    if http.token is None:
        raise HubError(401, f"Access to {repository.type} {repository.id} is restricted. Please log in.", "GatedRepo")
    raise HubError(403, f"Access to {repository.type} {repository.id} is restricted: ask for access.", "GatedRepo")


@route("GET", f"{API}(?:/revision/{REV})?")
def repo_info(http: Handler, kind: str, repo_id: str, rev: str = "main") -> None:
    repository = http.repo(kind, repo_id)
    commit = commit_of(repository, rev)
    try:
        card = card_data(commit)
    except yaml.YAMLError:
        card = {}
    siblings = []
    for path, blob in commit.tree.items():
        info = file_info(path, blob)
        sibling: dict[str, Any] = {"rfilename": path}
        if http.query.get("blobs"):
            sibling |= {"size": info["size"], "blobId": info["oid"]}
            if blob.lfs:
                sibling["lfs"] = {**info["lfs"], "sha256": blob.sha256}
        siblings.append(sibling)
    answer = {
        "_id": sha1(repo_id.encode()).hexdigest()[:24],
        "id": repo_id,
        "author": repo_id.split("/")[0],
        "sha": commit.id,
        "createdAt": repository.commits[-1].date,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": json.loads(json.dumps(card, default=str)),
        "siblings": siblings,
    }
    if repository.type == "model":
        answer |= {"modelId": repo_id, **model_info(commit, card)}
    http.reply(answer)


def model_info(commit: Commit, card: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub reads from a model's card and, where that is silent, from its configuration."""
    info = {"pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name")}
    if "config.json" in commit.tree:
        config = json.loads(commit.tree["config.json"].content)
        heads = config.get("architectures") or []
        info["config"] = {"architectures": heads, "model_type": config.get("model_type")}
        info["library_name"] = info["library_name"] or "transformers"
        head = heads[0].rpartition("For")[2] if heads else ""
        info["pipeline_tag"] = info["pipeline_tag"] or TASKS.get(head)
    return {name: value for name, value in info.items() if value is not None}
