"""Speed of training on region tables: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_tables.py [--out FILE]``.

`fit` on the bank of experts against what one would write first: a module per modality, a `DataLoader` over people, Adam
as it comes. Same layers, same loss, same batches. One core; seconds are those this process computed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from medvae_lite.experts import product  # noqa: E402
from medvae_lite.losses import Step  # noqa: E402
from medvae_lite.mmvae import PoEVAE  # noqa: E402
from medvae_lite.regions import TableSplit  # noqa: E402
from medvae_lite.train import FitConfig, fit  # noqa: E402
from tests.benchmarks import measure  # noqa: E402

SIZES = {"cortical": 64, "subcortical": 35, "hippocampal": 16}
COVARIATES, LATENT, HIDDEN, BATCH = 12, 16, (64, 32), 256


class Plain(nn.Module):
    """The same model as one would write it first, and the same loss."""

    def __init__(self):
        super().__init__()
        wide, narrow = HIDDEN
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(n + COVARIATES, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, 2 * LATENT))
            for n in SIZES.values()
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(LATENT + COVARIATES, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, n))
            for n in SIZES.values()
        )
        self.logvar = nn.ParameterList(torch.full((n,), -1.0) for n in SIZES.values())

    def loss(self, xs, c, noise):
        mu, logvar = zip(*(net(torch.cat([x, c], 1)).chunk(2, 1) for net, x in zip(self.encoders, xs)))
        q = product(torch.stack(mu), torch.stack(logvar))
        z = torch.cat([q.mu + q.std * noise, c], 1)
        recon = sum(
            (0.5 * ((x - net(z)) ** 2 * torch.exp(-v) + v)).sum(1) for x, net, v in zip(xs, self.decoders, self.logvar)
        )  # fmt: skip
        return (recon - 0.5 * (1 + q.logvar - q.mu**2 - torch.exp(q.logvar)).sum(1)).mean()

    @torch.no_grad()
    def like(self, bank: PoEVAE) -> Plain:
        """The bank's weights, modality by modality."""
        for i, n in enumerate(SIZES.values()):
            for layer, (weight, bias) in enumerate(zip(bank.encoder.weights, bank.encoder.biases)):
                rows = torch.cat([torch.arange(n), torch.arange(len(weight[i]) - COVARIATES, len(weight[i]))]) if not layer else slice(None)
                self.encoders[i][2 * layer].weight.copy_(weight[i][rows].T)
                self.encoders[i][2 * layer].bias.copy_(bias[i, 0])
            for layer, (weight, bias) in enumerate(zip(bank.decoder.weights, bank.decoder.biases)):
                last = layer == len(bank.decoder.weights) - 1
                self.decoders[i][2 * layer].weight.copy_(weight[i].T[: n if last else None])
                self.decoders[i][2 * layer].bias.copy_(bias[i, 0][: n if last else None])
        return self


def table(people: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Regions (N, F) with twelve common causes, and covariates (N, C)."""
    generator = torch.Generator().manual_seed(0)
    regions = sum(SIZES.values())
    causes = torch.randn(people, 12, generator=generator) @ torch.randn(12, regions, generator=generator) / 3
    return causes + 0.6 * torch.randn(people, regions, generator=generator), torch.randn(people, COVARIATES, generator=generator)


def model() -> PoEVAE:
    torch.manual_seed(0)
    return PoEVAE(sizes=SIZES, covariates=COVARIATES, latent_dim=LATENT, hidden=HIDDEN, drop=0.0, warmup=0)


def same_loss() -> float:
    """Largest relative difference between the two losses on one batch."""
    bank, (x, c) = model(), table(BATCH)
    plain = Plain().like(bank)
    noise = torch.randn(BATCH, LATENT, generator=torch.Generator().manual_seed(1))
    batch = splits(x, c, 0, BATCH).batch()
    ours = bank.elbo(batch, Step(torch.Generator().manual_seed(1), torch.device("cpu"))).total().mean()
    theirs = plain.loss(x.split(list(SIZES.values()), 1), c, noise)
    return float(((ours - theirs) / theirs).abs().detach())


def splits(x: torch.Tensor, c: torch.Tensor, start: int, stop: int) -> TableSplit:
    rows = torch.arange(stop - start)
    part = x[start:stop]
    return TableSplit(part[..., None, None], torch.ones(*part.shape, 1, 1, dtype=torch.uint8), c[start:stop], rows)


def ours(x: torch.Tensor, c: torch.Tensor, epochs: int) -> None:
    people = len(x) * 9 // 10
    config = FitConfig(steps=epochs * (people // BATCH), batch_size=BATCH, speed="exact")
    fit(model(), splits(x, c, 0, people), splits(x, c, people, len(x)), config, progress=False)


def plain(x: torch.Tensor, c: torch.Tensor, epochs: int) -> None:
    people = len(x) * 9 // 10
    net = Plain()
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    loader = DataLoader(TensorDataset(*x[:people].split(list(SIZES.values()), 1), c[:people]), BATCH, shuffle=True, drop_last=True)
    for _ in range(epochs):
        for *xs, covariates in loader:
            loss = net.loss(xs, covariates, torch.randn(BATCH, LATENT))
            adam.zero_grad()
            loss.backward()
            adam.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict = {"same loss, relative difference": same_loss(), "sizes": []}
    for people, epochs, turns in ((2_000, 10, 5), (10_000, 3, 5), (500_000, 1, 1)):
        x, c = table(people)
        took = measure.seconds({"ours": lambda: ours(x, c, epochs), "plain": lambda: plain(x, c, epochs)}, turns, "cpu")
        best = {name: min(of) / epochs for name, of in took.items()}
        row = {"people": people, "ms per epoch": 1e3 * best["ours"], "plain, ms per epoch": 1e3 * best["plain"]}
        row |= {"times as fast": best["plain"] / best["ours"], "people per second": 0.9 * people / best["ours"], "200 epochs, s": 200 * best["ours"]}
        result["sizes"].append({name: float(f"{v:.4g}") for name, v in row.items()})
        print(result["sizes"][-1], flush=True)
    x, c = table(BATCH)
    whole, net = splits(x, c, 0, BATCH), model()
    step = Step(torch.Generator().manual_seed(1), torch.device("cpu"))
    work = measure.operations(lambda: net.training_loss(whole.batch(), step).total().mean().backward())
    peak = measure.matmul_peak(torch.float32, "cpu")
    per_step = result["sizes"][1]["ms per epoch"] / (9_000 // BATCH) / 1e3
    result |= {"operations per step": work, "matmul peak per s": peak, "share of peak": work / per_step / peak, "machine": measure.machine("cpu")}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
