"""Published runs: the record where there is one, training where there is none.

Chapters and the run publisher get every trained model here, so neither can show a model that no record describes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import filelock
import torch
from torch import nn

from medvae_lite import runs
from medvae_lite.datasets import Split
from medvae_lite.parallel import Team
from medvae_lite.train import TRAINING_CODE, FitConfig, fit

__all__ = ["LEDGER", "Dataset", "train_or_load"]

LEDGER = "MEDVAE_LEDGER"
"""Environment variable: the file, if it names one, in which every record that is used is entered, a folder a line."""

log = logging.getLogger(__name__)


@runtime_checkable
class Dataset(Protocol):
    """A prepared dataset of any kind: images or tables."""

    @property
    def identity(self) -> str:
        """Hash of all that shaped it."""

    def split(self, name: str) -> Split:
        """One of its splits."""


def train_or_load(
    label: str,
    build: Callable[[], nn.Module],
    data: Dataset,
    config: FitConfig,
    *,
    seed: int,
    device: torch.device | str,
    runs_root: str | Path,
    retrain: bool = False,
    evaluate: Callable[[nn.Module], dict] = lambda model: {},
    notes: dict | None = None,
    progress: bool = True,
    light: bool = False,
) -> tuple[nn.Module | None, runs.RunRecord]:
    """The published run where configuration and data match, a new one otherwise.

    Under `torchrun` all processes train it together; the first looks it up and writes it.

    Arguments:
        label: First part of the run's folder name.
        build: Makes the untrained model; called with torch's random numbers seeded.
        evaluate: Final metrics of a trained model, by name.
        notes: What else the result depends on (the hash of a feature network, say); part of the configuration.
        retrain: Train although there is a record, and replace it when done.
        light: Ask for the record only: one without weights will do, and the model returned is None.

    Returns:
        The model, in evaluation mode on `device`, and its record.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    wanted = {
        "model": {"class": type(model).__name__, **model.config},
        "fit": asdict(config),
        "data": data.identity,
        "seed": seed,
        **(notes or {}),
    }
    wanted = json.loads(runs.canonical(wanted))
    name = runs.run_name(label, wanted)

    def found() -> runs.RunRecord | None:
        record = None if retrain else runs.find_record(runs_root, label, wanted)
        return record if record is not None and (light or record.has_weights) else None

    team = Team.join(torch.device(device))
    record = team.tell(found() if team.first else None)
    if record is not None:
        if not runs.trains_the_same(record.manifest["code"], runs.code_hash(*TRAINING_CODE)):
            log.warning("%s was trained by an earlier version of the code; `retrain` makes it again", record.folder.name)
    else:
        with _turn(Path(runs_root), name) if team.first else contextlib.nullcontext():
            record = team.tell(found() if team.first else None)  # by whoever had the turn before
            if record is None:
                work = Path(runs_root) / f".{name}.training"
                epochs, manifest = fit(
                    model, data.split("train"), data.split("val"), config, seed=seed, device=device,
                    folder=work, identity=runs.canonical(wanted), progress=progress,
                )  # fmt: skip
                # Records hold float16 weights: what is measured must be what is kept.
                model.half().float()
                # By every process, although one would do: what it is measured with may have to be trained, by all of them.
                contents = {"config": wanted, "manifest": manifest, "epochs": epochs, "metrics": evaluate(model)}
                record = team.tell(_publish(Path(runs_root) / name, work, model=model, **contents) if team.first else None)
    if team.first:
        _enter(record)
    return None if light else record.weights_into(model).to(device), record


@contextlib.contextmanager
def _turn(runs_root: Path, name: str) -> Iterator[None]:
    """Two processes that want one new run: the second waits until the first has trained it."""
    runs_root.mkdir(parents=True, exist_ok=True)
    lock = filelock.SoftFileLock(runs_root / f".{name}.lock")  # taken over if its process on this machine has died
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.warning("%s is being trained by another process: waiting; if that has died, remove %s", name, lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _enter(record: runs.RunRecord) -> None:
    """Notes in the ledger, where somebody keeps one, that this record was used."""
    if ledger := os.environ.get(LEDGER):
        with open(ledger, "a") as file:
            file.write(f"{record.folder.resolve()}\n")


def _publish(folder: Path, work: Path, **contents) -> runs.RunRecord:
    """Puts a whole record where an older one, or none, stands."""
    runs.write_record(work, **contents)
    (work / "checkpoint.pt").unlink(missing_ok=True)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return runs.load_record(folder)
