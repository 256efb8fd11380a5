"""Edits by layer: nothing edited changes nothing, and each way of keeping a layer keeps what it says."""

import pytest
import torch

from medvae_lite.edits import decode, layer_shares, mix, resample, scale
from medvae_lite.hvae import PRIORS, HVAE
from medvae_lite.losses import Step


def step(seed=0):
    return Step(torch.Generator().manual_seed(seed), torch.device("cpu"))


def model(prior="nvae", size=(32, 32)):
    """A small model, its heads set at random so that no layer is at its starting point."""
    torch.manual_seed(0)
    made = HVAE(size=size, prior=prior, widths=(4, 6, 8, 8, 8), components=3, cycle=0)
    with torch.no_grad():
        for head in [*made.p_heads, *made.q_heads]:
            torch.nn.init.normal_(head[-1].weight, std=0.2)
    return made


@pytest.mark.parametrize("mode", ["absolute", "residual"])
@pytest.mark.parametrize("prior", PRIORS)
def test_editing_nothing_changes_nothing(prior, mode):
    m, x = model(prior), torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        image, way = m.infer(x)
    for edited in (mix(m, way, way, [2], mode=mode), resample(m, way, [], step(), mode=mode), scale(m, way, 2, 1.0, mode=mode)):
        torch.testing.assert_close(edited, image, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(decode(m, [z for z, *_ in way]), image, rtol=1e-4, atol=1e-4)


def test_the_two_ways_of_keeping_a_layer():
    """Take layer 0 from another image: absolute keeps the values below, residual lets them follow."""
    m = model("nvae")
    with torch.no_grad():
        _, a = m.infer(torch.randn(2, 1, 32, 32))
        _, b = m.infer(torch.randn(2, 1, 32, 32) + 1)
    seen = {}
    real = m.descend
    for mode in ("absolute", "residual"):

        def watch(count, choose, features=None, mode=mode):
            image, way = real(count, choose, features)
            seen[mode] = way
            return image, way

        m.descend = watch
        mix(m, a, b, [0], mode=mode)
    assert torch.equal(seen["absolute"][3].z, a[3].z)
    torch.testing.assert_close(seen["residual"][3].residual, a[3].residual, rtol=1e-3, atol=1e-3)
    assert (seen["residual"][1].z - a[1].z).abs().max() > 1e-3


@pytest.mark.parametrize("prior", PRIORS)
def test_layer_shares_add_up(prior):
    m = model(prior, (16, 16))
    maps, shares = layer_shares(m, step(), outer=6, inner=4)
    assert maps.shape == (5, 16, 16) and shares.sum() == pytest.approx(1)


def test_layer_shares_find_the_layer_that_varies():
    """Only layer 3 reaches the image: all variance is its own."""
    m = model("vae", (32, 32))
    with torch.no_grad():
        for layer, merge in enumerate(m.merge):
            if layer != 3:
                merge.weight[:, -2:] = 0
    shares = layer_shares(m, step(), outer=24, inner=12)[1]
    assert shares[3] == pytest.approx(1, abs=0.1) and abs(shares[4]) < 1e-6


def test_edits_refuse_layers_and_modes_that_do_not_exist():
    m = model()
    with torch.no_grad():
        _, way = m.infer(torch.randn(1, 1, 32, 32))
    with pytest.raises(ValueError, match="`layers` must be from 0 to 4, got 7"):
        mix(m, way, way, [7])
    with pytest.raises(ValueError, match="`mode` must be absolute or residual"):
        mix(m, way, way, [2], mode="relative")
