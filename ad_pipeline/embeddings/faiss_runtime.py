"""FAISS as this room uses it: looked for, never demanded, and in one thread where it learns.

It sums in the order of its threads, so that what is fitted with several has other last bits each
time. What is fitted does not belong here.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def has_faiss() -> bool:
    """Tell whether FAISS is installed; it is in the extra ``embeddings``."""
    return importlib.util.find_spec("faiss") is not None


@contextmanager
def in_one_thread() -> Iterator[Any]:
    """Give FAISS, with one thread until the block ends.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed.
    """
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(threads)
