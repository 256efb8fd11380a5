"""Cohorts with FreeSurfer tables: ABIDE, ADNI, UK Biobank, and any folder by FreeSurfer, as one kind of raw cohort."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep.region_names import POSTER
from data_prep.regions_freesurfer import DK, MEASURED, canonical, read_subject, read_table, tabulate
from data_prep.regions_prepared import HEALTHY
from data_prep.regions_quality import Excluded, merge, require, torn
from data_prep.regions_sheets import one_row_each, people_table, read_sheet, sex_letters

__all__ = ["Cohort", "WHOLE", "abide", "adni", "freesurfer", "ukb"]

WHOLE = {"cortical": DK, "subcortical": MEASURED, "hippocampal": POSTER["hippocampal"]}
"""The regions that FreeSurfer measures; `POSTER` has those of Kumar et al. 2022."""
TABLES = (".csv", ".tsv", ".txt", ".dat", ".table")
STAGES = ("SMC", "EMCI", "LMCI", "AD")
SCORES = {"ADAS13": (0, 85), "RAVLT_immediate": (0, 75)}
"""ADNI's test scores, each with its least and largest."""
_FIELDS = ("CA1", "CA2_3", "CA4_DG", "fimbria", "hippocampal-fissure", "presubiculum", "subiculum", "tail")
ADNI_SUBFIELDS = {
    f"ST{131 + 8 * i + j}HS": f"{side}_{field}"
    for i, side in enumerate(("lh", "rh"))
    for j, field in enumerate(_FIELDS)
}
"""The columns of hippocampal subfields in ADNI's tables: left, then right."""
ICD10 = ("F", "G", "I6", "D32", "D33")
"""Diagnoses that a healthy person of UK Biobank has not: mental, of the nervous system, cerebrovascular, tumours of the
meninges and the brain (Kumar et al. 2022)."""


class Cohort(NamedTuple):
    """A cohort as read, before any check."""

    name: str
    regions: pd.DataFrame  # (N, regions and icv), index the subjects
    people: pd.DataFrame  # age_years, sex, group, site and scores, index the subjects
    modalities: dict[str, Sequence[str]]
    files: dict[str, Path]  # name -> where, for the sha256 of what was read
    source: str
    licence: str
    citation: str
    stages: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    excluded: Excluded = ()


def _one(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"`{folder}` must hold one {what} (`{pattern}`), got {len(found)}.")
    return found[0]


def _files(raw: Path, paths: Sequence[Path]) -> dict[str, Path]:
    return {(path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.name): path for path in paths}


def _regions(table: pd.DataFrame, offered: Mapping[str, Sequence[str]], where: str) -> dict[str, Sequence[str]]:
    """The modalities of which a table holds any region; it must then hold them all."""
    offered = {**offered, "thickness": tuple(f"{name}_thickness" for name in offered["cortical"])}
    there = {name: tuple(regions) for name, regions in offered.items() if any(region in table for region in regions)}
    for regions in there.values():
        require(table, regions, where=where)
    if not there:
        raise ValueError(f"{where} must hold regions by FreeSurfer's names, such as `lh_entorhinal_volume`, got none.")
    return there


def abide(raw: Path) -> Cohort:
    """ABIDE I by FreeSurfer 6: ``stats/?h.aparc_table_*.tsv``, ``stats/aseg_table.tsv`` and ``abide_phenotype.csv``.

    Cortical volume and thickness of 68 regions and 33 subcortical volumes; DX_GROUP 2 is healthy, 1 is ASD.

    Raises:
        ValueError: a table is not as it should be, in one sentence.
        OSError: a file is missing or cannot be read.
    """
    names = [f"stats/{side}.aparc_table_{measure}.tsv" for measure in ("volume", "thickness") for side in ("lh", "rh")]
    files = [_one(raw, name, "table") for name in (*names, "stats/aseg_table.tsv")]
    tables = merge({path.name: read_table(path) for path in files})
    modalities = {"cortical": DK, "subcortical": MEASURED, "thickness": tuple(f"{name}_thickness" for name in DK)}
    require(tables, [name for part in modalities.values() for name in part], where="the tables of ABIDE")
    phenotype = _one(raw, "abide_phenotype.csv", "table of people")
    sheet = read_sheet(phenotype, ("SUB_ID", "SITE_ID", "DX_GROUP", "AGE_AT_SCAN", "SEX"))
    known = people_table(
        sheet, phenotype.name, key="SUB_ID", age="AGE_AT_SCAN", site="SITE_ID",
        sex=sex_letters(sheet["SEX"], {"1": "M", "2": "F"}), group=sheet["DX_GROUP"].map({"1": "ASD", "2": HEALTHY}),
    )  # fmt: skip
    # The tables say Caltech_0051456 where the phenotype says 51456.
    number = pd.Series([re.sub(r"^.*_0*", "", who) for who in tables.index], index=tables.index)
    one_row_each(number, "the tables of ABIDE")
    number = number[number.isin(known.index)]
    people = known.loc[number].set_axis(number.index)
    return Cohort(
        "abide", tables, people, modalities, _files(raw, [*files, phenotype]),
        "ABIDE I: FreeSurfer 6 tables, github.com/dfsp-spirit/abide_preproc_smri_freesurfer6",
        "CC BY-NC-SA, the ABIDE usage agreement",
        "Di Martino et al., The autism brain imaging data exchange: towards a large-scale evaluation of the intrinsic "
        "brain architecture in autism, Molecular Psychiatry 19:659-667, 2014, doi:10.1038/mp.2013.78",
    )  # fmt: skip


def adni(raw: Path) -> Cohort:
    """ADNI: ``UCSFFSX*.csv`` (the first visit of each person), ``ADNIMERGE*.csv`` (baseline) and ``DATADIC*.csv``.

    Which ``ST..CV`` and ``ST..SV`` is which region is read from the dictionary; the codes of subfields are fixed.

    Raises:
        ValueError: a table is not as it should be, in one sentence.
        OSError: a file is missing or cannot be read.
    """
    merged, dictionary = (_one(raw, f"{name}*.csv", "table") for name in ("ADNIMERGE", "DATADIC"))
    paths = sorted(Path(raw).glob("UCSFFSX*.csv"))
    if not paths:
        raise FileNotFoundError(f"`{raw}` must hold the tables of regions `UCSFFSX*.csv`, got none.")
    names = ADNI_SUBFIELDS | _dictionary(dictionary)
    visits = pd.concat({path.name: read_sheet(path, ("RID", "EXAMDATE")) for path in paths}, names=["file", "row"])
    visits["date"] = pd.to_datetime(visits["EXAMDATE"], errors="coerce", format="mixed")
    blank = visits[visits["date"].isna()]
    if len(blank):
        got = blank["EXAMDATE"].iloc[0]
        raise ValueError(f"`{blank.index[0][0]}` must have a date in every `EXAMDATE`, got {got}; fill it in.")
    first = visits.sort_values(["date", "file", "row"]).drop_duplicates("RID").sort_values("RID")
    columns = [name for name in first if name in names and first[name].notna().any()]
    cells = first[["RID", *columns]].fillna("").astype(object).to_numpy().tolist()
    where = " + ".join(path.name for path in paths)
    tables = tabulate(["RID", *(names[name] for name in columns)], cells, who=0, where=where)
    sheet = read_sheet(merged, ("RID", "DX_bl", "AGE", "PTGENDER", "SITE"))
    sheet = sheet[sheet["VISCODE"] == "bl"] if "VISCODE" in sheet else sheet
    scores = {name: limits for name, limits in SCORES.items() if name in sheet}
    group = sheet["DX_bl"].where(sheet["DX_bl"].isin([HEALTHY, *STAGES]))
    people = people_table(
        sheet,
        merged.name,
        key="RID",
        age="AGE",
        sex=sex_letters(sheet["PTGENDER"]),
        site="SITE",
        group=group,
        scores=scores,
    )
    failed = first["RID"][first["OVERALLQC"] == "Fail"] if "OVERALLQC" in first else ()
    excluded = [{"subject": str(rid), "reason": "OVERALLQC is Fail"} for rid in failed]
    tables, modalities = tables.drop(index=list(failed)), _regions(tables, POSTER, "ADNI's tables")
    excluded += torn(tables, modalities)
    return Cohort(
        "adni", tables.drop(index=[one["subject"] for one in excluded], errors="ignore"), people, modalities,
        _files(raw, [*paths, merged, dictionary]),
        "Alzheimer's Disease Neuroimaging Initiative (adni.loni.usc.edu), FreeSurfer by UCSF",
        "the ADNI data use agreement: not to be passed on",
        "Petersen et al., Alzheimer's Disease Neuroimaging Initiative (ADNI): clinical characterization, Neurology "
        "74(3):201-209, 2010, doi:10.1212/WNL.0b013e3181cb3e25",
        STAGES, tuple(map(str.lower, scores)), excluded,
    )  # fmt: skip


def _dictionary(path: Path) -> dict[str, str]:
    """ADNI's code -> canonical name, from texts such as "Volume (Cortical Parcellation) of LeftEntorhinal"."""
    try:
        table = pd.read_csv(path, dtype=str, encoding_errors="replace")
    except (ValueError, OSError):
        raise ValueError(f"`{path.name}` must be ADNI's data dictionary as a CSV that can be read; download it again.") from None
    if not {"FLDNAME", "TEXT"} <= set(table.columns):
        raise ValueError(f"`{path.name}` must have the columns `FLDNAME` and `TEXT`; take ADNI's data dictionary.")
    names: dict[str, str] = {}
    for code, text in table[["FLDNAME", "TEXT"]].dropna().itertuples(index=False):
        title = re.search(r"volume.*? of (\w+)", text, re.I) if re.fullmatch(r"ST\d+[CS]V", code.strip()) else None
        name = canonical(title[1]) if title else None
        if name and names.setdefault(code.strip(), name) != name:
            raise ValueError(
                f"`{path.name}` calls {code} both `{names[code.strip()]}` and `{name}`; keep the rows of one table."
            )
    if not names:
        raise ValueError(f"`{path.name}` must say which region each ST..CV and ST..SV is, and says it of none.")
    return names


def ukb(raw: Path, *, fields: Path | None = None) -> Cohort:
    """UK Biobank: one CSV with the columns eid, age_years, sex (1 male, 0 female, or words), regions and, where they
    are there, site, group and any that begins with icd10.

    Args:
        raw: the export; its regions may have FreeSurfer's names or the titles of UK Biobank's fields.
        fields: a CSV with the columns field and name, for columns that are called otherwise.

    Raises:
        ValueError: a table is not as it should be, in one sentence.
        OSError: a file is missing or cannot be read.
    """
    raw = Path(raw)
    pairs = read_sheet(Path(fields), ("field", "name")).dropna() if fields else pd.DataFrame({"field": [], "name": []})
    rename = dict(zip(pairs["field"], pairs["name"], strict=True))
    sheet = read_sheet(raw, ("eid", "age_years", "sex"), rename)
    eid = next((field for field, name in rename.items() if name == "eid"), "eid")
    tables = read_table(raw, subject=eid, rename=rename)
    group = sheet["group"] if "group" in sheet else pd.Series(HEALTHY, index=sheet.index)
    people = people_table(
        sheet,
        raw.name,
        key="eid",
        age="age_years",
        sex=sex_letters(sheet["sex"], {"1": "M", "0": "F"}),
        site="site",
        group=group,
    )
    excluded = []
    for name in (name for name in sheet if name.lower().startswith("icd10")):
        for who, text in zip(sheet["eid"], sheet[name].fillna(""), strict=True):
            bad = [code for code in re.findall(r"[A-Z]\d\w*", text.upper()) if code.startswith(ICD10)]
            excluded += [{"subject": str(who), "reason": f"ICD-10 {bad[0]}"}] if bad and who in tables.index else []
    modalities = _regions(tables, POSTER, f"`{raw.name}`")
    excluded = list({one["subject"]: one for one in reversed(excluded + torn(tables, modalities))}.values())[::-1]
    return Cohort(
        "ukb-regions", tables.drop(index=[one["subject"] for one in excluded]), people, modalities,
        _files(raw.parent, [raw, *([Path(fields)] if fields else [])]),
        "UK Biobank, FreeSurfer volumes of T1 images",
        "the UK Biobank material transfer agreement: not to be passed on",
        "Miller et al., Multimodal population brain imaging in the UK Biobank prospective epidemiological study, "
        "Nature Neuroscience 19:1523-1536, 2016, doi:10.1038/nn.4393", excluded=excluded,
    )  # fmt: skip


def freesurfer(raw: Path, covariates: Path, *, coding: Mapping[str, str] | None = None, whole: bool = False) -> Cohort:
    """Any cohort: a folder of tables, or a SUBJECTS_DIR of ``<subject>/stats/*.stats``, and a table of covariates.

    Args:
        raw: the folder.
        covariates: a CSV with the columns subject, age_years, sex, group (CN is healthy) and, where there is one, site.
        coding: of sex, where it is given as numbers.
        whole: take all 68 + 33 regions and not only the poster's 64 + 31.

    Raises:
        ValueError: a table is not as it should be, in one sentence.
        OSError: a file is missing or cannot be read.
    """
    raw, covariates, excluded = Path(raw), Path(covariates), []
    if not raw.is_dir():
        raise FileNotFoundError(f"`{raw}` must be a folder of FreeSurfer's tables or subjects.")
    sheet = read_sheet(covariates, ("subject", "age_years", "sex", "group"))
    people = people_table(
        sheet,
        covariates.name,
        key="subject",
        age="age_years",
        sex=sex_letters(sheet["sex"], coding),
        site="site",
        group=sheet["group"],
    )
    subjects = sorted(path.parent for path in raw.glob("*/stats") if path.is_dir())
    if subjects:
        tables, files, excluded = _subjects_dir(subjects)
    else:
        files = [path for path in sorted(raw.iterdir()) if path.suffix in TABLES and path.stem.lower() != "readme"]
        files = [path for path in files if path.resolve() != covariates.resolve()]
        if not files:
            raise FileNotFoundError(
                f"`{raw}` must hold FreeSurfer's tables ({', '.join(TABLES)}) or subjects, got none."
            )
        tables = merge({path.name: read_table(path) for path in files})
    modalities = _regions(tables, WHOLE if whole else POSTER, f"`{raw.name}`")
    return Cohort(
        "freesurfer", tables, people, modalities, _files(raw, [*files, covariates]),
        f"FreeSurfer's output in {raw.resolve().name}", "as the cohort has it",
        "Fischl, FreeSurfer, NeuroImage 62(2):774-781, 2012, doi:10.1016/j.neuroimage.2012.01.021",
        tuple(dict.fromkeys(name for name in STAGES if (people["group"] == name).any())), excluded=excluded,
    )  # fmt: skip


def _subjects_dir(folders: Sequence[Path]) -> tuple[pd.DataFrame, list[Path], Excluded]:
    rows, files, excluded, version = {}, [], [], {}
    for folder in folders:
        try:
            rows[folder.name] = read_subject(folder)
        except FileNotFoundError as error:
            excluded.append({"subject": folder.name, "reason": str(error).partition(";")[0].replace("`", "")})
        except (ValueError, OSError) as error:
            excluded.append({"subject": folder.name, "reason": str(error)})
        else:
            found = [sorted(folder.glob(f"mri/{side}.hippoSfVolumes-T1.v*.txt"))[-1:] for side in ("lh", "rh")]
            fields = [path for paths in found for path in paths]
            files += [*(folder / "stats" / f"{name}.stats" for name in ("aseg", "lh.aparc", "rh.aparc")), *fields]
            version |= {path.suffixes[-2]: folder.name for path in fields}
    if not rows:
        one = excluded[0]
        raise ValueError(
            f"none of the {len(folders)} subjects can be read; {one['subject']}: {one['reason'].rstrip('.')}."
        )
    if len(version) > 1:
        some = " and ".join(f"{name[1:]} ({who})" for name, who in version.items())
        raise ValueError(
            f"all subfields must be of one version of FreeSurfer, got {some}; segment them again with one."
        )
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("subject"), files, excluded
