"""Where the server is and which key opens it: arguments, environment, or this machine's own."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

DEFAULT_URL = "http://127.0.0.1:8000"
_SERVER_FILE = "server.json"
_KEY_FILE = "admin.key"


class Connection(BaseModel):
    """An address and a key."""

    model_config = ConfigDict(frozen=True)

    url: str
    api_key: str | None = Field(repr=False)


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
    """Arguments first, then `ESPALIER_URL` and `ESPALIER_API_KEY`, then what `espalier login` kept,
    then the server of this machine.

    A key that was kept for one server is never sent to another.
    """
    data_dir = default_data_dir()
    local, kept = read_local_server(data_dir), read_login()
    url = url or os.environ.get("ESPALIER_URL")
    if url is None:
        url = kept.url if kept else local.url if local else DEFAULT_URL
    url = url.rstrip("/")
    api_key = api_key or os.environ.get("ESPALIER_API_KEY")
    if api_key is None and kept is not None and url == kept.url:
        api_key = kept.api_key
    if api_key is None and local is not None and url == local.url:
        api_key = read_key(data_dir)
    return Connection(url=url, api_key=api_key)


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
    _write_privately(data_dir / _KEY_FILE, secret + "\n")


def _write_privately(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


# --- what `espalier login` keeps ------------------------------------------------------------------


def _login_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "espalier" / "login.json"


def read_login() -> Connection | None:
    """What `espalier login` kept, if it did."""
    try:
        return Connection.model_validate_json(_login_path().read_bytes())
    except (OSError, ValidationError):
        return None


def keep_login(connection: Connection) -> Path:
    """Keep an address and a key, readable by this user alone; where."""
    path = _login_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_privately(path, connection.model_dump_json() + "\n")
    return path


def forget_login() -> None:
    """Keep neither any longer."""
    _login_path().unlink(missing_ok=True)
