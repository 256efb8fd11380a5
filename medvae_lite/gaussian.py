r"""Algebra of diagonal Gaussians: everything a VAE needs to know about :math:`q(z \mid x)`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Gaussian", "sample", "log_prob", "kl", "kl_to_standard"]


class Gaussian(NamedTuple):
    r"""A diagonal Gaussian :math:`\mathcal{N}(\mu, \mathrm{diag}(\sigma^2))`.

    Arguments:
        mu: The mean, with shape :math:`(B, D)`.
        logvar: The logarithm of the variance, :math:`\log \sigma^2`, with shape :math:`(B, D)`.
    """

    mu: Float[Tensor, "b d"]
    logvar: Float[Tensor, "b d"]

    @property
    def std(self) -> Float[Tensor, "b d"]:
        return torch.exp(0.5 * self.logvar)


def sample(q: Gaussian, noise: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    r"""Reparameterised draw :math:`z = \mu + \sigma \odot \epsilon` (Kingma & Welling 2014, eq. 4).

    The noise comes in from outside, so that a step can be replayed and two losses can share a draw.
    """
    return q.mu + q.std * noise


def log_prob(q: Gaussian, z: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    r"""Log-density :math:`\log \mathcal{N}(z; \mu, \sigma^2)` in nats, with shape :math:`(B,)`."""
    squared = (z - q.mu).square() * torch.exp(-q.logvar)
    return -0.5 * (squared + q.logvar + math.log(2 * math.pi)).sum(-1)


def kl(q: Gaussian, p: Gaussian) -> Float[Tensor, "b"]:
    r"""Kullback-Leibler divergence between two diagonal Gaussians, in nats, with shape :math:`(B,)`.

    .. math:: \mathrm{KL}(q \| p) = \tfrac12 \sum_d \Big[ \frac{(\mu_q - \mu_p)^2 + \sigma_q^2}{\sigma_p^2}
        - 1 - \log \frac{\sigma_q^2}{\sigma_p^2} \Big]
    """
    ratio = torch.exp(q.logvar - p.logvar)
    shift = (q.mu - p.mu).square() * torch.exp(-p.logvar)
    return 0.5 * (shift + ratio - 1 - (q.logvar - p.logvar)).sum(-1)


def kl_to_standard(q: Gaussian) -> Float[Tensor, "b"]:
    r"""Divergence from the prior :math:`\mathcal{N}(0, I)`, in nats, with shape :math:`(B,)`.

    .. math:: \mathcal{L}_{KL} = -\tfrac12 \sum_d \big[ 1 + \log \sigma_d^2 - \mu_d^2 - \sigma_d^2 \big]

    Source: Kingma & Welling 2014, appendix B.
    """
    return -0.5 * (1 + q.logvar - q.mu.square() - torch.exp(q.logvar)).sum(-1)
