"""Telling a class from a table of numbers, and comparing two tables: cross-validation by scan, arrays in, numbers out.

Everything that is fitted is fitted inside the fold: scaling, principal components, the penalty, the classifier. Every
table meets the same folds, and differences are tested with the variance that overlapping training sets call for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import sklearn
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from medvae_lite.disentangle import Interval

__all__ = [
    "FOLDS", "INNER", "PENALTIES", "WEIGHTS", "Comparison", "Features", "Predictions", "balanced", "compare",
    "corrected_interval", "cross_validate", "folds", "predict", "shuffled", "standard_error",
]  # fmt: skip

FOLDS, INNER = 5, 4
"""Folds to test on, and folds of each training part to choose the penalty in."""
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""scikit-learn's C: one over the weight of the squared coefficients."""
WEIGHTS = (0.0, 0.1, 0.3, 1.0)
"""What optional columns are multiplied with."""
SCORES = ("balanced_accuracy", "auc")


@dataclass(frozen=True)
class Features:
    """A table that a group is to be told from.

    Arguments:
        values: One row a subject, (N, D); or (F, N, D), another table for each fold of a single repeat.
        components: Principal components to keep, fitted in the fold; 0 keeps the columns.
        optional: Number of last columns whose weight, one of `WEIGHTS`, is chosen in the fold like the penalty.
    """

    values: NDArray
    components: int = 0
    optional: int = 0


def folds(y: ArrayLike, scan: ArrayLike, *, number: int = FOLDS, seed: int = 0) -> list[tuple[NDArray, NDArray]]:
    """Rows to train on and to test on: every class in proportion, every scan on one side."""
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(np.asarray(y))), y, scan))


@dataclass(frozen=True)
class Predictions:
    """What a cross-validation said of every subject: probabilities (R, N, G), made in fold (R, N), truth (N,)."""

    probability: Float[np.ndarray, "r n g"]
    fold: Int[np.ndarray, "r n"]
    truth: Int[np.ndarray, "n"]
    groups: tuple[str, ...]

    def scores(self) -> dict[str, Float[np.ndarray, "r f"]]:
        """Balanced accuracy (mean recall of the groups) and macro AUC (mean of one group against the rest)."""
        rounds, number = len(self.fold), self.fold.max() + 1
        table = {name: np.empty((rounds, number)) for name in SCORES}
        for r, f in np.ndindex(rounds, number):
            at = self.fold[r] == f
            y, p = self.truth[at], self.probability[r, at]
            here = np.unique(y)
            table["balanced_accuracy"][r, f] = recall_score(y, p.argmax(1), labels=here, average="macro")
            table["auc"][r, f] = np.mean([roc_auc_score(y == g, p[:, g]) for g in here])
        return table

    def confusion(self) -> Float[np.ndarray, "g g"]:
        """Subjects of each group (row) called each group (column), mean over repeats."""
        called = self.probability.argmax(2)
        return np.mean([confusion_matrix(self.truth, row, labels=range(len(self.groups))) for row in called], axis=0)


def cross_validate(
    features: Features, group: ArrayLike, scan: ArrayLike, *, repeats: int = 1, seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> Predictions:  # fmt: skip
    """`predict` for every one of `FOLDS` folds, `repeats` times; the same folds for every table."""
    groups, y = np.unique(group, return_inverse=True)
    values, scan = np.asarray(features.values), np.asarray(scan)
    if values.ndim == 3 and repeats != 1:
        raise ValueError(f"`repeats` must be 1 where each fold has a table of its own, got {repeats}")
    probability, fold = np.empty((repeats, len(y), len(groups))), np.empty((repeats, len(y)), int)
    for r in range(repeats):
        for f, (train, test) in enumerate(folds(y, scan, seed=seed + r)):
            own = replace(features, values=values[f] if values.ndim == 3 else values)
            said = predict(own, y, scan, train, test, seed=seed + r, penalties=penalties)
            probability[r, test], fold[r, test] = said, f
    return Predictions(probability, fold, y, tuple(groups.tolist()))


def predict(
    features: Features, y: NDArray, scan: NDArray, train: NDArray, test: NDArray, *, seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> Float[np.ndarray, "m g"]:  # fmt: skip
    """Probabilities of the classes y = 0, 1, .. for the rows `test`, by multinomial logistic regression on `train`.

    The penalty (and the weight of optional columns) has the least log-loss in `INNER` folds of the training rows.
    """
    x = np.asarray(features.values, np.float64)
    weights = WEIGHTS if features.optional else (1.0,)
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        choice = (penalties[0], weights[0])
        if len(penalties) * len(weights) > 1:
            loss = Counter()
            for fitted, held in folds(y[train], scan[train], number=INNER, seed=seed):
                fitted, held = train[fitted], train[held]
                for weight in weights:
                    a, b = _prepare(features, x[fitted], x[held], weight)
                    for penalty in penalties:
                        log_p = _classifier(a, y[fitted], penalty).predict_log_proba(b)
                        loss[penalty, weight] -= log_p[np.arange(len(held)), y[held]].sum()
            choice = min(loss, key=loss.get)
        a, b = _prepare(features, x[train], x[test], choice[1])
        return _classifier(a, y[train], choice[0]).predict_proba(b)


def _prepare(features: Features, train: NDArray, test: NDArray, weight: float) -> tuple[NDArray, NDArray]:
    if features.components:
        kept = min(features.components, len(train) - 1)
        reduce = PCA(kept, svd_solver="full").fit(train)
        train, test = reduce.transform(train), reduce.transform(test)
    scale, columns = StandardScaler().fit(train), np.ones(train.shape[1])
    columns[len(columns) - features.optional :] = weight
    return scale.transform(train) * columns, scale.transform(test) * columns


def _classifier(x: NDArray, y: NDArray, penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=5000).fit(x, y)


def shuffled(group: NDArray, scan: NDArray, *, seed: int) -> NDArray:
    """The groups dealt out anew among the scans; copies of a scan are dealt one group."""
    _, first, inverse = np.unique(scan, return_index=True, return_inverse=True)
    return np.random.default_rng(seed).permutation(group[first])[inverse]


def balanced(group: NDArray, *, size: int, seed: int) -> list[NDArray]:
    """Disjoint cohorts of `size` subjects a group, as many as there are: rows (G * size,) of each."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(group == name)) for name in np.unique(group)]
    return [np.concatenate([r[i : i + size] for r in rows]) for i in range(0, min(map(len, rows)) - size + 1, size)]


class Comparison(NamedTuple):
    """A difference of two means with its 95 % interval, p, and the least difference found in 4 trials of 5."""

    difference: float
    low: float
    high: float
    p: float
    detectable: float


def standard_error(scores: Float[np.ndarray, "r f"], *, corrected: bool = True) -> float:
    """Standard error of a mean over repeats and folds, (R, F).

    Training sets overlap, so the scores are not independent: beside 1 / RF stands the ratio of tested to trained
    subjects, 1 / (F - 1) (Nadeau & Bengio 2003, eq. 9; for repeated folds Bouckaert & Frank 2004).
    """
    overlap = 1 / (scores.shape[1] - 1) if corrected else 0.0
    return float(np.sqrt((1 / scores.size + overlap) * scores.var(ddof=1)))


def corrected_interval(scores: Float[np.ndarray, "r f"]) -> Interval:
    """Mean over repeats and folds and its 95 % interval by the corrected t."""
    reach = float(stats.t.ppf(0.975, scores.size - 1)) * standard_error(scores)
    return Interval(mean := float(scores.mean()), mean - reach, mean + reach)


def compare(a: Float[np.ndarray, "r f"], b: Float[np.ndarray, "r f"], *, corrected: bool = True) -> Comparison:
    """Scores `b` less scores `a` of the same folds: the corrected resampled t-test (`standard_error`).

    Raises:
        ValueError: If the scores are not of the same folds.
    """
    if a.shape != b.shape:
        raise ValueError(f"`a` and `b` must be scores of the same folds, got shapes {a.shape} and {b.shape}")
    df, mean, error = a.size - 1, float((b - a).mean()), standard_error(b - a, corrected=corrected)
    reach, power = stats.t.ppf([0.975, 0.8], df).tolist()
    p = 2 * stats.t.sf(abs(mean) / error, df) if error else float(mean == 0)
    return Comparison(mean, mean - reach * error, mean + reach * error, float(p), (reach + power) * error)
