"""Every figure that is given for a trained hierarchy, by name: reconstruction, rate, lesions, and what each layer holds.

Where the data is a phantom, edits are scored against what they should have given: the healthy twin, the true tissue.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage as ndi
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from medvae_lite import brain_metrics, edits, fidelity
from medvae_lite.brain_metrics import Detector
from medvae_lite.brains import Brains
from medvae_lite.hvae import HVAE, Latent
from medvae_lite.losses import Step
from medvae_lite.mixtures import responsibilities

__all__ = [
    "ALPHAS", "FLUID", "Edited", "chosen", "clusters", "detector", "evaluate", "infer", "mixed", "partners", "people", "predictability",
    "step", "synthesised",
]  # fmt: skip

ALPHAS = (1.0, 10.0, 100.0)
"""Weights of the Lasso, 10 that of Hu et al. 2022."""
FLUID = (0, 1, 2)
"""Tissue labels where no lesion can be: background, sulci, ventricles."""


def step(seed: int, model: HVAE) -> Step:
    """Noise for an evaluation, the same whenever it is made."""
    device = model.h0.device
    return Step(torch.Generator(device).manual_seed(seed), device)


@torch.no_grad()
def infer(model: HVAE, x: Tensor, *, size: int = 64) -> tuple[Tensor, list[Latent]]:
    """Reconstructions and posterior means of many images, a batch at a time."""
    parts = [model.infer(part.to(model.h0.device)) for part in x.split(size)]
    images = torch.cat([image for image, _ in parts])
    layers = zip(*(way for _, way in parts))
    return images, [_joined(same) for same in layers]


def _joined(parts: Iterable[Latent]) -> Latent:
    parts = list(parts)
    first = parts[0]
    return Latent(
        torch.cat([part.z for part in parts]),
        *(type(of)(*(torch.cat(t) for t in zip(*(getattr(part, name) for part in parts)))) for name, of in (("prior", first.prior), ("posterior", first.posterior))),
    )  # fmt: skip


def chosen(way: Iterable[Latent], rows) -> list[Latent]:
    """Some of the images of a way down."""
    return [Latent(z[rows], *(type(g)(g.mu[rows], g.logvar[rows]) for g in (p, q))) for z, p, q in way]


def detector(data: Brains) -> Detector:
    """A finder of lesions by grey value, set on training images; without tissue labels, fluid is told from tissue by quantiles."""
    rows = data.rows("train")
    x, labels = data.image(rows)[:, 0].numpy(), data.labels[torch.from_numpy(rows)].numpy()
    tissue = labels[:, 0]
    if tissue.max() > 1:
        dark, white = np.isin(tissue, (1, 2)), tissue == 4
    else:
        inside = tissue > 0
        low, middle = np.quantile(x[inside], (0.05, 0.5))
        dark, white = inside & (x < low), inside & (x > middle)
    return Detector.fit(x, labels[:, 1] / 100, dark, white)


def evaluate(model: HVAE, data: Brains, *, seed: int = 0, draws: int = 50, most: int = 48) -> dict:
    """What a model gives on test slices.

    Arguments:
        draws: Draws of the importance-weighted bound.
        most: Test slices it is computed on, and edits made of, spread over all; groups of samples for the shares of variance.
    """
    rows = data.rows("test")
    x = data.image(rows)
    image, way = infer(model, x)
    few = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    found = _reconstruction(model, data, rows, x, image) | _bounds(model, x, x[few], seed, draws) | _distances(model, data, x, image, seed)
    found |= {f"share_{layer}": float(s) for layer, s in enumerate(edits.layer_shares(model, step(seed, model), outer=most, inner=8)[1])}
    if model.prior in ("nvmp", "nvmp+"):
        found |= clusters(model, data, rows, way)[1]
    lesions = bool((data.lesion_mm3[data.rows("train")] > 0).any())
    found |= predictability(model, data, way)
    if lesions:
        own = chosen(way, few)
        found |= _lesions(model, data, rows, x, image, seed) | _sensitivity(model, data, own)
        if data.twins is not None:
            edited = {"mixed": mixed(model, data, rows[few], own), "conditional": synthesised(model, data, rows[few], own, seed=seed)}
            found |= {f"{name}_{k}": v for name, of in edited.items() for k, v in of.scores().items()}
    return found


def _reconstruction(model, data, rows, x, image) -> dict:
    grey, grey_hat = data.grey(x), data.grey(image.cpu())
    brain = data.labels[torch.from_numpy(rows)][:, :1] > 0
    pixels = x[0].numel()
    sse = (x - image.cpu()).square().flatten(1).sum(1)
    return {
        "psnr": float(fidelity.psnr(grey, grey_hat).mean()),
        "ssim": float(fidelity.ssim(grey, grey_hat).mean()),
        "ssim_brain": float(fidelity.ssim(grey, grey_hat, mask=brain).nanmean()),
        "half_sse": float(0.5 * sse.mean()),
        "pixels": pixels,
    }


@torch.no_grad()
def _bounds(model, x, few, seed, draws) -> dict:
    """The bundle of likelihood figures in nats a slice: none of them is called NLL without saying which."""
    noise, terms = step(seed, model), []
    for part in x.to(model.h0.device).split(64):
        image, way = model.infer(part, noise)
        terms.append(torch.cat([-model.log_likelihood(part, image)[:, None], model.divergences(way, model.top_prior())], 1))
    mean = torch.cat(terms).double().mean(0).tolist()
    few = few.to(model.h0.device)
    weights = torch.stack([model.log_weight(few, noise) for _ in range(draws)], 1).double().cpu().numpy()
    bound, error = brain_metrics.importance_bound(weights)
    kl = {f"kl_{layer}": value for layer, value in enumerate(mean[1:])}
    return {"recon_nll": mean[0], **kl, "kl": sum(mean[1:]), "neg_elbo": sum(mean), "nll_iw": -bound, "nll_iw_se": error}


@torch.no_grad()
def _distances(model, data, x, image, seed) -> dict:
    """Fréchet distances of hand-made features, standardised on training images and divided by their number: reconstructions and samples
    against test images, and training images against test images as the floor."""
    train = brain_metrics.pyramid_features(data.image(data.rows("train"))[:, 0].numpy())
    mean, width = train.mean(0), train.std(0) + 1e-9
    noise = step(seed, model)
    drawn = torch.cat([model.sample(64, noise).cpu() for _ in range(-(-len(x) // 64))])[: len(x)]
    real = (brain_metrics.pyramid_features(x[:, 0].numpy()) - mean) / width
    others = {"recon": image.cpu(), "prior": drawn}
    found = {"fd_floor": fidelity.frechet_distance((train - mean) / width, real)}
    for name, of in others.items():
        found[f"fd_{name}"] = fidelity.frechet_distance((brain_metrics.pyramid_features(of[:, 0].numpy()) - mean) / width, real)
    return {name: value / real.shape[1] for name, value in found.items()}


@torch.no_grad()
def _lesions(model, data, rows, x, image, seed) -> dict:
    """Small lesions lost in reconstruction, and lesions of samples where none can be."""
    fraction = data.lesion[torch.from_numpy(rows)][:, 0].numpy()
    tissue = data.labels[torch.from_numpy(rows)][:, 0].numpy()
    fluid = np.isin(tissue, FLUID) if tissue.max() > 1 else tissue == 0
    recovery = brain_metrics.contrast_recovery(x[:, 0].numpy(), image.cpu()[:, 0].numpy(), fraction, data.pixel_mm, fluid=fluid)
    classes = zip(("3", "5", "10", "more"), brain_metrics.missed(recovery))
    found = {f"missed_{name}": float(value) for name, value in classes} | {"missed_all": float((recovery["recovery"] < 0.5).mean())}
    find, noise = detector(data), step(seed, model)
    drawn = torch.cat([model.sample(64, noise).cpu() for _ in range(4)])[:, 0].numpy()
    found["invalid_prior"], found["lesions_prior"] = brain_metrics.invalid_share(drawn, find)
    found["invalid_real"], found["lesions_real"] = brain_metrics.invalid_share(x[:, 0].numpy(), find)
    found["area_real"] = float(find.area_mm2(x[:, 0].numpy(), data.pixel_mm).mean())
    if model.lesion_head is not None:
        _, way = infer(model, x)
        p, t = torch.sigmoid(model.lesion_logits(way)).cpu()[:, 0].numpy() > 0.5, fraction >= 0.5
        found["lesion_dice"] = float(2 * (p & t).sum() / max(1, p.sum() + t.sum()))
    return found


def predictability(model: HVAE, data: Brains, way: list[Latent]) -> dict:
    """Linear predictability of lesion volume (Lasso, several weights, whole planes and pooled ones) and of ventricle area and atrophy, layer by layer.

    Arguments:
        way: Posterior means of the test slices.
    """
    train, test = data.rows("train"), data.rows("test")
    train = train[np.linspace(0, len(train) - 1, min(1000, len(train))).astype(int)]
    _, seen = infer(model, data.image(train))
    people = data.people.set_index("subject")
    targets = {"lesion": data.lesion_mm3}
    if "ventricle_mm2" in data.slices:
        targets["ventricle"] = data.slices["ventricle_mm2"].to_numpy(float)
    if "atrophy" in people:
        targets["atrophy"] = people.loc[data.slices["subject"], "atrophy"].to_numpy(float)
    found = {}
    for layer, (a, b) in enumerate(zip(seen, way)):
        planes = [of.z.unflatten(1, (model.planes, *model.grids[layer])).cpu().numpy() for of in (a, b)]
        flat, pooled = [p.reshape(len(p), -1) for p in planes], [brain_metrics.pool(p) for p in planes]
        for name, y in targets.items():
            spread = y[train].std()
            if not spread > 1e-9 * max(1.0, np.abs(y[train]).max()):
                continue
            if name == "lesion":
                for alpha in ALPHAS:
                    found[f"r2_{layer}_alpha{alpha:g}"] = brain_metrics.lasso_r2(flat[0], y[train], flat[1], y[test], alpha=alpha)
            # A hundredth of the target's spread, so that targets of any unit compare.
            found[f"r2_{layer}_{name}"] = brain_metrics.lasso_r2(pooled[0], y[train], pooled[1], y[test], alpha=0.01 * spread)
    return found


def _sensitivity(model, data, own) -> dict:
    """Change of the lesion area when a layer is scaled: slope at 1, in standard deviations of the true area, by both ways of keeping the others."""
    find = detector(data)
    spread = data.lesion_mm3[data.rows("train")].std()
    found = {}
    for mode in ("absolute", "residual"):
        slopes = []
        for layer in range(len(model.dims)):
            more, less = (find.area_mm2(edits.scale(model, own, layer, s, mode=mode).cpu()[:, 0].numpy(), data.pixel_mm) for s in (1.5, 0.5))
            slopes.append(float((more - less).mean() / spread))
        found |= {f"sensitivity_{mode}_{layer}": s for layer, s in enumerate(slopes)}
        found[f"disparity_{mode}"] = float(np.max(np.abs(slopes)) / max(1e-9, np.sum(np.abs(slopes))))
    return found


class Edited:
    """Images with changed lesions, and what they should keep.

    Arguments:
        images: (N, D, H, W), D edits of each of N people.
        twin: Those people without lesions, (N, H, W).
        tissue: Their tissue, (N, H, W).
        wanted: Lesion area that was to be put in, mm², (N, D); None where anything may come.
        own: Lesion area that was there before, mm², (N, D).
    """

    def __init__(
        self, images: NDArray, twin: NDArray, tissue: NDArray, data: Brains, wanted: NDArray | None = None, own: NDArray | None = None
    ):
        self.images, self.twin, self.tissue, self.data, self.wanted, self.own = images, twin, tissue, data, wanted, own
        self.found = detector(data).lesions(images)

    @property
    def area(self) -> NDArray:
        """Lesion area, mm², (N, D)."""
        return self.found.sum((2, 3)) * self.data.pixel_mm**2

    def anatomy(self) -> float:
        """SSIM to the healthy twin in the brain, more than two pixels from any lesion; windows reach five, so a perfect edit has about 0.97."""
        n, d = self.images.shape[:2]
        near = ndi.binary_dilation(self.found, np.ones((1, 1, 3, 3), bool), 2)
        mask = (self.tissue > 0)[:, None] & ~near
        twin = np.repeat(self.twin[:, None], d, 1)
        pair = (self.data.grey(torch.from_numpy(im.reshape(n * d, 1, *im.shape[2:]).astype(np.float32))) for im in (twin, self.images))
        return float(fidelity.ssim(*pair, mask=torch.from_numpy(mask.reshape(n * d, 1, *mask.shape[2:]))).nanmean())

    def invalid(self) -> float:
        """Share of the lesion area that lies in fluid or outside the brain."""
        wrong = self.found & np.isin(self.tissue, FLUID)[:, None]
        return float(wrong.sum() / max(1, self.found.sum()))

    def scores(self) -> dict[str, float]:
        """All of them, by name."""
        scores = {"anatomy": self.anatomy(), "invalid": self.invalid(), "area": float(self.area.mean())}
        if self.images.shape[1] > 1:
            scores["area_sd"] = float(self.area.std(1).mean())
            scores["place_sd"] = float(self.found.std(1).sum((1, 2)).mean() * self.data.pixel_mm**2)
        for name, area in (("follows", self.wanted), ("own", self.own)):
            if area is not None and self.area.std() > 0:
                scores[name] = float(np.corrcoef(self.area.ravel(), area.ravel())[0, 1])
        return scores


def people(data: Brains, rows) -> tuple[NDArray, NDArray]:
    """Healthy twins and tissue of some slices, each (N, H, W)."""
    at = torch.from_numpy(np.asarray(rows))
    return data.twins[at][:, 0].float().numpy(), data.labels[at][:, 0].numpy()


def mixed(model: HVAE, data: Brains, rows: NDArray[np.int64], way: list[Latent], *, layer: int | None = None, mode: str = "residual") -> Edited:
    """Each slice with one layer, z_P where `layer` is None, of another person's slice at about the same height (figure 4)."""
    other = partners(data, rows)
    images = edits.mix(model, way, chosen(way, other), [model.lesion_layer if layer is None else layer], mode=mode).cpu()[:, :1].numpy()
    return Edited(images, *people(data, rows), data, data.lesion_mm3[rows][other][:, None], data.lesion_mm3[rows][:, None])


def partners(data: Brains, rows) -> NDArray[np.int64]:
    """For each slice the position of one of the next person's at the nearest height."""
    table = data.slices.iloc[rows].reset_index(drop=True)
    people = list(table["subject"].unique())
    found = np.empty(len(rows), np.int64)
    for position, (who, z) in enumerate(zip(table["subject"], table["z_mm"])):
        theirs = table.index[table["subject"] == people[(people.index(who) + 1) % len(people)]].to_numpy()
        found[position] = theirs[np.abs(table["z_mm"].to_numpy()[theirs] - z).argmin()]
    return found


def synthesised(
    model: HVAE, data: Brains, rows: NDArray[np.int64], way: list[Latent], *, layer: int | None = None, seed: int = 0, draws: int = 6,
    mode: str = "residual",
) -> Edited:  # fmt: skip
    """Each slice with one layer, z_P where `layer` is None, drawn anew, several times (figure 3, top row)."""
    noise = step(seed, model)
    images = [edits.resample(model, way, [model.lesion_layer if layer is None else layer], noise, mode=mode).cpu()[:, 0].numpy() for _ in range(draws)]
    return Edited(np.stack(images, 1), *people(data, rows), data)


@torch.no_grad()
def clusters(model: HVAE, data: Brains, rows: NDArray[np.int64], way: list[Latent]) -> tuple[NDArray, dict[str, float]]:
    """Which component of the top mixture each slice belongs to (figure 6b).

    Returns:
        Probabilities, (N, K), and by name: `clusters_used`, the exponential of the entropy of how often each is chosen (1 to K); `certainty`, the mean
        probability of the likeliest; `nmi_...`, normalised mutual information with thirds of height, ventricle and lesion area.
    """
    r = responsibilities(model.top_prior(), way[0].z, places=model.places[0]).mean(-1).cpu().numpy()
    owner = r.argmax(1)
    share = np.bincount(owner, minlength=r.shape[1]) / len(owner)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    table = data.slices.iloc[rows]
    found = {"clusters_used": float(np.exp(entropy)), "certainty": float(r.max(1).mean())}
    for name, column in (("height", "z_mm"), ("ventricle", "ventricle_mm2"), ("lesion", "lesion_mm2")):
        if column in table and table[column].std() > 0:
            values = table[column].to_numpy(float)
            third = np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values)
            found[f"nmi_{name}"] = float(normalized_mutual_info_score(owner, third))
    return r, found
