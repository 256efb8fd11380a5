"""The normative experiments: which models are trained on a region table, and what is said of people with them.

Chapters and the run publisher both go through `Study`, so a table and a figure can only speak of the same runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from medvae_lite import normative, runs
from medvae_lite.gaussian import kl_to_standard
from medvae_lite.judges import VAE, Linear, Normative
from medvae_lite.mmvae import PoEVAE
from medvae_lite.published import train_or_load
from medvae_lite.regions import Regions
from medvae_lite.train import FitConfig

__all__ = ["ARMS", "PROFILES", "SMALL", "SMALL_FIT", "SMALL_SETTINGS", "Arm", "Profile", "Study", "auc", "evaluate", "published"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """How large an experiment is.

    Arguments:
        subjects: People of the phantom's population cohort.
        fit: How the models are trained.
        published_steps: Steps of the models as published: 200 epochs, but for the smallest profile.
        warmup: Steps over which beta rises.
        seeds: Seeds per published run.
    """

    subjects: int
    fit: FitConfig
    published_steps: int
    warmup: int
    seeds: int


_FIT = FitConfig(steps=3600, batch_size=256, learning_rate=5e-3, speed="exact")
PROFILES = {
    "smoke": Profile(900, replace(_FIT, steps=300, batch_size=64), published_steps=60, warmup=120, seeds=1),
    "laptop": Profile(9875, _FIT, published_steps=200 * 35, warmup=1500, seeds=3),
    "paper": Profile(9875, replace(_FIT, steps=200 * 35), published_steps=200 * 35, warmup=3000, seeds=3),
}


SMALL = 1000
"""Training people below which a table is small: the network is narrower and stops before it learns them by heart."""
SMALL_FIT = {"steps": 1000, "batch_size": 64, "learning_rate": 2e-3}
SMALL_SETTINGS = {"hidden": (32,), "warmup": 400}


@dataclass(frozen=True)
class Arm:
    """One model of the comparison.

    Arguments:
        title: What tables call it.
        view: Modalities it sees as modalities of their own; "joined" makes all of them one.
        settings: Arguments of `PoEVAE` to replace.
        recipe: Fields of `Regions` to replace.
        as_published: Train with the published optimiser's settings.
        seeds: Largest number of seeds worth training.
    """

    title: str
    view: tuple[str, ...] | str = ()
    settings: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    as_published: bool = False
    seeds: int = 3

    def data(self, data: Regions) -> Regions:
        """The table as this model sees it."""
        seen = data.joined() if self.view == "joined" else data.only(*self.view) if self.view else data
        return replace(seen, **self.recipe)


_PUBLISHED = {"latent_dim": 64, "hidden": (64, 128, 256, 512), "likelihood": "published", "drop": 0.0, "warmup": 0}
_RECIPE = {"scaling": "minmax", "icv": "divide", "age": "years", "categories": ("sex",)}
ARMS = {
    "multimodal": Arm("multimodal"),
    "joint_only": Arm("multimodal, never thinned", settings={"drop": 0.0}),
    "no_prior": Arm("multimodal, no prior expert", settings={"prior_expert": False}),
    "concatenated": Arm("one encoder for all", "joined", {"prior_expert": False}),
    "cortical": Arm("cortical alone", ("cortical",), {"prior_expert": False}),
    "subcortical": Arm("subcortical alone", ("subcortical",), {"prior_expert": False}),
    "hippocampal": Arm("hippocampal alone", ("hippocampal",), {"prior_expert": False}),
    "as_published": Arm("multimodal as published", (), _PUBLISHED, _RECIPE, True, seeds=1),
    "as_published_unimodal": Arm("one encoder as published", "joined", {**_PUBLISHED, "prior_expert": False}, _RECIPE, True, seeds=1),
}
"""The default model, one change each, the unimodal baselines, and what the public code trains."""


def published(study: Study) -> list[tuple[str, dict]]:
    """Name and changed settings of every model the book publishes for a study and its seed."""
    runs_of = [(name, {}) for name, arm in ARMS.items() if study.seed < arm.seeds]
    return runs_of + ([("multimodal", {"warmup": 0})] if not study.seed else [])


@dataclass
class Study:
    """One table, one profile, one seed: trains or loads whatever model is asked for.

    Arguments:
        data: The prepared table, phantom or real.
        profile: "smoke", "laptop" or "paper".
        seed: Seeds initial weights, order of people and noise.
        device: Where to train.
        runs_root: Where run records are looked up and written.
        retrain: Train although a record exists, once in the life of a study and its repeats.
        progress: Whether to show progress bars.
    """

    data: Regions
    profile: str
    seed: int = 0
    device: torch.device | str = "cpu"
    runs_root: str | Path = "runs"
    retrain: bool = False
    progress: bool = True

    _retrained: set = field(default_factory=set, repr=False)

    def __post_init__(self):
        self.device = runs.resolve_device(str(self.device))

    @property
    def size(self) -> Profile:
        return PROFILES[self.profile]

    @property
    def arms(self) -> list[str]:
        """The models that the modalities of this table allow."""
        return [name for name, arm in ARMS.items() if isinstance(arm.view, str) or set(arm.view) <= set(self.data.modalities)]

    def repeats(self) -> list[Study]:
        """This study with its own seed, the next one, and so on, as many as the profile publishes."""
        return [replace(self, seed=self.seed + more) for more in range(self.size.seeds)]

    def train(self, name: str, *, fit: dict | None = None, **settings) -> tuple[VAE, runs.RunRecord]:
        """The model called `name` in `ARMS`, ready to judge people, and its run record.

        Arguments:
            fit: Fields of the profile's `FitConfig` to replace; of `SMALL_FIT` where fewer than `SMALL` people train.
            settings: Arguments of the model to replace.
        """
        model, record, data = self._train(name, fit or {}, settings, light=False)
        return VAE(model, data), record

    def record(self, name: str, *, fit: dict | None = None, **settings) -> runs.RunRecord:
        """The run record alone."""
        return self._train(name, fit or {}, settings, light=True)[1]

    def records(self, name: str) -> list[runs.RunRecord]:
        """One record a seed."""
        return [one.record(name) for one in self.repeats()[: ARMS[name].seeds]]

    def _train(self, name: str, fit: dict, settings: dict, *, light: bool):
        if name not in ARMS:
            raise ValueError(f"`name` must be one of {', '.join(ARMS)}, got {name!r}")
        arm = ARMS[name]
        data = arm.data(self.data)
        small = len(data.rows("train")) < SMALL and self.profile != "smoke" and not arm.as_published
        if small:
            fit, settings = SMALL_FIT | fit, SMALL_SETTINGS | settings
        settings = {"latent_dim": 16, "warmup": self.size.warmup, **arm.settings, **settings}
        if arm.as_published:
            fit = {"steps": self.size.published_steps, "learning_rate": 5e-5, "warmup": 0, "decay_from": 1.0, **fit}
        shape = {"sizes": data.sizes, "covariates": data.covariates.shape[1]}
        job = (name, self.seed, repr(fit), repr(settings))
        model, record = train_or_load(
            f"norm_{name}-{self.profile}-seed{self.seed}", lambda: PoEVAE(**shape, **settings), data,
            replace(self.size.fit, **fit), seed=self.seed, device=self.device, runs_root=self.runs_root,
            retrain=self.retrain and job not in self._retrained, progress=self.progress, light=light,
            evaluate=lambda model: evaluate(VAE(model.eval(), data)),
        )  # fmt: skip
        self._retrained.add(job)
        return model, record, data

    @cached_property
    def baselines(self) -> dict[str, Linear]:
        """Regression on the covariates, and principal components of its residuals, as many as the models have latents."""
        return {"regression": Linear(self.data), "regression + PCA": Linear(self.data, components=16)}


def auc(healthy: Array, ill: Array) -> float:
    """Probability that an ill person's value is above a healthy one's."""
    return float(stats.mannwhitneyu(ill, healthy).statistic / (len(ill) * len(healthy)))


def evaluate(model: Normative) -> dict:
    """What a normative model gives on healthy test people and on patients, by name.

    Returns:
        Squared errors in variances of the training people, calibration, and for data with patients: sizes of their
        deviations by stage, slope, significance counts in percent, correlation with each test score.
    """
    data = model.data
    test = data.rows("test")
    scale = np.nanvar(data.x[data.rows("train")], 0)
    slabs = dict(zip(data.modalities, np.split(np.arange(len(data.regions)), np.cumsum(list(data.sizes.values()))[:-1])))

    def error(given):
        squared = np.nanmean(model.deviation(test, given) ** 2, 0) / scale
        return {name: float(squared[columns].mean()) for name, columns in slabs.items()} | {"all": float(squared.mean())}

    result = {f"error_{name}": value for name, value in error(None).items()}
    several = len(data.modalities) > 1
    for given in ([()] if model.knows_nothing else []) + [(name,) for name in data.modalities if several]:
        result |= {f"error_{name}_given_{'none' if not given else given[0]}": value for name, value in error(given).items()}
    if isinstance(model, VAE):
        q = model.codes(test)
        result["kl"] = float(kl_to_standard(q).mean())
        # Burda et al. 2016: a dimension whose mean varies between people by more than this is in use.
        result["active"] = int((model.codes(data.rows("train")).mu.var(0) > 0.01).sum())
    z = model.z(test)
    checked = normative.check(z)
    result |= {"mean_abs_z": checked.mean_abs, "false_positives": checked.false_positives}
    if (data.people["split"] == "patients").any():
        result |= _patients(model, z)
    return result


def _patients(model: Normative, healthy: Array) -> dict:
    data, card = model.data, model.data.card
    rows = data.rows("patients")
    people, z = data.people.iloc[rows], model.z(rows)
    deviation, of_healthy = normative.mean_deviation(z), normative.mean_deviation(healthy)
    group = people["group"].to_numpy()
    result = {"deviation_CN": float(of_healthy.mean()), "auc_patients": auc(of_healthy, deviation)}
    for name in card["stages"]:
        result |= {f"deviation_{name}": float(deviation[group == name].mean()), f"auc_{name}": auc(of_healthy, deviation[group == name])}
    if len(card["stages"]) > 1:
        result |= _interval("slope", normative.slope(deviation, group, card["stages"]))
    for name in card["scores"]:
        result |= _interval(f"r_{name}", normative.correlation(deviation, people[name].to_numpy(float)))
    for label, mode, within in (("", "two-sided", "person"), ("_published", "published", "region")):
        found = normative.significant(normative.p_values(z, mode=mode), within=within)
        result[f"significant{label}"] = float(100 * found.mean())
    both = np.concatenate([healthy, z])
    alone = normative.significant(normative.p_values(both))[: len(healthy)]
    return result | {"significant_CN": float(100 * alone.mean())}


def _interval(name: str, of: normative.Interval) -> dict:
    return {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}
