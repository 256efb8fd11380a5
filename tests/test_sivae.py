"""The models against the paper's equations, written out again below; gradients, switches and interface.

The networks compute in float32, the equations around them in float64: totals agree to 1e-5.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from medvae_lite.losses import Step
from medvae_lite.nets import FeatureNet
from medvae_lite.sivae import ARSIVAE, AttriVAE

SMALL = {"size": 16, "latent_dim": 8, "attributes": 3, "widths": (8, 8, 16)}
SETTINGS = [
    {},
    {"gamma_reg": 0.7, "beta_kl": 0.6},
    {"gamma_reg": 0.7, "delta": 2.0, "alpha_pl": 0.3},
]
ADVERSARIAL = [
    *({"repulsion": 0.5, **s} for s in SETTINGS),
    {"gamma_reg": 0.02, "beta_rec": 0.8, "alpha_pl": 0.3, "repulsion": 0.5, "fake_recon": True},
    {"gamma_reg": 0.02, "beta_rec": 0.8, "alpha_pl": 0.3, "repulsion": 0.5, "fake_recon": True, "eta": 0.4},
    {"repulsion": 0.5, "fakes": 2, "scale": "pixels"},
    {"repulsion": 0.5, "sources": "prior"},
    {"repulsion": 0.5, "sources": "prior", "fakes": 2, "eta": 0.2, "fake_recon": True, "alpha_mse_fake": 0.1},
    {"repulsion": 0.5, "fakes": 2, "alpha_mse": 1 / 512, "alpha_pl": 0.2, "fake_recon": True, "alpha_mse_fake": 0.1},
]


def batch(size=5, channels=2):
    return SimpleNamespace(image=torch.rand(size, channels, 16, 16), attributes=torch.randn(size, 3))


def make(family, **settings):
    features = FeatureNet(widths=(8, 8)) if settings.get("alpha_pl") else None
    model = family(**SMALL, **settings, features=features)
    with torch.no_grad():
        model.encoder.head.weight *= 1.5  # an untrained posterior is too near the prior to tell terms apart
    return model


def step(seed=1):
    return Step(torch.Generator().manual_seed(seed), torch.device("cpu"))


def draws(*shapes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# The paper's symbols, with no help from the package but the model's own encode and decode.


def kl_(mu, logvar):
    mu, logvar = mu.double(), logvar.double()
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def recon_(model, x, x_hat, alpha_mse=None):
    squares = ((x.double() - x_hat.double()) ** 2).sum((1, 2, 3)) * (model.alpha_mse if alpha_mse is None else alpha_mse)
    if not model.alpha_pl:
        return squares
    c, h, w = x.shape[1:]
    errors = [
        ((phi.double() - phi_hat.double()) ** 2).mean((1, 2, 3))
        for frame in range(c)
        for phi, phi_hat in zip(*(model.feature_net.features(v[:, [frame]]) for v in (x, x_hat)))
    ]
    return squares + model.alpha_pl * c * h * w * sum(errors) / len(errors)


def attribute_(model, z, a):
    """The batch's value, one number: equation 2 pair by pair, summed over attributes."""
    n, k = a.shape
    z, a, total = z.double(), a.double(), torch.zeros((), dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for d in range(k):
                total = total + (torch.tanh(model.delta * (z[i, d] - z[j, d])) - torch.sign(a[i, d] - a[j, d])).abs()
    return total / n**2


def draw_(q, noise):
    return q[0] + torch.exp(q[1] / 2) * noise


def equation_3(model, data, noise):
    q = model.encode(data.image)
    z = draw_(q, noise)
    elbo = recon_(model, data.image, model.decode(z)) + model.beta_kl * kl_(*q)
    return elbo.mean() + model.gamma_reg * attribute_(model, z, data.attributes)


def s_(model, x):
    return 1 / (x[0].numel() if model.config["scale"] == "values" else x[0, 0].numel())


def sources_(model, z, z_prior):
    """Codes of generated images, source by source: each source counts the same."""
    count = model.fakes * len(z) - len(z_prior)
    return [z[:count].detach(), z_prior] if model.sources == "both" else [z_prior]


def draws_(model, n=5, d=8):
    """The step's random numbers in the order the model draws them."""
    generated = model.fakes * n
    prior = generated if model.sources == "prior" else generated // 2
    again = generated if model.fake_recon or model.eta else 0
    return draws((n, d), (prior, d), (again, d))


def equation_6(model, data, noise, z_prior, noise_fake):
    x, s = data.image, s_(model, data.image)
    q = model.encode(x)
    z = draw_(q, noise)
    x_hat = model.decode(z)
    repel, done = [], 0
    for codes in sources_(model, z, z_prior):
        fake = model.decode(codes).detach()
        q_fake, again = model.encode(fake), 0
        if model.fake_recon:
            once_more = model.decode(draw_(q_fake, noise_fake[done : done + len(fake)]))
            again = recon_(model, fake, once_more, model.alpha_mse_fake)
        exponent = -2 * s * (model.beta_rec * again + model.beta_neg * kl_(*q_fake))
        repel.append(torch.exp(exponent) / 2)
        done += len(fake)
    elbo = s * (model.beta_rec * recon_(model, x, x_hat) + model.beta_kl * kl_(*q))
    return model.gamma_reg * attribute_(model, z, data.attributes) + elbo.mean() + torch.cat(repel).mean()


def equation_7(model, data, noise, z_prior, noise_fake):
    x, s = data.image, s_(model, data.image)
    z = draw_(model.encode(x), noise).detach()
    generated, done = [], 0
    for codes in sources_(model, z, z_prior):
        fake = model.decode(codes)
        q_fake, again = model.encode(fake), 0
        if model.eta:
            z_fake = draw_(q_fake, noise_fake[done : done + len(fake)]).detach()
            again = recon_(model, fake.detach(), model.decode(z_fake))
        generated.append(model.eta * model.beta_rec * again + model.beta_kl * kl_(*q_fake))
        done += len(fake)
    return s * (model.beta_rec * recon_(model, x, model.decode(z)).mean() + torch.cat(generated).mean())


def assert_same(model, total, expected, parameters):
    """Equal values, to 1e-5, and equal gradients, to 1e-3 of the largest."""
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)
    parameters = list(parameters)
    found, wanted = (torch.autograd.grad(v, parameters, allow_unused=True) for v in (total, expected))
    for g, e in zip(found, wanted):
        assert (g is None) == (e is None)
        if g is not None:
            torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-3 * float(e.abs().max()) + 1e-9)


@pytest.mark.parametrize("settings", SETTINGS)
def test_equation_3(settings):
    model, data = make(AttriVAE, **settings), batch()
    expected = equation_3(model, data, *draws((5, 8)))
    assert_same(model, model.elbo(data, step()).total().mean(), expected, model.parameters())


@pytest.mark.parametrize("settings", ADVERSARIAL)
def test_equation_6(settings):
    model, data = make(ARSIVAE, **settings), batch()
    expected = equation_6(model, data, *draws_(model))
    total = model.encoder_loss(data, step()).total().mean()
    assert_same(model, total, expected, model.encoder.parameters())


@pytest.mark.parametrize("settings", ADVERSARIAL)
def test_equation_7(settings):
    model, data, now = make(ARSIVAE, **settings), batch(), step()
    model.encoder_loss(data, now)
    expected = equation_7(model, data, *draws_(model))
    assert_same(model, model.decoder_loss(data, now).total().mean(), expected, model.decoder.parameters())


def test_the_exponent_is_felt():
    """The settings above put the repulsion where an error in it would show: neither 0 nor 1/2."""
    repel = make(ARSIVAE, repulsion=0.5).encoder_loss(batch(), step()).repel
    assert (repel > 1e-4).all() and (repel < 0.45).all()


def test_generated_images_are_data_to_the_encoder():
    model, now = make(ARSIVAE), step()
    terms = model.encoder_loss(batch(), now)
    terms.repel.sum().backward()
    assert all(p.grad is None for p in model.decoder.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.encoder.parameters())
    assert not any(v.requires_grad for v in now.carry.values() if isinstance(v, torch.Tensor))


def test_every_term_has_one_value_per_image():
    model, now = make(ARSIVAE, gamma_reg=0.1, eta=0.1), step()
    for terms in (model.elbo(batch(), step()), model.encoder_loss(batch(), now), model.decoder_loss(batch(), now)):
        values = [v for v in vars(terms).values() if isinstance(v, torch.Tensor)]
        assert len(values) >= 3 and all(v.shape == (5,) for v in (*values, terms.total()))


def test_without_attribute_weight_equation_3_is_the_beta_vae():
    model, data = make(AttriVAE, beta_kl=4.0, gamma_reg=0.0), batch()
    terms = model.elbo(data, step())
    assert torch.equal(terms.total(), terms.recon + 4.0 * terms.kl)
    data.attributes = torch.full_like(data.attributes, math.nan)  # never looked at
    assert torch.equal(model.elbo(data, step()).total(), terms.total())


def test_without_attribute_weight_equation_6_is_the_sivae():
    model, data = make(ARSIVAE, gamma_reg=0.0), batch()
    terms = model.encoder_loss(data, step())
    data.attributes = torch.full_like(data.attributes, math.nan)
    assert torch.equal(model.encoder_loss(data, step()).total(), terms.total())
    assert torch.equal(terms.attribute, torch.zeros(5))


def test_attribute_k_rules_dimension_k_alone():
    model, data = make(AttriVAE, gamma_reg=1.0), batch()
    z = torch.randn(5, 8, requires_grad=True)
    model.attribute_terms(z, data.attributes).sum().backward()
    assert (z.grad[:, :3].abs().sum(0) > 0).all() and not z.grad[:, 3:].any()
    data.attributes[:, 1] = data.attributes[:, 1].flip(0)
    old, z.grad = z.grad, None
    model.attribute_terms(z, data.attributes).sum().backward()
    assert torch.equal(old[:, [0, 2]], z.grad[:, [0, 2]]) and not torch.equal(old[:, 1], z.grad[:, 1])


@pytest.mark.parametrize("fakes", [1, 2])
@torch.no_grad()
def test_both_sources_are_decoded_once(fakes):
    """Codes that are reconstructed and judged pass the decoder once, and give the same images."""
    model, z = make(ARSIVAE, fakes=fakes), torch.randn(5, 8)
    z_fake, passed, decode = model.fake_codes(z, step()), [], model.decode
    assert len(z_fake) == 5 * fakes and torch.equal(z_fake[: (5 * fakes + 1) // 2], z[: (5 * fakes + 1) // 2])
    model.decode = lambda codes: passed.append(len(codes)) or decode(codes)
    x_hat, fake = model.decode_both(z, z_fake)
    assert passed == [5 + 5 * fakes // 2]
    torch.testing.assert_close(x_hat, decode(z))
    torch.testing.assert_close(fake, decode(z_fake))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sources": "one"}, "`sources` must be one of both, prior, got 'one'"),
        ({"scale": "image"}, "`scale` must be one of values, pixels, got 'image'"),
        ({"fakes": 3}, "`fakes` must be 1 or 2 generated images per real one, got 3"),
        ({"norm": "layer"}, "`norm` must be one of group, frozen, batch, got 'layer'"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(ARSIVAE, **settings)


@pytest.mark.parametrize(("channels", "size", "repulsion"), [(1, 128, 0.125), (2, 16, 0.125), (2, 64, 3.0)])
def test_repulsion_is_the_slope_per_nat(channels, size, repulsion):
    model = ARSIVAE(channels=channels, size=size, repulsion=repulsion, latent_dim=8)
    assert model.scale == 1 / (channels * size * size)
    assert 2 * model.scale * model.beta_neg == pytest.approx(repulsion, rel=1e-12)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_papers_repulsion(channels):
    model = ARSIVAE(channels=channels, size=128, latent_dim=8, scale="pixels")
    assert model.scale == 1 / 128**2 and model.beta_neg == 1024


def test_perceptual_weight_without_features_is_refused():
    with pytest.raises(ValueError, match="`alpha_pl` = 0.1 needs a feature network: pass `features`, or set it to 0"):
        AttriVAE(**SMALL, alpha_pl=0.1)


def test_more_attributes_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="`latent_dim` = 2 cannot hold 6 attributes"):
        AttriVAE(latent_dim=2)


def test_the_feature_network_is_used_and_not_owned():
    model = make(ARSIVAE, alpha_pl=0.3)
    own = {id(p) for p in model.feature_net.parameters()}
    assert own and not own & {id(p) for p in model.parameters()}
    assert all(name.startswith(("encoder.", "decoder.")) for name in model.state_dict())
    assert not any(p.requires_grad for p in model.feature_net.parameters())
    assert not model.train().feature_net.training
    model.double()  # but it goes where the model goes
    assert {p.dtype for p in model.feature_net.parameters()} == {torch.float64}


def test_the_configuration_rebuilds_the_model():
    for model in (AttriVAE(latent_dim=8, gamma_reg=2.0), ARSIVAE(latent_dim=8, repulsion=0.5, beta_rec=0.8, eta=0.1)):
        again = type(model)(**model.config)
        assert again.config == model.config
        again.load_state_dict(model.state_dict())


@torch.no_grad()
def test_traverse_changes_one_dimension():
    model, z, values = make(AttriVAE), torch.randn(8), torch.linspace(-2, 2, 5)
    before, seen, decode = z.clone(), [], model.decode
    model.decode = lambda codes: seen.append(codes) or decode(codes)
    images = model.traverse(z, 2, values)
    (codes,) = seen
    others = [d for d in range(8) if d != 2]
    assert images.shape == (5, 2, 16, 16) and torch.equal(z, before)
    assert torch.equal(codes[:, 2], values) and torch.equal(codes[:, others], z[others].expand(5, 7))


@torch.no_grad()
def test_samples():
    model = make(AttriVAE)
    first, again = (model.sample(4, generator=torch.Generator().manual_seed(3)) for _ in "ab")
    assert first.shape == (4, 2, 16, 16) and torch.equal(first, again)
    assert 0 <= first.min() and first.max() <= 1 and not torch.equal(first[0], first[1])


def test_updates_share_out_the_parameters():
    for family, names in ((AttriVAE, ["vae"]), (ARSIVAE, ["encoder", "decoder"])):
        model = make(family)
        updates = model.updates()
        assert [u.name for u in updates] == names
        ids = [id(p) for u in updates for p in u.parameters]
        assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
