"""A run record put to the test: its files against each other, and its weights against the metrics that were written down.

The model is built from the record's own configuration, the data found by its hash, and everything measured again as the
experiments measure it. So a run verifies whether the book publishes it or a reader trained it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from functools import cache
from math import inf, isnan
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError

from medvae_lite import brains, cardiac, cohort, datasets, hierarchy, regions, runs
from medvae_lite.judges import VAE
from medvae_lite.losses import Step
from medvae_lite.nets import FeatureNet
from medvae_lite.record_files import build, family_of, faults, one_line, profile, read

__all__ = [
    "COARSE", "FLOOR", "TOLERANCE", "Difference", "Evaluator", "Result", "Unavailable", "allowed", "check", "compare",
    "differs", "largest",
]  # fmt: skip

TOLERANCE = 1e-3
"""Largest relative difference that still is the same result. The weights on disk are those that were measured, so on one
machine and one version of torch nearly everything comes back to the last digit. Another processor adds float32 numbers
in another order: the seventh digit moves, and where that puts a subject into the next bin of a histogram, the fourth."""
FLOOR = 0.01
"""Values below this are compared as if they were this: an R² of 0 has no relative difference."""
COARSE = 0.02
"""The same for figures that move in steps: where pixels or lesions past a threshold are counted, one more of them is
0.0005 of a sensitivity and 0.005 of the share of large lesions missed. Of 0.5 for values below that."""
_COUNTED = r"(sensitivity|disparity|missed|invalid|lesions|mixed|conditional|nmi)_.*|lesion_dice|clusters_used"


class Unavailable(ValueError):
    """Raised where a record cannot be measured again, with what is missing."""


class Difference(NamedTuple):
    """One metric, as written down and as found; `size` is relative, infinite where the two cannot be compared."""

    name: str
    stored: object
    found: object
    size: float


def compare(stored: dict, found: dict) -> list[Difference]:
    """Every metric of either side, the largest relative difference first."""
    rows = [Difference(n, stored.get(n), found.get(n), _size(stored.get(n), found.get(n))) for n in {**stored, **found}]
    return sorted(rows, key=lambda row: -row.size)


def allowed(name: str, stored: int | float) -> float:
    """How far a metric may be from what was written down and still be the same, in its own unit."""
    if name == "val_total":  # of a feature network: written in bfloat16, and before the weights were rounded to float16
        return COARSE * abs(stored)
    return COARSE * max(abs(stored), 0.5) if re.fullmatch(_COUNTED, name) else TOLERANCE * max(abs(stored), FLOOR)


def differs(d: Difference) -> bool:
    """Whether a metric is further from what was written down than `allowed`, or cannot be compared with it."""
    return d.size == inf or (d.size > 0 and abs(d.found - d.stored) > allowed(d.name, d.stored))


def largest(differences: Iterable[Difference]) -> Difference | None:
    """The largest difference, or None without any."""
    return max(differences, key=lambda row: row.size, default=None)


def _size(stored, found) -> float:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (stored, found))
    if not numbers:
        return 0.0 if stored == found else inf
    if isnan(stored) or isnan(found):
        return 0.0 if isnan(stored) and isnan(found) else inf
    return abs(found - stored) / max(abs(stored), FLOOR)


class Evaluator:
    """Measures records again; keeps the data and the feature networks between them.

    Arguments:
        phantom: Makes or finds a phantom: `phantom("cardiac", subjects=, size=) -> folder`, as `data_prep.phantom` does;
            None where nothing is to be measured.
        roots: Where the feature networks of cardiac records are looked up, the first place first.
        folders: Prepared folders of real data that records may have been measured on.
    """

    def __init__(self, phantom: Callable[..., Path] | None, roots: Iterable[Path], folders: Iterable[Path] = ()):
        self.roots = tuple(roots)
        self.folders = [(folder, json.loads((folder / "card.json").read_text()).get("kind")) for folder in folders]
        self.phantoms = cache(lambda kind, load, options: load(phantom(kind, **dict(options))))
        self.network = cache(_network)

    def metrics(self, record: runs.RunRecord) -> tuple[dict, dict]:
        """What is measured on a record's weights.

        Returns:
            Metrics as written down and as found.

        Raises:
            Unavailable: If the data, or a network to measure with, cannot be had.
            ValueError: If the model cannot be built from the record.
        """
        measure = {"cardiac": self._cardiac, "normative": self._normative, "structured": self._structured}
        kind = family_of(record.config)
        if kind == "features":
            return self._features(record)
        if kind not in measure:
            raise Unavailable(f"no experiment of the package measures a {record.config['model']['class']}")
        return record.metrics, measure[kind](record)

    def _cardiac(self, record: runs.RunRecord) -> dict:
        size = self._profile(record, cardiac.PROFILES)
        pixels = record.config["model"]["size"]
        views = lambda data: [data, *(data.only(name) for name in data.frames if len(data.frames) > 1)]
        load = lambda folder: datasets.load(folder, image_size=pixels)
        data = self._data(record, "cardiac", datasets.load, load, views, subjects=size.subjects, size=size.size)
        return cardiac.evaluate(record.weights_into(build(record)), data, self._metric_network(record, data.size))

    def _normative(self, record: runs.RunRecord) -> dict:
        size = self._profile(record, cohort.PROFILES)

        def views(data):
            seen = [cohort.ARMS[name].data(data) for name in cohort.Study(data, profile=profile(record)).arms]
            # All modalities as one are the same columns, and so the same hash, as each of them alone.
            return [view for view in seen if view.sizes == record.config["model"]["sizes"]]

        data = self._data(record, "regions", regions.load, regions.load, views, subjects=size.subjects)
        # JSON forgets the order of the modalities, which is the order of the encoders.
        return cohort.evaluate(VAE(record.weights_into(build(record, sizes=data.sizes)), data))

    def _structured(self, record: runs.RunRecord) -> dict:
        size = self._profile(record, hierarchy.PROFILES)
        disease = "ad" if record.folder.name.startswith("hvae_t1-") else "ms"
        data = self._data(record, "brain", brains.load, brains.load, lambda d: [d], disease=disease, **size.phantom)
        model = record.weights_into(build(record))
        return hierarchy.evaluate(model, data, seed=record.config["seed"], draws=size.draws, most=size.most)

    def _features(self, record: runs.RunRecord) -> tuple[dict, dict]:
        """A feature network has no metrics of its own: its validation loss is measured, the last that training wrote."""
        size = self._profile(record, cardiac.PROFILES)
        options = {"subjects": size.feature_subjects, "size": size.size, "seed": record.config["seed"]}
        data = self._data(record, "cardiac", datasets.load, datasets.load, lambda d: [d], **options)
        net, val, noise = record.weights_into(build(record)), data.split("val"), Step(torch.Generator(), torch.device("cpu"))
        with torch.no_grad():
            total = sum(float(net.elbo(batch, noise).total().sum()) for batch in val.batches(64))
        return {"val_total": float(record.epochs["val_total"].iloc[-1])}, {"val_total": total / len(val)}

    def loss_network(self, record: runs.RunRecord) -> Path | None:
        """The feature network that a cardiac record was trained with, found by the hash of its weights.

        Raises:
            Unavailable: If the record names one, and none of that hash is there.
        """
        wanted = record.config.get("features")
        if wanted is None:
            return None
        for folder in self._folders("loss", profile(record)):
            if cardiac.weights_hash(self.network(folder)) == wanted:
                return folder
        raise Unavailable(f"the feature network it was trained with ({wanted[:8]}) is not in {_places(self.roots)}")

    def _metric_network(self, record: runs.RunRecord, pixels: int) -> FeatureNet:
        size, seed = cardiac.PROFILES[profile(record)], cardiac.FEATURE_NETS["metric"][1]
        options = (("subjects", size.feature_subjects), ("size", pixels), ("seed", seed))
        wanted = self.phantoms("cardiac", datasets.load, options).identity
        for folder in self._folders("metric", profile(record)):
            if json.loads((folder / "config.json").read_text())["data"] == wanted:
                return self.network(folder)
        name = f"features-metric-{profile(record)}"
        raise Unavailable(f"the network it is measured with, {name}, is not in {_places(self.roots)}")

    def _folders(self, role: str, name: str) -> list[Path]:
        found = [folder for root in self.roots for folder in sorted(Path(root).glob(f"features-{role}-{name}-*"))]
        return [folder for folder in found if (folder / runs.WEIGHTS).is_file()]

    def _profile(self, record: runs.RunRecord, profiles: dict):
        if profile(record) not in profiles:
            raise Unavailable(f"its name tells no profile among {', '.join(profiles)}, so nobody knows its phantom")
        return profiles[profile(record)]

    def _data(self, record: runs.RunRecord, kind: str, load: Callable, load_real: Callable, views: Callable, **options):
        """The dataset, or the view of one, whose hash the record holds: of the folders that were named, else the phantom."""
        wanted = record.config["data"]
        whole = [lambda folder=folder: load_real(folder) for folder, of in self.folders if of == kind]
        whole += [lambda: self.phantoms(kind, load, tuple(options.items()))]
        for get in whole:
            try:
                found = next((view for view in views(get()) if view.identity == wanted), None)
            except ValueError:  # another image size, other modalities: not its data
                continue
            if found is not None:
                return found
        raise Unavailable(
            f"its data ({wanted[:8]}) is not the {profile(record)} phantom that today's code makes; if it was trained on "
            "prepared data of your own, name that folder with --data"
        )


class Result(NamedTuple):
    """What became of one record.

    Arguments:
        name: The folder's.
        status: "same" as measured again, "files" in order and not measured, "differs", "broken", or "open" where it
            cannot be measured.
        text: The rest of the line.
        largest: The largest difference found, None where nothing was measured.
    """

    name: str
    status: Literal["same", "files", "differs", "broken", "open"]
    text: str
    largest: Difference | None = None


def check(folder: Path, evaluator: Evaluator, *, measure: bool = True) -> Result:
    """Checks the files of a record and, if it keeps weights, measures them again.

    Arguments:
        measure: False reads files only, which takes no phantom.
    """
    try:
        record = read(folder)
        wrong = faults(record)
        if wrong:
            return Result(folder.name, "broken", "; ".join(wrong))
        evaluator.loss_network(record)
        if not record.has_weights:
            return Result(folder.name, "files", "a light record: files in order, no weights to measure")
        if not measure:
            return Result(folder.name, "files", "files in order, not measured")
        began = time.perf_counter()
        stored, found = evaluator.metrics(record)
    except Unavailable as error:
        return Result(folder.name, "open", str(error))
    except (ValueError, RuntimeError, LookupError, OSError, SafetensorError) as error:
        return Result(folder.name, "broken", one_line(error))
    # What today's code measures in addition is nothing that the record could have had.
    differences = compare(stored, {name: value for name, value in found.items() if name in stored})
    worst, bad = largest(differences), [d for d in differences if differs(d)]
    if bad:
        told = ", ".join(f"{d.name} {_short(d.stored)} -> {_short(d.found)}" for d in bad[:4])
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        return Result(folder.name, "differs", f"{len(bad)} of {len(differences)} metrics: {told}{more}", worst)
    most = f"largest difference {worst.size:.1e} ({worst.name})" if worst and worst.size else "equal to the last digit"
    text = f"{len(differences)} metrics, {most}, {time.perf_counter() - began:.0f} s"
    return Result(folder.name, "same", text, worst)


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _network(folder: Path) -> FeatureNet:
    try:
        record = runs.load_record(folder)
        return record.weights_into(build(record)).requires_grad_(False)
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise Unavailable(f"the feature network {folder.name} cannot be read: {one_line(error)}") from error


def _places(roots: Iterable[Path]) -> str:
    return " or ".join(str(root) for root in roots)
