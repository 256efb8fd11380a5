"""What the readers make of damaged files: ``python tests/benchmarks/bench_inputs.py [--count N] [--seed S] [--out FILE]``.

For every reader a small whole cohort is written, and read; then each of a few hundred copies of it gets one injury
(`tests/_mutants.py`) and is read again. Nothing but five outcomes is right: the reader refuses in a sentence, leaves the person
out with a reason in the card, gives the same result, or gives another where the injury makes another valid file. The failures
are counted: an error that nobody wrote a sentence for, another result in silence, and no end.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import _mutants as mutants  # noqa: E402
import test_brain_real as brains_raw  # noqa: E402
import test_cardiac_real as hearts_raw  # noqa: E402
import test_regions_real as tables_raw  # noqa: E402

from data_prep import brain, brain_layouts, cardiac_run, regions, regions_cohorts  # noqa: E402
from data_prep.cardiac_layouts import LAYOUTS  # noqa: E402
from data_prep.cardiac_pair import Options  # noqa: E402
from medvae_lite import brains as brains_lite  # noqa: E402
from medvae_lite import datasets as datasets_lite  # noqa: E402
from medvae_lite import regions as regions_lite  # noqa: E402
from tests.benchmarks import measure  # noqa: E402

OUTCOMES = ("refused", "left out", "same", "changed legally", "traceback", "wrong", "hangs")
FAILURES = OUTCOMES[4:]
UNFORESEEN = "nobody foresaw"


class Hangs(BaseException):
    """The reader took longer than it may."""


class Result(NamedTuple):
    """What a reader made of a cohort: `people` name -> all that is known of each, `rest` what else must not change."""

    people: dict[str, Any]
    rest: dict[str, Any]
    excluded: dict[str, str] = {}


class Victim(NamedTuple):
    """A file that may be injured: what kinds there are for it, and its role (image, mask, or none)."""

    path: str
    kinds: tuple[mutants.Kind, ...]
    role: str = ""


class Reader(NamedTuple):
    """A reader with a cohort: `build(raw)` writes it, `read(raw, scratch)` gives a `Result`.

    `legal` names pairs (kind, pattern of a file) that make another valid input for this reader, with the reason.
    `optional` are columns that a table need not have, and whose cells may be empty; any text may stand in the columns `names`.
    """

    name: str
    build: Callable[[Path], object]
    read: Callable[[Path, Path], Result]
    victims: Callable[[Path], list[Victim]]
    legal: dict[tuple[str, str], str] = {}
    optional: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


# --- results --------------------------------------------------------------------------------------


def frame(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def prepared(out: Path) -> Result:
    """The contents of a prepared folder, person by person; the split is apart, since one person fewer changes it."""
    card = json.loads((out / "card.json").read_text())
    subjects = frame(out / "subjects.csv")
    whole = {path.name: np.load(path) for path in sorted(out.glob("*.npy"))}
    owner = frame(out / "slices.csv") if (out / "slices.csv").is_file() else subjects
    people = {}
    for who, row in subjects.set_index("subject").iterrows():
        mine = np.flatnonzero(owner["subject"] == who)
        arrays = {name: values[mine].tobytes() for name, values in whole.items()}
        rows = owner.iloc[mine].drop(columns="split").to_csv(index=False)
        people[who] = (row.drop("split").to_dict(), rows, arrays)
    split = subjects.set_index("subject")["split"].to_dict()
    kept = {name: card.get(name) for name in ("modalities", "without_mask", "duplicates", "pixel_mm", "stages", "scores")}
    return Result(people, kept | {"split": split}, {one["subject"]: one["reason"] for one in card["excluded"]})


def loaded(open_folder: Callable, folder: Path) -> Result:
    """Everything that a loaded folder holds."""
    data = open_folder(folder)
    parts = {}
    for name, value in vars(data).items():
        if name not in ("root", "card") and value is not None:
            value = value.numpy() if hasattr(value, "numpy") else value
            parts[name] = value.to_csv() if isinstance(value, pd.DataFrame) else (
                (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
            )  # fmt: skip
    return Result({}, parts)


# --- cohorts --------------------------------------------------------------------------------------

HEART = {"spacing": (10.0, 2.8, 2.8), "shape": (7, 52, 58)}
HEARTS = Options((1, 2, 3), size=48, spacing_mm=2.5, min_slices=5)
BRAINS = brain_layouts.Options(slices=4, size=32, pixel_mm=2.75)


def hearts_acdc(raw: Path) -> None:
    for i in range(1, 5):
        stack = hearts_raw.heart(seed=i, angle=40.0 * i, **HEART | {"spacing": (8.0 + i, 2.8, 2.8)})  # not all of one volume
        hearts_raw.write_acdc(raw, f"patient{i:03d}", stack, group=("NOR", "DCM")[i % 2])
    for path in (raw / "patient004").glob("*.nii.gz"):
        (path.with_suffix("")).write_bytes(mutants.unpacked(path))
        path.unlink()


def hearts_mnms(raw: Path) -> None:
    rows = ["External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    for i, code in enumerate(("A0S9V9", "B1X2Y3", "C4D5E6", "E0H1J2")):
        stack = hearts_raw.heart(seed=i, **HEART)
        image, label = hearts_raw.movie(stack, ed=2, es=1, frames=3)
        hearts_raw.save(raw / "Testing" / code / f"{code}_sa.nii.gz", image.astype(np.int16), stack.spacing_mm)
        hearts_raw.save(raw / "Testing" / code / f"{code}_sa_gt.nii.gz", label, stack.spacing_mm)
        rows.append(f"{code},Siemens,A,{i + 1},2,1,{54 + i},DCM,F,{160 + i},{70.5 + i}")
    (raw / "information.csv").write_text("\n".join(rows) + "\n")


def hearts_ukbb(raw: Path) -> None:
    for i in (1, 2, 3):
        stack = hearts_raw.heart(seed=i, **HEART)
        for name, image, label in zip(("ED", "ES"), stack.image, stack.label, strict=True):
            ending = "nii" if i == 2 else "nii.gz"
            hearts_raw.save(raw / f"10000{i}" / f"sa_{name}.{ending}", image.astype(np.int16), stack.spacing_mm)
            hearts_raw.save(raw / f"10000{i}" / f"label_sa_{name}.{ending}", label, stack.spacing_mm)
    stack = hearts_raw.heart(seed=4, **HEART)
    image, label = hearts_raw.movie(stack, ed=0, es=2, frames=3)
    hearts_raw.save(raw / "100004" / "sa.nii.gz", image.astype(np.int16), stack.spacing_mm)
    hearts_raw.save(raw / "100004" / "label_sa.nii.gz", label, stack.spacing_mm)


def read_hearts(name: str, raw: Path, scratch: Path) -> Result:
    layout = LAYOUTS[name]
    cardiac_run.run(layout, raw, scratch / "out", dataclasses.replace(HEARTS, label_map=layout.label_map))
    return prepared(scratch / "out")


def brains_folder(raw: Path) -> None:
    rows = ["subject,age_years,sex"]
    for i in range(5):
        one = brains_raw.person(raw, f"sub-{i}", i, ending=".nii" if i % 2 else ".nii.gz")
        if i < 2:
            _, inside, _ = brains_raw.head(i)
            brains_raw.save(one.image.with_name(f"brain{'.nii' if i % 2 else '.nii.gz'}"), inside)
        rows.append(f"sub-{i},{40 + 3 * i}.5,{'FM'[i % 2]}")
    (raw.parent / f"{raw.name}.table.csv").write_text("\n".join(rows) + "\n")
    splits = "".join(f"sub-{i},{name}\n" for i, name in enumerate(("train", "val", "test", "train", "train")))
    (raw.parent / f"{raw.name}.splits.csv").write_text("subject,split\n" + splits)


def beside(raw: Path, name: str) -> Path:
    return raw.parent / f"{raw.name}.{name}.csv"


def read_brains_folder(raw: Path, scratch: Path) -> Result:
    cohort = brain_layouts.folder(raw, table=beside(raw, "table"))
    return prepared(brain.prepare(cohort, scratch / "out", BRAINS, splits=beside(raw, "splits")))


def brains_open_ms(raw: Path) -> None:
    grey, _, lesion = brains_raw.head()
    affine = brains_raw.affine_of(grey, middle=(0, 0, 18.5))
    for i in range(1, 6):
        for name, volume in (("FLAIR_N4_regtoMNI", brains_raw.head(i)[0]), ("GOLD_STANDARD_N4", lesion)):
            image = nib.Nifti1Image(volume.astype(np.float32 if volume.dtype != bool else np.uint8), affine)
            image.set_qform(affine, 1)
            image.set_sform(None, 0)
            path = raw / f"patient{i:02d}" / f"{name}.nii{'' if i % 2 else '.gz'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image, path)


def read_open_ms(raw: Path, scratch: Path) -> Result:
    return prepared(brain.prepare(brain_layouts.open_ms(raw), scratch / "out", BRAINS, few=True))


def read_adni_mri(raw: Path, scratch: Path) -> Result:
    return prepared(brain.prepare(brain_layouts.adni_mri(raw, raw / "images.csv"), scratch / "out", BRAINS, few=True))


def tables_freesurfer(raw: Path) -> None:
    tables, people = tables_raw.cohort(16)
    raw.mkdir(parents=True, exist_ok=True)
    for name, table in tables_raw.sheets(tables).items():
        table.to_csv(raw / name, sep="\t")
    people.to_csv(beside(raw, "people"))


def read_freesurfer(raw: Path, scratch: Path) -> Result:
    return prepared(regions.prepare(regions_cohorts.freesurfer(raw, beside(raw, "people")), scratch / "out"))


def tables_subjects(raw: Path) -> None:
    tables, people = tables_raw.cohort(6)
    for i, (who, row) in enumerate(tables.iterrows()):
        tables_raw.write_subject(raw / who, row)
    people.assign(group="CN").to_csv(beside(raw, "people"))


def tables_abide(raw: Path) -> None:
    tables, people = tables_raw.cohort(16)
    numbers = np.arange(51456, 51472)
    tables = tables.set_axis(pd.Index([f"Max_Mun_00{one}" for one in numbers], name="subject"))
    (raw / "stats").mkdir(parents=True)
    for name, table in tables_raw.sheets(tables).items():
        side, _, measured = name.removesuffix(".tsv").partition(".")
        table.to_csv(raw / "stats" / (f"{side}.aparc_table_{measured}.tsv" if measured else "aseg_table.tsv"), sep="\t")
    known = {"SUB_ID": numbers, "SITE_ID": ["UM_1", "UM_2"] * 8, "DX_GROUP": [2] * 12 + [1] * 4, "FIQ": -9999}
    sheet = pd.DataFrame(known).assign(AGE_AT_SCAN=people["age_years"].to_numpy(), SEX=[1, 2] * 8)
    sheet.to_csv(raw / "abide_phenotype.csv", index=False)


def tables_ukb(raw: Path) -> None:
    tables, people = tables_raw.cohort(16)
    raw.mkdir(parents=True)
    names = [name for part in tables_raw.POSTER.values() for name in part] + ["icv"]
    codes = {f"{26500 + i}-2.0": name for i, name in enumerate(names)}
    table = tables[names].set_axis(list(codes), axis=1)
    table.insert(0, "f.eid", range(1000, 1016))
    table["21003-2.0"], table["31-0.0"] = people["age_years"], people["sex"].map({"F": 0, "M": 1})
    table["icd10"] = ["", "I251|F320", "I10", "J45"] * 4
    fields = codes | {"f.eid": "eid", "21003-2.0": "age_years", "31-0.0": "sex"}
    pd.DataFrame({"field": list(fields), "name": list(fields.values())}).to_csv(raw / "fields.csv", index=False)
    table.to_csv(raw / "export.csv", index=False)


def read_regions(make: Callable, raw: Path, scratch: Path) -> Result:
    return prepared(regions.prepare(make(raw), scratch / "out"))


def folder_of(build: Callable, read: Callable, raw: Path) -> None:
    """A prepared folder at `raw`, of a cohort that is then forgotten."""
    with tempfile.TemporaryDirectory() as place:
        build(Path(place) / "raw")
        read(Path(place) / "raw", Path(place))
        shutil.copytree(Path(place) / "out", raw)


def read_folder(open_folder: Callable, raw: Path, scratch: Path) -> Result:
    return loaded(open_folder, raw)


# --- what may be injured --------------------------------------------------------------------------


def scans(raw: Path, mask: str) -> list[Victim]:
    found = sorted(path for path in raw.rglob("*.nii*"))
    roles = ("mask" if re.search(mask, path.name) else "image" for path in found)
    return [Victim(str(path.relative_to(raw.parent)), mutants.NIFTI, role) for path, role in zip(found, roles, strict=True)]


def files(raw: Path, pattern: str, kinds: tuple[mutants.Kind, ...]) -> list[Victim]:
    return [Victim(str(path.relative_to(raw.parent)), kinds) for path in sorted(raw.parent.glob(pattern))]


def folder_files(raw: Path) -> list[Victim]:
    kinds = {".npy": mutants.ARRAY, ".csv": mutants.TABLE, ".json": mutants.CARD}
    return [Victim(str(path.relative_to(raw.parent)), kinds[path.suffix]) for path in sorted(raw.iterdir())]


NO_LESIONS = "a lesion mask of zeros says that there are no lesions"
NO_MASK = "without a mask a person counts as without lesions or brain-extracted, and the card lists those without lesion mask"
OPTIONAL = "the column need not be there, or may be empty"
ALONE = "the only table that knows the person: another name is another person"
NAME = "a centre may be called anything"
LONGITUDINAL = "who is called otherwise at the first visit is read at the second"
READERS = (
    Reader("acdc", hearts_acdc, functools.partial(read_hearts, "acdc"),
           lambda raw: scans(raw, "_gt") + files(raw, "raw/*/Info.cfg", mutants.TEXT),
           {("line missing", "Info.cfg"): OPTIONAL, ("file cut short", "Info.cfg"): OPTIONAL,
            ("NaN for a number", "Info.cfg"): mutants.BLANK}),
    Reader("mnms", hearts_mnms, functools.partial(read_hearts, "mnms"),
           lambda raw: scans(raw, "_gt") + files(raw, "raw/*.csv", mutants.TABLE),
           optional=("VendorName", "Vendor", "Centre", "Age", "Pathology", "Sex", "Height", "Weight"), names=("Centre",)),
    Reader("ukbb", hearts_ukbb, functools.partial(read_hearts, "ukbb"), lambda raw: scans(raw, "^label")),
    Reader("open-ms", brains_open_ms, read_open_ms, lambda raw: scans(raw, "^GOLD"), {("mask of zeros", ""): NO_LESIONS}),
    Reader("brain-folder", brains_folder, read_brains_folder,
           lambda raw: scans(raw, "^(mask|brain)") + files(raw, "raw.*.csv", mutants.TABLE),
           {("mask of zeros", "mask"): NO_LESIONS, ("missing", "mask|brain"): NO_MASK}, ("age_years", "sex")),
    Reader("adni-mri", lambda raw: brains_raw.adni(raw, 6), read_adni_mri,
           lambda raw: [one for one in scans(raw, "^$") if "I16" not in one.path] + files(raw, "raw/*.csv", mutants.TABLE),
           optional=("Age", "Sex", "Group", "Acq Date")),  # I16 is a second image of its person, which is not read
    Reader("freesurfer tables", tables_freesurfer, read_freesurfer,
           lambda raw: files(raw, "raw/*.tsv", mutants.TABLE) + files(raw, "raw.*.csv", mutants.TABLE), optional=("site",)),
    Reader("freesurfer subjects", tables_subjects, read_freesurfer,
           lambda raw: files(raw, "raw/*/stats/*", mutants.TEXT) + files(raw, "raw/*/mri/*", mutants.TEXT)),
    Reader("abide", tables_abide, functools.partial(read_regions, regions_cohorts.abide),
           lambda raw: files(raw, "raw/stats/*", mutants.TABLE) + files(raw, "raw/*.csv", mutants.TABLE), optional=("SITE_ID",)),
    Reader("adni", tables_raw.write_adni, functools.partial(read_regions, regions_cohorts.adni),
           lambda raw: files(raw, "raw/*.csv", mutants.TABLE), {("subject renamed", "UCSFFSX"): LONGITUDINAL},
           ("SITE", "ADAS13", "RAVLT_immediate", "OVERALLQC", "VISCODE"), ("SITE",)),
    Reader("ukb-regions", tables_ukb,
           functools.partial(read_regions, lambda raw: regions_cohorts.ukb(raw / "export.csv", fields=raw / "fields.csv")),
           lambda raw: files(raw, "raw/*.csv", mutants.TABLE), {("subject renamed", "export"): ALONE}, ("icd10",)),
    Reader("prepared hearts", functools.partial(folder_of, hearts_acdc, functools.partial(read_hearts, "acdc")),
           functools.partial(read_folder, datasets_lite.load), folder_files),
    Reader("prepared regions", functools.partial(folder_of, tables_freesurfer, read_freesurfer),
           functools.partial(read_folder, regions_lite.load), folder_files),
    Reader("prepared brains", functools.partial(folder_of, brains_folder, read_brains_folder),
           functools.partial(read_folder, brains_lite.load), folder_files),
)  # fmt: skip


# --- judgement ------------------------------------------------------------------------------------


def one_sentence(text: str) -> bool:
    """One line, neither a word nor a page, and no second sentence."""
    text = text.strip()
    return "\n" not in text and 8 < len(text) < 700 and not re.search(r"[.!?] +[A-Z]", text)


def ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of the project, on purpose, and not by a library under it."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    file = Path(trace.tb_frame.f_code.co_filename).resolve()
    inside = any(file.is_relative_to(ROOT / part) for part in ("data_prep", "medvae_lite"))
    return inside and isinstance(error, (ValueError, OSError))


def judge(base: Result, found: Result | BaseException, allowed: frozenset) -> tuple[str, str]:
    """One of `OUTCOMES`, and the sentence that a user sees, or what went wrong."""
    if isinstance(found, Hangs):
        return "hangs", "no end"
    if isinstance(found, BaseException):
        text = str(found)
        if not ours(found) or not one_sentence(text) or UNFORESEEN in text:
            return "traceback", f"{type(found).__name__}: {text[:300]}"
        return ("refused", text) if "refused" in allowed else ("wrong", f"refused: {text}")
    new = {who: why for who, why in found.excluded.items() if base.excluded.get(who) != why}
    for why in new.values():
        if UNFORESEEN in why or not one_sentence(why):
            return "traceback", why
    lost = set(base.people) - set(found.people) - set(new)
    apart = [who for who, what in found.people.items() if base.people.get(who) != what]
    if new and not lost and not apart:
        return "left out", next(iter(new.values()))
    if found == base:
        return ("same", "") if "same" in allowed else ("wrong", "the same result, as if nothing had happened")
    if "changed legally" in allowed:
        return "changed legally", ""
    parts = [name for name in base.rest if found.rest.get(name) != base.rest[name]]
    return "wrong", f"another result in silence: lost {sorted(lost)}, changed {apart}, {parts}"


def attempt(reader: Reader, raw: Path, scratch: Path, seconds: float) -> Result | BaseException:
    """What the reader makes of a cohort, within a time limit."""

    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return reader.read(raw, scratch)
    except (Exception, Hangs) as error:  # noqa: BLE001: what was raised is the result
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt_verify(raw: Path) -> BaseException | None:
    try:
        datasets_lite.verify(raw)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def allowed_for(reader: Reader, kind: mutants.Kind, victim: Victim, before: bytes, after: bytes) -> tuple[frozenset, str]:
    """What may come of a kind for this reader and file, and why another result may be right."""
    for (name, pattern), why in reader.legal.items():
        if name == kind.name and re.search(pattern, Path(victim.path).name):
            return mutants.ANY, why
    if reader.optional and kind.name in ("column missing", "NaN for a number") and touched(before, after) <= set(reader.optional):
        return mutants.ANY, OPTIONAL if kind.name == "column missing" else mutants.BLANK
    if reader.names and "number" in kind.name and touched(before, after) <= set(reader.names):
        return mutants.ANY, NAME
    return kind.allowed, kind.why


def touched(before: bytes, after: bytes) -> set[str]:
    """The columns in which two tables of one separator differ."""
    one, other = ([line.split(mark) for line in data.decode().rstrip("\n").split("\n")] for data in (before, after)
                  for mark in [mutants.mark_of(before.decode())])  # fmt: skip
    header = [name.strip('"') for name in one[0]]
    if len(one[0]) != len(other[0]):
        return set(header) - {name.strip('"') for name in other[0]}
    return {header[j] for a, b in zip(one, other) for j in range(len(header)) if a[j] != b[j]}


class Row(NamedTuple):
    """What came of one kind of injury for one reader."""

    outcomes: dict[str, int]
    examples: dict[str, str]
    by_verify: list[int]
    why: set[str]


def run(reader: Reader, *, count: int, seed: int, seconds: float = 20.0) -> dict[str, Row]:
    """Reads `count` injured copies of a reader's cohort; the kinds take turns, and the file is drawn among those a kind fits."""
    rng = np.random.default_rng([seed, sum(map(ord, reader.name))])
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        whole = home / "whole"
        whole.mkdir()
        reader.build(whole / "raw")
        (home / "base").mkdir()
        base = attempt(reader, whole / "raw", home / "base", 60)
        if isinstance(base, BaseException):
            raise RuntimeError(f"{reader.name}: the unharmed cohort is not read") from base
        pairs = [(kind, victim) for victim in reader.victims(whole / "raw") for kind in victim.kinds if fits(kind, victim)]
        names = rng.permutation(sorted({kind.name for kind, _ in pairs}))
        for turn in range(count):
            some = [pair for pair in pairs if pair[0].name == names[turn % len(names)]]
            kind, victim = some[int(rng.integers(len(some)))]
            hurt, scratch = home / "hurt", home / "scratch"
            shutil.copytree(whole, hurt)
            scratch.mkdir()
            path = hurt / victim.path
            before = path.read_bytes()
            kind.apply(path, rng)
            allowed, why = allowed_for(reader, kind, victim, before, path.read_bytes() if path.is_file() else b"")
            outcome, text = judge(base, found := attempt(reader, hurt / "raw", scratch, seconds), allowed)
            row = rows.setdefault(kind.name, Row(dict.fromkeys(OUTCOMES, 0), {}, [0], set()))
            if reader.name.startswith("prepared") and isinstance(found, Result):
                error = attempt_verify(hurt / "raw")
                if error is not None and (outcome == "wrong" or not ours(error)):
                    outcome, text = judge(base, error, allowed)
                    row.by_verify[0] += outcome == "refused"
            row.outcomes[outcome] += 1
            hidden = text.replace(f"{hurt}/", "").replace(str(hurt), "")
            row.examples.setdefault(outcome, f"{Path(victim.path).name}: {hidden}" if outcome in FAILURES else hidden)
            if outcome == "changed legally" and why:
                row.why.add(why)
            shutil.rmtree(hurt)
            shutil.rmtree(scratch)
    return rows


def fits(kind: mutants.Kind, victim: Victim) -> bool:
    return kind.on in ("", victim.role) or (kind.on == "gz" and victim.path.endswith(".gz"))


def failures(rows: dict[str, Row]) -> dict[str, dict[str, str]]:
    """Kind -> failure -> what was seen."""
    found = {name: {what: text for what, text in row.examples.items() if what in FAILURES} for name, row in rows.items()}
    return {name: what for name, what in found.items() if what}


def listed(reader: str, rows: dict[str, Row]) -> list[dict]:
    """The rows for the file; the example is what a user sees, or, after a failure, what went wrong."""
    told = []
    for kind, row in sorted(rows.items()):
        example = next((row.examples[name] for name in (*FAILURES, "refused", "left out") if row.examples.get(name)), "")
        told.append({
            "reader": reader, "kind": kind, "tried": sum(row.outcomes.values()), "outcomes": row.outcomes,
            "by verify": row.by_verify[0], "why changed legally": "; ".join(sorted(row.why)), "example": example,
        })  # fmt: skip
    return told


def counts(rows: list[dict]) -> list[dict]:
    """Failures of each reader."""
    names = dict.fromkeys(row["reader"] for row in rows)
    return [
        {"reader": name, "tried": sum(row["tried"] for row in rows if row["reader"] == name)}
        | {what: sum(row["outcomes"][what] for row in rows if row["reader"] == name) for what in FAILURES}
        for name in names
    ]


def main() -> None:
    """Writes the table, and prints each reader's failures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="injured copies for each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "inputs.json")
    parser.add_argument("--reader", action="append", help="only this one; may be given several times")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    old = json.loads(args.out.read_text()) if args.out.is_file() else {}
    start, rows = time.perf_counter(), []
    for reader in READERS:
        if not args.reader or reader.name in args.reader:
            since = time.perf_counter()
            mine = run(reader, count=args.count, seed=args.seed)
            rows += listed(reader.name, mine)
            sys.stdout.write(f"{reader.name}: {time.perf_counter() - since:.0f} s\n")
            for kind, what in sorted(failures(mine).items()):
                number = {name: mine[kind].outcomes[name] for name in what}
                sys.stdout.write(f"    {kind}: {number} {'; '.join(what.values())}\n")
            sys.stdout.flush()
    told = {"machine": measure.machine("cpu"), "seed": args.seed, "seconds": round(time.perf_counter() - start), "readers": rows}
    # What was found before the readers were mended stays in the file; it cannot be measured again.
    told |= {"before": old.get("before", counts(rows))}
    args.out.parent.mkdir(exist_ok=True)
    rows = {key: ",\n ".join(map(json.dumps, told[key])) for key in ("readers", "before") if key in told}  # a line each
    head = json.dumps({key: value for key, value in told.items() if key not in rows}, indent=1).rstrip("\n}")
    args.out.write_text(head + "".join(f',\n "{key}": [\n {lines}\n ]' for key, lines in rows.items()) + "\n}\n")


if __name__ == "__main__":
    main()
