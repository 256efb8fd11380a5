"""The brain phantom: one person in any company, lesions where they can be, factors that do what they say, the folder."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage as ndi

import data_prep
from data_prep import brain_anatomy, brain_lesions, brain_phantom, prepared
from data_prep.__main__ import main
from data_prep.brain_anatomy import BACKGROUND, CORTEX, CSF, DEEP, VENTRICLE, WHITE, Grid, draw_factors, stream
from data_prep.brain_phantom import SIZES, person, prepare
from medvae_lite.brain_metrics import lesion_statistics

REAL = json.loads((Path(__file__).parents[1] / "book" / "runs" / "lesions-open-ms.json").read_text())
SMALL = {"size": 32, "slices": 3}


@pytest.fixture(scope="module")
def people():
    """Thirty patients at the resolution of the book."""
    return [person(index, size=64, slices=8) for index in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("brains") / "ten", subjects=10, seed=5, **SMALL)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same(a, b):
    return all(np.array_equal(u, v) for u, v in zip(a[:4], b[:4])) and a.factors == b.factors


# One person


@pytest.mark.parametrize("disease", ["ms", "ad"])
def test_a_person_is_the_same_in_any_company(disease):
    alone = person(7, disease=disease, seed=2, **SMALL)
    for other in (0, 8):
        assert not np.array_equal(person(other, disease=disease, seed=2, **SMALL).tissue, alone.tissue)
    np.random.default_rng().standard_normal(5)
    assert same(person(7, disease=disease, seed=2, **SMALL), alone)
    assert not np.array_equal(person(7, disease=disease, seed=3, **SMALL).tissue, alone.tissue)


@pytest.mark.parametrize("disease", ["ms", "ad"])
def test_setting_a_factor_leaves_the_others_as_drawn(disease):
    drawn = draw_factors(0, 3, disease)
    for name in drawn:
        if name == "size":  # the name of an argument too
            continue
        made = person(3, disease=disease, **SMALL, **{name: 0.8 * drawn[name] + 0.01}).factors
        assert {k for k, v in drawn.items() if made[k] != v} == {name}


@pytest.mark.parametrize("disease", ["ms", "ad"])
def test_a_factor_set_to_what_was_drawn_changes_nothing(disease):
    drawn = draw_factors(0, 3, disease)
    kept = {name: value for name, value in drawn.items() if name != "size"}
    assert same(person(3, disease=disease, **SMALL, **kept), person(3, disease=disease, **SMALL))


def test_people_have_noise_of_their_own(people):
    """What a blur takes away, in white matter that three people share."""
    fine = [stack.twins - ndi.gaussian_filter(stack.twins, (0, 1, 1)) for stack in people[:3]]
    white = np.logical_and.reduce([ndi.binary_erosion(stack.tissue == WHITE, np.ones((1, 3, 3), bool)) for stack in people[:3]])
    correlation = np.corrcoef([one[white] for one in fine])
    assert white.sum() > 100 and np.abs(correlation[np.triu_indices(3, 1)]).max() < 0.4


def test_more_lesions_change_nothing_but_the_lesions():
    few, many = (person(3, lesions_expected=float(n), **SMALL) for n in (5, 150))
    np.testing.assert_array_equal(few.tissue, many.tissue)
    flat = [stack.twins[stack.tissue > 0].astype(float) for stack in (few, many)]
    assert np.corrcoef(*flat)[0, 1] == pytest.approx(1, abs=1e-9), "one healthy brain, in two scales"


def test_a_stack_is_standardised_as_a_whole(people):
    for stack in people[:5]:
        assert stack.images.mean() == pytest.approx(0, abs=1e-4) and stack.images.std() == pytest.approx(1, abs=1e-4)
        outside = stack.images[stack.tissue == BACKGROUND]
        assert outside.max() == outside.min() == stack.twins[stack.tissue == BACKGROUND].min()


@pytest.mark.parametrize(("disease", "size"), [("ms", 32), ("ad", 64), ("ms", 112)])
def test_the_brain_stays_inside_the_field_of_view(disease, size):
    grid, edges = Grid(*SIZES[size], 1), []
    for index in range(12):
        for factors in ({}, {"size": 1.25, "aspect": 0.86}, {"size": 1.25, "aspect": 1.15}):
            drawn = draw_factors(0, index, disease) | factors
            tissue = brain_anatomy.tissue_maps(drawn, grid, stream(0, index, 1), disease)
            assert (tissue != BACKGROUND).mean() > 0.3
            edges += [tissue[:, [0, -1]].ravel(), tissue[:, :, [0, -1]].ravel()]
    assert not np.concatenate(edges).any()


def test_tissues_have_their_share_of_a_brain(people):
    tissue = np.stack([stack.tissue for stack in people])
    assert set(np.unique(tissue)) == {BACKGROUND, CSF, VENTRICLE, CORTEX, WHITE, DEEP}
    share = {label: (tissue == label).sum() / (tissue != BACKGROUND).sum() for label in (CSF, VENTRICLE, CORTEX, WHITE, DEEP)}
    assert 0.2 < share[CORTEX] < 0.5 and 0.2 < share[WHITE] < 0.5 and share[VENTRICLE] < 0.15 and share[DEEP] < 0.15


def test_measured_areas_are_those_of_the_maps(people):
    """Maps are drawn twice as fine as the image, so areas of the stored map agree up to its pixels."""
    for stack in people[:5]:
        area = SIZES[64][2] ** 2 / len(stack.tissue)
        for name, label in (("ventricle_mm2", VENTRICLE), ("csf_mm2", CSF), ("cortex_mm2", CORTEX)):
            assert stack.factors[name] == pytest.approx((stack.tissue == label).sum() * area, rel=0.08), name
        assert stack.factors["lesion_mm2"] == pytest.approx(stack.lesion.sum() * area)


# Lesions


def test_lesions_lie_in_white_matter_nuclei_and_the_innermost_cortex():
    for index in range(20):
        stack = person(index, size=32, slices=4)
        for tissue, share in zip(stack.tissue, stack.lesion):
            assert set(np.unique(tissue[share > 0])) <= {WHITE, CORTEX, DEEP}
            near_white = ndi.binary_dilation(tissue == WHITE, np.ones((3, 3), bool))
            assert near_white[(share > 0) & (tissue == CORTEX)].all(), "a neighbour of white matter"


def test_lesions_begin_at_the_ventricles():
    """The share of white matter that is lesion, near them and far from them, confluent caps left out."""
    shares = []
    for index in range(20):
        stack = person(index, size=64, slices=4, caps_mm=0.0)
        distance = np.stack([ndi.distance_transform_edt(tissue != VENTRICLE) * 2.75 for tissue in stack.tissue])
        white = stack.tissue == WHITE
        shares.append([stack.lesion[white & (distance < 6)].mean(), stack.lesion[white & (distance > 15)].mean()])
    near, far = np.mean(shares, 0)
    assert near > 2 * far > 0


def test_shares_are_shares_and_every_lesion_is_at_least_the_smallest(people):
    for stack in people:
        assert stack.lesion.min() == 0 and 0.5 < stack.lesion.max() <= 1
    grid = Grid(*SIZES[64], 8)
    drawn = brain_lesions.draw(people[0].tissue, grid, 4000.0, 0.0, np.random.default_rng(0)).diameters
    assert drawn.min() == 1.6 and np.median(drawn) == pytest.approx(3.0, rel=0.05) and len(drawn) == pytest.approx(4000, abs=250)
    assert np.log(drawn[drawn > 3]).max() < np.log(3) + 5 * 0.55


def test_a_lesion_has_the_size_it_was_drawn_with():
    """One ellipsoid in the open: its shares add up to its volume."""
    grid = Grid(64, 64, 1.0, 24)
    share = np.zeros((24, 64, 64))
    brain_lesions._paint(share, np.array([12, 32, 32]), np.array([12.0, 32.0, 32.0]), 20.0, 1.8, np.array([0.6, 0.8]), grid)
    assert share.sum() * grid.gap_mm == pytest.approx(np.pi / 6 * 20**3, rel=0.03)
    spread = np.cov(*np.nonzero(share[12]), aweights=share[12][share[12] > 0])
    (narrow, wide), (_, direction) = np.linalg.eigvalsh(spread), np.linalg.eigh(spread)[1].T
    assert wide / narrow == pytest.approx(1.8**2, rel=0.1), "the ratio of the axes, squared"
    assert abs(direction @ (0.6, 0.8)) == pytest.approx(1, abs=1e-3), "longer along the slope it was given"


def test_the_twin_is_the_same_image_outside_the_lesions_and_darker_inside(people):
    for stack in people:
        distance = np.stack([ndi.distance_transform_edt(share == 0) if share.any() else 99.0 + share for share in stack.lesion])
        assert np.abs(stack.images - stack.twins)[distance > 3].max() <= 1e-6
        assert (stack.images - stack.twins)[stack.lesion > 0.5].mean() > 0.5


def test_without_lesions_the_twin_is_the_image():
    stack = person(0, disease="ad", **SMALL)
    assert not stack.lesion.any() and stack.factors["lesions"] == stack.factors["lesion_mm2"] == 0
    np.testing.assert_allclose(stack.twins, stack.images, atol=1e-6)


def test_more_lesions_expected_are_more_lesion():
    areas = [[person(i, size=32, slices=4, lesions_expected=n).factors["lesion_mm2"] for n in (5.0, 60.0, 240.0)] for i in range(6)]
    assert (np.diff(areas, axis=1) > 0).all()


def test_lesions_are_as_large_and_as_many_as_patients_have(people):
    """Lesjak et al. 2018, 30 patients."""
    found = lesion_statistics(np.concatenate([stack.lesion for stack in people]), SIZES[64][2])
    for name, tolerance in (
        ("diameter, 50th centile (mm)", 0.20), ("diameter, 75th centile (mm)", 0.25), ("diameter, 95th centile (mm)", 0.35),
        ("volume per slice, mean (mm³)", 0.35), ("volume per slice, sd (mm³)", 0.35), ("lesions per slice", 0.35),
    ):  # fmt: skip
        assert found[name] == pytest.approx(REAL[name], rel=tolerance), name
    assert abs(found["lesions up to 3 mm (%)"] - REAL["lesions up to 3 mm (%)"]) < 10
    assert found["slices without lesion (%)"] < 10


def test_lesions_rise_with_the_ventricles():
    drawn = pd.DataFrame([draw_factors(0, index, "ms") for index in range(2000)])
    assert drawn[:150]["ventricles"].corr(drawn[:150]["lesions_expected"]) > 0.2
    logs = np.log(drawn[["ventricles", "lesions_expected"]] / np.column_stack([1 + 1.3 * drawn["atrophy"], np.ones(2000)]))
    assert logs.corr().iloc[0, 1] == pytest.approx(0.5, abs=0.06)


# Anatomy


def test_larger_ventricles_are_more_ventricle():
    areas = [[person(i, **SMALL, ventricles=v).factors["ventricle_mm2"] for v in (0.6, 1.0, 2.0)] for i in range(6)]
    assert (np.diff(areas, axis=1) > 100).all()


def test_atrophy_takes_cortex_and_leaves_fluid():
    for index in range(4):
        stages = [person(index, disease="ad", size=64, slices=4, atrophy=a).factors for a in (0.0, 0.5, 1.0)]
        assert np.diff([s["cortex_mm2"] for s in stages]).max() < -100
        assert np.diff([s["csf_mm2"] for s in stages]).min() > 100


def test_atrophy_goes_with_larger_ventricles_and_smaller_hippocampi():
    drawn = pd.DataFrame([draw_factors(0, index, "ad") for index in range(300)])
    assert drawn["atrophy"].between(0, 1).all()
    assert drawn["atrophy"].corr(drawn["ventricles"]) > 0.4 and drawn["atrophy"].corr(drawn["hippocampus"]) < -0.6


def test_only_alzheimers_has_a_hippocampus_in_view():
    for disease, seen in (("ms", False), ("ad", True)):
        large, small = (person(1, disease=disease, **SMALL, hippocampus=h, atrophy=0.4) for h in (1.1, 0.4))
        assert np.array_equal(large.tissue, small.tissue) != seen
    assert (large.tissue == DEEP).sum() > (small.tissue == DEEP).sum()
    assert (large.tissue == VENTRICLE).sum() < (small.tissue == VENTRICLE).sum(), "fluid fills the room"


def test_neighbouring_slices_are_more_alike_than_two_people_at_one_height(people):
    flat = np.stack([stack.twins.reshape(8, -1) for stack in people])
    neighbours = [np.corrcoef(flat[i, 3], flat[i, 4])[0, 1] for i in range(30)]
    strangers = [np.corrcoef(flat[i, 3], flat[(i + 1) % 30, 3])[0, 1] for i in range(30)]
    apart = [np.corrcoef(flat[i, 0], flat[i, 7])[0, 1] for i in range(30)]
    assert min(neighbours) > max(strangers)
    assert np.mean(neighbours) > np.mean(apart) + 0.05


def test_contrasts_are_those_of_the_sequence():
    """FLAIR: fluid dark, cortex brighter than white matter, lesions brightest. T1: white matter brightest."""
    ms, ad = person(2, size=64, slices=4), person(2, disease="ad", size=64, slices=4)
    mean = lambda stack, label: stack.twins[stack.tissue == label].mean()
    assert mean(ms, VENTRICLE) < mean(ms, CSF) < mean(ms, WHITE) < mean(ms, CORTEX) < ms.images[ms.lesion > 0.8].mean()
    assert mean(ad, VENTRICLE) < mean(ad, CSF) < mean(ad, CORTEX) < mean(ad, WHITE)


# The prepared folder


def test_folders_are_byte_identical_for_any_number_of_workers(folder, tmp_path, monkeypatch):
    two = prepare(tmp_path / "two", subjects=10, seed=5, workers=2, **SMALL)
    assert contents(two) == contents(folder)
    monkeypatch.setattr(brain_phantom, "_CHUNK", 3)
    assert contents(prepare(tmp_path / "three", subjects=10, seed=5, **SMALL)) == contents(folder)


def test_the_folder_holds_what_person_makes(folder):
    images, labels, twins = (np.load(folder / f"{name}.npy") for name in ("images", "labels", "twins"))
    slices, factors, card = pd.read_csv(folder / "slices.csv"), pd.read_csv(folder / "factors.csv"), prepared.read_card(folder)
    for index in (0, 9):
        stack, rows = person(index, seed=5, **SMALL), slice(3 * index, 3 * index + 3)
        np.testing.assert_array_equal(images[rows, 0], stack.images.astype(np.float16))
        np.testing.assert_array_equal(twins[rows, 0], stack.twins.astype(np.float16))
        np.testing.assert_array_equal(labels[rows, 0], stack.tissue)
        assert np.abs(labels[rows, 1] / 100 - stack.lesion).max() <= 0.005 + 1e-9
        assert factors.loc[index, list(stack.factors)].astype(float).to_dict() == pytest.approx(stack.factors, rel=1e-5)
    area = SIZES[32][2] ** 2
    np.testing.assert_allclose(slices["lesion_mm2"], labels[:, 1].sum((1, 2)) / 100 * area, rtol=1e-5)
    np.testing.assert_allclose(slices["ventricle_mm2"], (labels[:, 0] == VENTRICLE).sum((1, 2)) * area, rtol=1e-5)
    np.testing.assert_allclose(slices["brain_mm2"], (labels[:, 0] != BACKGROUND).sum((1, 2)) * area, rtol=1e-5)
    np.testing.assert_allclose(slices["z_mm"][:3], [4, 12, 20])
    assert card["identity"] == prepared.identity(card["recipe"]) and card["sequence"] == "FLAIR" and card["pixel_mm"] == 5.5
    assert (card["images"], card["subjects"], card["splits"]) == (30, 10, {"train": 6, "val": 2, "test": 2})
    assert card["slice_gap_mm"] == 8 and card["licence"] == "CC0-1.0"


def test_identity_follows_every_option_and_the_code(monkeypatch):
    options = ({}, {"subjects": 7}, {"disease": "ad"}, {"size": 32}, {"slices": 5}, {"seed": 1})
    known = [prepared.identity(brain_phantom.recipe(**{"subjects": 6} | option)) for option in options]
    assert len(set(known)) == len(options)
    brain_phantom._source_hash.cache_clear()
    monkeypatch.setattr(brain_phantom, "_LESION", 0.9)
    changed = prepared.identity(brain_phantom.recipe(subjects=6))
    brain_phantom._source_hash.cache_clear()
    assert changed != known[0]


def test_the_phantom_is_made_once_and_named_after_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVAE_CACHE", str(tmp_path))
    first = data_prep.phantom("brain", subjects=5, disease="ad", **SMALL)
    monkeypatch.setattr(brain_phantom, "_chunk", None)  # a second making would fail
    assert data_prep.phantom("brain", subjects=5, disease="ad", **SMALL) == first
    assert first.parent == tmp_path and prepared.read_card(first)["identity"][:12] in first.name


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, failure):
    def interrupted(start, **options):
        raise failure

    monkeypatch.setattr(brain_phantom, "_chunk", interrupted)
    with pytest.raises(failure):
        prepare(tmp_path / "out", subjects=5, **SMALL)
    assert list(tmp_path.iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"disease": "flu"}, "`disease` must be one of ms, ad, got 'flu'."),
        ({"size": 65}, "`size` must be one of 32, 64, 112 rows of pixels, got 65."),
        ({"slices": 0}, "`slices` must be at least 1, got 0."),
        ({"seed": -1}, r"`seed` must be a whole number from 0 to 2\*\*64 - 1, got -1."),
        ({"age": 40.0}, "factors of a person are atrophy, size, .*, got 'age'."),
    ],
)
def test_an_impossible_person_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        person(0, **options)


def command(capsys, *arguments):
    """Exit status and what was said on stderr; argparse leaves by SystemExit."""
    try:
        status = main([*map(str, arguments)])
    except SystemExit as leaving:
        status = leaving.code
    return status, capsys.readouterr().err


def test_the_command_makes_the_folder_and_reuses_it(folder, tmp_path, capsys, monkeypatch):
    words = ("brain-phantom", tmp_path / "out", "--subjects", 10, "--size", 32, "--slices", 3, "--seed", 5)
    assert command(capsys, *words)[0] == 0
    assert contents(tmp_path / "out") == contents(folder)
    monkeypatch.setattr(brain_phantom, "_chunk", None)
    assert command(capsys, *words)[0] == 0


def test_an_occupied_folder_is_refused_and_untouched(folder, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    status, said = command(capsys, "brain-phantom", tmp_path, "--subjects", 6, "--size", 32)
    assert status == 2 and said.startswith("error: ") and "exists and is not a prepared dataset" in said and said.count("\n") == 1
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}
    before = contents(folder)
    status, said = command(capsys, "brain-phantom", folder, "--subjects", 6, "--size", 32)
    assert status == 2 and "holds another dataset (brain phantom (ms)" in said and said.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--subjects", 4), "error: a split by person needs at least 5 people, got 4"),
        (("--size", 48), "error: `size` must be one of 32, 64, 112 rows of pixels, got 48."),
        (("--slices", 0), "error: `slices` must be at least 1, got 0."),
        (("--workers", 0), "error: `workers` must be at least 1, got 0."),
        (("--seed", -1), "error: `seed` must be a whole number from 0"),
        (("--disease", "flu"), "error: argument --disease: invalid choice: 'flu'"),
    ],
)
def test_an_impossible_option_is_one_sentence(tmp_path, capsys, words, sentence):
    status, said = command(capsys, "brain-phantom", tmp_path / "out", *words)
    assert status == 2 and said.startswith(sentence) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
