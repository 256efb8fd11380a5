"""What is asked of brains with lesions: hand-worked figures, closed forms, loops and scikit-image as oracles."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage as ndi
from scipy import stats
from skimage.metrics import structural_similarity
from sklearn.linear_model import Lasso

from medvae_lite import fidelity
from medvae_lite.brain_metrics import (
    PRESENT,
    Detector,
    components,
    contrast_recovery,
    importance_bound,
    invalid_share,
    lasso_r2,
    lesion_statistics,
    missed,
    pool,
    pyramid_features,
)


def disc(area):
    """Diameter of a disc of that area."""
    return 2 * math.sqrt(area / math.pi)


def blank(size=16):
    return np.zeros((size, size))


# Lesions of a slice


def test_a_block_of_four_pixels_of_2_mm_is_a_disc_of_16_square_millimetres():
    share = blank()
    share[3:5, 6:8] = 1
    found, diameters = components(share, 2.0)
    assert diameters.tolist() == pytest.approx([disc(16)])
    np.testing.assert_array_equal(found, (share > 0).astype(int))


def test_half_filled_pixels_count_half():
    share = blank()
    share[3:5, 6:8] = [[0.5, 0.5], [0.25, 1]]
    assert components(share, 2.0)[1].tolist() == pytest.approx([disc(2.25 * 4)])


def test_lesions_that_touch_at_a_corner_are_one_and_across_a_gap_two():
    share = blank()
    share[2, 2] = share[3, 3] = share[3, 5] = 1
    found, diameters = components(share, 1.0)
    assert sorted(diameters.tolist()) == pytest.approx([disc(1), disc(2)])
    assert found[2, 2] == found[3, 3] != found[3, 5]


def test_a_pixel_belongs_to_a_lesion_from_a_quarter_on():
    share = blank()
    share[2, 2], share[8, 8] = PRESENT, PRESENT - 0.01
    assert components(share, 1.0)[0][[2, 8], [2, 8]].tolist() == [1, 0]


def test_a_slice_without_lesion_has_none():
    found, diameters = components(blank(), 2.0)
    assert not found.any() and diameters.shape == (0,)


def test_lesion_statistics_of_three_slices_worked_by_hand():
    share = np.zeros((3, 16, 16))
    share[1, 2:4, 2:4] = share[2, 8:10, 8:10] = share[2, 2, 2] = 1
    share[2, 14, 14] = 0.2  # too faint for a lesion, but tissue lost all the same
    found = lesion_statistics(share, 2.0)
    volumes = np.array([0, 16, 20.8])
    assert found["volume per slice, mean (mm³)"] == pytest.approx(36.8 / 3)
    assert found["volume per slice, sd (mm³)"] == pytest.approx(math.sqrt((volumes**2).mean() - volumes.mean() ** 2))
    assert found["slices without lesion (%)"] == pytest.approx(100 / 3)
    assert found["lesions per slice"] == 1
    assert found["diameter, 50th centile (mm)"] == pytest.approx(disc(16))
    assert found["diameter, 25th centile (mm)"] == pytest.approx((disc(4) + disc(16)) / 2)
    assert found["lesions up to 3 mm (%)"] == pytest.approx(100 / 3) and found["lesions up to 5 mm (%)"] == 100


# Contrast that a reconstruction keeps


def lesion_image(contrast=1.0, tissue=0.3):
    """A lesion of 3 x 3 pixels in even tissue: image and shares, each (1, 16, 16)."""
    share = np.zeros((1, 16, 16))
    share[0, 5:8, 5:8] = 1
    return tissue + contrast * share, share


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.0, -0.25, 1.2])
def test_recovery_is_the_share_of_the_contrast_that_is_kept(kept):
    x, share = lesion_image()
    row = contrast_recovery(x, 0.3 + kept * share, share, 2.0).iloc[0]
    assert row.tolist() == pytest.approx([0, disc(36), 1.0, kept])


def test_a_brighter_reconstruction_recovers_nothing_more():
    """Contrast is a difference from the ring: what is added to everything is no lesion."""
    x, share = lesion_image()
    assert contrast_recovery(x, x + 7, share, 2.0)["recovery"].tolist() == pytest.approx([1])


def test_contrast_weighs_pixels_by_their_share():
    x, share = np.zeros((1, 16, 16)), np.zeros((1, 16, 16))
    share[0, 5, 5:7], x[0, 5, 5:7] = (1, 0.5), (1, 0.4)
    assert contrast_recovery(x, x, share, 1.0)["contrast"].tolist() == pytest.approx([(1 + 0.2) / 1.5])


def test_the_ring_leaves_out_every_pixel_with_lesion_in_it():
    x, share = lesion_image()
    share[0, 8, 5:8], x[0, 8, 5:8] = 0.1, 50
    row = contrast_recovery(x, x, share, 2.0)
    assert len(row) == 1 and row["contrast"][0] == pytest.approx(1)
    share[0, 8, 5:8] = 0.04
    assert contrast_recovery(x, x, share, 2.0).empty, "counted as healthy it hides the lesion"


def test_the_ring_is_two_pixels_wide():
    x, share = lesion_image()
    far = ndi.distance_transform_cdt(share[0] == 0, "chessboard") > 2
    x[0][far] = 99
    assert contrast_recovery(x, x, share, 2.0)["contrast"].tolist() == pytest.approx([1])
    x[0, 3, 3] = 99
    assert contrast_recovery(x, x, share, 2.0).empty


def test_lesions_that_do_not_stand_out_or_have_no_surroundings_are_left_out():
    x, share = lesion_image(contrast=0.19)
    assert contrast_recovery(x, x, share, 2.0).empty
    full = np.ones((1, 6, 6))
    assert contrast_recovery(full, full, full, 2.0).empty


def test_lesions_are_missed_when_half_their_contrast_is_gone_by_size_class():
    table = pd.DataFrame({"diameter_mm": [2.0, 3.0, 4.0, 20.0, 11.0], "recovery": [0.4, 0.6, 0.1, 0.5, 0.49]})
    lost = missed(table)
    assert list(lost.index) == ["≤ 3", "3-5", "5-10", "> 10"]
    np.testing.assert_array_equal(lost, [0.5, 1, np.nan, 0.5])
    np.testing.assert_array_equal(missed(table, bounds=(3.5,)), [0.5, 2 / 3])


# A finder of lesions by grey value


def grey_levels(noise, lesion=2.0):
    """Fluid at -1, tissue at 0.5, lesions at `lesion`, with noise: image, share, where fluid and where tissue is."""
    rng = np.random.default_rng(0)
    share, fluid = np.zeros((4, 32, 32)), np.zeros((4, 32, 32), bool)
    share[:, 4:12, 4:12], fluid[:, 20:28, 20:28] = 1, True
    x = np.where(fluid, -1.0, np.where(share > 0, lesion, 0.5)) + noise * rng.standard_normal(share.shape)
    return x, share, fluid, ~fluid & (share == 0)


def test_the_threshold_lies_between_two_known_grey_levels():
    x, share, fluid, tissue = grey_levels(0.1)
    find = Detector.fit(x, share, fluid, tissue)
    assert x[tissue].max() < find.bright < 2
    assert find.dark == pytest.approx(-0.25, abs=0.01)
    truth, found = share > 0, find.lesions(x)
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.98


def test_the_threshold_has_the_best_dice_where_grey_levels_overlap():
    x, share, fluid, tissue = grey_levels(0.5, lesion=1.5)
    truth = share > 0

    def dice(t):
        return 2 * (truth & (x > t)).sum() / (truth.sum() + (x > t).sum())

    best = max(map(dice, np.linspace(-1, 3, 2001)))
    assert dice(Detector.fit(x, share, fluid, tissue).bright) > best - 0.01 and best < 0.9


def test_without_any_lesion_nothing_is_found():
    x, share, fluid, tissue = grey_levels(0.1)
    assert not Detector.fit(x, 0 * share, fluid, tissue).lesions(1e6 * x).any()


def test_area_is_pixels_found_times_their_area():
    x, find = np.zeros((3, 8, 8)), Detector(1.0, -0.5)
    x[1, 2:4, 2:5], x[2, 0, 0], x[0, 0, 0] = 2, 1.0, 0.99
    np.testing.assert_allclose(find.area_mm2(x, 2.75), [0, 6 * 2.75**2, 2.75**2])


def scene(*places):
    """Tissue at 0.5 with a dark ventricle in rows and columns 16 to 26, and lesions of 3 x 3 pixels at `places`."""
    x = np.full((1, 32, 32), 0.5)
    x[0, 16:27, 16:27] = -1
    for row, column in places:
        x[0, row : row + 3, column : column + 3] = 2
    return x


@pytest.mark.parametrize(
    ("places", "expected"), [([(4, 4)], (0, 1)), ([(20, 20)], (1, 1)), ([(4, 4), (20, 20)], (0.5, 2)), ([(0, 0)], (0, 1))]
)
def test_a_lesion_in_fluid_is_invalid_and_one_in_tissue_is_not(places, expected):
    assert invalid_share(scene(*places), Detector(1.0, -0.25)) == expected


def test_a_lesion_at_a_ventricle_is_invalid_only_when_most_of_its_rim_is_dark():
    """Half in, half out; its ring has 7 x 7 pixels less its own nine."""
    x, find = scene((20, 14)), Detector(1.0, -0.25)
    box = x[0, 18:25, 12:19]
    dark = (box < -0.25).sum() / (49 - 9)
    assert 0.4 < dark < 0.6
    assert invalid_share(x, find)[0] == 0 and invalid_share(x, find, rim=dark - 0.01)[0] == 1 and invalid_share(x, find, rim=dark)[0] == 0


def test_images_without_lesions_have_no_share_of_invalid_ones():
    share, count = invalid_share(scene(), Detector(1.0, -0.25))
    assert math.isnan(share) and count == 0


# Linear predictability


def test_r2_of_one_feature_has_a_closed_form():
    rng = np.random.default_rng(1)
    x = 3 * rng.standard_normal((500, 1))
    y = 40 * x[:, 0] + 100 * rng.standard_normal(500) + 300
    rho, s, sd = np.corrcoef(x[:, 0], y)[0, 1], x.std(), y.std()
    for alpha in (1.0, 10.0, 100.0):
        assert lasso_r2(x, y, x, y, alpha=alpha) == pytest.approx(rho**2 - (alpha / (s * sd)) ** 2, abs=1e-4)
    covariance = rho * s * sd
    assert lasso_r2(x, y, x, y, alpha=1.01 * covariance) == pytest.approx(0, abs=1e-12)
    assert lasso_r2(x, y, x, y, alpha=0.9 * covariance) > 0


def test_r2_agrees_with_a_lasso_solved_to_the_end():
    rng = np.random.default_rng(2)
    x, x_test = rng.standard_normal((80, 200)), rng.standard_normal((60, 200))
    weights = np.where(np.arange(200) < 6, 60.0, 0.0)
    y, y_test = x @ weights + 20 * rng.standard_normal(80), x_test @ weights + 20 * rng.standard_normal(60)
    exact = Lasso(alpha=10.0, max_iter=200_000, tol=1e-10).fit(x, y)
    assert lasso_r2(x, y, x_test, y_test) == pytest.approx(exact.score(x_test, y_test), abs=2e-3)


def test_r2_is_one_for_the_target_itself_and_no_more_than_nothing_for_noise():
    rng = np.random.default_rng(3)
    y, y_test = 200 * rng.standard_normal(300), 200 * rng.standard_normal(100)
    assert lasso_r2(y[:, None], y, y_test[:, None], y_test) > 0.999
    noise, noise_test = rng.standard_normal((300, 5)), rng.standard_normal((100, 5))
    assert lasso_r2(noise, y, noise_test, y_test) < 0.05


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 2, 9, 14), (2, 1, 16, 12)])
def test_pooling_is_the_mean_of_every_patch(shape):
    plane = np.random.default_rng(0).standard_normal(shape)
    n, c, h, w = shape
    tall, wide = h // 4, w // 4
    expected = [
        [plane[i, k, tall * a : tall * (a + 1), wide * b : wide * (b + 1)].mean() for k in range(c) for a in range(4) for b in range(4)]
        for i in range(n)
    ]
    np.testing.assert_allclose(pool(plane), expected)


def test_small_planes_stay_as_they_are():
    plane = np.random.default_rng(0).standard_normal((2, 3, 4, 8))
    np.testing.assert_array_equal(pool(plane), plane.reshape(2, -1))


# Features for a Fréchet distance


@pytest.fixture(scope="module")
def textures():
    return ndi.gaussian_filter(np.random.default_rng(0).standard_normal((60, 32, 32)), (0, 1.5, 1.5), mode="wrap") * 4


def test_identical_images_have_no_distance(textures):
    features = pyramid_features(textures)
    assert features.shape == (60, 48) and np.isfinite(features).all()
    assert fidelity.frechet_distance(features, pyramid_features(textures[::-1])) == pytest.approx(0, abs=1e-6)
    assert pyramid_features(textures, levels=2).shape == (60, 24)


def test_features_of_an_image_do_not_depend_on_its_company(textures):
    np.testing.assert_allclose(pyramid_features(textures[7:8])[0], pyramid_features(textures)[7])


def test_blur_and_noise_move_the_features_more_the_stronger_they_are(textures):
    real = pyramid_features(textures)
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(textures.shape)
    blurred = [fidelity.frechet_distance(real, pyramid_features(ndi.gaussian_filter(textures, (0, s, s)))) for s in (0.0, 0.7, 1.5)]
    noisy = [fidelity.frechet_distance(real, pyramid_features(textures + s * noise)) for s in (0.0, 0.3, 1.0)]
    for distances in (blurred, noisy):
        assert distances[0] < 1e-6 and distances[2] > 1.5 * distances[1] > 1e-3


def test_the_first_level_holds_means_of_the_image_and_its_quadrants(textures):
    features = pyramid_features(textures)
    quarters = [textures[:, a : a + 16, b : b + 16].mean((1, 2)) for a in (0, 16) for b in (0, 16)]
    np.testing.assert_allclose(features[:, 8:12], np.stack(quarters, 1))
    np.testing.assert_allclose(features[:, 6:8], np.stack([textures.mean((1, 2)), textures.std((1, 2))], 1))


def test_the_next_level_is_the_blurred_image_at_half_the_size(textures):
    half = ndi.gaussian_filter(textures, (0, 1, 1), mode="nearest")[:, ::2, ::2]
    np.testing.assert_allclose(pyramid_features(textures)[:, 12:], pyramid_features(half, levels=3))


def test_bands_are_what_the_blur_takes_away_by_their_first_four_moments(textures):
    band = textures - ndi.gaussian_filter(textures, (0, 1, 1), mode="nearest")
    flat = band.reshape(60, -1)
    expected = [flat.mean(1), flat.std(1), stats.skew(flat, axis=1), np.log(stats.kurtosis(flat, axis=1, fisher=False))]
    np.testing.assert_allclose(pyramid_features(textures)[:, :4], np.stack(expected, 1), rtol=1e-4, atol=1e-6)


def test_gradients_of_a_slope_are_its_steepness():
    slope = np.add.outer(3.0 * np.arange(32), 4.0 * np.arange(32))[None]
    assert pyramid_features(slope)[0, 4:6].tolist() == pytest.approx([5, 0], abs=1e-9)


# The importance-weighted bound


def test_the_bound_of_two_images_worked_by_hand():
    """Weights of e^-1000 and 3 e^-1000, then e^-2000 twice: their means' logarithms, far below what a float holds."""
    weights = np.array([[-1000.0, -1000 + math.log(3)], [-2000.0, -2000.0]])
    first, second = -1000 + math.log(2), -2000.0
    bound, error = importance_bound(weights)
    assert bound == pytest.approx((first + second) / 2)
    assert error == pytest.approx((first - second) / 2)


def test_the_bound_rises_with_draws():
    """On average: over nested groups of the same draws, where it holds exactly."""
    weights = -500 + 5 * np.random.default_rng(0).standard_normal((20, 16))
    bounds = [np.mean([importance_bound(part)[0] for part in np.split(weights, 16 // n, 1)]) for n in (1, 2, 4, 8, 16)]
    assert all(b > a for a, b in itertools.pairwise(bounds))
    assert bounds[0] == pytest.approx(weights.mean())


def test_one_draw_or_equal_weights_are_the_mean():
    weights = np.random.default_rng(0).standard_normal((9, 1))
    assert importance_bound(weights) == pytest.approx((weights.mean(), weights.std(ddof=1) / 3))
    assert importance_bound(np.repeat(weights, 5, 1)) == pytest.approx(importance_bound(weights))


# Structural similarity through a mask


def pair(count=3, size=32):
    x = ndi.gaussian_filter(np.random.default_rng(0).random((count, 1, size, size)), (0, 0, 1, 1))
    return x, np.clip(x + 0.1 * np.random.default_rng(1).standard_normal(x.shape), 0, 1)


@pytest.mark.parametrize("mode", ["default", "reference"])
def test_a_full_mask_is_no_mask(mode):
    x, x_hat = map(torch.from_numpy, pair())
    full = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(fidelity.ssim(x, x_hat, mode=mode, mask=full), fidelity.ssim(x, x_hat, mode=mode))


@pytest.mark.parametrize(("mode", "edge"), [("default", 5), ("reference", 3)])
def test_a_masked_ssim_is_the_mean_of_the_map_under_the_mask(mode, edge):
    x, x_hat = pair()
    mask = np.zeros(x.shape, bool)
    mask[0, 0, :, :16], mask[1, 0, 10:13, 20:22], mask[2] = True, True, np.random.default_rng(2).random((32, 32)) > 0.5
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if mode == "default" else {"win_size": 7}
    expected = []
    for u, v, m in zip(x[:, 0], x_hat[:, 0], mask[:, 0]):
        inside = np.zeros_like(m)
        inside[edge:-edge, edge:-edge] = m[edge:-edge, edge:-edge]
        expected.append(structural_similarity(u, v, data_range=1, full=True, **options)[1][inside].mean())
    found = fidelity.ssim(*map(torch.from_numpy, (x, x_hat)), mode=mode, mask=torch.from_numpy(mask))
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_an_empty_mask_has_no_ssim_and_spoils_no_other():
    x, x_hat = map(torch.from_numpy, pair())
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[1] = False
    found = fidelity.ssim(x, x_hat, mask=mask)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], fidelity.ssim(x, x_hat)[[0, 2]])


def test_a_mask_is_cut_in_the_same_batches_as_the_images():
    """More images than are worked on at once."""
    x, x_hat = map(torch.from_numpy, pair(70, 12))
    mask = torch.zeros_like(x)
    mask[:, :, 5:7, 5:6] = 1
    mask[66, :, 5:7] = 1
    found = fidelity.ssim(x, x_hat, mask=mask)
    for row in (3, 66):
        torch.testing.assert_close(found[row : row + 1], fidelity.ssim(x[row : row + 1], x_hat[row : row + 1], mask=mask[row : row + 1]))


def test_fluid_beside_a_lesion_is_no_part_of_its_ring():
    """Grey 1 everywhere, 2 in the lesion, 0 in a ventricle beside it: a blank reconstruction keeps nothing of the contrast."""
    x, share, wet = np.ones((1, 16, 16)), np.zeros((1, 16, 16)), np.zeros((1, 16, 16), bool)
    wet[0, :, 8:] = True
    x[wet] = 0
    blank = x.copy()
    x[0, 6:8, 6:8], share[0, 6:8, 6:8] = 2, 1
    seen = contrast_recovery(x, blank, share, 1.0, fluid=wet)
    assert seen["contrast"].tolist() == [1.0] and seen["recovery"].tolist() == [0.0]
    assert contrast_recovery(x, blank, share, 1.0)["recovery"].item() > 0.2
