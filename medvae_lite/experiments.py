r"""Which runs the cardiac chapters compare. Chapters and publisher both read these lists, so neither can miss one.

Objectives: "paper" reads equations 6 and 7 of Di Folco et al. 2024 literally; "reference" is what their public code
computes; "default" is this package's. Every discrepancy between the last two is a change that can be made alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

from medvae_lite.cardiac import Study
from medvae_lite.runs import RunRecord

__all__ = [
    "COMPARED", "FACTORIAL", "FRAMES", "GALLERY", "GAMMAS", "GRID_PROFILE", "INSTABILITY", "REPULSIONS", "Run", "SEEDS", "TABLES", "WALKED", "ablation",
    "discrepancies", "objectives", "opened", "published",
]  # fmt: skip

SEEDS = {"smoke": 1, "laptop": 3, "grid": 3, "paper": 3}
"""Seeds per published run, by profile."""

GRID_PROFILE = {"smoke": "smoke", "laptop": "grid", "paper": "laptop"}
"""The smaller profile in which a chapter of the given profile compares many settings."""


@dataclass(frozen=True)
class Run:
    """One trained model of an experiment, up to its seed.

    Arguments:
        title: What tables call it.
        model: Key of `medvae_lite.cardiac.MODELS`.
        settings: Arguments of the model to replace.
        frame: The only frame the model sees; "" for all, one an image channel.
        fit: Fields of the profile's `FitConfig` to replace.
        seeds: Largest number of seeds worth training.
    """

    title: str
    model: str
    settings: dict = field(default_factory=dict)
    frame: str = ""
    fit: dict = field(default_factory=dict)
    seeds: int = 3

    def train(self, study: Study):
        """The model and its record."""
        return study.only(self.frame).train(self.model, fit=self.fit, **self.settings)

    def record(self, study: Study) -> RunRecord:
        """The record alone."""
        return study.only(self.frame).record(self.model, fit=self.fit, **self.settings)

    def records(self, study: Study) -> list[RunRecord]:
        """One record a seed, as many as the profile publishes."""
        return [self.record(one) for one in study.repeats(min(self.seeds, SEEDS[study.profile]))]


FRAMES = ("", "ED", "ES")
TITLES = {"beta_vae_published": "β-VAE", "attri_vae_published": "Attri-VAE", "sivae": "SIVAE", "ar_sivae": "AR-SIVAE"}
# Tables 1 and 2 of the paper. The published KL weight stands beside a squared error per channel: halved for one.
TABLES = [
    Run(title, model, {"beta_kl": 0.5} if frame and "vae_published" in model else {}, frame)
    for frame in FRAMES
    for model, title in TITLES.items()
]

# Is it the adversary? Each combination with and without it. Without it, several weights of the KL give the
# reconstruction at every rate, so that a run with it can be compared with what its own rate gives without.
FACTORIAL = {
    "neither": [
        Run("neither, β 1", "attri_vae_published"),
        *(Run(f"neither, β {beta:g}", "attri_vae", {"beta_kl": beta}) for beta in (0.5, 0.2, 0.1)),
    ],
    "perceptual": [Run(f"perceptual, β {beta:g}", "attri_vae_pl", {"beta_kl": beta}) for beta in (0.5, 0.25)],
    "adversary": [Run("adversary", "ar_sivae", {"alpha_pl": 0.0})],
    "both": [Run("both", "ar_sivae")],
}

# What one chapter compares with the above.
COMPARED = [
    Run("β-VAE", "beta_vae", seeds=1), Run("published repulsion", "ar_sivae", {"repulsion": 0.125}, seeds=1),
]  # fmt: skip

# Whose walks are measured: their weights are published for every seed.
WALKED = [TABLES[1], FACTORIAL["perceptual"][0], TABLES[3]]

# How hard to push: the exponent's slope per nat of KL, between a push without end and one that never starts.
REPULSIONS = (0.005, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0)
INSTABILITY = {
    **{f"repulsion {r:g}": Run(f"repulsion {r:g}", "ar_sivae", {"repulsion": r}, seeds=1) for r in REPULSIONS},
    "no adversary": Run("no adversary", "attri_vae_pl", seeds=1),
    "collapse": Run("collapse", "ar_sivae", {"beta_kl": 50.0}, seeds=1),
    "batch norm": Run("batch norm", "ar_sivae", {"norm": "batch"}, seeds=1),
    "batch norm, constant rate": Run(
        "batch norm, constant rate", "ar_sivae", {"norm": "batch"}, fit={"decay_from": 1.0}, seeds=1
    ),
    **{
        f"learning rate {lr:g}": Run(f"learning rate {lr:g}", "ar_sivae", fit={"learning_rate": lr}, seeds=1)
        for lr in (0.03, 0.3)
    },
}
# Shown at work, so their weights are published.
GALLERY = [TABLES[0], TABLES[3], *INSTABILITY.values()]

GAMMAS = (0.0, 16.0, 50.0, 160.0, 500.0)
"""Weights of the attribute term in nats; AR-SIVAE's own weight stands outside the scale s."""


def ablation(values: int) -> dict[tuple[str, float], Run]:
    """Attri-VAE and AR-SIVAE at every weight in `GAMMAS`, by title and weight.

    Arguments:
        values: Values per image, channels times pixels: one over AR-SIVAE's scale s, outside which its weight stands.
    """
    models = {"Attri-VAE": ("attri_vae", 1), "AR-SIVAE": ("ar_sivae", values)}
    return {
        (title, gamma): Run(f"{title}, {gamma:g}", model, {"gamma_reg": gamma / scale})
        for title, (model, scale) in models.items()
        for gamma in GAMMAS
    }


def discrepancies(size: int, *, epoch_steps: int) -> dict[str, Run]:
    """What the public code does otherwise than this package, each made alone to AR-SIVAE.

    Arguments:
        size: Image height and width in pixels; the model sees two frames.
        epoch_steps: Steps per epoch, after the first of which the public code's learning rate is a tenth.
    """
    pixels, values = size**2, 2 * size**2
    changes = {
        "pixel error almost gone": {"alpha_mse": 0.1 / values},
        "pixel error in the exponent": {"fake_recon": True, "alpha_mse_fake": 0.1},
        "perceptual weight of 100": {"alpha_pl": 400 / pixels},  # the sum over 4 levels of means, in nats
        "beta_rec 0.8, beta_kl 1": {"beta_rec": 0.8, "beta_kl": 1.0},
        "channels left out of s": {"scale": "pixels"},
        "gamma_reg 0.05, delta 10": {"gamma_reg": 0.05, "delta": 10.0},
        "repulsion 0.125": {"repulsion": 0.125},  # its 2 s beta_neg, at the paper's 128 px
        "norms frozen": {"norm": "frozen"},
        "no sigmoid": {"bounded": False},
    }
    runs = {title: Run(title, "ar_sivae", settings) for title, settings in changes.items()}
    rate = {"drop_after": epoch_steps, "decay_from": 1.0}
    return runs | {"learning rate / 10 after an epoch": Run("learning rate / 10 after an epoch", "ar_sivae", fit=rate)}


def objectives(size: int, *, epoch_steps: int) -> dict[str, Run]:
    """The three objectives on one network: "default", "paper" and "reference". Arguments as in `discrepancies`."""
    changes = discrepancies(size, epoch_steps=epoch_steps)
    everything: dict = {"fakes": 2}  # and eta = 1e-8, which is below the precision of float32
    for run in changes.values():
        everything |= run.settings
    printed = {
        "sources": "prior", "fake_recon": True, "alpha_mse": 1 / (2 * size**2), "alpha_pl": 400 / size**2,
        "beta_rec": 0.8, "beta_kl": 1.0, "scale": "pixels", "gamma_reg": 0.05, "delta": 10.0, "repulsion": 0.125,
    }  # fmt: skip
    fit = changes["learning rate / 10 after an epoch"].fit
    return {
        "default": Run("default", "ar_sivae"),
        "paper": Run("paper", "ar_sivae", printed),
        "reference": Run("reference", "ar_sivae", everything, fit=fit),
    }


def published(study: Study) -> list[Run]:
    """Every run that the book publishes for a study and its seed, once each, those that most chapters need first."""
    if study.profile == "grid":
        groups = (objectives, discrepancies)
        runs = [run for group in groups for run in group(study.data.size, epoch_steps=_epoch_steps(study)).values()]
        runs += [*ablation(2 * study.data.size**2).values(), *TABLES, *INSTABILITY.values()]
    else:
        runs = [*TABLES[:4], *chain(*FACTORIAL.values()), *COMPARED]
    resolved = [_resolved(run, study) for run in runs]
    return [run for i, run in enumerate(runs) if resolved[i] not in resolved[:i] and study.seed < run.seeds]


def opened(study: Study) -> list[Run]:
    """The published runs whose weights a chapter opens; of the others it reads the record, and weights are not kept."""
    if study.profile == "grid":
        values = 2 * study.data.size**2
        shown = [*objectives(study.data.size, epoch_steps=_epoch_steps(study)).values(), *ablation(values).values(), *GALLERY]
        shown = [] if study.seed else shown
    else:
        shown = WALKED if study.seed else published(study)
    resolved = [_resolved(run, study) for run in shown]
    return [run for run in published(study) if _resolved(run, study) in resolved]


def _epoch_steps(study: Study) -> int:
    return len(study.data.split("train")) // study.size.fit.batch_size


def _resolved(run: Run, study: Study) -> tuple:
    """What two runs share when they are the same."""
    return run.model, study.settings(run.model, run.settings), run.frame, run.fit
