"""A batch in parts: its gradient, computed on all of it at once or on one share of its rows after the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medvae_lite.datasets import Batch
from medvae_lite.losses import Step, Update

__all__ = ["Share", "gradients", "halved", "is_divisible", "out_of_memory"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Some rows of a batch, and the step as they see it.

    Arguments:
        batch: The rows, with shapes as in `Batch`.
        step: Its `part` and `parts` say which rows they are.
    """

    batch: Batch
    step: Step


def gradients(
    update: Update, shares: Sequence[Share], autocast: torch.autocast, *, divisible: bool = True
) -> tuple[Sequence[Share], dict[str, Tensor]]:
    """Gradients of the mean loss over all shares, on the update's parameters; as long as memory runs out, shares are halved.

    Where there are several, a first pass without gradients collects what the rows of one share are compared with in others
    (`Step.whole`), if the loss compares rows at all; Gao et al. 2021 divide contrastive losses in such two passes.

    Arguments:
        update: Whose loss, and on which parameters.
        shares: Equally many rows each, of one batch.
        divisible: Whether shares may be halved.

    Returns:
        The shares that fitted, and the means of the loss's terms over all rows, `total` among them.

    Raises:
        torch.OutOfMemoryError: If shares do not fit that cannot be halved.
    """
    generator = shares[0].step.generator
    start = generator.get_state()
    while True:
        for p in update.parameters:
            p.grad = None
        try:
            return shares, _accumulate(update, shares, autocast)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # Outside of the handler: the error holds on to all that the failed pass had computed.
        rows, device = len(shares[0].batch.index), shares[0].step.device
        if rows % 4 or not divisible:
            raise torch.OutOfMemoryError(
                f"{rows} subjects at a time do not fit into the memory of {device} and cannot be halved: choose a smaller "
                f"`batch_size` than {rows * len(shares)}, a smaller image or a smaller model ({reason})"
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        generator.set_state(start)
        shares = halved(shares)
        log.warning("out of memory with %d subjects at a time: going on with %d, gradients added up", rows, rows // 2)


def _accumulate(update: Update, shares: Sequence[Share], autocast: torch.autocast) -> dict[str, Tensor]:
    """Adds up the shares' gradients; the means of the terms."""
    generator = shares[0].step.generator
    start = generator.get_state()
    others = _compared(update, shares, autocast) if len(shares) > 1 else []
    means: dict[str, Tensor] = {}
    for share in shares:
        generator.set_state(start)  # every share draws the whole batch's noise
        step, known = share.step, iter(others)
        gather, step.gather = step.gather, (lambda rows: next(known)) if others else step.gather
        try:
            with autocast:
                terms = update.loss(share.batch, step)
            loss = terms.total().mean()
            (loss / len(shares) if len(shares) > 1 else loss).backward()
        finally:
            step.gather = gather
        for name, value in terms.means().items():
            means[name] = means[name] + value if name in means else value
    return {name: value / len(shares) for name, value in means.items()} if len(shares) > 1 else means


@torch.no_grad()
def _compared(update: Update, shares: Sequence[Share], autocast: torch.autocast) -> list[Tensor]:
    """What `Step.whole` is to give at each of its calls; nothing if the loss makes none."""
    generator, seen = shares[0].step.generator, []
    start = generator.get_state()
    for share in shares:
        asked: list[Tensor] = []
        generator.set_state(start)
        with autocast:
            update.loss(share.batch, replace(share.step, carry=dict(share.step.carry), gather=lambda t: asked.append(t) or t))
        if not asked:
            break
        seen.append(asked)
    generator.set_state(start)
    return [torch.cat(rows) for rows in zip(*seen)]


def halved(shares: Sequence[Share]) -> list[Share]:
    """Twice as many shares of half the rows each, which go on in the middle of a step.

    What one update left for the next is halved with the rows; what is no tensor is left out, and made again where it is missing.
    """
    return [
        Share(
            Batch(*(t[half::2] for t in share.batch)),
            replace(
                share.step, part=share.step.part + half * share.step.parts, parts=2 * share.step.parts,
                carry={name: v[half::2] if isinstance(v, Tensor) else None for name, v in share.step.carry.items()},
            ),
        )
        for share in shares
        for half in (0, 1)
    ]  # fmt: skip


def is_divisible(model: nn.Module) -> bool:
    """Whether a loss on parts of a batch can be that on all of it: not where a batch norm sees a part only."""
    return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a computation failed for want of memory. Only GPUs have an exception of their own for that; oneDNN's convolutions on a
    CPU do not even say so."""
    signs = ("out of memory", "can't allocate memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in signs)
