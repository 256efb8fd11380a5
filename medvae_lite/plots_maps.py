"""One person, or one group, on one sheet: cortex, deep structures, and what no atlas draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from medvae_lite.plots import style
from medvae_lite.plots_brain import DIVERGING, drawable, plot_strips, plot_subcortex, plot_surface

__all__ = ["plot_deviation_map"]

SIDED = ("lh_", "rh_", "Left-", "Right-")


def plot_deviation_map(values: Mapping[str, float], atlas: Any, *, limit: float | None = None, label: str = "deviation, z") -> Figure:
    """Every region given, coloured on one scale: on the surface, in slices, and as strips for the rest.

    Arguments:
        values: Region to value; thickness (`lh_cuneus_thickness`) is drawn as the region where no volume is given.
        atlas: As in `medvae_lite.plots_brain`.
        limit: Value at the ends of the colour scale; by default the largest there is, at least 1.

    Raises:
        ValueError: If there is nothing to draw.
    """
    values = {name.removesuffix("_thickness"): value for name, value in reversed(values.items())}
    if not values:
        raise ValueError("`values` must hold a region or more, got none")
    where = drawable(values, atlas)
    limit = limit or max(1.0, float(np.nanmax(np.abs(list(values.values())))))
    paired = [name for name in where.neither if name.startswith(("lh_", "rh_"))]
    strips = [names for names in (paired[::-1], [name for name in where.neither if name not in paired][::-1]) if names]
    how = {"limits": (-limit, limit), "bar": False}
    with style():
        tall = [1.0 + 0.28 * (2 + any(not name.startswith(SIDED) for name in names)) for names in strips]
        fig = plt.figure(figsize=(9.5, 3.6 + sum(tall)), layout="constrained")
        rows = fig.subfigures(1 + len(strips), 1, height_ratios=[3.6, *tall]) if strips else [fig]
        left, right = rows[0].subplots(1, 2, width_ratios=[1, 1.25])
        plot_surface({name: values[name] for name in where.surface}, atlas, ax=left, **how) if where.surface else left.axis("off")
        plot_subcortex({name: values[name] for name in where.subcortex}, atlas, ax=right, **how) if where.subcortex else right.axis("off")
        for row, names in zip(rows[1:], strips):
            plot_strips({name: values[name] for name in names}, ax=row.subplots(), **how)
        bar = ScalarMappable(Normalize(-limit, limit), DIVERGING)
        fig.colorbar(bar, ax=[left, right], label=label, fraction=0.03, pad=0.01)
    return fig
