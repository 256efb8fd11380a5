"""The cardiac experiments: which models are trained, how large, on how much, and how they are measured.

Chapters and the run publisher both go through `Study`, so a table and a figure can only speak of the same runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from medvae_lite import datasets, disentangle, fidelity, runs
from medvae_lite.datasets import Batch, Prepared, Split
from medvae_lite.gaussian import Gaussian, kl_to_standard, sample
from medvae_lite.losses import Step, Terms, Update
from medvae_lite.nets import FeatureNet
from medvae_lite.sivae import ARSIVAE, AttriVAE
from medvae_lite.published import train_or_load
from medvae_lite.train import FitConfig

__all__ = ["MODELS", "PROFILES", "Profile", "Segmenter", "Study", "encode", "encode_images", "evaluate", "reconstruct"]


@dataclass(frozen=True)
class Profile:
    """How large an experiment is.

    Arguments:
        subjects: Phantom subjects.
        size: Image height and width in pixels; a larger prepared folder is averaged down to it.
        latent_dim: Latent dimensions.
        repulsion: AR-SIVAE's and SIVAE's: about 4 over the nats per image that they spend without the adversary.
        fit: How the models are trained.
        feature_subjects: Phantom subjects each feature network is trained on.
        feature_fit: How the feature networks are trained.
    """

    subjects: int
    size: int
    latent_dim: int
    repulsion: float
    fit: FitConfig
    feature_subjects: int
    feature_fit: FitConfig


PROFILES = {
    "smoke": Profile(
        subjects=240, size=32, latent_dim=16, repulsion=0.1, fit=FitConfig(steps=60, batch_size=32),
        feature_subjects=120, feature_fit=FitConfig(steps=40, batch_size=16, learning_rate=3e-3),
    ),
    "laptop": Profile(
        subjects=4000, size=64, latent_dim=64, repulsion=0.04, fit=FitConfig(steps=1200, batch_size=16, learning_rate=2e-3),
        feature_subjects=1000, feature_fit=FitConfig(steps=400, batch_size=16, learning_rate=3e-3),
    ),
    # For grids of many runs, a minute each: what a setting does, not how well a model can be trained.
    "grid": Profile(
        subjects=2000, size=32, latent_dim=32, repulsion=0.1, fit=FitConfig(steps=500, batch_size=16, learning_rate=3e-3),
        feature_subjects=1000, feature_fit=FitConfig(steps=400, batch_size=16, learning_rate=3e-3),
    ),
    # The paper's cohort (3752 / 804 / 804), batch, latent size and learning rate; 750 epochs of 29 steps.
    "paper": Profile(
        subjects=5360, size=128, latent_dim=128, repulsion=0.02,
        fit=FitConfig(steps=750 * 29, batch_size=128, learning_rate=2e-4, warmup=500),
        feature_subjects=2000, feature_fit=FitConfig(steps=2000, batch_size=32, learning_rate=1e-3),
    ),
}  # fmt: skip

# All but one share one ELBO: what is added differs, what it is added to does not. AR-SIVAE's attribute weight stands
# outside the scale s = 1 / 8192 (at 64 px), so its 0.02 weighs as much as 160 nats.
MODELS = {
    "beta_vae": (AttriVAE, {"beta_kl": 0.5, "gamma_reg": 0.0}),
    "attri_vae": (AttriVAE, {"beta_kl": 0.5, "gamma_reg": 160.0}),
    # The published weight of the KL: 2 beside the squared error per channel at 128 px, which is 1 beside all of it at 64.
    "beta_vae_published": (AttriVAE, {"beta_kl": 1.0, "gamma_reg": 0.0}),
    "attri_vae_published": (AttriVAE, {"beta_kl": 1.0, "gamma_reg": 160.0}),
    # Not in the paper: what the perceptual term gives without the adversary.
    "attri_vae_pl": (AttriVAE, {"beta_kl": 0.5, "gamma_reg": 160.0, "alpha_pl": 0.3}),
    "sivae": (ARSIVAE, {"beta_kl": 0.5, "gamma_reg": 0.0, "alpha_pl": 0.3}),
    "ar_sivae": (ARSIVAE, {"beta_kl": 0.5, "gamma_reg": 0.02, "alpha_pl": 0.3}),
}

# Two feature networks of other shapes, other subjects and other starting weights: a model is never
# measured with the features it was trained on.
FEATURE_NETS = {
    "loss": ({"widths": (8, 16, 32, 48), "depth": 1}, 101),
    "metric": ({"widths": (12, 24, 32, 64)}, 102),
}


@dataclass(frozen=True)
class SegmentationTerms(Terms):
    """Cross-entropy of the labels, mean over pixels, in nats per pixel."""

    cross_entropy: Tensor

    def total(self) -> Tensor:
        return self.cross_entropy


class Segmenter(FeatureNet):
    """The feature network as it is trained: to label every frame on its own."""

    def elbo(self, batch: Batch, step: Step) -> SegmentationTerms:
        b, c, h, w = batch.image.shape
        scores = self(batch.image.reshape(b * c, 1, h, w))
        loss = F.cross_entropy(scores, batch.labels.reshape(b * c, h, w).long(), reduction="none")
        return SegmentationTerms(loss.reshape(b, -1).mean(1))

    def updates(self) -> tuple[Update, ...]:
        return (Update("segment", list(self.parameters()), self.elbo),)


@dataclass
class Study:
    """One dataset, one profile, one seed: trains or loads whatever model is asked for.

    Arguments:
        data: The prepared dataset, phantom or real.
        profile: "smoke", "laptop" or "paper".
        phantom: Makes (or finds) a phantom: `phantom("cardiac", subjects=, size=, seed=) -> folder`. The feature
            networks are always trained on phantoms, which is why their distances are called LPIPS-phantom.
        seed: Seeds initial weights, order of subjects and noise.
        device: Where to train.
        runs_root: Where run records are looked up and written.
        retrain: Train although a record exists.
        progress: Whether to show progress bars.
    """

    data: Prepared
    profile: str
    phantom: Callable[..., Path]
    seed: int = 0
    device: torch.device | str = "cpu"
    runs_root: str | Path = "runs"
    retrain: bool = False
    progress: bool = True

    _features: dict[str, FeatureNet] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self.device = runs.resolve_device(str(self.device))

    @property
    def size(self) -> Profile:
        return PROFILES[self.profile]

    def repeats(self, seeds: int) -> list[Study]:
        """This study with its own seed, the next one, and so on; they share data and feature networks."""
        return [replace(self, seed=self.seed + more) for more in range(seeds)]

    def only(self, frame: str) -> Study:
        """This study on one frame of each subject; on all of them for ""."""
        return replace(self, data=self.data.only(frame)) if frame else self

    def features(self, role: str) -> FeatureNet:
        """The feature network for the "loss" or for the "metric"; the same for every seed."""
        if role not in self._features:
            shape, phantom_seed = FEATURE_NETS[role]
            folder = self.phantom(
                "cardiac", subjects=self.size.feature_subjects, size=self.data.size, seed=phantom_seed
            )
            net, _ = train_or_load(
                f"features-{role}-{self.profile}", lambda: Segmenter(**shape), datasets.load(folder),
                self.size.feature_fit, seed=phantom_seed, device=self.device, runs_root=self.runs_root,
                progress=self.progress,
            )  # fmt: skip
            self._features[role] = net.requires_grad_(False)
        return self._features[role]

    def train(self, name: str, *, fit: dict | None = None, **settings) -> tuple[AttriVAE, runs.RunRecord]:
        """The model called `name` in `MODELS` and its run record.

        Arguments:
            fit: Fields of the profile's `FitConfig` to replace.
            settings: Arguments of the model to replace.
        """
        return self._train(name, fit or {}, settings, light=False)

    def record(self, name: str, *, fit: dict | None = None, **settings) -> runs.RunRecord:
        """The run record alone: quick, and published for more seeds than the weights are."""
        return self._train(name, fit or {}, settings, light=True)[1]

    def settings(self, name: str, changed: dict) -> dict:
        """Arguments of the model called `name`: the profile's and its own, some of them replaced."""
        family, defaults = MODELS[name]
        repulsion = {"repulsion": self.size.repulsion} if family is ARSIVAE else {}
        return {"latent_dim": self.size.latent_dim, **repulsion, **defaults, **changed}

    def _train(self, name: str, fit: dict, settings: dict, *, light: bool):
        family, settings = MODELS[name][0], self.settings(name, settings)
        notes = {}
        if settings.get("alpha_pl"):
            settings["features"] = self.features("loss")
            notes["features"] = weights_hash(settings["features"])
        frames = self.data.frames
        shape = {"channels": len(frames), "size": self.data.size, "attributes": len(self.data.attributes)}
        seen = "" if len(frames) == len(self.data.card["frames"]) else f"-{'+'.join(frames)}"
        return train_or_load(
            f"{name}-{self.profile}{seen}-seed{self.seed}", lambda: family(**shape, **settings), self.data,
            replace(self.size.fit, **fit), seed=self.seed, device=self.device, runs_root=self.runs_root,
            retrain=self.retrain, notes=notes, progress=self.progress, light=light,
            evaluate=lambda model: evaluate(model, self.data, self.features("metric")),
        )  # fmt: skip


def weights_hash(model: nn.Module) -> str:
    """sha256 of a model's weights."""
    return hashlib.sha256(save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})).hexdigest()


@torch.no_grad()
def encode(model: AttriVAE, split: Split, *, batch_size: int = 64) -> Gaussian:
    """Posterior means and log-variances (N, D) of a split, on the CPU."""
    device = next(model.parameters()).device
    parts = [model.encode(batch.image.to(device)) for batch in split.batches(batch_size)]
    return Gaussian(*(torch.cat(values).cpu() for values in zip(*parts)))


@torch.no_grad()
def encode_images(model: AttriVAE, x: Tensor, *, batch_size: int = 64) -> Gaussian:
    """Posterior means and log-variances (B, D) of images, on the CPU."""
    device = next(model.parameters()).device
    return Gaussian(*(torch.cat(v).cpu() for v in zip(*(model.encode(part.to(device)) for part in x.split(batch_size)))))


@torch.no_grad()
def reconstruct(model: AttriVAE, x: Tensor, *, batch_size: int = 64) -> Tensor:
    """Images (B, C, H, W) decoded from the posterior means of `x`, on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model.decode(model.encode(part.to(device)).mu).cpu() for part in x.split(batch_size)])


@torch.no_grad()
def evaluate(model: AttriVAE, data: Prepared, metric: FeatureNet, *, split: str = "test") -> dict:
    """Reconstruction and disentanglement on a split, from posterior means.

    Returns:
        Means over subjects. SSIM is defined as in the paper's public evaluation; `perceptual` is LPIPS-phantom: it
        uses the feature network `metric`.
    """
    subjects = data.split(split)
    batch, q = subjects.batch(), encode(model, subjects)
    x, x_hat, features = batch.image, reconstruct(model, batch.image), metric.cpu().features
    result: dict = {"split": split, "subjects": len(subjects), "kl": float(kl_to_standard(q).mean())}
    result |= {name: float(fn(x, x_hat).mean()) for name, fn in {"mse": fidelity.mse, "psnr": fidelity.psnr}.items()}
    for frame, name in enumerate(data.frames):
        one, one_hat = x[:, frame : frame + 1], x_hat[:, frame : frame + 1]
        result[f"ssim_{name}"] = float(fidelity.ssim(one, one_hat, mode="reference").mean())
        result[f"perceptual_{name}"] = float(_in_parts(fidelity.perceptual_distance, one, one_hat, features).mean())
    for metric_name in ("ssim", "perceptual"):
        frames = [result[f"{metric_name}_{name}"] for name in data.frames]
        result[metric_name] = sum(frames) / len(frames)
    result["edge_projection"] = float(fidelity.edge_projection(x, x_hat).mean())
    result["hf_correlation"] = float(fidelity.high_frequency_correlation(x, x_hat).mean())
    samples = model.sample(len(x), generator=torch.Generator().manual_seed(0)).cpu()
    real, fake = (fidelity.pooled_features(images, features) for images in (x, samples))
    result["frechet_samples"] = float(fidelity.frechet_distance(real, fake))
    result["kl_samples"] = float(kl_to_standard(encode_images(model, samples)).mean())
    attributes, own = data.attribute_ml[batch.index], range(len(data.attributes))
    result |= _separation(disentangle.evaluate(q.mu.numpy(), attributes, data.attributes, dims=own))
    # The public evaluation scores codes drawn from the posterior.
    z = sample(q, torch.randn(q.mu.shape, generator=torch.Generator().manual_seed(0))).numpy()
    reference = disentangle.evaluate(z, attributes, data.attributes, dims=own, mode="reference")
    result |= {f"reference_{key}": value for key, value in _separation(reference).items()}
    for k, name in enumerate(data.attributes):
        result |= {f"code_mean_{name}": float(z[:, k].mean()), f"code_sd_{name}": float(z[:, k].std())}
    return result


def _separation(scores: disentangle.Disentanglement) -> dict:
    row = scores.summary()
    for metric in ("interpretability", "scc"):
        row |= {f"{metric}_{name}": float(v) for name, v in zip(scores.names, getattr(scores, metric))}
    return row


def _in_parts(distance: Callable, x: Tensor, x_hat: Tensor, features: Callable, size: int = 64) -> Tensor:
    return torch.cat([distance(a, b, features) for a, b in zip(x.split(size), x_hat.split(size))])
