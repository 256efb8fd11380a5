"""The brain phantom as a dataset: images of stacks of slices, the prepared folder and its command."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage as ndi
from tqdm import tqdm

from data_prep import brain_anatomy, brain_lesions
from data_prep.brain_anatomy import BACKGROUND, CSF, SLAB_MM, SUPERSAMPLED, TISSUES, VENTRICLE, Grid, stream
from data_prep.brain_prepared import BrainWriter, split_by_subject, standardise
from data_prep.cardiac_phantom import code_without_comments
from data_prep.large import in_order, let_go, processes
from data_prep.prepared import already_prepared, identity

GENERATOR_VERSION = 1
DISEASES = {"ms": "FLAIR", "ad": "T1"}
SIZES = {32: (32, 32, 5.5), 64: (64, 64, 2.75), 112: (112, 96, 2.0)}
"""Rows, columns and pixel edge in mm; the last is the paper's 2 mm, padded to multiples of 16."""

# Grey values of each tissue, in the order of TISSUES.
_CONTRAST = {"ms": np.array([0, 0.10, 0.08, 0.62, 0.48, 0.58]), "ad": np.array([0, 0.18, 0.15, 0.55, 0.85, 0.62])}
_LESION, _NOISE, _BIAS, _BLUR_PX, _TEXTURE = 0.95, 0.02, 0.08, 0.55, 0.02
_CHUNK = 8
_ENOUGH_PIXELS = 3_000_000  # some four seconds of one core: a process takes one second to start


class Stack(NamedTuple):
    """One person of the phantom, first axis the slice.

    Args:
        images: standardised grey values, (S, H, W).
        twins: the same without lesions, in the same scale and with the same noise, (S, H, W).
        tissue: healthy tissue, (S, H, W), values of `TISSUES`.
        lesion: share of each pixel that is lesion, (S, H, W).
        factors: what made the person, and what can be measured of it.
    """

    images: NDArray[np.float32]
    twins: NDArray[np.float32]
    tissue: NDArray[np.uint8]
    lesion: NDArray[np.float64]
    factors: dict[str, float]


def person(index: int, *, disease: str = "ms", size: int = 64, slices: int = 8, seed: int = 0, **factors: float) -> Stack:
    """One person of the phantom, the same in whatever company.

    Args:
        index: which person.
        disease: "ms" (FLAIR with lesions) or "ad" (T1 with atrophy).
        size: image rows in pixels, a key of `SIZES`.
        slices: how many slices of the slab of 24 mm.
        seed: which cohort.
        factors: factors to set instead of drawing, by name (but for the head's `size`); everything else stays as it was drawn.

    Raises:
        ValueError: if an argument is impossible.
    """
    check(disease=disease, size=size, slices=slices, seed=seed)
    drawn = brain_anatomy.draw_factors(seed, index, disease)
    unknown = set(factors) - set(drawn)
    if unknown:
        raise ValueError(f"factors of a person are {', '.join(drawn)}, got {min(unknown)!r}.")
    drawn |= factors
    grid = Grid(*SIZES[size], slices)
    fine = brain_anatomy.tissue_maps(drawn, grid, stream(seed, index, 1), disease)
    tissue = fine[:, ::SUPERSAMPLED, ::SUPERSAMPLED].copy()
    rng = stream(seed, index, 2)
    found = brain_lesions.draw(tissue, grid, drawn["lesions_expected"], drawn["caps_mm"], rng)
    images, twins = render(fine, found.fraction, _CONTRAST[disease], stream(seed, index, 3))
    brain = tissue != BACKGROUND
    scaled = standardise(images, brain)
    # The twin in the scale of the image: one person, one scale.
    spread, mean = np.where(brain, images, 0).std(), np.where(brain, images, 0).mean()
    healthy = ((np.where(brain, twins, 0) - mean) / spread).astype(np.float32)
    pixel = grid.pixel_mm**2
    measured = {
        "lesions": float(len(found.diameters)),
        "lesion_mm2": float(found.fraction.sum() * pixel / slices),
        "ventricle_mm2": float((fine == VENTRICLE).sum() * pixel / SUPERSAMPLED**2 / slices),
        "csf_mm2": float((fine == CSF).sum() * pixel / SUPERSAMPLED**2 / slices),
        "cortex_mm2": float((fine == brain_anatomy.CORTEX).sum() * pixel / SUPERSAMPLED**2 / slices),
    }
    return Stack(scaled, healthy, tissue, found.fraction, drawn | measured)


def render(fine: NDArray[np.uint8], lesion: NDArray, contrast: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Grey values of a stack, with lesions and without: partial volume, blur, uneven coil, Rician noise.

    Args:
        fine: supersampled tissue, (S, 2H, 2W).
        lesion: share of each pixel that is lesion, (S, H, W).
        contrast: grey value of each tissue.
        rng: decides texture, coil and noise, which both images share.
    """
    count, rows, columns = lesion.shape
    base = contrast[fine].reshape(count, rows, SUPERSAMPLED, columns, SUPERSAMPLED).mean((2, 4))
    texture = ndi.gaussian_filter(rng.standard_normal(base.shape), (1, 2.5, 2.5), mode="wrap")
    base = base * (1 + _TEXTURE * texture / texture.std() * (base > 0.2))
    z, y, x = (np.linspace(-1, 1, n).reshape([-1 if i == k else 1 for k in range(3)]) for i, n in enumerate(base.shape))
    c = rng.standard_normal(6) * _BIAS / 2
    coil = 1 + c[0] * x + c[1] * y + c[2] * x * y + c[3] * x**2 + c[4] * y**2 + c[5] * z
    noise = rng.standard_normal((2, *base.shape)) * _NOISE

    def seen(grey):
        return np.hypot(ndi.gaussian_filter(grey, (0, _BLUR_PX, _BLUR_PX)) * coil + noise[0], noise[1])

    return seen(base * (1 - lesion) + _LESION * lesion), seen(base)


def subject_id(index: int) -> str:
    """The name of person `index`."""
    return f"phantom{index:06d}"


def recipe(*, subjects: int, disease: str = "ms", size: int = 64, slices: int = 8, seed: int = 0) -> dict[str, int | float | str]:
    """Everything that shapes the dataset, the source code of the generator included."""
    return {
        "generator": "brain-phantom", "version": GENERATOR_VERSION, "source": _source_hash(), "disease": disease,
        "subjects": int(subjects), "size": int(size), "slices": int(slices), "seed": int(seed), "slab_mm": SLAB_MM,
    }  # fmt: skip


@lru_cache
def _source_hash() -> str:
    """sha256 of what the generator's code says: docstrings, comments and layout removed."""
    parts = (brain_anatomy, brain_lesions, person, render, standardise, split_by_subject)
    constants = repr((_CONTRAST, _LESION, _NOISE, _BIAS, _BLUR_PX, _TEXTURE, SIZES))
    code = "".join(code_without_comments(inspect.getsource(part)) for part in parts)
    return hashlib.sha256((code + constants).encode()).hexdigest()


def prepare(
    out: str | os.PathLike, *, subjects: int, disease: str = "ms", size: int = 64, slices: int = 8, seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Writes the phantom as a prepared folder.

    Args:
        out: the folder to make; one that already holds this very dataset is left as it is.
        subjects: how many people.
        disease, size, slices, seed: as in `person`.
        workers: processes, as many as there are cores by default, but one for few people; the folder is byte-identical for any
            number.

    Raises:
        FileExistsError: if `out` holds anything else; nothing is touched.
        ValueError: if an argument is impossible.
    """
    check(disease=disease, size=size, slices=slices, seed=seed)
    splits = split_by_subject(subjects, seed)
    options = recipe(subjects=subjects, disease=disease, size=size, slices=slices, seed=seed)
    known = identity(options)
    if already_prepared(out, known):
        return Path(out)
    grid, starts = Grid(*SIZES[size], slices), range(0, subjects, _CHUNK)
    workers = processes(workers, len(starts), _ENOUGH_PIXELS // (_CHUNK * slices * grid.rows * grid.columns))
    fill = partial(_chunk, subjects=subjects, disease=disease, size=size, slices=slices, seed=seed)
    tables, factors = [], []
    with BrainWriter(out, images=subjects * slices, size=(grid.rows, grid.columns), identity=known, twins=True) as writer:
        with (
            tqdm(total=subjects, desc=f"brain phantom ({disease})", unit="person") as bar,
            closing(in_order(fill, starts, workers)) as chunks,
        ):
            for start, stacks in zip(starts, chunks):
                for index, stack in enumerate(stacks, start):
                    rows = slice(index * slices, (index + 1) * slices)
                    writer.images[rows, 0], writer.twins[rows, 0] = stack.images, stack.twins
                    writer.labels[rows, 0], writer.labels[rows, 1] = stack.tissue, np.round(100 * stack.lesion)
                    tables.append(_slices(index, stack, splits[index], grid))
                    factors.append({"subject": subject_id(index)} | stack.factors)
                let_go(writer.images, writer.labels, writer.twins)
                bar.update(len(stacks))
        people = pd.DataFrame({"subject": [subject_id(i) for i in range(subjects)], "split": splits})
        made = pd.DataFrame(factors)
        for name in ("atrophy", "ventricle_mm2", "lesion_mm2"):
            people[name] = made[name]
        card = {
            "name": f"brain phantom ({disease})", "source": "synthetic: data_prep brain-phantom", "licence": "CC0-1.0",
            "citation": "None needed. Lesions are sized after the masks of Lesjak et al., Neuroinformatics, 2017.",
            "prepared_by": f"data_prep.brain_phantom {GENERATOR_VERSION}", "recipe": options, "sequence": DISEASES[disease],
            "pixel_mm": grid.pixel_mm, "slice_gap_mm": grid.gap_mm, "tissues": {str(k): v for k, v in TISSUES.items()},
        }  # fmt: skip
        return writer.finish(slices=pd.concat(tables, ignore_index=True), subjects=people, card=card, factors=made)


def _slices(index: int, stack: Stack, split: str, grid: Grid) -> pd.DataFrame:
    area = grid.pixel_mm**2
    return pd.DataFrame(
        {
            "subject": subject_id(index), "split": split, "slice": np.arange(grid.slices),
            "z_mm": grid.heights * SLAB_MM, "brain_mm2": (stack.tissue != BACKGROUND).sum((1, 2)) * area,
            "lesion_mm2": np.round(100 * stack.lesion).sum((1, 2)) / 100 * area,
            "ventricle_mm2": (stack.tissue == VENTRICLE).sum((1, 2)) * area,
        }
    )  # fmt: skip


def _chunk(start: int, *, subjects: int, **options) -> list[Stack]:
    return [person(index, **options) for index in range(start, min(start + _CHUNK, subjects))]


def check(*, disease: str, size: int, slices: int, seed: int) -> None:
    """Refuses impossible options with a ValueError."""
    if disease not in DISEASES:
        raise ValueError(f"`disease` must be one of {', '.join(DISEASES)}, got {disease!r}.")
    if size not in SIZES:
        raise ValueError(f"`size` must be one of {', '.join(map(str, SIZES))} rows of pixels, got {size}.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be a whole number from 0 to 2**64 - 1, got {seed}.")
    if slices < 1:
        raise ValueError(f"`slices` must be at least 1, got {slices}.")


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-command `brain-phantom`."""
    parser = subparsers.add_parser("brain-phantom", help="synthetic axial slices with lesions or atrophy")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--disease", choices=tuple(DISEASES), default="ms", help="ms: FLAIR with lesions; ad: T1 with atrophy (default ms)")
    for name, default, text in (
        ("subjects", 300, "how many people"),
        ("size", 64, f"rows of pixels, one of {', '.join(map(str, SIZES))}"),
        ("slices", 8, "slices a person, spread over 24 mm"),
        ("seed", 0, "which cohort"),
        ("workers", None, "processes; the result does not depend on it"),
    ):
        shown = "all cores" if default is None else default
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default {shown})")
    parser.set_defaults(func=_command)


def _command(args: argparse.Namespace) -> int:
    prepare(
        args.out, subjects=args.subjects, disease=args.disease, size=args.size, slices=args.slices, seed=args.seed, workers=args.workers
    )
    return 0
