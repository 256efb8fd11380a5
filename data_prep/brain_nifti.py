"""Read one person's brain from NIfTI and cut axial slices from it; say in one sentence what is wrong with a file.

Pictures are in radiological convention: rows run from the front of the head to its back, columns from the person's right
to the person's left, whatever the order in which the file stores its voxels. Files turned by more than 10 degrees against
the axes of the scanner are refused; smaller turns are left as they are.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.brain_layouts import GAP_MM, Options
from data_prep.brain_prepared import standardise
from data_prep.cardiac_quality import Unusable
from data_prep.nifti_file import DAMAGED, check_values, damaged, open_whole, short, sides

__all__ = ["Scan", "Slices", "brain_of", "cut", "read", "read_mask"]

EDGES_MM = (0.1, 3.0)
MOST_OBLIQUE = 10.0
ZEROS_OUTSIDE = 0.2
MOST_VOXELS = 2**28
MOST_LESION = 0.5  # of the brain in the slices taken
_LOST = 0.01  # the share of a brain that may fall off the picture
_HALF = 0.5 - 1e-6  # two of four voxels are half a pixel, whatever the rounding


class Scan(NamedTuple):
    """A volume whose axes run to the person's right, front and top.

    Args:
        voxels: (X, Y, Z).
        affine: (4, 4), from voxels to mm.
    """

    voxels: NDArray
    affine: NDArray[np.float64]

    @property
    def edges(self) -> NDArray[np.float64]:
        """Voxel edges in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0).round(4)


class Slices(NamedTuple):
    """One person's slices, lowest first.

    Args:
        images: standardised grey values, (S, H, W).
        tissue: 1 where at least half a pixel is brain, (S, H, W).
        lesion: share of each pixel that is lesion in percent, (S, H, W).
        z_mm: height of each slice above the origin, (S,).
    """

    images: NDArray[np.float32]
    tissue: NDArray[np.uint8]
    lesion: NDArray[np.uint8]
    z_mm: NDArray[np.float64]


def read(path: Path) -> Scan:
    """A volume from NIfTI, turned so that its axes run to the person's right, front and top.

    Raises:
        Unusable: the file is missing, damaged, not 3-D, not finite, too coarse, oblique, or gives no orientation.
    """
    try:
        image, voxels = _load(path)
    except FileNotFoundError:
        raise Unusable(f"`{short(path)}` is missing; restore it or remove the person's folder") from None
    except PermissionError:
        raise Unusable(f"`{short(path)}` may not be read: grant yourself permission (chmod u+r)") from None
    except Unusable:
        raise
    except DAMAGED as error:
        raise damaged(path, error) from error
    check_values(path, voxels)
    affine = _affine(path, image)
    turned = nib.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(turned, voxels.shape)
    return Scan(nib.apply_orientation(voxels, turned), affine)


def _load(path: Path) -> tuple[nib.Nifti1Image, NDArray]:
    image = open_whole(path)
    shape = tuple(map(int, image.shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise Unusable(f"`{short(path)}` has shape {shape}: one volume (X, Y, Z) is needed; give a 3-D file")
    if math.prod(shape) > MOST_VOXELS:
        raise Unusable(f"`{short(path)}` has shape {shape}, larger than any scan of a head: its header is damaged; export it again")
    return image, np.asarray(image.dataobj).reshape(shape)


def _affine(path: Path, image: nib.Nifti1Image) -> NDArray[np.float64]:
    if not (int(image.header["qform_code"]) > 0 or int(image.header["sform_code"]) > 0):
        raise Unusable(f"`{short(path)}` does not say how the head lies (qform and sform codes are 0); convert it again from DICOM")
    affine = np.asarray(image.affine, dtype=np.float64)
    edges = np.linalg.norm(affine[:3, :3], axis=0) if np.isfinite(affine).all() else np.zeros(3)
    if not (edges >= EDGES_MM[0]).all() or not (edges <= 100).all() or np.abs(affine).max() > 1e5:
        raise Unusable(f"`{short(path)}` has no sensible affine (voxel edges {_by(edges)} mm); mend its header or convert it again")
    sides(path, image)
    angle = math.degrees(nib.affines.obliquity(affine).max())
    if angle > MOST_OBLIQUE or len(set(nib.io_orientation(affine)[:, 0])) < 3:
        raise Unusable(
            f"`{short(path)}` is oblique by {angle:.0f} degrees, and {MOST_OBLIQUE:.0f} are allowed; register it to a template first"
        )
    if (edges > EDGES_MM[1] + 1e-3).any():
        raise Unusable(
            f"`{short(path)}` has voxels of {_by(edges)} mm, and edges of at most {EDGES_MM[1]:g} mm are needed: "
            "too few real slices; use a 3-D sequence"
        )
    return affine


def _by(edges) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges)


def read_mask(path: Path, scan: Scan, beside: Path) -> NDArray[np.bool_]:
    """A mask of two values, 0 and another, on the grid of a scan.

    Args:
        path: the mask.
        scan: the image it belongs to, from the file `beside`.

    Raises:
        Unusable: as `read`; or it lies on another grid, or holds other values.
    """
    mask = read(path)
    if mask.voxels.shape != scan.voxels.shape:
        raise Unusable(
            f"`{short(path)}` has shape {mask.voxels.shape} and `{short(beside)}` {scan.voxels.shape}: they must lie on one grid; "
            "resample one to the other"
        )
    if not np.allclose(mask.affine, scan.affine, atol=1e-2):
        raise Unusable(
            f"`{short(path)}` and `{short(beside)}` have different affines: they are not in one place; resample one to the other"
        )
    inside = mask.voxels != 0
    values = np.unique(mask.voxels[inside])
    if len(values) > 1 or (len(values) and values[0] < 0):
        got = ", ".join(f"{value:.3g}" for value in values[:3])
        raise Unusable(f"`{short(path)}` must be 0 outside and one positive value inside, got {got}; resample it with nearest neighbour")
    return inside


def brain_of(scan: Scan, path: Path) -> NDArray[np.bool_]:
    """Where the brain is in an image from which all else was removed.

    Raises:
        Unusable: the zeros do not mark what is outside the brain.
    """
    zeros = float(np.mean(scan.voxels == 0))
    if zeros < ZEROS_OUTSIDE:
        raise Unusable(
            f"`{short(path)}` is not brain-extracted (only {zeros:.0%} of its voxels are 0): put a brain mask beside it (see --brain) "
            "or remove the skull first"
        )
    # Resampling overshoots a little at the rim; many negative values mean an image that was standardised before.
    negative = np.count_nonzero(scan.voxels < 0)
    if negative > 0.05 * scan.voxels.size * (1 - zeros):
        raise Unusable(
            f"`{short(path)}` holds {negative} negative voxels, so 0 does not mark what is outside the brain: put a brain mask beside it "
            "(see --brain)"
        )
    brain = scan.voxels > 0
    for level in np.flatnonzero(brain.any(axis=(0, 1))):
        brain[..., level] = ndimage.binary_fill_holes(brain[..., level])
    return brain


def cut(scan: Scan, brain: NDArray[np.bool_], lesion: NDArray[np.bool_] | None, options: Options) -> Slices:
    """Axial slices of one person, each pixel the average of the brain under it.

    A wanted height takes the nearest slice of the scan. The picture is centred on the box around the brain in the slices
    taken, on an edge of a voxel, so that voxels of 1 mm fall whole into pixels of 2 mm.

    Args:
        scan: the image.
        brain: where the brain is, (X, Y, Z).
        lesion: where lesions are, (X, Y, Z); None for nowhere.
        options: how many slices, where and how fine.

    Raises:
        Unusable: there is no brain, not on every slice, or too large a one for the picture; or the lesions lie outside it.
    """
    if not brain.any():
        raise Unusable("the brain mask is empty: no voxel is brain; make the mask again")
    levels, z_mm = _levels(scan, brain, options)
    brain = brain[..., levels]
    lesion = np.zeros_like(brain) if lesion is None else lesion[..., levels]
    if np.count_nonzero(lesion & ~brain) > 0.5 * np.count_nonzero(lesion):
        raise Unusable("more than half of the lesions lie outside the brain: the mask is of another person or place; check which it is")
    covered = np.count_nonzero(lesion & brain) / max(np.count_nonzero(brain), 1)
    if covered > MOST_LESION:
        raise Unusable(f"the lesions cover {covered:.0%} of the brain: the mask shows something else; check which it is")
    grey = np.where(brain, scan.voxels[..., levels], 0).astype(np.float64)
    if np.ptp(grey[brain]) == 0:
        raise Unusable("the image has one grey value in the whole brain: it is empty or a mask; use the scan itself")
    rows, columns, pixel_mm = options.grid
    box = [_box(brain, axis) for axis in (0, 1)]
    across, along = (
        _overlap(scan.voxels.shape[axis], scan.edges[axis], count, pixel_mm, math.floor(box[axis].mean() + 0.5))
        for axis, count in ((0, columns), (1, rows))
    )

    def seen(volume):
        # Columns from the person's right, rows from the front: both against the axes of the scan.
        return (along @ volume.astype(np.float64).transpose(2, 1, 0) @ across.T)[:, ::-1, ::-1]

    share, lesions = seen(brain), seen(lesion)
    area = float(np.prod(scan.edges[:2])) / pixel_mm**2
    for kept, mask, name in ((share, brain, "brain"), (lesions, lesion, "lesions' region")):
        if kept.sum() < (1 - _LOST) * mask.sum() * area:
            size = _by([np.ptp(box[axis]) * scan.edges[axis] for axis in (0, 1)])
            raise Unusable(
                f"the {name} does not fit into the picture of {_by((columns * pixel_mm, rows * pixel_mm))} mm (the brain is {size} mm wide "
                "and long); take a larger --size or --pixel-mm"
            )
    tissue = share >= _HALF
    _require(tissue.any(axis=(1, 2)), z_mm)
    with np.errstate(all="ignore"):
        images = standardise(np.where(tissue, seen(grey) / np.where(tissue, share, 1), 0), tissue)
    return Slices(images, tissue.astype(np.uint8), np.clip(np.round(100 * lesions), 0, 100).astype(np.uint8), z_mm)


def _box(brain, axis) -> NDArray[np.int_]:
    """First and last edge of the brain along an axis, in voxels."""
    filled = np.flatnonzero(brain.any(axis=tuple(other for other in range(3) if other != axis)))
    return np.array([filled[0], filled[-1] + 1])


def _levels(scan: Scan, brain: NDArray[np.bool_], options: Options) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Which slices of the scan to take, and their heights in mm."""
    filled = [_box(brain, axis) for axis in range(3)]
    middle = [(low + high - 1) / 2 for low, high in filled]
    anchor = math.floor(middle[2] + 0.5)
    height = round(float(scan.affine[2] @ (*middle[:2], anchor, 1.0)), 4)
    centre = height if options.centre_mm is None else options.centre_mm
    z_mm = centre + GAP_MM * (np.arange(options.slices) - options.slices // 2)
    levels = np.floor((z_mm - height) / scan.edges[2] + anchor + 0.5).astype(int)
    inside = (levels >= 0) & (levels < brain.shape[2])
    inside[inside] = brain[..., levels[inside]].any(axis=(0, 1))
    _require(inside, z_mm)
    return levels, z_mm


def _require(found, z_mm) -> None:
    if not found.all():
        raise Unusable(
            f"there is brain on only {int(found.sum())} of the {len(z_mm)} slices from {z_mm[0]:g} to {z_mm[-1]:g} mm above the origin; "
            "ask for fewer (--slices) or others (--centre-mm)"
        )


def _overlap(voxels: int, edge: float, pixels: int, pixel_mm: float, centre: int) -> NDArray[np.float64]:
    """The share of each pixel that each voxel covers along one axis, (pixels, voxels); `centre` is an edge of a voxel."""
    voxel = edge * (np.arange(voxels) - centre)[None]
    pixel = pixel_mm * (np.arange(pixels) - pixels / 2)[:, None]
    return np.clip(np.minimum(voxel + edge, pixel + pixel_mm) - np.maximum(voxel, pixel), 0, None) / pixel_mm
