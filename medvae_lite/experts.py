r"""Products of Gaussian experts: what several sources say together about one latent variable."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medvae_lite.gaussian import Gaussian

__all__ = ["product", "shares"]

LIMIT = 20.0
"""Log-variances beyond this, either way, count as this: a standard deviation of 5e-5 knows everything, one of 2e4 nothing."""


def product(
    mu: Float[Tensor, "m b d"],
    logvar: Float[Tensor, "m b d"],
    available: Bool[Tensor, "m b"] | None = None,
    *,
    prior: bool = True,
) -> Gaussian:
    r"""The joint posterior of experts that are independent given :math:`z`, with shape :math:`(B, D)`.

    .. math::
        q(z \mid X) \propto p(z) \prod_{i \in \text{available}} \tilde q(z \mid x_i), \qquad
        \frac{1}{\sigma^2} = 1 + \sum_i \frac{1}{\sigma_i^2}, \qquad
        \mu = \sigma^2 \sum_i \frac{\mu_i}{\sigma_i^2}

    Source: Kumar et al. 2022 (the poster's derivation), after Wu & Goodman 2018. The leading 1 is the precision of
    the prior :math:`\mathcal{N}(0, I)`, an expert like the others, so that the joint variance is never above 1 and a
    person without any modality gets the prior.

    Arguments:
        mu, logvar: The experts, stacked, with shape :math:`(M, B, D)`.
        available: Which modality each person has, with shape :math:`(M, B)`; all of them when None.
        prior: Whether the prior is one of the experts. Without it everyone needs a modality.
    """
    weights, log_precision = _weights(logvar, available, prior)
    return Gaussian((weights * mu).sum(0), -log_precision)


def shares(
    logvar: Float[Tensor, "m b d"], available: Bool[Tensor, "m b"] | None = None, *, prior: bool = True
) -> Float[Tensor, "m b d"]:
    r"""The say each expert has in the joint mean: its share :math:`\sigma^2 / \sigma_i^2` of the precision, in [0, 1].

    What is missing to 1 is the prior's.
    """
    return _weights(logvar, available, prior)[0]


def _weights(logvar: Tensor, available: Tensor | None, prior: bool) -> tuple[Tensor, Tensor]:
    """Shares of the precision (M, B, D) and the logarithm of the joint precision (B, D)."""
    precision = torch.exp(-logvar.clamp(-LIMIT, LIMIT))
    if available is not None:
        precision = precision * available[..., None]
    joint = precision.sum(0) + float(prior)
    return precision / joint, torch.log(joint)
