"""Covariates as numbers: who a person is, in columns a network or a regression can use, and a refusal where it cannot.

A design is fitted on training people and remembers what it saw, so that a code it has never met (M and F where it
learned 1 and 0) or an age outside its range is refused or flagged, never used in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["AGES", "Design"]

log = logging.getLogger(__name__)

AGES = ("spline", "bins", "years")


@dataclass(frozen=True)
class Design:
    """The columns made of a table of people.

    Arguments:
        age: "spline" is a natural cubic spline, "bins" one column per tenth of the training people, "years" one column
            per year of age, as Kumar et al. 2022 do it.
        knots: Ages in years: the spline's knots, the bins' edges, or the years with a column.
        levels: Values of each category that were seen in training; the first has no column.
        mean, sd: Of the numeric columns in training: age and whatever `numbers` names.
        numbers: Further numeric columns of the table.
    """

    age: Literal["spline", "bins", "years"]
    knots: NDArray[np.float64]
    levels: dict[str, tuple[str, ...]]
    numbers: tuple[str, ...]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        people: pd.DataFrame,
        *,
        age: str = "spline",
        categories: Sequence[str] = ("sex", "site"),
        numbers: Sequence[str] = (),
    ) -> Design:
        """Learns ranges, knots and categories from training people, who have `age_years` and the named columns.

        Raises:
            ValueError: If a column is missing or has gaps, a category has a single person, or `age` is unknown.
        """
        if age not in AGES:
            raise ValueError(f"`age` must be one of {', '.join(AGES)}, got {age!r}")
        _whole(people, ("age_years", *categories, *numbers))
        years = people["age_years"].to_numpy(float)
        knots = {
            "spline": np.unique(np.quantile(years, (0, 0.25, 0.5, 0.75, 1))),
            "bins": np.unique(np.quantile(years, np.linspace(0, 1, 11))),
            "years": np.unique(years.round()),
        }[age]
        levels = {}
        for name in categories:
            counts = people[name].astype(str).value_counts()
            levels[name] = tuple(sorted(counts.index))
            if len(counts) > 1 and counts.min() < 2:
                raise ValueError(f"`{name}` = {counts.idxmin()!r} has one person in training; join it with another or leave it out")
        values = people[["age_years", *numbers]].to_numpy(float)
        sd = values.std(0)
        return cls(age, knots, levels, tuple(numbers), values.mean(0), np.where(sd > 0, sd, 1.0))

    def outside(self, people: pd.DataFrame) -> NDArray[np.bool_]:
        """Whose age lies outside the training people's, with shape (N,)."""
        years = people["age_years"].to_numpy(float)
        if self.age == "years":
            return ~np.isin(years.round(), self.knots)
        return (years < self.knots[0]) | (years > self.knots[-1])

    def __call__(self, people: pd.DataFrame, *, beyond: Literal["refuse", "flag"] = "refuse") -> NDArray[np.float32]:
        """The design's columns, without a constant one, with shape (N, C).

        Arguments:
            people: A row a person.
            beyond: What to do with ages never seen in training: refuse them, or say so in the log and treat them as
                the nearest age that was seen (`outside` tells whose they are).

        Raises:
            ValueError: If a category was never seen, a column is missing or has gaps, or an age is refused.
        """
        _whole(people, ("age_years", *self.levels, *self.numbers))
        years = people["age_years"].to_numpy(float)
        outside = self.outside(people)
        if outside.any():
            example = f"{years[outside][0]:g} years ({outside.sum()} of {len(years)} people)"
            low, high = self.knots[[0, -1]]
            if beyond == "refuse":
                raise ValueError(f"`age_years` must be among those of training, {low:g} to {high:g}, got {example}; leave them out or flag them")
            log.warning("ages outside the %g to %g years of training, treated as the nearest: %s", low, high, example)
        parts = [self._age(years), *(self._category(people, name) for name in self.levels)]
        if self.numbers:
            parts.append((people[list(self.numbers)].to_numpy(float) - self.mean[1:]) / self.sd[1:])
        return np.concatenate(parts, 1).astype(np.float32)

    def _age(self, years: NDArray) -> NDArray:
        if self.age == "spline":
            years = np.clip(years, self.knots[0], self.knots[-1])
            return natural_spline((years - self.mean[0]) / self.sd[0], (self.knots - self.mean[0]) / self.sd[0])
        if self.age == "bins":
            place = np.searchsorted(self.knots[1:-1], years, side="right")
            return np.eye(len(self.knots) - 1)[place]
        nearest = np.abs(years.round()[:, None] - self.knots).argmin(1)
        return np.eye(len(self.knots))[nearest]

    def _category(self, people: pd.DataFrame, name: str) -> NDArray:
        values, known = people[name].astype(str).to_numpy(), self.levels[name]
        unseen = sorted(set(values) - set(known))
        if unseen:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, as in training, got {unseen[0]!r}")
        return (values[:, None] == np.array(known[1:], dtype=object)).astype(float)


def natural_spline(x: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Natural cubic spline columns, linear beyond the outer knots, with shape :math:`(N, K - 1)`.

    The first column is :math:`x`, the others are :math:`d_k - d_{K-1}` with
    :math:`d_k = \big[(x - \xi_k)_+^3 - (x - \xi_K)_+^3\big] / (\xi_K - \xi_k)` (Hastie, Tibshirani & Friedman 2009, eq. 5.4).
    """
    if len(knots) < 3:
        return x[:, None]
    cubes = np.maximum(x[:, None] - knots, 0) ** 3
    d = (cubes[:, :-1] - cubes[:, -1:]) / (knots[-1] - knots[:-1])
    return np.column_stack([x, d[:, :-1] - d[:, -1:]])


def _whole(people: pd.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in people:
            raise ValueError(f"`people` must have a column {name!r}, got {', '.join(map(str, people.columns))}")
        if people[name].isna().any():
            raise ValueError(f"`{name}` must be known for everyone, but {int(people[name].isna().sum())} people have none; fill it in or leave them out")
