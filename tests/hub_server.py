"""A server on 127.0.0.1 that speaks as much of the hub's protocol as its client asks for, with faults on demand."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 10_000  # bytes from which a file is kept as a large one, known by its SHA-256


class Hub:
    """Folders as repositories at one commit.

    cuts: path → byte positions at which the next connections for it break off. corrupt: paths whose content has a
    byte flipped on its way. ranges: False makes the server ignore ranges. requests: (method, path, range) as they came;
    tokens: what they were authorised by.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.commit = "c0ffee" + "0" * 34
        self.cuts: dict[str, list[int]] = {}
        self.corrupt: set[str] = set()
        self.ranges = True
        self.status: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def files(self, name: str) -> dict[str, Path]:
        folder = self.repositories[name]
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def ranges_of(self, file: str) -> list[str | None]:
        """The ranges that were asked of a file, in order."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(file)]


def hashes(path: Path) -> tuple[str, str | None]:
    """git's hash, and the SHA-256 of a large file."""
    content = path.read_bytes()
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return blob, hashlib.sha256(content).hexdigest() if len(content) >= LARGE else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.tokens.add(self.headers.get("Authorization"))
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status is not None:
            return self.reply(self.hub.status, b"{}", {})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)/?", path):
            return self.listing(*match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        self.missing("EntryNotFound")

    def reply(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.reply(404, b"{}", {"X-Error-Code": code})

    def listing(self, name: str, kind: str, revision: str) -> None:
        if name not in self.hub.repositories:
            return self.missing("RepoNotFound")
        if revision not in ("main", self.hub.commit):
            return self.missing("RevisionNotFound")
        siblings, tree = [], []
        for file, path in self.hub.files(name).items():
            blob, sha256 = hashes(path)
            size = path.stat().st_size
            siblings.append({"rfilename": file, "size": size, "blobId": blob})
            tree.append({"type": "file", "path": file, "size": size, "oid": blob})
            if sha256:
                siblings[-1]["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
                tree[-1]["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
        whole = {"id": name, "sha": self.hub.commit, "siblings": siblings}
        body = json.dumps(whole if kind == "revision" else tree).encode()
        self.reply(200, body, {"Content-Type": "application/json"})

    def resolve(self, name: str, revision: str, file: str) -> None:
        path = self.hub.files(name).get(file) if name in self.hub.repositories else None
        if path is None:
            return self.missing("EntryNotFound")
        blob, sha256 = hashes(path)
        content = bytearray(path.read_bytes())
        if file in self.hub.corrupt:
            content[len(content) // 2] ^= 0xFF
        headers = {"ETag": f'"{sha256 or blob}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if sha256:
            headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        status, body = 200, bytes(content)
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(span[1]) if span and self.hub.ranges else 0
        if start:
            status, body = 206, body[start:]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        length = len(body)
        cuts = self.hub.cuts.get(file)
        if cuts and self.command == "GET":
            body = body[: max(0, cuts.pop(0) - start)]
            self.close_connection = True
        self.reply(status, body, headers, length)


@contextmanager
def serving(repositories: dict[str, Path]):
    """A running hub."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
