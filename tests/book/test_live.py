"""Live figures in the built book: without a kernel, without a network, under the mouse, the keyboard and a phone's thumb."""

import ast
import json
import re

import build
import numpy as np
import pytest
import torch
from browser import SHOTS, serve
from safetensors.numpy import load_file

from data_prep import phantom
from medvae_lite import cardiac, datasets, experiments

WALK, BOTH, BETWEEN = "book/cardiac/07_walks.html", "book/cardiac/03_ar_sivae.html", "book/cardiac/07_walks.html"
PIXELS = """canvas => { const { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    return [height, width, ...copy.getImageData(0, 0, width, height).data]; }"""


def live_pages():
    """Pages with a live figure, by their text."""
    shown = re.compile(r"^#+ .*, live$", re.MULTILINE)
    return [f"{page}.html" for page in build.pages() if shown.search((build.ROOT / page).with_suffix(".md").read_text())]


LIVE = live_pages()
every_live_page = pytest.mark.parametrize("page", LIVE)


def figure(tab, view, nth=0):
    """The figure of that view, drawn and at rest."""
    found = tab.locator(f".live[data-view={view}]").nth(nth)
    found.scroll_into_view_if_needed()
    rest(tab, found)
    return found


def rest(tab, figure):
    """Waits until what was asked last is drawn and measured."""
    tab.wait_for_function("f => f.dataset.settled && f.dataset.settled === f.dataset.drawn", arg=figure.element_handle())
    tab.wait_for_timeout(60)
    tab.wait_for_function("f => f.dataset.settled === f.dataset.drawn", arg=figure.element_handle())


def put(tab, figure, label, value):
    """Moves the slider called `label`."""
    drawn = figure.get_attribute("data-drawn")
    slider = figure.locator(f"input[type=range][aria-label^='{label}']")
    slider.evaluate("(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", str(value))
    tab.wait_for_function("([f, drawn]) => f.dataset.drawn !== drawn", arg=[figure.element_handle(), drawn])
    rest(tab, figure)


def colours(figure, nth=0):
    """A pane's own pixels, (H, W, 3)."""
    height, width, *data = figure.locator("canvas").nth(nth).evaluate(PIXELS)
    return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]


def grey(figure, nth=0):
    """A pane's own grey values in [0, 1], (H, W)."""
    return colours(figure, nth)[..., 0] / 255


def found(figure):
    """Volumes that the page measured, (models, K)."""
    return np.array(json.loads(figure.get_attribute("data-found")))


@pytest.fixture(scope="module")
def study():
    size = cardiac.PROFILES["laptop"]
    data = datasets.load(phantom("cardiac", subjects=size.subjects, size=size.size))
    return cardiac.Study(data, profile="laptop", phantom=phantom, runs_root=build.ROOT / "book" / "runs")


@pytest.fixture(scope="module")
def ar_sivae(study):
    return study.train("ar_sivae")[0].cpu()


def test_the_first_page_lists_every_live_figure():
    """So does the outline: a live cell stands under a heading that says so."""
    listed = (build.ROOT / "book" / "intro.md").read_text().split("## What moves")[1].split("\n## ")[0]
    named = {page: re.findall(r"\*(.+?)\*", text) for page, text in re.findall(r"\{doc\}`([\w/]+)`: (.*?)(?=\n- |\n\n)", listed, re.DOTALL)}
    there = {}
    for page in LIVE:
        text = (build.ROOT / page).with_suffix(".md").read_text()
        there[page.removeprefix("book/").removesuffix(".html")] = [h.lower() for h in re.findall(r"^#+ (.*), live$", text, re.MULTILINE)]
    assert {page: sorted(names) for page, names in named.items()} == {page: sorted(names) for page, names in there.items()}
    assert {page.split("/")[0] for page in there} == {"cardiac", "normative", "structured"}


@every_live_page
def test_nothing_loads_until_it_is_looked_at_and_then_all_of_it_runs(page, visit):
    tab = visit(page, height=300)
    heavy = lambda: [url for url in tab.asked if re.search(r"onnxruntime|\.onnx|\.webp|live\.js", url)]
    assert not heavy()
    figures = tab.locator(".live")
    assert figures.count()
    for nth in range(figures.count()):
        one = figures.nth(nth)
        heading = one.evaluate("e => e.closest('section').querySelector('h1, h2, h3').textContent")
        assert re.search(r", live\W*$", heading), f"the outline does not say that the cell under {heading!r} is live"
        one.scroll_into_view_if_needed()
        rest(tab, one)
        assert one.get_attribute("data-mode") == "page", one.locator(".live-note").text_content()
        SHOTS.mkdir(parents=True, exist_ok=True)
        tab.set_viewport_size({"width": 1280, "height": 1000})
        one.screenshot(path=SHOTS / f"live-{page.split('/')[-1][:-5]}-{nth}.png")
        tab.set_viewport_size({"width": 1280, "height": 300})
    assert len(set(heavy())) == len(heavy()), "a file was loaded twice"
    assert not tab.trouble


@every_live_page
def test_figures_fit_a_phone_and_the_dark(page, visit):
    tab = visit(page, width=390, height=844, scheme="dark")
    tab.evaluate("() => { const d = document.documentElement.dataset; d.mode = d.theme = 'dark'; }")
    for nth in range(tab.locator(".live").count()):
        one = tab.locator(".live").nth(nth)
        one.scroll_into_view_if_needed()
        rest(tab, one)
        one.screenshot(path=SHOTS / f"live-{page.split('/')[-1][:-5]}-{nth}-phone.png")
        assert one.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), "a control sticks out"
        filters = "e => [...e.querySelectorAll('canvas')].filter(c => { for (let x = c; x; x = x.parentElement) if (getComputedStyle(x).filter !== 'none') return true; }).length"
        assert one.evaluate(filters) == 0, "a theme filters grey values"
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390


@every_live_page
def test_every_control_has_a_name_and_the_keyboard_reaches_it(page, visit):
    tab = visit(page)
    for nth in range(tab.locator(".live").count()):
        one = tab.locator(".live").nth(nth)
        one.scroll_into_view_if_needed()
        rest(tab, one)
        nameless = """f => [...f.querySelectorAll("input, select, button")].filter(e =>
            !(e.getAttribute("aria-label") || e.textContent.trim() || e.closest("label")?.textContent.trim()) || e.tabIndex < 0).length"""
        assert one.evaluate(nameless) == 0
        assert one.get_attribute("role") == "group" and one.get_attribute("aria-label")
        assert one.locator("[aria-live=polite], [role=status]").count()


@every_live_page
def test_without_scripts_the_published_figure_stays(page, visit):
    tab = visit(page, scripts=False)
    for nth in range(tab.locator(".live").count()):
        one = tab.locator(".live").nth(nth)
        assert one.locator(".live-still").is_visible()
        assert "stands still" in one.locator("noscript").inner_text()


@every_live_page
def test_from_disk_one_slider_at_a_time(page, visit, html):
    tab = visit(page, base=html.as_uri())
    for nth in range(tab.locator(".live").count()):
        one = tab.locator(".live").nth(nth)
        one.scroll_into_view_if_needed()
        rest(tab, one)
        note = one.locator(".live-note").text_content()
        assert one.get_attribute("data-mode") == "page" or "make serve" in note
    assert not tab.trouble


def probes():
    """What torch gave for random inputs of every exported network, when the chapters were last executed."""
    return sorted(build.PROBES.glob("*.safetensors"))


def test_every_network_in_the_page_gives_what_torch_gives(visit, html):
    shown = {path.name for path in (html / "_static" / "live").glob("*.onnx")}
    if not probes():
        pytest.skip("no chapter was executed: `make book` and `make test-chapters` leave what torch gives")
    assert shown == {path.stem for path in probes()}, "files of no figure, or figures without a file"
    tab = visit(WALK)
    figure(tab, "walk")
    for path in probes():
        arrays = load_file(path)
        inputs = {name[3:]: value for name, value in arrays.items() if name.startswith("in.")}
        outputs = {name[4:]: value for name, value in arrays.items() if name.startswith("out.")}
        for nth in range(len(next(iter(inputs.values())))):
            given = {name: {"data": value[nth].ravel().tolist(), "dims": list(value[nth].shape)} for name, value in inputs.items()}
            run = """async ([file, given]) => {
                const dims = Object.fromEntries(Object.entries(given).map(([name, { dims }]) => [name, dims]));
                const data = Object.fromEntries(Object.entries(given).map(([name, { data }]) => [name, Float32Array.from(data)]));
                const got = await medvaeLive.engine({ it: { file, inputs: dims } }).run("it", data);
                return Object.fromEntries(Object.entries(got).map(([name, { data }]) => [name, [...data]])); }"""
            got = tab.evaluate(run, [path.stem, given])
            for name, value in outputs.items():
                mine, torchs = np.array(got[name]), value[nth].ravel()
                if name == "label":  # classes have no size: a pixel on the edge may fall to either side
                    assert (mine != torchs).mean() < 0.005, path.stem
                else:
                    spread = max(1.0, np.ptp(torchs))
                    # Published weights are float16 already: storing them so costs nothing, and float32's bound holds.
                    assert np.abs(mine - torchs).max() < 1e-3 * spread, (path.stem, name, np.abs(mine - torchs).max())


def test_the_ventricle_grows_with_its_volume_in_the_pages_own_pixels(visit, study):
    tab = visit(WALK)
    walk = figure(tab, "walk")
    segment = study.features("metric").cpu().eval()

    def cavity(nth):
        with torch.no_grad():
            return int((segment(torch.from_numpy(grey(walk, nth)).float()[None, None]).argmax(1) == 1).sum())

    sizes = []
    for volume in (90, 130, 170, 210):
        put(tab, walk, "LVEDV", volume)
        sizes.append((cavity(0), found(walk)[0, 0]))
    areas, volumes = map(np.array, zip(*sizes))
    assert (np.diff(areas) > 0).all() and (np.diff(volumes) > 0).all()
    # What the page measured is what its pixels hold: the ruler's power law, on the area found here.
    slope = np.polyfit(np.log(areas), np.log(volumes), 1)
    assert np.abs(np.polyval(slope, np.log(areas)) - np.log(volumes)).max() < 0.02
    walk.get_by_role("button", name="Reset").click()
    rest(tab, walk)
    before = cavity(1)
    put(tab, walk, "LVESV", 100)
    assert cavity(1) > before
    walk.screenshot(path=SHOTS / "live-walk-moved.png")
    assert not tab.trouble


def test_the_others_go_along_when_told_to(visit):
    tab = visit(WALK)
    walk = figure(tab, "walk")
    put(tab, walk, "LVEDV", 200)
    alone = found(walk)[0]
    walk.get_by_label("let the other dimensions go along").check()
    rest(tab, walk)
    assert found(walk)[0, 0] > alone[0] + 5, "with the others in tow more of what is asked is found"
    assert found(walk)[0, 3] > alone[3], "and its other frame comes along"


def test_a_copied_line_of_python_makes_the_same_picture(visit, ar_sivae):
    tab = visit(WALK)
    walk = figure(tab, "walk")
    walk.locator("select").select_option("3")
    put(tab, walk, "RVEDV", 150)
    walk.get_by_role("button", name="Copy as Python").click()
    line = walk.get_attribute("data-python")
    ast.parse(line)
    with torch.no_grad():
        image = eval(line, {"torch": torch, "ar_sivae": ar_sivae})[0].numpy()
    for frame in (0, 1):
        assert np.abs(grey(walk, frame) - image[frame]).max() < 1e-2 + 1 / 255


def test_reset_outlines_and_the_arrow_keys(visit):
    tab = visit(WALK)
    walk = figure(tab, "walk")
    first = colours(walk)
    assert (first[..., 0] == first[..., 2]).all(), "grey"
    slider = walk.locator("input[type=range]").first
    slider.focus()
    for _ in range(40):
        tab.keyboard.press("ArrowRight")
    rest(tab, walk)
    moved = colours(walk)
    assert np.abs(moved.astype(int) - first).max() > 20
    walk.get_by_label("outline the").check()
    rest(tab, walk)
    outlined = colours(walk)
    assert 10 < (outlined[..., 0] != outlined[..., 2]).sum() < 300
    walk.get_by_role("button", name="Reset").click()
    rest(tab, walk)
    assert (colours(walk) == first).all()


def test_two_models_answer_the_same_slider(visit):
    tab = visit(BOTH)
    both = figure(tab, "walk")
    before = [grey(both, nth) for nth in range(4)]
    put(tab, both, "LVEDV", 200)
    after = [grey(both, nth) for nth in range(4)]
    assert min(np.abs(a - b).max() for a, b in zip(before, after)) > 0.1
    assert found(both).shape == (2, 6)
    sharp = [np.abs(np.diff(image)).mean() for image in (after[0], after[2])]
    assert sharp[1] > sharp[0], "the AR-SIVAE's edges are sharper"


def test_between_two_subjects_lie_both(visit, ar_sivae):
    tab = visit(BETWEEN)
    between = figure(tab, "interpolation")
    volumes = []
    for t in (0, 0.5, 1):
        put(tab, between, "how far", t)
        volumes.append(found(between)[0, 0])
        between.get_by_role("button", name="Copy as Python").click()
        with torch.no_grad():
            image = eval(between.get_attribute("data-python"), {"torch": torch, "ar_sivae": ar_sivae})[0].numpy()
        assert np.abs(grey(between) - image[0]).max() < 1e-2 + 1 / 255
    assert volumes[0] < volumes[1] < volumes[2]


def test_from_disk_stored_pictures_follow_one_slider(visit, html, ar_sivae):
    tab = visit(WALK, base=html.as_uri())
    walk = figure(tab, "walk")
    assert walk.get_attribute("data-mode") == "stored"
    assert "make serve" in walk.locator(".live-note").text_content()
    shot = lambda: walk.locator("canvas").first.screenshot()  # a page from disk may not read its own pixels
    first = shot()
    put(tab, walk, "LVEDV", 230)
    moved = shot()
    assert moved != first
    put(tab, walk, "RVEDV", 120)
    assert walk.locator("output").first.text_content().startswith("≈"), "the other sliders go back to the start"
    walk.get_by_role("button", name="Reset").click()
    rest(tab, walk)
    assert shot() == first


def test_where_webassembly_is_refused_a_line_says_so(visit):
    tab = visit(WALK, before="delete window.WebAssembly")
    walk = figure(tab, "walk")
    assert walk.get_attribute("data-mode") == "stored"
    assert "WebAssembly" in walk.locator(".live-note").text_content()
    before = grey(walk)
    put(tab, walk, "LVEDV", 230)
    assert np.abs(grey(walk) - before).max() > 0.1


def test_served_from_a_folder_of_another_site(visit, html, tmp_path):
    (tmp_path / "some" / "where").mkdir(parents=True)
    (tmp_path / "some" / "where" / "book").symlink_to(html)
    with serve(tmp_path) as base:
        tab = visit(f"some/where/book/{WALK}", base=base)
        assert figure(tab, "walk").get_attribute("data-mode") == "page"
        assert not tab.trouble


def test_where_files_are_missing_the_published_figure_stays(visit):
    tab = visit(WALK)
    tab.route(re.compile(r"\.(onnx|webp)$"), lambda route: route.abort())
    walk = tab.locator(".live").first
    walk.scroll_into_view_if_needed()
    tab.wait_for_function("f => f.dataset.mode === 'still'", arg=walk.element_handle())
    assert walk.locator("img.live-still").is_visible()
    assert "published picture" in walk.locator(".live-note").text_content()


KNOBS, WEIGHTS = "book/cardiac/08_when_training_fails.html", "book/cardiac/02_attribute_regularisation.html"
MIX, PERSON = "book/structured/04_pathology_and_anatomy.html", "book/normative/04_missing_modalities.html"


def told(figure, name="found"):
    return json.loads(figure.get_attribute(f"data-{name}"))


def choose(tab, figure, label, value):
    """Picks an option of the list called `label`."""
    drawn = figure.get_attribute("data-drawn")
    figure.locator(f"select[aria-label^='{label}']").select_option(value)
    tab.wait_for_function("([f, drawn]) => f.dataset.drawn !== drawn", arg=[figure.element_handle(), drawn])
    rest(tab, figure)


def test_a_knob_shows_one_published_run_a_stop(visit):
    tab = visit(KNOBS)
    dials = figure(tab, "dials")
    seen = {}
    for stop in (0, 3, 7):
        put(tab, dials, "repulsion", stop)
        record = build.ROOT / "book" / "runs" / dials.get_attribute("data-run")
        config, metrics = (json.loads((record / f"{name}.json").read_text()) for name in ("config", "metrics"))
        assert config["model"]["repulsion"] == pytest.approx(float(dials.get_attribute("data-value")))
        assert float(told(dials)[1]) == pytest.approx(metrics["mse"], rel=5e-3)
        seen[stop] = np.stack([grey(dials, nth) for nth in range(8)])
    assert (seen[0][[0, 2]] == seen[7][[0, 2]]).all(), "the same two hearts"
    assert all(np.abs(seen[0][k] - seen[7][k]).max() > 0.1 for k in (1, 3, 4, 5, 6, 7)), "other reconstructions and draws"
    # Its stated failure: an adversary that never lets go spoils the reconstructions.
    error = {stop: np.mean((shown[[0, 2]] - shown[[1, 3]]) ** 2) for stop, shown in seen.items()}
    assert error[0] > 2 * error[3]
    put(tab, dials, "learning rate", 2)
    assert dials.locator("input[aria-label='repulsion']").input_value() != "7", "one knob at a time"


def test_weights_of_the_attribute_term_move_its_score(visit):
    tab = visit(WEIGHTS)
    dials = figure(tab, "dials")
    scores = []
    for stop in range(5):
        put(tab, dials, "attribute term", stop)
        scores.append(float(told(dials)[4]))
    assert scores[0] < 0.9 < min(scores[1:])
    put(tab, dials, "weight of the KL", 0)
    much = float(told(dials)[0])
    put(tab, dials, "weight of the KL", 3)
    assert float(told(dials)[0]) < much / 2, "a dearer nat, fewer of them"


def test_lesions_follow_the_layer_they_live_in(visit):
    tab = visit(MIX)
    mix = figure(tab, "layers")
    a, b, both = told(mix)
    assert a < both < b, "layer 2 of B brings lesions to A"
    own, other, result = (grey(mix, nth) for nth in range(3))
    assert np.abs(result - own).mean() < np.abs(result - other).mean(), "the anatomy stays A's"
    choose(tab, mix, "whose layer z2", "A")
    without = told(mix)[2]
    assert without < both and np.abs(grey(mix, 2) - result).max() > 0.2
    choose(tab, mix, "whose layer z2", "B")
    sizes = []
    for factor in (0, 1, 2, 3):
        put(tab, mix, "factor of z2", factor)
        sizes.append(told(mix)[2])
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 4
    mix.get_by_role("button", name="Reset").click()
    rest(tab, mix)
    assert told(mix)[2] == both
    mix.get_by_label("mark what is found").check()
    rest(tab, mix)
    marked = colours(mix, 2).astype(int)
    pixels = ((marked[..., 0] == 255) & (marked[..., 1] == 176) & (marked[..., 2] == 0)).sum()
    assert pixels > 5 and both / pixels == pytest.approx(2.75**2, rel=1e-3)
    mix.screenshot(path=SHOTS / "live-layers-marked.png")


def test_a_layer_drawn_anew_and_another_model(visit):
    tab = visit(MIX)
    mix = figure(tab, "layers")
    files = lambda: {url for url in tab.asked if "layereddecoder" in url}
    assert len(files()) == 1
    choose(tab, mix, "whose layer z0", "drawn")
    first = grey(mix, 2)
    mix.get_by_role("button", name="Draw again").click()
    rest(tab, mix)
    assert np.abs(grey(mix, 2) - first).max() > 0.05
    choose(tab, mix, "model", "VAE")
    assert len(files()) == 2, "another model's file comes when it is chosen"
    assert not tab.trouble


def test_a_hidden_modality_and_what_it_changes(visit):
    tab = visit(PERSON)
    person = figure(tab, "people")
    hollow = lambda: person.locator("svg.live-strip path[data-region][fill=none]").count()
    deviation = lambda: float(person.get_attribute("data-deviation"))
    regions = person.locator("svg.live-strip path[data-region]").count()
    assert regions == 111 and hollow() == 0
    sd, before = float(person.get_attribute("data-sd")), deviation()
    person.get_by_label("hippocampal", exact=True).uncheck()
    rest(tab, person)
    assert hollow() == 16 and deviation() != before
    assert float(person.get_attribute("data-sd")) > sd, "fewer experts are less sure"
    person.get_by_label("hippocampal", exact=True).check()
    rest(tab, person)
    assert deviation() == pytest.approx(before, abs=1e-6)
    mu = float(person.get_attribute("data-mu"))
    put(tab, person, "mean of cortical", -4)
    assert float(person.get_attribute("data-mu")) < mu and deviation() > before + 0.1, "an expert dragged away makes the rest unusual"
    assert not tab.trouble


def test_people_from_disk_lose_modalities_too(visit, html):
    tab = visit(PERSON, base=html.as_uri())
    person = figure(tab, "people")
    before = person.get_attribute("data-deviation")
    person.get_by_label("cortical", exact=True).uncheck()
    rest(tab, person)
    assert person.get_attribute("data-deviation") != before
    assert person.locator("svg.live-strip path[data-region][fill=none]").count() == 64


def test_no_file_is_left_over_and_none_is_missing(html):
    named = {name for page in LIVE for name in re.findall(r'"file": "([\w.-]+)"', (html / page).read_text())}
    there = {path.name for path in (html / "_static" / "live").iterdir()} - {"live.js", "live.css"}
    assert named == there
