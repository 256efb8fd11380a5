"""Laws of the prepared folder: volumes against closed forms, the same bytes, and what it refuses."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from data_prep import prepared
from data_prep.prepared import ATTRIBUTE_COLUMNS, PreparedWriter, check_subjects, volumes_ml, write_prepared


def ellipsoid(shape, spacing, semi_axes):
    """Boolean ellipsoid in the middle of a grid; lengths in mm."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing)]
    return sum((g / s) ** 2 for g, s in zip(np.meshgrid(*axes, indexing="ij"), semi_axes)) < 1


def table(count=4, **columns):
    split = ["train", "val", "test", "train"][:count]
    frame = pd.DataFrame({"subject": [f"s{i}" for i in range(count)], "split": split})
    frame[list(ATTRIBUTE_COLUMNS)] = np.arange(1, 6 * count + 1, dtype=float).reshape(count, 6) + 40
    return frame.assign(**columns)


def card(**recipe):
    return {
        "name": "made up", "source": "test", "licence": "CC0-1.0", "citation": "none", "prepared_by": "test",
        "recipe": {"seed": 0} | recipe,
    }


def write(out, *, seed=0, **card_recipe):
    rng = np.random.default_rng(seed)
    images, labels = rng.random((4, 2, 16, 16)), rng.integers(0, 4, (4, 2, 16, 16), dtype=np.uint8)
    factors = pd.DataFrame({"subject": table()["subject"], "radius_mm": [1.0, 2.0, 3.0, 4.0]})
    options = {"subjects": table(), "card": card(**card_recipe), "factors": factors}
    write_prepared(out, images=images, labels=labels, **options)
    return images, labels


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_volume_of_an_ellipsoid():
    spacing, semi_axes = (2.0, 1.0, 1.0), (40.0, 25.0, 30.0)
    labels = ellipsoid((50, 64, 70), spacing, semi_axes).astype(np.uint8)
    closed_form = 4 / 3 * np.pi * np.prod(semi_axes) / 1000
    assert volumes_ml(labels, spacing)[0] == pytest.approx(closed_form, rel=2e-3)


def test_volume_of_a_ring_around_a_cylinder():
    x, y = np.meshgrid(np.arange(-63.75, 64, 0.5), np.arange(-63.75, 64, 0.5))
    radius = np.hypot(x, y)
    labels = np.repeat(np.where(radius < 25.3, 1, np.where(radius < 35.2, 2, 0))[None], 10, axis=0)
    lv, myo, rv = volumes_ml(labels, (8.0, 0.5, 0.5))
    assert lv == pytest.approx(np.pi * 25.3**2 * 80 / 1000, rel=5e-3)
    assert myo == pytest.approx(np.pi * (35.2**2 - 25.3**2) * 80 / 1000, rel=5e-3)
    assert rv == 0


def test_volumes_do_not_depend_on_the_order_of_axes_and_keep_leading_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (5, 2, 6, 8, 10), dtype=np.uint8)
    volumes = volumes_ml(labels, (8, 1.5, 1.5))
    assert volumes.shape == (5, 2, 3)
    np.testing.assert_array_equal(volumes, volumes_ml(np.moveaxis(labels, 2, -1), (1.5, 1.5, 8)))
    np.testing.assert_array_equal(volumes[3, 1], volumes_ml(labels[3, 1], (8, 1.5, 1.5)))
    own = volumes_ml(labels, np.stack([np.full((5, 3), 1.0), np.full((5, 3), 2.0)], axis=1))
    np.testing.assert_allclose(own[:, 1] / volumes_ml(labels, (1, 1, 1))[:, 1], 8)


def test_volumes_refuse_a_single_slice_and_a_zero_spacing():
    with pytest.raises(ValueError, match="`labels` must have three spatial axes"):
        volumes_ml(np.zeros((8, 8), np.uint8), (1, 1, 1))
    with pytest.raises(ValueError, match="`spacing_mm` must be three positive edges"):
        volumes_ml(np.zeros((8, 8, 8), np.uint8), (1, 0, 1))


def test_attribute_row_orders_by_frame_then_lv_rv_myocardium():
    frames = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # (ED, ES) x (LV, MYO, RV)
    np.testing.assert_array_equal(prepared.attribute_row(frames), [1, 3, 2, 4, 6, 5])


def test_written_folder_reads_back(tmp_path):
    images, labels = write(tmp_path / "out")
    card_read = json.loads((tmp_path / "out" / "card.json").read_text())
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "images.npy"), images.astype(np.float16))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "labels.npy", mmap_mode="r"), labels)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "subjects.csv"), table())
    for name, digest in card_read["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert set(card_read["files"]) == {"images.npy", "labels.npy", "subjects.csv", "factors.csv"}
    assert card_read["splits"] == {"train": 2, "val": 1, "test": 1}
    assert (card_read["size"], card_read["pixel_mm"], card_read["subjects"]) == (16, 10.0, 4)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_same_dataset_is_the_same_bytes_anywhere(tmp_path):
    write(tmp_path / "here")
    write(tmp_path / "there" / "deeper")
    assert contents(tmp_path / "here") == contents(tmp_path / "there" / "deeper")


def test_a_finished_folder_is_reused(tmp_path):
    write(tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    write(tmp_path / "out")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_another_dataset_in_the_way_is_refused_and_untouched(tmp_path):
    write(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match="holds another dataset .*give another folder"):
        write(tmp_path / "out", crop=1)
    assert contents(tmp_path / "out") == before


def test_anything_else_in_the_way_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(FileExistsError, match="exists and is not a prepared dataset"):
            write(out)
    with pytest.raises(FileExistsError, match="is a file"):
        write(tmp_path / "file" / "below")
    assert contents(tmp_path / "notes") == {"thesis.txt": b"years of work"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes"]


def test_a_folder_that_lost_a_file_is_not_taken_for_complete(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "labels.npy").unlink()
    with pytest.raises(FileExistsError, match="is not a prepared dataset"):
        write(tmp_path / "out")


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, failure):
    with pytest.raises(failure):
        with PreparedWriter(tmp_path / "out", subjects=4, size=16, identity="0") as writer:
            writer.images[0] = 0.5
            raise failure
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_a_race_uses_the_winners_folder(tmp_path):
    known = prepared.identity(card()["recipe"])
    with PreparedWriter(tmp_path / "out", subjects=4, size=16, identity=known) as slow:
        write(tmp_path / "out-fast")
        (tmp_path / "out-fast").rename(tmp_path / "out")
        slow.images[:], slow.labels[:] = 0, 0
        assert slow.finish(subjects=table(), card=card()) == tmp_path / "out"
    assert np.load(tmp_path / "out" / "images.npy").max() > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"subject": ["a", "a", "b", "c"]}, "`subject` must satisfy field_uniqueness, got 'a'"),
        ({"split": ["train", "val", "tset", "train"]}, "`split` must satisfy isin.*got 'tset'"),
        ({"RVESV_ml": [50.0, 0.0, 60.0, 70.0]}, r"`RVESV_ml` must satisfy in_range\(1, 1000\), got 0.0"),
        ({"LVEDV_ml": [50.0, 51.0, 120_000.0, 70.0]}, "`LVEDV_ml` must satisfy in_range"),
        ({"MYOEDV_ml": [50.0, np.nan, 60.0, 70.0]}, "`MYOEDV_ml` must satisfy not_nullable"),
        ({"subject": [1, 2, 3, 4]}, "`subject` must satisfy dtype"),
    ],
)
def test_a_table_that_breaks_the_contract_is_one_sentence(columns, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check_subjects(table(**columns))
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="must begin with the columns subject, split, LVEDV_ml"):
        check_subjects(table().drop(columns="LVESV_ml"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": np.full((4, 2, 16, 16), 1.5)}, r"`images` must be finite and within \[0, 1\]"),
        ({"images": np.full((4, 2, 16, 16), np.nan)}, "`images` must be finite"),
        ({"images": np.zeros((4, 1, 16, 16))}, r"must both be \(N, 2, S, S\), got \(4, 1, 16, 16\)"),
        ({"labels": np.full((4, 2, 16, 16), 500)}, "`labels` must be 0 to 3, got 500"),
        ({"subjects": table(3)}, "one row for each of 4 images, got 3"),
    ],
)
def test_arrays_that_break_the_contract_are_refused(tmp_path, change, sentence):
    good = {
        "images": np.zeros((4, 2, 16, 16)), "labels": np.zeros((4, 2, 16, 16), np.uint8),
        "subjects": table(), "card": card(),
    }
    with pytest.raises(ValueError, match=sentence):
        write_prepared(tmp_path / "out", **good | change)
    assert list(tmp_path.iterdir()) == []


def test_identity_is_of_the_content_not_of_the_order():
    assert prepared.identity({"a": 1, "b": [1, 2]}) == prepared.identity({"b": [1, 2], "a": 1})
    assert prepared.identity({"a": 1}) != prepared.identity({"a": 2})
    with pytest.raises(ValueError):
        prepared.identity({"a": float("nan")})
