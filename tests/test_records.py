"""Run records: listed, shown, compared, and measured again; what was damaged is told in one sentence and found."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from math import inf, nan
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep import phantom
from medvae_lite import cohort, record_files, records, reevaluate, regions, runs
from medvae_lite.reevaluate import Evaluator, check
from medvae_lite.sivae import AttriVAE
from medvae_lite.train import TRAINING_CODE

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "medvae_lite.runs"]
# One of each family, quick to measure.
PUBLISHED = ("norm_cortical-laptop-seed0", "features-metric-grid", "attri_vae-grid-seed0", "hvae_t1-vae-free-laptop-seed0")


def write(root, label="attri_vae-grid-seed0", *, seed=0, beta_kl=0.5, code=None, **metrics):
    model = AttriVAE(size=16, latent_dim=8, widths=(8, 8), beta_kl=beta_kl)
    config = {"model": {"class": "AttriVAE", **model.config}, "fit": {"steps": 4}, "data": "d0" * 32, "seed": seed}
    manifest = {
        "seed": seed, "steps": 4, "skipped": 0, "seconds": 90.0, "code": code or runs.code_hash(*TRAINING_CODE),
        "device": "cpu", "parameters": sum(p.numel() for p in model.parameters()), **runs.environment(),
    }  # fmt: skip
    epochs = pd.DataFrame({"epoch": [1, 2], "step": [2, 4], "val_total": [3.5, 1.25]})
    metrics = {"split": "test", "ssim": 0.5, "perceptual": 0.25, "scc": 0.75, "mse": 0.125, **metrics}
    folder = root / runs.run_name(label, config)
    return runs.write_record(folder, config=config, manifest=manifest, epochs=epochs, metrics=metrics, model=model)


def change(path, **changed):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def told(capsys, *argv):
    """Exit status, and what was written."""
    status = records.main([str(arg) for arg in argv])
    out = capsys.readouterr()
    return status, out.out + out.err


@pytest.fixture
def root(tmp_path):
    write(tmp_path)
    light = write(tmp_path, "attri_vae-grid-seed1", seed=1, beta_kl=0.25, ssim=0.625)
    (light.folder / runs.WEIGHTS).unlink()
    return tmp_path


@pytest.fixture
def files_only():
    return Evaluator(None, [records.PUBLISHED])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A reader's own run: smallest profile, few steps."""
    out = tmp_path_factory.mktemp("own")
    study = cohort.Study(regions.load(phantom("regions", subjects=900)), profile="smoke", runs_root=out, progress=False)
    return study.record("multimodal", fit={"steps": 20}).folder


@pytest.fixture
def own(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def published(start):
    return next(p for p in sorted(records.PUBLISHED.glob(f"{start}*")) if (p / runs.WEIGHTS).is_file())


def test_a_list_has_a_line_a_record_and_totals(root, capsys):
    (root / "half").mkdir()
    (root / ".attri_vae.training").mkdir()
    (root / "tables.json").write_text("{}")
    status, text = told(capsys, "list", root)
    assert status == 0 and max(map(len, text.splitlines())) <= 120
    lines = [line.split() for line in text.splitlines() if line.startswith("attri_vae")]
    code = runs.code_hash(*TRAINING_CODE)[:5]
    assert [line[1:] for line in lines] == [
        ["0", "4", "1.5", "d0d0d", code, "yes", "0.5", "0.25", "0.75"], ["1", "4", "1.5", "d0d0d", code, "no", "0.625", "0.25", "0.75"],
    ]  # fmt: skip
    size = sum(p.stat().st_size for p in root.glob("attri*/*")) / 1e6
    assert f"2 runs, {3 / 60:.1f} hours of training, {size:.1f} MB; 1 keep their weights; not counted: 1 that cannot be read" in text
    assert "no record: half: config.json is missing" in text and ".attri" not in text and "tables" not in text


def test_a_list_can_be_narrowed(root, capsys):
    assert "seed0" not in told(capsys, "list", root, "--like", "seed1")[1]
    assert told(capsys, "list", root, "--family", "normative")[1].startswith("0 runs")
    assert told(capsys, "list", root, "--family", "cardiac")[1].count("seed") == 3  # two names and the head
    assert told(capsys, "list", root, "--like", "nothing such")[1].startswith("0 runs")


def test_the_csv_holds_every_metric(root, capsys):
    (root / "half").mkdir()
    found = pd.read_csv(io.StringIO(told(capsys, "list", root, "--csv")[1])).set_index("name")
    assert found.loc["half", "broken"].startswith("config.json is missing")
    for folder in root.glob("attri*"):
        record, row = runs.load_record(folder), found.loc[folder.name]
        assert {name: row[name] for name in record.metrics} == record.metrics
        assert (row["data"], row["code"], row["weights"]) == (record.config["data"], record.manifest["code"], record.has_weights)


def test_all_published_runs_are_listed(capsys):
    status, text = told(capsys, "list")
    folders = [p for p in records.PUBLISHED.iterdir() if p.is_dir()]
    assert status == 0 and all(f"\n{p.name} " in text for p in folders) and "no record" not in text
    hours = sum(runs.load_record(p).manifest["seconds"] for p in folders) / 3600
    assert f"{len(folders)} runs, {hours:.1f} hours" in text and max(map(len, text.splitlines())) <= 120


def test_a_part_of_a_name_is_enough(root, tmp_path_factory):
    one, two = sorted(root.iterdir())
    assert record_files.find(root, "seed1") == two and record_files.find(root, one.name[-6:]) == one
    with pytest.raises(ValueError, match=f"a part of one name only, and it is in 2: {one.name}, {two.name}$"):
        record_files.find(root, "attri_vae")
    with pytest.raises(ValueError, match="none in .* contains 'sivae-x'"):
        record_files.find(root, "sivae-x")
    shutil.copytree(one, root / f"{one.name}-copy")
    assert record_files.find(root, one.name) == one  # its whole name, though another begins with it
    elsewhere = Path(shutil.copytree(two, tmp_path_factory.mktemp("elsewhere") / two.name))
    assert record_files.find(root, str(elsewhere)) == elsewhere


def test_a_record_is_shown_whole(root, capsys):
    status, text = told(capsys, "show", "seed0", "--root", root)
    rows = dict(re.findall(r"^  (\S+) +(\S.*)$", text, re.M))
    assert status == 0 and rows["model.beta_kl"] == "0.5" and rows["model.widths"] == "[8, 8]" and rows["mse"] == "0.125"
    assert rows["val_total"].split() == ["3.5", "1.25"] and rows["data"] == "d0" * 32 and rows["torch"] == torch.__version__
    assert f"today's {', '.join(TRAINING_CODE)} are the code that trained it" in text


def test_published_records_were_made_by_code_that_trains_the_same():
    """The proof: published runs of every kind were trained again by today's code, and have the same weights, byte for byte."""
    today = runs.code_hash(*TRAINING_CODE)
    proof = json.loads((ROOT / "tests" / "benchmarks" / "results" / "retrained.json").read_text())
    made = {}
    for folder in (ROOT / "book" / "runs").glob("*/"):
        record = runs.load_record(folder)
        model = record.config["model"]
        made[folder.name] = " ".join(filter(None, (model["class"], model.get("prior")))), record.manifest["code"]
    old = {code for _, code in made.values() if code != today}
    assert all(runs.trains_the_same(code, today) for code in old), "train a sample again: tests/benchmarks/retrain.py"
    assert not old or proof["code"] == today, "the proof is for other code: run tests/benchmarks/retrain.py again"
    for row in proof["runs"]:
        assert all(row["equal"].values()) and len(row["equal"]) == 4 and row["trained by"] in {made[row["run"]][1]}, row["run"]
    shown = {made[row["run"]][0] for row in proof["runs"]}
    assert shown == {kind for kind, _ in made.values()} and any("some hidden" in row["model"] for row in proof["runs"])


def test_a_record_made_by_code_that_trains_the_same_is_said_to_be(tmp_path, monkeypatch):
    today = runs.code_hash(*TRAINING_CODE)
    monkeypatch.setattr(runs, "SAME_TRAINING", {"a" * 64: "b" * 64, "b" * 64: today, "c" * 64: "d" * 64})
    for code, same in (("a" * 64, True), ("b" * 64, True), ("c" * 64, False), (today, True)):
        assert runs.trains_the_same(code, today) is same
    text = records.show(write(tmp_path, code="a" * 64))
    assert "have changed since, and train the same: published runs of every kind were trained again" in text


def test_it_is_said_what_can_be_said_of_the_code(tmp_path):
    text = records.show(write(tmp_path, code="0123456789" * 6))
    assert f"01234567, today {runs.code_hash(*TRAINING_CODE)[:8]}: at least one of {TRAINING_CODE[0]}, {TRAINING_CODE[1]}" in text and "cannot say which" in text
    assert "leaves out" not in text  # sivae.py is among the modules that are hashed
    for start, module in (("norm", "mmvae.py"), ("hvae", "hvae.py"), ("features", "cardiac.py")):
        assert f"leaves out {module}" in records.show(runs.load_record(published(start)))
    other = write(tmp_path / "b")
    change(other.folder / "manifest.json", torch="1.0")
    assert f"It ran on torch 1.0, here is {torch.__version__}." in records.show(runs.load_record(other.folder))


def test_two_records_side_by_side(tmp_path, capsys):
    write(tmp_path, ssim=0.5, scc=0.8, mse=0.1, r=nan)
    write(tmp_path, "attri_vae-grid-seed1", seed=1, beta_kl=0.25, ssim=0.75, scc=0.6, mse=0.1, r=nan, extra=1.0)
    status, text = told(capsys, "compare", "seed0", "seed1", "--root", tmp_path)
    rows = [line.split() for line in text.splitlines()]
    assert status == 0 and ["model.beta_kl", "0.5", "0.25"] in rows and rows.count(["seed", "0", "1"]) == 2
    start = rows.index(["metrics"]) + 2
    assert rows[start : start + 3] == [
        ["extra", "-", "1", "-", "-"], ["ssim", "0.5", "0.75", "+0.25", "0.5"], ["scc", "0.8", "0.6", "-0.2", "0.25"],
    ]  # fmt: skip
    assert "and 4 that are equal" in text and "weights.safetensors: differs" in text and "identical: epochs.csv" in text


def test_identical_records_say_so(root, tmp_path_factory, capsys):
    for part in ("seed0", "seed1"):
        one = record_files.find(root, part)
        copy = shutil.copytree(one, tmp_path_factory.mktemp("copy") / one.name)
        text = told(capsys, "compare", one, copy)[1]
        assert text.strip().splitlines()[2:] == ["", text.strip().splitlines()[-1]]
        files = "epochs.csv, weights.safetensors" if part == "seed0" else "epochs.csv"
        assert text.strip().endswith(f"identical: configuration, manifest, metrics, {files}; nothing differs")
    (copy / "metrics.json").write_text((copy / "metrics.json").read_text().replace("0.625", "0.626"))
    assert "nothing differs" not in told(capsys, "compare", one, copy)[1]


def test_how_far_two_values_are_apart():
    size = lambda a, b: reevaluate.compare({"x": a}, {"x": b})[0].size
    assert size(2.0, 2.5) == 0.25 and size(-2.0, -2.5) == 0.25 and size(3, 3) == size(nan, nan) == size("test", "test") == 0
    assert size(nan, 1.0) == size(1.0, nan) == size("test", "val") == size("1", 1.0) == inf
    assert size(0.0, 1e-4) == pytest.approx(1e-4 / reevaluate.FLOOR)
    rows = reevaluate.compare({"a": 1.0, "b": 1.0, "gone": 1.0}, {"a": 1.1, "b": 1.2, "new": 1.0})
    assert [row.name for row in rows] == ["gone", "new", "b", "a"] and reevaluate.largest([]) is None


def test_figures_that_count_pixels_may_move_by_one():
    # Slopes of lesion area over 48 slices: whole numbers of pixels, so the smallest change there can be is one of them.
    stored = runs.load_record(published("hvae_flair-nvae-supervised")).metrics
    slopes = {name: value for name, value in stored.items() if name.startswith("sensitivity_")}
    pixel = slopes["sensitivity_residual_0"] / 2
    assert len(slopes) == 10 and all(value / pixel == pytest.approx(round(value / pixel), abs=1e-6) for value in slopes.values())
    for name, value in slopes.items():
        assert not reevaluate.differs(reevaluate.compare({name: value}, {name: value + pixel})[0])
        assert reevaluate.differs(reevaluate.compare({name: value}, {name: value + 100 * pixel})[0])


@pytest.mark.parametrize(("name", "stored", "limit"), [
    ("ssim", -0.5, 5e-4), ("r2_0_lesion", 0.0, 1e-5), ("neg_elbo", -2000.0, 2.0), ("val_total", 0.025, 5e-4), ("missed_more", 0.1, 0.01),
])  # fmt: skip
def test_how_far_a_metric_may_be(name, stored, limit):
    assert reevaluate.allowed(name, stored) == pytest.approx(limit)
    for share, beyond in ((0.99, False), (-0.99, False), (1.01, True), (-1.01, True)):
        assert reevaluate.differs(reevaluate.compare({name: stored}, {name: stored + share * limit})[0]) is beyond
    assert reevaluate.differs(reevaluate.compare({name: stored}, {name: nan})[0])


def truncated(name):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])

    return damage


def without(name):
    return lambda folder: (folder / name).unlink()


def edited(name, **changed):
    return lambda folder: change(folder / name, **changed)


def reweighted(alter):
    def damage(folder):
        state = load_file(folder / runs.WEIGHTS)
        alter(state)
        save_file(state, folder / runs.WEIGHTS)

    return damage


def rename(state):
    state["other"] = state.pop(min(state))


def reshape(state):
    state[min(state)] = state[min(state)].flatten()[:-1].clone()


def poison(state):
    state[min(state)].fill_(nan)


DAMAGES = {
    "truncated weights": (truncated(runs.WEIGHTS), r"weights\.safetensors cannot be read \(.*\): it is cut short or another file"),
    "weights of text": (lambda f: (f / runs.WEIGHTS).write_text("weights"), r"weights\.safetensors cannot be read"),
    "truncated metrics": (truncated("metrics.json"), r"metrics\.json is cut short or no JSON"),
    "truncated config": (truncated("config.json"), r"config\.json is cut short or no JSON"),
    "bytes for a manifest": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), r"manifest\.json is cut short or no JSON"),
    "metrics missing": (without("metrics.json"), r"metrics\.json is missing"),
    "epochs missing": (without("epochs.csv"), r"epochs\.csv is missing"),
    "no epoch": (lambda f: (f / "epochs.csv").write_text("epoch,step\n"), r"epochs\.csv is of another format"),
    "empty epochs": (lambda f: (f / "epochs.csv").write_text(""), r"epochs\.csv is no table"),
    "another format": (lambda f: (f / "config.json").write_text('{"name": "x"}'), r"config\.json is of another format: a record has `model`"),
    "a list": (lambda f: (f / "metrics.json").write_text("[1]"), r"metrics\.json is of another format"),
    "no class": (edited("config.json", model={}), r"config\.json is of another format: a record has `model\.class`"),
    "other setting": (edited("config.json", seed=7), r"config\.json hashes to \w{8}, .*; manifest\.json has seed 0 and config\.json 7; the folder's name has seed 0"),
    "other steps": (edited("manifest.json", steps=9), r"epochs\.csv ends at step 20, and manifest\.json says 9"),
    "infinite loss": (lambda f: (f / "epochs.csv").write_text("epoch,step,val_total\n1,20,inf\n"), r"epochs\.csv: column val_total holds values that are no finite numbers"),
    "text for a loss": (lambda f: (f / "epochs.csv").write_text("epoch,step,val_total\n1,20,low\n"), r"epochs\.csv: column val_total"),
    "impossible metric": (edited("metrics.json", auc_AD=1.25), r"metrics\.json: `auc_AD` must be from 0 to 1, got 1\.25"),
    "negative error": (edited("metrics.json", error_all=-1.0), r"metrics\.json: `error_all` must be from 0 to inf, got -1"),
    "infinite metric": (edited("metrics.json", slope=inf), r"metrics\.json: `slope` must be a number, text or null, got inf"),
    "list for a metric": (edited("metrics.json", slope=[1]), r"metrics\.json: `slope` must be a number, text or null"),
    "tensor renamed": (reweighted(rename), r"weights\.safetensors: tensor \S+ must have shape .* as config\.json has it, got none"),
    "tensor reshaped": (reweighted(reshape), r"weights\.safetensors: tensor \S+ must have shape .* as config\.json has it, got shape"),
    "weights not finite": (reweighted(poison), r"weights\.safetensors: tensor \S+ holds values that are no finite numbers"),
    "parameters": (edited("manifest.json", parameters=3), r"manifest\.json counts 3 parameters, and the model has \d+"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_a_sentence(damage, own, files_only):
    assert check(own, files_only, measure=False).status == "files"
    harm, sentence = DAMAGES[damage]
    harm(own)
    result = check(own, files_only, measure=False)
    assert result.status == "broken" and re.match(sentence, result.text) and "\n" not in result.text


def test_a_damaged_record_does_not_stop_the_others(own, capsys):
    root = own.parent
    damaged = Path(shutil.copytree(own, root / "norm_a-smoke-seed0-00000000"))
    truncated("metrics.json")(damaged)
    status, text = told(capsys, "verify", "--root", root)
    assert status == 1 and text.index(f"broken  {damaged.name}: metrics.json is cut short") < text.index(f"same    {own.name}")
    assert "2 runs: 1 measured again and the same, 0 with their files in order, 0 that differ, 1 broken" in text
    assert f"no record: {damaged.name}: metrics.json is cut short" in told(capsys, "list", root)[1]
    status, text = told(capsys, "show", damaged.name, "--root", root)
    assert status == 2 and re.fullmatch(rf"error: {damaged.name} cannot be read: metrics.json is cut short.*; train it again\n", text)


def test_a_readers_own_run_verifies_and_a_changed_metric_is_found(own, capsys):
    status, text = told(capsys, "verify", "--root", own.parent)
    assert status == 0 and f"same    {own.name}: " in text and "1 measured again and the same" in text
    stored = runs.load_record(own).metrics
    # Not at the tolerance itself: a different processor may use some of it.
    within, beyond = (stored["error_all"] * (1 + share * reevaluate.TOLERANCE) for share in (0.5, 2))
    change(own / "metrics.json", error_all=within)
    assert told(capsys, "verify", "--root", own.parent)[0] == 0
    change(own / "metrics.json", error_all=beyond)
    status, text = told(capsys, "verify", "--root", own.parent)
    assert status == 1 and re.search(rf"differs {own.name}: 1 of {len(stored)} metrics: error_all {beyond:.6g} -> {stored['error_all']:.6g}\n", text)
    change(own / "metrics.json", error_all=None)
    assert told(capsys, "verify", "--root", own.parent)[0] == 1
    change(own / "metrics.json", error_all=stored["error_all"], error_gone=0.5)
    assert "error_gone 0.5 -> None" in told(capsys, "verify", "--root", own.parent)[1]


def test_other_weights_are_found(own, capsys):
    reweighted(lambda state: state["decoder.weights.0"].mul_(1.5))(own)
    status, text = told(capsys, "verify", "--root", own.parent)
    assert status == 1 and f"broken  {own.name}: weights.safetensors is not the file that was written" in text
    change(own / "manifest.json", weights_sha256=hashlib.sha256((own / runs.WEIGHTS).read_bytes()).hexdigest())
    status, text = told(capsys, "verify", "--root", own.parent)
    assert status == 1 and f"differs {own.name}: " in text


def test_a_light_record_is_said_to_be_one(own, capsys):
    (own / runs.WEIGHTS).unlink()
    status, text = told(capsys, "verify", "--root", own.parent)
    assert status == 0 and f"files   {own.name}: a light record: files in order, no weights to measure" in text


def test_data_of_ones_own_has_to_be_named(tmp_path, capsys):
    folder = phantom("regions", subjects=900)
    study = cohort.Study(regions.load(folder), profile="laptop", runs_root=tmp_path, progress=False)
    name = study.record("cortical", fit={"steps": 5}).folder.name
    status, text = told(capsys, "verify", "--root", tmp_path)
    assert status == 1 and re.search(rf"open    {name}: its data \(\w+\) is not the laptop phantom .* name that folder with --data", text)
    status, text = told(capsys, "verify", "--root", tmp_path, "--data", folder)
    assert status == 0 and f"same    {name}" in text
    status, text = told(capsys, "verify", "--root", tmp_path, "--data", tmp_path)
    assert status == 2 and re.fullmatch(r"error: `--data` must be a folder made by `python -m data_prep`, got .*\n", text)


def test_a_run_whose_feature_network_is_gone_is_not_called_verified(tmp_path, files_only):
    light = published("attri_vae_pl-laptop-seed0")
    assert check(light, files_only, measure=False).status == "files"
    config = {**runs.load_record(light).config, "features": "f0" * 32}
    folder = Path(shutil.copytree(light, tmp_path / runs.run_name(light.name.rpartition("-")[0], config)))
    (folder / "config.json").write_text(json.dumps(config))
    result = check(folder, files_only, measure=False)
    assert result.status == "open" and "the feature network it was trained with (f0f0f0f0) is not in" in result.text


@pytest.mark.parametrize("start", PUBLISHED)
def test_published_runs_verify(start, capsys):
    name = published(start).name
    status, text = told(capsys, "verify", name)
    assert status == 0 and f"same    {name}: " in text and "1 runs: 1 measured again" in text


def test_the_files_of_all_published_runs_are_in_order(capsys):
    status, text = told(capsys, "verify", "--sample", 0)
    count = sum(p.is_dir() for p in records.PUBLISHED.iterdir())
    assert status == 0 and text.startswith(f"{count} runs: 0 measured again and the same, {count} with their files in order, 0 ")


def test_a_sample_is_drawn_from_each_family(monkeypatch, capsys):
    measured = []

    def fake(folder, evaluator, *, measure=True):
        measured.extend([folder] if measure else [])
        return reevaluate.Result(folder.name, "same" if measure else "files", "")

    monkeypatch.setattr(records, "check", fake)

    def drawn(*argv):
        measured.clear()
        assert told(capsys, "verify", *argv)[0] == 0
        return list(measured)

    two = drawn("--sample", 2)
    families = [record_files.family_of(runs.load_record(folder).config) for folder in two]
    assert sorted(families) == sorted(2 * record_files.FAMILIES) and all((folder / runs.WEIGHTS).is_file() for folder in two)
    assert drawn("--sample", 2) == two and drawn("--sample", 2, "--seed", 1) != two
    assert len(drawn("--sample", 99, "--family", "features")) == 4 and drawn("--sample", 0) == []
    assert drawn("norm_cortical", "features-loss-grid") == [p for p in record_files.folders(records.PUBLISHED) if re.match("norm_cortical|features-loss-grid", p.name)]


def test_without_data_prep_it_says_so(monkeypatch, capsys, own):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(records.importlib, "import_module", absent)
    status, text = told(capsys, "verify", "--root", own.parent)
    assert status == 2 and re.fullmatch(r"error: `verify` .* needs the package data_prep \(no module data_prep\): run it in .*\n", text)
    assert told(capsys, "verify", "--root", own.parent, "--sample", 0)[0] == 0


REFUSED = {
    ("list", "no/such"): "error: `ROOT` must be a folder of run records, and no/such holds none",
    ("show", "no such run"): "error: `NAME` must be a part of a record's name, and none in",
    ("show", "ar_sivae-laptop"): "error: `NAME` = 'ar_sivae-laptop' must be a part of one name only, and it is in 7: ",
    ("verify", "no such run"): "error: `NAME` must be a part of a record's name",
    ("verify", "norm_cortical", "--family", "cardiac"): "error: `--family` = cardiac must be that of a run among those named",
}


@pytest.mark.parametrize("argv", REFUSED, ids=" ".join)
def test_what_cannot_be_is_refused_in_a_sentence(argv, capsys):
    status, text = told(capsys, *argv)
    assert status == 2 and text.startswith(REFUSED[argv]) and text.count("\n") == 1


@pytest.mark.parametrize("argv", [("verify", "--sample", "-1"), ("verify", "--seed", "one"), ("list", "--family", "brains"), ("remove",), ()])
def test_a_wrong_option_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        records.main(argv)
    text = capsys.readouterr().err
    assert end.value.code == 2 and text.startswith("error: ") and text.count("\n") == 1


def test_the_command_runs_from_anywhere(tmp_path):
    done = subprocess.run([*COMMAND, "list", "--family", "features"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("features-") == 4
    done = subprocess.run([*COMMAND, "show", "nothing such"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
