"""Two brains mixed by layer: the figure against the edits of the package, its network against the figure, its script against both."""

import base64
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from data_prep.brain_phantom import prepare
from medvae_lite import brains, edits, widgets
from medvae_lite.export import SMALL, LayeredDecoder, normal, uniform
from medvae_lite.gaussian import Gaussian
from medvae_lite.hvae import HVAE, Latent
from medvae_lite.losses import Step
from medvae_lite.widgets import live

PRIORS = ("vae", "nvae", "nvmp")
BRIGHT = 1.0
NODE = shutil.which("node")
every_prior = pytest.mark.parametrize("prior", PRIORS)
every_mode = pytest.mark.parametrize("mode", ["residual", "absolute"])


def hierarchy(prior, size=(32, 32), **settings):
    """A small model with random heads: priors move, posteriors differ, and the layers are heard in the image."""
    torch.manual_seed(0)
    made = HVAE(size=size, prior=prior, widths=(4, 6, 8, 8, 8), components=5, **settings)
    with torch.no_grad():
        for head in [*made.p_heads, *made.q_heads]:
            torch.nn.init.normal_(head[-1].weight, std=0.2)
        if "nvmp" in prior:
            made.pseudo_inputs.mul_(30)  # far apart: which component is drawn from shows
    return made.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return brains.load(prepare(tmp_path_factory.mktemp("brains") / "ms", subjects=15, slices=3, size=32))


@pytest.fixture(scope="module")
def models():
    return {prior: hierarchy(prior) for prior in PRIORS}


ROWS = [0, 7, 21, 40]


@pytest.fixture(scope="module")
def figure(models, data):
    return widgets.LayerMixing(models, data, ROWS, list("abcd"), bright=BRIGHT)


def whole_ways(model, data):
    with torch.no_grad():
        return [model.infer(data.image(np.array([row])))[1] for row in ROWS]


def grey(data, image):
    return data.grey(image)[0, 0].numpy()


def test_it_starts_with_the_last_persons_taught_layer_in_the_first_person(figure, models, data):
    ways = whole_ways(models["vae"], data)
    shown = figure.image()
    assert shown.shape == (3, 32, 32) and shown.min() >= 0 and shown.max() <= 1
    expected = edits.mix(models["vae"], ways[0], ways[3], [2])
    assert np.abs(shown[2] - grey(data, expected)).max() < 1e-5
    for pane, row in zip(shown, (ROWS[0], ROWS[3])):
        assert (pane == grey(data, data.image(np.array([row])))).all()


@every_mode
@every_prior
def test_mixing_is_that_of_the_package(figure, models, data, prior, mode):
    ways = whole_ways(models[prior], data)
    for layers in ([], [0], [3], [0, 2, 4], [0, 1, 2, 3, 4]):
        state = {f"layer{n}": "B" if n in layers else "A" for n in range(5)}
        shown = figure.image(model=prior, kept=mode, a=1, b=2, **state)[2]
        assert np.abs(shown - grey(data, edits.mix(models[prior], ways[1], ways[2], layers, mode=mode))).max() < 1e-5


@every_mode
@every_prior
def test_scaling_is_that_of_the_package(figure, models, data, prior, mode):
    ways = whole_ways(models[prior], data)
    for layer, factor in ((0, -1.0), (1, 2.5), (2, 0.0), (4, 3.0)):
        shown = figure.image(model=prior, kept=mode, a=2, layer2="A", **{f"scale{layer}": factor})[2]
        assert np.abs(shown - grey(data, edits.scale(models[prior], ways[2], layer, factor, mode=mode))).max() < 1e-5


class Told(Step):
    """A step whose noise is said beforehand."""

    def noise(self, *shape):
        return next(n for n in self.said if n.shape == shape)


@every_mode
@every_prior
@pytest.mark.parametrize("layers", [[2], [0], [0, 1, 2, 3, 4]])
def test_drawing_anew_is_that_of_the_package(figure, models, data, monkeypatch, prior, mode, layers):
    model, seed = models[prior], 5
    step = Told(torch.Generator(), torch.device("cpu"))
    object.__setattr__(step, "said", torch.from_numpy(normal(seed, sum(model.dims)))[None].split(model.dims, 1))
    which = int(uniform(seed, sum(model.dims) + 1)[-1] * len(model.top_prior().mu))
    monkeypatch.setattr(torch, "randint", lambda high, shape, **_: torch.full(shape, which))
    expected = edits.resample(model, whole_ways(model, data)[1], layers, step, mode=mode)
    shown = figure.image(model=prior, kept=mode, a=1, seed=seed, **{f"layer{n}": "drawn" if n in layers else "A" for n in range(5)})
    assert np.abs(shown[2] - grey(data, expected)).max() < 1e-5


def test_another_seed_is_another_draw_and_the_same_one_is_not(figure):
    drawn = [figure.image(layer2="drawn", seed=seed)[2] for seed in (0, 1, 0)]
    assert (drawn[0] == drawn[2]).all() and np.abs(drawn[0] - drawn[1]).max() > 1e-3
    assert (figure.image(seed=1)[2] == figure.image()[2]).all(), "nothing is drawn, so the seed says nothing"


def test_every_component_is_drawn_from_about_as_often():
    which = np.array([int(5 * uniform(seed, 1001)[1000]) for seed in range(2000)])
    assert np.abs(np.bincount(which, minlength=5) / 2000 - 0.2).max() < 0.04
    first = np.array([uniform(seed, 1)[0] for seed in range(2000)])
    assert abs(np.corrcoef(which, first)[0, 1]) < 0.07, "the component does not tell the noise"


def test_areas_are_pixels_at_least_as_bright(models, data):
    ways = whole_ways(models["nvae"], data)
    result = edits.mix(models["nvae"], ways[0], ways[3], [2])
    images = [data.image(np.array([ROWS[0]])), data.image(np.array([ROWS[3]])), result]
    for bright in (BRIGHT, float(result.quantile(0.7))):
        one = widgets.LayerMixing({"nvae": models["nvae"]}, data, ROWS, list("abcd"), bright=bright)
        expected = [int((image >= bright).sum()) * data.pixel_mm**2 for image in images]
        assert expected[1] > 0
        assert one.areas() == pytest.approx(expected, abs=1.5 * data.pixel_mm**2), "a pixel at the threshold may fall to either side"


# The network, which a page runs.


def given(figure, state):
    """What a view should feed the network, built here by hand."""
    state, dims = figure.start | state, figure.spec["dims"]
    people, graph = len(figure.spec["people"]), figure.graphs[f"layers{list(figure.models).index(state['model'])}"]
    who, component = np.zeros((5, people)), np.zeros(graph.inputs["component"])
    for n in range(5):
        who[n, state["b"] if state[f"layer{n}"] == "B" else state["a"]] = 1
    component[0, int(uniform(state["seed"], sum(dims) + 1)[-1] * component.shape[1])] = 1
    inputs = {
        "who": who, "noise": normal(state["seed"], sum(dims))[None], "drawn": [float(state[f"layer{n}"] == "drawn") for n in range(5)],
        "factor": [state[f"scale{n}"] for n in range(5)], "relative": [float(state["kept"] == "residual")], "component": component,
    }  # fmt: skip
    return graph, {name: np.asarray(value, np.float32) for name, value in inputs.items()}


STATES = [
    {}, {"kept": "absolute", "layer3": "B", "a": 2}, {"layer0": "drawn", "layer3": "drawn", "seed": 3, "b": 1},
    {"scale1": -1.0, "scale2": 2.5, "kept": "absolute", "layer1": "drawn"}, {"scale0": 2.0, "layer0": "drawn", "kept": "absolute", "seed": 9},
    {f"layer{n}": "drawn" for n in range(5)} | {"seed": 4},
    {f"layer{n}": "drawn" for n in range(5)} | {"kept": "absolute", "scale1": -1.0, "scale2": 3.0, "scale3": 2.0, "seed": 8},
]  # fmt: skip


@every_prior
@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_the_network_draws_what_the_figure_does(figure, data, prior, state):
    graph, inputs = given(figure, {"model": prior, **state})
    image = torch.from_numpy(graph(**inputs)["image"])
    # The tables are rounded to half precision; without them nothing is.
    bound = 1e-5 if all(f"layer{n}" in state for n in range(5)) else 1e-2
    assert np.abs(grey(data, image) - figure.image(model=prior, **state)[2]).max() < bound


@every_prior
def test_with_latents_that_halves_can_hold_the_network_is_the_package_to_the_last_digits(models, data, prior):
    """`edits` on the very tables: a residual is kept as it is where the prior it is measured from is the standard one."""
    model, ways = models[prior], whole_ways(models[prior], data)
    z = [torch.cat([way[n].z for way in ways]).half().float() for n in range(5)]
    kept = [torch.cat([way[n].residual for way in ways]).half().float() for n in range(5)]
    top = model.top_prior()
    decoder = LayeredDecoder(model, torch.cat(z, 1), torch.cat(kept, 1), (top.mu, top.std))

    def way(tables, k):
        return [Latent(t[k : k + 1], Gaussian(torch.zeros_like(t[:1]), torch.zeros_like(t[:1])), None) for t in tables]

    noise, rest = torch.zeros(1, sum(model.dims)), {"component": torch.eye(len(top.mu))[:1], "drawn": torch.zeros(5)}
    for relative, tables in ((1, kept), (0, z)):
        mode = "residual" if relative else "absolute"
        who = torch.eye(4)[[0, 0, 3, 3, 0]]
        with torch.no_grad():
            mixed = decoder(who, noise, factor=torch.ones(5), relative=torch.tensor([float(relative)]), **rest)
            factor = torch.tensor([1, 1, 1, -0.7, 1])
            scaled = decoder(torch.eye(4)[[1] * 5], noise, factor=factor, relative=torch.tensor([float(relative)]), **rest)
        torch.testing.assert_close(mixed, edits.mix(model, way(tables, 0), way(tables, 3), [2, 3], mode=mode), rtol=0, atol=1e-5)
        torch.testing.assert_close(scaled, edits.scale(model, way(tables, 1), 3, -0.7, mode=mode), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def files(figure):
    whole = {(prior, False): graph.onnx(half=False) for prior, graph in zip(PRIORS, figure.graphs.values())}
    return whole | {("nvmp", True): figure.graphs["layers2"].onnx()}


@pytest.mark.parametrize("prior, half, bound", [*((prior, False, 1e-5) for prior in PRIORS), ("nvmp", True, 1e-2)])
def test_the_file_gives_what_the_network_gives(figure, files, prior, half, bound):
    graph = figure.graphs[f"layers{PRIORS.index(prior)}"]
    session = onnxruntime.InferenceSession(files[prior, half], providers=["CPUExecutionProvider"])
    assert {i.name: tuple(i.shape) for i in session.get_inputs()} == graph.inputs, "no input is folded away"
    rng = np.random.default_rng(0)
    for inputs in [graph.draw(rng) for _ in range(6)] + [given(figure, {"model": prior, **state})[1] for state in STATES]:
        image = graph(**inputs)["image"]
        assert np.abs(session.run(None, inputs)[0] - image).max() < bound * np.ptp(image)


def test_the_file_holds_the_way_down_and_the_people_in_halves(files, models):
    held, model = {i.name: i for i in onnx.load_from_string(files["nvmp", True]).graph.initializer}, models["nvmp"]
    large = {name: i for name, i in held.items() if np.prod(i.dims) > SMALL and i.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)}
    assert {i.data_type for i in large.values()} == {onnx.TensorProto.FLOAT16}
    assert not [name for name in held if "up." in name or "q_heads" in name or "lesion" in name], "nobody in a page encodes"
    way = ("p_heads", "merge", "down", "grow", "out", "h0")
    down = sum(weight.numel() for name, weight in model.named_parameters() if name.split(".")[0] in way)
    tables = 2 * len(ROWS) * sum(model.dims) + 2 * 5 * model.dims[0]
    assert tables < sum(int(np.prod(i.dims)) for i in large.values()) <= down + tables


def test_a_file_is_named_after_weights_and_people_and_not_after_last_digits(figure, models, data):
    graph = figure.graphs["layers1"]
    other = widgets.LayerMixing({"nvae": models["nvae"]}, data, ROWS[:3] + [41], list("abcd"), bright=BRIGHT)
    assert graph.file != other.graphs["layers0"].file, "other people"
    assert len({one.file for one in figure.graphs.values()}) == 3, "the same weights under another prior"
    shaken = LayeredDecoder(models["nvae"], graph.module.values * (1 + 1e-3), graph.module.residuals, (graph.module.top_mu, graph.module.top_sd))
    assert replace(graph, module=shaken).file == graph.file


# What a page is told.


def test_stored_pictures_are_the_figures_own(figure):
    assert list(figure.axes) == ["b", *(f"scale{n}" for n in range(5)), *(f"layer{n}" for n in range(5))]
    sheet = figure.sheet()
    assert sheet.shape == (32 * 12, 3 * 32 * 9)
    row = list(figure.axes).index("layer3")
    column = figure.axes["layer3"].index("drawn")
    assert (sheet[32 * row : 32 * (row + 1), 96 * column : 96 * (column + 1)] == figure.tile({"layer3": "drawn"})).all()
    assert all(1.0 in figure.axes[f"scale{n}"] for n in range(5)), "the start is among them"


def test_the_page_carries_no_more_than_it_shows(figure):
    html = figure.page()
    assert len(html) < 40_000 and "layers.js" not in html
    assert figure.start["model"] == "vae" and figure.spec["exchanged"] == 2
    assert list(figure.graphs) == ["layers0", "layers1", "layers2"], "the first is the one a page loads"


def test_what_does_not_fit_is_refused(figure, models, data):
    def made(models=models, rows=ROWS, people=list("abcd"), bright=BRIGHT, **more):
        return widgets.LayerMixing(models, data, rows, people, bright=bright, **more)

    with pytest.raises(ValueError, match="`models` must hold at least one hierarchy, got none"):
        made(models={})
    with pytest.raises(ValueError, match="mixture 'joint'.*odd has 'per_location'"):
        made(models={"odd": hierarchy("nvmp", mixture="per_location")})
    with pytest.raises(ValueError, match="`models` must be built for slices of .*large is for"):
        made(models=models | {"large": hierarchy("vae", (64, 64))})
    with pytest.raises(ValueError, match="`people` must name each of `rows`, at least two, got 3 names for 4"):
        made(people=list("abc"))
    with pytest.raises(ValueError, match="at least two, got 1 names for 1"):
        made(rows=[0], people=["a"])
    with pytest.raises(ValueError, match="`bright` must be a finite grey value, got inf"):
        made(bright=float("inf"))
    with pytest.raises(ValueError, match="`layer` must be from 0 to 4, got 5"):
        made(layer=5)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"layer7": "A"}, "a control must be one of model, kept, a, b, layer0.*got 'layer7'"),
        ({"layer1": "C"}, "`layer1` must be one of A, B, drawn, got 'C'"),
        ({"kept": "both"}, "`kept` must be one of residual, absolute, got 'both'"),
        ({"model": "nvmp+"}, "`model` must be one of vae, nvae, nvmp, got"),
        ({"a": 4}, "`a` must be one of 0, 1, 2, 3, got 4"),
        ({"b": -1}, "`b` must be one of 0, 1, 2, 3, got -1"),
        ({"scale0": float("nan")}, "`scale0` must be a finite number, got nan"),
        ({"seed": -1}, "`seed` must be from 0 to 2147483647, got -1"),
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(figure, state, message):
    with pytest.raises(ValueError, match=message):
        figure.image(**state)


# The script, in node: what it feeds the network, what it counts, and the line it copies.

STUBS = """
const pretend = () => ({ append() {}, setAttribute() {}, disabled: false, classList: { add() {} }, dataset: {} });
const element = pretend;
const views = {};
"""
DRIVE = """
const controls = new Map(), painted = [], told = JSON.parse(process.argv[2]);
const control = (id, start) => {
  let value = start;
  const input = { ...pretend(), previousElementSibling: pretend() };
  controls.set(id, { start, input, get: () => value, set: next => { value = next; } });
  return controls.get(id);
};
const ui = {
  spec: told.spec, tables: tablesOf(told.tables), controls, root: pretend(), fields: pretend(), images: pretend(), said: "",
  pane: (title, width, height) => {
    const nth = painted.length;
    painted.push(null);
    return { title, caption: {}, canvas: pretend(), paint: (values, how) => { painted[nth] = { values: [...values], ...how }; } };
  },
  pick: (id, label, options, start) => control(id, start),
  slider: (id, label, { start }) => control(id, start),
  check: (id, label) => control(id, false),
  hidden: (id, start) => control(id, start),
  button: () => pretend(),
  say(text) { this.said = text; },
  engine: { run: async (graph, inputs) => { ui.ran = { graph, inputs }; return { image: { data: Float32Array.from(told.image) } }; } },
};
const view = views.layers(ui), start = Object.fromEntries([...controls].map(([id, one]) => [id, one.get()]));
const state = { ...start, ...told.state };
view.draw(state).then(() => {
  view.measure(state);
  const inputs = Object.fromEntries(Object.entries(ui.ran.inputs).map(([name, data]) => [name, [...data]]));
  console.log(JSON.stringify({ start, graph: ui.ran.graph, inputs, painted, found: ui.root.dataset.found, said: ui.said, python: view.python(state) }));
});
"""


def run_node(source, *arguments):
    if NODE is None:
        pytest.skip("needs node, and there is none on this machine")
    done = subprocess.run([NODE, "-", *arguments], input=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def part(name):
    return Path(live.__file__).with_name(f"{name}.js").read_text()


def test_a_script_draws_the_numbers_that_python_does():
    drawn = run_node(part("engines") + STUBS + part("layers") + """
        const seeds = [0, 1, 77, 2 ** 31 - 1];
        console.log(JSON.stringify(seeds.map(seed => ({
          normal: [...normal(seed, 1001)], which: [16, 5, 1].map(count => drawnComponent(seed, 1001, count)) }))));""")  # fmt: skip
    for seed, found in zip((0, 1, 77, 2**31 - 1), drawn):
        assert np.abs(np.array(found["normal"]) - normal(seed, 1001)).max() < 1e-6
        assert found["which"] == [int(count * uniform(seed, 1003)[1002]) for count in (16, 5, 1)]


@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_the_view_feeds_the_network_and_counts_as_python_does(figure, data, state):
    state = {"model": "nvmp", "marks": True} | state
    graph, inputs = given(figure, state)
    page = "data:application/octet-stream;base64," + base64.b64encode(figure.tables).decode()
    # Any image will do; this one lies about the threshold.
    image = np.random.default_rng(0).normal(BRIGHT, 0.2, 32 * 32).astype(np.float32)
    told = {"spec": figure.spec, "tables": page, "state": state, "image": image.tolist()}
    kit = part("kit")
    literals = kit[kit.index("const python =") : kit.index("// Linear interpolation")]
    seen = run_node(part("engines") + STUBS + literals + part("layers") + DRIVE, json.dumps(told))
    assert seen["start"] == figure.start, "the controls start where the figure does"
    assert seen["graph"] == graph.name
    for name, value in inputs.items():
        assert np.abs(np.array(seen["inputs"][name]) - np.ravel(value)).max() < 1e-6, name
    # A and B are searched as the package does, the result in the page.
    areas, found = figure.areas(**state), json.loads(seen["found"])
    assert found[:2] == pytest.approx(areas[:2])
    assert found[2] == pytest.approx((image >= BRIGHT).sum() * data.pixel_mm**2)
    shown = figure.start | state
    seen_images = [*(data.image(np.array([ROWS[shown[who]]])).numpy() for who in "ab"), image]
    for pane, one in zip(seen["painted"], seen_images):
        assert pane["marks"] == np.flatnonzero(one.ravel() >= BRIGHT).tolist()
    low, high = data.grey_range
    assert (seen["painted"][2]["low"], seen["painted"][2]["high"]) == (low, high)
    assert np.abs(np.array(seen["painted"][0]["values"]) / 255 - figure.image(**state)[0].ravel()).max() <= 0.5 / 255 + 1e-6
    assert seen["said"].startswith("nvmp: ") and seen["said"].endswith(f"{found[2]:.0f} mm² in the result.")
    # The copied line makes the picture.
    assert seen["python"].startswith("mixing.image(")
    assert (eval(seen["python"], {"mixing": figure}) == figure.image(**state)).all()


def test_a_kernel_answers_the_view(figure, monkeypatch):
    graph, inputs = given(figure, {"model": "nvae", "layer4": "drawn"})
    sent = []
    monkeypatch.setattr(type(figure), "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    figure._answer(figure, {"id": 7, "graph": graph.name, "inputs": list(inputs)}, [value.tobytes() for value in inputs.values()])
    (content, buffers), = sent
    assert content == {"id": 7, "outputs": [["image", [1, 1, 32, 32]]]}
    assert (np.frombuffer(buffers[0], np.float32) == graph(**inputs)["image"].ravel()).all()
