"""Read short-axis NIfTI files as (slice, row, column) stacks; say in one sentence what is wrong with one."""

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from data_prep.cardiac_quality import REGIONS, Excluded, Stack, Unusable
from data_prep.nifti_file import DAMAGED, check_values, damaged, open_whole, short, sides

# From apex to base in scanner axes (right, anterior, superior): the view in which the RV is left of the LV
# and the front of the chest on top.
APEX_TO_BASE = np.array([1.0, -1.0, 1.0])


class Frame(NamedTuple):
    """One frame's image and mask; `index` counts frames from 0 in a 4-D file, None for a 3-D file."""

    image: Path
    mask: Path
    index: int | None


def _open(path: Path):
    if not path.is_file():
        raise Unusable(
            f"`{short(path)}` is missing: a subject needs an image and a mask at ED and at ES; restore it, "
            "or remove the subject's folder"
        )
    try:
        return open_whole(path)
    except PermissionError:
        raise Unusable(f"`{short(path)}` may not be read: grant yourself permission (chmod u+r)") from None


def _voxels(path: Path, index: int | None) -> tuple[np.ndarray, nib.spatialimages.SpatialImage]:
    """One frame as (X, Y, Z), checked for shape and finiteness, with its header."""
    image = _open(path)
    shape = image.shape[:3] if len(image.shape) == 4 and image.shape[3] == 1 else image.shape
    if len(shape) == 4 and index is None:
        raise Unusable(
            f"`{short(path)}` is 4-D {shape} and nothing says which frame to take: split it into an ED and "
            "an ES file"
        )
    if len(shape) not in (3, 4) or shape[2] < 2:
        raise Unusable(
            f"`{short(path)}` has shape {shape}: a stack of short-axis slices (X, Y, slices) is needed, "
            "not one slice; use the file with the whole stack"
        )
    if len(shape) == 4 and not 0 <= index < shape[3]:
        raise Unusable(
            f"`{short(path)}` has {shape[3]} frames, counted from 0, and frame {index} was asked for; mend "
            "the frame table"
        )
    try:
        voxels = np.asarray(image.dataobj[..., index] if len(shape) == 4 else image.dataobj).reshape(
            shape[:3]
        )
    except DAMAGED as error:
        raise damaged(path, error) from error
    check_values(path, voxels)
    return voxels, image


def _labels(path: Path, voxels: np.ndarray, label_map: tuple[int, int, int]) -> np.ndarray:
    """Canonical uint8 labels from raw mask values."""
    values = np.unique(voxels)
    broken = values[values != np.round(values)]
    if len(broken):
        raise Unusable(
            f"`{short(path)}` holds {broken[0]:.3g}, and labels must be whole numbers: it was interpolated; "
            "resample masks with nearest neighbour"
        )
    if not values.any():
        raise Unusable(
            f"`{short(path)}` has no label at this frame: the mask is empty; check the frame numbers"
        )
    unknown = set(values.astype(int).tolist()) - {0, *label_map}
    if unknown:
        lv, myo, rv = label_map
        raise Unusable(
            f"`{short(path)}` holds labels {sorted(unknown)} besides lv={lv}, myo={myo}, rv={rv}; name the "
            "three that mean LV, myocardium and RV with --label-map"
        )
    labels = np.zeros(voxels.shape, np.uint8)
    for region, raw in zip(REGIONS, label_map, strict=True):
        labels[voxels == raw] = region
        if raw not in values:
            raise Excluded(
                f"`{short(path)}` has no voxel labelled {raw} ({REGIONS[region]}); if it should, check "
                "--label-map"
            )
    return labels


def _spacing(path: Path, image) -> tuple[float, float, float]:
    spacing = tuple(map(float, sides(path, image, plain=True)))
    if not all(np.isfinite(side) and 0.01 < side < 100 for side in spacing):
        raise Unusable(
            f"`{short(path)}` has voxel sides {spacing}: millimetres between 0.01 and 100 are needed; mend "
            "`pixdim` in its header"
        )
    return spacing


def mirrored(image) -> bool:
    """Whether rows and columns as stored show the heart from its base, the mirror image of the clinical view.

    Only a header that gives an orientation (a qform or sform code) is believed.
    """
    if not (int(image.header["qform_code"]) or int(image.header["sform_code"])):
        return False
    column, row = image.affine[:3, 0], image.affine[:3, 1]
    return float(np.cross(column, row) @ APEX_TO_BASE) < 0


def _check_grid(path: Path, image, other: Path, against) -> None:
    if image.shape[:3] != against.shape[:3]:
        raise Unusable(
            f"`{short(path)}` has shape {image.shape[:3]} and `{short(other)}` {against.shape[:3]}: they "
            "must lie on one grid; resample one to the other"
        )
    if not np.allclose(image.affine, against.affine, atol=1e-2):
        raise Unusable(
            f"`{short(path)}` and `{short(other)}` have different affines: they are not in one place; "
            "resample one to the other, or copy the right header"
        )
    if not np.allclose(image.header.get_zooms()[:3], against.header.get_zooms()[:3], rtol=1e-3):
        raise Unusable(
            f"`{short(path)}` and `{short(other)}` have voxels of different sides in `pixdim`; copy the right header"
        )


def read(frames: tuple[Frame, Frame], label_map: tuple[int, int, int]) -> Stack:
    """Both frames of a subject, rows downwards and columns rightwards in the clinical view.

    Args:
        frames: ED and ES.
        label_map: raw values of LV, myocardium, RV.

    Raises:
        Unusable: a file is missing, damaged, of another grid than its partner, not finite, or no label mask.
        Excluded: a region has no voxel at all.
    """
    images, labels = [], []
    first = None
    for frame in frames:
        voxels, image = _voxels(frame.image, frame.index)
        mask, header = _voxels(frame.mask, frame.index)
        _check_grid(frame.mask, header, frame.image, image)
        if first is None:
            first, spacing = image, _spacing(frame.image, image)
        else:
            _check_grid(frame.image, image, frames[0].image, first)
        mask = _labels(frame.mask, mask, label_map)
        if mirrored(image):
            voxels, mask = voxels[::-1], mask[::-1]
        images.append(voxels.transpose(2, 1, 0).astype(np.float32))
        labels.append(mask.transpose(2, 1, 0))
    names = tuple(f"{short(frame.mask)}" for frame in frames)
    return Stack(np.stack(images), np.stack(labels), (spacing[2], spacing[1], spacing[0]), names)


def emptiest_lv(path: Path, lv: int) -> int:
    """The frame of a 4-D mask with the fewest LV voxels among those that have any: end-systole.

    Raises:
        Unusable: the mask is missing, damaged or not 4-D, or labels no LV.
    """
    image = _open(path)
    if len(image.shape) != 4:
        raise Unusable(
            f"`{short(path)}` has shape {image.shape}: beside a 4-D `sa.nii.gz` a 4-D mask is needed"
        )
    try:
        counts = np.count_nonzero(np.asarray(image.dataobj) == lv, axis=(0, 1, 2))
    except DAMAGED as error:
        raise damaged(path, error) from error
    if not counts.any():
        raise Unusable(f"`{short(path)}` has no voxel labelled {lv} (LV) in any frame; check --label-map")
    return int(np.where(counts > 0, counts, counts.max() + 1).argmin())
