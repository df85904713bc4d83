"""The artifact store: a blob is whole and durable under its name, or it is not there."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import BlobCorrupt, BlobNotFound, StorageFull
from registry.storage import LocalStore, store_for

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()

# Stops for ever where the bytes are written and the name is not given yet.
KILLED_BEFORE_RENAME = """
import signal, sys
from pathlib import Path
from registry.storage import LocalStore
def halt(self, target):
    print("written", flush=True)
    signal.pause()
Path.replace = halt
LocalStore(Path(sys.argv[1])).put_file(Path(sys.argv[2]))
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "artifacts")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def test_a_blob_is_found_under_its_digest(store: LocalStore, file: Path) -> None:
    blob = store.put_file(file)
    assert (blob.sha256, blob.num_bytes) == (SHA256, len(CONTENT))
    assert store.put_file(file) == blob
    path = store.local_path(SHA256)
    assert path == store.root / "sha256" / SHA256[:2] / SHA256
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 10), (5, 6), (255_999, None), (7, 7)])
def test_a_range_is_exact(store: LocalStore, file: Path, start: int, end: int | None) -> None:
    store.put_file(file)
    assert b"".join(store.open_range(SHA256, start, end)) == CONTENT[start:end]


def test_a_writer_killed_before_the_rename_leaves_no_blob(store: LocalStore, file: Path) -> None:
    command = [sys.executable, "-c", KILLED_BEFORE_RENAME, str(store.root), str(file)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    assert not store.exists(SHA256)
    assert store.put_file(file).sha256 == SHA256


def test_a_flipped_bit_is_noticed_and_not_handed_on(
    store: LocalStore, file: Path, tmp_path: Path
) -> None:
    store.put_file(file)
    path = store.path_of(SHA256)
    path.write_bytes(CONTENT[:-1] + b"\x00")
    with pytest.raises(BlobCorrupt):
        store.fetch(SHA256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_is_not_there_is_not_found(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(BlobNotFound):
        store.fetch(SHA256, tmp_path / "copy")
    with pytest.raises(BlobNotFound):
        next(store.open_range(SHA256))
    assert store.local_path(SHA256) is None
    store.delete(SHA256)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, SHA256 + "/.."])
def test_a_name_that_is_no_digest_leads_nowhere(store: LocalStore, name: str) -> None:
    with pytest.raises(BlobNotFound):
        store.exists(name)


def test_a_full_disk_is_seen_before_writing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "artifacts", reserve_bytes=1 << 60)
    with pytest.raises(StorageFull, match="reserved"):
        store.require_space(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this container may not mount")
    try:
        large = tmp_path / "large"
        large.write_bytes(CONTENT)
        store = LocalStore(disk)
        with pytest.raises(StorageFull):
            store.put_file(large)
        assert not [path for path in disk.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_only_known_schemes_are_opened(tmp_path: Path) -> None:
    assert isinstance(store_for(f"file://{tmp_path}"), LocalStore)
    with pytest.raises(ValueError, match="ftp"):
        store_for("ftp://host/path")
