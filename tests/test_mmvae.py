"""The multimodal VAE: its terms against loops and closed forms, its masks, and each defect of the published code."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from medvae_lite.datasets import Batch, Split
from medvae_lite.losses import Step
from medvae_lite.mmvae import Bank, PoEVAE
from medvae_lite.train import FitConfig, fit

SIZES = {"a": 5, "b": 3, "c": 2}


def table(n=12, seed=0, missing=()):
    generator = torch.Generator().manual_seed(seed)
    x, c = torch.randn(n, 10, generator=generator), torch.randn(n, 4, generator=generator)
    observed = torch.ones(n, 10, dtype=torch.uint8)
    for row, columns in missing:
        observed[row, columns] = 0
    return Batch((x * observed)[..., None, None], c, observed[..., None, None], torch.arange(n))


def step(seed=0, number=0):
    return Step(torch.Generator().manual_seed(seed), torch.device("cpu"), number)


def model(**settings):
    torch.manual_seed(0)
    return PoEVAE(**{"sizes": SIZES, "covariates": 4, "latent_dim": 3, "hidden": (8, 6)} | settings)


def test_a_bank_is_its_perceptrons_side_by_side():
    torch.manual_seed(1)
    bank = Bank(3, (4, 8, 2))
    h = torch.randn(3, 7, 4)
    for i, out in enumerate(bank(h)):
        hidden = torch.relu(h[i] @ bank.weights[0][i] + bank.biases[0][i])
        torch.testing.assert_close(out, hidden @ bank.weights[1][i] + bank.biases[1][i])


def test_a_bank_starts_like_linear_layers_of_each_ones_true_width():
    torch.manual_seed(0)
    bank = Bank(2, (100, 400), fan_in=[100, 25])
    for weight, inputs in zip(bank.weights[0], (100, 25)):
        expected = nn.Linear(inputs, 400).weight
        assert weight.abs().max().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.01)
        assert weight.std().item() == pytest.approx(expected.std().item(), rel=0.05)


def test_padding_and_back():
    x = torch.randn(6, 10)
    padded = model().pad(x)
    assert padded.shape == (3, 6, 5) and padded[2, :, 2:].abs().max() == 0
    assert torch.equal(model().flat(padded), x)


@pytest.mark.parametrize("likelihood", ["learned", "published"])
def test_terms_against_a_loop(likelihood):
    net, batch = model(likelihood=likelihood, lambdas={"b": 2.0}), table(missing=[(0, slice(5, 8)), (1, slice(0, 5))])
    terms = net.elbo(batch, step())
    x, observed, c = batch.image.flatten(1), batch.labels.flatten(1), batch.attributes
    available = torch.stack([observed[:, k] > 0 for k in (0, 5, 8)])
    q = net.encode(x, c, available)
    x_hat = net.decode(q.mu + q.std * step().noise(*q.mu.shape), c).detach()
    weight = [1.0] * 5 + [2.0] * 3 + [1.0] * 2
    logvar = net.flat(net.logvar_x.expand(-1, 1, -1))[0].tolist()
    for b in range(12):
        recon = 0.0
        for f in range(10):
            squared = float((x[b, f] - x_hat[b, f]) ** 2)
            if likelihood == "learned":
                squared = -stats.norm.logpdf(float(x[b, f]), float(x_hat[b, f]), math.exp(logvar[f] / 2)) - 0.5 * math.log(2 * math.pi)
            recon += weight[f] * squared * float(observed[b, f])
        assert terms.recon[b].item() == pytest.approx(recon, rel=1e-4)
        kl = 0.5 * sum(float((m**2 + v.exp() - 1 - v).detach()) for m, v in zip(q.mu[b], q.logvar[b]))
        assert terms.kl[b].item() == pytest.approx(kl, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(terms.total(), terms.recon + terms.kl)


def test_the_elbo_is_below_the_evidence_from_every_subset():
    """One latent dimension, so that p(x | c) can be integrated; the bound must hold whatever the encoder may see."""
    net, batch = model(latent_dim=1).double(), table(n=3)
    x, c = batch.image.flatten(1).double(), batch.attributes.double()

    def log_likelihood(z, b):
        x_hat = net.decode(torch.full((1, 1), z, dtype=torch.float64), c[b : b + 1])
        return float(-net.nll(x[b : b + 1], x_hat).sum())

    z = np.linspace(-8, 8, 1601)
    with torch.no_grad():
        for b in range(3):
            log_p = np.array([log_likelihood(value, b) for value in z])
            evidence = math.log(integrate.simpson(np.exp(log_p) * stats.norm.pdf(z), z))
            for have in ((True, True, True), (False, False, True), (False, False, False)):
                q = net.encode(x[b : b + 1], c[b : b + 1], torch.tensor(have)[:, None])
                mu, sd = float(q.mu), float(q.std)
                recon = integrate.simpson(log_p * stats.norm.pdf(z, mu, sd), z)
                kl = 0.5 * (mu**2 + sd**2 - 1 - 2 * math.log(sd))
                assert recon - kl <= evidence + 1e-6


def test_a_missing_modality_changes_nothing_by_what_stands_in_its_columns():
    net, batch = model(), table()
    available = torch.tensor([True, False, True])[:, None].expand(3, 12)
    x = batch.image.flatten(1)
    garbage = x.clone()
    garbage[:, 5:8] = 1e3
    first, second = (net.encode(values, batch.attributes, available) for values in (x, garbage))
    assert torch.equal(first.mu, second.mu) and torch.equal(first.logvar, second.logvar)


def test_without_any_modality_the_prior_decodes_to_the_mean_of_the_covariates():
    net, batch = model(), table()
    none = torch.zeros(3, 12, dtype=torch.bool)
    q = net.encode(batch.image.flatten(1), batch.attributes, none)
    assert q.mu.abs().max() == 0 and q.logvar.abs().max() == 0


def test_thinning_leaves_somebody_and_only_hides_what_was_there():
    net = model(drop=1.0)
    available = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.bool).repeat(1, 500)
    kept = net.thinned(available, step())
    assert kept.any(0).all() and not (kept & ~available).any()
    full = available.all(0)
    assert (kept[:, full].sum(0) < 3).all(), "something is always hidden from those who have everything"
    shares = kept[:, full].float().mean(1)
    assert shares.min() > 0.4 and shares.max() < 0.6, "each as often as the others: half of the six subsets hold it"
    assert torch.equal(model(drop=0.0).thinned(available, step()), available)


def test_beta_rises_with_the_steps_of_training_and_not_in_validation():
    net, batch = model(beta=2.0, warmup=10, drop=0.0), table()
    betas = [net.training_loss(batch, step(number=number)).beta for number in (0, 1, 8, 9, 30)]
    assert betas == pytest.approx([0.2, 0.4, 1.8, 2.0, 2.0])
    assert net.elbo(batch, step()).beta == 2.0


def split(n=60, missing=()):
    batch = table(n, missing=missing)
    return Split(batch.image, batch.labels, batch.attributes, torch.arange(n))


def test_resumed_training_ends_where_undisturbed_training_does(tmp_path):
    """The warm-up counts steps in a buffer: a run that forgot it would start beta anew."""
    config = FitConfig(steps=60, batch_size=20, speed="exact")
    whole, half = model(warmup=50), model(warmup=50)
    fit(whole, split(), split(20), config, progress=False)

    class Stop(Exception):
        pass

    calls = {"n": 0}
    inner = half.training_loss

    def interrupted(batch, step):
        calls["n"] += 1
        if calls["n"] == 45:
            raise Stop
        return inner(batch, step)

    half.training_loss = interrupted
    with pytest.raises(Stop):
        fit(half, split(), split(20), config, folder=tmp_path, identity="x", progress=False)
    again = model(warmup=50)
    fit(again, split(), split(20), config, folder=tmp_path, identity="x", progress=False)
    for a, b in zip(whole.parameters(), again.parameters()):
        assert torch.equal(a, b)


def test_every_parameter_gets_a_gradient_and_padding_gets_none():
    net = model()
    net.training_loss(table(), step()).total().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    inputs = net.encoder.weights[0].grad  # (M, widest + covariates, hidden)
    assert inputs[2, 2:5].abs().max() == 0, "behind the third modality's two regions"
    assert net.logvar_x.grad[2, 0, 2:].abs().max() == 0


def test_the_published_decoder_stays_between_zero_and_one():
    """Inputs outside [0, 1], as patients scaled by healthy people have them, are out of its reach."""
    net = model(likelihood="published")
    x_hat = net.decode(100 * torch.randn(50, 3), torch.randn(50, 4))
    assert x_hat.min() >= 0 and x_hat.max() <= 1
    assert model().decode(100 * torch.randn(50, 3), torch.randn(50, 4)).abs().max() > 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lambdas": {"d": 1.0}}, "`lambdas` must name modalities among a, b, c"),
        ({"drop": 1.5}, "`drop` must be a probability, got 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(**settings)


def test_it_learns_a_shared_factor_and_tells_one_modality_from_another():
    """Two modalities with one common cause: after training, one of them alone predicts the other."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(600, 1))
    x = torch.tensor(cause @ rng.normal(size=(1, 10)) + 0.3 * rng.normal(size=(600, 10)), dtype=torch.float32)
    data = [
        Split(part[..., None, None], torch.ones(len(part), 10, 1, 1, dtype=torch.uint8), torch.zeros(len(part), 4), torch.arange(len(part)))
        for part in (x[:500], x[500:])
    ]
    net = model(latent_dim=2, warmup=100)
    fit(net, *data, FitConfig(steps=600, batch_size=64, learning_rate=5e-3, speed="exact"), progress=False)
    with torch.no_grad():
        errors = {}
        for have in ((True, True, True), (False, False, True), (False, False, False)):
            q = net.encode(x[500:], torch.zeros(100, 4), torch.tensor(have)[:, None].expand(3, 100))
            errors[have] = float((x[500:] - net.decode(q.mu, torch.zeros(100, 4))).square().mean())
    everything, one, nothing = errors.values()
    assert everything < 0.15 < one * 1.2 and one < 0.5 * nothing
