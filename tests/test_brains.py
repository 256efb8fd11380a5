"""Brain slices as a dataset: reading a folder, its splits and scale, and training that can be killed and continued."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.brain_phantom import SIZES, prepare
from medvae_lite.brains import load
from medvae_lite.hvae import HVAE
from medvae_lite.train import FitConfig, fit

# Nine people with three slices train: a row of the table every nine passes of three steps.
FIT = FitConfig(steps=40, batch_size=8, learning_rate=1e-3, grad_clip=20_000.0, warmup=5, speed="exact")
ROW = 27


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("brains") / "ms", subjects=15, slices=3, size=32)


@pytest.fixture(scope="module")
def data(folder):
    return load(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """The folder, to be spoiled."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_folder_reads_as_it_was_written(data, folder):
    assert data.size == (32, 32) and data.pixel_mm == SIZES[32][2] and len(data.slices) == 45 and len(data.people) == 15
    np.testing.assert_array_equal(data.images, np.load(folder / "images.npy"))
    np.testing.assert_array_equal(data.twins, np.load(folder / "twins.npy"))
    np.testing.assert_array_equal(data.lesion[:, 0], np.load(folder / "labels.npy")[:, 1].astype(np.float32) / 100)
    assert list(data.factors["subject"]) == list(data.people["subject"]) and "lesions_expected" in data.factors


def test_real_people_have_no_twins_and_no_factors(copy):
    for name in ("twins.npy", "factors.csv"):
        (copy / name).unlink()
    data = load(copy)
    assert data.twins is None and data.factors.empty


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not tell which pages are resident")
def test_pages_are_let_go_and_a_held_split_is_the_same(copy):
    train = load(copy).split("train")
    before, held = train.batch(), train.held("cpu")
    train.batch(), train.release()
    parts = Path("/proc/self/smaps").read_text().split(str(copy / "images.npy"))[1:]
    assert parts and all(int(part.split("Rss:")[1].split()[0]) == 0 for part in parts)
    for again in (train.batch(), held.batch()):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, before, strict=True))


def test_names_of_people_stay_text(copy):
    """Zeros in front of a number are part of a name."""
    for name in ("slices", "subjects", "factors"):
        path = copy / f"{name}.csv"
        path.write_text(path.read_text().replace("phantom", ""))
    data = load(copy)
    assert data.people["subject"][3] == data.slices["subject"][9] == data.factors["subject"][3] == "000003"


@pytest.mark.parametrize(
    ("gone", "named"),
    [(("card.json",), "card.json"), (("slices.csv", "labels.npy"), "slices.csv, labels.npy"), (("images.npy",), "images.npy")],
)
def test_a_missing_file_is_named(copy, gone, named):
    for name in gone:
        (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"is no prepared folder of brain slices: {named} missing; make one with"):
        load(copy)
    with pytest.raises(FileNotFoundError, match="card.json, slices.csv, subjects.csv, images.npy, labels.npy missing"):
        load(copy / "nowhere")


def test_a_folder_of_another_kind_is_refused(copy):
    card = json.loads((copy / "card.json").read_text())
    for kind in ("regions", "cardiac"):
        (copy / "card.json").write_text(json.dumps(card | {"kind": kind}))
        with pytest.raises(ValueError, match=f"holds '{kind}' data, and this needs brain slices"):
            load(copy)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_folder_that_contradicts_itself_is_refused(copy, name):
    whole = np.load(copy / f"{name}.npy")
    for part in (whole[:-1], whole[..., :-2]):
        np.save(copy / f"{name}.npy", part)
        with pytest.raises(ValueError, match=r"contradicts itself: images \(.*\), labels \(.*\), 45 slices; prepare it again"):
            load(copy)
    if name == "labels":
        np.save(copy / "labels.npy", whole[:, :1])
        with pytest.raises(ValueError, match="contradicts itself"):
            load(copy)


def test_identity_is_that_of_the_recipe(data, copy):
    card = json.loads((copy / "card.json").read_text())
    assert load(copy).identity == data.identity
    (copy / "card.json").write_text(json.dumps(card | {"identity": "another"}))
    assert load(copy).identity != data.identity


# Splits


def test_rows_of_a_split_belong_to_it_and_no_person_to_two(data):
    rows = {name: data.rows(name) for name in ("train", "val", "test")}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(45))
    people = {name: set(data.slices["subject"].iloc[of]) for name, of in rows.items()}
    of = dict(zip(data.people["subject"], data.people["split"]))
    for name, members in people.items():
        assert {of[who] for who in members} == {name} and len(rows[name]) == 3 * len(members)
    assert [len(people[name]) for name in ("train", "val", "test")] == [9, 3, 3]


def test_a_split_delivers_images_labels_and_rows(data):
    split, rows = data.split("val"), data.rows("val")
    batch = split.batch()
    np.testing.assert_array_equal(batch.index, rows)
    assert batch.image.dtype == torch.float32
    np.testing.assert_array_equal(batch.image, data.images.numpy()[rows].astype(np.float32))
    np.testing.assert_array_equal(batch.labels, data.labels.numpy()[rows])
    torch.testing.assert_close(data.image(rows), batch.image)


def test_attributes_are_lesion_volumes_in_the_spread_of_training_slices(data):
    train = data.split("train").batch().attributes.numpy()
    assert train.mean() == pytest.approx(0, abs=1e-6) and train.std() == pytest.approx(1, abs=1e-5)
    volumes = data.lesion_mm3
    expected = (volumes - volumes[data.rows("train")].mean()) / volumes[data.rows("train")].std()
    np.testing.assert_allclose(data.split("test").batch().attributes[:, 0], expected[data.rows("test")], rtol=1e-5)


def test_without_lesions_attributes_are_zero(tmp_path):
    ad = load(prepare(tmp_path / "ad", subjects=5, slices=1, size=32, disease="ad"))
    assert not ad.split("train").batch().attributes.any()


def test_an_empty_or_unknown_split_is_refused(data):
    nobody = replace(data, slices=data.slices.assign(split=data.slices["split"].replace("val", "train")))
    for of, name in ((nobody, "val"), (data, "holdout")):
        with pytest.raises(ValueError, match=f"`split` must be one of train, val, test with slices in .*, got '{name}'"):
            of.split(name)


# Lesions and grey values


def test_lesion_volume_is_the_sum_of_shares_times_the_area_of_a_pixel(data, folder):
    """A slice counts as 1 mm thick."""
    percent = np.load(folder / "labels.npy")[:, 1].astype(int)
    np.testing.assert_allclose(data.lesion_mm3, [sum(map(int, one.ravel())) * 5.5 * 5.5 / 100 for one in percent], rtol=1e-5)
    assert data.lesion_mm3.max() > 300


def test_the_grey_range_is_that_of_the_training_images(data):
    low, high = data.grey_range
    values = np.sort(data.images.numpy()[data.rows("train")].astype(float).ravel())
    assert low == values[0] and values[int(0.9985 * len(values))] <= high <= values[int(0.9995 * len(values))]
    images = data.images.clone()
    images[torch.from_numpy(data.rows("test"))] *= 5
    assert replace(data, images=images).grey_range == data.grey_range


def test_grey_maps_the_range_to_zero_and_one_and_clips(data):
    low, high = data.grey_range
    found = data.grey(torch.tensor([low - 1, low, (low + high) / 2, high, high + 1]))
    torch.testing.assert_close(found, torch.tensor([0, 0, 0.5, 1, 1]), atol=1e-6, rtol=0)


def test_one_image_each_of_different_people_at_different_heights(data):
    found = data.one_each(9)
    rows = [int((data.image(np.arange(45)) - image).abs().flatten(1).sum(1).argmin()) for image in found]
    torch.testing.assert_close(found, data.image(np.array(rows)))
    chosen = data.slices.iloc[rows]
    assert chosen["subject"].nunique() == 9 and set(chosen["split"]) == {"train"} and chosen["slice"].value_counts().tolist() == [3, 3, 3]


@pytest.mark.parametrize("count", range(1, 10))
def test_as_many_people_as_asked_for(data, count):
    found = data.one_each(count)
    assert found.shape == (count, 1, 32, 32) and len(torch.unique(found.flatten(1), dim=0)) == count


def test_more_images_than_people_are_refused(data):
    with pytest.raises(ValueError, match="`components` = 10 must not exceed the 9 people of the split 'train'"):
        data.one_each(10)
    with pytest.raises(ValueError, match="`components` = 4 must not exceed the 3 people of the split 'val'"):
        data.one_each(4, "val")


# Training


def tiny(seed=0):
    torch.manual_seed(seed)
    return HVAE(size=(32, 32), prior="nvmp+", widths=(4, 6, 8), components=3, lesion_weight=1.0, lesion_layer=1, cycle=20, ramp=0.5)


def descend(model, data, config=FIT, **options):
    return fit(model, data.split("train"), data.split("val"), config, seed=1, progress=False, **options)


def test_three_steps_of_a_hierarchy_change_every_weight_and_are_recorded(data):
    model, start = tiny(), tiny()
    rows, manifest = descend(model, data, replace(FIT, steps=3))
    assert manifest["steps"] == 3 and manifest["skipped"] == 0 and np.isfinite(rows.select_dtypes("number")).all(axis=None)
    assert {"elbo_kl_0", "elbo_extra_2", "elbo_lesion", "val_kl_2", "val_lesion"} <= set(rows)
    fixed = {name for name, p in model.named_parameters() if torch.equal(p, start.get_parameter(name))}
    assert fixed == {"log_sigma"}


def test_training_explains_the_images_better(data):
    model = tiny()
    rows, _ = descend(model, data, replace(FIT, steps=54, learning_rate=3e-3))
    assert rows["val_recon"].iloc[-1] < 0.7 * rows["val_recon"].iloc[0]


def test_a_continued_run_repeats_the_undisturbed_one(data, tmp_path):
    """Annealing goes on where it was: it follows the number of the step."""
    whole = tiny()
    rows, manifest = descend(whole, data, folder=tmp_path / "whole")
    part = tiny()
    real, calls = part.training_loss, []

    def killed(batch, step):
        calls.append(0)
        if len(calls) > ROW + 3:
            raise RuntimeError("killed")
        return real(batch, step)

    part.training_loss = killed
    with pytest.raises(RuntimeError, match="killed"):
        descend(part, data, folder=tmp_path / "part")
    again = tiny(seed=9)
    torch.manual_seed(99)
    rows_again, manifest_again = descend(again, data, folder=tmp_path / "part")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters()))
    assert manifest["steps"] == 40
    assert rows.equals(rows_again) and manifest["steps"] == manifest_again["steps"]


def test_a_person_may_be_called_na(folder, tmp_path):
    """Pandas would read the name as missing, and the person's slices as nobody's."""
    copied = shutil.copytree(folder, tmp_path / "na")
    for name in ("slices", "subjects", "factors"):
        path = copied / f"{name}.csv"
        path.write_text(path.read_text().replace("phantom000000", "NA"))
    data = load(copied)
    assert (data.slices["subject"] == "NA").any() and (data.people["subject"] == "NA").any() and (data.factors["subject"] == "NA").any()
