"""Real region tables: every format as FreeSurfer writes it, every bad input, and ABIDE where it is at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.__main__ import main
from data_prep.region_names import AGGREGATES, CORTICAL, HIPPOCAMPAL, POSTER, SUBCORTICAL
from data_prep.regions import FRACTIONS, split_controls
from data_prep.regions_cohorts import ADNI_SUBFIELDS
from data_prep.regions_freesurfer import DK, MEASURED, canonical, read_hippocampus, read_subject, read_table
from data_prep.regions_quality import check_regions
from data_prep.regions_sheets import sex_letters

REPO = Path(__file__).parents[1]
REAL = Path(os.environ.get("MEDVAE_DATA", REPO.parent / "shared" / "data")) / "abide_fs6"
needs_abide = pytest.mark.skipif(
    not REAL.is_dir(), reason="no ABIDE data: set MEDVAE_DATA to the folder with abide_fs6"
)
LARGE = {
    "Cerebral-White-Matter": 240e3, "Cerebellum-Cortex": 55e3, "Cerebellum-White-Matter": 15e3, "Brain-Stem": 20e3,
    "Lateral-Ventricle": 5e3, "Thalamus": 7e3, "Putamen": 6e3, "Caudate": 4e3, "Hippocampus": 4e3,
}  # fmt: skip


def cohort(count=24, seed=0):
    """Regions by canonical name (mm3, mm) with icv, and covariates; the first two thirds are healthy."""
    rng = np.random.default_rng(seed)
    typical = dict.fromkeys(DK, 7000) | {
        name: LARGE.get(name.removeprefix("Left-").removeprefix("Right-"), 1500) for name in MEASURED
    }
    typical |= dict.fromkeys(HIPPOCAMPAL, 300) | {f"{name}_thickness": 2.5 for name in DK} | {"icv": 1.5e6}
    noise = np.exp(0.1 * rng.standard_normal((count, len(typical))))
    people = pd.Index([f"sub-{i:03d}" for i in range(count)], name="subject")
    regions = pd.DataFrame(noise * list(typical.values()), people, list(typical)).round(3)
    group = np.where(np.arange(count) < 2 * count // 3, "CN", "AD")
    sex = np.where(rng.random(count) < 0.5, "F", "M")
    site = np.where(np.arange(count) % 3 == 0, "A", "B")
    return regions, pd.DataFrame(
        {"age_years": rng.uniform(50, 90, count).round(1), "sex": sex, "group": group, "site": site}, people
    )


def by_freesurfer_6(name):
    """How asegstats2table of FreeSurfer 6 calls a canonical name."""
    for side, word in (("lh", "Left"), ("rh", "Right")):
        name = name.replace(f"{word}-Cerebral-White-Matter", f"{side}CerebralWhiteMatterVol")
    return name.replace("Thalamus", "Thalamus-Proper").replace("icv", "EstimatedTotalIntraCranialVol")


def sheets(regions):
    """File name -> table as aparcstats2table and asegstats2table write it."""
    tables = {}
    for side in ("lh", "rh"):
        for measure, suffix in (("volume", ""), ("thickness", "_thickness")):
            names = {f"{name}{suffix}": f"{name}_{measure}" for name in DK if name.startswith(side)}
            tables[f"{side}.{measure}.tsv"] = (
                regions[list(names)].rename(columns=names).rename_axis(f"{side}.aparc.{measure}")
            )
    aseg = regions[[*MEASURED, "icv"]].rename(columns=by_freesurfer_6)
    tables["aseg.tsv"] = aseg.assign(**{"Left-vessel": 0.0, "BrainSegVol": 1.1e6}).rename_axis("Measure:volume")
    return tables


def write(root, tables, people):
    (root / "raw").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(root / "raw" / name, sep="\t")
    people.to_csv(root / "people.csv")
    return root


def command(root, *more):
    return main(["freesurfer", str(root / "raw"), str(root / "out"), "--covariates", str(root / "people.csv"), *more])


def read(out):
    card = json.loads((out / "card.json").read_text())
    names = [name for modality in card["modalities"].values() for name in modality["regions"]]
    subjects = pd.read_csv(out / "subjects.csv", dtype={"subject": str})
    return card, subjects, pd.DataFrame(np.load(out / "regions.npy"), subjects["subject"], names)


def one_sentence(text):
    text = text.removeprefix("error: ")
    return text.count("\n") <= 1 and 20 < len(text) < 500 and text.rstrip().endswith(".")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ("Left-Thalamus-Proper", "Left-Thalamus"), ("Right-Thalamus-Proper*", "Right-Thalamus"),
        ("Left-Thalamus", "Left-Thalamus"),
        ("lhCorticalWhiteMatterVol", "Left-Cerebral-White-Matter"),
        ("rhCerebralWhiteMatterVol", "Right-Cerebral-White-Matter"),
        ("CorticalWhiteMatterVol", "Cerebral-White-Matter"), ("CerebralWhiteMatterVol", "Cerebral-White-Matter"),
        ("IntraCranialVol", "icv"), ("EstimatedTotalIntraCranialVol", "icv"), ("eTIV", "icv"), ("Icv", "icv"),
        ("X3rd.Ventricle", "3rd-Ventricle"), ("Left.Hippocampus", "Left-Hippocampus"),
        ("Left-Accumbens-Area", "Left-Accumbens-area"),
        ("lh_entorhinal_volume", "lh_entorhinal"), ("lh.entorhinal", "lh_entorhinal"), ("ctx-rh-insula", "rh_insula"),
        ("lh_entorhinal_thickness", "lh_entorhinal_thickness"), ("rh_cuneus_area", "rh_cuneus_area"),
        ("LeftEntorhinal", "lh_entorhinal"), ("CorpusCallosumMidAnterior", "CC_Mid_Anterior"),
        ("WMHypoIntensities", "WM-hypointensities"),
        ("Volume of lingual (left hemisphere)", "lh_lingual"),
        ("Mean thickness of insula (right hemisphere)", "rh_insula_thickness"),
        ("Volume of 3rd-Ventricle (whole brain)", "3rd-Ventricle"), ("lh_CA3", "lh_CA2_3"),
        ("rh_Hippocampal_tail", "rh_tail"),
        ("lhCortexVol", "LeftCorticalGM"), ("TotalGrayVol", "TotalGM"), ("SubCortGrayVol", "SubcorticalGM"),
        ("lh_MeanThickness_thickness", None), ("BrainSegVolNotVent", None), ("lh_CA4", None),
        ("Left-Cerebral-Cortex", None),
        ("Left-Hippocampus_thickness", None), ("lateraloccipital", None), ("", None), ("Whole_hippocampus", None),
    ],
)  # fmt: skip
def test_a_name_means_one_region(found, name):
    assert canonical(found) == name


def test_canonical_names_are_their_own():
    for name in (*DK, *MEASURED, *HIPPOCAMPAL, *AGGREGATES, "icv"):
        assert canonical(name) == name


# --- readers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["\t", ",", "  "])
def test_a_table_is_read_by_name_whatever_separates_it(tmp_path, separator):
    table = sheets(cohort()[0])["aseg.tsv"]
    shuffled = table[np.random.default_rng(0).permutation(table.columns)]
    lines = [
        separator.join([table.index.name, *shuffled]),
        *(separator.join([who, *map(str, row)]) for who, row in zip(table.index, shuffled.to_numpy())),
    ]
    (tmp_path / "aseg.txt").write_text("\n".join(lines) + "\n")
    read_back = read_table(tmp_path / "aseg.txt")
    pd.testing.assert_frame_equal(
        read_back[list(MEASURED)], cohort()[0][list(MEASURED)], check_names=False, check_index_type=False
    )
    assert read_back.attrs["unknown"] == [name for name in shuffled if name == "BrainSegVol"]


def test_a_table_of_thickness_need_not_repeat_it(tmp_path):
    (tmp_path / "a.tsv").write_text("lh.aparc.thickness\tlh_cuneus\tlh_insula_thickness\nx\t2.1\t3.1\n")
    assert read_table(tmp_path / "a.tsv").iloc[0].to_dict() == {"lh_cuneus_thickness": 2.1, "lh_insula_thickness": 3.1}


def test_another_atlas_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("lh.aparc.a2009s.volume\tlh_cuneus_volume\nx\t2000\n")
    with pytest.raises(ValueError, match="atlas aparc .* got aparc.a2009s"):
        read_table(tmp_path / "a.tsv")


def write_subject(folder, row, *, version=7):
    """One person's folder as recon-all of FreeSurfer 5, 6 or 7 leaves it."""
    (folder / "stats").mkdir(parents=True)
    (folder / "mri").mkdir()
    white = "Cortical" if version == 5 else "Cerebral"
    icv = "IntraCranialVol, ICV" if version == 5 else "EstimatedTotalIntraCranialVol, eTIV"
    lines = ["# Measure BrainSegVol-to-eTIV, BrainSegVol-to-eTIV, Ratio of BrainSegVol to eTIV, 0.764228, unitless"]
    lines += [f"# subjectname {folder.name}", f"# Measure {icv}, Intracranial Volume, {row['icv']}, mm^3"]
    for side, word in (("lh", "Left"), ("rh", "Right")):
        value = row[f"{word}-Cerebral-White-Matter"]
        lines += [
            f"# Measure {side}{white}WhiteMatter, {side}{white}WhiteMatterVol, White matter volume, {value}, mm^3"
        ]
    lines += [
        "# NRows 45",
        "# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange",
    ]
    names = [name for name in MEASURED if "Cerebral" not in name]
    called = (lambda name: name) if version == 7 else by_freesurfer_6
    lines += [f"{i:3d} {i + 3:3d} 1000 {row[name]} {called(name)} 50.1 9.2 0 90 90" for i, name in enumerate(names, 1)]
    (folder / "stats" / "aseg.stats").write_text("\n".join(lines) + "\n")
    for side in ("lh", "rh"):
        lines = [
            f"# hemi {side}",
            "# Measure Cortex, MeanThickness, Mean Thickness, 2.5, mm",
            f"# Measure {icv}, Intracranial Volume, {row['icv']}, mm^3",
            "# ColHeaders StructName NumVert SurfArea GrayVol ThickAvg ThickStd MeanCurv GausCurv FoldInd CurvInd",
        ]
        lines += [
            f"{name[3:]} 900 600 {row[name]} {row[f'{name}_thickness']} 0.4 0.1 0.02 9 1"
            for name in DK
            if name.startswith(side)
        ]
        (folder / "stats" / f"{side}.aparc.stats").write_text("\n".join(lines) + "\n")
        write_hippocampus(folder / "mri", side, row, version=version)
    return folder


def write_hippocampus(folder, side, row, *, version):
    """Subfields whose sums are those of `row`: 13 lines by FreeSurfer 6, 22 by FreeSurfer 7."""
    whole = {name: row[f"{side}_{name}"] for name in ("CA1", "presubiculum", "subiculum")}
    whole |= {
        "CA3": row[f"{side}_CA2_3"],
        "CA4": 0.25 * row[f"{side}_CA4_DG"],
        "GC-ML-DG": 0.75 * row[f"{side}_CA4_DG"],
        "molecular_layer_HP": 500,
    }
    plain = {
        "Hippocampal_tail": row[f"{side}_tail"],
        "hippocampal-fissure": row[f"{side}_hippocampal-fissure"],
        "fimbria": row[f"{side}_fimbria"],
    }
    plain |= {"parasubiculum": 60, "HATA": 55, "Whole_hippocampus": 3400}
    if version == 7:
        whole = {
            f"{name}-{part}": share * value
            for name, value in whole.items()
            for part, share in (("head", 0.4), ("body", 0.6))
        }
        plain |= {"Whole_hippocampal_body": 1300, "Whole_hippocampal_head": 1600}
    lines = [f"{name} {value}" for name, value in (whole | plain).items()]
    assert len(lines) == (22 if version == 7 else 13)
    path = folder / f"{side}.hippoSfVolumes-T1.{'v21' if version == 7 else 'v10'}.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("version", [5, 6, 7])
def test_one_folder_by_recon_all(tmp_path, version):
    row = cohort()[0].iloc[3]
    got = pd.Series(read_subject(write_subject(tmp_path / "bert", row, version=version)))
    pd.testing.assert_series_equal(got[row.index], row, check_names=False, rtol=1e-12)


@pytest.mark.parametrize("version", [6, 7])
def test_subfields_are_summed_from_their_parts(tmp_path, version):
    row = cohort()[0].iloc[0]
    got = read_hippocampus(write_hippocampus(tmp_path, "rh", row, version=version))
    assert got == pytest.approx({name: row[name] for name in HIPPOCAMPAL if name.startswith("rh")})


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("CA1-body", "", "whole of the region `lh_CA1` and lacks its part 'ca1body'"),
        ("GC-ML-DG-head", "", "`lh_CA4_DG` and lacks"),
        ("fimbria", "", "region `lh_fimbria`, which is missing"),
        ("fimbria", "fimbria 9\nfimbria 9", "`lh_fimbria` twice"),
        ("fimbria", "fimbria many", "must be a number, got 'many'"), ("fimbria", "fimbria", "a name and a volume"),
        ("fimbria", "fimbria 9\nCA1 9", "`lh_CA1` twice, as a whole and in parts"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_subfields_is_refused(tmp_path, line, other, message):
    path = write_hippocampus(tmp_path, "lh", cohort()[0].iloc[0], version=7)
    lines = [other if text.startswith(line + " ") else text for text in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_hippocampus(path)


# --- from tables to a prepared folder -------------------------------------------------------------


def test_tables_become_a_prepared_folder(tmp_path):
    regions, people = cohort()
    assert command(write(tmp_path, sheets(regions), people)) == 0
    card, subjects, values = read(tmp_path / "out")
    assert card["modalities"]["cortical"] == {"unit": "mm3", "regions": list(CORTICAL)}
    assert card["modalities"]["subcortical"]["regions"] == list(SUBCORTICAL)
    assert card["modalities"]["thickness"]["unit"] == "mm" and card["excluded"] == []
    np.testing.assert_allclose(values, regions.loc[subjects["subject"], values.columns], rtol=1e-6)
    known = people.loc[subjects["subject"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(subjects[list(known)], known)
    assert subjects.query("group == 'CN'")["split"].value_counts().to_dict() == {
        "train": 8,
        "val": 2,
        "holdout": 3,
        "test": 3,
    }
    assert (subjects.query("group == 'AD'")["split"] == "patients").all()


def test_the_same_tables_give_the_same_bytes(tmp_path):
    regions, people = cohort()
    for name, order in (("a", slice(None)), ("b", slice(None, None, -1))):
        tables = {file: table.iloc[order] for file, table in sheets(regions).items()}
        assert command(write(tmp_path / name, tables, people.iloc[order])) == 0
    for file in ("regions.npy", "subjects.csv"):
        assert (tmp_path / "a/out" / file).read_bytes() == (tmp_path / "b/out" / file).read_bytes()
    before = {path.name: path.read_bytes() for path in (tmp_path / "a/out").iterdir()}
    assert command(tmp_path / "a") == 0
    (tmp_path / "a/out").rename(tmp_path / "a/old")
    assert command(tmp_path / "a") == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a/out").iterdir()}
    assert command(tmp_path / "a", "--seed", "1") == 2  # another split is another dataset


def test_a_folder_of_subjects_gives_what_the_tables_give(tmp_path):
    regions, people = cohort(9)
    people["group"] = "CN"
    for who, row in regions.iterrows():
        write_subject(tmp_path / "raw" / who, row)
    (tmp_path / "raw" / "sub-002" / "stats" / "rh.aparc.stats").unlink()
    (tmp_path / "raw" / "sub-004" / "stats" / "aseg.stats").write_text("# ColHeaders StructName\n")
    people.to_csv(tmp_path / "people.csv")
    assert command(tmp_path, "--whole") == 0
    card, subjects, values = read(tmp_path / "out")
    assert list(card["modalities"]) == ["cortical", "subcortical", "hippocampal", "thickness"] and values.shape == (
        7,
        68 + 33 + 16 + 68,
    )
    np.testing.assert_allclose(values, regions.loc[subjects["subject"], values.columns], rtol=1e-6)
    assert [(one["subject"], one["reason"].split(" must")[0]) for one in card["excluded"]] == [
        ("sub-002", "rh.aparc.stats is missing"), ("sub-004", "`sub-004/stats/aseg.stats`"),
    ]  # fmt: skip


def test_subfields_of_two_versions_are_refused(tmp_path, capsys):
    regions, people = cohort(8)
    for i, (who, row) in enumerate(regions.iterrows()):
        write_subject(tmp_path / "raw" / who, row, version=6 + i % 2)
    people.to_csv(tmp_path / "people.csv")
    assert command(tmp_path) == 2
    assert "one version of FreeSurfer, got v10" in capsys.readouterr().err


def rename(file, old, new):
    return lambda tables, people: (tables | {file: tables[file].rename(columns={old: new})}, people)


def change(file, alter):
    return lambda tables, people: (tables | {file: alter(tables[file])}, people)


def scale(columns, factor):
    return lambda table: table.assign(**{name: table[name] * factor for name in (columns or table.columns)})


def cell(column, value):
    return lambda table: table.assign(**{column: [value, *table[column].iloc[1:]]})


def twice(table):
    return pd.concat([table, table.iloc[:1]])


VOLUME, ASEG = "lh.volume.tsv", "aseg.tsv"
BAD = {
    "a region missing": (
        change(VOLUME, lambda t: t.drop(columns="lh_cuneus_volume")),
        "region `lh_cuneus`, which is missing",
    ),
    "a region renamed": (
        rename(ASEG, "Left-Hippocampus", "Left-Hipp0campus"),
        "`Left-Hippocampus`, which is missing .* if `Left-Hipp0campus` is it, rename that",
    ),
    "a region doubled": (
        rename(VOLUME, "lh_cuneus_volume", "lh.insula"),
        "`lh_insula` twice, as `lh.insula` and `lh_insula_volume`",
    ),
    "a region in two tables": (
        lambda t, p: (t | {"more.tsv": t[ASEG][["CSF"]]}, p),
        "region `CSF` is in `aseg.tsv` and in `more.tsv`",
    ),
    "a column in mL": (
        change(ASEG, scale(["Left-Putamen"], 1e-3)),
        "`Left-Putamen` must be in mm3 .* looks like mL: multiply by 1000",
    ),
    "the largest region in mL": (change(VOLUME, scale(["lh_cuneus_volume"], 3e-3)), "`lh_cuneus` must be in mm3"),
    "white matter in mL": (
        change(ASEG, scale(["lhCerebralWhiteMatterVol"], 1e-3)),
        "`Left-Cerebral-White-Matter` must be in mm3",
    ),
    "a table in m3": (
        change(VOLUME, scale(None, 1e-9)),
        r"`lh_caudalanteriorcingulate` \(and 31 more of cortical\) .* m3: multiply by 1e\+09",
    ),
    "a table in cubic voxels of 0.7": (
        lambda t, p: (t | {f: t[f] * 3 for f in (VOLUME, "rh.volume.tsv")}, p),
        "the sum of the cortical volumes",
    ),
    "thickness in m": (
        change("rh.thickness.tsv", scale(None, 1e-3)),
        "must be in mm with .* looks like m: multiply by 1000",
    ),
    "intracranial volume in mL": (
        change(ASEG, scale(["EstimatedTotalIntraCranialVol"], 1e-3)),
        "intracranial volume must be in mm3 .* mL",
    ),
    "a person twice": (change(ASEG, twice), "`aseg.tsv` holds the subject 'sub-000' twice"),
    "a person twice among the covariates": (
        lambda t, p: (t, twice(p)),
        "`people.csv` holds the subject 'sub-000' twice",
    ),
    "NaN": (change(ASEG, cell("CSF", np.nan)), "`CSF` is missing for 'sub-000'"),
    "a negative volume": (
        change(ASEG, cell("CSF", -1.0)),
        "`CSF` of 'sub-000' must be finite and not negative, got -1",
    ),
    "a person missing from one side": (
        change(VOLUME, lambda t: t.iloc[1:]),
        "`lh_caudalanteriorcingulate` is missing for 'sub-000'",
    ),
    "no number": (change(ASEG, cell("CSF", "?")), r"`CSF` must be a number, got '\?'"),
    "a constant column": (change(ASEG, lambda t: t.assign(CSF=900.0)), "`CSF` is 900 for everyone"),
    "another's sum": (
        change(ASEG, lambda t: t.assign(CSF=t["CC_Central"] + t["CC_Anterior"])),
        "`CSF` is the sum of other regions",
    ),
    "a sum but for rounding": (
        change(ASEG, lambda t: t.assign(CSF=(t["CC_Central"] + t["CC_Anterior"]) * 1.0004)),
        "`CSF` is the sum",
    ),
    "sex as numbers": (
        lambda t, p: (t, p.assign(sex=p["sex"].map({"F": 0, "M": 1}))),
        r"sex must be M or F since .* --sex 1=M,2=F",
    ),
    "sex in two ways": (lambda t, p: (t, p.assign(sex=["1", *p["sex"][1:]])), "sex must be M or F since"),
    "no healthy people": (lambda t, p: (t, p.assign(group="AD")), "5 or more usable people of the group CN, got 0"),
    "other subjects": (
        lambda t, p: (t, p.rename(index=lambda who: who[4:])),
        "must name the subjects of the tables, such as 'sub-000'",
    ),
    "two intracranial volumes": (
        change(VOLUME, lambda t: t.assign(eTIV=1.5e6)),
        "`lh.volume.tsv` gives another intracranial volume|aseg.tsv.* gives another intra",
    ),
    "no intracranial volume": (
        rename(ASEG, "EstimatedTotalIntraCranialVol", "MaskVol"),
        "region `icv`, which is missing",
    ),
    "age of 200": (lambda t, p: (t, p.assign(age_years=200.0)), "`age_years` must be from 0 to 120, got '200.0'"),
    "no column of age": (
        lambda t, p: (t, p.drop(columns="age_years")),
        "`people.csv` must have one column `age_years`, got 0",
    ),
    "no tables": (lambda t, p: ({}, p), "must hold FreeSurfer's tables"),
    "no regions": (lambda t, p: ({"a.tsv": t[ASEG][["BrainSegVol"]]}, p), "must hold regions by FreeSurfer's names"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_input_gets_one_sentence(tmp_path, capsys, what):
    alter, message = BAD[what]
    regions, people = cohort()
    assert command(write(tmp_path, *alter(sheets(regions), people))) == 2
    error = capsys.readouterr().err
    assert one_sentence(error), error
    assert pd.Series([error]).str.contains(message, regex=True).all(), error
    assert not (tmp_path / "out").exists()


def test_people_who_cannot_be_used_are_listed(tmp_path):
    regions, people = cohort()
    regions.loc["sub-001", "icv"], regions.loc["sub-002", "lh_cuneus"] = 3e5, 0
    regions.loc["sub-003", "icv"] = 2.6e6
    people.loc["sub-004", "age_years"] = np.nan
    assert command(write(tmp_path, sheets(regions), people.drop(index="sub-005"))) == 0
    card, subjects, _ = read(tmp_path / "out")
    assert {one["subject"]: one["reason"] for one in card["excluded"]} == {
        "sub-001": "intracranial volume 300,000 mm3 is not from 800,000 to 2,500,000",
        "sub-002": "`lh_cuneus` is 0: FreeSurfer did not find it",
        "sub-003": "intracranial volume 2,600,000 mm3 is not from 800,000 to 2,500,000",
        "sub-004": "no age is given", "sub-005": "has no covariates",
    }  # fmt: skip
    assert not set(subjects["subject"]) & {one["subject"] for one in card["excluded"]} and len(subjects) == 19


def test_a_person_may_lack_a_whole_modality(tmp_path):
    tables = sheets(cohort()[0])
    for side in ("lh", "rh"):
        tables[f"{side}.thickness.tsv"] = tables[f"{side}.thickness.tsv"].drop(index="sub-007")
    assert command(write(tmp_path, tables, cohort()[1])) == 0
    values = read(tmp_path / "out")[2]
    absent = values.columns[values.loc["sub-007"].isna()]
    assert len(absent) == 64 and all(name.endswith("_thickness") for name in absent) and values.isna().sum().sum() == 64


def test_sums_are_taken_when_asked_for(tmp_path, capsys):
    regions, people = cohort()
    tables = sheets(regions)
    tables[ASEG] = tables[ASEG].assign(
        lhCortexVol=regions[list(DK[:34])].sum(axis=1), CSF=regions["CC_Central"] + regions["CC_Anterior"]
    )
    write(tmp_path, tables, people)
    assert command(tmp_path) == 2 and "`CSF` is the sum" in capsys.readouterr().err
    assert command(tmp_path, "--aggregates") == 0
    assert read(tmp_path / "out")[0]["aggregates"] == ["LeftCorticalGM"]


def test_a_sum_of_many_regions_is_found():
    regions, _ = cohort(400)
    names = list(SUBCORTICAL)
    table = regions[names].assign(CSF=regions[names[3:10]].sum(axis=1) - 20e3)
    check_regions(table, {"subcortical": names})  # a sum and a constant is no sum
    with pytest.raises(ValueError, match="`CSF` is a sum of other regions to 0.1 %"):
        check_regions(regions[names].assign(CSF=regions[names[3:10]].sum(axis=1).round()), {"subcortical": names})


def test_freesurfer_7_repeats_the_intracranial_volume_in_every_table(tmp_path):
    regions, people = cohort()
    assert (
        command(
            write(
                tmp_path,
                {
                    name: table.assign(eTIV=regions["icv"]) if name != ASEG else table
                    for name, table in sheets(regions).items()
                },
                people,
            )
        )
        == 0
    )
    np.testing.assert_allclose(read(tmp_path / "out")[1]["icv_mm3"], regions["icv"])


def test_sex_is_never_guessed():
    assert list(sex_letters(pd.Series(["M", "female", "F ", "Male"]))) == ["M", "F", "F", "M"]
    assert list(sex_letters(pd.Series(["1", "2.0", ""]), {"1": "M", "2": "F"})[:2]) == ["M", "F"]
    with pytest.raises(ValueError, match="must be M or F or 1=M, 2=F, got '0' in row 3"):
        sex_letters(pd.Series(["1", "0"]), {"1": "M", "2": "F"})


def test_the_split_keeps_sites_in_proportion_and_depends_on_the_seed():
    names = [f"s{i}" for i in range(400)]
    sites = ["A"] * 200 + ["B"] * 150 + ["C"] * 50
    split = pd.Series(split_controls(names, sites, seed=0), names)
    shares = pd.crosstab(pd.Series(sites, names), split, normalize="index")
    np.testing.assert_allclose(shares[list(FRACTIONS)], np.tile(list(FRACTIONS.values()), (3, 1)), atol=0.02)
    again = pd.Series(split_controls(names[::-1], sites[::-1], seed=0), names[::-1])
    assert split.equals(again[names]) and not split.equals(pd.Series(split_controls(names, sites, seed=1), names))


# --- cohorts --------------------------------------------------------------------------------------


def test_abide_joins_people_by_the_digits_of_their_scan(tmp_path, capsys):
    regions, people = cohort(16)
    numbers = np.arange(51456, 51472)
    regions = regions.set_axis(pd.Index([f"Max_Mun_d_00{number}" for number in numbers], name="subject"))
    phenotype = pd.DataFrame(
        {"SUB_ID": numbers, "SITE_ID": ["UM_1"] * 14 + ["UM_2"] * 2, "DX_GROUP": [2] * 12 + [1] * 3 + [2]}
    )
    phenotype = phenotype.assign(AGE_AT_SCAN=people["age_years"].to_numpy(), SEX=[1, 2] * 8, FIQ=-9999)
    (tmp_path / "stats").mkdir()
    for name, table in sheets(regions).items():
        side, _, measure = name.removesuffix(".tsv").partition(".")
        table.to_csv(
            tmp_path / "stats" / (f"{side}.aparc_table_{measure}.tsv" if measure else "aseg_table.tsv"), sep="\t"
        )
    phenotype.iloc[::-1].to_csv(tmp_path / "abide_phenotype.csv", index=False)
    assert main(["abide", str(tmp_path), str(tmp_path / "out")]) == 0
    card, subjects, values = read(tmp_path / "out")
    np.testing.assert_allclose(values, regions[values.columns], rtol=1e-6)
    assert list(subjects["sex"]) == ["M", "F"] * 8 and list(subjects["group"]) == ["CN"] * 12 + ["ASD"] * 3 + ["CN"]
    assert list(subjects["age_years"]) == list(people["age_years"]) and subjects["site"].iloc[-1] == "UM_2"
    assert card["notes"] == ["healthy people of site UM_2: 1, too few to be in every split"]
    path = tmp_path / "stats" / "aseg_table.tsv"
    path.write_text(path.read_text().replace("Max_Mun_d_0051457", "UM_1_0051456"))
    assert main(["abide", str(tmp_path), str(tmp_path / "other")]) == 2
    assert "holds the subject '51456' twice" in capsys.readouterr().err


def write_adni(root):
    """Three files as ADNI gives them, with codes of our own, since the dictionary says what they are; the regions."""
    regions, people = cohort(20)
    root.mkdir()
    names = [*DK, *SUBCORTICAL, "icv"]
    sides = {"lh_": "Left", "rh_": "Right", "Left-": "Left", "Right-": "Right"}
    codes, lines = {}, []
    for i, name in enumerate(names):
        codes[f"ST{i + 1}{'SV' if name in SUBCORTICAL else 'CV'}"] = name
        side = next((start for start in sides if name.startswith(start)), "")
        bare = (
            name.removeprefix(side)
            .replace("-", "")
            .replace("_", "")
            .replace("CC", "CorpusCallosum")
            .replace("3rd", "Third")
        )
        kind = "Subcortical Volume (aseg.stats)" if name in SUBCORTICAL else "Volume (Cortical Parcellation)"
        lines.append(
            {
                "FLDNAME": f"ST{i + 1}{'SV' if name in SUBCORTICAL else 'CV'}",
                "TBLNAME": "UCSFFSX51",
                "TEXT": f"{kind} of {sides.get(side, '')}{bare}",
            }
        )
    lines.append({"FLDNAME": "ST13TA", "TBLNAME": "UCSFFSX51", "TEXT": "Cortical Thickness Average of LeftBankssts"})
    pd.DataFrame(lines).to_csv(root / "DATADIC.csv", index=False, quoting=1)
    codes |= ADNI_SUBFIELDS
    visits = regions[list(codes.values())].set_axis(list(codes), axis=1)
    visits.insert(0, "RID", np.arange(2, 22))
    visits.loc["sub-003", "ST4CV"] = np.nan  # a scan that failed in part
    first = visits.assign(EXAMDATE="2010-03-01", OVERALLQC=["Fail"] + ["Pass"] * 19)
    later = (visits * 1.5).assign(RID=visits["RID"], EXAMDATE="2011-03-01", OVERALLQC="Pass")
    pd.concat([later, first]).to_csv(root / "UCSFFSX51_11_08_19.csv", index=False, quoting=1)
    stages = ["CN"] * 12 + ["SMC", "EMCI", "EMCI", "LMCI", "LMCI", "AD", "AD", "MCI"]
    merged = pd.DataFrame(
        {
            "RID": visits["RID"],
            "VISCODE": "bl",
            "DX_bl": stages,
            "AGE": people["age_years"],
            "PTGENDER": people["sex"].map({"F": "Female", "M": "Male"}),
            "SITE": 11,
            "ADAS13": 9.5,
            "RAVLT_immediate": ["NA"] + [40] * 19,
        }
    )
    pd.concat([merged, merged.assign(VISCODE="m12", AGE=99)]).to_csv(root / "ADNIMERGE.csv", index=False, quoting=1)
    return regions.set_axis(visits["RID"].astype(str))


def test_adni_is_read_by_its_own_dictionary_at_the_first_visit(tmp_path):
    regions = write_adni(tmp_path / "adni")
    assert main(["adni", str(tmp_path / "adni"), str(tmp_path / "out")]) == 0
    card, subjects, values = read(tmp_path / "out")
    assert {name: part["regions"] for name, part in card["modalities"].items()} == {
        name: list(part) for name, part in POSTER.items()
    }
    np.testing.assert_allclose(values, regions.loc[subjects["subject"], values.columns], rtol=1e-6)
    assert {one["subject"]: one["reason"] for one in card["excluded"]} == {
        "2": "OVERALLQC is Fail",
        "5": "`lh_cuneus` is missing",
        "21": "no group is given",
    }
    assert card["stages"] == ["SMC", "EMCI", "LMCI", "AD"] and card["scores"] == ["adas13", "ravlt_immediate"]
    assert (subjects["adas13"] == 9.5).all() and set(subjects["site"]) == {11}


def test_adni_subfields_are_left_then_right():
    assert (
        ADNI_SUBFIELDS["ST131HS"] == "lh_CA1"
        and ADNI_SUBFIELDS["ST138HS"] == "lh_tail"
        and ADNI_SUBFIELDS["ST133HS"] == "lh_CA4_DG"
    )
    assert (
        ADNI_SUBFIELDS["ST139HS"] == "rh_CA1"
        and ADNI_SUBFIELDS["ST146HS"] == "rh_tail"
        and sorted(ADNI_SUBFIELDS.values()) == sorted(HIPPOCAMPAL)
    )


def test_a_dictionary_that_contradicts_itself_is_refused(tmp_path, capsys):
    write_adni(tmp_path / "adni")
    with open(tmp_path / "adni" / "DATADIC.csv", "a") as file:
        file.write('"ST1CV","UCSFFSX","Volume (Cortical Parcellation) of LeftInsula"\n')
    assert main(["adni", str(tmp_path / "adni"), str(tmp_path / "out")]) == 2
    assert "calls ST1CV both `lh_bankssts` and `lh_insula`" in capsys.readouterr().err


def test_uk_biobank_by_its_titles_codes_and_diagnoses(tmp_path):
    regions, people = cohort(16)
    codes = {f"{26500 + i}-2.0": name for i, name in enumerate([*CORTICAL, *SUBCORTICAL, "icv"])}
    table = regions[list(codes.values())].set_axis(list(codes), axis=1)
    for side, word in (("lh", "left"), ("rh", "right")):  # subfields by head and body, as the titles have them
        for part in ("CA1", "CA3", "CA4", "GC-ML-DG", "presubiculum", "subiculum"):
            for half in ("head", "body"):
                table[f"Volume of {part}-{half} ({word} hemisphere)"] = regions[f"{side}_CA1"] * (
                    1 + len(part) / 10 + len(table.columns) / 999
                )
        for part in ("fimbria", "hippocampal-fissure", "Hippocampal-tail"):
            table[f"Volume of {part} ({word} hemisphere)"] = regions[f"{side}_{part.removeprefix('Hippocampal-')}"]
    table.insert(0, "f.eid", range(1000, 1016))
    table["21003-2.0"], table["31-0.0"] = people["age_years"], people["sex"].map({"F": 0, "M": 1})
    table["icd10"] = ["", "I251|F320", '["I639"]', "I10", "D320", "J45", "I7", "G35"] + [""] * 8
    fields = codes | {"f.eid": "eid", "21003-2.0": "age_years", "31-0.0": "sex"}
    pd.DataFrame({"field": list(fields), "name": list(fields.values())}).to_csv(tmp_path / "fields.csv", index=False)
    table.to_csv(tmp_path / "export.csv", index=False)
    assert (
        main(
            [
                "ukb-regions",
                str(tmp_path / "export.csv"),
                str(tmp_path / "out"),
                "--fields",
                str(tmp_path / "fields.csv"),
            ]
        )
        == 0
    )
    card, subjects, values = read(tmp_path / "out")
    assert {one["subject"]: one["reason"] for one in card["excluded"]} == {
        "1001": "ICD-10 F320", "1002": "ICD-10 I639", "1004": "ICD-10 D320", "1007": "ICD-10 G35",
    }  # fmt: skip
    assert list(card["modalities"]) == list(POSTER) and len(subjects) == 12
    at = [int(who) - 1000 for who in subjects["subject"]]
    np.testing.assert_allclose(values[list(CORTICAL)], regions.iloc[at][list(CORTICAL)], rtol=1e-6)
    halves = table.iloc[at][[f"Volume of CA1-{half} (right hemisphere)" for half in ("head", "body")]].sum(axis=1)
    np.testing.assert_allclose(values["rh_CA1"], halves, rtol=1e-6)
    assert list(subjects["sex"]) == list(people["sex"].iloc[at])


# --- anything at all ------------------------------------------------------------------------------


def mutate(text, rng):
    """One small injury to a table: a cell, a line, a byte or the separator."""
    lines = text.split("\n")
    row = int(rng.integers(max(1, len(lines) - 1)))
    mark = "," if "," in lines[0] else "\t"
    cells = lines[row].split(mark)
    at = int(rng.integers(len(cells)))
    strange = [
        "",
        "NaN",
        "-5",
        "1e400",
        "x",
        '"',
        "٣",
        "0",
        "True",
        "1,5",
        "inf",
        cells[0],
        "lh_insula",
        "\x00",
        "1e-300",
        "sex",
    ]
    kind = int(rng.integers(9))
    if kind < 4:
        cells[at] = strange[int(rng.integers(len(strange)))]
        lines[row] = mark.join(cells)
    elif kind == 4:
        lines[row] = mark.join(cells[:at] + cells[at + 1 :])
    elif kind == 5:
        del lines[row]
    elif kind == 6:
        lines.insert(row, lines[int(rng.integers(len(lines)))])
    elif kind == 7:
        return text.replace(mark, ";" if rng.random() < 0.5 else " ")
    else:
        return text[: int(rng.integers(len(text) + 1))]
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(60))
def test_an_injured_table_is_prepared_or_refused_in_one_sentence(tmp_path, capsys, seed):
    rng = np.random.default_rng(seed)
    write(tmp_path, sheets(cohort(12, seed)[0]), cohort(12, seed)[1])
    victims = [*sorted((tmp_path / "raw").iterdir()), tmp_path / "people.csv", tmp_path / "people.csv"]
    path = victims[int(rng.integers(len(victims)))]
    path.write_text(mutate(path.read_text(), rng))
    status = command(tmp_path)
    error = capsys.readouterr().err
    if status == 0:
        assert np.isfinite(read(tmp_path / "out")[2]).all(axis=None)
    else:
        assert status == 2 and one_sentence(error[error.index("error: ") :]) and not (tmp_path / "out").exists(), error


@pytest.mark.parametrize("seed", range(20))
def test_an_injured_export_of_adni_is_prepared_or_refused_in_one_sentence(tmp_path, capsys, seed):
    rng = np.random.default_rng(seed)
    write_adni(tmp_path / "adni")
    path = sorted((tmp_path / "adni").iterdir())[seed % 3]
    path.write_text(mutate(path.read_text(), rng))
    status = main(["adni", str(tmp_path / "adni"), str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert status == 0 or (status == 2 and one_sentence(error[error.index("error: ") :])), error


# --- the real thing -------------------------------------------------------------------------------


@needs_abide
def test_abide_from_end_to_end(tmp_path):
    assert main(["abide", str(REAL), str(tmp_path / "out")]) == 0
    card, subjects, values = read(tmp_path / "out")
    assert {name: (part["unit"], len(part["regions"])) for name, part in card["modalities"].items()} == {
        "cortical": ("mm3", 68), "subcortical": ("mm3", 33), "thickness": ("mm", 68),
    }  # fmt: skip
    small = [one for one in card["excluded"] if one["reason"].startswith("intracranial volume")]
    assert len(small) == 29 and len(subjects) + len(card["excluded"]) == 1035 and not values.isna().any(axis=None)
    assert set(subjects["group"]) == {"CN", "ASD"} and "UM_1" in set(subjects["site"])
    controls = subjects[subjects["group"] == "CN"]
    shares = controls["split"].value_counts(normalize=True)
    np.testing.assert_allclose(shares[list(FRACTIONS)], list(FRACTIONS.values()), atol=0.005)
    assert (controls.groupby("site")["split"].nunique() == 4).all()
    # One person, read from the raw tables by hand.
    who = "Caltech_0051456"
    aseg = pd.read_csv(REAL / "stats" / "aseg_table.tsv", sep="\t", index_col=0).loc[who]
    thickness = pd.read_csv(REAL / "stats" / "rh.aparc_table_thickness.tsv", sep="\t", index_col=0).loc[who]
    assert values.loc[who, "Left-Thalamus"] == aseg["Left-Thalamus-Proper"]
    assert values.loc[who, "Right-Cerebral-White-Matter"] == np.float32(aseg["rhCorticalWhiteMatterVol"])
    assert values.loc[who, "rh_insula_thickness"] == np.float32(thickness["rh_insula_thickness"])
    row = subjects.set_index("subject").loc[who]
    phenotype = pd.read_csv(REAL / "abide_phenotype.csv", index_col="SUB_ID").loc[51456]
    assert row["group"] == {1: "ASD", 2: "CN"}[phenotype["DX_GROUP"]] and row["site"] == phenotype["SITE_ID"]
    assert row["age_years"] == phenotype["AGE_AT_SCAN"] and row["sex"] == "MF"[phenotype["SEX"] - 1]
    assert row["icv_mm3"] == pytest.approx(aseg["IntraCranialVol"])
