"""Hearts from latent codes: walks along attributes, models beside each other, and the way between two subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvae_lite.export import Graph, Labeller
from medvae_lite.walks import MIN_AREA, Dial, Ruler, regions
from medvae_lite.datasets import Prepared
from medvae_lite.widgets.live import Live

__all__ = ["AttributeWalk", "Interpolation", "ModelComparison"]

QUANTILES = np.linspace(0.01, 0.99, 25)
"""Where a dial is kept: codes and volumes at these quantiles, straight lines between them."""
STORED = 9
"""Stored pictures along an axis."""


class _Hearts(Live):
    def __init__(
        self, view: str, title: str, models: Mapping[str, nn.Module], data: Prepared, codes: Mapping[str, Tensor], segmenter: nn.Module,
        ruler: Ruler, *, python: Mapping[str, str] | None = None, spec: dict, tables: dict, axes: dict, start: dict,
    ):  # fmt: skip
        self.models, names = dict(models), list(models)
        if set(codes) != set(models) or len({len(of) for of in codes.values()}) != 1:
            raise ValueError(f"`codes` must hold as many subjects for each of the models {', '.join(names)}, got {({k: len(v) for k, v in codes.items()})}")
        if len(spec["subjects"]) != len(next(iter(codes.values()))):
            raise ValueError(f"`subjects` must name each of the {len(next(iter(codes.values())))} codes, got {len(spec['subjects'])} names")
        self.codes = {name: codes[name].detach().cpu().float() for name in names}
        frames, size = list(data.frames), data.size
        latent = {name: self.codes[name].shape[1] for name in names}
        decoders = [Graph(f"decoder{m}", models[name].decoder, {"z": (1, latent[name])}, ("image",)) for m, name in enumerate(names)]
        shape = (1, len(frames), size, size)
        # As a reader may see them: what the first decoder draws.
        drawn = lambda rng: {"image": decoders[0](**decoders[0].draw(rng))["image"]}
        labels = Graph("labels", Labeller(segmenter), {"image": shape}, ("label",), drawn)
        label = {int(number): name for number, name in data.card["labels"].items()}
        where = regions(data)
        super().__init__(
            view, title, graphs=[*decoders, labels], axes=axes, start=start | {"outlines": False},
            tables={f"codes{m}": self.codes[name].numpy() for m, name in enumerate(names)} | tables,
            spec={
                "models": [{"name": n, "graph": f"decoder{m}", "python": (python or {}).get(n, "model")} for m, n in enumerate(names)],
                "frames": frames, "size": size, "regions": [list(pair) for pair in where], "pixel_mm": float(data.pixel_mm),
                "ruler": {"power": ruler.power.round(4).tolist(), "log_scale": ruler.log_scale.round(4).tolist(), "min_area": MIN_AREA},
                "outlined": where[0][1], "outlined_name": label[where[0][1]], **spec,
            },
        )  # fmt: skip

    def latent(self, state: dict) -> list[Tensor]:
        """The code that each model decodes in a state, (1, D)."""
        raise NotImplementedError

    def subject(self, state: dict, control: str) -> int:
        """The number of the subject that a control has chosen.

        Raises:
            ValueError: If there is no such subject.
        """
        if state[control] not in range(len(self.spec["subjects"])):
            raise ValueError(f"`{control}` must be a whole number from 0 to {len(self.spec['subjects']) - 1}, got {state[control]!r}")
        return int(state[control])

    @torch.no_grad()
    def image(self, **state) -> NDArray[np.float32]:
        frames = []
        for model, z in zip(self.models.values(), self.latent(self.whole(state))):
            frames += list(model.decode(z.to(next(model.parameters()).device))[0].cpu().numpy())
        return np.stack(frames)


class AttributeWalk(_Hearts):
    """A slider for each regularised attribute: what does the heart look like at 200 mL?

    Each attribute has the latent dimension of its own number. A slider asks for a volume, `walks.Dial` says which code that is, and
    every other dimension stays that of the subject. Volumes found are measured on what the decoder drew. A volume beyond what the dial
    has seen (1 % to 99 % of the cohort) is taken for the end of it.

    Arguments:
        models: Models with a `decoder` and `decode`, by name.
        data: Whose attributes, frames and pixel size these are.
        codes: Codes of the subjects to choose from, (S, D), for each model.
        subjects: What the picker calls them.
        dials: For each model one dial an attribute, in the order of `data.attributes`.
        segmenter: Labels one frame at a time, (B, 1, S, S) to (B, L, S, S).
        ruler: Turns areas into volumes.
        covariance: Of the cohort's codes, (D, D), for each model; with it the reader may let the other dimensions go along.
        python: For each model the expression that names it in the reader's notebook.

    Raises:
        ValueError: If a model has no codes, dials or covariance of its own, or a subject no name.
    """

    view = "walk"

    def __init__(
        self, models: Mapping[str, nn.Module], data: Prepared, *, codes: Mapping[str, Tensor], subjects: Sequence[str],
        dials: Mapping[str, Sequence[Dial]], segmenter: nn.Module, ruler: Ruler, covariance: Mapping[str, NDArray] | None = None,
        python: Mapping[str, str] | None = None,
    ):  # fmt: skip
        for what, of in {"dials": dials, "covariance": covariance or models}.items():
            if set(of) != set(models):
                raise ValueError(f"`{what}` must be given for each of the models {', '.join(models)}, got {', '.join(of)}")
        first = next(iter(models))
        self.volumes = np.array([dial.at(QUANTILES)[1] for dial in dials[first]], np.float32)  # (K, Q)
        self.dials = {name: np.array([dial.at(QUANTILES)[0] for dial in dials[name]], np.float32) for name in models}
        # Of all dimensions with the regularised ones.
        self.covariance = {name: np.asarray(of, np.float32)[: len(data.attributes)] for name, of in (covariance or {}).items()}
        ranges = [(int(np.ceil(v[0])), int(np.floor(v[-1]))) for v in self.volumes]
        axes = {name: np.linspace(*ends, STORED).round().astype(int).tolist() for name, ends in zip(data.attributes, ranges)}
        super().__init__(
            self.view, f"Hearts decoded by {' and '.join(models)}; sliders ask for volumes", models, data, codes, segmenter, ruler, python=python,
            spec={
                "subjects": list(subjects),
                "attributes": [{"name": name, "min": low, "max": high} for name, (low, high) in zip(data.attributes, ranges)],
            },
            tables={"volumes": self.volumes} | {f"dial{m}": self.dials[name] for m, name in enumerate(models)}
            | {f"covariance{m}": self.covariance[name] for m, name in enumerate(models) if self.covariance},
            axes={"subject": list(range(min(STORED, len(subjects)))), **axes},
            start={"subject": 0, **dict.fromkeys(data.attributes)} | ({"along": False} if self.covariance else {}),
        )  # fmt: skip

    def latent(self, state: dict) -> list[Tensor]:
        asked = [k for k, attribute in enumerate(self.spec["attributes"]) if state[attribute["name"]] is not None]
        found = []
        for name, codes in self.codes.items():
            z = codes[self.subject(state, "subject")].double().numpy().copy()
            wanted = [np.interp(state[self.spec["attributes"][k]["name"]], self.volumes[k], self.dials[name][k]) for k in asked]
            if asked and state.get("along"):
                # The Gaussian's conditional mean, given the dimensions asked of.
                sigma = self.covariance[name].astype(float)[asked]
                z += np.linalg.solve(sigma[:, asked], np.array(wanted) - z[asked]) @ sigma
            z[asked] = wanted
            found.append(torch.from_numpy(z).float()[None])
        return found


class ModelComparison(AttributeWalk):
    """Several models on the same sliders: the same subject, the same volume asked of each, every model by its own dial.

    Arguments as those of `AttributeWalk`.
    """


class Interpolation(_Hearts):
    """The straight line between the codes of two subjects.

    Arguments:
        truth: True volumes of the subjects, (S, K), in mL.

    The others are those of `AttributeWalk`.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], data: Prepared, *, codes: Mapping[str, Tensor], subjects: Sequence[str], truth: NDArray,
        segmenter: nn.Module, ruler: Ruler, python: Mapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(
            "interpolation", "A heart between those of two subjects", models, data, codes, segmenter, ruler, python=python,
            spec={"subjects": list(subjects), "attributes": [{"name": name} for name in data.attributes]},
            tables={"truth": np.asarray(truth, np.float32)}, start={"a": 0, "b": 1, "t": 0.5},
            axes={"t": np.linspace(0, 1, STORED).round(3).tolist()},
        )  # fmt: skip

    def latent(self, state: dict) -> list[Tensor]:
        a, b, t = self.subject(state, "a"), self.subject(state, "b"), state["t"]
        return [((1 - t) * codes[a] + t * codes[b])[None] for codes in self.codes.values()]
