"""Anatomy of the cardiac phantom: the factors of a subject, and the outlines of the heart they give.

The volumes follow a cohort like ACDC (Bernard et al., IEEE TMI 2018): healthy subjects and four kinds of
patient, each with its own means and spreads of LV, RV and myocardial volume and of ejection fraction. ACDC
has the five groups in equal parts; here healthy subjects are the largest (`GROUPS`), which keeps the spread
of the volumes and their correlations and gives a model a normal heart to learn. Within a group a body-size
factor moves all volumes together. The RV reaches furthest from the LV centre and is limited to what a field
of view of 160 mm holds: a dilated heart gets less RV than it was drawn (`rv_share`), with the same ejection
fraction, and the volumes, measured from the labels, say so.

Myocardial volume is conserved between ED and ES up to a small noise (muscle is incompressible; what remains
is the reader's variability). The long axis is drawn per subject and is not visible in the image.
"""

from __future__ import annotations

import cmath
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SLICES = 10
BINS = 1024
REACH_MM = 77.0  # how far from the LV centre the RV may extend, in a view that ends at 80


class Group(NamedTuple):
    """One group: mean volumes at ED, their coefficient of variation, ejection fractions as (mean, sd)."""

    weight: float
    lv_ml: float
    rv_ml: float
    myo_ml: float
    cv: float
    lvef: tuple[float, float]
    rvef: tuple[float, float]


GROUPS = {
    "NOR": Group(0.32, 132, 152, 100, 0.20, (0.61, 0.05), (0.56, 0.06)),
    "DCM": Group(0.18, 275, 182, 163, 0.18, (0.20, 0.06), (0.34, 0.12)),
    "HCM": Group(0.17, 130, 124, 172, 0.24, (0.69, 0.07), (0.61, 0.08)),
    "MINF": Group(0.17, 172, 128, 119, 0.22, (0.31, 0.07), (0.56, 0.09)),
    "RV": Group(0.16, 110, 205, 76, 0.24, (0.56, 0.06), (0.33, 0.12)),
}

# Radii of slice k relative to the basal one: the cavity closes before the muscle, so that the apex is capped.
_LEVEL = np.arange(SLICES) / SLICES
TAPER_ENDO = np.sqrt(np.clip(1 - (_LEVEL / 0.95) ** 3.2, 0, None))
TAPER_EPI = np.sqrt(1 - _LEVEL**2.8)
TAPER_RV = np.where(_LEVEL < 0.85, TAPER_EPI, 0.0)
_ENDO, _EPI = (TAPER_ENDO**2).mean(), (TAPER_EPI**2).mean()
_RV = (TAPER_RV**2).mean()

_THETA = np.arange(BINS) * (2 * np.pi / BINS) - np.pi
_HARMONICS = np.exp(1j * np.arange(5)[:, None] * _THETA)
_COS, _SIN = _HARMONICS[1].real.copy(), _HARMONICS[1].imag.copy()


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random stream of one subject for one purpose: 0 factors, 1 texture and noise."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, 2 * index + purpose], np.uint64)))


class _Draw:
    """Scalar draws from one stream; normals are cut at 2.5 sd, so that every subject is possible."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def normal(self, mean: float = 0.0, sd: float = 1.0) -> float:
        return mean + sd * min(max(self.rng.standard_normal(), -2.5), 2.5)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def phase(self) -> float:
        return self.uniform(-np.pi, np.pi)


def draw_factors(seed: int, index: int) -> dict[str, float | str]:
    """Draws the generative factors of subject `index`; they do not depend on the image size.

    Returns:
        Name (with its unit) to value. `*_target_ml` are the volumes asked for; those of the dataset are
        measured from the labels.
    """
    draw = _Draw(stream(seed, index, 0))
    pick = draw.uniform(0, sum(group.weight for group in GROUPS.values()))
    for name, group in GROUPS.items():
        pick -= group.weight
        if pick < 0:
            break
    return {"group": name} | _draw_volumes(draw, group) | _draw_heart(draw) | _draw_surroundings(draw)


def _draw_volumes(draw: _Draw, group: Group) -> dict[str, float]:
    body = draw.normal()

    def volume(mean: float, own: float) -> float:
        return mean * math.exp(group.cv * (0.8 * body + draw.normal(0, own)) - group.cv**2 / 2)

    lv, rv, myo = volume(group.lv_ml, 0.6), volume(group.rv_ml, 0.96), volume(group.myo_ml, 0.6)
    lvef = min(max(draw.normal(*group.lvef), 0.08), 0.82)
    rvef = min(max(draw.normal(*group.rvef), 0.12), 0.75)
    long_axis = min(max(84 * (lv / 150) ** 0.25 + 1.5 * body + draw.normal(0, 3.5), 62), 112)
    return {
        "body_sd": body,
        "height_cm": 171 + 6.5 * body + draw.normal(0, 5),
        "weight_kg": 76 + 8 * body + draw.normal(0, 7),
        "lv_ed_target_ml": lv, "rv_ed_target_ml": rv, "myo_target_ml": myo,
        "lvef": lvef, "rvef": rvef,
        "myo_es_ratio": draw.normal(1.0, 0.05),
        "long_axis_ed_mm": long_axis,
        "long_axis_es_mm": long_axis * (1 - 0.02 - 0.18 * lvef),
    }


def _draw_heart(draw: _Draw) -> dict[str, float]:
    factors = {
        "rv_height_ratio": draw.normal(1.0, 0.06), "rv_tilt_rad": draw.normal(0, 0.12),
        "rv_bulge": draw.normal(0.02, 0.04), "rv_bulge_rad": draw.uniform(-2.6, -1.6),
        "rv_wall_mm": draw.uniform(2.0, 3.2),
        "wall_eccentricity": abs(draw.normal(0, 0.14)), "wall_rad": draw.phase(),
    }
    for order, sd in ((2, 0.045), (3, 0.025), (4, 0.015)):
        factors |= {f"outline_{order}": draw.normal(0, sd), f"outline_{order}_rad": draw.phase()}
    for name, angle in (("anterior", -0.75), ("posterior", 0.85)):
        factors |= {
            f"papillary_{name}_rad": draw.normal(angle, 0.2),
            f"papillary_{name}_mm": draw.uniform(2.8, 5.0),
            f"papillary_{name}_depth": draw.uniform(0.60, 0.74),
        }
    for side in ("lv", "rv"):
        factors |= {
            f"trabecula_{side}_mm": draw.uniform(1.5, 4.5),
            f"trabecula_{side}_rad": draw.uniform(-1.2, 1.2),
            f"trabecula_{side}_fine": draw.uniform(0.2, 1.0),
            f"trabecula_{side}_fine_rad": draw.uniform(-1.2, 1.2),
            f"trabecula_{side}_ring": draw.uniform(0.74, 0.88),
        }
    for frame in ("ed", "es"):
        factors |= {
            f"shift_{frame}_x_mm": draw.normal(0, 0.5), f"shift_{frame}_y_mm": draw.normal(0, 0.5),
            f"rotation_{frame}_rad": draw.normal(0, 0.015),
        }
    return factors | {
        "moderator_band_rad": draw.normal(0.30, 0.16), "moderator_band_mm": draw.uniform(1.8, 3.4),
        "moderator_band_bend": draw.normal(0, 0.004),
        "fat_mm": draw.uniform(1.0, 4.5), "fat_rad": draw.normal(1.9, 0.5),
        "fat_spread": draw.uniform(0.2, 0.8),
    }


def _draw_surroundings(draw: _Draw) -> dict[str, float]:
    return {
        "blood": draw.uniform(0.74, 0.88), "rv_blood_ratio": draw.uniform(0.86, 1.0),
        "muscle": draw.uniform(0.20, 0.29), "fat": draw.uniform(0.74, 0.92), "lung": draw.uniform(0.03, 0.07),
        "liver": draw.uniform(0.30, 0.44), "spleen": draw.uniform(0.24, 0.58),
        "liver_top_mm": draw.uniform(36, 52), "liver_slope": draw.uniform(-0.45, 0.05),
        **{f"lung_vessel_{wave}_rad": draw.uniform(-0.9, 0.9) for wave in (1, 2, 3)},
        **{f"liver_vessel_{wave}_rad": draw.uniform(-0.9, 0.9) for wave in (1, 2, 3)},
        "lung_vessel_level": draw.uniform(1.65, 2.05), "liver_vessel_level": draw.uniform(1.8, 2.3),
        "spleen_x_mm": draw.uniform(56, 72), "spleen_y_mm": draw.uniform(60, 76),
        "spleen_mm": draw.uniform(22, 34),
        "aorta_x_mm": draw.uniform(30, 44), "aorta_y_mm": draw.uniform(56, 66),
        "aorta_mm": draw.uniform(8.5, 11.5),
        "chest_gap_mm": draw.uniform(3, 9), "chest_rad": draw.normal(-2.5, 0.12),
        "chest_muscle_mm": draw.uniform(8, 14), "chest_fat_mm": draw.uniform(2.5, 6),
        "rib_mm": draw.uniform(0, 36), "skin_mm": draw.uniform(6, 22),
        "bias_x": draw.normal(-0.06, 0.08), "bias_y": draw.normal(-0.05, 0.08),
        "bias_xx": draw.normal(0, 0.05), "bias_yy": draw.normal(0, 0.05), "bias_xy": draw.normal(0, 0.05),
        "texture": draw.uniform(0.020, 0.035), "noise": draw.uniform(0.018, 0.027),
    }


class Heart(NamedTuple):
    """Outlines at ED and ES: radii about a centre, at `BINS` angles from -pi (to the left) on."""

    endo: NDArray[np.float64]  # (2, BINS) mm
    epi: NDArray[np.float64]  # (2, BINS) mm
    rv: NDArray[np.float64]  # (2, BINS) mm, outer border of the RV cavity; below `epi` where there is none
    centre: NDArray[np.float64]  # (2, 2) mm, x and y from the image centre
    rotation: NDArray[np.float64]  # (2,) rad
    rv_share: NDArray[np.float64]  # (2,) share of the RV volume asked for that the field of view holds


def heart(factors: dict[str, float | str]) -> Heart:
    """Solves the outlines at ED and ES for the volumes asked for, and places them as registration would.

    The preprocessing of Di Folco et al. (MICCAI 2024) centres the barycentre of the LV and turns the RV
    straight to the left, each frame alone; what it leaves over is the factors `shift_*` and `rotation_*`.
    """
    lv, myo, rv = frame_targets_ml(factors, "ed")
    ed = _frame(factors, "ed", lv, myo, rv)
    lv, myo, rv = frame_targets_ml(factors, "es")
    # An RV that the field of view cuts at ED keeps its ejection fraction.
    es = _frame(factors, "es", lv, myo, rv * ed[-1])
    return Heart(*map(np.stack, zip(ed, es)))


def dimensions(outlines: Heart) -> dict[str, float]:
    """What the outlines came to: LV radius, mean wall, RV depth, share of the RV asked for that fits."""
    sizes = {}
    for frame, endo, epi, rv in zip(("ed", "es"), outlines.endo, outlines.epi, outlines.rv):
        radius, surface = math.sqrt(_mean(endo * endo)), math.sqrt(_mean(epi * epi))
        sizes |= {f"lv_radius_{frame}_mm": radius, f"wall_{frame}_mm": surface - radius}
        sizes[f"rv_depth_{frame}_mm"] = float((rv - epi).max())
    return sizes | {"rv_share": float(outlines.rv_share[0])}


def frame_targets_ml(f: dict[str, float | str], frame: str) -> tuple[float, float, float]:
    """Volumes (LV, myocardium, RV) asked for in one frame, in mL."""
    if frame == "ed":
        return f["lv_ed_target_ml"], f["myo_target_ml"], f["rv_ed_target_ml"]
    lv, rv = f["lv_ed_target_ml"] * (1 - f["lvef"]), f["rv_ed_target_ml"] * (1 - f["rvef"])
    return max(lv, 15.0), f["myo_target_ml"] * f["myo_es_ratio"], rv


def _frame(f: dict[str, float | str], frame: str, lv: float, myo: float, rv: float) -> tuple[NDArray, ...]:
    """The fields of `Heart` for one frame, from its volumes in mL."""
    length = f[f"long_axis_{frame}_mm"] / 1000
    area_endo, area_epi, area_rv = lv / (_ENDO * length), (lv + myo) / (_EPI * length), rv / (_RV * length)
    endo = 1 + sum(_wave(f[f"outline_{order}"], order, f[f"outline_{order}_rad"]) for order in (2, 3, 4))
    endo *= math.sqrt(area_endo / np.pi / _mean(endo * endo))
    # The mean wall thickness gives the ring the area that the muscle's volume asks for: a quadratic.
    wall = 1 + _wave(f["wall_eccentricity"], 1, -f["wall_rad"])
    a, b, c = _mean(wall * wall), _mean(endo * wall), (area_endo - area_epi) / np.pi
    epi = endo + wall * ((math.sqrt(b * b - a * c) - b) / a)
    outer, share = _rv_outline(f, epi, area_rv)

    lv_x, lv_y = _barycentre(endo, 0 * endo)
    rv_x, rv_y = _barycentre(outer, epi)
    rotation = math.pi - math.atan2(rv_y - lv_y, rv_x - lv_x) + f[f"rotation_{frame}_rad"]
    cos, sin = math.cos(rotation), math.sin(rotation)
    turned = np.array([cos * lv_x - sin * lv_y, sin * lv_x + cos * lv_y])
    centre = np.array([f[f"shift_{frame}_x_mm"], f[f"shift_{frame}_y_mm"]]) - turned
    return endo, epi, outer, centre, rotation, share


def _mean(table: NDArray) -> float:
    """Mean over all angles, without the overhead of `ndarray.mean` on a small array."""
    return float(np.add.reduce(table)) / BINS


def _wave(amplitude: float, order: int, phase: float) -> NDArray:
    """amplitude cos(order theta + phase) at every angle, (BINS,)."""
    return (amplitude * cmath.exp(1j * phase) * _HARMONICS[order]).real


def _barycentre(outer: NDArray, inner: NDArray) -> tuple[float, float]:
    """Barycentre of the region between two polar outlines (where the outer one is outside)."""
    outer = np.maximum(outer, inner)
    moment = (outer * outer * outer - inner * inner * inner) / 3
    area = (outer * outer - inner * inner).sum() / 2
    return (moment * _COS).sum() / area, (moment * _SIN).sum() / area


def _rv_outline(f: dict[str, float | str], epi: NDArray, area: float) -> tuple[NDArray, float]:
    """An oval that the LV indents, as deep as `area` (mm2, outside the LV) asks and the view allows.

    Returns:
        Its outline, (BINS,) mm, and the share of the area that it reaches.
    """
    coarse = slice(None, None, 16)
    depths = np.linspace(2.0, 58.0, 15)
    outlines = _oval(f, epi, depths[:, None], coarse)
    areas = np.pi * (np.maximum(outlines, epi[coarse]) ** 2 - epi[coarse] ** 2).mean(axis=1)
    deepest = np.interp(REACH_MM, outlines.max(axis=1), depths)
    depth = min(np.interp(area, areas, depths), deepest)
    return _oval(f, epi, depth, slice(None)), min(np.interp(deepest, depths, areas) / area, 1.0)


def _oval(f: dict[str, float | str], epi: NDArray, depth: NDArray | float, bins: slice) -> NDArray:
    """Polar radius of an ellipse that holds the origin and reaches `depth` left of the epicardium."""
    radius = math.sqrt(_mean(epi * epi))
    left, right = radius + depth, 0.25 * radius
    a, x0 = (left + right) / 2, (right - left) / 2
    b = (0.62 * radius + 0.55 * depth) * f["rv_height_ratio"]
    cos, sin = math.cos(f["rv_tilt_rad"]), math.sin(f["rv_tilt_rad"])
    ux, uy = (cos * _COS + sin * _SIN)[bins] / a, (cos * _SIN - sin * _COS)[bins] / b
    cx, cy = cos * x0 / a, -sin * x0 / b
    alpha, beta, gamma = ux * ux + uy * uy, ux * cx + uy * cy, cx * cx + cy * cy - 1
    far = (beta + np.sqrt(np.maximum(beta * beta - alpha * gamma, 0))) / alpha
    return far * (1 + _wave(f["rv_bulge"], 1, -f["rv_bulge_rad"])[bins])
