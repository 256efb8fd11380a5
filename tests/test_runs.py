"""Run records: parameters refused in one sentence, files that appear whole, records that come back as written."""

import hashlib
import json
import os
import pickle

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import nn

from medvae_lite import runs

GOOD = {"profile": "smoke", "seed": 0, "device": "cpu", "data_root": "", "runs_root": "runs", "retrain": False}
BAD = [
    ({"profile": "huge"}, "`profile` must be one of smoke, laptop, paper, got 'huge'"),
    ({"profile": None}, "`profile` must be one of smoke, laptop, paper, got None"),
    ({"seed": -1}, "`seed` must be a whole number from 0 to 2147483647, got -1"),
    ({"seed": 2**31}, "`seed` must be a whole number from 0 to 2147483647, got 2147483648"),
    ({"seed": 1.0}, "`seed` must be a whole number from 0 to 2147483647, got 1.0"),
    ({"seed": True}, "`seed` must be a whole number from 0 to 2147483647, got True"),
    ({"seed": "0"}, "`seed` must be a whole number from 0 to 2147483647, got '0'"),
    ({"retrain": 1}, "`retrain` must be True or False, got 1"),
    ({"retrain": "no"}, "`retrain` must be True or False, got 'no'"),
    ({"device": "gpu"}, "`device` must be one of auto, .*cpu on this machine, got 'gpu'"),
    ({"data_root": "no/such/folder"}, "`data_root` must be a folder made by `python -m data_prep`, .* got 'no/such/folder'"),
    ({"data_root": None}, "`data_root` must be a folder .* got None"),
    ({"runs_root": ""}, "`runs_root` must be a folder for run records, got ''"),
    ({"runs_root": __file__}, "`runs_root` must be a folder for run records, got .*test_runs.py"),
    ({"gamma_reg": (-0.1, 0.0, 10.0)}, "`gamma_reg` must be a number from 0.0 to 10.0, got -0.1"),
    ({"gamma_reg": (11, 0.0, 10.0)}, "`gamma_reg` must be a number from 0.0 to 10.0, got 11"),
    ({"gamma_reg": (float("nan"), 0.0, 10.0)}, "`gamma_reg` must be a number from 0.0 to 10.0, got nan"),
    ({"gamma_reg": ("1", 0.0, 10.0)}, "`gamma_reg` must be a number from 0.0 to 10.0, got '1'"),
    ({"latent_dim": (8.0, 2, 512)}, "`latent_dim` must be a whole number from 2 to 512, got 8.0"),
    ({"latent_dim": (True, 0, 512)}, "`latent_dim` must be a whole number from 0 to 512, got True"),
]


@pytest.mark.parametrize(("changed", "sentence"), BAD, ids=[f"{k}={v!r}"[:30] for b, _ in BAD for k, v in b.items()])
# Chapters pass whatever a reader typed: types are for `check_parameters` to refuse, not for the checker of tests.
def test_a_wrong_parameter_is_refused(changed, sentence):
    check = getattr(runs.check_parameters, "__wrapped__", runs.check_parameters)
    with pytest.raises(ValueError, match=f"^{sentence}") as refusal:
        check(**{**GOOD, **changed})
    assert "\n" not in str(refusal.value)


def test_good_parameters_pass(tmp_path):
    (tmp_path / "card.json").write_text("{}")
    for profile in runs.PROFILES:
        runs.check_parameters(**{**GOOD, "profile": profile, "data_root": str(tmp_path), "device": "auto"})
    runs.check_parameters(**GOOD, gamma_reg=(0, 0.0, 10.0), latent_dim=(512, 2, 512))


def test_devices():
    assert runs.resolve_device("cpu") == torch.device("cpu")
    assert runs.resolve_device("auto").type in ("cuda", "mps", "cpu")
    for name in ("tpu", "", "cpux", "cuda" if not torch.cuda.is_available() else "mps"):
        with pytest.raises(ValueError, match=rf"`device` must be one of auto, .*cpu on this machine, got '{name}'"):
            runs.resolve_device(name)


def test_auto_prefers_the_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runs.resolve_device("auto") == torch.device("cuda")
    assert runs.resolve_device("cuda:1") == torch.device("cuda:1")


def test_a_configuration_has_one_name_in_any_order():
    one = {"model": {"a": 1, "b": [1, 2]}, "seed": 0}
    other = {"seed": 0, "model": {"b": [1, 2], "a": 1}}
    assert runs.canonical(one) == runs.canonical(other)
    assert runs.run_name("beta_vae", one) == runs.run_name("beta_vae", other)
    assert json.loads(runs.canonical(one)) == one
    changed = {**one, "model": {"a": 1, "b": [2, 1]}}
    assert runs.run_name("beta_vae", changed) != runs.run_name("beta_vae", one)
    assert runs.run_name("beta_vae", one).startswith("beta_vae-")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "epochs.csv"
    runs.write_atomically(path, "old")

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, crash)
        with pytest.raises(OSError, match="no space"):
            runs.write_atomically(path, "new and longer")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    runs.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


CONFIG = {"model": {"size": 16, "widths": (8, 16)}, "seed": 3}


def record(folder, **changed):
    contents = {
        "config": CONFIG,
        "manifest": {"seconds": 1.5, "skipped": 0},
        "epochs": pd.DataFrame({"epoch": [1, 2], "val_total": [3.25, 1 / 3]}),
        "metrics": {"mse": 0.125, "split": "test"},
        "model": nn.Linear(3, 2),
    }
    return runs.write_record(folder, **{**contents, **changed})


def test_a_record_comes_back(tmp_path):
    model = nn.Linear(3, 2)
    written = record(tmp_path / runs.run_name("x", CONFIG), model=model)
    found = runs.find_record(tmp_path, "x", CONFIG)
    assert found.folder == written.folder and found.metrics == {"mse": 0.125, "split": "test"}
    digest = hashlib.sha256((found.folder / "weights.safetensors").read_bytes()).hexdigest()
    assert found.manifest == {"seconds": 1.5, "skipped": 0, "weights_sha256": digest}
    assert found.config == json.loads(json.dumps(CONFIG))
    assert found.epochs.to_dict("list") == {"epoch": [1, 2], "val_total": [3.25, pytest.approx(1 / 3, rel=1e-5)]}
    other = found.weights_into(nn.Linear(3, 2).train())
    assert not other.training and other.weight.dtype == torch.float32
    assert torch.equal(other.weight, model.weight.half().float()) and torch.equal(other.bias, model.bias.half().float())


def test_a_record_of_another_configuration_is_not_found(tmp_path):
    record(tmp_path / runs.run_name("x", CONFIG))
    assert runs.find_record(tmp_path, "x", {**CONFIG, "seed": 4}) is None
    assert runs.find_record(tmp_path, "y", CONFIG) is None
    assert runs.find_record(tmp_path / "nowhere", "x", CONFIG) is None
    # Nor one that only carries the name.
    record(tmp_path / runs.run_name("x", {**CONFIG, "seed": 5}))
    assert runs.find_record(tmp_path, "x", {**CONFIG, "seed": 5}) is None


def test_a_record_without_metrics_is_not_finished(tmp_path):
    folder = record(tmp_path / runs.run_name("x", CONFIG)).folder
    (folder / "metrics.json").unlink()
    assert runs.find_record(tmp_path, "x", CONFIG) is None
    with pytest.raises(FileNotFoundError, match="is no finished run record: metrics.json missing; train it again"):
        runs.load_record(folder)


def test_a_light_record_keeps_everything_but_the_weights(tmp_path):
    folder = record(tmp_path / runs.run_name("x", CONFIG)).folder
    assert runs.load_record(folder).has_weights
    (folder / runs.WEIGHTS).unlink()
    light = runs.find_record(tmp_path, "x", CONFIG)
    assert light.metrics == {"mse": 0.125, "split": "test"} and not light.has_weights
    with pytest.raises(FileNotFoundError, match="keeps no weights; train it again with `retrain`"):
        light.weights_into(nn.Linear(3, 2))


def test_the_same_run_writes_the_same_bytes(tmp_path):
    model = nn.Linear(3, 2)
    one, two = (record(tmp_path / name, model=model).folder for name in "ab")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_nothing_in_a_record_is_a_pickle(tmp_path):
    folder = record(tmp_path / "run").folder
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "manifest.json", "epochs.csv", "metrics.json", "weights.safetensors"}
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", pickle.PROTO)), path.name
        if path.suffix != ".safetensors":
            content.decode()
    with safe_open(folder / "weights.safetensors", "pt") as weights:
        assert set(weights.keys()) == {"weight", "bias"}


SOURCE = '"""A module."""\n\ndef area(r):\n    """Area."""\n    # why\n    return 3.14 * r * r\n'
SAME = ['def area(r):\n    return (3.14 *\n            r * r)\n', SOURCE.replace("Area", "Surface"), SOURCE.replace("# why", "# reason")]
OTHER = [SOURCE.replace("3.14", "3.15"), SOURCE.replace("r * r", "r + r"), SOURCE.replace("area", "surface")]


def test_the_code_hash_sees_code_only(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))

    def hashed(source):
        (tmp_path / "shape.py").write_text(source)
        return runs.code_hash("shape")

    assert all(hashed(source) == hashed(SOURCE) for source in SAME)
    assert len({hashed(source) for source in (SOURCE, *OTHER)}) == 1 + len(OTHER)


def test_the_code_hash_does_not_depend_on_the_order_of_modules():
    assert runs.code_hash("losses", "gaussian") == runs.code_hash("gaussian", "losses") != runs.code_hash("losses")


def test_what_could_not_be_measured_is_null_in_the_file(tmp_path):
    written = record(tmp_path / "a", metrics={"mse": 0.5, "detail": float("nan"), "ratio": float("inf")})
    assert json.loads((written.folder / "metrics.json").read_text()) == {"mse": 0.5, "detail": None, "ratio": None}
    assert written.metrics["mse"] == 0.5 and all(written.metrics[name] != written.metrics[name] for name in ("detail", "ratio"))
