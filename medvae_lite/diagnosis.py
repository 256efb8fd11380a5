r"""Can a code tell a diagnosis? A cohort's groups from tables of numbers, cross-validated by scan.

Everything that is fitted is fitted inside the fold: scaling, principal components, the penalty, the classifier. A
reader with a prepared cohort gets the comparison of the book, aggregates only, in one command:

    python -m medvae_lite.diagnosis --data PREPARED --runs book/runs --out book/runs/diagnosis-acdc.json
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from medvae_lite import cardiac, disentangle, runs
from medvae_lite.datasets import Batch, Prepared, load
from medvae_lite.disentangle import Interval
from medvae_lite.sivae import AttriVAE
from medvae_lite.train import FitConfig, fit

__all__ = [
    "FOLDS", "PENALTIES", "Cohort", "Comparison", "Features", "Predictions", "Report", "areas", "cohort", "compare",
    "corrected_interval", "cross_validate", "evaluate", "fine_tuned", "folds", "published_model", "ratios", "shuffled",
    "tables",
]  # fmt: skip

FOLDS, INNER = 5, 4
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""scikit-learn's C: one over the weight of the squared coefficients."""
WEIGHTS = (0.0, 0.1, 0.3, 1.0)
SCORES = ("balanced_accuracy", "auc")
MODELS = {"AR-SIVAE": "ar_sivae", "Attri-VAE": "attri_vae", "SIVAE": "sivae"}


class Cohort(NamedTuple):
    """All subjects of a prepared dataset, whatever its split.

    Arguments:
        data: Where they come from.
        batch: Their images (N, C, S, S), labels and standardised volumes.
        volumes: Their attributes in mL, (N, K).
        group: What is to be told, (N,).
        scan: One number a scan, (N,): a scan that the collection holds twice stays in one fold.
    """

    data: Prepared
    batch: Batch
    volumes: Float[np.ndarray, "n k"]
    group: NDArray
    scan: Int[np.ndarray, "n"]

    def take(self, rows: Int[np.ndarray, "m"]) -> Cohort:
        """Some of the subjects."""
        batch = Batch(*(values[torch.as_tensor(rows)] for values in self.batch))
        return self._replace(batch=batch, volumes=self.volumes[rows], group=self.group[rows], scan=self.scan[rows])


def cohort(data: Prepared) -> Cohort:
    """Everyone in a prepared dataset with the column `group`.

    Raises:
        ValueError: If there is no such column, only one group, or a group with fewer scans than folds.
    """
    if "group" not in data.subjects or data.subjects["group"].isna().any():
        raise ValueError(f"{data.root / 'subjects.csv'} does not give every subject a `group`: there is nothing to tell")
    names = data.subjects["subject"].tolist()
    first = {other: same[0] for same in data.card.get("duplicates", []) for other in same}
    scan = np.array([names.index(first.get(name, name)) for name in names])
    group = data.subjects["group"].to_numpy(str)
    scans = Counter(group[np.unique(scan)])
    if len(scans) < 2 or min(scans.values()) < FOLDS:
        rare = min(scans, key=scans.get)
        raise ValueError(f"`group` needs two values or more with {FOLDS} scans each, got {scans[rare]} of {rare!r}")
    everyone = replace(data.split("train"), rows=torch.arange(len(names)))
    return Cohort(data, everyone.batch(), data.attribute_ml, group, scan)


@dataclass(frozen=True)
class Features:
    """A table that a group is to be told from.

    Arguments:
        values: One row a subject, (N, D); or (F, N, D), another table for each fold of a single repeat.
        components: Principal components to keep, fitted in the fold; 0 keeps the columns.
        optional: Number of last columns whose weight, one of `WEIGHTS`, is chosen in the fold like the penalty.
    """

    values: NDArray[np.float64]
    components: int = 0
    optional: int = 0


def ratios(volumes: Float[np.ndarray, "n k"], names: tuple[str, ...]) -> Float[np.ndarray, "n 4"]:
    """What a cardiologist forms from the volumes: both ejection fractions, RV to LV and muscle to cavity at ED."""
    v = dict(zip(names, volumes.T))
    lv, rv, myo = v["LVEDV"], v["RVEDV"], v["MYOEDV"]
    return np.stack([1 - v["LVESV"] / lv, 1 - v["RVESV"] / rv, rv / lv, myo / lv], axis=1)


def areas(one: Cohort) -> Float[np.ndarray, "n a"]:
    """Labelled areas in mm² of each frame of the slice a model sees: LV, RV, myocardium at ED, then at ES."""
    labels = one.batch.labels.numpy()
    pixels = [(labels[:, frame] == tissue).sum((1, 2)) for frame in range(labels.shape[1]) for tissue in (1, 3, 2)]
    return np.stack(pixels, axis=1) * one.data.pixel_mm**2


def tables(one: Cohort, codes: Mapping[str, NDArray]) -> dict[str, Features]:
    """The tables the book compares: measured by hand, pixels, and for every model its code (N, D)."""
    v, k = one.volumes, one.volumes.shape[1]
    pixels = one.batch.image.flatten(1).numpy()
    found = {
        "volumes": Features(v),
        "volumes + ratios": Features(np.hstack([v, ratios(v, one.data.attributes)])),
        "areas of the slice": Features(areas(one)),
        "pixels, 20 components": Features(pixels, components=20),
    }
    for name, z in codes.items():
        found[f"{name}: code"] = Features(z)
        found[f"{name}: first six"] = Features(z[:, :k])
        found[f"volumes + {name}: code"] = Features(np.hstack([v, z]))
        found[f"volumes + {name}: code, weighed"] = Features(np.hstack([v, z]), optional=z.shape[1])
    return found


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


def cross_validate(features: Features, group: ArrayLike, scan: ArrayLike, *, repeats: int = 1, seed: int = 0) -> Predictions:
    """Multinomial logistic regression in `FOLDS` folds, `repeats` times; the same folds for every table.

    Penalty (and weight) have the least log-loss in `INNER` folds of the training part.
    """
    groups, y = np.unique(group, return_inverse=True)
    values, scan = np.asarray(features.values, np.float64), np.asarray(scan)
    if values.ndim == 3 and repeats != 1:
        raise ValueError(f"`repeats` must be 1 where each fold has a table of its own, got {repeats}")
    probability, fold = np.empty((repeats, len(y), len(groups))), np.empty((repeats, len(y)), int)
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for r in range(repeats):
            for f, (train, test) in enumerate(folds(y, scan, seed=seed + r)):
                x = values[f] if values.ndim == 3 else values
                penalty, weight = _choose(features, x[train], y[train], scan[train], seed=seed + r)
                a, b = _prepare(features, x[train], x[test], weight)
                probability[r, test], fold[r, test] = _classifier(a, y[train], penalty).predict_proba(b), f
    return Predictions(probability, fold, y, tuple(groups.tolist()))


def _choose(features: Features, x: NDArray, y: NDArray, scan: NDArray, *, seed: int) -> tuple[float, float]:
    loss = Counter()
    for train, test in folds(y, scan, number=INNER, seed=seed):
        for weight in WEIGHTS if features.optional else (1.0,):
            a, b = _prepare(features, x[train], x[test], weight)
            for penalty in PENALTIES:
                log_p = _classifier(a, y[train], penalty).predict_log_proba(b)
                loss[penalty, weight] -= log_p[np.arange(len(test)), y[test]].sum()
    return min(loss, key=loss.get)


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
    """The groups dealt out anew among the scans; copies of a scan keep one group."""
    first, inverse = np.unique(scan, return_inverse=True)
    dealt = group[np.searchsorted(scan, first, sorter=np.argsort(scan, kind="stable"))] if False else None
    raise NotImplementedError
