"""The sheet of one person: everything given is drawn, on one scale."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from data_prep import brain_atlas
from data_prep.region_names import CORTICAL, HIPPOCAMPAL, POSTER, SUBCORTICAL
from medvae_lite.plots_maps import plot_deviation_map


@pytest.fixture(scope="module")
def atlas():
    return brain_atlas.load_atlas()


def printed(fig):
    return sorted(float(t.get_text()) for ax in fig.axes for t in ax.texts if t.get_text().replace(".", "").replace("-", "").isdigit())


def test_what_no_atlas_draws_is_in_the_strips(atlas):
    values = {name: round(0.1 * k - 3, 1) for k, name in enumerate(n for names in POSTER.values() for n in names)}
    fig = plot_deviation_map(values, atlas)
    strips = [name for name in values if name in HIPPOCAMPAL or name in SUBCORTICAL[-9:-7] + ("CSF", "3rd-Ventricle")]
    shown = printed(fig)
    for name in strips:
        if name != "Brain-Stem":
            assert any(abs(values[name] - v) < 0.051 for v in shown), name
    plt.close(fig)


def test_one_scale_for_all_panels_symmetric_about_zero(atlas):
    fig = plot_deviation_map({"lh_entorhinal": -4.0, "Left-Hippocampus": 1.0, "lh_CA1": 0.5}, atlas)
    bars = [ax for ax in fig.axes if ax.get_ylabel() == "deviation, z"]
    assert len(bars) == 1 and bars[0].get_ylim() == (-4, 4)
    plt.close(fig)


def test_thickness_is_drawn_where_there_is_no_volume(atlas):
    fig = plot_deviation_map({f"{name}_thickness": -1.0 for name in CORTICAL}, atlas)
    images = [np.asarray(image.get_array()) for ax in fig.axes for image in ax.images]
    assert any((image[..., 2] > image[..., 0] + 0.1).any() for image in images if image.ndim == 3), "blue: less"
    plt.close(fig)


def test_nothing_to_draw_is_refused(atlas):
    with pytest.raises(ValueError, match="must hold a region or more"):
        plot_deviation_map({}, atlas)
