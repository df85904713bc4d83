"""The secret of this installation: what it signs with is derived from it, each thing apart."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

_SECRET_BYTES = 32


def installation_secret(data_dir: Path, given: str | None) -> bytes:
    """`given`, or what was made once in `data_dir`; every process must have the same."""
    if given is not None:
        return given.encode()
    path = data_dir / "session-secret"
    if not path.exists():
        _write_once(path, secrets.token_hex(_SECRET_BYTES))
    return path.read_bytes()


def _write_once(path: Path, text: str) -> None:
    """Create the file whole or leave the one another process made first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".session-secret-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(name)
    finally:
        Path(name).unlink()
