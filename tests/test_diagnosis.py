"""The comparison of tables on cohorts made by hand, in which it is known who can tell what."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from _helpers import ATTRIBUTES, write_folder

from medvae_lite import cardiac, crossval, diagnosis, runs
from medvae_lite.crossval import FOLDS
from medvae_lite.datasets import Batch, load
from medvae_lite.diagnosis import Cohort, Report
from medvae_lite.sivae import AttriVAE

BOOK = Path(__file__).parents[1] / "book" / "runs"
N = 60


def by_volume(subjects):
    """Three groups of equal size, told by LVEDV without error."""
    return subjects.assign(group=pd.qcut(subjects["LVEDV_ml"], 3, labels=["low", "mid", "top"]).astype(str))


def prepared(root, *, mend=by_volume, duplicates=(), count=N):
    folder = write_folder(root, count=count, size=32, mend=mend)
    card = json.loads((folder / "card.json").read_text())
    card |= {"duplicates": [list(pair) for pair in duplicates], "citation": "A, 2000", "licence": "CC0"}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return diagnosis.cohort(load(prepared(tmp_path_factory.mktemp("cohort"))))


@pytest.fixture(scope="module")
def codes(one):
    """A code whose first dimensions follow the volumes, and one of noise."""
    rng = np.random.default_rng(0)
    good = np.hstack([np.argsort(np.argsort(one.volumes, 0), 0) / N, rng.standard_normal((N, 2))])
    return {"AR-SIVAE": good, "untrained": rng.standard_normal((N, 8))}


@pytest.fixture(scope="module")
def report(one, codes):
    return diagnosis.evaluate(one, codes, repeats=1, shuffles=2, progress=False)


# The cohort


def test_cohort_is_everyone_whatever_the_split(one):
    assert set(one.data.subjects["split"]) == {"train", "val", "test"}
    assert len(one.batch.image) == len(one.group) == len(one.scan) == N
    np.testing.assert_array_equal(one.volumes, one.data.attribute_ml)
    np.testing.assert_array_equal(one.batch.index, np.arange(N))
    np.testing.assert_array_equal(one.scan, np.arange(N))


def test_a_scan_held_twice_has_one_number(tmp_path):
    one = diagnosis.cohort(load(prepared(tmp_path, duplicates=[("004", "017"), ("020", "021", "050")])))
    assert one.scan[17] == one.scan[4] == 4 and one.scan[50] == one.scan[21] == one.scan[20] == 20
    assert len(np.unique(one.scan)) == N - 3


def test_take_keeps_rows_together(one):
    rows = np.array([30, 2, 7])
    some = one.take(rows)
    np.testing.assert_array_equal(some.batch.index, rows)
    torch.testing.assert_close(some.batch.image, one.batch.image[[30, 2, 7]])
    for name in ("volumes", "group", "scan"):
        np.testing.assert_array_equal(getattr(some, name), getattr(one, name)[rows])


@pytest.mark.parametrize(("mend", "sentence"), [
    (lambda s: s, "does not give each subject a `group`: there is nothing to tell"),
    (lambda s: s.assign(group=["a"] * (N - 1) + [None]), "does not give each subject a `group`"),
    (lambda s: s.assign(group="a"), "`group` needs two values or more with 5 scans each, got 60 of 'a'"),
    (lambda s: s.assign(group=["a"] * 56 + ["b"] * 4), "with 5 scans each, got 4 of 'b'"),
])  # fmt: skip
def test_a_cohort_with_nothing_to_tell_is_refused(tmp_path, mend, sentence):
    with pytest.raises(ValueError, match=sentence):
        diagnosis.cohort(load(prepared(tmp_path, mend=mend)))


def test_scans_are_counted_and_not_rows(tmp_path):
    folder = prepared(tmp_path, mend=lambda s: s.assign(group=["a"] * 55 + ["b"] * 5), duplicates=[("058", "059")])
    with pytest.raises(ValueError, match="got 4 of 'b'"):
        diagnosis.cohort(load(folder))


# The tables


def test_ratios_by_hand():
    volumes = np.array([[100.0, 150.0, 90.0, 40.0, 60.0, 95.0]])
    np.testing.assert_allclose(diagnosis.ratios(volumes, ATTRIBUTES), [[0.6, 0.6, 1.5, 0.9]])
    turned = ATTRIBUTES[::-1]  # by name, not by place
    np.testing.assert_allclose(diagnosis.ratios(volumes[:, ::-1].copy(), turned), [[0.6, 0.6, 1.5, 0.9]])


def test_areas_by_hand(one):
    labels = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    labels[0, 0, :2, :5], labels[0, 0, 4, :3], labels[0, 0, 6, :7] = 1, 2, 3  # ED: LV 10, myocardium 3, RV 7 pixels
    labels[0, 1, 0, :4], labels[0, 1, 3, :6], labels[0, 1, 7, :2] = 1, 2, 3
    batch = Batch(torch.zeros(1, 2, 8, 8), torch.zeros(1, 6), labels, torch.zeros(1, dtype=torch.long))
    tiny = Cohort(one.data, batch, np.ones((1, 6)), np.array(["a"]), np.array([0]))
    np.testing.assert_allclose(diagnosis.areas(tiny), 2.5**2 * np.array([[10, 7, 3, 4, 2, 6]]))


def test_tables_hold_what_their_names_say(one, codes):
    z = codes["AR-SIVAE"]
    found = diagnosis.tables(one, codes)
    assert list(found) == [
        "volumes", "volumes + ratios", "areas of the slice", "pixels, 20 components", "AR-SIVAE: code",
        "AR-SIVAE: taught dimensions", "volumes + AR-SIVAE: code", "untrained: code", "volumes + AR-SIVAE: code, weighed",
    ]  # fmt: skip
    np.testing.assert_array_equal(found["AR-SIVAE: taught dimensions"].values, z[:, :6])
    np.testing.assert_array_equal(found["volumes + AR-SIVAE: code"].values, np.hstack([one.volumes, z]))
    assert (
        found["pixels, 20 components"].values.shape == (N, 2 * 32 * 32)
        and found["pixels, 20 components"].components == 20
    )
    assert found["volumes + AR-SIVAE: code, weighed"].optional == 8
    assert {name for name, table in found.items() if table.optional} == {"volumes + AR-SIVAE: code, weighed"}


def test_own_ranks_by_hand():
    rising = np.arange(10.0)
    swapped = rising[[1, 0, 2, 3, 4, 5, 6, 7, 8, 9]]  # one swap of neighbours: 1 - 6 · 2 / (10 · 99)
    z = np.stack([rising**3, swapped, np.zeros(10)], axis=1)
    volumes = np.stack([rising, -rising], axis=1)
    np.testing.assert_allclose(diagnosis.own_ranks(z, volumes), [1.0, -(1 - 12 / 990)])


# The whole comparison


def test_evaluate_finds_who_can_tell(report):
    score = {name: float(s["balanced_accuracy"].mean()) for name, s in report.scores.items()}
    assert all(s["balanced_accuracy"].shape == s["auc"].shape == (1, FOLDS) for s in report.scores.values())
    assert score["volumes"] > 0.85 and score["AR-SIVAE: taught dimensions"] > 0.8
    assert score["untrained: code"] < 0.6, "noise tells nothing"
    assert score["volumes + AR-SIVAE: code, weighed"] > 0.8
    np.testing.assert_allclose(report.ranks["AR-SIVAE"], 1)
    assert set(report.ranks) == {"areas", "AR-SIVAE"} and report.ranks["areas"][0] > 0.99
    assert set(report.chance) == {"volumes", "AR-SIVAE: code"}
    assert all(v.shape == (2,) and (v < 0.65).all() for v in report.chance.values())


def test_evaluate_is_cross_validation_of_its_tables(report, one, codes):
    said = crossval.cross_validate(diagnosis.tables(one, codes)["untrained: code"], one.group, one.scan)
    np.testing.assert_array_equal(report.scores["untrained: code"]["auc"], said.scores()["auc"])
    np.testing.assert_array_equal(report.confusion["untrained: code"], said.confusion())
    assert all(c.sum(1).tolist() == [20, 20, 20] for c in report.confusion.values())


def test_report_says_what_it_is_of_and_holds_no_row_of_anybody(report, one):
    assert report.cohort == {
        "name": "discs", "citation": "A, 2000", "licence": "CC0", "identity": one.data.identity, "subjects": N,
        "scans": N, "groups": {"low": 20, "mid": 20, "top": 20},
    }  # fmt: skip
    assert report.settings == {"repeats": 1, "folds": 5, "inner": 4, "shuffles": 2, "seed": 0}
    arrays = [*report.confusion.values(), *report.chance.values(), *report.ranks.values()]
    arrays += [v for s in report.scores.values() for v in s.values()]
    assert max(max(array.shape) for array in arrays) <= 6


def test_report_survives_its_file(report, tmp_path):
    report.write(tmp_path / "r.json")
    back = Report.read(tmp_path / "r.json")
    assert (back.cohort, back.settings) == (report.cohort, report.settings)
    for name in ("scores", "confusion", "chance", "ranks"):
        before, after = getattr(report, name), getattr(back, name)
        assert list(before) == list(after)
        for key in before:
            for part in before[key] if name == "scores" else [...]:
                np.testing.assert_allclose(after[key][part], before[key][part], atol=5.1e-5)
    back.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "r.json"], "no partial file is left"


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"`report` must be a file written by .*diagnosis.*none.json"):
        Report.read(tmp_path / "none.json")


# Models


def test_untrained_models_follow_their_seed_and_leave_the_global_one(one):
    state = torch.get_rng_state()
    a, again, b = (diagnosis.untrained("smoke", seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    z = diagnosis.codes({"a": a, "again": again, "b": b}, one)
    np.testing.assert_array_equal(z["a"], z["again"])
    assert np.abs(z["a"] - z["b"]).max() > 1e-3 and z["a"].shape == (N, cardiac.PROFILES["smoke"].latent_dim)
    with torch.no_grad():
        np.testing.assert_allclose(z["a"], a.encode(one.batch.image).mu.numpy(), atol=1e-5)


def publish(root, *, data="phantom", name="attri_vae-smoke-seed0-0", weights=True, **settings):
    size = cardiac.PROFILES["smoke"]
    model = AttriVAE(size=size.size, latent_dim=size.latent_dim, **{**cardiac.MODELS["attri_vae"][1], **settings})
    config = {"model": {"class": "AttriVAE", **model.config}, "fit": asdict(size.fit), "data": data}
    config = json.loads(runs.canonical(config))
    epochs = pd.DataFrame({"step": [1]})
    runs.write_record(root / name, config=config, manifest={}, epochs=epochs, metrics={}, model=model)
    if not weights:
        (root / name / runs.WEIGHTS).unlink()
    return model


def test_published_model_is_found_by_its_settings(tmp_path):
    wanted = publish(tmp_path)
    publish(tmp_path, name="attri_vae-smoke-seed0-1", gamma_reg=1.0)
    publish(tmp_path, name="attri_vae-smoke-seed1-0")
    found = diagnosis.published_model(tmp_path, "attri_vae", "smoke")
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value.half().float())
    assert not found.training


def test_published_model_is_not_one_of_the_cohort_itself(tmp_path):
    publish(tmp_path, data="this")
    assert diagnosis.published_model(tmp_path, "attri_vae", "smoke", not_on="that")
    with pytest.raises(ValueError, match="must hold one published run attri_vae-smoke-seed0, got 0"):
        diagnosis.published_model(tmp_path, "attri_vae", "smoke", not_on="this")
    wanted = publish(tmp_path, data="that", name="attri_vae-smoke-seed0-2")
    found = diagnosis.published_model(tmp_path, "attri_vae", "smoke", not_on="this")
    key = next(iter(wanted.state_dict()))
    torch.testing.assert_close(found.state_dict()[key], wanted.state_dict()[key].half().float())


@pytest.mark.parametrize(
    ("made", "got"), [([], 0), ([{"weights": False}], 0), ([{}, {"name": "attri_vae-smoke-seed0-9"}], 2)]
)
def test_published_model_wants_one_run_with_weights(tmp_path, made, got):
    for one in made:
        publish(tmp_path, **one)
    with pytest.raises(ValueError, match=f"must hold one published run attri_vae-smoke-seed0, got {got}: `make runs`"):
        diagnosis.published_model(tmp_path, "attri_vae", "smoke")


@pytest.mark.parametrize("name", diagnosis.MODELS.values())
def test_the_books_own_models_are_found(name):
    assert diagnosis.published_model(BOOK, name, "laptop").latent_dim == 64


# Fine-tuning


def test_fine_tuning_sees_the_training_part_of_each_fold_and_nothing_of_the_groups(one, monkeypatch):
    seen = []

    def fit(model, train, val, config, *, seed, progress):
        seen.append((train.rows.numpy(), train.attributes.numpy(), config.steps))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * len(seen))

    monkeypatch.setattr(diagnosis, "fit", fit)
    model = diagnosis.untrained("smoke")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    z = diagnosis.fine_tuned(model, one, steps=7, seed=2, progress=False)
    assert z.shape == (FOLDS, N, 16) and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert np.ptp(z, axis=0).max() > 0, "each fold has a model of its own"
    for (rows, attributes, steps), (train, _) in zip(seen, crossval.folds(one.group, one.scan, seed=2), strict=True):
        np.testing.assert_array_equal(rows, train)
        own = (one.volumes - one.volumes[train].mean(0)) / one.volumes[train].std(0, ddof=1)
        np.testing.assert_allclose(attributes, own, atol=1e-5)
        assert steps == 7


def test_fine_tuned_tables_speak_of_unseen_subjects_only(report, one):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((FOLDS, N, 8))
    for f, (_, test) in enumerate(crossval.folds(one.group, one.scan)):
        z[f, test, :6] = one.volumes[test]
    more = diagnosis.add_fine_tuned(report, one, "AR-SIVAE", z, 7)
    np.testing.assert_allclose(more.ranks["AR-SIVAE, fine-tuned"], 1)  # training rows are noise
    assert more.settings == report.settings | {"fine_tuning_steps": 7} and "fine_tuning_steps" not in report.settings
    added = set(more.scores) - set(report.scores)
    assert added == set(more.confusion) - set(report.confusion)
    assert added == {"AR-SIVAE, fine-tuned: code", "AR-SIVAE, fine-tuned: taught dimensions"}
    assert all(more.scores[t]["auc"].shape == (1, FOLDS) for t in added)


# The command line


@pytest.fixture
def arguments(tmp_path):
    folder = prepared(tmp_path / "data")
    return {"--data": str(folder), "--runs": str(tmp_path), "--out": str(tmp_path / "r.json"), "--profile": "smoke"}


def call(arguments):
    return diagnosis.main([part for pair in arguments.items() for part in pair])


@pytest.mark.parametrize(("change", "sentence"), [
    ({"--data": "nowhere"}, "'nowhere' is no prepared dataset"),
    ({}, "must hold one published run"),
    ({"--repeats": "0"}, "`--repeats` and `--shuffles` must be at least 1, and `--fine-tune` at least 0"),
    ({"--fine-tune": "-1"}, "and `--fine-tune` at least 0"),
    ({"--out": "no/such/folder/r.json"}, "`--out` must name a file in a folder that exists, got 'no/such/folder/r.json'"),
])  # fmt: skip
def test_mistakes_get_one_sentence(arguments, change, sentence, monkeypatch, capsys):
    if change and "--data" not in change:
        monkeypatch.setattr(diagnosis, "published_model", lambda *a, **k: diagnosis.untrained("smoke"))
    with pytest.raises(SystemExit) as stop:
        call(arguments | change)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and "error: " in last and sentence in last
    assert not Path(arguments["--out"]).exists()


def test_the_command_writes_the_report(arguments, monkeypatch, capsys):
    asked = []

    def published(root, name, profile, *, not_on):
        asked.append((root, name, profile, not_on))
        return diagnosis.untrained(profile, seed=5)

    monkeypatch.setattr(diagnosis, "published_model", published)
    monkeypatch.setattr(diagnosis, "MODELS", {"AR-SIVAE": "ar_sivae"})
    monkeypatch.setattr(diagnosis, "REGULARISED", ("AR-SIVAE",))
    # What a table scores is tested above; here the penalty stands, for speed.
    fixed = crossval.cross_validate
    monkeypatch.setattr(diagnosis, "cross_validate", lambda *a, **k: fixed(*a, **k, penalties=(1.0,)))
    few = {"--repeats": "1", "--shuffles": "1", "--fine-tune": "1"}
    assert call(arguments | few) == 0
    identity = load(arguments["--data"], image_size=32).identity
    assert asked == [(arguments["--runs"], "ar_sivae", "smoke", identity)]
    back = Report.read(arguments["--out"])
    assert back.settings["profile"] == "smoke" and back.settings["fine_tuning_steps"] == 1
    assert {"untrained: code", "AR-SIVAE, fine-tuned: code"} <= set(back.scores)
    printed = capsys.readouterr().out
    assert all(table in printed for table in back.scores)
    assert np.isfinite([v for s in back.scores.values() for v in s["auc"].ravel()]).all()
    assert replace(back, scores={}).cohort["subjects"] == N
