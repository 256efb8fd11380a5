"""Region tables as a study: reading, splitting, calibrating through the mask, and judging people."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep import phantom
from medvae_lite import cohort, judges
from medvae_lite.cohort import Study, auc, evaluate
from medvae_lite.judges import Linear
from medvae_lite.regions import load


@pytest.fixture(scope="module")
def folder():
    return phantom("regions", subjects=900)


@pytest.fixture(scope="module")
def data(folder):
    return load(folder)


@pytest.fixture(scope="module")
def study(data, tmp_path_factory):
    torch.manual_seed(0)
    return Study(data, profile="smoke", runs_root=tmp_path_factory.mktemp("runs"), progress=False)


@pytest.fixture(scope="module")
def multimodal(study):
    return study.train("multimodal")


def test_sums_are_left_out_unless_asked_for(folder, data):
    assert data.sizes == {"cortical": 64, "subcortical": 31, "hippocampal": 16}
    assert load(folder, aggregates=True).sizes["subcortical"] == 35
    assert "TotalGM" not in data.regions
    assert data.identity != load(folder, aggregates=True).identity


def test_columns_are_standardised_on_training_people_alone(data):
    train = data.x[data.rows("train")]
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(train.std(0, ddof=1), 1, atol=1e-9)
    changed = replace(data, raw=np.where((data.people["split"] == "patients").to_numpy()[:, None], 3 * data.raw, data.raw))
    np.testing.assert_array_equal(changed.x[data.rows("train")], train)


def test_the_published_recipe(data):
    published = replace(data, scaling="minmax", icv="divide", age="years", categories=("sex",))
    train = published.x[published.rows("train")]
    assert train.min() == 0 and train.max() == 1
    share = data.raw / data.people["icv_mm3"].to_numpy()[:, None]
    column = share[data.rows("train"), 7]
    np.testing.assert_allclose(train[:, 7], (column - column.min()) / (column.max() - column.min()))
    assert published.x.max() > 1 or published.x.min() < 0, "others can fall outside"
    assert published.identity != data.identity


def test_nobody_is_in_two_splits_and_the_holdout_is_in_none_of_the_others(data):
    people = data.people
    assert people["subject"].is_unique
    sets = {name: set(data.rows(name)) for name in ("train", "val", "holdout", "test", "patients")}
    assert sum(map(len, sets.values())) == len(people)
    assert (people.iloc[data.rows("healthy")]["group"] == "CN").all()


def test_views_keep_columns_by_name(data):
    some = data.only("hippocampal", "cortical")
    assert list(some.modalities) == ["cortical", "hippocampal"]
    np.testing.assert_array_equal(some.raw[:, some.regions.index("rh_CA1")], data.raw[:, data.regions.index("rh_CA1")])
    assert data.joined().sizes == {"all": 111}
    with pytest.raises(ValueError, match="modalities must be among cortical, subcortical, hippocampal, got thickness"):
        data.only("thickness")


def test_a_small_holdout_and_an_unknown_split_are_refused(data):
    few = data.people.assign(split=lambda t: t["split"].where(t["split"] != "holdout", "test"))
    few.loc[data.rows("holdout")[:29], "split"] = "holdout"
    with pytest.raises(ValueError, match="`holdout` must have at least 30 healthy people to calibrate with, got 29"):
        replace(data, people=few).rows("holdout")
    with pytest.raises(ValueError, match="`split` must be one of .*train.* got 'all'"):
        data.rows("all")


def test_a_modality_missing_for_everyone_who_trains_is_refused(data):
    raw = data.raw.copy()
    raw[np.ix_(data.rows("train"), [data.regions.index(n) for n in data.modalities["hippocampal"]])] = np.nan
    with pytest.raises(ValueError, match="'hippocampal' is missing for everyone in the training split"):
        replace(data, raw=raw).split("train")
    raw = data.raw.copy()
    raw[np.ix_(data.rows("val"), [data.regions.index(n) for n in data.modalities["hippocampal"]])] = np.nan
    with pytest.raises(ValueError, match="'hippocampal' is missing for everyone here"):
        replace(data, raw=raw).split("val")


def test_a_folder_of_something_else_is_refused(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="is no prepared region table: card.json, subjects.csv, regions.npy missing"):
        load(tmp_path)
    card = json.loads((folder / "card.json").read_text())
    for name in ("subjects.csv", "regions.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "card.json").write_text(json.dumps(card | {"kind": "cardiac"}))
    with pytest.raises(ValueError, match="holds 'cardiac' data, and this needs region tables"):
        load(tmp_path)
    np.save(tmp_path / "regions.npy", np.zeros((3, 4), np.float32))
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"contradicts itself: regions \(3, 4\)"):
        load(tmp_path)


def test_a_record_is_found_again_and_predicts_the_same(study, multimodal):
    again, record = study.train("multimodal")
    assert record.folder == multimodal[1].folder
    rows = study.data.rows("test")
    np.testing.assert_array_equal(again.deviation(rows), multimodal[0].deviation(rows))


def test_metrics_in_the_record_are_those_of_the_kept_weights(multimodal):
    model, record = multimodal
    for name, value in evaluate(model).items():
        assert record.metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_healthy_people_are_calibrated_through_every_mask(multimodal, data):
    """A person without a modality is compared with healthy people seen without it."""
    model, rows = multimodal[0], data.rows("test")
    for given in (None, ("cortical",), ("hippocampal",), ()):
        z = model.z(rows, given)
        assert abs(np.abs(z).mean() - 0.798) < 0.06, given
    wrong = model.calibration()(model.deviation(rows, ("hippocampal",)))
    assert np.abs(wrong).mean() > 0.86, "with the calibration of another mask healthy people look ill"


def test_gaps_in_a_persons_row_are_a_mask(multimodal, data):
    model, rows = multimodal[0], data.rows("test")[:5]
    columns = [data.regions.index(name) for name in data.modalities["subcortical"]]
    raw = data.raw.copy()
    raw[np.ix_(rows, columns)] = np.nan
    gappy = judges.VAE(model.model, replace(data, raw=raw))
    expected = model.codes(rows, ("cortical", "hippocampal"))
    torch.testing.assert_close(gappy.codes(rows).mu, expected.mu)
    assert np.isnan(gappy.deviation(rows)[:, columns]).all()
    others = np.setdiff1d(np.arange(len(data.regions)), columns)
    np.testing.assert_allclose(gappy.z(rows)[:, others], model.z(rows, ("cortical", "hippocampal"))[:, others], rtol=1e-6)
    mixed = np.append(rows, data.rows("test")[5:8])
    np.testing.assert_allclose(gappy.z(mixed)[5:], model.z(mixed)[5:], rtol=1e-6, err_msg="the others keep their own calibration")


def test_retraining_happens_once_in_a_study(data, tmp_path):
    again = Study(data, profile="smoke", runs_root=tmp_path, retrain=True, progress=False)
    first = again.record("hippocampal").folder.stat().st_ino
    assert again.record("hippocampal").folder.stat().st_ino == first, "asked again, loaded"
    anew = Study(data, profile="smoke", runs_root=tmp_path, retrain=True, progress=False)
    assert anew.record("hippocampal").folder.stat().st_ino != first, "another study trains"


def test_regression_without_a_whole_person_is_refused(data):
    raw = data.raw.copy()
    train = data.rows("train")
    hippocampal = [data.regions.index(n) for n in data.modalities["hippocampal"]]
    subcortical = [data.regions.index(n) for n in data.modalities["subcortical"]]
    raw[np.ix_(train[::2], hippocampal)] = np.nan
    raw[np.ix_(train[1::2], subcortical)] = np.nan
    with pytest.raises(ValueError, match="training people who have every modality, got 0"):
        Linear(replace(data, raw=raw))


def test_an_unknown_modality_or_model_is_refused(multimodal, study, data):
    with pytest.raises(ValueError, match="`given` must be among the model's modalities cortical, .* got 'pet'"):
        multimodal[0].z(data.rows("test"), ("pet",))
    with pytest.raises(ValueError, match="`name` must be one of multimodal, .* got 'mopoe'"):
        study.train("mopoe")


@pytest.mark.parametrize("components", [0, 5])
def test_baselines_are_calibrated_and_take_masks(data, components):
    linear = Linear(data, components=components)
    rows = data.rows("test")
    assert abs(np.abs(linear.z(rows)).mean() - 0.798) < 0.06
    given = linear.deviation(rows, ("hippocampal",))
    columns = [data.regions.index(name) for name in data.modalities["hippocampal"]]
    error = lambda d: float((d[:, columns] ** 2).mean())
    if components:
        assert error(given) < 0.7 * error(linear.deviation(rows, ()))
    else:
        np.testing.assert_array_equal(given, linear.deviation(rows))


def test_every_arm_trains_and_is_measured(study):
    for name in cohort.ARMS:
        metrics = study.record(name).metrics
        assert np.isfinite(list(metrics.values())).all(), name
        assert {"slope", "r_adas13", "r_ravlt_immediate", "significant", "auc_AD", "kl", "active"} <= set(metrics)
    assert study.record("hippocampal").config["model"]["sizes"] == {"hippocampal": 16}


def test_auc_by_hand():
    assert auc(np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0])) == pytest.approx((2 + 3) / 6)




def test_a_small_table_gets_a_smaller_network_and_an_earlier_end(data, tmp_path):
    few = Study(data, profile="laptop", runs_root=tmp_path, progress=False)
    assert len(data.rows("train")) < cohort.SMALL
    config = few.record("hippocampal", fit={"steps": 30}).config
    assert config["model"]["hidden"] == [32] and config["fit"]["batch_size"] == 64 and config["fit"]["steps"] == 30


def test_only_models_whose_modalities_are_there_are_offered(data):
    few = Study(data.only("cortical", "subcortical"), profile="smoke")
    assert set(cohort.ARMS) - set(few.arms) == {"hippocampal"}
