"""The rule for the repulsion against the loss it was derived from, and against tables worked by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from medvae_lite import repulsion
from medvae_lite.losses import soft_exponential

RUN = {"beta_kl": 0.5, "values": 2048}


@pytest.mark.parametrize(
    ("beta_neg", "values", "expected"),
    [
        (1024, 128 * 128, 0.125),  # AR-SIVAE as published: channels left out of s
        (1024, 3 * 256 * 256, 1 / 96),
        (256, 3 * 32 * 32, 1 / 6),
        (256, 28 * 28, 512 / 784),
    ],
)
def test_slopes_of_published_settings(beta_neg, values, expected):
    assert repulsion.slope(beta_neg, values) == pytest.approx(expected)


def test_published_settings_settle_where_logarithms_worked_by_hand_say():
    # 2 s beta_neg = 1/8 and beta_neg / beta_kl = 1024 = 2^10: ten times ln 2, times eight nats.
    assert repulsion.settled_kl(0.125, beta_kl=1, values=128 * 128) == pytest.approx(80 * np.log(2))
    # An encoder for which the exchange is a hundredth has ln 100 more in the bracket.
    more = repulsion.settled_kl(0.125, beta_kl=1, values=128 * 128, exchange=0.01)
    assert more - 80 * np.log(2) == pytest.approx(8 * np.log(100))


@pytest.mark.parametrize("r", [0.005, 0.04, 0.125, 1.0])
@pytest.mark.parametrize("exchange", [1.0, 0.1])
def test_settled_is_the_minimum_of_the_encoder_s_loss(r, exchange):
    scale, beta_neg = 1 / RUN["values"], r * RUN["values"] / 2

    def loss(kl_fake):  # the terms of equation 6 that a generated image's KL moves
        push = soft_exponential(scale * beta_neg * torch.tensor([kl_fake], dtype=torch.float64))
        return float(push) + scale * RUN["beta_kl"] * exchange * kl_fake

    found = minimize_scalar(loss, bounds=(0, 4000), method="bounded", options={"xatol": 1e-9}).x
    assert repulsion.settled_kl(r, **RUN, exchange=exchange) == pytest.approx(found, rel=1e-4)


def test_a_pull_that_wins_from_the_start_settles_at_zero():
    assert repulsion.settled_kl(0.001, beta_kl=50, values=2048) == 0


def test_exchange_rate_is_the_ratio_of_two_gradients():
    r, scale = 0.1, 1 / RUN["values"]
    kl_fake = torch.tensor([40.0, 60.0, 90.0], dtype=torch.float64, requires_grad=True)
    repel = soft_exponential(r / 2 * kl_fake).mean()
    repel.backward()
    push = -float(kl_fake.grad.sum())  # all images one nat further out
    kappa = repulsion.exchange_rate(float(repel.detach()), r, **RUN)
    assert kappa == pytest.approx(push / (scale * RUN["beta_kl"]), rel=1e-12)


@pytest.mark.parametrize("r", [0.02, 0.1, 0.4])
def test_exchange_rate_and_settled_kl_undo_each_other(r):
    kappa = np.array([0.05, 0.3, 1.0])
    kl = repulsion.settled_kl(r, **RUN, exchange=kappa)
    np.testing.assert_allclose(repulsion.exchange_rate(0.5 * np.exp(-r * kl), r, **RUN), kappa)


def test_suggestion_keeps_the_product_and_takes_arrays():
    rates = np.array([10.0, 40.0, 100.0])
    np.testing.assert_allclose(repulsion.suggested_repulsion(rates) * rates, repulsion.REACH)
    assert repulsion.suggested_repulsion(100, reach=5) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: repulsion.suggested_repulsion(0), "`kl_real` must be positive and finite, got 0"),
        (lambda: repulsion.suggested_repulsion(40, reach=-1), "`reach` must be positive and finite, got -1"),
        (lambda: repulsion.slope(256, 0), "`values` must be positive and finite"),
        (lambda: repulsion.settled_kl(float("nan"), **RUN), "`repulsion` must be positive and finite, got nan"),
        (lambda: repulsion.settled_kl(0.1, **RUN, exchange=0), "`exchange` must be positive and finite"),
        (lambda: repulsion.exchange_rate(0.6, 0.1, **RUN), "`repel` must lie between 0 and 0.5, got 0.6"),
        (lambda: repulsion.exchange_rate(float("nan"), 0.1, **RUN), "`repel` must lie between 0 and 0.5, got nan"),
    ],
)
def test_what_makes_no_sense_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
