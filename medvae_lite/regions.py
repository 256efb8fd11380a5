"""Prepared region tables: from a folder on disk to standardised columns, a covariate design, and splits to train on.

A table is, to the training loop, a batch of images one pixel in size with a channel per region: `image` holds the
standardised regions, `labels` which of them were measured, `attributes` the covariates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from medvae_lite.covariates import Design
from medvae_lite.datasets import Split
from medvae_lite.prepared_files import check_array, read_card, read_table

__all__ = ["HOLDOUT_LEAST", "Regions", "TableSplit", "load"]

HOLDOUT_LEAST = 30
"""Fewest people a calibration holdout may have: below, the standard deviation itself is known to no better than 13 %."""


class TableSplit(Split):
    """The people of one split. The order of an epoch is drawn once and not at every step: half a million people take time."""

    def order(self, *, seed: int, epoch: int):
        held = self.__dict__.get("_held")
        if held is None or held[0] != (seed, epoch):
            held = ((seed, epoch), super().order(seed=seed, epoch=epoch))
            object.__setattr__(self, "_held", held)
        return held[1]


@dataclass(frozen=True)
class Regions:
    """A prepared folder of region tables, with a recipe for its columns.

    Arguments:
        root: Where it is.
        card: The contents of `card.json`.
        people: One row a person: `subject`, `split`, `group`, `cohort`, `age_years`, `sex`, `site`, `icv_mm3`, test scores.
        modalities: Regions of each modality, in the order of the columns.
        raw: Regions in the units of the card, NaN where a modality was not measured, with shape (N, F).
        icv: "covariate" gives log ICV to the model beside age and sex; "divide" divides every volume by it.
        scaling: "zscore" standardises on the training people; "minmax" maps their range to [0, 1].
        age: How age enters the covariates (`medvae_lite.covariates.Design`).
        categories: Columns of `people` that enter the covariates.
    """

    root: Path
    card: dict
    people: pd.DataFrame
    modalities: dict[str, tuple[str, ...]]
    raw: NDArray[np.float64]
    icv: Literal["covariate", "divide"] = "covariate"
    scaling: Literal["zscore", "minmax"] = "zscore"
    age: Literal["spline", "bins", "years"] = "spline"
    categories: tuple[str, ...] = ("sex", "site")

    def __post_init__(self):
        for name, value, known in (("icv", self.icv, ("covariate", "divide")), ("scaling", self.scaling, ("zscore", "minmax"))):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}")

    @property
    def identity(self) -> str:
        """Hash of the recipe that made the folder and of the columns made of it."""
        parts = [self.card["identity"], self.regions, self.icv, self.scaling, self.age, self.categories]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(name for names in self.modalities.values() for name in names)

    @property
    def sizes(self) -> dict[str, int]:
        """Columns of each modality."""
        return {name: len(regions) for name, regions in self.modalities.items()}

    def only(self, *names: str) -> Regions:
        """The same people seen in some of the modalities.

        Raises:
            ValueError: If there is no such modality.
        """
        unknown = [name for name in names if name not in self.modalities]
        if unknown or not names:
            raise ValueError(f"modalities must be among {', '.join(self.modalities)}, got {', '.join(names) or 'none'}")
        chosen = {name: self.modalities[name] for name in self.modalities if name in names}
        return self._with(chosen)

    def joined(self) -> Regions:
        """All columns as one modality, for the baseline that concatenates them. It has no way to leave one out: what a person
        lacks is given to its encoder as the training mean."""
        return replace(self, modalities={"all": self.regions})

    def _with(self, modalities: Mapping[str, Sequence[str]]) -> Regions:
        columns = [self.regions.index(name) for names in modalities.values() for name in names]
        return replace(self, modalities={k: tuple(v) for k, v in modalities.items()}, raw=self.raw[:, columns])

    def rows(self, split: str, *, group: str = "") -> NDArray[np.int64]:
        """Rows of one split (or, for "healthy", of everyone healthy), in stored order.

        Raises:
            ValueError: If nobody is in it, or the holdout is too small to calibrate with.
        """
        people = self.people
        inside = people["group"] == self.card["healthy"] if split == "healthy" else people["split"] == split
        found = np.flatnonzero(inside & (people["group"] == group if group else True))
        if not len(found):
            known = ", ".join(people["split"].unique())
            raise ValueError(f"`split` must be one of {known} with people in it, got {split!r}{f' and group {group!r}' if group else ''}")
        if split == "holdout" and len(found) < HOLDOUT_LEAST:
            raise ValueError(f"`holdout` must have at least {HOLDOUT_LEAST} healthy people to calibrate with, got {len(found)}; prepare it with a larger share")
        return found

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """Regions in the units of the card, or per ICV when divided by it, with shape (N, F)."""
        return self.raw / self.people["icv_mm3"].to_numpy()[:, None] if self.icv == "divide" else self.raw

    @cached_property
    def scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Offset and width of every column, from the training people, each with shape (F,).

        Raises:
            ValueError: If nobody in training has some modality.
        """
        known = self.values[self.rows("train")]
        absent = ~np.isfinite(known).any(0)
        if absent.any():
            modality = next(name for name, names in self.modalities.items() if self.regions[int(absent.argmax())] in names)
            raise ValueError(f"the modality {modality!r} is missing for everyone in the training split; leave it out with `only`")
        if self.scaling == "minmax":
            low = np.nanmin(known, 0)
            return low, np.nanmax(known, 0) - low
        return np.nanmean(known, 0), np.nanstd(known, 0, ddof=1)

    @cached_property
    def x(self) -> NDArray[np.float64]:
        """Scaled regions, with shape (N, F); NaN where a modality was not measured."""
        offset, width = self.scale
        if not (width > 0).all():
            raise ValueError(f"{self.regions[int(np.argmin(width > 0))]!r} is constant in the training split; leave it out")
        return (self.values - offset) / width

    @cached_property
    def design(self) -> Design:
        """The covariates, fitted on the training people."""
        people = self.table.iloc[self.rows("train")]
        return Design.fit(people, age=self.age, categories=self.categories, numbers=("log_icv",) if self.icv == "covariate" else ())

    @cached_property
    def table(self) -> pd.DataFrame:
        """`people` and the logarithm of their ICV."""
        return self.people.assign(log_icv=np.log(self.people["icv_mm3"]))

    @cached_property
    def covariates(self) -> NDArray[np.float32]:
        """Columns of the design, with shape (N, C). Ages beyond those of training are flagged in the log, once."""
        return self.design(self.table, beyond="flag")

    def split(self, name: str) -> Split:
        """One of the splits, for training.

        Raises:
            ValueError: If nobody is in it.
        """
        return self.people_at(self.rows(name))

    def people_at(self, rows: NDArray[np.int64]) -> Split:
        """Some people, for training.

        Raises:
            ValueError: If none of them has some modality.
        """
        x = self.x[rows]
        seen = np.isfinite(x)
        for modality, columns in zip(self.modalities, np.split(seen, np.cumsum(list(self.sizes.values()))[:-1], axis=1)):
            if not columns.any():
                raise ValueError(f"the modality {modality!r} is missing for everyone here; leave it out, or choose other people")
        return TableSplit(
            images=torch.from_numpy(np.where(seen, x, 0).astype(np.float32))[:, :, None, None],
            labels=torch.from_numpy(seen.astype(np.uint8))[:, :, None, None],
            attributes=torch.from_numpy(self.covariates[rows]),
            rows=torch.arange(len(rows)),
        )


def load(root: str | Path, *, aggregates: bool = False, **recipe) -> Regions:
    """Opens a prepared folder of region tables.

    Arguments:
        root: The folder.
        aggregates: Keep the columns that are sums of others.
        recipe: `icv`, `scaling`, `age`, `categories`, as in `Regions`.

    Raises:
        FileNotFoundError: If the folder, or a file of it, is missing.
        ValueError: If it holds no region tables, contradicts itself, or is damaged.
    """
    root = Path(root)
    missing = [f for f in ("card.json", "subjects.csv", "regions.npy") if not (root / f).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`data_root` = {str(root)!r} is no prepared region table: {', '.join(missing)} missing; "
            "make one with `python -m data_prep`, or leave `data_root` empty for the phantom"
        )
    card = read_card(root, "regions", "region tables", "identity", "modalities", "scores", "aggregates", "healthy")
    text = {name: str for name in ("subject", "split", "cohort", "group", "sex", "site")}
    people = read_table(
        root / "subjects.csv", columns=tuple(text), numbers=("age_years", "icv_mm3"),
        dtype=text, keep_default_na=False, na_values={c: [""] for c in card["scores"]},
    )  # fmt: skip
    check_array(root / "regions.npy", "float32", ndim=2)
    raw = np.load(root / "regions.npy").astype(np.float64)
    modalities = {name: tuple(m["regions"]) for name, m in card["modalities"].items()}
    columns = sum(map(len, modalities.values()))
    if raw.shape != (len(people), columns):
        raise ValueError(f"{root} contradicts itself: regions {raw.shape}, {len(people)} people, {columns} names; prepare it again")
    for name, part in zip(modalities, np.split(raw, np.cumsum([len(names) for names in modalities.values()])[:-1], axis=1)):
        absent = np.isnan(part)
        if (absent.any(1) & ~absent.all(1)).any() or np.isinf(part).any():
            raise ValueError(f"{root}: regions of {name} have gaps within a person or are not finite; prepare the folder again")
    data = Regions(root, card, people, modalities, raw, **recipe)
    left_out = set() if aggregates else set(card["aggregates"])
    return data._with({k: [n for n in names if n not in left_out] for k, names in modalities.items()}) if left_out else data
