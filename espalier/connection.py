"""Where the server is and which key opens it: arguments, environment, or this machine's own."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

DEFAULT_URL = "http://127.0.0.1:8000"
_SERVER_FILE = "server.json"
_KEY_FILE = "admin.key"


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An address and a key."""

    url: str
    api_key: str | None


class LocalServer(BaseModel):
    """What `espalier up` leaves in its data directory while it runs."""

    url: str
    pid: int


def default_data_dir() -> Path:
    """`ESPALIER_DATA_DIR`, or `espalier` in the user's data directory."""
    if given := os.environ.get("ESPALIER_DATA_DIR"):
        return Path(given)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "espalier"


def find_connection(url: str | None = None, api_key: str | None = None) -> Connection:
    """Arguments first, then `ESPALIER_URL` and `ESPALIER_API_KEY`, then the server of this machine.

    The key of the local data directory is only ever sent to the local server.
    """
    data_dir = default_data_dir()
    local = read_local_server(data_dir)
    url = url or os.environ.get("ESPALIER_URL") or (local.url if local else DEFAULT_URL)
    api_key = api_key or os.environ.get("ESPALIER_API_KEY")
    if api_key is None and local is not None and url == local.url:
        api_key = read_key(data_dir)
    return Connection(url=url.rstrip("/"), api_key=api_key)


def read_local_server(data_dir: Path) -> LocalServer | None:
    """The server that runs on this data directory, if one says so."""
    try:
        return LocalServer.model_validate_json((data_dir / _SERVER_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def write_local_server(data_dir: Path, server: LocalServer) -> None:
    """Leave the address for commands run on this machine."""
    (data_dir / _SERVER_FILE).write_text(server.model_dump_json(), encoding="utf-8")


def remove_local_server(data_dir: Path) -> None:
    """Nobody serves this data directory any more."""
    (data_dir / _SERVER_FILE).unlink(missing_ok=True)


def read_key(data_dir: Path) -> str | None:
    """The first admin key of a data directory, if this user may read it."""
    try:
        return (data_dir / _KEY_FILE).read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def write_key(data_dir: Path, secret: str) -> None:
    """Keep the first admin key, readable by its owner alone from the first byte on."""
    path = data_dir / _KEY_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
