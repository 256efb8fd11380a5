"""Does a walk do what it says? Volumes asked of a latent dimension against volumes measured on what the decoder draws.

A network that labels tissue measures areas on decoded images; `Ruler` turns them into volumes; `Dial` says which code asks
for which volume. Shapes: N subjects, V values along a walk, K attributes, D latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medvae_lite.datasets import Prepared

__all__ = [
    "Dial", "Ruler", "cross_talk", "expected_cross_talk", "followed", "kept_order", "region_areas", "regions", "shifted",
    "slopes",
]  # fmt: skip

MIN_AREA = 1.0
"""mm²: what a region that was not found counts as, below any pixel of the book's images."""


def regions(data: Prepared) -> list[tuple[int, int]]:
    """Image channel and label of the region each attribute is the volume of: "LVEDV" is "LV" in the frame "ED".

    Raises:
        ValueError: If an attribute is not called by a labelled tissue, a frame of `data` and "V".
    """
    labels = {name.lower(): int(label) for label, name in data.card["labels"].items()}
    found = []
    for attribute in data.attributes:
        hits = [
            (channel, label)
            for channel, frame in enumerate(data.frames)
            for name, label in labels.items()
            if attribute.endswith(f"{frame}V") and name.startswith(attribute.removesuffix(f"{frame}V").lower())
        ]
        if len(hits) != 1:
            raise ValueError(
                f"attribute {attribute!r} must be called by one of the tissues {sorted(labels)}, one of the frames "
                f"{list(data.frames)} and 'V', like 'LVEDV'"
            )
        found += hits
    return found


@torch.no_grad()
def region_areas(
    images: Float[Tensor, "b c s s"], data: Prepared, segment: Callable[[Tensor], Tensor], *, batch_size: int = 64
) -> Float[np.ndarray, "b k"]:
    """Area in mm² of each attribute's region, (B, K), as a network finds it in images (B, C, S, S).

    Arguments:
        data: Whose attributes and pixel size these are.
        segment: Frames (B, 1, S, S) to scores of the labels (B, L, S, S).
    """
    where, parts = regions(data), []
    for x in images.split(batch_size):
        found = segment(x.flatten(0, 1)[:, None]).argmax(1).unflatten(0, x.shape[:2])  # (B, C, S, S)
        parts.append(torch.stack([(found[:, channel] == label).sum((1, 2)) for channel, label in where], dim=1))
    return torch.cat(parts).cpu().numpy() * data.pixel_mm**2


@dataclass(frozen=True)
class Ruler:
    r"""Volume from the area of one slice, :math:`V_k = e^{c_k} A_k^{p_k}`.

    Each volume follows from its own area alone. A regression on all six would lend a volume the change of another area,
    and find cross-talk where there is none.

    Arguments:
        power: :math:`p_k`, (K,).
        log_scale: :math:`c_k`, (K,), for areas in mm² and volumes in mL.
    """

    power: Float[np.ndarray, "k"]
    log_scale: Float[np.ndarray, "k"]

    @classmethod
    def fit(cls, areas: Float[np.ndarray, "n k"], volumes: Float[np.ndarray, "n k"]) -> Ruler:
        """Least squares of the logarithms over subjects whose region was found."""
        lines = []
        for area, volume in zip(np.asarray(areas, float).T, np.asarray(volumes, float).T):
            seen = area > 0
            if seen.sum() < 3 or np.ptp(area[seen]) == 0:
                raise ValueError(f"`areas` must hold three or more different areas of every region, got {seen.sum()}")
            lines.append(np.polyfit(np.log(area[seen]), np.log(volume[seen]), 1))
        return cls(*np.array(lines).T)

    def __call__(self, areas: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Volumes in mL."""
        return np.exp(self.log_scale + self.power * np.log(np.maximum(areas, MIN_AREA)))


@dataclass(frozen=True)
class Dial:
    """One latent dimension read as one volume: equal quantiles of training codes and training volumes correspond.

    Arguments:
        dim: The dimension.
        codes: Training codes in it, in the order of the volume they stand for (ascending unless `sign` is -1), (N,).
        volumes: Training volumes, ascending, (N,).
        sign: -1 where the volume falls as the code rises.
    """

    dim: int
    codes: Float[np.ndarray, "n"]
    volumes: Float[np.ndarray, "n"]
    sign: int = 1

    @classmethod
    def fit(cls, z: Float[np.ndarray, "n d"], volume: Float[np.ndarray, "n"], dim: int, *, sign: int = 1) -> Dial:
        """From training codes (N, D) and one volume (N,) of the same subjects."""
        return cls(dim, sign * np.sort(sign * np.asarray(z, float)[:, dim]), np.sort(np.asarray(volume, float)), sign)

    def at(self, share: ArrayLike) -> tuple[NDArray, NDArray]:
        """Codes and volumes at quantiles, each (V,)."""
        share = np.asarray(share, float)
        codes = np.quantile(self.codes, share if self.sign > 0 else 1 - share)
        return codes, np.quantile(self.volumes, share)


def shifted(
    mu: Float[Tensor, "n d"], dim: int, values: Sequence[float] | NDArray, direction: ArrayLike | None = None
) -> Float[Tensor, "n v d"]:
    r"""Codes of a walk: dimension `dim` of each subject set to each value.

    Arguments:
        mu: Codes the walk starts from.
        direction: What every dimension moves for each unit that `dim` moves, (D,), with 1 at `dim`. None moves `dim`
            alone. The column :math:`\Sigma_{\cdot k} / \Sigma_{kk}` of the codes' covariance moves all as in the cohort.

    Raises:
        ValueError: If `direction` does not move `dim` itself by one.
    """
    alone = torch.zeros(mu.shape[1]).to(mu)
    alone[dim] = 1
    step = alone if direction is None else torch.as_tensor(np.asarray(direction)).to(mu)
    if not torch.isclose(step[dim], alone[dim]):
        raise ValueError(f"`direction` must be 1 at dimension {dim}, got {float(step[dim]):.3g}")
    moved = torch.as_tensor(np.asarray(values, float)).to(mu)[None] - mu[:, dim, None]  # (N, V)
    return mu[:, None] + moved[..., None] * step


def slopes(asked: Float[np.ndarray, "v"], found: Float[np.ndarray, "n v k"]) -> Float[np.ndarray, "k"]:
    """mL that each volume changes for each mL asked of one, (K,): least squares in each subject, then the mean."""
    centred = np.asarray(asked, float) - np.mean(asked)
    return np.einsum("v,nvk->nk", centred, found).mean(0) / (centred**2).sum()


def kept_order(found: Float[np.ndarray, "n v"]) -> float:
    """Share of the steps along a walk in which the volume that was to grow did grow."""
    return float((np.diff(found, axis=1) > 0).mean())


def cross_talk(
    asked: Float[np.ndarray, "k v"], found: Float[np.ndarray, "k n v k"], sd: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "k k"]:
    """Standard deviations that volume j (column) changes for each one asked of volume k (row).

    Arguments:
        asked: Volumes asked of each dimension, mL.
        found: All volumes measured on its walk, mL.
        sd: Standard deviation of each volume in the cohort, mL.
    """
    rows = [slopes(volumes, measured) for volumes, measured in zip(asked, found)]
    return np.array(rows) * np.asarray(sd)[:, None] / np.asarray(sd)[None]


def expected_cross_talk(volumes: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k k"]:
    """What a walk would change if it moved people along the cohort: the regression of j on k in sds is Pearson's r."""
    return np.corrcoef(volumes.T)


def followed(talk: Float[np.ndarray, "k k"], expected: Float[np.ndarray, "k k"]) -> float:
    """Share of the expected cross-talk that a walk shows: least squares through 0 over the off-diagonal entries.

    0: the walk moves its own volume only, or others at random. 1: the others come along as they do in the cohort.
    """
    off = ~np.eye(len(talk), dtype=bool)
    return float((talk[off] * expected[off]).sum() / (expected[off] ** 2).sum())
