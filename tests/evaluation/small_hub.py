"""A folder of dataset repositories behind what the real hub answers to its client.

    with small_hub(folder) as endpoint:
        subprocess.run(…, env={"HF_ENDPOINT": endpoint, …})

`folder/<owner>/<name>/` holds a repository's files; what is not there is answered by 404.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers for datasets: what is in a repository, and its files."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """`/api/datasets/…` and `/datasets/…/resolve/…`."""
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            self.answer_about("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self.answer_file(self.folder.joinpath(*parts[1:3]), "/".join(parts[5:]))
        else:
            self.answer_missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """`/api/datasets/…/paths-info/…`: the files among those asked for."""
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = (
            json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        )
        repository = self.folder.joinpath(*parts[2:4])
        files = [repository / path for path in asked]
        self.answer_json([entry(repository, file) for file in files if file.exists()])

    def answer_about(self, name: str, rest: list[str]) -> None:
        """A repository's state, or the tree of its files."""
        repository = self.folder / name
        if not repository.is_dir():
            self.answer_missing("RepoNotFound")
        elif rest[:1] == ["tree"]:
            top = repository.joinpath(*rest[2:])
            if not top.is_dir():
                self.answer_missing("EntryNotFound")
                return
            recursive = "recursive=true" in self.path.lower()
            found = sorted(top.rglob("*") if recursive else top.iterdir())
            self.answer_json([entry(repository, file) for file in found])
        else:
            files = sorted(file for file in repository.rglob("*") if file.is_file())
            siblings = [{"rfilename": str(file.relative_to(repository))} for file in files]
            state = {"_id": name, "id": name, "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer_json({**state, "private": False, "disabled": False, "downloads": 0})

    def answer_file(self, repository: Path, path: str) -> None:
        """A file with the headers by which the client caches it."""
        file = repository / path
        if not file.is_file():
            self.answer_missing("EntryNotFound")
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self.answer(200, content, headers)

    def answer_json(self, content: Any) -> None:
        """What the API says."""
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer_missing(self, code: str) -> None:
        """A 404 with the hub's reason."""
        self.answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not on this hub"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Send headers, and the content unless only they were asked for."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


def entry(repository: Path, file: Path) -> dict[str, Any]:
    """A file or folder as the API lists it."""
    path = str(file.relative_to(repository))
    identifier = hashlib.sha1(path.encode()).hexdigest()
    if file.is_dir():
        return {"type": "directory", "oid": identifier, "size": 0, "path": path}
    return {"type": "file", "oid": identifier, "size": file.stat().st_size, "path": path}


@contextmanager
def small_hub(folder: Path) -> Iterator[str]:
    """Serve the repositories; yields the endpoint."""
    handler = type("FolderHandler", (Handler,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
