"""Prepared datasets: from a folder on disk to batches on a device, split by subject.

A prepared folder holds `images.npy`, `labels.npy`, `subjects.csv` and `card.json`; whether it came from a phantom
or a cohort makes no difference here. Arrays stay memory-mapped until a batch asks for its rows, and pages once read can be
let go again: a folder may be larger than memory.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from medvae_lite.prepared_files import check_array, check_numbers, read_card, read_table

__all__ = ["Batch", "Prepared", "Split", "load", "mapped", "verify"]

SPLITS = ("train", "val", "test")
RELEASE_BYTES = 2**26
"""How much to read before letting go of the pages. The kernel maps their neighbours too: several times as much is resident then."""
_CHUNK = 1024  # subjects copied at a time by `Split.held`
# Where a mapped tensor's memory begins -> its mapping, for as long as some tensor lies in it.
_MAPPINGS: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()


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
    rows: Int[Tensor, "m"]  # this split's rows in the prepared folder
    reduce: int = 1  # stored pixels per pixel, along each axis
    channels: tuple[int, ...] | None = None  # stored frames to deliver; all when None
    places: Int[Tensor, "m"] | None = None  # where in the arrays the rows lie; at the rows themselves when None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, which: Int[Tensor, "b"] | slice = slice(None)) -> Batch:
        """Reads the subjects `which` (positions within this split; all by default)."""
        at = self._places[which]
        image, labels = self._read(at)
        return Batch(image.float(), self.attributes[at], labels, self.rows[which])

    @property
    def _places(self) -> Tensor:
        return self.rows if self.places is None else self.places

    def _read(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels as delivered, but for the type of the images, which is the stored one where nothing is averaged."""
        image, labels = self.images[at], self.labels[at]
        if self.channels is not None:
            image, labels = image[:, list(self.channels)], labels[:, list(self.channels)]
        if self.reduce > 1:
            # Grey values are averaged and labels are not: a mean of labels would invent tissue between two others.
            image = F.avg_pool2d(image.float(), self.reduce)
            labels = labels[..., self.reduce // 2 :: self.reduce, self.reduce // 2 :: self.reduce]
        return image, labels

    @property
    def bytes(self) -> int:
        """Memory that `held` takes."""
        first = self._places[:1]
        one = (*self._read(first), self.attributes[first], self.rows[:1], first)
        return len(self) * sum(t.numel() * t.element_size() for t in one)

    def held(self, device: torch.device | str) -> Split:
        """The same split with its own rows copied to `device`, as they are stored: the same batches, lying there.

        Averaged pixels are averaged before they are copied, so that no device rounds them its own way.
        """
        places = self._places
        arrays = [torch.empty((len(self), *t.shape[1:]), dtype=t.dtype, device=device) for t in self._read(places[:1])]
        for start in range(0, len(self), _CHUNK):
            for array, part in zip(arrays, self._read(places[start : start + _CHUNK]), strict=True):
                array[start : start + _CHUNK] = part.to(device)
            self.release()
        images, labels = arrays
        return replace(
            self, images=images, labels=labels, attributes=self.attributes[places].to(device), rows=self.rows.to(device),
            reduce=1, channels=None, places=torch.arange(len(self), device=device),
        )  # fmt: skip

    def release(self) -> None:
        """Lets go of the memory-mapped pages read so far; the next reader gets them from the file again.

        Nothing happens where nothing is mapped, where somebody has written to the arrays (what was written lives in those pages
        alone), and on systems that do not tell whether somebody has.
        """
        for tensor in (self.images, self.labels):
            mapping = _MAPPINGS.get(tensor.untyped_storage().data_ptr())
            if mapping is not None and _untouched(tensor.untyped_storage().data_ptr()):
                mapping.madvise(mmap.MADV_DONTNEED)

    def order(self, *, seed: int, epoch: int) -> Int[Tensor, "m"]:
        """The epoch's order of subjects. It depends on nothing but its arguments, so a resumed run sees the same."""
        entropy = np.random.SeedSequence([seed, epoch])
        return torch.from_numpy(np.random.default_rng(entropy).permutation(len(self)))

    def batches(self, size: int) -> Iterator[Batch]:
        """All subjects in stored order, `size` at a time."""
        one, read = self.bytes // max(1, len(self)), 0
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))
            read += size * one
            if read >= RELEASE_BYTES:
                self.release()
                read = 0


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
        ValueError: If a file is damaged, the files contradict each other, or `image_size` does not divide the stored size.
    """
    root = Path(root)
    missing = [f for f in ("card.json", "subjects.csv", "images.npy", "labels.npy") if not (root / f).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`data_root` = {str(root)!r} is no prepared dataset: {', '.join(missing)} missing; "
            "make one with `python -m data_prep`, or leave `data_root` empty for the phantom"
        )
    card = read_card(root, "cardiac", "pictures of hearts", "identity", "frames", "attributes", "pixel_mm")
    subjects = read_table(root / "subjects.csv", columns=("subject", "split"), dtype={"subject": str})
    strange = subjects.loc[~subjects["split"].isin(SPLITS), "split"]
    if len(strange):
        raise ValueError(f"{root / 'subjects.csv'} must name a split of {', '.join(SPLITS)}, got {strange.iloc[0]!r}; prepare the folder again")
    for name, dtype in (("images", "float16"), ("labels", "uint8")):
        check_array(root / f"{name}.npy", dtype, ndim=4)
    images, labels = mapped(root / "images.npy"), mapped(root / "labels.npy")
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
    check_numbers(subjects, columns, root / "subjects.csv")
    values = subjects.loc[subjects["split"] == "train", columns].to_numpy(float)
    mean, sd = values.mean(0), values.std(0, ddof=1)
    if not (np.isfinite(sd).all() and (sd > 0).all()):
        bad = [a for a, s in zip(names, sd) if not (np.isfinite(s) and s > 0)]
        raise ValueError(f"{root}: attribute {bad[0]} is constant in the training split; mend subjects.csv")
    pixel_mm = float(card["pixel_mm"]) * stored / size
    return Prepared(root, card, subjects, names, size, pixel_mm, mean, sd, images, labels, tuple(card["frames"]))


def mapped(path: Path) -> Tensor:
    """The array in a `.npy` file, memory-mapped: what is written to the tensor never reaches the file."""
    array = np.load(path, mmap_mode="c")
    tensor = torch.from_numpy(array)
    if isinstance(array.base, mmap.mmap):
        _MAPPINGS[tensor.data_ptr()] = array.base
    return tensor


def _untouched(address: int) -> bool:
    """Whether no page of the mapping around `address` was ever written to: only such pages can be read from the file again."""
    try:
        inside = False
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                head = line.partition(" ")[0]
                if not head.endswith(":"):
                    first, _, last = head.partition("-")
                    inside = int(first, 16) <= address < int(last, 16)
                elif inside and head in ("Anonymous:", "Swap:") and int(line.split()[1]):
                    return False
                elif inside and head == "VmFlags:":
                    return True
    except OSError:
        pass
    return False


def verify(root: str | Path) -> None:
    """Checks every file of a prepared folder against the sha256 in its card.

    Raises:
        ValueError: If a file differs from what was written.
    """
    root = Path(root)
    for name, expected in read_card(root, "", "", "files")["files"].items():
        try:
            with open(root / name, "rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{root / name} cannot be read ({type(error).__name__}); prepare it again") from None
        if found != expected:
            raise ValueError(f"{root / name} is not the file that was prepared (sha256 differs); prepare it again")
