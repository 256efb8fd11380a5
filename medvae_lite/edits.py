r"""Editing by layer: take a layer from another image, draw it anew, scale it, and see what the others make of it.

A layer that is *kept* can be kept in two ways. "absolute" keeps the value :math:`z_l`. "residual" keeps how far it lay from what the
layers above expected, :math:`(z_l - \mu_l)/\sigma_l`, and lets the expectation move with them. Where priors do not move (the plain
VAE) both are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medvae_lite.gaussian import Gaussian, sample
from medvae_lite.hvae import HVAE, Latent
from medvae_lite.losses import Step

__all__ = ["decode", "layer_shares", "mix", "resample", "scale"]


def _kept(latent: Latent, p: Gaussian, mode: str) -> Tensor:
    return latent.z if mode == "absolute" else p.mu + p.std * latent.residual


def _check(mode: str, layers: Collection[int], model: HVAE) -> None:
    if mode not in ("absolute", "residual"):
        raise ValueError(f"`mode` must be absolute or residual, got {mode!r}")
    wrong = [layer for layer in layers if not 0 <= layer < len(model.dims)]
    if wrong:
        raise ValueError(f"`layers` must be from 0 to {len(model.dims) - 1}, got {wrong[0]}")


@torch.no_grad()
def decode(model: HVAE, zs: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
    """The image of given latent variables, one tensor (B, D) a layer."""
    return model.descend(len(zs[0]), lambda layer, p, q: zs[layer])[0]


@torch.no_grad()
def mix(model: HVAE, a: Sequence[Latent], b: Sequence[Latent], layers: Collection[int], *, mode: str = "residual") -> Tensor:
    """Images with the latent variables of `a`, but those of `b` in `layers` (style mixing, Hu et al. 2022, figure 4).

    Raises:
        ValueError: If a layer or the mode does not exist.
    """
    _check(mode, layers, model)
    return model.descend(len(a[0].z), lambda layer, p, q: _kept((b if layer in layers else a)[layer], p, mode))[0]


@torch.no_grad()
def resample(model: HVAE, way: Sequence[Latent], layers: Collection[int], step: Step, *, mode: str = "residual") -> Tensor:
    """Images with `layers` drawn from their prior given the layers above, the others kept (figure 3, top row).

    Conditional on what is kept below too, the draw would need a posterior nobody has. What is kept below as it is ("absolute") carries
    the original's own detail; "residual" lets it follow the draw.

    Raises:
        ValueError: If a layer or the mode does not exist.
    """
    _check(mode, layers, model)
    count = len(way[0].z)

    def choose(layer, p, q):
        if layer not in layers:
            return _kept(way[layer], p, mode)
        return sample(p, step.noise(*p.mu.shape)) if layer else model.draw_top(count, step)

    return model.descend(count, choose)[0]


@torch.no_grad()
def scale(model: HVAE, way: Sequence[Latent], layer: int, factor: float, *, mode: str = "absolute") -> Tensor:
    """Images with one layer multiplied (figure 6c): the value itself, or its distance from what was expected."""
    _check(mode, [layer], model)

    def choose(number, p, q):
        kept = _kept(way[number], p, mode)
        if number != layer:
            return kept
        return factor * kept if mode == "absolute" else p.mu + factor * (kept - p.mu)

    return model.descend(len(way[0].z), choose)[0]


@torch.no_grad()
def layer_shares(model: HVAE, step: Step, *, outer: int = 32, inner: int = 8) -> tuple[np.ndarray, np.ndarray]:
    r"""What each layer varies when images are drawn from the prior (figure 6a).

    With :math:`v_n` the pixel variance that is left when :math:`z_{<n}` is fixed, layer n's share is :math:`v_n - v_{n+1}`: by the law of total
    variance they add up to the variance of all images, the decoder adding none.

    Arguments:
        outer, inner: Draws of the fixed layers, and of the others for each.

    Returns:
        Maps of the variance of each layer, (L + 1, H, W), and each layer's share of the total, (L + 1,).
    """
    left = []
    for fixed in range(len(model.dims)):
        tops: dict[int, Tensor] = {}

        def choose(layer, p, q):
            count = outer * inner
            if layer >= fixed:
                return sample(p, step.noise(*p.mu.shape)) if layer else model.draw_top(count, step)
            # One draw a group, shared by its `inner` images; the groups' priors agree within a group.
            noise = step.noise(outer, model.dims[layer]).repeat_interleave(inner, 0)
            tops[layer] = sample(p, noise) if layer else model.draw_top(outer, step).repeat_interleave(inner, 0)
            return tops[layer]

        images = model.descend(outer * inner, choose)[0][:, 0].unflatten(0, (outer, inner)).double()
        # With nothing fixed all images are one group, and the group means vary too.
        variance = images.flatten(0, 1).var(0) if fixed == 0 else images.var(1).mean(0)
        left.append(variance.cpu().numpy())
    maps = -np.diff(np.stack([*left, np.zeros_like(left[0])]), axis=0)
    return maps, maps.sum((1, 2)) / maps.sum()
