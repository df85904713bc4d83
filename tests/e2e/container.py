"""A command with what compose takes from it: no root, and nothing to write to but its volumes."""

import os
import shutil
import subprocess
from pathlib import Path

UID = 10001
"""Of the user that the images make."""

# The data directory, its neighbour for temporary files, and a root file system that is read-only.
# Reading stays allowed: this machine's interpreter may lie where only root looks.
_ENTER = """
mount --bind "$0/data" "$0/data"
mount -t tmpfs -o mode=1777 tmpfs "$0/tmp"
mount -o remount,bind,ro /
exec setpriv --reuid {uid} --regid {uid} --clear-groups --no-new-privs \
    --bounding-set=-all,+dac_read_search --inh-caps=-all,+dac_read_search \
    --ambient-caps=+dac_read_search "$@"
"""


def prepare(directory: Path) -> None:
    """Make the volumes, for that user alone."""
    for name in ("data", "tmp"):
        (directory / name).mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(directory / name, UID, UID)


def enter(directory: Path) -> list[str]:
    """What stands before a command to run it so; nothing where this machine forbids namespaces."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return []
    words = ["unshare", "--mount", "--propagation", "private"]
    words += ["sh", "-ec", _ENTER.format(uid=UID), str(directory)]
    probe = [*words, "sh", "-c", f"! touch {directory}/outside && touch {directory}/data/inside"]
    done = subprocess.run(probe, check=False, capture_output=True)
    return words if done.returncode == 0 else []
