"""Painting of the cardiac phantom: polar outlines and factors to labels and bSSFP-like images.

Everything is drawn in millimetres, so that 64 and 128 pixels show the same anatomy, with edges one pixel
wide. Most of the fine detail (trabeculae, papillary muscles, moderator band, vessels, ribs) is a function
of a few factors that a good model can learn; texture and noise are drawn afresh for every subject and
cannot be.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from data_prep.cardiac_anatomy import BINS, TAPER_ENDO, TAPER_EPI, TAPER_RV, Heart
from data_prep.prepared import FIELD_OF_VIEW_MM

Factors = dict[str, float | str]
Map = NDArray[np.float32]

_THETA = (np.arange(BINS) * (2 * np.pi / BINS) - np.pi).astype(np.float32)
_MODES = 26  # shortest wavelength of the texture: 160 mm / 26, resolved at 64 pixels
_SMOOTH = np.exp(-((np.arange(BINS // 2 + 1) / 9.0) ** 2))


class Grid(NamedTuple):
    """Pixel centres in mm from the image centre, and the spectra that turn white noise into texture."""

    pixel_mm: float
    x: Map  # (1, S)
    y: Map  # (S, 1)
    fine: NDArray[np.complex64]  # (2 K + 1, K + 1)
    coarse: NDArray[np.complex64]


@lru_cache(maxsize=8)
def grid(size: int) -> Grid:
    """The grid of an image of `size` x `size` pixels."""
    pixel = FIELD_OF_VIEW_MM / size
    axis = ((np.arange(size) - (size - 1) / 2) * pixel).astype(np.float32)
    modes = min(_MODES, size // 2 - 1)
    ky, kx = np.arange(-modes, modes + 1)[:, None], np.arange(modes + 1)[None, :]
    wavelength = FIELD_OF_VIEW_MM / np.sqrt(np.maximum(kx**2 + ky**2, 1e-6))
    # Pixel centres move with the pixel size; the phase keeps a texture at the same millimetres in every size.
    phase = np.exp(2j * np.pi * (kx + ky) * (pixel / 2) / FIELD_OF_VIEW_MM) * size**2

    def band(short: float, long: float) -> NDArray[np.complex64]:
        response = np.exp(-0.5 * (short / wavelength) ** 4) * (1 - np.exp(-0.5 * (long / wavelength) ** 4))
        full = FIELD_OF_VIEW_MM / np.maximum(np.hypot(*np.mgrid[-_MODES : _MODES + 1, 0 : _MODES + 1]), 1e-3)
        power = np.exp(-((short / full) ** 4)) * (1 - np.exp(-0.5 * (long / full) ** 4)) ** 2
        return (response / np.sqrt(4 * power.sum()) * phase).astype(np.complex64)

    return Grid(pixel, axis[None, :], axis[:, None], band(6.5, 14.0), band(12.0, 40.0))


def texture(rng: np.random.Generator, spectrum: NDArray[np.complex64], size: int) -> Map:
    """A band-passed Gaussian field (S, S) with about unit variance, the same in millimetres at every size."""
    white = rng.standard_normal((2 * _MODES + 1, 2 * _MODES + 2), dtype=np.float32).view(np.complex64)
    modes = spectrum.shape[1] - 1
    half = np.zeros((size, size // 2 + 1), np.complex64)
    kept = white[_MODES - modes : _MODES + modes + 1, : modes + 1]
    half[np.arange(-modes, modes + 1), : modes + 1] = kept * spectrum
    return scipy.fft.irfft2(half, s=(size, size))


def _over(image: Map, coverage: Map, value: Map | float) -> None:
    """Paints `value` over `image` where `coverage` says so, in place."""
    image += coverage * (value - image)


def _cover(distance_mm: Map, pixel_mm: float) -> Map:
    """How much of a pixel a region covers, from the signed distance to its edge (positive inside)."""
    coverage = distance_mm * (1 / pixel_mm)
    coverage += 0.5
    return np.clip(coverage, 0, 1, out=coverage)


class Polar:
    """The pixels of both frames in the polar coordinates of the heart, and its outlines at their angles.

    Attributes:
        x, y: (2, S, S) mm from the heart's centre, turned with it.
        rho: (2, S, S) mm.
        endo, epi, rv: (2, S, S) mm, outline at the angle of the pixel.
    """

    def __init__(self, heart: Heart, size: int) -> None:
        self.grid = grid(size)
        cos, sin = (f(heart.rotation).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        cx, cy = heart.centre.T.astype(np.float32)[:, :, None, None]
        dx, dy = self.grid.x - cx, self.grid.y - cy
        self.x, self.y = cos * dx + sin * dy, cos * dy - sin * dx
        self.rho = np.sqrt(self.x**2 + self.y**2)
        angle = np.arctan2(self.y, self.x)
        bins = (angle * (BINS / (2 * math.pi)) + (BINS / 2 + 0.5)).astype(np.intp) & (BINS - 1)
        bins[1] += BINS
        self.bins = bins
        self.endo, self.epi, self.rv = (self.at(table) for table in heart[:3])

    def at(self, table: NDArray) -> Map:
        """Values of an angular table (2, BINS) at every pixel."""
        return table.astype(np.float32).ravel().take(self.bins, mode="clip")

    def inside(self, table: NDArray) -> Map:
        """Signed distance in mm to the outline `table` (2, BINS): radial, times the cosine of the slope."""
        table = table.astype(np.float32)
        rise = np.empty_like(table)
        np.subtract(table[:, 2:], table[:, :-2], out=rise[:, 1:-1])
        rise[:, 0], rise[:, -1] = table[:, 1] - table[:, -1], table[:, 0] - table[:, -2]
        slope = rise * (BINS / (4 * math.pi)) / table
        return (self.at(table) - self.rho) * self.at(1 / np.sqrt(1 + slope * slope))


def label_stack(polar: Polar) -> NDArray[np.uint8]:
    """Labels of all slices of both frames, (2, SLICES, S, S); the dataset stores slice 0, the basal one.

    A slice is the basal one shrunk towards the long axis: thresholds on the ratio of radius to outline.
    """
    endo, epi, rv = ((polar.rho / outline)[:, None] for outline in (polar.endo, polar.epi, polar.rv))
    tapers = np.stack([TAPER_ENDO, TAPER_EPI, TAPER_RV]).astype(np.float32)[:, :, None, None]
    cavity, muscle, right = endo < tapers[0], epi < tapers[1], rv < tapers[2]
    labels = np.where(muscle, np.uint8(2), right.view(np.uint8) * np.uint8(3))
    labels -= cavity & muscle
    return labels


def paint(f: Factors, heart: Heart, polar: Polar, rng: np.random.Generator) -> Map:
    """Images (2, S, S) of both frames in [0, 1]."""
    size = polar.rho.shape[-1]
    fine, coarse = (texture(rng, spectrum, size) for spectrum in (polar.grid.fine, polar.grid.coarse))
    image = np.repeat(_surroundings(f, heart, polar.grid, fine, coarse)[None], 2, axis=0)
    _paint_heart(image, f, heart, polar, fine)
    return _acquire(image, f, polar.grid, rng)


def _surroundings(f: Factors, heart: Heart, grid: Grid, fine: Map, coarse: Map) -> Map:
    """Lung, liver, spleen, aorta and chest wall, which do not move with the heart: (S, S)."""
    pixel, x, y = grid.pixel_mm, grid.x, grid.y
    grain = f["texture"] * fine
    image = f["lung"] + 0.4 * grain
    vessels = _vessels(f, "lung", x, y)
    _over(image, _cover(vessels, pixel), 0.42 + 0.15 * np.maximum(vessels, 0))

    dome = y - f["liver_top_mm"] - f["liver_slope"] * (x + 30) - 0.005 * (x + 20) ** 2 + 0.8 * coarse
    liver = f["liver"] + grain
    _over(liver, _cover(_vessels(f, "liver", x, y), pixel), f["liver"] + 0.20)
    _over(image, _cover(dome, pixel), liver)
    _over(image, _cover(1.2 - np.abs(dome), pixel), 0.12)

    spleen = f["spleen_mm"] - np.sqrt((x - f["spleen_x_mm"]) ** 2 + 1.4 * (y - f["spleen_y_mm"]) ** 2)
    _over(image, _cover(spleen + 1.5, pixel), 0.75 * f["fat"])
    _over(image, _cover(spleen, pixel), f["spleen"] + 1.5 * grain)
    aorta = f["aorta_mm"] - np.sqrt((x - f["aorta_x_mm"]) ** 2 + (y - f["aorta_y_mm"]) ** 2)
    _over(image, _cover(aorta + 1.8, pixel), 0.16)
    _over(image, _cover(aorta, pixel), 0.95 * f["blood"])
    _paint_chest_wall(image, f, heart, grid, grain)
    return image


def _vessels(f: Factors, organ: str, x: Map, y: Map) -> Map:
    """Signed distance in mm to vessels that the slice cuts: the crests of three waves, moved by factors.

    Wavelengths and directions are fixed and have no common period, so that the crests look scattered, and
    yet the whole pattern of an organ is set by its phases and by how high a crest must be.
    """
    crest = x * (1 / 160) - f[f"{organ}_vessel_level"]
    x = x + 3.5 * np.sin(y * (2 * math.pi / 61) + f[f"{organ}_vessel_1_rad"])
    y = y + 3.5 * np.sin(x * (2 * math.pi / 53) + f[f"{organ}_vessel_2_rad"])
    for number, (wavelength, direction) in enumerate(((12.5, 0.40), (18.0, 1.85), (27.0, 2.60)), start=1):
        k = 2 * math.pi / wavelength
        along = (k * math.cos(direction)) * x + (k * math.sin(direction)) * y
        crest = crest + np.cos(along + f[f"{organ}_vessel_{number}_rad"])
    return 2.5 * crest


def _paint_chest_wall(image: Map, f: Factors, heart: Heart, grid: Grid, grain: Map) -> None:
    """Fat, muscle with ribs, fat, skin and the air outside, in arcs that lie on the heart."""
    pixel, bend = grid.pixel_mm, 115.0
    cos, sin = math.cos(f["chest_rad"]), math.sin(f["chest_rad"])
    surface = np.maximum(heart.epi[0], heart.rv[0]) * np.cos(_THETA + heart.rotation[0] - f["chest_rad"])
    back = bend - float(surface.max()) - f["chest_gap_mm"]
    dx, dy = grid.x + back * cos, grid.y + back * sin
    depth = np.sqrt(dx * dx + dy * dy) - bend
    fat = 0.95 * f["fat"] + grain
    _over(image, _cover(depth + 1.2, pixel), 0.10)
    _over(image, _cover(depth, pixel), fat)
    depth -= f["chest_fat_mm"]
    _over(image, _cover(depth, pixel), f["muscle"] + 1.5 * grain)
    along = np.arctan2(dy * cos - dx * sin, dx * cos + dy * sin) * bend + f["rib_mm"]
    along = (along - 36 * np.rint(along / 36)) * 0.45
    muscle = f["chest_muscle_mm"]
    rib = 0.40 * muscle - np.sqrt(along**2 + (depth - 0.5 * muscle) ** 2)
    _over(image, _cover(rib, pixel), 0.08)
    _over(image, _cover(rib - 1.6, pixel), 0.55)
    depth -= muscle
    _over(image, _cover(depth, pixel), fat)
    depth -= f["skin_mm"]
    _over(image, _cover(depth, pixel), 0.35)
    _over(image, _cover(depth - 2.5, pixel), 0.01)


def _teeth(f: Factors, side: str, coarse: int, fine: int) -> NDArray:
    """Depth in mm of the trabeculae at each angle, (BINS,): the crests of two harmonics."""
    wave = np.cos(coarse * _THETA + f[f"trabecula_{side}_rad"])
    wave = wave + f[f"trabecula_{side}_fine"] * np.cos(fine * _THETA + f[f"trabecula_{side}_fine_rad"])
    return f[f"trabecula_{side}_mm"] * np.clip(wave, 0, None)


def _paint_heart(image: Map, f: Factors, heart: Heart, polar: Polar, fine: Map) -> None:
    pixel = polar.grid.pixel_mm
    grain = f["texture"] * fine
    muscle = f["muscle"] + 0.8 * grain

    surface = np.maximum(heart.epi, heart.rv + f["rv_wall_mm"])
    # Fat fills the grooves where the RV meets the LV: a smooth sac around both.
    sac = np.fft.irfft(np.fft.rfft(surface, axis=1) * _SMOOTH, n=BINS, axis=1)
    pad = f["fat_mm"] * np.clip(f["fat_spread"] + np.cos(_THETA - f["fat_rad"]), 0, None)
    sac = np.maximum(sac, surface) + pad
    outside = polar.inside(sac)
    _over(image, _cover(outside + 1.6, pixel), 0.10)
    _over(image, _cover(outside, pixel), 0.92 * f["fat"] + grain)
    _over(image, _cover(polar.inside(surface), pixel), muscle)
    _paint_rv(image, f, heart, polar, grain)
    _over(image, _cover(polar.inside(heart.epi), pixel), muscle)
    _paint_lv(image, f, heart, polar, grain)


def _paint_rv(image: Map, f: Factors, heart: Heart, polar: Polar, grain: Map) -> None:
    pixel = polar.grid.pixel_mm
    free_wall = np.clip(heart.rv - heart.epi, 0, 25) / 25
    teeth = 1.2 * _teeth(f, "rv", 13, 19) * free_wall
    blood = f["blood"] * f["rv_blood_ratio"] + 0.6 * grain
    _over(image, _cover(polar.inside(heart.rv - teeth), pixel), blood)

    ring = heart.epi + f["trabecula_rv_ring"] * (heart.rv - heart.epi)
    crests = np.cos(17 * _THETA - f["trabecula_rv_rad"])
    crests = crests + 0.5 * np.cos(7 * _THETA + f["trabecula_rv_fine_rad"])
    beads = 1.8 * (np.clip(crests - 0.2, -1, 1) * free_wall) - 0.4
    bead = polar.at(beads) - np.abs(polar.rho - polar.at(ring))
    _over(image, _cover(bead, pixel) * 0.8, 1.2 * f["muscle"])
    angle = math.pi - f["moderator_band_rad"]
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = polar.x * cos + polar.y * sin, polar.y * cos - polar.x * sin
    bent = across - f["moderator_band_bend"] * (along - polar.epi) * (along - polar.rv)
    band = np.minimum(f["moderator_band_mm"] / 2 - np.abs(bent), np.minimum(along, polar.rv - polar.rho))
    _over(image, _cover(band, pixel) * 0.85, 1.15 * f["muscle"])


def _paint_lv(image: Map, f: Factors, heart: Heart, polar: Polar, grain: Map) -> None:
    pixel = polar.grid.pixel_mm
    lateral = 0.55 + 0.45 * np.cos(_THETA)
    radius = np.sqrt((heart.endo**2).mean(axis=1))
    room = np.minimum(1, radius / 25)[:, None]
    teeth = _teeth(f, "lv", 13, 20) * lateral * room
    depth = (polar.endo - polar.rho) / polar.endo
    blood = f["blood"] * (0.97 + 0.05 * depth) + 0.6 * grain
    _over(image, _cover(polar.inside(heart.endo - teeth), pixel), blood)

    crests = np.cos(19 * _THETA + f["trabecula_lv_fine_rad"])
    crests = crests + 0.6 * np.cos(8 * _THETA - f["trabecula_lv_rad"])
    beads = 1.8 * (np.clip(crests - 0.3, -1, 1) * lateral * room) - 0.4
    ring = f["trabecula_lv_ring"] * heart.endo
    bead = polar.at(beads) - np.abs(polar.rho - polar.at(ring))
    _over(image, _cover(bead, pixel) * 0.8, 1.2 * f["muscle"])
    for name in ("anterior", "posterior"):
        angle, size = f[f"papillary_{name}_rad"], f[f"papillary_{name}_mm"] * np.sqrt(room[:, 0])
        reach = f[f"papillary_{name}_depth"] * radius
        px, py = ((reach * trig(angle)).astype(np.float32)[:, None, None] for trig in (np.cos, np.sin))
        disc = size.astype(np.float32)[:, None, None] - np.sqrt((polar.x - px) ** 2 + (polar.y - py) ** 2)
        _over(image, _cover(disc, pixel), 1.1 * f["muscle"] + grain)


def _acquire(image: Map, f: Factors, grid: Grid, rng: np.random.Generator) -> Map:
    """Coil sensitivity, then Rician noise: the magnitude of a complex signal, noise in both parts."""
    u, v = grid.x / (FIELD_OF_VIEW_MM / 2), grid.y / (FIELD_OF_VIEW_MM / 2)
    bias = f["bias_x"] * u + f["bias_y"] * v + f["bias_xx"] * (u * u - 1 / 3) + f["bias_yy"] * (v * v - 1 / 3)
    image *= np.exp(bias + f["bias_xy"] * u * v, dtype=np.float32)
    real, imaginary = f["noise"] * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.clip(np.sqrt((image + real) ** 2 + imaginary**2), 0, 1)
