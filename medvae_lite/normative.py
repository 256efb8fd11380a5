r"""Normative statistics: from what a model leaves unexplained to a calibrated statement about one person.

Arrays in, numbers out. A deviation :math:`d_{ij} = x_{ij} - \hat x_{ij}` of person :math:`i` in region :math:`j` is in the
scale of the model's input; a region that was not measured is NaN, and stays so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import LedoitWolf

__all__ = [
    "HEALTHY_MEAN", "Calibration", "Check", "Interval", "Mahalanobis", "PCAResidual", "Regression", "check",
    "correlation", "likelihood_ratio", "mean_deviation", "p_values", "significant", "slope", "usable_eigenvalues",
]  # fmt: skip

Array = NDArray[np.float64]

HEALTHY_MEAN = float(np.sqrt(2 / np.pi))
"""Mean of :math:`|z|` of a standard normal, 0.798: what healthy people must show."""


@dataclass(frozen=True)
class Calibration:
    r"""Mean and spread of healthy people's deviations, to turn anyone's into z.

    .. math:: z_{ij} = \frac{d_{ij} - \bar d_j}{s_j}

    Source: Kumar et al. 2022 (the pipeline's figure), with :math:`\bar d_j` and :math:`s_j` (ddof 1) of a holdout that
    nothing else has touched.

    Arguments:
        mean, sd: Of each region, with shape (F,).
        count: People behind each of them, with shape (F,).
    """

    mean: Array
    sd: Array
    count: NDArray[np.int64]

    @classmethod
    def fit(cls, d: Array, *, least: int = 30) -> Calibration:
        """Learns from holdout deviations (N, F).

        Raises:
            ValueError: If a region has fewer than `least` people, or does not vary.
        """
        count = np.isfinite(d).sum(0)
        if count.min() < least:
            raise ValueError(f"the holdout must have at least {least} healthy people in every region, got {count.min()}; hold out more")
        sd = np.nanstd(d, 0, ddof=1)
        if not (sd > 0).all():
            raise ValueError(f"region {int(np.argmin(sd > 0))} of the holdout does not vary; leave it out")
        return cls(np.nanmean(d, 0), sd, count)

    def __call__(self, d: Array, *, exact: bool = True) -> Array:
        r"""z of deviations (N, F).

        Arguments:
            exact: Correct for the holdout being finite: :math:`(d - \bar d) / (s \sqrt{1 + 1/n})` of a new healthy person
                follows Student's t with n - 1 degrees of freedom; it is mapped to the normal quantile of the same rank.
                Without it 37 people give false positives at 6.1 % instead of 5.
        """
        z = (d - self.mean) / self.sd
        if not exact:
            return z
        t = z / np.sqrt(1 + 1 / self.count)
        # By the lower tail of -|t|, where neither distribution rounds to 1.
        return -np.sign(t) * stats.norm.ppf(stats.t.cdf(-np.abs(t), self.count - 1))


class Check(NamedTuple):
    """What healthy people nobody has used must show."""

    people: int
    mean_abs: float
    false_positives: float

    @property
    def passed(self) -> bool:
        """Mean absolute z 0.80 ± 0.05, and 5 ± 1 % beyond 1.96."""
        return abs(self.mean_abs - HEALTHY_MEAN) <= 0.05 and abs(self.false_positives - 0.05) <= 0.01

    def __str__(self) -> str:
        verdict = "calibrated" if self.passed else "NOT calibrated"
        return f"{verdict}: {self.people} healthy people, mean |z| {self.mean_abs:.2f} (0.80 ± 0.05), beyond 1.96 {self.false_positives:.1%} (5 ± 1)"


def check(z: Array) -> Check:
    """The calibration check on z (N, F) of healthy test people."""
    return Check(len(z), float(np.nanmean(np.abs(z))), float(np.nanmean(np.abs(z[np.isfinite(z)]) > stats.norm.ppf(0.975))))


def mean_deviation(z: Array) -> Array:
    r"""Mean deviation of a person, :math:`D_i = \frac1F \sum_j |z_{ij}|`, with shape (N,)."""
    return np.nanmean(np.abs(z), 1)


def p_values(z: Array, *, mode: str = "two-sided") -> Array:
    """p of every z, the same shape. "published" is the public code's: one-sided, of an absolute value: half of it.

    Raises:
        ValueError: If `mode` is neither "two-sided" nor "published".
    """
    if mode not in ("two-sided", "published"):
        raise ValueError(f"`mode` must be one of two-sided, published, got {mode!r}")
    return stats.norm.sf(np.abs(z)) * (2 if mode == "two-sided" else 1)


def significant(p: Array, *, rate: float = 0.05, within: str = "person") -> NDArray[np.bool_]:
    """Which p (N, F) count, at a false discovery rate (Benjamini & Hochberg 1995), or each at `rate` for "none".

    Arguments:
        within: The family of tests: the regions of one "person" (a statement about that person), or the people of one
            "region" as in the public code, where who else is in the table decides about you; or "none".

    Raises:
        ValueError: If `within` is none of these.
    """
    if within not in ("person", "region", "none"):
        raise ValueError(f"`within` must be one of person, region, none, got {within!r}")
    if within == "none":
        return p < rate
    rows = p if within == "person" else p.T
    found = np.zeros(rows.shape, bool)
    for row, out in zip(rows, found):
        known = np.isfinite(row)
        if known.any():
            out[known] = stats.false_discovery_control(row[known]) <= rate
    return found if within == "person" else found.T


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def correlation(a: Array, b: Array) -> Interval:
    """Pearson r of those for whom both are known, with Fisher's interval."""
    known = np.isfinite(a) & np.isfinite(b)
    found = stats.pearsonr(a[known], b[known])
    low, high = found.confidence_interval()
    return Interval(float(found.statistic), float(low), float(high))


def slope(d: Array, group: Sequence | NDArray, order: Sequence) -> Interval:
    """Least-squares slope of the group means on 1, 2, ..., in units of `d`; its interval from the means' standard errors.

    Source: Kumar et al. 2022, who give it without an interval.
    """
    group, steps = np.asarray(group), np.arange(len(order)) - (len(order) - 1) / 2
    parts = [d[group == name] for name in order]
    if min(map(len, parts)) < 2:
        raise ValueError(f"every group of {', '.join(map(str, order))} must have two people or more")
    weights = steps / (steps**2).sum()
    value = float(weights @ [part.mean() for part in parts])
    error = float(np.sqrt(weights**2 @ [part.var(ddof=1) / len(part) for part in parts]))
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def likelihood_ratio(flagged: NDArray[np.bool_], healthy: NDArray[np.bool_]) -> Interval:
    r"""Share of patients flagged over share of healthy people flagged, with its interval.

    Half a person is added to each count (Walter 1975), so that nobody flagged among the healthy is not infinity, and
    the interval is the normal one of the logarithm. With 65 healthy people and p < .001 it spans a factor of ten.
    """
    a, n, b, m = flagged.sum() + 0.5, len(flagged) + 0.5, healthy.sum() + 0.5, len(healthy) + 0.5
    error = np.sqrt(1 / a - 1 / n + 1 / b - 1 / m)
    value = (a / n) / (b / m)
    return Interval(float(value), float(value * np.exp(-1.96 * error)), float(value * np.exp(1.96 * error)))


@dataclass(frozen=True)
class Mahalanobis:
    r"""Squared distance :math:`(v - \mu)^\top \Sigma^{-1} (v - \mu)` from healthy people, of deviations or of codes.

    Arguments:
        mean: With shape (F,).
        precision: :math:`\Sigma^{-1}`, with shape (F, F).
    """

    mean: Array
    precision: Array

    @classmethod
    def fit(cls, v: Array, *, shrink: bool = False) -> Mahalanobis:
        """From training people (N, F), N well above F.

        Arguments:
            shrink: Draw the covariance towards a sphere (Ledoit & Wolf 2004), which allows fewer people; distances then no
                longer follow chi-squared, and are compared with healthy people's.

        Raises:
            ValueError: If there are fewer than twice as many people as columns, and `shrink` is not set.
        """
        if not shrink and len(v) < 2 * v.shape[1]:
            raise ValueError(f"a covariance of {v.shape[1]} columns needs at least {2 * v.shape[1]} people, got {len(v)}; give more, or `shrink`")
        return cls(v.mean(0), np.linalg.inv(LedoitWolf().fit(v).covariance_ if shrink else np.cov(v.T)))

    def __call__(self, v: Array) -> Array:
        """Squared distances (N,)."""
        centred = v - self.mean
        return np.einsum("nf,fg,ng->n", centred, self.precision, centred)

    def p(self, v: Array, *, mode: Literal["default", "published"] = "default") -> Array:
        """p of the distances by chi-squared with F degrees of freedom; "published" takes F - 1, which flags too many."""
        return stats.chi2.sf(self(v), v.shape[1] - (mode == "published"))


@dataclass(frozen=True)
class Regression:
    """The oldest normative model: each region on the covariates, by least squares.

    Arguments:
        weights: Intercept first, with shape (C + 1, F).
    """

    weights: Array

    @classmethod
    def fit(cls, x: Array, c: Array) -> Regression:
        """From regions (N, F) and covariates (N, C) of training people."""
        return cls(np.linalg.lstsq(_with_one(c), x, rcond=None)[0])

    def residual(self, x: Array, c: Array) -> Array:
        """What the covariates leave unexplained, (N, F)."""
        return x - _with_one(c) @ self.weights


@dataclass(frozen=True)
class PCAResidual:
    r"""Regression on the covariates, then probabilistic principal components of what is left: the best linear VAE.

    .. math:: \hat r = W (W_s^\top W_s + \sigma^2 I)^{-1} W_s^\top r_s

    from the columns :math:`s` it may look at (Tipping & Bishop 1999, section 3).

    Arguments:
        regression: The first step.
        mean: Of the residuals in training, with shape (F,).
        loadings: :math:`W`, with shape (F, K).
        noise: :math:`\sigma^2`, the mean of the eigenvalues left out.
    """

    regression: Regression
    mean: Array
    loadings: Array
    noise: float

    @classmethod
    def fit(cls, x: Array, c: Array, *, components: int) -> PCAResidual:
        """From regions (N, F) and covariates (N, C) of training people."""
        regression = Regression.fit(x, c)
        left = regression.residual(x, c)
        values, vectors = np.linalg.eigh(np.cov(left.T))
        noise = float(values[:-components].mean())
        return cls(regression, left.mean(0), vectors[:, -components:] * np.sqrt(values[-components:] - noise), noise)

    def residual(self, x: Array, c: Array, measured: NDArray[np.bool_] | None = None) -> Array:
        """What covariates and components leave unexplained, (N, F).

        Arguments:
            measured: Columns the components may look at, with shape (F,); the others are predicted from them.
        """
        left = self.regression.residual(x, c) - self.mean
        seen = np.ones(x.shape[1], bool) if measured is None else measured
        inside = self.loadings[seen]
        score = np.linalg.solve(inside.T @ inside + self.noise * np.eye(inside.shape[1]), inside.T @ left[:, seen].T).T
        return left - score @ self.loadings.T


def _with_one(c: Array) -> Array:
    return np.column_stack([np.ones(len(c)), c])


def usable_eigenvalues(x: Array, c: Array, *, weight: float, beta: float) -> tuple[Array, int]:
    r"""Pre-flight: how many latent dimensions a VAE can use on these data, before training it.

    With the loss :math:`w \sum (x - \hat x)^2 + \beta\,\mathrm{KL}` a linear VAE uses a direction only if the variance
    along it, the eigenvalue of the covariance after the covariates, is above :math:`\beta / (2 w)`; below, coding it
    costs more nats than it saves. (A Gaussian likelihood of variance :math:`\sigma^2` has :math:`w = 1 / 2\sigma^2`; then this is
    probabilistic PCA's rule, Tipping & Bishop 1999, Lucas et al. 2019.)

    Arguments:
        x: Scaled regions of training people, with shape (N, F).
        c: Their covariates, with shape (N, C).

    Returns:
        Eigenvalues, largest first, with shape (F,), and how many are usable.
    """
    values = np.linalg.eigvalsh(np.cov(Regression.fit(x, c).residual(x, c).T))[::-1]
    return values, int((values > beta / (2 * weight)).sum())
