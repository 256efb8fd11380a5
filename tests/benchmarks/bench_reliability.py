"""What was done to training, how often, and what became of it: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_reliability.py``.

``[--quick] [--only NAME ...] [--out FILE]``; each experiment's rows replace those of an earlier run in the file. Everything is done to the
small models of the tests, one of every family: what may break is the loop, the files and the processes, not the size of a network.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import killed  # noqa: E402
import measure  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from _families import family  # noqa: E402
from safetensors.torch import load  # noqa: E402
from torch import nn  # noqa: E402

from medvae_lite import checkpoints, runs  # noqa: E402
from medvae_lite.losses import Update  # noqa: E402
from medvae_lite.published import train_or_load  # noqa: E402
from medvae_lite.train import FitConfig, TrainingDiverged, fit  # noqa: E402

NAMES = {
    "attri_vae": "Attri-VAE", "ar_sivae, all terms": "AR-SIVAE", "poe_vae": "PoE-VAE", "nvmp+, reading A": "NVMP+",
}  # fmt: skip
"""Models of `tests/_families.py` -> what the page calls them."""
CONFIG = FitConfig(steps=54, batch_size=16, speed="exact")

log = logging.getLogger(__name__)


def kills(work: Path, quick: bool) -> list[dict]:
    """SIGKILL at random moments."""
    rows = []
    for name, title in NAMES.items():
        found = killed.kill_often(name, work / title, kills=2 if quick else 20, steps=54 if quick else 540)
        log.info("%s: %s", title, found)
        rows.append({"model": title, **found._asdict()})
    return rows


def damage(work: Path, quick: bool) -> list[dict]:
    """Flipped bits, files cut short, files of something else, in a checkpoint and in a record's weights."""
    model, *splits = family("attri_vae")
    fit(model, *splits, CONFIG, seed=1, folder=work / "run", identity="damage", progress=False)
    contents = {"config": {}, "manifest": {}, "metrics": {}, "epochs": pd.DataFrame({"epoch": [1]})}
    record = runs.write_record(work / "record", model=model, **contents)
    wanted = [p.detach().half().float() for p in model.parameters()]

    def weights() -> bool:
        return all(torch.equal(p, q) for p, q in zip(record.weights_into(family("attri_vae")[0]).parameters(), wanted))

    def resumed() -> bool:
        saved = checkpoints.read(work / "run", "damage")
        return saved is not None and all(torch.equal(p, q) for p, q in zip(saved["parameters"], model.parameters()))

    files = {"checkpoint": (work / "run" / checkpoints.FILE, resumed), "weights of a record": (record.folder / runs.WEIGHTS, weights)}
    rows, chance = [], random.Random(0)
    for what, (path, reads) in files.items():
        whole = path.read_bytes()
        other = files["weights of a record" if what == "checkpoint" else "checkpoint"][0].read_bytes()
        kinds: dict[str, tuple[int, Callable[[], bytes]]] = {
            "one bit flipped": (500, lambda: _flip(whole, chance)),
            "cut short": (100, lambda: whole[: chance.randrange(len(whole))]),
            "a block of zeros": (100, lambda: _blank(whole, chance)),
            "another kind of file": (1, lambda: other),
            "text": (1, lambda: b"{}"),
        }
        for kind, (count, make) in kinds.items():
            outcomes = Counter()
            for _ in range(min(count, 5) if quick else count):
                path.write_bytes(make())
                outcomes[_outcome(reads, path)] += 1
            rows.append({"file": what, "damage": kind, "tried": sum(outcomes.values()), **_counts(outcomes)})
        path.write_bytes(whole)
    return rows + _unchecked(work, files["checkpoint"][0], files["weights of a record"][0], 5 if quick else 500)


def _unchecked(work: Path, checkpoint: Path, weights: Path, count: int) -> list[dict]:
    """What the libraries alone make of a flipped bit: `torch.load` of a checkpoint without its first line, `safetensors` of weights."""
    plain = work / "plain"
    plain.write_bytes(checkpoint.read_bytes().partition(b"\n")[2])
    readers = {
        "a checkpoint, by torch.load alone": (plain, lambda: torch.load(plain, weights_only=True)),
        "weights, by safetensors alone": (weights, lambda: load(weights.read_bytes())),
    }
    rows, chance = [], random.Random(1)
    for what, (path, read) in readers.items():
        whole, wanted, outcomes = path.read_bytes(), read(), Counter()
        for _ in range(count):
            path.write_bytes(_flip(whole, chance))
            try:
                outcomes["same" if killed.equal(read(), wanted) else "wrong"] += 1
            except Exception:
                outcomes["traceback"] += 1
        path.write_bytes(whole)
        rows.append({"file": what, "damage": "one bit flipped", "tried": count, **_counts(outcomes)})
    return rows


def _flip(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def _blank(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) - 4096)
    return data[:place] + bytes(4096) + data[place + 4096 :]


def _outcome(reads: Callable[[], bool], path: Path) -> str:
    before = path.read_bytes()
    try:
        right = reads()
    except (ValueError, OSError) as error:
        changed = path.read_bytes() != before
        return "traceback" if "\n" in str(error) or str(path.parent) not in str(error) or changed else "refused"
    except Exception:
        return "traceback"
    return "same" if right else "wrong"


def _counts(outcomes: Counter) -> dict[str, int]:
    return {name: outcomes[name] for name in ("refused", "same", "wrong", "traceback")}


def not_a_number(work: Path, quick: bool) -> list[dict]:
    """NaN or infinity in an image, a loss or a gradient, at random steps; then in all of them."""
    rows = []
    for name, title in NAMES.items():
        for place in ("image", "loss", "gradient"):
            chance = random.Random(f"{name} {place}")
            count = 2 if quick else 20
            steps = sorted(chance.sample(range(2, CONFIG.steps), count))
            values = [chance.choice([torch.nan, torch.inf, -torch.inf]) for _ in steps]
            model, *splits = family(name)
            spoil(model, place, dict(zip(steps, values)))
            table, manifest = fit(model, *splits, replace(CONFIG, max_skips=count), seed=1, progress=False)
            finite = all(torch.isfinite(p).all() for p in model.parameters()) and bool(table.notna().all(axis=None))
            model, *splits = family(name)
            before = spoil(model, place, {step: torch.nan for step in range(30, CONFIG.steps)})
            try:
                fit(model, *splits, replace(CONFIG, max_skips=3), seed=1, progress=False)
                ended = "went on"
            except TrainingDiverged as error:
                ended = "a sentence" if str(error).startswith("4 steps in a row") else str(error)
            kept = ended == "a sentence" and all(torch.isfinite(p).all() for p in model.parameters()) and len(before) > 0
            rows.append(
                {"model": title, "where": place, "injected": count, "skipped": manifest["skipped"], "finite": finite, "always": ended, "kept": kept}
            )
            log.info("%s", rows[-1])
    return rows


def spoil(model: nn.Module, place: str, at: dict[int, float]) -> list[int]:
    """Puts a value into the image, the loss or the gradient of the steps named; the steps it was put into."""
    put = []

    def spoiled(update: Update) -> Update:
        def loss(batch, step):
            value = at.get(step.number)
            if value is None:
                return update.loss(batch, step)
            put.append(step.number)
            if place == "image":
                image = batch.image.clone()
                image[0, 0, 0, 0] = value
                batch = batch._replace(image=image)
            terms = update.loss(batch, step)
            key = next(iter(terms.__dataclass_fields__))
            term = getattr(terms, key)
            if place == "loss":
                return replace(terms, **{key: term + value})
            # A square root at 0: the value is 0, its gradient 0 * infinity.
            return replace(terms, **{key: term + (0 * term).sqrt()}) if place == "gradient" else terms

        return Update(update.name, update.parameters, loss)

    made = tuple(map(spoiled, model.updates()))
    model.updates = lambda: made
    return put


def memory(work: Path, quick: bool) -> list[dict]:
    """Memory that really runs out: the address space of a process is limited while it trains."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for limit in (600,) if quick else (1200, 600, 400):
        queue = context.Queue()
        process = context.Process(target=_starve, args=(limit, queue))
        process.start()
        rows.append({"MiB": limit, **queue.get(timeout=500)})
        process.join()
        log.info("%s", rows[-1])
    return rows


def _starve(limit: int, queue) -> None:
    from medvae_lite.datasets import Split
    from medvae_lite.losses import Step
    from medvae_lite.shares import Share, gradients
    from medvae_lite.sivae import ARSIVAE

    torch.set_num_threads(1)
    generator, count = torch.Generator().manual_seed(0), 256
    image = torch.rand(count, 2, 64, 64, generator=generator).half()
    split = Split(image, image.to(torch.uint8), torch.randn(count, 6, generator=generator), torch.arange(count))
    found = []
    for most in (None, limit):
        torch.manual_seed(0)
        model = ARSIVAE(size=64, latent_dim=16, gamma_reg=0.02)
        shares = [Share(split.batch(), Step(torch.Generator().manual_seed(1), torch.device("cpu")))]
        if most:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + most * 2**20,) * 2)
        flat = []
        for update in model.updates():  # without descending: the second one's gradient is that of the same weights
            for p in model.parameters():
                p.requires_grad_(any(p is q for q in update.parameters))
            shares, _ = gradients(update, shares, torch.autocast("cpu", enabled=False))
            flat += [p.grad.flatten() for p in update.parameters]
        found.append(torch.cat(flat))
    whole, parts = found
    queue.put({"batch": count, "parts": len(shares), "gradient": float((whole - parts).norm() / whole.norm())})


def together(work: Path, quick: bool) -> list[dict]:
    """Two processes at the same moment: for one published run, then in one folder of `fit`."""
    context = multiprocessing.get_context("spawn")
    counts = Counter()
    for turn in range(2 if quick else 10):
        root = work / f"runs{turn}"
        queue, start = context.Queue(), context.Barrier(2)
        workers = [context.Process(target=_obtain, args=(root, start, queue)) for _ in range(2)]
        [w.start() for w in workers]
        said = [queue.get(timeout=300) for _ in workers]
        [w.join() for w in workers]
        counts["turns"] += 1
        counts["trained once, loaded once"] += sorted(s["trained"] for s in said) == [0, 1] and said[0]["sum"] == said[1]["sum"]
        counts["one record"] += len(list(root.iterdir())) == 1
        folder = work / f"fit{turn}"
        workers = [context.Process(target=_fit_at_once, args=(folder, start, queue)) for _ in range(2)]
        [w.start() for w in workers]
        said = sorted(queue.get(timeout=300) for _ in workers)
        [w.join() for w in workers]
        counts["one trained, one refused in a sentence"] += said[1] == "trained" and "is being trained in by another process" in said[0]
    return [dict(counts)]


class _Whole:
    identity = "whole"

    def split(self, name):
        return family("attri_vae")[1 if name == "train" else 2]


def _obtain(root, start, queue) -> None:
    from medvae_lite import published

    trained = []
    real = published.fit
    published.fit = lambda *args, **kwargs: trained.append(1) or real(*args, **kwargs)
    start.wait(60)
    model, _ = train_or_load(
        "both", lambda: family("attri_vae")[0], _Whole(), CONFIG, seed=1, device="cpu", runs_root=root, progress=False
    )  # fmt: skip
    queue.put({"trained": len(trained), "sum": float(sum(p.detach().double().sum() for p in model.parameters()))})


def _fit_at_once(folder, start, queue) -> None:
    model, *splits = family("attri_vae")
    start.wait(60)
    try:
        fit(model, *splits, replace(CONFIG, steps=540), seed=1, folder=folder, identity="", progress=False)
        queue.put("trained")
    except ValueError as error:
        queue.put(str(error))


EXPERIMENTS = {f.__name__: f for f in (kills, damage, not_a_number, memory, together)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few of everything: whether it runs")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "reliability.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    result["machine"] = measure.machine("cpu")
    for name in args.only:
        work = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        try:
            result[name] = EXPERIMENTS[name](work, args.quick)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
