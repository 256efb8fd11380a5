"""The hierarchy: shapes, laws of its objective, its four priors, and what its options do."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from medvae_lite.datasets import Batch
from medvae_lite.gaussian import Gaussian
from medvae_lite.hvae import PRIORS, HVAE
from medvae_lite.losses import Step
from medvae_lite.mixtures import mixture_log_prob

WIDTHS = (4, 6, 8, 8, 8)


def step(seed=0, number=0):
    return Step(torch.Generator().manual_seed(seed), torch.device("cpu"), number)


def model(prior="nvae", size=(32, 32), **settings):
    """A small model, its heads set at random so that no layer is at its starting point."""
    torch.manual_seed(0)
    made = HVAE(size=size, prior=prior, widths=WIDTHS, components=3, cycle=0, **settings)
    with torch.no_grad():
        for head in [*made.p_heads, *made.q_heads]:
            torch.nn.init.normal_(head[-1].weight, std=0.2)
    return made


def batch(size=(32, 32), count=4):
    labels = torch.zeros(count, 2, *size, dtype=torch.uint8)
    labels[:, 1, 10:14, 10:14] = 100
    return Batch(torch.randn(count, 1, *size), torch.zeros(count, 1), labels, torch.arange(count))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (37, 29), (16, 50)])
def test_any_size_comes_back(prior, size):
    m, b = model(prior, size), batch(size)
    image, way = m.infer(b.image, step())
    assert image.shape == b.image.shape == m.sample(4, step()).shape
    assert [z.shape[1] for z, *_ in way] == m.dims and len(way) == 5
    assert torch.isfinite(m.training_loss(b, step()).total()).all()


def test_planes_double_from_layer_to_layer():
    assert model(size=(64, 64)).dims == [32, 128, 512, 2048, 8192]
    assert model(size=(91, 109)).dims == [84, 336, 1344, 5376, 21504]


def test_all_four_have_the_same_parameters_but_for_pseudo_inputs():
    sizes = {p: {n: v.shape for n, v in model(p).named_parameters() if n != "pseudo_inputs"} for p in PRIORS}
    assert all(sizes[p] == sizes["vae"] for p in PRIORS)


@pytest.mark.parametrize("prior", PRIORS)
def test_divergences_agree_with_torch(prior):
    m, b = model(prior), batch()
    _, way = m.infer(b.image, step())
    found = m.divergences(way, m.top_prior())
    for layer, (_, p, q) in enumerate(way):
        if layer == 0 and "nvmp" in prior:
            continue
        oracle = kl_divergence(*(Independent(Normal(g.mu, g.std), 1) for g in (q, p)))
        torch.testing.assert_close(found[:, layer], oracle, rtol=1e-4, atol=1e-3)


def test_the_plain_vae_expects_the_same_of_every_image_and_layer():
    m = model("vae")
    way = m.infer(batch().image, step())[1]
    assert all(not p.mu.any() and not p.logvar.any() for _, p, _ in way)


@pytest.mark.parametrize("prior", ["nvae", "nvmp", "nvmp+"])
def test_expectations_move_with_the_layers_above(prior):
    way = model(prior).infer(batch().image, step())[1]
    assert all(p.mu.std(0).max() > 1e-4 for _, p, _ in way[1:])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_the_encoder_says_depends_on_the_layers_above_only_when_bidirectional(bidirectional):
    m, x = model(bidirectional=bidirectional), batch().image
    deltas = [[q.mu - p.mu for _, p, q in m.infer(x, step(seed))[1]] for seed in (0, 1)]
    assert torch.allclose(deltas[0][4], deltas[1][4], atol=1e-5) != bidirectional


def test_one_component_gives_the_exact_gaussian_divergence():
    """A mixture of one is a Gaussian: the mean of many draws is the closed form."""
    torch.manual_seed(0)
    m, x = HVAE(size=(16, 16), prior="nvmp", widths=(4, 4, 4), components=1), torch.randn(1, 1, 16, 16)
    m.requires_grad_(False)
    features = m.features(x)
    q = m.delta(0, features[0], m.h0[None])
    top = m.top_prior()
    exact = kl_divergence(*(Independent(Normal(g.mu, g.std), 1) for g in (q, top))).item()
    draws = torch.stack([m.divergences(m.infer(x, step(seed))[1], top)[0, 0] for seed in range(400)])
    assert abs(float(draws.mean()) - exact) < 4 * float(draws.std()) / 20 + 1e-6


@pytest.mark.parametrize("prior", PRIORS)
def test_untrained_layers_below_the_top_cost_almost_nothing(prior):
    """Heads start near zero, so posteriors start at their priors."""
    torch.manual_seed(0)
    m, b = HVAE(size=(32, 32), prior=prior, widths=WIDTHS, components=3), batch()
    terms = m.elbo(b, step())
    per_dim = terms.kl.mean(0) / m.dim
    assert per_dim[1:].abs().max() < 0.05


def test_likelihood_is_a_gaussian_with_all_constants():
    m, b = model(sigma_x=0.4), batch()
    image = torch.zeros_like(b.image)
    expected = Normal(0.0, 0.4).log_prob(b.image).flatten(1).sum(1)
    torch.testing.assert_close(m.log_likelihood(b.image, image), expected)


@pytest.mark.parametrize("prior", PRIORS)
def test_evaluation_is_the_negative_elbo_and_nothing_else(prior):
    m, b = model(prior, free_bits=50.0), batch()
    terms = m.elbo(b, step())
    torch.testing.assert_close(terms.total(), terms.nll + terms.kl.sum(1))


def test_only_nvmp_plus_has_the_extra_divergence_and_only_in_training():
    for prior in PRIORS:
        m, b = model(prior), batch()
        trained = m.training_loss(b, step())
        assert bool(trained.extra.any()) == (prior == "nvmp+")
        assert not m.elbo(b, step()).extra.any()
        expected = trained.nll + trained.kl.sum(1) + (trained.extra.sum(1) if prior == "nvmp+" else 0)
        torch.testing.assert_close(trained.total(), expected)


@pytest.mark.parametrize("reading", "ABC")
def test_readings_of_the_extra_divergence(reading):
    """Each against its definition, with the same draws."""
    m, b = model("nvmp+", reading=reading), batch()
    _, way = m.infer(b.image, step(1))
    pseudo = m.pseudo_posteriors()
    found = m.extra(way, pseudo, step(2))
    noise = step(2)
    own = m.infer(m.pseudo_inputs, noise)[1] if reading == "C" else None
    for layer, (_, p, _) in list(enumerate(way))[1:]:
        z = p.mu + p.std * noise.noise(*p.mu.shape)
        d = pseudo[layer]
        logs = []
        for k in range(3):
            mean = {"A": d.mu[k], "B": p.mu + d.mu[k], "C": own and own[layer].posterior.mu[k]}[reading]
            logvar = {"A": d.logvar[k], "B": p.logvar + d.logvar[k], "C": own and own[layer].posterior.logvar[k]}[reading]
            logs.append(Normal(mean, (0.5 * logvar).exp()).log_prob(z).sum(1))
        mixture = torch.logsumexp(torch.stack(logs), 0) - math.log(3)
        expected = Normal(p.mu, p.std).log_prob(z).sum(1) - mixture
        torch.testing.assert_close(found[:, layer], expected, rtol=1e-3, atol=1e-2)


def test_the_extra_divergence_reaches_encoder_decoder_and_pseudo_inputs():
    m = model("nvmp+")
    _, way = m.infer(batch().image, step())
    m.extra(way, m.pseudo_posteriors(), step()).sum().backward()
    for name in ("pseudo_inputs", "q_heads.3.1.weight", "p_heads.3.1.weight"):
        assert m.get_parameter(name).grad.abs().max() > 0, name


@pytest.mark.parametrize("prior", PRIORS)
def test_the_importance_weighted_bound_rises_with_draws(prior):
    """Burda et al. 2016, theorem 1: on average; here over nested groups of the same draws, where it holds exactly."""
    m, x = model(prior, (16, 16)), torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        weights = torch.stack([m.log_weight(x, step(seed)) for seed in range(16)], 1).double()
    groups = [torch.logsumexp(weights.unflatten(1, (16 // n, n)), 2).mean() - math.log(n) for n in (1, 2, 4, 8, 16)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(groups)) and groups[-1] > groups[0]


def test_the_weight_is_the_joint_density_over_the_posterior():
    """By `torch.distributions`, with the draws of the same step; the top prior is the mixture."""
    m, x = model("nvmp", (16, 16)), torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        image, way = m.infer(x, step())
        expected = Normal(image, 0.3).log_prob(x).flatten(1).sum(1)
        for layer, (z, p, q) in enumerate(way):
            density = Normal(p.mu, p.std).log_prob(z).sum(1)
            if not layer:
                parts = m.top_prior()
                each = Normal(parts.mu, parts.std).log_prob(z[:, None]).sum(2)
                density = torch.logsumexp(each, 1) - math.log(3)
            expected = expected + density - Normal(q.mu, q.std).log_prob(z).sum(1)
        torch.testing.assert_close(m.log_weight(x, step()), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prior", ["vae", "nvae", "nvmp"])
def test_one_draw_of_the_weight_is_the_elbo_on_average(prior):
    m, b = model(prior, (16, 16)), batch((16, 16), 2)
    with torch.no_grad():
        weights = torch.stack([m.log_weight(b.image, step(seed)) for seed in range(300)])
        elbo = -torch.stack([m.elbo(b, step(1000 + seed)).total() for seed in range(300)])
    error = (weights.std(0) + elbo.std(0)) / math.sqrt(300)
    assert ((weights.mean(0) - elbo.mean(0)).abs() < 4 * error).all()


def test_samples_of_the_mixture_come_from_its_components():
    m = model("nvmp")
    with torch.no_grad():
        top = m.top_prior()
        m.q_heads[0][-1].weight.mul_(8)
        top = m.top_prior()
        z = m.draw_top(4000, step())
    expected = top.mu.mean(0)
    assert ((z.mean(0) - expected).abs() < 5 * z.std(0) / math.sqrt(4000)).all()
    assert mixture_log_prob(top, z).isfinite().all()


@pytest.mark.parametrize("mixture", ["joint", "per_location"])
def test_a_component_is_drawn_for_the_plane_or_for_every_place(mixture):
    """Two components, -4 and +4 everywhere: joint draws are of one sign, draws by place of both, both channels of a place alike."""
    m = model("nvmp", mixture=mixture)
    sides = torch.cat([torch.full((1, m.dims[0]), side) for side in (-4.0, 4.0)])
    m.top_prior = lambda: Gaussian(sides, torch.full_like(sides, -4.0))
    planes = m.draw_top(200, step()).unflatten(1, (2, -1)).sign()
    assert torch.equal(planes[:, 0], planes[:, 1])
    mixed = (planes[:, 0].mean(1).abs() < 1).float().mean()
    assert mixed == 0 if mixture == "joint" else mixed > 0.8


def test_samples_start_in_the_mixture():
    m, seen = model("nvmp"), []
    m.draw_top = lambda count, step: seen.append(count) or torch.zeros(count, m.dims[0])
    m.sample(5, step())
    assert seen == [5]


def test_pseudo_inputs_start_at_images_of_standardised_mri():
    """Values below 0 and above 1 stay: nothing clamps them to the range of a photograph."""
    m, images = model("nvmp"), 3 * torch.randn(3, 1, 32, 32)
    m.start_from(images, step())
    assert (m.pseudo_inputs - images).abs().max() < 0.1 and m.pseudo_inputs.min() < -1
    with pytest.raises(ValueError, match="one image a component"):
        m.start_from(images[:2], step())


def test_free_bits_take_the_price_off_layers_that_spend_less():
    m, b = model(free_bits=1e6), batch()
    assert not m.training_loss(b, step()).gamma.any()
    assert m.elbo(b, step()).gamma.all()


def test_beta_rises_with_the_steps_taken():
    m, b = HVAE(size=(16, 16), widths=(4, 4), lesion_layer=0, cycle=10, ramp=0.5), batch((16, 16))
    assert [round(m.training_loss(b, step(number=n)).beta, 1) for n in range(7)] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


def test_lesion_head_reads_only_its_layer():
    m, x = model(lesion_weight=1.0, size=(37, 29)), torch.randn(2, 1, 37, 29)
    _, way = m.infer(x)
    logits = m.lesion_logits(way)
    assert logits.shape == (2, 1, 37, 29)
    changed = [latent._replace(z=latent.z + 1) if layer != 2 else latent for layer, latent in enumerate(way)]
    torch.testing.assert_close(m.lesion_logits(changed), logits)
    with pytest.raises(ValueError, match="lesion_weight"):
        model().lesion_logits(way)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prior": "gan"}, "`prior` must be one of vae, nvae"),
        ({"reading": "D"}, "`reading` must be one of A, B, C"),
        ({"mixture": "some"}, "`mixture` must be"),
        ({"balancing": "yes"}, "`balancing` must be"),
        ({"lesion_layer": 5}, "`lesion_layer` must be from 0 to 4"),
        ({"sigma_x": 0.0}, "`sigma_x`"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        HVAE(size=(32, 32), **settings)


def test_extreme_images_give_finite_losses_and_gradients():
    """Soft clamps: nothing overflows, whatever comes in."""
    for prior in PRIORS:
        m, b = model(prior, lesion_weight=1.0), batch()
        m.training_loss(b._replace(image=1e4 * b.image), step()).total().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters()), prior


def test_gaussians_stay_flat():
    z, p, q = model().infer(batch().image)[1][2]
    assert z.shape == p.mu.shape == q.logvar.shape and isinstance(p, Gaussian)
