"""Readers of what FreeSurfer 5 to 8 writes: tables, ``*.stats`` of a subject, volumes of hippocampal subfields.

Every reader gives columns by canonical name (see `canonical`): volumes in mm3, thickness in mm, area in mm2, and the
intracranial volume as ``icv`` in mm3. Columns are matched by name, never by position; columns that are no region are
passed over, and kept by name in ``table.attrs["unknown"]`` so that a message can guess which one was renamed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep.region_names import DESIKAN, HEMISPHERES, SUBCORTICAL
from data_prep.regions_quality import require
from data_prep.regions_sheets import read_cells, text_of

__all__ = [
    "DK", "MEASURED", "canonical", "read_hippocampus", "read_subject", "read_table", "tabulate",
]  # fmt: skip

DK = tuple(f"{side}_{name}" for side in HEMISPHERES for name in DESIKAN)
"""All 68 regions of the Desikan-Killiany atlas."""
MEASURED = (*SUBCORTICAL, "Left-Inf-Lat-Vent", "Right-Inf-Lat-Vent")
"""The poster's 31 subcortical regions and the temporal horns, which it left out and which widen early in AD."""

_OTHER = ("4th-Ventricle", "5th-Ventricle", "Optic-Chiasm", "non-WM-hypointensities")
_PAIRED = ("Inf-Lat-Vent", "VentralDC", "choroid-plexus", "vessel", "WM-hypointensities", "non-WM-hypointensities")
# Other spellings, without side and punctuation: of FreeSurfer 5 and 6, ADNI's dictionary, UK Biobank's titles.
_SPELLINGS = {
    "thalamus": ["thalamusproper"], "accumbensarea": ["accumbens"], "cerebellumwhitematter": ["cerebellumwm"],
    "cerebralwhitematter": ["cerebralwm", "corticalwhitematter", "corticalwm"], "3rdventricle": ["thirdventricle"],
    "4thventricle": ["fourthventricle"], "5thventricle": ["fifthventricle"], "inflatvent": ["inferiorlateralventricle"],
    "corticalgm": ["cortex"], "subcorticalgm": ["subcortgray"], "totalgm": ["totalgray"],
    "icv": ["etiv", "intracranial", "estimatedtotalintracranial"],
    **{f"cc{part}": [f"corpuscallosum{part}"] for part in
       ("anterior", "midanterior", "central", "midposterior", "posterior")},
}  # fmt: skip
# The sets of parts that make up a subfield: canonical, FreeSurfer 6, FreeSurfer 7. FreeSurfer's CA3 is CA2 and CA3.
_PARTS = {
    "CA1": [{"ca1"}, {"ca1head", "ca1body"}],
    "CA2_3": [{"ca23"}, {"ca3"}, {"ca3head", "ca3body"}],
    "CA4_DG": [{"ca4dg"}, {"ca4", "gcmldg"}, {"ca4head", "ca4body", "gcmldghead", "gcmldgbody"}],
    "presubiculum": [{"presubiculum"}, {"presubiculumhead", "presubiculumbody"}],
    "subiculum": [{"subiculum"}, {"subiculumhead", "subiculumbody"}],
    "fimbria": [{"fimbria"}],
    "hippocampal-fissure": [{"hippocampalfissure"}],
    "tail": [{"tail"}, {"hippocampaltail"}],
}
_HALVES = {part for sets in _PARTS.values() for some in sets if len(some) > 1 for part in some}
_MEASURES = {
    "grayvol": "", "volume": "", "volmm3": "", "vol": "", "mm3": "", "thickness": "_thickness",
    "thickavg": "_thickness", "surfarea": "_area", "area": "_area",
}  # fmt: skip

_UKB = re.compile(r"(?:volume|mean )?(thickness|area|) of (\S+) \((?:(left|right) hemisphere|whole brain)\)", re.I)


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _known() -> dict[str, str]:
    """Squashed name -> canonical name."""
    known = {_squash(name): name for name in (*SUBCORTICAL, *_OTHER) if not name.startswith(("Left-", "Right-"))}
    known |= {"icv": "icv", "subcorticalgm": "SubcorticalGM", "totalgm": "TotalGM"}
    known["cerebralwhitematter"] = "Cerebral-White-Matter"  # of both sides: a sum, never an input
    paired = [name.removeprefix("Left-") for name in SUBCORTICAL if name.startswith("Left-")]
    for side, word in zip(HEMISPHERES, ("Left", "Right"), strict=True):
        known |= {side + name: f"{side}_{name}" for name in DESIKAN} | {f"{side}corticalgm": f"{word}CorticalGM"}
        known |= {side + _squash(name): f"{word}-{name}" for name in (*paired, *_PAIRED)}
        known |= {
            side + min(some): f"{side}_{field}" for field, sets in _PARTS.items() for some in sets if len(some) == 1
        }
    for name, region in list(known.items()):
        side = name[:2] if name.startswith(HEMISPHERES) else ""
        known |= {side + other: region for other in _SPELLINGS.get(name.removeprefix(side), ())}
    return known


_KNOWN = _known()


def _plain(name: str) -> str:
    """A name squashed: the side in front as lh or rh, the measure, if any, at the end."""
    name = name.strip()
    if title := _UKB.fullmatch(name):
        name = f"{title[3] or ''}-{title[2]}-{title[1]}"
    name = re.sub(r"^-|^ctx[._-]|^x(?=\d)", "", name, flags=re.I)  # R puts an X before a digit
    name = re.sub(r"^l(?:h|eft|(?=[._-]))", "lh", name, flags=re.I)
    return _squash(re.sub(r"^r(?:h|ight|(?=[._-]))", "rh", name, flags=re.I))


def canonical(name: str) -> str | None:
    """The canonical name of a column, or None where it is no region.

    Knows the drift of names between FreeSurfer 5 and 8 (``Left-Thalamus-Proper``, ``lhCorticalWhiteMatterVol``,
    ``EstimatedTotalIntraCranialVol``), names mangled by R (``X3rd.Ventricle``), ADNI's (``LeftEntorhinal``) and the
    titles of UK Biobank's fields. Thickness and area of a cortical region end in ``_thickness`` and ``_area``. A part
    of a subfield (``lh_CA1-head``, ``lh_CA4``) is None: the readers sum the parts.
    """
    plain = _plain(name)
    if plain in _KNOWN:
        return _KNOWN[plain]
    for ending, suffix in _MEASURES.items():
        region = _KNOWN.get(plain.removesuffix(ending)) if plain.endswith(ending) else None
        if region and (not suffix or region in DK):
            return region + suffix
    return None


def _named(name: str) -> str | None:
    """The canonical name, or of a part of a subfield its side and squashed name with a blank between."""
    plain = re.sub(r"(volume|volmm3|mm3)$", "", _plain(name))
    return f"{plain[:2]} {plain[2:]}" if plain.startswith(HEMISPHERES) and plain[2:] in _HALVES else canonical(name)


def _number(cell: str, where: str) -> float:
    if cell.lower() in ("", "na", "nan", "null", "none", "."):
        return np.nan
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{where} must be a number, got {cell[:40]!r}; mend the cell.") from None


def read_table(
    path: str | os.PathLike, *, subject: str | None = None, rename: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """A table by `aparcstats2table` or `asegstats2table`, or any other with FreeSurfer's names as columns.

    Args:
        path: tab, comma or white space between cells.
        subject: the column that says who, where it is not the first.
        rename: column -> FreeSurfer's name, for columns that are called otherwise.

    Returns:
        (N, regions), see `tabulate`.

    Raises:
        ValueError: one sentence; a region or person is there twice, a part of a subfield is missing, a cell is no
            number, or the table is of another atlas.
        OSError: the file cannot be read.
    """
    where, (header, rows) = Path(path).name, read_cells(path)
    atlas = re.fullmatch(r"[lr]h\.(.+)\.(\w+)", header[0])
    if atlas and atlas[1] != "aparc":
        raise ValueError(
            f"`{where}` must be of the atlas aparc (Desikan-Killiany), got {atlas[1]}; use `--parc aparc`."
        )
    if subject is not None and header.count(subject) != 1:
        raise ValueError(f"`{where}` must have one column `{subject}`, which says who, got {header.count(subject)}.")
    columns = [(rename or {}).get(name, name) for name in header]
    if atlas and atlas[2] in ("thickness", "area"):  # their columns need not say so again
        columns = [f"{name}_{atlas[2]}" if canonical(name) in DK else name for name in columns]
    return tabulate(columns, rows, who=header.index(subject) if subject else 0, where=where)


def tabulate(columns: list[str], rows: list[list[str]], *, who: int, where: str) -> pd.DataFrame:
    """The regions among the columns of a table of text, as numbers.

    Args:
        columns: F names, in any spelling.
        rows: (N, F) cells.
        who: position of the column that says who.
        where: the table, for messages.

    Returns:
        (N, regions) float64, the index the subjects; subfields given in parts are summed.

    Raises:
        ValueError: a region or a person is there twice, a part is missing, or a cell is no number.
    """
    at: dict[str, int] = {}
    for i, column in enumerate(columns):
        name = _named(column) if i != who else None
        if name in at:
            raise ValueError(
                f"`{where}` holds the region `{name}` twice, as `{columns[at[name]]}` and `{column}`; keep one."
            )
        at |= {name: i} if name else {}
    people = pd.Index([row[who] for row in rows], name="subject", dtype=object)
    if "" in people:
        raise ValueError(f"`{where}` must say in every row who it is, got an empty `{columns[who]}`; fill it in.")
    if people.has_duplicates:
        raise ValueError(
            f"`{where}` holds the subject {people[people.duplicated()][0]!r} twice; keep one row a person."
        )
    values = {
        name: [_number(row[i], f"`{where}`, subject {row[who]!r}: `{columns[i]}`") for row in rows]
        for name, i in at.items()
    }
    table = _sum_parts(pd.DataFrame(values, index=people, dtype=float), where)
    table.attrs["unknown"] = [name for i, name in enumerate(columns) if i != who and i not in at.values()]
    return table


def _sum_parts(table: pd.DataFrame, where: str) -> pd.DataFrame:
    sums, spent = {}, []
    for side in HEMISPHERES:
        there = {name[3:] for name in table if name.startswith(f"{side} ")}
        for field, sets in _PARTS.items():
            name, parts = f"{side}_{field}", there & set().union(*sets)
            if not parts:
                continue
            if name in table:
                raise ValueError(f"`{where}` holds the region `{name}` twice, as a whole and in parts; keep one.")
            if parts not in sets:
                lacking = min((some - parts for some in sets if some & parts), key=len)
                wrong = f"lacks its part {min(lacking)!r}" if lacking else "mixes the parts of two versions"
                raise ValueError(f"`{where}` must hold the whole of the region `{name}` and {wrong}; export it again.")
            columns = [f"{side} {part}" for part in sorted(parts)]
            if (negative := table[columns] < 0).any(axis=None):
                # The sum would hide it.
                person, column = table.index[negative.any(axis=1)][0], negative.any().idxmax()
                got = f"{table.loc[person, column]:g} for {column!r}"
                raise ValueError(f"`{where}` must hold no negative volume, got {got}; mend the cell.")
            sums[name] = table[columns].sum(axis=1, skipna=False)
            spent += columns
    return pd.concat([table.drop(columns=spent), pd.DataFrame(sums, index=table.index)], axis=1)


def read_hippocampus(path: str | os.PathLike) -> dict[str, float]:
    """The eight subfields of one side from ``?h.hippoSfVolumes-T1.v10.txt`` (FreeSurfer 6) or ``v21``, ``v22`` (7).

    Returns:
        Canonical name -> volume in mm3; head and body are summed, CA4_DG is CA4 and GC-ML-DG.

    Raises:
        ValueError: a line is no name and volume, or a subfield is missing, twice, or lacks a part.
        OSError: the file cannot be read.
    """
    path = Path(path)
    side, pairs = path.name[:2], [line.split() for line in text_of(path).splitlines() if line.strip()]
    if side not in HEMISPHERES or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"`{path.name}` must be called lh. or rh. and hold on every line a name and a volume.")
    fields = _one_person([(f"{side}_{name}", volume) for name, volume in pairs], path.name)
    return (
        require(pd.DataFrame([fields]), [f"{side}_{field}" for field in _PARTS], where=f"`{path.name}`")
        .iloc[0]
        .to_dict()
    )


def read_subject(folder: str | os.PathLike) -> dict[str, float]:
    """One person's folder by recon-all: ``stats/aseg.stats``, ``stats/?h.aparc.stats`` and, if made, the subfields.

    Returns:
        Canonical name -> mm3, or mm where it ends in ``_thickness``; of several versions of the subfields, the last.

    Raises:
        ValueError: a file is not as FreeSurfer writes it, or holds a region twice.
        OSError: a file is missing or cannot be read.
    """
    folder, fields = Path(folder), {}
    rows, measures = _read_stats(folder / "stats" / "aseg.stats", "StructName", "Volume_mm3")
    cells = [*rows, *measures]
    for side in HEMISPHERES:
        rows, _ = _read_stats(folder / "stats" / f"{side}.aparc.stats", "StructName", "GrayVol", "ThickAvg")
        for name, volume, thickness in rows:
            cells += [(f"{side}_{name}", volume), (f"{side}_{name}_thickness", thickness)]
        for path in sorted(folder.glob(f"mri/{side}.hippoSfVolumes-T1.v*.txt"))[-1:]:
            fields |= read_hippocampus(path)
    return _one_person(cells, f"{folder.name}/stats") | fields


def _read_stats(path: Path, *wanted: str) -> tuple[list[tuple], list[tuple]]:
    """The wanted columns of a ``.stats`` file, and the measures of its header as (name, number)."""
    lines = text_of(path).splitlines()
    columns = next((line.split()[2:] for line in lines if line.startswith("# ColHeaders")), [])
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if not set(wanted) <= set(columns) or not rows or any(len(row) != len(columns) for row in rows):
        where = "/".join(path.parts[-3:])
        raise ValueError(
            f"`{where}` must hold the columns {', '.join(wanted)} in whole rows; run recon-all again for this person."
        )
    fields = [line.split(",") for line in lines if line.startswith("# Measure ")]
    measures = [(field[1].strip(), field[-2].strip()) for field in fields if len(field) > 4]
    return [tuple(row[columns.index(name)] for name in wanted) for row in rows], measures


def _one_person(cells: list[tuple], where: str) -> dict[str, float]:
    names, values = zip(*cells, strict=True) if cells else ((), ())
    return tabulate(["", *names], [[where, *values]], who=0, where=where).iloc[0].to_dict()
