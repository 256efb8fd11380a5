"""The lists of experiments: complete, without repetition, and each setting worth what the paper or its code says."""

import dataclasses
from itertools import chain, combinations
from pathlib import Path

import pandas as pd
import pytest
import torch
from _helpers import write_folder

from medvae_lite import cardiac, datasets, experiments, losses
from medvae_lite.cardiac import MODELS, PROFILES, Study
from medvae_lite.experiments import Run
from medvae_lite.gaussian import kl_to_standard, sample
from medvae_lite.nets import FeatureNet
from medvae_lite.runs import RunRecord
from medvae_lite.sivae import ARSIVAE

SIZES = (32, 64, 128)
LISTS = {
    "tables": experiments.TABLES,
    "factorial": list(chain(*experiments.FACTORIAL.values())),
    "instability": list(experiments.INSTABILITY.values()),
    "ablation": list(experiments.ablation(2048).values()),
    "discrepancies": list(experiments.discrepancies(32, epoch_steps=87).values()),
    "objectives": list(experiments.objectives(32, epoch_steps=87).values()),
}
every_list = pytest.mark.parametrize("runs", LISTS.values(), ids=list(LISTS))
every_size = pytest.mark.parametrize("size", SIZES)


class Fake(Study):
    """A study that trains nothing: its records hold what it was asked for."""

    def _train(self, name, fit, settings, *, light):
        asked = {"model": name, "fit": fit, "settings": settings, "frames": self.data.frames, "seed": self.seed}
        model = None if light else ARSIVAE(size=16, latent_dim=8, widths=(8, 8))
        return model, RunRecord(Path(), asked, {}, pd.DataFrame(), {})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return datasets.load(write_folder(tmp_path_factory.mktemp("discs") / "data", count=120, size=16))


def study(data, profile="grid", **changed):
    return Fake(data, profile=profile, phantom=lambda *_, **__: None, **changed)


@every_list
def test_every_run_can_be_built(runs):
    assert runs
    for run in runs:
        family, defaults = MODELS[run.model]
        frame = {"channels": 1, "attributes": 3} if run.frame else {}
        family(size=16, latent_dim=8, widths=(8, 8), **frame, **defaults | run.settings, features=FeatureNet(widths=(8,)))
        dataclasses.replace(PROFILES["grid"].fit, **run.fit)
        assert run.frame in experiments.FRAMES and run.title and run.seeds in (1, 3)


def resolved(study, run):
    """Everything a run's record is named after, but data and seed."""
    return run.model, run.frame, study.settings(run.model, run.settings), run.fit


@every_list
def test_no_list_holds_a_run_twice(data, runs):
    assert len({(run.title, run.frame) for run in runs}) == len(runs)
    everything = [(run.title, resolved(study(data), run)) for run in runs]
    assert not [(a, b) for (a, one), (b, other) in combinations(everything, 2) if one == other]


@pytest.mark.parametrize("profile", ["laptop", "grid"])
def test_everything_needed_is_published_once(tmp_path, profile):
    size = PROFILES[profile].size
    asked = study(datasets.load(write_folder(tmp_path / "data", count=40, size=size)), profile)
    steps = len(asked.data.split("train")) // PROFILES[profile].fit.batch_size
    needed = {
        "laptop": [*experiments.TABLES[:4], *LISTS["factorial"], *experiments.COMPARED],
        "grid": [
            *experiments.objectives(size, epoch_steps=steps).values(),
            *experiments.discrepancies(size, epoch_steps=steps).values(),
            *LISTS["tables"], *LISTS["ablation"], *LISTS["instability"],
        ],
    }[profile]  # fmt: skip
    published = experiments.published(asked)
    listed = [resolved(asked, run) for run in published]
    assert all(a != b for a, b in combinations(listed, 2)), "trained twice"
    for run in needed:
        there = [other for other, what in zip(published, listed) if what == resolved(asked, run)]
        assert len(there) == 1 and there[0].seeds >= run.seeds, run.title
    assert all(any(what == resolved(asked, run) for run in needed) for what in listed), "trained for nobody"


@pytest.mark.parametrize(("profile", "most", "seeds"), [("grid", 3, 3), ("grid", 1, 1), ("smoke", 3, 1), ("grid", 5, 3)])
def test_a_record_for_every_published_seed(data, profile, most, seeds):
    run = Run("x", "ar_sivae", {"eta": 0.5}, "ED", {"steps": 3}, seeds=most)
    records = run.records(study(data, profile, seed=7))
    asked = {"model": "ar_sivae", "fit": {"steps": 3}, "settings": {"eta": 0.5}, "frames": ("ED",)}
    assert [record.config for record in records] == [{**asked, "seed": 7 + more} for more in range(seeds)]


def test_training_gives_the_model_and_its_record_asking_gives_the_record(data):
    run, asked = Run("x", "sivae"), study(data, seed=2)
    config = {"model": "sivae", "fit": {}, "settings": {}, "frames": ("ED", "ES"), "seed": 2}
    model, record = run.train(asked)
    assert isinstance(model, ARSIVAE) and record.config == run.record(asked).config == config


def test_profiles():
    """Each profile that publishes says how many seeds, and the profile of a grid is never the larger one."""
    assert set(experiments.SEEDS) == set(PROFILES) and min(experiments.SEEDS.values()) >= 1
    for profile, grid in experiments.GRID_PROFILE.items():
        large, small = PROFILES[profile], PROFILES[grid]
        assert (small.size, small.subjects, small.fit.steps) <= (large.size, large.subjects, large.fit.steps)


def test_the_tables_hold_four_models_in_three_views():
    views = {(run.title, run.frame) for run in experiments.TABLES}
    assert views == {(title, frame) for title in ("β-VAE", "Attri-VAE", "SIVAE", "AR-SIVAE") for frame in ("", "ED", "ES")}
    # The published squared error is a mean over frames: beside that of one frame, the same KL weighs half as much
    # of the sum that is computed here.
    weights = {(run.title, run.frame): (MODELS[run.model][1] | run.settings)["beta_kl"] for run in experiments.TABLES}
    for title in ("β-VAE", "Attri-VAE"):
        assert weights[title, ""] == 2 * weights[title, "ED"] == 2 * weights[title, "ES"]


def test_the_ablation_weighs_alike_in_both_models():
    """A weight outside the scale s is worth 1 / s of one inside it."""
    runs = experiments.ablation(2 * 32**2)
    assert list(runs) == [(title, gamma) for title in ("Attri-VAE", "AR-SIVAE") for gamma in experiments.GAMMAS]
    scale = ARSIVAE(size=32, latent_dim=8).scale
    for (title, gamma), run in runs.items():
        weight = run.settings["gamma_reg"] / (scale if title == "AR-SIVAE" else 1)
        assert weight == pytest.approx(gamma)


@every_size
def test_every_discrepancy_is_one_change_of_its_own(data, size):
    runs = experiments.discrepancies(size, epoch_steps=87)
    everything = [key for run in runs.values() for key in (*run.settings, *run.fit)]
    assert len(set(everything)) == len(everything), "two discrepancies change the same thing"
    default = study(data).settings("ar_sivae", {})
    own = ARSIVAE(**default, features=FeatureNet(widths=(8,))).config
    for title, run in runs.items():
        assert run.title == title and run.model == "ar_sivae" and (run.settings or run.fit)
        for key, value in run.settings.items():
            assert own[key] != value, f"{title}: {key} is {value} by default"


@every_size
def test_the_reference_is_the_default_with_every_discrepancy(size):
    runs = experiments.objectives(size, epoch_steps=87)
    changes = experiments.discrepancies(size, epoch_steps=87).values()
    assert runs["default"].settings == runs["default"].fit == runs["paper"].fit == {}
    everything = {key: value for run in changes for key, value in run.settings.items()}
    # Twice the generated images changes the variance of a step and nothing else: not made alone.
    assert runs["reference"].settings == everything | {"fakes": 2}
    assert runs["reference"].fit == {key: value for run in changes for key, value in run.fit.items()}


def test_the_learning_rate_drops_after_the_first_epoch_and_never_else():
    fit = experiments.objectives(32, epoch_steps=10)["reference"].fit
    config = dataclasses.replace(PROFILES["grid"].fit, **fit, steps=40, warmup=0)
    rates = [config.rate(step) / config.learning_rate for step in range(40)]
    assert rates == pytest.approx([1.0] * 10 + [0.1] * 30)


def literal(size, objective, *, batch=1):
    """A small model with an objective's settings, a batch, and the step's noise in the order it is drawn."""
    settings = MODELS["ar_sivae"][1] | experiments.objectives(size, epoch_steps=9)[objective].settings
    features = FeatureNet(widths=(8, 8, 8, 8))
    model = ARSIVAE(size=size, latent_dim=8, attributes=3, widths=(8, 8), **settings, features=features)
    with torch.no_grad():
        model.decoder.out.weight *= 10  # untrained, it draws all codes alike, and an error in the exponent is not felt
    x, a = torch.rand(batch, 2, size, size), torch.randn(batch, 3)
    draws = torch.Generator().manual_seed(3)
    fakes = batch * model.fakes
    noise = [torch.randn(n, 8, generator=draws) for n in (batch, fakes if objective == "paper" else batch, fakes)]
    return model, datasets.Batch(x, a, torch.zeros_like(x).byte(), torch.arange(batch)), noise


def vgg_style(model, u, v):
    """A perceptual loss as the public code sums it: over channels, over four maps, of means. One number a batch."""
    features = model.feature_net.features
    pairs = (zip(features(u[:, [c]]), features(v[:, [c]])) for c in range(u.shape[1]))
    return sum((phi - phi_hat).square().mean() for pair in pairs for phi, phi_hat in pair)


def mean_square(u, v):
    return (u - v).square().mean()


def sum_square(u, v):
    return (u - v).square().flatten(1).sum(1)


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 32])
def test_the_reference_is_what_the_public_code_computes(size):
    """Both losses in the public code's own words, of one image: there its batch-wide perceptual loss is the image's.

    Its weights: 0.1 on the mean square and 100 on the perceptual loss of real images, 0.1 on the *sum* of squares
    in the exponent, beta_rec 0.8, beta_kl 1, gamma_reg 0.05, s = 1 / HW, and each source of generated images a quarter.
    beta_neg is 1024 at its 128 pixels; here, what makes the exponent as steep.
    """
    model, batch, (noise, z_prior, again) = literal(size, "reference")
    x, s = batch.image, 1 / size**2
    beta_neg = 0.125 / (2 * s)
    q = model.encode(x)
    z = sample(q, noise)
    rec, fake = model.decode(z), model.decode(z_prior)
    total = s * (0.8 * (0.1 * mean_square(x, rec) + 100 * vgg_style(model, x, rec)) + kl_to_standard(q).mean())
    nats = []
    for image, eps in ((rec, again[:1]), (fake, again[1:])):
        q_image = model.encode(image)
        once_more = model.decode(sample(q_image, eps))
        nats.append((kl_to_standard(q_image), 0.1 * sum_square(image, once_more) + 100 * vgg_style(model, image, once_more)))
        total = total + 0.25 * torch.exp(-2 * s * (0.8 * nats[-1][1] + beta_neg * nats[-1][0])).mean()
    step = losses.Step(torch.Generator().manual_seed(3), torch.device("cpu"))
    torch.testing.assert_close(model.encoder_loss(batch, step).total().mean(), total, rtol=1e-4, atol=0)
    # The decoder: the mean square again in all three reconstruction terms, the KLs halved, eta negligible.
    recon = 0.1 * mean_square(x, rec) + 100 * vgg_style(model, x, rec)
    kls = sum(kl.mean() for kl, _ in nats)
    decoder = s * (0.8 * recon + 0.5 * kls)
    torch.testing.assert_close(model.decoder_loss(batch, step).total().mean(), decoder, rtol=1e-4, atol=0)


@torch.no_grad()
def test_the_attribute_term_of_the_reference():
    model, batch, (noise, *_) = literal(16, "reference", batch=5)
    z, a = sample(model.encode(batch.image), noise)[:, :3], batch.attributes
    pairs = [
        sum(abs(torch.tanh(10 * (z[i, k] - z[j, k])) - torch.sign(a[i, k] - a[j, k])) for i in range(5) for j in range(5))
        for k in range(3)
    ]
    step = losses.Step(torch.Generator().manual_seed(3), torch.device("cpu"))
    terms = model.encoder_loss(batch, step)
    torch.testing.assert_close(terms.gamma_reg * terms.attribute.mean(), 0.05 * sum(pairs) / 25)


@torch.no_grad()
def test_the_paper_is_equations_6_and_7_with_one_generated_image():
    """Read literally: one D(z) from the prior, mean square plus 100 perceptual in every reconstruction term."""
    model, batch, (noise, z_prior, again) = literal(16, "paper")
    x, s = batch.image, 1 / 16**2
    beta_neg = 0.125 / (2 * s)

    def recon(u, v):
        return mean_square(u, v) + 100 * vgg_style(model, u, v)

    q = model.encode(x)
    x_hat, drawn = model.decode(sample(q, noise)), model.decode(z_prior)
    q_drawn = model.encode(drawn)
    once_more = model.decode(sample(q_drawn, again))
    kl, kl_drawn = kl_to_standard(q).mean(), kl_to_standard(q_drawn).mean()
    encoder = s * (0.8 * recon(x, x_hat) + kl) + torch.exp(-2 * s * (0.8 * recon(drawn, once_more) + beta_neg * kl_drawn)) / 2
    decoder = s * 0.8 * recon(x, x_hat) + s * (1e-8 * 0.8 * recon(drawn, once_more) + kl_drawn)
    step = losses.Step(torch.Generator().manual_seed(3), torch.device("cpu"))
    torch.testing.assert_close(model.encoder_loss(batch, step).total().mean(), encoder, rtol=1e-4, atol=0)
    torch.testing.assert_close(model.decoder_loss(batch, step).total().mean(), decoder, rtol=1e-4, atol=0)


def test_the_published_repulsion_is_that_of_the_papers_weights():
    """2 s beta_neg with s = 1 / 128² and beta_neg = 1024, and it does not change with the size of the image."""
    for size in SIZES:
        assert experiments.discrepancies(size, epoch_steps=9)["repulsion 0.125"].settings == {"repulsion": 2 * 1024 / 128**2}


def test_the_instability_runs_hold_one_that_works_and_ways_to_fail():
    slopes = {run.settings["repulsion"] for run in experiments.INSTABILITY.values() if "repulsion" in run.settings}
    assert slopes == set(experiments.REPULSIONS) and sorted(experiments.REPULSIONS) == list(experiments.REPULSIONS)
    assert PROFILES["grid"].repulsion in slopes, "the default must be among what it is compared with"
    assert cardiac.MODELS[experiments.INSTABILITY["no adversary"].model][0] is not ARSIVAE


def test_the_factorial_crosses_adversary_and_perceptual_term():
    for title, runs in experiments.FACTORIAL.items():
        for run in runs:
            family, defaults = MODELS[run.model]
            settings = defaults | run.settings
            assert (family is ARSIVAE) == (title in ("adversary", "both")), run.title
            assert (settings.get("alpha_pl", 0) > 0) == (title in ("perceptual", "both")), run.title
            assert settings["gamma_reg"] > 0
