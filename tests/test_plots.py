"""Figures show the data they are given: same values, same grey scale, readable on any page."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from medvae_lite import plots

NAMES = ("LVEDV", "RVEDV", "MYOEDV", "LVESV")


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def label_map():
    """A disc of LV in a ring of myocardium, with an RV to its left."""
    y, x = np.mgrid[:32, :32] - 15.5
    radius = np.hypot(x, y)
    return np.select([radius < 5, radius < 8, np.hypot(x + 8, y) < 7], [1, 2, 3], 0).astype(np.uint8)


def shown(fig):
    """The image arrays of a figure, in drawing order."""
    return [np.asarray(image.get_array()) for ax in fig.axes for image in ax.images]


def contrast(a, b):
    """WCAG contrast ratio of two colours."""
    rgb = np.array([to_rgb(a), to_rgb(b)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return high / low


@pytest.mark.parametrize("kind", ["array", "tensor with gradient", "channel axis", "list", "float16"])
def test_grid_draws_the_very_values_on_one_grey_scale(kind, rng):
    images = rng.uniform(0.3, 0.6, (2, 3, 8, 8)).astype(np.float32)
    given = {
        "array": images, "tensor with gradient": torch.tensor(images, requires_grad=True),
        "channel axis": torch.tensor(images)[:, :, None], "list": [list(row) for row in images],
        "float16": images.astype(np.float16),
    }[kind]  # fmt: skip
    fig = plots.plot_grid(given, ["a", "b"], ["x", "y", "z"])
    rounding = 3e-4 if kind == "float16" else 0
    np.testing.assert_allclose(np.stack(shown(fig)), images.reshape(6, 8, 8), atol=rounding)
    drawn = [image for ax in fig.axes for image in ax.images]
    assert {image.get_clim() for image in drawn} == {(0, 1)}
    assert {image.get_interpolation() for image in drawn} == {"nearest"}
    assert [ax.get_ylabel() for ax in fig.axes[::3]] == ["a", "b"]
    assert [ax.get_title() for ax in fig.axes[:3]] == ["x", "y", "z"]


def test_pixels_reach_the_canvas_unscaled():
    """A dim image stays dim on the canvas: no automatic stretch anywhere."""
    fig = plots.plot_grid(np.full((1, 1, 8, 8), 0.25))
    fig.canvas.draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2, :3]
    assert np.abs(middle.astype(int) - round(0.25 * 255)).max() <= 1


def test_grid_refuses_shapes_and_titles_that_disagree(rng):
    with pytest.raises(ValueError, match=r"`images\[0\]` must have 3 axes, got shape \(8, 8\)"):
        plots.plot_grid(rng.random((2, 8, 8)))
    with pytest.raises(ValueError, match="`row_titles` must name 2, got 1"):
        plots.plot_grid(rng.random((2, 3, 8, 8)), ["only one"])
    assert not plt.get_fignums(), "a refused figure must not stay open"


def test_outlines_lie_on_the_borders(label_map):
    fig, ax = plt.subplots()
    assert plots.plot_outlines(ax, label_map) is ax
    found = {c.get_label(): np.concatenate([p.vertices for p in c.get_paths()]) for c in ax.collections}
    assert list(found) == list(plots.OUTLINES)
    for name, radius in (("LV", 5), ("myocardium", 8)):
        distance = np.hypot(*(found[name] - 15.5).T)
        assert np.abs(distance - radius).max() < 1, name
    assert found["RV"][:, 0].max() < 15.5


def test_outlines_leave_out_absent_labels(label_map):
    _, ax = plt.subplots()
    plots.plot_outlines(ax, np.where(label_map == 3, 0, label_map))
    assert [c.get_label() for c in ax.collections] == ["LV", "myocardium"]
    _, ax = plt.subplots()
    assert not plots.plot_outlines(ax, np.zeros_like(label_map)).collections


def test_frames(label_map, rng):
    image = rng.random((2, 32, 32))
    fig = plots.plot_frames(image, np.stack([label_map, label_map]))
    np.testing.assert_allclose(np.stack(shown(fig)), image, rtol=1e-6)
    assert [ax.get_title() for ax in fig.axes] == ["ED", "ES"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["LV", "myocardium", "RV"]
    assert not plots.plot_frames(image).legends


def test_reconstructions_with_and_without_a_box(rng):
    x, x_hat = rng.random((2, 4, 2, 16, 16))
    fig = plots.plot_reconstructions(x, {"VAE": x_hat}, frame=1)
    np.testing.assert_allclose(np.stack(shown(fig)), np.concatenate([x[:, 1], x_hat[:, 1]]), rtol=1e-6)
    fig = plots.plot_reconstructions(x, {"VAE": x_hat}, box=(2, 5, 6))
    arrays = shown(fig)
    np.testing.assert_allclose(arrays[0], x[0, 0], rtol=1e-6)
    np.testing.assert_allclose(arrays[4], x[0, 0, 2:8, 5:11], rtol=1e-6)
    np.testing.assert_allclose(arrays[-1], x_hat[3, 0, 2:8, 5:11], rtol=1e-6)
    assert fig.axes[0].patches[0].get_bbox().bounds == (4.5, 1.5, 6, 6)


def test_walk_names_the_values(rng):
    images = rng.random((3, 2, 8, 8))
    fig = plots.plot_walk(images, [-2, 0, 2], "LVEDV")
    assert [ax.get_title() for ax in fig.axes[:3]] == ["-2.0", "+0.0", "+2.0"]
    assert [fig.axes[i].get_ylabel() for i in (0, 3)] == ["LVEDV, ED", "LVEDV, ES"]
    np.testing.assert_allclose(shown(fig)[4], images[1, 1], rtol=1e-6)


def test_lines_hold_the_data(rng):
    epochs = pd.DataFrame({"step": [10, 20, 30], "kl": [3.0, 2.0, 1.0], "recon": [9.0, 8.0, 7.0]})
    ax = plots.plot_curves(epochs, {"kl": "KL, nats", "recon": "error"})
    assert [line.get_label() for line in ax.lines] == ["KL, nats", "error"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), epochs[["step", "kl"]])
    assert len({line.get_linestyle() for line in ax.lines}) == 2, "colour must not be the only cue"
    frequency, power = np.linspace(0, 0.5, 5), rng.random((7, 5))
    vae = torch.tensor(frequency), torch.tensor(power[0])
    ax = plots.plot_spectrum({"input": (frequency, power), "VAE": vae})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), power.mean(0))
    np.testing.assert_allclose(ax.lines[1].get_xydata(), np.stack([frequency, power[0]], 1))
    assert ax.get_yscale() == "log" and "cycles per pixel" in ax.get_xlabel()


def test_order_says_the_rank_correlation(rng):
    z = rng.standard_normal(50)
    ax = plots.plot_order(z, np.exp(z) * 100, "LVEDV")
    assert ax.get_title() == "Spearman ρ = 1.00" and ax.get_ylabel() == "LVEDV, mL"
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.stack([z, np.exp(z) * 100], 1))


def test_correlation_writes_its_numbers():
    matrix = np.array([[1.0, -0.42], [-0.004, 1.0]])
    ax = plots.plot_correlation(matrix, ["a", "b"], ["c", "d"])
    assert [text.get_text() for text in ax.texts] == ["1.00", "-0.42", "0.00", "1.00"]
    assert ax.images[0].get_clim() == (-1, 1)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["c", "d"]
    for text in ax.texts:
        row, col = (int(v) for v in text.get_position()[::-1])
        cell = ax.images[0].cmap(ax.images[0].norm(matrix[row, col]))
        assert contrast(text.get_color(), cell) > 4.5


def test_attributes(rng):
    values = rng.normal([150, 160, 120, 90], 30, (200, 4)).clip(20)
    fig = plots.plot_attributes(values, NAMES)
    counts = [sum(bar.get_height() for bar in ax.patches) for ax in fig.axes[:4]]
    assert counts == [200] * 4, "every subject is in a bar"
    mean, sd = values[:, 0].mean(), values[:, 0].std(ddof=1)
    assert fig.axes[0].get_title() == f"LVEDV: {mean:.0f} ± {sd:.0f} mL"


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.plot_order([0, 1, 2], [1, 2, 3], "a", ax=ax),
        lambda ax: plots.plot_correlation(np.eye(2), ["a", "b"], ax=ax),
        lambda ax: plots.plot_spectrum({"a": ([0, 0.5], [1, 2])}, ax=ax),
        lambda ax: plots.plot_curves(pd.DataFrame({"step": [0, 1], "a": [0, 1]}), ["a"], ax=ax),
    ],
)
def test_given_axes_are_used_and_no_figure_or_setting_leaks(draw):
    _, ax = plt.subplots()
    before = dict(matplotlib.rcParams)
    assert draw(ax) is ax
    assert len(plt.get_fignums()) == 1
    assert dict(matplotlib.rcParams) == before
    draw(None)
    assert len(plt.get_fignums()) == 2


def test_style_leaves_the_backend_alone():
    """A notebook's backend turns `interactive` on with its first figure: reset, it would hide all later ones."""
    before = matplotlib.rcParams["interactive"]
    try:
        with plots.style():
            matplotlib.interactive(not before)
        assert matplotlib.is_interactive() is not before
    finally:
        matplotlib.interactive(before)


def test_sign_takes_axes_and_figures():
    ax = plots.plot_order([0, 1, 2], [1, 2, 3], "a")
    plots.sign(ax, "profile smoke")
    plots.sign(ax.figure, "again")
    assert [text.get_text() for text in ax.figure.texts] == ["profile smoke", "again"]


def test_readable_on_light_and_dark_pages():
    fig = plots.plot_order([0, 1, 2], [1, 2, 3], "a").figure
    face = fig.get_facecolor()
    assert face[3] == 1, "the figure brings its own background"
    assert contrast(plots.INK, face) > 7
    assert min(contrast(colour, face) for colour in plots.COLOURS) >= 3
    # Outlines are bright with a black halo: one of the two stands out from any grey value.
    for grey in np.linspace(0, 1, 11):
        for colour in plots.OUTLINES.values():
            assert max(contrast(colour, [grey] * 3), contrast("black", [grey] * 3)) >= 3, grey
