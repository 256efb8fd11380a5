"""Commands that make a prepared folder of regions from FreeSurfer's tables: ABIDE, ADNI, UK Biobank or one's own."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import regions_cohorts
from data_prep.prepared import identity, sha256_file
from data_prep.region_names import AGGREGATES
from data_prep.regions_cohorts import Cohort
from data_prep.regions_prepared import HEALTHY, LEADING, write_regions
from data_prep.regions_quality import check_people, check_regions, require

log = logging.getLogger(__name__)

__all__ = ["FRACTIONS", "add_commands", "prepare", "split_controls"]

FRACTIONS = {"train": 0.5, "val": 0.1, "holdout": 0.2, "test": 0.2}
"""Shares of the healthy people; everyone else is in the split "patients"."""
UNITS = {"thickness": "mm"}
READER = 2  # to be raised whenever the same tables would give other bytes


def prepare(cohort: Cohort, out: Path, *, seed: int = 0, aggregates: bool = False) -> Path:
    """Checks a cohort, splits its healthy people and writes the prepared folder.

    Args:
        cohort: as one of the readers gives it.
        out: the folder to make.
        seed: of the split.
        aggregates: whether to take sums of other regions as inputs too, where the tables hold them.

    Raises:
        ValueError: one sentence; see `check_people`, `check_regions`, `check_subjects`.
        FileExistsError: something else is at `out`.
    """
    seen = cohort.regions.index.isin(cohort.people.index)
    excluded = list(cohort.excluded) + [
        {"subject": str(who), "reason": "has no covariates"} for who in cohort.regions.index[~seen]
    ]
    if not seen.any():
        raise ValueError(
            f"the covariates must name the subjects of the tables, such as {_first(cohort.regions)}, "
            f"got {_first(cohort.people)}; make the names alike."
        )
    if without := (~cohort.people.index.isin(cohort.regions.index)).sum():
        log.info("%d people have covariates and no regions", without)
    regions = cohort.regions[seen].sort_index()
    people = cohort.people.loc[regions.index].assign(
        icv_mm3=require(regions, ["icv"], where=f"the tables of {cohort.name}")["icv"]
    )
    excluded += check_people(people)
    modalities = dict(cohort.modalities)
    if aggregates and "subcortical" in modalities:
        modalities["subcortical"] += tuple(name for name in AGGREGATES if name in regions)
    kept = ~regions.index.isin([one["subject"] for one in excluded])
    excluded += check_regions(regions[kept], modalities, aggregates=aggregates)
    kept = ~regions.index.isin([one["subject"] for one in excluded])
    regions, people = regions[kept], people[kept]
    well = people["group"] == HEALTHY
    split = pd.Series("patients", index=people.index)
    split[well] = split_controls(people.index[well], people.loc[well, "site"], seed=seed)
    counts = people.loc[well, "site"].value_counts().sort_index()
    notes = [
        f"healthy people of site {site}: {count}, too few to be in every split"
        for site, count in counts.items()
        if count < 3
    ]
    subjects = people.reset_index().assign(split=split.to_numpy(), cohort=cohort.name)
    recipe = {
        "reader": READER,
        "cohort": cohort.name,
        "seed": seed,
        "fractions": FRACTIONS,
        "modalities": {name: list(names) for name, names in modalities.items()},
    }
    raw = {name: sha256_file(path) for name, path in cohort.files.items()}
    for one in excluded:
        log.warning("left out %s: %s", one["subject"], one["reason"])
    return write_regions(
        out,
        values=regions[[name for names in modalities.values() for name in names]].to_numpy(),
        subjects=subjects[[*LEADING, *cohort.scores]],
        modalities={
            name: {"unit": UNITS.get(name, "mm3"), "regions": list(names)} for name, names in modalities.items()
        },
        card={
            "name": cohort.name, "source": cohort.source, "licence": cohort.licence, "citation": cohort.citation,
            "prepared_by": f"data_prep {cohort.name}", "recipe": recipe, "raw": raw,
            "identity": identity({"recipe": recipe, "raw": raw}), "excluded": excluded, "notes": notes,
        },
        stages=[stage for stage in cohort.stages if (people["group"] == stage).any()],
        scores=cohort.scores,
    )  # fmt: skip


def split_controls(subjects: Sequence[str], sites: Sequence[str], *, seed: int) -> list[str]:
    """Assigns each healthy person to a split, every site in proportion.

    Within a site people stand in the order of a hash of seed and subject; their ranks, as fractions, order all people,
    and that list is cut at `FRACTIONS`.

    Args:
        subjects: (N,) identifiers, each once.
        sites: (N,) strata.
        seed: another seed gives another split.

    Raises:
        ValueError: fewer than 5 people, too few for four splits.
    """
    if len(subjects) < 5:
        raise ValueError(
            f"the cohort must have 5 or more usable people of the group {HEALTHY}, got {len(subjects)}; check `group`."
        )
    table = pd.DataFrame({"site": list(sites)}, index=list(subjects))
    table["drawn"] = [hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest() for subject in subjects]
    order = table.sort_values("drawn").groupby("site", sort=False)
    table["rank"] = (order.cumcount() + 0.5) / table.groupby("site")["site"].transform("size")
    cuts = np.round(np.cumsum(list(FRACTIONS.values())) * len(table)).astype(int)
    place = table.assign(subject=table.index).sort_values(["rank", "drawn"]).index
    side = {subject: list(FRACTIONS)[int(np.searchsorted(cuts, i, side="right"))] for i, subject in enumerate(place)}
    return [side[subject] for subject in subjects]


def _first(table: pd.DataFrame) -> str:
    return ", ".join(map(repr, table.index[:2]))


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-commands `abide`, `adni`, `ukb-regions` and `freesurfer`."""
    for name, text, raw, read in (
        ("abide", "regions of ABIDE I by FreeSurfer 6", "folder with stats/ and abide_phenotype.csv", _abide),
        ("adni", "regions of ADNI by FreeSurfer", "folder with UCSFFSX*.csv, ADNIMERGE.csv and DATADIC.csv", _adni),
        ("ukb-regions", "regions of UK Biobank by FreeSurfer", "CSV with eid, age_years, sex and regions", _ukb),
        ("freesurfer", "regions of any cohort by FreeSurfer", "folder of tables, or a SUBJECTS_DIR", _freesurfer),
    ):
        parser = subparsers.add_parser(name, help=text, description=f"Prepare {text}. Only healthy people are split.")
        parser.add_argument("raw", metavar="RAW", type=Path, help=f"{raw}; only read")
        parser.add_argument("out", metavar="OUT", type=Path, help="prepared folder to make")
        parser.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
        parser.add_argument("--aggregates", action="store_true", help="also take sums of regions as inputs")
        if name == "ukb-regions":
            parser.add_argument("--fields", metavar="CSV", type=Path, help="columns field,name: what each column is")
        if name == "freesurfer":
            add = parser.add_argument
            add("--covariates", metavar="CSV", type=Path, required=True, help="subject, age_years, sex, group, site")
            add("--sex", metavar="1=M,2=F", type=coding, help="what numbers for sex mean")
            add("--whole", action="store_true", help="all 68 + 33 regions, not the poster's 64 + 31")
        parser.set_defaults(func=_command, read=read)


def coding(text: str) -> dict[str, str]:
    """{"1": "M", "2": "F"} from `1=M,2=F`."""
    pairs = dict(part.partition("=")[::2] for part in text.upper().replace(" ", "").split(","))
    if sorted(pairs.values()) != ["F", "M"]:
        raise argparse.ArgumentTypeError(f"must look like 1=M,2=F, got {text!r}")
    return pairs


def _abide(args: argparse.Namespace) -> Cohort:
    return regions_cohorts.abide(args.raw)


def _adni(args: argparse.Namespace) -> Cohort:
    return regions_cohorts.adni(args.raw)


def _ukb(args: argparse.Namespace) -> Cohort:
    return regions_cohorts.ukb(args.raw, fields=args.fields)


def _freesurfer(args: argparse.Namespace) -> Cohort:
    return regions_cohorts.freesurfer(args.raw, args.covariates, coding=args.sex, whole=args.whole)


def _command(args: argparse.Namespace) -> int:
    prepare(args.read(args), args.out, seed=args.seed, aggregates=args.aggregates)
    return 0
