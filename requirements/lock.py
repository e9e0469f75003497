"""Compile `requirements/*.lock` from `pyproject.toml`, or say that they are out of date.

A lock pins every package with its hashes for all platforms and names no index, so that it installs
from whatever mirror pip is set up with. The head of a lock holds two digests: one of the
dependency tables that it was compiled from and one of its own body. `--check` compares both, so it
needs no network and gives the same answer whatever PyPI has published since. (Compiling again and
comparing would fail on the day a pinned release is withdrawn, with no change on our side.)

What to install where belongs in the Makefile, not here.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Lock name -> dependency groups beside the project's own dependencies. In this order: the second
#: takes the pins of the first as constraints, so that both can be installed into one environment.
GROUPS = {"runtime": ("build",), "dev": ("build", "dev")}

UV_FLAGS = ("--universal", "--generate-hashes", "--no-header", "--no-config", "--quiet")


def inputs_digest(pyproject: Path, name: str) -> str:
    """Digest everything that a lock's pins follow from.

    Parameters
    ----------
    pyproject : Path
        The file that declares the dependencies.
    name : str
        The lock, a key of `GROUPS`.

    Returns
    -------
    str
        SHA-256 in hex. Comments and the order of keys do not change it.
    """
    document = tomllib.loads(pyproject.read_text())
    project, groups = document["project"], document["dependency-groups"]
    inputs = {
        "requires-python": project["requires-python"],
        "dependencies": project["dependencies"],
        "build": document["build-system"]["requires"],
        # A group may include others, so the development lock follows from all of them.
        "groups": groups
        if "dev" in GROUPS[name]
        else {group: groups[group] for group in GROUPS[name]},
        "compiled with": [*GROUPS[name], *UV_FLAGS],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def header(pyproject: Path, name: str, body: str) -> str:
    """Return the head that the lock `name` must start with if `body` is its body."""
    return (
        f"# From `make lock`. To install: pip install --no-deps --require-hashes -r {name}.lock\n"
        f"# inputs {inputs_digest(pyproject, name)}\n"
        f"# body   {hashlib.sha256(body.encode()).hexdigest()}\n"
    )


def out_of_date(pyproject: Path, folder: Path) -> list[str]:
    """Say which locks do not belong to a `pyproject.toml`.

    Parameters
    ----------
    pyproject : Path
        The file that declares the dependencies.
    folder : Path
        Where the locks are.

    Returns
    -------
    list of str
        One sentence for each lock that is missing, stale or edited by hand; empty if all is well.
    """
    problems = []
    for name in GROUPS:
        path = folder / f"{name}.lock"
        if not path.exists():
            problems.append(f"{path} is missing: run `make lock`")
            continue
        head, body = _split(path.read_text())
        written, expected = head.splitlines(), header(pyproject, name, body).splitlines()
        if written[1:2] != expected[1:2]:
            problems.append(
                f"{path} is older than the dependencies in {pyproject}: run `make lock`"
            )
        elif written != expected:
            problems.append(f"{path} was edited by hand or merged: run `make lock`")
    return problems


def compile_locks(pyproject: Path, folder: Path, upgrade: bool) -> None:
    """Write every lock anew; pins that still fit are kept unless `upgrade`.

    Parameters
    ----------
    pyproject : Path
        The file that declares the dependencies.
    folder : Path
        Where the locks are written.
    upgrade : bool
        Take the newest version of every package.

    Raises
    ------
    subprocess.CalledProcessError
        If uv finds no set of versions; it prints why.
    """
    for name, groups in GROUPS.items():
        path = folder / f"{name}.lock"
        # uv takes the existing file as its preference, hashes too.
        command = ["uv", "pip", "compile", *UV_FLAGS, pyproject.name]
        command += ["--output-file", str(path)]
        command += [part for group in groups for part in ("--group", group)]
        command += ["--upgrade"] if upgrade else []
        if name != "runtime":
            command += ["--constraint", str(folder / "runtime.lock")]
        subprocess.run([sys.executable, "-m", *command], cwd=pyproject.parent, check=True)
        _, body = _split(path.read_text())
        path.write_text(header(pyproject, name, body) + body)


def _split(text: str) -> tuple[str, str]:
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:start]), "".join(lines[start:])


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Compile or check the locks.")
    parser.add_argument(
        "--check", action="store_true", help="only say whether the locks are current"
    )
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    pyproject, folder = ROOT / "pyproject.toml", ROOT / "requirements"
    if not arguments.check:
        compile_locks(pyproject, folder, arguments.upgrade)
    problems = out_of_date(pyproject, folder)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
