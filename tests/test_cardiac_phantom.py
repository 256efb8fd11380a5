"""Laws of the cardiac phantom: the same subject in any company, a possible heart, a cohort's volumes."""

import inspect

import numpy as np
import pandas as pd
import pytest

import data_prep
from data_prep import __main__ as command_line
from data_prep import cardiac_anatomy, cardiac_paint, cardiac_phantom, prepared
from data_prep.cardiac_phantom import generate, prepare
from data_prep.prepared import ATTRIBUTES

# Bernard et al. 2018, 150 subjects: mean volumes (mL), Spearman correlations, ejection fractions.
ACDC_MEANS = {"LVEDV": 169, "RVEDV": 159, "MYOEDV": 125, "LVESV": 99, "RVESV": 89, "MYOESV": 140}
ACDC_SPEARMAN = {
    ("LVEDV", "LVESV"): 0.88, ("RVEDV", "RVESV"): 0.85, ("MYOEDV", "MYOESV"): 0.97,
    ("LVEDV", "MYOEDV"): 0.68, ("LVEDV", "RVEDV"): 0.27,
}
ACDC_LVEF = {"NOR": 0.62, "DCM": 0.20, "MINF": 0.31, "RV": 0.57, "HCM": 0.70}


@pytest.fixture(scope="module")
def cohort():
    return generate(600, seed=1)


@pytest.fixture(scope="module")
def volumes(cohort):
    return pd.DataFrame(cohort.volumes, columns=ATTRIBUTES)


def same(a, b):
    return (
        np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.volumes, b.volumes) and a.factors.equals(b.factors)
    )


def barycentres(labels, label, size=64):
    """Row and column of the barycentre in mm from the image centre, (N, 2, 2)."""
    axis = (np.arange(size) - (size - 1) / 2) * (160 / size)
    mask = labels == label
    count = mask.sum((-2, -1))
    return np.stack([mask.sum(-1) @ axis, mask.sum(-2) @ axis], axis=-1) / count[..., None]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# The same subject in any company


def test_a_subject_is_the_same_in_any_company(cohort):
    alone = generate([37], seed=1)
    company = generate([599, 37, 0], seed=1)
    for row, index in enumerate((599, 37, 0)):
        np.testing.assert_array_equal(company.images[row], cohort.images[index])
        np.testing.assert_array_equal(company.volumes[row], cohort.volumes[index])
        np.testing.assert_array_equal(company.labels[row], cohort.labels[index])
    np.testing.assert_array_equal(alone.images[0], company.images[1])
    pd.testing.assert_frame_equal(alone.factors, cohort.factors.iloc[[37]].reset_index(drop=True))


def test_seeds_and_subjects_differ():
    a, b = generate(2, seed=1), generate(2, seed=2)
    assert not np.array_equal(a.images[0], b.images[0])
    assert not np.array_equal(a.images[0], a.images[1])
    assert not np.array_equal(a.volumes[0], b.volumes[0])


def test_the_callers_random_state_is_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first = generate(2)
    np.random.seed(4)
    assert same(first, generate(2))
    np.random.seed(3)
    generate(1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("size", [48, 128])
def test_every_size_shows_the_same_heart(size):
    small, large = generate(24, size=64), generate(24, size=size)
    lengths = [name for name in small.factors if name != "group"]
    pd.testing.assert_frame_equal(small.factors[lengths], large.factors[lengths])
    np.testing.assert_allclose(small.volumes, large.volumes, rtol=0.05)
    assert np.abs(small.volumes / large.volumes - 1).mean() < 0.01
    half_a_pixel = 80 / min(size, 64)
    assert np.abs(barycentres(small.labels, 3) - barycentres(large.labels, 3, size)).max() < half_a_pixel


def test_128_pixels_binned_look_like_64():
    small, large = generate(8, size=64), generate(8, size=128)
    binned = large.images.astype(np.float32).reshape(8, 2, 64, 2, 64, 2).mean((3, 5))
    for a, b in zip(small.images.astype(np.float32).reshape(16, -1), binned.reshape(16, -1)):
        assert np.corrcoef(a, b)[0, 1] > 0.97


def test_texture_has_unit_spread_and_one_place_in_every_size():
    fields = {}
    for size in (64, 128):
        spectrum = cardiac_paint.grid(size).fine
        rngs = [cardiac_anatomy.stream(0, i, 1) for i in range(40)]
        fields[size] = np.stack([cardiac_paint.texture(rng, spectrum, size) for rng in rngs])
        assert fields[size].std() == pytest.approx(1, abs=0.1)
    binned = fields[128].reshape(40, 64, 2, 64, 2).mean((2, 4))
    assert np.corrcoef(binned.ravel(), fields[64].ravel())[0, 1] > 0.98


# A possible heart


def test_images_are_in_range_with_blood_brighter_than_muscle(cohort):
    images, labels = cohort.images, cohort.labels
    assert (images.dtype, labels.dtype) == (np.float16, np.uint8)
    assert images.shape == labels.shape == (600, 2, 64, 64)
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    for image, label in zip(images[:100].astype(np.float32), labels[:100]):
        assert image[label == 1].mean() > image[label == 2].mean() + 0.2
        assert image[label == 3].mean() > image[label == 2].mean() + 0.2


def test_noise_is_rician_at_the_level_of_its_factor():
    grid = cardiac_paint.grid(64)
    flat = {f"bias_{term}": 0.0 for term in ("x", "y", "xx", "yy", "xy")}
    rayleigh = 0.02 * np.sqrt(np.pi / 2), 0.02 * np.sqrt(2 - np.pi / 2)
    for signal, mean, sd in ((0.5, 0.5, 0.02), (0.0, *rayleigh)):
        image = np.full((2, 64, 64), signal, np.float32)
        image = cardiac_paint._acquire(image, flat | {"noise": 0.02}, grid, np.random.default_rng(0))
        assert image.mean() == pytest.approx(mean, rel=0.02)
        assert image.std() == pytest.approx(sd, rel=0.05)


def test_the_lv_lies_inside_its_muscle(cohort):
    lv = cohort.labels == 1
    for axis in (-2, -1):
        for step in (-1, 1):
            neighbour = np.roll(cohort.labels, step, axis=axis)
            assert np.isin(neighbour[lv], (1, 2)).all()


def test_every_structure_is_there_and_nothing_leaves_the_view(cohort):
    fractions = np.stack([(cohort.labels == label).mean((-2, -1)) for label in (1, 2, 3)])
    assert fractions.min() > 0.01 and fractions.max() < 0.3
    edges = np.concatenate([cohort.labels[..., [0, -1], :].ravel(), cohort.labels[..., [0, -1]].ravel()])
    assert not edges.any()
    assert set(np.unique(cohort.labels)) == {0, 1, 2, 3}


def test_the_lv_is_centred_and_the_rv_straight_left_of_it(cohort):
    lv, rv = barycentres(cohort.labels, 1), barycentres(cohort.labels, 3)
    assert np.abs(lv).max() < 2.0
    across = rv - lv
    assert across[..., 1].max() < -10
    assert np.abs(np.degrees(np.arctan2(across[..., 0], -across[..., 1]))).max() < 4


def test_slices_taper_and_the_stored_one_is_the_basal_one():
    phantom = generate([5])
    polar = cardiac_paint.Polar(cardiac_anatomy.heart(cardiac_anatomy.draw_factors(0, 5)), 64)
    stack = cardiac_paint.label_stack(polar)
    np.testing.assert_array_equal(stack[:, 0], phantom.labels[0])
    for label in (1, 3):
        area = (stack == label).sum((-2, -1))
        assert (np.diff(area, axis=1) <= 2).all() and (area[:, -1] < area[:, 0] / 3).all()
    assert (stack[:, -1] == 2).any() and not (stack[:, -1] == 3).any()


def test_volumes_are_those_asked_for_where_the_view_allows(cohort, volumes):
    factors = cohort.factors
    np.testing.assert_allclose(volumes["LVEDV"], factors["lv_ed_target_ml"], rtol=0.03)
    np.testing.assert_allclose(volumes["MYOEDV"], factors["myo_target_ml"], rtol=0.04)
    np.testing.assert_allclose(volumes["RVEDV"], factors["rv_ed_target_ml"] * factors["rv_share"], rtol=0.04)
    assert (factors["rv_share"] == 1).mean() > 0.75


def test_outlines_enclose_the_volume_they_were_solved_for():
    factors = cardiac_anatomy.draw_factors(0, 3)
    heart = cardiac_anatomy.heart(factors)
    for frame, name in enumerate(("ed", "es")):
        lv, myo, rv = cardiac_anatomy.frame_targets_ml(factors, name)
        endo, epi = (np.pi * (outline[frame] ** 2).mean() for outline in (heart.endo, heart.epi))
        right = np.pi * np.clip(heart.rv[frame] ** 2 - heart.epi[frame] ** 2, 0, None).mean()
        tapers = cardiac_anatomy.TAPER_ENDO, cardiac_anatomy.TAPER_EPI, cardiac_anatomy.TAPER_RV
        k_endo, k_epi, k_rv = ((taper**2).mean() * factors[f"long_axis_{name}_mm"] / 1000 for taper in tapers)
        assert k_endo * endo == pytest.approx(lv, rel=1e-9)
        assert k_epi * epi - k_endo * endo == pytest.approx(myo, rel=1e-9)
        assert k_rv * right == pytest.approx(rv * heart.rv_share[0], rel=0.02)


# Volumes like a cohort's


def test_mean_volumes_resemble_acdc(volumes):
    for name, mean in ACDC_MEANS.items():
        assert volumes[name].mean() == pytest.approx(mean, rel=0.15), name


def test_correlations_resemble_acdc(volumes):
    spearman = volumes.corr("spearman")
    for (a, b), value in ACDC_SPEARMAN.items():
        assert spearman.loc[a, b] == pytest.approx(value, abs=0.10), (a, b)


def test_ejection_fractions_resemble_acdc_by_group(cohort, volumes):
    lvef = 1 - volumes["LVESV"] / volumes["LVEDV"]
    rvef = 1 - volumes["RVESV"] / volumes["RVEDV"]
    assert lvef.between(0.05, 0.84).all() and rvef.between(0.05, 0.8).all()
    for group, value in ACDC_LVEF.items():
        assert lvef[cohort.factors["group"] == group].mean() == pytest.approx(value, abs=0.03), group


def test_myocardial_volume_is_conserved(volumes):
    ratio = volumes["MYOESV"] / volumes["MYOEDV"]
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.between(0.85, 1.15).all()


def test_extreme_subjects_are_possible():
    ends = {}
    for sign, draw in (("small", -2.5), ("large", 2.5)):
        rng = type("Fixed", (), {"standard_normal": lambda self, d=draw: d, "random": lambda self: 0.5})()
        draws = cardiac_anatomy._Draw(rng)
        for name, group in cardiac_anatomy.GROUPS.items():
            drawn = (
                cardiac_anatomy._draw_volumes(draws, group) | cardiac_anatomy._draw_heart(draws)
                | cardiac_anatomy._draw_surroundings(draws)
            )
            outlines = cardiac_anatomy.heart(drawn)
            stack = cardiac_paint.label_stack(cardiac_paint.Polar(outlines, 64))
            spacing = [(drawn[f"long_axis_{frame}_mm"] / 10, 2.5, 2.5) for frame in ("ed", "es")]
            ends[sign, name] = prepared.volumes_ml(stack, spacing)
            assert (outlines.epi > outlines.endo + 1).all()
    assert np.min(list(ends.values())) > 8 and np.max(list(ends.values())) < 700


# The prepared folder


def test_folders_are_byte_identical_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(cardiac_phantom, "_CHUNK", 16)
    one = prepare(tmp_path / "one", subjects=40, size=32, seed=5)
    monkeypatch.setattr(cardiac_phantom, "_CHUNK", 24)
    assert contents(prepare(tmp_path / "two", subjects=40, size=32, seed=5)) == contents(one)
    monkeypatch.undo()
    monkeypatch.setattr(cardiac_phantom, "_CHUNK", 256)
    assert contents(prepare(tmp_path / "three", subjects=40, size=32, seed=5)) == contents(one)


def test_two_processes_write_what_one_does(tmp_path):
    subjects = cardiac_phantom._CHUNK + 4
    one = prepare(tmp_path / "one", subjects=subjects, size=16)
    two = prepare(tmp_path / "two", subjects=subjects, size=16, workers=2)
    assert contents(one) == contents(two)


def test_the_folder_holds_what_generate_makes(tmp_path):
    phantom, out = generate(40, size=32, seed=5), prepare(tmp_path / "out", subjects=40, size=32, seed=5)
    subjects, card = pd.read_csv(out / "subjects.csv"), prepared.read_card(out)
    np.testing.assert_array_equal(np.load(out / "images.npy"), phantom.images)
    np.testing.assert_array_equal(np.load(out / "labels.npy"), phantom.labels)
    np.testing.assert_allclose(subjects.filter(like="_ml"), phantom.volumes, atol=5e-4)
    assert list(subjects["split"][:20]) == 14 * ["train"] + 3 * ["val"] + 3 * ["test"]
    assert list(subjects.columns[-3:]) == ["group", "height_cm", "weight_kg"]
    assert card["splits"] == {"train": 28, "val": 6, "test": 6}
    assert card["licence"] == "CC0-1.0" and card["recipe"]["seed"] == 5
    assert card["identity"] == prepared.identity(card["recipe"])


def test_a_smaller_cohort_is_the_beginning_of_a_larger_one(tmp_path):
    small = prepare(tmp_path / "small", subjects=20, size=16)
    large = prepare(tmp_path / "large", subjects=40, size=16)
    np.testing.assert_array_equal(np.load(small / "images.npy"), np.load(large / "images.npy")[:20])
    assert (large / "subjects.csv").read_text().startswith((small / "subjects.csv").read_text())


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, failure):
    def interrupted(start, **options):
        raise failure

    monkeypatch.setattr(cardiac_phantom, "_fill", interrupted)
    with pytest.raises(failure):
        prepare(tmp_path / "out", subjects=4, size=16)
    assert list(tmp_path.iterdir()) == []


def test_phantom_is_made_once_and_named_after_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVAE_CACHE", str(tmp_path))
    first = data_prep.phantom("cardiac", subjects=20, size=16, seed=1)
    monkeypatch.setattr(cardiac_phantom, "_fill", None)  # a second making would fail
    assert data_prep.phantom("cardiac", subjects=20, size=16, seed=1) == first
    assert first.parent == tmp_path and prepared.read_card(first)["identity"][:12] in first.name
    with pytest.raises(ValueError, match="`name` must be one of cardiac.*, got 'cardaic'"):
        data_prep.phantom("cardaic")


def test_identity_follows_the_code_but_not_its_comments():
    source = inspect.getsource(cardiac_anatomy)
    plain = cardiac_phantom.code_without_comments(source)
    commented = "# a new comment\n" + source.replace("Anatomy of the cardiac phantom", "Something else")
    assert cardiac_phantom.code_without_comments(commented) == plain
    assert cardiac_phantom.code_without_comments(source.replace("SLICES = 10", "SLICES = 11")) != plain
    options = ({}, {"subjects": 5}, {"size": 128}, {"seed": 1})
    recipes = [cardiac_phantom.recipe(**{"subjects": 4} | option) for option in options]
    assert len({prepared.identity(recipe) for recipe in recipes}) == len(options)


# The command line


def run(capsys, *arguments):
    """Exit status and what was said on stderr; argparse leaves by SystemExit."""
    try:
        status = command_line.main([*map(str, arguments)])
    except SystemExit as leaving:
        status = leaving.code
    return status, capsys.readouterr().err


def test_the_command_makes_the_folder_and_reuses_it(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    command = ("cardiac-phantom", tmp_path / "out", "--subjects", 20, "--size", 16, "--seed", 3)
    assert run(capsys, *command)[0] == 0
    before = contents(tmp_path / "out")
    assert before == contents(prepare(tmp_path / "library", subjects=20, size=16, seed=3))
    caplog.clear()
    assert run(capsys, *command)[0] == 0
    assert "reusing" in caplog.text and contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--size", 65), "error: `size` must be a positive multiple of 16 pixels, got 65."),
        (("--size", 0), "error: `size` must be a positive multiple of 16 pixels, got 0."),
        (("--subjects", 0), "error: `subjects` must be at least 1, got 0."),
        (("--workers", -1), "error: `workers` must be at least 1, got -1."),
        (("--seed", -1), "error: `seed` must be a whole number from 0"),
        (("--subjects", "many"), "error: argument --subjects: invalid int value: 'many'"),
    ],
)
def test_an_impossible_option_is_one_sentence(tmp_path, capsys, options, sentence):
    status, said = run(capsys, "cardiac-phantom", tmp_path / "out", *options)
    assert status == 2
    assert said.startswith(sentence) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_something_in_the_way_is_refused_and_untouched(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    status, said = run(capsys, "cardiac-phantom", tmp_path, "--subjects", 20, "--size", 16)
    assert status == 2 and said.count("\n") == 1
    assert said.startswith("error: ") and "exists and is not a prepared dataset" in said
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_ctrl_c_ends_with_130(tmp_path, capsys, monkeypatch):
    def interrupted(start, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cardiac_phantom, "_fill", interrupted)
    status, said = run(capsys, "cardiac-phantom", tmp_path / "out", "--subjects", 20, "--size", 16)
    assert status == 130 and "nothing was left half-written" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("indices", [[], [-1], [0.5]])
def test_impossible_indices_are_refused(indices):
    with pytest.raises((ValueError, TypeError)):
        generate(indices)
