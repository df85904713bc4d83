"""Keeping the service's data: the command line against a real, small one."""

import json
import os
import subprocess
import sys
from pathlib import Path


def espalier(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "espalier", *words],
        env={**os.environ, "ESPALIER_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_service_is_checked_backed_up_and_restored(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    subprocess.run(
        [sys.executable, "-m", "registry", "create-key"],
        env={**os.environ, "ESPALIER_DATA_DIR": str(_migrated(here))},
        check=True,
        capture_output=True,
    )
    assert espalier(here, "backup", str(tmp_path / "backup")).returncode == 0
    again = espalier(here, "backup", str(tmp_path / "backup"))
    assert again.returncode == 1
    assert "not empty" in again.stderr
    restored = espalier(there, "restore", str(tmp_path / "backup"), "--verify", "--json")
    said, checked = map(json.loads, restored.stdout.splitlines())
    assert said["rows"]["api_keys"] == 1
    assert checked["sound"]
    assert "1 api_keys" in espalier(there, "backup", str(tmp_path / "again")).stdout


def _migrated(data_dir: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "registry", "migrate"],
        env={**os.environ, "ESPALIER_DATA_DIR": str(data_dir)},
        check=True,
        capture_output=True,
    )
    return data_dir
