"""The published training step of AR-SIVAE, pass by pass, as its description reads; nothing saved, nothing shared.

Five passes through the encoder, eight through the decoder, six perceptual losses: what `medvae_lite.sivae.ARSIVAE` is
timed against, and what its gradients are checked against. Switches take the waste out one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvae_lite.gaussian import Gaussian, kl_to_standard, sample
from medvae_lite.losses import attribute_loss
from medvae_lite.sivae import ARSIVAE

VGG19 = (64, "tap", 64, "pool", 128, "tap", 128, "pool", 256, "tap", 256, 256, 256, "pool", 512, "tap")


class VGG19Shaped(nn.Module):
    """VGG-19 up to relu4_1 with random weights: for its cost, not for what it sees. Taps relu1_1, 2_1, 3_1, 4_1."""

    def __init__(self):
        super().__init__()
        self.blocks, layers, channels = nn.ModuleList(), [], 3
        for item in VGG19:
            if item == "tap":
                self.blocks.append(nn.Sequential(*layers))
                layers = []
            elif item == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU()]
                channels = item

    def features(self, x: Tensor) -> list[Tensor]:
        maps, x = [], x.expand(-1, 3, -1, -1)
        for block in self.blocks:
            maps.append(x := block(x))
        return maps


class LiteralStep:
    """Gradients of one step.

    Arguments:
        model: Networks and weights; its own feature network is used, frozen or not.
        eta: Whether the terms that are weighted by 1e-8 are computed.
        frozen: Whether the feature network's weights are left without gradients.
        cached: Whether the features of a target are computed once, and without gradients.
    """

    def __init__(self, model: ARSIVAE, *, eta: bool = True, frozen: bool = False, cached: bool = False):
        self.model, self.eta, self.cached = model, eta, cached
        model.feature_net.requires_grad_(not frozen)

    def maps(self, x: Tensor) -> list[list[Tensor]]:
        return [self.model.feature_net.features(x[:, [frame]]) for frame in range(x.shape[1])]

    def recon(self, x: Tensor, x_hat: Tensor, alpha_mse: float, target: list | None = None) -> Tensor:
        """Reconstruction term per sample; the perceptual part frame by frame."""
        values = alpha_mse * (x - x_hat).square().flatten(1).sum(1)
        if target is None and self.cached:
            with torch.no_grad():
                target = self.maps(x)
        target = target or self.maps(x)
        pairs = [pair for ours, theirs in zip(target, self.maps(x_hat)) for pair in zip(ours, theirs)]
        errors = sum((a - b).square().flatten(1).mean(1) for a, b in pairs) / len(pairs)
        return values + self.model.alpha_pl * x[0].numel() * errors

    def encoder(self, x: Tensor, a: Tensor, noise: Tensor, e: Tensor, again: Tensor) -> Tensor:
        """Equation 6; `noise` (B, D), prior codes `e` (B, D), `again` (2B, D) for the second pass of generated images."""
        m = self.model
        m.decoder.requires_grad_(False), m.encoder.requires_grad_(True)
        with torch.no_grad():
            self.target = self.maps(x) if self.cached else None
        fake, q = m.decode(e), m.encode(x)
        self.z = sample(q, noise)
        rec = m.decode(self.z)
        elbo = m.beta_rec * self.recon(x, rec, m.alpha_mse, self.target) + m.beta_kl * kl_to_standard(q)
        exponentials = []
        for image, draw in zip((rec.detach(), fake.detach()), again.chunk(2)):
            q_fake = m.encode(image)
            second = m.decode(sample(q_fake, draw))
            energy = m.beta_rec * self.recon(image, second, m.alpha_mse_fake) + m.beta_neg * kl_to_standard(q_fake)
            exponentials.append(torch.exp(-2 * m.scale * energy))
        order = attribute_loss(self.z[:, : m.attributes], a, delta=m.delta).sum(1)
        return (m.scale * elbo + 0.25 * sum(exponentials) + m.gamma_reg * order).mean()

    def decoder(self, x: Tensor, e: Tensor, again: Tensor) -> Tensor:
        """Equation 7, with the codes of the encoder's half; everything is decoded anew."""
        m = self.model
        m.decoder.requires_grad_(True), m.encoder.requires_grad_(False)
        fake, rec = m.decode(e), m.decode(self.z.detach())
        total = m.beta_rec * self.recon(x, rec, m.alpha_mse, self.target)
        for image, draw in zip((rec, fake), again.chunk(2)):
            q_fake: Gaussian = m.encode(image)
            total = total + 0.5 * m.beta_kl * kl_to_standard(q_fake)
            if self.eta:
                second = m.decode(sample(q_fake, draw).detach())
                total = total + 0.5e-8 * m.beta_rec * self.recon(image.detach(), second, m.alpha_mse)
        return (m.scale * total).mean()

    def gradients(self, x: Tensor, a: Tensor, noise: Tensor, e: Tensor, again: Tensor) -> None:
        """Both backward passes; gradients stay in the parameters' `grad`, the feature network's too."""
        self.encoder(x, a, noise, e, again).backward()
        self.decoder(x, e, again).backward()
