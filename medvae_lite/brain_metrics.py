"""What is asked of images of brains with lesions: arrays in, numbers out.

Images are standardised grey values (N, H, W); lesions the share of each pixel, in [0, 1], of the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.special import logsumexp
from sklearn.linear_model import Lasso

__all__ = [
    "SIZES_MM", "Detector", "components", "contrast_recovery", "importance_bound", "invalid_share", "lasso_r2", "lesion_statistics", "missed", "pool",
    "pyramid_features",
]  # fmt: skip

Array = NDArray[np.floating]
SIZES_MM = (3.0, 5.0, 10.0)
"""Bounds of the size classes of lesions, equivalent diameter in mm."""
_NEIGHBOURS = np.ones((3, 3), bool)
PRESENT = 0.25
"""Share from which a pixel belongs to a lesion: small lesions fill no pixel."""


def components(fraction: Array, pixel_mm: float) -> tuple[NDArray[np.int32], Array]:
    """Connected lesions of one slice: a map of their numbers from 1, and their equivalent diameters in mm.

    The diameter is that of a disc of the area the shares add up to, so that half-filled pixels count half.
    """
    found, count = ndi.label(fraction >= PRESENT, _NEIGHBOURS)
    area = np.asarray(ndi.sum(fraction, found, np.arange(1, count + 1)), float) * pixel_mm**2
    return found, 2 * np.sqrt(area / np.pi)


def lesion_statistics(fraction: Array, pixel_mm: float) -> dict[str, float]:
    """How many lesions slices have and how large they are, by name; volumes for slices of 1 mm."""
    volume = fraction.sum((1, 2)) * pixel_mm**2
    diameters = np.concatenate([components(share, pixel_mm)[1] for share in fraction])
    found = {
        "volume per slice, mean (mm³)": volume.mean(), "volume per slice, sd (mm³)": volume.std(),
        "slices without lesion (%)": 100 * (volume == 0).mean(), "lesions per slice": len(diameters) / len(fraction),
    }  # fmt: skip
    found |= {f"diameter, {q}th centile (mm)": np.percentile(diameters, q) for q in (5, 25, 50, 75, 95)}
    found |= {f"lesions up to {d} mm (%)": 100 * (diameters <= d).mean() for d in (3, 5)}
    return {name: float(value) for name, value in found.items()}


def contrast_recovery(x: Array, x_hat: Array, fraction: Array, pixel_mm: float, *, fluid: NDArray[np.bool_] | None = None) -> pd.DataFrame:
    """How much of each lesion's contrast a reconstruction keeps.

    Contrast is the mean over the lesion, weighted by share, less the mean over a ring of two pixels around it without any
    lesion. Recovery is the reconstruction's contrast over the image's: 1 is kept, 0 is gone.

    Arguments:
        fluid: Where fluid or background is, (N, H, W): left out of the ring, since beside something dark healthy tissue stands out too.

    Returns:
        One row a lesion: `image` (position), `diameter_mm`, `contrast`, `recovery`. Lesions that do not stand out
        of the image itself (contrast below 0.2) are left out: there is nothing to recover.
    """
    rows = []
    dark = np.zeros(x.shape, bool) if fluid is None else fluid
    for number, (image, image_hat, share, wet) in enumerate(zip(x, x_hat, fraction, dark)):
        found, diameters = components(share, pixel_mm)
        for one, box in enumerate(ndi.find_objects(found), 1):
            wide = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in box)
            inside = found[wide] == one
            ring = ndi.binary_dilation(inside, _NEIGHBOURS, 2) & (share[wide] < 0.05) & ~wet[wide]
            if not ring.any():
                continue
            weight = share[wide] * inside
            true, kept = (np.average(im[wide], weights=weight) - im[wide][ring].mean() for im in (image, image_hat))
            if true >= 0.2:
                rows.append((number, diameters[one - 1], true, kept / true))
    return pd.DataFrame(rows, columns=["image", "diameter_mm", "contrast", "recovery"])


def missed(recovery: pd.DataFrame, *, bounds: Sequence[float] = SIZES_MM) -> pd.Series:
    """Share of lesions that lose half of their contrast or more, by size class; NaN where a class is empty."""
    names = [f"≤ {bounds[0]:g}", *(f"{a:g}-{b:g}" for a, b in zip(bounds, bounds[1:])), f"> {bounds[-1]:g}"]
    classes = pd.cut(recovery["diameter_mm"], [0, *bounds, np.inf], labels=names)
    return (recovery["recovery"] < 0.5).groupby(classes, observed=False).mean()


@dataclass(frozen=True)
class Detector:
    """Finds lesions, and fluid, in an image nobody has labelled, by grey value alone.

    Arguments:
        bright: Grey value from which a pixel is lesion.
        dark: Grey value below which a pixel is fluid or background.
    """

    bright: float
    dark: float

    @classmethod
    def fit(cls, x: Array, fraction: Array, tissue_dark: NDArray[np.bool_], tissue_white: NDArray[np.bool_]) -> Detector:
        """The threshold of best Dice overlap with the true lesions, and the middle between fluid and white matter."""
        truth = fraction >= 0.5
        thresholds = np.quantile(x[truth], np.linspace(0.02, 0.9, 45)) if truth.any() else np.array([np.inf])
        dice = [2 * (truth & (x >= t)).sum() / max(1, truth.sum() + (x >= t).sum()) for t in thresholds]
        return cls(float(thresholds[int(np.argmax(dice))]), float((np.median(x[tissue_dark]) + np.median(x[tissue_white])) / 2))

    def lesions(self, x: Array) -> NDArray[np.bool_]:
        """Where it sees lesion, the shape of `x`."""
        return x >= self.bright

    def area_mm2(self, x: Array, pixel_mm: float) -> Array:
        """Lesion area of every image, with shape (N,)."""
        return self.lesions(x).sum((1, 2)) * pixel_mm**2


def invalid_share(x: Array, detector: Detector, *, rim: float = 0.6) -> tuple[float, int]:
    """Share of lesions that lie where no lesion can be: with fluid or background around most of their rim.

    Arguments:
        x: Images, (N, H, W).
        rim: Share of the two-pixel ring around a lesion that must be dark for it to count as misplaced.

    Returns:
        The share, NaN without any lesion, and how many lesions there were. Real lesions touch ventricles: give the share of
        real images beside it.
    """
    wrong = total = 0
    for image in x:
        found, count = ndi.label(detector.lesions(image), _NEIGHBOURS)
        dark = image < detector.dark
        for one, box in enumerate(ndi.find_objects(found), 1):
            wide = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in box)
            inside = found[wide] == one
            ring = ndi.binary_dilation(inside, _NEIGHBOURS, 2) & (found[wide] == 0)
            total += 1
            wrong += bool(ring.any()) and dark[wide][ring].mean() > rim
    return (wrong / total if total else float("nan")), total


def lasso_r2(features: Array, target: Array, features_test: Array, target_test: Array, *, alpha: float = 10.0) -> float:
    r"""Linear predictability: :math:`R^2` on test images of a Lasso fitted on others (Hu et al. 2022, table 4).

    It minimises :math:`\frac{1}{2n} \lVert y - Xw \rVert^2 + \alpha \lVert w \rVert_1`. A feature enters only if its covariance with the
    target exceeds :math:`\alpha`, so the result depends on the target's unit; features are not standardised.

    Arguments:
        features, features_test: Latent means, (N, D) and (M, D).
        target, target_test: In the unit that `alpha` is meant for (mm³ a slice in the paper).
    """
    model = Lasso(alpha=alpha, max_iter=3000, tol=1e-3, selection="random", random_state=0)
    model.fit(np.asarray(features, float), target)
    error = np.sum((target_test - model.predict(np.asarray(features_test, float))) ** 2)
    return float(1 - error / np.sum((target_test - target_test.mean()) ** 2))


def pool(plane: Array, side: int = 4) -> Array:
    """Latent planes (N, C, H, W) averaged to `side` x `side`, flattened: (N, C side²). Smaller planes stay as they are."""
    n, c, h, w = plane.shape
    if h <= side or w <= side:
        return plane.reshape(n, -1)
    return plane[..., : h - h % side, : w - w % side].reshape(n, c, side, h // side, side, w // side).mean((3, 5)).reshape(n, -1)


def pyramid_features(x: Array, *, levels: int = 4) -> Array:
    """Hand-made image features for a Fréchet distance: 12 numbers a level, (N, 12 levels).

    Of each octave of a Gaussian pyramid: mean, spread, skewness and log kurtosis of the band (the level less its blur), mean and spread of the
    gradient's size, mean and spread of the level, its mean in each quadrant. Named "FD-pyramid" wherever it is used.
    """
    found, level = [], np.asarray(x, float)
    for _ in range(levels):
        blurred = ndi.gaussian_filter(level, (0, 1, 1), mode="nearest")
        band = level - blurred
        spread = band.std((1, 2)) + 1e-6
        central = band - band.mean((1, 2), keepdims=True)
        gradient = np.hypot(np.diff(level, axis=1)[:, :, :-1], np.diff(level, axis=2)[:, :-1])
        h, w = level.shape[1] // 2, level.shape[2] // 2
        quadrants = [level[:, rows, columns] for rows in (slice(h), slice(h, None)) for columns in (slice(w), slice(w, None))]
        found += [band.mean((1, 2)), spread, (central**3).mean((1, 2)) / spread**3, np.log((central**4).mean((1, 2)) / spread**4 + 1e-12)]
        found += [gradient.mean((1, 2)), gradient.std((1, 2)), level.mean((1, 2)), level.std((1, 2))]
        found += [q.mean((1, 2)) for q in quadrants]
        level = blurred[:, ::2, ::2]
    return np.stack(found, 1)


def importance_bound(log_weights: Array) -> tuple[float, float]:
    """The importance-weighted bound from log-weights (N, S): its mean over images in nats, and the standard error of that mean."""
    each = logsumexp(log_weights, axis=1) - np.log(log_weights.shape[1])
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
