"""Networks for pages: the file gives what torch gives, weights in half precision cost no more than their rounding."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from medvae_lite.export import FORMAT, SMALL, Graph, Labeller, normal
from medvae_lite.nets import Decoder, FeatureNet


def decoder(size=32, latent_dim=6, seed=0):
    torch.manual_seed(seed)
    module = Decoder(channels=2, size=size, latent_dim=latent_dim)
    return Graph("decoder", module.eval(), {"z": (1, latent_dim)}, ("image",))


def run(data, **inputs):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs)))


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("half, bound", [(False, 1e-5), (True, 1e-2)])
def test_a_decoder_in_onnx_draws_what_torch_draws(size, half, bound):
    graph, rng = decoder(size), np.random.default_rng(1)
    data = graph.onnx(half=half)
    for _ in range(3):
        given = graph.draw(rng)
        assert np.abs(run(data, **given)["image"] - graph(**given)["image"]).max() < bound


def test_half_precision_is_the_rounding_of_the_weights_and_nothing_else():
    graph, rng = decoder(), np.random.default_rng(2)
    data = graph.onnx()
    rounded = decoder()
    with torch.no_grad():
        for weight in rounded.module.parameters():
            if weight.numel() > SMALL:
                weight.copy_(weight.half().float())
    given = graph.draw(rng)
    assert np.abs(run(data, **given)["image"] - rounded(**given)["image"]).max() < 1e-5
    assert len(data) < 0.6 * len(graph.onnx(half=False))
    assert {i.data_type for i in onnx.load_from_string(data).graph.initializer if np.prod(i.dims) > SMALL} == {onnx.TensorProto.FLOAT16}


def test_a_weight_that_halves_cannot_hold_is_kept_whole():
    graph = decoder()
    with torch.no_grad():
        graph.module.stem.weight.mul_(0).add_(1e-3)[0, 0] = 1e5
    given = {"z": np.full((1, 6), 1e-5, np.float32)}
    assert np.isfinite(run(graph.onnx(), **given)["image"]).all()
    assert np.abs(run(graph.onnx(), **given)["image"] - graph(**given)["image"]).max() < 1e-2


def test_exporting_leaves_the_network_as_it_was():
    graph = decoder()
    graph.module.train()
    before = graph(z=np.ones((1, 6), np.float32))["image"]
    graph.onnx()
    assert graph.module.training and (graph(z=np.ones((1, 6), np.float32))["image"] == before).all()


def test_the_same_network_is_the_same_file_and_another_is_not(tmp_path):
    graph = decoder()
    assert graph.onnx() == decoder().onnx()
    assert graph.file == decoder().file
    others = {decoder(seed=1).file, decoder(latent_dim=7).file, decoder(size=64).file}
    assert len(others) == 3 and graph.file not in others
    path = graph.write(tmp_path / "live")
    assert path.name == graph.file and path.read_bytes() == graph.onnx()
    stamp = path.stat().st_mtime_ns
    assert graph.write(tmp_path / "live").stat().st_mtime_ns == stamp, "what is there is not made again"
    assert [p.name for p in path.parent.iterdir()] == [graph.file], "nothing half-written is left"


def test_nothing_of_this_machine_is_in_the_file():
    data = decoder().onnx()
    assert b"/work" not in data and b"site-packages" not in data and b"stack_trace" not in data
    assert FORMAT >= 1


def test_labels_are_those_of_the_network():
    torch.manual_seed(0)
    net = FeatureNet(widths=(4, 6), classes=3).eval()
    graph = Graph("labels", Labeller(net), {"image": (1, 2, 16, 16)}, ("label",))
    given = graph.draw(np.random.default_rng(0))
    with torch.no_grad():
        truth = net(torch.from_numpy(given["image"])[0, :, None]).argmax(1).numpy()
    assert (graph(**given)["label"][0] == truth).all()
    assert (run(graph.onnx(half=False), **given)["label"][0] == truth).mean() > 0.999


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"`decoder` needs inputs of the shapes \{'z': \(1, 6\)\}, got \{'z': \(6,\)\}"):
        decoder()(z=np.zeros(6, np.float32))
    with pytest.raises(ValueError, match="needs inputs of the shapes"):
        decoder()(code=np.zeros((1, 6), np.float32))


def test_several_outputs_keep_their_names():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, a, b):
            return self.layer(a), a + b

    graph = Graph("two", Two(), {"a": (1, 3), "b": (1, 3)}, ("line", "sum"))
    given = {"a": np.ones((1, 3), np.float32), "b": np.full((1, 3), 2, np.float32)}
    assert (graph(**given)["sum"] == 3).all()
    found = run(graph.onnx(), **given)
    assert set(found) == {"line", "sum"} and np.allclose(found["line"], graph(**given)["line"], atol=1e-3)


def test_a_probe_holds_what_torch_gives(tmp_path):
    graph = decoder()
    arrays = load_file(graph.probe(tmp_path, count=3))
    assert arrays["in.z"].shape == (3, 1, 6) and arrays["out.image"].shape == (3, 1, 2, 32, 32)
    assert (graph(z=arrays["in.z"][2])["image"] == arrays["out.image"][2]).all()
    assert len(np.unique(arrays["in.z"])) == 18


def test_normal_numbers_are_normal_and_the_seeds_differ():
    drawn = normal(0, 200_001)
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01 and abs((drawn**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
    assert (normal(0, 10) == drawn[:10]).all(), "a longer draw begins as a shorter one"
    assert abs(np.corrcoef(normal(1, 10_000), drawn[:10_000])[0, 1]) < 0.05
    assert abs(np.corrcoef(normal(1, 10_000)[1:], drawn[:9_999])[0, 1]) < 0.05
