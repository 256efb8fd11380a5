"""Is a raw table of regions fit to be written? People who are left out are listed; tables that lie are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd
import pandera.pandas as pa

from data_prep.region_names import AGGREGATES, DESIKAN

__all__ = ["Excluded", "check_people", "check_regions", "merge", "require", "torn"]

ICV_MM3 = (8e5, 2.5e6)
"""Intracranial volumes that a living person can have; FreeSurfer's registration sometimes fails far below."""
CORTEX_MM3 = (250e3, 800e3)
"""Median over people of the sum of all cortical volumes."""
MOST_TIMES = 50
"""How many times the median of a region one person may have; lesions of white matter come to 18 times in ABIDE."""

# Where the median over people of a region may lie, in mm3; wide enough for children and for atrophy, and narrow enough
# that a thousandfold error of the unit always falls outside.
_PLAUSIBLE = {
    "Cerebral-White-Matter": (4e4, 6e5), "Cerebellum-Cortex": (8e3, 2e5), "Cerebellum-White-Matter": (2e3, 8e4),
    "Brain-Stem": (4e3, 8e4), "Lateral-Ventricle": (5e2, 2e5), "WM-hypointensities": (50, 2e4),
    "LeftCorticalGM": (8e4, 5e5), "RightCorticalGM": (8e4, 5e5), "SubcorticalGM": (4e4, 4e5), "TotalGM": (2e5, 1.5e6),
}  # fmt: skip
_UNITS = {"mL": 1e3, "L": 1e6, "m3": 1e9}
_LENGTHS = {"cm": 10, "m": 1e3, "um": 1e-3}

# People left out: [{"subject": ..., "reason": ...}], as the card lists them.
Excluded = list[dict[str, str]]


def require(table: pd.DataFrame, regions: Iterable[str], *, where: str) -> pd.DataFrame:
    """The columns `regions` of a table, in that order.

    Raises:
        ValueError: naming the first that is missing, and the unknown column that may be it.
    """
    regions = list(regions)
    missing = [name for name in regions if name not in table]
    if missing:
        unknown = {name.lower(): name for name in table.attrs.get("unknown", ())}
        near = get_close_matches(missing[0].lower(), unknown, 1, 0.6)
        hint = f"if `{unknown[near[0]]}` is it, rename that." if near else "export the table again with all regions."
        raise ValueError(f"{where} must hold the region `{missing[0]}`, which is missing ({len(missing)} are); {hint}")
    return table[regions]


def merge(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of the same people side by side; NaN where a person is not in a table.

    Args:
        tables: name of the file -> (N, regions), the index the subjects.

    Raises:
        ValueError: a region is in two tables, or two tables disagree on a person's intracranial volume.
    """
    source: dict[str, str] = {}
    volumes = pd.Series(dtype=float)
    for where, table in tables.items():
        twice = next((name for name in table if name in source and name != "icv"), None)
        if twice:
            raise ValueError(f"the region `{twice}` is in `{source[twice]}` and in `{where}`; keep one of them.")
        if "icv" in table:
            both = volumes.dropna().index.intersection(table["icv"].dropna().index)
            apart = both[~np.isclose(volumes[both], table.loc[both, "icv"], rtol=1e-3)]
            if len(apart):
                raise ValueError(
                    f"`{where}` gives another intracranial volume for {apart[0]!r} than `{source['icv']}`; keep one."
                )
            volumes = table["icv"].combine_first(volumes)
        source |= dict.fromkeys(table, where)
    parts = [table.drop(columns="icv", errors="ignore") for table in tables.values()]
    parts += [volumes.rename("icv")] if "icv" in source else []
    whole = pd.concat(parts, axis=1).rename_axis("subject").sort_index()
    whole.attrs["unknown"] = [name for table in tables.values() for name in table.attrs.get("unknown", ())]
    return whole


def check_people(people: pd.DataFrame) -> Excluded:
    """Who of a table of covariates must be left out: people without intracranial volume, age, sex or group.

    Args:
        people: index the subjects; age_years, sex (F or M), group, site, icv_mm3.

    Raises:
        ValueError: a person is there twice, or the intracranial volumes are in another unit than mm3.
    """
    if people.index.has_duplicates:
        raise ValueError(
            f"the table holds the subject {people.index[people.index.duplicated()][0]!r} twice; keep one scan of each."
        )
    median = people["icv_mm3"].median()
    if not ICV_MM3[0] <= median <= ICV_MM3[1]:
        raise ValueError(_off("the intracranial volume", median, ICV_MM3, _UNITS))
    reasons = pd.Series(index=people.index, dtype=object)
    for column, what in (("age_years", "age"), ("sex", "sex"), ("group", "group"), ("icv_mm3", "intracranial volume")):
        reasons = reasons.mask(people[column].isna() & reasons.isna(), f"no {what} is given")
    schema = pa.DataFrameSchema({"icv_mm3": pa.Column(float, pa.Check.in_range(*ICV_MM3), nullable=True)})
    try:
        schema.validate(people.reset_index(drop=True), lazy=True)
    except pa.errors.SchemaErrors as error:
        for i, value in error.failure_cases[["index", "failure_case"]].itertuples(index=False):
            reasons.iloc[int(i)] = (
                f"intracranial volume {value:,.0f} mm3 is not from {ICV_MM3[0]:,.0f} to {ICV_MM3[1]:,.0f}"
            )
    return [{"subject": str(who), "reason": why} for who, why in reasons.dropna().items()]


def check_regions(
    table: pd.DataFrame, modalities: Mapping[str, Sequence[str]], *, aggregates: bool = False
) -> Excluded:
    """Refuses a table of regions that cannot be right, and lists the people in whom FreeSurfer found no region.

    Args:
        table: (N, regions), the index the subjects; mm3, or mm where a name ends in ``_thickness``.
        modalities: name -> its regions.
        aggregates: whether sums of other inputs are welcome.

    Returns:
        People with a cortical region or subfield of 0, with one of more than `MOST_TIMES` the median, or without any modality.

    Raises:
        ValueError: one sentence. A value is negative or not finite; a region is missing in a person who has others of
            its modality; a column is constant, in another unit than its name says, or a sum of other columns.
    """
    table = table[[name for names in modalities.values() for name in names]]
    schema = pa.DataFrameSchema(
        {name: pa.Column(float, pa.Check(lambda x: np.isfinite(x) & (x >= 0)), nullable=True) for name in table}
    )
    try:
        schema.validate(table.reset_index(drop=True), lazy=True)
    except pa.errors.SchemaErrors as error:
        column, row, value = error.failure_cases.iloc[0][["column", "index", "failure_case"]]
        who = table.index[int(row)]
        raise ValueError(
            f"`{column}` of {who!r} must be finite and not negative, got {value}; mend the cell."
        ) from None
    for modality, names in modalities.items():
        _check_modality(table[list(names)], modality)
    if not aggregates:
        _check_sums(table, modalities)
    sheet = table[[name for name in table if name.startswith(("lh_", "rh_"))]]
    lost = [
        {"subject": str(who), "reason": f"`{row.idxmin()}` is 0: FreeSurfer did not find it"}
        for who, row in sheet[(sheet == 0).any(axis=1)].iterrows()
    ]
    times = table / table.median().where(lambda median: median > 0)
    lost += [
        {
            "subject": str(who),
            "reason": f"`{row.idxmax()}` is {table.loc[who, row.idxmax()]:.4g}, {row.max():.0f} times the median of all: "
            "in another unit, or damaged",
        }
        for who, row in times[(times > MOST_TIMES).any(axis=1) & ~(sheet == 0).any(axis=1)].iterrows()
    ]
    return lost + [
        {"subject": str(who), "reason": "no region is given"} for who in table.index[table.isna().all(axis=1)]
    ]


def torn(table: pd.DataFrame, modalities: Mapping[str, Sequence[str]]) -> Excluded:
    """People with some regions of a modality and not all: in a large cohort, scans that failed in part."""
    found = {}
    for regions in modalities.values():
        absent = table[list(regions)].isna()
        for who, row in absent[absent.any(axis=1) & ~absent.all(axis=1)].iterrows():
            found.setdefault(str(who), f"`{row.idxmax()}` is missing")
    return [{"subject": who, "reason": reason} for who, reason in found.items()]


def _check_modality(part: pd.DataFrame, modality: str) -> None:
    absent = part.isna()
    if absent.all(axis=None):
        raise ValueError(f"the modality {modality!r} is empty for everyone; leave its columns out.")
    some = absent[absent.any(axis=1) & ~absent.all(axis=1)]
    if len(some):
        raise ValueError(
            f"`{some.iloc[0].idxmax()}` is missing for {some.index[0]!r} while other {modality} regions are there; "
            "fill it in, or empty all of them."
        )
    constant = part.columns[(part.nunique() == 1).to_numpy()]
    if len(constant) and len(part) > 1:
        value = part[constant[0]].dropna().iloc[0]
        raise ValueError(
            f"`{constant[0]}` is {value:g} for everyone and so says nothing; leave the column out, or export it again."
        )
    medians, units = part.median(), _LENGTHS if part.columns[0].endswith("_thickness") else _UNITS
    off = [name for name, median in medians.items() if not _limits(name)[0] <= median <= _limits(name)[1]]
    if off:
        share = f" (and {len(off) - 1} more of {modality})" if len(off) > 1 else ""
        raise ValueError(_off(f"`{off[0]}`{share}", medians[off[0]], _limits(off[0]), units))
    total = part.sum(axis=1, min_count=1).median()
    if modality == "cortical" and len(medians) >= 60 and not CORTEX_MM3[0] <= total <= CORTEX_MM3[1]:
        raise ValueError(_off("the sum of the cortical volumes", total, CORTEX_MM3, _UNITS))


def _limits(name: str) -> tuple[float, float]:
    if name.endswith("_thickness"):
        return 1.0, 5.0
    cortex = name.partition("_")[2] in DESIKAN
    return _PLAUSIBLE.get(re.sub("^(Left|Right)-", "", name), (100, 6e4) if cortex else (20, 6e4))


def _off(what: str, median: float, limits: tuple[float, float], units: Mapping[str, float]) -> str:
    low, high = limits
    fits = [
        f"it looks like {unit}: multiply by {factor:g}"
        for unit, factor in units.items()
        if low <= median * factor <= high
    ]
    unit, guess = "mm" if units is _LENGTHS else "mm3", fits[0] if fits else "mend its unit"
    return f"{what} must be in {unit} with a median from {low:,.10g} to {high:,.10g}, got {median:.4g}; {guess}."


def _check_sums(table: pd.DataFrame, modalities: Mapping[str, Sequence[str]]) -> None:
    mend = "leave it out, or ask for sums (`--aggregates`)."
    known = next((name for name in table if name in AGGREGATES), None)
    if known:
        raise ValueError(f"`{known}` is a sum of other regions and says nothing new; {mend}")
    whole = table.dropna()
    if len(whole) < 5:
        return
    x, names = whole.to_numpy(), list(whole)
    mean = x.mean(axis=0)
    for j, name in enumerate(names):
        tolerance = 1e-3 * mean[j]
        near = np.argwhere(np.triu(np.abs(mean[:, None] + mean - mean[j]) <= tolerance, 1))
        groups = [[a, b] for a, b in near if j not in (a, b)]
        groups += [
            [i for i, other in enumerate(names) if i != j and other in part] for part in map(set, modalities.values())
        ]
        groups += [
            [i for i in group if names[i].startswith(side)]
            for group in groups[-len(modalities) :]
            for side in ("lh_", "rh_")
        ]
        for group in groups:
            if len(group) > 1 and np.abs(x[:, group].sum(axis=1) - x[:, j]).max() <= tolerance:
                some = " + ".join(names[i] for i in group[:3]) + (" + ..." if len(group) > 3 else "")
                raise ValueError(f"`{name}` is the sum of other regions ({some}) and says nothing new; {mend}")
    if len(x) >= 2 * len(names):
        # A direction in which nobody differs from 0 is a relation between columns; its largest term is the sum.
        scaled = x / np.sqrt((x**2).mean(axis=0))
        left, directions = np.linalg.eigh(scaled.T @ scaled / len(x))
        terms = np.abs(directions[:, 0])
        if left[0] < 1e-6 * terms.max() ** 2:
            raise ValueError(
                f"`{names[terms.argmax()]}` is a sum of other regions to 0.1 % and says nothing new; {mend}"
            )
