"""JAX as this project uses it: imported where something is learnt, with as many threads everywhere.

XLA divides some sums among its threads and adds the parts, so their number is part of the result.
It is set to :data:`THREADS` whatever the machine has, if JAX has not been used in this process
before. Another kind of processor, or another JAX, gives other last bits. What is computed does not
belong here.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

THREADS = 2
"""XLA's, on every machine."""

_THREADS_VARIABLE = "PJRT_NPROC"


def is_installed() -> bool:
    """Tell whether JAX is there, without importing it."""
    return importlib.util.find_spec("jax") is not None


def jax_or(missing: Callable[[], ImportError]) -> Any:
    """Return JAX, its threads set.

    Parameters
    ----------
    missing : callable
        Makes the error that says who needs JAX and how to install it.

    Raises
    ------
    ImportError
        What ``missing`` makes, if JAX is not installed.
    """
    os.environ.setdefault(_THREADS_VARIABLE, str(THREADS))
    try:
        import jax
    except ImportError as error:
        raise missing() from error
    return jax
