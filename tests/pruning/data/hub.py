"""A hub on this machine, as much of one as `datasets` asks for when it streams."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

COMMIT = "a" * 40
TOKEN = "hf_of_a_member"
Repositories = Mapping[str, Mapping[str, bytes]]


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: ClassVar[Repositories]
    gated: ClassVar[frozenset[str]]

    def log_message(self, *args: Any) -> None:
        """Nothing: requests are no news."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = "/".join(path.split("/datasets/")[-1].split("/")[:2])
        files = self.repositories.get(name)
        if files is None:
            self._answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif name in self.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, headers={"X-Error-Code": "GatedRepo"})
        elif "/resolve/" in path:
            self._send_file(files.get(path.split("/resolve/")[1].partition("/")[2]))
        elif "/tree/" in path:
            listed = [
                {"type": "file", "path": one, "size": len(content), "oid": "b" * 40}
                for one, content in files.items()
            ]
            self._send_json([] if path.endswith("/data") else listed)
        else:
            siblings = [{"rfilename": one} for one in files]
            self._send_json({"id": name, "sha": COMMIT, "siblings": siblings, "gated": False})

    do_HEAD = do_GET  # noqa: N815  # The name that http.server asks for.

    def _send_file(self, content: bytes | None) -> None:
        if content is None:
            self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("range")
        if wanted is None:
            self._answer(200, content, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        end = min(int(last or len(content)), len(content) - 1)
        span = {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
        self._answer(206, content[int(first) : end + 1], {**headers, **span})

    def _send_json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def local_hub(repositories: Repositories, *, gated: frozenset[str]) -> Iterator[str]:
    """The address of a hub with these datasets; those `gated` are for members."""
    handler = type("Hub", (_Hub,), {"repositories": repositories, "gated": gated})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
