"""Laws of the networks: shapes, size, independence of the batch, no grid in what is decoded."""

import pytest
import torch

from medvae_lite.nets import CODE_CHANNELS, Decoder, Encoder, FeatureNet, default_widths, norm_layer

SIZES = (16, 32, 64, 128, 256)


def pair(size=16, channels=2, latent_dim=8):
    shape = {"channels": channels, "size": size, "latent_dim": latent_dim}
    return Encoder(**shape), Decoder(**shape)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_shapes(size):
    encoder, decoder = pair(size)
    mu, logvar = encoder(torch.rand(2, 2, size, size))
    assert mu.shape == logvar.shape == (2, 8)
    assert decoder(mu).shape == (2, 2, size, size)


@pytest.mark.parametrize("size", SIZES)
def test_the_deepest_level_has_sixteen_pixels_or_a_quarter(size):
    assert size >> (len(default_widths(size)) - 1) == min(16, size // 4)


@pytest.mark.parametrize("size", [-64, 0, 1, 8, 48, 100, 512])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"`size` must be 16, 32, 64, 128 or 256 pixels, got {size}$"):
        pair(size)


@pytest.mark.parametrize(("size", "latent_dim"), [(64, 64), (128, 128)])
def test_less_than_two_million_weights(size, latent_dim):
    assert sum(p.numel() for net in pair(size, latent_dim=latent_dim) for p in net.parameters()) < 2_000_000


@torch.no_grad()
def test_training_and_evaluation_agree_bit_for_bit():
    (encoder, decoder), x, z = pair(), torch.rand(3, 2, 16, 16), torch.randn(3, 8)
    trained = (*encoder.train()(x), decoder.train()(z))
    evaluated = (*encoder.eval()(x), decoder.eval()(z))
    assert all(torch.equal(a, b) for a, b in zip(trained, evaluated))


@torch.no_grad()
def test_an_output_ignores_its_companions():
    (encoder, decoder), x, z = pair(), torch.rand(3, 2, 16, 16), torch.randn(3, 8)
    before = (encoder(x)[0][0], decoder(z)[0])
    alone = (encoder(x[:1])[0][0], decoder(z[:1])[0])
    x[1:], z[1:] = 0.9, 30.0
    after = (encoder(x)[0][0], decoder(z)[0])
    for b, o, a in zip(before, alone, after):
        assert torch.equal(b, a)
        torch.testing.assert_close(b, o, rtol=1e-4, atol=1e-5)  # another batch size, another order of sums


@torch.no_grad()
def test_decoded_images_lie_between_zero_and_one():
    _, decoder = pair()
    x_hat = decoder(100 * torch.randn(8, 8))
    assert 0 <= x_hat.min() < x_hat.max() <= 1


@torch.no_grad()
def test_log_variances_stay_between_minus_ten_and_ten():
    encoder, _ = pair()
    encoder.head.weight *= 1e4
    _, logvar = encoder(torch.rand(4, 2, 16, 16))
    assert logvar.abs().max() <= 10 and logvar.abs().max() > 9


def test_every_parameter_gets_a_gradient():
    (encoder, decoder), features = pair(), FeatureNet(widths=(8, 16))
    mu, logvar = encoder(torch.rand(4, 2, 16, 16))
    x_hat = decoder(mu + torch.exp(0.5 * logvar) * torch.randn(4, 8))
    labels = torch.randint(4, (8, 16, 16))
    torch.nn.functional.cross_entropy(features(x_hat.reshape(8, 1, 16, 16)), labels).backward()
    for net in (encoder, decoder, features):
        dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not dead


def interior(upsample, channels):
    """The middle of what becomes of a flat map, too far from the border for the padding to reach."""
    return upsample(torch.full((1, channels, 32, 32), 0.7))[..., 48:80, 48:80]


@torch.no_grad()
def test_a_flat_map_is_decoded_without_a_grid():
    _, decoder = pair()
    for p in decoder.parameters():
        p.normal_(std=0.3)
    flat = interior(lambda h: decoder.out(decoder.body(h)), CODE_CHANNELS)
    assert flat.shape[-1] == 32 and flat.std((2, 3)).max() < 1e-4 * flat.abs().max()
    # The measure sees the grid of transposed convolutions.
    transposed = torch.nn.Sequential(*(torch.nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1) for _ in "ab"))
    grid = interior(transposed, 4)
    assert grid.std((2, 3)).max() > 1e-2 * grid.abs().max()


@torch.no_grad()
def test_feature_network_shapes():
    net, x = FeatureNet(widths=(4, 8, 16), classes=5), torch.rand(2, 1, 16, 24)
    assert [tuple(phi.shape) for phi in net.features(x)] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6)]
    assert net(x).shape == (2, 5, 16, 24)


@torch.no_grad()
def test_frozen_norm_is_batch_norm_in_evaluation():
    """Up to its epsilon: an affine map per channel, whatever is in the batch."""
    frozen, batch = norm_layer(6, "frozen"), norm_layer(6, "batch").eval()
    for layer in (frozen, batch):
        layer.weight.copy_(torch.linspace(0.5, 2, 6)), layer.bias.copy_(torch.linspace(-1, 1, 6))
    h = torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(frozen(h), batch(h), rtol=1e-5, atol=1e-5)
    assert torch.equal(frozen(h)[:1], frozen(h[:1]))


@torch.no_grad()
@pytest.mark.parametrize(("norm", "alike"), [("group", True), ("frozen", True), ("batch", False)])
def test_only_batch_norm_sees_the_batch(norm, alike):
    encoder, x = Encoder(channels=2, size=16, latent_dim=8, norm=norm), torch.rand(3, 2, 16, 16)
    trained, evaluated = encoder.train()(x)[0], encoder.eval()(x)[0]
    assert torch.equal(trained, evaluated) == alike


@torch.no_grad()
def test_an_unbounded_decoder_is_the_bounded_one_without_its_sigmoid():
    bounded, free = (Decoder(channels=2, size=16, latent_dim=8, bounded=b) for b in (True, False))
    free.load_state_dict(bounded.state_dict())
    z = 9 * torch.randn(3, 8)
    assert torch.equal(torch.sigmoid(free(z)), bounded(z)) and (free(z) < 0).any()


def test_feature_networks_of_one_and_two_convolutions():
    one, two = (FeatureNet(widths=(8, 16), depth=d) for d in (1, 2))
    assert [sum(isinstance(m, torch.nn.Conv2d) for m in net.levels.modules()) for net in (one, two)] == [2, 4]
    assert one.config == {"widths": [8, 16], "classes": 4, "depth": 1} and two.config["depth"] == 2
