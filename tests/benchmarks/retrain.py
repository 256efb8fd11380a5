"""Trains some published runs again and compares them: ``OMP_NUM_THREADS=1 python tests/benchmarks/retrain.py``.

Records keep the hash of the code that trained them. Where that code changes and what it computes does not, this is the proof: of every
class of model, and of every prior, the run that is quickest to train must come out with the same bytes: configuration, epochs and
weights. What is measured on the weights must be the same as `python -m medvae_lite.runs verify` has it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / "book")]

import make_runs  # noqa: E402
import measure  # noqa: E402

from medvae_lite import cardiac, reevaluate, runs  # noqa: E402
from medvae_lite.train import TRAINING_CODE  # noqa: E402

PUBLISHED = ROOT / "book" / "runs"
FILES = ("config.json", "epochs.csv", runs.WEIGHTS)

Job = Callable[[Path], Path]
"""Trains a run under the folder given, or finds it there; its record's folder."""


def jobs() -> Iterator[Job]:
    """Everything that is published."""
    for profile in make_runs.PROFILES:
        for role, (_, seed) in cardiac.FEATURE_NETS.items():
            yield lambda out, p=profile, r=role: _features(out, p, r)
    for profile, seed, run in make_runs.jobs(PUBLISHED):
        yield lambda out, p=profile, s=seed, r=run: r.record(make_runs.study(out, p, s)).folder
    for seed, name, settings in make_runs.normative_jobs(PUBLISHED):
        yield lambda out, s=seed, n=name, k=settings: make_runs.tables(out, s).record(n, **k).folder
    for disease, seed, prior, supervised, settings in make_runs.slices_jobs(PUBLISHED):
        yield lambda out, d=disease, s=seed, p=prior, u=supervised, k=settings: make_runs.slices(out, d, s).record(p, supervised=u, **k).folder


def _features(out: Path, profile: str, role: str) -> Path:
    make_runs.features(profile, role, out)
    return next(out.glob(f"features-{role}-{profile}-*"))


def sample() -> dict[str, tuple[Path, Job]]:
    """Of every kind of model the published run with weights that took the least time, and what trains it."""
    found: dict[str, tuple[float, Path, Job]] = {}
    for job in jobs():
        folder = job(PUBLISHED)
        record = runs.load_record(folder)
        model = record.config["model"]
        several = len(model.get("sizes", ())) > 1
        more = ["of several modalities"] * several + ["some hidden"] * (several and model["drop"] > 0)
        kind = ", ".join([" ".join(filter(None, (model["class"], model.get("prior")))), *more])
        if record.has_weights and record.manifest["seconds"] < found.get(kind, (float("inf"),))[0]:
            found[kind] = record.manifest["seconds"], folder, job
    return {kind: (folder, job) for kind, (_, folder, job) in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="say which, and train nothing")
    parser.add_argument("--only", metavar="TEXT", default="", help="kinds that contain this; what the file has of the others stays, if the code is the same")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "retrained.json")
    args = parser.parse_args()
    code, rows = runs.code_hash(*TRAINING_CODE), []
    if args.only and args.out.exists() and (before := json.loads(args.out.read_text()))["code"] == code:
        rows = [row for row in before["runs"] if args.only not in row["model"]]
    with tempfile.TemporaryDirectory() as work:
        for kind, (published, job) in sample().items():
            if args.only not in kind:
                continue
            if args.list:
                print(kind, published.name, runs.load_record(published).manifest["seconds"])
                continue
            folder = job(Path(work))
            record = runs.load_record(folder)
            equal = {name: (folder / name).read_bytes() == (published / name).read_bytes() for name in FILES}
            old = runs.load_record(published)
            # Numbers measured on the same weights may differ in the last digits from processor to processor.
            differences = reevaluate.compare(old.metrics, record.metrics)
            equal["metrics.json"] = not any(map(reevaluate.differs, differences))
            row = {"model": kind, "run": published.name, "steps": record.manifest["steps"], "trained by": old.manifest["code"]}
            rows.append({**row, "seconds": record.manifest["seconds"], "equal": equal, "largest": max((d.size for d in differences), default=0.0)})
            print(kind, published.name, "equal" if all(equal.values()) else equal, flush=True)
    if not args.list:
        result = {"machine": measure.machine("cpu"), "code": code, "runs": sorted(rows, key=lambda row: row["model"])}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
