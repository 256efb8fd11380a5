"""The prepared folder of a region table: one row a person, one column a region, the same for a phantom and a cohort.

A folder holds ``regions.npy`` (float32, N x F, in the unit of each modality; NaN where a modality was not measured),
``subjects.csv`` (who, which split, covariates, test scores), ``card.json`` (modalities with their regions and units,
source, licence, recipe, sha256 of every file), and for a phantom ``effect.npy`` (float32, N x F: how much the disease
changed each region) and ``factors.csv``. The same recipe gives the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray

from data_prep.prepared import FORMAT, already_prepared, enforce, identity, sha256_file
from data_prep.region_names import AGGREGATES

log = logging.getLogger(__name__)

__all__ = ["HEALTHY", "SPLITS", "UNITS", "check_subjects", "write_regions"]

SPLITS = ("train", "val", "holdout", "test", "patients")
HEALTHY = "CN"
"""The group of healthy people; the splits before "patients" hold nobody else."""
UNITS = ("mm3", "mm2", "mm")
LEADING = ("subject", "split", "cohort", "group", "age_years", "sex", "icv_mm3", "site")

_SUBJECTS = pa.DataFrameSchema(
    {
        "subject": pa.Column(str, pa.Check.str_length(min_value=1), unique=True),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "cohort": pa.Column(str, pa.Check.str_length(min_value=1)),
        "group": pa.Column(str, pa.Check.str_length(min_value=1)),
        "age_years": pa.Column(float, pa.Check.in_range(0, 120), coerce=True),
        "sex": pa.Column(str, pa.Check.isin(("F", "M"))),
        "icv_mm3": pa.Column(float, pa.Check.in_range(8e5, 2.5e6), coerce=True),
        "site": pa.Column(str, pa.Check.str_length(min_value=1)),
    }
)


def check_subjects(subjects: pd.DataFrame) -> None:
    """Checks a table of people against the contract of ``subjects.csv``.

    Raises:
        ValueError: one sentence naming the first column that breaks the contract, with the offending values.
    """
    if tuple(subjects.columns[: len(LEADING)]) != LEADING:
        got = ", ".join(map(str, subjects.columns))
        raise ValueError(f"`subjects` must begin with the columns {', '.join(LEADING)}, got {got}.")
    twice = subjects.loc[subjects["subject"].duplicated(), "subject"]
    if len(twice):
        raise ValueError(f"`subjects` must have one row a person, got {twice.iloc[0]!r} twice; keep one scan of each.")
    enforce(_SUBJECTS, subjects)
    ill = subjects.loc[(subjects["split"] != "patients") & (subjects["group"] != HEALTHY), "subject"]
    if len(ill):
        raise ValueError(f"`subjects` in the split {subjects.loc[ill.index[0], 'split']!r} must be {HEALTHY}, got {ill.iloc[0]!r}.")


def _check_values(values: NDArray, subjects: pd.DataFrame, modalities: Mapping[str, Mapping]) -> None:
    regions = [name for m in modalities.values() for name in m["regions"]]
    if len(set(regions)) != len(regions):
        twice = next(name for name in regions if regions.count(name) > 1)
        raise ValueError(f"`modalities` must name every region once, got {twice!r} twice.")
    if values.shape != (len(subjects), len(regions)):
        raise ValueError(f"`values` must be ({len(subjects)}, {len(regions)}), a row a person and a column a region, got {values.shape}.")
    start = 0
    for name, modality in modalities.items():
        if modality["unit"] not in UNITS:
            raise ValueError(f"`modalities` unit of {name} must be one of {', '.join(UNITS)}, got {modality['unit']!r}.")
        part = values[:, start : start + len(modality["regions"])]
        start += part.shape[1]
        absent = np.isnan(part)
        torn = absent.any(1) & ~absent.all(1)
        if torn.any():
            row, column = np.argwhere(absent & torn[:, None])[0]
            raise ValueError(
                f"{modality['regions'][column]!r} is missing for {subjects['subject'].iloc[row]!r} while other {name} regions are "
                "there; fill it in, or leave the person's whole modality empty."
            )
        if absent.all():
            raise ValueError(f"the modality {name!r} is missing for everyone; leave it out.")
        if (part[~absent.all(1)] < 0).any() or np.isinf(part).any():
            raise ValueError(f"regions of {name} must be finite and not negative.")


def write_regions(
    out: str | os.PathLike,
    *,
    values: NDArray,
    subjects: pd.DataFrame,
    modalities: Mapping[str, Mapping[str, Any]],
    card: Mapping[str, Any],
    stages: Sequence[str] = (),
    scores: Sequence[str] = (),
    effect: NDArray | None = None,
    factors: pd.DataFrame | None = None,
) -> Path:
    """Writes a prepared folder of region tables; it appears whole or not at all.

    Args:
        out: the folder to make.
        values: (N, F), in the units of the modalities; all NaN where a person lacks a modality.
        subjects: N rows beginning with `LEADING`, then any test scores.
        modalities: name -> {"unit": "mm3", "regions": [...]}, in the order of the columns of `values`.
        card: name, source, licence, citation, prepared_by and recipe; `identity` too when it covers more than the
            recipe (the sha256 of raw inputs).
        stages: groups of patients from mild to severe, where there is such an order.
        scores: columns of `subjects` that hold test scores.
        effect: (N, F), of a phantom: what the disease changed, in the units of `values`.
        factors: the true generative factors of a phantom.

    Returns:
        `out`. A folder that already holds the same dataset is left as it is.

    Raises:
        FileExistsError: if something else is in the way.
        ValueError: if a table breaks the contract.
    """
    out, values = Path(out), np.asarray(values, np.float32)
    check_subjects(subjects)
    _check_values(values, subjects, modalities)
    known = card.get("identity") or identity(card["recipe"])
    if already_prepared(out, known):
        log.info("reusing %s: it already holds this dataset", out)
        return out
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        np.save(partial / "regions.npy", values)
        subjects.to_csv(partial / "subjects.csv", index=False, lineterminator="\n")
        if effect is not None:
            np.save(partial / "effect.npy", np.asarray(effect, np.float32))
        if factors is not None:
            factors.to_csv(partial / "factors.csv", index=False, lineterminator="\n", float_format="%.6g")
        regions = [name for m in modalities.values() for name in m["regions"]]
        full = {
            "kind": "regions", "format": FORMAT, "identity": known,
            "modalities": {name: {"unit": m["unit"], "regions": list(m["regions"])} for name, m in modalities.items()},
            "aggregates": [name for name in regions if name in AGGREGATES],
            "healthy": HEALTHY, "stages": list(stages), "scores": list(scores),
            "subjects": len(subjects), "splits": {name: int((subjects["split"] == name).sum()) for name in SPLITS},
            "excluded": [], **card, "files": {path.name: sha256_file(path) for path in sorted(partial.iterdir())},
        }  # fmt: skip
        (partial / "card.json").write_text(json.dumps(full, indent=2, sort_keys=False) + "\n", encoding="utf-8")
        try:
            partial.rename(out)
        except OSError:
            # Another process may have finished the same dataset first; its bytes are ours.
            if not already_prepared(out, known):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("wrote %d people to %s", len(subjects), out)
    return out
