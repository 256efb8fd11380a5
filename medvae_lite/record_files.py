"""Run records as files: reading one, finding one by a part of its name, and what is wrong with one that was damaged."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from math import inf, isfinite, isnan
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from medvae_lite import runs
from medvae_lite.cardiac import Segmenter
from medvae_lite.hvae import HVAE
from medvae_lite.mmvae import PoEVAE
from medvae_lite.sivae import ARSIVAE, AttriVAE

__all__ = ["FAMILIES", "MODELS", "build", "family_of", "faults", "find", "folders", "one_line", "profile", "read"]

MODELS = {
    "AttriVAE": (AttriVAE, "cardiac"), "ARSIVAE": (ARSIVAE, "cardiac"), "PoEVAE": (PoEVAE, "normative"),
    "HVAE": (HVAE, "structured"), "Segmenter": (Segmenter, "features"),
}  # fmt: skip
"""Name of a model's class in a record -> the class and the family of experiments it belongs to."""
FAMILIES = ("cardiac", "normative", "structured", "features")

# Metric names (whole, as a pattern) -> smallest and largest value that can be.
_RANGES = (
    (r"(reference_)?(scc|modularity)(_.*)?|(reference_)?sap|lesion_dice|auc_.*|false_positives|certainty|missed_.*|nmi_.*"
     r"|.*_invalid|invalid_.*", 0.0, 1.0),
    (r"ssim(_.*)?|r_.*|hf_correlation", -1.0, 1.0),
    (r"(reference_)?interpretability(_.*)?|r2_.*|share_.*", -inf, 1.0),
    (r"significant(_.*)?", 0.0, 100.0),
    (r"mse|kl(_.*)?|perceptual(_.*)?|error_.*|deviation_.*|mean_abs_z|half_sse|(reference_)?(D|K|N|active)|subjects|pixels"
     r"|frechet_.*|fd_.*|nll_iw_se|code_sd_.*|.*area(_.*)?|lesions_.*", 0.0, inf),
)  # fmt: skip
_ROUNDING = 1e-5  # a squared distance, computed as a difference, may end a little below 0

# File of a record -> what is read in it.
_NEEDED = {
    "config": {"model": dict, "fit": dict, "data": str, "seed": int},
    "manifest": {"seed": int, "steps": int, "seconds": (int, float), "code": str},
    "metrics": {},
}


def read(folder: Path) -> runs.RunRecord:
    """Reads a record and says in one sentence why it cannot.

    Raises:
        ValueError: If a file is missing, cut short or of another format, naming the file.
    """
    for name, needed in _NEEDED.items():
        try:
            content = json.loads((folder / f"{name}.json").read_text())
        except FileNotFoundError:
            raise ValueError(f"{name}.json is missing: the run did not finish, or lost it") from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}.json is cut short or no JSON ({one_line(error)})") from None
        kinds = needed if isinstance(content, dict) else {}
        absent = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
        if name == "config" and kinds and not absent and not isinstance(content["model"].get("class"), str):
            absent = ["model.class"]
        if absent or not isinstance(content, dict):
            wanted = f"`{absent[0]}`" if absent else "names and values"
            raise ValueError(f"{name}.json is of another format: a record has {wanted} there")
    try:
        record = runs.load_record(folder)
    except FileNotFoundError:
        raise ValueError("epochs.csv is missing: the run did not finish, or lost it") from None
    except (ValueError, OSError) as error:  # pandas' errors are ValueErrors
        raise ValueError(f"epochs.csv is no table ({one_line(error)})") from None
    if record.epochs.empty or not {"epoch", "step"} <= set(record.epochs):
        raise ValueError("epochs.csv is of another format: a record has columns `epoch`, `step` and a row an epoch there")
    return record


def folders(root: Path) -> list[Path]:
    """The folders under `root` that should be records, in order; names that start with a dot are runs in the making.

    Raises:
        ValueError: If there are none.
    """
    found = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []
    if not found:
        where = "name the `runs_root` you trained under"
        raise ValueError(f"`ROOT` must be a folder of run records, and {root} holds none; {where}")
    return found


def find(root: Path, text: str) -> Path:
    """The one record whose name contains `text`, or the folder that it is the path of.

    Raises:
        ValueError: If there is none, or several that are not named exactly so.
    """
    if os.sep in text and Path(text).is_dir():
        return Path(text).resolve()
    known = folders(root)
    names = [folder.name for folder in known if text in folder.name]
    if text in names or len(names) == 1:
        return root / (text if text in names else names[0])
    if not names:
        raise ValueError(f"`NAME` must be a part of a record's name, and none in {root} contains {text!r}; `list` shows them")
    some = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise ValueError(f"`NAME` = {text!r} must be a part of one name only, and it is in {len(names)}: {some}")


def family_of(config: dict) -> str:
    """The family of experiments a configuration belongs to, "other" for a class that none of them trains."""
    return MODELS.get(config["model"]["class"], (None, "other"))[1]


def profile(record: runs.RunRecord) -> str:
    """The profile that a record's folder name tells; "" where it tells none."""
    found = re.search(r"-(smoke|laptop|grid|paper)(?=-)", record.folder.name)
    return found[1] if found else ""


def build(record: runs.RunRecord, **changed) -> nn.Module:
    """The untrained model of a record's configuration.

    Arguments:
        changed: Settings to replace.

    Raises:
        ValueError: If the package has no such class, or the class no such settings.
    """
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in record.config["model"].items()}
    name = settings.pop("class")
    if name not in MODELS:
        raise ValueError(f"its model is a {name}, and records hold one of {', '.join(MODELS)}")
    # The perceptual term needs its network to train with, and nothing to be measured.
    settings |= {"alpha_pl": 0.0} if "alpha_pl" in settings else {}
    try:
        with torch.random.fork_rng(devices=[]):
            return MODELS[name][0](**{**settings, **changed})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"today's {name} cannot be built from its config.json: {one_line(error)}") from error


def faults(record: runs.RunRecord) -> list[str]:
    """What is wrong with the files of a record, a sentence each, without measuring anything."""
    return [*_configuration_faults(record), *_epoch_faults(record), *_metric_faults(record), *_weight_faults(record)]


def _configuration_faults(record: runs.RunRecord) -> Iterator[str]:
    label, name = record.folder.name.rpartition("-")[0], record.folder.name
    if runs.run_name(label, record.config) != name:
        hashed = runs.run_name(label, record.config).rpartition("-")[2]
        yield f"config.json hashes to {hashed}, which is not in the folder's name: it was changed, or the folder renamed"
    if record.manifest["seed"] != record.config["seed"]:
        yield f"manifest.json has seed {record.manifest['seed']} and config.json {record.config['seed']}"
    seed = re.search(r"-seed(\d+)$", label)
    if seed and int(seed[1]) != record.config["seed"]:
        yield f"the folder's name has seed {seed[1]} and config.json {record.config['seed']}"


def _epoch_faults(record: runs.RunRecord) -> Iterator[str]:
    epochs = record.epochs
    text = [name for name in epochs if epochs[name].dtype.kind not in "iuf"]
    if text or not np.isfinite(epochs.to_numpy(float)).all():
        bad = text or [name for name in epochs if not np.isfinite(epochs[name].to_numpy(float)).all()]
        yield f"epochs.csv: column {bad[0]} holds values that are no finite numbers"
    elif not epochs["step"].is_monotonic_increasing or epochs["step"].iloc[-1] != record.manifest["steps"]:
        yield f"epochs.csv ends at step {epochs['step'].iloc[-1]}, and manifest.json says {record.manifest['steps']}"


def _metric_faults(record: runs.RunRecord) -> Iterator[str]:
    for name, value in record.metrics.items():
        # What could not be measured is null in the file; text (the split's name) has no range.
        if isinstance(value, str) or (isinstance(value, float) and isnan(value)):
            continue
        if not isinstance(value, (int, float)) or not isfinite(value):
            yield f"metrics.json: `{name}` must be a number, text or null, got {str(value)[:40]}"
            continue
        low, high = next(((low, high) for pattern, low, high in _RANGES if re.fullmatch(pattern, name)), (-inf, inf))
        if not low - _ROUNDING <= value <= high + _ROUNDING:
            yield f"metrics.json: `{name}` must be from {low:g} to {high:g}, got {value:g}"


def _weight_faults(record: runs.RunRecord) -> Iterator[str]:
    if not record.has_weights:
        return
    try:
        with safe_open(record.folder / runs.WEIGHTS, "pt") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        yield f"{runs.WEIGHTS} cannot be read ({one_line(error)}): it is cut short or another file"
        return
    if record.config["model"]["class"] not in MODELS:
        return
    try:
        model = build(record)
    except ValueError as error:
        yield str(error)
        return
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            got, want = (f"shape {s[name]}" if name in s else "none" for s in (shapes, expected))
            yield f"{runs.WEIGHTS}: tensor {name} must have {want} as config.json has it, got {got}"
            return
    bad = [name for name, value in found.items() if not value.isfinite().all()]
    if bad:
        yield f"{runs.WEIGHTS}: tensor {bad[0]} holds values that are no finite numbers"
    count = sum(p.numel() for p in model.parameters())
    if count != record.manifest.get("parameters", count):
        yield f"manifest.json counts {record.manifest['parameters']} parameters, and the model has {count}"
    digest = hashlib.sha256((record.folder / runs.WEIGHTS).read_bytes()).hexdigest()
    if not bad and digest != record.manifest.get("weights_sha256", digest):
        yield f"{runs.WEIGHTS} is not the file that was written: its SHA-256 is not that in manifest.json"


def one_line(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:160]
