"""The result figures show the scores and pixels they are given, all of them and nothing else."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from medvae_lite import plots_results

SCORES = {"both": {"a": [0.1, 0.4, 0.2], "b": [0.5]}, "alone": {"a": [0.3, 0.3], "b": [0.9, 0.7]}}


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


def spans(ax, which):
    """Where every line of the ranges (0) or of the seeds' ticks (1) begins and ends across; they are drawn in turn."""
    return [tuple(segment[:, 0]) for lines in ax.collections[which::2] for segment in lines.get_segments()]


def test_seeds_mark_mean_range_and_every_seed():
    ax = plots_results.plot_seeds(SCORES, label="score")
    means = [line.get_xdata()[0] for line in ax.lines if line.get_marker() != "None"]
    np.testing.assert_allclose(means, [0.7 / 3, 0.5, 0.3, 0.8])
    np.testing.assert_allclose(spans(ax, 0), [(0.1, 0.4), (0.5, 0.5), (0.3, 0.3), (0.7, 0.9)])
    np.testing.assert_allclose([ends[0] for ends in spans(ax, 1)], [0.1, 0.4, 0.2, 0.5, 0.3, 0.3, 0.9, 0.7])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_legend_handles_labels()[1] == ["both", "alone"], "a series is named once"
    assert ax.get_ylim() == (1.5, -0.5), "the first model is on top"


def test_seeds_tell_series_apart_without_colour():
    ax = plots_results.plot_seeds(SCORES)
    marks = {line.get_marker() for line in ax.lines} - {"None"}
    assert len(marks) == len(SCORES)


def test_a_model_stays_in_its_row_when_a_series_lacks_it():
    ax = plots_results.plot_seeds({"both": {"a": [1.0], "b": [2.0]}, "alone": {"b": [3.0]}})
    heights = {float(line.get_xdata()[0]): line.get_ydata()[0] for line in ax.lines if line.get_marker() != "None"}
    assert abs(heights[1.0]) < 0.5 and abs(heights[3.0] - 1) < 0.5
    assert ax.get_legend_handles_labels()[1] == ["both", "alone"]


def test_seeds_refuse_a_model_without_scores():
    with pytest.raises(ValueError, match=r"`scores` must hold one value or more of 'a' in 'both', got none"):
        plots_results.plot_seeds({"both": {"a": []}})


def test_path_joins_the_means_in_the_order_given():
    points = {"m": {"0": ([1.0, 3.0], [0.1, 0.3]), "5": ([4.0], [0.9]), "2": ([0.0], [0.5])}}
    ax = plots_results.plot_path(points, labels=("error", "score"))
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [2.0, 4.0, 0.0])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.2, 0.9, 0.5])
    assert [text.get_text() for text in ax.texts] == ["0", "5", "2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("error", "score")
    across, up = (lines.get_segments()[0] for lines in ax.collections[:2])
    np.testing.assert_allclose(across, [[1.0, 0.2], [3.0, 0.2]])
    np.testing.assert_allclose(up, [[2.0, 0.1], [2.0, 0.3]])


@pytest.mark.parametrize("side", [4, 5, 8])
def test_zoom_holds_the_very_pixels_of_the_square(side):
    rng = np.random.default_rng(0)
    x, x_hat = (torch.tensor(rng.uniform(0.2, 0.7, (2, 2, 8, 8)).astype(np.float32)) for _ in range(2))
    top, left = 8 - side, (8 - side) // 2
    fig = plots_results.plot_zoomed({"input": x, "model": x_hat}, (top, left, side), subjects=("A", "B"))
    shown = [np.asarray(ax.images[0].get_array()) for ax in fig.axes]
    assert len(shown) == 2 * 2 * 2 * 2
    whole, heart = shown[8 + 2], shown[8 + 3]  # model, subject A, ES
    np.testing.assert_array_equal(whole, x_hat[0, 1].numpy())
    square = x_hat[0, 1].numpy()[top : top + side, left : left + side]
    rows = np.floor(np.arange(8) * side / 8).astype(int)
    np.testing.assert_array_equal(heart, square[rows][:, rows])
    assert [ax.get_title() for ax in fig.axes[:4]] == ["A, ED", "heart", "A, ES", "heart"]
    assert {image.get_clim() for ax in fig.axes for image in ax.images} == {(0, 1)}


def test_zoom_marks_the_square_in_the_first_row_only():
    fig = plots_results.plot_zoomed({"input": np.zeros((1, 2, 8, 8)), "model": np.zeros((1, 2, 8, 8))}, (1, 2, 4))
    marked = [bool(ax.patches) for ax in fig.axes]
    assert marked == [True, False, True, False, False, False, False, False]
    assert fig.axes[0].patches[0].get_bbox().bounds == (1.5, 0.5, 4, 4)


@pytest.mark.parametrize(
    "box, names, sentence",
    [
        ((5, 0, 4), None, r"`box` must lie inside 8 x 8 pixels as \(top, left, side\), got \(5, 0, 4\)"),
        ((0, 0, 0), None, "`box` must lie inside"),
        ((0, 0, 4), ("A", "B"), "`frames` and `subjects` must name 2 and 1"),
    ],
)
def test_zoom_refuses_what_does_not_fit(box, names, sentence):
    with pytest.raises(ValueError, match=sentence):
        plots_results.plot_zoomed({"input": np.zeros((1, 2, 8, 8))}, box, subjects=names)
