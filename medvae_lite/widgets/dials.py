"""A setting turned through its published runs: how each trained, what it scores, what it reconstructs and draws."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from medvae_lite.datasets import Prepared
from medvae_lite.runs import RunRecord
from medvae_lite.widgets.live import Live

__all__ = ["SCORES", "Dials", "Knob"]

SCORES = {
    "KL of real images, nats": "kl", "squared error per pixel": "mse", "LPIPS-phantom": "perceptual",
    "FD-phantom of draws": "frechet_samples", "rank correlation with volumes": "scc",
}  # fmt: skip
"""What is told of a run: title to its metric's name."""
HEARTS, DRAWS = 2, 4
PANES = [
    *(f"heart {k + 1}{what}" for k in range(HEARTS) for what in ("", ", reconstructed")),
    *(f"draw {k + 1}" for k in range(DRAWS)),
]
POINTS = 60
"""Largest number of points of a curve."""


@dataclass(frozen=True)
class Knob:
    """One setting, and a published run at each of its values.

    Arguments:
        name: What the slider is called.
        stops: Model (with `encode`, `decode` and `sample`) and record at each value, ascending. No value in between exists.
        own: The value to which it returns when another knob is turned.
        data: Whose hearts are reconstructed.
        curves: Columns of `RunRecord.epochs`, in nats, drawn against step; two at most, title to column.
        unit: Of its values.
        meaning: What a value means, in words: takes value and record.

    Raises:
        ValueError: If there are fewer than two stops or they do not ascend, `own` is none of them, a record keeps no
            weights or has no such column.
    """

    name: str
    stops: Mapping[float, tuple[nn.Module, RunRecord]]
    own: float
    data: Prepared
    curves: Mapping[str, str]
    unit: str = ""
    meaning: Callable[[float, RunRecord], str] = lambda value, record: ""

    def __post_init__(self):
        values = list(self.stops)
        if len(values) < 2 or values != sorted(values):
            raise ValueError(f"`stops` of {self.name!r} must be two values or more, ascending, got {values}")
        if self.own not in values:
            raise ValueError(f"`own` of {self.name!r} must be one of its stops {values}, got {self.own}")
        if not 1 <= len(self.curves) <= 2:
            raise ValueError(f"`curves` of {self.name!r} must be one or two, got {len(self.curves)}")
        for value, (_, record) in self.stops.items():
            whose, missing = f"the record of {self.name} {value:g}", set(self.curves.values()) - set(record.epochs)
            if not record.has_weights:
                raise ValueError(f"{whose} must keep its weights, and {record.folder.name} does not")
            if missing:
                raise ValueError(f"{whose} must have the column {min(missing)!r}, got {list(record.epochs)}")

    def text(self, value: float) -> str:
        """A value and its unit."""
        return f"{value:g} {self.unit}".rstrip()


class Dials(Live):
    """Knobs that are turned one at a time, each through published runs.

    Two hearts of the test split with their reconstructions from the posterior means, and four draws from the prior: the
    same four codes for every run of the same latent size. Beside them stand the run's curves and its scores. All is there
    from the start, so that no kernel, no decoder and no server is needed. Where knobs differ in image size, a pixel of the
    smaller one is shown as a block of them.

    Arguments:
        knobs: Each by the keyword that `image` takes for it.
        scores: What is told of a run: title with unit to the name of a metric, or to a function of the record.
        seed: Of the draws.
        python: What the figure is called in the reader's notebook.

    Raises:
        ValueError: If there is no knob, a keyword is none, a score was not measured, or an image size does not divide the
            largest.
    """

    def __init__(
        self, knobs: Mapping[str, Knob], *, scores: Mapping[str, str | Callable[[RunRecord], float]] = SCORES,
        seed: int = 0, python: str = "dials",
    ):  # fmt: skip
        bad = [key for key in knobs if not key.isidentifier() or key == "dial"]
        if not knobs or bad:
            rule = "`knobs` must have one keyword or more that Python allows and none called 'dial'"
            raise ValueError(f"{rule}, got {list(knobs)}")
        self.knobs, self.seed, self.scores = dict(knobs), seed, dict(scores)
        sizes = {knob.data.size for knob in self.knobs.values()}
        self.size = max(sizes)
        if any(self.size % size for size in sizes):
            raise ValueError(f"image sizes must divide the largest of them, got {sorted(sizes)}")
        told = [self._told(key, knob) for key, knob in self.knobs.items()]
        super().__init__(
            "dials", "Published runs of a model, one knob turned at a time: training curves, scores and pictures",
            spec={"size": self.size, "panes": PANES, "python": python, "knobs": told},
            tables={key: _packed(self._sheet(knob)) for key, knob in self.knobs.items()},
            start={"dial": next(iter(self.knobs)), **{key: knob.own for key, knob in self.knobs.items()}},
        )  # fmt: skip

    def image(self, **state) -> NDArray[np.float32]:
        """The panes (8, S, S) of a run: its weights are read again and decode again.

        Arguments:
            state: `dial` says which knob is in hand, its own keyword at which value. Without `dial`: the one knob named.

        Raises:
            ValueError: If there is no such control or stop, or several knobs are named and none is in hand.
        """
        named = [key for key in state if key in self.knobs]
        if "dial" not in state and len(named) > 1:
            raise ValueError(f"one knob at a time: name one of {', '.join(named)}, or say with `dial` which is in hand")
        state = self.whole(({"dial": named[0]} if named else {}) | state)
        if state["dial"] not in self.knobs:
            raise ValueError(f"`dial` must be one of {', '.join(self.knobs)}, got {state['dial']!r}")
        knob, value = self.knobs[state["dial"]], state[state["dial"]]
        if value not in knob.stops:
            known = ", ".join(f"{stop:g}" for stop in knob.stops)
            raise ValueError(f"`{state['dial']}` must be one of {known}, got {value!r}")
        model, record = knob.stops[value]
        hearts = _hearts(knob.data).numpy()
        shown = self._pictures(record.weights_into(deepcopy(model).cpu()), knob.data)
        pairs = np.stack([hearts, shown[:HEARTS]], 1).reshape(-1, *hearts.shape[1:])
        times = self.size // knob.data.size
        return np.concatenate([pairs, shown[HEARTS:]]).repeat(times, 1).repeat(times, 2)

    @torch.no_grad()
    def _pictures(self, model: nn.Module, data: Prepared) -> NDArray[np.float32]:
        """Reconstructions and draws of a model, first frame, (6, S, S)."""
        where = next(model.parameters()).device
        hats = model.decode(model.encode(_first(data).to(where)).mu)
        drawn = model.sample(DRAWS, generator=torch.Generator().manual_seed(self.seed))
        return torch.cat([hats, drawn])[:, 0].float().cpu().numpy()

    def _sheet(self, knob: Knob) -> NDArray[np.uint8]:
        """Hearts in the first row, then a row a stop, (rows S, 6 S)."""
        rows = [np.zeros((HEARTS + DRAWS, knob.data.size, knob.data.size), np.float32)]
        rows[0][:HEARTS] = _hearts(knob.data).numpy()
        rows += [self._pictures(model.eval(), knob.data) for model, _ in knob.stops.values()]
        return np.round(255 * np.clip(np.concatenate([np.concatenate(list(row), 1) for row in rows]), 0, 1)).astype(np.uint8)

    def _told(self, key: str, knob: Knob) -> dict:
        stops = []
        for value, (_, record) in knob.stops.items():
            epochs = record.epochs.iloc[np.unique(np.linspace(0, len(record.epochs) - 1, POINTS).round().astype(int))]
            stops.append({
                "value": value, "text": knob.text(value), "meaning": knob.meaning(value, record), "run": record.folder.name,
                "steps": [int(step) for step in epochs["step"]],
                "curves": [[_short(y) for y in epochs[column]] for column in knob.curves.values()],
                "scores": [_score(record, score) for score in self.scores.values()],
            })  # fmt: skip
        return {
            "id": key, "name": knob.name, "own": knob.own, "size": knob.data.size, "curves": list(knob.curves),
            "scores": list(self.scores), "stops": stops,
        }  # fmt: skip


def _first(data: Prepared) -> torch.Tensor:
    """The first two images of the test split, (2, C, S, S)."""
    return data.split("test").batch(slice(0, HEARTS)).image


def _hearts(data: Prepared) -> torch.Tensor:
    """Their first frame, (2, S, S)."""
    return _first(data)[:, 0]


def _packed(sheet: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A lossless WebP file of a grey image, as bytes in an array."""
    buffer = io.BytesIO()
    Image.fromarray(sheet).convert("RGB").save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _short(number: float) -> float | None:
    """Three significant digits; None for what is not finite."""
    return float(f"{number:.3g}") if np.isfinite(number) else None


def _score(record: RunRecord, score: str | Callable[[RunRecord], float]) -> str:
    if isinstance(score, str) and score not in record.metrics:
        raise ValueError(f"{record.folder.name} must have the metric {score!r}, got {', '.join(record.metrics)}")
    number = _short(record.metrics[score] if isinstance(score, str) else score(record))
    return "–" if number is None else f"{number:g}"
