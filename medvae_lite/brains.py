"""Prepared brain slices: from a folder on disk to batches, split by person.

To the training loop a slice is an image of one channel; `labels` holds tissue and, in percent, the share of each pixel
that is lesion; `attributes` the standardised lesion area.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvae_lite.datasets import Split, mapped
from medvae_lite.prepared_files import check_array, read_card, read_table

__all__ = ["Brains", "load"]

SLICE_MM = 1.0
"""Volume of a slice: its area times this, as in the paper's 1 mm slices, however far apart they lie."""


@dataclass(frozen=True)
class Brains:
    """A prepared folder of brain slices.

    Arguments:
        root: Where it is.
        card: The contents of `card.json`.
        slices: One row an image: `subject`, `split`, `slice`, `z_mm`, `brain_mm2`, `lesion_mm2`.
        people: One row a person: `subject`, `split`, then what else is known.
        factors: One row a person, of a phantom; empty otherwise.
        images: Standardised grey values, float16 (N, 1, H, W).
        labels: Tissue and lesion share in percent, uint8 (N, 2, H, W).
        twins: The images without lesions, of a phantom, float16 (N, 1, H, W); None otherwise.
    """

    root: Path
    card: dict
    slices: pd.DataFrame
    people: pd.DataFrame
    factors: pd.DataFrame
    images: Tensor
    labels: Tensor
    twins: Tensor | None

    @property
    def identity(self) -> str:
        """Hash of the recipe that made the folder."""
        return hashlib.sha256(f"{self.card['identity']}".encode()).hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return tuple(self.images.shape[2:])

    @property
    def pixel_mm(self) -> float:
        return float(self.card["pixel_mm"])

    def rows(self, split: str) -> NDArray[np.int64]:
        """Images of one split, in stored order.

        Raises:
            ValueError: If there are none.
        """
        found = np.flatnonzero(self.slices["split"] == split)
        if not len(found):
            raise ValueError(f"`split` must be one of train, val, test with slices in {self.root}, got {split!r}")
        return found

    @cached_property
    def lesion_mm3(self) -> NDArray[np.float64]:
        """Lesion volume of every slice, with shape (N,)."""
        return self.slices["lesion_mm2"].to_numpy(float) * SLICE_MM

    @cached_property
    def lesion(self) -> Tensor:
        """Share of each pixel that is lesion, with shape (N, 1, H, W)."""
        return self.labels[:, 1:].float() / 100

    @cached_property
    def grey_range(self) -> tuple[float, float]:
        """Darkest value and 99.9th percentile of the training images: the range R of PSNR and SSIM."""
        values = self.images[torch.from_numpy(self.rows("train"))].float().flatten().numpy()
        return float(values.min()), float(np.quantile(values, 0.999))

    def grey(self, image: Tensor) -> Tensor:
        """Grey values of `grey_range` mapped to [0, 1], clipped."""
        low, high = self.grey_range
        return ((image - low) / (high - low)).clamp(0, 1)

    def image(self, rows: NDArray[np.int64]) -> Tensor:
        """Some images as float32, with shape (B, 1, H, W)."""
        return self.images[torch.from_numpy(np.asarray(rows))].float()

    def split(self, name: str) -> Split:
        """One of the splits, for training.

        Raises:
            ValueError: If it is empty.
        """
        rows = self.rows(name)
        train = self.lesion_mm3[self.rows("train")]
        width = train.std() or 1.0
        standardised = ((self.lesion_mm3 - train.mean()) / width).astype(np.float32)[:, None]
        return Split(self.images, self.labels, torch.from_numpy(standardised), torch.from_numpy(rows))

    def one_each(self, count: int, split: str = "train") -> Tensor:
        """One image of each of `count` people, spread over people and heights, with shape (count, 1, H, W).

        Raises:
            ValueError: If there are fewer people.
        """
        part = self.slices.iloc[self.rows(split)]
        people = part["subject"].unique()
        if len(people) < count:
            raise ValueError(f"`components` = {count} must not exceed the {len(people)} people of the split {split!r}")
        chosen = people[np.linspace(0, len(people) - 1, count).astype(int)]
        rows = [part.index[part["subject"] == who][k % (part["subject"] == who).sum()] for k, who in enumerate(chosen)]
        return self.image(np.array(rows))


def load(root: str | Path) -> Brains:
    """Opens a prepared folder of brain slices.

    Raises:
        FileNotFoundError: If the folder, or a file of it, is missing.
        ValueError: If it holds no brain slices, contradicts itself, or is damaged.
    """
    root = Path(root)
    missing = [f for f in ("card.json", "slices.csv", "subjects.csv", "images.npy", "labels.npy") if not (root / f).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`data_root` = {str(root)!r} is no prepared folder of brain slices: {', '.join(missing)} missing; "
            "make one with `python -m data_prep`, or leave `data_root` empty for the phantom"
        )
    card = read_card(root, "brain", "brain slices", "identity", "pixel_mm")
    slices = _table(root / "slices.csv", "slice", "z_mm", "brain_mm2", "lesion_mm2")
    people = _table(root / "subjects.csv")
    for name, there in (("images", True), ("labels", True), ("twins", (root / "twins.npy").is_file())):
        if there:
            check_array(root / f"{name}.npy", "uint8" if name == "labels" else "float16", ndim=4)
    factors = _table(root / "factors.csv") if (root / "factors.csv").is_file() else pd.DataFrame()
    images, labels = (mapped(root / f"{name}.npy") for name in ("images", "labels"))
    twins = mapped(root / "twins.npy") if (root / "twins.npy").is_file() else None
    if len(images) != len(slices) or labels.shape != (len(images), 2, *images.shape[2:]):
        raise ValueError(
            f"{root} contradicts itself: images {tuple(images.shape)}, labels {tuple(labels.shape)}, {len(slices)} slices; prepare it again"
        )
    return Brains(root, card, slices, people, factors, images, labels, twins)


def _table(path: Path, *numbers: str) -> pd.DataFrame:
    """A table whose subjects stay text, a person called "NA" too; elsewhere an empty field is a gap."""
    others = [name for name in read_table(path, nrows=0).columns if name != "subject"]
    gaps = {name: ["", "nan"] for name in others}
    columns = ("subject",) if path.name == "factors.csv" else ("subject", "split")
    return read_table(path, columns=columns, numbers=numbers, dtype={"subject": str}, keep_default_na=False, na_values=gaps)
