r"""Can a code tell a diagnosis? The groups of a cohort told from volumes, from codes, and from both.

A reader with a prepared cohort makes the book's comparison, aggregates only, with one command:

    python -m medvae_lite.diagnosis --data PREPARED --runs book/runs --out book/runs/diagnosis-acdc.json
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from tqdm import tqdm

from medvae_lite import cardiac, disentangle, runs
from medvae_lite.crossval import FOLDS, INNER, Features, cross_validate, folds, shuffled
from medvae_lite.datasets import Batch, Prepared, load
from medvae_lite.sivae import ARSIVAE, AttriVAE
from medvae_lite.train import FitConfig, fit

__all__ = [
    "MODELS", "REGULARISED", "Cohort", "Report", "areas", "codes", "cohort", "evaluate", "fine_tuned", "own_ranks",
    "published_model", "ratios", "tables", "untrained",
]  # fmt: skip

MODELS = {"AR-SIVAE": "ar_sivae", "Attri-VAE": "attri_vae", "SIVAE": "sivae"}
"""Models whose codes are compared, and what `medvae_lite.cardiac` calls them."""
REGULARISED = ("AR-SIVAE", "Attri-VAE")


class Cohort(NamedTuple):
    """All subjects of a prepared dataset, whatever its split.

    Arguments:
        data: Where they come from.
        batch: Their images (N, C, S, S), labels and standardised volumes.
        volumes: Their attributes in mL, (N, K).
        group: What is to be told, (N,).
        scan: One number a scan, (N,): a scan that the collection holds twice stays in one fold.
    """

    data: Prepared
    batch: Batch
    volumes: Float[np.ndarray, "n k"]
    group: NDArray
    scan: Int[np.ndarray, "n"]

    def take(self, rows: Int[np.ndarray, "m"]) -> Cohort:
        """Some of the subjects."""
        batch = Batch(*(values[torch.as_tensor(rows)] for values in self.batch))
        return self._replace(batch=batch, volumes=self.volumes[rows], group=self.group[rows], scan=self.scan[rows])


def cohort(data: Prepared) -> Cohort:
    """Everyone in a prepared dataset with the column `group`.

    Raises:
        ValueError: If there is no such column, only one group, or a group with fewer scans than folds.
    """
    if "group" not in data.subjects or data.subjects["group"].isna().any():
        raise ValueError(f"{data.root / 'subjects.csv'} does not give each subject a `group`: there is nothing to tell")
    names = data.subjects["subject"].tolist()
    first = {other: same[0] for same in data.card.get("duplicates", []) for other in same}
    scan = np.array([names.index(first.get(name, name)) for name in names])
    group = data.subjects["group"].to_numpy(str)
    scans = Counter(group[np.unique(scan)].tolist())
    if len(scans) < 2 or min(scans.values()) < FOLDS:
        rare = min(scans, key=scans.get)
        raise ValueError(f"`group` needs two values or more with {FOLDS} scans each, got {scans[rare]} of {rare!r}")
    everyone = replace(data.split("train"), rows=torch.arange(len(names)))
    return Cohort(data, everyone.batch(), data.attribute_ml, group, scan)


def ratios(volumes: Float[np.ndarray, "n k"], names: tuple[str, ...]) -> Float[np.ndarray, "n 4"]:
    """What a cardiologist forms from the volumes: both ejection fractions, RV to LV and muscle to cavity at ED."""
    v = dict(zip(names, volumes.T))
    lv, rv, myo = v["LVEDV"], v["RVEDV"], v["MYOEDV"]
    return np.stack([1 - v["LVESV"] / lv, 1 - v["RVESV"] / rv, rv / lv, myo / lv], axis=1)


def areas(one: Cohort) -> Float[np.ndarray, "n a"]:
    """Labelled areas in mm² of each frame of the slice a model sees: LV, RV, myocardium at ED, then at ES."""
    labels = one.batch.labels.numpy()
    pixels = [(labels[:, frame] == tissue).sum((1, 2)) for frame in range(labels.shape[1]) for tissue in (1, 3, 2)]
    return np.stack(pixels, axis=1) * one.data.pixel_mm**2


def tables(one: Cohort, codes: Mapping[str, NDArray]) -> dict[str, Features]:
    """The tables the book compares: by hand, pixels, and each model's code (N, D), alone and beside the volumes.

    The first K dimensions stand alone where a model was taught the K volumes; the weighed table is the first model's.
    """
    v, k = one.volumes, one.volumes.shape[1]
    found = {
        "volumes": Features(v),
        "volumes + ratios": Features(np.hstack([v, ratios(v, one.data.attributes)])),
        "areas of the slice": Features(areas(one)),
        "pixels, 20 components": Features(one.batch.image.flatten(1).numpy(), components=20),
    }
    for name, z in codes.items():
        found[f"{name}: code"] = Features(z)
        if name in REGULARISED:
            found[f"{name}: taught dimensions"] = Features(z[:, :k])
            found[f"volumes + {name}: code"] = Features(np.hstack([v, z]))
    first = next(iter(codes))
    found[f"volumes + {first}: code, weighed"] = Features(np.hstack([v, codes[first]]), optional=codes[first].shape[1])
    return found


@dataclass(frozen=True)
class Report:
    """What is kept of a comparison: aggregates over folds and subjects, no row of any person.

    Arguments:
        cohort: Name, citation, licence, identity, number of subjects and scans, subjects a group.
        settings: What else shaped the figures.
        scores: Table, then "balanced_accuracy" and "auc": (R, F).
        confusion: Table to subjects of a group (row) called a group (column), mean over repeats.
        chance: Table to the mean balanced accuracy for each shuffling of the groups.
        ranks: Model to Spearman's rho of its first K dimensions with the K volumes; "areas" holds the slice's areas.
    """

    cohort: dict
    settings: dict
    scores: dict[str, dict[str, NDArray]]
    confusion: dict[str, NDArray]
    chance: dict[str, NDArray]
    ranks: dict[str, NDArray]

    def write(self, path: str | Path) -> None:
        """Writes the report as JSON, whole or not at all."""
        text = json.dumps(asdict(self), default=lambda array: array.round(4).tolist(), indent=1)
        runs.write_atomically(Path(path), text + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """Reads what `write` wrote.

        Raises:
            ValueError: If there is no such file.
        """
        if not isinstance(path, (str, Path)) or not Path(path).is_file():
            raise ValueError(f"`report` must be a file written by `python -m medvae_lite.diagnosis`, got {path!r}")
        held = json.loads(Path(path).read_text())
        for name in ("confusion", "chance", "ranks"):
            held[name] = {key: np.array(value) for key, value in held[name].items()}
        held["scores"] = {table: {k: np.array(v) for k, v in one.items()} for table, one in held["scores"].items()}
        return cls(**held)


def evaluate(
    one: Cohort, codes: Mapping[str, NDArray], *, repeats: int, shuffles: int, seed: int = 0, progress: bool = True
) -> Report:
    """Every table of `tables` cross-validated, and those in need of it once for every shuffling of the groups."""
    compared, scores, confusion = tables(one, codes), {}, {}
    controls = ["volumes", f"{next(iter(codes))}: code"]
    bar = tqdm(total=len(compared) * repeats + len(controls) * shuffles, disable=not progress, unit="fold set")
    for name, features in compared.items():
        said = cross_validate(features, one.group, one.scan, repeats=repeats, seed=seed)
        scores[name], confusion[name] = said.scores(), said.confusion()
        bar.update(repeats)
    chance = {name: np.empty(shuffles) for name in controls}
    for name, s in ((name, s) for name in controls for s in range(shuffles)):
        said = cross_validate(compared[name], shuffled(one.group, one.scan, seed=seed + s), one.scan, seed=seed)
        chance[name][s] = said.scores()["balanced_accuracy"].mean()
        bar.update()
    bar.close()
    seen = {"areas": areas(one)} | {name: z for name, z in codes.items() if name in REGULARISED}
    card, counted = one.data.card, Counter(one.group.tolist())
    about = {key: card.get(key, "") for key in ("name", "citation", "licence")} | {"identity": one.data.identity}
    about |= {"subjects": len(one.group), "scans": len(np.unique(one.scan)), "groups": dict(sorted(counted.items()))}
    settings = {"repeats": repeats, "folds": FOLDS, "inner": INNER, "shuffles": shuffles, "seed": seed}
    ranks = {name: own_ranks(z, one.volumes) for name, z in seen.items()}
    return Report(about, settings, scores, confusion, chance, ranks)


def own_ranks(z: Float[np.ndarray, "n d"], volumes: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k"]:
    """Spearman's rho of column k with volume k."""
    return disentangle.correlation(z[:, : volumes.shape[1]], volumes).diagonal()


def codes(models: Mapping[str, AttriVAE], one: Cohort) -> dict[str, Float[np.ndarray, "n d"]]:
    """Posterior means of all subjects, by model."""
    return {name: cardiac.encode_images(model, one.batch.image).mu.numpy() for name, model in models.items()}


def untrained(profile: str, *, seed: int = 0) -> AttriVAE:
    """A model of the profile's size with its starting weights: what the network's shape alone is worth."""
    size = cardiac.PROFILES[profile]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttriVAE(size=size.size, latent_dim=size.latent_dim).eval()


def published_model(runs_root: str | Path, name: str, profile: str, *, seed: int = 0, not_on: str = "") -> AttriVAE:
    """A published model, found by its settings alone; not one trained on the dataset whose identity is `not_on`.

    Raises:
        ValueError: If there is no such run, or it keeps no weights.
    """
    size, (family, defaults) = cardiac.PROFILES[profile], cardiac.MODELS[name]
    settings = {"size": size.size, "latent_dim": size.latent_dim, **defaults}
    settings |= {"repulsion": size.repulsion} if family is ARSIVAE else {}
    if settings.get("alpha_pl"):
        features = cardiac.Segmenter(**cardiac.FEATURE_NETS["loss"][0])
        settings["features"] = _with_weights(features, size.feature_fit, runs_root, f"features-loss-{profile}", not_on)
    return _with_weights(family(**settings), size.fit, runs_root, f"{name}-{profile}-seed{seed}", not_on)


def _with_weights(model, how: FitConfig, runs_root: str | Path, label: str, not_on: str):
    wanted = runs.canonical({"class": type(model).__name__, **model.config, "fit": asdict(how)})
    records = [runs.load_record(path.parent) for path in sorted(Path(runs_root).glob(f"{label}-*/metrics.json"))]
    records = [r for r in records if r.has_weights and r.config["data"] != not_on]
    fitting = [r for r in records if runs.canonical(r.config["model"] | {"fit": r.config["fit"]}) == wanted]
    if len(fitting) != 1:
        raise ValueError(
            f"`runs` = {str(runs_root)!r} must hold one published run {label}, got {len(fitting)}: `make runs`"
        )
    return fitting[0].weights_into(model)


def fine_tuned(
    model: AttriVAE, one: Cohort, *, steps: int, seed: int = 0, progress: bool = True
) -> Float[np.ndarray, "f n d"]:
    """Codes of everyone from copies of `model` trained on, each on images and volumes of one fold's training part.

    The groups play no part but in the folds, which are those of `cross_validate` with this seed.
    """
    size, found = FitConfig(steps=steps, batch_size=16, learning_rate=1e-3), []
    for train, _ in folds(one.group, one.scan, seed=seed):
        side = np.full(len(one.group), "test", object)
        side[train] = "train"
        mean, sd = one.volumes[train].mean(0), one.volumes[train].std(0, ddof=1)
        part = replace(one.data, subjects=one.data.subjects.assign(split=side), mean=mean, sd=sd).split("train")
        tuned = copy.deepcopy(model)
        fit(tuned, part, part, size, seed=seed, progress=progress)
        found.append(cardiac.encode_images(tuned, one.batch.image).mu.numpy())
    return np.stack(found)


def add_fine_tuned(report: Report, one: Cohort, name: str, z: Float[np.ndarray, "f n d"], steps: int) -> Report:
    """The report with the tables of a fine-tuned model: one repeat; ranks are of subjects the model did not see."""
    title, k, seed = f"{name}, fine-tuned", one.volumes.shape[1], report.settings["seed"]
    added = {f"{title}: code": Features(z), f"{title}: taught dimensions": Features(z[..., :k])}
    said = {table: cross_validate(x, one.group, one.scan, seed=seed) for table, x in added.items()}
    tests = [test for _, test in folds(one.group, one.scan, seed=seed)]
    ranks = np.mean([own_ranks(z[f, test], one.volumes[test]) for f, test in enumerate(tests)], axis=0)
    return replace(
        report, settings=report.settings | {"fine_tuning_steps": steps}, ranks=report.ranks | {title: ranks},
        scores=report.scores | {table: p.scores() for table, p in said.items()},
        confusion=report.confusion | {table: p.confusion() for table, p in said.items()},
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line described at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m medvae_lite.diagnosis", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="prepared cohort with the column `group` in subjects.csv")
    parser.add_argument("--runs", default="book/runs", help="folder of the published runs (%(default)s)")
    parser.add_argument("--out", required=True, help="JSON file to write: aggregates only")
    parser.add_argument("--profile", default="laptop", choices=runs.PROFILES, help="size of the models (%(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="cross-validations of every table (%(default)s)")
    parser.add_argument("--shuffles", type=int, default=20, help="shufflings of the groups (%(default)s)")
    tuning = "steps on images and volumes of each fold's training part; 0 leaves fine-tuning out (%(default)s)"
    parser.add_argument("--fine-tune", type=int, default=200, metavar="STEPS", help=tuning)
    args = parser.parse_args(argv)
    try:
        one = cohort(load(args.data, image_size=cardiac.PROFILES[args.profile].size))
        own = one.data.identity
        models = {title: published_model(args.runs, name, args.profile, not_on=own) for title, name in MODELS.items()}
        if args.repeats < 1 or args.shuffles < 1 or args.fine_tune < 0:
            raise ValueError("`--repeats` and `--shuffles` must be at least 1, and `--fine-tune` at least 0")
        if not Path(args.out).parent.is_dir():
            raise ValueError(f"`--out` must name a file in a folder that exists, got {args.out!r}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    found = codes(models | {"untrained": untrained(args.profile)}, one)
    report = evaluate(one, found, repeats=args.repeats, shuffles=args.shuffles)
    report = replace(report, settings=report.settings | {"profile": args.profile})
    for name in REGULARISED if args.fine_tune else ():
        report = add_fine_tuned(report, one, name, fine_tuned(models[name], one, steps=args.fine_tune), args.fine_tune)
    report.write(args.out)
    for table, scores in report.scores.items():
        print(f"{table:42} balanced accuracy {scores['balanced_accuracy'].mean():.3f}  AUC {scores['auc'].mean():.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
