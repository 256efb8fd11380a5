"""Real brain images: laws on ellipsoids whose volumes are known, every bad input, and open_ms where it is at hand."""

import argparse
import gzip
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data_prep import brain, brain_layouts
from data_prep.brain import prepare, read_person, read_splits, split_people
from data_prep.brain_layouts import Options, Person, adni_mri, folder, open_ms
from data_prep.brain_nifti import brain_of, cut, read, read_mask
from data_prep.brain_prepared import LEADING, check_tables
from data_prep.cardiac_quality import Unusable
from data_prep.prepared import read_card, sha256_file

REPO = Path(__file__).parents[1]
REAL = Path(os.environ.get("MEDVAE_DATA", REPO.parent / "shared" / "data")) / "open_ms"
needs_open_ms = pytest.mark.skipif(not REAL.is_dir(), reason="no open_ms data: set MEDVAE_DATA to the folder that holds open_ms")
SMALL = Options(slices=6, size=32, pixel_mm=2.0)
SHAPE = (50, 60, 30)


def head(seed=0, *, edges=(1.0, 1.0, 1.0), shape=SHAPE):
    """Grey values, brain and lesions of an ellipsoid with a dark middle, a bright front on the right, and two lesions; in RAS."""
    size = np.round(np.array(shape) / edges).astype(int)
    x, y, z = np.meshgrid(*(edge * (np.arange(n) + 0.5 - n / 2) for n, edge in zip(size, edges)), indexing="ij", sparse=True)
    inside = (x / 21) ** 2 + (y / 26) ** 2 + (z / 13) ** 2 < 1
    lesion = (x - 8) ** 2 + (y + 6) ** 2 + z**2 < 16
    lesion |= (x + 9) ** 2 + (y - 9) ** 2 + (z - 1) ** 2 < 9
    grey = 100 + 2 * y + x + np.random.default_rng(seed).normal(0, 5, inside.shape) + 60 * lesion
    return np.where(inside, grey, 0).astype(np.float32), inside, lesion & inside


def affine_of(volume, edges=(1.0, 1.0, 1.0), middle=(0.0, 0.0, 0.0)):
    """An affine in RAS whose origin is `middle` mm from the middle of the volume."""
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = np.array(middle) - np.array(edges) * (np.array(volume.shape[:3]) - 1) / 2
    return affine


def save(path, volume, affine=None, codes="RAS", dtype=None):
    """A volume given in RAS, stored in another order of voxels at the same place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = volume.astype(dtype or (np.uint8 if volume.dtype == bool else np.float32))
    image = nib.Nifti1Image(volume, affine_of(volume) if affine is None else affine)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), path)
    return path


def person(root, name="sub-0", seed=0, *, codes="RAS", edges=(1.0, 1.0, 1.0), ending=".nii.gz"):
    """One person's folder with image and lesion mask."""
    grey, _, lesion = head(seed, edges=edges)
    affine = affine_of(grey, edges)
    image = save(root / name / f"image{ending}", grey, affine, codes)
    return Person(name, image, save(root / name / f"mask{ending}", lesion, affine, codes))


def people(root, count=6):
    return [person(root, f"sub-{index}", index, ending=".nii") for index in range(count)]


def command(*words):
    """What the command line does, without its handling of errors."""
    parser = argparse.ArgumentParser()
    brain.add_commands(parser.add_subparsers())
    args = parser.parse_args([str(word) for word in words])
    return args.func(args)


def contents(place):
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def one_sentence(text):
    return "\n" not in text.strip() and 20 < len(text) < 700


def excluded(out):
    return {one["subject"]: one["reason"] for one in read_card(out)["excluded"]}


# Geometry


@pytest.mark.parametrize("codes", ["LAS", "PIL", "ASR", "LPS", "SRA"])
def test_the_order_of_voxels_in_the_file_does_not_matter(tmp_path, codes):
    plain, turned = (read_person(person(tmp_path / name, codes=name), SMALL) for name in ("RAS", codes))
    for one, other in zip(plain, turned):
        np.testing.assert_array_equal(one, other)


def test_the_mask_may_be_stored_in_another_order_than_the_image(tmp_path):
    one = person(tmp_path)
    _, _, lesion = head()
    other = one._replace(mask=save(tmp_path / "turned.nii", lesion, codes="LPI"))
    np.testing.assert_array_equal(read_person(one, SMALL).lesion, read_person(other, SMALL).lesion)


def test_the_front_is_on_top_the_persons_right_on_the_left_and_the_first_slice_lowest(tmp_path):
    grey, inside, _ = head()
    marks = {"right": (38, 30, 15), "front": (25, 50, 15), "top": (25, 30, 17)}
    for name, voxel in marks.items():
        mark = np.zeros_like(inside)
        mark[voxel] = True
        lesion = cut(read(save(tmp_path / f"{name}.nii", grey)), inside, mark, SMALL).lesion
        level, row, column = np.argwhere(lesion)[0]
        assert {"right": column < 12, "front": row < 8, "top": level == 5}[name]
        assert lesion.sum() == 25


def test_pixels_are_the_average_of_four_voxels(tmp_path):
    scan = read(person(tmp_path).image)
    inside = brain_of(scan, tmp_path)
    found = cut(scan, inside, None, SMALL)
    assert found.z_mm.tolist() == [height + 0.5 for height in range(-3, 3)]

    def pixels(volume):
        # The middle of 50 columns and 60 rows is the middle of a picture of 64 mm.
        stack = np.pad(volume[:, :, 12:18].transpose(2, 1, 0)[:, ::-1, ::-1], ((0, 0), (2, 2), (7, 7)))
        return stack.reshape(6, 32, 2, 32, 2)

    means, whole = pixels(scan.voxels).astype(float).mean((2, 4)), pixels(inside).all((2, 4))
    slope, shift = np.polyfit(means[whole], found.images[whole], 1)
    np.testing.assert_allclose(found.images[whole], slope * means[whole] + shift, atol=1e-5)
    assert slope > 0 and whole.sum() > 1000


@pytest.mark.parametrize("size, pixel_mm", [(32, 2.0), (32, 2.75), (64, 1.0), (112, None)])
@pytest.mark.parametrize("edges", [(1, 1, 1), (0.9, 1.1, 1), (1.5, 0.8, 1), (2, 2, 1)])
def test_volumes_are_kept(size, pixel_mm, edges, tmp_path):
    grey, inside, lesion = head(edges=edges)
    options = Options(8, size, pixel_mm)
    found = cut(read(save(tmp_path / "image.nii", grey, affine_of(grey, edges))), inside, lesion, options)
    levels = slice(11, 19)
    area = options.grid[2] ** 2
    true = lesion[..., levels].sum((0, 1)) * edges[0] * edges[1]
    assert found.lesion.sum() / 100 * area == pytest.approx(true.sum(), rel=0.02)
    assert found.tissue.sum() * area == pytest.approx(inside[..., levels].sum() * edges[0] * edges[1], rel=0.03)


def test_other_voxel_sizes_show_the_same_brain(tmp_path):
    plain = read_person(person(tmp_path / "plain"), SMALL)
    for edges in ((0.8, 0.8, 0.8), (1.5, 0.9, 1.2), (1.0, 1.0, 3.0)):
        other = read_person(person(tmp_path / str(edges), edges=edges), SMALL)
        assert other.tissue.sum() == pytest.approx(plain.tissue.sum(), rel=0.05)
        # Up to half a voxel off in the plane and one and a half along it, and other noise.
        assert np.corrcoef(other.images.ravel(), plain.images.ravel())[0, 1] > 0.93


def test_pixels_are_standardised_and_nothing_is_outside_the_brain(tmp_path):
    found = read_person(person(tmp_path), SMALL)
    assert found.images.mean() == pytest.approx(0, abs=1e-4) and found.images.std() == pytest.approx(1, abs=1e-4)
    assert len(np.unique(found.images[found.tissue == 0])) == 1
    assert found.lesion.max() == 100 and set(np.unique(found.tissue)) == {0, 1}


def test_a_skull_outside_the_given_mask_leaves_no_trace(tmp_path):
    grey, inside, lesion = head()
    stripped = cut(read(save(tmp_path / "a.nii", grey)), inside, lesion, SMALL)
    whole = cut(read(save(tmp_path / "b.nii", np.where(inside, grey, 900))), inside, lesion, SMALL)
    np.testing.assert_array_equal(stripped.images, whole.images)


def test_the_rim_of_the_brain_is_as_bright_as_its_middle(tmp_path):
    _, inside, _ = head()
    grey = 100.0 * inside
    grey[25, 30, 15] = 101
    found = cut(read(save(tmp_path / "image.nii", grey)), inside, None, SMALL)
    brightness = found.images[found.tissue == 1]
    assert np.ptp(brightness) < 0.01 * (brightness.min() - found.images.min())


def test_zeros_within_the_brain_belong_to_it_and_overshoot_at_its_rim_does_not(tmp_path):
    grey, inside, _ = head()
    rim = inside & ~np.roll(inside, 1, 0) & (np.arange(60) == 30)[:, None]
    grey[23:26, 28:31, 12:16] = 0
    grey[rim] = -3
    found = brain_of(read(save(tmp_path / "image.nii", grey)), tmp_path)
    np.testing.assert_array_equal(found, inside & ~rim)


def test_the_middle_slice_is_the_one_asked_for(tmp_path):
    scan = read(save(tmp_path / "image.nii", head()[0], affine_of(head()[0], middle=(3, -4, 50.5))))
    found = cut(scan, brain_of(scan, tmp_path), None, SMALL._replace(centre_mm=52.0))
    assert found.z_mm.tolist() == [49, 50, 51, 52, 53, 54]
    again = cut(scan, brain_of(scan, tmp_path), None, SMALL._replace(centre_mm=53.0))
    np.testing.assert_array_equal(found.tissue[1:], again.tissue[:-1])


def test_slices_of_1_mm_are_each_taken_once(tmp_path):
    grey, inside, _ = head()
    for shift in (0.0, 0.5, 1e-6, 0.5 - 1e-6):
        scan = read(save(tmp_path / "image.nii", grey, affine_of(grey, middle=(0, 0, shift))))
        for centre in (None, 0.0, 0.5, 1.0):
            marked = np.zeros_like(inside)
            marked[20:22, 30] = np.arange(30) % 2 == 0
            lesion = cut(scan, inside, marked, SMALL._replace(centre_mm=centre)).lesion
            assert abs(np.diff(lesion.sum((1, 2)).astype(int) > 0)).all()


# The folder


def test_a_folder_keeps_the_contract(tmp_path):
    people(tmp_path / "raw")
    words = ["--slices", 6, "--size", 32, "--pixel-mm", 2, "--sequence", "FLAIR"]
    assert command("brain-folder", tmp_path / "raw", tmp_path / "out", *words) == 0
    out = tmp_path / "out"
    card, subjects = read_card(out), pd.read_csv(out / "subjects.csv")
    slices = pd.read_csv(out / "slices.csv", dtype=dict.fromkeys(("z_mm", "brain_mm2", "lesion_mm2"), float))
    images, labels = np.load(out / "images.npy"), np.load(out / "labels.npy")
    check_tables(slices, subjects)
    assert list(slices) == ["subject", "split", "slice", "z_mm", "brain_mm2", "lesion_mm2"]
    assert images.shape == (36, 1, 32, 32) and images.dtype == np.float16 and labels.shape == (36, 2, 32, 32) and labels.dtype == np.uint8
    assert {"name", "source", "licence", "citation", "prepared_by", "recipe", "sequence", "pixel_mm", "slice_gap_mm", "tissues"} < set(card)
    assert (card["kind"], card["sequence"], card["pixel_mm"], card["slice_gap_mm"], card["excluded"]) == ("brain", "FLAIR", 2.0, 1.0, [])
    assert card["tissues"] == {"0": "background", "1": "brain"} and card["splits"] == {"train": 4, "val": 1, "test": 1}
    assert all(sha256_file(out / name) == digest for name, digest in card["files"].items())
    assert slices.groupby("subject")["split"].nunique().eq(1).all() and len(slices) == 36
    for row, (_, found) in enumerate(slices.iterrows()):
        assert found["lesion_mm2"] == pytest.approx(labels[row, 1].sum() / 25, rel=1e-5)
        assert found["brain_mm2"] == labels[row, 0].sum() * 4
    first = read_person(brain_layouts.folder(tmp_path / "raw").people[0], SMALL)
    np.testing.assert_array_equal(images[:6, 0], first.images.astype(np.float16))


def test_two_runs_give_the_same_bytes_and_a_third_reuses(tmp_path):
    people(tmp_path / "raw")
    shutil.copytree(tmp_path / "raw", tmp_path / "moved" / "elsewhere")
    prepare(folder(tmp_path / "raw"), tmp_path / "one", SMALL)
    prepare(folder(tmp_path / "moved" / "elsewhere"), tmp_path / "two", SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    before = (tmp_path / "one" / "images.npy").stat().st_mtime_ns
    prepare(folder(tmp_path / "raw"), tmp_path / "one", SMALL)
    assert (tmp_path / "one" / "images.npy").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "one", "raw", "two"]


def test_the_bytes_do_not_depend_on_how_many_processes_read(tmp_path):
    volume_of(people(tmp_path / "raw", 7)[3].image, with_nan)
    one, two = (prepare(folder(tmp_path / "raw"), tmp_path / f"out{n}", SMALL, workers=n) for n in (1, 2))
    assert contents(one) == contents(two) and list(excluded(two)) == ["sub-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out1", "out2", "raw"]
    with pytest.raises(ValueError, match="^`workers` must be at least 1, got 0.$"):
        prepare(folder(tmp_path / "raw"), tmp_path / "out3", SMALL, workers=0)


def test_the_identity_is_that_of_options_and_files(tmp_path):
    people(tmp_path / "raw")
    table = tmp_path / "splits.csv"
    table.write_text("subject,split\n" + "".join(f"sub-{i},{name}\n" for i, name in enumerate(["train", "val", "test"] * 2)))
    cohort = folder(tmp_path / "raw")

    def known(name, *args, **options):
        return read_card(prepare(args[0] if args else cohort, tmp_path / name, options.pop("options", SMALL), **options))["identity"]

    found = [known("a"), known("b", seed=1), known("c", options=SMALL._replace(slices=5)), known("d", splits=table)]
    found.append(known("e", options=SMALL._replace(centre_mm=0.5)))
    found.append(known("f", folder(tmp_path / "raw", sequence="T1")))
    save(tmp_path / "raw" / "sub-3" / "mask.nii", np.zeros(SHAPE, bool))
    found.append(known("g"))
    (tmp_path / "raw" / "sub-3" / "mask.nii").unlink()
    found.append(known("h", folder(tmp_path / "raw")))
    assert len(set(found)) == len(found)


def test_a_person_without_lesions_is_fine_and_one_without_mask_is_listed(tmp_path):
    people(tmp_path / "raw")
    save(tmp_path / "raw" / "sub-1" / "mask.nii", np.zeros(SHAPE, bool))
    (tmp_path / "raw" / "sub-2" / "mask.nii").unlink()
    out = prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL)
    lesions = pd.read_csv(out / "slices.csv").groupby("subject")["lesion_mm2"].sum()
    assert lesions[["sub-1", "sub-2"]].tolist() == [0, 0] and (lesions.drop(["sub-1", "sub-2"]) > 100).all()
    assert read_card(out)["without_mask"] == ["sub-2"] and excluded(out) == {}


def test_files_may_lie_flat_and_have_other_names(tmp_path):
    grey, inside, lesion = head()
    for index in range(5):
        save(tmp_path / "raw" / f"{index:03d}_t2.nii.gz", np.where(inside, grey, 7))
        save(tmp_path / "raw" / f"{index:03d}_bet.nii", inside)
        save(tmp_path / "raw" / f"{index:03d}_wmh.nii.gz", lesion)
    (tmp_path / "raw" / "notes.txt").write_text("nothing")
    words = ["--image", "t2", "--brain", "bet", "--mask", "wmh.nii.gz", "--slices", 6, "--size", 32, "--pixel-mm", 2]
    assert command("brain-folder", tmp_path / "raw", tmp_path / "out", *words) == 0
    assert pd.read_csv(tmp_path / "out" / "subjects.csv", dtype=str)["subject"].tolist() == [f"{index:03d}" for index in range(5)]
    assert read_card(tmp_path / "out")["without_mask"] == []


def test_the_table_gives_splits_and_what_else_is_known(tmp_path):
    people(tmp_path / "raw", 4)
    table = tmp_path / "participants.csv"
    table.write_text("age,subject,split\n40,sub-0,test\n,sub-1,val\n50,sub-2,train\n60,stranger,train\n")
    out = prepare(folder(tmp_path / "raw", table=table), tmp_path / "out", SMALL)
    subjects = pd.read_csv(out / "subjects.csv")
    assert tuple(subjects.columns) == (*LEADING, "age") and subjects["split"].tolist() == ["test", "val", "train"]
    assert subjects["age"].fillna(-1).tolist() == [40, -1, 50]
    assert list(excluded(out)) == ["sub-3"] and "table" in excluded(out)["sub-3"]
    with pytest.raises(ValueError, match="given once"):
        prepare(folder(tmp_path / "raw", table=table), tmp_path / "two", SMALL, splits=table)


def test_open_ms_is_found_from_any_level_above(tmp_path):
    root = tmp_path / "open_ms" / "cross_sectional" / "MNI"
    grey, _, lesion = head()
    affine = affine_of(grey, middle=(0, 0, 18.5))
    for index in range(1, 6):
        place = root / f"patient{index:02d}"
        save(place / "GOLD_STANDARD_N4.nii.gz", lesion, affine)
        if index > 1:
            save(place / "FLAIR_N4_regtoMNI.nii.gz", grey, affine)
            save(place / "T1_N4_regtoMNI.nii.gz", 2 * grey, affine)
            save(place / "T1KS_N4_regtoMNI.nii.gz", 3 * grey, affine)
    save(root / "patient05" / "FLAIR_again.nii.gz", grey, affine)
    save(tmp_path / "open_ms" / "cross_sectional" / "raw" / "patient01" / "FLAIR.nii.gz", grey)
    outs = []
    for level, raw in enumerate((root, root.parent, root.parent.parent)):
        outs.append(prepare(open_ms(raw), tmp_path / f"out{level}", SMALL, few=True))
    assert contents(outs[0]) == contents(outs[1]) == contents(outs[2])
    assert excluded(outs[0]) == {
        "patient01": "`patient01` holds no FLAIR*.nii.gz; add it", "patient05": "`patient05` holds 2 files FLAIR*.nii.gz; keep one",
    }  # fmt: skip
    assert pd.read_csv(outs[0] / "slices.csv")["z_mm"].tolist()[:6] == [15, 16, 17, 18, 19, 20]
    (root / "patient06").mkdir()  # one more person left out makes another card
    assert read_card(prepare(open_ms(root), tmp_path / "more", SMALL, few=True))["identity"] != read_card(outs[0])["identity"]
    card = read_card(prepare(open_ms(root, sequence="T1"), tmp_path / "t1", SMALL, few=True))
    assert card["sequence"] == "T1" and card["subjects"] == 4 and card["licence"] == "CC-BY" and "Lesjak" in card["citation"]


def adni(root, subjects=5):
    """ADNI's layout with two dates for the second person, and the table of the collection."""
    rows = []
    for index in range(subjects):
        subject = f"{index:03d}_S_{1000 + index}"
        for date in ("2006-01-02_10_00_00.0", "2005-01-02_10_00_00.0")[: 2 if index == 1 else 1]:
            number = f"I{index}{date[3]}"
            place = root / "ADNI" / subject / "MPR__GradWarp" / date / number
            save(place / f"ADNI_{subject}_{number}.nii.gz", head(index)[0])
            rows.append([number, subject, "CN", "F", 70 + index, date[:10]])
    table = pd.DataFrame(rows, columns=["Image Data ID", "Subject", "Group", "Sex", "Age", "Acq Date"])
    table.to_csv(root / "images.csv", index=False)
    return root / "images.csv"


def test_adni_takes_the_first_image_of_each_person(tmp_path, caplog):
    caplog.set_level("INFO")
    table = adni(tmp_path / "raw")
    words = ["--table", table, "--slices", 6, "--size", 32, "--pixel-mm", 2]
    assert command("adni-mri", tmp_path / "raw", tmp_path / "out", *words) == 0
    subjects = pd.read_csv(tmp_path / "out" / "subjects.csv")
    assert list(subjects) == ["subject", "split", "group", "sex", "age_years", "acq_date", "image_id"]
    assert subjects["image_id"].tolist() == ["I06", "I15", "I26", "I36", "I46"] and subjects["age_years"].tolist() == [70, 71, 72, 73, 74]
    assert "1 further images" in caplog.text
    assert read_card(tmp_path / "out")["sequence"] == "T1" and not np.load(tmp_path / "out" / "labels.npy")[:, 1].any()
    within = prepare(adni_mri(tmp_path / "raw" / "ADNI", table), tmp_path / "again", SMALL)
    assert contents(within) == contents(tmp_path / "out")


def test_an_adni_image_that_the_table_lacks_is_left_out(tmp_path):
    table = adni(tmp_path / "raw", 6)
    text = table.read_text()
    table.write_text(text.replace("I36", "I99"))
    out = prepare(adni_mri(tmp_path / "raw", table), tmp_path / "out", SMALL)
    assert "I36" in excluded(out)["003_S_1003"]
    table.write_text(text + text.splitlines()[1].replace("CN", "AD") + "\n")
    with pytest.raises(ValueError, match="`images.csv` holds the subject '000_S_1000' twice"):
        adni_mri(tmp_path / "raw", table)


# Bad files


def volume_of(place, change):
    """The stored image and its header, changed."""
    image = nib.load(place)
    volume, affine = np.asarray(image.dataobj).copy(), image.affine.copy()
    changed = change(volume, affine)
    nib.save(nib.Nifti1Image(*changed) if isinstance(changed, tuple) else changed, place)


def no_codes(volume, affine):
    image = nib.Nifti1Image(volume, None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    return image


def flat(volume, affine):
    image = nib.Nifti1Image(volume, affine)
    image.header["srow_x"] = 0
    # Past the image, which would put the affine back.
    return nib.Nifti1Image(volume, None, image.header)


def with_nan(volume, affine):
    volume[25, 30, 15] = np.nan
    return volume, affine


def tilted(degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return lambda volume, affine: (volume, np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]]) @ affine)


def in_colour(volume, affine):
    return np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), affine


IMAGES = {
    r"shape \(50, 60\)": lambda volume, affine: (volume[..., 15], affine),
    r"shape \(50, 60, 30, 2\)": lambda volume, affine: (np.stack([volume, volume], -1), affine),
    "does not say how the head lies": no_codes,
    "no sensible affine": flat,
    "oblique by 20 degrees": tilted(20),
    "voxels of 1 x 1 x 5 mm": lambda volume, affine: (volume, affine @ np.diag([1, 1, 5, 1])),
    "voxels of 4 x 1 x 1 mm": lambda volume, affine: (volume, affine @ np.diag([4, 1, 1, 1])),
    "not finite": with_nan,
    "not grey values": in_colour,
    "not brain-extracted": lambda volume, affine: (volume + 10, affine),
    "negative voxels": lambda volume, affine: (np.where(volume > 0, volume - 100, 0), affine),
    "mask is empty": lambda volume, affine: (0 * volume, affine),
    "one grey value": lambda volume, affine: (np.where(volume > 0, 5, 0).astype(np.float32), affine),
    "must lie on one grid": lambda volume, affine: (volume[2:], affine),
    "different affines": lambda volume, affine: (volume, affine + np.array([[0, 0, 0, 3]] + 3 * [[0] * 4])),
}
MASKS = {
    "must lie on one grid": lambda volume, affine: (volume[:, :-1], affine),
    "different affines": lambda volume, affine: (volume, affine @ np.diag([-1, 1, 1, 1])),
    "one positive value inside, got 1, 2": lambda volume, affine: (volume * (1 + np.arange(60) % 2).astype(np.uint8)[:, None], affine),
    "one positive value inside, got -1": lambda volume, affine: (-volume.astype(np.int16), affine),
    "lie outside the brain": lambda volume, affine: (np.roll(volume, 20, 0), affine),
    "does not say how the head lies": no_codes,
}


def refused(one, sentence, options=SMALL):
    with pytest.raises(Unusable, match=sentence) as error:
        read_person(one, options)
    assert one_sentence(str(error.value))


@pytest.mark.parametrize("sentence", IMAGES)
def test_a_bad_image_is_refused_in_a_sentence(tmp_path, sentence):
    one = person(tmp_path)
    volume_of(one.image, IMAGES[sentence])
    refused(one, sentence)


@pytest.mark.parametrize("sentence", MASKS)
def test_a_bad_mask_is_refused_in_a_sentence(tmp_path, sentence):
    one = person(tmp_path)
    volume_of(one.mask, MASKS[sentence])
    refused(one, sentence)


def test_a_small_tilt_and_a_trailing_axis_of_one_are_taken(tmp_path):
    one, other = person(tmp_path / "one"), person(tmp_path / "other")
    plain = read_person(one, SMALL)
    for path in (one.image, one.mask):
        volume_of(path, tilted(6))
    for path in (other.image, other.mask):
        volume_of(path, lambda volume, affine: (volume[..., None], affine))
    np.testing.assert_array_equal(read_person(one, SMALL).images, plain.images)
    np.testing.assert_array_equal(read_person(other, SMALL).images, plain.images)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -3])
def test_a_truncated_file_is_refused(tmp_path, keep):
    one = person(tmp_path)
    data = one.image.read_bytes()
    one.image.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(one, "cut short or damaged")


@pytest.mark.parametrize("place", [-6, 0.5])
def test_one_byte_changed_is_noticed(tmp_path, place):
    noise = np.random.default_rng(0).normal(size=(100, 100, 100))
    path = save(tmp_path / "image.nii.gz", noise)
    data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    data[place if place < 0 else int(place * len(data))] ^= 1
    path.write_bytes(data)
    refused(Person("one", path), "cut short or damaged")


def test_text_folders_and_missing_files_are_refused(tmp_path):
    one = person(tmp_path)
    one.image.write_text("this is no image")
    refused(one, "cannot be read as NIfTI")
    refused(one._replace(image=tmp_path / "none.nii"), "is missing")
    refused(one._replace(image=tmp_path), "cannot be read as NIfTI")


def test_a_brain_that_fits_neither_the_picture_nor_the_slices_is_refused(tmp_path):
    one = person(tmp_path)
    refused(one, r"does not fit into the picture of 32 x 32 mm \(the brain is 42 x 52 mm", SMALL._replace(pixel_mm=1.0))
    refused(one, "brain on only 26 of the 40 slices", SMALL._replace(slices=40))
    refused(one, "brain on only 0 of the 6 slices", SMALL._replace(centre_mm=400.0))
    refused(one._replace(brain=save(tmp_path / "brain.nii", np.zeros(SHAPE, bool))), "mask is empty")


def test_a_bad_person_is_left_out_with_the_reason(tmp_path, caplog):
    people(tmp_path / "raw", 7)
    volume_of(tmp_path / "raw" / "sub-2" / "image.nii", with_nan)
    shutil.copy(tmp_path / "raw" / "sub-4" / "image.nii", tmp_path / "raw" / "sub-4" / "image.nii.gz")
    out = prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL)
    assert list(excluded(out)) == ["sub-2", "sub-4"] and len(pd.read_csv(out / "subjects.csv")) == 5
    assert "not finite" in excluded(out)["sub-2"] and "keep one" in excluded(out)["sub-4"]
    assert "left out sub-2" in caplog.text and str(tmp_path) not in (out / "card.json").read_text()


def test_an_error_nobody_foresaw_costs_one_person(tmp_path, monkeypatch):
    people(tmp_path / "raw")
    real = brain.read_person

    def odd(one, options):
        if one.subject == "sub-0":
            raise RuntimeError("two\nlines")
        return real(one, options)

    monkeypatch.setattr(brain, "read_person", odd)
    assert "RuntimeError" in excluded(prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL))["sub-0"]


# Bad collections and options


@pytest.mark.parametrize(
    "count, few, sentence",
    [(1, False, "at least 5 people .* got 1"), (1, True, "at least 3 people .* got 1"), (4, False, "--few"), (2, True, "got 2")],
)
def test_too_few_people_are_refused_and_nothing_is_left(tmp_path, count, few, sentence):
    people(tmp_path / "raw", count)
    with pytest.raises(ValueError, match=sentence) as error:
        prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL, few=few)
    assert one_sentence(str(error.value)) and [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_few_people_are_split_in_turn_and_more_are_drawn():
    assert split_people(list("abc"), few=True) == ["train", "val", "test"]
    assert split_people(list("abcd"), few=True) == ["train", "val", "test", "train"]
    assert split_people(list("abcde"), few=True) == split_people(list("abcde"))
    assert sorted(split_people(list("abcde"))) == ["test", "train", "train", "train", "val"]
    assert split_people(list("abc"), {"a": "test", "b": "val", "c": "train"}) == ["test", "val", "train"]
    for given, sentence in (({"a": "test", "b": "val"}, "'c' is missing"), (dict.fromkeys("abc", "test"), "train is empty")):
        with pytest.raises(ValueError, match=sentence):
            split_people(list("abc"), given)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("subject,split\na,train\na,val\n", "holds the subject 'a' twice"), ("subject,split\na,training\n", "got 'training' for 'a'"),
        ("subject\na\n", "one column `split`"), ("", "is empty"), ("subject,split\na,\n", "got '' for 'a'"),
    ],
)  # fmt: skip
def test_a_bad_table_of_splits_is_refused(tmp_path, text, sentence):
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_splits(tmp_path / "splits.csv")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("subject,age\nsub-0,1\nsub-0,2\n", "holds the subject 'sub-0' twice"), ("name,age\nsub-0,1\n", "one column `subject`"),
        ("subject,age\n,1\n", "empty `subject`"), ("subject,age\nsub-0\n", "as many cells"),
        ("subject,age\nother,1\n", "is not in the table"), ("subject,split\nsub-0,learn\n", "got 'learn' for 'sub-0'"),
    ],
)  # fmt: skip
def test_a_bad_table_of_people_is_refused(tmp_path, text, sentence):
    people(tmp_path / "raw", 1)
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        prepare(folder(tmp_path / "raw", table=tmp_path / "people.csv"), tmp_path / "out", SMALL)
    assert one_sentence(str(error.value)) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"slices": 0}, "`slices` must be from 1"), ({"size": 65}, "`size` must be one of 32, 64, 112"), ({"pixel_mm": 0.0}, "`pixel_mm`"),
        ({"pixel_mm": float("nan")}, "`pixel_mm`"), ({"centre_mm": float("nan")}, "`centre_mm`"),
        ({"centre_mm": float("inf")}, "`centre_mm`"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(tmp_path, change, sentence):
    people(tmp_path / "raw", 1)
    with pytest.raises(ValueError, match=sentence):
        prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL._replace(**change))
    with pytest.raises(ValueError, match="`seed`"):
        prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL, seed=-1)


def test_an_out_folder_in_the_way_is_not_touched(tmp_path):
    people(tmp_path / "raw")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="not a prepared dataset"):
        prepare(folder(tmp_path / "raw"), tmp_path / "busy", SMALL)
    with pytest.raises(FileExistsError, match="only read"):
        prepare(folder(tmp_path / "raw"), tmp_path / "raw" / "out", SMALL)
    prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL)
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match="another dataset"):
        prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL, seed=5)
    assert contents(tmp_path / "out") == before and contents(tmp_path / "busy") == {"file": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["busy", "out", "raw"]


def test_a_run_stopped_while_writing_leaves_nothing(tmp_path, monkeypatch):
    people(tmp_path / "raw")
    monkeypatch.setattr("data_prep.brain_prepared.sha256_file", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_folders_without_people_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("Subject,Image Data ID,Group,Sex,Age,Acq Date\n")
    for read_cohort in (folder, open_ms, lambda raw: adni_mri(raw, tmp_path / "table.csv")):
        with pytest.raises(ValueError, match="are looked for"):
            read_cohort(tmp_path)
        with pytest.raises(ValueError, match="not a folder"):
            read_cohort(tmp_path / "none")
    for names in ({"image": "a/b"}, {"mask": ""}, {"mask": "image"}):
        with pytest.raises(ValueError):
            folder(tmp_path, **names)
    with pytest.raises(ValueError, match="`sequence`"):
        open_ms(tmp_path, sequence="T2")


def test_a_person_found_twice_is_refused(tmp_path):
    person(tmp_path / "raw", "ann")
    shutil.copy(tmp_path / "raw" / "ann" / "image.nii.gz", tmp_path / "raw" / "ann_image.nii.gz")
    with pytest.raises(ValueError, match="the person 'ann' twice"):
        folder(tmp_path / "raw")
    for study in "ab":
        person(tmp_path / "ms" / study, "patient01")
    with pytest.raises(ValueError, match="the person 'patient01' twice"):
        open_ms(tmp_path / "ms")


# Damage at random


@pytest.mark.parametrize("seed", range(60))
def test_a_file_damaged_at_random_ends_in_a_folder_or_a_sentence(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for index in range(3):
        person(tmp_path / "raw", f"sub-{index}", index, ending=".nii.gz" if seed % 3 == 0 else ".nii")
    path = rng.choice(sorted((tmp_path / "raw" / "sub-1").iterdir()))
    data = bytearray(path.read_bytes())
    # Two in three in the header, where one byte says most.
    end = len(data) if seed % 3 == 0 else 352
    for place in rng.integers(0, end, rng.integers(1, 6)):
        data[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    if rng.random() < 0.15:
        del data[rng.integers(len(data)) :]
    path.write_bytes(data)
    try:
        with np.errstate(all="ignore"):
            out = prepare(folder(tmp_path / "raw"), tmp_path / "out", SMALL, few=True)
    except (ValueError, OSError) as error:
        assert one_sentence(str(error)) and re.search(r"at least 3 people .* got 2", str(error))
        assert not re.search("nobody foresaw", str(error)), error
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    else:
        assert np.isfinite(np.load(out / "images.npy").astype(float)).all() and excluded(out) == {}


# Real data


@needs_open_ms
def test_the_patients_of_open_ms_who_have_images_are_prepared(tmp_path):
    assert command("open-ms", REAL, tmp_path / "out", "--few") == 0
    out = tmp_path / "out"
    card, slices = json.loads((out / "card.json").read_text()), pd.read_csv(out / "slices.csv")
    images = np.load(out / "images.npy")
    assert pd.read_csv(out / "subjects.csv")["subject"].tolist() == ["patient07", "patient19", "patient26"]
    assert images.shape == (72, 1, 112, 96) and len(card["excluded"]) == 27 and card["splits"] == {"train": 1, "val": 1, "test": 1}
    assert slices["z_mm"].between(6, 29).all() and slices["brain_mm2"].between(9000, 20000).all()
    for one in open_ms(REAL).people:
        if not one.reason:
            scan = read(one.image)
            mask = read_mask(one.mask, scan, one.image)
            # Slices 78 to 101 of the template are the heights 6 to 29 mm.
            found = slices.loc[slices["subject"] == one.subject, "lesion_mm2"]
            assert found.sum() == pytest.approx(mask[..., 78:102].sum(), rel=0.02)
