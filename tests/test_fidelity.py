"""Fidelity measures against scikit-image, SciPy, closed forms and the laws each must obey."""

import sys
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm
from skimage.metrics import structural_similarity
from torch import nn

from medvae_lite.fidelity import (
    edge_projection, frechet_distance, gradient_ratio, high_frequency_correlation, kid, lpips_imagenet, mse,
    perceptual_distance, pooled_features, psnr, radial_spectrum, ssim,
)

PAIRED = {
    "mse": mse, "psnr": psnr, "ssim": ssim, "edge_projection": edge_projection,
    "gradient_ratio": gradient_ratio, "high_frequency_correlation": high_frequency_correlation,
    "perceptual_distance": lambda x, y: perceptual_distance(x, y, lambda u: [torch.cat([u, 1 - u], dim=1)]),
}


def disc():
    """Pixel (i, j) is 0.9 within 30 pixels of (64, 64) and 0.1 outside, shape (128, 128)."""
    i, j = np.mgrid[:128, :128]
    return np.where((i - 64) ** 2 + (j - 64) ** 2 < 30**2, 0.9, 0.1)


def images(b=5, c=2, h=32, w=28, dtype=torch.float64):
    """Random blobs in [0, 1]: a smooth shape of their own and fine texture in each."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(b, c, 4, 4, generator=generator, dtype=dtype)
    coarse = nn.functional.interpolate(coarse, (h, w), mode="bicubic", align_corners=True)
    return (0.8 * coarse + 0.2 * torch.rand(b, c, h, w, generator=generator, dtype=dtype)).clamp(0, 1)


def blurred(x):
    return nn.functional.avg_pool2d(nn.functional.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)


@pytest.fixture
def network():
    """A small random feature network of two levels."""
    generator = torch.Generator().manual_seed(0)
    kernels = [torch.randn(4, 1, 3, 3, generator=generator), torch.randn(6, 4, 3, 3, generator=generator)]

    def features(u):
        first = nn.functional.conv2d(u, kernels[0].to(u), padding=1).relu()
        return [first, nn.functional.conv2d(nn.functional.avg_pool2d(first, 2), kernels[1].to(u)).relu()]

    return features


def test_ssim_of_the_published_fixture():
    x = disc()
    x_hat = x + 0.05 * np.sin(np.arange(128) / 5)[:, None]
    pair = [torch.tensor(u, dtype=torch.float32)[None, None] for u in (x, x_hat)]
    assert ssim(*pair, mode="reference").item() == pytest.approx(0.813885, abs=1e-6)


@pytest.mark.parametrize(("mode", "options"), [
    ("reference", {}),
    ("default", {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}),
])
def test_ssim_against_scikit_image(mode, options):
    x = images()
    x_hat = blurred(x) + 0.3 * torch.rand_like(x) - 0.2  # beyond [0, 1]: scored as it is
    oracle = np.array([
        [structural_similarity(u, v, data_range=1.0, **options) for u, v in zip(*pair, strict=True)]
        for pair in zip(x.numpy(), x_hat.numpy(), strict=True)
    ])
    assert_allclose(ssim(x, x_hat, mode=mode, per_frame=True), oracle, rtol=1e-10)
    assert_allclose(ssim(x, x_hat, mode=mode), oracle.mean(axis=1), rtol=1e-10)


def test_ssim_against_torchmetrics_where_the_window_fits():
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        pytest.skip(f"torchmetrics does not import here: {error}")
    x, x_hat = images(), blurred(images())
    _, full = structural_similarity_index_measure(
        x_hat, x, data_range=1.0, return_full_image=True, reduction="none"
    )
    assert_allclose(ssim(x, x_hat, per_frame=True), full[..., 5:-5, 5:-5].mean(dim=(2, 3)), rtol=1e-6)


def test_ssim_of_many_images_goes_in_parts():
    x = images().repeat(15, 1, 1, 1)
    assert_allclose(ssim(x, blurred(x)), ssim(images(), blurred(images())).repeat(15))


def test_identical_images_are_perfect(network):
    x = images(dtype=torch.float32)
    for mode in ("default", "reference"):
        assert_allclose(ssim(x, x, mode=mode), 1)
    assert (mse(x, x) == 0).all() and psnr(x, x).isinf().all()
    assert (perceptual_distance(x, x, network) == 0).all()
    for measure in (edge_projection, gradient_ratio, high_frequency_correlation):
        assert_allclose(measure(x, x), 1, rtol=1e-5)


def test_mse_and_psnr_by_hand():
    x = torch.zeros(2, 2, 4, 4)
    x_hat = x + torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)
    assert_allclose(mse(x, x_hat), [0.01, 0.04], rtol=1e-6)
    assert_allclose(psnr(x, x_hat), [20, 13.9794], rtol=1e-5)
    assert_allclose(psnr(x, x_hat, data_range=2.0), psnr(x, x_hat) + 6.0206, rtol=1e-5)


def test_every_paired_measure_scores_each_sample_by_itself_and_averages_frames():
    x, x_hat = images(), blurred(images())
    for name, measure in PAIRED.items():
        assert measure(x, x_hat).shape == (5,), name
        if name != "high_frequency_correlation":  # which takes the mean image of the batch off
            assert_allclose(measure(x, x_hat)[2:3], measure(x[2:3], x_hat[2:3]), err_msg=name)
        if name in ("mse", "ssim", "perceptual_distance"):
            frames = [measure(x[:, [c]], x_hat[:, [c]]) for c in range(2)]
            assert_allclose(measure(x, x_hat), (frames[0] + frames[1]) / 2, err_msg=name)


def test_perceptual_distance_against_loops(network):
    x, x_hat = images(), blurred(images())
    for b in range(5):
        total = 0.0
        for c in range(2):
            for f, g in zip(network(x[b, c][None, None]), network(x_hat[b, c][None, None]), strict=True):
                f, g = f[0].flatten(1).T.numpy(), g[0].flatten(1).T.numpy()
                for u, v in zip(f, g, strict=True):
                    u, v = (w / max(np.linalg.norm(w), 1e-5) for w in (u, v))
                    total += ((u - v) ** 2).sum() / len(f) / 2
        assert perceptual_distance(x, x_hat, network)[b].item() == pytest.approx(total, rel=1e-4)


def test_perceptual_distance_ignores_the_scale_of_features(network):
    x, x_hat = images(), blurred(images())
    louder = perceptual_distance(x, x_hat, lambda u: [1000 * f for f in network(u)])
    assert_allclose(louder, perceptual_distance(x, x_hat, network), rtol=1e-4)


def test_pooled_features_lie_frame_by_frame_in_one_row(network):
    x = images()
    pooled = pooled_features(2 * x - 1, network, batch_size=2)
    assert pooled.shape == (5, 2 * (4 + 6))
    level = network((2 * x - 1)[3, 1][None, None])[1]
    assert_allclose(pooled[3, -6:], level.mean(dim=(2, 3))[0], rtol=1e-6)


def with_moments(n, mean, cov, seed=0):
    """A sample (n, d) whose mean and covariance are exactly these."""
    u = np.random.default_rng(seed).normal(size=(n, len(mean)))
    u = (u - u.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(u, rowvar=False))).T
    return u @ np.linalg.cholesky(cov).T + mean


def test_frechet_distance_of_known_gaussians():
    f = with_moments(50, [0, 0, 0], np.diag([1.0, 4, 9]))
    g = with_moments(70, [1, 0, -2], np.diag([4.0, 4, 1]), seed=1)
    assert frechet_distance(f, g) == pytest.approx(1 + 4 + (1 - 2) ** 2 + (3 - 1) ** 2)
    assert frechet_distance(f[:, :1], g[:, :1]) == pytest.approx(1 + 1)


def test_frechet_distance_against_scipy_and_its_laws():
    rng = np.random.default_rng(0)
    f, g = (rng.normal(size=(n, 5)) @ rng.normal(size=(5, 5)) + shift for n, shift in ((60, 0), (80, 1)))
    s_f, s_g = np.cov(f, rowvar=False), np.cov(g, rowvar=False)
    shift = ((f.mean(axis=0) - g.mean(axis=0)) ** 2).sum()
    oracle = shift + np.trace(s_f + s_g - 2 * sqrtm(s_f @ s_g).real)
    assert frechet_distance(f, g) == pytest.approx(oracle)
    assert frechet_distance(g, f) == pytest.approx(oracle)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert frechet_distance(f @ rotation + 3, g @ rotation + 3) == pytest.approx(oracle)
    assert frechet_distance(f, f) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(f[:4], f[:4]) == pytest.approx(0, abs=1e-6)  # fewer rows than features


def test_kid_against_loops_and_unbiased():
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)) + 1

    def k(u, v):
        return (u @ v / 3 + 1) ** 3

    within_f = np.mean([k(f[i], f[j]) for i in range(6) for j in range(6) if i != j])
    within_g = np.mean([k(g[i], g[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([k(u, v) for u in f for v in g])
    assert kid(f, g) == pytest.approx(within_f + within_g - 2 * across)
    draws = np.array([kid(*rng.normal(size=(2, 20, 3))) for _ in range(400)])
    assert abs(draws.mean()) < 3 * draws.std() / 20 and (draws < 0).any()
    frechet = [np.mean([frechet_distance(*rng.normal(size=(2, n, 3))) for _ in range(50)]) for n in (10, 100)]
    assert frechet[0] > 5 * frechet[1] > 0  # the bias that `kid` is there to avoid


def test_edge_projection_tells_blur_and_texture_apart_where_the_gradient_ratio_cannot():
    x = images(b=8, h=64, w=64)
    soft = blurred(x)
    noisy = soft + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    assert_allclose(edge_projection(x, 0.7 * x + 0.2), 0.7)
    assert_allclose(gradient_ratio(x, 0.7 * x + 0.2), 0.7)
    assert_allclose(edge_projection(x, 1 - x), -1)
    assert (gradient_ratio(x, soft) < 0.6).all() and (edge_projection(x, soft) < 0.6).all()
    assert (gradient_ratio(x, noisy) > 1).all()
    assert_allclose(edge_projection(x, noisy), edge_projection(x, soft), atol=0.1)


def test_gradients_see_the_finest_stripes():
    ramp = torch.linspace(0, 0.7, 8).expand(1, 1, 8, 8)
    stripes = torch.tensor([0.0, 0.3]).repeat(4)
    for u, v in ((ramp, ramp + stripes), (ramp.mT, (ramp + stripes).mT)):
        assert gradient_ratio(u, v).item() == pytest.approx((4 * 0.4 + 3 * 0.2) / (7 * 0.1), rel=1e-5)
        assert edge_projection(u, v).item() == pytest.approx((4 * 0.4 - 3 * 0.2) / (7 * 0.1), rel=1e-5)


def test_high_frequency_correlation_against_a_filter_in_space():
    x, x_hat = images(), blurred(images()) + 0.05 * images().flip(0)
    window = torch.outer(*(torch.hann_window(n, dtype=x.dtype) for n in (32, 28))).numpy()
    radius = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(28)[None])

    def filtered(u):
        u = u - u.mean(axis=0)
        u = (u - u.mean(axis=(2, 3), keepdims=True)) * window
        return np.fft.ifft2(np.fft.fft2(u) * (radius > 0.25)).real.reshape(5, -1)

    pairs = zip(filtered(x.numpy()), filtered(x_hat.numpy()), strict=True)
    oracle = [np.corrcoef(u, v)[0, 1] for u, v in pairs]
    assert_allclose(high_frequency_correlation(x, x_hat, cutoff=0.25), oracle, rtol=1e-9)


def test_high_frequency_correlation_counts_only_what_is_the_subject_s_own():
    x = images(b=40)
    weave = 0.3 * images(b=1).flip(3)
    assert_allclose(high_frequency_correlation(x, 0.1 * x + weave), 1)  # a pattern on all, and a faint copy
    average = x.mean(dim=0, keepdim=True).expand_as(x)
    template = x.flip(0)
    template = average * 5 + 0.1 * template  # the average subject with someone else's detail
    shared = high_frequency_correlation(x, template, subject_specific=False).mean()
    own = high_frequency_correlation(x, template).mean()
    assert own.abs() < 0.1 and shared > own + 0.1


def test_radial_spectrum_of_a_wave_and_of_noise():
    i = torch.arange(64, dtype=torch.float64)
    wave = 0.5 + 0.4 * torch.sin(2 * np.pi * 8 * i / 64).expand(1, 1, 64, 64)
    for x in (wave, wave.mT):
        frequencies, power = radial_spectrum(x)
        assert frequencies[power[0].argmax()] == 8 / 64
    assert_allclose(frequencies, np.arange(33) / 64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(200, 1, 32, 48, generator=generator, dtype=torch.float64)
    _, flat = radial_spectrum(noise)
    assert flat.shape == (200, 17)
    assert_allclose(flat.mean(dim=0)[2:], 1 / 12, rtol=0.05)


def test_radial_spectrum_takes_samples_outside_the_range():
    x = images()
    assert_allclose(radial_spectrum(2 * x - 0.5)[1], 4 * radial_spectrum(x)[1])


def test_radial_spectrum_shows_blur_at_high_frequencies_only():
    x = images(b=20, h=64, w=64)
    _, power = radial_spectrum(x)
    _, soft = radial_spectrum(blurred(x))
    ratio = (soft.mean(dim=0) / power.mean(dim=0)).numpy()
    assert ratio[1] > 0.8 and ratio[16:].max() < 0.1


def test_float32_and_half_precision_agree_with_float64():
    x, x_hat = images(), blurred(images())
    for name, measure in PAIRED.items():
        assert_allclose(measure(x.float(), x_hat.float()), measure(x, x_hat), rtol=1e-4, err_msg=name)
        assert measure(x.half(), x_hat.half()).dtype != torch.float16, name


def fake_torchmetrics(monkeypatch, make):
    module = SimpleNamespace(LearnedPerceptualImagePatchSimilarity=make)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", module)


@pytest.mark.parametrize("failure", [
    ModuleNotFoundError("no torchvision"), OSError("no route to host"), RuntimeError("no such operator"),
])
def test_lpips_without_weights_says_so_and_never_falls_back(monkeypatch, failure):
    def make(net_type):
        raise failure

    fake_torchmetrics(monkeypatch, make)
    with pytest.raises(RuntimeError, match=rf"LPIPS .*\(squeeze\) cannot be had .*{failure}.*`perceptual_"):
        lpips_imagenet()


def test_lpips_gives_each_frame_to_the_network_as_grey_rgb(monkeypatch):
    seen = {}

    def network(a, b, normalize):
        seen.update(shape=a.shape, grey=bool((a == a[:, :1]).all()), normalize=normalize)
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    metric = SimpleNamespace(net=SimpleNamespace(to=lambda device: network))
    fake_torchmetrics(monkeypatch, lambda net_type: metric)
    x, x_hat = images(), images() + 0.5 * torch.arange(5).view(5, 1, 1, 1)
    assert_allclose(lpips_imagenet("alex")(x, x_hat), 0.5 * np.arange(5))
    assert seen == {"shape": (10, 3, 32, 28), "grey": True, "normalize": True}


@pytest.fixture
def unchecked(monkeypatch):
    """As a reader calls it: annotations are checked in tests only, where they speak before the sentences."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda x: (x, x[:, :1]), r"share one shape \(B, C, H, W\), got \(5, 2, 32, 28\) and \(5, 1, 32, 28\)"),
    (lambda x: (x[0], x[0]), r"share one shape \(B, C, H, W\), got \(2, 32, 28\)"),
    (lambda x: (x[:0], x[:0]), r"share one shape"),
    (lambda x: (255 * x, x), r"`x` must lie in \[0, 1\], got .* to 2\d\d.*; rescale"),
    (lambda x: (x, torch.where(x > 0.5, torch.nan, x)), "must be finite"),
])
@pytest.mark.parametrize("measure", PAIRED.values(), ids=PAIRED)
def test_bad_images_get_one_sentence(change, sentence, measure, unchecked):
    with pytest.raises(ValueError, match=sentence):
        measure(*change(images()))


@pytest.mark.parametrize(("call", "sentence"), [
    (lambda x: ssim(x, x, mode="wang"), "`mode` must be .* got 'wang'"),
    (lambda x: ssim(x[..., :6], x[..., :6], mode="reference"), r"7 x 7 pixels or more, got \(32, 6\)"),
    (lambda x: high_frequency_correlation(x, x, cutoff=0.5), r"`cutoff` must lie in \[0, 0.5\) cycles/pixel"),
    (lambda x: high_frequency_correlation(x[:1], x[:1]), "`subject_specific` needs 2 subjects or more"),
    (lambda x: lpips_imagenet("resnet"), '`net` must be "squeeze", "alex" or "vgg", got \'resnet\''),
    (lambda x: frechet_distance(np.ones((5, 3)), np.ones((5, 2))), r"got \(5, 3\) and \(5, 2\)"),
    (lambda x: kid(np.ones((1, 3)), np.ones((5, 3))), r"N and M > 1, got \(1, 3\)"),
    (lambda x: frechet_distance(np.full((5, 3), np.nan), np.ones((5, 3))), "`f` and `g` must be finite"),
])
def test_bad_options_get_one_sentence(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call(images())
