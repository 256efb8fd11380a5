"""Annealing, balancing and the lesion loss, against figures worked by hand."""

import math

import numpy as np
import pytest
import torch

from medvae_lite.layer_losses import anneal, balance, lesion_loss


def test_anneal_starts_over_every_cycle():
    values = [anneal(s, cycle=100, ramp=0.5) for s in range(250)]
    assert values[0] == values[100] == 2e-7 and values[25] == values[125] == 0.5 and values[60] == values[99] == 1.0
    assert anneal(3, cycle=0, ramp=0.5) == 1.0
    # Hu et al. 2022: a cycle of 10,000 from 2e-7.
    assert anneal(2500, cycle=10_000, ramp=0.5) == 0.5


def test_balance_fixture():
    """KL and sizes of a measured run: the two published descriptions weigh the finest layer .37 and 3.91."""
    kl, dims = torch.tensor([[2.1, 1.8, 62.9, 208.5, 201.5]]), torch.tensor([32.0, 128, 512, 2048, 8192])
    assert np.allclose(balance(kl, dims, "per_dim"), [1.00, 0.21, 1.87, 1.55, 0.37], atol=0.01)
    assert np.allclose(balance(kl, dims, "times_size"), [0.0002, 0.0005, 0.08, 1.01, 3.91], atol=0.01)
    assert balance(kl, dims, "none").tolist() == [1.0] * 5
    assert balance(-kl, dims, "per_dim").min() > 0


def test_lesion_loss_fixture():
    """Four pixels, one lesion: cross-entropy 4 log 2 at chance, Dice (2 * 0.5 + 1) / (2 + 1 + 1) = 1/2."""
    logits, truth = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0], [0, 0]]]])
    assert float(lesion_loss(logits, truth)[0]) == pytest.approx(4 * math.log(2) + 50)
    assert float(lesion_loss(40 * truth - 20, truth)[0]) < 1e-3
