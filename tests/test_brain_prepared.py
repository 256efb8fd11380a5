"""The prepared folder of brain slices: splits by person, the scale of grey values, and what the writer refuses."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from data_prep.brain_prepared import BrainWriter, check_tables, split_by_subject, standardise
from data_prep.prepared import identity

RECIPE = {"seed": 0}
CARD = {
    "name": "made up", "source": "test", "licence": "CC0-1.0", "citation": "none", "prepared_by": "test", "recipe": RECIPE,
    "sequence": "FLAIR", "pixel_mm": 2.0, "tissues": {"0": "background"},
}  # fmt: skip


def people(**columns):
    return pd.DataFrame({"subject": ["a", "b", "c"], "split": ["train", "val", "test"]}).assign(**columns)


def slices(**columns):
    """Two slices of each of three people."""
    table = pd.DataFrame({"subject": list("aabbcc"), "split": ["train"] * 2 + ["val"] * 2 + ["test"] * 2, "slice": [0, 1] * 3})
    return table.assign(**({"z_mm": [6.0, 18.0] * 3, "brain_mm2": 900.0, "lesion_mm2": [0.0, 4.0, 0, 0, 2, 1]} | columns))


def write(out, *, table=None, subjects=None, images=6, factors=None, twins=True, **card):
    rng = np.random.default_rng(0)
    with BrainWriter(out, images=images, size=(8, 12), identity=identity(RECIPE | card), twins=twins) as writer:
        writer.images[:], writer.labels[:] = rng.standard_normal(writer.images.shape), rng.integers(0, 6, writer.labels.shape)
        if twins:
            writer.twins[:] = 0.5
        table, subjects = slices() if table is None else table, people() if subjects is None else subjects
        return writer.finish(slices=table, subjects=subjects, card=CARD, factors=factors)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Splits


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(5, (3, 1, 1)), (6, (4, 1, 1)), (7, (5, 1, 1)), (8, (4, 2, 2)), (20, (12, 4, 4)), (300, (180, 60, 60)), (815, (489, 163, 163))],
)
def test_people_are_shared_60_20_20_with_at_least_one_each(count, sizes):
    splits = split_by_subject(count)
    assert tuple(splits.count(name) for name in ("train", "val", "test")) == sizes and len(splits) == count


def test_every_number_of_people_from_five_fills_every_split():
    for count in range(5, 120):
        splits = split_by_subject(count, seed=count)
        sizes = [splits.count(name) for name in ("train", "val", "test")]
        assert sum(sizes) == count and min(sizes) >= 1 and sizes[0] > sizes[1] == sizes[2]


def test_splits_depend_on_the_seed_and_on_nothing_else():
    first = split_by_subject(50, 1)
    np.random.default_rng().random(9)
    assert split_by_subject(50, 1) == first != split_by_subject(50, 2)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_fewer_than_five_people_are_refused(count):
    with pytest.raises(ValueError, match=f"^a split by person needs at least 5 people, got {count}; add some"):
        split_by_subject(count)


# Grey values


def test_a_stack_is_standardised_with_its_background():
    rng = np.random.default_rng(0)
    volume, brain = 300 + 40 * rng.random((3, 16, 16)), np.zeros((3, 16, 16), bool)
    brain[:, 4:12, 3:13] = True
    found = standardise(volume, brain)
    assert found.dtype == np.float32
    assert found.mean(dtype=float) == pytest.approx(0, abs=1e-6) and found.std(dtype=float) == pytest.approx(1, abs=1e-6)
    masked = np.where(brain, volume, 0)
    np.testing.assert_allclose(found, (masked - masked.mean()) / masked.std(), atol=1e-5)
    assert len(np.unique(found[~brain])) == 1, "whatever lay outside is gone"


def test_neither_scale_nor_what_lies_outside_the_brain_matters():
    rng = np.random.default_rng(0)
    volume, brain = rng.random((2, 8, 8)), rng.random((2, 8, 8)) > 0.4
    np.testing.assert_allclose(standardise(750 * volume, brain), standardise(volume, brain), atol=1e-5)
    np.testing.assert_array_equal(standardise(np.where(brain, volume, 1e6), brain), standardise(volume, brain))


@pytest.mark.parametrize("volume", [np.zeros((2, 8, 8)), np.full((2, 8, 8), 7.0), np.full((2, 8, 8), np.nan), np.full((2, 8, 8), np.inf)])
def test_a_stack_without_an_image_is_refused(volume):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="the same grey value everywhere, or values that are not finite"):
        standardise(volume, np.ones(volume.shape, bool))


def test_an_image_without_a_brain_is_refused():
    with pytest.raises(ValueError, match="the same grey value everywhere"):
        standardise(np.random.default_rng(0).random((2, 8, 8)), np.zeros((2, 8, 8), bool))


# The folder


def test_a_written_folder_reads_back(tmp_path):
    factors = pd.DataFrame({"subject": ["a", "b", "c"], "atrophy": [0.1, 0.2, 0.3]})
    out = write(tmp_path / "out", factors=factors)
    card, rng = json.loads((out / "card.json").read_text()), np.random.default_rng(0)
    np.testing.assert_array_equal(np.load(out / "images.npy"), rng.standard_normal((6, 1, 8, 12)).astype(np.float16))
    assert np.load(out / "labels.npy").shape == (6, 2, 8, 12) and (np.load(out / "twins.npy") == 0.5).all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "slices.csv"), slices(), check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(out / "subjects.csv"), people())
    pd.testing.assert_frame_equal(pd.read_csv(out / "factors.csv"), factors)
    assert set(card["files"]) == {"images.npy", "labels.npy", "twins.npy", "slices.csv", "subjects.csv", "factors.csv"}
    for name, digest in card["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert (card["kind"], card["size"], card["images"], card["subjects"]) == ("brain", [8, 12], 6, 3)
    assert card["splits"] == {"train": 1, "val": 1, "test": 1} and card["channels"] == ["tissue", "lesion_percent"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_real_people_has_neither_twins_nor_factors(tmp_path):
    out = write(tmp_path / "out", twins=False)
    assert {path.name for path in out.iterdir()} == {"images.npy", "labels.npy", "slices.csv", "subjects.csv", "card.json"}


def test_the_same_dataset_is_the_same_bytes_anywhere(tmp_path):
    assert contents(write(tmp_path / "here")) == contents(write(tmp_path / "there" / "deeper"))


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, failure):
    with pytest.raises(failure):
        with BrainWriter(tmp_path / "out", images=6, size=(8, 12), identity="0", twins=True) as writer:
            writer.images[0] = 0.5
            raise failure
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_cannot_be_made_leave_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_way_is_refused_and_untouched(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match="already holds this dataset"):
        write(tmp_path / "out")
    with pytest.raises(FileExistsError, match="holds another dataset .*give another folder"):
        write(tmp_path / "out", crop=1)
    with pytest.raises(FileExistsError, match="exists and is not a prepared dataset"):
        write(tmp_path / "notes")
    assert contents(tmp_path / "out") == before and contents(tmp_path / "notes") == {"thesis.txt": b"years of work"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "notes"}


def test_the_loser_of_a_race_uses_the_winners_folder(tmp_path):
    with BrainWriter(tmp_path / "out", images=6, size=(8, 12), identity=identity(RECIPE)) as slow:
        write(tmp_path / "fast").rename(tmp_path / "out")
        assert slow.finish(slices=slices(), subjects=people(), card=CARD) == tmp_path / "out"
    assert (tmp_path / "out" / "twins.npy").is_file() and list(tmp_path.iterdir()) == [tmp_path / "out"]


# Tables


def test_more_columns_than_needed_are_welcome():
    check_tables(slices(ventricle_mm2=3.0), people(age=[30, 40, 50]))


@pytest.mark.parametrize(
    ("table", "subjects", "sentence"),
    [
        (slices().drop(columns="z_mm"), people(), "`slices` must have the column `z_mm`, got subject, split, slice, brain_mm2, lesion_mm2"),
        (slices(), people()[["split", "subject"]], "`subjects` must begin with the columns subject, split, got split, subject"),
        (slices(), people(subject=["a", "a", "c"]), "`subject` must satisfy field_uniqueness, got 'a'"),
        (slices(), people(split=["train", "val", "tset"]), "`split` must satisfy isin.*got 'tset'"),
        (slices(), people(subject=["a", "b", ""]), "`subject` must satisfy str_length"),
        (slices(subject=list("aabbcd")), people(), "must belong to people in `subjects`, got 'd'"),
        (slices(split=["train", "val", "val", "val", "test", "test"]), people(), "must be in the person's split, got 'a' in two"),
        (slices(split=["train"] * 2 + ["test"] * 4), people(), "must be in the person's split, got 'b' in two"),
        (slices(brain_mm2=[900.0, 0, 900, 900, 900, 900]), people(), r"`brain_mm2` must satisfy greater_than\(0\), got 0.0"),
        (slices(lesion_mm2=[-1.0, 0, 0, 0, 0, 0]), people(), "`lesion_mm2` must satisfy greater_than_or_equal_to"),
        (slices(z_mm=[6.0, np.nan, 6, 18, 6, 18]), people(), "`z_mm` must satisfy not_nullable"),
        (slices(slice=[0, -1, 0, 1, 0, 1]), people(), "`slice` must satisfy greater_than_or_equal_to"),
    ],
)
def test_a_table_that_breaks_the_contract_is_one_sentence(tmp_path, table, subjects, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        write(tmp_path / "out", table=table, subjects=subjects)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("images", [5, 7])
def test_every_image_has_a_row(tmp_path, images):
    with pytest.raises(ValueError, match=f"`slices` must have one row for each of {images} images, got 6"):
        write(tmp_path / "out", images=images)
    assert list(tmp_path.iterdir()) == []
