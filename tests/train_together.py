"""What ``torchrun`` starts in a test: every process trains one model of every family; the first writes down what came out."""

import contextlib
import json
import sys
from pathlib import Path

import torch
from _families import FAMILIES, family
from torch import nn

from medvae_lite.parallel import Team
from medvae_lite.published import train_or_load
from medvae_lite.sivae import ARSIVAE
from medvae_lite.train import FitConfig, fit

CONFIG = FitConfig(steps=30, batch_size=16, learning_rate=1e-3, warmup=5, speed="exact", ema=0.8, patience=5)


class Whole:
    """A dataset as `train_or_load` wants one."""

    def __init__(self, **splits):
        self.splits, self.identity = splits, "whole"

    def split(self, name):
        return self.splits[name]


def train(name, folder=None):
    """Rows, manifest and weights of one family."""
    model, train_split, val_split = family(name)
    rows, manifest = fit(model, train_split, val_split, CONFIG, seed=1, progress=False, folder=folder)
    return rows, manifest, [p.detach().clone() for p in model.parameters()]


def sentence(work) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def main(out: Path, *names: str) -> None:
    team = Team.join(torch.device("cpu"))
    torch.manual_seed(team.rank)  # nothing may come from the global generator
    found = {name: train(name) for name in names}
    drift = max(float((p - q).abs().max()) for name in names for p, q in zip(found[name][2], team.tell(found[name][2])))
    (out / f"drift-{team.rank}.json").write_text(json.dumps(drift))
    said = {}
    if len(names) == len(FAMILIES):
        found |= {"started apart": started_apart(team, out), "continued": continued(team, out), "record": recorded(out)}
        norm = ARSIVAE(size=16, latent_dim=8, widths=(8, 8, 16), norm="batch")
        odd = FitConfig(steps=3, batch_size=14)
        _, *splits = family("ar_sivae")
        said["odd"] = sentence(lambda: fit(family("ar_sivae")[0], *splits, odd, progress=False))
        said["norm"] = sentence(lambda: fit(norm, *splits, CONFIG, progress=False))
    if team.first:
        torch.save({k: {"rows": r.to_dict("list"), "manifest": m, "weights": w} for k, (r, m, w) in found.items()}, out / "found.pt")
        (out / "said.json").write_text(json.dumps(said))


def started_apart(team: Team, out: Path):
    """Every process begins with weights of its own; the first one's count."""
    model, *splits = family("ar_sivae")
    with torch.no_grad():
        for p in model.parameters():
            p += team.rank
    rows, manifest = fit(model, *splits, CONFIG, seed=1, progress=False, folder=out / "folder")
    return rows, manifest, [p.detach().clone() for p in model.parameters()]


def continued(team: Team, out: Path):
    """Killed on the way, then started again from a checkpoint that only the first process can read."""
    model, *splits = family("attri_vae")
    stop_after(model, 28)
    options = {"seed": 1, "progress": False, "folder": out / f"private-{team.rank}"}
    with contextlib.suppress(KeyboardInterrupt):
        fit(model, *splits, CONFIG, **options)
    model = family("attri_vae")[0]
    rows, manifest = fit(model, *splits, CONFIG, **options)
    return rows, manifest, [p.detach().clone() for p in model.parameters()]


def recorded(out: Path):
    """A published run: trained by all, measured with another one that is trained meanwhile, written by one, opened by all."""
    _, train_split, val_split = family("attri_vae")

    def obtain(label, **more):
        return train_or_load(
            label, lambda: family("attri_vae")[0], Whole(train=train_split, val=val_split), CONFIG, seed=1, device="cpu",
            runs_root=out / "runs", progress=False, **more,
        )  # fmt: skip

    model, record = obtain("together", evaluate=lambda model: {"steps": obtain("measure")[1].manifest["steps"]})
    return record.epochs, record.manifest | record.metrics, [p.detach().clone() for p in model.parameters()]


def stop_after(model: nn.Module, steps: int) -> None:
    """Has training end as a killed one does, after so many steps."""
    (update,), calls = model.updates(), []

    def loss(batch, step):
        calls.append(0)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return update.loss(batch, step)

    model.updates = lambda: (type(update)(update.name, update.parameters, loss),)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
