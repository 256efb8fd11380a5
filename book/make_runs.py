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
from medvae_lite import brains, cardiac, cohort, datasets, hierarchy, regions, runs
from medvae_lite.experiments import SEEDS, Run, opened, published

HERE = Path(__file__).resolve().parent
PROFILES = ("laptop", "grid")
DISEASES = ("ms", "ad")
COMPARED = ("perceptual", "ssim", "mse", "kl", "scc", "interpretability", "error_all", "slope", "r_adas13", "psnr", "neg_elbo")


def study(out: Path, profile: str, seed: int) -> cardiac.Study:
    """What the chapters build in their first cells, without a progress bar."""
    torch.set_num_threads(1)
    size = cardiac.PROFILES[profile]
    data = datasets.load(phantom("cardiac", subjects=size.subjects, size=size.size))
    return cardiac.Study(data, profile=profile, phantom=phantom, seed=seed, runs_root=out, progress=False)


def jobs(out: Path) -> Iterator[tuple[str, int, Run]]:
    """Profile, seed and run of everything that is published; first seeds first."""
    for profile in PROFILES:
        for one in study(out, profile, 0).repeats(SEEDS[profile]):
            yield from ((profile, one.seed, run) for run in published(one))


def train(profile: str, seed: int, run: Run, out: Path) -> Path:
    """Trains a run, or finds it trained; weights that no chapter opens are dropped, what was measured on them stays."""
    one = study(out, profile, seed)
    if run in opened(one):
        return run.train(one)[1].folder
    folder = run.record(one).folder
    (folder / runs.WEIGHTS).unlink(missing_ok=True)
    return folder


def tables(out: Path, seed: int = 0) -> cohort.Study:
    """The normative chapters' study."""
    torch.set_num_threads(1)
    data = regions.load(phantom("regions", subjects=cohort.PROFILES["laptop"].subjects))
    return cohort.Study(data, profile="laptop", seed=seed, runs_root=out, progress=False)


def normative_jobs(out: Path) -> list[tuple[int, str, dict]]:
    """Seed, name and settings of every published normative model."""
    return [(one.seed, *job) for one in tables(out).repeats() for job in cohort.published(one)]


def train_normative(seed: int, name: str, settings: dict, out: Path) -> Path:
    """Trains a normative model, or finds it trained; the large ones as published keep no weights."""
    record = tables(out, seed).record(name, **settings)
    if cohort.ARMS[name].as_published:
        (record.folder / runs.WEIGHTS).unlink(missing_ok=True)
    return record.folder


def slices(out: Path, disease: str, seed: int = 0) -> hierarchy.Study:
    """The structured chapters' study of one disease."""
    torch.set_num_threads(1)
    data = brains.load(phantom("brain", disease=disease, **hierarchy.PROFILES["laptop"].phantom))
    return hierarchy.Study(data, profile="laptop", seed=seed, runs_root=out, progress=False)


def slices_jobs(out: Path) -> list[tuple[str, int, str, bool, dict]]:
    """Disease, seed, prior, supervision and settings of every published hierarchy; first seeds first."""
    studies = [(disease, one) for disease in DISEASES for one in slices(out, disease).repeats()]
    listed = [(disease, one.seed, *job) for disease, one in studies for job in hierarchy.published(one)]
    return sorted(listed, key=lambda job: job[1])


def train_slices(disease: str, seed: int, prior: str, supervised: bool, settings: dict, out: Path) -> Path:
    """Trains a hierarchy, or finds it trained; weights are kept where a chapter draws with them."""
    record = slices(out, disease, seed).record(prior, supervised=supervised, **settings)
    if seed or settings:
        (record.folder / runs.WEIGHTS).unlink(missing_ok=True)
    return record.folder


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
    return "  ".join(f"{m} {old[m]:.4g} -> {new.metrics[m]:.4g}" for m in COMPARED if m in old)


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
        futures = [pool.submit(train_normative, *job, out) for job in normative_jobs(out)]
        futures += [pool.submit(train_slices, *job, out) for job in slices_jobs(out)]
        futures += [pool.submit(train, *job, out) for job in everything]
        for number, done in enumerate(as_completed(futures), start=1):
            folder, minutes = done.result(), (time.monotonic() - began) / 60
            print(f"[{number}/{len(futures)}, {minutes:.0f} min] {folder.name}: {difference(folder)}", flush=True)
    seconds = sum(runs.load_record(f.parent).manifest["seconds"] for f in out.glob("*/metrics.json"))
    print(f"All runs are in {out}: {seconds / 3600:.1f} hours of one core each, {seconds / 3600 / args.workers:.1f} here.")


if __name__ == "__main__":
    main()
