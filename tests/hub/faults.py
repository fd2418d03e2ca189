from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """A planned failure of the requests that match.

    Attributes:
        method: GET, HEAD, POST, PUT, DELETE; None for any.
        path: regular expression searched in the unquoted path. A large file's download is a GET of
            /lfs/SHA256/its-name, its upload a PUT to /lfs/SHA256 or, in parts, to /lfs/SHA256/part/N.
        times: how many requests fail; None for all.
        status: answer this status, with `message` and `headers` (X-Error-Code: GatedRepo, Retry-After: 1, ...).
        delay: seconds to wait before going on.
        cut_after: hang up after so many bytes of the body: of a GET's answer, of a PUT's or POST's request.
        truncate_to: answer a GET with so many bytes of its body and a matching Content-Length.
        alter: change the last byte of the body, the length kept.
        lost: the request is carried out before it fails: its answer is `status`, or cut after `cut_after` bytes.
        hits: how many requests have failed by now.
    """

    method: str | None = None
    path: str = ""
    times: int | None = 1
    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut_after: int | None = None
    truncate_to: int | None = None
    alter: bool = False
    lost: bool = False
    hits: int = 0

    @property
    def on_body(self) -> bool:
        return self.cut_after is not None or self.truncate_to is not None or self.alter

    def take(self, method: str, path: str, *, answering: bool) -> bool:
        """True, and one of `times` used up, where this fault strikes.

        A fault of a download's body waits until there is a body to answer (`answering`): on a large file it must not
        be spent on the redirect to the storage. So does that of an answer that is lost. All others strike when the
        request arrives.
        """
        if self.times is not None and self.hits >= self.times:
            return False
        if self.method not in (None, method) or not re.search(self.path, path):
            return False
        late = self.lost or (self.on_body and method in ("GET", "HEAD"))
        if answering != late or (answering and method == "HEAD"):
            return False
        self.hits += 1
        return True


def altered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 0xFF]) if content else content
