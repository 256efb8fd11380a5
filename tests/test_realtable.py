"""The examination of a real table, on tables whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep import phantom
from medvae_lite import cohort, realtable
from medvae_lite.judges import Linear
from medvae_lite.regions import load


@pytest.fixture(scope="module")
def data():
    return load(phantom("regions", subjects=900))


def test_injected_loss_is_what_was_asked_in_the_regions_named(data):
    rows = data.rows("test")
    changed = realtable.inject(data, rows, 1.0)
    lost = (data.raw - changed.raw)[rows] / data.scale[1] / Linear(data).deviation(data.rows("train")).std(0)
    loss = dict(zip(data.regions, lost.mean(0)))
    assert loss["lh_entorhinal"] == pytest.approx(1.0, abs=0.15) and loss["rh_precuneus"] == pytest.approx(0.4, abs=0.1)
    assert loss["Left-Lateral-Ventricle"] == pytest.approx(-0.6, abs=0.12)
    assert loss["lh_cuneus"] == 0 and loss["Left-Caudate"] == 0
    others = np.setdiff1d(np.arange(len(data.people)), rows)
    np.testing.assert_array_equal(changed.raw[others], data.raw[others])


def test_divided_by_icv_the_injected_loss_is_the_same_in_standard_deviations(data):
    divided, rows = replace(data, icv="divide"), data.rows("test")
    lost = (divided.x - realtable.inject(divided, rows, 2.0).x)[rows].mean(0)
    spread = Linear(divided).deviation(divided.rows("train")).std(0)
    column = data.regions.index("Left-Hippocampus")
    assert lost[column] / spread[column] == pytest.approx(2.0, abs=0.3)


def test_a_table_without_such_regions_is_refused(data):
    only = data._with({"cortical": ["lh_cuneus", "rh_cuneus"]})
    with pytest.raises(ValueError, match="must have a region among hippocampus, entorhinal"):
        realtable.inject(only, data.rows("test"), 1.0)


def test_variance_between_sites_by_construction():
    rng = np.random.default_rng(0)
    site = np.repeat(list("abcde"), 200)
    offset = dict(zip("abcde", rng.normal(0, 1, 5)))
    none = rng.normal(size=(1000, 20))
    some = none + np.array([offset[s] for s in site])[:, None]
    assert abs(realtable.site_variance(none, site)) < 0.005
    expected = np.var(list(offset.values())) / (np.var(list(offset.values())) + 1)
    assert realtable.site_variance(some, site) == pytest.approx(expected, abs=0.03)


def test_group_effects_find_the_region_that_differs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 50)), rng.normal(size=(300, 50))
    assert realtable.group_effects(a, b)["regions_at_fdr"] == 0
    b[:, 7] += 1
    found = realtable.group_effects(a, b)
    assert found["where"] == 7 and found["regions_at_fdr"] == 1 and found["largest_d"] == pytest.approx(1, abs=0.15)


def test_a_site_difference_is_no_group_difference():
    """Patients come mostly from the site with larger values: the plain AUC is fooled, the one within sites is not."""
    rng = np.random.default_rng(0)
    site_healthy, site_ill = np.repeat(["a", "b"], [150, 50]), np.repeat(["a", "b"], [50, 150])
    value = lambda site: rng.normal(size=len(site)) + 1.5 * (site == "b")
    healthy, ill = value(site_healthy), value(site_ill)
    within = realtable.within_site_auc(healthy, ill, site_healthy, site_ill, permutations=200)
    assert cohort.auc(healthy, ill) > 0.65
    assert abs(within["auc"] - 0.5) < 0.07 and within["p"] > 0.05 and 0.5 < within["chance_high"] < 0.6
    real = realtable.within_site_auc(healthy, ill + 1, site_healthy, site_ill, permutations=200)
    assert real["auc"] > 0.7 and real["p"] < 0.01


def test_the_whole_examination_on_the_phantom(data, tmp_path):
    report = realtable.examine(data, runs_root=tmp_path, permutations=20, progress=False, fit={"steps": 60, "batch_size": 64})
    assert set(report) == {"cohort", "models", "sites", "sensitivity", "eigenvalues"} and len(report["models"]) == 6
    for by_strength in report["sensitivity"].values():
        weak, strong = by_strength["0.25"], by_strength["2.0"]
        assert strong["auc_known_pattern"] > weak["auc_known_pattern"] and strong["auc_mean_deviation"] > weak["auc_mean_deviation"]
        assert weak["false_positives"] == strong["false_positives"] < 0.1
    assert not any(str(name) in str(report) for name in data.people["subject"].head(50)), "aggregates only"
