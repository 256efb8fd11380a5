"""Training that is killed at random moments and started again, until it is through.

Runs train in processes forked from a server that has imported torch already: a start costs a tenth of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from _families import family

from medvae_lite import checkpoints, runs
from medvae_lite.train import FitConfig, fit

IDENTITY = "killed at random moments"


def train(name: str, folder: Path, steps: int, dies: tuple[int, float] | None = None) -> None:
    """Trains a family's small model in `folder`, or goes on where a killed process stopped.

    Args:
        dies: which of the files written kills the process, counted from 1, and after what part of it.
    """
    torch.set_num_threads(1)
    if dies:
        _die_writing(*dies)
    model, *splits = family(name)
    config = FitConfig(steps=steps, batch_size=16, ema=0.9, patience=1000, speed="exact")
    fit(model, *splits, config, seed=1, folder=folder, identity=IDENTITY, progress=False)
    torch.save([p.detach() for p in model.parameters()], folder / "weights.pt")


def _die_writing(which: int, part: float) -> None:
    whole, written = runs.write_atomically, []

    def write(path: Path, data: bytes | str) -> None:
        written.append(path)
        if len(written) == which:
            data = data.encode() if isinstance(data, str) else data
            path.with_name(f".{path.name}.{os.getpid()}.partial").write_bytes(data[: int(part * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, data)

    runs.write_atomically = write


class Outcome(NamedTuple):
    """What became of runs that were killed.

    Args:
        kills: with SIGKILL: every second one at a moment drawn evenly over an undisturbed run, the others in the middle of writing a file.
        writing: of these, those that left a file half written.
        unreadable: checkpoints found afterwards that could not be read whole.
        runs: finished runs.
        equal: of these, with weights, epochs and checkpoint bit-equal to the undisturbed run's.
        saved: steps that a killed run had saved, on average.
    """

    kills: int
    writing: int
    unreadable: int
    runs: int
    equal: int
    saved: float


def kill_often(name: str, work: Path, *, kills: int, steps: int, seed: int = 0) -> Outcome:
    """Kills training `kills` times, in as many runs as that takes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "medvae_lite.train", "killed"])
    chance = random.Random(f"{name} {seed}")
    whole = work / "whole"
    train(name, whole, steps)  # the first one warms up
    began = time.perf_counter()
    train(name, work / "timed", steps)
    lasts = time.perf_counter() - began
    done = writing = unreadable = finished = equal = 0
    saved = []
    while done < kills or (work / f"run{finished}").exists():
        folder = work / f"run{finished}"
        dies = (chance.randint(1, 12), chance.random()) if done < kills and done % 2 else None
        process = context.Process(target=train, args=(name, folder, steps, dies))
        process.start()
        process.join(chance.uniform(0.05, 1) * lasts if done < kills and not dies else None)
        if process.is_alive() or process.exitcode == -signal.SIGKILL:
            process.kill()
            process.join()
            done += 1
            folder.mkdir(exist_ok=True)  # it may not have come so far
            writing += bool(list(folder.glob(".*.partial")))
            try:
                content = checkpoints.read(folder, IDENTITY)
            except ValueError:
                unreadable += 1
            else:
                saved.append(content["state"]["step"] if content else 0)
        else:
            if process.exitcode:
                raise RuntimeError(f"a run of {name} ended with exit code {process.exitcode}")
            equal += _same(whole, folder)
            finished += 1
    return Outcome(done, writing, unreadable, finished, equal, sum(saved) / max(1, len(saved)))


def _same(one: Path, other: Path) -> bool:
    first, second = (checkpoints.read(folder, IDENTITY) for folder in (one, other))
    for content in (first, second):
        content["state"].pop("seconds")
    tables = [(folder / "epochs.csv").read_bytes() for folder in (one, other)]
    weights = [torch.load(folder / "weights.pt", weights_only=True) for folder in (one, other)]
    return tables[0] == tables[1] and equal(first, second) and equal(weights[0], weights[1])


def equal(a: object, b: object) -> bool:
    """Whether two nested collections of tensors and other values are the same, bit by bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(equal, a, b))
    return a == b
