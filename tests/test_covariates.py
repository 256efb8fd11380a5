"""The covariate design: what it has seen it encodes, what it has not it refuses."""

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CubicSpline

from medvae_lite.covariates import Design, natural_spline


def people(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "age_years": rng.uniform(45, 80, n).round(1), "sex": rng.choice(["F", "M"], n), "site": rng.choice(["A", "B", "C"], n),
        "log_icv": rng.normal(14.2, 0.1, n),
    })  # fmt: skip


@pytest.mark.parametrize(("age", "columns"), [("spline", 4), ("bins", 10)])
def test_columns(age, columns):
    design = Design.fit(people(), age=age, numbers=("log_icv",))
    c = design(people())
    assert c.shape == (200, columns + 1 + 2 + 1) and c.dtype == np.float32 and np.isfinite(c).all()
    assert np.linalg.matrix_rank(np.column_stack([np.ones(200), c])) == c.shape[1] + (age == "spline"), "bins add up to the intercept"


def test_the_spline_is_the_natural_cubic_spline():
    """Its columns and a constant interpolate any knot values, as scipy's natural spline does, and are linear beyond."""
    knots = np.array([-2.0, -0.5, 0.3, 1.8])
    values = np.array([1.0, -2.0, 0.5, 3.0])
    basis = lambda x: np.column_stack([np.ones(len(x)), natural_spline(x, knots)])
    weights = np.linalg.solve(basis(knots), values)
    x = np.linspace(-2, 1.8, 50)
    np.testing.assert_allclose(basis(x) @ weights, CubicSpline(knots, values, bc_type="natural")(x), atol=1e-10)
    beyond = basis(np.array([2.0, 3.0, 4.0])) @ weights
    assert beyond[2] - beyond[1] == pytest.approx(beyond[1] - beyond[0])


def test_one_column_a_year_as_published():
    table = people()
    design = Design.fit(table, age="years", categories=("sex",))
    years = sorted(set(table["age_years"].round()))
    c = design(table)
    assert c.shape[1] == len(years) + 1
    assert (c[:, : len(years)].sum(1) == 1).all()
    assert [years[k] for k in c[:, : len(years)].argmax(1)] == table["age_years"].round().tolist()


def test_rows_are_matched_by_their_own_person():
    """The public code looks covariates up by position after dropping rows; ours follow the table it is given."""
    table = people()
    design = Design.fit(table)
    part = table.iloc[[7, 3, 150]]
    np.testing.assert_array_equal(design(part), design(table)[[7, 3, 150]])


def test_a_code_never_seen_is_refused_by_name():
    design = Design.fit(people())
    with pytest.raises(ValueError, match=r"`sex` must be one of F, M, as in training, got '1'"):
        design(people().assign(sex="1"))
    with pytest.raises(ValueError, match=r"`site` must be one of A, B, C, .* got 'D'"):
        design(people().assign(site="D"))


def test_ages_beyond_training_are_refused_or_flagged(caplog):
    design = Design.fit(people())
    old = people().assign(age_years=lambda t: t["age_years"].where(t.index != 5, 95.0))
    with pytest.raises(ValueError, match=r"`age_years` must be among those of training.*95 years \(1 of 200 people\)"):
        design(old)
    assert design.outside(old).nonzero()[0].tolist() == [5]
    flagged = design(old, beyond="flag")
    assert "outside" in caplog.text
    oldest = people()["age_years"].max()
    np.testing.assert_allclose(flagged[5, :4], design(people().assign(age_years=oldest))[5, :4])


def test_gaps_and_missing_columns_are_refused():
    table = people()
    with pytest.raises(ValueError, match="must have a column 'site'"):
        Design.fit(table.drop(columns="site"))
    with pytest.raises(ValueError, match="`age_years` must be known for everyone, but 1 people have none"):
        Design.fit(table.assign(age_years=table["age_years"].where(table.index != 3)))
    with pytest.raises(ValueError, match="`site` = 'lonely' has one person"):
        Design.fit(table.assign(site=table["site"].where(table.index != 3, "lonely")))
    with pytest.raises(ValueError, match="`age` must be one of spline, bins, years, got 'cubic'"):
        Design.fit(table, age="cubic")
