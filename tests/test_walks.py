"""Measured walks against hearts whose volumes are known: drawn by hand, labelled without error."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medvae_lite import walks
from medvae_lite.datasets import Prepared

rng = np.random.default_rng(0)
ATTRIBUTES, FRAMES = ("LVEDV", "MYOEDV", "RVESV"), ("ED", "ES")


def study(attributes=ATTRIBUTES, frames=FRAMES, pixel_mm=2.0):
    labels = {"0": "background", "1": "LV", "2": "myocardium", "3": "RV"}
    k, nothing = len(attributes), torch.zeros(0, 2, 8, 8)
    return Prepared(
        Path(), {"labels": labels}, pd.DataFrame(), attributes, 8, pixel_mm, np.zeros(k), np.ones(k), nothing, nothing,
        frames,
    )  # fmt: skip


def segment(x):
    """A perfect network for images whose grey value is the label over 3."""
    return torch.nn.functional.one_hot((3 * x[:, 0]).round().long(), 4).movedim(-1, 1).float()


def test_regions_by_name():
    assert walks.regions(study()) == [(0, 1), (0, 2), (1, 3)]
    assert walks.regions(study(("RVESV",), ("ES",))) == [(0, 3)]


@pytest.mark.parametrize("name", ["LVEDM", "LAEDV", "LVEDV2", "EDV"])
def test_a_region_that_cannot_be_named_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' must be called by one of the tissues"):
        walks.regions(study((name,)))


def test_areas_count_pixels_of_the_right_frame():
    images = torch.zeros(2, 2, 8, 8)
    images[0, 0, :2, :3] = 1 / 3  # LV at ED: 6 pixels
    images[0, 1, :4, :4] = 1 / 3  # LV at ES: not asked for
    images[1, 0, 0, :5] = 2 / 3  # muscle at ED: 5 pixels
    images[1, 1, 3, 3] = 1.0  # RV at ES: 1 pixel
    areas = walks.region_areas(images, study(), segment, batch_size=1)
    np.testing.assert_array_equal(areas, [[24, 0, 0], [0, 20, 4]])


def test_ruler_finds_the_law_that_made_the_volumes():
    areas = rng.uniform(100, 900, (50, 2))
    volumes = np.stack([0.1 * areas[:, 0] ** 1.5, 3 * areas[:, 1] ** 0.5], axis=1)
    ruler = walks.Ruler.fit(areas, volumes)
    np.testing.assert_allclose(ruler.power, [1.5, 0.5])
    np.testing.assert_allclose(ruler(areas), volumes)
    assert np.isfinite(ruler(np.zeros((1, 2)))).all()
    with pytest.raises(ValueError, match="three or more different areas"):
        walks.Ruler.fit(np.zeros((9, 2)), volumes[:9])


@pytest.mark.parametrize("sign", [1, -1])
def test_dial_pairs_quantiles(sign):
    volume = rng.gamma(5, 20, 4000)
    z = np.stack([rng.standard_normal(4000), sign * np.log(volume)], axis=1)
    codes, volumes = walks.Dial.fit(z, volume, 1, sign=sign).at([0.05, 0.5, 0.95])
    np.testing.assert_allclose(np.exp(sign * codes), volumes, rtol=0.01)
    assert (np.diff(volumes) > 0).all()


def test_shifted_moves_one_dimension_or_all_along_the_cohort():
    mu = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    alone = walks.shifted(mu, 1, [-1.0, 2.0])
    assert alone.shape == (4, 2, 3)
    torch.testing.assert_close(alone[:, :, 1], torch.tensor([-1.0, 2.0]).expand(4, 2))
    torch.testing.assert_close(alone[:, :, [0, 2]], mu[:, None, [0, 2]].expand(4, 2, 2))
    along = walks.shifted(mu, 1, [-1.0, 2.0], direction=[0.5, 1.0, -2.0])
    torch.testing.assert_close(along[:, 1] - along[:, 0], torch.tensor([1.5, 3.0, -6.0]).expand(4, 3))
    with pytest.raises(ValueError, match="must be 1 at dimension 1"):
        walks.shifted(mu, 1, [0.0], direction=[1.0, 0.0, 0.0])


def test_the_conditional_mean_of_a_gaussian_is_the_cohort_s_direction():
    """Sigma[:, k] / Sigma[k, k] against a regression on draws."""
    a = rng.standard_normal((3, 3))
    z = rng.multivariate_normal(np.zeros(3), a @ a.T, 200_000)
    cov = np.cov(z.T)
    regression = [np.polyfit(z[:, 0], z[:, j], 1)[0] for j in range(3)]
    np.testing.assert_allclose(cov[:, 0] / cov[0, 0], regression, rtol=1e-6)


def test_a_decoder_that_obeys_and_one_that_moves_the_cohort():
    """Hand-made walks with known answers for slope, cross-talk and the share of the cohort's correlation."""
    volumes = rng.multivariate_normal([100, 80], [[400, 180], [180, 225]], 500_000)  # sd 20 and 15, r = 0.6
    sd, expected = volumes.std(0), walks.expected_cross_talk(volumes)
    asked = np.array([[80.0, 100, 120], [65.0, 80, 95]])
    base = np.array([100.0, 80.0])

    def walk(effect):  # effect[k, j]: mL of j for each mL of k
        change = asked - base[:, None]
        return base + np.einsum("kv,kj->kvj", change, effect)[:, None].repeat(5, 1)

    obedient = walk(np.eye(2))
    np.testing.assert_allclose(walks.slopes(asked[0], obedient[0]), [1, 0], atol=1e-12)
    np.testing.assert_allclose(walks.cross_talk(asked, obedient, sd), np.eye(2), atol=1e-12)
    assert walks.followed(walks.cross_talk(asked, obedient, sd), expected) == 0
    cohort = walk(np.array([[1, 180 / 400], [180 / 225, 1]]))
    np.testing.assert_allclose(walks.cross_talk(asked, cohort, sd), [[1, 0.6], [0.6, 1]], atol=0.01)
    assert walks.followed(walks.cross_talk(asked, cohort, sd), expected) == pytest.approx(1, abs=0.02)
    assert walks.kept_order(cohort[0][:, :, 0]) == 1
    assert walks.kept_order(np.array([[1.0, 2, 2, 1]])) == pytest.approx(1 / 3)
