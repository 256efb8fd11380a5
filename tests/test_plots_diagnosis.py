"""The figures of the chapter on diagnosis draw the numbers they are given, where they should stand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from medvae_lite import plots, plots_diagnosis

INTERVALS = {"volumes": (0.9, 0.85, 0.95), "code": (0.6, 0.5, 0.7), "both": (0.7, 0.6, 0.8)}
KINDS = {"volumes": "by hand", "code": "learned", "both": "by hand"}


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


def named(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def uprights(collection):
    return [path.vertices.tolist() for path in collection.get_paths()]


def test_intervals_stand_in_rows_from_the_top():
    ax = plots_diagnosis.plot_intervals(INTERVALS, label="score")
    assert [text.get_text() for text in ax.get_yticklabels()] == list(INTERVALS)
    np.testing.assert_allclose(ax.get_yticks(), [0, 1, 2])
    bottom, top = ax.get_ylim()
    assert bottom > 2 and top < 0, "the first row is on top"
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [(0.9, 0), (0.6, 1), (0.7, 2)])
    ends = [[[low, row], [high, row]] for row, (_, low, high) in enumerate(INTERVALS.values())]
    np.testing.assert_allclose(uprights(ax.collections[0]), ends)
    assert ax.get_xlabel() == "score"


def test_a_kind_has_a_colour_and_a_mark_of_its_own():
    ax = plots_diagnosis.plot_intervals(INTERVALS, kinds=KINDS)
    drawn = named(ax)
    np.testing.assert_allclose(drawn["by hand"], [(0.9, 0), (0.7, 2)])
    np.testing.assert_allclose(drawn["learned"], [(0.6, 1)])
    assert len({line.get_color() for line in ax.lines}) == len({line.get_marker() for line in ax.lines}) == 2


def test_chance_is_shaded_from_its_smallest_to_its_largest_and_the_level_stands():
    ax = plots_diagnosis.plot_intervals(INTERVALS, chance=[0.2, 0.1, 0.3], level=0.5)
    box = ax.patches[0].get_bbox()
    assert (box.x0, box.x1) == (0.1, 0.3)
    assert ax.lines[0].get_xdata() == [0.5, 0.5]
    assert not plots_diagnosis.plot_intervals(INTERVALS).patches


def test_every_trial_is_a_dot_and_the_mean_a_bar():
    trials = {"inside": [0.1, 0.2, 0.2, 0.3], "outside": [0.5, 0.7]}
    ax = plots_diagnosis.plot_trials(trials, level=0.2, label="accuracy")
    drawn = named(ax)
    for row, (name, values) in enumerate(trials.items()):
        np.testing.assert_allclose(drawn[name][:, 0], values)
        assert (np.abs(drawn[name][:, 1] - row) < 0.4).all() and len(set(drawn[name][:, 1])) == len(values)
        np.testing.assert_allclose(np.array(uprights(ax.collections[row]))[0, :, 0], np.mean(values))
    assert ax.lines[0].get_xdata() == [0.2, 0.2]
    again = plots_diagnosis.plot_trials(trials, level=0.2)
    np.testing.assert_array_equal(named(again)["inside"], drawn["inside"])


def test_sizes_draw_means_and_ranges_in_order_of_size():
    series = {"code": {200: [0.8, 0.9], 100: [0.7]}, "volumes": {100: [0.9], 200: [0.95]}}
    ax = plots_diagnosis.plot_sizes(series, label="score")
    drawn = named(ax)
    np.testing.assert_allclose(drawn["code"], [(100, 0.7), (200, 0.85)])
    np.testing.assert_allclose(drawn["volumes"], [(100, 0.9), (200, 0.95)])
    np.testing.assert_allclose(uprights(ax.collections[0]), [[[100, 0.7], [100, 0.7]], [[200, 0.8], [200, 0.9]]])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["100", "200"] and ax.get_xscale() == "log"


def test_more_lines_than_colours_stay_apart():
    series = {str(i): {100: [i / 10], 200: [i / 10]} for i in range(7)}
    ax = plots_diagnosis.plot_sizes(series)
    looks = {(line.get_color(), line.get_markerfacecolor()) for line in ax.lines}
    assert len(looks) == 7


def test_confusions_shade_shares_and_write_counts():
    counts = np.array([[9.0, 1.0], [2.0, 2.0]])
    fig = plots_diagnosis.plot_confusions({"a": counts, "b": counts.T}, ["x", "y"])
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    np.testing.assert_allclose(fig.axes[0].images[0].get_array(), [[0.9, 0.1], [0.5, 0.5]])
    np.testing.assert_allclose(fig.axes[1].images[0].get_array(), [[9 / 11, 2 / 11], [1 / 3, 2 / 3]])
    written = {tuple(t.get_position()): t.get_text() for t in fig.axes[0].texts}
    assert written == {(0, 0): "9", (1, 0): "1", (0, 1): "2", (1, 1): "2"}  # x is the column, y the row
    shade = {t.get_text(): t.get_color() for t in fig.axes[0].texts}
    assert shade["9"] == "white" and shade["1"] == plots.INK
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["x", "y"]


def test_less_than_half_a_subject_is_not_written():
    fig = plots_diagnosis.plot_confusions({"a": [[9.6, 0.4], [0.0, 10.0]]}, ["x", "y"])
    assert [t.get_text() for t in fig.axes[0].texts] == ["10", "", "", "10"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: plots_diagnosis.plot_intervals({}), "`intervals` must hold one row or more, got none"),
        (
            lambda: plots_diagnosis.plot_intervals({"code": (0.9, 0.5, 0.7)}),
            "the interval of 'code' must hold its value, got 0.9 in 0.5 to 0.7",
        ),
        (
            lambda: plots_diagnosis.plot_confusions({"a": np.ones((2, 3))}, ["x", "y"]),
            r"'a' must be 2 by 2, one row a group, got shape \(2, 3\)",
        ),
        (
            lambda: plots_diagnosis.plot_confusions({"a": [[1, 0], [0, 0]]}, ["x", "y"]),
            "'a' must count a subject of every group, got none of y",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
    assert not plt.get_fignums(), "a refused figure must not stay open"


def test_no_setting_leaks():
    before = dict(plt.rcParams)
    ax = plots_diagnosis.plot_intervals(INTERVALS)
    assert dict(plt.rcParams) == before
    assert ax.figure.get_facecolor()[3] == 1
