"""Damaged files: some hundred kinds of injury for every reader, and each defect that they once found."""

import functools
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import _mutants as mutants  # noqa: E402

from medvae_lite.prepared_files import check_array, read_table  # noqa: E402
from tests.benchmarks import bench_inputs as bench  # noqa: E402

READERS = {reader.name: reader for reader in bench.READERS}
FEWER = {"freesurfer subjects": 8, "adni": 15}  # they take longest


@pytest.mark.parametrize("name", READERS)
def test_no_injury_ends_in_a_traceback_or_a_wrong_result(name):
    rows = bench.run(READERS[name], count=FEWER.get(name, 25), seed=1)
    assert not bench.failures(rows)
    assert sum(sum(row.outcomes.values()) for row in rows.values()) == FEWER.get(name, 25)


# --- the judge itself can fail --------------------------------------------------------------------


def write_column(raw):
    raw.mkdir(parents=True)
    pd.DataFrame({"subject": list("abcdef"), "value": np.arange(6) + 0.5}).to_csv(raw / "column.csv", index=False)


def reading(read):
    """A reader of one column, by a function from its text to numbers."""

    def result(raw, scratch):
        table = pd.read_csv(raw / "column.csv", dtype=str)
        return bench.Result(dict(zip(table["subject"], read(table["value"]), strict=True)), {})

    kinds = tuple(kind for kind in mutants.TABLE if kind.name == "NaN for a number")
    return bench.Reader("column", write_column, result, lambda raw: bench.files(raw, "raw/*.csv", kinds))


def careful(values):
    if values.isna().any():
        raise ValueError("`value` must be a number in every row, got NaN; mend the cell")
    return values.astype(float)


def slow(values):
    time.sleep(5 if values.isna().any() else 0)
    return values.astype(float)


@pytest.mark.parametrize(
    ("read", "failure"),
    [
        (lambda values: values.astype(float).fillna(0), "wrong"),  # swallows NaN
        (lambda values: values.astype(float).fillna(values.astype(float).mean()), "wrong"),
        (lambda values: [float(str(value).replace("nan", "")) for value in values], "traceback"),
        (careful, "traceback"),  # a sentence, but raised outside the project
        (slow, "hangs"),
    ],
)
def test_a_bad_reader_is_found_out(read, failure):
    counts = bench.run(reading(read), count=2, seed=0, seconds=0.3)["NaN for a number"].outcomes
    assert counts[failure] == 2, counts


def test_a_second_sentence_and_a_library_s_words_are_no_sentence():
    base = bench.Result({"a": 1}, {})
    assert bench.one_sentence("`a.csv` must hold numbers, got 'x'; mend the cell.")
    assert not bench.one_sentence("It broke. Mend the cell") and not bench.one_sentence("a long line\nand another one")
    lost = bench.Result({}, {}, {"a": "stopped on KeyError: an input nobody foresaw; check the files"})
    assert bench.judge(base, lost, mutants.ANY)[0] == "traceback"
    assert bench.judge(base, lost._replace(excluded={"a": "`a.nii` is missing; restore it"}), mutants.SAID)[0] == "left out"
    assert bench.judge(base, bench.Result({}, {}), mutants.ANY)[0] == "changed legally"  # where a kind may do anything
    assert bench.judge(base, bench.Result({}, {}), mutants.HARMLESS)[0] == "wrong"  # somebody lost, and no reason
    assert bench.judge(base, base, mutants.SAID)[0] == "wrong"  # a file that was emptied cannot give the same


# --- each defect that was found -------------------------------------------------------------------


@functools.cache
def whole(name, place):
    """The unharmed cohort of a reader, and what is read of it."""
    home = Path(place) / name.replace(" ", "-")
    home.mkdir()
    READERS[name].build(home / "raw")
    (home / "base").mkdir()
    return home, READERS[name].read(home / "raw", home / "base")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return str(tmp_path_factory.mktemp("whole"))


def replaced(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


def appended(what):
    return lambda path: path.write_bytes(path.read_bytes()[:-1] + what)


def in_header(form, at, value):
    return lambda path: mutants.header(form, at, value)(path, None)


def change(alter):
    return lambda path: mutants.voxels(lambda volume, rng: alter(volume))(path, None)


def last_byte_lost(path):
    path.write_bytes(path.read_bytes()[:-1])


def checksum_changed(path):
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)


def to_folder(path):
    mutants.as_directory(path, None)


def float_as_int(path):
    in_header("h", mutants.DATATYPE, 8)(path)


def one_cell(row, column, value):
    def apply(path):
        rows, mark = mutants.cells(path)
        rows[row][rows[0].index(column)] = value
        mutants.save(path, rows, mark)

    return apply


PATIENT = "raw/patient002"
ED, MASK, INFO = f"{PATIENT}/patient002_frame01.nii.gz", f"{PATIENT}/patient002_frame01_gt.nii.gz", f"{PATIENT}/Info.cfg"
FOLDER, CARD = "prepared regions", "raw/card.json"
# reader, file, injury -> what the user is told
DEFECTS = {
    "a gzip file without its last byte": ("acdc", ED, last_byte_lost, "cut short or damaged"),
    "a checksum that is wrong": ("acdc", ED, checksum_changed, "cut short or damaged"),
    "fewer slices than voxels": ("acdc", "raw/patient004/patient004_frame01.nii", in_header("h", mutants.DIM + 6, 6),
        "its header speaks of"),
    "an unknown type": ("acdc", ED, in_header("h", mutants.DATATYPE, 9999), "cut short or damaged"),
    "half the bytes a voxel": ("acdc", ED, in_header("h", mutants.DATATYPE, 2), "its header speaks of"),
    "an intercept that is not finite": (
        "acdc", ED, lambda path: (in_header("f", mutants.SLOPE, 1.0)(path), in_header("f", mutants.INTER, np.inf)(path)),
        "cut short or damaged"),
    "an offset that is not finite": ("acdc", MASK, in_header("f", mutants.VOX_OFFSET, np.nan), "cut short or damaged"),
    "an offset below the header": ("acdc", ED, in_header("f", mutants.VOX_OFFSET, -352.0), "cut short or damaged"),
    "an offset within the header": ("mnms", "raw/Testing/A0S9V9/A0S9V9_sa.nii.gz", in_header("f", mutants.VOX_OFFSET, 16.0),
        "damaged"),
    "pixdim zero": ("acdc", ED, in_header("f", mutants.PIXDIM + 4, 0.0), "in `pixdim`"),
    "pixdim ten times": ("acdc", ED, in_header("f", mutants.PIXDIM + 12, 100.0), "in `pixdim`"),
    "metres": ("acdc", MASK, in_header("B", mutants.UNITS, 1), "lengths are in metres, and mm are needed"),
    "a unit that there is not": ("open-ms", "raw/patient01/FLAIR_N4_regtoMNI.nii", in_header("B", mutants.UNITS, 7),
        "a unit of number 7"),
    "grey values beyond any scan": ("acdc", ED, change(lambda v: v * 1e9), "beyond any scan"),
    "a flat frame": ("acdc", "raw/patient002/patient002_frame09.nii.gz", change(lambda v: v * 0 + 100), "one grey value"),
    "a flat frame in a movie": ("mnms", "raw/Testing/A0S9V9/A0S9V9_sa.nii.gz", change(lambda v: v * 0 + 1), "one grey value"),
    "a height in metres": ("acdc", INFO, replaced("Height: 170.0", "Height: 1.7"),
        "`height_cm` as a number from 30 to 250, got '1.7'"),
    "a height below zero": ("acdc", INFO, replaced("Height: 170.0", "Height: -170.0"), "got '-170.0'"),
    "an infinite weight": ("acdc", INFO, replaced("Weight: 70.0", "Weight: inf"), "`weight_kg` as a number"),
    "a weight in words": ("acdc", INFO, replaced("Weight: 70.0", "Weight: 7O"), "got '7O'"),
    "Latin-1 in Info.cfg": ("acdc", INFO, appended(b"\xe9\n"), "must be text in UTF-8"),
    "NUL bytes in Info.cfg": ("acdc", INFO, appended(b"\x00\n"), "holds NUL bytes"),
    "a line of frames cut short": ("mnms", "raw/information.csv", replaced(",DCM,F,160,70.5", ""), "as many cells as the header"),
    "a subject on two lines": ("mnms", "raw/information.csv", replaced("B1X2Y3", "A0S9V9"), "'A0S9V9' twice"),
    "an infinite age": ("mnms", "raw/information.csv", one_cell(1, "Age", "inf"), "`age_years` as a number"),
    "a brain mask that is a folder": ("brain-folder", "raw/sub-1/brain.nii", to_folder, "cannot be read as NIfTI"),
    "a lesion mask that is a folder": ("brain-folder", "raw/sub-0/mask.nii.gz", to_folder, "cannot be read as NIfTI"),
    "lesions everywhere": ("open-ms", "raw/patient03/GOLD_STANDARD_N4.nii", change(lambda v: v * 0 + 1),
        "lesions cover 100% of the brain"),
    "a brain everywhere": ("brain-folder", "raw/sub-0/brain.nii.gz", change(lambda v: v * 0 + 1), "covers the whole image"),
    "fractions read as whole numbers": ("brain-folder", "raw/sub-4/image.nii.gz", float_as_int, "beyond any scan"),
    "sides that contradict the affine": ("brain-folder", "raw/sub-4/image.nii.gz", in_header("f", mutants.PIXDIM + 4, 2.0),
        "2 x 1 x 1 mm in `pixdim`"),
    "an age in words": ("brain-folder", "raw.table.csv", replaced("43.5", "forty"), "must hold numbers, got 'forty'"),
    "an age of thousands": ("adni-mri", "raw/images.csv", one_cell(1, "Age", "70000"), "must be from 0 to 120, got '70000'"),
    "an ADNI image that is gone, and a later one": (
        "adni-mri", "raw/ADNI/001_S_1001/MPR__GradWarp/2005-01-02_10_00_00.0/I15/ADNI_001_S_1001_I15.nii.gz", Path.unlink,
        "the folder I15 holds no image .nii"),
    "an ADNI image that is gone": (
        "adni-mri", "raw/ADNI/004_S_1004/MPR__GradWarp/2006-01-02_10_00_00.0/I46/ADNI_004_S_1004_I46.nii.gz",
        Path.unlink, "the folder holds no image .nii"),
    "a missing table": ("freesurfer tables", "raw.people.csv", Path.unlink, "`raw.people.csv` is missing; add it"),
    "a table that is a folder": ("freesurfer tables", "raw/aseg.tsv", to_folder, "`aseg.tsv` must be a file that can be read"),
    "NUL bytes in a table": ("freesurfer tables", "raw.people.csv", appended(b"\x00\n"), "holds NUL bytes"),
    "one volume a thousandfold": ("freesurfer tables", "raw/aseg.tsv", one_cell(3, "CSF", "1500000"), "times the median of all"),
    "one thickness in micrometres": ("freesurfer tables", "raw/rh.thickness.tsv", one_cell(3, "rh_insula_thickness", "2500"),
        "times the median"),
    "an infinite age of one": ("freesurfer tables", "raw.people.csv", one_cell(2, "age_years", "inf"),
        "from 0 to 120, got 'inf'"),
    "an age below zero": ("freesurfer tables", "raw.people.csv", one_cell(2, "age_years", "-63.5"), "from 0 to 120, got '-63.5'"),
    "a negative part of a subfield": ("freesurfer subjects", "raw/sub-002/mri/lh.hippoSfVolumes-T1.v21.txt",
        replaced("CA1-head ", "CA1-head -"),
        "no negative volume"),
    "a part of a subfield a thousandfold": (
        "freesurfer subjects", "raw/sub-002/mri/lh.hippoSfVolumes-T1.v21.txt", replaced("CA1-head ", "CA1-head 1000"),
        "times the median"),
    "a folder among a subject's files": ("freesurfer subjects", "raw/sub-003/stats/aseg.stats", to_folder,
        "`aseg.stats` must be a file"),
    "a score that cannot be": ("adni", "raw/ADNIMERGE.csv", one_cell(4, '"ADAS13"', "9500"), "from 0 to 85, got '9500'"),
    "a dictionary that is a folder": ("adni", "raw/DATADIC.csv", to_folder, "data dictionary as a CSV that can be read"),
    "half a card": (FOLDER, CARD, lambda path: path.write_bytes(path.read_bytes()[:900]), "is no card"),
    "a card in Latin-1": (FOLDER, CARD, appended(b"\xe9"), "is no card"),
    "a card that is a list": (FOLDER, CARD, lambda path: path.write_text("[]"), "names and values, got a list"),
    "a card of the future": (FOLDER, CARD, replaced('"format": 1', '"format": 99'), "must be of format 1, got 99"),
    "a card without modalities": (FOLDER, CARD, replaced('"modalities"', '"modes"'), "must say `modalities`"),
    "an array cut short": (FOLDER, "raw/regions.npy", last_byte_lost, "is no whole array"),
    "an array of objects": (FOLDER, "raw/regions.npy", lambda path: np.save(path, np.array([{}, 1])), "is no whole array"),
    "an array of another type": (FOLDER, "raw/regions.npy", lambda path: np.save(path, np.load(path).astype(float)),
        "must be float32 with 2 axes"),
    "a gap within a person": (
        FOLDER, "raw/regions.npy", lambda path: np.save(path, np.where(np.arange(159) == 7, np.float32(np.nan), np.load(path))),
        "gaps within a person"),
    "a table that is no table": (FOLDER, "raw/subjects.csv", lambda path: path.write_text('"\n'),
        "cannot be read as a table|must have the column"),
    "an age that is no number": (FOLDER, "raw/subjects.csv", one_cell(2, "age_years", "?"),
        "must hold numbers in the column `age_years`"),
    "labels in place of images": ("prepared brains", "raw/images.npy",
        lambda path: shutil.copy(path.with_name("labels.npy"), path), "must be float16"),
    "an area in words": ("prepared brains", "raw/slices.csv", one_cell(2, "brain_mm2", "large"),
        "must hold numbers in the column `brain_mm2`"),
    "half a card of hearts": ("prepared hearts", CARD, lambda path: path.write_bytes(path.read_bytes()[:900]), "is no card"),
    "half an array of hearts": ("prepared hearts", "raw/images.npy", last_byte_lost, "is no whole array"),
    "a card of brains for hearts": ("prepared hearts", CARD, replaced('"kind": "cardiac"', '"kind": "brain"'),
        "holds 'brain' data, and this needs"),
}  # fmt: skip


@pytest.mark.parametrize("what", DEFECTS)
def test_a_defect_stays_mended(what, place, tmp_path):
    name, file, injure, sentence = DEFECTS[what]
    home, base = whole(name, place)
    shutil.copytree(home, tmp_path / "hurt")
    before = (tmp_path / "hurt" / file).read_bytes()
    injure(tmp_path / "hurt" / file)
    assert not (tmp_path / "hurt" / file).is_file() or (tmp_path / "hurt" / file).read_bytes() != before
    (tmp_path / "out").mkdir()
    found = bench.attempt(READERS[name], tmp_path / "hurt" / "raw", tmp_path / "out", 20)
    outcome, text = bench.judge(base, found, mutants.SAID)
    assert outcome in mutants.SAID, text
    assert pd.Series([text]).str.contains(sentence).all(), text


def test_the_masks_of_acdc_keep_their_quirk(tmp_path):
    """ACDC's affine is that of the voxels, and its sides are in `pixdim` alone: such files are read as before."""
    bench.hearts_acdc(tmp_path / "raw")
    for path in (tmp_path / "raw").rglob("*.nii*"):
        data = mutants.unpacked(path)
        data[mutants.SROW : mutants.SROW + 48] = np.diag([-1, -1, 1, 1]).astype("<f4")[:3].tobytes()
        mutants.put(path, data)
    (tmp_path / "a").mkdir()
    found = READERS["acdc"].read(tmp_path / "raw", tmp_path / "a")
    assert len(found.people) == 4 and not found.excluded


def test_a_whole_array_and_table_are_taken(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float16))
    check_array(tmp_path / "a.npy", "float16", ndim=2)
    with pytest.raises(ValueError, match="with 3 axes, got float16"):
        check_array(tmp_path / "a.npy", "float16", ndim=3)
    (tmp_path / "a.csv").write_text("subject,x\na,1\nb,2\n")
    assert read_table(tmp_path / "a.csv", columns=("subject",), numbers=("x",))["x"].tolist() == [1, 2]
    for text, sentence in (("subject,x\na,\n", "numbers in the column `x`, got nan"),
                           ("subject\na\n", "must have the column `x`"),
                           ("subject,x\n,1\n", "no gap in the column `subject`"), ("subject,x\na,inf\n", "got inf")):  # fmt: skip
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_table(tmp_path / "a.csv", columns=("subject",), numbers=("x",))
