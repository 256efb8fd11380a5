r"""The terms of a hierarchy's objective, how its layers are weighed while it trains, and the loss of its lesion head."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medvae_lite.losses import Terms

__all__ = ["BALANCES", "HVAETerms", "anneal", "balance", "lesion_loss"]

BALANCES = ("per_dim", "times_size", "none")


@dataclass(frozen=True)
class HVAETerms(Terms):
    r"""The objective of Hu et al. 2022, table 3, in nats per image.

    .. math:: -\mathbb{E}_q \log p(x \mid z) + \beta \sum_l \gamma_l\, \mathrm{KL}_l + \beta\, \lambda_+ \sum_{l \ge 1} X_l
        + \lambda_{seg}\, L_{seg}

    Arguments:
        nll: :math:`-\log p(x \mid z)`, all constants included.
        kl: One column a layer, with shape (B, L + 1).
        extra: NVMP+'s :math:`X_l`, with shape (B, L + 1); zeros elsewhere.
        lesion: The segmentation loss.
        gamma: Weight of every layer's KL.
    """

    nll: Float[Tensor, "b"]
    kl: Float[Tensor, "b l"]
    extra: Float[Tensor, "b l"]
    lesion: Float[Tensor, "b"]
    gamma: Float[Tensor, "l"]
    beta: float = field(default=1.0)
    extra_weight: float = field(default=0.0)
    lesion_weight: float = field(default=0.0)

    def total(self) -> Float[Tensor, "b"]:
        rate = (self.gamma * self.kl).sum(1) + self.extra_weight * self.extra.sum(1)
        return self.nll + self.beta * rate + self.lesion_weight * self.lesion

    def means(self) -> dict[str, Tensor]:
        named = {"total": self.total(), "recon": self.nll, "kl": self.kl.sum(1)}
        named |= {f"kl_{layer}": column for layer, column in enumerate(self.kl.T)}
        if self.extra_weight:
            named |= {f"extra_{layer}": column for layer, column in enumerate(self.extra.T) if layer}
        if self.lesion_weight:
            named["lesion"] = self.lesion
        return {name: value.detach().mean() for name, value in named.items()}


def anneal(step: int, *, cycle: int, ramp: float, start: float = 2e-7) -> float:
    r""":math:`\beta` of a step: from `start` linearly to 1 over the first part `ramp` of every cycle, then 1.

    Source: Fu et al. 2019, equation 6; Hu et al. 2022, appendix B: a cycle of 10,000 steps from 2e-7.
    """
    return max(start, min(1.0, (step % cycle) / max(1e-9, ramp * cycle))) if cycle else 1.0


def balance(kl: Float[Tensor, "b l"], dims: Float[Tensor, "l"], mode: str) -> Float[Tensor, "l"]:
    r"""Weights :math:`\gamma_l` of the layers' KL, one on average, no gradient.

    "per_dim" is what NVAE's code does, :math:`\gamma_l \propto |\mathrm{KL}_l| / D_l`; "times_size" what Hu et al. 2022 write in
    appendix B, :math:`\gamma_l \propto |\mathrm{KL}_l| \cdot D_l`. They pull in opposite directions: the second
    makes the finest, largest layer dear, and so pushes information up. A mixture's KL may be negative for a batch: hence the absolute value.
    """
    if mode == "none":
        return torch.ones_like(dims)
    size = kl.detach().mean(0).abs() + 0.01
    weight = size / dims if mode == "per_dim" else size * dims
    return len(dims) * weight / weight.sum()


def lesion_loss(logits: Float[Tensor, "b 1 h w"], fraction: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b"]:
    """Binary cross-entropy summed over pixels, and 100 times one minus the soft Dice, with shape (B,).

    The paper does not print its loss. Sums, because the reconstruction it stands beside is a sum.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, fraction, reduction="none").flatten(1).sum(1)
    p, t = torch.sigmoid(logits).flatten(1), fraction.flatten(1)
    dice = (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return entropy + 100 * (1 - dice)
