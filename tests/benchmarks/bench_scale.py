"""Cohorts larger than memory: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_scale.py [--subjects N] [--quick] [--out FILE]``.

Prepares cardiac phantoms and region tables of N / 100, N / 10 and N people, then makes one pass over the training split of each
with `fit`, in a process of its own whose resident memory is watched. A cohort of 100,000 takes 2.5 GB on disk. What is in the
folder given by --keep is used again, and stays. CPU seconds are those that were computed: of all processes where data are
prepared, of one thread where a model is trained; other figures depend on what else the machine does meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

MODEL = {"widths": (8, 8, 16), "latent_dim": 16, "gamma_reg": 160.0}
TABLE_MODEL = {"latent_dim": 16, "hidden": (64, 32), "drop": 0.0, "warmup": 0}
BATCH = {"cardiac": 64, "regions": 256}
FIELDS = {"VmRSS": "peak MiB", "RssAnon": "peak MiB of its own", "RssFile": "peak MiB of files"}


def resident(pids: list[int]) -> dict[str, float]:
    """Resident memory of some processes together in MiB, by field of /proc/PID/status; pages that two share count twice."""
    total = dict.fromkeys(FIELDS, 0.0)
    for pid in pids:
        with contextlib.suppress(OSError):  # it may have ended
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in total:
                    total[name] += int(value.split()[0]) / 1024
    return total


def family(pid: int) -> list[int]:
    """A process, its children, theirs, and so on."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def watched(pid: int, every: float = 0.02) -> Iterator[dict[str, float]]:
    """The largest resident memory that a process and its children have meanwhile, in MiB; filled at the end."""
    peak, over = dict.fromkeys(FIELDS, 0.0), threading.Event()

    def look():
        while not over.is_set():
            now = resident(family(pid))
            for name in peak:
                peak[name] = max(peak[name], now[name])
            over.wait(every)

    result: dict[str, float] = {}
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield result
    finally:
        over.set()
        thread.join()
        result |= {FIELDS[name]: round(value, 1) for name, value in peak.items()}


def prepare(kind: str, folder: Path, people: int, size: int) -> dict:
    """Makes a phantom with the command that a reader would give; the figures lie beside it, for the next time."""
    place, notes = folder / f"{kind}-{people}", folder / f"{kind}-{people}.json"
    if place.is_dir() and notes.is_file():
        return json.loads(notes.read_text())
    words = [f"{kind}-phantom", str(place), "--subjects", str(people)] + (["--size", str(size)] if kind == "cardiac" else [])
    start, before, load = time.perf_counter(), computed(), os.getloadavg()[0]
    with subprocess.Popen([sys.executable, "-m", "data_prep", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        with watched(process.pid, 0.1) as peak:
            said = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {said[-500:]}")
    took, cpu = time.perf_counter() - start, computed() - before
    figures = {
        "people": people, "MB on disk": round(sum(f.stat().st_size for f in place.iterdir()) / 1e6, 1),
        "prepare, s": round(took, 1), "prepare, CPU s": round(cpu, 1), "prepared per s": round(people / took, 1),
        "prepared per CPU s": round(people / cpu, 1), "cores": os.cpu_count(),
        "processes waiting for a core at the start": round(load, 1),
        **{f"prepare, {name}": value for name, value in peak.items()},
    }  # fmt: skip
    notes.write_text(json.dumps(figures))
    return figures


def computed() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def one_pass(kind: str, place: Path) -> dict:
    """One pass over the training split: with `fit`, then reading alone, from the page cache and from disk."""
    import torch

    from medvae_lite import datasets, regions
    from medvae_lite.mmvae import PoEVAE
    from medvae_lite.sivae import AttriVAE
    from medvae_lite.train import FitConfig, fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    if kind == "cardiac":
        data = datasets.load(place)
        model = AttriVAE(channels=len(data.frames), size=data.size, attributes=len(data.attributes), **MODEL)
    else:
        data = regions.load(place)
        model = PoEVAE(sizes=data.sizes, covariates=data.covariates.shape[1], **TABLE_MODEL)
    train, val = data.split("train"), data.split("val")
    opened, batch = time.perf_counter() - start, min(BATCH[kind], len(train))
    steps = len(train) // batch
    val = replace(val, rows=val.rows[:batch])  # the pass is measured, not validation
    fit(model, val, val, FitConfig(steps=3, batch_size=batch, speed="exact"), progress=False)  # what is slow once
    with watched(os.getpid()) as peak:
        start, before, load = time.perf_counter(), time.thread_time(), os.getloadavg()[0]
        table, _ = fit(model, train, val, FitConfig(steps=steps, batch_size=batch, speed="exact"), progress=False)
        took, cpu = time.perf_counter() - start, time.thread_time() - before
        highest = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    figures = {"open, s": round(opened, 2), "steps": steps, "batch": batch, "trained per s": round(steps * batch / took, 1)}
    figures["trained per CPU s"] = round(steps * batch / cpu, 1)
    figures |= {"processes waiting for a core at the pass": round(load, 1), **peak}
    figures["highest MiB since the start"] = round(int(highest) / 1024, 1)
    figures["loss at the end"] = float(table["val_total"].iloc[-1])
    for name, cold in (("memory", False), ("disk", True)):
        if cold and kind == "cardiac":
            forget(place)
        start, before = time.perf_counter(), time.thread_time()
        read(train, batch)
        took, cpu = time.perf_counter() - start, time.thread_time() - before
        figures |= {f"read per s, {name}": round(len(train) / took, 1), f"read per CPU s, {name}": round(len(train) / cpu, 1)}
    return figures if kind == "cardiac" else {k: v for k, v in figures.items() if "disk" not in k}  # a table is in memory


def read(split, batch: int) -> None:
    """A pass in random order that only reads."""
    from medvae_lite.datasets import RELEASE_BYTES

    order, one, since = split.order(seed=1, epoch=0), split.bytes // len(split), 0
    split.release()
    for at in order.split(batch):
        split.batch(at)
        since += len(at) * one
        if since >= RELEASE_BYTES:
            split.release()
            since = 0


def forget(place: Path) -> None:
    """Asks the system to drop the arrays from the page cache, so that they are read from the disk again."""
    for file in place.glob("*.npy"):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def alone(kind: str, place: Path) -> dict:
    """`one_pass` in a process of its own."""
    words = [sys.executable, __file__, "--pass-over", kind, str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a pass over {place.name}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(folder: Path, sizes: list[int], pixels: int) -> dict:
    """Figures of every size, images first and then tables."""
    result: dict = {"pixels": pixels, "model": MODEL, "table model": TABLE_MODEL}
    for kind, title in (("cardiac", "images"), ("regions", "tables")):
        result[title] = []
        for people in sizes:
            figures = prepare(kind, folder, people, pixels)
            result[title].append(figures | alone(kind, folder / f"{kind}-{people}"))
            print(title, result[title][-1], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=100_000, metavar="N", help="the largest cohort (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small cohort, to see that all works")
    parser.add_argument("--out", type=Path, help="where the figures go")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where cohorts stay for the next time")
    parser.add_argument("--pass-over", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pass_over:
        print(json.dumps(one_pass(args.pass_over[0], Path(args.pass_over[1]))))
        return
    sizes, pixels = ([200], 32) if args.quick else ([args.subjects // 100, args.subjects // 10, args.subjects], 64)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(folder, sizes, pixels)
    if not args.quick:
        from tests.benchmarks import measure

        result["machine"] = measure.machine("cpu")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
