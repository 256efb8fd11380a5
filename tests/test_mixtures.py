"""Residual posteriors and mixtures: `torch.distributions`, quadrature and hand-worked figures as oracles."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from medvae_lite.gaussian import Gaussian, kl, log_prob, sample
from medvae_lite.mixtures import (
    component_log_prob,
    mixture_kl,
    mixture_kl_bound,
    mixture_log_prob,
    residual,
    residual_kl,
    responsibilities,
    standard,
)

EXACT = {"rtol": 1e-12, "atol": 1e-10}


def gaussian(batch=7, dims=6, spread=1.0):
    return Gaussian(*(spread * torch.randn(2, batch, dims, dtype=torch.float64)))


def oracle(q):
    return Independent(Normal(q.mu, (0.5 * q.logvar).exp()), 1)


def test_residual_kl_is_the_kl_of_the_residual_posterior():
    p, delta = gaussian(), gaussian()
    torch.testing.assert_close(residual_kl(p, delta), kl_divergence(oracle(residual(p, delta)), oracle(p)), **EXACT)


def test_residual_kl_vanishes_where_the_posterior_is_the_prior():
    p = gaussian(spread=2)
    nothing = Gaussian(torch.zeros_like(p.mu), torch.zeros_like(p.logvar))
    assert residual_kl(p, nothing).abs().max() == 0


def test_the_printed_equation_4_does_not_vanish_there():
    """With the prior's variance in the logarithm, as printed, a posterior equal to its prior costs minus log sigma."""
    p = gaussian()
    zero = torch.zeros_like(p.mu)
    printed = 0.5 * (zero**2 / p.logvar.exp() + 1 - p.logvar - 1).sum(-1)
    assert (printed.abs() > 1e-3).all()
    torch.testing.assert_close(printed, -0.5 * p.logvar.sum(-1), **EXACT)


def test_mixture_log_prob_agrees_with_torch():
    components, z = gaussian(4), torch.randn(9, 6, dtype=torch.float64)
    mixture = MixtureSameFamily(Categorical(torch.ones(4, dtype=torch.float64)), oracle(components))
    torch.testing.assert_close(mixture_log_prob(components, z), mixture.log_prob(z), **EXACT)


def test_one_component_gives_the_exact_divergence():
    q, p = gaussian(1), gaussian(1)
    draws = Gaussian(*(t.expand(200_000, -1) for t in q))
    estimate = mixture_kl(draws, p, sample(draws, torch.randn(200_000, 6, dtype=torch.float64)))
    # A draw's spread over the root of their number, four times.
    assert abs(estimate.mean() - kl(q, p)[0]) < 4 * estimate.std() / math.sqrt(200_000)
    assert torch.allclose(mixture_kl_bound(q, p), kl(q, p))


def test_mixture_kl_agrees_with_quadrature():
    q = Gaussian(torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[-0.6]], dtype=torch.float64))
    parts = Gaussian(torch.tensor([[-1.0], [0.2], [2.0]], dtype=torch.float64), torch.tensor([[0.1], [-1.2], [0.5]], dtype=torch.float64))
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    dense = Gaussian(*(t.expand(len(grid), -1) for t in q))
    log_q = log_prob(dense, grid)
    exact = float((log_q.exp() * (log_q - mixture_log_prob(parts, grid))).sum() * (grid[1] - grid[0]))
    draws = Gaussian(*(t.expand(400_000, -1) for t in q))
    estimate = mixture_kl(draws, parts, sample(draws, torch.randn(400_000, 1, dtype=torch.float64)))
    assert abs(float(estimate.mean()) - exact) < 4 * float(estimate.std()) / math.sqrt(400_000)
    assert exact < float(mixture_kl_bound(q, parts)[0])


def test_the_bound_lies_between_the_divergence_and_the_nearest_component():
    q, parts = gaussian(5, 3), gaussian(4, 3)
    bound = mixture_kl_bound(q, parts)
    nearest = torch.stack([kl(q, Gaussian(m[None], s[None])) for m, s in zip(*parts)]).amin(0)
    assert (bound <= nearest + math.log(4) + 1e-9).all()
    many = Gaussian(*(t[None].expand(20_000, -1, -1).reshape(-1, 3) for t in q))
    z = sample(many, torch.randn_like(many.mu))
    estimate = mixture_kl(many, parts, z).unflatten(0, (20_000, 5))
    assert (estimate.mean(0) <= bound + 4 * estimate.std(0) / math.sqrt(20_000)).all()


def test_the_same_draw_in_both_logarithms_is_less_noisy_than_the_exact_entropy():
    """NVMP+'s estimator: the logarithms rise and fall together, so their difference is steadier than either."""
    dims = 256
    p = Gaussian(torch.zeros(4000, dims), torch.zeros(4000, dims))
    parts = Gaussian(0.2 * torch.randn(8, dims), 0.1 * torch.randn(8, dims))
    z = sample(p, torch.randn(4000, dims))
    shared = mixture_kl(p, parts, z)
    entropy = 0.5 * dims * (1 + math.log(2 * math.pi))
    analytic = -entropy - mixture_log_prob(parts, z)
    assert abs(float(shared.mean() - analytic.mean())) < 4 * float(analytic.std()) / math.sqrt(4000)
    assert shared.std() < 0.5 * analytic.std()


def test_places_choose_their_components_each_for_themselves():
    """Two places, one channel: the mixture of the plane is the product of two mixtures of one dimension."""
    parts, z = gaussian(3, 2), torch.randn(5, 2, dtype=torch.float64)
    apart = [mixture_log_prob(Gaussian(parts.mu[:, i : i + 1], parts.logvar[:, i : i + 1]), z[:, i : i + 1]) for i in range(2)]
    torch.testing.assert_close(mixture_log_prob(parts, z, places=2), apart[0] + apart[1], **EXACT)
    assert component_log_prob(parts, z, places=2).shape == (5, 3, 2)


def test_channels_of_one_place_go_together():
    """D = channels x places, channels first: a place's component is chosen for all its channels at once."""
    parts, z = gaussian(3, 4), torch.randn(5, 4, dtype=torch.float64)
    first = Gaussian(parts.mu[:, [0, 2]], parts.logvar[:, [0, 2]])
    second = Gaussian(parts.mu[:, [1, 3]], parts.logvar[:, [1, 3]])
    expected = mixture_log_prob(first, z[:, [0, 2]]) + mixture_log_prob(second, z[:, [1, 3]])
    torch.testing.assert_close(mixture_log_prob(parts, z, places=2), expected, **EXACT)


def test_every_image_may_have_its_own_components():
    parts, z = gaussian(3), torch.randn(2, 6, dtype=torch.float64)
    own = Gaussian(*(torch.stack([t, t + 1]) for t in parts))
    moved = Gaussian(parts.mu + 1, parts.logvar + 1)
    expected = torch.stack([mixture_log_prob(parts, z[:1])[0], mixture_log_prob(moved, z[1:])[0]])
    torch.testing.assert_close(mixture_log_prob(own, z), expected, **EXACT)


def test_responsibilities_are_bayes_rule():
    parts, z = gaussian(4), torch.randn(9, 6, dtype=torch.float64)
    density = component_log_prob(parts, z)[..., 0].exp()
    torch.testing.assert_close(responsibilities(parts, z)[..., 0], density / density.sum(1, keepdim=True), **EXACT)


@pytest.mark.parametrize("count", [1, 7])
def test_standard_is_standard(count):
    p = standard(count, 3, torch.zeros(1))
    assert p.mu.shape == (count, 3) and float(log_prob(p, torch.zeros(count, 3))[0]) == pytest.approx(-1.5 * np.log(2 * np.pi))
