"""Sweeps: one notebook, run by papermill once for every setting of a grid, on this machine or on a cluster.

    python -m medvae_lite.sweep NOTEBOOK --grid gamma_reg=1,10,100 --grid seed=0,1,2 --set profile=smoke --out STUDY

STUDY then holds, for every setting, its notebook and a `.json` that says what became of it; the run records that were
trained, in `runs`; and `results.csv`, one row per setting and record. The same command again runs what is missing, what
failed, and what other code made.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import filelock
import jupytext
import nbformat
import numpy as np
import pandas as pd
import papermill
from nbformat import NotebookNode
from tqdm import tqdm
from traitlets.config import Config

from medvae_lite import runs
from medvae_lite.published import LEDGER

__all__ = ["Executor", "Setting", "gather", "run"]

log = logging.getLogger(__name__)

_PACKAGE = Path(runs.__file__).parent
_KINDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}
_FOLDERS = ("data_root", "runs_root")  # parameters that name a folder, relative to where the user stands
_STATES = ("done", "missing", "failed", "made by other code")
_TURN = threading.Lock()


@runtime_checkable
class Executor(Protocol):
    """Whatever takes work: a pool of this machine's, a Dask client, the queue of a cluster."""

    def submit(self, fn: Any, /, *args: Any) -> Any:
        """Starts `fn(*args)` somewhere. What it returns has `done()` and `result()`."""


@dataclass(frozen=True)
class Setting:
    """One run of the notebook.

    Arguments:
        parameters: Everything that is set, swept or fixed.
        swept: The names among them that the grid sweeps.
    """

    parameters: dict[str, Any]
    swept: tuple[str, ...]

    @property
    def title(self) -> str:
        """The swept parameters, as on the command line."""
        return ",".join(f"{name}={self.parameters[name]}" for name in self.swept)

    @property
    def slug(self) -> str:
        """Name of its files. Where records are kept is no part of it: a study may be moved."""
        readable = re.sub(r"[^A-Za-z0-9_.=,+-]", "-", self.title)[:80]
        return runs.run_name(readable, {k: v for k, v in self.parameters.items() if k != "runs_root"})


def run(
    notebook: str | Path,
    grid: Mapping[str, Any],
    out: str | Path,
    *,
    fixed: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Runs a notebook once for every setting of a grid, and gathers the results in `out`.

    The kernel works in the notebook's folder. Records go to `out/runs` unless `runs_root` is set. In a script, call it
    under `if __name__ == "__main__":`, because the workers are new processes.

    Arguments:
        notebook: An `.ipynb`, or a text that jupytext reads, with one cell tagged `parameters`.
        grid: Names of parameters and the values of each: int, float, bool or text. All combinations are run.
        out: Folder of the study. What it holds and still stands is not run again.
        fixed: Parameters with the same value in every setting.
        executor: Takes the work instead of this machine's processes. Its workers must see the notebook's folder and
            the folder of the records; each runs one setting at a time.
        workers: Processes of this machine; half the cores if None.
        progress: Whether to show a progress bar.

    Returns:
        One row per setting, in the grid's order: the swept parameters, `status` ("done" or "failed"), `ran` (False if it
        was done before) and the first line of the `error`. The index is the name of its files.

    Raises:
        ValueError: If a name or a value is none that the notebook takes, or `out` is taken; nothing is written then.
    """
    workers = max(1, (os.cpu_count() or 1) // 2) if workers is None else workers
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}")
    study = _Study.checked(Path(notebook), grid, fixed or {}, Path(out))
    with _alone(study.out):
        todo = study.todo()
        try:
            if executor is not None:
                study.work(todo, executor, None, len(todo), progress)
            elif todo:
                with _processes(workers) as pool:
                    study.work(todo, pool, max(1, (os.cpu_count() or 1) // workers), workers, progress)
        finally:  # also after Ctrl-C: what is finished can be read
            _write_results(study.out)
    rows = {}
    for setting in study.settings:
        outcome = _outcome(study.out / f"{setting.slug}.json") or {"status": "failed", "error": "its files are gone"}
        swept = {name: setting.parameters[name] for name in setting.swept}
        rows[setting.slug] = swept | {"status": outcome["status"], "ran": setting in todo, "error": outcome["error"]}
    return pd.DataFrame.from_dict(rows, orient="index")


def gather(out: str | Path) -> pd.DataFrame:
    """The results of a study: one row per finished setting and run record that it used.

    Records that hold no metrics (of feature networks, say) are left out. A setting that used no other has one row.

    Returns:
        The setting's parameters but for `runs_root`; `record` (name), `label`, `record_seed`, `config` (hash), `data`
        (hash), `code` (hash); then the record's metrics, with ``metric_`` before a name that is taken.

    Raises:
        ValueError: If no setting is finished.
        FileNotFoundError: If a record is no longer there.
    """
    out, rows = Path(out), []
    outcomes = [outcome for file in sorted(out.glob("*.json")) if (outcome := _outcome(file))]
    outcomes = [outcome for outcome in outcomes if outcome["status"] == "done"]
    if not outcomes:
        raise ValueError(f"{out} holds no finished setting; `python -m medvae_lite.sweep --help` says how to run some")
    for outcome in sorted(outcomes, key=_order):
        parameters = {name: value for name, value in outcome["parameters"].items() if name != "runs_root"}
        records = [runs.load_record(out / folder) for folder in outcome["records"]]
        known = [_facts(record) for record in records if record.metrics] or [({}, {})]
        for facts, metrics in known:
            taken = parameters | facts
            rows.append(taken | {f"metric_{k}" if k in taken else k: value for k, value in metrics.items()})
    return pd.DataFrame(rows)


def _facts(record: runs.RunRecord) -> tuple[dict, dict]:
    """What a record is, and its metrics."""
    config, name = record.config, record.folder.name
    facts = {"record": name, "label": name.rsplit("-", 1)[0], "record_seed": config.get("seed")}
    facts |= {"config": hashlib.sha256(runs.canonical(config).encode()).hexdigest()}
    return facts | {"data": config.get("data"), "code": record.manifest.get("code")}, record.metrics


def _order(outcome: dict) -> list[tuple]:
    """Sorts settings by their swept values, numbers as numbers."""
    return [(name, type(outcome["parameters"][name]).__name__, outcome["parameters"][name]) for name in outcome["swept"]]


def _write_results(out: Path) -> None:
    try:
        runs.write_atomically(out / "results.csv", gather(out).to_csv(index=False, lineterminator="\n"))
    except ValueError:
        (out / "results.csv").unlink(missing_ok=True)
    except FileNotFoundError as missing:
        log.warning("results.csv was not written: %s", missing)


def _outcome(file: Path) -> dict | None:
    """What became of a setting, or None where no file says so."""
    try:
        outcome = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) and {"status", "swept", "package_code"} <= set(outcome) else None


def _package_code() -> str:
    """Hash of the whole package as it is on disk now, which is what the next kernel imports."""
    return _code_of(tuple((file, file.stat().st_mtime_ns) for file in sorted(_PACKAGE.rglob("*.py"))))


@lru_cache(maxsize=1)
def _code_of(files: tuple[tuple[Path, int], ...]) -> str:
    return runs.code_hash(*(file.relative_to(_PACKAGE).with_suffix("").as_posix() for file, _ in files))


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")


# --- Before anything is written -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Study:
    """A notebook, its settings, and where they go."""

    path: Path
    notebook: NotebookNode
    settings: list[Setting]
    out: Path

    @classmethod
    def checked(cls, path: Path, grid: Mapping, fixed: Mapping, out: Path) -> _Study:
        """Refuses, in one sentence, what cannot be run."""
        path, out = path.resolve(), out.resolve()
        notebook = _read(path)
        defaults = _defaults(notebook, path)
        if not grid:
            raise ValueError(f"there is nothing to sweep: give the values of at least one of {', '.join(defaults)}")
        if both := set(grid) & set(fixed):
            raise ValueError(f"`{min(both)}` is both swept and set: give it once")
        given = {name: list(_values(name, values, defaults, path)) for name, values in grid.items()}
        given |= {name: list(_values(name, [value], defaults, path)) for name, value in fixed.items()}
        if "runs_root" in defaults and "runs_root" not in given:
            given["runs_root"] = [str(out / "runs")]
        settings = [Setting(dict(zip(given, values)), tuple(grid)) for values in itertools.product(*given.values())]
        if out.exists() and not out.is_dir():
            raise ValueError(f"`out` must be a folder for the study, got the file {out}")
        others = {outcome["notebook"] for file in out.glob("*.json") if (outcome := _outcome(file))}
        if foreign := {name for name in others if Path(name).stem != path.stem}:
            raise ValueError(f"{out} holds a sweep of {min(foreign)}: choose another folder for {path.name}")
        return cls(path, notebook, settings, out)

    @property
    def notebook_code(self) -> str:
        """Hash of the notebook's code cells."""
        code = "\0".join(cell.source for cell in self.notebook.cells if cell.cell_type == "code")
        return hashlib.sha256(code.encode()).hexdigest()

    def todo(self) -> list[Setting]:
        """The settings to be run; says why."""
        code = self.notebook_code, _package_code()
        states = [self._state(setting, code) for setting in self.settings]
        count = Counter(states)
        log.info(
            "%d settings: %d done before; to run: %d missing, %d failed, %d made by other code",
            len(states), *(count[state] for state in _STATES),
        )  # fmt: skip
        return [setting for setting, state in zip(self.settings, states) if state != "done"]

    def _state(self, setting: Setting, code: tuple[str, str]) -> str:
        outcome = _outcome(self.out / f"{setting.slug}.json")
        if outcome is None:
            return "missing"
        if outcome["status"] != "done":
            return "failed"
        if (outcome["notebook_code"], outcome["package_code"]) != code:
            return "made by other code"
        kept = [self.out / record / "metrics.json" for record in outcome["records"]]
        return "done" if all(file.is_file() for file in [*kept, self.out / f"{setting.slug}.ipynb"]) else "missing"

    def work(self, todo: list[Setting], executor: Executor, threads: int | None, limit: int, progress: bool) -> None:
        """Runs settings, at most `limit` at a time, and keeps each as it is finished."""
        waiting, running, failed = todo[::-1], {}, 0
        with tqdm(total=len(todo), disable=not progress, unit="setting") as bar:
            try:
                while waiting or running:
                    while waiting and len(running) < limit:
                        setting = waiting.pop()
                        running[executor.submit(_execute, self._job(setting, threads))] = setting
                    for future in [future for future in running if future.done()]:
                        failed += self._keep(running.pop(future), future) == "failed"
                        bar.set_postfix(failed=failed, refresh=False)
                        bar.update()
                    time.sleep(0.05)
            finally:
                for future in running:
                    getattr(future, "cancel", bool)()

    def _job(self, setting: Setting, threads: int | None) -> dict:
        """All that a worker needs, on whatever machine."""
        return {
            "notebook": nbformat.writes(self.notebook), "parameters": setting.parameters, "folder": str(self.path.parent),
            "threads": threads, "attempt": uuid.uuid4().hex,  # no cluster may answer with what it remembers
        }  # fmt: skip

    def _keep(self, setting: Setting, future: Any) -> str:
        """Writes what a worker handed back, the `.json` last: without it a setting has not been run."""
        try:
            outcome = future.result()
        except Exception as problem:  # the worker died, or the cluster lost it: the other settings go on
            outcome = _failure(f"{type(problem).__name__}: {_first_line(str(problem))}")
        if executed := outcome.pop("executed", ""):
            runs.write_atomically(self.out / f"{setting.slug}.ipynb", executed)
        inside = [Path(folder).is_relative_to(self.out) for folder in outcome["records"]]
        records = [os.path.relpath(f, self.out) if near else f for f, near in zip(outcome["records"], inside)]
        outcome |= {"records": records, "notebook": self.path.name, "notebook_code": self.notebook_code}
        outcome |= {"parameters": setting.parameters, "swept": list(setting.swept)}
        runs.write_atomically(self.out / f"{setting.slug}.json", json.dumps(outcome, indent=1, sort_keys=True) + "\n")
        return outcome["status"]


def _read(path: Path) -> NotebookNode:
    """A notebook without its outputs."""
    if not path.is_file():
        raise ValueError(f"there is no notebook {path}")
    try:
        notebook = nbformat.read(path, as_version=4) if path.suffix == ".ipynb" else jupytext.read(path)
    except Exception as problem:
        raise ValueError(f"{path} cannot be read as a notebook: {_first_line(str(problem))}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "language": "python", "display_name": "Python 3"})
    return notebook


def _defaults(notebook: NotebookNode, path: Path) -> dict[str, Any]:
    """The notebook's parameters and their defaults; None for one that is no literal."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "notebook.ipynb")
        nbformat.write(notebook, copy)
        found = papermill.inspect_notebook(copy)
    if not found:
        raise ValueError(f"{path.name} has no parameters: tag the cell that sets them `parameters`")
    return {name: _literal(parameter["default"]) for name, parameter in found.items()}


def _literal(text: str) -> Any:
    """The value that a text spells, or None."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return value if type(value) in _KINDS else None


def _values(name: str, values: Any, defaults: Mapping, path: Path) -> Iterator[Any]:
    """The values of one parameter, each of the kind of its default."""
    if name not in defaults:
        raise ValueError(f"`{name}` is no parameter of {path.name}; it has {', '.join(defaults)}")
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` must list its values, got {values!r}")
    default, seen = defaults[name], []
    for value in values:
        value = value.item() if isinstance(value, np.generic) else value
        # 1 and 1.0 are one weight, but two configurations.
        value = float(value) if type(default) is float and type(value) is int else value
        fits = type(value) in _KINDS if default is None else type(value) is type(default)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            kind = "text or a number" if default is None else f"{_KINDS[type(default)]}, like {default!r}"
            raise ValueError(f"`{name}` must be {kind}, got {value!r}")
        if name in _FOLDERS and value:
            value = str(Path(value).expanduser().resolve())
        if value in seen:
            raise ValueError(f"`{name}` lists {value!r} twice: list each value once")
        seen.append(value)
        yield value
    if not seen:
        raise ValueError(f"`{name}` has no values: list at least one")


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the study's folder; a lock whose process on this machine has died is taken over."""
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.SoftFileLock(out / ".sweep.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        holder = (out / ".sweep.lock").read_text().split() if (out / ".sweep.lock").is_file() else []
        who = f"process {holder[0]} on {holder[1]}" if len(holder) > 1 else "another process"
        raise ValueError(
            f"{who} is sweeping in {out}: wait for it or choose another folder; if it has died, remove .sweep.lock there"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of this machine's; if it is left by an exception, its processes are told to end."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# --- In a worker --------------------------------------------------------------------------------------------------


def _execute(job: dict) -> dict:
    """Runs one setting and hands back what is kept of it; writes nothing but the records that the notebook writes."""
    began = time.monotonic()
    # The working directory and the environment belong to the whole process: its threads take turns.
    with _TURN, tempfile.TemporaryDirectory() as scratch:
        given, done, ledger = Path(scratch, "given.ipynb"), Path(scratch, "done.ipynb"), Path(scratch, "ledger")
        given.write_text(job["notebook"])
        ledger.touch()
        outcome = _failure("") | {"status": "done"}
        # Sockets in a folder of their own: kernels started at the same moment may pick the same port.
        sockets = {} if os.name == "nt" else {"transport": "ipc", "ip": str(Path(scratch, "kernel"))}
        how = {"kernel_name": "python3", "progress_bar": False, "config": Config(KernelManager=sockets)}
        how["extra_arguments"] = ["--log-level=50"]  # a kernel that is told to end would speak of an interrupt
        try:
            with _environment(ledger, job["threads"]):
                papermill.execute_notebook(given, done, job["parameters"], cwd=job["folder"], **how)
        except papermill.PapermillExecutionError as failure:
            outcome |= _failure(f"{failure.ename}: {_first_line(failure.evalue)}")
        except Exception as failure:  # the kernel died or did not start
            outcome |= _failure(f"{type(failure).__name__}: {_first_line(str(failure))}")
        outcome["records"] = list(dict.fromkeys(ledger.read_text().splitlines()))
        outcome["executed"] = done.read_text() if done.is_file() else ""
    return outcome | {"seconds": round(time.monotonic() - began, 1)}


def _failure(error: str) -> dict:
    """What is known of a setting that did not come to its end."""
    return {
        "status": "failed", "error": error, "records": [], "seconds": None, "package_code": _package_code(),
        "versions": runs.environment() | {"papermill": papermill.__version__},
    }  # fmt: skip


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


# --- The command line ---------------------------------------------------------------------------------------------


def _assigned(texts: list[str], option: str) -> dict[str, str]:
    """NAME=TEXT pairs."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs):
        if not name or not equals:
            raise ValueError(f"`{option}` must be NAME=VALUE, got {text!r}")
        if [other for other, _, _ in pairs].count(name) > 1:
            raise ValueError(f"`{name}` is given twice: give it once, as {option} {name}=...")
    return {name: text for name, _, text in pairs}


def _typed(name: str, text: str, defaults: Mapping) -> Any:
    """A value from the command line: text where the default is text, otherwise what it spells."""
    if isinstance(defaults.get(name), str):
        return text
    value = _literal({"true": "True", "false": "False"}.get(text, text))
    return text if value is None else value


@contextlib.contextmanager
def _scheduler(address: str | None) -> Iterator[Executor | None]:
    """A client of the Dask scheduler at `address`; None for none."""
    if address is None:
        yield None
        return
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


def main(argv: list[str] | None = None) -> int:
    """The command line described at the top of this file; 0, or 1 if a setting failed."""
    parser = argparse.ArgumentParser(prog="python -m medvae_lite.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("notebook", type=Path, help="an .ipynb, or a text that jupytext reads")
    parser.add_argument("--grid", action="append", default=[], metavar="NAME=VALUE,...", help="sweep a parameter; repeat")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="the same in all; repeat")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes of this machine; default: half its cores")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786")
    args = parser.parse_args(argv)
    _show_log()
    try:
        grid, fixed = _assigned(args.grid, "--grid"), _assigned(args.set, "--set")
        defaults = _defaults(_read(args.notebook), args.notebook)
        swept = {name: [_typed(name, part, defaults) for part in text.split(",") if part] for name, text in grid.items()}
        constant = {name: _typed(name, text, defaults) for name, text in fixed.items()}
        with _scheduler(args.scheduler) as executor:
            table = run(args.notebook, swept, args.out, fixed=constant, executor=executor, workers=args.workers)
    except ValueError as refusal:
        raise SystemExit(str(refusal)) from None
    except KeyboardInterrupt:
        raise SystemExit(f"Stopped. What is finished is in {args.out}; the same command goes on from there.") from None
    failed = table[table["status"] == "failed"]
    print(f"{len(table) - len(failed)} of {len(table)} settings are done; their results are in {args.out / 'results.csv'}")
    for slug, row in failed.iterrows():
        print(f"failed: {slug}.ipynb: {row['error']}")
    return int(len(failed) > 0)


def _show_log() -> None:
    """Says on standard output what the package reports."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)


if __name__ == "__main__":
    # By its own name, so that other processes find what they are sent.
    raise SystemExit(importlib.import_module("medvae_lite.sweep").main())
