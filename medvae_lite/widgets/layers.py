"""Two people mixed by layer: whose latent plane is taken, how strongly, and what of it is kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvae_lite.brains import Brains
from medvae_lite.export import Graph, LayeredDecoder, normal, uniform
from medvae_lite.gaussian import Gaussian, sample
from medvae_lite.hvae import HVAE
from medvae_lite.widgets.live import Live

__all__ = ["LayerMixing"]

SOURCES = {"A": "A's", "B": "B's", "drawn": "drawn anew"}
"""Where a layer may come from, and what the view calls it."""
KEPT = {"residual": "its residual", "absolute": "its absolute value"}
"""What keeping a layer means, as in `medvae_lite.edits`."""
FACTORS = (-1.0, 3.0)
"""Least and largest factor of a layer."""
STORED = 9
"""Stored pictures along a factor."""


class LayerMixing(Live):
    r"""Style mixing, resampling and scaling on the same dials: every layer of a hierarchy chosen by itself.

    Each layer is person A's, person B's, or drawn from its prior given the layers above. Then it is multiplied: the value itself
    where values are kept, its distance from what was expected where residuals are, and where it was drawn. The panes show A, B
    and what the model makes of the choice.

    Arguments:
        models: Hierarchies with the same latent planes, by name. The figure starts with the first; a page loads the others when
            they are asked for.
        data: Whose slices these are.
        rows: The slices to choose A and B from, (P,).
        people: What the pickers call them, (P,).
        bright: Grey value from which a pixel counts as lesion, in the scale of `data.images`.
        layer: The layer that is B's at the start; where it is None, the one the first model's lesion head reads.
        python: The expression that names this figure in the reader's notebook.

    Raises:
        ValueError: If the models do not fit each other or the data, or a person, a name or the threshold is missing.
    """

    def __init__(
        self, models: Mapping[str, HVAE], data: Brains, rows: Sequence[int] | NDArray[np.integer], people: Sequence[str], *,
        bright: float, layer: int | None = None, python: str = "mixing",
    ):  # fmt: skip
        _check(models, data, rows, people, bright)
        names, first = list(models), next(iter(models.values()))
        layer = first.lesion_layer if layer is None else layer
        if not 0 <= layer < len(first.dims):
            raise ValueError(f"`layer` must be from 0 to {len(first.dims) - 1}, got {layer}")
        self.models, self.data, self.bright = dict(models), data, float(bright)
        self.pictures = data.image(np.asarray(rows))  # (P, 1, H, W)
        with torch.no_grad():
            self.ways = {name: model.infer(self.pictures.to(model.h0.device))[1] for name, model in models.items()}
            self.tops = {name: model.top_prior() for name, model in models.items()}
        graphs, seen = [], self.pictures.numpy().tobytes()
        for number, name in enumerate(names):
            z, kept = (torch.cat(of, 1) for of in zip(*((latent.z, latent.residual) for latent in self.ways[name])))
            decoder = LayeredDecoder(models[name], z, kept, (self.tops[name].mu, self.tops[name].std))
            # Models that differ only in their prior may have the same weights.
            source = hashlib.sha256(repr(models[name].config).encode() + seen).digest()
            graphs.append(Graph(f"layers{number}", decoder, decoder.inputs, ("image",), decoder.example, source))
        layers, (low, high) = range(len(first.dims)), data.grey_range
        start = {
            "model": names[0], "kept": "residual", "a": 0, "b": len(people) - 1,
            **{f"layer{n}": "B" if n == layer else "A" for n in layers}, **{f"scale{n}": 1.0 for n in layers}, "seed": 0, "marks": False,
        }  # fmt: skip
        super().__init__(
            "layers", f"Two brains mixed by layer: A, B, and what {' or '.join(names)} makes of both", graphs=graphs, start=start,
            spec={
                "models": [{"name": name, "graph": f"layers{n}", "components": len(self.tops[name].mu)} for n, name in enumerate(names)],
                "people": list(people), "dims": list(first.dims), "grids": [list(grid) for grid in first.grids], "size": list(data.size),
                "sources": list(SOURCES.items()), "kept": list(KEPT.items()), "factors": list(FACTORS), "exchanged": layer,
                "low": low, "high": high, "bright": self.bright, "pixel_mm": data.pixel_mm, "python": python,
            },
            # Eight bits are what a screen shows; where a lesion is found was decided before they were rounded.
            tables={
                "people": np.round(255 * data.grey(self.pictures)[:, 0].numpy()).astype(np.uint8),
                "found": np.packbits((self.pictures >= self.bright).flatten(1).numpy(), axis=1),
            },
            axes={
                "b": list(range(len(people))), **{f"scale{n}": np.linspace(*FACTORS, STORED).tolist() for n in layers},
                **{f"layer{n}": list(SOURCES) for n in layers},
            },
        )  # fmt: skip

    def image(self, **state) -> NDArray[np.float32]:
        """A, B and the result, (3, H, W), in grey values from 0 to 1; controls that are not named stand as they start.

        Arguments:
            model: Name of the model.
            kept: "residual" or "absolute".
            a, b: The people, from 0.
            layer0, layer1, ...: "A", "B" or "drawn".
            scale0, scale1, ...: Factor of each layer.
            seed: Of what is drawn.
            marks: Whether the view marks what is found; the image stays as it is.

        Raises:
            ValueError: If there is no such control, or it has no such value.
        """
        return self.data.grey(self._shown(state)).numpy()

    def areas(self, **state) -> NDArray[np.float64]:
        """Lesion area found in A, B and the result, (3,), in mm²; arguments as those of `image`."""
        return (self._shown(state) >= self.bright).sum((1, 2)).numpy() * self.data.pixel_mm**2

    @torch.no_grad()
    def _shown(self, state: dict) -> Tensor:
        """A, B and the result in the scale of the data, (3, H, W)."""
        state = self._checked(state)
        model, way = self.models[state["model"]], self.ways[state["model"]]
        noise = torch.from_numpy(normal(state["seed"], sum(model.dims)))[None].to(model.h0.device).split(model.dims, 1)

        def choose(layer, p, q):
            source, relative = state[f"layer{layer}"], state["kept"] == "residual"
            if source == "drawn":
                z = sample(p if layer else self._component(state), noise[layer])
            else:
                who = state[source.lower()]
                z = p.mu + p.std * way[layer].residual[who] if relative else way[layer].z[who : who + 1]
            if relative or source == "drawn":
                return p.mu + state[f"scale{layer}"] * (z - p.mu)
            return state[f"scale{layer}"] * z

        result = model.descend(1, choose)[0][0].cpu()
        return torch.cat([self.pictures[state["a"]], self.pictures[state["b"]], result])

    def _component(self, state: dict) -> Gaussian:
        """The component of the top prior that a seed draws from, each tensor (1, D_0)."""
        top = self.tops[state["model"]]
        # The number after those that make the noise.
        used = 2 * math.ceil(sum(self.spec["dims"]) / 2)
        which = int(len(top.mu) * uniform(state["seed"], used + 1)[used])
        return Gaussian(top.mu[which][None], top.logvar[which][None])

    def _checked(self, state: dict) -> dict:
        state = self.whole(state)
        layers, people = range(len(self.spec["dims"])), list(range(len(self.spec["people"])))
        allowed = {"model": list(self.models), "kept": list(KEPT), "a": people, "b": people} | {f"layer{n}": list(SOURCES) for n in layers}
        for name, values in allowed.items():
            if state[name] not in values:
                raise ValueError(f"`{name}` must be one of {', '.join(map(str, values))}, got {state[name]!r}")
        for name in (f"scale{n}" for n in layers):
            if not math.isfinite(state[name]):
                raise ValueError(f"`{name}` must be a finite number, got {state[name]!r}")
        if not 0 <= state["seed"] < 2**31:
            raise ValueError(f"`seed` must be from 0 to {2**31 - 1}, got {state['seed']!r}")
        return state


def _check(
    models: Mapping[str, HVAE], data: Brains, rows: Sequence[int] | NDArray[np.integer], people: Sequence[str], bright: float
) -> None:
    if not models:
        raise ValueError("`models` must hold at least one hierarchy, got none")
    first = next(iter(models.values()))
    for name, model in models.items():
        if model.config["mixture"] != "joint":
            raise ValueError(
                f"`models` must draw one mixture component for the whole plane (mixture 'joint'), {name} has {model.config['mixture']!r}"
            )
        if model.size != data.size or model.dims != first.dims:
            raise ValueError(
                f"`models` must be built for slices of {data.size} with planes of {first.dims}, {name} is for {model.size} with {model.dims}"
            )
    if len(rows) < 2 or len(people) != len(rows):
        raise ValueError(f"`people` must name each of `rows`, at least two, got {len(people)} names for {len(rows)} slices")
    if not math.isfinite(bright):
        raise ValueError(f"`bright` must be a finite grey value, got {bright}")
