"""The cardiac phantom as a dataset: subjects by index, and the prepared folder."""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import logging
import operator
import os
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Iterable, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep import cardiac_anatomy, cardiac_paint, prepared
from data_prep.cardiac_anatomy import SLICES
from data_prep.large import in_order, processes
from data_prep.prepared import ATTRIBUTE_COLUMNS, FIELD_OF_VIEW_MM, PreparedWriter

log = logging.getLogger(__name__)

GENERATOR_VERSION = 1
COVARIATES = ("group", "height_cm", "weight_kg")
_CHUNK = 256
_ENOUGH = 8  # chunks, some five seconds of one core: a process takes one second to start


class Phantom(NamedTuple):
    """Subjects of the phantom, first axis the subject, second the frame (ED, ES)."""

    images: NDArray[np.float16]  # (N, 2, S, S) in [0, 1]
    labels: NDArray[np.uint8]  # (N, 2, S, S)
    volumes: NDArray[np.float64]  # (N, 6) mL, in the order of ATTRIBUTES
    factors: pd.DataFrame  # N rows: subject, then the generative factors


def generate(indices: int | Iterable[int], *, size: int = 64, seed: int = 0) -> Phantom:
    """Makes subjects of the phantom.

    Every subject has random streams of its own and is computed alone, so that subject i of a seed is the
    same, bit for bit, in whatever company it is asked for.

    Args:
        indices: which subjects; an integer n stands for the first n.
        size: image side in pixels, a multiple of 16.
        seed: which cohort.

    Raises:
        ValueError: if `size`, `seed` or an index is impossible.
    """
    if isinstance(indices, (int, np.integer)):
        indices = range(indices)
    indices = [operator.index(i) for i in indices]
    _check(size=size, seed=seed)
    if not indices or min(indices) < 0:
        raise ValueError("`indices` must name at least one subject, numbered from 0.")
    images = np.empty((len(indices), 2, size, size), np.float16)
    labels = np.empty(images.shape, np.uint8)
    volumes, factors = np.empty((len(indices), 6)), []
    for row, index in enumerate(indices):
        images[row], labels[row], volumes[row], drawn = _subject(index, size, seed)
        factors.append({"subject": subject_id(index)} | drawn)
    return Phantom(images, labels, volumes, pd.DataFrame(factors))


def _subject(index: int, size: int, seed: int) -> tuple[NDArray, NDArray, NDArray, dict]:
    factors = cardiac_anatomy.draw_factors(seed, index)
    heart = cardiac_anatomy.heart(factors)
    polar = cardiac_paint.Polar(heart, size)
    stack = cardiac_paint.label_stack(polar)
    pixel = FIELD_OF_VIEW_MM / size
    spacing = [(factors[f"long_axis_{frame}_mm"] / SLICES, pixel, pixel) for frame in ("ed", "es")]
    image = cardiac_paint.paint(factors, heart, polar, cardiac_anatomy.stream(seed, index, 1))
    volumes = prepared.attribute_row(prepared.volumes_ml(stack, spacing))
    return image, stack[:, 0], volumes, factors | cardiac_anatomy.dimensions(heart)


def subject_id(index: int) -> str:
    """The name of subject `index`."""
    return f"phantom{index:06d}"


def split_of(index: int) -> str:
    """The split of subject `index`: 70 % train, 15 % val, 15 % test, whatever the number of subjects."""
    return "train" if index % 20 < 14 else "val" if index % 20 < 17 else "test"


def recipe(*, subjects: int, size: int = 64, seed: int = 0) -> dict[str, int | float | str]:
    """Everything that shapes the dataset, the source code of the generator included."""
    return {
        "generator": "cardiac-phantom", "version": GENERATOR_VERSION, "source": _source_hash(),
        "subjects": int(subjects), "size": int(size), "seed": int(seed),
        "field_of_view_mm": FIELD_OF_VIEW_MM, "slices": SLICES,
    }


@lru_cache
def _source_hash() -> str:
    """sha256 of what the generator's code says: docstrings, comments and layout removed."""
    parts = (cardiac_anatomy, cardiac_paint, prepared.volumes_ml, prepared.attribute_row, generate, _subject)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(code_without_comments(inspect.getsource(part)).encode())
    return digest.hexdigest()


def code_without_comments(source: str) -> str:
    """Python source in normal form, without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def prepare(
    out: str | os.PathLike, *, subjects: int, size: int = 64, seed: int = 0, workers: int | None = None
) -> Path:
    """Writes the phantom as a prepared folder.

    Args:
        out: the folder to make; one that already holds this very dataset is left as it is.
        subjects: number of subjects.
        size: image side in pixels, a multiple of 16.
        seed: which cohort.
        workers: processes, as many as there are cores by default, but one for few subjects; the folder is byte-identical for
            any number.

    Returns:
        `out`.

    Raises:
        FileExistsError: if `out` holds anything else; nothing is touched.
        ValueError: if an argument is impossible.
    """
    _check(subjects=subjects, size=size, seed=seed)
    options = recipe(subjects=subjects, size=size, seed=seed)
    known = prepared.identity(options)
    if prepared.already_prepared(out, known):
        log.info("reusing %s: it already holds this dataset", out)
        return Path(out)
    starts = range(0, subjects, _CHUNK)
    workers = processes(workers, len(starts), _ENOUGH)
    with PreparedWriter(out, subjects=subjects, size=size, identity=known) as writer:
        fill = partial(_fill, folder=writer.folder, subjects=subjects, size=size, seed=seed)
        volumes, factors = [], []
        with (
            tqdm(total=subjects, desc="cardiac phantom", unit="subject") as bar,
            closing(in_order(fill, starts, workers)) as chunks,
        ):
            for chunk in chunks:
                volumes.append(chunk.volumes)
                factors.append(chunk.factors)
                bar.update(len(chunk.volumes))
        factors = pd.concat(factors, ignore_index=True)
        table = _subjects(np.concatenate(volumes), factors)
        return writer.finish(subjects=table, card=_card(options), factors=factors)


class _Chunk(NamedTuple):
    volumes: NDArray[np.float64]
    factors: pd.DataFrame


def _fill(start: int, *, folder: Path, subjects: int, size: int, seed: int) -> _Chunk:
    """Makes one chunk and writes its arrays in place; only the small tables travel between processes."""
    rows = slice(start, min(start + _CHUNK, subjects))
    phantom = generate(range(rows.start, rows.stop), size=size, seed=seed)
    for name, values in (("images", phantom.images), ("labels", phantom.labels)):
        array = np.load(folder / f"{name}.npy", mmap_mode="r+")
        array[rows] = values
        array.flush()
    return _Chunk(phantom.volumes, phantom.factors)


def _subjects(volumes: NDArray[np.float64], factors: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame({"subject": factors["subject"], "split": [split_of(i) for i in range(len(factors))]})
    table[list(ATTRIBUTE_COLUMNS)] = volumes.round(3)
    table["group"] = factors["group"]
    return table.assign(**{name: factors[name].round(1) for name in COVARIATES[1:]})


def _card(options: dict) -> dict:
    return {
        "name": "cardiac phantom", "source": "synthetic: data_prep cardiac-phantom", "licence": "CC0-1.0",
        "citation": "None needed. Volumes follow the ACDC cohort: Bernard et al., IEEE TMI 37(11), 2018.",
        "prepared_by": f"data_prep.cardiac_phantom {GENERATOR_VERSION}", "recipe": options,
    }


def _check(*, size: int, seed: int, subjects: int = 1) -> None:
    if size < 16 or size % 16:
        raise ValueError(f"`size` must be a positive multiple of 16 pixels, got {size}.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be a whole number from 0 to 2**64 - 1, got {seed}.")
    if subjects < 1:
        raise ValueError(f"`subjects` must be at least 1, got {subjects}.")


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-command `cardiac-phantom`."""
    parser = subparsers.add_parser("cardiac-phantom", help="synthetic ED and ES slices, labels, volumes")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    for name, default, text in (
        ("subjects", 4096, "how many subjects"),
        ("size", 64, "image side in pixels, a multiple of 16"),
        ("seed", 0, "which cohort"),
        ("workers", None, "processes; the result does not depend on it"),
    ):
        text += f" (default {'all cores' if default is None else default})"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    parser.set_defaults(func=_command)


def _command(args: argparse.Namespace) -> int:
    prepare(args.out, subjects=args.subjects, size=args.size, seed=args.seed, workers=args.workers)
    return 0
