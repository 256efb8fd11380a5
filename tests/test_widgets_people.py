"""Experts to take hold of, and people without a modality: the Python side. What they do in a page is tested in the rendered book."""

import base64
import json
import re
from dataclasses import replace
from itertools import product
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load

from data_prep import phantom
from medvae_lite import judges, regions
from medvae_lite.mmvae import PoEVAE
from medvae_lite.widgets import Experts, PersonExperts

NAMES = ("cortical", "subcortical", "hippocampal")


def told(figure):
    """What a rendered page is told of a figure."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', figure.page()).group(1))


def picture(figure):
    """The published picture, parsed."""
    return ElementTree.fromstring(base64.b64decode(re.search(r"svg\+xml;base64,([^\"]*)", figure.still()).group(1)))


def tables(figure):
    """Its tables, read from the bytes that the view gets."""
    return load(figure.tables)


@pytest.fixture(scope="module")
def data():
    return regions.load(phantom("regions", subjects=900))


def untrained(data, **settings):
    torch.manual_seed(1)
    model = PoEVAE(sizes=data.sizes, covariates=data.covariates.shape[1], latent_dim=5, hidden=(12, 8), **settings)
    with torch.no_grad():  # experts that differ between people
        model.encoder.weights[-1].mul_(4)
    return judges.VAE(model, data)


@pytest.fixture(scope="module")
def judge(data):
    return untrained(data)


@pytest.fixture(scope="module")
def people(data):
    return {"healthy": int(data.rows("test")[3]), "ill": int(data.rows("patients", group="AD")[2])}


@pytest.fixture(scope="module")
def person(judge, people):
    return PersonExperts(judge, people)


# Experts of one dimension


def test_the_page_gets_its_state_and_no_link_to_anywhere():
    figure = Experts({"a": (1.0, 0.5), "b": (-1.0, 2.0)}, prior=False)
    state = told(figure)
    assert state["prior"] is False and state["experts"][1] == {"name": "b", "mu": -1.0, "sd": 2.0} and state["graphs"] == {}
    assert "<noscript>" in figure.page() and "stored" not in state
    assert not re.findall(r"https?://[^\"' ]+", figure.page())
    assert {e.tag for e in picture(figure).iter()} <= {f"{{http://www.w3.org/2000/svg}}{tag}" for tag in ("svg", "rect", "path", "text")}


def test_the_published_picture_peaks_where_the_product_does():
    figure = Experts({"a": (1.0, 0.5), "b": (-1.0, 2.0)})
    curve = max((p for p in picture(figure).iter() if p.get("fill-opacity")), key=lambda p: len(p.get("d")))
    points = np.array([[float(v) for v in at.split()] for at in curve.get("d")[1:].split("L")])
    top = points[points[:, 1].argmin()]
    precision = 1 + 1 / 0.5**2 + 1 / 2.0**2
    mu = (1.0 / 0.5**2 - 1.0 / 2.0**2) / precision
    assert (top[0] - 10) / 620 * 8 - 4 == pytest.approx(mu, abs=0.02)
    assert 225 - top[1] == pytest.approx(130 * np.sqrt(precision / (2 * np.pi)), abs=0.5)


def test_a_product_follows_from_those_who_speak():
    figure = Experts({"a": (1.0, 0.5), "b": (-1.0, 2.0)})
    precision = 1 + 1 / 0.5**2
    q = figure.product(b=False)
    assert q.mu.item() == pytest.approx(1.0 / 0.5**2 / precision) and q.std.item() == pytest.approx(precision**-0.5)
    moved = figure.product(b=False, a_mean=-2.0, a_sd=1.0)
    assert moved.mu.item() == pytest.approx(-1.0) and moved.std.item() == pytest.approx(0.5**0.5)
    alone = figure.product(a=False, b=False)
    assert (alone.mu.item(), alone.std.item()) == (0.0, 1.0)
    assert figure.product(a=False, b=False, prior=False) is None
    with pytest.raises(ValueError, match="a control must be one of prior, a, a_mean"):
        figure.product(c=True)


@pytest.mark.parametrize("experts", [{}, {"a": (0.0, 0.0)}, {c: (0.0, 1.0) for c in "abcd"}])
def test_what_cannot_be_drawn_is_refused(experts):
    with pytest.raises(ValueError, match="one to three pairs of a mean and a positive standard deviation"):
        Experts(experts)


# A person without a modality


@pytest.mark.parametrize("seen", list(product((False, True), repeat=3)))
def test_deviations_are_those_of_the_judge_through_the_same_mask(seen, person, judge, people):
    given = [name for name, on in zip(NAMES, seen) if on]
    for number, row in enumerate(people.values()):
        expected = judge.z(np.array([row]), given)[0]
        np.testing.assert_allclose(person.deviations(person=number, **dict(zip(NAMES, seen))), expected, atol=1e-5)
        # The set's number: the first modality is the lowest bit.
        stored = tables(person)["z"][sum(2**m for m, on in enumerate(seen) if on), number]
        np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_a_moved_expert_moves_the_code_by_its_share_and_the_deviations_with_it(person, judge, people):
    row, model = np.array([people["ill"]]), judge.model
    x, c, _ = judge.inputs(row)
    mu, logvar = (t.detach() for t in model.experts(x, c))
    k, where = 2, 1.5
    precision = torch.exp(-logvar[:, 0])
    z = (precision * mu[:, 0]).sum(0) / (1 + precision.sum(0))
    z[k] += precision[1, k] / (1 + precision[:, k].sum()) * (where - mu[1, 0, k])
    d = judge.data.x[row] - model.decode(z[None], c).detach().double().numpy()
    found = person.deviations(person=1, dimension=k, subcortical_mean=where)
    np.testing.assert_allclose(found, judge.calibration()(d)[0], atol=1e-4)
    assert np.abs(found - person.deviations(person=1)).max() > 0.01
    # The same mean in another dimension is another code.
    assert np.abs(found - person.deviations(person=1, dimension=0, subcortical_mean=where)).max() > 0.01
    # Who is not asked may be moved at will.
    hidden = person.deviations(dimension=k, subcortical=False, subcortical_mean=where)
    np.testing.assert_array_equal(hidden, person.deviations(subcortical=False))


def test_a_shift_is_a_shift_of_the_table(person, data, judge, people):
    raw = data.raw.copy()
    columns = slice(data.sizes["cortical"], data.sizes["cortical"] + data.sizes["subcortical"])
    raw[people["ill"], columns] += -1.5 * data.scale[1][columns]
    other = judges.VAE(judge.model, replace(data, raw=raw))
    other._calibrations = judge._calibrations
    expected = other.z(np.array([people["ill"]]), ("cortical", "subcortical"))[0]
    np.testing.assert_allclose(person.deviations(hippocampal=False, changed="subcortical", shift=-1.5), expected, atol=1e-4)


def test_a_view_can_rank_deviations_from_the_tables_alone(person, judge, people):
    """What the page computes once it has decoded, with the tables it gets."""
    kept, step = tables(person), person.spec["rank_step"]
    row, given = np.array([people["ill"]]), ("hippocampal",)
    t = (judge.deviation(row, given)[0] - kept["mean"][4]) / kept["sd"][4]
    grid = step * np.arange(kept["ranks"].shape[1])
    z = np.array([np.sign(one) * np.interp(abs(one), grid, kept["ranks"][k]) for one, k in zip(t, kept["which"][4])])
    np.testing.assert_allclose(z, judge.z(row, given)[0], atol=2e-3)


@pytest.mark.parametrize(("half", "bound"), [(False, 1e-5), (True, 1e-2)])
def test_a_page_computes_what_the_model_does(person, judge, people, half, bound):
    x, c, _ = judge.inputs(np.array([people["ill"]]))
    z = torch.linspace(-2, 2, 5)[None]
    mu, logvar = judge.model.experts(x, c)
    for name, given, expected in (
        ("experts", {"x": x, "c": c}, {"mu": mu[:, 0], "logvar": logvar[:, 0]}),
        ("decode", {"z": z, "c": c}, {"expected": judge.model.decode(z, c)}),
    ):
        graph, inputs = person.graphs[name], {key: value.numpy() for key, value in given.items()}
        session = onnxruntime.InferenceSession(graph.onnx(half=half))
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))
        own = graph(**inputs)
        assert set(found) == set(expected) == set(own)
        for key, value in expected.items():
            np.testing.assert_array_equal(own[key], value.detach().numpy())
            assert np.abs(found[key] - own[key]).max() < bound * np.ptp(own[key])


def test_the_first_dimension_is_the_one_in_which_people_differ_most(person, judge, data):
    spread = judge.codes(data.rows("test")).mu.std(0).numpy()
    assert person.start["dimension"] == spread.argmax() == person.spec["dimensions"][0]["at"] == person.spec["dimension"]
    assert sorted(d["at"] for d in person.spec["dimensions"]) == list(range(5))
    assert person.start["person"] == 1, "the last person is shown first"


def test_healthy_people_show_what_the_figure_says_they_do(person):
    draws = np.abs(np.random.default_rng(0).standard_normal(200_000))
    assert person.spec["healthy"] == pytest.approx([draws.mean(), (draws > 1.96).mean()], abs=3e-3)


def test_without_a_prior_expert_somebody_has_to_be_seen(data, people):
    judge = untrained(data, prior_expert=False)
    figure = PersonExperts(judge, people)
    assert np.isnan(tables(figure)["z"][0]).all() and np.isfinite(tables(figure)["z"][1:]).all()
    with pytest.raises(ValueError, match="no prior expert: leave it a modality"):
        figure.deviations(cortical=False, subcortical=False, hippocampal=False)
    alone = figure.deviations(cortical=False, subcortical=False)
    np.testing.assert_allclose(alone, judge.z(figure.rows, ("hippocampal",))[1], atol=1e-5)


def test_what_was_not_measured_has_no_deviation_and_no_dot(data, judge, people):
    raw = data.raw.copy()
    gap = slice(data.sizes["cortical"], data.sizes["cortical"] + data.sizes["subcortical"])
    raw[people["ill"], gap] = np.nan
    figure = PersonExperts(judges.VAE(judge.model, replace(data, raw=raw)), people)
    z = figure.deviations()
    assert np.isnan(z[gap]).all() and np.isfinite(np.delete(z, np.arange(len(z))[gap])).all()
    np.testing.assert_array_equal(z, figure.deviations(subcortical=False, subcortical_mean=2.0))
    assert len([p for p in picture(figure).iter() if p.get("transform", "").startswith("translate") and p.get("d")]) == len(z) - 31
    np.testing.assert_array_equal(tables(figure)["has"], [[1, 1, 1], [1, 0, 1]])


def test_the_published_picture_has_a_dot_a_region_and_says_what_it_shows(person):
    z = person.deviations()
    dots = [p for p in picture(person).iter() if p.get("d") and p.get("transform")]
    heights = np.array([float(p.get("transform").split()[1][:-1]) for p in dots])
    np.testing.assert_allclose(heights, 140 - 125 * z / person.limit, atol=0.06)
    assert len({(p.get("d"), p.get("stroke")) for p in dots}) == 3, "a symbol and a colour for each modality"
    said = re.search(r'alt="([^"]*)"', person.still()).group(1)
    assert f"ill: mean |z| {np.abs(z).mean():.2f}, {(np.abs(z) > 1.96).sum()} of 111 beyond 1.96" in said


def test_a_kernel_answers_the_view(person, judge, people):
    sent = []
    person.send = lambda message, buffers=None: sent.append((message, buffers))
    x, c, _ = judge.inputs(np.array([people["ill"]]))
    person._answer(None, {"id": 7, "graph": "experts", "inputs": ["x", "c"]}, [x.numpy().tobytes(), c.numpy().tobytes()])
    [(message, buffers)] = sent
    assert message == {"id": 7, "outputs": [["mu", [3, 5]], ["logvar", [3, 5]]]}
    np.testing.assert_array_equal(np.frombuffer(buffers[0], np.float32).reshape(3, 5), judge.model.experts(x, c)[0][:, 0].detach().numpy())


def test_a_page_gets_all_it_needs(person, tmp_path):
    state = told(person)
    person.write(tmp_path)
    assert {g["file"] for g in state["graphs"].values()} == {path.name for path in tmp_path.iterdir()}
    assert state["graphs"]["decode"]["inputs"]["z"] == [1, 5] and "stored" not in state


def test_damaged_arguments_are_refused_in_a_sentence(judge, data, people, person):
    with pytest.raises(ValueError, match="`judge` must be a trained product of experts, `judges.VAE`, got Linear"):
        PersonExperts(judges.Linear(data), people)
    with pytest.raises(ValueError, match="`people` must name rows of the table, 0 to"):
        PersonExperts(judge, {"nobody": len(data.raw)})
    with pytest.raises(ValueError, match="`people` must name rows of the table"):
        PersonExperts(judge, {})
    with pytest.raises(ValueError, match="`dimension` must be one of the code's, 0 to 4, got 5"):
        PersonExperts(judge, people, dimension=5)
    with pytest.raises(ValueError, match="a control must be one of person, dimension, cortical"):
        person.deviations(amygdala=False)
    with pytest.raises(ValueError, match="`person` must be below 2 and `changed` one of cortical"):
        person.deviations(person=2)
