"""Cost of a training step: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_steps.py [--quick] [--device cuda]``.

Two tables, printed and written to book/reference/measured/steps-<device>.*, where a page shows them: every model at 64 and 128 px, eager in float32 against
its fastest setting; and AR-SIVAE's step against the published one, pass by pass, one saving after the other. Times are
CPU seconds (on a GPU, seconds), the least of a few repeats; ratios are formed within one run. Peak memory (Linux) comes
from a process of its own. The machine's peak is what a large matrix product reaches in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from literal_step import LiteralStep, VGG19Shaped  # noqa: E402

from medvae_lite.cardiac import MODELS  # noqa: E402
from medvae_lite.losses import Step  # noqa: E402
from medvae_lite.nets import FeatureNet  # noqa: E402
from medvae_lite.sivae import ARSIVAE  # noqa: E402

NAMES = {"beta_vae": "β-VAE", "attri_vae": "Attri-VAE", "sivae": "SIVAE", "ar_sivae": "AR-SIVAE"}
MEASURED = Path(__file__).parents[2] / "book" / "reference" / "measured"
# The public code's settings at 128 px; `fakes` = 2 and `fake_recon` make it the same objective.
PUBLISHED = {
    "gamma_reg": 0.05, "beta_rec": 0.8, "beta_kl": 1.0, "delta": 10.0, "repulsion": 0.125, "scale": "pixels",
    "alpha_pl": 0.1, "alpha_mse": 1e-5, "alpha_mse_fake": 0.1, "fakes": 2, "fake_recon": True,
}  # fmt: skip


def batch(size: int, count: int, device: str, channels_last: bool = False) -> SimpleNamespace:
    image = torch.rand(count, 2, size, size, device=device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return SimpleNamespace(image=image.contiguous(memory_format=layout), attributes=torch.randn(count, 6, device=device))


def package_step(model, data, *, fast: bool) -> Callable[[], None]:
    """One step as `medvae_lite.train.fit` makes it, optimisers left out; `fast` is bfloat16 in channels-last."""
    device = data.image.device
    if fast:
        model.to(memory_format=torch.channels_last)
    updates, everything = model.updates(), list(model.parameters())

    def run() -> None:
        step = Step(torch.Generator(device).manual_seed(0), device)
        for update in updates:
            for p in everything:
                p.requires_grad_(any(p is chosen for chosen in update.parameters))
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
                terms = update.loss(data, step)
            terms.total().mean().backward()
        model.zero_grad()

    return run


def literal_step(model, data, **switches) -> Callable[[], None]:
    literal, n, d = LiteralStep(model, **switches), len(data.image), model.latent_dim
    draws = [torch.randn(k * n, d, device=data.image.device) for k in (1, 1, 2)]

    def run() -> None:
        literal.gradients(data.image, data.attributes, *draws)
        model.zero_grad()  # and not the feature network's, as published

    return run


def seconds(cases: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    """Least time of every case over repeats that take turns."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    least = {name: float("inf") for name in cases}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, run in cases.items():
            start = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            least[name] = min(least[name], clock() - start) if turn else float("inf")
    return least


def matmul_peak(dtype: torch.dtype, device: str, n: int = 2048) -> float:
    """Operations per second of a large matrix product."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds({"matmul": lambda: a @ b}, 5, device)["matmul"]


def operations(run: Callable[[], None]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def peak_mib(name: str, size: int, count: int) -> float:
    """Memory that two steps need at their peak, beyond what the process held before, in a process of its own."""
    code = f"import bench_steps as b; b.remember({name!r}, {size}, {count})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return float(done.stdout)


def remember(name: str, size: int, count: int) -> None:
    def kib(field: str) -> int:
        return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)))

    torch.set_num_threads(1)
    run = package_step(build(name, size, "cpu"), batch(size, count, "cpu"), fast=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = kib("VmRSS")
    run(), run()
    print((kib("VmHWM") - before) / 1024)


def build(name: str, size: int, device: str):
    torch.manual_seed(0)
    family, settings = MODELS[name]
    features = FeatureNet(depth=1) if settings.get("alpha_pl") else None
    return family(size=size, latent_dim=size, **settings, features=features).to(device)


def models(sizes: dict[int, int], repeats: int, device: str) -> list[dict]:
    peaks = {fast: matmul_peak(torch.bfloat16 if fast else torch.float32, device) for fast in (False, True)}
    rows = []
    for size, count in sizes.items():
        for name, title in NAMES.items():
            made = {fast: package_step(build(name, size, device), batch(size, count, device, fast), fast=fast) for fast in (False, True)}
            took, flops = seconds({str(f): run for f, run in made.items()}, repeats, device), operations(made[False])
            eager, fast = took["False"], took["True"]
            rows.append({
                "model": title, "px": size, "batch": count, "eager, s per step": eager, "bf16, s per step": fast,
                "faster by": eager / fast, "bf16, ms per image": 1e3 * fast / count, "GFLOP per image": flops / count / 1e9,
                "eager, share of matmul peak": flops / eager / peaks[False], "bf16, share of matmul peak": flops / fast / peaks[True],
                "peak memory, MiB": peak_mib(name, size, count) if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20,
            })  # fmt: skip
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def savings(size: int, count: int, repeats: int, device: str, features: str) -> list[dict]:
    def model(**changed):
        torch.manual_seed(0)
        net = VGG19Shaped() if features == "VGG-19" else FeatureNet(depth=1)
        return ARSIVAE(size=size, latent_dim=128, **{**PUBLISHED, **changed}, features=net).to(device)

    data, last = batch(size, count, device), batch(size, count, device, channels_last=True)
    cases = {
        "published step, pass by pass": literal_step(model(), data),
        "terms weighted by 1e-8 left out": literal_step(model(), data, eta=False),
        "no gradients of the feature network's weights": literal_step(model(), data, eta=False, frozen=True),
        "features of targets once, without gradients": literal_step(model(), data, eta=False, frozen=True, cached=True),
        "one decoder pass for all images (this package)": package_step(model(), data, fast=False),
        "bfloat16, channels last": package_step(model(), last, fast=True),
        "half the generated images": package_step(model(fakes=1), last, fast=True),
        "no reconstruction in the exponent (the default)": package_step(model(fakes=1, fake_recon=False), last, fast=True),
    }
    took, rows, before = seconds(cases, repeats, device), [], None
    for name, value in took.items():
        first = before is None
        rows.append({
            "step": name, "features": features, "px": size, "batch": count, "s per step": value, "ms per image": 1e3 * value / count,
            "faster than published": 1.0 if first else rows[0]["s per step"] / value, "by this saving": 1.0 if first else before / value,
            "same objective": not name.startswith(("half", "no reconstruction")),
        })  # fmt: skip
        before = value
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def write(result: dict, path: Path) -> None:
    """All figures as JSON, and the tables of the page as CSV."""
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for features, rows in pd.DataFrame(result["savings"]).groupby("features", sort=False):
        shown = rows.assign(**{"same objective": rows["same objective"].map({True: "yes", False: "no"})})
        shown = shown[["step", "ms per image", "by this saving", "faster than published", "same objective"]]
        name = "vgg19" if features == "VGG-19" else "own"
        shown.round({"ms per image": 1, "by this saving": 2, "faster than published": 1}).to_csv(f"{path}-{name}.csv", index=False)
    digits = {"eager, s per step": 3, "bf16, s per step": 3, "bf16, ms per image": 1, "faster by": 2, "GFLOP per image": 2}
    models = pd.DataFrame(result["models"]).round({**digits, "peak memory, MiB": 0}).astype({"peak memory, MiB": int})
    for share in ("eager, share of matmul peak", "bf16, share of matmul peak"):
        models[share] = (100 * models[share]).map("{:.0f} %".format)
    models.to_csv(f"{path}-models.csv", index=False)
    machine = pd.Series(result["machine"]).map(lambda v: round(v) if isinstance(v, float) else v)
    machine.to_csv(f"{path}-machine.csv", header=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches, one repeat, nothing written")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 1 if args.quick else 3
    sizes = {64: 4} if args.quick else {64: 16, 128: 8}
    result = {
        "machine": {
            "processor": torch.cuda.get_device_name() if args.device == "cuda" else torch.backends.cpu.get_cpu_capability(),
            "threads": 1, "torch": torch.__version__, "python": platform.python_version(),
            "matmul float32, GFLOP/s": matmul_peak(torch.float32, args.device) / 1e9,
            "matmul bfloat16, GFLOP/s": matmul_peak(torch.bfloat16, args.device) / 1e9,
        },
        "savings": [*savings(64, 2 if args.quick else 4, repeats, args.device, "VGG-19"), *savings(64, 4 if args.quick else 16, repeats, args.device, "this book's")],
        "models": models(sizes, repeats, args.device),
    }  # fmt: skip
    if not args.quick:
        write(result, MEASURED / f"steps-{args.device}")


if __name__ == "__main__":
    main()
