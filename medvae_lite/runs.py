"""Run records: what was trained, on what, by which code, and what came out.

A record is a folder of plain files: `config.json`, `manifest.json`, `epochs.csv`, `metrics.json` and
`weights.safetensors`; a light record has everything but the weights. Nothing in it is code, nothing in it is a pickle, and every file appears whole or not at all.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import platform
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

__all__ = [
    "PROFILES", "WEIGHTS", "RunRecord", "canonical", "check_parameters", "code_hash", "find_record", "load_record", "not_written",
    "resolve_device", "run_name", "trains_the_same", "write_atomically", "write_record",
]  # fmt: skip

PROFILES = ("smoke", "laptop", "paper")

_FILES = ("config.json", "manifest.json", "epochs.csv", "metrics.json")
WEIGHTS = "weights.safetensors"

SAME_TRAINING = {
    # Batches in parts and among processes, steps counted by the loop, checkpoints with a check sum, arrays let go of.
    "f4476e3750d18f3ab5ed739504d9aae7c43cdd5fb99a83abc4055f9331157b2b": "867b6c1a7a796083ce1702b19394c0d18843e39013627672d61ccc9e609396e0",
}
"""Hash of training code that made records -> hash of the code after it, which trains the same: `tests/benchmarks/retrain.py` is the proof."""


@dataclass(frozen=True)
class RunRecord:
    """A finished run, read back.

    Arguments:
        folder: Where the record lies.
        config: What was asked for; a run is looked up by it.
        manifest: Seed, device, code hash, versions, wall time in seconds, skipped steps, SHA-256 of the weights.
        epochs: One row per epoch: losses and their terms, means per image.
        metrics: Final metrics, by name.
    """

    folder: Path
    config: dict
    manifest: dict
    epochs: pd.DataFrame
    metrics: dict

    @property
    def has_weights(self) -> bool:
        """Whether the trained weights were kept, and not only what was measured on them."""
        return (self.folder / WEIGHTS).is_file()

    def weights_into(self, model: nn.Module) -> nn.Module:
        """Loads the weights into `model` and returns it in evaluation mode.

        Nothing in the file is executed.

        Raises:
            FileNotFoundError: If the record is a light one.
            ValueError: If the file is not the one that was written, or belongs to another model; the model is as before then.
        """
        if not self.has_weights:
            raise FileNotFoundError(f"{self.folder} keeps no weights; train it again with `retrain`")
        path = self.folder / WEIGHTS
        data = path.read_bytes()
        written = self.manifest.get("weights_sha256", "")  # older records do not have it
        if written and hashlib.sha256(data).hexdigest() != written:
            raise ValueError(f"{path} is damaged, it is not what was written: put back a copy, or train it again with `retrain`")
        try:
            state = load(data)
        except SafetensorError as error:
            raise ValueError(f"{path} is no file of weights ({error}): put back a copy, or train it again with `retrain`") from None
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        if wanted != {name: value.shape for name, value in state.items()}:
            other = sorted(name for name in wanted.keys() | state.keys() if name not in state or wanted.get(name) != state[name].shape)
            raise ValueError(f"{path} holds the weights of another model, {other[0]} differs: build the model that its config.json describes")
        model.load_state_dict({name: value.float() for name, value in state.items()})
        return model.eval()


def check_parameters(
    *,
    profile: str,
    seed: int,
    device: str,
    data_root: str,
    runs_root: str,
    retrain: bool,
    **others: tuple[Any, int | float, int | float],
) -> None:
    """Refuses a chapter's parameters before anything is computed with them.

    Arguments:
        profile, seed, device, data_root, runs_root, retrain: The parameters every chapter has.
        others: Further numbers of a chapter, each as `name=(value, smallest, largest)`.

    Raises:
        ValueError: Naming the parameter, its value and what it may be.
    """
    if profile not in PROFILES:
        raise ValueError(f"`profile` must be one of {', '.join(PROFILES)}, got {profile!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"`seed` must be a whole number from 0 to 2147483647, got {seed!r}")
    if not isinstance(retrain, bool):
        raise ValueError(f"`retrain` must be True or False, got {retrain!r}")
    resolve_device(device)
    if not isinstance(data_root, str) or (data_root and not Path(data_root, "card.json").is_file()):
        raise ValueError(
            f"`data_root` must be a folder made by `python -m data_prep`, or empty for the phantom, got {data_root!r}"
        )
    if not isinstance(runs_root, str) or not runs_root or Path(runs_root).is_file():
        raise ValueError(f"`runs_root` must be a folder for run records, got {runs_root!r}")
    for name, (value, low, high) in others.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high or (isinstance(low, int) and not isinstance(value, int)):
            kind = "a whole number" if isinstance(low, int) else "a number"
            raise ValueError(f"`{name}` must be {kind} from {low} to {high}, got {value!r}")


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: If `name` is unknown, or this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in available.items() if here))
    if not isinstance(name, str) or not available.get(name.split(":")[0], False):
        here = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
        raise ValueError(f"`device` must be one of {here} on this machine, got {name!r}")
    return torch.device(name)


def canonical(config: dict) -> str:
    """JSON of a configuration that does not depend on the order of its keys."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def run_name(label: str, config: dict) -> str:
    """Folder name of a run: a word for the reader, then the first digits of the configuration's hash."""
    return f"{label}-{hashlib.sha256(canonical(config).encode()).hexdigest()[:8]}"


def code_hash(*modules: str) -> str:
    """Hash of the package's modules with comments, docstrings and layout left out."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(getattr(body[0].value, "value", None), str):
                    node.body = body[1:] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def trains_the_same(was: str, now: str) -> bool:
    """Whether code of the hash `now` trains what code of the hash `was` trained, bit for bit."""
    while was != now and was in SAME_TRAINING:
        was = SAME_TRAINING[was]
    return was == now


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader, or a crash, finds the old one or the new one and never a part.

    Raises:
        OSError: One sentence: why it cannot be written. The old one is still there.
    """
    data = data.encode() if isinstance(data, str) else data
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def not_written(path: Path, error: OSError) -> OSError:
    """The error again, of the same class, as a sentence."""
    why = error.strerror or str(error)
    return OSError(error.errno, f"{path} cannot be written ({why}): free some space or choose another folder; nothing was changed")


def environment() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def write_record(
    folder: Path, *, config: dict, manifest: dict, epochs: pd.DataFrame, metrics: dict, model: nn.Module
) -> RunRecord:
    """Writes a record, `metrics.json` last: a folder without it is not a record. Weights are stored as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    weights = save(state)
    manifest = manifest | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / "config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    write_atomically(folder / "epochs.csv", epochs.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    # JSON has neither nan nor infinity: what could not be measured (the detail of a blank image) is null.
    known = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in metrics.items()}
    write_atomically(folder / "metrics.json", json.dumps(known, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return load_record(folder)


def load_record(folder: str | Path) -> RunRecord:
    """Reads a record.

    Raises:
        FileNotFoundError: If a file of it is missing.
    """
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is no finished run record: {', '.join(missing)} missing; train it again")
    config, manifest, metrics = (json.loads((folder / f"{n}.json").read_text()) for n in ("config", "manifest", "metrics"))
    metrics = {name: nan if value is None else value for name, value in metrics.items()}
    return RunRecord(folder, config, manifest, pd.read_csv(folder / "epochs.csv"), metrics)


def find_record(runs_root: str | Path, label: str, config: dict) -> RunRecord | None:
    """The finished record of exactly this configuration under `runs_root`, or None."""
    folder = Path(runs_root) / run_name(label, config)
    if not (folder / "metrics.json").is_file():
        return None
    record = load_record(folder)
    # Through JSON, because tuples come back as lists.
    return record if canonical(record.config) == canonical(json.loads(canonical(config))) else None


if __name__ == "__main__":
    import runpy

    # By name: what reads records imports this module, and imports run one way.
    runpy.run_module("medvae_lite.records", run_name="__main__", alter_sys=True)
