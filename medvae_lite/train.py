"""Training: one loop for every model, adversarial or not, that can be killed and continued.

A model yields its updates; each step freezes all but one update's parameters, computes its loss and descends. All
randomness of a step comes from (seed, step), so a resumed run repeats the undisturbed one, bit for bit on a CPU.
"""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medvae_lite import runs
from medvae_lite.datasets import Batch, Split
from medvae_lite.losses import Step

__all__ = ["TRAINING_CODE", "FitConfig", "TrainingDiverged", "fit"]

log = logging.getLogger(__name__)

TRAINING_CODE = ("datasets", "gaussian", "losses", "nets", "sivae", "train")
_VALIDATION_STREAM = 2**31 - 1


class TrainingDiverged(FloatingPointError):
    """Raised when the loss stays non-finite."""


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to descend.

    Arguments:
        steps: Training steps; every update is made once a step.
        batch_size: Subjects per step.
        learning_rate: Adam's, for every update.
        warmup: Steps over which the learning rate rises from 0.
        decay_from: Fraction of the run after which it falls to 0 along half a cosine; 1 keeps it constant.
        drop_after: Step after which it is a tenth; 0 never drops it.
        grad_clip: Largest gradient norm per update.
        ema: Decay per step of the averaged weights that are kept in the end; 0 keeps the last ones.
        patience: Epochs without a better validation total before stopping with the best weights; 0 never stops.
        max_skips: Consecutive non-finite steps, skipped and counted, after which training stops.
        speed: "exact" is float32; "bf16" runs networks in bfloat16; "compiled" adds `torch.compile`; "auto" takes
            "bf16" where the processor computes in it and "exact" elsewhere.
    """

    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 30
    decay_from: float = 0.6
    drop_after: int = 0
    grad_clip: float = 100.0
    ema: float = 0.0
    patience: int = 0
    max_skips: int = 20
    speed: Literal["auto", "exact", "bf16", "compiled"] = "auto"

    def __post_init__(self):
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"`steps` must be at least 1 and `batch_size` 2, got {self.steps} and {self.batch_size}")
        if self.speed not in ("auto", "exact", "bf16", "compiled"):
            raise ValueError(f"`speed` must be one of auto, exact, bf16, compiled, got {self.speed!r}")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        past = max(0.0, step / self.steps - self.decay_from) / max(1e-9, 1 - self.decay_from)
        drop = 0.1 if 0 < self.drop_after <= step else 1.0
        return self.learning_rate * rise * drop * 0.5 * (1 + math.cos(math.pi * min(1.0, past)))


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

    Arguments:
        model: Yields its updates from `updates()` and its validation terms from `elbo(batch, step)`.
        train, val: The splits to descend on and to watch.
        folder: Where `checkpoint.pt` and `epochs.csv` go after every epoch; a checkpoint found there is continued.
        identity: What the run is; a checkpoint of another identity is refused.

    Returns:
        One row per epoch, and the facts for the run's manifest.

    Raises:
        TrainingDiverged: After more than `config.max_skips` non-finite steps in a row.
        ValueError: If the checkpoint found belongs to another run.
    """
    device = torch.device(device)
    loop = _Loop(model, train, val, config, seed, device, folder, identity)
    loop.resume()
    bar = tqdm(total=config.steps, initial=loop.state.step, disable=not progress, mininterval=1.0, unit="step")
    with bar:
        while loop.state.step < config.steps and not loop.exhausted():
            sums = loop.step()
            bar.update()
            if loop.state.step % loop.epoch_steps == 0 or loop.state.step == config.steps:
                row = loop.close_epoch(sums)
                shown = ("val_recon", "val_kl", "val_attribute", "encoder_kl_fake")
                bar.set_postfix({k: f"{row[k]:.3g}" for k in shown if k in row})
    return loop.finish()


class _Loop:
    """The pieces of `fit`, which only calls them in order."""

    def __init__(self, model, train, val, config, seed, device, folder, identity):
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.train, self.val, self.config, self.seed, self.device = train, val, config, seed, device
        self.folder, self.identity = folder, identity
        self.batch_size = min(config.batch_size, len(train))
        self.pass_steps = len(train) // self.batch_size
        # A small cohort is passed several times per row, or checkpoints would outweigh training.
        self.epoch_steps = self.pass_steps * math.ceil(min(25, config.steps) / self.pass_steps)
        self.updates = model.updates()
        fused = device.type in ("cpu", "cuda")
        self.optimisers = [torch.optim.Adam(u.parameters, lr=config.learning_rate, fused=fused) for u in self.updates]
        self.parameters = list(model.parameters())
        self.buffers = list(model.buffers())  # running statistics, if the model has a batch norm
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.best_weights: list[Tensor] = []
        self.autocast = _autocast(config.speed, device)
        if config.speed == "compiled":
            model.encoder.compile()
            model.decoder.compile()
        self.state, self.sums, self.counted = _State(), {}, 0
        self.began = time.perf_counter()

    def generator(self, stream: int) -> torch.Generator:
        entropy = np.random.SeedSequence([self.seed, stream]).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(entropy >> np.uint64(1)))

    def batch(self) -> Batch:
        number, position = divmod(self.state.step, self.pass_steps)
        order = self.train.order(seed=self.seed, epoch=number)
        batch = self.train.batch(order[position * self.batch_size : (position + 1) * self.batch_size])
        return self.ready(batch)

    def ready(self, batch: Batch) -> Batch:
        batch = batch.to(self.device)
        return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))

    def step(self) -> dict[str, tuple[Tensor, int]]:
        """Every update once; returns the epoch's running sums and counts."""
        batch, step = self.batch(), Step(self.generator(self.state.step), self.device)
        failed = ""
        for update, optimiser in zip(self.updates, self.optimisers):
            _train_only(update.parameters, self.parameters)
            for group in optimiser.param_groups:
                group["lr"] = self.config.rate(self.state.step)
            optimiser.zero_grad(set_to_none=True)
            with self.autocast:
                terms = update.loss(batch, step)
            loss = terms.total().mean()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(update.parameters, self.config.grad_clip)
            if torch.isfinite(loss.detach() + norm):
                optimiser.step()
                self._log(update.name, terms, norm)
            else:
                failed = failed or update.name
        self._count(failed)
        if self.ema:
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - self.config.ema)
        self.state.step += 1
        return self.sums

    def _log(self, name: str, terms, norm: Tensor) -> None:
        for key, value in {**terms.means(), "grad_norm": norm}.items():
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

    def close_epoch(self, sums: dict) -> dict:
        """Validates, appends a row, writes the checkpoint."""
        state = self.state
        row = {"epoch": state.step // self.pass_steps, "step": state.step, "skipped": state.skipped}
        row |= {name: float(total / count) for name, (total, count) in sums.items()}
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
        step, totals = Step(self.generator(_VALIDATION_STREAM), self.device), {}
        for batch in self.val.batches(self.config.batch_size):
            with self.autocast:
                terms = self.model.elbo(self.ready(batch), step)
            for name, value in terms.means().items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(batch.index)
        return {name: total / len(self.val) for name, total in totals.items()}

    def exhausted(self) -> bool:
        waited = len(self.state.rows) - self.state.best_row
        return bool(self.config.patience) and bool(self.state.rows) and waited >= self.config.patience

    def save(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = asdict(self.state) | {"seconds": self.state.seconds + time.perf_counter() - self.began}
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self.identity,
                "state": state,
                "parameters": [p.detach() for p in self.parameters],
                "buffers": self.buffers,
                "ema": self.ema,
                "best": self.best_weights,
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            },
            buffer,
        )
        runs.write_atomically(self.folder / "checkpoint.pt", buffer.getvalue())
        table = pd.DataFrame(self.state.rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
        runs.write_atomically(self.folder / "epochs.csv", table)

    def resume(self) -> None:
        if self.folder is None or not (self.folder / "checkpoint.pt").is_file():
            return
        saved = torch.load(self.folder / "checkpoint.pt", map_location=self.device, weights_only=True)
        if saved["identity"] != self.identity:
            raise ValueError(f"{self.folder} holds a checkpoint of another configuration; remove it or choose another folder")
        self.state = _State(**saved["state"])
        _copy(saved["parameters"], self.parameters)
        _copy(saved["buffers"], self.buffers)
        _copy(saved["ema"], self.ema)
        self.best_weights = saved["best"]
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
            **runs.environment(),
        }
        return pd.DataFrame(self.state.rows), manifest


def _autocast(speed: str, device: torch.device) -> torch.autocast:
    computes_bf16 = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }
    fast = speed in ("bf16", "compiled") or (speed == "auto" and computes_bf16.get(device.type, lambda: False)())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def _train_only(chosen: list[nn.Parameter], everything: list[nn.Parameter]) -> None:
    wanted = {id(p) for p in chosen}
    for p in everything:
        p.requires_grad_(id(p) in wanted)


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for value, place in zip(source, target, strict=bool(source)):
        place.copy_(value)
