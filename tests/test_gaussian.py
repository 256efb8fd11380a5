"""Laws of diagonal Gaussians, with `torch.distributions` as the oracle; float64 throughout."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from medvae_lite.gaussian import Gaussian, kl, kl_to_standard, log_prob, sample

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def gaussian(batch=7, dims=5, spread=1.0):
    return Gaussian(*(spread * torch.randn(2, batch, dims, dtype=torch.float64)))


def standard(like):
    return Gaussian(torch.zeros_like(like.mu), torch.zeros_like(like.logvar))


def oracle(q):
    return Independent(Normal(q.mu, (0.5 * q.logvar).exp()), 1)


def test_kl_agrees_with_torch():
    q, p = gaussian(spread=2), gaussian()
    torch.testing.assert_close(kl(q, p), kl_divergence(oracle(q), oracle(p)), **EXACT)


def test_kl_to_standard_agrees_with_torch():
    q = gaussian(spread=2)
    torch.testing.assert_close(kl_to_standard(q), kl_divergence(oracle(q), oracle(standard(q))), **EXACT)


def test_log_prob_agrees_with_torch():
    q = gaussian()
    z = torch.randn_like(q.mu)
    torch.testing.assert_close(log_prob(q, z), oracle(q).log_prob(z), **EXACT)


def test_kl_fixture():
    q = Gaussian(torch.tensor([[1, 0], [0.5, -0.5]]), torch.tensor([[0, -1], [0.2, 0.3]]))
    expected = torch.tensor([0.6839397, 0.2856308])
    torch.testing.assert_close(kl_to_standard(q), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(kl(q, standard(q)), expected, rtol=0, atol=1e-7)


def test_kl_is_zero_where_equal_and_positive_elsewhere():
    q = gaussian()
    assert torch.equal(kl(q, q), torch.zeros(7, dtype=torch.float64))
    assert torch.equal(kl_to_standard(standard(q)), torch.zeros(7, dtype=torch.float64))
    for changed in (q._replace(mu=q.mu + 1e-3), q._replace(logvar=q.logvar - 1e-3)):
        assert (kl(q, changed) > 0).all() and (kl(changed, q) > 0).all()


def test_kl_adds_over_dimensions():
    q, p = gaussian(dims=4), gaussian(dims=4)
    parts = [kl(Gaussian(q.mu[:, d], q.logvar[:, d]), Gaussian(p.mu[:, d], p.logvar[:, d])) for d in ([0, 1], [2, 3])]
    torch.testing.assert_close(parts[0] + parts[1], kl(q, p), **EXACT)


def test_kl_is_unmoved_by_a_change_of_unit():
    q, p = gaussian(), gaussian()
    scaled = [Gaussian(3 * g.mu, g.logvar + 2 * torch.tensor(3.0).double().log()) for g in (q, p)]
    torch.testing.assert_close(kl(*scaled), kl(q, p), rtol=1e-10, atol=1e-10)


def test_sample_is_the_reparameterisation():
    q = gaussian()
    torch.testing.assert_close(sample(q, torch.zeros_like(q.mu)), q.mu, **EXACT)
    one = torch.ones_like(q.mu)
    torch.testing.assert_close(sample(q, one) - q.mu, (0.5 * q.logvar).exp(), **EXACT)
    torch.testing.assert_close(sample(q, one) - q.mu, q.std, **EXACT)


def test_samples_have_the_mean_and_the_variance():
    count = 40_000
    q = Gaussian(*(value.expand(count, 3) for value in gaussian(batch=1, dims=3)))
    z = sample(q, torch.randn_like(q.mu))
    mean_error, variance_ratio = (z.mean(0) - q.mu[0]) / q.std[0], z.var(0) / q.std[0].square()
    assert mean_error.abs().max() < 5 / count**0.5  # five standard errors
    assert (variance_ratio - 1).abs().max() < 5 * (2 / count) ** 0.5


def test_kl_is_the_mean_of_the_log_ratio():
    count = 40_000
    q, p = (Gaussian(*(value.expand(count, 3) for value in gaussian(batch=1, dims=3, spread=0.5))) for _ in "qp")
    z = sample(q, torch.randn_like(q.mu))
    ratio = log_prob(q, z) - log_prob(p, z)
    assert (ratio.mean() - kl(q, p)[0]).abs() < 5 * ratio.std() / count**0.5


def test_the_gradient_of_the_kl_reaches_both_parameters():
    q = Gaussian(*(value.requires_grad_() for value in gaussian()))
    kl_to_standard(q).sum().backward()
    torch.testing.assert_close(q.mu.grad, q.mu.detach(), **EXACT)
    torch.testing.assert_close(q.logvar.grad, 0.5 * (q.logvar.detach().exp() - 1), **EXACT)


@pytest.mark.parametrize("logvar", [-10.0, 10.0])
def test_extreme_variances_stay_finite(logvar):
    q = Gaussian(torch.zeros(1, 4), torch.full((1, 4), logvar))
    assert torch.isfinite(kl_to_standard(q)).all() and torch.isfinite(log_prob(q, q.mu)).all()
