"""Prepare a cohort of real short-axis scans: resumable, and one bad subject never stops the rest.

Each finished subject is kept in `OUT.partial` beside OUT, in a file named after the options and the raw files
it came from, written whole or not at all. The same command after any stop goes on from there, and the
prepared folder is the same, byte for byte, as that of an undisturbed run.
"""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data_prep.cardiac_layouts import LAYOUTS, Entry, Layout, RawSubject
from data_prep.cardiac_nifti import read
from data_prep.cardiac_pair import Options, prepare
from data_prep.cardiac_quality import Excluded, Unusable
from data_prep.cardiac_split import fingerprint
from data_prep.cardiac_write import FAILURE, FILTER, PREPARED, Outcome, report, write
from data_prep.nifti_file import short
from data_prep.prepared import read_card, sha256_file

log = logging.getLogger(__name__)

CACHE_FORMAT = 2  # to be raised whenever a subject kept from an earlier run might be read otherwise today


class Task(NamedTuple):
    """What a worker needs to prepare one subject."""

    layout: str
    entry: Entry
    options: Options
    cache: Path


def run(
    layout: Layout,
    raw: Path,
    out: Path,
    options: Options,
    *,
    split: Sequence[float] = (0.70, 0.15, 0.15),
    seed: int = 0,
    workers: int = 1,
) -> list[Outcome]:
    """Prepare every subject under `raw` and write the prepared folder `out`.

    Args:
        layout: how the collection keeps its files.
        raw: its folder; only read.
        out: the prepared folder to make.
        options: what shapes one subject.
        split: fractions of train, val and test.
        seed: of the split.
        workers: subjects at a time; the result does not depend on it.

    Returns:
        One outcome per subject found, in order of subject.

    Raises:
        ValueError: `raw` holds no subject of this layout, one twice, or none that can be used.
        FileExistsError: `out` holds something else, or lies inside `raw`.
    """
    raw, out = Path(raw), Path(out)
    entries = find(layout, raw)
    check_out(out, raw)
    cache = out.with_name(out.name + ".partial")
    cache.mkdir(parents=True, exist_ok=True)
    tasks = [Task(layout.name, entry, options, cache) for entry in entries]
    with logging_redirect_tqdm():
        outcomes = list(
            tqdm(_outcomes(tasks, workers), total=len(tasks), desc=layout.name, unit="subject", disable=None)
        )
    report(outcomes)
    if not any(outcome.kind == PREPARED for outcome in outcomes):
        _forget(cache)
        raise ValueError(
            f"none of the {len(outcomes)} subjects under `{raw}` can be used; the first: "
            f"{outcomes[0].subject}: {outcomes[0].reason}"
        )
    recipe = {"layout": layout.name} | options.recipe() | {"split": list(split), "seed": seed}
    write(layout, out, recipe, outcomes)
    if not any(outcome.kind == FAILURE for outcome in outcomes):
        _forget(cache)
    return outcomes


def find(layout: Layout, raw: Path) -> list[Entry]:
    """The subjects under `raw`, sorted.

    Raises:
        ValueError: `raw` is no readable folder, or holds no subject, or one twice.
    """
    if not raw.is_dir() or not os.access(raw, os.R_OK | os.X_OK):
        raise ValueError(
            f"`{raw}` is not a folder that can be read; give the folder of the {layout.name} collection"
        )
    entries = sorted(layout.find(raw))
    if not entries:
        raise ValueError(
            f"`{raw}` holds no subject in the {layout.name} layout: {layout.expected} are looked for"
        )
    for one, other in pairwise(entries):
        if one.subject == other.subject:
            raise ValueError(
                f"subject `{one.subject}` is found twice, in `{one.folder}` and `{other.folder}`; keep one"
            )
    return entries


def check_out(out: Path, raw: Path) -> None:
    """Refuse early, before hours of work, an `out` that cannot become a prepared folder."""
    if out.resolve().is_relative_to(raw.resolve()):
        raise FileExistsError(
            f"`{out}` lies in the raw data `{raw}`, which is only read; give a folder elsewhere"
        )
    free = not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir()))
    if not free and read_card(out) is None:
        raise FileExistsError(
            f"`{out}` exists and is not a prepared dataset; give another folder or move it away"
        )


def _outcomes(tasks: list[Task], workers: int) -> Iterator[Outcome]:
    if workers == 1:
        yield from map(prepare_one, tasks)
        return
    # Unzipping, counting and interpolating release the interpreter's lock, and threads end cleanly on Ctrl-C.
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(prepare_one, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def prepare_one(task: Task) -> Outcome:
    """Prepare one subject into the cache, or take it from there; what is wrong with it becomes its reason."""
    layout, subject = LAYOUTS[task.layout], task.entry.subject
    try:
        raw = layout.describe(task.entry, task.options.label_map)
        cached = task.cache / f"{subject}.{cache_key(raw, task.options)}.npz"
        if _complete(cached):
            return Outcome(subject, PREPARED, cached=cached)
        stack = read(raw.frames, task.options.label_map)
        result = prepare(stack, task.options)
    except Excluded as reason:
        return Outcome(subject, FILTER, str(reason))
    except Unusable as reason:
        return Outcome(subject, FAILURE, str(reason))
    except Exception as error:  # one odd file among thousands must not lose the night's work
        log.debug("%s", subject, exc_info=True)
        return Outcome(
            subject, FAILURE, f"stopped on {type(error).__name__} ({error}): an input nobody foresaw"
        )
    meta = {
        "covariates": raw.covariates,
        "raw": {short(path): sha256_file(path) for path in raw.files},
        "shape": stack.image.shape,
        "spacing_mm": stack.spacing_mm,
    }
    _store(cached, result._asdict() | {"fingerprint": fingerprint(stack.image[0]), "meta": json.dumps(meta)})
    return Outcome(subject, PREPARED, cached=cached)


def cache_key(raw: RawSubject, options: Options) -> str:
    """16 hex digits of the options and of the name, size and time of each raw file."""
    stats = [
        (short(path), path.stat().st_size, path.stat().st_mtime_ns) for path in raw.files if path.is_file()
    ]
    text = json.dumps([CACHE_FORMAT, options.recipe(), raw.covariates, stats], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _complete(path: Path) -> bool:
    try:
        with np.load(path) as arrays:
            return all(
                arrays[name] is not None for name in arrays.files
            )  # reads, and so checks, every member
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def _store(path: Path, arrays: dict) -> None:
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    with open(scratch, "wb") as file:
        np.savez(file, **arrays)
    os.replace(scratch, path)


def _forget(cache: Path) -> None:
    """Remove the cache's own files, and its folder if nothing else is in it."""
    for path in [*cache.glob("*.npz"), *cache.glob("*.tmp")]:
        path.unlink()
    if not any(cache.iterdir()):
        cache.rmdir()
