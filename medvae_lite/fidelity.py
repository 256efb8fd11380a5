"""How close reconstructions, and samples, come to the images: tensors (B, C, H, W) in [0, 1] in, numbers out.

C counts frames (channel 0 is end-diastole, 1 end-systole), each a grey image of its own. Paired measures take
the truth `x` first and give one value a sample, shape (B,), the mean over frames; call them on `x[:, :1]` for
one frame. Reconstructions are scored unclipped. Sharpness has four measures because none suffices: each says
what it rewards and what it cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = [
    "edge_projection", "frechet_distance", "gradient_ratio", "high_frequency_correlation", "kid",
    "lpips_imagenet", "mse", "perceptual_distance", "pooled_features", "psnr", "radial_spectrum", "ssim",
]

Images = Float[Tensor, "b c h w"]
Score = Float[Tensor, "b"]
Features = Callable[[Tensor], Sequence[Tensor]]
"""A feature network: images (B, 1, H, W) to a list of feature maps (B, channels, h, w), fine to coarse."""


def mse(x: Images, x_hat: Images) -> Score:
    """Mean squared error over frames and pixels, shape (B,).

    Raises:
        ValueError: shapes that differ or are not (B, C, H, W), values not finite, `x` outside [0, 1]. (The
            same for every measure of a pair.)
    """
    x, x_hat = _pair(x, x_hat)
    return (x - x_hat).square().mean(dim=(1, 2, 3))


def psnr(x: Images, x_hat: Images, *, data_range: float = 1.0) -> Score:
    """Peak signal-to-noise ratio in dB, shape (B,): 10 log10(data_range² / mse). Infinite if identical."""
    return 10 * torch.log10(data_range**2 / mse(x, x_hat))


def ssim(
    x: Images, x_hat: Images, *, mode: Literal["default", "reference"] = "default", per_frame: bool = False,
    mask: Tensor | None = None,
) -> Score | Float[Tensor, "b c"]:  # fmt: skip
    """Structural similarity, shape (B,), or (B, C) with `per_frame`; data range 1, K1 = 0.01, K2 = 0.03.

    Wang et al. (2004), eq. 13, averaged where the window fits inside the image. The two definitions give
    different figures: name the mode beside the number.

    Args:
        mode: "default" is the window of Wang et al., Gaussian 11 x 11 with sigma 1.5 pixels; "reference" that
            of the public AR-SIVAE code (scikit-image's default), uniform 7 x 7, sample covariance (n - 1).
        mask: pixels (B, C, H, W) whose windows' centres count; all, when None. NaN where a mask is empty.
    """
    if mode not in ("default", "reference"):
        raise ValueError(f'`mode` must be "default" or "reference", got {mode!r}.')
    x, x_hat = _pair(x, x_hat)
    size = 7 if mode == "reference" else 11
    if min(x.shape[2:]) < size:
        raise ValueError(f"`x` must be {size} x {size} pixels or more, got {tuple(x.shape[2:])}.")
    edge = size // 2
    weight = torch.ones_like(x) if mask is None else mask.to(x)
    weight = weight[..., edge:-edge, edge:-edge]
    parts = zip(x.split(64), x_hat.split(64), weight.split(64), strict=True)  # a whole test set in float64 would be large
    score = torch.cat([(_ssim(u, v, mode, size) * w).sum((2, 3)) / w.sum((2, 3)) for u, v, w in parts])  # (B, C)
    return score if per_frame else score.mean(dim=1)


def _ssim(x: Tensor, x_hat: Tensor, mode: str, size: int) -> Tensor:
    # A flat region's variance is the difference of two near-equal means: in float32 that costs the 5th digit.
    x, x_hat = (u.double() if u.device.type != "mps" else u.cpu().double() for u in (x, x_hat))
    offset = torch.arange(size).to(x) - size // 2
    window = torch.ones_like(offset) if mode == "reference" else torch.exp(-0.5 * (offset / 1.5) ** 2)
    window, unbiased = window / window.sum(), size**2 / (size**2 - 1) if mode == "reference" else 1.0

    def local_mean(image: Tensor) -> Tensor:
        image = F.conv2d(image.flatten(0, 1)[:, None], window.view(1, 1, -1, 1))
        return F.conv2d(image, window.view(1, 1, 1, -1)).unflatten(0, x.shape[:2])[:, :, 0]

    mu, mu_hat = local_mean(x), local_mean(x_hat)
    var, var_hat = (unbiased * (local_mean(u * u) - m * m) for u, m in ((x, mu), (x_hat, mu_hat)))
    cov = unbiased * (local_mean(x * x_hat) - mu * mu_hat)
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mu * mu_hat + c1) * (2 * cov + c2) / ((mu**2 + mu_hat**2 + c1) * (var + var_hat + c2))


def perceptual_distance(x: Images, x_hat: Images, features: Features) -> Score:
    """LPIPS with equal weights on any feature network, shape (B,) (Zhang et al. 2018, eq. 1 with w = 1).

    Features of unit length across channels, squared difference summed over channels, mean over space, sum
    over levels, mean over frames. A distance in one network's eyes: it favours a model trained with a network
    like it, and figures from different networks cannot be compared, so name the network beside the number.
    """
    x, x_hat = _pair(x, x_hat)
    levels = zip(_levels(x, features), _levels(x_hat, features), strict=True)
    distance = sum((_unit(f) - _unit(g)).square().sum(dim=1).mean(dim=(1, 2)) for f, g in levels)
    return distance.unflatten(0, x.shape[:2]).mean(dim=1)


def lpips_imagenet(net: Literal["squeeze", "alex", "vgg"] = "squeeze") -> Callable[[Images, Images], Score]:
    """LPIPS proper, `f(x, x_hat)` -> (B,): ImageNet features, weights fitted to human judgements (v0.1).

    The choice of Di Folco et al. is "squeeze". Each frame is repeated to three channels and taken to [-1, 1].

    Raises:
        RuntimeError: torchvision, or the ImageNet weights (a download), cannot be had here.
    """
    if net not in ("squeeze", "alex", "vgg"):
        raise ValueError(f'`net` must be "squeeze", "alex" or "vgg", got {net!r}.')
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity(net_type=net).net
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"LPIPS with ImageNet features ({net}) cannot be had here ({error}): install a torchvision built "
            "for this torch and let it download the weights once, or use `perceptual_distance`."
        ) from error

    def distance(x: Images, x_hat: Images) -> Score:
        x, x_hat = _pair(x, x_hat)
        frames, frames_hat = (u.flatten(0, 1)[:, None].expand(-1, 3, -1, -1) for u in (x, x_hat))
        # The front end of torchmetrics refuses values outside [0, 1]; the network itself takes any.
        score = network.to(x.device)(frames, frames_hat, normalize=True)
        return score.view(x.shape[:2]).mean(dim=1)

    return distance


@torch.no_grad()
def pooled_features(x: Images, features: Features, *, batch_size: int = 64) -> Float[np.ndarray, "b d"]:
    """Features averaged over space, levels and frames side by side, so that how frames go together counts.

    `x` need not lie in [0, 1] (samples may not); one row an image, for `frechet_distance` and `kid`.
    """
    maps = (_levels(part, features) for part in x.split(batch_size))
    pooled = torch.cat([torch.cat([f.mean(dim=(2, 3)) for f in levels], dim=1) for levels in maps])
    return pooled.unflatten(0, x.shape[:2]).flatten(1).double().cpu().numpy()


def frechet_distance(f: ArrayLike, g: ArrayLike) -> float:
    """Fréchet distance of Gaussians fitted to two sets of features, (N, d) and (M, d) (Heusel et al. 2017).

    norm(mu_f - mu_g)² + tr(S_f + S_g - 2 (S_f S_g)^(1/2)), in squared units of the features, so only figures from
    one named network compare. It rewards a right spread as well as right images, and cannot tell a new image
    from a copy of a training image. Biased upwards when N is not much larger than d: compare with the
    distance between two halves of the real images, or use `kid`.
    """
    f, g = _feature_pair(f, g)
    root = _root(np.cov(f, rowvar=False, ddof=1).reshape(f.shape[1], -1))
    s_g = np.cov(g, rowvar=False, ddof=1).reshape(root.shape)
    # tr (S_f S_g)^(1/2) = tr (R S_g R)^(1/2) with R = S_f^(1/2): symmetric, so eigenvalues stay real.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ s_g @ root), 0, None)).sum()
    shift = ((f.mean(axis=0) - g.mean(axis=0)) ** 2).sum()
    return float(max(shift + np.trace(root @ root) + np.trace(s_g) - 2 * cross, 0.0))


def kid(f: ArrayLike, g: ArrayLike) -> float:
    """Kernel distance of (N, d) and (M, d): unbiased MMD², kernel (f·g / d + 1)³ (Bińkowski et al. 2018).

    Zero on average for two sets from one distribution whatever N, so it may be slightly negative; prefer it
    to `frechet_distance` for hundreds of images.
    """
    f, g = _feature_pair(f, g)
    n, m = len(f), len(g)
    k_ff, k_gg, k_fg = ((u @ v.T / u.shape[1] + 1) ** 3 for u, v in ((f, f), (g, g), (f, g)))
    within = (k_ff.sum() - np.trace(k_ff)) / (n * (n - 1)) + (k_gg.sum() - np.trace(k_gg)) / (m * (m - 1))
    return float(within - 2 * k_fg.mean())


def edge_projection(x: Images, x_hat: Images) -> Score:
    """Share of the true gradients kept, sum (grad x_hat · grad x) / sum norm(grad x)² over pixels, shape (B,).

    Rewards edges of the right strength, place and direction: 1 if identical, less when blurred or displaced,
    about 0 for texture unrelated to the truth. Cannot tell sharp edges with invented texture from sharp edges
    without, nor one edge too strong and one missing from two right ones; noise in `x`, which no model can
    know, keeps it below 1. NaN if `x` is flat.
    """
    x, x_hat = _pair(x, x_hat)
    (dy, dx), (dy_hat, dx_hat) = _gradient(x), _gradient(x_hat)
    return (dy * dy_hat + dx * dx_hat).sum(dim=(1, 2, 3)) / (dy**2 + dx**2).sum(dim=(1, 2, 3))


def gradient_ratio(x: Images, x_hat: Images) -> Score:
    """Mean gradient magnitude of the reconstruction over that of the truth, shape (B,).

    Rewards any detail, true or invented: noise and stripes raise it. It tells blur (below 1), not whether
    what is sharp is right; read it beside `edge_projection`. NaN or infinite if `x` is flat.
    """
    x, x_hat = _pair(x, x_hat)
    size, size_hat = (torch.hypot(*_gradient(u)).mean(dim=(1, 2, 3)) for u in (x, x_hat))
    return size_hat / size


def high_frequency_correlation(
    x: Images, x_hat: Images, *, cutoff: float = 0.2, subject_specific: bool = True
) -> Score:
    """Correlation of fine detail (above `cutoff` cycles/pixel) with the subject's true detail, shape (B,).

    Rewards detail that belongs to this subject. With `subject_specific` the mean image of the batch is taken
    off both sides first, so that neither average anatomy nor a pattern painted on every reconstruction
    counts: give it the whole test set in one call. It cannot tell how strong the detail is (a faint copy
    scores 1), and noise in `x`, which no model can know, keeps it below 1. NaN where a side has no detail.
    """
    x, x_hat = _pair(x, x_hat)
    if not 0 <= cutoff < 0.5:
        raise ValueError(f"`cutoff` must lie in [0, 0.5) cycles/pixel (0.5 is the finest), got {cutoff}.")
    if subject_specific:
        if len(x) < 2:
            raise ValueError("`subject_specific` needs 2 subjects or more in `x`, got 1; set it to False.")
        x, x_hat = x - x.mean(dim=0), x_hat - x_hat.mean(dim=0)
    fine, weight = _frequency(x) > cutoff, _half_plane(x)
    s, s_hat = (_spectrum(u) * fine for u in (x, x_hat))

    def inner(u: Tensor, v: Tensor) -> Tensor:  # Parseval: the inner product of the filtered images
        return ((u * v.conj()).real * weight).sum(dim=(1, 2, 3))

    return inner(s, s_hat) / (inner(s, s) * inner(s_hat, s_hat)).sqrt()


def radial_spectrum(x: Images) -> tuple[Float[Tensor, "n"], Float[Tensor, "b n"]]:
    """Power of each sample by spatial frequency, averaged over directions and frames (Hann window).

    Shows at which scale power is missing (blur) or in excess (noise, stripes: a peak). Cannot tell whether it
    sits in the right place: shuffled phases leave it unchanged. `x` may be truth, reconstruction or sample.

    Returns:
        Frequencies in cycles/pixel from 0 to 0.5, shape (n,), and power in squared grey values, shape (B, n):
        white noise of variance v is flat at v.
    """
    _, x = _pair(x.clamp(0, 1), x)
    n = min(x.shape[2:]) // 2 + 1
    ring, weight = (_frequency(x) * 2 * (n - 1)).round().long(), _half_plane(x).expand_as(_frequency(x))
    power = (_spectrum(x).abs().square().mean(dim=1) * weight).flatten(1)  # (B, H * (W // 2 + 1))
    inside = ring.flatten() < n  # the corners hold frequencies beyond 0.5
    index = ring.flatten()[inside]
    total = power.new_zeros(len(x), n).index_add_(1, index, power[:, inside])
    count = power.new_zeros(n).index_add_(0, index, weight.flatten()[inside])
    return torch.linspace(0, 0.5, n).to(x), total / count


def _pair(x: Images, x_hat: Images) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x.shape != x_hat.shape or x.numel() == 0:
        shapes = f"{tuple(x.shape)} and {tuple(x_hat.shape)}"
        raise ValueError(f"`x` and `x_hat` must share one shape (B, C, H, W), got {shapes}.")
    x, x_hat = (u if u.dtype == torch.float64 else u.float() for u in (x, x_hat))
    if not (x.isfinite().all() and x_hat.isfinite().all()):
        raise ValueError("`x` and `x_hat` must be finite, got NaN or inf.")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"`x` must lie in [0, 1], got {x.min():.4g} to {x.max():.4g}; rescale the images.")
    return x, x_hat


def _feature_pair(f: ArrayLike, g: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    f, g = np.asarray(f, dtype=np.float64), np.asarray(g, dtype=np.float64)
    if f.ndim != 2 or g.ndim != 2 or f.shape[1] != g.shape[1] or min(len(f), len(g)) < 2:
        raise ValueError(f"`f` and `g` must be (N, d) and (M, d), N and M > 1, got {f.shape} and {g.shape}.")
    if not (np.isfinite(f).all() and np.isfinite(g).all()):
        raise ValueError("`f` and `g` must be finite, got NaN or inf.")
    return f, g


def _levels(x: Tensor, features: Features) -> Sequence[Tensor]:
    return features(x.flatten(0, 1)[:, None])  # every frame is an image (B * C, 1, H, W)


def _unit(f: Tensor) -> Tensor:
    return f * (f.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences down and across, cropped alike (central ones are blind to the finest stripes)."""
    return torch.diff(x, dim=2)[..., :-1], torch.diff(x, dim=3)[..., :-1, :]


def _spectrum(x: Tensor) -> Tensor:
    """Fourier coefficients (B, C, H, W // 2 + 1) of the images less their mean, borders faded out."""
    rows, columns = (torch.hann_window(n, dtype=x.dtype, device=x.device) for n in x.shape[2:])
    window = torch.outer(rows, columns)
    return torch.fft.rfft2((x - x.mean(dim=(2, 3), keepdim=True)) * window) / window.square().sum().sqrt()


def _frequency(x: Tensor) -> Tensor:
    """Radial frequency of each coefficient of `_spectrum` in cycles/pixel, (H, W // 2 + 1)."""
    return torch.hypot(torch.fft.fftfreq(x.shape[2])[:, None], torch.fft.rfftfreq(x.shape[3])[None]).to(x)


def _half_plane(x: Tensor) -> Tensor:
    """How many coefficients of the full plane a column of `_spectrum` stands for, 1 or 2: (1, W // 2 + 1)."""
    column = torch.arange(x.shape[3] // 2 + 1, device=x.device)
    return torch.where((column == 0) | (2 * column == x.shape[3]), 1.0, 2.0).to(x)[None]
