"""Which subjects are the same scan, and who goes to train, validation and test."""

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SPLITS = ("train", "val", "test")
CELLS = 16
SAME_SCAN = 0.999  # correlation of two fingerprints above which they are one scan
CHUNK = 1024


def fingerprint(stack: np.ndarray) -> np.ndarray:
    """A coarse copy of a stack of slices, with zero mean and unit norm.

    Args:
        stack: (Z, H, W) intensities, H and W at least `CELLS`.

    Returns:
        (Z * CELLS * CELLS,) float32; the inner product of two is their correlation. The masks play no part:
        one scan contoured twice is still one scan.
    """
    coarse = stack.astype(np.float64)
    for axis in (1, 2):
        edges = np.linspace(0, stack.shape[axis], CELLS, endpoint=False).astype(int)
        coarse = np.add.reduceat(coarse, edges, axis=axis)
    coarse = coarse.ravel() - coarse.mean()
    return (coarse / max(np.linalg.norm(coarse), 1e-12)).astype(np.float32)


def same_scan(fingerprints: Sequence[np.ndarray], shapes: Sequence[tuple]) -> np.ndarray:
    """Group subjects whose scans agree.

    Args:
        fingerprints: one per subject.
        shapes: the stacks' shapes; only equal shapes are compared.

    Returns:
        (N,) group number per subject; subjects that share a number hold one scan.
    """
    rows, columns = [], []
    for shape in sorted(set(shapes)):
        at = np.array([i for i, other in enumerate(shapes) if other == shape])
        prints = np.stack([fingerprints[i] for i in at])
        for start in range(0, len(at), CHUNK):
            near = np.argwhere(prints[start : start + CHUNK] @ prints.T > SAME_SCAN)
            rows.extend(at[near[:, 0] + start])
            columns.extend(at[near[:, 1]])
    count = len(shapes)
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def split_subjects(
    subjects: Sequence[str],
    scans: np.ndarray,
    groups: Sequence[str],
    *,
    fractions: tuple[float, float, float],
    seed: int,
) -> list[str]:
    """Assign whole scans to train, val and test, each diagnostic group in proportion.

    Within a group, scans stand in the order of a hash of seed and subject, so adding or losing a subject
    moves few of the others. A scan's rank within its group, as a fraction, orders all scans; that list is cut
    at `fractions`.

    Args:
        subjects: (N,) identifiers.
        scans: (N,) scan numbers from `same_scan`; one number stays on one side.
        groups: (N,) strata.
        fractions: of train, val and test, summing to 1.
        seed: another seed gives another split.

    Returns:
        (N,) names out of `SPLITS`.
    """

    def drawn(subject):
        return hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest()

    members = {}
    for i in sorted(range(len(subjects)), key=lambda i: subjects[i]):
        members.setdefault(scans[i], []).append(i)
    strata = {}
    for scan, at in members.items():
        strata.setdefault(str(groups[at[0]]), []).append(scan)
    ranked = []
    for scans_of_group in strata.values():
        scans_of_group.sort(key=lambda scan: drawn(subjects[members[scan][0]]))
        for rank, scan in enumerate(scans_of_group):
            ranked.append(((rank + 0.5) / len(scans_of_group), drawn(subjects[members[scan][0]]), scan))
    cuts = np.round(np.cumsum(fractions) * len(subjects)).astype(int)
    placed, side = 0, [""] * len(subjects)
    for *_, scan in sorted(ranked):
        name = SPLITS[min(int(np.searchsorted(cuts, placed, side="right")), 2)]
        for i in members[scan]:
            side[i] = name
        placed += len(members[scan])
    return side
