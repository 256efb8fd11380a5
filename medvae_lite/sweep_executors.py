"""Where the settings of a sweep run: on this machine's processes, or on the cluster of a Dask scheduler."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, runtime_checkable

__all__ = ["Executor", "processes", "scheduler"]


@runtime_checkable
class Executor(Protocol):
    """Whatever takes work: a pool of this machine's, a Dask client, the queue of a cluster."""

    def submit(self, fn: Any, /, *args: Any) -> Any:
        """Starts `fn(*args)` somewhere. What it returns has `done()` and `result()`."""


class _Processes:
    """Processes of this machine, each in a pool of its own: one that is killed takes no other's setting with it."""

    def __init__(self, workers: int):
        self.pools = [_pool() for _ in range(workers)]
        self.latest: list[Future | None] = [None] * workers

    def submit(self, fn: Any, /, *args: Any) -> Future:
        """Starts `fn(*args)` on a process that is idle; there must be one."""
        idle = next(place for place, future in enumerate(self.latest) if future is None or future.done())
        try:
            self.latest[idle] = self.pools[idle].submit(fn, *args)
        except BrokenProcessPool:  # its process was killed
            self.pools[idle] = _pool()
            self.latest[idle] = self.pools[idle].submit(fn, *args)
        return self.latest[idle]


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """That many processes of this machine; if they are left by an exception, they are told to end."""
    before = set(multiprocessing.active_children())
    executor = _Processes(workers)
    try:
        yield executor
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        for pool in executor.pools:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def scheduler(address: str) -> Iterator[Executor]:
    """A client of the Dask scheduler at `address`.

    Raises:
        ValueError: If Dask is not installed, or no scheduler answers within ten seconds.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("`--scheduler` needs Dask: pip install 'medvae-lite[sweep]'") from None
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TypeError):
        raise ValueError(f"no Dask scheduler answers at {address!r}: start one with `dask scheduler`") from None
    with client:
        yield client
