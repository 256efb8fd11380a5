"""The prepared folder of brain slices: several axial slices a person, with masks.

A folder holds ``images.npy`` (float16, N x 1 x H x W, standardised), ``labels.npy`` (uint8, N x 2 x H x W: tissue,
and the share of each pixel that is lesion in percent), ``slices.csv`` (one row an image), ``subjects.csv`` (one row a
person) and ``card.json``; of a phantom also ``twins.npy`` (the same images without the lesions) and ``factors.csv``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Mapping, Self

import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray

from data_prep.prepared import FORMAT, SPLITS, already_prepared, enforce, sha256_file

log = logging.getLogger(__name__)

CHANNELS = ("tissue", "lesion_percent")
LEADING = ("subject", "split")
LEAST_PEOPLE = 5
_SUBJECTS = pa.DataFrameSchema(
    {"subject": pa.Column(str, pa.Check.str_length(min_value=1), unique=True), "split": pa.Column(str, pa.Check.isin(SPLITS))}
)
_SLICES = pa.DataFrameSchema(
    {
        "subject": pa.Column(str), "split": pa.Column(str, pa.Check.isin(SPLITS)), "slice": pa.Column(int, pa.Check.ge(0)),
        "z_mm": pa.Column(float), "brain_mm2": pa.Column(float, pa.Check.gt(0)), "lesion_mm2": pa.Column(float, pa.Check.ge(0)),
    }
)  # fmt: skip


def split_by_subject(subjects: int, seed: int = 0) -> list[str]:
    """A split for each person: 60 % train, 20 % val, 20 % test, at least one each (Hu et al. 2022, section 3).

    Raises:
        ValueError: if there are fewer than five people.
    """
    if subjects < LEAST_PEOPLE:
        raise ValueError(f"a split by person needs at least {LEAST_PEOPLE} people, got {subjects}; add some, or name the splits yourself.")
    held = max(1, round(0.2 * subjects))
    names = ["train"] * (subjects - 2 * held) + ["val"] * held + ["test"] * held
    return [names[i] for i in np.random.default_rng(seed).permutation(subjects)]


def standardise(volume: NDArray[np.floating], brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A person's stack with everything outside the brain set to 0, then to zero mean and unit variance over all pixels.

    Args:
        volume: grey values, (slices, H, W).
        brain: where the brain is, the same shape.

    Raises:
        ValueError: if the stack is constant.
    """
    masked = np.where(brain, volume, 0.0).astype(np.float64)
    spread = masked.std()
    if not np.isfinite(spread) or spread == 0:
        raise ValueError("the image has the same grey value everywhere, or values that are not finite; check the file.")
    return ((masked - masked.mean()) / spread).astype(np.float32)


class BrainWriter:
    """Writes a prepared folder of brain slices; it appears whole or not at all.

    The arrays are filled in a temporary sibling, which is renamed when complete and removed on any failure.

    Args:
        out: the folder to make.
        images: number of images N.
        size: rows and columns.
        identity: identity of the dataset, as `data_prep.prepared.identity` gives it.
        twins: whether there are images without lesions too.

    Attributes:
        folder: the temporary folder.
        images: memory-mapped float16 (N, 1, H, W), to be filled with standardised grey values.
        labels: memory-mapped uint8 (N, 2, H, W), to be filled as `CHANNELS` says.
        twins: memory-mapped float16 (N, 1, H, W), or None.

    Raises:
        FileExistsError: if `out` holds anything.
    """

    def __init__(self, out: str | os.PathLike, *, images: int, size: tuple[int, int], identity: str, twins: bool = False) -> None:
        self.out, self.identity, self._twins = Path(out), identity, twins
        if already_prepared(self.out, identity):
            raise FileExistsError(f"`{self.out}` already holds this dataset; use it, or remove it first.")
        self.folder = self.out.with_name(f".{self.out.name}.{os.getpid()}.partial")
        self.count, self.size = images, tuple(size)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            self.images = self._array("images", np.float16, 1)
            self.labels = self._array("labels", np.uint8, len(CHANNELS))
            self.twins = self._array("twins", np.float16, 1) if self._twins else None
        except BaseException:
            self.__exit__()
            raise
        return self

    def _array(self, name, dtype, channels):
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, (self.count, channels, *self.size))

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(
        self, *, slices: pd.DataFrame, subjects: pd.DataFrame, card: Mapping[str, Any], factors: pd.DataFrame | None = None
    ) -> Path:
        """Writes the tables and the card, then puts the folder in its place.

        Args:
            slices: one row an image, in the order of the arrays: subject, split, slice, z_mm, brain_mm2, lesion_mm2.
            subjects: one row a person: subject, split, then what else is known.
            card: name, source, licence, citation, prepared_by, recipe, sequence, pixel_mm, tissues.
            factors: true generative factors of a phantom, one row a person.

        Raises:
            ValueError: if a table does not match the arrays or the contract.
        """
        check_tables(slices, subjects)
        if len(slices) != self.count:
            raise ValueError(f"`slices` must have one row for each of {self.count} images, got {len(slices)}.")
        for array in (self.images, self.labels, self.twins):
            if array is not None:
                array.flush()
        slices.to_csv(self.folder / "slices.csv", index=False, lineterminator="\n", float_format="%.6g")
        subjects.to_csv(self.folder / "subjects.csv", index=False, lineterminator="\n", float_format="%.6g")
        if factors is not None:
            factors.to_csv(self.folder / "factors.csv", index=False, lineterminator="\n", float_format="%.6g")
        full = {
            "kind": "brain", "format": FORMAT, "identity": self.identity, "channels": list(CHANNELS),
            "size": list(self.size), "images": self.count, "subjects": len(subjects),
            "splits": {name: int((subjects["split"] == name).sum()) for name in SPLITS}, "excluded": [],
            **card, "files": {path.name: sha256_file(path) for path in sorted(self.folder.iterdir())},
        }  # fmt: skip
        (self.folder / "card.json").write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
        try:
            self.folder.rename(self.out)
        except OSError:
            # Another process may have finished the same dataset first; its bytes are ours.
            if not already_prepared(self.out, self.identity):
                raise
        log.info("wrote %d slices of %d people to %s", self.count, len(subjects), self.out)
        return self.out


def check_tables(slices: pd.DataFrame, subjects: pd.DataFrame) -> None:
    """Checks both tables against the contract.

    Raises:
        ValueError: one sentence naming what breaks it.
    """
    if tuple(subjects.columns[:2]) != LEADING:
        raise ValueError(f"`subjects` must begin with the columns {', '.join(LEADING)}, got {', '.join(map(str, subjects.columns))}.")
    missing = [name for name in _SLICES.columns if name not in slices]
    if missing:
        raise ValueError(f"`slices` must have the column `{missing[0]}`, got {', '.join(map(str, slices.columns))}.")
    enforce(_SUBJECTS, subjects)
    enforce(_SLICES, slices, "slices")
    known = subjects.set_index("subject")["split"]
    strangers = set(slices["subject"]) - set(known.index)
    if strangers:
        raise ValueError(f"`slices` must belong to people in `subjects`, got {min(strangers)!r}.")
    torn = slices["split"].to_numpy() != known.loc[slices["subject"]].to_numpy()
    if torn.any():
        raise ValueError(f"all slices of a person must be in the person's split, got {slices['subject'][torn.argmax()]!r} in two.")
