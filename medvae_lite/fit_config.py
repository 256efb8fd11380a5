"""How a model is trained: how long, how fast, in which precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["FitConfig", "autocast"]


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


def autocast(speed: str, device: torch.device) -> torch.autocast:
    """The precision in which networks run on a device, for a `speed` of `FitConfig`."""
    computes_bf16 = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }
    fast = speed in ("bf16", "compiled") or (speed == "auto" and computes_bf16.get(device.type, lambda: False)())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)
