r"""The terms of the objectives, one function per symbol, one value per sample, nothing reduced or weighted.

Every term is in nats per image unless its docstring says otherwise; the caller weights, adds and averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Step", "Terms", "Update", "squared_error", "attribute_loss", "feature_maps", "perceptual", "soft_exponential"]

Features = Callable[[Tensor], Sequence[Tensor]]
"""Maps single-channel images (B, 1, H, W) to feature maps [(B, C_l, H_l, W_l), ...]."""


@dataclass(frozen=True)
class Terms:
    """The named terms of one loss, each of shape (B,); a subclass weights them in `total`, as its equation does."""

    def total(self) -> Float[Tensor, "b"]:
        raise NotImplementedError

    def means(self) -> dict[str, Tensor]:
        """Batch means of `total` and of every term, detached, for the log."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        terms = {name: value.detach().mean() for name, value in named.items() if isinstance(value, Tensor)}
        return {"total": self.total().detach().mean(), **terms}


@dataclass
class Step:
    """One training step as a model sees it, or a part's share in it.

    A batch is divided among processes, or where it does not fit into memory: part p of P holds its rows p, p + P, p + 2P and
    so on. Noise is drawn for the whole batch, and each part takes its rows of it; with `whole`, for the terms that compare
    rows, all parts together compute what one process would.

    Arguments:
        generator: Source of the step's noise, seeded by (seed, step), so that a resumed run draws the same.
        device: Where the noise is wanted.
        number: Steps taken before this one.
        carry: What one update leaves for the next update of the same step (the codes it sampled, say).
        part, parts: Which part this is, of how many.
        gather: Stacks every part's rows of a tensor, in any order of parts.
    """

    generator: torch.Generator
    device: torch.device
    number: int = 0
    carry: dict[str, Any] = field(default_factory=dict)
    part: int = 0
    parts: int = 1
    gather: Callable[[Tensor], Tensor] = lambda rows: rows

    def noise(self, *shape: int) -> Tensor:
        """Standard normal noise of the given shape, rows first."""
        return self.draw(torch.randn, *shape)

    def draw(self, law: Callable[..., Tensor], *shape: int, rows: int = 0) -> Tensor:
        """Random numbers of the given shape by `law` (`torch.randn`, `torch.rand`); `rows` is the dimension of rows."""
        whole = [n * self.parts if dim == rows else n for dim, n in enumerate(shape)]
        drawn = law(*whole, generator=self.generator, device=self.device)
        return drawn.unflatten(rows, (-1, self.parts)).select(rows + 1, self.part) if self.parts > 1 else drawn

    def whole(self, rows: Tensor) -> Tensor:
        """The rows of all parts, in any order, without gradient; `rows` themselves, with theirs, where nothing is divided."""
        return self.gather(rows.detach()) if self.parts > 1 else rows

    def undivided(self) -> Step:
        """The same step for what every part does alike, with the same noise."""
        return replace(self, part=0, parts=1)


@dataclass(frozen=True)
class Update:
    """One optimiser's part of a step: these parameters descend on this loss while all others are frozen."""

    name: str
    parameters: list[nn.Parameter]
    loss: Callable[[Any, Step], Terms]


def squared_error(x: Float[Tensor, "b c h w"], x_hat: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    r"""Reconstruction term :math:`\sum_i (x_i - \hat x_i)^2` over channels and pixels, with shape :math:`(B,)`.

    It is :math:`-\log p(x \mid z)` in nats, up to a constant, for Gaussian pixel noise of variance
    :math:`\sigma_x^2 = 1/2`; another noise level is the same objective with another :math:`\beta`.
    """
    return (x - x_hat).square().flatten(1).sum(1)


def attribute_loss(
    z: Float[Tensor, "b k"], a: Float[Tensor, "b k"], *, delta: float,
    among: tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]] | None = None,
) -> Float[Tensor, "b k"]:  # fmt: skip
    r"""Attribute regularisation: the codes must be ordered as the attributes are.

    .. math::
        L_{k,a} = \frac{1}{B^2} \sum_{i,j} \big| \tanh\big(\delta\, (z_i^k - z_j^k)\big)
        - \mathrm{sgn}\big(a_k(x_i) - a_k(x_j)\big) \big|

    Source: Di Folco et al. 2024, equations 1-2, after Pati & Lerch 2021. The result holds row :math:`i`'s mean
    over :math:`j`, so its mean over the batch is :math:`L_{k,a}`. Dimensionless, between 0 and 2. All
    :math:`B^2` pairs count, the empty diagonal too; tied attributes have sign 0 and draw their codes together.

    Arguments:
        z: The regularised latent dimensions, one per attribute, with shape :math:`(B, K)`.
        a: The attributes, in any unit (only their order counts), with shape :math:`(B, K)`.
        delta: Steepness :math:`\delta > 0`: differences beyond :math:`1/\delta` count as ordered.
        among: Codes and attributes of the whole batch, each with shape :math:`(N, K)`, where `z` and `a` are a part of it.
            The mean over :math:`j` is then over all of it. No gradient flows into these codes: the rows' own is doubled
            instead, which is the same, because a pair costs what the reversed pair costs.
    """
    z_all, a_all = (z, a) if among is None else among
    z = z if among is None else 2 * z - z.detach()  # the value of z, twice its gradient
    d_z = z[:, None] - z_all[None, :]  # (B, N, K)
    d_a = a[:, None] - a_all[None, :]
    return (torch.tanh(delta * d_z) - torch.sign(d_a)).abs().mean(1)


def feature_maps(x: Float[Tensor, "b c h w"], features: Features) -> list[Tensor]:
    """Feature maps of every frame on its own, [(B * C, C_l, H_l, W_l), ...]."""
    b, c, h, w = x.shape
    # One channel is channels-last already; saying so keeps the maps in that layout, which is the faster one.
    return list(features(x.reshape(b * c, 1, h, w).contiguous(memory_format=torch.channels_last)))


def perceptual(
    x: Float[Tensor, "b c h w"], x_hat: Float[Tensor, "b c h w"], features: Features,
    *, target: Sequence[Tensor] | None = None,
) -> Float[Tensor, "b"]:  # fmt: skip
    r"""Feature-space error in the unit of `squared_error`, with shape :math:`(B,)`.

    .. math:: L_{PL} = C H W \cdot \frac{1}{C\,|\ell|} \sum_{c, \ell}
        \mathrm{mean}\Big[\big(\phi_\ell(x_c) - \phi_\ell(\hat x_c)\big)^2\Big]

    Di Folco et al. 2024 add such a term with VGG-19 features to :math:`\mathcal{L}_r`, weighted by
    :math:`\alpha_{pl}`, and do not print it. Here every frame passes on its own through `features`, whose levels
    weigh the same. The factor :math:`CHW` makes :math:`\alpha_{pl}` dimensionless: it then compares a mean
    feature error with a mean pixel error, whatever the size of the image.

    Arguments:
        target: `feature_maps` of `x`, where they have been computed already.
    """
    b, c, h, w = x.shape
    if target is None:
        with torch.no_grad():
            target = feature_maps(x, features)
    error = x.new_zeros(b * c)
    for phi, phi_hat in zip(target, feature_maps(x_hat, features), strict=True):
        error = error + (phi - phi_hat).float().square().flatten(1).mean(1)
    return error.reshape(b, c).mean(1) * (c * h * w) / len(target)


def soft_exponential(energy: Float[Tensor, "b"], *, alpha: float = 2.0) -> Float[Tensor, "b"]:
    r"""The introspective term :math:`\frac{1}{\alpha} \exp(-\alpha\, E)`, dimensionless, in :math:`(0, 1/\alpha]`.

    Source: Daniel & Tamar 2021, equation 4; :math:`E` is the scaled negative ELBO of a generated image. The
    encoder, which minimises it, gains by pushing :math:`E` up, and gains less the higher :math:`E` already is:
    the push ends by itself.
    """
    return torch.exp(-alpha * energy) / alpha
