r"""The multimodal VAE of Kumar et al. 2022: an encoder and a decoder per modality, joined by a product of experts.

One modality alone, or all of them as one, are the same class with one entry in `sizes`: the paper's unimodal baselines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medvae_lite.experts import product
from medvae_lite.gaussian import Gaussian, kl_to_standard, sample
from medvae_lite.losses import Step, Terms, Update

__all__ = ["Bank", "PoETerms", "PoEVAE"]


class Bank(nn.Module):
    """Several perceptrons of one shape side by side, each on its own input: one matrix product does for all.

    Arguments:
        count: How many, M.
        widths: Units of each layer, inputs first.
        fan_in: Inputs each of them really has, the rest being zero; scales its first weights.
    """

    def __init__(self, count: int, widths: Sequence[int], fan_in: Sequence[int] | None = None):
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
            real = fan_in if fan_in and not layer else [inputs] * count
            # The bounds of `nn.Linear`.
            bound = torch.tensor([1 / math.sqrt(n) for n in real])[:, None, None]
            self.weights.append(nn.Parameter((2 * torch.rand(count, inputs, outputs) - 1) * bound))
            self.biases.append(nn.Parameter((2 * torch.rand(count, 1, outputs) - 1) * bound))

    def forward(self, h: Float[Tensor, "m b i"]) -> Float[Tensor, "m b o"]:
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(bias, h, weight)
            h = torch.relu(h) if layer < last else h
        return h


@dataclass(frozen=True)
class PoETerms(Terms):
    r"""The negative ELBO of Kumar et al. 2022 in nats per person.

    .. math:: -\mathrm{ELBO}(X) = -\mathbb{E}_{q(z \mid X)} \Big[\sum_{x_i \in X} \lambda_i \log p_\theta(x_i \mid z)\Big]
        + \beta\, \mathrm{KL}\big(q_\phi(z \mid X) \,\|\, p(z)\big)
    """

    recon: Float[Tensor, "b"]
    kl: Float[Tensor, "b"]
    beta: float = field(default=1.0)

    def total(self) -> Float[Tensor, "b"]:
        return self.recon + self.beta * self.kl


class PoEVAE(nn.Module):
    r"""Product-of-experts VAE of region tables, conditioned on covariates.

    Arguments:
        sizes: Regions :math:`d_i` of each modality, by name, in the order of the columns.
        covariates: Columns of the covariate design, which encoders and decoders both see.
        latent_dim: Latent dimensions :math:`D`.
        hidden: Hidden units of the encoders; the decoders have them reversed.
        beta: Weight :math:`\beta` of the KL.
        lambdas: Weight :math:`\lambda_i` of each modality's reconstruction; 1 when not named.
        drop: Probability that a person's modalities are thinned in a training step: at least one is kept and at least
            one hidden from the encoder, while all of them are still to be reconstructed. Any posterior gives a lower
            bound on the same evidence, so this stays an ELBO.
        likelihood: "learned" is a Gaussian with one variance per region, learned. "published" is the squared error
            of a sigmoid, :math:`\sum (x - \hat x)^2`, which is a Gaussian of variance 1/2.
        prior_expert: Whether the prior is one of the experts.
        warmup: Training steps over which beta rises from 0. Without it most latent dimensions are switched off before the
            decoders have learned to use them, and never come back.
    """

    def __init__(
        self,
        *,
        sizes: Mapping[str, int],
        covariates: int,
        latent_dim: int = 12,
        hidden: Sequence[int] = (64, 32),
        beta: float = 1.0,
        lambdas: Mapping[str, float] | None = None,
        drop: float = 0.5,
        likelihood: Literal["learned", "published"] = "learned",
        prior_expert: bool = True,
        warmup: int = 500,
    ):
        super().__init__()
        lambdas = {name: 1.0 for name in sizes} | dict(lambdas or {})
        if set(lambdas) != set(sizes):
            raise ValueError(f"`lambdas` must name modalities among {', '.join(sizes)}, got {', '.join(lambdas)}")
        if not 0 <= drop <= 1:
            raise ValueError(f"`drop` must be a probability, got {drop}")
        if likelihood not in ("learned", "published"):
            raise ValueError(f"`likelihood` must be one of learned, published, got {likelihood!r}")
        self.config = {
            "sizes": dict(sizes), "covariates": covariates, "latent_dim": latent_dim, "hidden": list(hidden), "beta": beta,
            "lambdas": lambdas, "drop": drop, "likelihood": likelihood, "prior_expert": prior_expert,
            "warmup": warmup,
        }  # fmt: skip
        self.sizes, self.latent_dim, self.beta, self.drop = dict(sizes), latent_dim, beta, drop
        self.likelihood, self.prior_expert, self.warmup = likelihood, prior_expert, warmup
        counts, widest = list(sizes.values()), max(sizes.values())
        self.encoder = Bank(len(counts), [widest + covariates, *hidden, 2 * latent_dim], [n + covariates for n in counts])
        self.decoder = Bank(len(counts), [latent_dim + covariates, *reversed(hidden), widest])
        self.logvar_x = nn.Parameter(torch.full((len(counts), 1, widest), -1.0), requires_grad=likelihood == "learned")
        # A table (B, F) and the same padded to the widest modality (M, B, widest): where each column goes.
        modality = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        column = torch.cat([torch.arange(n) for n in counts])
        weight = torch.tensor([lambdas[name] for name in sizes])[:, None, None].expand(-1, 1, widest)
        inside = torch.arange(widest) < torch.tensor(counts)[:, None, None]
        subsets = torch.tensor(list(itertools.product((False, True), repeat=len(counts)))[1:-1] or [(True,)]).T
        tensors = {"modality": modality, "column": column, "weight": weight * inside, "subsets": subsets}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def pad(self, table: Float[Tensor, "b f"]) -> Float[Tensor, "m b widest"]:
        """One slice a modality, zeros behind its last region."""
        padded = table.new_zeros(len(self.sizes), len(table), self.weight.shape[2])
        for slab, part in zip(padded, table.split(list(self.sizes.values()), 1)):
            slab[:, : part.shape[1]] = part
        return padded

    def flat(self, padded: Float[Tensor, "m b widest"]) -> Float[Tensor, "b f"]:
        """The way back from `pad`."""
        return padded[self.modality, :, self.column].T

    def experts(self, x: Float[Tensor, "b f"], c: Float[Tensor, "b c"]) -> tuple[Float[Tensor, "m b d"], Float[Tensor, "m b d"]]:
        """Mean and log-variance of what each modality says alone; x is 0 where it was not measured."""
        return self._experts(self.pad(x), c)

    def _experts(self, padded: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(torch.cat([padded, c.expand(len(self.sizes), -1, -1)], 2)).chunk(2, 2)
        return mu, logvar

    def encode(self, x: Float[Tensor, "b f"], c: Float[Tensor, "b c"], available: Bool[Tensor, "m b"]) -> Gaussian:
        """The joint posterior :math:`q(z | X)` from the modalities that are available, with shape (B, D)."""
        return product(*self.experts(x, c), available, prior=self.prior_expert)

    def decode(self, z: Float[Tensor, "b d"], c: Float[Tensor, "b c"]) -> Float[Tensor, "b f"]:
        r"""Means :math:`\hat x` of every region of every modality, in the scale of the input."""
        return self.flat(self._decode(z, c))

    def _decode(self, z: Tensor, c: Tensor) -> Tensor:
        x_hat = self.decoder(torch.cat([z, c], 1).expand(len(self.sizes), -1, -1))
        return torch.sigmoid(x_hat) if self.likelihood == "published" else x_hat

    def available(self, observed: Float[Tensor, "b f"]) -> Bool[Tensor, "m b"]:
        """Which modalities a person has, from which regions were measured."""
        return self.pad(observed)[:, :, 0] > 0

    def thinned(self, available: Bool[Tensor, "m b"], step: Step) -> Bool[Tensor, "m b"]:
        """Hides modalities from the encoder: for a share `drop` of the people only a random subset is left."""
        if not self.drop or len(self.sizes) < 2:
            return available
        chance, which = step.draw(torch.rand, 2, available.shape[1], rows=1)
        fewer = available & self.subsets[:, (which * self.subsets.shape[1]).long()]
        return torch.where((chance < self.drop) & fewer.any(0), fewer, available)

    def elbo(self, batch, step: Step) -> PoETerms:
        """The terms of one batch of a region table: `image` holds regions, `labels` which of them were measured."""
        return self._terms(batch, step, self.beta, lambda available: available)

    def training_loss(self, batch, step: Step) -> PoETerms:
        """The same, with modalities thinned and beta still rising."""
        beta = self.beta * min(1.0, (step.number + 1) / max(1, self.warmup))
        return self._terms(batch, step, beta, lambda available: self.thinned(available, step))

    def _terms(self, batch, step: Step, beta: float, given: Callable[[Tensor], Tensor]) -> PoETerms:
        x, observed, c = self.pad(batch.image.flatten(1)), self.pad(batch.labels.flatten(1).float()), batch.attributes
        q = product(*self._experts(x, c), given(observed[:, :, 0] > 0), prior=self.prior_expert)
        nll = self._nll(x, self._decode(sample(q, step.noise(*q.mu.shape)), c)) * (observed * self.weight)
        return PoETerms(nll.sum((0, 2)), kl_to_standard(q), beta)

    def nll(self, x: Float[Tensor, "b f"], x_hat: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        r""":math:`-\log p(x \mid z)` of every region in nats, up to a constant."""
        return self.flat(self._nll(self.pad(x), self.pad(x_hat)))

    def _nll(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if self.likelihood == "published":
            return (x - x_hat).square()
        return 0.5 * ((x - x_hat).square() * torch.exp(-self.logvar_x) + self.logvar_x)

    def updates(self) -> tuple[Update, ...]:
        return (Update("elbo", [p for p in self.parameters() if p.requires_grad], self.training_loss),)
