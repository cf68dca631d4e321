"""Threads: one task a core, each with one BLAS thread.

Matrices of one sublayer are independent, so a core each wastes nothing, while threads inside one small product mostly wait
for each other. Results also stop depending on the number of BLAS threads.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Has the signature of the built-in `map`; results come in order."""


def n_cores() -> int:
    """Cores that this process may use; `WHORL_THREADS` overrides."""
    wanted = os.environ.get("WHORL_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def single_threaded() -> Iterator[None]:
    """One BLAS and OpenMP thread: products of fingerprint size are slower on several, many times so on a busy machine."""
    import scipy.linalg  # noqa: F401 - only libraries that are loaded can be limited
    import sklearn.cluster  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


@contextmanager
def cores() -> Iterator[Map]:
    """A parallel `map` over the cores, with one BLAS and OpenMP thread in each task."""
    import scipy.linalg  # noqa: F401 - only libraries that are loaded can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), ThreadPoolExecutor(n_cores(), "whorl") as pool:
        yield pool.map
