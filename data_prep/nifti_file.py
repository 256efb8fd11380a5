"""Is a NIfTI file whole, and does its header agree with itself and with what a scan can be? For hearts and brains."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from data_prep.cardiac_quality import Unusable

__all__ = ["DAMAGED", "check_values", "open_whole", "short", "sides"]

DAMAGED = (
    ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, KeyError, TypeError, ArithmeticError,
    MemoryError, zlib.error, struct.error,
)  # fmt: skip
"""What nibabel and gzip raise on a damaged file."""
LARGEST = 1e8
"""Beyond any grey value or label; the bytes of one type read as another lie far beyond it."""
_PADDING = 16  # bytes that a writer may leave behind the last voxel
_MILLIMETRE, _UNKNOWN = 2, 0
_LENGTHS = {1: "metres", 3: "micrometres"}


def short(path: Path) -> str:
    """Folder and file name: enough to find the file, and the same on every machine."""
    return f"{path.parent.name}/{path.name}"


def open_whole(path: Path) -> nib.Nifti1Image:
    """A NIfTI file, opened after its last byte was read, so that its checksum and its length were seen.

    Raises:
        Unusable: it is no NIfTI file, is damaged, is not as long as its header says, or has lengths in another unit than mm.
        FileNotFoundError, PermissionError: as the system says.
    """
    try:
        # nibabel stops at the last voxel, before the checksum.
        length = _length(path)
        image = nib.load(path)
    except (FileNotFoundError, PermissionError):
        raise
    except DAMAGED as error:
        raise damaged(path, error) from error
    if not isinstance(image, nib.Nifti1Image):
        raise Unusable(f"`{short(path)}` is {type(image).__name__} and not a NIfTI file; convert it to .nii.gz")
    kind = image.get_data_dtype()
    if kind.kind not in "iufb":
        raise Unusable(f"`{short(path)}` holds {kind} and not grey values; export it as numbers")
    needed = int(image.dataobj.offset) + math.prod(map(int, image.shape)) * kind.itemsize
    if not 0 <= length - needed < _PADDING:
        raise Unusable(
            f"`{short(path)}` cannot be read as NIfTI: it has {length} bytes and its header speaks of {needed}, so it is cut "
            "short or damaged; copy or download it again"
        )
    unit = int(image.header["xyzt_units"]) & 7
    if unit not in (_MILLIMETRE, _UNKNOWN):
        raise Unusable(
            f"`{short(path)}` says that its lengths are in {_LENGTHS.get(unit, f'a unit of number {unit}')}, and mm are needed; "
            "mend `xyzt_units` in its header or convert it again"
        )
    return image


def damaged(path: Path, error: BaseException) -> Unusable:
    """What to say of a file on which nibabel or gzip gave up."""
    return Unusable(
        f"`{short(path)}` cannot be read as NIfTI ({type(error).__name__}): the file is cut short or damaged; "
        "copy or download it again"
    )


def _length(path: Path) -> int:
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        return sum(len(part) for part in iter(lambda: file.read(1 << 22), b""))


def check_values(path: Path, voxels: NDArray) -> None:
    """Refuses values that no scan and no mask has.

    Raises:
        Unusable: some are not finite, or far beyond any grey value.
    """
    bad = 0 if voxels.dtype.kind in "iub" else int(np.count_nonzero(~np.isfinite(voxels)))
    if bad:
        raise Unusable(
            f"`{short(path)}` holds {bad} voxels that are not finite (NaN or infinite); fill them in or export it again"
        )
    largest = max(float(voxels.max()), -float(voxels.min())) if voxels.size else 0.0
    if largest > LARGEST:
        raise Unusable(
            f"`{short(path)}` holds values up to {largest:.3g}, beyond any scan: its header or its voxels are damaged; "
            "export it again"
        )


def sides(path: Path, image: nib.Nifti1Image, *, plain: bool = False) -> NDArray[np.float64]:
    """The three voxel sides in mm, which a header gives twice: in `pixdim`, and as lengths of the columns of its affine.

    Args:
        path: the file, for messages.
        image: opened.
        plain: whether sides of 1 in the affine say nothing, as in ACDC, whose sides are in `pixdim` alone.

    Raises:
        Unusable: they differ by more than 5 %.
    """
    given = np.asarray(image.header.get_zooms()[:3], dtype=np.float64)
    placed = np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :3], axis=0)
    if not (plain and np.allclose(placed, 1)) and not np.allclose(given, placed, rtol=0.05, atol=0):
        raise Unusable(
            f"`{short(path)}` gives its voxels sides of {_by(given)} mm in `pixdim` and of {_by(placed)} mm in its affine: "
            "one of them is wrong; mend its header or convert it again"
        )
    return given


def _by(lengths) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)
