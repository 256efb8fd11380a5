"""A batch in parts gives the gradients of the whole batch, whichever family, and memory that runs out costs time only."""

import logging
from dataclasses import replace

import pytest
import torch
from _families import FAMILIES, family
from torch import nn

from medvae_lite import shares as module
from medvae_lite.datasets import Batch
from medvae_lite.losses import Step, Update
from medvae_lite.shares import Share, gradients, halved, out_of_memory
from medvae_lite.sivae import ARSIVAE
from medvae_lite.train import FitConfig, fit

PLAIN = torch.autocast("cpu", enabled=False)


def start(name):
    model, train, _ = family(name)
    return model, train.batch(torch.arange(16))


def whole_step(model, batch, parts, *, number=7, split_after=-1):
    """Gradients and terms of every update of a step in `parts` parts, or divided after the update number `split_after`."""
    step = Step(torch.Generator().manual_seed(3), torch.device("cpu"), number)
    shares, found = [Share(batch, step)], []
    while len(shares) < parts and split_after < 0:
        shares = halved(shares)
    for count, update in enumerate(model.updates()):
        for p in model.parameters():
            p.grad = None
            p.requires_grad_(any(p is q for q in update.parameters))
        shares, means = gradients(update, shares, PLAIN)
        found.append(({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, means))
        with torch.no_grad():
            for p in update.parameters:
                p -= 1e-3 * p.grad if p.grad is not None else 0
        while count == split_after and len(shares) < parts:
            shares = halved(shares)
    return found


def compare(found, expected):
    """Equal but for rounding: gradients within 1e-4 of their length, terms within 1e-5."""
    assert len(found) == len(expected)
    for (grads, means), (grads_whole, means_whole) in zip(found, expected):
        assert grads.keys() == grads_whole.keys() and means.keys() == means_whole.keys()
        one, other = (torch.cat([g[name].flatten() for name in sorted(g)]) for g in (grads, grads_whole))
        assert (one - other).norm() < 1e-4 * other.norm()
        for name, value in means_whole.items():
            torch.testing.assert_close(means[name], value, rtol=1e-5, atol=1e-5, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_parts_have_the_gradients_of_the_whole(name, parts):
    model, batch = start(name)
    whole = whole_step(model, batch, 1)
    compare(whole_step(start(name)[0], batch, parts), whole)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "sivae" in name])
def test_a_step_can_be_divided_between_its_updates(name):
    model, batch = start(name)
    compare(whole_step(start(name)[0], batch, 4, split_after=0), whole_step(model, batch, 1))


def test_pairs_within_parts_alone_would_be_another_loss():
    """What the first pass is for: without it the attribute term would compare rows of one part only."""
    model, batch = start("attri_vae")
    whole = whole_step(model, batch, 1)
    step = Step(torch.Generator().manual_seed(3), torch.device("cpu"), 7)
    alone = [replace(s, step=replace(s.step, gather=lambda t: t)) for s in halved(halved([Share(batch, step)]))]
    model = start("attri_vae")[0]
    (update,) = model.updates()
    before, total = step.generator.get_state(), 0.0
    for share in alone:
        step.generator.set_state(before)
        total += float(update.loss(share.batch, share.step).attribute.detach().mean()) / 4
    assert abs(total - float(whole[0][1]["attribute"])) > 0.01


def test_halves_know_their_rows():
    batch = family("attri_vae")[1].batch(torch.arange(16))
    shares = halved(halved([Share(batch, Step(torch.Generator(), torch.device("cpu"), carry={"z": torch.arange(16), "maps": [1]}))]))
    for share in shares:
        rows = list(range(share.step.part, 16, 4))
        assert share.step.parts == 4 and share.batch.index.tolist() == rows == share.step.carry["z"].tolist()
        assert share.step.carry["maps"] is None
    assert sorted(share.step.part for share in shares) == [0, 1, 2, 3]


def hungry(model, most, *, error=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), name=None):
    """Has every loss (or that of the update `name`) run out of memory on more than `most` subjects; counts the passes."""
    calls = []

    def loss_of(update):
        def loss(batch, step):
            calls.append(len(batch.index))
            if len(batch.index) > most and torch.is_grad_enabled():
                raise error
            return update.loss(batch, step)

        return loss

    made = tuple(Update(u.name, u.parameters, loss_of(u)) if name in (None, u.name) else u for u in model.updates())
    model.updates = lambda: made
    return model, calls


@pytest.mark.parametrize(
    ("name", "at"),
    [("attri_vae", None), ("ar_sivae, all terms", "encoder"), ("ar_sivae, all terms", "decoder"), ("poe_vae", None), ("nvmp+, reading C", None)],
)
def test_memory_that_runs_out_halves_the_batch_and_trains_the_same(caplog, name, at):
    config = FitConfig(steps=3, batch_size=16, learning_rate=1e-3, speed="exact")
    model, train, val = family(name)
    rows, _ = fit(model, train, val, config, seed=1, progress=False)
    first = [p.detach().clone() for p in family(name)[0].parameters()]
    other, calls = hungry(family(name)[0], 4, name=at)
    with caplog.at_level(logging.WARNING):
        rows_other, manifest = fit(other, train, val, config, seed=1, progress=False)
    said = [record.message for record in caplog.records]
    assert said == [f"out of memory with {n} subjects at a time: going on with {n // 2}, gradients added up" for n in (16, 8)]
    assert manifest["parts"] == 4 and manifest["skipped"] == 0 and max(calls[-4:]) == 4
    moved = torch.cat([(p.detach() - s).flatten() for p, s in zip(model.parameters(), first)]).norm()
    apart = torch.cat([(p.detach() - q.detach()).flatten() for p, q in zip(model.parameters(), other.parameters())]).norm()
    assert apart < 0.01 * moved
    for column in rows:
        assert rows_other[column].iloc[-1] == pytest.approx(rows[column].iloc[-1], rel=1e-3, abs=1e-4)


def test_a_batch_that_cannot_be_halved_ends_in_a_sentence():
    model, train, val = family("attri_vae")
    model, calls = hungry(model, 0)
    sentence = r"^2 subjects at a time do not fit into the memory of cpu and cannot be halved: choose a smaller `batch_size` than 16"
    with pytest.raises(torch.OutOfMemoryError, match=sentence):
        fit(model, train, val, FitConfig(steps=3, batch_size=16, speed="exact"), progress=False)
    batch_norm = ARSIVAE(size=16, latent_dim=8, widths=(8, 8, 16), norm="batch")
    with pytest.raises(torch.OutOfMemoryError, match="^16 subjects at a time do not fit"):
        fit(hungry(batch_norm, 0)[0], train, val, FitConfig(steps=3, batch_size=16, speed="exact"), progress=False)


def test_other_errors_are_not_taken_for_want_of_memory():
    model, train, val = family("attri_vae")
    with pytest.raises(RuntimeError, match="^shapes differ"):
        fit(hungry(model, 4, error=RuntimeError("shapes differ"))[0], train, val, FitConfig(steps=3, speed="exact"), progress=False)
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_batch_norms_are_not_divided():
    assert module.is_divisible(nn.Sequential(nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1)))
    assert not module.is_divisible(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
