"""The figure of effects draws the differences it is given, and marks what lies beyond the band and nothing else."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from medvae_lite import plots, plots_objectives

EFFECTS = {
    "KL": {"strong": [5.0, 6.0, 9.0], "mixed": [-3.0, 1.0, 2.5], "down": [-4.0, -2.5, -3.0]},
    "SCC": {"strong": [0.0, 0.0, 0.0], "mixed": [0.2, 0.1, 0.3], "down": [0.5, -0.5, 0.0]},
}
BANDS = {"KL": 2.0, "SCC": 0.15}


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


def marks(ax, kind):
    """Positions (x, row) of the markers of one kind."""
    return sorted(tuple(map(float, line.get_xydata()[0])) for line in ax.lines if line.get_marker() == kind)


def test_the_band_is_the_largest_difference_between_two_seeds():
    rng = np.random.default_rng(0)
    for scores in ([1.0], [3.0, 1.0], rng.normal(size=5)):
        pairs = [abs(a - b) for a in scores for b in scores]
        assert plots_objectives.seed_band(scores) == pytest.approx(max(pairs))


@pytest.mark.parametrize(
    ("differences", "clear"),
    [([3, 4, 5], True), ([-3, -4, -5], True), ([3, 4, 2], False), ([3, -4, 5], False), ([2.01], True), ([0], False)],
)
def test_beyond_asks_every_seed_and_one_side(differences, clear):
    assert plots_objectives.beyond(differences, 2.0) is clear


def test_every_seed_and_every_mean_is_drawn():
    fig = plots_objectives.plot_effects(EFFECTS, BANDS)
    assert len(fig.axes) == 2
    for ax, (score, rows) in zip(fig.axes, EFFECTS.items()):
        seeds = [line.get_xydata() for line in ax.lines if line.get_marker() == "|"]
        np.testing.assert_allclose(seeds, [[(v, row) for v in values] for row, values in enumerate(rows.values())])
        ranges = [path.vertices for lines in ax.collections for path in lines.get_paths()]
        ends = [[(min(v), row), (max(v), row)] for row, v in enumerate(rows.values())]
        np.testing.assert_allclose(ranges, ends)
        drawn = sorted(marks(ax, "s") + marks(ax, "o"), key=lambda point: point[1])
        np.testing.assert_allclose(drawn, [(np.mean(v), row) for row, v in enumerate(rows.values())])
        band = ax.patches[0].get_bbox()
        assert (band.x0, band.x1) == (-BANDS[score], BANDS[score])
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == list(EFFECTS["KL"])
    top, bottom = (fig.axes[0].transData.transform((0, row))[1] for row in (0, 2))
    assert top > bottom, "the first change stands on top"


def test_what_lies_beyond_differs_in_colour_and_in_shape():
    ax = plots_objectives.plot_effects(EFFECTS, BANDS).axes[0]
    assert [row for _, row in marks(ax, "s")] == [2, 0] and [row for _, row in marks(ax, "o")] == [1]
    full, open_ = (next(line for line in ax.lines if line.get_marker() == kind) for kind in "so")
    assert full.get_color() != open_.get_color() and open_.get_markerfacecolor() == "white"
    assert [row for _, row in marks(plots_objectives.plot_effects(EFFECTS, BANDS).axes[1], "s")] == []


def test_arrows_say_what_is_better():
    fig = plots_objectives.plot_effects(EFFECTS, BANDS, better={"KL": -1, "SCC": 1})
    assert ["←" in ax.get_title() for ax in fig.axes] == [True, False]
    assert ["→" in ax.get_title() for ax in fig.axes] == [False, True]
    assert plots_objectives.plot_effects(EFFECTS, BANDS).axes[0].get_title() == "KL"


def test_a_mean_beyond_the_limit_stands_at_the_edge_with_its_value():
    ax = plots_objectives.plot_effects(EFFECTS, BANDS, limits={"KL": 3.0}).axes[0]
    assert marks(ax, ">") == [(3.0, 0.0)] and marks(ax, "<") == [(-3.0, 2.0)]
    assert [text.get_text() for text in ax.texts] == ["+6.7", "−3.2"]
    assert [row for _, row in marks(ax, "s") + marks(ax, "o")] == [1]
    assert ax.get_xlim()[1] > 3


def test_a_line_sets_the_last_rows_apart():
    ax = plots_objectives.plot_effects(EFFECTS, BANDS, last=1).axes[0]
    heights = [set(line.get_ydata()) for line in ax.lines if line.get_linestyle() == ":"]
    assert heights == [{1.5}]


def test_panels_left_over_are_not_drawn():
    fig = plots_objectives.plot_effects({f"m{i}": EFFECTS["KL"] for i in range(4)}, {f"m{i}": 1.0 for i in range(4)})
    assert len(fig.axes) == 4 and len(plt.get_fignums()) == 1


@pytest.mark.parametrize(
    ("effects", "bands", "sentence"),
    [
        ({"KL": {"a": [1.0]}, "SCC": {"b": [1.0]}}, BANDS, "`effects` must hold the same changes for every score, 'SCC'"),
        (EFFECTS, {"KL": 1.0}, "`bands` must hold every score of `effects`, 'SCC' is missing"),
        ({"KL": {"a": []}}, BANDS, r"`effects` must hold one finite number or more, one a seed, got \[\]"),
        ({"KL": {"a": [float("nan")]}}, BANDS, "`effects` must hold one finite number or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused(effects, bands, sentence):
    with pytest.raises(ValueError, match=sentence):
        plots_objectives.plot_effects(effects, bands)
    assert not plt.get_fignums(), "a refused figure must not stay open"


def test_no_setting_leaks():
    before = dict(plt.rcParams)
    fig = plots_objectives.plot_effects(EFFECTS, BANDS)
    assert dict(plt.rcParams) == before
    assert fig.get_facecolor()[3] == 1 and plots.STYLE["axes.facecolor"] == "white"
