"""What the page on reliability shows comes from trials that can fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import bench_reliability  # noqa: E402
from _families import family  # noqa: E402

from medvae_lite import checkpoints  # noqa: E402


def test_a_quick_run_writes_what_the_page_reads(tmp_path):
    script, out = Path(bench_reliability.__file__), tmp_path / "reliability.json"
    subprocess.run([sys.executable, script, "--quick", "--only", "damage", "--out", out], check=True, timeout=300)
    found = json.loads(out.read_text())
    published = json.loads((script.parent / "results" / "reliability.json").read_text())
    assert found.keys() <= published.keys() and found["damage"][0].keys() == published["damage"][0].keys()
    ours = [row for row in found["damage"] if "alone" not in row["file"]]
    assert len(ours) == 10 and all(row["refused"] == row["tried"] for row in ours)


def test_damage_that_is_not_noticed_is_counted(tmp_path, monkeypatch):
    """Without check sums, flipped bits are read as weights, and the trial says so."""
    monkeypatch.setattr(checkpoints, "_first_line", lambda rest: b"anything")
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    rows = bench_reliability.damage(tmp_path, quick=True)
    flipped = next(row for row in rows if row["file"] == "checkpoint" and row["damage"] == "one bit flipped")
    assert flipped["refused"] < flipped["tried"]


@pytest.mark.parametrize("place", ["image", "loss", "gradient"])
def test_what_is_put_in_arrives(place):
    model, *splits = family("attri_vae")
    put = bench_reliability.spoil(model, place, {3: torch.nan})
    _, manifest = bench_reliability.fit(model, *splits, bench_reliability.CONFIG, seed=1, progress=False)
    assert put == [3] and manifest["skipped"] == 1


def test_every_trial_was_made_as_often_as_it_should_be():
    published = json.loads((Path(bench_reliability.__file__).parent / "results" / "reliability.json").read_text())
    assert published.keys() >= bench_reliability.EXPERIMENTS.keys()
    assert {row["model"] for row in published["kills"]} == set(bench_reliability.NAMES.values())
    assert all(row["kills"] == 20 for row in published["kills"])
