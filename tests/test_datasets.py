"""Prepared folders: what is read is what was written, in an order that can be repeated, or one sentence."""

import builtins
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from _helpers import ATTRIBUTES, write_folder

from medvae_lite import datasets
from medvae_lite.regions import TableSplit


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


# Held on a device


def _cases(folder):
    plain = datasets.load(folder)
    regions, seen = torch.randn(30, 7, 1, 1), torch.ones(30, 7, 1, 1, dtype=torch.uint8)
    return {
        "whole": plain.split("train"), "frame": plain.only("ES").split("test"),
        "small": datasets.load(folder, image_size=4).split("val"),
        "small frame": datasets.load(folder, image_size=8).only("ED").split("train"),
        "table": TableSplit(regions, seen, torch.randn(30, 2), torch.arange(5, 25)),
    }  # fmt: skip


@pytest.mark.parametrize("case", ["whole", "frame", "small", "small frame", "table"])
def test_a_held_split_gives_the_same_batches_in_the_same_order(folder, case):
    split = _cases(folder)[case]
    held = split.held("cpu")
    assert type(held) is type(split) and len(held) == len(split) and torch.equal(held.rows, split.rows)
    orders = [each.order(seed=1, epoch=2) for each in (split, held)]
    assert torch.equal(*orders)
    for which in (orders[0][:5], slice(2, 4), slice(None), orders[0]):
        for ours, theirs in zip(held.batch(which), split.batch(which), strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert torch.equal(held.held("cpu").batch(orders[0]).image, split.batch(orders[0]).image)
    assert torch.equal(torch.cat([batch.image for batch in held.batches(3)]), split.batch().image)
    held.batch().labels.fill_(9), held.batch(slice(None)).image.fill_(9)
    assert torch.equal(held.batch().labels, split.batch().labels) and torch.equal(held.batch().image, split.batch().image)


@pytest.mark.parametrize("case", ["whole", "frame", "small", "table"])
def test_a_held_split_takes_what_was_announced(folder, case):
    split = _cases(folder)[case]
    held = split.held("cpu")
    own = [getattr(held, name) for name in ("images", "labels", "attributes", "rows", "places")]
    assert split.bytes == held.bytes == sum(t.numel() * t.element_size() for t in own)
    assert held.images.dtype == (torch.float32 if case in ("small", "table") else torch.float16)
    assert held.labels.dtype == torch.uint8


def test_holding_copies_in_parts(folder, monkeypatch):
    split = datasets.load(folder).split("train")
    monkeypatch.setattr(datasets, "_CHUNK", 5)
    assert torch.equal(split.held("cpu").batch().image, split.batch().image)


# Pages let go of

smaps = pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not tell which pages are resident")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """24 MB of images, 12 MB of labels."""
    return write_folder(tmp_path_factory.mktemp("large") / "discs", count=6000, size=32)


def resident(path):
    """MiB of a file that this process has in memory."""
    parts = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(part.split("Rss:")[1].split()[0]) for part in parts) / 1024


@smaps
def test_pages_are_let_go_and_read_again(large):
    data = datasets.load(large)
    train, order = data.split("train"), data.split("train").order(seed=0, epoch=0)
    before = [train.batch(part) for part in order.split(512)]
    assert resident(large / "images.npy") > 10 and resident(large / "labels.npy") > 5
    data.split("val").release()  # all splits of a folder read the same pages
    assert resident(large / "images.npy") + resident(large / "labels.npy") == 0
    after = [train.batch(part) for part in order.split(512)]
    assert all(torch.equal(a, b) for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True))


@smaps
def test_a_pass_over_all_subjects_lets_go_on_its_way(large, monkeypatch):
    train, most = datasets.load(large).split("train"), []
    assert sum(len(batch.index) for batch in train.batches(64)) == len(train)
    whole = resident(large / "images.npy")
    train.release()
    monkeypatch.setattr(datasets, "RELEASE_BYTES", 2**21)
    for _ in train.batches(64):
        most.append(resident(large / "images.npy"))
    assert max(most) < whole / 2


@smaps
@pytest.mark.parametrize("write", [lambda t: t[3].fill_(0.5), lambda t: t.numpy()[3].fill(0.5)], ids=["tensor", "array"])
def test_what_somebody_wrote_is_kept(folder, write):
    data = datasets.load(folder)
    write(data.images)
    data.split("train").batch()
    data.split("train").release()
    assert (data.images[3] == 0.5).all()
    assert not resident(folder / "labels.npy")  # nobody wrote there


def test_release_needs_no_mapping_and_no_system_that_tells(folder, monkeypatch):
    split = datasets.load(folder).split("train")
    split.held("cpu").release()
    before = split.batch()
    monkeypatch.setattr(builtins, "open", lambda *args, **kwargs: (_ for _ in ()).throw(FileNotFoundError("/proc")))
    split.release()
    monkeypatch.undo()
    assert torch.equal(split.batch().image, before.image)


def test_a_mapping_ends_with_its_last_tensor(folder):
    gc.collect()
    count = len(datasets._MAPPINGS)
    split = datasets.load(folder).split("train")
    assert len(datasets._MAPPINGS) == count + 2
    del split
    gc.collect()
    assert len(datasets._MAPPINGS) == count
