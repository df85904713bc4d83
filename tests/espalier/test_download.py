"""Downloads over a real socket from a server that breaks them."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from espalier.download import download_file
from espalier.errors import ChecksumMismatch, EspalierError, ServerUnreachable
from espalier.published import CheckpointFile

CONTENT = bytes(range(256)) * 1000
FILE = CheckpointFile(
    path="sub/weights.bin", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()
)


class Server(ThreadingHTTPServer):
    """Serves `content` with ranges; each answer is cut off after the next number of `cuts`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        body = self.server.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing on stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    host, port = server.server_address[:2]
    with httpx.Client(base_url=f"http://{host!s}:{port}", trust_env=False) as client:
        yield client


def test_a_broken_download_goes_on_where_it_stopped(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    server.cuts = [1000, 50_000]  # then whole
    path = download_file(http, "/file", FILE, tmp_path, None)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=51000-"]


def test_a_connection_that_keeps_breaking_but_goes_on_is_not_given_up(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    server.cuts = [20_000, 0, 0] * 12
    path = download_file(http, "/file", FILE, tmp_path, None)
    assert path.read_bytes() == CONTENT
    assert len(server.ranges) > 30


def test_a_part_left_by_another_process_is_continued(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin.part").write_bytes(CONTENT[:7])
    download_file(http, "/file", FILE, tmp_path, None)
    assert server.ranges == ["bytes=7-"]


def test_a_bad_part_is_thrown_away_and_fetched_anew(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin.part").write_bytes(b"not what it was")
    path = download_file(http, "/file", FILE, tmp_path, None)
    assert path.read_bytes() == CONTENT


def test_a_whole_file_is_not_fetched_again(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    download_file(http, "/file", FILE, tmp_path, None)
    download_file(http, "/file", FILE, tmp_path, None)
    assert len(server.ranges) == 1


def test_a_wrong_file_never_gets_its_name(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(ChecksumMismatch):
        download_file(http, "/file", FILE, tmp_path, None)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_server_that_always_breaks_is_given_up(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    server.cuts = [10, *[0] * 20]
    with pytest.raises(ServerUnreachable):
        download_file(http, "/file", FILE, tmp_path, None)
    assert len(server.ranges) < 10


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "a\\b", ""])
def test_a_server_cannot_choose_a_place_outside(
    name: str, http: httpx.Client, tmp_path: Path
) -> None:
    file = FILE.model_copy(update={"path": name})
    with pytest.raises(EspalierError):
        download_file(http, "/file", file, tmp_path / "inside", None)
    assert not (tmp_path / "inside").exists()
