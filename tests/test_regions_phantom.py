"""The region phantom: its people, its disease, its folder; and that it resembles real tables where those are at hand."""

import filecmp
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep import phantom, regions_phantom
from data_prep.__main__ import main
from data_prep.region_names import AGGREGATES, CORTICAL, DESIKAN, HIPPOCAMPAL, POSTER, SUBCORTICAL
from data_prep.regions_anatomy import STAGES, SUBTYPES, anatomy
from data_prep.regions_draw import MODALITIES, counts, generate
from data_prep.regions_prepared import write_regions

NAMES = [name for m in MODALITIES.values() for name in m["regions"]]


@pytest.fixture(scope="module")
def made():
    return generate(subjects=9875)


@pytest.fixture(scope="module")
def table(made):
    return pd.DataFrame(made.values, columns=NAMES)


def test_the_posters_shape():
    assert [len(v) for v in POSTER.values()] == [64, 31, 16] and len(AGGREGATES) == 4
    assert len(set(NAMES)) == 115 and len(DESIKAN) == 34
    assert counts(9875)[1] == 862


def test_cohorts_and_stages_are_the_posters(made):
    people = made.people
    assert (people["cohort"] == "population").sum() == 9875
    assert people.loc[people["split"] == "patients", "group"].value_counts().to_dict() == {"SMC": 106, "EMCI": 312, "LMCI": 263, "AD": 181}
    assert set(people.loc[people["split"] != "patients", "group"]) == {"CN"}
    assert people.loc[people["split"].isin(("holdout", "test")), "cohort"].eq("clinic").all(), "calibrated where patients are scanned"
    seen = people.loc[people["split"] == "train", "site"].unique()
    assert set(people["site"]) == set(seen)


def test_a_person_does_not_depend_on_how_many_there_are(made):
    fewer = generate(subjects=700)
    assert np.array_equal(fewer.values[:700], made.values[:700])
    assert fewer.people.iloc[:700, :8].equals(made.people.iloc[:700, :8])
    other = generate(subjects=700, seed=1)
    assert not np.array_equal(other.values[:700], fewer.values[:700])


def test_the_effect_is_zero_in_the_healthy_and_grows_with_stage(made, table):
    ill = (made.people["split"] == "patients").to_numpy()
    assert not made.effect[~ill].any()
    effect = pd.DataFrame(made.effect[ill], columns=NAMES) / table[~ill].std().to_numpy()
    by_stage = effect.groupby(made.people["group"][ill].to_numpy()).mean().loc[list(STAGES)]
    for name in ("lh_CA1", "lh_entorhinal", "Left-Hippocampus", "Right-Amygdala"):
        assert (np.diff(by_stage[name]) < 0).all() and by_stage.loc["AD", name] < -1, name
    assert by_stage.loc["AD", "Left-Lateral-Ventricle"] > 0.5
    assert abs(by_stage.loc["AD", "lh_pericalcarine"]) < 0.5


def test_subtypes_differ_where_they_should(made, table):
    ill = (made.people["group"] == "AD").to_numpy()
    effect = pd.DataFrame(made.effect[ill], columns=NAMES) / table.std().to_numpy()
    mean = effect.groupby(made.factors.loc[ill, "subtype"].to_numpy()).mean()
    assert set(mean.index) == set(SUBTYPES)
    assert mean.loc["limbic", "lh_CA1"] < mean.loc["hippocampal-sparing", "lh_CA1"]
    assert mean.loc["limbic", "lh_precuneus"] > mean.loc["hippocampal-sparing", "lh_precuneus"]


def test_test_scores_follow_severity_and_only_the_clinic_has_them(made):
    people, severity = made.people, made.factors["severity"]
    assert people.loc[people["cohort"] == "population", "adas13"].isna().all()
    ill = people["split"] == "patients"
    assert np.corrcoef(severity[ill], people.loc[ill, "adas13"])[0, 1] > 0.5
    assert np.corrcoef(severity[ill], people.loc[ill, "ravlt_immediate"])[0, 1] < -0.4
    assert people["adas13"].min() >= 0 and people["adas13"].max() <= 85


def test_sums_are_sums_and_subfields_add_up_to_their_hippocampus(table):
    deep = ("Thalamus", "Caudate", "Putamen", "Pallidum", "Hippocampus", "Amygdala", "Accumbens-area")
    parts = sum(table[f"{side}-{name}"] for side in ("Left", "Right") for name in deep)
    np.testing.assert_allclose(table["SubcorticalGM"], parts)
    left = table[[name for name in CORTICAL if name.startswith("lh_")]].sum(axis=1)
    assert (table["LeftCorticalGM"] > left).all(), "it holds the two regions that are not listed, too"
    fields = table[[name for name in HIPPOCAMPAL if name.startswith("lh_")]].sum(axis=1)
    assert np.corrcoef(fields, table["Left-Hippocampus"])[0, 1] > 0.75


def test_not_everything_is_linear(made, table):
    """The square of one factor moves a system it is not part of."""
    healthy = (made.people["split"] != "patients").to_numpy()
    parietal = np.log(table.loc[healthy, ["lh_precuneus", "rh_precuneus", "lh_superiorparietal"]]).mean(axis=1)
    frontal = made.factors.loc[healthy, "frontal"]
    assert abs(np.corrcoef(frontal, parietal)[0, 1]) < 0.05 < np.corrcoef(frontal**2, parietal)[0, 1]


def test_the_folder_is_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        assert main(["regions-phantom", str(tmp_path / name), "--subjects", "300"]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["card.json", "effect.npy", "factors.csv", "regions.npy", "subjects.csv"]
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])
    assert main(["regions-phantom", str(tmp_path / "a"), "--subjects", "301"]) == 2, "another dataset is never overwritten"


def test_impossible_phantoms_are_refused(capsys, tmp_path):
    assert main(["regions-phantom", str(tmp_path / "x"), "--subjects", "20"]) == 2
    assert "`subjects` must be at least 100, got 20" in capsys.readouterr().err
    with pytest.raises(ValueError, match="options of the regions phantom are subjects, seed, got `size`"):
        phantom("regions", subjects=300, size=64)


def small(count=40):
    made = generate(subjects=300)
    rows = np.r_[0:count]
    return made.values[rows], made.people.iloc[rows].reset_index(drop=True)


CARD = {"name": "t", "source": "t", "licence": "t", "citation": "t", "prepared_by": "t", "recipe": {"t": 1}}


def mend(change):
    values, people = small()
    modalities = {name: dict(m) for name, m in MODALITIES.items()}
    return change(values, people, modalities) or (values, people, modalities)


def twice(values, people, modalities):
    people.loc[1, "subject"] = people.loc[0, "subject"]


def torn(values, people, modalities):
    values[3, 70] = np.nan


def nobody(values, people, modalities):
    values[:, 99:] = np.nan


def doubled(values, people, modalities):
    modalities["cortical"]["regions"] = ("lh_cuneus", *CORTICAL[1:])


def head(values, people, modalities):
    people.loc[2, "icv_mm3"] = 1.2e4


def coded(values, people, modalities):
    people.loc[2, "sex"] = "1"


def ill(values, people, modalities):
    people.loc[0, "group"] = "AD"


def narrow(values, people, modalities):
    return values[:, 1:], people, modalities


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (twice, "must have one row a person, got 'population00000' twice"),
        (torn, "'Left-Pallidum' is missing for 'population00003' while other subcortical regions are there"),
        (nobody, "the modality 'hippocampal' is missing for everyone; leave it out"),
        (doubled, "must name every region once, got 'lh_cuneus' twice"),
        (head, "`icv_mm3` must satisfy .*12000"),
        (coded, "`sex` must satisfy .*'1'"),
        (ill, "in the split 'train' must be CN, got 'population00000'"),
        (narrow, r"`values` must be \(40, 115\), a row a person and a column a region, got \(40, 114\)"),
    ],
)
def test_a_broken_table_is_refused_and_leaves_nothing(change, sentence, tmp_path):
    values, people, modalities = mend(change)
    with pytest.raises(ValueError, match=sentence) as refusal:
        write_regions(tmp_path / "out", values=values, subjects=people, modalities=modalities, card=CARD)
    assert "\n" not in str(refusal.value) and list(tmp_path.iterdir()) == []


def test_sizes_and_spread_are_those_of_real_adults():
    """Against the adults of ABIDE's FreeSurfer tables: means within a factor, rank correlation, the first eigenvalue."""
    place = Path(os.environ.get("MEDVAE_DATA") or Path(__file__).parents[2] / "shared" / "data") / "abide_fs6" / "stats"
    if not place.is_dir():
        pytest.skip("no ABIDE tables: set MEDVAE_DATA to the folder that holds abide_fs6")
    read = lambda name: pd.read_csv(place / name, sep="\t", index_col=0)
    real = pd.concat([read("lh.aparc_table_volume.tsv"), read("rh.aparc_table_volume.tsv"), read("aseg_table.tsv")], axis=1)
    real.columns = [c.removesuffix("_volume").replace("Thalamus-Proper", "Thalamus") for c in real]
    real = real[real["IntraCranialVol"] > 8e5]
    known = anatomy()
    both = [name for name in (*CORTICAL, *SUBCORTICAL) if name in real and name in known.index]
    assert len(both) > 85
    ratio = known.loc[both, "mean_mm3"] / real[both].mean()
    young = ratio.drop(labels=[name for name in both if name.endswith("Lateral-Ventricle")])  # ABIDE's mean age is 17, ours 60
    assert young.between(0.6, 1.75).all(), young[~young.between(0.6, 1.75)].to_dict()
    assert np.corrcoef(np.log(known.loc[both, "mean_mm3"]), np.log(real[both].mean()))[0, 1] > 0.99
    cv = known.loc[both, "cv"] / (real[both].std() / real[both].mean())
    assert 0.5 < cv.median() < 1.1, "ours is the part beyond age, sex and ICV"
