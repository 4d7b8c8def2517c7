"""A small model hub on loopback: the addresses that huggingface_hub asks, with faults on demand."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT, OLDER = "c" * 40, "b" * 40


@dataclass
class Repo:
    """A repository: commit -> file -> bytes, and revision -> commit. fault: `gated`, `private` or an HTTP status.

    cut: files whose answer ends early. forged: files whose listed digest is another's.
    """

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    fault: str | int = ""
    cut: tuple[str, ...] = ()
    forged: tuple[str, ...] = ()


@dataclass
class SmallHub:
    """The hub: OWNER/NAME -> repository, and the requests that it has had, as `METHOD path`."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    def add(self, name: str, **files: bytes) -> Repo:
        """Add a repository with one commit. In names of files, __ stands for a dot."""
        self.repos[name] = Repo({COMMIT: {key.replace("__", "."): data for key, data in files.items()}})
        return self.repos[name]


@contextlib.contextmanager
def serve() -> Iterator[SmallHub]:
    """Serve a small hub on a free port of loopback."""
    hub = SmallHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            _answer(self, hub)

        do_GET = do_HEAD

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, hub: SmallHub) -> None:
    path = urlsplit(handler.path).path
    hub.requests.append(f"{handler.command} {unquote(path)}")
    is_api = path.startswith("/api/")
    place = path.removeprefix("/api/models").removeprefix("/api").removeprefix("/datasets")
    parts = [unquote(part) for part in place.strip("/").split("/")]
    repo, word, revision = hub.repos.get("/".join(parts[:2])), *(parts[2:4] or ["revision", "main"])
    if repo is None or repo.fault == "private":
        return _refuse(handler, 401, "RepoNotFound")
    if repo.fault == "gated" and not is_api:
        return _refuse(handler, 403, "GatedRepo")
    if isinstance(repo.fault, int):
        return _refuse(handler, repo.fault, "")
    commit = repo.revisions.get(revision, revision)
    if commit not in repo.commits or word not in ("revision", "resolve"):
        return _refuse(handler, 404, "RevisionNotFound")
    if is_api:
        return _send(handler, json.dumps(_info(parts[:2], repo, commit)).encode(), {})
    file = "/".join(parts[4:])
    if file not in repo.commits[commit]:
        return _refuse(handler, 404, "EntryNotFound", commit)
    data = repo.commits[commit][file]
    tag = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
    return _send(handler, data[:-8] if file in repo.cut and handler.command == "GET" else data, tag)


def _info(names: list[str], repo: Repo, commit: str) -> dict[str, object]:
    rows = []
    for name, data in repo.commits[commit].items():
        digest = hashlib.sha256(b"other" if name in repo.forged else data).hexdigest()
        is_large = not name.endswith((".json", ".py", ".md"))
        lfs = {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 100}} if is_large else {}
        rows.append({"rfilename": name, "size": len(data), "blobId": "a" * 40, **lfs})
    return {"id": "/".join(names), "sha": commit, "siblings": rows, "private": False, "tags": [], "downloads": 0}


def _refuse(handler: BaseHTTPRequestHandler, status: int, code: str, commit: str = "") -> None:
    handler.send_response(status)
    for name, value in (("X-Error-Code", code), ("X-Repo-Commit", commit), ("Content-Length", "0")):
        if value:
            handler.send_header(name, value)
    handler.end_headers()


def _send(handler: BaseHTTPRequestHandler, data: bytes, headers: dict[str, str]) -> None:
    handler.send_response(200)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(data)
