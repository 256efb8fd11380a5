"""Sweeps: one notebook, run by papermill once for every setting of a grid, on this machine or on a cluster.

    python -m medvae_lite.sweep NOTEBOOK --grid gamma_reg=1,10,100 --grid seed=0,1,2 --set profile=smoke --out STUDY

STUDY then holds, for every setting, its notebook and a `.json` that says what became of it; the run records that were
trained, in `runs`; and `results.csv`, one row per setting and record. The same command again runs what is missing, what
failed, and what other code made.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from medvae_lite import runs
from medvae_lite.sweep_executors import Executor, processes, scheduler
from medvae_lite.sweep_notebook import defaults, literal, read_notebook
from medvae_lite.sweep_study import STATES, Setting, Study, alone, outcomes
from medvae_lite.sweep_worker import execute

__all__ = ["Executor", "Setting", "gather", "run"]

log = logging.getLogger(__name__)


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
    cores = os.cpu_count() or 1
    workers = max(1, cores // 2) if workers is None else workers
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}")
    study = Study.checked(Path(notebook), grid, fixed or {}, Path(out))
    with alone(study.out):
        states = study.states()
        _say(states)
        todo = [setting for setting, state in zip(study.settings, states) if state != "done"]
        try:
            if executor is not None:
                _work(study, todo, executor, threads=None, limit=len(todo), progress=progress)
            elif todo:
                with processes(workers) as pool:
                    _work(study, todo, pool, threads=max(1, cores // workers), limit=workers, progress=progress)
        finally:  # also after Ctrl-C: what is finished can be read
            _write_results(study.out)
    rows = {}
    for setting, state in zip(study.settings, states):
        outcome = study.outcome(setting) or {"status": "failed", "error": "its files are gone"}
        swept = {name: setting.parameters[name] for name in setting.swept}
        rows[setting.slug] = swept | {"status": outcome["status"], "ran": state != "done", "error": outcome["error"]}
    return pd.DataFrame.from_dict(rows, orient="index")


def _say(states: list[str]) -> None:
    """Why which settings are run."""
    count = Counter(states)
    log.info(
        "%d settings: %d done before; to run: %d missing, %d failed, %d made by other code",
        len(states), *(count[state] for state in STATES),
    )  # fmt: skip


def _work(study: Study, todo: list[Setting], executor: Executor, *, threads: int | None, limit: int, progress: bool) -> None:
    """Runs settings, at most `limit` at a time, and keeps each as it is finished."""
    waiting, running, failed = todo[::-1], {}, 0
    with tqdm(total=len(todo), disable=not progress, unit="setting") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    setting = waiting.pop()
                    running[executor.submit(execute, study.job(setting, threads))] = setting
                for future in [future for future in running if future.done()]:
                    failed += study.keep(running.pop(future), future) == "failed"
                    bar.set_postfix(failed=failed, refresh=False)
                    bar.update()
                time.sleep(0.05)
        finally:
            for future in running:
                if hasattr(future, "cancel"):
                    future.cancel()


# --- The table ----------------------------------------------------------------------------------------------------


def gather(out: str | Path) -> pd.DataFrame:
    """The results of a study: one row per finished setting and run record that it used.

    Records that hold no metrics (of feature networks, say) are left out. A setting that used no other has one row.

    Arguments:
        out: Folder of the study.

    Returns:
        The setting's parameters but for `runs_root`; `record` (name), `label`, `record_seed`, `config` (hash), `data`
        (hash), `code` (hash); then the record's metrics, with ``metric_`` before a name that is taken.

    Raises:
        ValueError: If no setting is finished.
        FileNotFoundError: If a record is no longer there.
    """
    out, rows = Path(out), []
    finished = [outcome for outcome in outcomes(out) if outcome["status"] == "done"]
    if not finished:
        raise ValueError(f"{out} holds no finished setting; `python -m medvae_lite.sweep --help` says how to run some")
    for outcome in sorted(finished, key=_order):
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
    """Writes `results.csv`, or takes it away where nothing is finished."""
    try:
        runs.write_atomically(out / "results.csv", gather(out).to_csv(index=False, lineterminator="\n"))
    except ValueError:
        (out / "results.csv").unlink(missing_ok=True)
    except FileNotFoundError as missing:
        log.warning("results.csv was not written: %s", missing)


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


def _typed(name: str, text: str, known: Mapping) -> Any:
    """A value from the command line: text where the default is text, otherwise what it spells."""
    if isinstance(known.get(name), str):
        return text
    value = literal({"true": "True", "false": "False"}.get(text, text))
    return text if value is None else value


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
        known = defaults(read_notebook(args.notebook), args.notebook)
        swept = {name: [_typed(name, part, known) for part in text.split(",") if part] for name, text in grid.items()}
        constant = {name: _typed(name, text, known) for name, text in fixed.items()}
        with contextlib.nullcontext() if args.scheduler is None else scheduler(args.scheduler) as executor:
            table = run(args.notebook, swept, args.out, fixed=constant, executor=executor, workers=args.workers)
    except ValueError as refusal:
        raise SystemExit(str(refusal)) from None
    except KeyboardInterrupt:
        raise SystemExit(f"Stopped. What is finished is in {args.out}; the same command goes on from there.") from None
    failed = table[table["status"] == "failed"]
    print(f"{len(table) - len(failed)} of {len(table)} settings are done; their results are in {args.out / 'results.csv'}")
    for slug, row in failed.iterrows():
        kind = "ipynb" if (args.out / f"{slug}.ipynb").is_file() else "json"
        print(f"failed: {slug}.{kind}: {row['error']}")
    return int(len(failed) > 0)


def _show_log() -> None:
    """Says on standard output what the package reports."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)


if __name__ == "__main__":
    raise SystemExit(main())
