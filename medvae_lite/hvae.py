r"""The hierarchical VAEs of Hu et al. 2022: one network, five latent planes, four priors.

Layers are numbered as in the paper: 0 is the coarsest plane, L = 4 the finest, at the resolution of the image. Latent
variables are passed around flattened, one tensor :math:`(B, D_l)` a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from medvae_lite.gaussian import Gaussian, log_prob, sample
from medvae_lite.layer_losses import BALANCES, HVAETerms, anneal, balance, lesion_loss
from medvae_lite.losses import Step, Update
from medvae_lite.mixtures import mixture_kl, mixture_log_prob, residual, residual_kl, standard
from medvae_lite.nets import norm_layer

__all__ = ["HVAE", "PRIORS", "Latent"]

PRIORS = ("vae", "nvae", "nvmp", "nvmp+")


class Latent(NamedTuple):
    """One layer on the way down.

    Arguments:
        z: The value that went on to the layers below, with shape (B, D).
        prior: What the layers above expected, with shape (B, D).
        posterior: What the image said, with shape (B, D); None where no image was given.
    """

    z: Tensor
    prior: Gaussian
    posterior: Gaussian | None

    @property
    def residual(self) -> Tensor:
        r""":math:`(z - \mu) / \sigma`: how far z lies from what was expected, in standard deviations of the prior."""
        return (self.z - self.prior.mu) / self.prior.std


Choice = Callable[[int, Gaussian, Gaussian | None], Tensor]


class Block(nn.Module):
    """Norm, SiLU, convolution, twice, added to the identity at a tenth of its strength at first."""

    def __init__(self, channels: int):
        super().__init__()
        layers = [(norm_layer(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)]
        self.body = nn.Sequential(*(module for layer in layers for module in layer))
        with torch.no_grad():
            self.body[-1].weight.mul_(0.1)
            self.body[-1].bias.zero_()

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


class LesionHead(nn.Sequential):
    """From one latent plane to lesion logits at the resolution of the image."""

    def __init__(self, channels: int, doublings: int):
        widths = [32 >> min(2, n) for n in range(doublings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
        for c_in, c_out in zip(widths, widths[1:]):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(c_in, c_out, 3, padding=1), nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 1))
        # Lesions are rare: start from a probability of 2 %.
        nn.init.constant_(self[-1].bias, -4.0)


class HVAE(nn.Module):
    r"""A hierarchical VAE with a choice of priors.

    Arguments:
        size: Rows and columns of the image; any, padded to a multiple of :math:`2^L` inside.
        prior: "vae": standard Gaussians everywhere; "nvae": each layer's prior is computed from the layers above and its posterior is a
            residual; "nvmp": and the top prior is a mixture of the posteriors of learned pseudo-inputs; "nvmp+": and
            every layer's prior is drawn towards such a mixture.
        channels: Image channels.
        widths: Feature channels of every level, the finest first; as many layers as widths.
        planes: Channels of every latent plane.
        components: Pseudo-inputs :math:`K`.
        sigma_x: Standard deviation of the image noise, in the scale of the input; with `learn_sigma` where it starts.
        bidirectional: Whether posteriors also see the layers above, as in NVAE's code, and not the image alone, as in the paper's table 2.
        reading: What :math:`q(z_l \mid u_k)` below the top is for "nvmp+": "A", the encoder's output as it is; "B", a residual on the image's own prior;
            "C", the posterior of :math:`u_k` down its own path.
        mixture: "joint", one component for a whole plane, or "per_location".
        extra_weight: :math:`\lambda_+` of NVMP+'s extra divergence.
        lesion_weight: :math:`\lambda_{seg}`; above 0, layer `lesion_layer` is supervised with lesion masks.
        lesion_layer: The layer :math:`z_P`.
        balancing: "per_dim", "times_size" or "none": see `balance`. Only while :math:`\beta < 1`.
        cycle, ramp: Steps of an annealing cycle, 0 for none, and the part of it in which beta rises: see `anneal`.
        free_bits: Nats a layer may spend without paying, on average over a batch.
    """

    def __init__(
        self,
        *,
        size: Sequence[int],
        prior: str = "nvae",
        channels: int = 1,
        widths: Sequence[int] = (8, 16, 24, 32, 48),
        planes: int = 2,
        components: int = 16,
        sigma_x: float = 0.3,
        learn_sigma: bool = False,
        bidirectional: bool = False,
        reading: str = "A",
        mixture: str = "joint",
        extra_weight: float = 1.0,
        lesion_weight: float = 0.0,
        lesion_layer: int = 2,
        balancing: str = "per_dim",
        cycle: int = 10_000,
        ramp: float = 0.5,
        free_bits: float = 0.0,
    ):
        super().__init__()
        choices = {"prior": PRIORS, "reading": ("A", "B", "C"), "mixture": ("joint", "per_location"), "balancing": BALANCES}
        given = {"prior": prior, "reading": reading, "mixture": mixture, "balancing": balancing}
        for name, known in choices.items():
            if given[name] not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {given[name]!r}")
        if not 0 <= lesion_layer < len(widths):
            raise ValueError(f"`lesion_layer` must be from 0 to {len(widths) - 1}, got {lesion_layer}")
        if sigma_x <= 0 or components < 1 or free_bits < 0 or not 0 < ramp <= 1:
            raise ValueError(f"`sigma_x`, `components`, `ramp` must be positive, `ramp` at most 1, got {sigma_x}, {components}, {ramp}")
        self.config = {
            "size": list(size), "channels": channels, "widths": list(widths), "planes": planes, "components": components, "sigma_x": sigma_x,
            "learn_sigma": learn_sigma, "bidirectional": bidirectional, "extra_weight": extra_weight, "lesion_weight": lesion_weight,
            "lesion_layer": lesion_layer, "cycle": cycle, "ramp": ramp, "free_bits": free_bits, **given,
        }  # fmt: skip
        self.size, self.prior, self.reading, self.bidirectional = tuple(size), prior, reading, bidirectional
        self.planes, self.extra_weight, self.lesion_weight = planes, extra_weight if prior == "nvmp+" else 0.0, lesion_weight
        self.lesion_layer, self.balancing, self.cycle, self.ramp, self.free_bits = lesion_layer, balancing, cycle, ramp, free_bits
        finest = len(widths) - 1
        whole = [-(-n // 2**finest) * 2**finest for n in size]
        self.padding = [edge for n, w in zip(reversed(list(size)), reversed(whole)) for edge in ((w - n) // 2, w - n - (w - n) // 2)]
        self.grids = [(whole[0] >> (finest - layer), whole[1] >> (finest - layer)) for layer in range(len(widths))]
        self.dims = [planes * h * w for h, w in self.grids]
        self.places = [h * w if mixture == "per_location" else 1 for h, w in self.grids]
        c = list(reversed(widths))  # by layer, the coarsest first
        self.stem = nn.Conv2d(channels, c[-1], 3, padding=1)
        self.up = nn.ModuleList(Block(n) for n in c)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for coarse, fine in zip(c, c[1:]))
        self.q_heads = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Conv2d(n, 2 * planes, 3, padding=1)) for n in c)
        self.mixers = nn.ModuleList(nn.Conv2d(n, n, 1) for n in c) if bidirectional else None
        self.h0 = nn.Parameter(torch.zeros(c[0], *self.grids[0]))
        # The plain VAE has them too, unused: all four models have the same parameters but for pseudo-inputs.
        self.p_heads = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Conv2d(n, 2 * planes, 1)) for n in c[1:])
        self.merge = nn.ModuleList(nn.Conv2d(n + planes, n, 1) for n in c)
        self.down = nn.ModuleList(Block(n) for n in c)
        self.grow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for coarse, fine in zip(c, c[1:]))
        self.out = nn.Sequential(nn.SiLU(), nn.Conv2d(c[-1], channels, 3, padding=1))
        self.lesion_head = LesionHead(planes, finest - lesion_layer) if lesion_weight else None
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma_x)), requires_grad=learn_sigma)
        if prior in ("nvmp", "nvmp+"):
            self.pseudo_inputs = nn.Parameter(0.1 * torch.randn(components, channels, *size))
        for head in self.p_heads:
            nn.init.zeros_(head[-1].weight), nn.init.zeros_(head[-1].bias)
        for head in self.q_heads:
            nn.init.normal_(head[-1].weight, std=0.02), nn.init.zeros_(head[-1].bias)
        self.register_buffer("dim", torch.tensor(self.dims, dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def start_from(self, images: Float[Tensor, "k c h w"], step: Step) -> HVAE:
        """Starts the pseudo-inputs at real images (one person each) with a little noise; nothing to do for other priors.

        A VampPrior for images in [0, 1] clamps its pseudo-inputs to that range. Standardised MRI has no such range: clamped, they could
        never look like an image.

        Raises:
            ValueError: If their number is not that of the components.
        """
        if self.prior in ("nvmp", "nvmp+"):
            if images.shape != self.pseudo_inputs.shape:
                raise ValueError(f"`images` must have shape {tuple(self.pseudo_inputs.shape)}, one image a component, got {tuple(images.shape)}")
            self.pseudo_inputs.copy_(images + 0.01 * step.noise(*images.shape))
        return self

    def features(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The encoder's feature maps, the coarsest first."""
        h, found = self.stem(F.pad(x, self.padding, mode="replicate")), []
        for layer in reversed(range(len(self.grids))):
            h = self.up[layer](h)
            found.append(h)
            h = self.shrink[layer - 1](h) if layer else h
        return found[::-1]

    def delta(self, layer: int, features: Tensor, h: Tensor) -> Gaussian:
        r"""What the encoder says of a layer: :math:`(\Delta\mu_l, \Delta\sigma_l)`."""
        return _gaussian(self.q_heads[layer](features + self.mixers[layer](h) if self.mixers else features))

    def descend(self, count: int, choose: Choice, features: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Latent]]:
        """The way down: every layer's prior from the layers above, then a value for it.

        Arguments:
            count: Images.
            choose: Called as `choose(layer, prior, posterior)`, gives z of shape (B, D) to go on with.
            features: Of the images whose posteriors are wanted.

        Returns:
            The image (B, C, H, W), and every layer on the way.
        """
        h, way = self.h0.expand(count, -1, -1, -1), []
        for layer, (grid, dim) in enumerate(zip(self.grids, self.dims)):
            moving = layer and self.prior != "vae"
            p = _gaussian(self.p_heads[layer - 1](h)) if moving else standard(count, dim, self.h0)
            q = None if features is None else residual(p, self.delta(layer, features[layer], h))
            z = choose(layer, p, q)
            way.append(Latent(z, p, q))
            h = self.down[layer](self.merge[layer](torch.cat([h, z.unflatten(1, (self.planes, *grid)).to(h.dtype)], 1)))
            if layer < len(self.grids) - 1:
                h = F.interpolate(self.grow[layer](h), scale_factor=2)
        left, right, top, bottom = self.padding
        image = self.out(h).float()
        return image[..., top : image.shape[-2] - bottom, left : image.shape[-1] - right], way

    def pseudo_posteriors(self) -> list[Gaussian]:
        r""":math:`q(z_l \mid u_k)` of every layer by reading A: the encoder's output alone, each with shape (K, D).

        Where posteriors also see the layers above, a pseudo-input has none but the constant at the top: below it they are left out.
        """
        features = self.features(self.pseudo_inputs)
        above = [self.h0.expand(len(features[0]), -1, -1, -1), *map(torch.zeros_like, features[1:])]
        return [self.delta(layer, *seen) for layer, seen in enumerate(zip(features, above))]

    def top_prior(self) -> Gaussian:
        """Components of the prior of layer 0, with shape (K, D): one standard Gaussian where there are no pseudo-inputs."""
        return self.pseudo_posteriors()[0] if self.prior in ("nvmp", "nvmp+") else standard(1, self.dims[0], self.h0)

    def draw_top(self, count: int, step: Step) -> Tensor:
        """Draws of the prior of layer 0, with shape (B, D): a component at random, for each place that has its own, then a draw from it."""
        components, places = self.top_prior(), self.places[0]
        which = torch.randint(len(components.mu), (count, places), generator=step.generator, device=step.device)
        chosen = (t.unflatten(1, (-1, places)).mT[which, torch.arange(places)].mT.flatten(1) for t in components)
        return sample(Gaussian(*chosen), step.noise(count, self.dims[0]))

    def sample(self, count: int, step: Step) -> Tensor:
        """Images drawn from the prior, with shape (B, C, H, W)."""

        def choose(layer, p, _):
            return sample(p, step.noise(*p.mu.shape)) if layer else self.draw_top(count, step)

        return self.descend(count, choose)[0]

    def infer(self, x: Float[Tensor, "b c h w"], step: Step | None = None) -> tuple[Tensor, list[Latent]]:
        """Reconstruction and latent variables: posterior means, or draws where `step` is given."""

        def choose(_, p, q):
            return q.mu if step is None else sample(q, step.noise(*q.mu.shape))

        return self.descend(len(x), choose, self.features(x))

    def log_likelihood(self, x: Tensor, image: Tensor) -> Float[Tensor, "b"]:
        r""":math:`\log \mathcal{N}(x; \hat x, \sigma_x^2)` in nats per image, all constants included, with shape (B,)."""
        scale = self.log_sigma.exp()
        return (-0.5 * ((x - image) / scale).square() - self.log_sigma - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def divergences(self, way: Sequence[Latent], top: Gaussian) -> Float[Tensor, "b l"]:
        r""":math:`\mathrm{KL}_l` in nats, with shape (B, L + 1): exact, but for the mixture `top`, by one draw."""
        found = []
        for layer, (z, p, q) in enumerate(way):
            if layer == 0 and self.prior in ("nvmp", "nvmp+"):
                found.append(mixture_kl(q, top, z, places=self.places[0]))
            else:
                found.append(residual_kl(p, Gaussian(q.mu - p.mu, q.logvar - p.logvar)))
        return torch.stack(found, 1)

    def extra(self, way: Sequence[Latent], pseudo: Sequence[Gaussian], step: Step) -> Float[Tensor, "b l"]:
        r"""NVMP+'s :math:`X_l = \mathrm{KL}[p(z_l \mid z_{<l}) \,\|\, \frac1K \sum_k q(z_l \mid u_k)]` for l > 0, by a draw of its own."""
        own = self.infer(self.pseudo_inputs, step.undivided())[1] if self.reading == "C" else []
        found = [way[0].z.new_zeros(len(way[0].z))]
        for layer, (_, p, _) in enumerate(way[1:], 1):
            if self.reading == "C":
                components = own[layer].posterior
            elif self.reading == "B":
                components = Gaussian(*(of[:, None] + shift for of, shift in zip(p, pseudo[layer])))
            else:
                components = pseudo[layer]
            found.append(mixture_kl(p, components, sample(p, step.noise(*p.mu.shape)), places=self.places[layer]))
        return torch.stack(found, 1)

    def log_weight(self, x: Float[Tensor, "b c h w"], step: Step) -> Float[Tensor, "b"]:
        r""":math:`\log p(x, z) - \log q(z \mid x)` for one draw; the mean of its exponential estimates :math:`p(x)`.

        Source: Burda et al. 2016, equation 8.
        """
        image, way = self.infer(x, step)
        weight = self.log_likelihood(x, image)
        for layer, (z, p, q) in enumerate(way):
            prior = mixture_log_prob(self.top_prior(), z, places=self.places[0]) if layer == 0 else log_prob(p, z)
            weight = weight + prior - log_prob(q, z)
        return weight

    def lesion_logits(self, way: Sequence[Latent]) -> Float[Tensor, "b 1 h w"]:
        """What the lesion head makes of layer `lesion_layer`.

        Raises:
            ValueError: If the model was built without one.
        """
        if self.lesion_head is None:
            raise ValueError("this model has no lesion head: build it with `lesion_weight` above 0")
        z = way[self.lesion_layer].z.unflatten(1, (self.planes, *self.grids[self.lesion_layer]))
        logits = self.lesion_head(z).float()
        left, right, top, bottom = self.padding
        return logits[..., top : logits.shape[-2] - bottom, left : logits.shape[-1] - right]

    def elbo(self, batch, step: Step) -> HVAETerms:
        """The terms of a batch at beta = 1, every layer weighing the same and NVMP+'s extra term left out: a bound on log p(x)."""
        return self._terms(batch, step, 1.0, training=False)

    def training_loss(self, batch, step: Step) -> HVAETerms:
        """The same as it is trained: annealed, balanced, with the extra term."""
        beta = anneal(step.number, cycle=self.cycle, ramp=self.ramp)
        return self._terms(batch, step, beta, training=True)

    def _terms(self, batch, step: Step, beta: float, *, training: bool) -> HVAETerms:
        x = batch.image
        image, way = self.infer(x, step)
        pseudo = self.pseudo_posteriors() if self.prior in ("nvmp", "nvmp+") else [self.top_prior()]
        kl = self.divergences(way, pseudo[0])
        extra = self.extra(way, pseudo, step) if training and self.extra_weight else torch.zeros_like(kl)
        gamma = torch.ones_like(self.dim)
        if training:
            spent = step.whole(kl)
            gamma = balance(spent, self.dim, self.balancing) if beta < 1 else gamma
            # A mixture's estimate may be negative: without free bits it counts all the same.
            gamma = gamma * (spent.detach().mean(0) >= self.free_bits) if self.free_bits else gamma
        lesion = torch.zeros_like(kl[:, 0])
        if self.lesion_weight:
            lesion = lesion_loss(self.lesion_logits(way), batch.labels[:, 1:].float() / 100)
        return HVAETerms(
            -self.log_likelihood(x, image), kl, extra, lesion, gamma, beta, self.extra_weight if training else 0.0, self.lesion_weight
        )

    def updates(self) -> tuple[Update, ...]:
        return (Update("elbo", [p for p in self.parameters() if p.requires_grad], self.training_loss),)


def _gaussian(h: Tensor) -> Gaussian:
    """Mean and log-variance, flattened, each softly clamped: the mean to ±5, the standard deviation to a factor of e^5."""
    mu, log_sigma = (5 * torch.tanh(part.float() / 5) for part in h.chunk(2, 1))
    return Gaussian(mu.flatten(1), 2 * log_sigma.flatten(1))
