"""The product of experts against numerical integration, in float64."""

import itertools

import pytest
import torch

from medvae_lite.experts import LIMIT, product, shares


def experts(m=3, b=4, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mu, logvar = (torch.randn(m, b, d, dtype=torch.float64, generator=generator) for _ in range(2))
    return mu, 1.5 * logvar


def density(z, mu, logvar):
    return torch.exp(-0.5 * (z - mu) ** 2 / torch.exp(logvar)) / torch.exp(0.5 * logvar)


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("have", [(True, True, True), (True, False, True), (False, True, False)])
def test_agrees_with_integration_on_a_grid(prior, have):
    mu, logvar = experts()
    available = torch.tensor(have)[:, None].expand(3, 4)
    q = product(mu, logvar, available, prior=prior)
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    for b, d in itertools.product(range(4), range(2)):
        p = torch.ones_like(z) * (torch.exp(-0.5 * z**2) if prior else 1)
        for i in range(3):
            if have[i]:
                p = p * density(z, mu[i, b, d], logvar[i, b, d])
        p = p / p.sum()
        mean = (p * z).sum()
        assert q.mu[b, d] == pytest.approx(float(mean), abs=1e-8)
        assert q.logvar[b, d].exp() == pytest.approx(float((p * (z - mean) ** 2).sum()), rel=1e-8)


def test_the_order_of_experts_does_not_matter():
    mu, logvar = experts(m=4)
    first = product(mu, logvar)
    for order in itertools.permutations(range(4)):
        again = product(mu[list(order)], logvar[list(order)])
        torch.testing.assert_close(again.mu, first.mu)
        torch.testing.assert_close(again.logvar, first.logvar)


def test_two_products_in_a_row_are_one():
    mu, logvar = experts(m=3)
    two = product(mu[:2], logvar[:2], prior=False)
    chained = product(torch.stack([two.mu, mu[2]]), torch.stack([two.logvar, logvar[2]]))
    whole = product(mu, logvar)
    torch.testing.assert_close(chained.mu, whole.mu)
    torch.testing.assert_close(chained.logvar, whole.logvar)


def test_nobody_available_is_the_prior():
    mu, logvar = experts()
    q = product(mu, logvar, torch.zeros(3, 4, dtype=torch.bool))
    assert torch.equal(q.mu, torch.zeros_like(q.mu)) and torch.equal(q.logvar, torch.zeros_like(q.logvar))


def test_an_expert_can_only_add_certainty_and_never_exceeds_the_prior():
    mu, logvar = experts(m=3)
    one, all_three = (product(mu[:n], logvar[:n]).logvar for n in (1, 3))
    assert (all_three < one).all() and (one < 0).all()


def test_shares_are_the_weights_of_the_mean_and_the_prior_has_the_rest():
    mu, logvar = experts()
    weight = shares(logvar)
    torch.testing.assert_close((weight * mu).sum(0), product(mu, logvar).mu)
    torch.testing.assert_close(1 - weight.sum(0), product(mu, logvar).logvar.exp())
    torch.testing.assert_close(shares(logvar, prior=False).sum(0), torch.ones(4, 2, dtype=torch.float64))


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_extreme_certainty_overflows_nothing(extreme):
    mu, logvar = torch.ones(2, 1, 1), torch.tensor([[[extreme]], [[0.0]]])
    q = product(mu.requires_grad_(), logvar.requires_grad_())
    (q.mu + q.logvar).sum().backward()
    assert all(torch.isfinite(t).all() for t in (q.mu, q.logvar, mu.grad, logvar.grad))
    assert q.mu.item() == pytest.approx(1.0 if extreme < 0 else 0.5, abs=1e-6)
    assert q.logvar.item() >= -LIMIT - 1e-4


def test_the_published_code_agrees_where_its_epsilons_do_not_matter():
    """Kumar et al.'s code adds 1e-8 three times; our precision form needs none."""
    mu, logvar = experts()
    var = torch.cat([torch.ones(1, 4, 2), torch.exp(logvar)]) + 1e-8
    precision = 1 / (var + 1e-8)
    q = product(mu, logvar)
    torch.testing.assert_close(q.mu, (torch.cat([torch.zeros(1, 4, 2), mu]) * precision).sum(0) / precision.sum(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(q.logvar, torch.log(1 / precision.sum(0) + 1e-8), atol=1e-6, rtol=0)
