"""Where a client finds its server and key."""

import stat
from pathlib import Path

import pytest

from espalier.connection import (
    DEFAULT_URL,
    LocalServer,
    find_connection,
    read_key,
    remove_local_server,
    write_key,
    write_local_server,
)


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ESPALIER_URL", "ESPALIER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ESPALIER_DATA_DIR", str(tmp_path))
    return tmp_path


def test_the_server_of_this_machine_is_found_with_its_key(data_dir: Path) -> None:
    write_local_server(data_dir, LocalServer(url="http://127.0.0.1:4321", pid=1))
    write_key(data_dir, "pk_local")
    found = find_connection()
    assert (found.url, found.api_key) == ("http://127.0.0.1:4321", "pk_local")


def test_the_local_key_is_not_sent_to_another_server(data_dir: Path) -> None:
    write_local_server(data_dir, LocalServer(url="http://127.0.0.1:4321", pid=1))
    write_key(data_dir, "pk_local")
    assert find_connection("https://elsewhere.example").api_key is None


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_URL", "http://environment")
    monkeypatch.setenv("ESPALIER_API_KEY", "pk_environment")
    assert find_connection("http://argument/", "pk_argument").url == "http://argument"
    assert find_connection().api_key == "pk_environment"


def test_without_a_server_the_default_address_is_used() -> None:
    assert find_connection().url == DEFAULT_URL


def test_only_the_owner_can_read_the_key(data_dir: Path) -> None:
    write_key(data_dir, "pk_one")
    write_key(data_dir, "pk_two")
    assert stat.S_IMODE((data_dir / "admin.key").stat().st_mode) == 0o600
    assert read_key(data_dir) == "pk_two"


def test_a_stopped_server_is_not_found(data_dir: Path) -> None:
    write_local_server(data_dir, LocalServer(url="http://127.0.0.1:4321", pid=1))
    remove_local_server(data_dir)
    assert find_connection().url == DEFAULT_URL
