"""The published step, pass by pass, and the package's: the same gradients, so what is saved was never used."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from literal_step import LiteralStep, VGG19Shaped  # noqa: E402

from medvae_lite.losses import Step  # noqa: E402
from medvae_lite.nets import FeatureNet  # noqa: E402
from medvae_lite.sivae import ARSIVAE  # noqa: E402

PUBLISHED = {
    "gamma_reg": 0.05, "beta_rec": 0.8, "beta_kl": 1.0, "delta": 10.0, "alpha_pl": 0.3, "alpha_mse": 0.1 / 512,
    "alpha_mse_fake": 0.1, "fake_recon": True, "fakes": 2, "scale": "pixels", "repulsion": 0.125,
}  # fmt: skip


def ours_and_literal(**switches):
    """Gradients of encoder and decoder by the package and pass by pass (networks compute in float32)."""
    torch.manual_seed(0)
    model = ARSIVAE(size=16, latent_dim=8, attributes=3, widths=(8, 8, 16), **PUBLISHED, features=FeatureNet(widths=(8, 8)))
    data = SimpleNamespace(image=torch.rand(5, 2, 16, 16), attributes=torch.randn(5, 3))
    step = Step(torch.Generator().manual_seed(1), torch.device("cpu"))
    draws = [torch.randn(s, generator=torch.Generator().manual_seed(n)) for n, s in enumerate([(5, 8), (5, 8), (10, 8)])]
    step.noise = lambda *shape, left=list(draws): left.pop(0)
    names = [n for n, _ in model.named_parameters()]
    for update in model.updates():
        for p in model.parameters():
            p.requires_grad_(any(p is chosen for chosen in update.parameters))
        update.loss(data, step).total().mean().backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    LiteralStep(model, **switches).gradients(data.image, data.attributes, *draws)
    literal = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert list(ours) == list(literal) == names
    return ours, literal, model


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_the_same_objective_without_the_waste(frozen, cached):
    ours, literal, _ = ours_and_literal(eta=False, frozen=frozen, cached=cached)
    for name in ours:
        torch.testing.assert_close(ours[name], literal[name], rtol=1e-3, atol=1e-4 * float(ours[name].abs().max()), msg=name)


def test_eta_changes_no_more_than_rounding_does():
    _, without, _ = ours_and_literal(eta=False)
    _, literal, model = ours_and_literal(eta=True)
    for name in without:
        difference = float((without[name] - literal[name]).abs().max())
        assert difference <= 1e-6 * float(without[name].abs().max()), name
    assert all(p.grad.abs().sum() > 0 for p in model.feature_net.levels.parameters() if p.ndim > 1)  # paid for, unused


def test_the_shape_of_vgg19():
    net = VGG19Shaped()
    assert sum(p.numel() for p in net.parameters()) == 3_505_728
    assert [tuple(m.shape[1:]) for m in net.features(torch.rand(1, 1, 32, 32))] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
