r"""How hard the encoder of an introspective VAE should push generated images away, worked out before training.

The encoder's loss (Di Folco et al. 2024, equation 6) holds two terms in the KL :math:`K_f` of a generated image. With
the repulsion :math:`r = 2 s \beta_{neg}`, a nat more of it saves :math:`\tfrac r2 e^{-r K_f}`: the push. It also costs
:math:`\kappa` nats on real images, at a price of :math:`s \beta_{kl}` each: the pull. Where the two are equal,

.. math:: K_f^* = \frac1r \ln \frac{r}{2 \kappa s \beta_{kl}} = \frac1r \ln \frac{\beta_{neg}}{\kappa \beta_{kl}} .

Throughout, `values` is :math:`1 / s`, the number of values of an image, and KLs are in nats per image. Everything takes
numbers or arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["REACH", "exchange_rate", "settled_kl", "slope", "suggested_repulsion"]

Numbers = float | int | ArrayLike
"""A number, or an array of them; answers have their shape."""

REACH = 4.0
"""Repulsion times the rate of the model without adversary: well inside the range of 2 to 8 in which the encoder of the
book's runs tells generated images from real ones and the decoder still reconstructs."""


def slope(beta_neg: Numbers, values: Numbers) -> NDArray | float:
    r"""The repulsion :math:`2 s \beta_{neg}` per nat that a published :math:`\beta_{neg}` means.

    Arguments:
        beta_neg: Weight of the KL of generated images in the exponent.
        values: Values per image :math:`1 / s`: :math:`CHW`, or :math:`HW` where the code leaves the channels out.
    """
    return 2 * _positive("beta_neg", beta_neg) / _positive("values", values)


def settled_kl(
    repulsion: Numbers, *, beta_kl: Numbers, values: Numbers, exchange: Numbers = 1.0
) -> NDArray | float:
    r"""The KL :math:`K_f^*` in nats at which push and pull are equal; 0 where the pull is larger from the start.

    Arguments:
        repulsion: :math:`r`, per nat.
        beta_kl: Weight of the KL of real images.
        values: Values per image, :math:`1 / s`.
        exchange: :math:`\kappa`: nats that a real image pays for one nat more on a generated one. 1 is an encoder that
            cannot tell them apart, 0 one that does so for free.
    """
    r, beta_kl, values = _positive("repulsion", repulsion), _positive("beta_kl", beta_kl), _positive("values", values)
    return np.maximum(np.log(r * values / (2 * _positive("exchange", exchange) * beta_kl)), 0) / r


def exchange_rate(repel: Numbers, repulsion: Numbers, *, beta_kl: Numbers, values: Numbers) -> NDArray | float:
    r"""The :math:`\kappa` at which a run stands in balance: push over pull, both as they were in training.

    Of order one tenth to one where the encoder balances the two; far below where the push has died.

    Arguments:
        repel: Mean of :math:`\tfrac12 e^{-r K_f}` over generated images; the column `encoder_repel` of a run record.
        repulsion, beta_kl, values: As in `settled_kl`.
    """
    r, beta_kl, values = _positive("repulsion", repulsion), _positive("beta_kl", beta_kl), _positive("values", values)
    repel = np.asarray(repel, dtype=float)
    if not ((repel >= 0) & (repel <= 0.5)).all():
        raise ValueError(f"`repel` must lie between 0 and 0.5, got {repel}")
    return r * repel * values / beta_kl


def suggested_repulsion(kl_real: Numbers, *, reach: Numbers = REACH) -> NDArray | float:
    """The repulsion per nat with which to start, from the KL that real images cost without an adversary.

    Arguments:
        kl_real: Nats per image of the same model trained briefly as a plain VAE: same sizes, same `beta_kl`, same
            reconstruction loss. The first epoch's validation KL will do.
        reach: What repulsion times `kl_real` should be.
    """
    return _positive("reach", reach) / _positive("kl_real", kl_real)


def _positive(name: str, values: Numbers) -> NDArray:
    values = np.asarray(values, dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"`{name}` must be positive and finite, got {values}")
    return values
