"""Speed of training hierarchies on brain slices: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_slices.py [--out FILE]``.

Images per second of a whole training step, and the share of the machine's measured peak of matrix products, for two
widths, two image sizes and the four priors. Medians; models take turns, so that a busy machine is busy for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep import phantom  # noqa: E402
from medvae_lite import brains, train  # noqa: E402
from medvae_lite.hvae import PRIORS, HVAE  # noqa: E402
from medvae_lite.losses import Step  # noqa: E402

WIDTHS = {"narrow": (8, 16, 24, 32, 48), "wide": (16, 32, 48, 64, 96)}
BATCH = 16


def peak(seconds: float = 1.0) -> float:
    """Multiply-adds per second, times two, of a large float32 matrix product here and now."""
    a, b = torch.randn(2, 1024, 1024)
    best, began = np.inf, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * 1024**3 / best


def loop(data: brains.Brains, prior: str, widths: tuple[int, ...], speed: str) -> train._Loop:
    """A training about to begin."""
    torch.manual_seed(0)
    model = HVAE(size=data.size, prior=prior, widths=widths, bidirectional=prior != "vae", lesion_weight=1.0)
    if "nvmp" in prior:
        model.start_from(data.one_each(16), Step(torch.Generator().manual_seed(0), torch.device("cpu")))
    config = train.FitConfig(steps=10_000, batch_size=BATCH, speed=speed)
    return train._Loop(model, data.split("train"), data.split("val"), config, 0, torch.device("cpu"), None, "")


def operations(one: train._Loop) -> int:
    """Floating-point operations of a step."""
    with FlopCounterMode(display=False) as counter:
        one.step()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, top = [], peak()
    for rows_px in (64, 112):
        data = brains.load(phantom("brain", subjects=40, slices=4, size=rows_px))
        loops = {(w, p, s): loop(data, p, WIDTHS[w], s) for w in WIDTHS for p in PRIORS for s in ("exact", "bf16")}
        flops = {key: operations(one) for key, one in loops.items()}
        taken: dict = {key: [] for key in loops}
        for _ in range(args.rounds):
            for key, one in loops.items():
                start = time.process_time()
                one.step()
                taken[key].append(time.process_time() - start)
        for (width, prior, speed), seconds in taken.items():
            step = float(np.median(seconds))
            one = loops[width, prior, speed]
            rows.append({
                "image": f"{data.size[0]} x {data.size[1]}", "width": width, "parameters": sum(p.numel() for p in one.parameters), "prior": prior, "speed": speed,
                "images per s": BATCH / step, "share of peak": flops[width, prior, speed] / step / top,
            })  # fmt: skip
            print(rows[-1], flush=True)
    result = {"matmul peak per s": top, "batch": BATCH, "steps": rows}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
