"""What large cohorts need: all cores, with results in order, and pages let go of once they are written."""

from __future__ import annotations

import mmap
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import joblib
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor

__all__ = ["in_order", "let_go", "processes"]

T, R = TypeVar("T"), TypeVar("R")


def processes(workers: int | None, tasks: int, least: int) -> int:
    """How many processes to work with.

    Args:
        workers: as asked for; None for all cores where there is enough to do (no more than ``$LOKY_MAX_CPU_COUNT``, if set).
        tasks: how many there are.
        least: fewest tasks that are enough: with fewer, starting processes takes longer than they save.

    Raises:
        ValueError: if `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}.")
    if multiprocessing.current_process().daemon:  # which may not have processes of its own
        return 1
    if workers is None:
        # joblib counts the cores that this process may use: those it is pinned to, or its container is granted.
        workers = joblib.cpu_count() if tasks >= least else 1
    return max(1, min(workers, tasks))


def in_order(work: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """`work` of every item, in their order, by several processes. Close it to stop early.

    The processes do not run the caller's script again: it needs no ``if __name__ == "__main__"``, and a notebook none either.
    """
    if workers == 1:
        yield from map(work, items)
        return
    # Ctrl-C is for the parent: it lets running work end and drops the rest. Each process computes with one thread, as there is
    # one for every core.
    pool = ProcessPoolExecutor(
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN), env={"OMP_NUM_THREADS": "1"}
    )
    waiting = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == 2 * workers:  # results that nobody has taken yet are in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for result in waiting:
            result.cancel()
        pool.shutdown()


def let_go(*arrays: np.ndarray | None) -> None:
    """Lets go of the pages of memory-mapped files written so far, where the system can; they are in the files."""
    for array in arrays:
        if isinstance(getattr(array, "base", None), mmap.mmap) and hasattr(array.base, "madvise"):
            array.base.madvise(mmap.MADV_DONTNEED)
