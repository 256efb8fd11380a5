"""Where the time of a training step goes, and what a second process saves: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_loop.py``.

``[--quick] [--out FILE]``. Steps are those of the training loop itself, on phantoms, with the laptop profile's models: reading the batch,
computing the gradients, and the rest (clipping, Adam, bookkeeping), in CPU seconds. Then two processes on one core each train
what one process trains, with the same batches of 64; they take turns, and a turn gives one ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import measure  # noqa: E402

from data_prep import phantom  # noqa: E402
from medvae_lite import brains, cardiac, cohort, datasets, hierarchy, regions, train  # noqa: E402
from medvae_lite.fit_config import FitConfig  # noqa: E402
from medvae_lite.hvae import HVAE  # noqa: E402
from medvae_lite.mmvae import PoEVAE  # noqa: E402
from medvae_lite.parallel import Team  # noqa: E402

BATCH = 64


def hearts(name: str) -> tuple[Any, torch.nn.Module, FitConfig]:
    size = cardiac.PROFILES["laptop"]
    data = datasets.load(phantom("cardiac", subjects=1000, size=size.size, seed=101))
    kind, settings = cardiac.MODELS[name]
    model = kind(channels=2, size=size.size, attributes=6, latent_dim=size.latent_dim, **{**settings, "alpha_pl": 0.0})
    return data, model, size.fit


def people() -> tuple[Any, torch.nn.Module, FitConfig]:
    size = cohort.PROFILES["laptop"]
    data = regions.load(phantom("regions", subjects=size.subjects))
    return data, PoEVAE(sizes=data.sizes, covariates=data.covariates.shape[1], latent_dim=16, warmup=size.warmup), size.fit


def slices(prior: str) -> tuple[Any, torch.nn.Module, FitConfig]:
    size = hierarchy.PROFILES["laptop"]
    data = brains.load(phantom("brain", disease="ms", **size.phantom))
    return data, HVAE(size=data.size, prior=prior, sigma_x=0.15, **size.settings), size.fit


MODELS: dict[str, Callable[[], tuple[Any, torch.nn.Module, FitConfig]]] = {
    "Attri-VAE, 64 px": lambda: hearts("attri_vae"),
    "AR-SIVAE, 64 px": lambda: hearts("ar_sivae"),
    "PoE-VAE, 115 regions": people,
    "NVAE, 64 px": lambda: slices("nvae"),
    "NVMP+, 64 px": lambda: slices("nvmp+"),
}


def loop(name: str, team: Team, batch: int | None = None) -> train._Loop:
    torch.manual_seed(0)
    data, model, fit = MODELS[name]()
    config = FitConfig(**fit.__dict__ | {"speed": "exact"} | ({"batch_size": batch} if batch else {}))
    return train._Loop(model, data.split("train"), data.split("val"), config, 0, torch.device("cpu"), None, "", team)


def shares(name: str, steps: int, turns: int) -> dict:
    """Milliseconds of a step and its parts, medians over turns."""
    one = loop(name, Team())
    spent = {"reading the batch": 0.0, "gradients": 0.0}

    def timed(part: str, work: Callable) -> Callable:
        def run(*args, **kwargs):
            began = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent[part] += time.process_time() - began

        return run

    one.batch = timed("reading the batch", one.batch)
    real, train.gradients = train.gradients, timed("gradients", train.gradients)
    rows = []
    try:
        for turn in range(turns + 1):
            spent.update(dict.fromkeys(spent, 0.0))
            began = time.process_time()
            for _ in range(steps):
                one.step()
            whole = time.process_time() - began
            if turn:
                rows.append({"step, ms": 1e3 * whole / steps, **{part: took / whole for part, took in spent.items()}})
    finally:
        train.gradients = real
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {"model": name, "batch": one.batch_size, **middle, "the rest": 1 - sum(middle[part] for part in spent)}


def together(steps: int, turns: int) -> list[dict]:
    """One process against two: started by `main` under torchrun; the first process's answer."""
    found = []
    for name in ("Attri-VAE, 64 px", "AR-SIVAE, 64 px", "NVAE, 64 px"):
        team = Team.join(torch.device("cpu"))
        alone, divided = loop(name, Team(), BATCH), loop(name, team, BATCH)
        took = {"alone": [], "together": []}
        for turn in range(turns + 1):
            for kind, one in (("alone", alone if team.first else None), ("together", divided)):
                team.tell()
                began = time.perf_counter()
                for _ in range(steps if one else 0):
                    one.step()
                team.tell()
                if turn:
                    took[kind].append(time.perf_counter() - began)
        numbers = sum(p.numel() for p in divided.parameters)
        images = BATCH * steps / statistics.median(took["alone"])
        found.append({"model": name, "batch": BATCH, "parameters": numbers, "images per s, one": images, "times as fast": measure.ratio(**{"slow": took["alone"], "fast": took["together"]})})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--team", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "loop-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps, turns = (2, 1) if args.quick else (10, 5)
    if args.team:
        found = together(steps, turns)
        if Team.join(torch.device("cpu")).first:
            args.team.write_text(json.dumps(found))
        return
    result = {"machine": measure.machine("cpu"), "steps": []}
    for name in MODELS:
        result["steps"].append(shares(name, steps * (20 if "regions" in name else 1), turns))
        print(result["steps"][-1], flush=True)
    with tempfile.TemporaryDirectory() as work:
        answer = Path(work) / "together.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, "--team", answer]
        subprocess.run([*command, *(["--quick"] if args.quick else [])], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        result["processes"] = json.loads(answer.read_text())
        print(result["processes"])
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
