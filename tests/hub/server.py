from __future__ import annotations

import json
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .faults import Fault, altered
from .routes import ROUTES, HubError
from .store import LFS_SUFFIXES, Repository, Store, Token


@dataclass(frozen=True)
class Request:
    """An answered request; `status` is 0 where the connection was cut without an answer."""

    method: str
    path: str
    query: str
    status: int
    authorization: bool


class LoopbackHub:
    """The Hub as a context manager; `start()` and `stop()` for a fixture that spans a session.

    Args:
        lfs_threshold: a file of more bytes goes to the large file storage; 0 sends every file there.
        lfs_suffixes: a file with one of these goes there too.
        part_size: a large file of more bytes is uploaded in parts of this many (multipart transfer).
        page_size: entries per page of a tree listing.
    """

    def __init__(
        self,
        *,
        lfs_threshold: int = 10 * 2**20,
        lfs_suffixes: Iterable[str] = LFS_SUFFIXES,
        part_size: int = 64 * 2**20,
        page_size: int = 1000,
    ) -> None:
        self.store = Store(lfs_threshold, lfs_suffixes)
        self.part_size, self.page_size = part_size, page_size
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def start(self) -> LoopbackHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse new connections and hang up on open ones."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
            server.hang_up()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables for a client process, over those it inherits; HF_HOME is the caller's to choose.

        The proxy variables bring every request for another host to this hub, which refuses it.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0"),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), self.url),
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.url),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        }

    def add_token(
        self,
        token: str,
        user: str,
        role: str = "write",
        orgs: Iterable[str] = (),
        permissions: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """Make `token` known; a token that is not is answered 401.

        Args:
            role: read, write, or fineGrained, for which `permissions` maps a user, organization or repository id to
                "repo.content.read" and "repo.write".
        """
        granted = {name: tuple(names) for name, names in (permissions or {}).items()}
        self.store.tokens[token] = Token(user, role, tuple(orgs), granted)

    def add_repo(
        self,
        repo_id: str,
        type: str = "model",
        private: bool = False,
        gated: bool = False,
        files: Mapping[str, bytes | str | Path] | None = None,
        folder: Path | None = None,
    ) -> Repository:
        """Create a repository, and commit `files` (path in the repository to content) and all of `folder` to it."""
        files = dict(files or {})
        if folder is not None:
            found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            files.update({path.relative_to(folder).as_posix(): path for path in found})
        with self.store.lock:
            repository = Repository(self.store, repo_id, type, private, gated)
            self.store.repositories[type, repo_id] = repository
            if files:
                repository.commit(files)
        return repository

    def repo(self, repo_id: str, type: str | None = None) -> Repository:
        """The repository, of either type where none is given."""
        for known in (type,) if type else ("model", "dataset"):
            if (known, repo_id) in self.store.repositories:
                return self.store.repositories[known, repo_id]
        raise KeyError(f"the hub holds no {type or 'repository'} {repo_id}")

    def fault(self, method: str | None = None, path: str = "", **how: Any) -> Fault:
        """Make the next matching requests fail, `how` as the fields of `Fault` say; its `hits` counts them."""
        fault = Fault(method, path, **how)
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str = "") -> int:
        """How many requests with this method had a path that the regular expression is found in."""
        return sum(request.method == method and bool(re.search(path, request.path)) for request in self.requests)

    def next_fault(self, method: str, path: str, *, answering: bool) -> Fault | None:
        with self.store.lock:
            return next((fault for fault in self.faults if fault.take(method, path, answering=answering)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: LoopbackHub

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self.connections):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.hub = self.server.hub
        self.route, self.url_query = unquote(url.path) if self.path.startswith("/") else self.path, url.query
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        fault = self.hub.next_fault(self.command, self.route, answering=False)
        try:
            if fault and fault.delay:
                sleep(fault.delay)
            if fault and fault.cut_after is not None:
                self.rfile.read(min(fault.cut_after, int(self.headers.get("Content-Length", 0))))
                return self.hang_up()
            self.body = self.read_body()
            if fault and fault.alter:
                self.body = altered(self.body)
            if fault and fault.status:
                raise HubError(fault.status, fault.message or "Injected fault", headers=fault.headers)
            self.answer(url.path)
        except HubError as error:
            self.reply({"error": error.message}, error.status, error.headers)
        except OSError:
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self.reply({"error": f"The loopback Hub itself failed: {error!r}"}, 500)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = handle_any

    def answer(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, function in ROUTES:
            match = pattern.fullmatch(path) if self.path.startswith("/") and method == route_method else None
            if match:
                named = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return function(self, **named)
        raise HubError(404, "The loopback Hub does not speak this endpoint")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def token(self) -> Token | None:
        """The request's token, None without one."""
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        known = self.hub.store.tokens.get(given.removeprefix("Bearer "))
        if known is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return known

    def repo(self, kind: str, repo_id: str, *, write: bool = False) -> Repository:
        """The repository, if the token may read (or `write`) it."""
        repository = self.hub.store.repositories.get((kind.removesuffix("s"), repo_id))
        token = self.token
        if repository is None or (repository.private and not (token and token.may("repo.content.read", repo_id))):
            if token is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and token is None:
            raise HubError(401, "Invalid username or password.")
        if write and not token.may("repo.write", repo_id):
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def reply(self, body: Any = b"", status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer bytes as they are, anything else as JSON."""
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json; charset=utf-8"
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        can_fail = status < 300 and (body or self.command not in ("GET", "HEAD"))
        fault = self.hub.next_fault(self.command, self.route, answering=True) if can_fail else None
        if fault:
            sleep(fault.delay)
            body = altered(body) if fault.alter else body
            body = body[: fault.truncate_to]
        if fault and fault.lost and fault.status:
            body, status, headers = json.dumps({"error": fault.message}).encode(), fault.status, fault.headers
        self.log(status)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if fault is None else body[: fault.cut_after])
        self.wfile.flush()
        if fault and fault.cut_after is not None:
            self.hang_up(logged=True)

    def hang_up(self, logged: bool = False) -> None:
        if not logged:
            self.log(0)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log(self, status: int) -> None:
        authorization = bool(self.headers.get("Authorization"))
        self.hub.requests.append(Request(self.command, self.route, self.url_query, status, authorization))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: `LoopbackHub.requests` is the log."""
