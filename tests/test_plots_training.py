"""The figures of the chapter on failures draw the numbers they are given, where they should stand."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from medvae_lite import plots, plots_training, repulsion


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


def named(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_verdicts_draw_both_columns_on_one_scale():
    runs = {
        name: pd.DataFrame({"step": [10, 20], "encoder_kl": [a, a + 1], "encoder_kl_fake": [b, b + 1]})
        for name, (a, b) in {"dead": (30.0, 20.0), "strong": (40.0, 4000.0)}.items()
    }
    fig = plots_training.plot_verdicts(runs)
    assert [ax.get_title() for ax in fig.axes] == ["dead", "strong"]
    for ax, epochs in zip(fig.axes, runs.values()):
        drawn = named(ax)
        np.testing.assert_array_equal(drawn["real images"], epochs[["step", "encoder_kl"]])
        np.testing.assert_array_equal(drawn["generated"], epochs[["step", "encoder_kl_fake"]])
        assert ax.get_yscale() == "log" and ax.get_ylim() == fig.axes[0].get_ylim()


def test_dots_of_the_balance_stand_where_push_and_pull_are_equal():
    pull, values = 0.5 / 2048, 2048
    ax = plots_training.plot_balance([0.02, 0.1, 1.0], pull, rate=40.0)
    dots = [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    expected = [(float(repulsion.settled_kl(r, beta_kl=0.5, values=values)), pull) for r in (0.02, 0.1, 1.0)]
    np.testing.assert_allclose(dots, expected)
    curve = named(ax)["push, r = 0.1"]
    np.testing.assert_allclose(curve[:, 1], 0.05 * np.exp(-0.1 * curve[:, 0]))
    assert named(ax)["without a push"][0, 0] == 40.0


def test_a_crossing_out_of_sight_has_no_dot():
    ax = plots_training.plot_balance([0.001], 0.5 / 2048, limit=100.0)
    assert not [line for line in ax.lines if line.get_marker() == "o"]


def test_settled_draws_marks_and_lines():
    r = np.array([0.1, 0.2])
    ax = plots_training.plot_settled({"last": (r, [70, 40]), "first": (r, [60, 45])}, {"κ = 1": (r, 5 / r)}, rate=41.0)
    drawn = named(ax)
    np.testing.assert_allclose(drawn["last"], [(0.1, 70), (0.2, 40)])
    np.testing.assert_allclose(drawn["κ = 1"], [(0.1, 50), (0.2, 25)])
    faces = {line.get_label(): line.get_markerfacecolor() for line in ax.lines}
    assert faces["last"] != "white" and faces["first"] == "white"
    assert drawn["real images, no adversary"][0, 1] == 41.0
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_window_draws_means_ranges_and_window_in_order_of_reach():
    points = {"small": {8.0: [1.0, 3.0], 2.0: [4.0]}, "large": {4.0: [0.5]}}
    ax = plots_training.plot_window(points, window=(2.0, 8.0), level=1.0, label="score")
    drawn = named(ax)
    np.testing.assert_allclose(drawn["small"], [(2.0, 4.0), (8.0, 2.0)])
    np.testing.assert_allclose(drawn["large"], [(4.0, 0.5)])
    ranges = [path.vertices.tolist() for path in ax.collections[0].get_paths()]
    assert ranges == [[[2.0, 4.0], [2.0, 4.0]], [[8.0, 1.0], [8.0, 3.0]]]
    box = ax.patches[0].get_bbox()
    assert (box.x0, box.x1) == (2.0, 8.0)
    looks = {(line.get_color(), line.get_marker()) for line in ax.lines if line.get_label() in points}
    assert len(looks) == 2


def test_difference_is_the_second_minus_the_first_on_a_scale_about_zero():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3, 4, 4))
    fig = plots_training.plot_difference(first, second, ("train", "eval"), limit=0.4)
    images = [ax.images[0] for ax in fig.axes if ax.images]
    shown = np.array([image.get_array() for image in images[:9]]).reshape(3, 3, 4, 4)
    np.testing.assert_allclose(shown, [first, second, second - first], atol=1e-6)
    assert {image.get_clim() for image in images[:6]} == {(0, 1)} and {i.get_clim() for i in images[6:9]} == {(-0.4, 0.4)}
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()] == ["train", "eval", "difference"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: plots_training.plot_window({"a": {4.0: []}}), "`points` must hold one score or more of 'a' at 4"),
        (lambda: plots_training.plot_window({}, window=(8.0, 2.0)), "`window` must be two positive numbers"),
        (
            lambda: plots_training.plot_difference(np.zeros((2, 4, 4)), np.zeros((3, 4, 4))),
            r"`first` and `second` must both have shape \(B, H, W\), got \(2, 4, 4\) and \(3, 4, 4\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
    assert not plt.get_fignums(), "a refused figure must not stay open"


def test_no_setting_leaks():
    before = dict(plt.rcParams)
    ax = plots_training.plot_balance([0.1], 0.5 / 2048)
    assert dict(plt.rcParams) == before
    assert ax.figure.get_facecolor()[3] == 1 and plots.STYLE["axes.facecolor"] == "white"
