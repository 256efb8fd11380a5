"""The region phantom as a dataset: the prepared folder and its command."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
from functools import lru_cache
from pathlib import Path

from data_prep import region_names, regions_anatomy, regions_draw
from data_prep.cardiac_phantom import code_without_comments
from data_prep.prepared import already_prepared, identity
from data_prep.regions_anatomy import STAGES
from data_prep.regions_draw import MODALITIES, check, generate
from data_prep.regions_prepared import write_regions

GENERATOR_VERSION = 1


def recipe(*, subjects: int, seed: int = 0) -> dict[str, int | float | str]:
    """Everything that shapes the dataset, the source code of the generator included."""
    return {"generator": "regions-phantom", "version": GENERATOR_VERSION, "source": _source_hash(), "subjects": int(subjects), "seed": int(seed)}


@lru_cache
def _source_hash() -> str:
    """sha256 of what the generator's code says: docstrings, comments and layout removed."""
    code = "".join(code_without_comments(inspect.getsource(part)) for part in (region_names, regions_anatomy, regions_draw))
    return hashlib.sha256(code.encode()).hexdigest()


def prepare(out: str | os.PathLike, *, subjects: int, seed: int = 0) -> Path:
    """Writes the phantom as a prepared folder.

    Args:
        out: the folder to make; one that already holds this very dataset is left as it is.
        subjects: people of the population cohort.
        seed: which cohorts.

    Raises:
        FileExistsError: if `out` holds anything else; nothing is touched.
        ValueError: if an argument is impossible.
    """
    check(subjects, seed)
    options = recipe(subjects=subjects, seed=seed)
    if already_prepared(out, identity(options)):
        return Path(out)
    made = generate(subjects=subjects, seed=seed)
    card = {
        "name": "region phantom", "source": "synthetic: data_prep regions-phantom", "licence": "CC0-1.0",
        "citation": "None needed. Cohorts are shaped as in Kumar et al. 2022; sizes follow adults of ABIDE I, Di Martino et al. 2014.",
        "prepared_by": f"data_prep.regions_phantom {GENERATOR_VERSION}", "recipe": options,
    }  # fmt: skip
    return write_regions(
        out, values=made.values, subjects=made.people, modalities=MODALITIES, card=card, stages=STAGES,
        scores=("adas13", "ravlt_immediate"), effect=made.effect, factors=made.factors,
    )  # fmt: skip


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-command `regions-phantom`."""
    parser = subparsers.add_parser("regions-phantom", help="synthetic region tables, healthy people and patients")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--subjects", type=int, default=9875, metavar="N", help="people of the population cohort (default 9875)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which cohorts (default 0)")
    parser.set_defaults(func=_command)


def _command(args: argparse.Namespace) -> int:
    prepare(args.out, subjects=args.subjects, seed=args.seed)
    return 0
