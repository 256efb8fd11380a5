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
    feature_maps,
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

    `repel` is the last term; `kl_fake` is logged, not minimised here. Both have one value per generated image.
    """

    recon: Float[Tensor, "b"]
    kl: Float[Tensor, "b"]
    attribute: Float[Tensor, "b"]
    repel: Float[Tensor, "f"]
    kl_fake: Float[Tensor, "f"]
    gamma_reg: float
    scale: float
    beta_rec: float
    beta_kl: float

    def total(self) -> Float[Tensor, "b"]:
        elbo = self.scale * (self.beta_rec * self.recon + self.beta_kl * self.kl)
        return self.gamma_reg * self.attribute + elbo + self.repel.mean()


@dataclass(frozen=True)
class DecoderTerms(Terms):
    r"""Equation 7, what the decoder minimises.

    .. math::
        \mathcal{L}_{D} = s\, \beta_{rec} \mathcal{L}_r(x)
        + s\,(\eta\, \beta_{rec} \mathcal{L}_r(D(z)) + \beta_{kl} \mathcal{L}_{KL}(D(z)))
    """

    recon: Float[Tensor, "b"]
    kl_fake: Float[Tensor, "f"]
    recon_fake: Float[Tensor, "f"]
    scale: float
    beta_rec: float
    beta_kl: float
    eta: float

    def total(self) -> Float[Tensor, "b"]:
        fake = self.eta * self.beta_rec * self.recon_fake + self.beta_kl * self.kl_fake
        return self.scale * (self.beta_rec * self.recon + fake.mean())


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
        alpha_mse: Weight of the squared error in :math:`\mathcal{L}_r`; :math:`1 / CHW` makes it the mean.
        features: The frozen feature network; needed when `alpha_pl` is not 0, never part of the weights.
        widths: Feature channels per level, full resolution first.
        norm: "group", "frozen" or "batch": see `medvae_lite.nets.norm_layer`.
        bounded: Whether the decoder ends in a sigmoid.

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
        alpha_mse: float = 1.0,
        features: nn.Module | None = None,
        widths: tuple[int, ...] | None = None,
        norm: str = "group",
        bounded: bool = True,
    ):
        super().__init__()
        if alpha_pl and features is None:
            raise ValueError(f"`alpha_pl` = {alpha_pl} needs a feature network: pass `features`, or set it to 0")
        if attributes > latent_dim:
            raise ValueError(f"`latent_dim` = {latent_dim} cannot hold {attributes} attributes, one a dimension")
        self.config = {
            "channels": channels, "size": size, "latent_dim": latent_dim, "attributes": attributes,
            "beta_kl": beta_kl, "gamma_reg": gamma_reg, "delta": delta, "alpha_pl": alpha_pl, "alpha_mse": alpha_mse,
            "norm": norm, "bounded": bounded,
        }  # fmt: skip
        self.config |= {"widths": list(widths)} if widths else {}
        self.latent_dim, self.attributes = latent_dim, attributes
        self.beta_kl, self.gamma_reg, self.delta, self.alpha_pl = beta_kl, gamma_reg, delta, alpha_pl
        self.alpha_mse = alpha_mse
        shape = {"channels": channels, "size": size, "latent_dim": latent_dim, "widths": widths, "norm": norm}
        self.encoder, self.decoder = Encoder(**shape), Decoder(**shape, bounded=bounded)
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
        """Images (B, C, S, S) from codes (B, D), in [0, 1] if `bounded`."""
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
        self, x: Float[Tensor, "b c s s"], x_hat: Float[Tensor, "b c s s"],
        *, alpha_mse: float | None = None, target: list[Tensor] | None = None,
    ) -> Float[Tensor, "b"]:  # fmt: skip
        r""":math:`\mathcal{L}_r`: squared error plus :math:`\alpha_{pl}` times the perceptual error, in nats.

        Arguments:
            alpha_mse: Weight of the squared error; the model's own when None.
            target: Feature maps of `x`, where they have been computed already.
        """
        recon = (self.alpha_mse if alpha_mse is None else alpha_mse) * squared_error(x, x_hat)
        if self.alpha_pl:
            recon = recon + self.alpha_pl * perceptual(x, x_hat, self.feature_net.features, target=target)
        return recon

    def attribute_terms(
        self, z: Float[Tensor, "b d"], a: Float[Tensor, "b k"], step: Step | None = None
    ) -> Float[Tensor, "b"]:
        r""":math:`\mathcal{L}_{attr}`: equation 2 summed over the attributes; zeros when it is switched off.

        Arguments:
            step: Knows the rest of the batch, where the rows given are a part of it.
        """
        if not self.gamma_reg:
            return z.new_zeros(len(z))
        z, a = z[:, : self.attributes], a[:, : self.attributes]
        divided = step is not None and step.parts > 1
        return attribute_loss(z, a, delta=self.delta, among=(step.whole(z), step.whole(a)) if divided else None).sum(1)

    def elbo(self, batch, step: Step) -> ELBOTerms:
        """Equation 3 on a batch: what `AttriVAE` trains on, and what every model here is validated on."""
        q = self.encode(batch.image)
        z = sample(q, step.noise(*q.mu.shape))
        return ELBOTerms(
            recon=self.reconstruction_loss(batch.image, self.decode(z)),
            kl=kl_to_standard(q),
            attribute=self.attribute_terms(z, batch.attributes, step),
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
        alpha_mse_fake: Weight of the squared error within that :math:`\mathcal{L}_r(D(z))`; `alpha_mse` when None.
        sources: Which codes generated images are decoded from: "both" averages over posterior and prior codes, as
            the public code does; "prior" is the one :math:`D(z)` that equations 6 and 7 print.
        fakes: Generated images per real one, from both sources together. 1 draws half a batch from each; the
            public code draws 2. The expectation is the same.
        scale: :math:`1 / s`: "values" is the number of values of an image, :math:`CHW`; "pixels" is :math:`HW`.

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
        alpha_mse_fake: float | None = None,
        sources: str = "both",
        fakes: int = 1,
        scale: str = "values",
        **kwargs,
    ):
        super().__init__(beta_kl=beta_kl, gamma_reg=gamma_reg, **kwargs)
        for name, value, known in (("sources", sources, ("both", "prior")), ("scale", scale, ("values", "pixels"))):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}")
        if fakes not in (1, 2):
            raise ValueError(f"`fakes` must be 1 or 2 generated images per real one, got {fakes!r}")
        self.config |= {
            "beta_rec": beta_rec, "repulsion": repulsion, "eta": eta, "fake_recon": fake_recon,
            "alpha_mse_fake": alpha_mse_fake, "sources": sources, "fakes": fakes, "scale": scale,
        }  # fmt: skip
        self.beta_rec, self.eta, self.fake_recon, self.sources, self.fakes = beta_rec, eta, fake_recon, sources, fakes
        self.alpha_mse_fake = alpha_mse_fake
        pixels = self.config["size"] ** 2
        self.scale = 1 / (pixels if scale == "pixels" else self.config["channels"] * pixels)  # s
        self.beta_neg = repulsion / (2 * self.scale)

    def fake_codes(self, z: Float[Tensor, "b d"], step: Step) -> Float[Tensor, "f d"]:
        """Codes (F, D) that generated images are decoded from; F is `fakes` times the batch."""
        if self.sources == "prior":
            return step.noise(self.fakes * len(z), self.latent_dim)
        count = self.fakes * len(z) - self.fakes * len(z) // 2
        return torch.cat([z.detach()[:count], step.noise(self.fakes * len(z) // 2, self.latent_dim)])

    def encoder_loss(self, batch, step: Step) -> EncoderTerms:
        """Equation 6. The decoder is frozen; generated images come in detached, as data."""
        x = batch.image
        q = self.encode(x)
        z = sample(q, step.noise(*q.mu.shape))
        z_fake = self.fake_codes(z, step)
        x_hat = self.decode(z)
        with torch.no_grad():
            target = feature_maps(x, self.feature_net.features) if self.alpha_pl else None
            fakes = self.decode(z_fake)  # (F, C, S, S)
        q_fake = self.encode(fakes)
        kl_fake = kl_to_standard(q_fake)
        energy = self.beta_neg * kl_fake
        noise_fake = step.noise(*q_fake.mu.shape) if self.fake_recon or self.eta else None
        if self.fake_recon:
            again = self.decode(sample(q_fake, noise_fake))
            recon_fake = self.reconstruction_loss(fakes, again, alpha_mse=self.alpha_mse_fake)
            energy = energy + self.beta_rec * recon_fake
        step.carry |= {"z": z.detach(), "z_fake": z_fake, "noise_fake": noise_fake, "target": target}
        return EncoderTerms(
            recon=self.reconstruction_loss(x, x_hat, target=target),
            kl=kl_to_standard(q),
            attribute=self.attribute_terms(z, batch.attributes, step),
            repel=soft_exponential(self.scale * energy),
            kl_fake=kl_fake,
            gamma_reg=self.gamma_reg,
            scale=self.scale,
            beta_rec=self.beta_rec,
            beta_kl=self.beta_kl,
        )

    def decoder_loss(self, batch, step: Step) -> DecoderTerms:
        """Equation 7, on the codes the encoder's update drew. The encoder is frozen, already updated."""
        x, carry = batch.image, step.carry
        x_hat, fakes = self.decode_both(carry["z"], carry["z_fake"])
        q_fake = self.encode(fakes)
        recon_fake = torch.zeros_like(q_fake.mu[:, 0])
        if self.eta:
            z_again = sample(q_fake, carry["noise_fake"]).detach()
            recon_fake = self.reconstruction_loss(fakes.detach(), self.decode(z_again))
        return DecoderTerms(
            recon=self.reconstruction_loss(x, x_hat, target=carry["target"]),
            kl_fake=kl_to_standard(q_fake),
            recon_fake=recon_fake,
            scale=self.scale,
            beta_rec=self.beta_rec,
            beta_kl=self.beta_kl,
            eta=self.eta,
        )

    def decode_both(
        self, z: Float[Tensor, "b d"], z_fake: Float[Tensor, "f d"]
    ) -> tuple[Float[Tensor, "b c s s"], Float[Tensor, "f c s s"]]:
        """Reconstructions and generated images; codes that are in both are decoded once."""
        shared = 0 if self.sources == "prior" else min(len(z), len(z_fake) - len(z_fake) // 2)
        images = self.decode(torch.cat([z, z_fake[shared:]]))
        return images[: len(z)], torch.cat([images[:shared], images[len(z) :]])

    def updates(self) -> tuple[Update, ...]:
        """Two updates, in the paper's order: the encoder's, then the decoder's."""
        return (
            Update("encoder", list(self.encoder.parameters()), self.encoder_loss),
            Update("decoder", list(self.decoder.parameters()), self.decoder_loss),
        )
