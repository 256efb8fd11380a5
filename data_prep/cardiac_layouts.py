"""Where three public short-axis collections keep their files, and how one subject of them is read.

A layout lists the subjects under a folder (cheap: names only) and describes one of them: which image and mask
files hold its ED and ES frames, and its covariates. `cardiac_nifti.read` turns that into a `Stack`.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep.cardiac_nifti import Frame, emptiest_lv
from data_prep.cardiac_quality import Excluded, Unusable
from data_prep.nifti_file import short
from data_prep.regions_sheets import one_row_each, read_cells, read_sheet, text_of

DEPTH = 4  # folders below RAW in which subjects are looked for


class RawSubject(NamedTuple):
    """One subject's ED and ES files and what is known about the person."""

    subject: str
    frames: tuple[Frame, Frame]
    covariates: dict

    @property
    def files(self) -> list[Path]:
        """Every file that is read, once."""
        return sorted({path for frame in self.frames for path in (frame.image, frame.mask)})


class Entry(NamedTuple):
    """A subject found by name; `row` is its line in the collection's table, where there is one."""

    subject: str
    folder: Path
    row: dict


class Layout(NamedTuple):
    """A collection: `find(root)` lists its subjects, `describe(entry, label_map)` tells where one lies."""

    name: str
    label_map: tuple[int, int, int]
    expected: str  # what lies under RAW, for messages
    source: str
    licence: str
    citation: str
    find: Callable[[Path], list[Entry]]
    describe: Callable[[Entry, tuple[int, int, int]], RawSubject]


def folders(root: Path) -> list[Path]:
    """`root` and the folders below it, sorted, at most `DEPTH` down; linked folders are followed."""
    found = []
    for folder, below, _ in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        below[:] = sorted(name for name in below if not name.startswith(".")) if depth < DEPTH else []
        found.append(Path(folder))
    return found


def nifti(stem: Path) -> Path:
    """`stem`.nii.gz, or `stem`.nii where only that exists."""
    packed, plain = (stem.with_name(stem.name + suffix) for suffix in (".nii.gz", ".nii"))
    return plain if plain.is_file() and not packed.is_file() else packed


PLAUSIBLE = {"age_years": (0, 120), "height_cm": (30, 250), "weight_kg": (1, 400)}


def number(value, name: str = "", where: str = "") -> float | None:
    """A finite float, or None where the table is blank.

    Args:
        value: text.
        name: of the covariate; a key of `PLAUSIBLE` has limits.
        where: the file and the subject, for messages.

    Raises:
        Unusable: it is no number, or beyond the limits.
    """
    text = "" if value is None or pd.isna(value) else str(value).strip()
    if text.lower() in ("", "na", "nan", "none", "n/a"):
        return None
    low, high = PLAUSIBLE.get(name, (-math.inf, math.inf))
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and low <= found <= high):
        limits = f" from {low} to {high}" if name in PLAUSIBLE else ""
        raise Unusable(f"{where} must give `{name}` as a number{limits}, got {text[:40]!r}; mend or empty it")
    return found


def find_acdc(root: Path) -> list[Entry]:
    """Folders called patientNNN, in `root` or in its `training` and `testing`."""
    return [
        Entry(folder.name, folder, {}) for folder in folders(root) if re.fullmatch(r"patient\d+", folder.name)
    ]


def describe_acdc(entry: Entry, label_map=None) -> RawSubject:
    """Frames (counted from 1), diagnosis, height and weight are in `Info.cfg`.

    Raises:
        Unusable: `Info.cfg` is missing or names no ED or ES frame.
    """
    path = entry.folder / "Info.cfg"
    if not path.is_file():
        raise Unusable(
            f"`{short(path)}` is missing: it says which frames are ED and ES; restore it from the archive"
        )
    try:
        pairs = [line.partition(":") for line in text_of(path).splitlines()]
    except (ValueError, OSError) as error:
        raise Unusable(f"`{short(path)}` cannot be used: {error}".rstrip(".")) from None
    info = {key.strip(): value.strip() for key, _, value in pairs}
    for key in ("ED", "ES"):
        if not info.get(key, "").isdigit():
            raise Unusable(
                f"`{short(path)}` has no whole number after `{key}:`, got {info.get(key)!r}; mend the file"
            )
    frames = []
    for key in ("ED", "ES"):
        stem = entry.folder / f"{entry.subject}_frame{int(info[key]):02d}"
        frames.append(Frame(nifti(stem), nifti(stem.with_name(stem.name + "_gt")), None))
    known = {
        "group": info.get("Group"),
        "height_cm": number(info.get("Height"), "height_cm", f"`{short(path)}`"),
        "weight_kg": number(info.get("Weight"), "weight_kg", f"`{short(path)}`"),
    }
    return RawSubject(entry.subject, tuple(frames), known)


MNMS_COLUMNS = {
    "Pathology": "group",
    "Vendor": "vendor",
    "Centre": "centre",
    "Sex": "sex",
    "Age": "age_years",
    "Height": "height_cm",
    "Weight": "weight_kg",
}


def find_mnms(root: Path) -> list[Entry]:
    """Every `CODE_sa.nii.gz` or `CODE_sa_gt.nii.gz` below `root`, with its line of the information table.

    Raises:
        ValueError: no table with the columns `External code`, `ED` and `ES` in `root` or the folder above it.
    """
    where = {}
    for folder in folders(root):
        for name in sorted(os.listdir(folder)):
            match = re.fullmatch(r"(\w+?)_sa(_gt)?\.nii(\.gz)?", name)
            if match:
                where.setdefault(match[1], folder)
    rows = _mnms_table(root) if where else {}
    return [Entry(code, where[code], rows.get(code, {})) for code in sorted(where)]


def _mnms_table(root: Path) -> dict[str, dict]:
    wrong = f"`{root}` has no table of frames: put the M&Ms information CSV (columns `External code`, `ED`, `ES`) in it"
    for path in sorted(root.glob("*.csv")) + sorted(root.parent.glob("*.csv")):
        try:
            if {"External code", "ED", "ES"} <= set(read_cells(path)[0]):
                table = read_sheet(path, ("External code", "ED", "ES")).dropna(subset="External code")
                one_row_each(table["External code"], f"`{path.name}`")
                return {row["External code"]: row for row in table.to_dict("records")}
        except (ValueError, OSError) as error:
            wrong = str(error)
    raise ValueError(wrong)


def describe_mnms(entry: Entry, label_map=None) -> RawSubject:
    """4-D image and mask; the table gives the ED and ES frame, counted from 0.

    Raises:
        Unusable: the table has no frames for the subject.
        Excluded: the subject is of the part that was released without masks.
    """
    if "unlabeled" in (part.lower() for part in entry.folder.parts):
        raise Excluded("lies under `Unlabeled`: no masks were released for it")
    image, mask = (nifti(entry.folder / f"{entry.subject}{end}") for end in ("_sa", "_sa_gt"))
    where = f"the information CSV of `{entry.subject}`"
    at = [number(entry.row.get(key), key, where) for key in ("ED", "ES")]
    if None in at or any(value < 0 or value != int(value) for value in at):
        raise Unusable(
            f"`{short(image)}` has no ED and ES frame in the information CSV: a 4-D file needs both "
            "(columns `ED` and `ES`, counted from 0); add the line"
        )
    known = {new: entry.row.get(old) for old, new in MNMS_COLUMNS.items() if old in entry.row}
    known = {key: None if pd.isna(value) else value.strip() for key, value in known.items()}
    known |= {key: number(known[key], key, where) for key in PLAUSIBLE if key in known}
    return RawSubject(entry.subject, tuple(Frame(image, mask, int(value)) for value in at), known)


def find_ukbb(root: Path) -> list[Entry]:
    """One folder a subject, directly in `root`."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [Entry(path.name, path, {}) for path in below]


def describe_ukbb(entry: Entry, label_map: tuple[int, int, int] = (1, 2, 3)) -> RawSubject:
    """`sa_ED`, `sa_ES` with masks `label_sa_*` (by hand) or `seg_sa_*` (by network); else the 4-D `sa`.

    In a 4-D file ED is frame 0 and ES the frame with the fewest (but some) LV voxels.

    Raises:
        Unusable: neither form is in the folder, or a mask is missing.
    """

    def mask_of(name):
        by_hand, by_network = (nifti(entry.folder / f"{prefix}_{name}") for prefix in ("label", "seg"))
        return by_network if by_network.is_file() and not by_hand.is_file() else by_hand

    pair = [nifti(entry.folder / f"sa_{frame}") for frame in ("ED", "ES")]
    movie = nifti(entry.folder / "sa")
    if any(path.is_file() for path in pair):
        return RawSubject(
            entry.subject,
            tuple(
                Frame(path, mask_of(f"sa_{frame}"), None)
                for path, frame in zip(pair, ("ED", "ES"), strict=True)
            ),
            {},
        )
    if not movie.is_file():
        raise Unusable(
            f"`{entry.folder.name}` holds neither `sa_ED.nii.gz` and `sa_ES.nii.gz` nor `sa.nii.gz`; "
            "add them or remove the folder"
        )
    mask = mask_of("sa")
    return RawSubject(
        entry.subject, tuple(Frame(movie, mask, t) for t in (0, emptiest_lv(mask, label_map[0]))), {}
    )


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "acdc",
            (3, 2, 1),
            "folders patientNNN, each with Info.cfg, its two frames and their _gt masks",
            "Automated Cardiac Diagnosis Challenge (ACDC)",
            "CC BY-NC-SA 4.0",
            "Bernard et al., Deep learning techniques for automatic MRI cardiac multi-structures "
            "segmentation and diagnosis: is the problem solved?, IEEE Transactions on Medical Imaging "
            "37(11):2514-2525, 2018, doi:10.1109/TMI.2018.2837502",
            find_acdc,
            describe_acdc,
        ),
        Layout(
            "mnms",
            (1, 2, 3),
            "files CODE_sa.nii.gz and CODE_sa_gt.nii.gz and the information CSV",
            "Multi-Centre, Multi-Vendor and Multi-Disease challenge (M&Ms)",
            "the terms of the M&Ms open dataset (https://www.ub.edu/mnms)",
            "Campello et al., Multi-centre, multi-vendor and multi-disease cardiac segmentation: the M&Ms "
            "challenge, IEEE Transactions on Medical Imaging 40(12):3543-3554, 2021, "
            "doi:10.1109/TMI.2021.3090082",
            find_mnms,
            describe_mnms,
        ),
        Layout(
            "ukbb",
            (1, 2, 3),
            "one folder a subject, each with sa_ED, sa_ES and label_sa_ED, label_sa_ES",
            "UK Biobank cardiovascular magnetic resonance, short axis",
            "the UK Biobank material transfer agreement: not to be passed on",
            "Petersen et al., UK Biobank's cardiovascular magnetic resonance protocol, Journal of "
            "Cardiovascular Magnetic Resonance 18:8, 2016, doi:10.1186/s12968-016-0227-4",
            find_ukbb,
            describe_ukbb,
        ),
    )
}
