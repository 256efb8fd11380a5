"""The prepared dataset: one folder, the same for a phantom and for a real cohort.

A folder holds ``images.npy`` (float16, N x 2 x S x S in [0, 1]; axis 1 is ED, ES), ``labels.npy`` (uint8,
the same shape), ``subjects.csv`` (id, split, six volumes in mL, covariates), optionally ``factors.csv``
(the true generative factors of a phantom) and ``card.json`` (source, licence, recipe, sha256 of every
file). Nothing in it depends on when, where or by how many processes it was made: the same recipe gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Mapping, Self

import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import ArrayLike, NDArray

log = logging.getLogger(__name__)

FORMAT = 1
FRAMES = ("ED", "ES")
LABELS = {0: "background", 1: "LV", 2: "myocardium", 3: "RV"}
ATTRIBUTES = ("LVEDV", "RVEDV", "MYOEDV", "LVESV", "RVESV", "MYOESV")
ATTRIBUTE_COLUMNS = tuple(f"{name}_ml" for name in ATTRIBUTES)
SPLITS = ("train", "val", "test")
FIELD_OF_VIEW_MM = 160.0

_SUBJECTS = pa.DataFrameSchema(
    {
        "subject": pa.Column(str, pa.Check.str_length(min_value=1), unique=True),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        **{column: pa.Column(float, pa.Check.in_range(1, 1000), coerce=True) for column in ATTRIBUTE_COLUMNS},
    }
)


def volumes_ml(labels: NDArray[np.uint8], spacing_mm: ArrayLike) -> NDArray[np.float64]:
    """Volumes of the LV cavity, the myocardium and the RV cavity: voxels counted times the volume of one.

    Args:
        labels: label maps, three spatial axes last, in any order; leading axes (subject, frame) are kept.
        spacing_mm: voxel edges in mm, (3,) or with the leading axes of `labels`, (..., 3).

    Returns:
        (..., 3): LV, myocardium, RV in mL.

    Raises:
        ValueError: if `labels` has fewer than three axes or a spacing is not positive.
    """
    labels, spacing = np.asarray(labels), np.asarray(spacing_mm, dtype=np.float64)
    if labels.ndim < 3:
        raise ValueError(f"`labels` must have three spatial axes, got {labels.shape}; add one for slices.")
    if spacing.shape[-1:] != (3,) or not (spacing > 0).all():
        raise ValueError(f"`spacing_mm` must be three positive edges in mm, got {spacing.tolist()}.")
    stacks = labels.reshape(-1, np.prod(labels.shape[-3:]))
    counts = np.array([[np.count_nonzero(stack == label) for label in (1, 2, 3)] for stack in stacks])
    counts = counts.reshape(*labels.shape[:-3], 3)
    return counts * spacing.prod(axis=-1)[..., None] / 1000.0


def attribute_row(volumes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reorders volumes (..., frame, LV-MYO-RV) into (..., 6) as named by `ATTRIBUTES`."""
    lv, myo, rv = np.moveaxis(np.asarray(volumes), -1, 0)
    return np.stack([lv, rv, myo], axis=-1).reshape(*lv.shape[:-1], 6)


def check_subjects(subjects: pd.DataFrame) -> None:
    """Checks a table of subjects against the contract of ``subjects.csv``.

    Raises:
        ValueError: one sentence naming the first column that breaks the contract, with the offending values.
    """
    leading = ("subject", "split", *ATTRIBUTE_COLUMNS)
    if tuple(subjects.columns[: len(leading)]) != leading:
        got = ", ".join(map(str, subjects.columns))
        raise ValueError(f"`subjects` must begin with the columns {', '.join(leading)}, got {got}.")
    enforce(_SUBJECTS, subjects)


def enforce(schema: pa.DataFrameSchema, subjects: pd.DataFrame, table: str = "subjects") -> None:
    """Checks a table, of subjects unless `table` names another, against a schema.

    Raises:
        ValueError: one sentence naming the first column that breaks it, with the offending values.
    """
    try:
        schema.validate(subjects, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
        column, check = cases["column"].iloc[0] or cases["failure_case"].iloc[0], cases["check"].iloc[0]
        first = cases.loc[(cases["column"] == column) & (cases["check"] == check), "failure_case"]
        values = ", ".join(map(repr, first.head(3)))
        raise ValueError(f"`{table}` column `{column}` must satisfy {check}, got {values}.") from None


def sha256_file(path: str | os.PathLike) -> str:
    """The sha256 of a file, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(recipe: Mapping[str, Any]) -> str:
    """The sha256 of the canonical JSON (sorted keys, no spaces) of everything that shaped the data."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_card(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The card of a complete prepared folder, or None if `folder` is anything else."""
    folder = Path(folder)
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        complete = all((folder / name).is_file() for name in card["files"])
        return card if complete and card["format"] == FORMAT and card["identity"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def already_prepared(out: str | os.PathLike, expected: str) -> bool:
    """Whether `out` already holds the dataset with identity `expected`; False if the place is free.

    Raises:
        FileExistsError: if anything else is in the way. Nothing is touched.
    """
    out = Path(out)
    blocked = next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None)
    if blocked:
        raise FileExistsError(f"`{out}` cannot be made: `{blocked}` is a file; give another folder.")
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return False
    card = read_card(out)
    if card is None:
        raise FileExistsError(
            f"`{out}` exists and is not a prepared dataset; give another folder or move it away."
        )
    if card["identity"] != expected:
        raise FileExistsError(
            f"`{out}` holds another dataset ({card['name']}, identity {card['identity'][:12]}, "
            f"not {expected[:12]}); give another folder or remove it."
        )
    return True


class PreparedWriter:
    """Writes a prepared folder in chunks.

    The arrays are filled in a temporary sibling, which is renamed when complete and removed on any failure.

    Args:
        out: the folder to make.
        subjects: number of subjects N.
        size: image side S in pixels.
        identity: identity of the dataset, as `identity` gives it.

    Attributes:
        folder: the temporary folder, for processes that open the arrays themselves.
        images: memory-mapped float16 (N, 2, S, S), to be filled.
        labels: memory-mapped uint8 (N, 2, S, S), to be filled.

    Raises:
        FileExistsError: if `out` holds anything (see `already_prepared`).
    """

    def __init__(self, out: str | os.PathLike, *, subjects: int, size: int, identity: str) -> None:
        self.out, self.identity = Path(out), identity
        if already_prepared(self.out, identity):
            raise FileExistsError(f"`{self.out}` already holds this dataset; use it, or remove it first.")
        self.folder = self.out.with_name(f".{self.out.name}.{os.getpid()}.partial")
        self.shape = (subjects, len(FRAMES), size, size)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            self.images = np.lib.format.open_memmap(self.folder / "images.npy", "w+", np.float16, self.shape)
            self.labels = np.lib.format.open_memmap(self.folder / "labels.npy", "w+", np.uint8, self.shape)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(
        self, *, subjects: pd.DataFrame, card: Mapping[str, Any], factors: pd.DataFrame | None = None
    ) -> Path:
        """Writes the tables and the card, then puts the folder in its place.

        Args:
            subjects: one row a subject, in the order of the arrays.
            card: name, source, licence, citation, prepared_by, recipe, and what else there is to say.
            factors: the true generative factors of a phantom, one row a subject.

        Raises:
            ValueError: if a table does not match the arrays or the contract.
        """
        count, _, size, _ = self.shape
        for name, table in (("subjects", subjects), ("factors", factors)):
            if table is not None and len(table) != count:
                raise ValueError(f"`{name}` must have one row for each of {count} images, got {len(table)}.")
        check_subjects(subjects)
        self.images.flush()
        self.labels.flush()
        subjects.to_csv(self.folder / "subjects.csv", index=False, lineterminator="\n")
        if factors is not None:
            path = self.folder / "factors.csv"
            factors.to_csv(path, index=False, lineterminator="\n", float_format="%.6g")
        full = {
            "kind": "cardiac", "format": FORMAT, "identity": self.identity, "frames": list(FRAMES),
            "labels": {str(value): name for value, name in LABELS.items()},
            "attributes": list(ATTRIBUTES), "attribute_units": "mL",
            "pixel_mm": FIELD_OF_VIEW_MM / size, "size": size, "subjects": count,
            "splits": {name: int((subjects["split"] == name).sum()) for name in SPLITS}, "excluded": [],
            **card,
            "files": {path.name: sha256_file(path) for path in sorted(self.folder.iterdir())},
        }
        text = json.dumps(full, indent=2, sort_keys=True) + "\n"
        (self.folder / "card.json").write_text(text, encoding="utf-8")
        return self._place()

    def _place(self) -> Path:
        try:
            self.folder.rename(self.out)
        except OSError:
            # Another process may have finished the same dataset first; its bytes are ours.
            if not already_prepared(self.out, self.identity):
                raise
        log.info("wrote %d subjects to %s", self.shape[0], self.out)
        return self.out


def write_prepared(
    out: str | os.PathLike,
    *,
    images: NDArray,
    labels: NDArray[np.uint8],
    subjects: pd.DataFrame,
    card: Mapping[str, Any],
    factors: pd.DataFrame | None = None,
) -> Path:
    """Writes a prepared folder from arrays in memory.

    Args:
        out: the folder to make.
        images: (N, 2, S, S) in [0, 1]; stored as float16.
        labels: (N, 2, S, S), values 0 to 3.
        subjects: one row a subject: subject, split, the six volumes in mL, covariates.
        card: name, source, licence, citation, prepared_by and recipe; `identity` too when it covers more than
            the recipe (the sha256 of raw inputs).
        factors: the true generative factors of a phantom.

    Returns:
        `out`. A folder that already holds the same dataset is left as it is.

    Raises:
        FileExistsError: if something else is in the way.
        ValueError: if the arrays or tables break the contract.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    expected = (len(images), len(FRAMES), *2 * images.shape[-1:])
    if len(images) == 0 or images.shape != expected or labels.shape != expected:
        got = f"{images.shape} and {labels.shape}"
        raise ValueError(f"`images` and `labels` must both be (N, 2, S, S), got {got}.")
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise ValueError("`images` must be finite and within [0, 1]; scale each frame before writing.")
    if labels.max() > max(LABELS):
        raise ValueError(f"`labels` must be 0 to {max(LABELS)}, got {labels.max()}; map them before writing.")
    known = card.get("identity") or identity(card["recipe"])
    if already_prepared(out, known):
        log.info("reusing %s", out)
        return Path(out)
    with PreparedWriter(out, subjects=len(images), size=images.shape[-1], identity=known) as writer:
        writer.images[:], writer.labels[:] = images, labels
        return writer.finish(subjects=subjects, card=card, factors=factors)
