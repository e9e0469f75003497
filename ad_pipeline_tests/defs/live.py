"""Live programs over a deployment: Dagster's webserver and daemon, and headless Chromium.

They are gone when their ``with`` ends. What they must show or do is for the tests to say, and for
``docs/pictures/remake.py``, which starts them too.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

REPOSITORY = Path(__file__).resolve().parents[2]

CHROMIUM_FLAGS = (
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Without the last four it looks up hosts of its maker at every start."""

PATIENCE_SECONDS = 120.0
"""For a server to answer: it takes half a minute when the machine is busy."""


@contextmanager
def webserver(environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Serve a deployment's UI, which can change nothing, and yield its address.

    Parameters
    ----------
    environment : mapping of str to str
        Names the dataset, the home and Dagster's home.
    log : Path
        Gets what the server prints.

    Raises
    ------
    RuntimeError
        If it does not answer in :data:`PATIENCE_SECONDS`; the message holds the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = ["dagster_webserver", "--read-only", "--port", str(port)]
    with started(command, environment, log) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _answers(f"{address}/server_info"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no UI at {address}:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield address


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``python -m ...`` on the project's workspace, and end it with all that it started.

    Parameters
    ----------
    command : sequence of str
        One that takes ``--workspace``.
    environment : mapping of str to str
    log : Path
        Gets both streams.
    """
    with log.open("wb") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--workspace", str(REPOSITORY / "workspace.yaml")],
            cwd=REPOSITORY,
            env=dict(environment),
            stdout=told,
            stderr=subprocess.STDOUT,
            # Code servers and runs are in the group too: one signal reaches them all.
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def chromium(
    width: int = 1600, height: int = 1200, scale: float = 1.0
) -> Iterator["BrowserContext"]:
    """Start headless Chromium with an empty profile.

    Raises
    ------
    RuntimeError
        If the machine has none; the message says how to install it.
    """
    executable = shutil.which("chromium")
    if executable is None:
        raise RuntimeError(
            "no chromium on this machine: apt-get install --no-install-recommends chromium "
            "(.ci/run does it)"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            args=list(CHROMIUM_FLAGS),
            viewport={"width": width, "height": height},
            device_scale_factor=scale,
        )
        context.set_default_timeout(30_000)
        try:
            yield context
        finally:
            context.close()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - our own server
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
