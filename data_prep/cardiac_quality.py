"""Is a pair of short-axis masks fit for use? Label order from geometry, and the paper's quality filter."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_prep.prepared import FRAMES, LABELS

LV, MYO, RV = 1, 2, 3
REGIONS = {region: LABELS[region] for region in (LV, MYO, RV)}
IN_PLANE = ndimage.generate_binary_structure(2, 1)[None, None]  # 4-neighbours within a slice


class Unusable(ValueError):
    """The subject's files cannot be read or make no sense: somebody should look at them."""


class Excluded(ValueError):
    """The subject is readable and does not pass the quality filter: expected in any cohort."""


class Stack(NamedTuple):
    """One subject as read. `masks` names the two mask files for messages."""

    image: np.ndarray  # (2, Z, H, W) float32
    label: np.ndarray  # (2, Z, H, W) uint8: 0 background, 1 LV, 2 myocardium, 3 RV
    spacing_mm: tuple[float, float, float]  # slice, row, column
    masks: tuple[str, str] = FRAMES


def check_order(stack: Stack, label_map: tuple[int, int, int]) -> None:
    """Refuse masks whose labels are exchanged, from geometry alone.

    Of the six ordered pairs of regions, (LV cavity, myocardium) is the one in which the second covers most of
    the in-plane rim of the first. If another pair does, the label map is wrong, and that pair says how.

    Raises:
        Unusable: naming the map that fits. Volumes under a wrong map look plausible and are wrong.
    """
    inside = ndimage.find_objects((stack.label > 0).any(axis=0).astype(np.uint8))
    if not inside:
        return
    label = np.pad(stack.label[(slice(None), *inside[0])], ((0, 0), (0, 0), (1, 1), (1, 1)))
    covered = {}
    for inner in REGIONS:
        region = label == inner
        rim = label[ndimage.binary_dilation(region, IN_PLANE) & ~region]
        covered |= {
            (inner, outer): np.mean(rim == outer) if rim.size else 0.0 for outer in REGIONS if outer != inner
        }
    found = max(covered, key=covered.get)
    if covered[found] > covered[LV, MYO]:
        raw = dict(zip((LV, MYO, RV), label_map, strict=True))
        lv, myo = (raw[region] for region in found)
        rv = next(value for value in label_map if value not in (lv, myo))
        raise Unusable(
            f"`{stack.masks[0]}` has its labels in another order: the myocardium must surround the LV "
            f"cavity, and here {myo} surrounds {lv}; try --label-map lv={lv},myo={myo},rv={rv}"
        )


def quality(label: np.ndarray, *, min_slices: int, min_pixels: int) -> str | None:
    """Why one frame's mask fails the quality filter, or None when it passes.

    The filter of the UK Biobank pipeline that the paper follows (section 2.3): every region present, LV and
    myocardium on enough consecutive slices, both ventricles seen in the mid slice. Counts are "at least", as
    in that code; the paper's sentence says "more than".

    Args:
        label: (Z, H, W) canonical labels of one frame.
        min_slices: fewest consecutive slices with LV and myocardium.
        min_pixels: fewest pixels (voxels, for the whole stack) of a region that is present.
    """
    for region, name in REGIONS.items():
        count = int((label == region).sum())
        if count < min_pixels:
            return f"has {count} voxels of {name}, and {min_pixels} are needed; is --label-map right?"
    shown = [np.count_nonzero(label == region, axis=(1, 2)) >= min_pixels for region in (LV, MYO)]
    levels = np.flatnonzero(shown[0] & shown[1])
    if len(levels) < min_slices:
        return f"shows LV and myocardium on {len(levels)} slices, and {min_slices} are needed (--min-slices)"
    if levels[-1] - levels[0] + 1 != len(levels):
        return f"has a gap: LV and myocardium are on slices {', '.join(map(str, levels))} only"
    mid = label[round(float(np.nonzero(label == LV)[0].mean()))]
    heart = _components(mid == LV, largest=True) | _components(mid == MYO, at_least=min_pixels)
    for name, region in (("LV and myocardium", heart), ("RV", mid == RV)):
        if np.count_nonzero(_components(region, largest=True)) < min_pixels:
            return f"shows no connected {name} in the mid-cavity slice"
    return None


def _components(region, *, largest=False, at_least=1):
    """The 4-connected components of a (H, W) mask that are the largest, or have at least so many pixels."""
    marks, _ = ndimage.label(region)
    sizes = np.bincount(marks.ravel())
    sizes[0] = 0
    keep = (
        (sizes == sizes.max()) & (np.arange(len(sizes)) == sizes.argmax()) if largest else sizes >= at_least
    )
    keep[0] = False
    return keep[marks]
