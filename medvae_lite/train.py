"""Training: one loop for every model, adversarial or not, that can be killed and continued.

A model yields its updates; each step freezes all but one update's parameters, computes its loss and descends. All
randomness of a step comes from (seed, step), so a resumed run repeats the undisturbed one, bit for bit on a CPU, and
processes that divide its batches (`torchrun`) repeat it but for the order in which numbers are added.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medvae_lite import checkpoints, runs
from medvae_lite.datasets import RELEASE_BYTES, Batch, Split
from medvae_lite.fit_config import FitConfig, autocast
from medvae_lite.losses import Step
from medvae_lite.parallel import Team
from medvae_lite.shares import Share, gradients, halved, is_divisible

__all__ = ["TRAINING_CODE", "FitConfig", "TrainingDiverged", "fit"]

log = logging.getLogger(__name__)

TRAINING_CODE = ("checkpoints", "datasets", "fit_config", "gaussian", "losses", "nets", "parallel", "shares", "sivae", "train")
_VALIDATION_STREAM = 2**31 - 1


class TrainingDiverged(FloatingPointError):
    """Raised when the loss stays non-finite."""


@dataclass
class _State:
    """Everything a checkpoint needs beside weights and optimisers."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    consecutive: int = 0
    rows: list[dict] = field(default_factory=list)
    best: float = math.inf
    best_row: int = 0


def fit(
    model: nn.Module,
    train: Split,
    val: Split,
    config: FitConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    identity: str = "",
    progress: bool = True,
) -> tuple[pd.DataFrame, dict]:
    """Trains `model` in place and leaves it in evaluation mode.

    Under `torchrun`, every process calls this with the same arguments; each batch is divided among them. Where a batch does not fit
    into memory it is halved, and the gradients of its parts are added up: the step stays the same.

    Arguments:
        model: Yields its updates from `updates()` and its validation terms from `elbo(batch, step)`.
        train, val: The splits to descend on and to watch.
        folder: Where `checkpoint.pt` and `epochs.csv` go after every epoch; a checkpoint found there is continued.
        identity: What the run is; a checkpoint of another identity is refused.

    Returns:
        One row per epoch, and the facts for the run's manifest.

    Raises:
        TrainingDiverged: After more than `config.max_skips` non-finite steps in a row.
        ValueError: If the checkpoint found is damaged or belongs to another run, another process trains in the folder, or the
            batch cannot be divided among the processes.
        OSError: If `folder` cannot be written.
        torch.OutOfMemoryError: If a batch of two does not fit into memory.
    """
    device = torch.device(device)
    team = Team.join(device)
    with checkpoints.held(folder) if folder is not None and team.first else contextlib.nullcontext():
        loop = _Loop(model, train, val, config, seed, team.place(device), folder, identity, team)
        loop.resume()
        shown = progress and team.first
        bar = tqdm(total=config.steps, initial=loop.state.step, disable=not shown, mininterval=1.0, unit="step")
        with bar:
            while loop.state.step < config.steps and not loop.exhausted():
                loop.step()
                bar.update()
                if loop.state.step % loop.epoch_steps == 0 or loop.state.step == config.steps:
                    row = loop.close_epoch()
                    names = ("val_recon", "val_kl", "val_attribute", "encoder_kl_fake")
                    bar.set_postfix({k: f"{row[k]:.3g}" for k in names if k in row})
        return loop.finish()


class _Loop:
    """The pieces of `fit`, which only calls them in order."""

    def __init__(self, model, train, val, config, seed, device, folder, identity, team):
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.train, self.val, self.config, self.seed, self.device = _near(train, device), _near(val, device), config, seed, device
        self.folder, self.identity, self.team = folder, identity, team
        self.batch_size = min(config.batch_size, len(train))
        self.pass_steps = len(train) // self.batch_size
        # A small cohort is passed several times per row, or checkpoints would outweigh training.
        self.epoch_steps = self.pass_steps * math.ceil(min(25, config.steps) / self.pass_steps)
        self.updates = model.updates()
        fused = device.type in ("cpu", "cuda")
        self.optimisers = [torch.optim.Adam(u.parameters, lr=config.learning_rate, fused=fused) for u in self.updates]
        self.parameters = list(model.parameters())
        self.buffers = list(model.buffers())  # running statistics, if the model has a batch norm
        if team.size > 1:
            self._check_team()
        self.divisible = team.size == 1 and is_divisible(model)
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.best_weights: list[Tensor] = []
        self.autocast = autocast(config.speed, device)
        if config.speed == "compiled":
            model.encoder.compile()
            model.decoder.compile()
        self.state, self.sums, self.parts = _State(), {}, 1
        self.order, self.order_of, self.read = None, -1, 0
        self.began = time.perf_counter()

    def _check_team(self) -> None:
        each = 2 * self.team.size  # the adversary halves a process's rows
        if self.batch_size % each:
            raise ValueError(f"`batch_size` must be a multiple of {each} under {self.team.size} processes, got {self.batch_size}")
        if not is_divisible(self.model):
            raise ValueError("a batch norm sees the rows of its own process only: take `norm` = 'group', or one process")
        tensors = [*(p.data for p in self.parameters), *self.buffers]
        _copy(self.team.tell([t.cpu() for t in tensors]), tensors)

    def generator(self, stream: int) -> torch.Generator:
        entropy = np.random.SeedSequence([self.seed, stream]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(entropy >> np.uint64(1)))

    def batch(self) -> Batch:
        """This process's rows of the step's batch."""
        number, position = divmod(self.state.step, self.pass_steps)
        if number != self.order_of:
            self.order, self.order_of = self.train.order(seed=self.seed, epoch=number), number
        rows = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        batch = self.train.batch(rows[self.team.rank :: self.team.size])
        self.read += sum(t.nbytes for t in batch)
        if self.read > RELEASE_BYTES:
            self.train.release()
            self.read = 0
        return self.ready(batch)

    def ready(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))

    def as_seen(self, stream: int) -> Step:
        """A step with the noise of `stream`, as this process sees it."""
        return Step(
            self.generator(stream), self.device, self.state.step,
            part=self.team.rank, parts=self.team.size, gather=self.team.gather,
        )  # fmt: skip

    def step(self) -> None:
        """Every update once."""
        shares = [Share(self.batch(), self.as_seen(self.state.step))]
        while len(shares) < self.parts:
            shares = halved(shares)
        failed = ""
        for update, optimiser in zip(self.updates, self.optimisers):
            _train_only(update.parameters, self.parameters)
            for group in optimiser.param_groups:
                group["lr"] = self.config.rate(self.state.step)
            shares, means = gradients(update, shares, self.autocast, divisible=self.divisible)
            self.team.mean_([means["total"], *(p.grad for p in update.parameters if p.grad is not None)])
            norm = nn.utils.clip_grad_norm_(update.parameters, self.config.grad_clip)
            if torch.isfinite(means["total"] + norm):
                optimiser.step()
                self._log(update.name, means | {"grad_norm": norm})
            else:
                failed = failed or update.name
        self.parts = len(shares)
        self._count(failed)
        if self.ema:
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - self.config.ema)
        self.state.step += 1

    def _log(self, name: str, means: dict[str, Tensor]) -> None:
        for key, value in means.items():
            total, count = self.sums.get(f"{name}_{key}", (0.0, 0))
            self.sums[f"{name}_{key}"] = (total + value, count + 1)

    def _count(self, failed: str) -> None:
        self.state.skipped += bool(failed)
        self.state.consecutive = self.state.consecutive + 1 if failed else 0
        if self.state.consecutive > self.config.max_skips:
            raise TrainingDiverged(
                f"{self.state.consecutive} steps in a row had a loss or gradient that is not finite, up to step "
                f"{self.state.step} in update `{failed}`: lower `learning_rate` = {self.config.learning_rate} or the "
                "weights of the loss, or train with `speed` = 'exact'"
            )

    def close_epoch(self) -> dict:
        """Validates, appends a row, writes the checkpoint."""
        state = self.state
        row = {"epoch": state.step // self.pass_steps, "step": state.step, "skipped": state.skipped}
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.team.mean_(list(means.values()))
        row |= {name: float(value) for name, value in means.items()}
        row |= {f"val_{name}": value for name, value in self.validate().items()}
        state.rows.append(row)
        if self.config.patience and row["val_total"] < state.best:
            state.best, state.best_row = row["val_total"], len(state.rows)
            self.best_weights = [p.detach().clone() for p in (self.ema or self.parameters)]
        self.sums = {}
        self.save()
        return row

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        step, totals = self.as_seen(_VALIDATION_STREAM), {}
        for batch in self.val.batches(self.config.batch_size):
            count = len(batch.index)
            divided = count % (2 * self.team.size) == 0
            if divided:
                batch = Batch(*(t[self.team.rank :: self.team.size] for t in batch))
            with self.autocast:
                terms = self.model.elbo(self.ready(batch), step if divided else step.undivided())
            for name, value in terms.means().items():
                totals[name] = totals.get(name, 0.0) + float(value) * count
        sums = torch.tensor(list(totals.values()), dtype=torch.float64)
        self.team.mean_([sums])
        return {name: total / len(self.val) for name, total in zip(totals, sums.tolist())}

    def exhausted(self) -> bool:
        waited = len(self.state.rows) - self.state.best_row
        return bool(self.config.patience) and bool(self.state.rows) and waited >= self.config.patience

    def save(self) -> None:
        if self.folder is None or not self.team.first:
            return
        content = {
            "state": asdict(self.state) | {"seconds": self.state.seconds + time.perf_counter() - self.began},
            "parameters": [p.detach() for p in self.parameters],
            "buffers": self.buffers,
            "ema": self.ema,
            "best": self.best_weights,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        table = pd.DataFrame(self.state.rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
        runs.write_atomically(self.folder / "epochs.csv", table)
        # Last: a run that is killed in between comes by here again.
        checkpoints.write(self.folder, content, self.identity)

    def resume(self) -> None:
        reads = self.folder is not None and self.team.first
        saved = self.team.tell(checkpoints.read(self.folder, self.identity) if reads else None)
        if saved is None:
            return
        for name, here in (("parameters", self.parameters), ("buffers", self.buffers), ("ema", self.ema)):
            if [t.shape for t in saved[name]] != [t.shape for t in here]:
                raise ValueError(f"{self.folder} holds a checkpoint of another model: its {name} have other shapes; choose another folder")
        self.state = _State(**saved["state"])
        _copy(saved["parameters"], self.parameters)
        _copy(saved["buffers"], self.buffers)
        _copy(saved["ema"], self.ema)
        self.best_weights = [t.to(self.device) for t in saved["best"]]
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        log.info("continuing %s from step %d", self.folder, self.state.step)

    def finish(self) -> tuple[pd.DataFrame, dict]:
        _copy(self.best_weights or self.ema, self.parameters)
        _train_only(self.parameters, self.parameters)
        self.model.eval()
        if self.state.skipped:
            log.warning("%d of %d steps were skipped: not finite", self.state.skipped, self.state.step)
        manifest = {
            "seed": self.seed,
            "device": str(self.device),
            "bf16": bool(self.autocast.fast_dtype == torch.bfloat16 and self.autocast._enabled),
            "seconds": round(self.state.seconds + time.perf_counter() - self.began, 1),
            "steps": self.state.step,
            "skipped": self.state.skipped,
            "parameters": sum(p.numel() for p in self.parameters),
            "code": runs.code_hash(*TRAINING_CODE),
            **({"processes": self.team.size} if self.team.size > 1 else {}),
            **({"parts": self.parts} if self.parts > 1 else {}),
            **runs.environment(),
        }
        self.team.tell()
        return pd.DataFrame(self.state.rows), manifest


def _near(split: Split, device: torch.device) -> Split:
    """The split on the GPU, where it takes less than half of the memory that is free there."""
    fits = device.type == "cuda" and split.bytes < torch.cuda.mem_get_info(device)[0] / 2
    return split.held(device) if fits else split


def _train_only(chosen: list[nn.Parameter], everything: list[nn.Parameter]) -> None:
    wanted = {id(p) for p in chosen}
    for p in everything:
        p.requires_grad_(id(p) in wanted)


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for value, place in zip(source, target, strict=bool(source)):
        place.copy_(value)
