"""Identifiers: a prefix that names the kind, then a UUIDv7 in hex, so that ids sort by creation."""

import secrets
import time

PREFIXES = (
    "ten",
    "key",
    "job",
    "ckpt",
    "eval",
    "evt",
    "msg",
    "wrk",
    "file",
    "mdl",
    "wh",
    "dlv",
    "cred",
    "aud",
    "play",
)


def new_id(prefix: str) -> str:
    """A fresh id such as `job_0193f0…` (RFC 9562, version 7: milliseconds, then random bits)."""
    milliseconds = time.time_ns() // 1_000_000
    random_a = secrets.randbits(12)
    random_b = secrets.randbits(62)
    value = milliseconds << 80 | 0x7 << 76 | random_a << 64 | 0b10 << 62 | random_b
    return f"{prefix}_{value:032x}"
