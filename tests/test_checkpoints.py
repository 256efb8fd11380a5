"""Checkpoints and folders: whole, of this run, or refused in one sentence, with nothing changed."""

import io
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from _families import family

from medvae_lite import checkpoints, runs
from medvae_lite.train import FitConfig, fit

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import killed  # noqa: E402

CONFIG = FitConfig(steps=30, batch_size=16, speed="exact")


def train(folder, name="attri_vae", identity=""):
    model, *splits = family(name)
    return fit(model, *splits, CONFIG, seed=1, folder=folder, identity=identity, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A folder with a whole checkpoint of its own."""
    (tmp_path / checkpoints.FILE).write_bytes((trained / checkpoints.FILE).read_bytes())
    return tmp_path


def refused(folder, sentence, work=train):
    """Training is refused, and leaves every file as it was."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        work(folder)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["attri_vae", "ar_sivae", "poe_vae", "nvmp+, reading A"])
def test_killed_at_random_moments_training_ends_as_if_undisturbed(tmp_path, name):
    found = killed.kill_often(name, tmp_path, kills=3, steps=108)
    assert found.kills == 3 and found.writing >= 1 and found.runs >= 1
    assert found.equal == found.runs and found.unreadable == 0


def test_any_changed_bit_is_noticed(folder):
    path, chance = folder / checkpoints.FILE, random.Random(0)
    whole = path.read_bytes()
    places = [*range(0, 120, 5), *(chance.randrange(len(whole)) for _ in range(200))]  # the first line above all
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged|was written by another version"):
            checkpoints.read(folder, "")
    for length in (0, 1, 22, 23, 24, 50, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(folder, "checkpoint.pt is damaged, its check sum is another than when it was written: put back a copy, or remove it")


def test_a_checkpoint_of_another_version_is_refused(folder):
    path = folder / checkpoints.FILE
    path.write_bytes(path.read_bytes().replace(b"checkpoint 2 ", b"checkpoint 9 ", 1))
    refused(folder, "checkpoint.pt was written by another version of medvae_lite: finish the run with that one, or remove it")
    buffer = io.BytesIO()
    torch.save({"identity": "", "state": {}}, buffer)  # as the first version did
    path.write_bytes(buffer.getvalue())
    refused(folder, "checkpoint.pt was written by another version of medvae_lite")


def test_a_checkpoint_of_another_model_is_refused(folder):
    refused(folder, "holds a checkpoint of another configuration", lambda folder: train(folder, identity="another"))
    refused(folder, "holds a checkpoint of another model: its parameters have other shapes", lambda folder: train(folder, "poe_vae"))


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made by a checkpoint",)


def test_nothing_in_a_checkpoint_is_executed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    content = {"state": {}, "parameters": Harmful()}
    checkpoints.write(folder, content, "")
    with pytest.raises(ValueError, match="holds something else than numbers and text: it was not written by medvae_lite"):
        checkpoints.read(folder, "")
    assert not (folder / "made by a checkpoint").exists()


def limited(folder, size):
    """Trains where no file may become larger than `size` bytes: what a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sentence(folder)


def unprivileged(folder):
    train(folder)  # imports what is imported late, before the right to read it is given up
    folder.chmod(0o555)
    if os.getuid() == 0:
        os.setuid(65534)
    sentence(folder)


def sentence(folder):
    try:
        train(folder)
    except OSError as error:
        (print(error), sys.stdout.flush())
    else:
        print("nothing was refused")


def said(call):
    """What a call prints in a process of its own."""
    here = Path(__file__).parent
    script = f"import sys; sys.path[:0] = [{str(here)!r}]; import test_checkpoints as t; from pathlib import Path; {call}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(folder):
    model, *splits = family("attri_vae")
    # Half of the way, then no more space.
    (folder / checkpoints.FILE).unlink()
    fit(model, *splits, FitConfig(**CONFIG.__dict__ | {"steps": 27}), seed=1, folder=folder, progress=False)
    before = (folder / checkpoints.FILE).read_bytes()
    text = said(f"t.limited(Path({str(folder)!r}), {len(before) // 2})")
    assert text.endswith("checkpoint.pt cannot be written (File too large): free some space or choose another folder; nothing was changed")
    assert (folder / checkpoints.FILE).read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.pt", "epochs.csv"]
    train(folder)  # there is space again
    assert checkpoints.read(folder, "")["state"]["step"] == CONFIG.steps


def test_a_read_only_folder_ends_in_a_sentence_before_anything_is_trained(folder):
    # Read-only only once the process has trained in it as its owner: see `unprivileged`.
    text = said(f"t.unprivileged(Path({str(folder)!r}))")
    assert text.endswith(f"{folder} cannot be written (Permission denied): free some space or choose another folder; nothing was changed")


def hold(folder, ready):
    with checkpoints.held(folder):
        ready.set()
        time.sleep(60)


def test_two_processes_do_not_train_in_one_folder(folder):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(folder, ready))
    other.start()
    assert ready.wait(60)
    try:
        with pytest.raises(ValueError, match="is being trained in by another process: wait for it, or choose another folder"):
            train(folder)
    finally:
        other.kill()
        other.join()
    train(folder)  # the lock of a process that has died is taken over
    assert [p.name for p in folder.iterdir()] == ["checkpoint.pt"]


def test_what_was_half_written_is_cleared_away(folder):
    (folder / ".checkpoint.pt.123.partial").write_bytes(b"half")
    train(folder)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "other", "text"])
def test_damaged_weights_are_refused_and_the_model_is_as_before(tmp_path, damage):
    model, *_ = family("attri_vae")
    contents = {"config": {}, "manifest": {}, "epochs": pd.DataFrame({"epoch": [1]}), "metrics": {}}
    record = runs.write_record(tmp_path / "run", model=model, **contents)
    path = record.folder / runs.WEIGHTS
    whole = path.read_bytes()
    if damage == "other":
        record.manifest.pop("weights_sha256")  # an older record, which has none
        model = family("poe_vae")[0]
    else:
        path.write_bytes({"flip": whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:], "cut": whole[:-9], "text": b"text"}[damage])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="holds the weights of another model" if damage == "other" else "is damaged, it is not what was written") as caught:
        record.weights_into(model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    if damage in ("cut", "text"):
        record.manifest.pop("weights_sha256")
        with pytest.raises(ValueError, match="is no file of weights"):
            record.weights_into(model)
