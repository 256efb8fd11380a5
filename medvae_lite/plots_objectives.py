"""Figures of the chapter that compares objectives: numbers in, `Figure` out, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from medvae_lite.plots import COLOURS, INK, style

__all__ = ["beyond", "plot_effects", "seed_band"]

BAND, WITHIN, BEYOND = "#d9d9d9", "#666666", COLOURS[1]


def seed_band(scores: ArrayLike) -> float:
    """The largest difference between two seeds of one model: what a change of seed alone has been seen to do.

    Arguments:
        scores: One a seed, with shape (S,). A single seed says nothing: 0.
    """
    return float(np.ptp(_seeds(scores, "scores")))


def beyond(differences: ArrayLike, band: float) -> bool:
    """Whether the differences of all seeds lie on one side of 0 and further from it than `band`."""
    differences = _seeds(differences, "differences")
    return bool(differences.min() > band or differences.max() < -band)


@style()
def plot_effects(
    effects: Mapping[str, Mapping[str, ArrayLike]], bands: Mapping[str, float], *,
    better: Mapping[str, int] | None = None, limits: Mapping[str, float] | None = None, last: int = 0, columns: int = 3
) -> Figure:
    """What each change does to each score: a panel a score, a row a change, a dot a seed, a line over their range.

    A full vermilion square is the mean of an effect that lies `beyond` the band with every seed, an open grey circle
    the mean of one that does not.

    Arguments:
        effects: Score to change (the same rows in every panel, first on top) to differences from the model without
            it, one a seed, with shape (S,).
        bands: Score to the half-width of the grey band about 0: see `seed_band`.
        better: Score to +1 where more is better, -1 where less is: an arrow in the title.
        limits: Score to the largest difference that its panel shows; a mean further out stands as an arrow at the
            edge, with its value.
        last: How many of the last rows a line sets apart.
        columns: Panels side by side.

    Raises:
        ValueError: If panels do not hold the same rows, or a band is missing.
    """
    effects = {score: {name: _seeds(d, "effects") for name, d in rows.items()} for score, rows in effects.items()}
    changes = list(next(iter(effects.values())))
    for score, rows in effects.items():
        if list(rows) != changes:
            raise ValueError(f"`effects` must hold the same changes for every score, {score!r} has {list(rows)}")
        if score not in bands:
            raise ValueError(f"`bands` must hold every score of `effects`, {score!r} is missing")
    columns = min(columns, len(effects))
    panels = -(-len(effects) // columns)
    # Changes are named once, at the left, and need width of their own.
    names = 0.075 * max(map(len, changes))
    size = (names + 2.25 * columns, panels * (0.75 + 0.21 * len(changes)))
    fig, axes = plt.subplots(panels, columns, figsize=size, sharey=True, squeeze=False)
    for ax in axes.flat[len(effects) :]:
        ax.remove()
    for ax, (score, rows) in zip(axes.flat, effects.items()):
        arrow = {1: " (more is better →)", -1: " (← less is better)"}.get((better or {}).get(score, 0), "")
        _panel(ax, list(rows.values()), bands[score], (limits or {}).get(score))
        ax.set_title(score + arrow, fontsize=9)
        if last:
            ax.axhline(len(changes) - last - 0.5, color=INK, linewidth=0.6, linestyle=":")
    axes[0, 0].set(yticks=range(len(changes)), yticklabels=changes, ylim=(len(changes) - 0.4, -0.6))
    return fig


def _panel(ax: Axes, rows: list[NDArray], band: float, limit: float | None) -> None:
    ax.axvspan(-band, band, color=BAND, linewidth=0, zorder=0)
    ax.axvline(0, color=INK, linewidth=0.8, linestyle="-", zorder=1)
    for row, differences in enumerate(rows):
        mean, clear = differences.mean(), beyond(differences, band)
        colour = BEYOND if clear else WITHIN
        if limit is not None and abs(mean) > limit:
            side = np.sign(mean)
            ax.plot([side * limit], [row], marker=">" if side > 0 else "<", color=colour, markersize=6, linestyle="none")
            ax.annotate(
                f"{mean:+.2g}".replace("-", "−"), (side * limit, row), (-7 * side, 0), textcoords="offset points",
                ha="right" if side > 0 else "left", va="center", fontsize=8, color=colour,
            )  # fmt: skip
            continue
        ax.hlines(row, differences.min(), differences.max(), color=colour, linewidth=1.6, zorder=2)
        ax.plot(differences, [row] * len(differences), "|", color=colour, markersize=6, linestyle="none", zorder=3)
        face = colour if clear else "white"
        mark = "s" if clear else "o"
        ax.plot([mean], [row], mark, color=colour, markerfacecolor=face, markersize=5, linestyle="none", zorder=4)
    if limit is not None:
        ax.set_xlim(-1.08 * limit, 1.08 * limit)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.grid(axis="y", color="#eeeeee", linewidth=0.6, linestyle="-")
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)


def _seeds(values: ArrayLike, name: str) -> NDArray:
    values = np.asarray(values, dtype=float).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"`{name}` must hold one finite number or more, one a seed, got {values}")
    return values
