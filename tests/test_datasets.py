"""Prepared folders: what is read is what was written, in an order that can be repeated, or one sentence."""

import numpy as np
import pytest
import torch
from _helpers import ATTRIBUTES, write_folder

from medvae_lite import datasets


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "discs", count=40)


def test_splits_share_no_subject(folder):
    data = datasets.load(folder)
    rows = {name: data.split(name).rows.tolist() for name in ("train", "val", "test")}
    assert {name: len(r) for name, r in rows.items()} == {"train": 28, "val": 6, "test": 6}
    assert sorted(sum(rows.values(), [])) == list(range(40))
    subjects = [set(data.subjects["subject"].iloc[r]) for r in rows.values()]
    assert len(set.union(*subjects)) == sum(map(len, subjects)) == 40


def test_subject_names_keep_their_zeros(folder):
    assert datasets.load(folder).subjects["subject"].iloc[7] == "007"


def test_batches_hold_what_was_written(folder):
    data, images, labels = datasets.load(folder), np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    batch = data.split("val").batch()
    assert torch.equal(batch.image, torch.from_numpy(images[batch.index]).float()) and batch.image.dtype == torch.float32
    assert torch.equal(batch.labels, torch.from_numpy(labels[batch.index]))
    parts = list(data.split("val").batches(4))
    assert [len(p.index) for p in parts] == [4, 2]
    for whole, pieces in zip(batch, zip(*parts)):
        assert torch.equal(whole, torch.cat(pieces))


def test_attributes_are_standardised_by_the_training_split_alone(tmp_path):
    def mend(subjects):
        subjects.loc[subjects["split"] != "train", "LVEDV_ml"] += 1e4
        return subjects

    plain, moved = (datasets.load(write_folder(tmp_path / n, count=40, mend=m)) for n, m in [("a", lambda s: s), ("b", mend)])
    np.testing.assert_array_equal(plain.mean, moved.mean)
    np.testing.assert_array_equal(plain.sd, moved.sd)
    train, test = (moved.split(name).batch().attributes.double() for name in ("train", "test"))
    torch.testing.assert_close(train.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(train.std(0), torch.ones(6).double(), rtol=0, atol=1e-6)
    assert (test[:, 0] > 10).all()


def test_attributes_go_back_to_millilitres(folder):
    data = datasets.load(folder)
    batch = data.split("test").batch()
    assert data.attributes == ATTRIBUTES
    back = batch.attributes.numpy() * data.sd + data.mean
    np.testing.assert_allclose(back, data.attribute_ml[batch.index], rtol=1e-5)


def test_smaller_images_are_averages_of_blocks(folder):
    stored, small = datasets.load(folder), datasets.load(folder, image_size=8)
    x, x_small = (d.split("train").batch(torch.tensor([0, 5])) for d in (stored, small))
    blocks = x.image.reshape(2, 2, 8, 2, 8, 2).mean((3, 5))
    torch.testing.assert_close(x_small.image, blocks, rtol=1e-6, atol=1e-6)
    assert torch.equal(x_small.labels, x.labels[..., 1::2, 1::2])
    assert (stored.pixel_mm, small.pixel_mm) == (2.5, 5.0)
    assert stored.identity != small.identity == datasets.load(folder, image_size=8).identity


@pytest.mark.parametrize("size", [5, 12, 32])
def test_sizes_that_do_not_divide_are_refused(folder, size):
    with pytest.raises(ValueError, match=f"`image_size` = {size} must divide the 16 stored pixels"):
        datasets.load(folder, image_size=size)


def test_the_order_depends_on_seed_and_epoch_alone(folder):
    train = datasets.load(folder).split("train")
    order = train.order(seed=3, epoch=5)
    torch.randn(7), np.random.rand(7)
    train.order(seed=0, epoch=0)
    assert torch.equal(datasets.load(folder).split("train").order(seed=3, epoch=5), order)
    assert order.sort().values.tolist() == list(range(28))
    others = [train.order(seed=s, epoch=e) for s, e in ((3, 6), (4, 5), (5, 3))]
    assert not any(torch.equal(order, other) for other in others)


@pytest.mark.parametrize("name", ["card.json", "subjects.csv", "images.npy", "labels.npy"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"is no prepared dataset: {name} missing; make one with `python -m data_prep`"):
        datasets.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`data_root` = .*nowhere.* is no prepared dataset"):
        datasets.load(tmp_path / "nowhere")


def test_contradictions_are_refused(tmp_path):
    folder = write_folder(tmp_path / "short", mend=lambda subjects: subjects.iloc[:-1])
    with pytest.raises(ValueError, match=r"contradicts itself: images \(20, 2, 16, 16\).* 19 subjects; prepare it again"):
        datasets.load(folder)
    folder = write_folder(tmp_path / "labels")
    np.save(folder / "labels.npy", np.zeros((20, 2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"contradicts itself: .*labels \(20, 2, 8, 8\)"):
        datasets.load(folder)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(120.0, "attribute RVESV is constant in the training split"), (np.nan, "column RVESV_ml is missing or has gaps")],
)
def test_a_constant_or_missing_attribute_is_named(tmp_path, value, sentence):
    def mend(subjects):
        subjects.loc[subjects["split"] == "train", "RVESV_ml"] = value
        return subjects

    folder = write_folder(tmp_path / "flat", mend=mend)
    with pytest.raises(ValueError, match=sentence):
        datasets.load(folder)


def test_an_unknown_or_empty_split_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`split` must be one of train, val, test .* got 'validation'"):
        datasets.load(folder).split("validation")
    no_test = write_folder(tmp_path / "no_test", count=17)
    with pytest.raises(ValueError, match="got 'test'"):
        datasets.load(no_test).split("test")


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "subjects.csv"])
def test_one_flipped_bit_is_noticed(folder, name):
    datasets.verify(folder)
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not the file that was prepared"):
        datasets.verify(folder)


def test_reading_never_writes(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    data = datasets.load(folder)
    data.images[0] = 0  # a private copy of the page
    data.split("train").batch().image.zero_()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_one_frame_alone(folder):
    data = datasets.load(folder)
    alone, whole = data.only("ES").split("test").batch(), data.split("test").batch()
    assert torch.equal(alone.image, whole.image[:, 1:]) and torch.equal(alone.labels, whole.labels[:, 1:])
    own = [k for k, name in enumerate(ATTRIBUTES) if name.endswith("ESV")]
    assert data.only("ES").attributes == tuple(ATTRIBUTES[k] for k in own) and len(own) == 3
    assert torch.equal(alone.attributes, whole.attributes[:, own]) and torch.equal(alone.index, whole.index)
    np.testing.assert_array_equal(data.only("ES").attribute_ml, data.attribute_ml[:, own])
    assert len({data.identity, data.only("ED").identity, data.only("ES").identity}) == 3
    with pytest.raises(ValueError, match="`frame` must be one of ED, ES, got 'diastole'"):
        data.only("diastole")
