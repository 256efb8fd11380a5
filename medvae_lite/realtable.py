r"""A normative model put to the test on a real table: is it calibrated, what do sites do, what could it see at all?

A reader with a prepared table makes the book's comparison, aggregates only, with one command:

    python -m medvae_lite.realtable --data PREPARED --out book/runs/regions-abide.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medvae_lite import normative, runs
from medvae_lite.cohort import SMALL_FIT, SMALL_SETTINGS, Study, auc, evaluate
from medvae_lite.judges import Linear, Normative
from medvae_lite.regions import Regions, load

__all__ = ["ATROPHY", "examine", "group_effects", "inject", "site_variance", "within_site_auc"]

Array = NDArray[np.float64]

ATROPHY = {
    "hippocampus": 1.0, "entorhinal": 1.0, "amygdala": 0.9, "parahippocampal": 0.7, "inferiortemporal": 0.7,
    "middletemporal": 0.6, "fusiform": 0.5, "isthmuscingulate": 0.5, "inferiorparietal": 0.5, "precuneus": 0.4,
    "posteriorcingulate": 0.4, "lateral-ventricle": -0.6, "inf-lat-vent": -0.9,
}  # fmt: skip
"""What is injected: loss of each region, in standard deviations of healthy people, where the whole is 1. The pattern is
that of Alzheimer's disease; the people it is injected into do not have it."""

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)


def inject(data: Regions, rows: NDArray[np.int64], strength: float, *, seed: int = 0) -> Regions:
    """The same table with AD-like atrophy in some people: every region named in `ATROPHY`, either side, any measure.

    Each person has the pattern at `strength` times a factor of mean 1 and spread 0.3, one side harder hit.

    Raises:
        ValueError: If the table has no region of the pattern.
    """
    names = np.array(data.regions)
    loss = np.array([next((v for key, v in ATROPHY.items() if key in name.lower()), 0.0) for name in names])
    if not loss.any():
        raise ValueError(f"`data` must have a region among {', '.join(ATROPHY)} to inject atrophy into")
    side = np.array([-1 if n.lower().startswith(("lh", "left")) else 1 if n.lower().startswith(("rh", "right")) else 0 for n in names])
    rng = np.random.default_rng(seed)
    amount = rng.lognormal(-0.045, 0.3, (len(rows), 1)) * np.exp(0.3 * side * rng.standard_normal((len(rows), 1)))
    residual = Linear(data).deviation(data.rows("train"))
    raw = data.raw.copy()
    width = data.scale[1] * (data.people["icv_mm3"].to_numpy()[rows, None] if data.icv == "divide" else 1)
    raw[rows] -= strength * amount * loss * np.nanstd(residual, 0) * width
    return replace(data, raw=raw)


def site_variance(z: Array, site: NDArray) -> float:
    """Share of the variance of z (N, F) that lies between sites, less what chance gives, mean over regions."""
    shares, chance = [], (len(set(site)) - 1) / (len(z) - 1)
    for column in z.T:
        known = np.isfinite(column)
        total = ((column[known] - column[known].mean()) ** 2).sum()
        parts = (column[known][site[known] == s] for s in set(site[known]))
        between = sum(len(part) * (part.mean() - column[known].mean()) ** 2 for part in parts)
        shares.append(between / total)
    return float(np.mean(shares) - chance)


def group_effects(z: Array, other: Array) -> dict:
    """How far two groups of people (N, F) and (M, F) differ region by region: Cohen's d, and how many survive FDR."""
    spread = np.sqrt((np.nanvar(z, 0, ddof=1) + np.nanvar(other, 0, ddof=1)) / 2)
    d = (np.nanmean(z, 0) - np.nanmean(other, 0)) / spread
    p = stats.ttest_ind(z, other, equal_var=False, nan_policy="omit").pvalue
    return {"largest_d": float(np.abs(d).max()), "where": int(np.abs(d).argmax()), "regions_at_fdr": int(normative.significant(p[None]).sum())}


def within_site_auc(healthy: Array, ill: Array, site_healthy: NDArray, site_ill: NDArray, *, permutations: int = 1000, seed: int = 0) -> dict:
    """AUC over pairs of one site only, and how often shuffling who is ill within each site does as well."""
    values, is_ill = np.concatenate([healthy, ill]), np.repeat([False, True], [len(healthy), len(ill)])
    site, rng = np.concatenate([site_healthy, site_ill]), np.random.default_rng(seed)
    places = [np.flatnonzero(site == s) for s in sorted(set(site))]
    places = [at for at in places if is_ill[at].any() and not is_ill[at].all()]

    def pooled(labels):
        won = pairs = 0.0
        for at, label in zip(places, labels):
            n = label.sum() * (~label).sum()
            won, pairs = won + n * auc(values[at][~label], values[at][label]), pairs + n
        return won / pairs

    found = pooled([is_ill[at] for at in places])
    shuffled = [pooled([rng.permutation(is_ill[at]) for at in places]) for _ in range(permutations)]
    return {"auc": found, "p": float((1 + np.sum(np.array(shuffled) >= found)) / (1 + permutations)), "chance_high": float(np.quantile(shuffled, 0.975))}


def examine(data: Regions, *, seed: int = 0, runs_root: str | Path, permutations: int = 1000, progress: bool = True, fit: Mapping = SMALL_FIT) -> dict:
    """The whole examination; aggregates only, nothing of one person.

    Returns:
        cohort: who was there. models: calibration, errors, group differences for each model. sites: variance between
        sites with and without site among the covariates. sensitivity: AUC of healthy test people with atrophy injected
        against the same people without, by strength.
    """
    names = {"with site": data, "without site": replace(data, categories=tuple(c for c in data.categories if c != "site"))}
    models: dict[str, Normative] = {}
    for how, table in names.items():
        trained, _ = Study(table, profile="laptop", seed=seed, runs_root=runs_root, progress=progress).train("multimodal", fit=dict(fit), **SMALL_SETTINGS)
        models |= {f"multimodal VAE, {how}": trained, f"regression, {how}": Linear(table), f"regression + PCA, {how}": Linear(table, components=16)}
    test, patients = data.rows("test"), data.rows("patients")
    site = data.people["site"].to_numpy()
    report: dict = {"models": {}, "sites": {}, "sensitivity": {}}
    for title, model in models.items():
        z = {"test": model.z(test), "patients": model.z(patients)}
        size = {key: normative.mean_deviation(of) for key, of in z.items()}
        row = evaluate(model) | group_effects(z["test"], z["patients"])
        row["where"] = data.regions[row["where"]]
        row |= within_site_auc(size["test"], size["patients"], site[test], site[patients], permutations=permutations, seed=seed)
        report["models"][title] = row
        report["sites"][title] = site_variance(z["test"], site[test])
        if title.endswith("with site"):
            report["sensitivity"][title] = {str(s): _seen(model, data, test, s, seed) for s in STRENGTHS}
    report["cohort"] = {
        "name": data.card["name"], "citation": data.card["citation"], "people": len(data.people), "excluded": len(data.card["excluded"]),
        "splits": data.card["splits"], "sites": len(set(site)), "sizes": data.sizes,
        "age_years": [float(v) for v in data.people["age_years"].quantile([0, 0.25, 0.5, 0.75, 1])],
    }  # fmt: skip
    report["eigenvalues"] = normative.usable_eigenvalues(data.x[data.rows("train")], data.covariates[data.rows("train")].astype(float), weight=1.0, beta=1.0)[0].tolist()
    return report


def _seen(model: Normative, data: Regions, rows: NDArray[np.int64], strength: float, seed: int) -> dict:
    """How well people with injected atrophy are told from themselves without it, by mean deviation and by the regions hit."""
    changed = inject(data, rows, strength, seed=seed)
    calibration = model.calibration()
    before = calibration(model.deviation(rows))
    model.data, kept = changed, model.data
    try:
        after = calibration(model.deviation(rows))
    finally:
        model.data = kept
    hit = np.abs(changed.raw[rows] - data.raw[rows]).max(0) > 0
    score = {"before": -before[:, hit] * np.sign(data.raw[rows] - changed.raw[rows])[0, hit], "after": -after[:, hit] * np.sign(data.raw[rows] - changed.raw[rows])[0, hit]}
    return {
        "auc_mean_deviation": auc(normative.mean_deviation(before), normative.mean_deviation(after)),
        "auc_known_pattern": auc(score["before"].mean(1), score["after"].mean(1)),
        "regions_found": float((np.abs(after[:, hit]) > 1.96).mean()), "false_positives": float((np.abs(before[:, hit]) > 1.96).mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared region table with a group of patients")
    parser.add_argument("--out", required=True, type=Path, help="report to write (JSON, aggregates only)")
    parser.add_argument("--runs", default="_build/runs", help="folder for the trained models (%(default)s)")
    args = parser.parse_args()
    report = examine(load(args.data), runs_root=args.runs)
    runs.write_atomically(args.out, json.dumps(_rounded(report), indent=1) + "\n")


def _rounded(value):
    """Four digits are what a reader needs, and what another machine gives again."""
    if isinstance(value, dict):
        return {key: _rounded(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_rounded(of) for of in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
