"""Several processes train what one process trains: the same rows, the same weights, but for rounding.

`torchrun` starts them, once for two processes and once for four; they talk through gloo.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from _families import FAMILIES, family
from train_together import CONFIG, train

from medvae_lite import runs
from medvae_lite.parallel import Team

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")


SOME = ("attri_vae", "ar_sivae", "poe_vae", "nvmp+, reading A")


def launch(size, out, names):
    """Has so many processes train together; what they found."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", here / "train_together.py", out, *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out / "found.pt", weights_only=True), out


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch(2, tmp_path_factory.mktemp("two"), FAMILIES)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return launch(4, tmp_path_factory.mktemp("four"), SOME)


@pytest.fixture(scope="module")
def alone():
    """One process's results, by family."""
    made = {}

    def result(name):
        if name not in made:
            made[name] = train(name)
        return made[name]

    return result


def apart(weights, others, name):
    """How far two results are from each other, as a part of the way from the start to the first of them."""
    start = [p.detach() for p in family(name)[0].parameters()]
    flat = [torch.cat([t.flatten() for t in tensors]) for tensors in (weights, others, start)]
    return float((flat[0] - flat[1]).norm() / (flat[0] - flat[2]).norm())


def same(found, alone, name):
    """Rounding is all that may be left, at most a few hundred-thousandths of the way, unless Adam turns a gradient near zero round."""
    rows, _, weights = alone
    assert apart(weights, found["weights"], name) < 2e-3
    other = pd.DataFrame(found["rows"])
    assert list(other) == list(rows) and len(rows) == 2
    for column in rows:
        assert other[column].tolist() == pytest.approx(rows[column].tolist(), rel=1e-3, abs=1e-4), column


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_train_what_one_trains(two, alone, name):
    same(two[0][name], alone(name), name)
    assert two[0][name]["manifest"]["processes"] == 2 and "processes" not in alone(name)[1]


@pytest.mark.parametrize("name", SOME)
def test_four_processes_train_what_one_trains(four, alone, name):
    same(four[0][name], alone(name), name)


def test_no_process_drifts_away(two, four):
    for (_, out), size in ((two, 2), (four, 4)):
        assert [json.loads((out / f"drift-{rank}.json").read_text()) for rank in range(size)] == [0.0] * size


def test_the_first_process_says_where_training_starts(two, alone):
    same(two[0]["started apart"], alone("ar_sivae"), "ar_sivae")


def test_one_process_reads_and_writes_for_all(two, alone):
    found, out = two
    assert sorted(p.name for p in (out / "folder").iterdir()) == ["checkpoint.pt", "epochs.csv"]
    assert [p.name for p in out.glob("private-*")] == ["private-0"]
    rows, _, weights = alone("attri_vae")
    same(found["continued"], (rows, None, weights), "attri_vae")
    same(found["record"], (rows, None, [w.half().float() for w in weights]), "attri_vae")
    folders = sorted((out / "runs").iterdir())
    assert [folder.name.partition("-")[0] for folder in folders] == ["measure", "together"]
    record = runs.load_record(folders[1])
    assert record.manifest["processes"] == 2 and record.metrics == {"steps": 30}


def test_batches_that_cannot_be_divided_are_refused(two):
    said = json.loads((two[1] / "said.json").read_text())
    assert said["odd"] == "`batch_size` must be a multiple of 4 under 2 processes, got 14"
    assert said["norm"].startswith("a batch norm sees the rows of its own process only: take `norm` = 'group'")


def test_one_process_alone_sends_nothing():
    team = Team.join(torch.device("cpu"))
    tensor = torch.ones(2)
    team.mean_([tensor])
    assert (team.rank, team.size, team.first) == (0, 1, True) and team.tell("said") == "said"
    assert team.gather(tensor) is tensor and team.place(torch.device("cuda")) == torch.device("cuda")


def test_the_first_gpu_of_a_process_is_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Team(rank=7, size=8).place(torch.device("cuda")) == torch.device("cuda:3")
    assert Team(rank=7, size=8).place(torch.device("cuda:1")) == torch.device("cuda:1")
    assert Team(rank=7, size=8).place(torch.device("cpu")) == torch.device("cpu")


def test_rows_end_where_they_should():
    assert CONFIG.steps == 30  # 48 subjects in batches of 16: rows after 27 and 30 steps
