"""The experiments on structured priors: which hierarchies are trained on brain slices, and how large.

Chapters and the run publisher both go through `Study`, so a table and a figure can only speak of the same runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from medvae_lite import runs
from medvae_lite.brains import Brains
from medvae_lite.hierarchy_scores import evaluate
from medvae_lite.hvae import PRIORS, HVAE
from medvae_lite.losses import Step
from medvae_lite.published import train_or_load
from medvae_lite.train import FitConfig

__all__ = ["LESION_WEIGHT", "PROFILES", "REMEDIES", "TITLES", "TWO_BY_TWO", "Profile", "Study", "published", "stored"]

LESION_WEIGHT = 3.0
"""Weight of the segmentation loss in supervised models; the paper does not give its own."""
TITLES = {"vae": "VAE", "nvae": "NVAE", "nvmp": "NVMP", "nvmp+": "NVMP+"}


@dataclass(frozen=True)
class Profile:
    """How large an experiment is.

    Arguments:
        phantom: Options of the brain phantom.
        fit: How the models are trained.
        settings: Arguments of `HVAE` that go with the size.
        seeds: Seeds per published run.
        draws, most: Draws of the importance-weighted bound; test slices that it is computed on and that are edited.
    """

    phantom: dict
    fit: FitConfig
    settings: dict
    seeds: int
    draws: int = 50
    most: int = 48


# Gradients are sums over pixels: clipped only where they are out of the ordinary.
_FIT = FitConfig(steps=800, batch_size=16, learning_rate=2e-3, grad_clip=20_000.0, speed="exact")
PROFILES = {
    "smoke": Profile(
        {"subjects": 40, "slices": 4, "size": 32}, replace(_FIT, steps=25, batch_size=8),
        {"widths": (4, 6, 8, 8, 8), "components": 4, "cycle": 25, "ramp": 0.3}, seeds=1, draws=4, most=8,
    ),
    "laptop": Profile(
        {"subjects": 300, "slices": 8, "size": 64}, _FIT, {"cycle": 800, "ramp": 0.3}, seeds=3,
    ),
    "paper": Profile(
        {"subjects": 815, "slices": 24, "size": 112},
        replace(_FIT, steps=100_000, batch_size=64, learning_rate=5e-5, decay_from=1.0, speed="auto"),
        {"widths": (16, 32, 48, 64, 96), "cycle": 10_000, "ramp": 0.5}, seeds=3,
    ),
}  # fmt: skip
"""Sizes; the last is that of Hu et al. 2022 where they give it, with the Lesjak-sized phantom for their cohorts."""

# One change each, to NVMP where no other is named: remedies against layers that fall silent, and readings of what the paper leaves open.
REMEDIES = {
    "no free bits": ("nvmp", {"free_bits": 0.0}),
    "balanced as in NVAE's code": ("nvmp", {"balancing": "per_dim"}),
    "not balanced, no free bits": ("nvmp", {"balancing": "none", "free_bits": 0.0}),
    "coarser noise, σ 0.3": ("nvmp", {"sigma_x": 0.3}),
    "NVMP+, reading B": ("nvmp+", {"reading": "B"}),
    "NVMP+, a mixture at every place": ("nvmp+", {"mixture": "per_location"}),
}


# Does the prior move, and what does the encoder see? Prior and changed settings of each of the four cells.
TWO_BY_TWO = {
    ("fixed", "the image alone"): ("vae", {}),
    ("fixed", "the layers above too"): ("vae", {"bidirectional": True}),
    ("moving", "the image alone"): ("nvae", {"bidirectional": False}),
    ("moving", "the layers above too"): ("nvae", {}),
}


def published(study: Study) -> list[tuple[str, bool, dict]]:
    """Prior, supervised or not, and changed settings of every model the book publishes for a study and its seed."""
    listed = [(prior, supervised, {}) for prior in PRIORS for supervised in ((False, True) if study.lesions else (False,))]
    if not study.lesions:
        return listed
    cells = [(prior, settings) for prior, settings in TWO_BY_TWO.values() if settings]
    listed += [(prior, False, settings) for prior, settings in cells]
    if not study.seed:
        listed += [(prior, True, settings) for prior, settings in cells]
        listed += [(prior, False, settings) for prior, settings in REMEDIES.values()]
    return listed


def stored(name: str, runs_root: str | Path) -> dict:
    """Figures measured once on real patients and kept with the run records, such as "lesions-open-ms".

    Raises:
        FileNotFoundError: If they are neither under `runs_root` nor with the published runs.
    """
    places = [Path(runs_root), Path(__file__).resolve().parents[1] / "book" / "runs"]
    found = next((place / f"{name}.json" for place in places if (place / f"{name}.json").is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{name}.json is neither in {runs_root} nor with the published runs; make it with `python book/real_slices.py RAW`")
    return json.loads(found.read_text())


@dataclass
class Study:
    """One set of slices, one profile, one seed: trains or loads whatever model is asked for.

    Arguments:
        data: The prepared slices, phantom or real.
        profile: "smoke", "laptop" or "paper".
        seed: Seeds initial weights, order of slices and noise.
        device: Where to train.
        runs_root: Where run records are looked up and written.
        retrain: Train although a record exists, once in the life of a study and its repeats.
        progress: Whether to show progress bars.
    """

    data: Brains
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
    def lesions(self) -> bool:
        """Whether there are lesion masks to supervise with."""
        return bool((self.data.lesion_mm3[self.data.rows("train")] > 0).any())

    def repeats(self) -> list[Study]:
        """This study with its own seed, the next one, and so on, as many as the profile publishes."""
        return [replace(self, seed=self.seed + more) for more in range(self.size.seeds)]

    def train(self, prior: str, *, supervised: bool = False, **settings) -> tuple[HVAE, runs.RunRecord]:
        """The model of that prior, in evaluation mode, and its run record.

        Arguments:
            prior: One of `medvae_lite.hvae.PRIORS`.
            supervised: Whether layer 2 is taught where lesions are.
            settings: Arguments of `HVAE` to replace.
        """
        return self._train(prior, supervised, settings, light=False)

    def record(self, prior: str, *, supervised: bool = False, **settings) -> runs.RunRecord:
        """The run record alone."""
        return self._train(prior, supervised, settings, light=True)[1]

    def records(self, prior: str, *, supervised: bool = False, **settings) -> list[runs.RunRecord]:
        """One record a seed."""
        return [one.record(prior, supervised=supervised, **settings) for one in self.repeats()]

    def _train(self, prior: str, supervised: bool, settings: dict, *, light: bool):
        if prior not in PRIORS:
            raise ValueError(f"`prior` must be one of {', '.join(PRIORS)}, got {prior!r}")
        if supervised and not self.lesions:
            raise ValueError("`supervised` needs lesion masks, and no training slice has a lesion; leave it False")
        # The plain VAE has no dependence between layers at all, in its posterior neither.
        chosen = {"sigma_x": 0.15, "free_bits": 8.0, "balancing": "times_size", "bidirectional": prior != "vae"}
        settings = {**chosen, "lesion_weight": LESION_WEIGHT * supervised, "components": 16, **self.size.settings, **settings}
        # Each pseudo-input starts at a person of its own.
        settings["components"] = min(settings["components"], (self.data.people["split"] == "train").sum().item())

        def build() -> HVAE:
            model = HVAE(size=self.data.size, prior=prior, **settings)
            step = Step(torch.Generator().manual_seed(self.seed), torch.device("cpu"))
            return model.start_from(self.data.one_each(model.config["components"]), step) if "nvmp" in prior else model

        job = (prior, self.seed, repr(settings))
        sequence, kind = self.data.card["sequence"].lower(), "supervised" if supervised else "free"
        model, record = train_or_load(
            f"hvae_{sequence}-{prior.replace('+', '_plus')}-{kind}-{self.profile}-seed{self.seed}", build, self.data, self.size.fit,
            seed=self.seed, device=self.device, runs_root=self.runs_root, retrain=self.retrain and job not in self._retrained,
            progress=self.progress, light=light, evaluate=lambda model: evaluate(model.cpu().eval(), self.data, seed=self.seed, draws=self.size.draws, most=self.size.most),
        )  # fmt: skip
        self._retrained.add(job)
        return model, record
