"""Disentanglement metrics against published figures, hand-worked tables, plain loops and their laws."""

import json

import jaxtyping
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.feature_selection import mutual_info_regression
from sklearn.linear_model import LinearRegression

from medvae_lite import disentangle
from medvae_lite.disentangle import (
    ceiling, chance, correlation, evaluate, interpretability, modularity, modularity_rows, mutual_information,
    sap, scc, subsample_interval,
)

TABLE = np.array([[0.5, 0.1, 0.0], [0.0, 0.0, 0.0], [0.2, 0.2, 0.2], [0.3, 0.0, 0.0]])


def mixed_codes():
    """Codes (400, 8), the last constant, and attributes linear, exponential and shared in them."""
    rng = np.random.RandomState(0)
    z = rng.randn(400, 8)
    noise, noise_2 = rng.randn(400), rng.randn(400)
    shared = 0.7 * z[:, 0] + 0.7 * z[:, 2] + 0.1 * noise_2
    a = np.stack([z[:, 0] + 0.3 * noise, np.exp(z[:, 1]), shared], axis=1)
    z[:, 7] = 0
    return z, a


def correlated(n, k, rho, seed=0):
    """Gaussian attributes (n, k), every pair correlated by rho."""
    cov = np.full((k, k), rho) + (1 - rho) * np.eye(k)
    return np.random.default_rng(seed).multivariate_normal(np.zeros(k), cov, size=n)


def test_reference_mode_reproduces_the_public_code():
    scores = evaluate(*mixed_codes(), mode="reference")
    assert_allclose(scores.interpretability, [0.90597, 0.717664, 0.483379], atol=1e-6)
    assert scores.dimension.tolist() == [0, 1, 2]
    row = scores.summary()
    for key, value in {"interpretability": 0.702338, "scc": 0.875989, "sap": 0.546514}.items():
        assert row[key] == pytest.approx(value, abs=1e-6), key
    assert row["modularity"] == pytest.approx(0.644764, abs=1e-6)
    assert (row["N"], row["D"], row["K"], row["active"]) == (400, 8, 3, 7)


def test_single_metrics_agree_with_evaluate():
    z, a = mixed_codes()
    for mode in ("default", "reference"):
        row = evaluate(z, a, mode=mode, dims=[0, 1], seed=3).summary()
        assert scc(z, a, mode=mode) == row["scc"]
        assert sap(z, a, mode=mode) == row["sap"]
        assert interpretability(z, a, mode=mode, seed=3) == row["interpretability"]
        assert modularity(z, a, mode=mode, seed=3) == row["modularity"]
        assert modularity(z, a, dims=[0, 1], mode=mode, seed=3) == row["modularity_dims"]


def test_modularity_of_a_hand_worked_table(monkeypatch):
    assert_allclose(modularity_rows(TABLE), [0.98, 0, 0, 1], atol=1e-12)
    assert modularity_rows(TABLE).mean() == pytest.approx(0.495)
    monkeypatch.setattr(disentangle, "mutual_information", lambda *args, **kwargs: TABLE)
    rng = np.random.default_rng(0)
    scores = evaluate(rng.normal(size=(20, 4)), rng.normal(size=(20, 3)), dims=[0, 3])
    assert scores.modularity == pytest.approx(0.495)
    assert scores.modularity_informative == pytest.approx(0.5 * 0.98 + 0.2 * 0 + 0.3 * 1)
    assert scores.modularity_dims == pytest.approx(0.99)


@pytest.fixture(scope="module")
def paper_scale():
    """The paper's test set in size: 804 subjects, 128 dimensions, six attributes correlated by 0.5."""
    a = correlated(804, 6, 0.5)
    noise = np.random.default_rng(1).normal(size=(804, 128))
    return evaluate(noise, a, mode="reference"), ceiling(a, latent_dim=128, mode="reference")


def test_reference_modularity_is_a_noise_meter(paper_scale):
    noise, perfect = paper_scale
    assert noise.modularity == pytest.approx(0.86, abs=0.04)
    assert perfect.modularity == pytest.approx(0.865, abs=0.04)
    assert perfect.modularity_dims == pytest.approx(0.999, abs=0.002)
    assert perfect.modularity_informative > 0.97


def test_chance_rows_at_the_size_of_the_paper(paper_scale):
    row = paper_scale[0].summary()
    assert row["interpretability"] < 0.01
    assert row["scc"] == pytest.approx(0.089, abs=0.02)
    assert row["sap"] == pytest.approx(0.002, abs=0.002)


def test_a_perfect_code_scores_one_but_for_sap(paper_scale):
    row = paper_scale[1].summary()
    assert row["interpretability"] == pytest.approx(1) and row["scc"] == pytest.approx(1)
    assert row["sap"] == pytest.approx(0.73, abs=0.05)


def test_sap_ceiling_is_what_the_attribute_correlations_leave():
    a = correlated(300, 3, 0.8) * [50, 3, 0.1] + [170, 0, 5]
    r2 = np.corrcoef(a, rowvar=False) ** 2
    scores = ceiling(a, ["LVEDV", "RVEDV", "MYOEDV"])
    assert_allclose(scores.sap, 1 - (r2 - np.eye(3)).max(axis=0))
    assert_allclose(scores.interpretability, 1)
    assert scores.names == ("LVEDV", "RVEDV", "MYOEDV") and scores.dimension.tolist() == [0, 1, 2]


def test_scc_against_scipy_with_and_without_the_threshold():
    rng = np.random.default_rng(6)
    z, a = rng.normal(size=(40, 5)), rng.normal(size=(40, 4))
    z[:, 0] += 0.5 * a[:, 0]
    z[:, 1] += 0.2 * a[:, 1]
    results = [[stats.spearmanr(z[:, i], a[:, k]) for k in range(4)] for i in range(5)]
    rho = np.array([[cell.statistic for cell in row] for row in results])
    p = np.array([[cell.pvalue for cell in row] for row in results])
    kept = p <= 0.05
    best = np.sort(p.min(axis=0))
    assert best[0] < 0.01 < best[1] < 0.05 < best[-1]  # so that the threshold, and its value, matter
    assert_allclose(correlation(z, a), rho, atol=1e-12)
    assert scc(z, a) == pytest.approx(np.abs(rho).max(axis=0).mean())
    assert scc(z, a, mode="reference") == pytest.approx(np.abs(rho * kept).max(axis=0).mean())


def test_sap_against_a_double_loop():
    z, a = mixed_codes()
    r2 = np.zeros((8, 3))
    for i in range(7):
        for k in range(3):
            (var_z, cov), (_, var_a) = np.cov(z[:, i], a[:, k])
            r2[i, k] = cov**2 / (var_z * var_a)
    ranked = np.sort(r2, axis=0)
    assert_allclose(evaluate(z, a, mode="reference").sap, ranked[-1] - ranked[-2], rtol=1e-10)
    assert sap(z[:, :1], a) == pytest.approx(r2[0].mean())


def test_interpretability_against_scikit_learn():
    z, a = mixed_codes()
    mi = np.stack([mutual_info_regression(z, y, random_state=0) for y in a.T], axis=1)
    x = [z[:, [i]] for i in mi.argmax(axis=0)]
    r2 = [LinearRegression().fit(u, y).score(u, y) for u, y in zip(x, a.T, strict=True)]
    assert_allclose(evaluate(z, a, mode="reference").interpretability, r2, rtol=1e-10)
    assert_allclose(mutual_information(z, a, mode="reference"), mi)


def test_held_out_r2_estimates_the_true_one_and_is_not_optimistic():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2000, 2))
    z = a + rng.normal(size=a.shape) * [0.5, 1]
    assert_allclose(evaluate(z, a).interpretability, [1 / 1.25, 1 / 2], atol=0.03)
    noise = [rng.normal(size=(60, 20)) for _ in range(10)]
    targets = rng.normal(size=(60, 3))
    same, held_out = ([interpretability(z, targets, mode=m) for z in noise] for m in ("reference", "default"))
    assert np.mean(same) > 0.01 and np.mean(held_out) < 0


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
def test_mutual_information_of_a_gaussian_pair(rho):
    pair = correlated(2000, 2, rho)
    mi = mutual_information(pair[:, :1], pair[:, 1:]).item()
    assert mi == pytest.approx(-0.5 * np.log(1 - rho**2), abs=0.05)


def test_default_mutual_information_ignores_an_offset_that_ruins_the_reference():
    pair = correlated(300, 2, 0.9)
    z, a = pair[:, :1], pair[:, 1:]
    assert mutual_information(z + 1e9, a).item() == pytest.approx(mutual_information(z, a).item(), abs=0.02)
    there, here = (mutual_information(u, a, mode="reference").item() for u in (z + 1e10, z))
    assert there < 0.5 * here


def test_invariances():
    z, a = mixed_codes()
    assert scc(z, np.exp(2 * a)) == pytest.approx(scc(z, a))
    before = evaluate(z, a).summary()
    order = np.random.default_rng(0).permutation(8)
    assert evaluate(z[:, order], a).summary() == pytest.approx(before)
    assert evaluate(-z, a * [1, 1000, 0.001]).summary() == pytest.approx(before)
    assert evaluate(z, a).summary() == before
    tied = np.round(z)  # ties are broken by jitter, and the jitter by the seed
    assert (mutual_information(tied, a, seed=1) == mutual_information(tied, a, seed=1)).all()
    assert (mutual_information(tied, a, seed=1) != mutual_information(tied, a, seed=2)).any()


def test_collapsed_dimensions_are_dropped_and_counted():
    z, a = mixed_codes()
    faint = 0.01 * a[:, :1]  # perfectly correlated, yet collapsed: nothing the decoder can use
    wide = np.hstack([z, faint, np.full((400, 1), 0.1)])
    before, after = evaluate(z[:, :7], a).summary(), evaluate(wide, a).summary()
    assert (after["D"], after["active"]) == (10, 7)
    assert {**after, "D": 7} == pytest.approx(before)
    assert (mutual_information(wide, a)[7:] == 0).all()
    every = evaluate(wide, a, active=np.arange(10) != 7)
    assert every.active == 9 and every.scc[0] == pytest.approx(1)
    assert modularity(wide, a, dims=[1, 8]) == pytest.approx(modularity(z, a, dims=[1]) / 2)


def test_a_collapsed_code_scores_nothing():
    z, a = mixed_codes()
    row = evaluate(0.001 * z, a).summary()
    assert row["active"] == 0 and row["scc"] == row["sap"] == 0 and row["interpretability"] <= 0
    assert np.isnan(row["modularity"]) and np.isnan(row["modularity_informative"])


def test_modularity_needs_two_attributes():
    z, a = mixed_codes()
    assert np.isnan(modularity(z, a[:, :1]))


def test_chance_is_far_below_a_real_code_and_reproducible():
    z, a = mixed_codes()
    rows = chance(z[:150], a[:150], n=8, dims=[0, 1, 2], seed=1)
    real = evaluate(z[:150], a[:150], dims=[0, 1, 2]).summary()
    assert set(rows) == set(real) - {"N", "D", "K", "active"}
    assert all(row.low <= row.value <= row.high for row in rows.values())
    for key in ("interpretability", "scc", "sap"):
        assert rows[key].high < 0.5 * real[key], key
    assert rows == chance(z[:150], a[:150], n=8, dims=[0, 1, 2], seed=1)
    assert rows != chance(z[:150], a[:150], n=8, dims=[0, 1, 2], seed=2)


def test_subsample_interval_of_a_mean_is_the_textbook_interval():
    a = np.random.default_rng(0).normal(5, 2, size=(400, 1))
    value, low, high = subsample_interval(lambda z, a: a.mean(), a, a, n=3000)
    half = 1.96 * a.std() / 20
    assert_allclose([value, low, high], [a.mean(), a.mean() - half, a.mean() + half], atol=0.1 * half)


def test_a_bootstrap_invents_mutual_information_and_subsampling_does_not():
    rng = np.random.default_rng(0)
    z, a = rng.normal(size=(2, 300, 1))
    drawn = rng.integers(0, 300, size=300)
    assert mutual_information(z[drawn], a[drawn]).item() > 0.3
    interval = subsample_interval(lambda z, a: mutual_information(z, a).item(), z, a, n=20)
    assert abs(interval.value) < 0.1 and interval.low <= interval.value <= interval.high


def test_summary_is_a_flat_row_of_plain_numbers():
    z, a = mixed_codes()
    scores = evaluate(z, a, ["x", "y", "z"], dims=[0])
    assert json.loads(json.dumps(scores.summary())) == scores.summary()
    with pytest.raises(AttributeError):
        scores.mode = "reference"


@pytest.fixture
def unchecked(monkeypatch):
    """As a reader calls it: annotations are checked in tests only, where they speak before the sentences."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def bad(change):
    z, a = mixed_codes()
    call = {"z": z, "a": a, "names": ["LVEDV", "RVEDV", "MYOEDV"]}
    return change(call) or call


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda c: c.update(z=c["z"][:9], a=c["a"][:9]), "10 rows or more, one a subject, got 9 and 9"),
    (lambda c: c.update(z=c["z"][:50]), "10 rows or more, one a subject, got 50 and 400"),
    (lambda c: c.update(z=c["z"][:, 0]), r"`z` must have shape \(subjects, dimensions\), got \(400,\)"),
    (lambda c: c.update(z=np.where(np.arange(400)[:, None] == 5, np.nan, c["z"])), "`z` must be finite.*: 5"),
    (lambda c: c.update(a=np.where(np.arange(3) == 1, np.inf, c["a"])), "`a` must be finite.* in 400 rows"),
    (lambda c: c.update(a=c["a"] * [1, 0, 1]), "attribute `RVEDV` is constant"),
    (lambda c: c.update(a=c["a"] * [1, 0, 1], names=None), "attribute in column 1 of `a` is constant"),
    (lambda c: c.update(names=["LVEDV"]), "`names` must name the 3 columns of `a`, got 1"),
    (lambda c: c.update(mode="authors"), "`mode` must be \"default\" or \"reference\", got 'authors'"),
    (lambda c: c.update(dims=[0, 8]), r"`dims` must name latent dimensions from 0 to 7, got \[0, 8\]"),
    (lambda c: c.update(active=[True]), r"`active` must be a boolean mask of shape \(8,\)"),
    (lambda c: c.update(active=[True] * 8, mode="reference"), 'in mode "default" only'),
])
def test_bad_input_gets_one_sentence(change, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        evaluate(**bad(change))


def test_bad_options_get_one_sentence():
    z, a = mixed_codes()
    with pytest.raises(ValueError, match="`latent_dim` must be at least 3, .* got 2"):
        ceiling(a, latent_dim=2)
    with pytest.raises(ValueError, match="`fraction` must lie between 0 and 1, got 1.0"):
        subsample_interval(scc, z, a, fraction=1.0)


def test_all_cores_give_what_one_gives_bit_for_bit(monkeypatch):
    z, a = mixed_codes()
    jobs = []

    def seen(*args, n_jobs, **options):
        jobs.append(n_jobs)
        return mutual_info_regression(*args, n_jobs=n_jobs, **options)

    monkeypatch.setattr(disentangle, "mutual_info_regression", seen)
    one = [mutual_information(z, a, mode=mode) for mode in ("default", "reference")]
    monkeypatch.setattr(disentangle, "_THREADED", 1)
    all_cores = [mutual_information(z, a, mode=mode) for mode in ("default", "reference")]
    assert set(jobs[:6]) == {1} and set(jobs[6:]) == {-1}
    for single, several in zip(one, all_cores):
        np.testing.assert_array_equal(single, several)
