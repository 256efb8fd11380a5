"""One small model of every family with a split to train it on, for tests that must hold for all of them."""

import numpy as np
import torch
from _helpers import discs

from medvae_lite.datasets import Split
from medvae_lite.hvae import HVAE
from medvae_lite.mmvae import PoEVAE
from medvae_lite.nets import FeatureNet
from medvae_lite.sivae import ARSIVAE, AttriVAE

SMALL = {"size": 16, "latent_dim": 8, "attributes": 6, "widths": (8, 8, 16), "gamma_reg": 1.0}
LEVELS = {"size": (32, 32), "widths": (4, 6, 8, 8, 8), "components": 3, "cycle": 40, "free_bits": 0.05}


def hearts(count, seed=0):
    images, labels, attributes = discs(count, 16, np.random.default_rng(seed))
    standardised = ((attributes - attributes.mean(0)) / attributes.std(0)).astype(np.float32)
    return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(standardised), torch.arange(count))


def people(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, covariates = torch.randn(count, 10, generator=generator), torch.randn(count, 4, generator=generator)
    observed = torch.ones(count, 10, dtype=torch.uint8)
    observed[::3, :3] = 0  # a modality that some lack
    return Split((x * observed)[..., None, None], observed[..., None, None], covariates, torch.arange(count))


def slices(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(count, 1, 32, 32, generator=generator), torch.zeros(count, 2, 32, 32, dtype=torch.uint8)
    labels[::2, 1, 10:14, 10:14] = 100
    return Split(images, labels, torch.zeros(count, 1), torch.arange(count))


def features():
    torch.manual_seed(5)
    return FeatureNet(widths=(8, 8))


FAMILIES = {
    "attri_vae": (hearts, lambda: AttriVAE(**SMALL)),
    "ar_sivae": (hearts, lambda: ARSIVAE(**SMALL)),
    "ar_sivae, all terms": (hearts, lambda: ARSIVAE(**SMALL, fake_recon=True, eta=0.1, alpha_pl=0.3, features=features())),
    "ar_sivae, prior alone": (hearts, lambda: ARSIVAE(**SMALL, sources="prior", fakes=2, repulsion=0.5)),
    "ar_sivae, two fakes": (hearts, lambda: ARSIVAE(**SMALL, fakes=2, fake_recon=True)),
    "poe_vae": (people, lambda: PoEVAE(sizes={"a": 3, "b": 5, "c": 2}, covariates=4, latent_dim=3, hidden=(8, 6), warmup=20)),
    "nvae": (slices, lambda: HVAE(prior="nvae", **LEVELS)),
    "nvmp": (slices, lambda: HVAE(prior="nvmp", lesion_weight=1.0, **LEVELS)),
    "nvmp+, reading A": (slices, lambda: HVAE(prior="nvmp+", reading="A", **LEVELS)),
    "nvmp+, reading C": (slices, lambda: HVAE(prior="nvmp+", reading="C", **LEVELS)),
}


def family(name):
    """An untrained model, always the same one, and the splits of 48 and 20 subjects to train and watch it on."""
    split, build = FAMILIES[name]
    torch.manual_seed(0)
    return build(), split(48), split(20, seed=1)
