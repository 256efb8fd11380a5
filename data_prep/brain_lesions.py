"""Lesions of multiple sclerosis: where white matter allows them, around the ventricles first, in sizes like the real ones.

Number, sizes and reach were fitted to 30 patients' masks (Lesjak et al. 2017); chapter structured/01_data compares them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from data_prep.brain_anatomy import CORTEX, DEEP, VENTRICLE, WHITE, Grid

# Where: falls off from the ventricle, from the cortex, and everywhere (relative to the first).
_FALL_VENTRICLE_MM, _FALL_CORTEX_MM, _CORTICAL_SHARE, _DEEP_SHARE = 6.0, 2.0, 0.25, 0.12
# How large: equivalent diameter, lognormal.
_MEDIAN_MM, _LOG_SD, _LEAST_MM = 3.0, 0.55, 1.6


class Lesions(NamedTuple):
    """The lesions of a stack.

    Args:
        fraction: share of each pixel that is lesion, with shape (slices, rows, columns).
        diameters: equivalent diameter of every lesion drawn, in mm.
    """

    fraction: NDArray[np.float64]
    diameters: NDArray[np.float64]


def draw(tissue: NDArray[np.uint8], grid: Grid, expected: float, caps_mm: float, rng: np.random.Generator) -> Lesions:
    """Lesions in a stack of slices.

    Args:
        tissue: tissue maps at the image's own grid, with shape (slices, rows, columns).
        grid: the image.
        expected: lesions to be expected in the slab.
        caps_mm: mean reach of the confluent caps around the ventricles; 0 for none.
        rng: decides number, places, sizes and shapes.
    """
    chance, distance, allowed = _places(tissue, grid.pixel_mm)
    fraction = _caps(distance, tissue, grid, caps_mm, rng)
    count = rng.poisson(expected)
    diameters = np.maximum(_LEAST_MM, _MEDIAN_MM * np.exp(_LOG_SD * rng.standard_normal(count)))
    where = rng.choice(chance.size, size=count, p=chance.ravel() / chance.sum())
    slopes = np.stack(np.gradient(ndi.gaussian_filter(distance, (0, 1.5, 1.5)), axis=(1, 2)))
    shifts, stretches = rng.uniform(-0.5, 0.5, (count, 3)), 1 + 1.4 * rng.beta(2, 3, count)
    for place, diameter, shift, stretch in zip(where, diameters, shifts, stretches):
        voxel = np.array(np.unravel_index(place, chance.shape))
        _paint(fraction, voxel, voxel + shift, diameter, stretch, slopes[:, *voxel], grid)
    return Lesions(np.where(allowed, fraction, 0.0), diameters)


def _places(tissue, pixel_mm):
    """Relative chance of a lesion's centre, distance to the ventricle in mm, and where a lesion may reach: white matter,
    nuclei and the innermost cortex, but no fluid."""
    chance, distance, allowed = np.zeros(tissue.shape), np.full(tissue.shape, 99.0), np.zeros(tissue.shape, bool)
    for number, labels in enumerate(tissue):
        white = labels == WHITE
        if (labels == VENTRICLE).any():
            distance[number] = ndi.distance_transform_edt(labels != VENTRICLE) * pixel_mm
        cortex = ndi.distance_transform_edt(labels != CORTEX) * pixel_mm
        near = np.exp(-distance[number] / _FALL_VENTRICLE_MM) + _CORTICAL_SHARE * np.exp(-cortex / _FALL_CORTEX_MM)
        chance[number] = white * (near + _DEEP_SHARE)
        inner = (labels == CORTEX) & (ndi.distance_transform_edt(~white) <= 1.5)
        allowed[number] = white | (labels == DEEP) | inner
    return chance, distance, allowed


def _caps(distance, tissue, grid, caps_mm, rng):
    """Confluent lesions: white matter within a reach of the ventricle that varies smoothly from place to place."""
    noise = rng.standard_normal(tissue.shape)
    smooth = ndi.gaussian_filter(noise, (6 / grid.gap_mm, 7 / grid.pixel_mm, 7 / grid.pixel_mm))
    reach = caps_mm * (0.3 + 1.2 * smooth / smooth.std())
    fraction = np.clip((reach - distance) / grid.pixel_mm + 0.5, 0, 1) * (reach > 0)
    return fraction * (tissue == WHITE)


def _paint(fraction, voxel, centre, diameter, stretch, slope, grid):
    """One ellipsoid, longer along the way from the ventricle, with an edge of one pixel; in every slice it reaches."""
    radius = diameter / 2
    reach = int(np.ceil(radius * np.sqrt(stretch) / grid.pixel_mm)) + 1
    levels = int(np.ceil(radius / grid.gap_mm))
    size = fraction.shape
    box = tuple(
        slice(max(0, int(at) - r), min(n, int(at) + r + 1)) for at, r, n in zip(voxel, (levels, reach, reach), size)
    )
    z, y, x = np.mgrid[box].astype(float)
    z, y, x = (z - centre[0]) * grid.gap_mm, (y - centre[1]) * grid.pixel_mm, (x - centre[2]) * grid.pixel_mm
    uy, ux = slope / (np.hypot(*slope) + 1e-6)
    along, across = (y * uy + x * ux) / np.sqrt(stretch), (x * uy - y * ux) * np.sqrt(stretch)
    rho = np.sqrt(z**2 + along**2 + across**2) / radius
    fraction[box] = np.maximum(fraction[box], np.clip((1 - rho) * radius / grid.pixel_mm + 0.5, 0, 1))
