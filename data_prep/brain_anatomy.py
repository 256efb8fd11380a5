"""The anatomy of the brain phantom: a person's factors, and tissue maps of a stack of axial slices that belong together.

A stack spans 24 mm through the lateral ventricles. Everything in it is a smooth function of height, so that a sulcus or a
horn of a ventricle goes on from one slice to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

TISSUES = {0: "background", 1: "sulcal CSF", 2: "ventricle", 3: "cortical grey matter", 4: "white matter", 5: "deep grey matter"}
BACKGROUND, CSF, VENTRICLE, CORTEX, WHITE, DEEP = TISSUES
SLAB_MM = 24.0
SUPERSAMPLED = 2
"""Tissue is drawn on a grid this much finer than the image, along rows and along columns."""

# Ellipses of one side, in mm from the midline and from the middle of the brain (rows run from front to back):
# column, row, half-width, half-length, tilt; then half-widths at the bottom and at the top of the slab, relative.
_HORNS = (
    (8.0, -16.0, 4.0, 15.0, -0.25, 1.15, 0.75),  # frontal horn
    (10.0, 8.0, 3.2, 17.0, 0.12, 0.85, 1.15),  # body
    (19.0, 30.0, 3.2, 11.0, -0.45, 1.25, 0.35),  # occipital horn
)
_NUCLEI = (
    (12.5, 4.0, 6.0, 9.0, 1.0, 0.25),  # thalamus
    (15.5, -14.0, 3.2, 7.5, 1.0, 0.8),  # caudate
    (24.0, -3.0, 4.5, 12.0, 1.0, 0.4),  # putamen
)
_HIPPOCAMPUS = (27.0, 22.0, 7.0, 4.2)


class Grid(NamedTuple):
    """Pixels of a slice.

    Args:
        rows, columns: image size in pixels; rows run from front to back.
        pixel_mm: edge of a pixel.
        slices: number of slices in the slab.
    """

    rows: int
    columns: int
    pixel_mm: float
    slices: int

    @property
    def heights(self) -> NDArray[np.float64]:
        """Height of each slice in the slab, 0 at its bottom and 1 at its top."""
        return (np.arange(self.slices) + 0.5) / self.slices

    @property
    def gap_mm(self) -> float:
        """Distance from slice to slice."""
        return SLAB_MM / self.slices


def stream(seed: int, index: int, number: int) -> np.random.Generator:
    """A person's source of random numbers `number`: 0 factors, 1 sulci, 2 lesions, 3 image."""
    return np.random.default_rng([seed, index, number])


def draw_factors(seed: int, index: int, disease: str) -> dict[str, float]:
    """What makes a person: sizes relative to the average brain, atrophy from 0 to 1, expected lesions.

    The number of lesions rises with the size of the ventricles (correlation of the logarithms 0.5), as both do with time.
    """
    rng = stream(seed, index, 0)
    normal = dict(zip(("atrophy", "size", "aspect", "ventricles", "asymmetry", "folds", "lesions", "caps", "hippocampus"), rng.standard_normal(9)))
    patient = disease == "ad"
    atrophy = float(rng.beta(1.2, 2.0)) if patient else float(np.clip(0.15 + 0.12 * normal["atrophy"], 0, 0.6))
    load = 0.5 * normal["ventricles"] + np.sqrt(0.75) * normal["lesions"]
    return {
        "atrophy": atrophy,
        "size": float(1 + 0.05 * normal["size"]),
        "aspect": float(1 + 0.04 * normal["aspect"]),
        "ventricles": float((1 + 1.3 * atrophy) * np.exp(0.25 * normal["ventricles"])),
        "asymmetry": float(0.12 * normal["asymmetry"]),
        "folds": float(np.clip(1 + 0.15 * normal["folds"], 0.6, 1.4)),
        "hippocampus": float(np.clip(1 - 0.45 * atrophy + 0.06 * normal["hippocampus"], 0.35, 1.2)),
        "lesions_expected": 0.0 if patient else float(58 * np.exp(0.75 * load)),
        "caps_mm": 0.0 if patient else float(np.clip(1.7 + 1.2 * load + 0.4 * normal["caps"], 0, 6)),
    }


def tissue_maps(factors: dict[str, float], grid: Grid, rng: np.random.Generator, disease: str) -> NDArray[np.uint8]:
    """Tissue of every slice on the supersampled grid, with shape (slices, 2 rows, 2 columns).

    Args:
        factors: as `draw_factors` gives them.
        grid: the image to be.
        rng: decides the pattern of the sulci.
        disease: "ms" has no hippocampus in view, "ad" has.
    """
    rows, columns, pixel = (grid.rows * SUPERSAMPLED, grid.columns * SUPERSAMPLED, grid.pixel_mm / SUPERSAMPLED)
    y, x = np.mgrid[:rows, :columns]
    y, x = (y - rows / 2 + 0.5) * pixel, (x - columns / 2 + 0.5) * pixel
    half_width, half_length = 64 * factors["size"] / factors["aspect"], 80 * factors["size"] * factors["aspect"]
    # A brain larger than the field of view is shrunk into it, as a whole.
    fit = min(1.0, 0.47 * grid.columns * grid.pixel_mm / (half_width * 1.05), 0.47 * grid.rows * grid.pixel_mm / (half_length * 1.05))
    scale = fit * factors["size"]
    pattern = _Drifting(rng, (rows, columns), 3.2 * scale / pixel, 9 * scale / pixel)
    depth = _Drifting(rng, (rows, columns), 14 * scale / pixel)
    wave, phase = 0.018 * rng.standard_normal(4) / np.arange(1, 5), rng.uniform(0, 2 * np.pi, 4)
    stack = np.empty((grid.slices, rows, columns), np.uint8)
    for number, height in enumerate(grid.heights):
        shrink = np.sqrt(1 - 0.12 * height**2)
        a, b = half_width * fit * shrink, half_length * fit * shrink
        angle = np.arctan2(y / b, x / a)
        outline = 1 + sum(w * np.cos(k * angle + p) for k, w, p in zip(range(2, 6), wave, phase))
        rho = np.hypot(x / a, y / b) / outline
        tissue = _cortex(rho, x, y, pattern(height), depth(height), factors, scale, pixel)
        _deep(tissue, rho, x / scale, y / scale, height, factors)
        if disease == "ad":
            _temporal(tissue, x / scale, y / scale, factors)
        stack[number] = tissue
    return stack


class _Drifting:
    """Smooth noise of unit variance that changes with height: two independent fields, one turning into the other."""

    def __init__(self, rng, shape, smooth, remove=None):
        self.fields = []
        for _ in range(2):
            field = _blur(rng.standard_normal(shape), smooth)
            field = field if remove is None else field - _blur(field, remove)
            self.fields.append(field / field.std())

    def __call__(self, height: float) -> NDArray[np.float64]:
        return np.cos(1.2 * height) * self.fields[0] + np.sin(1.2 * height) * self.fields[1]


def _blur(field, sigma):
    """A Gaussian filter that wraps around, in the Fourier domain: its time does not depend on its width."""
    return np.fft.irfft2(ndi.fourier_gaussian(np.fft.rfft2(field), sigma, n=field.shape[1]), s=field.shape)


def _cortex(rho, x, y, pattern, depth, factors, scale, pixel):
    """Outer CSF, sulci, the fissure between the hemispheres, and cortex along all of them; white matter inside."""
    atrophy, brain = factors["atrophy"], rho < 1
    inner = 0.70 - 0.06 * (factors["folds"] - 1) + 0.06 * depth
    width = (0.24 + 0.20 * atrophy) * factors["folds"] * np.sqrt(np.clip((rho - inner) / 0.25, 0, 1))
    fluid = (rho > 0.975 - 0.03 * atrophy) | ((rho > inner) & (np.abs(pattern) < width))
    fluid |= (np.abs(x) < (1.0 + 1.2 * atrophy) * scale) & (np.abs(y) > 34 * scale)
    fluid &= brain
    thickness = (3.3 - 0.7 * atrophy) * scale
    near = ndi.distance_transform_edt(brain & ~fluid) * pixel < thickness
    return np.select([~brain, fluid, near], [BACKGROUND, CSF, CORTEX], WHITE).astype(np.uint8)


def _deep(tissue, rho, x, y, height, factors):
    """Lateral ventricles, and the nuclei they push aside; `x` and `y` in mm of an average brain."""
    inside, white = (rho < 0.8) & (tissue != BACKGROUND), tissue == WHITE
    for side in (-1, 1):
        widen = factors["ventricles"] ** 0.75 * (1 + side * factors["asymmetry"])
        ventricle, nuclei = np.zeros_like(inside), np.zeros_like(inside)
        for column, row, half, length, tilt, low, high in _HORNS:
            dx, dy = side * x - column - 3.6 * (widen - 1), y - row
            along, across = dx * np.sin(tilt) + dy * np.cos(tilt), dx * np.cos(tilt) - dy * np.sin(tilt)
            radius = half * widen * (low + (high - low) * height)
            ventricle |= (across / radius) ** 2 + (along / (length * widen**0.35)) ** 2 < 1
        for column, row, half, length, low, high in _NUCLEI:
            grow = np.sqrt(low + (high - low) * height)
            nuclei |= ((side * x - column - 3 * (widen - 1)) / (half * grow)) ** 2 + ((y - row) / (length * grow)) ** 2 < 1
        tissue[nuclei & white] = DEEP
        tissue[ventricle & inside] = VENTRICLE


def _temporal(tissue, x, y, factors):
    """Hippocampi, and the fluid that fills the room they leave."""
    column, row, half, length = _HIPPOCAMPUS
    root = np.sqrt(factors["hippocampus"])
    for side in (-1, 1):
        across, along = side * x - column, y - row
        body = (across / (half * root)) ** 2 + (along / (length * root)) ** 2 < 1
        room = (across / (half + 1)) ** 2 + (along / (length + 1)) ** 2 < 1
        tissue[room & ~body & (tissue == WHITE) & (factors["atrophy"] > 0.15)] = VENTRICLE
        tissue[body & (tissue != BACKGROUND)] = DEEP
