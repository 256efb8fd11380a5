r"""What a hierarchy of Gaussians needs beyond `gaussian`: residual posteriors, and mixtures as priors.

Latent planes come flattened, :math:`D = C \cdot H \cdot W`. A mixture is given by its components stacked, :math:`(K, D)`, all of one weight.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from medvae_lite.gaussian import Gaussian, kl, log_prob

__all__ = [
    "component_log_prob", "mixture_kl", "mixture_kl_bound", "mixture_log_prob", "residual", "residual_kl", "responsibilities",
    "standard",
]  # fmt: skip


def standard(count: int, dim: int, like: Tensor) -> Gaussian:
    r""":math:`\mathcal{N}(0, I)` for `count` images, on the device of `like`."""
    zero = torch.zeros(count, dim, device=like.device)
    return Gaussian(zero, zero)


def residual(p: Gaussian, delta: Gaussian) -> Gaussian:
    r"""The residual posterior :math:`\mathcal{N}(\mu + \Delta\mu,\, \sigma \cdot \Delta\sigma)`.

    Source: Hu et al. 2022, equation 3a, after Vahdat & Kautz 2020.

    Arguments:
        p: The prior :math:`(\mu, \sigma)`, with shape :math:`(B, D)`.
        delta: :math:`(\Delta\mu, \Delta\sigma)`, with shape :math:`(B, D)`.
    """
    return Gaussian(p.mu + delta.mu, p.logvar + delta.logvar)


def residual_kl(p: Gaussian, delta: Gaussian) -> Float[Tensor, "b"]:
    r"""Divergence of the residual posterior from its prior, in nats, with shape :math:`(B,)`.

    .. math:: \tfrac12 \sum_i \Big[ \frac{(\Delta\mu^i)^2}{(\sigma^i)^2} + (\Delta\sigma^i)^2 - \log (\Delta\sigma^i)^2 - 1 \Big]

    Source: Hu et al. 2022, equation 4, corrected: it prints :math:`\log(\sigma^i)^2`, the prior's, which does not
    vanish when posterior and prior are the same.
    """
    shift = delta.mu.square() * torch.exp(-p.logvar)
    return 0.5 * (shift + torch.exp(delta.logvar) - delta.logvar - 1).sum(-1)


def component_log_prob(components: Gaussian, z: Float[Tensor, "b d"], *, places: int = 1) -> Tensor:
    r"""Log-density of each component, in nats, with shape :math:`(B, K, P)`.

    Arguments:
        components: Stacked, with shape :math:`(K, D)`, or :math:`(B, K, D)` where every image has its own.
        places: :math:`P`, groups of dimensions that choose their component each for themselves: 1 for the whole plane, or
            the number of pixels (channels come first in D).
    """
    z = z[:, None]
    terms = (z - components.mu).square() * torch.exp(-components.logvar) + components.logvar + math.log(2 * math.pi)
    return -0.5 * terms.unflatten(-1, (-1, places)).sum(-2)


def mixture_log_prob(components: Gaussian, z: Float[Tensor, "b d"], *, places: int = 1) -> Float[Tensor, "b"]:
    r"""Log-density of the mixture :math:`\frac1K \sum_k \mathcal{N}(z; \mu_k, \sigma_k)`, in nats, with shape :math:`(B,)`."""
    each = component_log_prob(components, z, places=places)
    return (torch.logsumexp(each, 1) - math.log(each.shape[1])).sum(-1)


def responsibilities(components: Gaussian, z: Float[Tensor, "b d"], *, places: int = 1) -> Tensor:
    """Which component an image belongs to: probabilities with shape (B, K, P), one in sum over K."""
    return torch.softmax(component_log_prob(components, z, places=places), 1)


def mixture_kl(q: Gaussian, components: Gaussian, z: Float[Tensor, "b d"], *, places: int = 1) -> Float[Tensor, "b"]:
    r"""One-sample estimate of :math:`\mathrm{KL}[q \,\|\, \frac1K \sum_k \mathcal{N}_k]`, in nats, with shape :math:`(B,)`.

    .. math:: \log q(z) - \log \frac1K \sum_k \mathcal{N}(z; \mu_k, \sigma_k), \qquad z \sim q

    Both logarithms see the same draw. Taking the exact entropy of :math:`q` for the first is right on average too, but
    noisier: the two logarithms rise and fall together, and their difference does so less. It may be negative for a draw.

    Source: Tomczak & Welling 2018, equation 9; Hu et al. 2022, table 3.
    """
    return log_prob(q, z) - mixture_log_prob(components, z, places=places)


def mixture_kl_bound(q: Gaussian, components: Gaussian) -> Float[Tensor, "b"]:
    r"""Upper bound :math:`-\log \frac1K \sum_k \exp(-\mathrm{KL}[q \| \mathcal{N}_k])` on the divergence from a mixture, in nats.

    Source: Hershey & Olsen 2007, equation 20, for one component on the left.
    """
    count = len(components.mu)
    each = torch.stack([kl(q, Gaussian(m[None], s[None])) for m, s in zip(*components)], 1)  # (B, K)
    return math.log(count) - torch.logsumexp(-each, 1)
