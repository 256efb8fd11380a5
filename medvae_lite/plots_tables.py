"""Figures of region tables: calibration, trajectories, stages, scores, experts and eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medvae_lite.plots import COLOURS, DASHES, INK, style

__all__ = [
    "plot_bars", "plot_by_stage", "plot_eigenvalues", "plot_experts", "plot_qq", "plot_score", "plot_strip",
    "plot_trajectory", "signed_limit",
]  # fmt: skip


def signed_limit(values: ArrayLike, least: float = 1.0) -> float:
    """Half-width of a colour scale centred on 0 that holds all but the most extreme percent of the values."""
    return max(least, float(np.nanquantile(np.abs(values), 0.99)))


def plot_qq(z: Mapping[str, ArrayLike], ax: Axes | None = None, *, band: int = 0) -> Axes:
    """Quantiles of z against those of a standard normal: calibrated people lie on the diagonal.

    Arguments:
        z: Values by name, of any shape; NaN is left out.
        band: Independent values behind each line; draws where 95 % of such lines lie at each quantile. None for 0.
    """
    with style():
        ax = ax or plt.subplots(figsize=(4.2, 4.2))[1]
        q = stats.norm.cdf(np.linspace(-3, 3, 61))
        x = stats.norm.ppf(q)
        if band:
            low, high = (stats.norm.ppf(stats.beta.ppf(tail, q * band, (1 - q) * band + 1)) for tail in (0.025, 0.975))
            ax.fill_between(x, low, high, color="#DDDDDD", lw=0, label="95 % of standard normal samples")
        ax.plot([-3, 3], [-3, 3], color=INK, lw=0.8, ls=":")
        for (name, values), colour, dash in zip(z.items(), COLOURS, DASHES):
            values = np.asarray(values, float).ravel()
            ax.plot(x, np.quantile(values[np.isfinite(values)], q), color=colour, ls=dash, label=name)
        ax.set(xlabel="standard normal quantile", ylabel="quantile of z", xlim=(-3, 3))
        ax.legend(frameon=False, fontsize=8)
    return ax


def plot_trajectory(
    age: ArrayLike, value: ArrayLike, grid: ArrayLike, centiles: Mapping[int, ArrayLike], ax: Axes | None = None, *,
    people: Mapping[str, tuple[float, float]] | None = None, name: str = "", unit: str = "mm³",
) -> Axes:  # fmt: skip
    """A region against age, with the centiles of healthy people and, marked, some one person.

    Arguments:
        age, value: Healthy people, with shape (N,).
        grid: Ages of the centiles, with shape (G,).
        centiles: Curves (G,) by centile in percent; the middle one is drawn thick.
        people: Age and value of those to be marked, by name.
    """
    with style():
        ax = ax or plt.subplots(figsize=(4.6, 3.2))[1]
        ax.plot(age, value, ".", ms=1.5, color="#BBBBBB", rasterized=True)
        for percent, curve in centiles.items():
            ax.plot(grid, curve, color=COLOURS[0], lw=2 if percent == 50 else 0.9, ls="-" if percent == 50 else "--")
            ax.annotate(f"{percent} %", (np.asarray(grid)[-1], np.asarray(curve)[-1]), xytext=(2, 0), textcoords="offset points", fontsize=7, va="center")
        for (label, (x, y)), colour, mark in zip((people or {}).items(), COLOURS[1:], "osD^"):
            ax.plot(x, y, mark, color=colour, ms=7, label=label)
        ax.set(xlabel="age (years)", ylabel=f"{name} ({unit})")
        if people:
            ax.legend(frameon=False, fontsize=8)
    return ax


def plot_by_stage(deviation: Mapping[str, ArrayLike], ax: Axes | None = None, *, label: str = "mean deviation D", seed: int = 0) -> Axes:
    """One dot a person, by stage from left to right, with the stages' means and their 95 % intervals joined."""
    with style():
        ax = ax or plt.subplots(figsize=(4.2, 3.2))[1]
        rng, means = np.random.default_rng(seed), []
        for at, values in enumerate(deviation.values()):
            values = np.asarray(values, float)
            ax.plot(at + rng.uniform(-0.28, 0.28, len(values)), values, ".", ms=3, color="#AAAAAA", rasterized=True)
            means.append((values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))))
        mean, error = np.transpose(means)
        ax.errorbar(range(len(mean)), mean, error, color=COLOURS[0], marker="o", capsize=3)
        ax.set(ylabel=label)
        ax.set_xticks(range(len(deviation)), [f"{name}\n{len(np.asarray(v))}" for name, v in deviation.items()])
    return ax


def plot_score(deviation: ArrayLike, score: ArrayLike, group: ArrayLike, order: Sequence[str], ax: Axes | None = None, *, label: str = "score", title: str = "") -> Axes:
    """A test score against mean deviation, people marked by stage, with the least-squares line."""
    deviation, score, group = np.asarray(deviation, float), np.asarray(score, float), np.asarray(group)
    with style():
        ax = ax or plt.subplots(figsize=(4.2, 3.2))[1]
        for name, colour, mark in zip(order, COLOURS, "osD^v"):
            ax.plot(deviation[group == name], score[group == name], mark, ms=3, color=colour, alpha=0.6, lw=0, label=name, rasterized=True)
        known = np.isfinite(score) & np.isfinite(deviation)
        ends = np.array([deviation[known].min(), deviation[known].max()])
        ax.plot(ends, np.polyval(np.polyfit(deviation[known], score[known], 1), ends), color=INK)
        ax.set(xlabel="mean deviation D", ylabel=label, title=title)
        ax.legend(frameon=False, fontsize=7, markerscale=1.5)
    return ax


def plot_bars(values: Mapping[str, ArrayLike], names: Sequence[str], ax: Axes | None = None, *, top: int = 20, label: str = "patients (%)", by: str = "") -> Axes:
    """Horizontal bars a region, one a model, the `top` regions by the model `by` (the first when empty)."""
    with style():
        table = {title: np.asarray(v, float) for title, v in values.items()}
        order = np.argsort(table[by or next(iter(table))])[::-1][:top][::-1]
        ax = ax or plt.subplots(figsize=(5.5, 0.22 * len(order) + 0.8))[1]
        height = 0.8 / len(table)
        for k, ((title, v), colour) in enumerate(zip(table.items(), COLOURS)):
            ax.barh(np.arange(len(order)) + 0.4 - (k + 0.5) * height, v[order], height, color=colour, label=title)
        ax.set_yticks(range(len(order)), [names[k] for k in order], fontsize=7)
        ax.set(xlabel=label)
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    return ax


def plot_experts(mu: Mapping[str, float], sd: Mapping[str, float], ax: Axes | None = None, *, joint: tuple[float, float], prior: bool = True) -> Axes:
    """Densities of one latent dimension: each expert's, the prior's, and their product's.

    Arguments:
        mu, sd: Mean and standard deviation of each expert, by name.
        joint: Mean and standard deviation of the product.
    """
    with style():
        ax = ax or plt.subplots(figsize=(5, 3))[1]
        z = np.linspace(-4, 4, 801)
        if prior:
            ax.plot(z, stats.norm.pdf(z), color="#999999", ls=":", label="prior")
        for (name, m), colour, dash in zip(mu.items(), (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[4]), DASHES[1:]):
            ax.plot(z, stats.norm.pdf(z, m, sd[name]), color=colour, ls=dash, label=name)
        ax.fill_between(z, stats.norm.pdf(z, *joint), color=INK, alpha=0.25, lw=0)
        ax.plot(z, stats.norm.pdf(z, *joint), color=INK, lw=2, label="product")
        ax.set(xlabel="latent dimension z", ylabel="density", xlim=(-4, 4), ylim=(0, None))
        ax.legend(frameon=False, fontsize=8)
    return ax


def plot_eigenvalues(eigenvalues: Mapping[str, tuple[ArrayLike, float]], ax: Axes | None = None, *, show: int = 40) -> Axes:
    """Eigenvalues over the threshold beta / 2w of their loss: a direction above 1 is used, one below is not.

    Arguments:
        eigenvalues: Largest first, and the threshold, by name.
    """
    with style():
        ax = ax or plt.subplots(figsize=(5, 3))[1]
        for (name, (values, threshold)), colour, dash in zip(eigenvalues.items(), COLOURS, DASHES):
            ratio = np.asarray(values, float)[:show] / threshold
            usable = int((np.asarray(values) > threshold).sum())
            ax.semilogy(range(1, len(ratio) + 1), ratio, color=colour, ls=dash, marker=".", ms=4, label=f"{name}: {usable} usable")
        ax.axhline(1, color=INK, lw=0.8, ls=":")
        ax.set(xlabel="direction, by variance", ylabel="variance / threshold")
        ax.legend(frameon=False, fontsize=8)
    return ax


def plot_strip(values: NDArray, rows: Sequence[str], columns: Sequence[str], ax: Axes | None = None, *, limit: float | None = None, label: str = "z", signed: bool = True, decimals: int = 1) -> Axes:
    """A heat strip with its numbers printed: (rows, columns), grey where there is none."""
    with style():
        ax = ax or plt.subplots(figsize=(0.75 * len(columns) + 1.6, 0.42 * len(rows) + 0.8))[1]
        limit = limit or signed_limit(values)
        colours = plt.get_cmap("RdBu_r" if signed else "magma_r").with_extremes(bad="#DDDDDD")
        image = ax.imshow(values, cmap=colours, vmin=-limit if signed else 0, vmax=limit, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = abs(value) > 0.65 * limit
                ax.text(j, i, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7, color="white" if dark else INK)
        ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=7)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        figure: Figure = ax.figure
        figure.colorbar(image, ax=ax, label=label, fraction=0.03, pad=0.02)
    return ax
