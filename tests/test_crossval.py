"""Cross-validation against scikit-learn's own pieces, hand-worked figures and tables in which nothing can be known."""

import jaxtyping
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medvae_lite import crossval
from medvae_lite.crossval import Features, Predictions

GROUP, SCAN = np.repeat(["a", "b", "c", "d", "e"], 20), np.arange(100)
Y = np.repeat(np.arange(5), 20)


def telling(columns=4, noise=1.0, seed=0):
    """A table (100, columns) that tells the five groups in part."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((5, columns))[Y] + noise * rng.standard_normal((100, columns))


# Folds


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_folds_are_a_partition_that_keeps_copies_together_and_groups_in_proportion(seed):
    scan = np.arange(100) - np.arange(100) % 2  # every scan twice
    found = crossval.folds(Y, scan, seed=seed)
    assert len(found) == crossval.FOLDS
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in found])), np.arange(100))
    for train, test in found:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(100))
        assert not set(scan[train]) & set(scan[test])
        np.testing.assert_array_equal(np.bincount(Y[test]), [4] * 5)


def test_folds_follow_the_seed():
    first, again, other = (crossval.folds(Y, SCAN, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, again))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(first, other))


def test_every_table_meets_the_same_folds_and_every_repeat_others():
    a, b = (crossval.cross_validate(Features(telling(d)), GROUP, SCAN, repeats=2, penalties=(1.0,)) for d in (2, 5))
    np.testing.assert_array_equal(a.fold, b.fold)
    assert not np.array_equal(a.fold[0], a.fold[1])


# What is fitted where


def test_prediction_is_that_of_a_grid_search_in_the_training_part():
    x, (train, test) = telling(6, noise=4.0), crossval.folds(Y, SCAN, seed=3)[0]
    place = {row: i for i, row in enumerate(train)}
    inner = crossval.folds(Y[train], SCAN[train], number=crossval.INNER, seed=3)
    assert len({len(held) for _, held in inner}) == 1, (
        "a mean over folds is a sum over subjects only if folds are equal"
    )
    assert all(place[train[i]] == i for fitted, _ in inner for i in fitted)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": list(crossval.PENALTIES)}, scoring="neg_log_loss", cv=inner,
    ).fit(x[train], Y[train])  # fmt: skip
    said = crossval.predict(Features(x), Y, SCAN, train, test, seed=3)
    np.testing.assert_allclose(said, search.predict_proba(x[test]), atol=1e-6)
    assert search.best_params_["logisticregression__C"] != 1.0, "the default would prove nothing"


@pytest.mark.parametrize("features", [{}, {"components": 3}, {"optional": 4}], ids=["plain", "components", "optional"])
def test_what_a_test_subject_is_moves_no_other_prediction(features):
    x, (train, test) = telling(8), crossval.folds(Y, SCAN)[0]
    changed, y = x.copy(), Y.copy()
    changed[test[0]], y[test] = 1e3 * (1 + np.arange(8)), (Y[test] + 1) % 5  # values of one, groups of all
    said, then = (
        crossval.predict(Features(v, **features), g, SCAN, train, test, penalties=(0.1, 10.0))
        for v, g in ((x, Y), (changed, y))
    )
    np.testing.assert_array_equal(said[1:], then[1:])
    assert not np.allclose(said[0], then[0])


def test_what_a_training_subject_is_moves_predictions():
    x, (train, test) = telling(8), crossval.folds(Y, SCAN)[0]
    changed = x.copy()
    changed[train[0]] += 30
    said, then = (crossval.predict(Features(v), Y, SCAN, train, test, penalties=(1.0,)) for v in (x, changed))
    assert np.abs(said - then).max() > 1e-3


def test_choosing_among_penalties_on_noise_stays_at_chance():
    scores = [
        crossval.cross_validate(Features(np.random.default_rng(s).standard_normal((100, 10))), GROUP, SCAN, seed=s)
        .scores()["balanced_accuracy"].mean() for s in range(6)
    ]  # fmt: skip
    assert abs(np.mean(scores) - 0.2) < 0.06


def test_only_the_first_components_are_kept():
    # One column of loud noise hides the two that tell from the first principal component.
    x = np.hstack([100 * np.random.default_rng(0).standard_normal((100, 1)), telling(2, noise=0.1)])
    one, all_ = (crossval.cross_validate(Features(x, components=n), GROUP, SCAN, penalties=(10.0,)) for n in (1, 3))
    assert one.scores()["balanced_accuracy"].mean() < 0.4
    assert all_.scores()["balanced_accuracy"].mean() > 0.8


# Optional columns


def test_optional_noise_is_weighed_away():
    x, noise = telling(3, noise=0.3), np.random.default_rng(1).standard_normal((100, 40))
    plain, side_by_side, weighed = (
        crossval.cross_validate(Features(v, optional=n), GROUP, SCAN, penalties=(1.0,))
        for v, n in ((x, 0), (np.hstack([x, noise]), 0), (np.hstack([x, noise]), 40))
    )
    away = [np.abs(said.probability - plain.probability).max((0, 2)) for said in (weighed, side_by_side)]
    per_fold = [{f: a[plain.fold[0] == f].max() for f in range(crossval.FOLDS)} for a in away]
    assert sum(v < 1e-3 for v in per_fold[0].values()) >= 3, "weight 0 leaves the plain table, in most folds"
    assert min(per_fold[1].values()) > 0.1 and away[0].mean() < away[1].mean() / 4


def test_optional_columns_that_tell_are_kept():
    noise, x = np.random.default_rng(1).standard_normal((100, 3)), telling(3, noise=0.3)
    said = crossval.cross_validate(Features(np.hstack([noise, x]), optional=3), GROUP, SCAN, penalties=(1.0,))
    assert said.scores()["balanced_accuracy"].mean() > 0.8


# A table of its own for each fold


def test_each_fold_reads_its_own_table():
    tables = np.stack([telling(3, seed=s) for s in range(crossval.FOLDS)])
    said = crossval.cross_validate(Features(tables), GROUP, SCAN, penalties=(1.0,))
    for f, (train, test) in enumerate(crossval.folds(Y, SCAN)):
        own = crossval.predict(Features(tables[f]), Y, SCAN, train, test, penalties=(1.0,))
        np.testing.assert_array_equal(said.probability[0, test], own)
    with pytest.raises(ValueError, match="`repeats` must be 1 where each fold has a table of its own, got 2"):
        crossval.cross_validate(Features(tables), GROUP, SCAN, repeats=2)


# Scores


def made_up(n=60, repeats=2, number=4, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(3), n // 3)
    probability = rng.dirichlet(np.ones(3), (repeats, n))
    fold = np.stack([rng.permutation(np.arange(n) % number) for _ in range(repeats)])
    return Predictions(probability, fold, truth, ("a", "b", "c"))


def test_scores_are_scikit_learns():
    said = made_up()
    scores = said.scores()
    assert {name: value.shape for name, value in scores.items()} == {"balanced_accuracy": (2, 4), "auc": (2, 4)}
    for r, f in np.ndindex(2, 4):
        at = said.fold[r] == f
        y, p = said.truth[at], said.probability[r, at]
        assert scores["balanced_accuracy"][r, f] == pytest.approx(balanced_accuracy_score(y, p.argmax(1)))
        assert scores["auc"][r, f] == pytest.approx(roc_auc_score(y, p, multi_class="ovr", average="macro"))


def test_confusion_is_scikit_learns_mean_over_repeats():
    said = made_up()
    expected = sum(confusion_matrix(said.truth, p.argmax(1)) for p in said.probability) / 2
    np.testing.assert_array_equal(said.confusion(), expected)
    np.testing.assert_array_equal(said.confusion().sum(1), [20, 20, 20])


def test_a_group_absent_from_a_fold_is_left_out_of_its_mean():
    truth, fold = np.array([0, 0, 1, 1, 1, 2]), np.array([[0, 0, 0, 0, 1, 1]])
    p = np.eye(3)[[[0, 1, 1, 1, 2, 2]]]
    # Fold 0 has no third group: recalls 1/2 and 2/2. Fold 1 has no first: recalls 0 and 1.
    scores = Predictions(p, fold, truth, ("a", "b", "c")).scores()
    np.testing.assert_allclose(scores["balanced_accuracy"], [[0.75, 0.5]])
    np.testing.assert_allclose(scores["auc"], [[0.75, 0.5]])  # one of two ties in fold 0, both in fold 1


def test_balanced_accuracy_is_the_share_told_right_where_folds_are_balanced():
    said = crossval.cross_validate(Features(telling()), GROUP, SCAN, penalties=(1.0,))
    right = np.mean(said.probability[0].argmax(1) == said.truth)
    assert said.scores()["balanced_accuracy"].mean() == pytest.approx(right)
    np.testing.assert_allclose(said.probability.sum(2), 1)
    assert said.groups == ("a", "b", "c", "d", "e")


# Shuffled and balanced cohorts


def test_shuffled_deals_scans_and_keeps_copies_together():
    scan = np.array([0, 1, 2, 3, 3, 5, 6, 7, 8, 8])
    group = np.array(list("aabbbbccaa"))
    dealt = [crossval.shuffled(group, scan, seed=s) for s in range(30)]
    for one in dealt:
        assert one[3] == one[4] and one[8] == one[9]
        first = np.unique(scan, return_index=True)[1]
        assert sorted(one[first]) == sorted(group[first])
    np.testing.assert_array_equal(dealt[0], crossval.shuffled(group, scan, seed=0))
    assert len({"".join(one) for one in dealt}) > 20


def test_balanced_cohorts_are_disjoint_and_even():
    group = np.array(["a"] * 17 + ["b"] * 11 + ["c"] * 30)
    cohorts = crossval.balanced(group, size=5, seed=0)
    assert len(cohorts) == 2  # the rarest group has 11
    rows = np.concatenate(cohorts)
    assert len(set(rows)) == len(rows) == 30
    for rows in cohorts:
        assert np.unique(group[rows], return_counts=True)[1].tolist() == [5, 5, 5]
    assert crossval.balanced(group, size=12, seed=0) == []


# Differences


def test_standard_error_and_interval_by_hand():
    scores = np.array([[0.8, 0.6], [0.7, 0.9]])  # mean 0.75, variance 0.05 / 3, two folds: 1 / (F - 1) is 1
    assert crossval.standard_error(scores, corrected=False) == pytest.approx(np.sqrt(0.05 / 3 / 4))
    assert crossval.standard_error(scores) == pytest.approx(np.sqrt((1 / 4 + 1) * 0.05 / 3))
    value, low, high = crossval.corrected_interval(scores)
    reach = 3.182446 * 0.1443376  # t of 0.975 with 3 degrees of freedom, from a printed table
    assert (value, low, high) == pytest.approx((0.75, 0.75 - reach, 0.75 + reach), abs=1e-6)


def test_repeats_do_not_buy_certainty():
    once = np.array([[0.5, 0.6, 0.7, 0.6, 0.6]])
    often = np.tile(once, (400, 1))
    assert crossval.standard_error(often) == pytest.approx(np.sqrt(1 / 4) * often.std(), rel=1e-2)
    assert crossval.standard_error(often, corrected=False) < crossval.standard_error(often) / 20


def test_comparison_turns_its_sign_with_its_arguments_and_nothing_else():
    a, b = np.random.default_rng(0).random((2, 10, 5))
    ab, ba = crossval.compare(a, b), crossval.compare(b, a)
    assert ab.difference == pytest.approx((b - a).mean())
    assert (ab.difference, ab.low, ab.high) == pytest.approx((-ba.difference, -ba.high, -ba.low))
    assert (ab.p, ab.detectable) == pytest.approx((ba.p, ba.detectable))


def test_uncorrected_comparison_is_the_paired_t_test():
    a, b = np.random.default_rng(0).random((2, 4, 5)) + [[[0.0]], [[0.15]]]
    expected = stats.ttest_rel(b.ravel(), a.ravel())
    plain, corrected = crossval.compare(a, b, corrected=False), crossval.compare(a, b)
    assert plain.p == pytest.approx(expected.pvalue)
    assert (plain.low, plain.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert corrected.p > plain.p and corrected.low < plain.low and corrected.high > plain.high


def test_detectable_difference_is_found_in_four_trials_of_five():
    a, b = np.random.default_rng(1).random((2, 10, 5))
    error, df = crossval.standard_error(b - a), a.size - 1
    power = stats.nct.sf(stats.t.ppf(0.975, df), df, crossval.compare(a, b).detectable / error)
    assert power == pytest.approx(0.8, abs=0.01)


def test_equal_scores_and_constant_gains():
    a = np.random.default_rng(0).random((2, 5))
    assert crossval.compare(a, a) == (0.0, 0.0, 0.0, 1.0, 0.0)
    gain = crossval.compare(np.zeros((2, 5)), np.full((2, 5), 0.25))
    assert (gain.difference, gain.low, gain.high, gain.p) == (0.25, 0.25, 0.25, 0.0)


def test_scores_of_other_folds_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # annotations would speak before the sentence
    with pytest.raises(ValueError, match=r"must be scores of the same folds, got shapes \(1, 5\) and \(2, 5\)"):
        crossval.compare(np.zeros((1, 5)), np.zeros((2, 5)))
