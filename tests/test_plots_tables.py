"""Figures of region tables draw what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from scipy import stats

from medvae_lite import plots_tables as pt

RNG = np.random.default_rng


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_standard_normal_lies_on_the_diagonal_within_its_band():
    ax = pt.plot_qq({"normal": RNG(0).standard_normal(20_000), "wide": 2 * RNG(1).standard_normal(20_000)}, band=20_000)
    diagonal, normal, wide = ax.lines
    middle = np.abs(normal.get_xdata()) < 2
    np.testing.assert_allclose(normal.get_ydata()[middle], normal.get_xdata()[middle], atol=0.08)
    np.testing.assert_allclose(wide.get_ydata()[middle], 2 * wide.get_xdata()[middle], atol=0.16)
    low, high = (band.vertices[:, 1] for band in (ax.collections[0].get_paths()[0],) * 2)
    assert low.min() < -3 and high.max() > 3


def test_the_band_holds_95_percent_of_normal_samples():
    q, inside = stats.norm.cdf(1.0), []
    low, high = (stats.norm.ppf(stats.beta.ppf(t, q * 100, (1 - q) * 100 + 1)) for t in (0.025, 0.975))
    for seed in range(2000):
        inside.append(low <= np.quantile(RNG(seed).standard_normal(100), q) <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


def test_a_trajectory_marks_the_person_where_they_are():
    ax = pt.plot_trajectory([60, 70], [4000, 3800], [60, 70, 80], {5: [1, 2, 3], 50: [4, 5, 6]}, people={"you": (75.0, 3100.0)}, name="CA1")
    you = next(line for line in ax.lines if line.get_label() == "you")
    assert you.get_xydata().tolist() == [[75.0, 3100.0]]
    assert ax.get_xlabel() == "age (years)" and ax.get_ylabel() == "CA1 (mm³)"
    widths = {len(line.get_xdata()): line.get_linewidth() for line in ax.lines if len(line.get_xdata()) == 3}
    assert widths and max(line.get_linewidth() for line in ax.lines) == 2


def test_stages_show_their_means_and_counts():
    groups = {"CN": np.array([0.7, 0.8, 0.9]), "AD": np.array([1.0, 1.4])}
    ax = pt.plot_by_stage(groups)
    mean = next(line for line in ax.lines if line.get_marker() == "o")
    assert mean.get_ydata().tolist() == pytest.approx([0.8, 1.2])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["CN\n3", "AD\n2"]


def test_the_line_through_scores_is_least_squares_without_the_gaps():
    d, s = RNG(0).uniform(0.6, 2, 50), np.empty(50)
    s[:] = 3 + 10 * d
    s[::7] = np.nan
    ax = pt.plot_score(d, s, np.repeat(["a", "b"], 25), ["a", "b"], label="points")
    line = ax.lines[-1]
    np.testing.assert_allclose(np.polyfit(line.get_xdata(), line.get_ydata(), 1), [10, 3])


def test_bars_are_sorted_and_cut():
    values = {"one": np.array([5.0, 50.0, 20.0]), "two": np.array([1.0, 2.0, 3.0])}
    ax = pt.plot_bars(values, ["a", "b", "c"], top=2)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["c", "b"]
    assert sorted(bar.get_width() for bar in ax.patches) == [2.0, 3.0, 20.0, 50.0]


def test_experts_and_their_product_are_densities():
    ax = pt.plot_experts({"a": 1.0}, {"a": 0.5}, joint=(0.8, 0.4472))
    for line in ax.lines:
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(1, abs=0.01)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["prior", "a", "product"]


def test_eigenvalues_are_drawn_over_their_threshold_and_counted():
    ax = pt.plot_eigenvalues({"x": (np.array([4.0, 2.0, 0.5]), 1.0), "y": (np.array([0.2, 0.1]), 0.5)})
    assert ax.lines[0].get_ydata().tolist() == [4.0, 2.0, 0.5] and ax.lines[1].get_ydata().tolist() == [0.4, 0.2]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["x: 2 usable", "y: 0 usable"]


def test_a_strip_prints_its_numbers_and_centres_its_colours():
    ax = pt.plot_strip(np.array([[-2.0, 0.0], [np.nan, 2.0]]), ["r", "s"], ["c", "d"], limit=2.0)
    assert [t.get_text() for t in ax.texts] == ["-2.0", "0.0", "2.0"]
    image = ax.images[0]
    assert image.norm(0.0) == 0.5 and image.cmap(image.norm(-2.0))[2] > 0.3 > image.cmap(image.norm(2.0))[2], "blue is less"
    assert image.cmap(np.ma.masked_invalid([np.nan]))[0].tolist() == list(to_rgba("#DDDDDD"))


def test_the_limit_ignores_one_wild_value():
    values = np.append(RNG(0).standard_normal(999), 100.0)
    assert 2 < pt.signed_limit(values) < 3.5 and pt.signed_limit(np.zeros(5)) == 1
