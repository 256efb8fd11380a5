"""Where collections of brain images keep their files (open_ms, ADNI's downloads, folders of one's own), and what is asked of each."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep.brain_phantom import SIZES
from data_prep.regions_sheets import numbers, one_row_each, read_sheet

log = logging.getLogger(__name__)

__all__ = ["GAP_MM", "Cohort", "Options", "Person", "adni_mri", "folder", "open_ms"]

GAP_MM = 1.0
SEQUENCES = ("FLAIR", "T1")
OWN = "not stated"
MNI_CENTRE_MM = 18.0
_ENDINGS = (".nii.gz", ".nii")
_ADNI_SUBJECT = re.compile(r"\d{3}_S_\d{4,5}")
_ADNI_TABLE = {"Group": "group", "Sex": "sex", "Age": "age_years", "Acq Date": "acq_date", "Image Data ID": "image_id"}


class Options(NamedTuple):
    """What shapes one person's slices.

    Args:
        slices: how many, `GAP_MM` apart.
        size: image rows, a key of `brain_phantom.SIZES`, which also gives the columns.
        pixel_mm: edge of a pixel; None for that of the size.
        centre_mm: height of slice number `slices // 2` above the origin; None for the middle of each brain.
    """

    slices: int = 24
    size: int = 112
    pixel_mm: float | None = None
    centre_mm: float | None = None

    @property
    def grid(self) -> tuple[int, int, float]:
        """Rows, columns and the edge of a pixel in mm."""
        rows, columns, edge = SIZES[self.size]
        return rows, columns, edge if self.pixel_mm is None else float(self.pixel_mm)

    def check(self) -> None:
        """Refuses impossible options with a ValueError."""
        if self.size not in SIZES:
            raise ValueError(f"`size` must be one of {', '.join(map(str, SIZES))} rows of pixels, got {self.size}.")
        if not 1 <= self.slices <= 256:
            raise ValueError(f"`slices` must be from 1 to 256, got {self.slices}.")
        if self.pixel_mm is not None and not 0.5 <= self.pixel_mm <= 10:
            raise ValueError(f"`pixel_mm` must be from 0.5 to 10 mm, got {self.pixel_mm}.")
        if self.centre_mm is not None and not abs(self.centre_mm) <= 1000:
            raise ValueError(f"`centre_mm` must be within 1000 mm of the origin, got {self.centre_mm}.")


class Person(NamedTuple):
    """One person's files.

    Args:
        subject: identifier.
        image: the scan; None if there is none that can be used.
        mask: lesions, or None.
        brain: where the brain is; None if the image shows nothing else.
        reason: why the person is left out, or "".
    """

    subject: str
    image: Path | None
    mask: Path | None = None
    brain: Path | None = None
    reason: str = ""


class Cohort(NamedTuple):
    """A collection as found.

    Args:
        name: of the command.
        raw: its folder, only read.
        people: in order of subject.
        sequence: what the images show.
        source, licence, citation: for the card.
        options: names that decided which files are taken.
        centre_mm: the usual height of the middle slice, None for the middle of each brain.
        table: covariates as text, one row a person, indexed by subject; None without.
        files: tables read, by name.
    """

    name: str
    raw: Path
    people: list[Person]
    sequence: str
    source: str = OWN
    licence: str = OWN
    citation: str = OWN
    options: dict[str, str] = {}
    centre_mm: float | None = None
    table: pd.DataFrame | None = None
    files: dict[str, Path] = {}


def open_ms(raw: Path, *, sequence: str = "FLAIR", brain: str = "brain") -> Cohort:
    """The cross-sectional part of open_ms: patients with lesion masks in MNI space.

    Args:
        raw: its folder, or one above.
        sequence: one of `SEQUENCES`.
        brain: name of a brain mask in a patient's folder, where there is one.

    Raises:
        ValueError: there is no patient, or one twice.
    """
    _folder(raw)
    if sequence not in SEQUENCES:
        raise ValueError(f"`sequence` must be one of {', '.join(SEQUENCES)}, got {sequence!r}.")
    places = sorted(path for path in [raw, *raw.rglob("patient*")] if re.fullmatch(r"patient\d+", path.name) and path.is_dir())
    # The collection keeps the same patients in several spaces.
    places = [path for path in places if path.parent.name == "MNI"] or places
    people = []
    for place in places:
        image, reason = _one(place, rf"{sequence}(?![A-Za-z0-9]).*")
        mask, without = _one(place, r"GOLD_STANDARD.*")
        found, several = _named(place, _plain(brain))
        people.append(Person(place.name, image, mask, found, reason or without or several))
    return Cohort(
        "open-ms", raw, _each_once(people, raw, "folders `patientNN`"), sequence, "open_ms, cross-sectional, in MNI space", "CC-BY",
        "Lesjak et al., A novel public MR image dataset of multiple sclerosis patients with lesion segmentations based on multi-rater "
        "consensus, Neuroinformatics 16:51-63, 2018.",
        {"sequence": sequence, "brain": brain}, MNI_CENTRE_MM,
    )  # fmt: skip


def folder(
    raw: Path, *, image: str = "image", mask: str = "mask", brain: str = "brain", table: Path | None = None, sequence: str = OWN
) -> Cohort:
    """A folder of one's own: ``<subject>/image.nii.gz`` or ``<subject>_image.nii.gz``, and so for mask and brain.

    Args:
        raw: the folder.
        image, mask, brain: names of the scan, the lesion mask and the brain mask.
        table: CSV with the column `subject`, optionally `split`, and what else is known; people it lacks are left out.
        sequence: what the images show, for the card.

    Raises:
        ValueError: there is no person, or one twice, or the table is none.
    """
    _folder(raw)
    names = [_plain(name) for name in (image, mask, brain)]
    if len(set(names)) < 3:
        raise ValueError(f"image, mask and brain must have three names, got {', '.join(names)}.")
    entries = sorted(path for path in raw.iterdir() if not path.name.startswith("."))
    people = [_person(path.name, path, names, "") for path in entries if path.is_dir() and _scans(path)]
    flat = Counter(path.name[: -len(ending)] for path in entries for ending in _ENDINGS if path.is_file() and path.name.endswith(ending))
    subjects = sorted(stem.removesuffix(f"_{names[0]}") for stem in flat if stem.endswith(f"_{names[0]}"))
    people += [_person(subject, raw, names, f"{subject}_") for subject in subjects if subject]
    sheet, files = None, {}
    if table is not None:
        sheet, files = _by_subject(read_sheet(Path(table), ["subject"]), Path(table)), {"table": Path(table)}
    expected = f"`<subject>/{names[0]}.nii.gz` or `<subject>_{names[0]}.nii.gz`"
    return Cohort(
        "brain-folder", raw, _each_once(people, raw, expected), sequence,
        options={"image": names[0], "mask": names[1], "brain": names[2], "sequence": sequence}, table=sheet, files=files,
    )  # fmt: skip


def adni_mri(raw: Path, table: Path, *, brain: str = "brain") -> Cohort:
    """ADNI's T1 images as downloaded, ``<subject>/<series>/<date>/<image id>/*.nii``: the first image of each person.

    Args:
        raw: the folder that holds the subjects, or one above.
        table: the CSV that is exported with the image collection.
        brain: name of a brain mask beside an image.

    Raises:
        ValueError: there is no person, or the table is none.
    """
    _folder(raw)
    name = _plain(brain)
    scans: dict[str, list[Path]] = {}
    for path in sorted(raw.rglob("*.nii*")):
        places = (raw.name, *path.relative_to(raw).parts)
        subject = next((place for place in places[:-4] if _ADNI_SUBJECT.fullmatch(place)), None)
        if subject and path.name.endswith(_ENDINGS) and _stem(path) != name:
            scans.setdefault(subject, []).append(path)
    first = {subject: min(paths, key=lambda path: (path.parent.parent.name, path.name, path)) for subject, paths in scans.items()}
    if others := sum(map(len, scans.values())) - len(scans):
        log.info("%d further images of the same people are not taken", others)
    known = {place.name for place in (raw, *raw.rglob("*_S_*")) if place.is_dir() and _ADNI_SUBJECT.fullmatch(place.name)}
    # A folder of an image that is gone: the next image of the person would not be the first.
    empty = {
        next((part for part in place.parts if _ADNI_SUBJECT.fullmatch(part)), ""): place.name
        for place in raw.rglob("I*")
        if re.fullmatch(r"I\d+", place.name) and place.is_dir() and all(_stem(path) == name for path in _scans(place))
    }
    sheet = read_sheet(Path(table), ["Subject", *_ADNI_TABLE]).dropna(subset=["Subject", "Image Data ID"])
    sheet = sheet.rename(columns={"Subject": "subject"} | _ADNI_TABLE)
    people, rows = [], []
    for subject, path in sorted(first.items()):
        found, several = _named(path.parent, name)
        row = sheet[(sheet["subject"] == subject) & (sheet["image_id"] == path.parent.name)]
        reason = several if len(row) else f"image {path.parent.name} is not in `{Path(table).name}`; export the table of this collection"
        if subject in empty:
            reason = f"the folder {empty[subject]} holds no image .nii; download it again or remove the folder"
        people.append(Person(subject, path, None, found, reason))
        rows.append(row[["subject", *_ADNI_TABLE.values()]].drop_duplicates())
    expected = "`NNN_S_NNNN/<series>/<date>/<image id>/*.nii`"
    if first:
        people += [Person(who, None, reason="the folder holds no image .nii; download it again") for who in known - set(first)]
    people = _each_once(people, raw, expected)
    return Cohort(
        "adni-mri", raw, people, "T1", "Alzheimer's Disease Neuroimaging Initiative (ADNI), adni.loni.usc.edu",
        "ADNI data use agreement; not to be passed on",
        "Jack et al., The Alzheimer's Disease Neuroimaging Initiative (ADNI): MRI methods, J Magn Reson Imaging 27:685-691, 2008.",
        {"brain": name}, table=_by_subject(pd.concat(rows), Path(table)), files={"table": Path(table)},
    )  # fmt: skip


def _folder(raw: Path) -> None:
    if not raw.is_dir() or not os.access(raw, os.R_OK | os.X_OK):
        raise ValueError(f"`{raw}` is not a folder that can be read; give the folder of the images.")


def _plain(name: str) -> str:
    """The name of a file without its ending."""
    stem = _stem(Path(name))
    if not stem or Path(name).name != name:
        raise ValueError(f"the name of a file must be given without a folder, such as image, got {name!r}.")
    return stem


def _stem(path: Path) -> str:
    return next((path.name[: -len(ending)] for ending in _ENDINGS if path.name.endswith(ending)), path.name)


def _scans(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.name.endswith(_ENDINGS) and path.is_file())


def _one(place: Path, pattern: str) -> tuple[Path | None, str]:
    """The one NIfTI file in a folder whose name fits, or why there is none."""
    found = [path for path in _scans(place) if re.fullmatch(pattern, _stem(path))]
    what = pattern.split("(")[0].removesuffix(".*")
    if len(found) == 1:
        return found[0], ""
    wrong = f"{len(found)} files {what}*.nii.gz; keep one" if found else f"no {what}*.nii.gz; add it"
    return None, f"`{place.name}` holds {wrong}"


def _named(place: Path, name: str) -> tuple[Path | None, str]:
    """What has that name and either ending, None without, and what is wrong if there are both."""
    # Not only files: a folder or a broken link of that name is refused later, and must not count as no mask.
    found = [place / f"{name}{ending}" for ending in _ENDINGS if os.path.lexists(place / f"{name}{ending}")]
    if len(found) > 1:
        return None, f"`{place.name}` holds both {name}.nii.gz and {name}.nii; keep one"
    return (found[0] if found else None), ""


def _person(subject: str, place: Path, names: list[str], prefix: str) -> Person:
    (image, one), (mask, two), (brain, three) = (_named(place, prefix + name) for name in names)
    reason = one or two or three
    if image is None and not reason:
        reason = f"`{place.name}` holds no {names[0]}.nii.gz; add it, or name the image with --image"
    return Person(subject, image, mask, brain, reason)


def _each_once(people: list[Person], raw: Path, expected: str) -> list[Person]:
    if not people:
        raise ValueError(f"`{raw}` holds no images as expected; {expected} are looked for.")
    subjects = [person.subject for person in people]
    twice = next((name for name, count in sorted(Counter(subjects).items()) if count > 1), None)
    if twice:
        raise ValueError(f"`{raw}` holds the person {twice!r} twice; keep one, or give the folder of one of the two.")
    return sorted(people)


def _by_subject(sheet: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table of covariates indexed by subject, the blank cells empty."""
    if sheet["subject"].isna().any():
        raise ValueError(f"`{path.name}` must say in every row who it is, got an empty `subject`; fill it in.")
    one_row_each(sheet["subject"], f"`{path.name}`")
    if "age_years" in sheet:
        numbers(sheet["age_years"], f"`{path.name}`: the age", (0, 120))
    return sheet.set_index("subject").astype(object).fillna("")
