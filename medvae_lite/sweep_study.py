"""A study: the settings that a sweep is asked for, and what its folder holds of each."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import nbformat
from nbformat import NotebookNode

from medvae_lite import runs
from medvae_lite.sweep_notebook import checked_values, defaults, read_notebook
from medvae_lite.sweep_worker import failure, package_code

__all__ = ["STATES", "Setting", "Study", "alone", "outcomes"]

STATES = ("done", "missing", "failed", "made by other code")

_LOCK = ".sweep.lock"
# What every outcome on disk holds that is read again.
_KEPT = {"status", "error", "records", "parameters", "swept", "notebook", "notebook_code", "package_code"}


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


@dataclass(frozen=True)
class Study:
    """A notebook, its settings, and the folder they go to; `checked` makes one.

    Arguments:
        path: The notebook's file.
        notebook: Its cells, without outputs.
        settings: In the grid's order.
        out: The folder.
    """

    path: Path
    notebook: NotebookNode
    settings: list[Setting]
    out: Path

    @classmethod
    def checked(cls, path: Path, grid: Mapping, fixed: Mapping, out: Path) -> Study:
        """Of a grid and fixed parameters.

        Raises:
            ValueError: Saying in one sentence what cannot be run.
        """
        path, out = path.resolve(), out.resolve()
        notebook = read_notebook(path)
        known = defaults(notebook, path)
        if not grid:
            raise ValueError(f"there is nothing to sweep: give the values of at least one of {', '.join(known)}")
        if both := set(grid) & set(fixed):
            raise ValueError(f"`{min(both)}` is both swept and set: give it once")
        given = {name: list(checked_values(name, values, known, path)) for name, values in grid.items()}
        given |= {name: list(checked_values(name, [value], known, path)) for name, value in fixed.items()}
        if "runs_root" in known and "runs_root" not in given:
            given["runs_root"] = [str(out / "runs")]
        settings = [Setting(dict(zip(given, values)), tuple(grid)) for values in itertools.product(*given.values())]
        if out.exists() and not out.is_dir():
            raise ValueError(f"`out` must be a folder for the study, got the file {out}")
        others = {outcome["notebook"] for outcome in outcomes(out)}
        if foreign := {name for name in others if Path(name).stem != path.stem}:
            raise ValueError(f"{out} holds a sweep of {min(foreign)}: choose another folder for {path.name}")
        return cls(path, notebook, settings, out)

    @property
    def notebook_code(self) -> str:
        """Hash of the notebook's code cells."""
        code = "\0".join(cell.source for cell in self.notebook.cells if cell.cell_type == "code")
        return hashlib.sha256(code.encode()).hexdigest()

    def states(self) -> list[str]:
        """What stands of every setting today, each one of `STATES`."""
        code = self.notebook_code, package_code()
        return [self._state(setting, code) for setting in self.settings]

    def _state(self, setting: Setting, code: tuple[str, str]) -> str:
        outcome = self.outcome(setting)
        if outcome is None:
            return "missing"
        if outcome["status"] != "done":
            return "failed"
        if (outcome["notebook_code"], outcome["package_code"]) != code:
            return "made by other code"
        kept = [self.out / record / "metrics.json" for record in outcome["records"]]
        return "done" if all(file.is_file() for file in [*kept, self._file(setting, "ipynb")]) else "missing"

    def _file(self, setting: Setting, kind: str) -> Path:
        return self.out / f"{setting.slug}.{kind}"

    def outcome(self, setting: Setting) -> dict | None:
        """What became of a setting, or None where no file says so."""
        return _read_outcome(self._file(setting, "json"))

    def job(self, setting: Setting, threads: int | None) -> dict:
        """All that a worker needs, on whatever machine."""
        return {
            "notebook": nbformat.writes(self.notebook), "parameters": setting.parameters, "folder": str(self.path.parent),
            "threads": threads, "attempt": uuid.uuid4().hex,  # no cluster may answer with what it remembers
        }  # fmt: skip

    def keep(self, setting: Setting, future: Any) -> str:
        """Writes what a worker handed back, the `.json` last: without it a setting has not been run. Returns its status."""
        try:
            outcome = future.result()
        except Exception as problem:  # the worker died, or the cluster lost it: the other settings go on
            outcome = failure(problem)
        if executed := outcome.pop("executed"):
            runs.write_atomically(self._file(setting, "ipynb"), executed)
        else:  # one that lies there is of another time
            self._file(setting, "ipynb").unlink(missing_ok=True)
        outcome["records"] = [self._near(folder) for folder in outcome["records"]]
        outcome |= {"notebook": self.path.name, "notebook_code": self.notebook_code}
        outcome |= {"parameters": setting.parameters, "swept": list(setting.swept)}
        runs.write_atomically(self._file(setting, "json"), json.dumps(outcome, indent=1, sort_keys=True) + "\n")
        return outcome["status"]

    def _near(self, folder: str) -> str:
        """A folder within the study's is told from there, so that the study may be moved."""
        return os.path.relpath(folder, self.out) if Path(folder).is_relative_to(self.out) else folder


def outcomes(out: Path) -> list[dict]:
    """What became of every setting that was ever run in `out`."""
    return [outcome for file in sorted(out.glob("*.json")) if (outcome := _read_outcome(file))]


def _read_outcome(file: Path) -> dict | None:
    try:
        outcome = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) and set(outcome) >= _KEPT else None


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds the study's folder, made if need be; a lock whose process on this machine has died is taken over.

    Raises:
        ValueError: If another process holds it, or it cannot be written.
    """
    lock = filelock.SoftFileLock(out / _LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"{_holder(out)} is sweeping in {out}: wait for it or choose another folder; if it has died, remove {_LOCK} there"
        ) from None
    except OSError as problem:
        raise ValueError(f"`out` must be a folder that can be written, got {out}: {problem.strerror or problem}") from None
    try:
        yield
    finally:
        lock.release()


def _holder(out: Path) -> str:
    """Who a study's lock names."""
    try:
        process, host, *_ = (out / _LOCK).read_text().split()
    except (OSError, ValueError):  # released a moment ago, or empty
        return "another process"
    return f"process {process} on {host}"
