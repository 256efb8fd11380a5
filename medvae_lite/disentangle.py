"""How well a latent code separates known attributes: codes (N, D) and attributes (N, K) in, numbers out.

Every metric has two modes. "reference" follows the public evaluation code of Di Folco et al. (MICCAI 2024)
definition by definition. "default" mends what makes those figures hard to read: codes are standardised,
collapsed dimensions dropped and counted, R² scored on subjects the line was not fitted to, and no
correlation is set to 0 for its p-value. Give either mode posterior means, not samples, and quote a score
beside `chance` and `ceiling`: it depends on N, on D and on how the attributes correlate among themselves.
Shared arguments and errors are described once, at `mutual_information`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import joblib
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.feature_selection import mutual_info_regression
from sklearn.metrics import r2_score

__all__ = [
    "ACTIVE_VARIANCE", "Disentanglement", "Interval", "ceiling", "chance", "correlation", "evaluate",
    "interpretability", "modularity", "modularity_rows", "mutual_information", "sap", "scc",
    "subsample_interval",
]

Mode = Literal["default", "reference"]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ACTIVE_VARIANCE = 0.01
"""A dimension is active if its posterior mean varies by more over subjects (Burda et al. 2016, sec. 5.2)."""
TAILS = (0.025, 0.975)
_THREADED = 2**16  # codes times dimensions from which threads save more than they cost to start


class Interval(NamedTuple):
    """A value and the range `low` to `high` around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Disentanglement:
    """All metrics of one set of codes. Arrays have one entry an attribute, in the order of `names`.

    `dimension` is the most informative one for each attribute, where Interpretability is scored: not always
    the regularised one. `modularity_informative` weights dimensions by their largest mutual information,
    `modularity_dims` averages the `dims` given to `evaluate` only. `active` dimensions are not collapsed.
    """

    mode: Mode
    names: tuple[str, ...]
    interpretability: Float[np.ndarray, "k"]
    dimension: Int[np.ndarray, "k"]
    scc: Float[np.ndarray, "k"]
    sap: Float[np.ndarray, "k"]
    modularity: float
    modularity_informative: float
    modularity_dims: float | None
    samples: int
    latent_dim: int
    active: int

    def summary(self) -> dict[str, float]:
        """Means over attributes, then the counts N, D, K and active they rest on: one row of a table."""
        row = {key: float(np.mean(getattr(self, key))) for key in ("interpretability", "scc", "sap")}
        row |= {"modularity": self.modularity, "modularity_informative": self.modularity_informative}
        row |= {} if self.modularity_dims is None else {"modularity_dims": self.modularity_dims}
        return row | {"N": self.samples, "D": self.latent_dim, "K": len(self.names), "active": self.active}


def mutual_information(
    z: ArrayLike, a: ArrayLike, *, mode: Mode = "default", active: ArrayLike | None = None, seed: int = 0
) -> Float[np.ndarray, "d k"]:
    """Mutual information of every dimension with every attribute in nats, shape (D, K).

    By 3 nearest neighbours (Kraskov et al. 2004), clipped at 0: at N = 804 a pair with nothing in common gets
    0.01 nat or so, not 0. N = 804, D = 128, K = 6 takes about 3 s.

    Args:
        z, a: codes, shape (N, D), and attributes, shape (N, K).
        mode: "default" standardises both and gives collapsed dimensions exactly 0; "reference" takes both as
            they are, so that a constant dimension gets what its tie-breaking jitter is worth (about 3e-16).
        active: boolean mask of shape (D,), False where collapsed; by default variance > `ACTIVE_VARIANCE`.
        seed: of the jitter (which the public code leaves unseeded).

    Raises:
        ValueError: shapes that do not match, values not finite, fewer than 10 subjects, a constant attribute.
    """
    z, a, active = _inputs(z, a, mode, active)
    mi, codes = np.zeros((z.shape[1], a.shape[1])), z[:, active]
    if mode == "default":
        # scikit-learn scales its jitter by the mean magnitude, which swamps a narrow feature far from 0.
        codes, a = _standardise(codes), _standardise(a)
    if active.any():
        jobs = -1 if codes.size >= _THREADED else 1  # all cores
        with joblib.parallel_config(backend="threading"):  # the search for neighbours releases the interpreter's lock
            mi[active] = np.stack([mutual_info_regression(codes, y, random_state=seed, n_jobs=jobs) for y in a.T], axis=1)
    return mi


def correlation(z: ArrayLike, a: ArrayLike) -> Float[np.ndarray, "d k"]:
    """Spearman's rho of every dimension with every attribute, shape (D, K); 0 for a constant dimension."""
    z, a, _ = _inputs(z, a, "reference", None)
    return _pearson(stats.rankdata(z, axis=0), stats.rankdata(a, axis=0))


def scc(z: ArrayLike, a: ArrayLike, *, mode: Mode = "default", active: ArrayLike | None = None) -> float:
    """Spearman correlation coefficient: the largest abs(rho) over dimensions, averaged over attributes.

    "reference" first sets a rho with p > 0.05 to 0. By chance the largest of 128 is 0.09 at N = 804.
    """
    return float(_scc(*_inputs(z, a, mode, active), mode).mean())


def sap(z: ArrayLike, a: ArrayLike, *, mode: Mode = "default", active: ArrayLike | None = None) -> float:
    """Separated attribute predictability (Kumar et al. 2018): best less second-best r², mean of attributes.

    Correlated attributes alone keep it low, however good the code: see `ceiling`. The modes differ in what
    they call collapsed ("reference": variance <= 1e-12).
    """
    return float(_sap(*_inputs(z, a, mode, active)).mean())


def interpretability(
    z: ArrayLike, a: ArrayLike, *, mode: Mode = "default", active: ArrayLike | None = None, seed: int = 0
) -> float:
    """R² of a line from the most informative dimension to the attribute, averaged over attributes.

    After Adel et al. (2018). "reference" fits and scores the same subjects; "default" fits one half (split by
    `seed`), scores the other, and averages both ways. The dimension is chosen by mutual information over all
    subjects, which adds no measurable optimism. A held-out R² below 0: the line is worse than the mean.
    """
    return float(evaluate(z, a, mode=mode, active=active, seed=seed).interpretability.mean())


def modularity_rows(mi: ArrayLike) -> Float[np.ndarray, "d"]:
    """Modularity of each dimension from its mutual information with K attributes, (D, K) -> (D,).

    Ridgeway & Mozer (2018), sec. 3: 1 - sum_{k != k*} m_k² / ((K - 1) m_k*²), with m_k* the largest. It is 1
    if the dimension informs about one attribute only, 0 if about all alike or about none; NaN for K = 1.
    """
    squared = np.asarray(mi, dtype=np.float64) ** 2  # (D, K)
    peak, others = squared.max(axis=1), squared.shape[1] - 1 or np.nan
    shared = (squared.sum(axis=1) - peak) / np.where(peak > 0, peak, 1) / others
    return np.where(peak > 0, 1 - shared, 0 * others)


def modularity(
    z: ArrayLike, a: ArrayLike, *, dims: Sequence[int] | None = None, mode: Mode = "default",
    active: ArrayLike | None = None, seed: int = 0,
) -> float:
    """Mean of `modularity_rows`: does each dimension inform about one attribute only?

    "reference" averages all D dimensions, "default" the active ones. In a wide code most of these hold the
    noise of the estimator, whose largest entry stands out by chance: pure noise scores 0.86. So give `dims`,
    the dimensions that matter (a collapsed one then counts as 0). NaN if none is active, or for K = 1.
    """
    scores = evaluate(z, a, dims=dims, mode=mode, active=active, seed=seed)
    return scores.modularity if scores.modularity_dims is None else scores.modularity_dims


def evaluate(
    z: ArrayLike, a: ArrayLike, names: Sequence[str] | None = None, *, dims: Sequence[int] | None = None,
    mode: Mode = "default", active: ArrayLike | None = None, seed: int = 0,
) -> Disentanglement:
    """All metrics from one table of mutual information.

    `dims` (usually the regularised ones) are those of `modularity_dims`; `seed` also splits the halves.
    """
    z, a, kept = _inputs(z, a, mode, active, names)
    d, names = z.shape[1], [f"attribute {k}" for k in range(a.shape[1])] if names is None else names
    if dims is not None and not (len(dims) and all(0 <= dim < d for dim in dims)):
        raise ValueError(f"`dims` must name latent dimensions from 0 to {d - 1}, got {list(dims)}.")
    mi = mutual_information(z, a, mode=mode, active=active, seed=seed)
    dimension, varies = mi.argmax(axis=0), z.var(axis=0) > ACTIVE_VARIANCE
    rows, weights = modularity_rows(mi[kept]), mi[kept].max(axis=1)
    return Disentanglement(
        mode, tuple(names), _interpretability(z * kept, a, dimension, mode, seed), dimension,
        scc=_scc(z, a, kept, mode), sap=_sap(z, a, kept),
        modularity=float(rows.mean()) if len(rows) else float("nan"),
        modularity_informative=float(rows @ weights / weights.sum()) if weights.any() else float("nan"),
        modularity_dims=None if dims is None else float(modularity_rows(mi[list(dims)]).mean()),
        samples=len(z), latent_dim=d, active=int((varies if active is None else kept).sum()),
    )


def chance(z: ArrayLike, a: ArrayLike, *, n: int = 20, seed: int = 0, **options: Any) -> dict[str, Interval]:
    """Scores of the same codes for attributes of other subjects: mean and 95 % range of `n` shuffles.

    Whole rows are shuffled, so attributes keep their correlations. `options` go to `evaluate`.
    """
    z, a, _ = _inputs(z, a, "reference", None)
    shuffle = np.random.default_rng(seed).permutation
    table = [evaluate(z, shuffle(a), **options).summary() for _ in range(n)]
    scores = {key: [row[key] for row in table] for key in table[0] if key not in ("N", "D", "K", "active")}
    return {key: Interval(float(np.mean(s)), *np.quantile(s, TAILS).tolist()) for key, s in scores.items()}


def ceiling(
    a: ArrayLike, names: Sequence[str] | None = None, *, latent_dim: int | None = None,
    mode: Mode = "default", seed: int = 0,
) -> Disentanglement:
    """Scores of a perfect code: dimension k is attribute k, the rest (up to `latent_dim`) Gaussian noise.

    It shows what correlated attributes cost by themselves. Not a bound: on SAP, a code that trades one
    attribute for another can beat it. `modularity_dims` is that of the K encoding dimensions.
    """
    n, k = (a := _inputs(a, a, "reference", None, names)[1]).shape
    if latent_dim is not None and latent_dim < k:
        raise ValueError(f"`latent_dim` must be at least {k}, the number of attributes, got {latent_dim}.")
    noise = np.random.default_rng(seed).standard_normal((n, (latent_dim or k) - k))
    return evaluate(np.hstack([_standardise(a), noise]), a, names, dims=range(k), mode=mode, seed=seed)


def subsample_interval(
    fn: Callable[[Array, Array], float], z: ArrayLike, a: ArrayLike, *, fraction: float = 0.8, n: int = 100,
    seed: int = 0,
) -> Interval:
    """95 % interval over subjects of `fn(z, a)`, from `n` subsamples without replacement.

    A bootstrap draws subjects twice, and twins at distance 0 look like dependence to nearest neighbours.
    Subsamples of a fraction f vary less than fresh cohorts, by (1 - f) / f in variance; deviations are
    widened for it (delete-d jackknife, Shao & Wu 1989), so the ends may pass the bounds of a metric.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must lie between 0 and 1, got {fraction}; 0.8 keeps 4 subjects in 5.")
    z, a, _ = _inputs(z, a, "reference", None)
    rng, size, value = np.random.default_rng(seed), int(fraction * len(z)), float(fn(z, a))
    draws = (rng.choice(len(z), size, replace=False) for _ in range(n))
    scores = np.array([fn(z[rows], a[rows]) for rows in draws])
    deviation = np.sqrt(size / (len(z) - size)) * (scores - scores.mean())
    return Interval(value, *(value + np.quantile(deviation, TAILS)).tolist())


def _scc(z: Array, a: Array, active: Mask, mode: Mode) -> Array:
    rho = np.abs(correlation(z, a)) * active[:, None]  # (D, K)
    if mode == "reference":
        t = rho * np.sqrt((len(z) - 2) / np.maximum(1 - rho**2, 1e-300))
        rho = np.where(2 * stats.t.sf(t, len(z) - 2) <= 0.05, rho, 0.0)
    return rho.max(axis=0)


def _sap(z: Array, a: Array, active: Mask) -> Array:
    r2 = _pearson(z, a) ** 2 * (active & (z.var(axis=0, ddof=1) > 1e-12))[:, None]
    second, best = np.sort(np.vstack([r2, np.zeros(a.shape[1])]), axis=0)[-2:]  # 0: a lone dimension's rival
    return best - second


def _interpretability(z: Array, a: Array, dimension: NDArray[np.int64], mode: Mode, seed: int) -> Array:
    x, everyone = _standardise(z[:, dimension]), np.arange(len(z))  # (N, K): each attribute's own code
    first, second = np.array_split(np.random.default_rng(seed).permutation(everyone), 2)
    folds = [(everyone, everyone)] if mode == "reference" else [(first, second), (second, first)]
    scores = []
    for fit, score in folds:
        centred, mean = x[fit] - x[fit].mean(axis=0), a[fit].mean(axis=0)
        slope = (centred * (a[fit] - mean)).sum(axis=0) / np.maximum((centred**2).sum(axis=0), 1e-300)
        predicted = mean + slope * (x[score] - x[fit].mean(axis=0))
        scores.append(r2_score(a[score], predicted, multioutput="raw_values"))
    return np.mean(scores, axis=0)


def _standardise(x: Array) -> Array:
    constant = np.ptp(x, axis=0) == 0  # its deviation rounds to 1e-17, not to 0
    return np.where(constant, 0, x - x.mean(axis=0)) / np.where(constant, 1, x.std(axis=0))


def _pearson(x: Array, y: Array) -> Array:
    """Correlation of every column of x (N, D) with every column of y (N, K); 0 for a constant column."""
    return np.clip(_standardise(x).T @ _standardise(y) / len(x), -1, 1)


def _inputs(
    z: ArrayLike, a: ArrayLike, mode: Mode, active: ArrayLike | None, names: Sequence[str] | None = None
) -> tuple[Array, Array, Mask]:
    """Codes, attributes and the mask of dimensions in use, checked."""
    if mode not in ("default", "reference"):
        raise ValueError(f'`mode` must be "default" or "reference", got {mode!r}.')
    z, a = np.asarray(z, dtype=np.float64), np.asarray(a, dtype=np.float64)
    for name, x, columns in (("z", z, "dimensions"), ("a", a, "attributes")):
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"`{name}` must have shape (subjects, {columns}), got {x.shape}.")
        if len(bad := np.flatnonzero(~np.isfinite(x).all(axis=1))):
            raise ValueError(f"`{name}` must be finite, got NaN or inf in {len(bad)} rows (first: {bad[0]}).")
    if len(z) != len(a) or len(z) < 10:
        raise ValueError(f"`z` and `a` must have 10 rows or more, one a subject, got {len(z)} and {len(a)}.")
    if names is not None and len(names) != a.shape[1]:
        raise ValueError(f"`names` must name the {a.shape[1]} columns of `a`, got {len(names)} names.")
    for k in np.flatnonzero(np.ptp(a, axis=0) == 0):
        label = f"`{names[k]}`" if names is not None else f"in column {k} of `a`"
        raise ValueError(f"attribute {label} is constant ({a[0, k]:g}): no code can hold it; leave it out.")
    if active is None:
        return z, a, (z.var(axis=0) > ACTIVE_VARIANCE) | (mode == "reference")
    if mode == "reference" or (mask := np.asarray(active)).dtype != bool or mask.shape != z.shape[1:]:
        raise ValueError(f'`active` must be a boolean mask of shape {z.shape[1:]}, in mode "default" only.')
    return z, a, mask
