"""A model on a hub that is away, or that says no."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from pruning.errors import HubUnavailable, ModelGated, ModelNotFound, PruningError
from pruning.models.load import load_base_model
from pruning.recipe_parts.model import HubModel
from tests.servers import free_port


@contextmanager
def hub_that_says(status: int, code: str) -> Iterator[str]:
    """The address of a hub with one answer to everything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815  # The name that http.server asks for.

        def log_message(self, *_: Any) -> None:
            """Nothing: requests are no news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refusal(patch: pytest.MonkeyPatch, address: str, cache: Path) -> PruningError:
    patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    with pytest.raises(PruningError) as caught:
        load_base_model(HubModel(id="org/model"), dtype=torch.float32)
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "kind", "retryable"),
    [
        (401, "GatedRepo", ModelGated, False),
        (403, "GatedRepo", ModelGated, False),
        (404, "RepoNotFound", ModelNotFound, False),
        (404, "RevisionNotFound", ModelNotFound, False),
        (500, "", HubUnavailable, True),
    ],
)
def test_only_a_hub_that_does_not_answer_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: int,
    code: str,
    kind: type[PruningError],
    retryable: bool,
) -> None:
    with hub_that_says(status, code) as address:
        error = refusal(monkeypatch, address, tmp_path)
    assert (type(error), error.retryable) == (kind, retryable)


def test_a_hub_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = refusal(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path)
    assert (type(error), error.retryable) == (HubUnavailable, True)
