"""Products of experts one can take hold of: bell curves on one axis, and a person seen through some modalities."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress, cycle, product
from math import erf, exp, pi, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvae_lite import experts
from medvae_lite.export import Graph
from medvae_lite.gaussian import Gaussian
from medvae_lite.widgets.live import Live, data_uri

__all__ = ["Experts", "PersonExperts"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("7 4", "9 3 2 3", "2 3", "12 3", "5 2 1 2", "1 4")
"""Of the experts, in their order; the view has the same."""
MARKS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z", "M-3.2 -3.2h6.4v6.4h-6.4Z", "M0 -4.2L3.9 2.8H-3.9Z", "M0 -4.6L4.6 0L0 4.6L-4.6 0Z",
    "M0 4.2L3.9 -2.8H-3.9Z", "M-3.5 -3.5L3.5 3.5M-3.5 3.5L3.5 -3.5",
)  # fmt: skip
INK = "#222"
STEP, LAST = 0.05, 30.0
"""Where the map from a holdout's t to z is kept: every `STEP` from 0 to `LAST`, straight lines between."""
BEYOND = 1.96
"""Two-sided p = 0.05."""
USED = 0.01
"""Burda et al. 2016: a dimension whose mean varies between people by more than this is in use."""


class Experts(Live):
    """Up to three Gaussian experts of one latent dimension and their product: drag a curve, or use its sliders.

    Its controls are, for each name, `name` (whether it speaks), `name_mean` and `name_sd`, and `prior`.

    Arguments:
        experts: Mean and standard deviation of each, by name.
        prior: Whether the prior N(0, 1) starts as one of them.

    Raises:
        ValueError: If there are none, or more than three, or a standard deviation is not positive.
    """

    def __init__(self, experts: Mapping[str, tuple[float, float]], *, prior: bool = True):
        if not 1 <= len(experts) <= 3 or min(sd for _, sd in experts.values()) <= 0:
            wanted = "one to three pairs of a mean and a positive standard deviation"
            raise ValueError(f"`experts` must be {wanted}, got {dict(experts)}")
        start: dict = {"prior": prior}
        for name, (mu, sd) in experts.items():
            start |= {name: True, f"{name}_mean": float(mu), f"{name}_sd": float(sd)}
        super().__init__(
            "experts", "Gaussian experts of one latent dimension, and their product", start=start,
            spec={"prior": prior, "experts": [{"name": name, "mu": float(mu), "sd": float(sd)} for name, (mu, sd) in experts.items()]},
        )  # fmt: skip

    def product(self, **state) -> Gaussian | None:
        """What follows from everyone who speaks, with shape (1, 1); None when nobody does.

        Raises:
            ValueError: If there is no such control.
        """
        now = self.whole(state)
        names = [e["name"] for e in self.spec["experts"]]
        if not (now["prior"] or any(now[name] for name in names)):
            return None
        mu = torch.tensor([[[now[f"{name}_mean"]]] for name in names], dtype=torch.float64)
        sd = torch.tensor([[[now[f"{name}_sd"]]] for name in names], dtype=torch.float64)
        speaks = torch.tensor([[bool(now[name])] for name in names])
        return experts.product(mu, 2 * sd.log(), speaks, prior=now["prior"])

    def still(self) -> str:
        names, q = self.spec["experts"], self.product()
        curves = [(e["mu"], e["sd"]) for e in names]
        return _still(_bells(curves, (q.mu.item(), q.std.item()) if q else None, self.spec["prior"]), 260, self.spec["title"])


class PersonEncoder(nn.Module):
    """What each modality says of one person alone: means and log-variances, both (M, D).

    Arguments:
        model: A product-of-experts VAE (`medvae_lite.mmvae.PoEVAE`).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """From regions (1, F), 0 where not measured, and covariates (1, C)."""
        mu, logvar = self.model.experts(x, c)
        return mu[:, 0], logvar[:, 0]


class PersonDecoder(nn.Module):
    """What a code makes the model expect: every region, (1, F), in the scale of its input.

    Arguments:
        model: A product-of-experts VAE (`medvae_lite.mmvae.PoEVAE`).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """From a code (1, D) and covariates (1, C)."""
        return self.model.decode(z, c)


class PersonExperts(Live):
    """People with modalities switched off: what each expert says, what all say together, and which regions deviate.

    The controls are `person` and `dimension` (numbers), for each modality `modality` (whether the encoder sees it) and
    `modality_mean` (where its expert stands in the chosen dimension; None where the encoder puts it), and `changed` and `shift`:
    all regions of one modality, moved by so many standard deviations of the table.

    Arguments:
        judge: A trained product of experts on its table, `medvae_lite.judges.VAE`.
        people: Rows of its table, by what the picker calls them. The last is shown first.
        dimension: The latent dimension shown first; by default the one in which healthy test people's codes vary most.
        python: Expression that names this figure in the reader's notebook.

    Raises:
        ValueError: If `judge` is of another kind, if there are no `people`, or if the table or the code has no such row or dimension.
    """

    def __init__(self, judge, people: Mapping[str, int], *, dimension: int | None = None, python: str = "person"):
        model, data = getattr(judge, "model", None), getattr(judge, "data", None)
        if not hasattr(model, "prior_expert"):
            raise ValueError(f"`judge` must be a trained product of experts, `judges.VAE`, got {type(judge).__name__}")
        if not people or not all(0 <= row < len(data.raw) for row in people.values()):
            raise ValueError(f"`people` must name rows of the table, 0 to {len(data.raw) - 1}, got {dict(people)}")
        if dimension is not None and not 0 <= dimension < model.latent_dim:
            raise ValueError(f"`dimension` must be one of the code's, 0 to {model.latent_dim - 1}, got {dimension}")
        self.judge, self.names, self.rows = judge, list(data.modalities), np.array(list(people.values()))
        spread = judge.codes(data.rows("test")).mu.std(0).numpy()
        order = np.argsort(-spread)
        with torch.no_grad():
            x, c, has = judge.inputs(self.rows)
            mu, logvar = (t.transpose(0, 1).contiguous().numpy() for t in model.experts(x, c))  # (P, M, D)
        used = spread > sqrt(USED)
        furthest = np.abs(mu[:, :, used]).max() if used.any() else 0.0
        sizes, features, covariates = list(data.sizes.values()), x.shape[1], c.shape[1]
        start: dict = {"person": len(people) - 1, "dimension": int(order[0]) if dimension is None else dimension}
        for name in self.names:
            start |= {name: True, f"{name}_mean": None}
        kept = self._calibrations()
        self.limit = max(4, int(np.ceil(np.nanmax(np.abs(kept["z"])))))  # one scale of z for everyone
        super().__init__(
            "people", "A person's experts, one a modality, with their product; below, the deviations of all regions",
            graphs=[
                Graph("experts", PersonEncoder(model), {"x": (1, features), "c": (1, covariates)}, ("mu", "logvar")),
                Graph("decode", PersonDecoder(model), {"z": (1, model.latent_dim), "c": (1, covariates)}, ("expected",)),
            ],
            tables={
                "x": x.numpy(), "c": c.numpy(), "has": has.T.contiguous().numpy().astype(np.uint8), "mu": mu, "logvar": logvar,
                **kept,
            },
            spec={
                "people": list(people), "python": python, "prior": bool(model.prior_expert), "regions": list(data.regions),
                "modalities": [{"name": name, "size": size} for name, size in zip(self.names, sizes)],
                "dimensions": [{"at": int(k), "spread": round(float(spread[k]), 2), "used": bool(used[k])} for k in order],
                "dimension": start["dimension"], "ends": max(4, int(np.ceil(furthest))), "rank_step": STEP, "beyond": BEYOND,
                # What healthy people show: mean |z|, and how many of so many regions lie beyond.
                "healthy": [round(sqrt(2 / pi), 3), round(1 - erf(BEYOND / sqrt(2)), 4)],
            },
            start=start | {"changed": self.names[-1], "shift": 0.0},
        )  # fmt: skip

    def _calibrations(self) -> dict[str, NDArray]:
        """For every set of modalities, its bits the number of a row: healthy people seen through it, and the chosen people's z.

        The map from t to z depends on the number of healthy people alone, so it is kept once for each such number.
        """
        sets, grid = list(product((False, True), repeat=len(self.names))), np.arange(0, LAST + STEP / 2, STEP)
        kept: dict[str, list] = {"mean": [], "sd": [], "z": []}
        counts, ranks, nothing = [], {}, np.full(len(self.judge.data.regions), np.nan)
        for bits in sets:
            given = list(compress(self.names, bits[::-1]))  # the first modality is the lowest bit
            speaks = self.judge.has(self.rows)[:, bits[::-1]].any(1) | self.judge.knows_nothing
            z = np.stack([nothing] * len(self.rows))
            kept["z"].append(z)
            if not given and not self.judge.knows_nothing:
                kept["mean"].append(nothing)
                kept["sd"].append(nothing)
                counts.append(np.zeros(len(nothing), int))
                continue
            healthy = self.judge.calibration(given)
            z[speaks] = self.judge.z(self.rows[speaks], given)
            kept["mean"].append(healthy.mean)
            kept["sd"].append(healthy.sd)
            counts.append(healthy.count)
            for n in set(healthy.count.tolist()) - set(ranks):
                one = replace(healthy, mean=np.zeros(1), sd=np.ones(1), count=np.array([n]))
                ranks[n] = one(grid[:, None])[:, 0]
        place = {n: k for k, n in enumerate(ranks)}
        which = np.vectorize(lambda n: place.get(n, 0), otypes=[np.uint8])(np.stack(counts))
        arrays = {name: np.stack(value).astype(np.float32) for name, value in kept.items()}
        return arrays | {"ranks": np.stack(list(ranks.values())).astype(np.float32), "which": which}

    def _joint(self, now: dict) -> tuple[Tensor, Tensor, Gaussian, Tensor, NDArray]:
        """Experts' means and log-variances (M, 1, D), their product, who of them spoke (M, 1), and the regions (1, F)."""
        if not 0 <= now["person"] < len(self.rows) or now["changed"] not in self.names:
            wanted = f"`person` must be below {len(self.rows)} and `changed` one of {', '.join(self.names)}"
            raise ValueError(f"{wanted}, got {now['person']} and {now['changed']!r}")
        model, row = self.judge.model, self.rows[now["person"] : now["person"] + 1]
        x, c, available = self.judge.inputs(row, [name for name in self.names if now[name]])
        if not (model.prior_expert or available.any()):
            raise ValueError("this model has no prior expert: leave it a modality that the person has")
        sizes = self.judge.data.sizes
        measured = self.judge.data.x[row] + np.repeat([now["shift"] * (name == now["changed"]) for name in sizes], list(sizes.values()))
        mu, logvar = model.experts(torch.from_numpy(np.nan_to_num(measured)).float(), c)
        for m, name in enumerate(self.names):
            if now[f"{name}_mean"] is not None:
                mu[m, 0, now["dimension"]] = now[f"{name}_mean"]
        return mu, logvar, experts.product(mu, logvar, available, prior=model.prior_expert), available, measured

    @torch.no_grad()
    def deviations(self, **state) -> NDArray[np.float64]:
        """The person's calibrated deviations z, (F,); NaN where not measured. Controls that are not named stand as they start.

        Raises:
            ValueError: If there is no such control or person, or the model cannot speak of a person who has nothing.
        """
        now = self.whole(state)
        _, _, q, available, measured = self._joint(now)
        c = torch.from_numpy(self.judge.data.covariates[self.rows[now["person"]]][None])
        given = list(compress(self.names, available[:, 0].tolist()))
        return self.judge.calibration(given)(measured - self.judge.model.decode(q.mu, c).double().numpy())[0]

    @torch.no_grad()
    def still(self) -> str:
        now = self.whole({})
        mu, logvar, q, available, _ = self._joint(now)
        k = now["dimension"]
        seen = available[:, 0].tolist()
        curves = [(mu[m, 0, k].item(), logvar[m, 0, k].div(2).exp().item()) if on else None for m, on in enumerate(seen)]
        joint = q.mu[0, k].item(), q.std[0, k].item()
        bells = _bells(
            curves, joint, self.spec["prior"], ends=self.spec["ends"], scale=190 * joint[1] * sqrt(2 * pi),
            label=f"latent dimension {k}",
        )  # fmt: skip
        z = self.deviations()
        known = np.abs(z[np.isfinite(z)])
        found = f"mean |z| {known.mean():.2f}, {(known > BEYOND).sum()} of {len(known)} beyond {BEYOND}"
        told = f"{self.spec['title']}. {self.spec['people'][now['person']]}: {found}"
        strip = _strip(z, [(m["name"], m["size"]) for m in self.spec["modalities"]], seen, self.limit)
        return _still(f'{bells}<g transform="translate(0 270)">{strip}</g>', 580, told)


def _still(drawn: str, height: int, title: str) -> str:
    """An <img> of a drawing 640 wide. It has a white face of its own: a picture inside an <img> does not know the page's colours."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" width="640" height="{height}" '
        f'font-family="sans-serif" font-size="12">'
        f'<rect width="640" height="{height}" fill="#fff"/>{drawn}</svg>'
    )
    return f'<img class="live-still" src="{data_uri("image/svg+xml", svg.encode())}" alt="{html.escape(title)}" width="640">'


def _bells(
    curves: Sequence[tuple[float, float] | None], joint: tuple[float, float] | None, prior: bool, *,
    ends: int = 4, scale: float = 130.0, label: str = "latent dimension z",
) -> str:  # fmt: skip
    """Bell curves (mean, standard deviation) over one axis from -ends to ends, `scale` units high where the density is 1."""
    x = lambda z: 10 + (z + ends) / (2 * ends) * 620

    def bell(mu: float, sd: float, style: str) -> str:
        points = [(z, exp(-0.5 * ((z - mu) / sd) ** 2) / (sd * sqrt(2 * pi))) for z in np.linspace(-ends, ends, 401)]
        return f'<path d="M{"L".join(f"{x(z):.1f} {max(-5, 225 - scale * p):.1f}" for z, p in points)}" {style}/>'

    told = f"{label} (shaded: product{'; dotted: prior' if prior else ''})"
    drawn = [f'<path d="M10 225H630" stroke="{INK}"/>', f'<text x="320" y="257" text-anchor="middle" fill="{INK}">{told}</text>']
    drawn += [f'<text x="{x(z):.1f}" y="241" text-anchor="middle" fill="{INK}">{z}</text>' for z in range(-ends, ends + 1)]
    if prior:
        drawn.append(bell(0.0, 1.0, 'fill="none" stroke="#888" stroke-width="2" stroke-dasharray="2 3"'))
    if joint:
        drawn.append(bell(*joint, f'fill="{INK}" fill-opacity="0.2" stroke="{INK}" stroke-width="2.5"'))
    for curve, colour, dash in zip(curves, cycle(COLOURS), cycle(DASHES)):
        if curve:
            drawn.append(bell(*curve, f'fill="none" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"'))
    return "".join(drawn)


def _strip(z: NDArray, modalities: Sequence[tuple[str, int]], seen: Sequence[bool], limit: int) -> str:
    """One dot a region up to ±`limit`, filled where the encoder saw it, and lines at ±1.96. Not measured: no dot."""
    y = lambda value: 140 - 125 * value / limit
    drawn = [f'<path d="M52 {y(v):.1f}H630" stroke="{INK}"{dash}/>' for v, dash in ((0, ""), (BEYOND, _DOTTED), (-BEYOND, _DOTTED))]
    drawn += [f'<text x="49" y="{y(v) + 4:.1f}" text-anchor="end" fill="{INK}">{v}</text>' for v in (0, BEYOND, -BEYOND)]
    drawn.append(f'<text x="4" y="14" fill="{INK}">deviation z</text>')
    widths = np.sqrt([size for _, size in modalities])
    edges = 58 + 572 * np.cumsum([0, *widths]) / widths.sum()
    at = 0
    for (name, size), left, right, on, colour, mark in zip(modalities, edges, edges[1:], seen, cycle(COLOURS), cycle(MARKS)):
        step = (right - left - 12) / size
        for k, value in enumerate(z[at : at + size]):
            if np.isfinite(value):
                place = f"translate({left + (k + 0.5) * step:.1f} {y(value):.1f})"
                drawn.append(f'<path d="{mark}" transform="{place}" fill="{colour if on else "none"}" stroke="{colour}"/>')
        middle, label = (left + right - 12) / 2, html.escape(name if on else f"{name} (hidden)")
        drawn.append(f'<text x="{middle:.1f}" y="295" text-anchor="middle" fill="{INK}">{label}</text>')
        at += size
    return "".join(drawn)


_DOTTED = ' stroke-dasharray="4 4" stroke-opacity="0.6"'
