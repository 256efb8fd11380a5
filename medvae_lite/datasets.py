"""Prepared datasets: from a folder on disk to batches on a device, split by subject.

A prepared folder holds `images.npy`, `labels.npy`, `subjects.csv` and `card.json`; whether it came from a phantom
or a cohort makes no difference here. Arrays stay memory-mapped until a batch asks for its rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

__all__ = ["Batch", "Prepared", "Split", "load", "verify"]

SPLITS = ("train", "val", "test")


class Batch(NamedTuple):
    """What a loss sees.

    Arguments:
        image: Grey values in [0, 1], with shape (B, C, H, W).
        attributes: Attributes in standard deviations of the training split, with shape (B, K).
        labels: Label maps, with shape (B, C, H, W).
        index: Rows in the prepared folder, with shape (B,).
    """

    image: Float[Tensor, "b c h w"]
    attributes: Float[Tensor, "b k"]
    labels: UInt8[Tensor, "b c h w"]
    index: Int[Tensor, "b"]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device) for t in self))


@dataclass(frozen=True)
class Split:
    """The subjects of one split; `batch` reads some of them, `batches` all of them in a seeded order."""

    images: Tensor  # (N, C, H', W') float16, all subjects, perhaps memory-mapped
    labels: Tensor  # (N, C, H', W') uint8
    attributes: Float[Tensor, "n k"]  # standardised
    rows: Int[Tensor, "m"]  # this split's rows
    reduce: int = 1  # stored pixels per pixel, along each axis
    channels: tuple[int, ...] | None = None  # stored frames to deliver; all when None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, which: Int[Tensor, "b"] | slice = slice(None)) -> Batch:
        """Reads the subjects `which` (positions within this split; all by default)."""
        rows = self.rows[which]
        image, labels = self.images[rows].float(), self.labels[rows]
        if self.channels is not None:
            image, labels = image[:, list(self.channels)], labels[:, list(self.channels)]
        if self.reduce > 1:
            # Grey values are averaged and labels are not: a mean of labels would invent tissue between two others.
            image = F.avg_pool2d(image, self.reduce)
            labels = labels[..., self.reduce // 2 :: self.reduce, self.reduce // 2 :: self.reduce]
        return Batch(image, self.attributes[rows], labels, rows)

    def order(self, *, seed: int, epoch: int) -> Int[Tensor, "m"]:
        """The epoch's order of subjects. It depends on nothing but its arguments, so a resumed run sees the same."""
        entropy = np.random.SeedSequence([seed, epoch])
        return torch.from_numpy(np.random.default_rng(entropy).permutation(len(self)))

    def batches(self, size: int) -> Iterator[Batch]:
        """All subjects in stored order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))


@dataclass(frozen=True)
class Prepared:
    """A prepared folder.

    Arguments:
        root: Where it is.
        card: The contents of `card.json`.
        subjects: One row per subject, in the order of the arrays.
        attributes: Attribute names; latent dimension `k` is regularised with attribute `k`.
        size: Image height and width in pixels as delivered, after block averaging.
        pixel_mm: Pixel spacing in mm as delivered.
        mean, sd: Training-split mean and standard deviation of the attributes, in their units, with shape (K,).
        frames: Names of the frames delivered, one an image channel.
    """

    root: Path
    card: dict
    subjects: pd.DataFrame
    attributes: tuple[str, ...]
    size: int
    pixel_mm: float
    mean: np.ndarray
    sd: np.ndarray
    images: Tensor
    labels: Tensor
    frames: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Hash of the recipe that made the folder, of the delivered size and of the frames left out."""
        left = "" if list(self.frames) == self.card["frames"] else "+".join(self.frames)
        return hashlib.sha256(f"{self.card['identity']}@{self.size}{left}".encode()).hexdigest()

    def only(self, frame: str) -> Prepared:
        """The same subjects seen in one frame, with the attributes measured in it (those whose names hold its name).

        Raises:
            ValueError: If there is no such frame.
        """
        if frame not in self.card["frames"]:
            raise ValueError(f"`frame` must be one of {', '.join(self.card['frames'])}, got {frame!r}")
        own = [k for k, name in enumerate(self.attributes) if frame in name]
        names = tuple(self.attributes[k] for k in own)
        return replace(self, attributes=names, mean=self.mean[own], sd=self.sd[own], frames=(frame,))

    @property
    def attribute_ml(self) -> np.ndarray:
        """The attributes in mL, with shape (N, K)."""
        return self.subjects[[f"{a}_ml" for a in self.attributes]].to_numpy(float)

    def split(self, name: str) -> Split:
        """One of the splits "train", "val", "test".

        Raises:
            ValueError: If there is no such split, or it is empty.
        """
        rows = np.flatnonzero(self.subjects["split"] == name)
        if not len(rows):
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)} with subjects in {self.root}, got {name!r}")
        standardised = ((self.attribute_ml - self.mean) / self.sd).astype(np.float32)
        return Split(
            images=self.images,
            labels=self.labels,
            attributes=torch.from_numpy(standardised),
            rows=torch.from_numpy(rows),
            reduce=self.images.shape[-1] // self.size,
            channels=tuple(map(self.card["frames"].index, self.frames)) if len(self.frames) == 1 else None,
        )


def load(root: str | Path, *, image_size: int | None = None) -> Prepared:
    """Opens a prepared folder.

    Arguments:
        root: The folder.
        image_size: Pixels per side to deliver, by averaging blocks of the stored pixels; as stored when None.

    Raises:
        FileNotFoundError: If the folder, or a file of it, is missing.
        ValueError: If the files contradict each other, or `image_size` does not divide the stored size.
    """
    root = Path(root)
    missing = [f for f in ("card.json", "subjects.csv", "images.npy", "labels.npy") if not (root / f).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`data_root` = {str(root)!r} is no prepared dataset: {', '.join(missing)} missing; "
            "make one with `python -m data_prep`, or leave `data_root` empty for the phantom"
        )
    card = json.loads((root / "card.json").read_text())
    subjects = pd.read_csv(root / "subjects.csv", dtype={"subject": str})
    images = torch.from_numpy(np.load(root / "images.npy", mmap_mode="c"))
    labels = torch.from_numpy(np.load(root / "labels.npy", mmap_mode="c"))
    if images.shape != labels.shape or len(images) != len(subjects):
        raise ValueError(
            f"{root} contradicts itself: images {tuple(images.shape)}, labels {tuple(labels.shape)}, "
            f"{len(subjects)} subjects; prepare it again"
        )
    stored = images.shape[-1]
    size = stored if image_size is None else image_size
    if size < 1 or stored % size:
        raise ValueError(f"`image_size` = {size} must divide the {stored} stored pixels of {root} without remainder")
    names = tuple(card["attributes"])
    columns = [f"{a}_ml" for a in names]
    absent = [c for c in columns if c not in subjects]
    if absent or subjects[columns].isna().to_numpy().any():
        bad = absent or [c for c in columns if subjects[c].isna().any()]
        raise ValueError(f"{root / 'subjects.csv'}: column {bad[0]} is missing or has gaps; prepare the folder again")
    values = subjects.loc[subjects["split"] == "train", columns].to_numpy(float)
    mean, sd = values.mean(0), values.std(0, ddof=1)
    if not (np.isfinite(sd).all() and (sd > 0).all()):
        bad = [a for a, s in zip(names, sd) if not (np.isfinite(s) and s > 0)]
        raise ValueError(f"{root}: attribute {bad[0]} is constant in the training split; mend subjects.csv")
    pixel_mm = float(card["pixel_mm"]) * stored / size
    return Prepared(root, card, subjects, names, size, pixel_mm, mean, sd, images, labels, tuple(card["frames"]))


def verify(root: str | Path) -> None:
    """Checks every file of a prepared folder against the sha256 in its card.

    Raises:
        ValueError: If a file differs from what was written.
    """
    root = Path(root)
    for name, expected in json.loads((root / "card.json").read_text())["files"].items():
        with open(root / name, "rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != expected:
            raise ValueError(f"{root / name} is not the file that was prepared (sha256 differs); prepare it again")
