"""Put the prepared subjects of a cohort together: arrays, table, splits, card, and what to tell the user."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.cardiac_layouts import Layout
from data_prep.cardiac_split import SPLITS, same_scan, split_subjects
from data_prep.large import let_go
from data_prep.prepared import ATTRIBUTE_COLUMNS, LABELS, PreparedWriter, already_prepared, attribute_row, identity

log = logging.getLogger(__name__)

PREPARED, FILTER, FAILURE = "prepared", "filter", "failure"
CUT_WARNING = 0.02  # share of the labelled area that may fall outside the crop without a word


class Outcome(NamedTuple):
    """`kind` is PREPARED, FILTER (fails the quality filter: expected) or FAILURE (somebody should look)."""

    subject: str
    kind: str
    reason: str = ""
    cached: Path | None = None


def report(outcomes: Sequence[Outcome]) -> None:
    """Log how many subjects came through, and a table of those that did not."""
    counts = [sum(outcome.kind == kind for outcome in outcomes) for kind in (PREPARED, FILTER, FAILURE)]
    log.info("%d prepared, %d left out by the quality filter, %d failed", *counts)
    lost = [outcome for outcome in outcomes if outcome.kind != PREPARED]
    if lost:
        width = max(7, *(len(outcome.subject) for outcome in lost))
        rows = [f"{outcome.subject:{width}}  {outcome.kind:7}  {outcome.reason}" for outcome in lost]
        log.warning("left out:\n%s", "\n".join([f"{'subject':{width}}  kind     reason", *rows]))


def write(layout: Layout, out: Path, recipe: dict, outcomes: Sequence[Outcome]) -> Path:
    """Assemble the cached subjects into the prepared folder.

    Args:
        layout: says source, licence and citation.
        out: the folder to make.
        recipe: every option that shapes the data, `split` and `seed` among them.
        outcomes: of every subject found; those with kind PREPARED name their cached arrays.

    Raises:
        FileExistsError: `out` holds something else.
    """
    done = [outcome for outcome in outcomes if outcome.kind == PREPARED]
    names, loaded = [outcome.subject for outcome in done], [_load(outcome.cached, pictures=False) for outcome in done]
    cut = _warn_of_cuts(names, loaded)
    scans = same_scan([one["fingerprint"] for one in loaded], [tuple(one["shape"]) for one in loaded])
    copies = _duplicates(names, scans)
    groups = [str(one["covariates"].get("group")) for one in loaded]
    side = split_subjects(names, scans, groups, fractions=recipe["split"], seed=recipe["seed"])
    if empty := [name for name in SPLITS if name not in side]:
        log.warning("%d subjects are too few for this split: none for %s", len(done), ", ".join(empty))
    lost = [outcome for outcome in outcomes if outcome.kind != PREPARED]
    excluded = [{"subject": one.subject, "kind": one.kind, "reason": one.reason} for one in lost]
    raw = {name: [one["raw"], one["covariates"]] for name, one in zip(names, loaded, strict=True)}
    card = {
        "name": layout.name,
        "source": layout.source,
        "licence": layout.licence,
        "citation": layout.citation,
        "prepared_by": f"data_prep {layout.name}",
        "recipe": recipe,
        "identity": identity({"recipe": recipe, "raw": raw, "excluded": excluded}),
        "pixel_mm": round(float(np.median([one["pixel_mm"] for one in loaded])), 6),
        "excluded": excluded,
        "duplicates": copies,
        "cut_by_crop": cut,
    }
    if already_prepared(out, card["identity"]):
        log.info("reusing %s", out)
        return Path(out)
    with PreparedWriter(out, subjects=len(done), size=recipe["size"], identity=card["identity"]) as writer:
        for row, outcome in enumerate(done):  # one after the other: no memory holds a large cohort
            one = _load(outcome.cached)
            _check(outcome.subject, one["image"], one["label"])
            writer.images[row], writer.labels[row] = one["image"], one["label"]
            if row % 256 == 255:
                let_go(writer.images, writer.labels)
        return writer.finish(subjects=subject_table(names, side, loaded), card=card)


def _check(subject: str, image: np.ndarray, label: np.ndarray) -> None:
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1 and label.max() <= max(LABELS)):
        raise ValueError(f"the images of {subject!r} must lie within [0, 1] and its labels be 0 to {max(LABELS)}; remove OUT.partial")


def _load(path: Path, *, pictures: bool = True) -> dict:
    with np.load(path) as arrays:
        one = {name: arrays[name] for name in arrays.files if pictures or name not in ("image", "label")}
    return one | json.loads(str(one.pop("meta")))


def _warn_of_cuts(names: Sequence[str], loaded: Sequence[dict]) -> dict:
    """For the card: how many hearts the crop cuts into, and the largest labelled share lost."""
    share = np.array([float(one["cut"]) for one in loaded])
    over = np.flatnonzero(share > CUT_WARNING)
    if len(over):
        log.warning(
            "the crop cuts more than %.0f %% of the labelled slice off for %d subjects (worst: %s, %.1f %%); "
            "for a wider field raise --size or --spacing-mm",
            *(100 * CUT_WARNING, len(over), names[share.argmax()], 100 * share.max()),
        )
    return {"over_share": CUT_WARNING, "subjects": len(over), "largest_share": round(float(share.max()), 4)}


def _duplicates(names: Sequence[str], scans: np.ndarray) -> list[list[str]]:
    copies = [
        [name for name, scan in zip(names, scans, strict=True) if scan == value]
        for value in np.flatnonzero(np.bincount(scans) > 1)
    ]
    for same in copies:
        log.warning("%s hold the same scan: kept on one side of the split", " and ".join(same))
    return copies


def subject_table(names: Sequence[str], side: Sequence[str], loaded: Sequence[dict]) -> pd.DataFrame:
    """`subjects.csv`: id, split, volumes, what the collection says of the person, where the slices lie."""
    volumes = np.round(attribute_row(np.stack([one["volume_ml"] for one in loaded])), 3)
    columns = {"subject": names, "split": side} | dict(zip(ATTRIBUTE_COLUMNS, volumes.T, strict=True))
    spacing = np.round([one["spacing_mm"] for one in loaded], 5)
    scan = {
        "scan_pixel_mm": spacing[:, 2],
        "scan_slice_mm": spacing[:, 0],
        "scan_slices": [one["shape"][1] for one in loaded],
        "ED_slice": [int(one["slices"][0]) for one in loaded],
        "ES_slice": [int(one["slices"][1]) for one in loaded],
    }
    known = pd.DataFrame([one["covariates"] for one in loaded], index=range(len(names)))
    return pd.concat([pd.DataFrame(columns), known, pd.DataFrame(scan)], axis=1)
