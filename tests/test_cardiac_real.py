"""Real short-axis cohorts: laws on analytic hearts, every bad input, and ACDC where it is at hand."""

import gzip
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data_prep import cardiac_run
from data_prep.__main__ import main
from data_prep.cardiac_layouts import LAYOUTS
from data_prep.cardiac_nifti import read
from data_prep.cardiac_pair import Options, Stack, basal_slices, pose, prepare, resample
from data_prep.cardiac_quality import Excluded, Unusable, check_order, quality
from data_prep.cardiac_split import SPLITS, fingerprint, same_scan, split_subjects

LV, MYO, RV = 1, 2, 3
ACDC = {LV: 3, MYO: 2, RV: 1}
CANONICAL = Options(label_map=(1, 2, 3))
REPO = Path(__file__).parents[1]
REAL = Path(os.environ.get("MEDVAE_DATA", REPO.parent / "shared" / "data")) / "acdc" / "training"
needs_acdc = pytest.mark.skipif(
    not REAL.is_dir(), reason="no ACDC data: set MEDVAE_DATA to the folder that holds acdc"
)


def heart(
    *, centre=(70.0, 76.0), angle=180.0, spacing=(10.0, 1.4, 1.4), shape=(8, 96, 110), seed=0, es_shift=(0, 0)
):
    """A `Stack` of round hearts with known geometry: LV disc, myocardial ring, RV disc beside it at `angle`.

    Angles are in degrees from the column axis towards the rows; 180 is straight left. Slice 0 is the base.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[1], : shape[2]] * np.reshape(spacing[1:], (2, 1, 1))
    direction = np.array([np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    tissue = rng.normal(200, 60, size=(24, 24)).repeat(8, 0).repeat(8, 1)[: shape[1], : shape[2]]
    label = np.zeros((2, *shape), np.uint8)
    for frame, (lv, outer, rv) in enumerate(RADII):
        middle = np.array(centre) + (np.array(es_shift) if frame else 0)
        for z in range(shape[0]):
            scale = taper(z, shape[0])
            where = middle + direction * (outer + rv + 1) * scale
            from_lv = np.hypot(rows - middle[0], columns - middle[1])
            label[frame, z][np.hypot(rows - where[0], columns - where[1]) < rv * scale] = RV
            label[frame, z][from_lv < outer * scale] = MYO
            label[frame, z][from_lv < lv * scale] = LV
    grey = np.where(label == 0, tissue, np.array([0, 420, 130, 380])[label]) + rng.normal(0, 4, label.shape)
    # A bright spot in front (above, once the RV is on the left): the mirrored chest would have it below.
    front = np.array(centre) + 42 * np.array([direction[1], -direction[0]])
    grey[..., np.hypot(rows - front[0], columns - front[1]) < 5] = 700
    return Stack(np.round(grey).astype(np.float32), label, spacing)


RADII = ((20.0, 28.0, 16.0), (13.0, 26.0, 12.0))  # mm at the base: LV, epicardium, RV; ED then ES


def taper(z, slices):
    return 1 - 0.4 * z / (slices - 1)


def save(path, volume, spacing, *, affine=None):
    """A (Z, row, column) or (T, Z, row, column) array as NIfTI (X, Y, Z[, T]) in the clinical orientation."""
    axes = (2, 1, 0) if volume.ndim == 3 else (3, 2, 1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(volume.transpose(axes), affine), path)


def write_acdc(root, name, stack, *, group="NOR", values=ACDC, frames=(1, 9)):
    folder = root / name
    lookup = np.array([0, *(values[region] for region in (LV, MYO, RV))], np.uint8)
    for number, image, label in zip(frames, stack.image, stack.label, strict=True):
        save(folder / f"{name}_frame{number:02d}.nii.gz", image.astype(np.int16), stack.spacing_mm)
        save(folder / f"{name}_frame{number:02d}_gt.nii.gz", lookup[label], stack.spacing_mm)
    info = f"ED: {frames[0]}\nES: {frames[1]}\nGroup: {group}\nHeight: 170.0\nNbFrame: 30\nWeight: 70.0\n"
    (folder / "Info.cfg").write_text(info)
    return folder


def cohort(root, count=4):
    for i in range(1, count + 1):
        write_acdc(root, f"patient{i:03d}", heart(seed=i, angle=40.0 * i), group=("NOR", "DCM")[i % 2])
    return root


def card(out):
    return json.loads((out / "card.json").read_text())


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def centre_of(label, region):
    return np.argwhere(label == region).mean(axis=0)


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(10.0, 1.4, 1.4), (8.0, 1.0, 1.2)])
def test_volumes_are_those_of_the_solid_at_native_spacing(spacing):
    stack = heart(spacing=spacing, shape=(8, 130, 140))
    volumes = prepare(stack, CANONICAL).volume_ml
    scale = sum(taper(z, 8) ** 2 for z in range(8)) * spacing[0] * np.pi / 1000
    for frame, (lv, outer, rv) in enumerate(RADII):
        np.testing.assert_allclose(
            volumes[frame], scale * np.array([lv**2, outer**2 - lv**2, rv**2]), rtol=0.02
        )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("align", ["ed", "each"])
def test_any_pose_comes_out_upright(seed, align):
    rng = np.random.default_rng(seed)
    spacing = (10.0, *rng.uniform(1.0, 1.8, size=2))
    stack = heart(
        centre=rng.uniform(70, 90, 2),
        angle=rng.uniform(0, 360),
        spacing=spacing,
        shape=(8, 150, 160),
        es_shift=(6, -4),
    )
    subject = prepare(stack, Options((1, 2, 3), align=align))
    for label in subject.label if align == "each" else subject.label[:1]:
        lv, rv = centre_of(label, LV), centre_of(label, RV)
        assert np.abs(lv - 63.5).max() < 0.5
        down, right = rv - lv
        assert abs(np.degrees(np.arctan2(down, -right))) < 2  # straight left, same row
    if align == "ed":
        moved = (centre_of(subject.label[1], LV) - centre_of(subject.label[0], LV)) * 1.25
        assert np.hypot(*moved) == pytest.approx(np.hypot(6, 4), abs=1.0)  # the heart's own motion is kept


def test_aligning_by_ed_keeps_still_tissue_still():
    stack = heart(es_shift=(8, 5))
    apart = {}
    for align in ("ed", "each"):
        subject = prepare(stack, Options((1, 2, 3), align=align, intensity="minmax"))
        still = (subject.label == 0).all(axis=0) & (subject.image > 0).all(axis=0)
        apart[align] = np.abs(np.diff(subject.image.astype(float), axis=0)[0][still]).mean()
    assert apart["ed"] < 0.3 * apart["each"]


@pytest.mark.parametrize("spacing_mm", [1.0, 1.25, 2.5, None])
def test_areas_survive_resampling(spacing_mm):
    subject = prepare(heart(), Options((1, 2, 3), spacing_mm=spacing_mm, size=128))
    assert subject.pixel_mm == pytest.approx(spacing_mm or 1.4)
    for frame, (lv, outer, rv) in enumerate(RADII):
        areas = [
            np.count_nonzero(subject.label[frame] == region) * subject.pixel_mm**2 for region in (LV, MYO, RV)
        ]
        np.testing.assert_allclose(areas, np.pi * np.array([lv**2, outer**2 - lv**2, rv**2]), rtol=0.05)


def test_round_hearts_stay_round_on_oblong_pixels():
    subject = prepare(heart(spacing=(10.0, 1.0, 1.6), shape=(8, 140, 90)), CANONICAL)
    height, width = np.ptp(np.argwhere(subject.label[0] == LV), axis=0)
    assert abs(height - width) <= 2


def test_one_bright_pixel_darkens_minmax_alone():
    stack = heart()
    stack.image[0, 0, 5, 5] = 50_000
    grey = {}
    for intensity in ("percentile", "minmax"):
        subject = prepare(stack, Options((1, 2, 3), intensity=intensity))
        grey[intensity] = np.median(subject.image[0][subject.label[0] == LV])
    assert grey["percentile"] > 0.5 and grey["minmax"] < 0.05


def test_a_file_is_read_as_it_was_written(tmp_path):
    stack = heart(spacing=(9.0, 1.1, 1.5), angle=20.0)
    write_acdc(tmp_path, "patient001", stack)
    raw = LAYOUTS["acdc"].describe(LAYOUTS["acdc"].find(tmp_path)[0])
    again = read(raw.frames, (3, 2, 1))
    np.testing.assert_array_equal(again.image, stack.image)
    np.testing.assert_array_equal(again.label, stack.label)
    assert again.spacing_mm == pytest.approx(stack.spacing_mm)


def test_labels_stay_labels_and_greys_stay_within_range():
    subject = prepare(heart(angle=33.0), CANONICAL)
    assert subject.image.dtype == np.float16 and subject.label.dtype == np.uint8
    assert set(np.unique(subject.label)) == {0, 1, 2, 3}
    for image in subject.image.astype(float):
        assert image.min() == 0 and image.max() == 1


def test_detail_finer_than_the_pixel_is_averaged_not_folded():
    stripes = np.tile([0.0, 1.0], (96, 55))
    label = heart().label[0, 0]
    where = pose(label, np.array([0.7, 0.7]))
    image, _, _ = resample(stripes, label, where, np.array([0.7, 0.7]), pixel_mm=2.8, size=16)
    assert np.nanstd(image) < 0.05 and np.nanmean(image) == pytest.approx(0.5, abs=0.05)


def test_the_crop_tells_how_much_it_cuts():
    whole, cut = prepare(heart(), CANONICAL), prepare(heart(), Options((1, 2, 3), size=48))
    assert whole.cut == 0
    full = (whole.label > 0).sum(axis=(1, 2))
    assert cut.cut == pytest.approx((1 - (cut.label > 0).sum(axis=(1, 2)) / full).max(), abs=0.02)


def test_a_mirrored_file_gives_the_same_picture(tmp_path):
    stack = heart(angle=70.0)
    plain, mirror, unknown = (tmp_path / name for name in ("plain", "mirror", "unknown"))
    write_acdc(plain, "patient001", stack)
    folder = write_acdc(mirror, "patient001", stack)
    affine = np.diag([stack.spacing_mm[2], -stack.spacing_mm[1], stack.spacing_mm[0], 1.0])
    for path in folder.glob("*.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj)[::-1], affine), path)
    shutil.copytree(mirror, unknown)
    for path in unknown.glob("*/*.nii.gz"):  # the same array, in a header that gives no orientation
        image = nib.load(path)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nib.save(image, path)
    pictures = []
    for root in (plain, mirror, unknown):
        raw = LAYOUTS["acdc"].describe(LAYOUTS["acdc"].find(root)[0])
        pictures.append(prepare(read(raw.frames, (3, 2, 1)), Options((3, 2, 1))).image)
    np.testing.assert_array_equal(pictures[0], pictures[1])
    spot = np.argwhere(pictures[0][0] == 1).mean(axis=0)
    assert spot[0] < 40 and abs(spot[1] - 63.5) < 5  # the front of the chest is on top
    assert np.argwhere(pictures[2][0] == 1).mean(axis=0)[0] > 90


# --- slices and the quality filter ----------------------------------------------------------------


def test_basal_slice_is_the_larger_end_of_the_valid_ones():
    label = heart().label.copy()
    assert basal_slices(label, same_level=True, min_pixels=10) == (0, 0)
    assert basal_slices(label[:, ::-1], same_level=True, min_pixels=10) == (7, 7)
    label[1, :2][label[1, :2] == RV] = 0  # the valve plane has moved down by end-systole
    assert basal_slices(label, same_level=True, min_pixels=10) == (2, 2)
    assert basal_slices(label, same_level=False, min_pixels=10) == (0, 2)
    label[0, 2:][label[0, 2:] == RV] = 0
    assert basal_slices(label, same_level=False, min_pixels=10) == (0, 2)
    with pytest.raises(Excluded, match=r"no slice shows .* --no-same-level"):
        basal_slices(label, same_level=True, min_pixels=10)


def test_ten_pixels_are_not_more_than_ten():
    label = heart().label.copy()
    for frame in label:
        at = np.argwhere(frame[0] == RV)
        frame[0][tuple(at[10:].T)] = 0
    assert basal_slices(label, same_level=True, min_pixels=10) == (1, 1)
    assert basal_slices(label, same_level=True, min_pixels=9) == (0, 0)


def without(region, slices):
    label = heart().label[0].copy()
    label[slices][label[slices] == region] = 0
    return label


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (without(RV, slice(None)), "0 voxels of RV"),
        (without(LV, slice(5, None)), "on 5 slices, and 6"),
        (without(MYO, slice(3, 4)), "gap: LV and myocardium are on slices 0, 1, 2, 4"),
        (without(RV, slice(2, 5)), "no connected RV in the mid-cavity"),
    ],
)
def test_quality_filter_names_its_rule(label, reason):
    assert quality(heart().label[0], min_slices=6, min_pixels=10) is None
    assert reason in quality(label, min_slices=6, min_pixels=10)


@pytest.mark.parametrize("values", list(itertools.permutations((1, 2, 3))))
def test_label_order_is_read_off_the_anatomy(values):
    """Files hold LV, myocardium, RV as `values`; they are read as 1, 2, 3."""
    stack = heart(angle=200.0)
    as_read = stack._replace(label=np.array([0, *values], np.uint8)[stack.label])
    if values == (1, 2, 3):
        assert check_order(as_read, (1, 2, 3)) is None
    else:
        with pytest.raises(Unusable, match=f"--label-map lv={values[0]},myo={values[1]},rv={values[2]}$"):
            check_order(as_read, (1, 2, 3))


# --- duplicates and splits ------------------------------------------------------------------------


def test_a_scan_contoured_twice_is_one_scan():
    stacks = [heart(seed=1), heart(seed=2), heart(seed=1)._replace(label=heart(seed=9).label), heart(seed=3)]
    noisy = stacks[1].image + np.random.default_rng(0).normal(scale=2, size=stacks[1].image.shape)
    images = [*(stack.image for stack in stacks), noisy]
    scans = same_scan([fingerprint(image[0]) for image in images], [image.shape for image in images])
    assert scans[0] == scans[2] and scans[1] == scans[4] and len(set(scans)) == 3
    shapes = [image.shape for image in images[:4]] + [(1, 2, 3)]
    assert (
        len(set(same_scan([fingerprint(image[0]) for image in images], shapes))) == 4
    )  # another shape, another scan


def assign(count, *, seed=0, scans=None, first=0):
    names = [f"s{i:04d}" for i in range(first, first + count)]
    groups = [("a", "b", "c")[i % 3] for i in range(first, first + count)]
    scans = np.arange(count) if scans is None else scans
    sides = split_subjects(names, scans, groups, fractions=(0.7, 0.15, 0.15), seed=seed)
    return pd.DataFrame({"name": names, "group": groups, "side": sides})


def test_split_is_seeded_exact_and_in_proportion():
    table = assign(300)
    assert table.side.value_counts()[list(SPLITS)].tolist() == [210, 45, 45]
    assert (pd.crosstab(table.group, table.side)[list(SPLITS)] == [70, 15, 15]).all(axis=None)
    assert table.equals(assign(300)) and not table.side.equals(assign(300, seed=1).side)


def test_a_new_subject_moves_few_others():
    before, after = assign(300).set_index("name").side, assign(301).set_index("name").side
    assert (before != after[before.index]).mean() < 0.05


def test_duplicates_stay_on_one_side():
    for seed in range(20):
        scans = np.arange(30)
        scans[20:25] = scans[5:10]
        side = assign(30, seed=seed, scans=scans).side
        assert (side[20:25].to_numpy() == side[5:10].to_numpy()).all()


# --- the command ----------------------------------------------------------------------------------


def test_acdc_command_writes_a_prepared_folder(tmp_path):
    raw, out = cohort(tmp_path / "raw" / "training", 6), tmp_path / "out"
    write_acdc(raw.parent / "testing", "patient101", heart(seed=1, angle=40.0), group="DCM")  # a copy of 001
    options = [
        "--size",
        "64",
        "--spacing-mm",
        "2.5",
        "--no-same-level",
        "--align",
        "each",
        "--intensity",
        "minmax",
        "--min-slices",
        "5",
        "--min-pixels",
        "9",
        "--split",
        "0.6,0.2,0.2",
        "--seed",
        "7",
    ]
    assert main(["acdc", str(raw.parent), str(out), *options]) == 0
    told = card(out)
    assert told["recipe"] == {
        "layout": "acdc",
        "label_map": {"lv": 3, "myo": 2, "rv": 1},
        "size": 64,
        "spacing_mm": 2.5,
        "same_level": False,
        "align": "each",
        "intensity": "minmax",
        "min_slices": 5,
        "min_pixels": 9,
        "split": [0.6, 0.2, 0.2],
        "seed": 7,
    }
    assert told["duplicates"] == [["patient001", "patient101"]] and told["excluded"] == []
    assert told["pixel_mm"] == 2.5 and told["subjects"] == 7 and "Bernard" in told["citation"]
    assert str(tmp_path) not in (out / "card.json").read_text()
    table = pd.read_csv(out / "subjects.csv").set_index("subject")
    assert table.split["patient001"] == table.split["patient101"]
    assert (
        table.group["patient001"] == "DCM"
        and (table.height_cm == 170).all()
        and (table.weight_kg == 70).all()
    )
    images, labels = np.load(out / "images.npy"), np.load(out / "labels.npy")
    assert images.shape == labels.shape == (7, 2, 64, 64)
    assert not (tmp_path / "out.partial").exists()


def test_native_spacing_and_minmax_reach_the_pixels(tmp_path):
    raw = cohort(tmp_path / "raw", 3)
    assert main(["acdc", str(raw), str(tmp_path / "out"), "--spacing-mm", "native"]) == 0
    assert card(tmp_path / "out")["pixel_mm"] == pytest.approx(1.4)
    assert card(tmp_path / "out")["recipe"]["spacing_mm"] == "native"


class Counted:
    """`prepare_one` that counts what it reads and stops after some subjects."""

    def __init__(self, monkeypatch, stop_after=None):
        self.read, self.stop_after, self.work = 0, stop_after, cardiac_run.read
        monkeypatch.setattr(cardiac_run, "read", self)

    def __call__(self, *args):
        if self.read == self.stop_after:
            raise KeyboardInterrupt
        self.read += 1
        return self.work(*args)


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    raw = cohort(tmp_path / "raw", 5)
    assert main(["acdc", str(raw), str(tmp_path / "whole")]) == 0
    command = ["acdc", str(raw), str(tmp_path / "out"), "--workers", "1"]  # so that subjects come in order
    with monkeypatch.context() as patch:
        Counted(patch, stop_after=3)
        assert main(command) == 130
    assert not (tmp_path / "out").exists()
    kept = sorted((tmp_path / "out.partial").glob("*.npz"))
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:1000])  # a disk that lost the end of one
    (tmp_path / "out.partial" / "patient004.0123.99.tmp").write_bytes(b"half a file")
    with monkeypatch.context() as patch:
        again = Counted(patch)
        assert main(command) == 0
        assert again.read == 3  # the damaged one and the two that were not reached
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_cached_subjects_are_not_used_for_other_options_or_changed_files(tmp_path, monkeypatch):
    raw = cohort(tmp_path / "raw", 3)
    command = ["acdc", str(raw), str(tmp_path / "out"), "--workers", "1"]  # so that subjects come in order
    with monkeypatch.context() as patch:
        Counted(patch, stop_after=2)
        assert main(command) == 130
    with monkeypatch.context() as patch:
        Counted(patch, stop_after=1)
        assert main([*command, "--size", "64"]) == 130
    assert len(list((tmp_path / "out.partial").glob("patient001.*.npz"))) == 2  # one for each size
    write_acdc(raw, "patient001", heart(seed=77), group="DCM")
    with monkeypatch.context() as patch:
        again = Counted(patch)
        assert main([*command, "--seed", "5"]) == 0  # the seed shapes the split alone
        assert again.read == 2
    assert main([*command[:2], str(tmp_path / "fresh"), "--seed", "5"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_two_workers_give_the_bytes_of_one(tmp_path):
    raw = cohort(tmp_path / "raw", 3)
    for workers in ("1", "2"):
        assert main(["acdc", str(raw), str(tmp_path / workers), "--workers", workers]) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_left_out_by_the_filter_is_no_failure(tmp_path, caplog):
    raw = cohort(tmp_path / "raw", 3)
    write_acdc(raw, "patient009", heart(shape=(5, 96, 110)))
    assert main(["acdc", str(raw), str(tmp_path / "out")]) == 0
    [lost] = card(tmp_path / "out")["excluded"]
    assert (lost["subject"], lost["kind"]) == ("patient009", "filter") and "on 5 slices" in lost["reason"]
    assert card(tmp_path / "out")["subjects"] == 3
    assert "patient009" in caplog.text


# --- bad input: one sentence each, and the others go on -------------------------------------------


def edit(path, change=lambda voxels: voxels, affine=None, dtype=None):
    image = nib.load(path)
    voxels = change(np.asarray(image.dataobj).copy())
    nib.save(
        nib.Nifti1Image(voxels.astype(dtype or voxels.dtype), image.affine if affine is None else affine),
        path,
    )


def with_nan(voxels):
    voxels = voxels.astype(np.float32)
    voxels[3, 4, 2] = np.nan
    return voxels


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def relabelled(path, old, new):
    edit(path, lambda voxels: np.where(voxels == old, new, voxels))


IMAGE, MASK = "patient002_frame01.nii.gz", "patient002_frame01_gt.nii.gz"
BAD = {
    "no mask": (lambda f: (f / MASK).unlink(), f"`patient002/{MASK}` is missing"),
    "no image": (lambda f: (f / IMAGE).unlink(), f"`patient002/{IMAGE}` is missing"),
    "no Info.cfg": (lambda f: (f / "Info.cfg").unlink(), "`patient002/Info.cfg` is missing"),
    "no ES in Info.cfg": (
        lambda f: (f / "Info.cfg").write_text("ED: 1\n"),
        "no whole number after `ES:`, got None",
    ),
    "another shape": (lambda f: edit(f / MASK, lambda v: v[:-1]), "lie on one grid; resample"),
    "another affine": (
        lambda f: edit(f / MASK, affine=np.diag([-2.0, -2.0, 9.0, 1.0])),
        "have different affines",
    ),
    "one slice": (lambda f: [edit(f / n, lambda v: v[:, :, :1]) for n in (IMAGE, MASK)], "not one slice"),
    "NaN": (lambda f: edit(f / IMAGE, with_nan), "holds 1 voxels that are not finite"),
    "NaN in the mask": (lambda f: edit(f / MASK, with_nan), "holds 1 voxels that are not finite"),
    "4-D": (lambda f: edit(f / IMAGE, lambda v: np.stack([v, v], -1)), "is 4-D .* nothing says which frame"),
    "cut gzip": (lambda f: halved(f / IMAGE), "cannot be read as NIfTI .* cut short or damaged"),
    "cut mask": (lambda f: halved(f / MASK), "cannot be read as NIfTI .* cut short or damaged"),
    "no NIfTI": (lambda f: (f / IMAGE).write_text("hello"), "cannot be read as NIfTI"),
    "gzipped nonsense": (
        lambda f: (f / IMAGE).write_bytes(gzip.compress(b"hello" * 99)),
        "cannot be read as NIfTI",
    ),
    "interpolated mask": (
        lambda f: edit(f / MASK, lambda v: v * 0.5, dtype=np.float32),
        "holds 0.5, and labels must be",
    ),
    "foreign labels": (
        lambda f: relabelled(f / MASK, 3, 200),
        r"holds labels \[200\] besides .* --label-map",
    ),
    "empty mask": (lambda f: edit(f / MASK, lambda v: v * 0), "the mask is empty; check the frame numbers"),
    "LV and RV exchanged": (
        lambda f: [edit(p, lambda v: np.array([0, 3, 2, 1], np.uint8)[v]) for p in f.glob("*_gt*")],
        "labels in another order: .* try --label-map lv=1,myo=2,rv=3",
    ),
    "metres": (
        lambda f: [edit(p, affine=np.diag([-0.014, -0.014, 0.1, 1])) for p in f.glob("*.gz")],
        "volumes of .* mL, outside 1 to 1000",
    ),
    "flat image": (lambda f: edit(f / IMAGE, lambda v: v * 0), "has one grey value"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_subject_gives_one_sentence_and_the_rest_go_on(case, tmp_path, caplog, capsys):
    spoil, sentence = BAD[case]
    raw = cohort(tmp_path / "raw", 3)
    spoil(raw / "patient002")
    assert main(["acdc", str(raw), str(tmp_path / "out")]) == 3
    told = card(tmp_path / "out")
    assert told["subjects"] == 2
    [lost] = told["excluded"]
    assert (lost["subject"], lost["kind"]) == ("patient002", "failure")
    assert re.search(sentence, lost["reason"]) and "\n" not in lost["reason"] and len(lost["reason"]) < 300
    assert "patient002" in lost["reason"]  # names the file
    assert lost["reason"] in caplog.text
    assert "Traceback" not in caplog.text + "".join(capsys.readouterr())
    assert len(list((tmp_path / "out.partial").glob("*.npz"))) == 2  # kept until all is well


def test_a_label_that_is_nowhere_is_named(tmp_path):
    raw = cohort(tmp_path / "raw", 3)
    relabelled(raw / "patient002" / MASK, 1, 0)
    assert main(["acdc", str(raw), str(tmp_path / "out")]) == 0
    [lost] = card(tmp_path / "out")["excluded"]
    assert lost["kind"] == "filter" and re.search(r"no voxel labelled 1 \(RV\).*--label-map", lost["reason"])


def test_the_suggested_label_map_works(tmp_path, capsys):
    raw = tmp_path / "raw"
    for i in (1, 2, 3):
        write_acdc(raw, f"patient{i:03d}", heart(seed=i), values={LV: 1, MYO: 2, RV: 3})
    assert main(["acdc", str(raw), str(tmp_path / "out")]) == 2
    suggestion = re.search(r"--label-map (\S+)", capsys.readouterr().err)[1]
    assert main(["acdc", str(raw), str(tmp_path / "out"), "--label-map", suggestion]) == 0
    lv = pd.read_csv(tmp_path / "out" / "subjects.csv").LVEDV_ml.to_numpy()
    assert lv == pytest.approx(prepare(heart(), CANONICAL).volume_ml[0, 0], rel=0.01)


def refusals(tmp_path):
    raw = cohort(tmp_path / "raw", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    twice = tmp_path / "twice"
    write_acdc(twice / "a", "patient001", heart())
    write_acdc(twice / "b", "patient001", heart())
    out = tmp_path / "out"
    return {
        "no such folder": (tmp_path / "nowhere", out, "is not a folder that can be read"),
        "a file": (raw / "patient001" / "Info.cfg", out, "is not a folder that can be read"),
        "empty": (tmp_path / "empty", out, "holds no subject in the acdc layout: folders patientNNN"),
        "taken": (raw, tmp_path / "taken", "exists and is not a prepared dataset"),
        "inside": (raw, raw / "out", "lies in the raw data"),
        "twice": (twice, out, "`patient001` is found twice"),
    }


@pytest.mark.parametrize("case", ["no such folder", "a file", "empty", "taken", "inside", "twice"])
def test_refusal_is_one_sentence_and_touches_nothing(case, tmp_path, capsys):
    raw, out, sentence = refusals(tmp_path)[case]
    before = sorted(tmp_path.rglob("*"))
    assert main(["acdc", str(raw), str(out)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1 and "Traceback" not in told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--label-map", "lv=1,myo=2"], "must look like lv=3,myo=2,rv=1"),
        (["--label-map", "lv=1,myo=1,rv=2"], "`label_map` must be three different"),
        (["--split", "0.9,0.2,0.2"], "must be fractions that sum to 1"),
        (["--spacing-mm", "fine"], "must be millimetres such as 1.25, or `native`"),
        (["--spacing-mm", "0"], "`spacing_mm` must be between"),
        (["--size", "4"], "`size` must be between 16 and 1024 pixels, got 4"),
        (["--min-slices", "0"], "`min_slices` must be at least 1"),
        (["--workers", "0"], "must be a whole number above 0"),
        (["--align", "es"], "invalid choice"),
    ],
)
def test_impossible_options_are_refused(option, sentence, tmp_path, capsys):
    raw = cohort(tmp_path / "raw", 1)
    try:
        status = main(["acdc", str(raw), str(tmp_path / "out"), *option])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2 and sentence in told and "Traceback" not in told


def test_a_prepared_folder_of_other_data_is_not_overwritten(tmp_path, capsys):
    raw, out = cohort(tmp_path / "raw", 3), tmp_path / "out"
    assert main(["acdc", str(raw), str(out)]) == 0
    before = contents(out)
    assert main(["acdc", str(raw), str(out)]) == 0  # the same again: left as it is
    assert main(["acdc", str(raw), str(out), "--seed", "1"]) == 2
    assert "holds another dataset" in capsys.readouterr().err
    assert contents(out) == before


# --- the other layouts ----------------------------------------------------------------------------


def movie(stack, *, ed, es, frames=6):
    """4-D image and mask: ED and ES at the given frames, ED's image elsewhere, masks elsewhere empty."""
    image, label = np.stack([stack.image[0]] * frames), np.zeros((frames, *stack.label.shape[1:]), np.uint8)
    image[es], label[ed], label[es] = stack.image[1], stack.label[0], stack.label[1]
    return image, label


def test_mnms_layout(tmp_path):
    root = tmp_path / "OpenDataset"
    rows = ["External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    for i, (code, part) in enumerate(
        [
            ("A0S9V9", "Training/Labeled"),
            ("B1X2Y3", "Validation"),
            ("C4D5E6", "Testing"),
            ("D7F8G9", "Training/Unlabeled"),
            ("E0H1J2", "Testing"),
        ]
    ):
        stack = heart(seed=i)
        image, label = movie(stack, ed=4, es=1)
        save(root / part / code / f"{code}_sa.nii.gz", image.astype(np.int16), stack.spacing_mm)
        save(root / part / code / f"{code}_sa_gt.nii.gz", label, stack.spacing_mm)
        rows.append(f"{code},Siemens,A,{i},4,{9 if code == 'E0H1J2' else 1},54,DCM,F,{'' if i else 160},70")
    with pytest.raises(ValueError, match="no table of frames"):
        LAYOUTS["mnms"].find(root)
    (root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text("\n".join(rows))
    out = tmp_path / "out"
    assert main(["mnms", str(root), str(out)]) == 3
    kinds = {lost["subject"]: (lost["kind"], lost["reason"]) for lost in card(out)["excluded"]}
    assert set(kinds) == {"D7F8G9", "E0H1J2"}
    assert kinds["D7F8G9"][0] == "filter" and "no masks were released" in kinds["D7F8G9"][1]
    assert kinds["E0H1J2"][0] == "failure" and "6 frames, counted from 0, and frame 9" in kinds["E0H1J2"][1]
    table = pd.read_csv(out / "subjects.csv")
    assert table.subject.tolist() == ["A0S9V9", "B1X2Y3", "C4D5E6"]
    assert (table.LVEDV_ml > 1.5 * table.LVESV_ml).all()  # frame 4 is ED, frame 1 is ES
    assert table.group.tolist() == ["DCM"] * 3 and table.vendor.tolist() == ["A"] * 3
    assert (
        table.height_cm.tolist()[0] == 160
        and table.height_cm.isna().sum() == 2
        and (table.age_years == 54).all()
    )


def test_ukbb_layout_in_both_forms(tmp_path):
    root, out = tmp_path / "ukbb", tmp_path / "out"
    for i, prefix in ((1, "label"), (2, "seg")):
        stack = heart(seed=i)
        for name, image, label in zip(("ED", "ES"), stack.image, stack.label, strict=True):
            save(root / f"10000{i}" / f"sa_{name}.nii.gz", image.astype(np.int16), stack.spacing_mm)
            save(root / f"10000{i}" / f"{prefix}_sa_{name}.nii.gz", label, stack.spacing_mm)
    stack = heart(seed=3)
    image, label = movie(stack, ed=0, es=2)
    label[4] = stack.label[0]  # a frame with a larger LV, and others with none, are not end-systole
    save(root / "100003" / "sa.nii.gz", image.astype(np.int16), stack.spacing_mm)
    save(root / "100003" / "label_sa.nii.gz", label, stack.spacing_mm)
    (root / "100004").mkdir()
    assert main(["ukbb", str(root), str(out)]) == 3
    [lost] = card(out)["excluded"]
    assert lost["subject"] == "100004" and "neither `sa_ED.nii.gz`" in lost["reason"]
    table = pd.read_csv(out / "subjects.csv", dtype={"subject": str})
    assert table.subject.tolist() == ["100001", "100002", "100003"]
    assert table.LVESV_ml.to_numpy() == pytest.approx(prepare(stack, CANONICAL).volume_ml[1, 0], abs=0.01)


# --- real data ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some_patients(tmp_path_factory):
    root = tmp_path_factory.mktemp("acdc")
    raw = root / "training"
    raw.mkdir()
    # Two of each group (DCM, HCM, MINF, NOR, RV), and the pair that is one scan.
    for number in (1, 2, 21, 22, 41, 42, 61, 62, 81, 82, 74, 76):
        (raw / f"patient{number:03d}").symlink_to(REAL / f"patient{number:03d}", target_is_directory=True)
    assert main(["acdc", str(raw), str(root / "out")]) == 0
    return root / "out"


@needs_acdc
def test_acdc_subjects_pass_and_their_duplicates_are_found(some_patients):
    told = card(some_patients)
    assert told["excluded"] == [] and told["subjects"] == 12
    assert told["duplicates"] == [["patient074", "patient076"]]


@needs_acdc
def test_acdc_volumes_fit_the_diagnoses(some_patients):
    table = pd.read_csv(some_patients / "subjects.csv").set_index("subject")
    table["ef"] = 100 * (1 - table.LVESV_ml / table.LVEDV_ml)
    of = table.groupby("group")
    assert (
        of.ef.max()["DCM"] < 40 and of.ef.min()["NOR"] > 50 and of.ef.min()["HCM"] > 50
    )  # ACDC's own criteria
    assert of.LVEDV_ml.min()["DCM"] > 200
    muscle = table.MYOESV_ml / table.MYOEDV_ml  # muscle does not leave the heart between the frames
    assert muscle.between(0.8, 1.35).all()


@needs_acdc
def test_acdc_pictures_are_upright_and_nested(some_patients):
    labels, images = np.load(some_patients / "labels.npy"), np.load(some_patients / "images.npy")
    assert images.min() == 0 and images.max() == 1
    for frames, pictures in zip(labels, images, strict=True):
        assert np.abs(centre_of(frames[0], LV) - 63.5).max() < 0.5
        for label, picture in zip(frames, pictures, strict=True):
            lv, rv = centre_of(label, LV), centre_of(label, RV)
            assert lv[1] - rv[1] > 15 and abs(lv[0] - rv[0]) < 25
            rim = np.zeros(label.shape, bool)
            cavity = label == LV
            for axis, step in itertools.product((0, 1), (1, -1)):
                rim |= np.roll(cavity, step, axis)
            assert np.mean(label[rim & ~cavity] == MYO) > 0.95  # the cavity lies within the muscle
            grey = [np.median(picture[label == region].astype(float)) for region in (LV, MYO, RV)]
            assert grey[0] > grey[1] + 0.1 and grey[2] > grey[1]  # blood is bright in cine images
