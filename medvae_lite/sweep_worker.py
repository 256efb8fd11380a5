"""What a worker of a sweep does, on whatever machine: it runs one setting in a kernel and hands back what came of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import papermill
from traitlets.config import Config

from medvae_lite import runs
from medvae_lite.published import LEDGER

__all__ = ["execute", "failure", "first_line", "package_code"]

_PACKAGE = Path(runs.__file__).parent
_TURN = threading.Lock()


def execute(job: dict) -> dict:
    """Runs one setting; writes nothing but the records that the notebook writes.

    Arguments:
        job: `notebook` (JSON), `parameters`, `folder` (where the kernel works) and `threads` (None: as it is).

    Returns:
        `status` ("done" or "failed"), `error` (its first line), `records` (folders), `executed` (the notebook with its
        outputs, JSON; empty if there is none), `seconds`, `package_code` and `versions`.
    """
    began = time.monotonic()
    # The working directory and the environment belong to the whole process: its threads take turns.
    with _TURN, tempfile.TemporaryDirectory() as scratch:
        given, done, ledger = Path(scratch, "given.ipynb"), Path(scratch, "done.ipynb"), Path(scratch, "ledger")
        given.write_text(job["notebook"])
        ledger.touch()
        outcome = _outcome("done", "", package_code())
        # Sockets in a folder of their own: kernels started at the same moment may pick the same port.
        sockets = {} if os.name == "nt" else {"transport": "ipc", "ip": str(Path(scratch, "kernel"))}
        how = {"kernel_name": "python3", "progress_bar": False, "config": Config(KernelManager=sockets)}
        how["extra_arguments"] = ["--log-level=50"]  # a kernel that is told to end would speak of an interrupt
        try:
            with _environment(ledger, job["threads"]):
                papermill.execute_notebook(given, done, job["parameters"], cwd=job["folder"], **how)
        except papermill.PapermillExecutionError as problem:
            outcome |= {"status": "failed", "error": f"{problem.ename}: {first_line(problem.evalue)}"}
        except Exception as problem:  # the kernel died or did not start
            outcome |= {"status": "failed", "error": f"{type(problem).__name__}: {first_line(str(problem))}"}
        outcome["records"] = list(dict.fromkeys(ledger.read_text().splitlines()))
        outcome["executed"] = done.read_text() if done.is_file() else ""
    return outcome | {"seconds": round(time.monotonic() - began, 1)}


def failure(problem: Exception) -> dict:
    """What `execute` would hand back of a setting whose worker is lost; by which code nobody knows, so `package_code` is ""."""
    return _outcome("failed", f"{type(problem).__name__}: {first_line(str(problem))}", "")


def _outcome(status: str, error: str, code: str) -> dict:
    return {
        "status": status, "error": error, "records": [], "executed": "", "seconds": None, "package_code": code,
        "versions": runs.environment() | {"papermill": papermill.__version__},
    }  # fmt: skip


def first_line(text: str) -> str:
    """The first line that says something."""
    return next(iter(text.strip().splitlines()), "")


def package_code() -> str:
    """Hash of the whole package as it is on disk now, which is what the next kernel imports."""
    return _code_of(tuple((file, file.stat().st_mtime_ns) for file in sorted(_PACKAGE.rglob("*.py"))))


@lru_cache(maxsize=1)
def _code_of(files: tuple[tuple[Path, int], ...]) -> str:
    return runs.code_hash(*(file.relative_to(_PACKAGE).with_suffix("").as_posix() for file, _ in files))


@contextlib.contextmanager
def _environment(ledger: Path, threads: int | None) -> Iterator[None]:
    """What kernels started within find in their environment."""
    # The tree's own package comes first, whatever is installed: it is the one whose hash is kept.
    paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = {LEDGER: str(ledger), "PYTHONPATH": os.pathsep.join(paths)}
    if threads and "OMP_NUM_THREADS" not in os.environ:
        wanted["OMP_NUM_THREADS"] = str(threads)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
