"""Trains every run the book publishes, and says how the new ones compare with the published ones.

    make_runs.py                    into _build/runs; stop it and start it again, it goes on
    make_runs.py --out book/runs    where the chapters look: runs that are there already are kept

One run per processor core, each on one thread, so that a run does not depend on the number of cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from data_prep import phantom
from medvae_lite import cardiac, datasets, runs
from medvae_lite.experiments import GALLERY, SEEDS, WALKED, Run, objectives, published

HERE = Path(__file__).resolve().parent
PROFILES = ("laptop", "grid")
COMPARED = ("perceptual", "ssim", "mse", "kl", "scc", "interpretability")
# Chapters that compare particular settings ask for a run or two more than the experiments list.
EXTRA = {
    "laptop": [Run("β-VAE", "beta_vae", seeds=1), Run("published repulsion", "ar_sivae", {"repulsion": 0.125}, seeds=1)],
    "grid": [],
}


def study(out: Path, profile: str, seed: int) -> cardiac.Study:
    """What the chapters build in their first cells, without a progress bar."""
    torch.set_num_threads(1)
    size = cardiac.PROFILES[profile]
    data = datasets.load(phantom("cardiac", subjects=size.subjects, size=size.size))
    return cardiac.Study(data, profile=profile, phantom=phantom, seed=seed, runs_root=out, progress=False)


def jobs(out: Path) -> Iterator[tuple[str, int, Run]]:
    """Profile, seed and run of everything that is published; first seeds first."""
    for profile in PROFILES:
        runs_of = published(study(out, profile, 0))
        for seed in range(SEEDS[profile]):
            yield from ((profile, seed, run) for run in runs_of + EXTRA[profile] if seed < run.seeds)


def opened(one: cardiac.Study) -> list[tuple]:
    """Settings of the runs whose weights a chapter opens; of all others it reads the record."""
    if one.profile == "grid":
        steps = len(one.data.split("train")) // one.size.fit.batch_size
        wanted = [*objectives(one.data.size, epoch_steps=steps).values(), *GALLERY]
    else:
        wanted = WALKED if one.seed else published(one) + EXTRA[one.profile]
    return [settings(one, run) for run in wanted] if not (one.profile == "grid" and one.seed) else []


def settings(one: cardiac.Study, run: Run) -> tuple:
    return run.model, one.settings(run.model, run.settings), run.frame, run.fit


def train(profile: str, seed: int, run: Run, out: Path) -> Path:
    """Trains a run, or finds it trained; weights that no chapter opens are dropped, what was measured on them stays."""
    one = study(out, profile, seed)
    keep = settings(one, run) in opened(one)
    folder = run.train(one)[1].folder if keep else run.record(one).folder
    if not keep:
        (folder / runs.WEIGHTS).unlink(missing_ok=True)
    return folder


def features(profile: str, role: str, out: Path) -> None:
    study(out, profile, 0).features(role)


def difference(folder: Path) -> str:
    """The remade run's metrics beside the published ones."""
    published = HERE / "runs" / folder.name
    new = runs.load_record(folder)
    if published.resolve() == folder.resolve():
        return "published"
    if not published.is_dir():
        return "not published"
    old = runs.load_record(published).metrics
    return "  ".join(f"{m} {old[m]:.4g} -> {new.metrics[m]:.4g}" for m in COMPARED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "_build" / "runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    began, out = time.monotonic(), args.out.resolve()
    everything = list(jobs(out))  # makes the phantoms once, before the workers ask for them
    with ProcessPoolExecutor(args.workers) as pool:
        for done in as_completed([pool.submit(features, p, r, out) for p in PROFILES for r in cardiac.FEATURE_NETS]):
            done.result()
        futures = [pool.submit(train, *job, out) for job in everything]
        for number, done in enumerate(as_completed(futures), start=1):
            folder, minutes = done.result(), (time.monotonic() - began) / 60
            print(f"[{number}/{len(everything)}, {minutes:.0f} min] {folder.name}: {difference(folder)}", flush=True)
    seconds = sum(runs.load_record(f.parent).manifest["seconds"] for f in out.glob("*/metrics.json"))
    print(f"All runs are in {out}: {seconds / 3600:.1f} hours of one core each, {seconds / 3600 / args.workers:.1f} here.")


if __name__ == "__main__":
    main()
