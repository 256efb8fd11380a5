"""Region values on the brain: the cortical surface, slices of the subcortex, and strips for what neither shows.

Values come by region name, geometry as an `atlas` (such as `data_prep.brain_atlas.load_atlas()`). Signed values take a
diverging map centred on 0, others a sequential one; both can be told apart by colour-blind readers. Grey is no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medvae_lite.plots import INK, style

__all__ = ["DIVERGING", "SEQUENTIAL", "drawable", "plot_deviation_map", "plot_strips", "plot_subcortex", "plot_surface"]

DIVERGING, SEQUENTIAL = "RdBu_r", "YlOrRd"
CENTRED = {"RdBu_r", "RdBu", "PuOr", "PuOr_r", "BrBG", "BrBG_r", "PiYG", "PiYG_r", "coolwarm"}
NO_VALUE, BORDER = to_rgb("#c4c4c4"), np.array(to_rgb("#555555"))
TISSUE = {1: to_rgb("#f1f1f1"), 2: to_rgb("#dedede")}  # inside of the brain, cortex
PIXEL = 0.6  # mm
VIEWS = {("lh", "lateral"): -1, ("lh", "medial"): 1, ("rh", "medial"): -1, ("rh", "lateral"): 1}
"""Hemisphere and view -> the side of x it is seen from, in the order of one row."""
LAYOUTS = {1: [list(VIEWS)], 2: [[("lh", "lateral"), ("rh", "lateral")], [("lh", "medial"), ("rh", "medial")]]}
SIDES = {"lh_": "left", "Left-": "left", "rh_": "right", "Right-": "right"}

Values = Mapping[str, float | np.floating]
Limits = tuple[float, float] | None


class Drawable(NamedTuple):
    """Names by where they can be drawn, each in the order given."""

    surface: list[str]
    subcortex: list[str]
    neither: list[str]


def drawable(names: Iterable[str], atlas: Any) -> Drawable:
    """Which names are on the surface of `atlas`, which in its slices, and which in neither (for `plot_strips`)."""
    names, cortex = list(names), {name for surface in atlas.surfaces.values() for name in np.unique(surface.labels)} - {""}
    inner = set(atlas.structures)
    rest = [name for name in names if name not in cortex | inner]
    return Drawable([name for name in names if name in cortex], [name for name in names if name in inner], rest)


def _refuse(values: Values, absent: Sequence[str], where: str) -> None:
    if absent:
        raise ValueError(f"`values` names {absent[0]!r}, which is not {where}; give only names that `drawable` lists for it")
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


def _colours(names: Sequence[str], values: Values, norm: Normalize, cmap: str) -> NDArray:
    """(K, 3), a colour a name."""
    given = np.array([values.get(name, np.nan) for name in names], float)
    colours = colormaps[cmap](norm(np.nan_to_num(given)))[:, :3]
    return np.where(np.isnan(given)[:, None], NO_VALUE, colours)


def _bar(axes: Axes | Sequence[Axes], values: Values, norm: Normalize, cmap: str, label: str, **where: Any) -> None:
    below, above = (any(sign * value > sign * end for value in values.values()) for sign, end in ((-1, norm.vmin), (1, norm.vmax)))
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
    ax.imshow((image * 255).round().astype(np.uint8), interpolation="antialiased")
    ax.set_axis_off()


def _project(vertices: NDArray, from_x: int) -> tuple[NDArray, NDArray]:
    """Pixels (V, 2) as column and row, upwards, from the lowest and most left one; and nearness to the viewer, mm (V,)."""
    flat = np.stack([from_x * vertices[:, 1], vertices[:, 2]], 1)
    return (flat - flat.min(0)) / PIXEL + 2, from_x * vertices[:, 0]


def _cross(a: NDArray, b: NDArray) -> NDArray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


@lru_cache(maxsize=16)
def _view(surface: Any, from_x: int) -> tuple[NDArray, NDArray]:
    """The vertex seen in each pixel, (H, W), -1 beside the brain; and how much light falls there, 0 to 1."""
    at, near = _project(surface.vertices, from_x)
    width, height = np.ceil(at.max(0)).astype(int) + 3
    corners = surface.vertices[surface.faces]
    normals = np.zeros_like(surface.vertices, float)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for corner in range(3):
        np.add.at(normals, surface.faces[:, corner], across)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    light = np.clip(normals @ np.array([from_x * 0.88, 0.0, 0.475]), 0, 1)

    faces = surface.faces[across[:, 0] * from_x > 0]
    a, b, c = (at[faces[:, corner]] for corner in range(3))
    low = np.floor(np.minimum(np.minimum(a, b), c)).astype(int)
    size = (np.ceil(np.maximum(np.maximum(a, b), c)).astype(int) - low).max()
    ab, ac = (b - a)[:, None], (c - a)[:, None]
    pixel = low[:, None] + np.stack(np.meshgrid(range(size + 1), range(size + 1)), -1).reshape(1, -1, 2)
    ap, area = pixel - a[:, None], _cross(ab, ac)
    weight = np.stack([_cross(ab - ap, ac - ap), _cross(ap, ac), _cross(ab, ap)], -1) / area[..., None]
    t, p = np.nonzero((weight >= -1e-9).all(-1))
    corner, weight, (column, row) = faces[t], weight[t, p], pixel[t, p].T
    depth, lit = ((weight * what[corner]).sum(1) for what in (near, light))
    flat, vertex = row * width + column, corner[np.arange(len(t)), weight.argmax(1)]
    order = np.argsort(depth, kind="stable")  # the nearest is written last and stays
    seen, shade = np.full(height * width, -1), np.zeros(height * width)
    seen[flat[order]], shade[flat[order]] = vertex[order], lit[order]
    return seen.reshape(height, width)[::-1], shade.reshape(height, width)[::-1]


def _panel(surface: Any, from_x: int, values: Values, norm: Normalize, cmap: str, shade: float) -> NDArray:
    """One view, (H, W, 3)."""
    seen, light = _view(surface, from_x)
    names, codes = np.unique(surface.labels, return_inverse=True)
    codes = np.where(seen >= 0, codes[seen], -1)
    light = np.round(light * 12) / 12  # few greys make a small file
    image = _colours(names, values, norm, cmap)[codes] * (1 - shade + shade * light)[..., None]
    if shade:
        image[_edges(codes)] = BORDER
    image[codes < 0] = 1
    return image


def _mosaic(rows: Sequence[Sequence[NDArray]], gap: int) -> tuple[NDArray, list[tuple[float, float]]]:
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
    rows: int = 2, shade: float = 0.4, bar: bool = True, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Regions of the cortex coloured by value, both hemispheres from the side and from the middle.

    Arguments:
        values: Region, such as `lh_entorhinal`, to value; NaN and regions left out are grey.
        atlas: Has `surfaces`, lh and rh to `vertices` (V, 3) mm, `faces` (T, 3) and `labels` (V,).
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
    ax = ax or plt.figure(figsize=(5.2, 3.7) if rows == 2 else (9, 2.1)).gca()
    panels = [[_panel(atlas.surfaces[v[0]], VIEWS[v], values, norm, cmap, shade) for v in row] for row in LAYOUTS[rows]]
    image, tops = _mosaic(panels, gap=24)
    _show(ax, image)
    for (side, view), (x, y) in zip((v for row in LAYOUTS[rows] for v in row), tops):
        ax.text(x, y, f"{'left' if side == 'lh' else 'right'}, {view}", ha="center", va="bottom", fontsize=9)
    if bar:
        _bar(ax, values, norm, cmap, label)
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
    _refuse(values, [name for name in values if name not in drawable(values, atlas).subcortex], "a structure of the slices")
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
        values: Region to value, in the order of the table. Names begin with lh_ or Left-, rh_ or Right-, or neither.
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
    upright = len(parts) > 12
    shape = (len(parts), len(sides)) if upright else (len(sides), len(parts))
    ax = ax or plt.figure(figsize=(1.4 + 0.62 * shape[1] + bar, (0.5 if upright else 1.1) + 0.3 * shape[0])).gca()
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
        _bar(ax, values, norm, cmap, label, **({} if upright else {"location": "bottom", "shrink": 0.5}))
    return ax


@style()
def plot_deviation_map(
    values: Values, atlas: Any, *, limits: Limits = None, cmap: str = DIVERGING, label: str = "deviation, z", title: str = ""
) -> Figure:
    """All regions of one person, or of a group's mean, on one scale: the cortex, the subcortex, and strips of the rest.

    Arguments:
        values: Region to value. What `atlas` cannot show stands in the strips: hippocampal subfields, ventricles.
        limits, label: As in `plot_surface`.
        title: Who it is.

    Raises:
        ValueError: If there is no value, one is infinite, or `limits` not ascending.
    """
    _refuse(values, [], "")
    norm, places = _scale(values, limits, cmap), drawable(values, atlas)
    subfields = [name for name in places.neither if name.startswith(("lh_", "rh_"))]
    others = [name for name in places.neither if name not in subfields]
    groups = (places.surface, places.subcortex, subfields, others)
    draws = [(plot_surface, {"atlas": atlas, "rows": 1}), (plot_subcortex, {"atlas": atlas}), (plot_strips, {}), (plot_strips, {})]
    rows = [(*draw, group) for draw, group in zip(draws, groups) if group]
    heights = [{plot_surface: 1.7, plot_subcortex: 2.3}.get(draw, 0.6 + 0.22 * len(group)) for draw, _, group in rows]
    fig, axes = plt.subplots(len(rows), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False)
    for ax, (draw, more, group) in zip(axes.flat, rows):
        some = {name: values[name] for name in group}
        draw(some, **more, limits=(norm.vmin, norm.vmax), cmap=cmap, bar=False, ax=ax)
    _bar(list(axes.flat), values, norm, cmap, label, aspect=40, shrink=0.6)
    fig.suptitle(title, fontsize=11)
    return fig
