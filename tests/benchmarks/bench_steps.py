"""Cost of a training step: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_steps.py [--quick] [--device cuda]``.

Every model at 64 and 128 px, eager float32 against its fastest setting; and AR-SIVAE's step against the published one,
pass by pass, one saving after the other, with what each changes in the gradients. One run gives all of it, as
tests/benchmarks/results/steps-<device>.json, written whole at the end; book/reference/performance.md shows it.
Times are CPU seconds (on a GPU, seconds), medians over turns; ratios are formed within a turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import bench_phantom  # noqa: E402
from literal_step import LiteralStep, VGG19Shaped  # noqa: E402
from measure import machine, memory_of, operations, ratio, seconds  # noqa: E402

from medvae_lite.cardiac import MODELS  # noqa: E402
from medvae_lite.losses import Step  # noqa: E402
from medvae_lite.nets import FeatureNet  # noqa: E402
from medvae_lite.sivae import ARSIVAE  # noqa: E402

NAMES = {"beta_vae": "β-VAE", "attri_vae": "Attri-VAE", "sivae": "SIVAE", "ar_sivae": "AR-SIVAE"}
# The public code's settings at 128 px; `fakes` = 2 and `fake_recon` make it the same objective.
PUBLISHED = {
    "gamma_reg": 0.05, "beta_rec": 0.8, "beta_kl": 1.0, "delta": 10.0, "repulsion": 0.125, "scale": "pixels",
    "alpha_pl": 0.1, "alpha_mse": 1e-5, "alpha_mse_fake": 0.1, "fakes": 2, "fake_recon": True,
}  # fmt: skip
LITERAL, OURS, FASTEST = "published step, pass by pass", "one decoder pass for all images (this package)", "bfloat16"
ENDS, OTHER = (LITERAL, OURS, FASTEST), "this package, other random draws"


class Run:
    """One step, optimisers left out; a call makes it and drops its gradients."""

    def __init__(self, model: torch.nn.Module, step: Callable[[], None]):
        self.model, self.step = model, step

    def __call__(self) -> None:
        self.step()
        self.model.zero_grad()  # and not the feature network's, as published

    def gradients(self) -> dict[str, list[Tensor]]:
        """Of encoder and decoder, float32."""
        self.step()
        found = {name: [p.grad.float() for p in getattr(self.model, name).parameters()] for name in ("encoder", "decoder")}
        self.model.zero_grad()
        return found


def batch(size: int, count: int, device: str) -> SimpleNamespace:
    torch.manual_seed(0)
    image, attributes = torch.rand(count, 2, size, size), torch.randn(count, 6)
    return SimpleNamespace(image=image.to(device), attributes=attributes.to(device))


def package(model, data, *, draws: list[Tensor] | None = None, channels_last: bool = False, bf16: bool = False) -> Run:
    """A step as `medvae_lite.train.fit` makes it; `draws` takes the place of its noise."""
    device, layout = data.image.device, torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    data = SimpleNamespace(image=data.image.contiguous(memory_format=layout), attributes=data.attributes)
    updates, everything = model.updates(), list(model.parameters())

    def make() -> None:
        step = Step(torch.Generator(device).manual_seed(0), device)
        if draws is not None:
            step.noise = lambda *shape, left=list(draws): left.pop(0)
        for update in updates:
            for p in everything:
                p.requires_grad_(any(p is chosen for chosen in update.parameters))
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                terms = update.loss(data, step)
            terms.total().mean().backward()

    return Run(model, make)


def literal(model, data, draws: list[Tensor], **switches: bool) -> Run:
    step = LiteralStep(model, **switches)
    return Run(model, lambda: step.gradients(data.image, data.attributes, *draws))


def ladder(size: int, count: int, device: str, features: str, noise: int = 0) -> dict[str, Callable[[], Run]]:
    """From the published step to this book's, one saving after the other: makers of the same step, cheaper each time.

    `noise` seeds the draws of the steps that compute the published objective.
    """

    def model(**changed):
        torch.manual_seed(0)
        net = VGG19Shaped() if features == "VGG-19" else FeatureNet(depth=1)
        return ARSIVAE(size=size, latent_dim=128, **{**PUBLISHED, **changed}, features=net).to(device)

    data = batch(size, count, device)
    torch.manual_seed(noise)
    draws = [torch.randn(k * count, 128).to(device) for k in (1, 1, 2)]
    fast = {"channels_last": True, "bf16": True}
    return {
        LITERAL: lambda: literal(model(), data, draws),
        "terms weighted by 1e-8 left out": lambda: literal(model(), data, draws, eta=False),
        "no gradients of the feature network's weights": lambda: literal(model(), data, draws, eta=False, frozen=True),
        "features of targets once, without gradients": lambda: literal(model(), data, draws, eta=False, frozen=True, cached=True),
        OURS: lambda: package(model(), data, draws=draws),
        "channels-last layout": lambda: package(model(), data, draws=draws, channels_last=True),
        FASTEST: lambda: package(model(), data, draws=draws, **fast),
        "half the generated images": lambda: package(model(fakes=1), data, **fast),
        "no reconstruction in the exponent (the default)": lambda: package(model(fakes=1, fake_recon=False), data, **fast),
    }


def differences(size: int, count: int, device: str, features: str) -> list[dict]:
    """Largest difference of a gradient from the published step's, over the largest gradient, of each network.

    The last row is what other random draws make of the gradients: a measure for the rows above it.
    """
    makers = ladder(size, count, device, features)
    names = list(makers)[1 : 1 + list(makers).index(FASTEST)]
    steps = {name: makers[name]() for name in names} | {OTHER: ladder(size, count, device, features, noise=1)[OURS]()}
    published, rows = makers[LITERAL]().gradients(), []

    def largest(tensors) -> float:
        return max(float(t.abs().max()) for t in tensors)

    for name, step in steps.items():
        row = {"step": name, "features": features, "px": size, "batch": count}
        for net, ours in step.gradients().items():
            row[net] = largest(a - b for a, b in zip(ours, published[net], strict=True)) / largest(published[net])
        rows.append(row)
        show(row)
    return rows


def savings(size: int, count: int, turns: int, device: str, features: str, only: tuple[str, ...] = ()) -> list[dict]:
    makers = {name: make for name, make in ladder(size, count, device, features).items() if name in only or not only}
    took = seconds({name: make() for name, make in makers.items()}, turns, device)
    flops = {} if only else {name: operations(make()) / 2 for name, make in ladder(size, 2, device, features).items()}
    rows, before = [], LITERAL
    for name, times in took.items():
        faster, saving = ratio(took[LITERAL], times), ratio(took[before], times)
        expression = f"b.ladder({size}, {count}, {device!r}, {features!r})[{name!r}]()"
        rows.append({
            "step": name, "features": features, "px": size, "batch": count, "turns": turns,
            "s per step": statistics.median(times), "ms per image": 1e3 * statistics.median(times) / count,
            "faster than published": faster[0], "least": faster[1], "most": faster[2],
            "by this saving": saving[0], "GFLOP per image": flops[name] / 1e9 if flops else None,
            "same objective": not name.startswith(("half", "no reconstruction")),
            "peak memory, MiB": memory_of(expression, device) if name in ENDS and not only else None,
        })  # fmt: skip
        before = name
        show(rows[-1])
    return rows


def build(name: str, size: int, count: int, device: str, fast: bool) -> Run:
    """A step of one of the book's models, with the book's settings."""
    torch.manual_seed(0)
    family, settings = MODELS[name]
    features = FeatureNet(depth=1) if settings.get("alpha_pl") else None
    model = family(size=size, latent_dim=size, **settings, features=features).to(device)
    return package(model, batch(size, count, device), channels_last=fast, bf16=fast)


def models(sizes: dict[int, int], turns: int, device: str, peaks: dict[bool, float]) -> list[dict]:
    """`peaks` are the machine's operations per second, in float32 (False) and in bfloat16 (True)."""
    rows = []
    for size, count in sizes.items():
        for name, title in NAMES.items():
            runs = {fast: build(name, size, count, device, fast) for fast in (False, True)}
            took, flops = seconds(runs, turns, device), operations(runs[False])
            row = {"model": title, "px": size, "batch": count, "turns": turns, "GFLOP per image": flops / count / 1e9}
            for fast, how in ((False, "eager"), (True, "fastest")):
                typical = statistics.median(took[fast])
                row |= {
                    f"{how}, s per step": typical, f"{how}, ms per image": 1e3 * typical / count,
                    f"{how}, share of matmul peak": flops / typical / peaks[fast],
                    f"{how}, peak memory, MiB": memory_of(f"b.build({name!r}, {size}, {count}, {device!r}, {fast})", device),
                }  # fmt: skip
            row |= dict(zip(("faster by", "least", "most"), ratio(took[False], took[True])))
            rows.append(row)
            show(row)
    return rows


def show(row: dict) -> None:
    print({k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items() if v is not None}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches, one turn: whether everything runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON to write; by default in results/, and none with --quick")
    args = parser.parse_args()
    start = time.monotonic()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    quick, device = args.quick, args.device
    where = machine(device)
    show(where)
    peaks = {fast: 1e9 * where[f"{kind} matrix product, GFLOP/s"] for fast, kind in ((False, "float32"), (True, "bfloat16"))}
    small = 32 if quick else 64
    result = {
        "machine": where,
        "savings": [
            *savings(small, 2 if quick else 4, 1 if quick else 3, device, "VGG-19"),
            *savings(small, 2 if quick else 16, 1 if quick else 7, device, "this book's"),
        ],
        "published size": [] if quick else savings(128, 2, 2, device, "VGG-19", only=ENDS),
        "gradients": [row for features in ("VGG-19", "this book's") for row in differences(small, 2 if quick else 4, device, features)],
        "models": models({small: 2} if quick else {64: 16, 128: 8}, 1 if quick else 7, device, peaks),
        "phantom": bench_phantom.measure(),
    }
    result["machine"]["minutes of the benchmark"] = (time.monotonic() - start) / 60
    path = args.out or (None if quick else HERE / "results" / f"steps-{device}.json")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        os.replace(unfinished, path)


if __name__ == "__main__":
    main()
