"""Log lines carry ids and no secrets."""

import json
import logging
import sys

import pytest

from registry import logs
from registry.logs import HIDDEN, redact

CANARIES = [
    "pk_0123456789ab_" + "c" * 48,
    "hf_" + "aB3" * 11,
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "AKIAIOSFODNN7EXAMPLE",
]


def line_of(message: str, *args: object, error: bool = False, **extra: object) -> dict[str, object]:
    """What a JSON handler writes of one record."""
    info = None
    if error:
        try:
            raise ValueError(message)
        except ValueError:
            info = sys.exc_info()
    record = logging.LogRecord("test", logging.INFO, "f.py", 1, message, args, info)
    record.__dict__.update(extra)
    line: dict[str, object] = json.loads(logs.formatter("json").format(record))
    return line


def test_ids_of_the_block_are_on_every_line() -> None:
    with logs.bound(job_id="job_1", fence=3), logs.bound(attempt=2):
        line = line_of("increment %d committed", 4)
    assert line.pop("ts")
    assert line == {
        "event": "increment 4 committed",
        "level": "info",
        "logger": "test",
        "job_id": "job_1",
        "fence": 3,
        "attempt": 2,
    }


def test_what_is_no_whole_text_loses_no_line() -> None:
    assert line_of("got it", part="\ud800", raw=b"\xff")["part"] == "\ud800"


@pytest.mark.parametrize("canary", CANARIES)
def test_a_secret_is_in_no_part_of_a_line(canary: str) -> None:
    with logs.bound(header=f"Bearer {canary}"):
        lines = [
            line_of("got %s here", canary),
            line_of(f"failed with {canary}", error=True),
            line_of("extra", detail={"deep": [f"({canary})"]}),
        ]
    assert canary not in json.dumps(lines)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:pa55@host/db", f"postgresql://{HIDDEN}@host/db"),
        ("redis://:pa55@host", f"redis://{HIDDEN}@host"),
        ("http://host:8000/a@b", "http://host:8000/a@b"),
        ("/files/model?expires=1&signature=abc-123", f"/files/model?expires=1&signature={HIDDEN}"),
    ],
)
def test_urls_lose_their_passwords_only(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_what_is_named_like_a_secret_is_hidden_whatever_it_is() -> None:
    said = {"api_key": 1, "Authorization": "x", "hf_token": "y", "num_tokens": 5, "key": "k"}
    assert redact(said) == {
        **dict.fromkeys(("api_key", "Authorization", "hf_token"), HIDDEN),
        "num_tokens": 5,
        "key": "k",
    }
