"""The figures of the chapter on walks draw the numbers they are given, where they should stand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from medvae_lite import plots_walks


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


def test_asked_draws_means_bands_and_the_diagonal():
    asked = np.array([[50.0, 100, 150], [10, 20, 30]])
    found = np.arange(2 * 4 * 3, dtype=float).reshape(2, 4, 3)
    fig = plots_walks.plot_asked(asked, {"a": found, "b": found + 1}, ["LVEDV", "RVESV"])
    panels = [ax for ax in fig.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["LVEDV", "RVESV"]
    for k, ax in enumerate(panels):
        diagonal, a, b = (line.get_xydata() for line in ax.lines)
        np.testing.assert_array_equal(diagonal, np.repeat(asked[k][[0, -1]], 2).reshape(2, 2))
        np.testing.assert_array_equal(a, np.stack([asked[k], found[k].mean(0)], axis=1))
        np.testing.assert_array_equal(b[:, 1], found[k].mean(0) + 1)
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert np.isclose(band.min(), np.quantile(found[k], 0.1, axis=0).min())
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b"]


def test_talk_writes_every_number_under_its_title():
    talk = {"in the cohort": np.array([[1, 0.25], [0.25, 1]]), "model": np.array([[0.5, -0.4], [0, 12.0]])}
    fig = plots_walks.plot_talk(talk, ["LVEDV", "MYOEDV"])
    assert [ax.get_title() for ax in fig.axes] == list(talk)
    written = [[text.get_text() for text in ax.texts] for ax in fig.axes]
    assert written == [["1.00", "0.25", "0.25", "1.00"], ["0.50", "-0.40", "0.00", "9.00"]]


def test_codes_are_densities_beside_the_prior():
    z = np.random.default_rng(0).normal([0, 1], [1, 3], (4000, 2))
    fig = plots_walks.plot_codes({"model": z}, ["LVEDV", "RVEDV"])
    for k, ax in enumerate(ax for ax in fig.axes if ax.get_title()):
        x, prior = ax.lines[0].get_xydata().T
        np.testing.assert_allclose(prior, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))
        heights, edges, _ = next(p for p in ax.patches if type(p).__name__ == "StepPatch").get_data()
        assert np.isclose((heights * np.diff(edges)).sum(), 1)
        centres = (edges[1:] + edges[:-1]) / 2
        assert np.average(centres, weights=heights) == pytest.approx(z[:, k].mean(), abs=0.05)
