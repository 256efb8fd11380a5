"""Region values on the brain: the cortical surface, slices of the subcortex, and strips for what neither shows.

Values come by region name, geometry as an `atlas` (such as `data_prep.brain_atlas.load_atlas()`). Signed values take a
diverging map centred on 0, others a sequential one; both can be told apart by colour-blind readers. Grey is no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from numpy.typing import NDArray

from medvae_lite.plots import INK, style

__all__ = ["DIVERGING", "SEQUENTIAL", "drawable", "plot_strips", "plot_subcortex", "plot_surface"]

DIVERGING, SEQUENTIAL = "RdBu_r", "YlOrRd"
CENTRED = {"RdBu_r", "RdBu", "PuOr", "PuOr_r", "BrBG", "BrBG_r", "PiYG", "PiYG_r", "coolwarm"}
NO_VALUE, BORDER = to_rgb("#c4c4c4"), np.array(to_rgb("#555555"))
STEP = 6  # between the shades of red, green and blue, of 255
TISSUE = {1: to_rgb("#f1f1f1"), 2: to_rgb("#dedede")}  # inside of the brain, cortex
LAYOUTS = {
    1: [[("lh", "lateral"), ("lh", "medial"), ("rh", "medial"), ("rh", "lateral")]],
    2: [[("lh", "lateral"), ("rh", "lateral")], [("lh", "medial"), ("rh", "medial")]],
}
WIDEST = 12  # columns of a strip; more stand upright
BELOW = {"location": "bottom", "shrink": 0.4, "pad": 0.04}  # where a colour bar stands under a wide figure
SIDES = {"lh_": "left", "Left-": "left", "rh_": "right", "Right-": "right"}


Number = int | float | np.number
Values = Mapping[str, Number]
Limits = tuple[Number, Number] | None


class Drawable(NamedTuple):
    """Names by where they can be drawn, each in the order given."""

    surface: list[str]
    subcortex: list[str]
    neither: list[str]


def drawable(names: Iterable[str], atlas: Any) -> Drawable:
    """Which names are on the surface of `atlas`, which in its slices, and which in neither (for `plot_strips`)."""
    names, inner = list(names), set(atlas.structures)
    cortex = {str(name) for surface in atlas.surfaces.values() for name in np.unique(surface.labels)} - {""}
    rest = [name for name in names if name not in cortex | inner]
    return Drawable([name for name in names if name in cortex], [name for name in names if name in inner], rest)


def _refuse(values: Values, absent: Sequence[str], where: str) -> None:
    if absent:
        raise ValueError(f"`values` names {absent[0]!r}, which is not {where}; give only what `drawable` lists for it")
    if not values or any(np.isinf(value) for value in values.values()):
        raise ValueError("`values` must hold one region or more and no infinite value; NaN stands for a missing one")


def _scale(values: Values, limits: Limits, cmap: str) -> Normalize:
    """From -top to top for a diverging map, from 0 to top for others, unless `limits` says so."""
    if limits is None:
        top = max((abs(float(value)) for value in values.values() if np.isfinite(value)), default=1.0) or 1.0
        limits = (-top if cmap in CENTRED else 0.0, top)
    if not limits[0] < limits[1]:
        raise ValueError(f"`limits` must be (lowest, highest), got {limits}")
    return Normalize(*limits)


def _colours(names: Sequence[str] | NDArray, values: Values, norm: Normalize, cmap: str) -> NDArray:
    """(K, 3), a colour a name."""
    given = np.array([values.get(name, np.nan) for name in names], float)
    colours = colormaps[cmap](norm(np.nan_to_num(given)))[:, :3]
    return np.where(np.isnan(given)[:, None], NO_VALUE, colours)


def _bar(axes: Axes | Sequence[Axes], values: Values, norm: Normalize, cmap: str, label: str, **where: Any) -> None:
    below, above = any(v < norm.vmin for v in values.values()), any(v > norm.vmax for v in values.values())
    look = {"shrink": 0.8, "aspect": 25, "extend": ("neither", "max", "min", "both")[2 * below + above]}
    bar = np.ravel(axes)[0].figure.colorbar(ScalarMappable(norm, cmap), ax=axes, label=label, **(look | where))
    bar.outline.set_visible(False)


def _edges(codes: NDArray) -> NDArray:
    """Where a pixel differs from the one to its right or below."""
    edge = np.zeros(codes.shape, bool)
    edge[:, :-1] |= codes[:, :-1] != codes[:, 1:]
    edge[:-1] |= codes[:-1] != codes[1:]
    return edge


def _show(ax: Axes, image: NDArray) -> None:
    """Draws (H, W, 3) at half size, which smooths borders, and with few colours, which makes the file small."""
    height, width = (side // 2 for side in image.shape[:2])
    half = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))
    painted = 255 - STEP * ((1 - half) * 255 / STEP).round()
    ax.imshow(painted.clip(0).astype(np.uint8), interpolation="nearest", extent=(0, 2 * width, 2 * height, 0))
    ax.set_axis_off()


def _panel(surface: Any, view: Any, values: Values, norm: Normalize, cmap: str, shade: Number) -> NDArray:
    """One view, (H, W, 3)."""
    names, codes = np.unique(surface.labels, return_inverse=True)
    codes = np.where(view.vertex >= 0, codes[view.vertex], -1)
    image = _colours(names, values, norm, cmap)[codes] * (1 - shade + shade * view.light)[..., None]
    if shade:
        image[_edges(codes)] = BORDER
    image[codes < 0] = 1
    return image


def _mosaic(rows: Sequence[Sequence[NDArray]], gap: int) -> tuple[NDArray, list[tuple[Number, Number]]]:
    """Images (H, W, 3) in rows on white, centred in cells of one size; and the top middle (x, y) of each cell."""
    height, width = (max(image.shape[axis] for row in rows for image in row) + gap for axis in (0, 1))
    sheet, tops = np.ones((height * len(rows), width * max(map(len, rows)), 3)), []
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            h, w = image.shape[:2]
            top, left = r * height + (height - h) // 2, c * width + (width - w) // 2
            sheet[top : top + h, left : left + w] = image
            tops.append((c * width + width / 2, top - 4))
    return sheet, tops


@style()
def plot_surface(
    values: Values, atlas: Any, *, limits: Limits = None, cmap: str = DIVERGING, label: str = "deviation, z",
    rows: int = 2, shade: Number = 0.4, bar: bool = True, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Regions of the cortex coloured by value, both hemispheres from the side and from the middle.

    Arguments:
        values: Region, such as `lh_entorhinal`, to value; NaN and regions left out are grey.
        atlas: Has `surfaces`, lh and rh to `labels` (V,), and `views`, pairs such as ("lh", "medial") to the `vertex`
            seen in each pixel (H, W), -1 beside the brain, and the `light` there (H, W), 0 to 1.
        limits: Values at the ends of the colour map; by default it holds them all, centred on 0 if it is diverging.
        label: Of the colour bar, with the unit.
        rows: 1 or 2 rows of the four views.
        shade: How dark a surface turned away from the light is, from 0 (flat colour without borders) to 1.
        bar: Whether to draw the colour bar.

    Raises:
        ValueError: If a name is not on the surface, a value infinite, `limits` not ascending, or `rows` not 1 or 2.
    """
    _refuse(values, [name for name in values if name not in drawable(values, atlas).surface], "a region of the surface")
    if rows not in LAYOUTS:
        raise ValueError(f"`rows` must be 1 or 2, got {rows}")
    norm = _scale(values, limits, cmap)
    ax = ax or plt.figure(figsize=(5.2, 3.7) if rows == 2 else (9, 2.7)).gca()
    panels = [
        [_panel(atlas.surfaces[view[0]], atlas.views[view], values, norm, cmap, shade) for view in row]
        for row in LAYOUTS[rows]
    ]
    image, tops = _mosaic(panels, gap=24)
    _show(ax, image)
    for (side, view), (x, y) in zip((v for row in LAYOUTS[rows] for v in row), tops):
        ax.text(x, y, f"{'left' if side == 'lh' else 'right'}, {view}", ha="center", va="bottom", fontsize=9)
    if bar:
        _bar(ax, values, norm, cmap, label, **(BELOW if rows == 1 else {}))
    return ax


@style()
def plot_subcortex(
    values: Values, atlas: Any, *, limits: Limits = None, cmap: str = DIVERGING, label: str = "deviation, z",
    bar: bool = True, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Subcortical structures coloured by value in slices of the brain, the person's left on the left.

    Arguments:
        values: Structure, such as `Left-Hippocampus`, to value; NaN and structures left out are grey.
        atlas: Has `structures` and `slices` with `title`, `labels` (H, W) and `brain` (H, W).
        limits, label, bar: As in `plot_surface`.

    Raises:
        ValueError: If a name is not in the slices, a value infinite, or `limits` not ascending.
    """
    _refuse(values, [name for name in values if name not in drawable(values, atlas).subcortex], "in the slices")
    norm = _scale(values, limits, cmap)
    ax = ax or plt.figure(figsize=(7.5, 2.8)).gca()
    colours, images = _colours(atlas.structures, values, norm, cmap), []
    for cut in atlas.slices:
        image = np.ones((*cut.labels.shape, 3))
        for tissue, colour in TISSUE.items():
            image[cut.brain == tissue] = colour
        inside = cut.labels > 0
        image[inside] = colours[cut.labels[inside] - 1]
        image[_edges(cut.labels)] = BORDER
        images.append(image)
    image, tops = _mosaic([images], gap=20)
    _show(ax, image)
    for cut, (x, y) in zip(atlas.slices, tops):
        ax.text(x, y, cut.title, ha="center", va="bottom", fontsize=9)
        for side, text in ((-1, "L"), (1, "R")):
            ax.text(x + side * 0.42 * image.shape[1] / len(tops), 0.95 * image.shape[0], text, ha="center", fontsize=8)
    if bar:
        _bar(ax, values, norm, cmap, label)
    return ax


def _place(name: str) -> tuple[str, str]:
    """Side and structure of a name: lh_CA1 is the left CA1, Brain-Stem lies in the middle."""
    start = next((start for start in SIDES if name.startswith(start)), None)
    return (SIDES[start], name.removeprefix(start)) if start else ("midline", name)


@style()
def plot_strips(
    values: Values, *, limits: Limits = None, cmap: str = DIVERGING, label: str = "deviation, z", decimals: int = 1,
    bar: bool = True, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Any regions as a table of coloured cells with their numbers: a row a side, a column a structure.

    Where there are more than 12 structures, they are the rows and the sides the columns. A missing value is grey; a
    cell that no region of `values` has stays white.

    Arguments:
        values: Region to value, in the order of the table. Names begin with `lh_` or `Left-`, `rh_` or `Right-`, or
            neither.
        limits, label, bar: As in `plot_surface`.
        decimals: How many the printed numbers have.

    Raises:
        ValueError: If there is no value, one is infinite, or `limits` not ascending.
    """
    _refuse(values, [], "")
    norm = _scale(values, limits, cmap)
    places = {name: _place(name) for name in values}
    sides = [side for side in ("left", "right", "midline") if side in {place[0] for place in places.values()}]
    parts = list(dict.fromkeys(part for _, part in places.values()))
    upright = len(parts) > WIDEST
    shape = (len(parts), len(sides)) if upright else (len(sides), len(parts))
    height = (0.5 if upright else 1 + 0.9 * bar) + 0.3 * shape[0]
    ax = ax or plt.figure(figsize=(1.4 + 0.62 * shape[1] + bar * upright, height)).gca()
    image = np.ones((*shape, 3))
    for name, colour in zip(values, _colours(list(values), values, norm, cmap)):
        side, part = places[name]
        cell = (parts.index(part), sides.index(side)) if upright else (sides.index(side), parts.index(part))
        image[cell] = colour
        if not np.isnan(values[name]):
            ink = INK if colour @ (0.299, 0.587, 0.114) > 0.5 else "white"
            ax.text(*cell[::-1], f"{values[name]:z.{decimals}f}", ha="center", va="center", color=ink, fontsize=8)
    ax.imshow(image, aspect="auto", interpolation="nearest")
    across, down = (sides, parts) if upright else (parts, sides)
    turned = {} if upright else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(shape[1]), across, fontsize=8, **turned)
    ax.set_yticks(range(shape[0]), down, fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if bar:
        _bar(ax, values, norm, cmap, label, **({} if upright else BELOW))
    return ax
