"""Figures of the chapter on walks: numbers in, `Axes` or `Figure` out, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import norm

from medvae_lite.plots import COLOURS, DASHES, INK, plot_correlation, style

__all__ = ["plot_asked", "plot_codes", "plot_talk"]

MARKS = ("o", "s", "D", "^", "v")


@style()
def plot_asked(
    asked: ArrayLike, found: Mapping[str, ArrayLike], names: Sequence[str], *, unit: str = "mL", panel: float = 2.4
) -> Figure:
    """What walks asked for and what was measured, a panel an attribute; the diagonal is a walk that does what it says.

    Arguments:
        asked: Values asked for, (K, V).
        found: Model to values measured, (K, N, V): mean as a line, the subjects' 10 % to 90 % as a band.
        names: Of the K attributes.
    """
    asked = np.asarray(asked, float)
    cols, rows = min(3, len(names)), -(-len(names) // 3)
    fig, axes = plt.subplots(rows, cols, figsize=(panel * cols, panel * rows), squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for k, (ax, name) in enumerate(zip(axes.flat, names)):
        ends = asked[k][[0, -1]]
        ax.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":")
        for m, (model, values) in enumerate(found.items()):
            values, look = np.asarray(values, float)[k], {"color": COLOURS[m % len(COLOURS)]}
            ax.fill_between(asked[k], *np.quantile(values, [0.1, 0.9], axis=0), alpha=0.15, linewidth=0, **look)
            line = {"linestyle": DASHES[m % len(DASHES)], "marker": MARKS[m % len(MARKS)], "markersize": 4}
            ax.plot(asked[k], values.mean(0), label=model if not k else None, **line, **look)
        ax.set_title(name)
    fig.supxlabel(f"asked for, {unit}", fontsize=10)
    fig.supylabel(f"found on the decoded image, {unit}", fontsize=10)
    fig.legend(loc="outside upper center", ncols=len(found))
    return fig


@style()
def plot_talk(matrices: Mapping[str, ArrayLike], names: Sequence[str], *, panel: float = 3.4) -> Figure:
    """Cross-talk matrices side by side: row asked for, column found, in standard deviations of the cohort.

    Arguments:
        matrices: Title to (K, K).
        names: Of the K attributes.
    """
    fig, axes = plt.subplots(1, len(matrices), figsize=(panel * len(matrices), panel), sharey=True, squeeze=False)
    for ax, (title, matrix) in zip(axes.flat, matrices.items()):
        plot_correlation(np.clip(np.asarray(matrix, float), -9, 9), names, ax=ax)
        ax.set(title=title, xlabel="found")
    axes[0, 0].set_ylabel("asked for")
    return fig


@style()
def plot_codes(
    codes: Mapping[str, ArrayLike], names: Sequence[str], *, reach: float = 2.0, panel: float = 2.3
) -> Figure:
    """How the codes of a cohort lie in each dimension, and the prior; a panel a dimension.

    Arguments:
        codes: Model to codes, (N, K).
        names: Of the K dimensions.
        reach: Half the width of the customary walk, shaded, in units of the prior.
    """
    limit = max(np.abs(np.asarray(z)).max() for z in codes.values())
    edges, x = np.linspace(-limit, limit, 41), np.linspace(-limit, limit, 300)
    cols, rows = min(3, len(names)), -(-len(names) // 3)
    fig, axes = plt.subplots(rows, cols, figsize=(panel * cols, 1.6 * rows + 0.3), sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for k, (ax, name) in enumerate(zip(axes.flat, names)):
        ax.axvspan(-reach, reach, color="#ececec", linewidth=0)
        ax.plot(x, norm.pdf(x), color=INK, linestyle=":", label="prior" if not k else None)
        for m, (model, z) in enumerate(codes.items()):
            height, _ = np.histogram(np.asarray(z)[:, k], edges, density=True)
            look = {"color": COLOURS[m % len(COLOURS)], "linestyle": DASHES[m % len(DASHES)]}
            ax.stairs(height, edges, label=model if not k else None, linewidth=1.3, **look)
        ax.set_title(name)
    fig.supxlabel("code", fontsize=10)
    fig.supylabel("density", fontsize=10)
    fig.legend(loc="outside upper center", ncols=len(codes) + 1)
    return fig
