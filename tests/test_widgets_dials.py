"""The knobs: pictures that two ways of decoding agree on, numbers that are the record's, and what is refused."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from _helpers import write_folder
from PIL import Image
from safetensors.torch import save_file

from medvae_lite import datasets, runs, widgets
from medvae_lite.sivae import AttriVAE
from medvae_lite.widgets.dials import SCORES
from medvae_lite.widgets.live import STATIC

LINES = {"reconstruction": "val_recon", "KL": "val_kl"}


def run(folder, size, seed, *, epochs=90):
    """A small model as it is kept, and its record."""
    torch.manual_seed(seed)
    model = AttriVAE(size=size, latent_dim=8, widths=(8, 8)).half().float().eval()
    folder.mkdir(parents=True)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, folder / runs.WEIGHTS)
    steps = np.arange(1, epochs + 1) * 10
    table = pd.DataFrame({"step": steps, "val_recon": 1000.0 / steps + seed, "val_kl": np.where(steps > 500, np.nan, steps * 1.23456)})
    metrics = {metric: 0.123456 * (seed + 1) for metric in SCORES.values()}
    return model, runs.RunRecord(folder, {}, {}, table, metrics)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two knobs, on images of 16 and of 32 pixels."""
    root = tmp_path_factory.mktemp("dials")
    knobs = {}
    for key, size, values in (("beta", 16, (0.1, 0.5, 1.0)), ("gamma", 32, (0.0, 160.0))):
        data = datasets.load(write_folder(root / key, count=40, size=size))
        stops = {value: run(root / f"{key}-{value:g}", size, seed) for seed, value in enumerate(values)}
        knobs[key] = widgets.Knob(key, stops, values[1], data, LINES, "nats", lambda value, record: f"it is {value:g}")
    return knobs


@pytest.fixture(scope="module")
def dials(small):
    return widgets.Dials(small, seed=5)


def sheet(dials, key):
    """The pictures as a page unpacks them."""
    start = dials.tables
    header = json.loads(start[8 : 8 + int.from_bytes(start[:8], "little")])
    first, last = (8 + int.from_bytes(start[:8], "little") + at for at in header[key]["data_offsets"])
    return np.asarray(Image.open(io.BytesIO(start[first:last])).convert("L"))


@torch.no_grad()
@pytest.mark.parametrize(("key", "value"), [("beta", 0.1), ("beta", 0.5), ("beta", 1.0), ("gamma", 0.0), ("gamma", 160.0)])
def test_a_stop_shows_what_the_weights_on_disk_decode(small, dials, key, value):
    """By hand: two test subjects at end-diastole, their posterior means decoded, and four draws of the seed."""
    data, (_, record) = small[key].data, small[key].stops[value]
    model = record.weights_into(AttriVAE(size=data.size, latent_dim=8, widths=(8, 8)))
    subjects = data.subjects.index[data.subjects["split"] == "test"][:2].to_list()
    x = torch.from_numpy(np.load(data.root / "images.npy")[subjects]).float()
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(5))
    hats, drawn = model.decoder(model.encoder(x)[0])[:, 0], model.decoder(z)[:, 0]
    panes = torch.stack([x[0, 0], hats[0], x[1, 0], hats[1], *drawn]).numpy()
    found = dials.image(**{key: value})
    assert found.shape == (8, 32, 32) and len(dials.spec["panes"]) == 8
    times = 32 // data.size
    np.testing.assert_allclose(found[:, ::times, ::times], panes, atol=1e-5)
    np.testing.assert_array_equal(found, found[:, ::times, ::times].repeat(times, 1).repeat(times, 2))
    # The same in the sheet that the page draws: hearts in its first row, a row a stop, half a grey value for rounding.
    stored, row, s = sheet(dials, key), list(small[key].stops).index(value) + 1, data.size
    tiles = stored.reshape(len(stored) // s, s, 6, s).swapaxes(1, 2)
    assert tiles.shape[0] == len(small[key].stops) + 1
    kept = np.concatenate([np.stack([tiles[0, 0], tiles[row, 0], tiles[0, 1], tiles[row, 1]]), tiles[row, 2:]])
    np.testing.assert_allclose(kept, 255 * panes, atol=0.5 + 1e-2)


def test_draws_of_the_runs_of_one_knob_come_from_the_same_codes(small, dials):
    """Only the weights differ: with the same weights the pictures are the same."""
    first = small["beta"].stops[0.1]
    twice = widgets.Knob("same", {0.0: first, 1.0: first}, 0.0, small["beta"].data, LINES)
    same = widgets.Dials({"same": twice})
    np.testing.assert_array_equal(same.image(same=0.0), same.image(same=1.0))
    assert not np.array_equal(dials.image(beta=0.1)[4:], dials.image(beta=1.0)[4:])


def test_one_knob_is_in_hand(dials):
    np.testing.assert_array_equal(dials.image(), dials.image(dial="beta", beta=0.5))
    np.testing.assert_array_equal(dials.image(gamma=0.0), dials.image(dial="gamma", gamma=0.0, beta=1.0))
    np.testing.assert_array_equal(dials.image(dial="gamma"), dials.image(gamma=160.0))


def test_curves_and_scores_are_the_records(small, dials):
    told = {knob["id"]: knob for knob in dials.spec["knobs"]}
    assert list(told) == ["beta", "gamma"] and [knob["own"] for knob in told.values()] == [0.5, 160.0]
    for key, knob in small.items():
        for stop, (value, (_, record)) in zip(told[key]["stops"], knob.stops.items(), strict=True):
            assert (stop["value"], stop["text"], stop["meaning"]) == (value, f"{value:g} nats", f"it is {value:g}")
            assert stop["run"] == record.folder.name
            assert len(stop["steps"]) <= 60 and (stop["steps"][0], stop["steps"][-1]) == (10, 900)
            rows = record.epochs.set_index("step").loc[stop["steps"]]
            for curve, column in zip(stop["curves"], LINES.values(), strict=True):
                known = np.array([np.nan if y is None else y for y in curve])
                np.testing.assert_allclose(known, rows[column], rtol=0.005)
            assert [float(score) for score in stop["scores"]] == pytest.approx(list(record.metrics.values()), rel=0.005)
    assert told["beta"]["scores"] == list(SCORES) and told["beta"]["curves"] == list(LINES)
    json.dumps(dials.spec, allow_nan=False)


def test_scores_may_be_functions_and_what_was_not_measured_is_a_dash(small):
    shown = widgets.Dials({"beta": small["beta"]}, scores={"twice": lambda r: 2 * r.metrics["mse"], "gone": lambda r: float("nan")})
    assert shown.spec["knobs"][0]["stops"][0]["scores"] == ["0.247", "–"]


def test_a_page_needs_no_other_file(dials, tmp_path, monkeypatch):
    monkeypatch.setenv(STATIC, str(tmp_path))
    bundle, _ = dials._repr_mimebundle_()
    assert not list(tmp_path.rglob("*.*")), "no decoder, no stored pictures"
    spec = json.loads(re.search(r'<script type="application/json">(.*?)</script>', bundle["text/html"], re.DOTALL).group(1))
    assert spec["graphs"] == {} and "stored" not in spec and spec["view"] == "dials"


@pytest.mark.parametrize(("state", "said"), [
    ({"beta": 0.3}, "`beta` must be one of 0.1, 0.5, 1, got 0.3"),
    ({"beta": 0.1, "gamma": 0.0}, "one knob at a time: name one of beta, gamma"),
    ({"dial": "delta"}, "`dial` must be one of beta, gamma, got 'delta'"),
    ({"delta": 1.0}, "a control must be one of dial, beta, gamma, got 'delta'"),
])  # fmt: skip
def test_states_that_are_none(dials, state, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        dials.image(**state)


def test_knobs_that_are_none(small, tmp_path):
    stops, data = dict(small["beta"].stops), small["beta"].data
    record = stops[1.0][1]
    light = runs.RunRecord(Path(tmp_path), {}, {}, record.epochs, record.metrics)
    for changed, own, curves, said in (
        ({0.1: stops[0.1]}, 0.1, LINES, "`stops` of 'k' must be two values or more, ascending"),
        (dict(reversed(stops.items())), 0.1, LINES, "`stops` of 'k' must be two values or more, ascending"),
        (stops, 0.2, LINES, "`own` of 'k' must be one of its stops [0.1, 0.5, 1.0], got 0.2"),
        (stops, 0.1, {}, "`curves` of 'k' must be one or two, got 0"),
        (stops, 0.1, {"a": "nothing"}, "must have the column 'nothing'"),
        (stops | {2.0: (stops[1.0][0], light)}, 0.1, LINES, "the record of k 2 must keep its weights"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            widgets.Knob("k", changed, own, data, curves)


def test_figures_that_are_none(small, tmp_path):
    for knobs, more, said in (
        ({}, {}, "`knobs` must have one keyword or more"),
        ({"dial": small["beta"]}, {}, "none called 'dial'"),
        ({"a b": small["beta"]}, {}, "`knobs` must have one keyword or more that Python allows"),
        ({"beta": small["beta"]}, {"scores": {"x": "unmeasured"}}, "must have the metric 'unmeasured'"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            widgets.Dials(knobs, **more)
    odd = datasets.load(write_folder(tmp_path / "odd", count=40, size=24))
    third = widgets.Knob("odd", {v: run(tmp_path / f"{v}", 24, 0) for v in (1.0, 2.0)}, 1.0, odd, LINES)
    with pytest.raises(ValueError, match=re.escape("image sizes must divide the largest of them, got [16, 24, 32]")):
        widgets.Dials({**small, "odd": third})
