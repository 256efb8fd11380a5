"""Every figure of the book as a function: arrays in, `Axes` out (`Figure` where it is a grid).

Figures have a white face of their own, so they read the same on a light and on a dark page. Lines take the
colours of Okabe and Ito (2008) that stand out from white, and a dash pattern each, so that colour is never
the only cue. Grey values are data: every image is drawn from 0 = black to 1 = white, pixel by pixel.

Everywhere, `ax` is where to draw (a new figure by default), `panel` the side of one image in inches, and
arrays may be tensors. `with plots.style():` gives a figure drawn by hand the same look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from pandas import DataFrame
from scipy.stats import spearmanr

__all__ = [
    "COLOURS", "INK", "OUTLINES", "STYLE", "plot_attributes", "plot_correlation", "plot_curves",
    "plot_frames", "plot_grid", "plot_order", "plot_outlines", "plot_reconstructions",
    "plot_spectrum", "plot_walk", "sign", "style",
]  # fmt: skip

INK = "#222222"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#222222", "#CC79A7")  # blue, vermilion, green, ink, purple
OUTLINES = {"LV": "#56B4E9", "myocardium": "#F0E442", "RV": "#E69F00"}  # sky blue, yellow, orange
LABELS = {"LV": (1,), "myocardium": (1, 2), "RV": (3,)}  # the muscle's outer border holds the cavity too
FRAMES = ("ED", "ES")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

Titles, Rows = Sequence[str] | None, ArrayLike | Sequence[ArrayLike]

STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "figure.dpi": 80, "figure.constrained_layout.use": True,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "font.size": 10, "axes.titlesize": 10, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
    "image.interpolation": "nearest", "image.cmap": "gray",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """The book's style. Unlike `rc_context` it leaves alone what a notebook's backend sets on loading."""
    before = {key: plt.rcParams[key] for key in STYLE}
    plt.rcParams.update(STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def _array(values: ArrayLike, ndim: int | None, name: str) -> NDArray:
    """A NumPy array of `ndim` axes (any, if None); an axis of one channel before (H, W) is dropped."""
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if ndim and values.ndim == ndim + 1 and values.shape[-3] == 1:
        values = values[..., 0, :, :]
    if ndim and values.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes, got shape {values.shape}")
    return values


def _image(ax: Axes, image: NDArray) -> None:
    ax.imshow(image.astype(np.float32), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


@style()
def plot_outlines(ax: Axes, labels: ArrayLike) -> Axes:
    """Draws the borders of LV cavity, myocardium (outer border) and RV cavity, where present, over an image.

    Arguments:
        ax: Axes that show the image.
        labels: Label map with shape (H, W): 0 background, 1 LV, 2 myocardium, 3 RV.
    """
    labels = _array(labels, 2, "labels")
    halo = [patheffects.withStroke(linewidth=2.4, foreground="black")]
    for name, colour in OUTLINES.items():
        mask = np.isin(labels, LABELS[name])
        if np.isin(labels, LABELS[name][-1]).any() and not mask.all():
            border = ax.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)
            border.set(path_effects=halo, label=name)
    return ax


@style()
def plot_grid(
    images: Rows, row_titles: Titles = None, col_titles: Titles = None, *,
    outlines: Rows | None = None, panel: float = 1.35
) -> Figure:
    """Images in rows and columns, all on the grey scale from 0 to 1.

    Arguments:
        images: Grey values with shape (R, C, H, W) or (R, C, 1, H, W); or R rows (C, H, W) of any size.
        row_titles, col_titles: Titles of the R rows and the C columns.
        outlines: Label maps to outline, with the shape of the images.

    Raises:
        ValueError: If shapes or numbers of titles disagree.
    """
    images = [_array(row, 3, f"images[{i}]") for i, row in enumerate(images)]
    rows, cols = len(images), len(images[0])
    for name, titles, count in (("row_titles", row_titles, rows), ("col_titles", col_titles, cols)):
        if titles is not None and len(titles) != count:
            raise ValueError(f"`{name}` must name {count}, got {len(titles)}")
    # Row titles stand beside the first image and need width of their own.
    margin = 0.09 * max(len(line) for title in row_titles or [""] for line in title.split("\n"))
    fig, axes = plt.subplots(rows, cols, figsize=(cols * panel + margin, rows * panel + 0.25), squeeze=False)
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for ax, image in zip(axes.flat, (image for row in images for image in row), strict=True):
        _image(ax, image)
    if outlines is not None:
        for ax, labels in zip(axes.flat, (labels for row in outlines for labels in row), strict=True):
            plot_outlines(ax, labels)
    for ax, title in zip(axes[:, 0], row_titles or ()):
        ax.set_ylabel(title, rotation=0, ha="right", va="center")
    for ax, title in zip(axes[0], col_titles or ()):
        ax.set_title(title)
    return fig


@style()
def plot_frames(image: ArrayLike, labels: ArrayLike | None = None, *, panel: float = 2.6) -> Figure:
    """One subject's ED and ES frame side by side, outlined with a key where labels are given.

    Arguments:
        image: Grey values with shape (2, H, W).
        labels: Label maps with shape (2, H, W).
    """
    fig = plot_grid([image], col_titles=FRAMES, outlines=None if labels is None else [labels], panel=panel)
    if labels is not None:
        halo = [patheffects.withStroke(linewidth=3.5, foreground="black")]
        key = [plt.Line2D([], [], color=colour, path_effects=halo) for colour in OUTLINES.values()]
        fig.set_figwidth(fig.get_figwidth() + 1.3)
        fig.legend(key, list(OUTLINES), loc="outside right center")
    return fig


@style()
def plot_reconstructions(
    x: ArrayLike, x_hat: Mapping[str, ArrayLike], *,
    frame: int = 0, box: tuple[int, int, int] | None = None, panel: float = 1.35
) -> Figure:
    """Images over their reconstructions, one column a subject, one row a model.

    Arguments:
        x: Images with shape (B, C, H, W), of which one `frame` is shown.
        x_hat: Name of a model to its reconstructions, shaped like `x`.
        box: (top, left, side) of a square, in pixels: the first row shows where it lies, the others only it.
    """
    rows = {name: _array(images, 4, name)[:, frame] for name, images in {"input": x, **x_hat}.items()}
    if box is None:
        return plot_grid(list(rows.values()), list(rows), panel=panel)
    top, left, side = box
    zoomed = [images[:, top : top + side, left : left + side] for images in rows.values()]
    fig = plot_grid([rows["input"], *zoomed], ["input", *(f"{name}, zoomed" for name in rows)], panel=panel)
    for ax in fig.axes[: len(zoomed[0])]:
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, ec=OUTLINES["RV"], lw=1.5))
    return fig


@style()
def plot_walk(images: ArrayLike, values: ArrayLike, label: str, *, panel: float = 1.35) -> Figure:
    """Decoded images along one latent dimension, titled with its values.

    Arguments:
        images: Grey values with shape (V, H, W), or (V, 2, H, W) for a row of ED above a row of ES.
        values: The V values of the latent dimension.
        label: What is walked along.
    """
    images = _array(images, None, "images")
    rows = images[None] if images.ndim == 3 else images.swapaxes(0, 1)
    titles = [label] if len(rows) == 1 else [f"{label}, {frame}" for frame in FRAMES]
    return plot_grid(rows, titles, [f"{float(value):+.1f}" for value in values], panel=panel)


@style()
def plot_curves(
    epochs: DataFrame, columns: Sequence[str] | Mapping[str, str], *, x: str = "step", ax: Axes | None = None
) -> Axes:
    """Training curves.

    Arguments:
        epochs: One row per epoch, such as `RunRecord.epochs`, with a column `x` for the horizontal axis.
        columns: Columns to draw, or column to what the key calls it.
    """
    ax = ax or plt.figure(figsize=(4.5, 3.2)).gca()
    for column in columns:
        name = columns[column] if isinstance(columns, Mapping) else column
        ax.plot(epochs[x].to_numpy(), epochs[column].to_numpy(), label=name)
    ax.set_xlabel(x)
    ax.legend()
    return ax


@style()
def plot_order(
    z_k: ArrayLike, attribute: ArrayLike, name: str, *, unit: str = "mL", ax: Axes | None = None
) -> Axes:
    """An attribute against the latent dimension that should order it, with Spearman's rank correlation.

    Arguments:
        z_k: Codes on one dimension, with shape (B,).
        attribute: The attribute with shape (B,), called `name` and measured in `unit`.
    """
    ax = ax or plt.figure(figsize=(3.4, 3.2)).gca()
    z_k, attribute = _array(z_k, 1, "z_k"), _array(attribute, 1, "attribute")
    ax.scatter(z_k, attribute, s=10, alpha=0.5, color=COLOURS[0], linewidths=0)
    rho = spearmanr(z_k, attribute).statistic
    ax.set(xlabel="code", ylabel=f"{name}, {unit}", title=f"Spearman ρ = {rho:z.2f}")
    return ax


@style()
def plot_correlation(
    matrix: ArrayLike, names: Sequence[str], col_names: Sequence[str] | None = None, *, ax: Axes | None = None
) -> Axes:
    """A correlation matrix with its numbers, blue for -1, red for +1, white for 0.

    Arguments:
        matrix: Values from -1 to 1 with shape (K, J).
        names: Of the K rows, and of the columns unless `col_names` has them.
        col_names: Of the J columns.
    """
    matrix = _array(matrix, 2, "matrix")
    cols = col_names or names
    ax = ax or plt.figure(figsize=(1.2 + 0.62 * len(cols), 0.9 + 0.5 * len(names))).gca()
    ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(cols)), cols, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    for (row, col), value in np.ndenumerate(matrix):
        ax.text(col, row, f"{value:z.2f}", ha="center", va="center", c="white" if abs(value) > 0.6 else INK)
    return ax


@style()
def plot_spectrum(spectra: Mapping[str, tuple[ArrayLike, ArrayLike]], *, ax: Axes | None = None) -> Axes:
    """Radial power spectra on a logarithmic scale.

    Arguments:
        spectra: Name to frequencies (n,) in cycles per pixel and power (n,), or (B, n) to be averaged over B.
    """
    ax = ax or plt.figure(figsize=(4.5, 3.2)).gca()
    for name, (frequency, power) in spectra.items():
        ax.semilogy(_array(frequency, 1, name), np.atleast_2d(_array(power, None, name)).mean(0), label=name)
    ax.set(xlabel="spatial frequency, cycles per pixel", ylabel="power")
    ax.legend()
    return ax


@style()
def plot_attributes(values: ArrayLike, names: Sequence[str], *, unit: str = "mL", bins: int = 30) -> Figure:
    """A histogram of every attribute, all on one scale, with the mean as a line; mean and sd in the title.

    Arguments:
        values: Attributes with shape (N, K); `names` are theirs.
    """
    values = _array(values, 2, "values")
    cols, rows = min(3, len(names)), -(-len(names) // 3)
    size = (2.7 * cols, 1.9 * rows)
    fig, axes = plt.subplots(rows, cols, figsize=size, sharex=True, sharey=True, squeeze=False)
    edges = np.linspace(min(values.min(), 0), values.max(), bins + 1)
    for ax, name, column in zip(axes.flat, names, values.T):
        ax.hist(column, edges, color=COLOURS[0])
        ax.axvline(column.mean(), color=COLOURS[1], linestyle="--")
        ax.set_title(f"{name}: {column.mean():.0f} ± {column.std(ddof=1):.0f} {unit}")
    fig.supxlabel(unit, fontsize=10)
    fig.supylabel("subjects", fontsize=10)
    return fig


def sign(drawn: Axes | Figure, text: str) -> None:
    """Writes below a figure what made it, such as its profile."""
    drawn.figure.text(1, 0, text, ha="right", va="top", size=7, color="#555555")
