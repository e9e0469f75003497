"""A disk without room, made small on purpose: what a writer meets when it is full.

Two ways, since neither works everywhere or shows everything. A limit on the size of a file holds
for any user and fails a write half-way (EFBIG). A small file system of one's own is really full
(ENOSPC), folders and renames included, but needs a kernel that lets a user mount one.
"""

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size, bytes; it may again afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def can_mount() -> bool:
    """Return whether a file system of one's own can be mounted here."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    mount = [unshare, "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def run_on_small_disk(folder: Path, size: str, script: str) -> str:
    """Run a Python script with ``folder`` as a file system of some size; return what it printed.

    Parameters
    ----------
    folder : Path
        Exists; the script gets it as its first argument. What is written there is gone afterwards.
    size : str
        As mount takes it, as in ``1m``.
    script : str
    """
    mount = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && exec "$3" -c "$4" "$2"'
    ran = subprocess.run(
        [
            *(shutil.which("unshare") or "unshare", "-rm", "/bin/sh", "-c", mount, "sh"),
            *(size, str(folder), sys.executable, script),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
