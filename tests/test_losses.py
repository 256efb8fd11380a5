"""Laws of the loss terms: fixtures to the digit, explicit loops, invariances; float64 unless a network is in play."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from medvae_lite.losses import Step, Terms, attribute_loss, perceptual, soft_exponential, squared_error
from medvae_lite.nets import FeatureNet

EXACT = {"rtol": 1e-12, "atol": 1e-12}
Z = torch.tensor([[0.1, -0.2], [0.4, 0.0], [-0.3, 0.5], [0.2, 0.5]], dtype=torch.float64)
A = torch.tensor([[1, 10], [2, 10], [0, 30], [5, 20]], dtype=torch.float64)


def pairs(batch=9, attributes=3):
    return torch.randn(2, batch, attributes, dtype=torch.float64)


def images(*shape):
    return torch.rand(2, *shape, dtype=torch.float64)


def double_loop(z, a, delta):
    """Equation 2, pair by pair, without tensors."""
    batch, attributes = z.shape
    losses = []
    for k in range(attributes):
        total = 0.0
        for i in range(batch):
            for j in range(batch):
                difference = float(a[i, k] - a[j, k])
                sign = (difference > 0) - (difference < 0)
                total += abs(math.tanh(delta * float(z[i, k] - z[j, k])) - sign)
        losses.append(total / batch**2)
    return torch.tensor(losses, dtype=torch.float64)


def test_attribute_fixture():
    loss = attribute_loss(Z, A, delta=10.0).mean(0)
    torch.testing.assert_close(loss, torch.tensor([0.2760177, 0.2455266], dtype=torch.float64), rtol=0, atol=1e-7)
    assert float(loss.sum()) == pytest.approx(0.5215443, abs=1e-7)
    assert float(attribute_loss(Z, A, delta=1.0).mean(0).sum()) == pytest.approx(0.9280457, abs=1e-7)


@pytest.mark.parametrize("delta", [0.3, 1.0, 10.0])
def test_attribute_loss_agrees_with_a_double_loop(delta):
    z, a = pairs()
    a = a.round()  # makes ties
    torch.testing.assert_close(attribute_loss(z, a, delta=delta).mean(0), double_loop(z, a, delta), **EXACT)


@pytest.mark.parametrize("relabel", [torch.exp, lambda a: a**3, lambda a: 5 * a - 2, lambda a: a.argsort(0).argsort(0).double()])
def test_only_the_order_of_attributes_counts(relabel):
    z, a = pairs()
    assert torch.equal(attribute_loss(z, relabel(a), delta=5.0), attribute_loss(z, a, delta=5.0))


def test_only_differences_of_codes_count():
    z, a = pairs()
    torch.testing.assert_close(attribute_loss(z + 3, a, delta=5.0), attribute_loss(z, a, delta=5.0), **EXACT)


def test_attribute_loss_follows_a_permutation():
    (z, a), order = pairs(), torch.randperm(9)
    expected = attribute_loss(z, a, delta=5.0)[order]
    torch.testing.assert_close(attribute_loss(z[order], a[order], delta=5.0), expected, **EXACT)


def test_ordered_codes_cost_nothing_and_reversed_codes_the_most():
    a = torch.arange(6, dtype=torch.float64)[:, None]
    assert float(attribute_loss(a, a, delta=100.0).mean()) == pytest.approx(0, abs=1e-12)
    # All pairs but the empty diagonal are wrong by 2.
    assert float(attribute_loss(-a, a, delta=100.0).mean()) == pytest.approx(2 * 5 / 6, abs=1e-12)


def test_tied_attributes_draw_their_codes_together():
    z, a = torch.tensor([[-0.1], [0.2]], dtype=torch.float64, requires_grad=True), torch.zeros(2, 1).double()
    loss = attribute_loss(z, a, delta=2.0).mean()
    assert float(loss.detach()) == pytest.approx(math.tanh(0.6) / 2)
    loss.backward()
    assert z.grad[0] < 0 < z.grad[1]  # descent raises the lower code and lowers the upper one
    assert float(attribute_loss(torch.zeros_like(a), a, delta=2.0).sum()) == 0


def test_descent_puts_a_wrong_pair_right():
    z = torch.tensor([[0.1], [-0.1]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    wrong = attribute_loss(z, a, delta=2.0).mean()
    wrong.backward()
    assert z.grad[0] > 0 > z.grad[1]
    assert attribute_loss(z.detach().flip(0), a, delta=2.0).mean() < wrong.detach()


def test_squared_error_fixture():
    x = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(squared_error(x, x + 0.1), torch.full((2,), 0.32, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", [squared_error, lambda x, y: perceptual(x, y, lambda v: [v])])
def test_terms_grow_with_the_number_of_pixels(loss):
    x, x_hat = images(3, 2, 4, 4)
    twice = [v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (x, x_hat)]
    torch.testing.assert_close(loss(*twice), 4 * loss(x, x_hat), rtol=1e-6, atol=0)


def test_perceptual_of_the_pixels_themselves_is_the_squared_error():
    x, x_hat = images(3, 2, 8, 8)
    for levels in (1, 3):  # levels weigh the same: repeating one changes nothing
        distance = perceptual(x, x_hat, lambda v, n=levels: [v] * n)
        torch.testing.assert_close(distance, squared_error(x, x_hat), rtol=1e-6, atol=0)  # features in float32


def test_perceptual_is_zero_at_equality_only():
    x, x_hat = images(3, 2, 16, 16).float()
    net = FeatureNet(widths=(8, 16)).eval()
    assert torch.equal(perceptual(x, x.clone(), net.features), torch.zeros(3))
    assert (perceptual(x, x_hat, net.features) > 0).all()


@torch.no_grad()
def test_perceptual_agrees_with_a_loop_over_samples_frames_and_levels():
    x, x_hat = images(3, 2, 16, 16).float()
    net = FeatureNet(widths=(8, 16)).eval()
    expected = []
    for image, image_hat in zip(x, x_hat):
        errors = [
            (phi - phi_hat).double().square().mean()
            for frame, frame_hat in zip(image, image_hat)
            for phi, phi_hat in zip(net.features(frame[None, None]), net.features(frame_hat[None, None]))
        ]
        expected.append(2 * 16 * 16 * sum(errors) / len(errors))
    distance = perceptual(x, x_hat, net.features)
    torch.testing.assert_close(distance.double(), torch.stack(expected), rtol=1e-4, atol=0)


def test_perceptual_of_a_sample_ignores_its_companions():
    x, x_hat = images(3, 2, 16, 16).float()
    net = FeatureNet(widths=(8, 16)).eval()
    before = perceptual(x, x_hat, net.features)[0]
    x[1:], x_hat[1:] = 0.5, 0.1
    assert torch.equal(perceptual(x, x_hat, net.features)[0], before)


def test_perceptual_is_differentiated_by_the_reconstruction_only():
    x, x_hat = (v.requires_grad_() for v in images(2, 1, 8, 8))
    perceptual(x, x_hat, lambda v: [v]).sum().backward()
    assert x.grad is None and x_hat.grad.abs().sum() > 0


@pytest.mark.parametrize("alpha", [1.0, 2.0, 5.0])
def test_soft_exponential_has_its_closed_form_and_slope(alpha):
    energy = torch.linspace(-1, 3, 9, dtype=torch.float64, requires_grad=True)
    value = soft_exponential(energy, alpha=alpha)
    expected = torch.tensor([math.exp(-alpha * float(e)) / alpha for e in energy.detach()], dtype=torch.float64)
    torch.testing.assert_close(value.detach(), expected, **EXACT)
    (slope,) = torch.autograd.grad(value.sum(), energy)
    torch.testing.assert_close(slope, -alpha * expected, **EXACT)


def test_soft_exponential_starts_at_one_half_and_fades():
    energy = torch.tensor([0.0, 1.0, 20.0], dtype=torch.float64)
    first, second, last = soft_exponential(energy).tolist()
    assert first == 0.5 and second == pytest.approx(0.5 * math.exp(-2)) and 0 < last < 1e-17


@dataclass(frozen=True)
class TwoTerms(Terms):
    near: Tensor
    far: Tensor
    weight: float

    def total(self):
        return self.near + self.weight * self.far


def test_means_are_of_every_term_and_detached():
    near, far = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([4.0, 8.0])
    means = TwoTerms(near, far, weight=0.5).means()
    assert {name: float(value) for name, value in means.items()} == {"total": 5.0, "near": 2.0, "far": 6.0}
    assert not any(value.requires_grad for value in means.values())


def test_noise_can_be_replayed():
    first, again, other = (Step(torch.Generator().manual_seed(s), torch.device("cpu")).noise(3, 2) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_doubling_the_gradient_of_rows_is_the_gradient_of_pairs():
    generator = torch.Generator().manual_seed(0)
    z, a = torch.randn(2, 9, 2, generator=generator, dtype=torch.float64)
    a = a.round()  # with ties
    z.requires_grad_()
    (expected,) = torch.autograd.grad(attribute_loss(z, a, delta=3.0).mean(), z)
    parts = [attribute_loss(z[rows], a[rows], delta=3.0, among=(z.detach(), a)) for rows in (slice(0, 4), slice(4, 9))]
    (found,) = torch.autograd.grad(torch.cat(parts).mean(), z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)  # float64
    torch.testing.assert_close(torch.cat(parts), attribute_loss(z, a, delta=3.0), rtol=0, atol=0)


def test_every_row_of_noise_is_drawn_once():
    def step(part, parts):
        return Step(torch.Generator().manual_seed(1), torch.device("cpu"), part=part, parts=parts)

    whole, columns = step(0, 1).noise(12, 3), step(0, 1).draw(torch.rand, 2, 12, rows=1)
    for parts in (2, 3, 4):
        for part in range(parts):
            assert torch.equal(step(part, parts).noise(12 // parts, 3), whole[part::parts])
            assert torch.equal(step(part, parts).draw(torch.rand, 2, 12 // parts, rows=1), columns[:, part::parts])
    alike = step(1, 2).undivided()
    assert torch.equal(alike.noise(12, 3), whole) and torch.equal(alike.whole(whole), whole)
