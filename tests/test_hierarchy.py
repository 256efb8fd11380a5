"""The experiments on structured priors: which models there are, and that a trained one is found again."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.brain_phantom import prepare
from medvae_lite import hierarchy, published, runs
from medvae_lite.brains import load
from medvae_lite.hierarchy import LESION_WEIGHT, PROFILES, REMEDIES, TITLES, Study
from medvae_lite.hvae import PRIORS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(prepare(tmp_path_factory.mktemp("brains") / "ms", subjects=20, slices=3, size=32))


@pytest.fixture(scope="module")
def atrophy(tmp_path_factory):
    return load(prepare(tmp_path_factory.mktemp("brains") / "ad", subjects=10, slices=2, size=32, disease="ad"))


@pytest.fixture
def short(monkeypatch):
    """The smoke profile with two steps and nothing measured; the number of trainings is counted."""
    smoke, fits = PROFILES["smoke"], []
    monkeypatch.setitem(PROFILES, "smoke", replace(smoke, fit=replace(smoke.fit, steps=2), seeds=2))
    monkeypatch.setattr(hierarchy, "evaluate", lambda model, data, *, seed, **_: {"measured": float(seed)})
    real = published.fit
    monkeypatch.setattr(published, "fit", lambda *args, **options: fits.append(options["seed"]) or real(*args, **options))
    return fits


@pytest.fixture
def configs(monkeypatch):
    """Labels and configurations of the models a study would train."""
    seen = []

    def look(label, build, data, fit, *, seed, **options):
        torch.manual_seed(seed)
        model = build()
        seen.append(SimpleNamespace(label=label, model=model, seed=seed, fit=fit, **model.config))
        return model, runs.RunRecord(Path(label), {}, {}, pd.DataFrame(), {})

    monkeypatch.setattr(hierarchy, "train_or_load", look)
    return seen


def study(data, root="runs", **options):
    return Study(data, profile="smoke", runs_root=root, progress=False, **options)


# Which models there are


def test_models_with_lesions_come_supervised_too_and_the_first_seed_with_remedies(data):
    both = [(prior, supervised, {}) for prior in PRIORS for supervised in (False, True)]
    cells = [("vae", False, {"bidirectional": True}), ("nvae", False, {"bidirectional": False})]
    remedies = [(prior, False, settings) for prior, settings in REMEDIES.values()]
    taught = [(prior, True, settings) for prior, _, settings in cells]
    assert hierarchy.published(study(data)) == both + cells + taught + remedies
    for seed in (1, 2):
        assert hierarchy.published(study(data, seed=seed)) == both + cells


@pytest.mark.parametrize("seed", [0, 1])
def test_models_without_lesions_are_one_a_prior(atrophy, seed):
    assert hierarchy.published(study(atrophy, seed=seed)) == [(prior, False, {}) for prior in PRIORS]


def test_no_model_is_published_twice(data, configs):
    """Every remedy changes something that was not so already."""
    one = study(data)
    for prior, supervised, settings in hierarchy.published(one):
        one.train(prior, supervised=supervised, **settings)
    assert len({repr(sorted(c.model.config.items())) for c in configs}) == len(configs) == 8 + 4 + len(REMEDIES)
    for (prior, settings), c in zip(REMEDIES.values(), configs[12:], strict=True):
        assert c.prior == prior and {name: c.model.config[name] for name in settings} == settings


def test_remedies_change_one_thing_each_from_a_published_model(data, configs):
    one = study(data)
    for prior in PRIORS:
        one.train(prior)
    plain = {c.prior: c.model.config for c in configs}
    configs.clear()
    for title, (prior, settings) in REMEDIES.items():
        one.train(prior, **settings)
        changed = {name for name, value in configs[-1].model.config.items() if plain[prior][name] != value}
        assert changed == set(settings) and len(changed) == 1 + title.count(", no"), title


def test_every_prior_has_a_title_and_every_profile_fits_its_phantom():
    assert tuple(TITLES) == PRIORS
    assert {name: p.phantom["size"] for name, p in PROFILES.items()} == {"smoke": 32, "laptop": 64, "paper": 112}
    for profile in PROFILES.values():
        assert profile.settings["cycle"] <= profile.fit.steps
        assert profile.settings.get("components", 16) <= round(0.6 * profile.phantom["subjects"])


# What a study gives its models


@pytest.mark.parametrize("prior", PRIORS)
def test_only_the_plain_vae_does_not_see_the_layers_above(data, configs, prior):
    for supervised in (False, True):
        study(data).train(prior, supervised=supervised)
        assert configs[-1].bidirectional == (configs[-1].model.mixers is not None) == (prior != "vae")


def test_settings_are_those_of_the_profile_unless_given(data, configs):
    study(data).train("nvmp")
    study(data).train("nvmp", sigma_x=0.3, widths=(4, 4, 4, 4, 4))
    (plain, changed), smoke = configs, PROFILES["smoke"].settings
    assert (plain.sigma_x, plain.free_bits, plain.balancing) == (0.15, 8.0, "times_size")
    assert (plain.cycle, plain.components, plain.widths) == (smoke["cycle"], smoke["components"], list(smoke["widths"]))
    assert (changed.sigma_x, changed.widths, changed.components) == (0.3, [4, 4, 4, 4, 4], plain.components)
    assert plain.fit == PROFILES["smoke"].fit and plain.size == [32, 32]


def test_supervision_is_a_head_and_a_weight(data, configs):
    study(data).train("nvae")
    study(data).train("nvae", supervised=True)
    free, supervised = configs
    assert free.lesion_weight == 0 and free.model.lesion_head is None
    assert supervised.lesion_weight == LESION_WEIGHT and supervised.model.lesion_head is not None and supervised.lesion_layer == 2


@pytest.mark.parametrize("prior", ["nvmp", "nvmp+"])
def test_pseudo_inputs_start_at_different_people(data, configs, prior):
    study(data, seed=3).train(prior)
    found, people = configs[0].model.pseudo_inputs.detach(), data.one_each(4)
    assert (found - people).abs().max() < 0.1 and (found - people).std() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("prior", "supervised", "label"),
    [
        ("vae", False, "hvae_flair-vae-free-smoke-seed5"),
        ("nvmp+", True, "hvae_flair-nvmp_plus-supervised-smoke-seed5"),
        ("nvae", False, "hvae_flair-nvae-free-smoke-seed5"),
    ],
)
def test_labels_tell_sequence_prior_supervision_profile_and_seed(data, configs, prior, supervised, label):
    study(data, seed=5).train(prior, supervised=supervised)
    assert configs[0].label == label and configs[0].seed == 5


def test_labels_of_another_sequence_are_others(atrophy, configs):
    study(atrophy).train("nvmp")
    assert configs[0].label == "hvae_t1-nvmp-free-smoke-seed0"


def test_unknown_priors_and_supervision_without_lesions_are_refused(data, atrophy, tmp_path):
    with pytest.raises(ValueError, match=r"^`prior` must be one of vae, nvae, nvmp, nvmp\+, got 'gan'$"):
        study(data, tmp_path).train("gan")
    with pytest.raises(ValueError, match="^`supervised` needs lesion masks, and no training slice has a lesion; leave it False$"):
        study(atrophy, tmp_path).record("nvae", supervised=True)
    assert study(data).lesions and not study(atrophy).lesions and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (6, 6), (7, 6), (100, 6)])
def test_there_are_no_more_pseudo_inputs_than_people_to_start_them_at(atrophy, configs, asked, given):
    study(atrophy).train("nvmp", components=asked)
    assert configs[0].components == len(configs[0].model.pseudo_inputs) == given
    assert len(torch.unique((configs[0].model.pseudo_inputs.detach() * 5).round().flatten(1), dim=0)) == given


# Records


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """One model of the smoke profile, trained and measured as it is."""
    root = tmp_path_factory.mktemp("runs")
    return root, *study(data, root).train("nvmp", supervised=True)


def test_a_record_is_found_again_and_nothing_trained(trained, data, monkeypatch):
    root, model, record = trained
    monkeypatch.setattr(published, "fit", None)  # a second training would fail
    again, found = study(data, root).train("nvmp", supervised=True)
    assert found.folder == record.folder and found.folder.name.startswith("hvae_flair-nvmp-supervised-smoke-seed0-")
    assert not again.training and all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    assert study(data, root).record("nvmp", supervised=True).metrics == record.metrics


def test_another_configuration_is_no_match(trained, data, monkeypatch):
    monkeypatch.setattr(published, "fit", None)
    for options, settings in (({"seed": 1}, {}), ({}, {"sigma_x": 0.2}), ({}, {"supervised": False})):
        with pytest.raises(TypeError):
            study(data, trained[0], **options).train("nvmp", **{"supervised": True} | settings)


def test_metrics_in_the_record_are_those_of_the_kept_weights(trained, data):
    _, model, record = trained
    smoke = PROFILES["smoke"]
    for name, value in hierarchy.evaluate(model, data, seed=0, draws=smoke.draws, most=smoke.most).items():
        assert record.metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name
    assert {"psnr", "neg_elbo", "nll_iw", "clusters_used", "missed_all", "lesion_dice", "mixed_anatomy"} <= set(record.metrics)


def test_training_was_recorded_step_by_step(trained):
    record = trained[2]
    assert record.manifest["steps"] == PROFILES["smoke"].fit.steps and record.manifest["skipped"] == 0
    assert record.epochs["step"].iloc[-1] == PROFILES["smoke"].fit.steps and {"val_recon", "elbo_kl_4", "elbo_lesion"} <= set(record.epochs)
    assert np.isfinite(record.epochs.to_numpy(float)).all()


def test_a_light_record_does_for_figures_and_not_for_the_model(data, tmp_path, short):
    one = study(data, tmp_path)
    first = one.record("nvae")
    (first.folder / runs.WEIGHTS).unlink()
    found = one.record("nvae")
    assert found.folder == first.folder and found.metrics == {"measured": 0.0} and not found.has_weights and len(short) == 1
    _, again = one.train("nvae")
    assert again.has_weights and len(short) == 2, "trained for its weights"


def test_retraining_happens_once_in_a_study_and_its_repeats(data, tmp_path, short):
    one = study(data, tmp_path, retrain=True)
    one.record("vae")
    one.train("vae")
    assert short == [0]
    one.records("vae")
    assert short == [0, 1], "the first seed was trained already"
    one.record("nvae")
    one.record("vae", sigma_x=0.3)
    assert short == [0, 1, 0, 0], "other models are other jobs"
    study(data, tmp_path, retrain=True).records("vae")
    assert short == [0, 1, 0, 0, 0, 1], "another study trains every seed again"
    study(data, tmp_path).records("vae")
    assert len(short) == 6


def test_there_is_a_record_for_every_seed(data, tmp_path, short):
    records = study(data, tmp_path, seed=4).records("nvae")
    assert [record.config["seed"] for record in records] == short == [4, 5]
    assert [record.metrics["measured"] for record in records] == [4, 5]
    assert len({record.folder for record in records}) == 2


def test_seeds_of_one_study_train_the_same_model_twice(data, tmp_path, short):
    first, _ = study(data, tmp_path / "a").train("nvmp")
    torch.manual_seed(99)
    second, _ = study(data, tmp_path / "b").train("nvmp")
    other, _ = study(data, tmp_path / "b", seed=1).train("nvmp")
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_other_data_are_another_run(data, atrophy, tmp_path, short):
    one = study(data, tmp_path).record("vae")
    changed = replace(data, card=data.card | {"identity": "another"})
    two = study(changed, tmp_path).record("vae")
    assert one.folder != two.folder and len(short) == 2
    shutil.rmtree(two.folder)
    assert study(data, tmp_path).record("vae").folder == one.folder and len(short) == 2


def test_a_device_that_is_not_there_is_refused(data):
    with pytest.raises(ValueError, match="`device` must be one of auto, cpu"):
        study(data, device="tpu")
