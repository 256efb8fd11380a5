r"""The models of Di Folco et al. 2024: :math:`\beta`-VAE, Attri-VAE, SIVAE and AR-SIVAE.

Two classes hold the four of them, because two of them are the other two with the attribute term switched off:

=============  ==========================  ================================
class          :math:`\gamma_{reg} > 0`    :math:`\gamma_{reg} = 0`
=============  ==========================  ================================
`AttriVAE`     Attri-VAE (equation 3)      :math:`\beta`-VAE
`ARSIVAE`      AR-SIVAE (equations 6-7)    soft-introspective VAE (SIVAE)
=============  ==========================  ================================

Equation numbers are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medvae_lite.gaussian import Gaussian, kl_to_standard, sample
from medvae_lite.losses import (
    Step,
    Terms,
    Update,
    attribute_loss,
    perceptual,
    soft_exponential,
    squared_error,
)
from medvae_lite.nets import Decoder, Encoder

__all__ = ["AttriVAE", "ARSIVAE", "ELBOTerms", "EncoderTerms", "DecoderTerms"]


@dataclass(frozen=True)
class ELBOTerms(Terms):
    r"""Equation 3: :math:`\mathcal{L} = \mathcal{L}_r(x) + \beta \mathcal{L}_{KL}(x) + \gamma_{reg} \mathcal{L}_{attr}`."""

    recon: Float[Tensor, "b"]
    kl: Float[Tensor, "b"]
    attribute: Float[Tensor, "b"]
    beta: float
    gamma_reg: float

    def total(self) -> Float[Tensor, "b"]:
        return self.recon + self.beta * self.kl + self.gamma_reg * self.attribute


@dataclass(frozen=True)
class EncoderTerms(Terms):
    r"""Equation 6, what the encoder minimises.

    .. math::
        \mathcal{L}_{E} = \gamma_{reg} \mathcal{L}_{attr}
        + s\,(\beta_{rec} \mathcal{L}_r(x) + \beta_{kl} \mathcal{L}_{KL}(x))
        + \tfrac12 \exp\!\big(\!-2 s\,(\beta_{rec} \mathcal{L}_r(D(z)) + \beta_{neg} \mathcal{L}_{KL}(D(z)))\big)

    `repel` is the last term, averaged over two sources of generated images (decoded posterior and prior codes),
    as in the public code; the equation prints one. `kl_fake` is logged, not minimised here.
    """

    recon: Float[Tensor, "b"]
    kl: Float[Tensor, "b"]
    attribute: Float[Tensor, "b"]
    repel: Float[Tensor, "b"]
    kl_fake: Float[Tensor, "b"]
    gamma_reg: float
    scale: float
    beta_rec: float
    beta_kl: float

    def total(self) -> Float[Tensor, "b"]:
        elbo = self.scale * (self.beta_rec * self.recon + self.beta_kl * self.kl)
        return self.gamma_reg * self.attribute + elbo + self.repel


@dataclass(frozen=True)
class DecoderTerms(Terms):
    r"""Equation 7, what the decoder minimises.

    .. math::
        \mathcal{L}_{D} = s\, \beta_{rec} \mathcal{L}_r(x)
        + s\,(\eta\, \beta_{rec} \mathcal{L}_r(D(z)) + \beta_{kl} \mathcal{L}_{KL}(D(z)))
    """

    recon: Float[Tensor, "b"]
    kl_fake: Float[Tensor, "b"]
    recon_fake: Float[Tensor, "b"]
    scale: float
    beta_rec: float
    beta_kl: float
    eta: float

    def total(self) -> Float[Tensor, "b"]:
        fake = self.eta * self.beta_rec * self.recon_fake + self.beta_kl * self.kl_fake
        return self.scale * (self.beta_rec * self.recon + fake)


class AttriVAE(nn.Module):
    r"""Variational autoencoder whose first latent dimensions follow given attributes.

    Arguments:
        channels: Image channels :math:`C`.
        size: Image height and width :math:`S` in pixels.
        latent_dim: Latent dimensions :math:`D`.
        attributes: Number of regularised attributes :math:`K`; attribute `k` owns latent dimension `k`.
        beta_kl: :math:`\beta`, nats of reconstruction paid for a nat of KL.
        gamma_reg: :math:`\gamma_{reg}`, weight of the attribute term; 0 gives the :math:`\beta`-VAE.
        delta: :math:`\delta` of equation 2.
        alpha_pl: :math:`\alpha_{pl}`, weight of the perceptual part of :math:`\mathcal{L}_r`; 0 leaves it out.
        features: The frozen feature network; needed when `alpha_pl` is not 0, never part of the weights.
        widths: Feature channels per level, full resolution first.

    Raises:
        ValueError: If `alpha_pl` is set without `features`, or there are more attributes than dimensions.
    """

    def __init__(
        self,
        *,
        channels: int = 2,
        size: int = 64,
        latent_dim: int = 64,
        attributes: int = 6,
        beta_kl: float = 0.5,
        gamma_reg: float = 0.0,
        delta: float = 5.0,
        alpha_pl: float = 0.0,
        features: nn.Module | None = None,
        widths: tuple[int, ...] | None = None,
    ):
        super().__init__()
        if alpha_pl and features is None:
            raise ValueError(f"`alpha_pl` = {alpha_pl} needs a feature network: pass `features`, or set it to 0")
        if attributes > latent_dim:
            raise ValueError(f"`latent_dim` = {latent_dim} cannot hold {attributes} attributes, one a dimension")
        self.config = {
            "channels": channels, "size": size, "latent_dim": latent_dim, "attributes": attributes,
            "beta_kl": beta_kl, "gamma_reg": gamma_reg, "delta": delta, "alpha_pl": alpha_pl,
        }  # fmt: skip
        self.config |= {"widths": list(widths)} if widths else {}
        self.latent_dim, self.attributes = latent_dim, attributes
        self.beta_kl, self.gamma_reg, self.delta, self.alpha_pl = beta_kl, gamma_reg, delta, alpha_pl
        shape = {"channels": channels, "size": size, "latent_dim": latent_dim, "widths": widths}
        self.encoder, self.decoder = Encoder(**shape), Decoder(**shape)
        # Kept out of the module tree: frozen, shared between models, saved in a run of its own.
        self.__dict__["feature_net"] = features.eval().requires_grad_(False) if features is not None else None

    def _apply(self, fn, recurse: bool = True):
        if self.feature_net is not None:
            self.feature_net._apply(fn)
        return super()._apply(fn, recurse)

    def encode(self, x: Float[Tensor, "b c s s"]) -> Gaussian:
        """The posterior q(z | x) of images (B, C, S, S): mean and log-variance of shape (B, D)."""
        return Gaussian(*self.encoder(x))

    def decode(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c s s"]:
        """Images (B, C, S, S) in [0, 1] from codes (B, D)."""
        return self.decoder(z)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n c s s"]:
        """Decodes `n` draws from the prior N(0, I)."""
        z = torch.randn(n, self.latent_dim, generator=generator)
        return self.decode(z.to(self.decoder.stem.weight))

    def traverse(
        self, z: Float[Tensor, "d"], dim: int, values: Float[Tensor, "v"]
    ) -> Float[Tensor, "v c s s"]:
        """Decodes the code `z` (D,) with dimension `dim` set to each of `values` (V,) in turn."""
        codes = z.repeat(len(values), 1)
        codes[:, dim] = values.to(codes)
        return self.decode(codes)

    def reconstruction_loss(
        self, x: Float[Tensor, "b c s s"], x_hat: Float[Tensor, "b c s s"]
    ) -> Float[Tensor, "b"]:
        r""":math:`\mathcal{L}_r`: squared error plus :math:`\alpha_{pl}` times the perceptual error, in nats."""
        recon = squared_error(x, x_hat)
        if self.alpha_pl:
            recon = recon + self.alpha_pl * perceptual(x, x_hat, self.feature_net.features)
        return recon

    def attribute_terms(
        self, z: Float[Tensor, "b d"], a: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b"]:
        r""":math:`\mathcal{L}_{attr}`: equation 2 summed over the attributes; zeros when it is switched off."""
        if not self.gamma_reg:
            return z.new_zeros(len(z))
        k = self.attributes
        return attribute_loss(z[:, :k], a[:, :k], delta=self.delta).sum(1)

    def elbo(self, batch, step: Step) -> ELBOTerms:
        """Equation 3 on a batch: what `AttriVAE` trains on, and what every model here is validated on."""
        q = self.encode(batch.image)
        z = sample(q, step.noise(*q.mu.shape))
        return ELBOTerms(
            recon=self.reconstruction_loss(batch.image, self.decode(z)),
            kl=kl_to_standard(q),
            attribute=self.attribute_terms(z, batch.attributes),
            beta=self.beta_kl,
            gamma_reg=self.gamma_reg,
        )

    def updates(self) -> tuple[Update, ...]:
        """One update: encoder and decoder descend on equation 3 together."""
        return (Update("vae", [*self.encoder.parameters(), *self.decoder.parameters()], self.elbo),)


class ARSIVAE(AttriVAE):
    r"""Attribute-regularised soft-introspective VAE: the encoder is the decoder's critic.

    A step has two updates. The encoder learns to give real images a small KL and generated ones a large one
    (equation 6); the decoder learns to reconstruct and to generate what the encoder gives a small KL (equation 7).

    Arguments:
        beta_rec: :math:`\beta_{rec}`.
        beta_kl: :math:`\beta_{kl}`.
        gamma_reg: :math:`\gamma_{reg}`; it stands outside the scale :math:`s`, so that it compares with an
            `AttriVAE` of weight :math:`\gamma_{reg} / s`. 0 gives the SIVAE.
        repulsion: The exponent's slope :math:`2 s \beta_{neg}` per nat of KL. The encoder stops repelling once
            generated images cost a few times :math:`1 /` `repulsion` nats. A number without units, unlike
            :math:`\beta_{neg}`, which means something else at every image size; the paper's settings give 0.125.
        eta: :math:`\eta`, weight of generated images' reconstruction in equation 7. The paper's :math:`10^{-8}`
            changes nothing, so 0 saves the passes.
        fake_recon: Whether :math:`\mathcal{L}_r(D(z))` enters the exponent of equation 6. With :math:`s` one over
            the number of pixels it is a few hundredths beside a KL part of several units, at two decoder passes.

    Other arguments, and `ValueError`, as in `AttriVAE`.
    """

    def __init__(
        self,
        *,
        beta_rec: float = 1.0,
        beta_kl: float = 1.0,
        gamma_reg: float = 0.0,
        repulsion: float = 0.125,
        eta: float = 0.0,
        fake_recon: bool = False,
        **kwargs,
    ):
        super().__init__(beta_kl=beta_kl, gamma_reg=gamma_reg, **kwargs)
        self.config |= {"beta_rec": beta_rec, "repulsion": repulsion, "eta": eta, "fake_recon": fake_recon}
        self.beta_rec, self.eta, self.fake_recon = beta_rec, eta, fake_recon
        self.scale = 1 / (self.config["channels"] * self.config["size"] ** 2)  # s: one over the image's values
        self.beta_neg = repulsion / (2 * self.scale)

    def encoder_loss(self, batch, step: Step) -> EncoderTerms:
        """Equation 6. The decoder is frozen; generated images come in detached, as data."""
        x, size = batch.image, (len(batch.image), self.latent_dim)
        noise, z_prior, noise_fake = step.noise(*size), step.noise(*size), step.noise(2 * size[0], size[1])
        q = self.encode(x)
        z = sample(q, noise)
        x_hat = self.decode(z)
        with torch.no_grad():
            fakes = torch.cat([x_hat, self.decode(z_prior)])  # D(z): decoded posterior and prior codes, (2B, ...)
        q_fake = self.encode(fakes)
        kl_fake = kl_to_standard(q_fake)
        energy = self.beta_neg * kl_fake
        if self.fake_recon:
            energy = energy + self.beta_rec * self.reconstruction_loss(fakes, self.decode(sample(q_fake, noise_fake)))
        step.carry |= {"z": z.detach(), "z_prior": z_prior, "noise_fake": noise_fake}
        return EncoderTerms(
            recon=self.reconstruction_loss(x, x_hat),
            kl=kl_to_standard(q),
            attribute=self.attribute_terms(z, batch.attributes),
            repel=_mean_of_halves(soft_exponential(self.scale * energy)),
            kl_fake=_mean_of_halves(kl_fake),
            gamma_reg=self.gamma_reg,
            scale=self.scale,
            beta_rec=self.beta_rec,
            beta_kl=self.beta_kl,
        )

    def decoder_loss(self, batch, step: Step) -> DecoderTerms:
        """Equation 7, on the codes the encoder's update drew. The encoder is frozen, already updated."""
        x = batch.image
        fakes = self.decode(torch.cat([step.carry["z"], step.carry["z_prior"]]))
        q_fake = self.encode(fakes)
        recon_fake = torch.zeros_like(q_fake.mu[:, 0])
        if self.eta:
            z_fake = sample(q_fake, step.carry["noise_fake"]).detach()
            recon_fake = self.reconstruction_loss(fakes.detach(), self.decode(z_fake))
        return DecoderTerms(
            recon=self.reconstruction_loss(x, fakes[: len(x)]),
            kl_fake=_mean_of_halves(kl_to_standard(q_fake)),
            recon_fake=_mean_of_halves(recon_fake),
            scale=self.scale,
            beta_rec=self.beta_rec,
            beta_kl=self.beta_kl,
            eta=self.eta,
        )

    def updates(self) -> tuple[Update, ...]:
        """Two updates, in the paper's order: the encoder's, then the decoder's."""
        return (
            Update("encoder", list(self.encoder.parameters()), self.encoder_loss),
            Update("decoder", list(self.decoder.parameters()), self.decoder_loss),
        )


def _mean_of_halves(value: Float[Tensor, "b2"]) -> Float[Tensor, "b"]:
    """Averages the decoded-posterior half and the decoded-prior half of a (2B,) term."""
    return value.unflatten(0, (2, -1)).mean(0)
