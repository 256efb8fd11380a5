"""Normative statistics against simulation, libraries and hand-worked numbers; each published defect has its test."""

import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from medvae_lite import normative as nm

RNG = np.random.default_rng


def test_healthy_people_come_out_standard_normal():
    d = RNG(0).normal(3, 2, (4000, 20))
    z = nm.Calibration.fit(d[:1000])(d[1000:])
    found = nm.check(z)
    assert found.passed and abs(found.mean_abs - np.sqrt(2 / np.pi)) < 0.01 and abs(found.false_positives - 0.05) < 0.005
    assert str(found).startswith("calibrated: 3000 healthy people")


@pytest.mark.parametrize("holdout", [37, 80])
def test_a_small_holdout_inflates_false_positives_unless_corrected(holdout):
    """What a finite holdout costs: 6 % at 37 people. The corrected z has 5 % whatever its size."""
    rates = {True: [], False: []}
    for seed in range(200):
        d = RNG(seed).normal(size=(holdout + 500, 20))
        calibration = nm.Calibration.fit(d[:holdout])
        for exact, of in rates.items():
            of.append((np.abs(calibration(d[holdout:], exact=exact)) > 1.959964).mean())
    expected = 2 * stats.t.sf(1.959964 / np.sqrt(1 + 1 / holdout), holdout - 1)
    assert np.mean(rates[False]) == pytest.approx(expected, abs=0.0015)
    assert np.mean(rates[True]) == pytest.approx(0.05, abs=0.0015)


def test_the_exact_z_is_finite_far_out_and_keeps_sign_and_order():
    calibration = nm.Calibration.fit(RNG(0).normal(size=(100, 1)))
    z = calibration(np.array([[-60.0], [-3.0], [0.0], [3.0], [60.0]]))[:, 0]
    assert np.isfinite(z).all() and (np.diff(z) > 0).all()
    assert np.abs(z[1]) < 3.2, "a t of 99 degrees of freedom is a smaller normal quantile"


def test_calibrating_on_training_people_inflates_z():
    """The published multimodal arm was fine-tuned on the people it was calibrated with; its unimodal arm was not."""
    rng = RNG(0)
    x = rng.normal(size=(700, 30))
    train, holdout, test = x[:100], x[100:400], x[400:]
    c = [rng.normal(size=(len(part), 40)) for part in (train, holdout, test)]
    model = nm.Regression.fit(train, c[0])
    honest = nm.check(nm.Calibration.fit(model.residual(holdout, c[1]))(model.residual(test, c[2])))
    leaky = nm.check(nm.Calibration.fit(model.residual(train, c[0]))(model.residual(test, c[2])))
    assert honest.passed
    assert leaky.mean_abs > 1.1 and leaky.false_positives > 0.15 and "NOT" in str(leaky)


def test_few_people_or_a_constant_region_are_refused():
    with pytest.raises(ValueError, match="at least 30 healthy people in every region, got 29"):
        nm.Calibration.fit(RNG(0).normal(size=(29, 3)))
    d = RNG(0).normal(size=(50, 3))
    d[:, 1] = 2
    with pytest.raises(ValueError, match="region 1 of the holdout does not vary"):
        nm.Calibration.fit(d)


def test_gaps_stay_gaps():
    d = RNG(0).normal(size=(200, 4))
    d[::2, 3] = np.nan
    z = nm.Calibration.fit(d[:100])(d[100:])
    assert np.isnan(z[::2, 3]).all() and np.isfinite(z[1::2]).all()
    assert np.isfinite(nm.mean_deviation(z)).all()
    found = nm.significant(nm.p_values(z))
    assert not found[np.isnan(z)].any()


def test_p_is_two_sided_and_the_published_one_is_half_of_it():
    z = np.array([[-1.959964, 0.0, 1.959964]])
    np.testing.assert_allclose(nm.p_values(z), [[0.05, 1, 0.05]], rtol=1e-5)
    np.testing.assert_allclose(nm.p_values(z, mode="published"), [[0.025, 0.5, 0.025]], rtol=1e-5)
    healthy = nm.p_values(RNG(0).normal(size=(2000, 50)))
    assert stats.kstest(healthy.ravel(), "uniform").pvalue > 0.01
    published = nm.p_values(RNG(0).normal(size=(2000, 50)), mode="published")
    assert (published < 0.05).mean() == pytest.approx(0.10, abs=0.005), "one-sided of an absolute value: twice the rate"


def test_false_discovery_by_hand():
    """Benjamini & Hochberg 1995, section 3.2: four of the fifteen hypotheses at 5 %."""
    p = np.array([[0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]])
    assert nm.significant(p).sum() == 4
    assert nm.significant(p.T, within="region").sum() == 4
    assert nm.significant(p, within="none").sum() == 9


def test_within_a_region_who_else_is_in_the_table_decides_about_you():
    z = RNG(0).normal(size=(100, 30))
    you = np.full((1, 30), 2.6)
    alone, among_ill = np.vstack([you, z]), np.vstack([you, z + 4])
    person = [nm.significant(nm.p_values(t))[0].sum() for t in (alone, among_ill)]
    region = [nm.significant(nm.p_values(t), within="region")[0].sum() for t in (alone, among_ill)]
    assert person[0] == person[1] == 30
    assert region[0] == 0 and region[1] == 30


def test_the_discovery_rate_is_kept_within_a_person():
    """No effect at all: the share of people with any discovery is the rate."""
    found = nm.significant(nm.p_values(RNG(1).normal(size=(4000, 40))))
    assert found.any(1).mean() == pytest.approx(0.05, abs=0.012)


def test_mahalanobis_against_scipy_and_its_degrees_of_freedom():
    rng = RNG(0)
    v = rng.normal(size=(20_000, 10)) @ rng.normal(size=(10, 10))
    model = nm.Mahalanobis.fit(v[:10_000])
    one = stats.multivariate_normal(v[:10_000].mean(0), np.cov(v[:10_000].T))
    centre = one.logpdf(v[:10_000].mean(0))
    np.testing.assert_allclose(model(v[10_000:10_005]), -2 * (one.logpdf(v[10_000:10_005]) - centre), rtol=1e-8)
    rates = {mode: (model.p(v[10_000:], mode=mode) < 0.01).mean() for mode in ("default", "published")}
    assert rates["default"] == pytest.approx(0.01, abs=0.0035)
    assert rates["published"] > 1.4 * rates["default"], "one degree of freedom too few"
    with pytest.raises(ValueError, match="needs at least 20 people, got 15"):
        nm.Mahalanobis.fit(v[:15])


def test_shrinkage_makes_few_people_do():
    """Forty people, thirty columns: shrunk, new people's distances rank as by the true covariance better than unshrunk ones do."""
    rng = RNG(0)
    scale = np.linspace(0.5, 2, 30)
    v, new = rng.normal(size=(70, 30)) * scale, rng.normal(size=(400, 30)) * scale
    true = (new**2 / scale**2).sum(1)
    agree = lambda few, **how: stats.spearmanr(nm.Mahalanobis.fit(v[:few], **how)(new), true).statistic
    assert agree(40, shrink=True) > agree(60) and agree(40, shrink=True) > 0.5


def test_likelihood_ratio_by_hand_and_how_often_its_interval_holds():
    found = nm.likelihood_ratio(np.arange(100) < 30, np.arange(200) < 12)
    assert found.value == pytest.approx((30.5 / 100.5) / (12.5 / 200.5))
    none = nm.likelihood_ratio(np.arange(100) < 5, np.zeros(65, bool))
    assert np.isfinite(none).all() and none.high / none.low > 50
    rng, held = RNG(0), 0
    for _ in range(2000):
        one = nm.likelihood_ratio(rng.random(150) < 0.2, rng.random(150) < 0.05)
        held += one.low <= 4 <= one.high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


def test_slope_of_group_means_and_its_interval():
    group = np.repeat(["SMC", "EMCI", "LMCI", "AD"], 5)
    d = np.repeat([0.80, 0.84, 1.03, 1.13], 5) + np.tile([-0.1, -0.05, 0, 0.05, 0.1], 4)
    found = nm.slope(d, group, ("SMC", "EMCI", "LMCI", "AD"))
    assert found.value == pytest.approx(np.polyfit([1, 2, 3, 4], [0.80, 0.84, 1.03, 1.13], 1)[0])
    assert found.value == pytest.approx(0.12, abs=0.005), "the poster's unimodal slope from its own group means"
    rng, held = RNG(0), 0
    for _ in range(1000):
        d = rng.normal(np.repeat([1, 1.2, 1.4, 1.6], 40), 0.5)
        one = nm.slope(d, np.repeat(list("abcd"), 40), "abcd")
        held += one.low <= 0.2 <= one.high
    assert held / 1000 == pytest.approx(0.95, abs=0.02)


def test_correlation_leaves_gaps_out():
    rng = RNG(0)
    a = rng.normal(size=300)
    b = 0.5 * a + rng.normal(size=300)
    with_gaps = b.copy()
    with_gaps[::3] = np.nan
    found, known = nm.correlation(a, with_gaps), np.isfinite(with_gaps)
    assert found.value == pytest.approx(np.corrcoef(a[known], b[known])[0, 1])
    half = 1.959964 / np.sqrt(known.sum() - 3)
    assert found.low == pytest.approx(np.tanh(np.arctanh(found.value) - half), abs=1e-6)


def data(n=500, seed=0):
    rng = RNG(seed)
    c = rng.normal(size=(n, 3))
    return rng.normal(size=(n, 4)) @ RNG(9).normal(size=(4, 12)) * 2 + c @ RNG(8).normal(size=(3, 12)) + 0.3 * rng.normal(size=(n, 12)), c


def test_regression_is_least_squares():
    x, c = data()
    expected = x - LinearRegression().fit(c, x).predict(c)
    np.testing.assert_allclose(nm.Regression.fit(x, c).residual(x, c), expected, atol=1e-10)


def test_principal_components_are_sklearns_up_to_the_noise():
    x, c = data(3000)
    model = nm.PCAResidual.fit(x, c, components=4)
    left = nm.Regression.fit(x, c).residual(x, c)
    pca = PCA(4).fit(left)
    assert model.noise == pytest.approx(pca.noise_variance_, rel=1e-8)
    np.testing.assert_allclose(model.loadings @ model.loadings.T + model.noise * np.eye(12), pca.get_covariance(), atol=1e-8)
    np.testing.assert_allclose(model.residual(x, c), left - pca.inverse_transform(pca.transform(left)), atol=0.15)


def test_missing_columns_are_predicted_by_the_gaussian_condition():
    x, c = data(3000)
    model = nm.PCAResidual.fit(x, c, components=4)
    seen = np.arange(12) < 7
    covariance = model.loadings @ model.loadings.T + model.noise * np.eye(12)
    left = model.regression.residual(x, c) - model.mean
    expected = left[:, seen] @ np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, ~seen)])
    np.testing.assert_allclose(model.residual(x, c, seen)[:, ~seen], left[:, ~seen] - expected, atol=1e-8)
    np.testing.assert_allclose(model.residual(x, c, np.zeros(12, bool)), left)


def test_usable_eigenvalues_is_the_rule_of_probabilistic_pca():
    """Known variances along the axes; w = 1 / (2 s2), beta = 1 uses a direction if its variance is above s2."""
    x = RNG(0).normal(size=(200_000, 4)) * np.sqrt([4.0, 1.0, 0.3, 0.1])
    values, usable = nm.usable_eigenvalues(x, np.zeros((200_000, 0)), weight=1.0, beta=1.0)
    np.testing.assert_allclose(values, [4.0, 1.0, 0.3, 0.1], rtol=0.02)
    assert usable == 2 and nm.usable_eigenvalues(x, np.zeros((200_000, 0)), weight=1.0, beta=0.4)[1] == 3


def test_a_linear_vae_collapses_where_the_rule_says():
    """The optimum of w * error + beta * KL for one direction of variance v, by brute force over encoder and decoder."""
    grid = np.linspace(0, 3, 121)

    def best(v, w, beta):
        """Encoder mean a x, encoder variance s, decoder g z: expected loss, closed form; returns the best a * g."""
        a, g, s = np.meshgrid(grid, grid, np.linspace(0.02, 1, 50), indexing="ij")
        loss = w * ((1 - a * g) ** 2 * v + g**2 * s) + 0.5 * beta * (a**2 * v + s - 1 - np.log(s))
        at = np.unravel_index(loss.argmin(), loss.shape)
        return (a * g)[at]

    for v, used in ((0.3, False), (0.45, False), (0.7, True), (1.5, True)):
        assert (best(v, 1.0, 1.0) > 0.02) == used, v


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="`mode` must be one of two-sided, published, got 'one'"):
        nm.p_values(np.zeros((2, 2)), mode="one")
    with pytest.raises(ValueError, match="`within` must be one of person, region, none, got 'table'"):
        nm.significant(np.ones((2, 2)), within="table")
