"""Figures of the chapter that remakes the paper's tables: arrays in, `Axes` or `Figure` out, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from medvae_lite.plots import COLOURS, DASHES, FRAMES, plot_grid, style

__all__ = ["plot_path", "plot_seeds", "plot_zoomed"]

MARKS = ("o", "s", "D", "^", "v")


@style()
def plot_seeds(
    scores: Mapping[str, Mapping[str, ArrayLike]], *, label: str = "", ax: Axes | None = None
) -> Axes:
    """One score of several models, each trained with several seeds: a tick a seed, a line over them, a mark at the mean.

    Arguments:
        scores: Series (colour and mark) to model (row, first on top) to its scores, one a seed, shape (S,). A model
            that a series lacks leaves a gap there.
        label: What the score is called.

    Raises:
        ValueError: If a model has no score at all.
    """
    models = list(dict.fromkeys(model for series in scores.values() for model in series))
    ax = ax or plt.figure(figsize=(4.5, 0.6 + 0.55 * len(models))).gca()
    for s, (series, rows) in enumerate(scores.items()):
        offset = 0.6 * ((s + 0.5) / len(scores) - 0.5)
        for model, values in rows.items():
            values = np.asarray(values, dtype=float).ravel()
            if not len(values):
                raise ValueError(f"`scores` must hold one value or more of {model!r} in {series!r}, got none")
            look = {"color": COLOURS[s % len(COLOURS)], "marker": MARKS[s % len(MARKS)], "linestyle": "none"}
            row = models.index(model) + offset
            ax.hlines(row, values.min(), values.max(), color=look["color"], linewidth=1)
            ax.vlines(values, row - 0.06, row + 0.06, color=look["color"], linewidth=1)
            ax.plot([values.mean()], [row], **look, markersize=5, label=series if model == next(iter(rows)) else None)
    ax.set(yticks=range(len(models)), yticklabels=models, xlabel=label, ylim=(len(models) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for between in range(1, len(models)):
        ax.axhline(between - 0.5, color="#bbbbbb", linewidth=0.6, linestyle="-")
    return ax


@style()
def plot_path(
    points: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]], *, labels: Sequence[str] = ("", ""),
    ax: Axes | None = None,
) -> Axes:
    """Two scores against each other while a setting changes: a path a model, a cross of ranges a setting.

    Arguments:
        points: Model to setting (written beside its point, in order of the path) to its two scores, over seeds, each
            with shape (S,).
        labels: What the horizontal and the vertical score are called.
    """
    ax = ax or plt.figure(figsize=(4.8, 3.6)).gca()
    for m, (model, settings) in enumerate(points.items()):
        pairs = [tuple(np.asarray(values, dtype=float).ravel() for values in pair) for pair in settings.values()]
        x, y = (np.array([pair[axis].mean() for pair in pairs]) for axis in (0, 1))
        colour = COLOURS[m % len(COLOURS)]
        look = {"color": colour, "linestyle": DASHES[m % len(DASHES)], "marker": MARKS[m % len(MARKS)]}
        ax.plot(x, y, **look, markersize=5, linewidth=1, label=model)
        for i, (setting, (across, up)) in enumerate(zip(settings, pairs)):
            ax.hlines(y[i], across.min(), across.max(), color=colour, linewidth=1.2, alpha=0.5)
            ax.vlines(x[i], up.min(), up.max(), color=colour, linewidth=1.2, alpha=0.5)
            ax.annotate(setting, (x[i], y[i]), (5, 5), textcoords="offset points", color=colour, fontsize=8)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend()
    return ax


@style()
def plot_zoomed(
    images: Mapping[str, ArrayLike], box: tuple[int, int, int], *,
    frames: Sequence[str] = FRAMES, subjects: Sequence[str] | None = None, panel: float = 1.05
) -> Figure:
    """Whole images, each with a square of it enlarged beside it: a row a model, all frames of all subjects in it.

    Arguments:
        images: Row title to images with shape (B, C, H, W); the first row shows where the square lies.
        box: (top, left, side) of the square, in pixels.
        frames: Names of the C frames.
        subjects: Names of the B subjects, written before the frame's.

    Raises:
        ValueError: If the square does not lie inside the images, or names and images disagree in number.
    """
    rows = {name: np.asarray(stack, dtype=np.float32) for name, stack in images.items()}
    b, c, h, w = next(iter(rows.values())).shape
    top, left, side = box
    if side < 1 or min(top, left) < 0 or top + side > h or left + side > w:
        raise ValueError(f"`box` must lie inside {h} x {w} pixels as (top, left, side), got {box}")
    if len(frames) != c or (subjects is not None and len(subjects) != b):
        raise ValueError(f"`frames` and `subjects` must name {c} and {b}, got {list(frames)} and {subjects}")
    titles = [f"{'' if subjects is None else subjects[i] + ', '}{frame}" for i in range(b) for frame in frames]
    grid = []
    for stack in rows.values():
        cells = []
        for image in stack.reshape(b * c, h, w):
            cells += [image, _enlarged(image[top : top + side, left : left + side], h)]
        grid.append(cells)
    columns = [text for title in titles for text in (title, "heart")]
    fig = plot_grid(grid, list(rows), columns, panel=panel)
    for whole in range(0, 2 * b * c, 2):
        # White in black stands out from any grey, and leaves a figure without colour, which is half the file.
        border = Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor="white", linewidth=1.2)
        border.set_path_effects([patheffects.withStroke(linewidth=2.6, foreground="black")])
        fig.axes[whole].add_patch(border)
    return fig


def _enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """Nearest pixels of a square, repeated to `size` x `size`: every grey value is one of the image's own."""
    index = (np.arange(size) * len(image)) // size
    return image[np.ix_(index, index)]
