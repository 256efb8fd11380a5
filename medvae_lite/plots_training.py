"""Figures of the chapter on training that fails: numbers and images in, `Axes` or `Figure` out, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from pandas import DataFrame

from medvae_lite.plots import COLOURS, DASHES, INK, style

__all__ = ["plot_balance", "plot_difference", "plot_settled", "plot_verdicts", "plot_window"]

MARKS = ("o", "s", "D", "^", "v")
SHADE = "#e3e3e3"


@style()
def plot_verdicts(runs: Mapping[str, DataFrame], *, panel: float = 2.5) -> Figure:
    """The KL that the encoder gives real and generated images during training, a panel a run, on one log scale.

    Arguments:
        runs: Title of the panel to the run's epochs, with columns `step`, `encoder_kl` and `encoder_kl_fake`.
        panel: Width of a panel in inches.
    """
    fig, axes = plt.subplots(1, len(runs), figsize=(panel * len(runs) + 0.5, 2.7), sharey=True, squeeze=False)
    for ax, (title, epochs) in zip(axes.flat, runs.items()):
        for i, (column, name) in enumerate({"encoder_kl": "real images", "encoder_kl_fake": "generated"}.items()):
            look = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKS[i]}
            ax.plot(epochs["step"].to_numpy(), epochs[column].to_numpy(), **look, markersize=4, label=name)
        ax.set(title=title, xlabel="step", yscale="log")
        ax.grid(axis="y", color=SHADE, linewidth=0.6, linestyle="-")
    axes[0, 0].set_ylabel("KL, nats")
    axes[0, 0].legend()
    return fig


@style()
def plot_balance(
    repulsions: Sequence[float], pull: float, *, rate: float | None = None, limit: float = 300.0, ax: Axes | None = None
) -> Axes:
    r"""The encoder's push on a generated image, :math:`\tfrac r2 e^{-r K}`, and the pull it has to overcome.

    Arguments:
        repulsions: :math:`r` per nat, a line each; a dot where it meets the pull.
        pull: :math:`s \beta_{kl}` per nat, the pull on an encoder that cannot tell real from generated. The grey band
            goes down to a tenth of it.
        rate: KL at which generated images stand when nothing pushes, in nats; an upright line.
        limit: Largest KL shown, in nats.
    """
    ax = ax or plt.figure(figsize=(5.2, 3.4)).gca()
    nats = np.linspace(0, limit, 400)
    for i, r in enumerate(repulsions):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        ax.plot(nats, r / 2 * np.exp(-r * nats), **look, label=f"push, r = {r:g}")
        meets = np.log(r / (2 * pull)) / r
        if 0 <= meets <= limit:
            ax.plot([meets], [pull], "o", color=look["color"], markersize=6)
    ax.axhspan(pull / 10, pull, color=SHADE, linewidth=0, zorder=0, label="pull, κ from 1 down to 0.1")
    if rate is not None:
        ax.axvline(rate, color=INK, linewidth=1, linestyle=":", label="without a push")
    ax.set(xlabel="KL of a generated image, nats", ylabel="per nat", yscale="log")
    ax.set(xlim=(0, limit), ylim=(pull / 40, max(repulsions)))
    ax.legend(fontsize=8)
    return ax


@style()
def plot_settled(
    measured: Mapping[str, tuple[ArrayLike, ArrayLike]], expected: Mapping[str, tuple[ArrayLike, ArrayLike]], *,
    rate: float | None = None, ax: Axes | None = None,
) -> Axes:
    """KL of generated images against repulsion, both on log scales: runs as marks, theory as lines.

    Arguments:
        measured: Name to repulsions and KLs in nats, each with shape (R,). Marks of the first are full, others open.
        expected: Name to the repulsions and KLs of a line.
        rate: KL of real images without an adversary, in nats; a level line.
    """
    ax = ax or plt.figure(figsize=(5.2, 3.6)).gca()
    for i, (name, (repulsions, kl)) in enumerate(expected.items()):
        ax.plot(np.asarray(repulsions), np.asarray(kl), color=INK, linestyle=DASHES[i % len(DASHES)], label=name)
    for i, (name, (repulsions, kl)) in enumerate(measured.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)], "linestyle": "none"}
        face = look["color"] if i == 0 else "white"
        ax.plot(np.asarray(repulsions), np.asarray(kl), **look, markerfacecolor=face, markersize=6, label=name)
    if rate is not None:
        ax.axhline(rate, color=COLOURS[2], linewidth=1, linestyle=":", label="real images, no adversary")
    ax.set(xlabel="repulsion, per nat", ylabel="KL of generated images, nats", xscale="log", yscale="log")
    ax.legend(fontsize=8)
    return ax


@style()
def plot_window(
    points: Mapping[str, Mapping[float, ArrayLike]], *, window: tuple[float, float] | None = None,
    level: float | None = None, label: str = "", ax: Axes | None = None,
) -> Axes:
    """A score against how far the push reaches, both on log scales: means over seeds, and their range.

    Arguments:
        points: Series to reach (repulsion times the rate without adversary) to scores, one a seed, with shape (S,).
        window: Smallest and largest reach that work; shaded.
        level: A level to compare with; a thin line.
        label: What the score is called.

    Raises:
        ValueError: If a point has no score, or `window` is not in order.
    """
    if window is not None and not 0 < window[0] < window[1]:
        raise ValueError(f"`window` must be two positive numbers, smallest first, got {window}")
    series = {n: {c: np.asarray(v, dtype=float).ravel() for c, v in sorted(at.items())} for n, at in points.items()}
    for name, at in series.items():
        for reach, values in at.items():
            if not len(values):
                raise ValueError(f"`points` must hold one score or more of {name!r} at {reach:g}, got none")
    ax = ax or plt.figure(figsize=(4, 3)).gca()
    if window is not None:
        ax.axvspan(*window, color=SHADE, linewidth=0, zorder=0)
    if level is not None:
        ax.axhline(level, color=INK, linewidth=0.8, linestyle="-", zorder=1)
    for i, (name, at) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        look = {"color": colour, "linestyle": DASHES[i % len(DASHES)], "marker": MARKS[i % len(MARKS)]}
        ax.plot(list(at), [values.mean() for values in at.values()], **look, linewidth=1, markersize=5, label=name)
        ends = [(values.min(), values.max()) for values in at.values()]
        ax.vlines(list(at), *zip(*ends), color=colour, linewidth=2, alpha=0.5)
    ax.set(xlabel="repulsion × rate without adversary", ylabel=label, xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    return ax


@style()
def plot_difference(
    first: ArrayLike, second: ArrayLike, titles: Sequence[str] = ("first", "second"), *,
    limit: float = 0.3, panel: float = 1.05
) -> Figure:
    """Two versions of the same images, and the second minus the first in colour: red where it is brighter.

    Arguments:
        first, second: Grey values with shape (B, H, W).
        titles: What the two are called.
        limit: Difference in grey value at which the colours end.

    Raises:
        ValueError: If the two differ in shape.
    """
    first, second = (np.asarray(images, dtype=np.float32) for images in (first, second))
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(f"`first` and `second` must both have shape (B, H, W), got {first.shape} and {second.shape}")
    margin = 0.09 * max(map(len, (*titles, "difference")))
    fig, axes = plt.subplots(3, len(first), figsize=(panel * len(first) + margin + 0.6, 3 * panel + 0.1), squeeze=False)
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    shades = ({"cmap": "gray", "vmin": 0, "vmax": 1},) * 2 + ({"cmap": "RdBu_r", "vmin": -limit, "vmax": limit},)
    for row, images, shade, title in zip(axes, (first, second, second - first), shades, (*titles, "difference")):
        for ax, image in zip(row, images):
            drawn = ax.imshow(image, **shade, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center")
    bar = fig.colorbar(drawn, ax=axes[2].tolist(), shrink=0.9, aspect=8, pad=0.02)
    bar.outline.set_visible(False)
    return fig
