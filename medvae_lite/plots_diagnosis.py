"""Figures of the chapter on diagnosis: scores and counts in, `Axes` or `Figure` out, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from medvae_lite.plots import COLOURS, DASHES, INK, style

__all__ = ["plot_confusions", "plot_intervals", "plot_sizes", "plot_trials"]

MARKS = ("o", "s", "D", "^", "v")
SHADE = "#e3e3e3"


@style()
def plot_intervals(
    intervals: Mapping[str, tuple[float, float, float]], *, kinds: Mapping[str, str] | None = None,
    chance: ArrayLike | None = None, level: float | None = None, label: str = "", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Values with their intervals, a row each, the first on top.

    Arguments:
        intervals: Row to value, lower and upper end.
        kinds: Row to what it is; a colour and a mark for each kind, in the order of first appearance.
        chance: What guessing scores, one value a trial, (T,); shaded from the smallest to the largest.
        level: A level to compare with; an upright line.
        label: What the values are.

    Raises:
        ValueError: If there is no row, or an interval does not hold its value.
    """
    if not intervals:
        raise ValueError("`intervals` must hold one row or more, got none")
    for row, (value, low, high) in intervals.items():
        if not low <= value <= high:
            raise ValueError(f"the interval of {row!r} must hold its value, got {value:g} in {low:g} to {high:g}")
    kinds = kinds or dict.fromkeys(intervals, "")
    order = list(dict.fromkeys(kinds[row] for row in intervals))
    ax = ax or plt.figure(figsize=(6.4, 0.27 * len(intervals) + 0.9)).gca()
    if chance is not None:
        ax.axvspan(np.min(chance), np.max(chance), color=SHADE, linewidth=0, zorder=0, label="shuffled groups")
    if level is not None:
        ax.axvline(level, color=INK, linewidth=0.8, linestyle="-", zorder=1)
    for i, kind in enumerate(order):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
        rows = [r for r, row in enumerate(intervals) if kinds[row] == kind]
        value, low, high = np.array([intervals[row] for row in intervals if kinds[row] == kind]).T
        ax.hlines(rows, low, high, color=look["color"], linewidth=1.6)
        ax.plot(value, rows, **look, linestyle="none", markersize=5, label=kind or None)
    ax.set(yticks=range(len(intervals)), yticklabels=list(intervals), xlabel=label)
    ax.set_ylim(len(intervals) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return ax


@style()
def plot_trials(trials: Mapping[str, ArrayLike], *, level: float, label: str = "", ax: Axes | None = None) -> Axes:
    """One dot a trial, a row each, and a bar at the mean.

    Arguments:
        trials: Row to values, (T,).
        level: Where the dots should lie; an upright line.
        label: What the values are.
    """
    ax = ax or plt.figure(figsize=(6.4, 0.45 * len(trials) + 0.8)).gca()
    ax.axvline(level, color=INK, linewidth=0.8, linestyle="-", zorder=1)
    for i, (name, values) in enumerate(trials.items()):
        values, colour = np.asarray(values, dtype=float).ravel(), COLOURS[i % len(COLOURS)]
        # Spread in a fixed order, so that equal values do not hide each other.
        height = i + 0.24 * np.linspace(-1, 1, len(values))[np.random.default_rng(i).permutation(len(values))]
        ax.plot(values, height, MARKS[0], color=colour, linestyle="none", markersize=4, alpha=0.6, label=name)
        ax.vlines(values.mean(), i - 0.36, i + 0.36, color=colour, linewidth=2.5)
    ax.set(yticks=range(len(trials)), yticklabels=list(trials), xlabel=label)
    ax.set_ylim(len(trials) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return ax


@style()
def plot_sizes(series: Mapping[str, Mapping[int, ArrayLike]], *, label: str = "", ax: Axes | None = None) -> Axes:
    """A score against the number of subjects: means over cohorts, and their range.

    Arguments:
        series: Line to subjects to scores, one a cohort, with shape (T,).
        label: What the score is.
    """
    ax = ax or plt.figure(figsize=(8.6, 3.6)).gca()
    for i, (name, at) in enumerate(series.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        values = [np.asarray(at[size], dtype=float).ravel() for size in sorted(at)]
        face = "white" if i >= len(COLOURS) else look["color"]
        line = {**look, "marker": MARKS[i % len(MARKS)], "markerfacecolor": face, "markersize": 5, "linewidth": 1.2}
        ax.plot(sorted(at), [v.mean() for v in values], **line, label=name)
        ax.vlines(sorted(at), [v.min() for v in values], [v.max() for v in values], color=look["color"], alpha=0.4)
    sizes = sorted({size for at in series.values() for size in at})
    ax.set(xscale="log", xticks=sizes, xticklabels=[str(size) for size in sizes], xlabel="subjects", ylabel=label)
    ax.minorticks_off()
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@style()
def plot_confusions(matrices: Mapping[str, ArrayLike], groups: Sequence[str], *, panel: float = 2.4) -> Figure:
    """Subjects of a group (row) called a group (column), a panel each: shade is the share of the row, figures count.

    Arguments:
        matrices: Title to counts, (G, G).
        groups: Names of the G groups.

    Raises:
        ValueError: If a matrix does not fit the groups, or a group has no subject.
    """
    matrices, number = {title: np.asarray(m, dtype=float) for title, m in matrices.items()}, len(groups)
    for title, counts in matrices.items():
        if counts.shape != (number, number):
            raise ValueError(f"{title!r} must be {number} by {number}, one row a group, got shape {counts.shape}")
        if not (counts.sum(1) > 0).all():
            raise ValueError(
                f"{title!r} must count a subject of every group, got none of {groups[counts.sum(1).argmin()]}"
            )
    fig, axes = plt.subplots(1, len(matrices), figsize=(panel * len(matrices) + 0.6, panel + 0.5), squeeze=False)
    for ax, (title, counts) in zip(axes.flat, matrices.items()):
        share = counts / counts.sum(1, keepdims=True)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if share[row, column] > 0.55 else INK
            ax.text(column, row, f"{count:.0f}" if count > 0.5 else "", ha="center", va="center", fontsize=9, color=ink)
        ax.set(title=title, xticks=range(number), xticklabels=groups, yticks=range(number), yticklabels=groups)
        ax.tick_params(length=0, labelsize=8)
        ax.set_xlabel("called")
    axes[0, 0].set_ylabel("is")
    return fig
