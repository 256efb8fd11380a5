"""The training loop: continued runs repeat undisturbed ones bit for bit, bad steps cost one step, nothing is lost.

Most laws are tested on `Line`, a model of one number, so that they can be recomputed by hand.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from _helpers import write_folder
from torch import Tensor, nn

from medvae_lite import datasets, published, runs
from medvae_lite.losses import Terms, Update
from medvae_lite.published import train_or_load
from medvae_lite.sivae import ARSIVAE, AttriVAE
from medvae_lite.train import FitConfig, TrainingDiverged, fit

EXACT = FitConfig(steps=52, batch_size=7, learning_rate=1e-3, warmup=5, speed="exact")
ROW = 26  # steps between rows: the fewest whole passes of two steps that make at least 25


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return datasets.load(write_folder(tmp_path_factory.mktemp("data") / "discs"))


@dataclass(frozen=True)
class Distance(Terms):
    distance: Tensor

    def total(self):
        return self.distance


class Line(nn.Module):
    """One number that descends towards 1, while validation would have it at `best`."""

    def __init__(self, *, best=0.5):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.best, self.config, self.seen = best, {"best": best}, []

    def loss(self, batch, step):
        self.seen.append(self.w.item())
        return Distance((self.w - 1).square().expand(len(batch.index)))

    def elbo(self, batch, step):
        return Distance((self.w - self.best).square().expand(len(batch.index)))

    def updates(self):
        return (Update("line", [self.w], self.loss),)


def vae(family=AttriVAE):
    torch.manual_seed(0)
    return family(size=16, latent_dim=8, widths=(8, 8, 16), gamma_reg=0.1)


def run(model, data, config=EXACT, **options):
    return fit(model, data.split("train"), data.split("val"), config, seed=1, progress=False, **options)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two))


def disturb(model, change, *, name=None):
    """Passes the terms of every loss (or that of the update `name`) through `change(terms, call)`; calls count from 0."""
    updates, calls = model.updates(), []

    def disturbed(loss):
        def changed(batch, step):
            calls.append(0)
            return change(loss(batch, step), len(calls) - 1)

        return changed

    chosen = tuple(replace(u, loss=disturbed(u.loss)) if name in (None, u.name) else u for u in updates)
    model.updates = lambda: chosen
    return model


class Killed(Exception):
    pass


def kill_at(step):
    def kill(terms, call):
        if call == step:
            raise Killed
        return terms

    return kill


@pytest.mark.parametrize("speed", ["exact", "bf16"])
@pytest.mark.parametrize("family", [AttriVAE, ARSIVAE])
def test_a_continued_run_repeats_the_undisturbed_one(data, tmp_path, family, speed):
    config = replace(EXACT, speed=speed, ema=0.9, patience=5)
    whole = vae(family)
    rows, manifest = run(whole, data, config, folder=tmp_path / "whole")
    part = disturb(vae(family), kill_at(ROW + 5), name=whole.updates()[0].name)
    with pytest.raises(Killed):
        run(part, data, config, folder=tmp_path / "part")
    torch.manual_seed(99)  # another process, another state of the global generator
    again = vae(family)
    for p in again.parameters():
        p.data.normal_()
    rows_again, manifest_again = run(again, data, config, folder=tmp_path / "part")
    assert equal(weights(whole), weights(again))
    pd.testing.assert_frame_equal(rows, rows_again, check_exact=True)
    assert rows["step"].tolist() == [26, 52] and rows["epoch"].tolist() == [13, 26]
    assert (tmp_path / "whole/epochs.csv").read_bytes() == (tmp_path / "part/epochs.csv").read_bytes()
    assert len(pd.read_csv(tmp_path / "part/epochs.csv")) == 2
    different = {name for name in manifest if manifest[name] != manifest_again[name]}
    assert different <= {"seconds"} and manifest["bf16"] == (speed == "bf16")


def test_a_finished_run_is_not_trained_further(data, tmp_path):
    first, second = Line(), Line()
    rows, _ = run(first, data, folder=tmp_path)
    rows_again, _ = run(second, data, folder=tmp_path)
    assert second.seen == [] and torch.equal(first.w, second.w)
    pd.testing.assert_frame_equal(rows, rows_again, check_exact=True)


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    run(Line(), data, folder=tmp_path, identity="one")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="holds a checkpoint of another configuration; remove it or choose another folder"):
        run(Line(), data, folder=tmp_path, identity="two")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_without_a_folder_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Line(), data)
    assert list(tmp_path.iterdir()) == []


def test_the_seed_decides(data):
    short = replace(EXACT, steps=3)
    models = [vae() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2)):
        torch.randn(seed)
        fit(model, data.split("train"), data.split("val"), short, seed=seed, progress=False)
    assert equal(weights(models[0]), weights(models[1])) and not equal(weights(models[0]), weights(models[2]))


def test_every_pass_sees_every_subject_once(data):
    model, seen = Line(), []
    model.loss = lambda batch, step: seen.append(batch.index) or Distance((model.w - 1).square().expand(7))
    run(model, data, replace(EXACT, steps=6))
    passes = [torch.cat(seen[i : i + 2]).tolist() for i in (0, 2, 4)]
    assert all(sorted(p) == data.split("train").rows.tolist() for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_each_update_moves_its_own_parameters_only(data):
    model = vae(ARSIVAE)
    start_encoder, start_decoder = weights(model.encoder), weights(model.decoder)
    between = {}

    def look(terms, call):
        between.update(encoder=weights(model.encoder), decoder=weights(model.decoder))
        between["frozen"] = not any(p.requires_grad for p in model.encoder.parameters())
        return terms

    run(disturb(model, look, name="decoder"), data, replace(EXACT, steps=1))
    assert equal(between["decoder"], start_decoder) and not equal(between["encoder"], start_encoder)
    assert equal(weights(model.encoder), between["encoder"]) and not equal(weights(model.decoder), between["decoder"])
    assert between["frozen"] and all(p.requires_grad for p in model.parameters()) and not model.training


def test_early_stopping_keeps_the_best_weights(data):
    model = Line()
    config = replace(EXACT, steps=1000, learning_rate=0.01, warmup=1, patience=2)
    rows, manifest = run(model, data, config)
    best = int(rows["val_total"].argmin())
    assert 0 < best and len(rows) == best + 1 + 2 and manifest["steps"] == rows["step"].iloc[-1] < 1000
    assert (float(model.w.detach()) - 0.5) ** 2 == pytest.approx(rows["val_total"][best], rel=1e-5)
    assert model.seen[-1] > model.w.item()  # training had gone on


def test_without_patience_the_last_weights_stay(data):
    model = Line()
    rows, manifest = run(model, data, replace(EXACT, steps=ROW * 3, learning_rate=0.02, warmup=1))
    assert manifest["steps"] == ROW * 3 and len(rows) == 3
    assert (float(model.w.detach()) - 0.5) ** 2 == pytest.approx(rows["val_total"].iloc[-1], rel=1e-5)


def nan_at(*steps):
    return lambda terms, call: Distance(terms.distance * (torch.nan if call in steps else 1))


def gradient_nan_at(*steps):
    def change(terms, call):
        hidden = (0 * terms.distance).sqrt() if call in steps else 0  # finite, with the gradient 0 * inf
        return Distance(terms.distance + hidden)

    return change


@pytest.mark.parametrize("bad", [nan_at, gradient_nan_at])
def test_steps_that_are_not_finite_are_skipped_and_counted(data, bad):
    model = disturb(Line(), bad(3, 4, 11))
    rows, manifest = run(model, data)
    assert manifest["skipped"] == 3 == rows["skipped"].iloc[-1] and manifest["steps"] == 52
    before, after = model.seen[3:13], model.seen[4:14]
    assert [a == b for a, b in zip(after, before)] == [step in (3, 4, 11) for step in range(3, 13)]
    assert rows.notna().all(axis=None) and torch.isfinite(model.w)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_other_update_is_made_although_one_is_skipped(data, name):
    model, start = vae(ARSIVAE), {}
    start = {part: weights(getattr(model, part)) for part in ("encoder", "decoder")}
    disturb(model, lambda terms, call: replace(terms, recon=terms.recon * torch.inf), name=name)
    _, manifest = run(model, data, replace(EXACT, steps=2))
    assert manifest["skipped"] == 2
    for part, before in start.items():
        assert equal(weights(getattr(model, part)), before) == (part == name)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_divergence_ends_with_a_sentence_that_names_the_update(data, tmp_path, name):
    def spoil(terms, call):
        return replace(terms, recon=terms.recon * torch.nan) if call >= ROW + 2 else terms

    model = disturb(vae(ARSIVAE), spoil, name=name)
    sentence = f"^4 steps in a row had a loss or gradient that is not finite, up to step {ROW + 5} in update `{name}`: "
    with pytest.raises(TrainingDiverged, match=sentence + "lower `learning_rate` = 0.001"):
        run(model, data, replace(EXACT, max_skips=3), folder=tmp_path)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert len(pd.read_csv(tmp_path / "epochs.csv")) == 1  # and what was reached before is kept


def test_single_bad_steps_do_not_add_up_to_divergence(data):
    _, manifest = run(disturb(Line(), nan_at(*range(0, 52, 2))), data, replace(EXACT, max_skips=1))
    assert manifest["skipped"] == 26


def test_learning_rate_schedule():
    config = FitConfig(steps=1000, learning_rate=2e-3, warmup=10, decay_from=0.6)
    expected = {0: 2e-4, 4: 1e-3, 9: 2e-3, 300: 2e-3, 600: 2e-3, 700: 2e-3 * (0.5 + 0.5**1.5), 800: 1e-3, 1000: 0.0}
    assert {step: config.rate(step) for step in expected} == pytest.approx(expected, abs=1e-15)
    rates = [config.rate(step) for step in range(600, 1001)]
    assert rates == sorted(rates, reverse=True)
    assert FitConfig(warmup=0).rate(0) == 1e-3


def test_training_is_adam_at_the_scheduled_rate_and_ema_its_average(data):
    config = replace(EXACT, ema=0.9)
    model = Line()
    run(model, data, config)
    w, mean = torch.zeros((), requires_grad=True), 0.0
    adam = torch.optim.Adam([w])
    for step in range(config.steps):
        assert model.seen[step] == pytest.approx(float(w.detach()), rel=1e-5, abs=1e-7)
        adam.zero_grad()
        (w - 1).square().backward()
        adam.param_groups[0]["lr"] = config.rate(step)
        adam.step()
        mean = 0.9 * mean + 0.1 * float(w.detach())
    assert float(model.w.detach()) == pytest.approx(mean, rel=1e-5)


def test_rows_are_means_over_the_steps(data):
    model = Line(best=1.0)
    rows, _ = run(model, data)
    losses = [(w - 1) ** 2 for w in model.seen]
    expected = [sum(losses[:ROW]) / ROW, sum(losses[ROW:]) / ROW]
    assert rows["line_total"].tolist() == pytest.approx(expected, rel=1e-5)
    assert rows["val_total"].iloc[0] == pytest.approx(losses[ROW], rel=1e-5)


@pytest.mark.parametrize(("family", "falls"), [(AttriVAE, "vae_recon"), (ARSIVAE, "decoder_recon")])
def test_the_loss_goes_down(data, family, falls):
    rows, _ = run(vae(family), data, replace(EXACT, steps=4 * ROW, learning_rate=3e-3))
    assert len(rows) == 4 and rows[falls].iloc[-1] < 0.7 * rows[falls].iloc[0]


def compare_compiled(folder):
    """Five steps with and without `torch.compile`, from the same weights."""
    plain, compiled, data = vae(), vae(), datasets.load(folder)
    run(plain, data, replace(EXACT, steps=5, speed="bf16"))
    run(compiled, data, replace(EXACT, steps=5, speed="compiled"))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for p, c in zip(plain.parameters(), compiled.parameters()):
        torch.testing.assert_close(p, c, rtol=0.05, atol=5e-3)  # five steps of 1e-3 at most


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(not os.environ.get("MEDVAE_SLOW"), reason="compiling takes a minute: set MEDVAE_SLOW=1")
def test_compiled_training_trains_the_same_model(data):
    # In a process of its own: torch.compile cannot trace the shape checks that tests add.
    script = "import sys, test_train; test_train.compare_compiled(sys.argv[1])"
    command = [sys.executable, "-c", script, str(data.root)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"steps": 0}, "`steps` must be at least 1 and `batch_size` 2, got 0 and 32"),
        ({"batch_size": 1}, "`steps` must be at least 1 and `batch_size` 2, got 2000 and 1"),
        ({"speed": "fast"}, "`speed` must be one of auto, exact, bf16, compiled, got 'fast'"),
    ],
)
def test_impossible_settings_are_refused(wrong, sentence):
    config = FitConfig()
    for name, value in wrong.items():  # past the type checker of tests, as a chapter's parameters come
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=sentence):
        config.__post_init__()


@pytest.fixture
def fits(monkeypatch):
    """Counts the calls of `fit`."""
    calls = []
    monkeypatch.setattr(published, "fit", lambda *args, **options: calls.append(options) or fit(*args, **options))
    return calls


def obtain(data, root, **options):
    options = {"seed": 1, "evaluate": lambda model: {"w": float(model.w.detach())}, **options}
    return train_or_load("line", Line, data, EXACT, device="cpu", runs_root=root, progress=False, **options)


def test_a_run_is_trained_once_and_loaded_after(data, tmp_path, fits):
    model, record = obtain(data, tmp_path)
    again, record_again = obtain(data, tmp_path)
    assert len(fits) == 1
    assert torch.equal(model.w, again.w) and not again.training
    assert record_again.metrics == record.metrics == {"w": float(model.w.detach())}  # what is measured is what is kept
    assert [path.name for path in tmp_path.iterdir()] == [record.folder.name]
    names = {path.name for path in record.folder.iterdir()}
    assert names == {"config.json", "manifest.json", "epochs.csv", "metrics.json", "weights.safetensors"}
    assert record.config["data"] == data.identity and record.config["seed"] == 1


def test_another_seed_data_or_note_is_another_run(data, tmp_path, fits):
    obtain(data, tmp_path)
    other = datasets.load(data.root, image_size=8)
    obtain(data, tmp_path, seed=2), obtain(other, tmp_path), obtain(data, tmp_path, notes={"features": "abc"})
    assert len(fits) == 4 == len(list(tmp_path.iterdir()))


def test_retrain_trains_again_and_replaces_the_record(data, tmp_path, fits):
    _, old = obtain(data, tmp_path)
    (old.folder / "leftover.txt").write_text("of the old record")
    _, new = obtain(data, tmp_path, retrain=True)
    assert len(fits) == 2 and new.folder == old.folder and new.metrics == old.metrics
    assert list(tmp_path.iterdir()) == [new.folder] and not (new.folder / "leftover.txt").exists()


def test_retrain_that_fails_leaves_the_old_record(data, tmp_path):
    _, old = obtain(data, tmp_path)
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}

    def fail(model):
        raise Killed

    with pytest.raises(Killed):
        obtain(data, tmp_path, retrain=True, evaluate=fail)
    assert {path.name: path.read_bytes() for path in old.folder.iterdir()} == before
    assert obtain(data, tmp_path)[1].metrics == old.metrics


def test_a_record_that_was_set_aside_in_a_crash_is_no_obstacle(data, tmp_path):
    _, record = obtain(data, tmp_path)
    shutil.copytree(record.folder, tmp_path / f".{record.folder.name}.old")
    obtain(data, tmp_path, retrain=True)
    assert list(tmp_path.iterdir()) == [record.folder]


def test_a_killed_run_is_continued_by_the_next_call(data, tmp_path, fits):
    _, whole = obtain(data, tmp_path / "whole")
    models = []

    def build():
        models.append(Line())
        return disturb(models[-1], kill_at(ROW + 1)) if len(models) == 1 else models[-1]

    options = {"seed": 1, "device": "cpu", "runs_root": tmp_path / "part", "progress": False}
    with pytest.raises(Killed):
        train_or_load("line", build, data, EXACT, **options)
    assert runs.find_record(tmp_path / "part", "line", whole.config) is None
    model, record = train_or_load("line", build, data, EXACT, **options)
    assert len(models[1].seen) == 52 - ROW and record.folder.name == whole.folder.name
    assert (record.folder / "epochs.csv").read_bytes() == (whole.folder / "epochs.csv").read_bytes()
    assert (record.folder / "weights.safetensors").read_bytes() == (whole.folder / "weights.safetensors").read_bytes()


def test_a_light_record_is_enough_to_ask_for_the_record(data, tmp_path, fits):
    """Without weights a record answers for its metrics; whoever wants the model gets it trained again, the same."""
    model, record = obtain(data, tmp_path)
    (record.folder / runs.WEIGHTS).unlink()
    nothing, light = obtain(data, tmp_path, light=True)
    assert nothing is None and light.metrics == record.metrics and len(fits) == 1
    again, whole = obtain(data, tmp_path)
    assert len(fits) == 2 and torch.equal(again.w, model.w) and whole.has_weights


def test_a_dropped_rate_is_a_tenth():
    plain, dropped = (FitConfig(steps=100, warmup=0, decay_from=1.0, drop_after=n) for n in (0, 40))
    assert [dropped.rate(s) / plain.rate(s) for s in (0, 39, 40, 99)] == pytest.approx([1, 1, 0.1, 0.1])


class Counter(Line):
    """A line that counts its training batches in a buffer, as a batch norm keeps its statistics."""

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))

    def loss(self, batch, step):
        self.batches += 1
        return super().loss(batch, step)


def test_buffers_are_continued_too(data, tmp_path):
    train_split, val_split = data.split("train"), data.split("val")
    whole, part = Counter(), disturb(Counter(), kill_at(ROW + 1))
    fit(whole, train_split, val_split, EXACT, progress=False)
    with pytest.raises(Killed):
        fit(part, train_split, val_split, EXACT, folder=tmp_path, progress=False)
    again = Counter()
    fit(again, train_split, val_split, EXACT, folder=tmp_path, progress=False)
    assert float(again.batches) == float(whole.batches) > ROW
