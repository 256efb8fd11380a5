"""Walks, comparison and interpolation: the Python side, against decoding by hand."""

import json
import re

import numpy as np
import pytest
import torch
from _helpers import ATTRIBUTES, write_folder
from safetensors.numpy import load

from medvae_lite import datasets, walks, widgets
from medvae_lite.nets import FeatureNet
from medvae_lite.sivae import AttriVAE
from medvae_lite.widgets import live

D = 8


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two small untrained models, their data, dials, ruler and codes."""
    torch.manual_seed(0)
    folder = write_folder(tmp_path_factory.mktemp("discs") / "data", count=40, size=16)
    card = json.loads((folder / "card.json").read_text())
    card["labels"] = {"0": "background", "1": "LV", "2": "RV", "3": "MYO"}
    (folder / "card.json").write_text(json.dumps(card))
    data = datasets.load(folder)
    models = {name: AttriVAE(channels=2, size=16, attributes=6, latent_dim=D).eval() for name in ("first", "second")}
    rng = np.random.default_rng(0)
    volumes = np.sort(rng.uniform(50, 250, (60, 6)), 0)
    z = {name: rng.standard_normal((60, D)) for name in models}
    return {
        "models": models, "data": data, "codes": {name: torch.randn(5, D) for name in models},
        "dials": {name: [walks.Dial.fit(z[name], volumes[:, k], k) for k in range(6)] for name in models},
        "covariance": {name: np.cov(of.T) for name, of in z.items()},
        "ruler": walks.Ruler(np.full(6, 1.1), np.full(6, -0.5)), "segmenter": FeatureNet(widths=(4, 6), classes=4).eval(),
        "subjects": list("abcde"),
    }  # fmt: skip


def walk(parts, cls=widgets.AttributeWalk, names=("first",), **more):
    pick = {key: {name: parts[key][name] for name in names} for key in ("models", "codes", "dials")}
    return cls(pick["models"], parts["data"], codes=pick["codes"], dials=pick["dials"], subjects=parts["subjects"],
               segmenter=parts["segmenter"], ruler=parts["ruler"], **more)  # fmt: skip


def test_a_walk_starts_at_the_subject_and_moves_one_dimension(parts):
    figure, model, codes = walk(parts), parts["models"]["first"], parts["codes"]["first"]
    with torch.no_grad():
        assert np.allclose(figure.image(subject=3), model.decode(codes[3:4])[0].numpy(), atol=1e-6)
        z = codes[3:4].clone()
        (at,), (asked,) = parts["dials"]["first"][2].at([0.5])
        z[0, 2] = float(at)
        assert np.allclose(figure.image(subject=3, MYOEDV=float(asked)), model.decode(z)[0].numpy(), atol=1e-5)


def test_the_others_go_along_by_the_conditional_mean(parts):
    figure = walk(parts, covariance={"first": parts["covariance"]["first"]})
    asked = {"LVEDV": 120, "RVESV": 150}
    state = figure.whole({"subject": 1, "along": True, **asked})
    z, mu = figure.latent(state)[0][0].double().numpy(), parts["codes"]["first"][1].double().numpy()
    sigma, kept, others = parts["covariance"]["first"], [0, 4], [1, 2, 3, 5, 6, 7]
    expected = mu[others] + sigma[np.ix_(others, kept)] @ np.linalg.inv(sigma[np.ix_(kept, kept)]) @ (z[kept] - mu[kept])
    assert np.allclose(z[others], expected, atol=1e-4)
    alone = figure.latent(figure.whole({"subject": 1, **asked}))[0][0].double().numpy()
    assert np.allclose(alone[others], mu[others], atol=1e-6) and np.allclose(alone[kept], z[kept], atol=1e-6)


def test_one_attribute_in_tow_is_the_direction_of_walks_shifted(parts):
    figure, cov = walk(parts, covariance={"first": parts["covariance"]["first"]}), parts["covariance"]["first"]
    z = figure.latent(figure.whole({"RVEDV": 140, "along": True}))[0]
    by_walks = walks.shifted(parts["codes"]["first"][:1].double(), 1, [float(z[0, 1])], cov[1] / cov[1, 1])[0, 0]
    assert torch.allclose(z[0].double(), by_walks, atol=1e-4)


def test_every_model_has_its_own_dial(parts):
    both = walk(parts, widgets.ModelComparison, ("first", "second"))
    one, other = both.latent(both.whole({"LVESV": 160}))
    for z, name in ((one, "first"), (other, "second")):
        code, volume = float(z[0, 3]), 160.0
        dial = parts["dials"][name][3]
        assert abs(float(np.interp(code, dial.codes, dial.volumes)) - volume) < 6
    assert both.image().shape == (4, 16, 16)


def test_the_line_between_two_subjects(parts):
    figure = widgets.Interpolation(
        {"first": parts["models"]["first"]}, parts["data"], codes={"first": parts["codes"]["first"]}, subjects=parts["subjects"],
        truth=np.ones((5, 6)), segmenter=parts["segmenter"], ruler=parts["ruler"],
    )  # fmt: skip
    codes = parts["codes"]["first"]
    for t in (0.0, 0.25, 1.0):
        assert torch.allclose(figure.latent(figure.whole({"a": 4, "b": 2, "t": t}))[0][0], torch.lerp(codes[4], codes[2], t), atol=1e-6)


def test_the_page_holds_what_the_view_needs(parts):
    figure = walk(parts, python={"first": "model"})
    page = figure.page()
    spec = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1))
    assert [a["name"] for a in spec["attributes"]] == list(ATTRIBUTES)
    assert spec["graphs"]["decoder0"]["inputs"] == {"z": [1, D]} and spec["regions"] == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]
    assert "<noscript>" in page and 'class="live-still"' in page and "alt=" in page
    assert not re.findall(r"https?://", page), "nothing from another host"
    tables = load(figure.tables)
    assert np.allclose(tables["codes0"], parts["codes"]["first"]) and tables["dial0"].shape == (6, 25)
    assert figure.page() == page, "the same figure is the same page"


def test_stored_pictures_are_those_of_each_slider_alone(parts, tmp_path):
    figure = walk(parts)
    sheet = figure.sheet()
    assert sheet.shape == (16 * 8, 32 * 9), "seven axes and the start, nine values, two frames"
    row, column = 4, 6  # subject, LVEDV, RVEDV, MYOEDV, LVESV
    asked = figure.axes["LVESV"][column]
    tile = np.round(255 * np.concatenate(list(figure.image(LVESV=asked)), 1))
    assert (sheet[16 * row : 16 * (row + 1), 32 * column : 32 * (column + 1)] == tile).all()
    assert (sheet[-16:, :32] == figure.tile({})).all()
    figure.write(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".onnx", ".webp"} and figure.stored in {p.name for p in tmp_path.iterdir()}


def test_shown_it_leaves_its_files_only_where_it_is_told_to(parts, tmp_path, monkeypatch):
    monkeypatch.delenv(live.STATIC, raising=False)
    data, _ = walk(parts)._repr_mimebundle_()
    assert "text/html" in data and data["text/plain"] == "AttributeWalk()"
    monkeypatch.setenv(live.STATIC, str(tmp_path / "static"))
    monkeypatch.setenv(live.PROBES, str(tmp_path / "probes"))
    walk(parts)._repr_mimebundle_()
    files = {path.name for path in (tmp_path / "static" / "live").iterdir()}
    assert {path.stem for path in (tmp_path / "probes").iterdir()} == {name for name in files if name.endswith(".onnx")}


def answered(figure, message, buffers):
    """What the view would be sent."""
    sent = []
    figure.send = lambda content, buffers=None: sent.append((content, buffers))
    figure._answer(figure, message, buffers)
    return sent[0]


def test_the_kernel_answers_what_torch_gives(parts):
    figure, z = walk(parts), np.random.default_rng(0).standard_normal((1, D)).astype(np.float32)
    content, buffers = answered(figure, {"id": 7, "graph": "decoder0", "inputs": ["z"]}, [memoryview(z.tobytes())])
    assert content == {"id": 7, "outputs": [["image", [1, 2, 16, 16]]]}
    with torch.no_grad():
        expected = parts["models"]["first"].decode(torch.from_numpy(z)).numpy()
    assert np.allclose(np.frombuffer(buffers[0], np.float32).reshape(expected.shape), expected, atol=1e-6)


def test_the_kernel_says_what_went_wrong(parts):
    content, _ = answered(walk(parts), {"id": 1, "graph": "decoder0", "inputs": ["z"]}, [memoryview(b"\0" * 8)])
    assert content["id"] == 1 and "reshape" in content["error"]
    content, _ = answered(walk(parts), {"id": 2, "graph": "nothing", "inputs": []}, [])
    assert content["id"] == 2 and "nothing" in content["error"]


def test_unknown_controls_and_codes_of_other_models_are_refused(parts):
    with pytest.raises(ValueError, match="a control must be one of subject, LVEDV, .*, got 'LVED'"):
        walk(parts).image(LVED=100)
    with pytest.raises(ValueError, match="`codes` must hold as many subjects for each of the models first"):
        widgets.Interpolation(
            {"first": parts["models"]["first"]}, parts["data"], codes={"second": parts["codes"]["first"]}, subjects=["a"],
            truth=np.ones((1, 6)), segmenter=parts["segmenter"], ruler=parts["ruler"],
        )  # fmt: skip


@pytest.mark.parametrize("state", [{"subject": 5}, {"subject": -1}, {"subject": 0.5}])
def test_a_subject_who_is_not_there_is_refused(parts, state):
    with pytest.raises(ValueError, match="`subject` must be a whole number from 0 to 4, got"):
        walk(parts).image(**state)


def test_what_is_missing_for_a_model_is_named(parts):
    with pytest.raises(ValueError, match="`dials` must be given for each of the models first, got second"):
        widgets.AttributeWalk(
            {"first": parts["models"]["first"]}, parts["data"], codes={"first": parts["codes"]["first"]}, subjects=parts["subjects"],
            dials={"second": parts["dials"]["second"]}, segmenter=parts["segmenter"], ruler=parts["ruler"],
        )  # fmt: skip
    with pytest.raises(ValueError, match="`covariance` must be given for each of the models first, got second"):
        walk(parts, covariance={"second": parts["covariance"]["second"]})
    with pytest.raises(ValueError, match="`subjects` must name each of the 5 codes, got 2 names"):
        walk(parts | {"subjects": ["a", "b"]})


def test_a_volume_beyond_the_dial_is_its_end(parts):
    figure = walk(parts)
    end = figure.spec["attributes"][0]["max"]
    assert np.allclose(figure.image(LVEDV=10_000), figure.image(LVEDV=end + 1), atol=1e-6)


def test_the_script_is_one_closed_scope():
    script = live.script()
    assert script.startswith("(() => {") and "window.medvaeLive" in script
    assert "import " not in re.sub(r"//.*", "", script).replace("import(", ""), "a classic script has no static imports"
    assert not re.findall(r"https?://(?!www\.w3\.org)", script)
