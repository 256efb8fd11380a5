"""Cardiac short axis: one subject's ED and ES stacks -> one aligned pair of images.

The steps are those of Di Folco et al. (MICCAI 2024, section 2.3): a quality filter on the masks, volumes of
the whole stack, the basal slice, the left ventricle at the centre with the right ventricle straight left of
it, a square crop, intensities in [0, 1]. Where the paper leaves a choice open, or its choice costs
comparability between subjects, the choice is a field of `Options` and is written to the card.

Arrays here have axes (frame, slice, row, column), frame 0 = end-diastole (ED), 1 = end-systole (ES).
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_prep.cardiac_quality import LV, REGIONS, RV, Excluded, Stack, Unusable, check_order, quality
from data_prep.prepared import FRAMES, volumes_ml

PERCENTILES = (0.5, 99.5)
PLAUSIBLE_ML = (1, 1000)


@dataclass(frozen=True)
class Options:
    """Everything that shapes one subject's prepared arrays.

    Attributes:
        label_map: raw mask values of (LV cavity, myocardium, RV cavity); 0 is background.
        size: side of the square crop, in pixels.
        spacing_mm: pixel side after resampling; None keeps each subject's own spacing, as in the paper.
        same_level: take the ED and the ES slice at one level of the stack, so that the two channels show the
            same anatomy; False chooses them independently, as the authors' earlier ACDC code does.
        align: "ed" applies the ED pose to both frames, so that what is still in the body is still between
            the channels and the heart's own motion is kept; "each" poses each frame by its own mask, as in
            the paper.
        intensity: "percentile" clips each frame at its 0.5 and 99.5 percentiles, so that a few bright pixels
            (fat beside the coil, inflowing blood) do not set the grey of the heart; "minmax" is the paper's.
        min_slices: fewest consecutive slices that must show LV and myocardium.
        min_pixels: fewest pixels for a region to count as present.
    """

    label_map: tuple[int, int, int]
    size: int = 128
    spacing_mm: float | None = 1.25
    same_level: bool = True
    align: str = "ed"
    intensity: str = "percentile"
    min_slices: int = 6
    min_pixels: int = 10

    def __post_init__(self):
        """Raises ValueError naming the first impossible field."""

        def refuse(name, expected):
            raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}")

        if len(set(self.label_map)) != 3 or min(self.label_map) < 1:
            refuse("label_map", "three different whole numbers above 0 (LV, myocardium, RV)")
        if not 16 <= self.size <= 1024:
            refuse("size", "between 16 and 1024 pixels")
        if self.spacing_mm is not None and not 0.1 <= self.spacing_mm <= 20:
            refuse("spacing_mm", "between 0.1 and 20 mm, or None for native")
        if self.align not in ("ed", "each"):
            refuse("align", "'ed' or 'each'")
        if self.intensity not in ("percentile", "minmax"):
            refuse("intensity", "'percentile' or 'minmax'")
        if self.min_slices < 1 or self.min_pixels < 1:
            refuse("min_slices" if self.min_slices < 1 else "min_pixels", "at least 1")

    def recipe(self) -> dict:
        """The fields as JSON-ready values, for the card and for the cache key."""
        lv, myo, rv = self.label_map
        spacing = "native" if self.spacing_mm is None else self.spacing_mm
        return asdict(self) | {"label_map": {"lv": lv, "myo": myo, "rv": rv}, "spacing_mm": spacing}


class Subject(NamedTuple):
    """One subject as prepared."""

    image: np.ndarray  # (2, S, S) float16 in [0, 1]
    label: np.ndarray  # (2, S, S) uint8
    volume_ml: np.ndarray  # (2, 3): ED, ES by LV, myocardium, RV
    slices: tuple[int, int]  # index of the slice shown at ED and at ES
    pixel_mm: float
    cut: float  # share of the slices' labelled area that falls outside the crop


class Pose(NamedTuple):
    """A rigid in-plane pose: the point, in mm, that goes to the centre, and the rotation about it."""

    centre_mm: np.ndarray  # (2,) row, column
    rotation: np.ndarray  # (2, 2): prepared offsets (row, column) -> raw offsets


def prepare(stack: Stack, options: Options) -> Subject:
    """Filter, measure, choose the slices, align, crop and scale one subject.

    Args:
        stack: both frames on one grid, with canonical labels.
        options: see `Options`.

    Returns:
        The prepared pair; volumes are of the whole stack in mL at the native spacing.

    Raises:
        Unusable: the labels are in the wrong order, or a frame has no contrast.
        Excluded: the masks do not pass the quality filter.
    """
    check_order(stack, options.label_map)
    for frame in range(2):
        reason = quality(stack.label[frame], min_slices=options.min_slices, min_pixels=options.min_pixels)
        if reason:
            raise Excluded(f"`{stack.masks[frame]}` ({FRAMES[frame]}) {reason}")
    volume_ml = volumes_ml(stack.label, stack.spacing_mm)
    if not (PLAUSIBLE_ML[0] <= volume_ml.min() and volume_ml.max() <= PLAUSIBLE_ML[1]):
        raise Unusable(
            f"`{stack.masks[0]}` gives volumes of {volume_ml.min():.3g} to {volume_ml.max():.3g} mL, outside "
            f"{PLAUSIBLE_ML[0]} to {PLAUSIBLE_ML[1]}: check the voxel sides in its header, in mm"
        )
    slices = basal_slices(stack.label, same_level=options.same_level, min_pixels=options.min_pixels)
    spacing = np.asarray(stack.spacing_mm[1:], dtype=float)
    pixel_mm = float(np.sqrt(spacing.prod())) if options.spacing_mm is None else options.spacing_mm
    planes = [(stack.image[f, z], stack.label[f, z]) for f, z in enumerate(slices)]
    poses = [pose(label, spacing) for _, label in planes]
    if options.align == "ed":
        poses[1] = poses[0]
    images, labels, cuts = [], [], []
    for (image, label), where, name in zip(planes, poses, stack.masks, strict=True):
        image, label, cut = resample(image, label, where, spacing, pixel_mm=pixel_mm, size=options.size)
        images.append(rescale(image, options.intensity, name))
        labels.append(label)
        cuts.append(cut)
    return Subject(
        np.stack(images).astype(np.float16), np.stack(labels), volume_ml, slices, pixel_mm, max(cuts)
    )


def basal_slices(label: np.ndarray, *, same_level: bool, min_pixels: int) -> tuple[int, int]:
    """Index of the basal slice at ED and at ES.

    A slice is valid when each region has more than `min_pixels` pixels; of the first and the last valid slice
    the basal one has the larger labelled area, since the heart tapers towards the apex.

    Args:
        label: (2, Z, H, W) canonical labels.
        same_level: use only slices valid in both frames, and one index for both.
        min_pixels: a region counts above this many pixels.

    Raises:
        Excluded: no slice is valid.
    """
    counts = np.stack([np.count_nonzero(label == region, axis=(2, 3)) for region in REGIONS])  # (3, 2, Z)
    valid, area = (counts > min_pixels).all(axis=0), counts.sum(axis=0)
    if same_level:
        valid = np.repeat(valid.all(axis=0)[None], 2, axis=0)
        area = np.repeat(area.sum(axis=0)[None], 2, axis=0)
    chosen = []
    for frame in range(2):
        levels = np.flatnonzero(valid[frame])
        if not len(levels):
            both = "ED and ES alike (try --no-same-level)" if same_level else FRAMES[frame]
            raise Excluded(
                f"no slice shows LV, myocardium and RV with more than {min_pixels} pixels each at {both}"
            )
        first, last = int(levels[0]), int(levels[-1])
        chosen.append(last if area[frame, last] > area[frame, first] else first)
    return chosen[0], chosen[1]


def pose(label: np.ndarray, spacing_mm: np.ndarray) -> Pose:
    """The pose that puts the LV cavity's barycentre at the centre and the RV's straight left of it.

    Args:
        label: (H, W) canonical labels of one slice.
        spacing_mm: (2,) row and column spacing.

    Raises:
        Unusable: the two barycentres coincide, so there is no direction to align.
    """
    lv, rv = (np.argwhere(label == region).mean(axis=0) * spacing_mm for region in (LV, RV))
    distance = np.linalg.norm(rv - lv)
    if distance < 1.0:
        raise Unusable("the barycentres of LV and RV are less than 1 mm apart: the mask cannot be right")
    down, right = (rv - lv) / distance
    # The columns are the raw directions of "down" and "right" in the prepared image; RV lies at -right.
    return Pose(lv, np.array([[-right, -down], [down, -right]]))


def resample(
    image: np.ndarray, label: np.ndarray, where: Pose, spacing_mm: np.ndarray, *, pixel_mm: float, size: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Translate, rotate, resample and crop in one interpolation.

    Args:
        image: (H, W) raw intensities.
        label: (H, W) canonical labels.
        where: the pose.
        spacing_mm: (2,) raw row and column spacing.
        pixel_mm: spacing of the result.
        size: side of the result.

    Returns:
        image (size, size), linear, NaN outside the raw field; label (size, size), nearest; share of labelled
        pixels cut off by the crop.
    """
    middle = (size - 1) / 2
    matrix = where.rotation * pixel_mm / spacing_mm[:, None]
    offset = where.centre_mm / spacing_mm - matrix @ np.array([middle, middle])
    # Below the new sampling rate detail would fold into the image: blur it away first.
    sigma = np.maximum(pixel_mm / spacing_mm - 1, 0) / 2
    smooth = ndimage.gaussian_filter(image.astype(np.float64), sigma, mode="nearest")
    shape = (size, size)
    out = ndimage.affine_transform(smooth, matrix, offset, shape, order=1, mode="constant", cval=np.nan)
    mask = ndimage.affine_transform(label, matrix, offset, shape, order=0, mode="constant", cval=0)
    landed = (np.argwhere(label > 0) - offset) @ np.linalg.inv(matrix).T
    return out, mask, float(1 - np.mean((np.abs(landed - middle) <= size / 2).all(axis=1)))


def rescale(image: np.ndarray, intensity: str, name: str = "image") -> np.ndarray:
    """Scale one frame to [0, 1] by its own range within the scanned field; outside the field is 0.

    Raises:
        Unusable: the frame has one value only.
    """
    field = image[np.isfinite(image)]
    low, high = np.percentile(field, PERCENTILES) if intensity == "percentile" else (field.min(), field.max())
    # Interpolation leaves a flat image flat but for rounding, which would be stretched to the whole range.
    if not high - low > 1e-6 * max(abs(high), abs(low)):
        raise Unusable(
            f"the image of `{name}` has one grey value ({low:g}) around the heart: nothing to scale"
        )
    return np.nan_to_num(np.clip((image - low) / (high - low), 0, 1), nan=0.0)
