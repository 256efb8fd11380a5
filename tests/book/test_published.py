"""A sample of the published runs, measured again from their weights on a phantom made on this machine."""

import json
import re
from pathlib import Path

import pytest
import torch

from data_prep import phantom
from medvae_lite import cardiac, datasets, experiments, runs

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "book" / "runs"
RECORDS = sorted(path.parent for path in RUNS.glob("*/metrics.json"))
SAMPLE = [f for f in RECORDS if re.match(r"(attri_vae_published|sivae)-laptop-seed0-|beta_vae\w*-grid-seed0-", f.name)]


def test_records_are_there():
    assert {folder.name.split("-")[0] for folder in SAMPLE} == {"attri_vae_published", "sivae", "beta_vae_published"}


@pytest.mark.parametrize("folder", RECORDS, ids=lambda f: f.name)
def test_record_is_whole_and_named_after_its_configuration(folder):
    record = runs.load_record(folder)
    label = folder.name.rsplit("-", 1)[0]
    assert runs.run_name(label, record.config) == folder.name
    assert record.epochs["step"].iloc[-1] == record.manifest["steps"]
    assert record.has_weights == (record.config["seed"] == 0 or folder.name.startswith("features-"))
    assert not record.has_weights or (folder / runs.WEIGHTS).stat().st_size < 5e6
    json.dumps(record.metrics, allow_nan=False)


def test_records_stay_small():
    assert sum(path.stat().st_size for path in RUNS.rglob("*") if path.is_file()) < 60e6


@pytest.mark.parametrize("profile", ["laptop", "grid"])
def test_every_run_the_experiments_list_is_published(profile):
    size = cardiac.PROFILES[profile]
    data = datasets.load(phantom("cardiac", subjects=size.subjects, size=size.size))
    study = cardiac.Study(data, profile=profile, phantom=phantom, runs_root=RUNS, progress=False)
    for run in experiments.published(study):
        for record in run.records(study):
            assert record.config["data"] in (data.identity, data.only("ED").identity, data.only("ES").identity)
            assert record.folder in RECORDS, f"{run.title}: not published; `make runs`"


@pytest.mark.parametrize("folder", SAMPLE, ids=lambda f: f.name)
def test_metrics_follow_from_weights(folder):
    """Another processor draws the phantom with other last digits: figures agree to a part in a hundred."""
    name = folder.name.split("-")[1]
    profile = cardiac.PROFILES[name]
    data = datasets.load(phantom("cardiac", subjects=profile.subjects, size=profile.size))
    study = cardiac.Study(data, profile=name, phantom=phantom, runs_root=RUNS, progress=False)
    record = runs.load_record(folder)
    assert record.config["data"] == data.identity, "the phantom has changed since this run: train it again"
    torch.manual_seed(0)
    family, _ = cardiac.MODELS[folder.name.split("-")[0]]
    settings = {k: v for k, v in record.config["model"].items() if k != "class"}
    model = record.weights_into(family(**settings, features=study.features("loss")))
    measured = cardiac.evaluate(model, data, study.features("metric"))
    for name in ("mse", "ssim", "perceptual", "kl", "scc", "interpretability"):
        assert measured[name] == pytest.approx(record.metrics[name], rel=0.01), name
