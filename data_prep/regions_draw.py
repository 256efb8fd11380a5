"""The people of the region phantom: two cohorts of people with region volumes, one large and healthy, one from a memory clinic.

Shaped as in Kumar et al. 2022: the population cohort like UK Biobank's, the clinic with controls and patients in the
stages SMC, EMCI, LMCI and AD. Healthy volumes have a low-rank part, some of it not linear, and a part of their own;
the disease's true effect on every region of every patient is kept.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_prep.region_names import AGGREGATES, CORTICAL, DESIKAN, HIPPOCAMPAL, SUBCORTICAL, SUBFIELDS
from data_prep.regions_anatomy import FACTORS, STAGES, SUBFIELD_TOTAL, SUBTYPES, anatomy

MODALITIES = {
    "cortical": {"unit": "mm3", "regions": CORTICAL},
    "subcortical": {"unit": "mm3", "regions": (*SUBCORTICAL, *AGGREGATES)},
    "hippocampal": {"unit": "mm3", "regions": HIPPOCAMPAL},
}
POSTER_PATIENTS = (106, 312, 263, 181)
"""In each of STAGES."""
# Severity's mean.
_SEVERITY = {"CN": 0.0, "SMC": 0.15, "EMCI": 0.4, "LMCI": 0.95, "AD": 1.55}
_POPULATION_SITES, _CLINIC_SITES = 3, 6
# Variance of log volume beyond age, sex and ICV: shared by a system, by both sides of a region, by nobody.
_SYSTEM_SHARE, _TWIN_SHARE = 0.45, 0.3


class Phantom(NamedTuple):
    """People of the phantom, one row each."""

    values: NDArray[np.float64]  # (N, 115) mm3, in the order of MODALITIES
    effect: NDArray[np.float64]  # (N, 115) mm3: what the disease changed
    people: pd.DataFrame
    factors: pd.DataFrame


def counts(subjects: int) -> tuple[int, int]:
    """Controls and patients of the clinic for a population of `subjects`: 592 and 862 for 9,875."""
    return max(240, round(0.06 * subjects)), max(160, round(subjects * 862 / 9875))


def generate(*, subjects: int, seed: int = 0) -> Phantom:
    """Makes both cohorts: the population first, then the clinic's controls, then its patients.

    Args:
        subjects: people of the population cohort.
        seed: which cohorts.

    Raises:
        ValueError: if an argument is impossible.
    """
    check(subjects, seed)
    controls, patients = counts(subjects)
    population = _people("population", subjects, seed)
    clinic = _people("clinic", controls, seed)
    ill = _people("patients", patients, seed)
    people = pd.concat([population, clinic, ill], ignore_index=True)
    region, factors = anatomy(), _factors(people, seed)
    healthy = _healthy(region, people, factors, seed)
    change = _disease(region, people, seed)
    before, after = np.exp(healthy), np.exp(healthy - change)
    columns = [_assemble(pd.DataFrame(v, columns=region.index), people, seed) for v in (before, after)]
    people, scores = people.drop(columns=["severity", "subtype"]), _scores(people, seed)
    factors = pd.concat([people["subject"], pd.DataFrame(factors, columns=FACTORS), scores.pop("severity"), scores.pop("subtype")], axis=1)
    return Phantom(columns[1], columns[1] - columns[0], pd.concat([people, scores], axis=1), factors)


def _stream(seed: int, name: str) -> np.random.Generator:
    """One source of random numbers a variable, so that person i does not depend on how many there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _people(part: str, count: int, seed: int) -> pd.DataFrame:
    u = _stream(seed, f"{part} chances").random((count, 3))
    n = _stream(seed, f"{part} people").standard_normal((count, 3))
    ill = part == "patients"
    centre, width, low, high = (64, 7.5, 45, 82) if part == "population" else (74, 6.5, 55, 91)
    male = u[:, 0] < (0.47 if part == "population" else 0.52)
    index = np.arange(count)
    table = pd.DataFrame({"subject": [f"{part}{i:05d}" for i in index]})
    if ill:
        group = _stages(count)
        table["split"] = "patients"
    else:
        group = np.full(count, "CN")
        tenth = index % 10
        of_clinic = np.select([tenth < 4, tenth < 7], ["train", "holdout"], "test")
        table["split"] = of_clinic if part == "clinic" else np.where(tenth < 9, "train", "val")
    table["cohort"] = "population" if part == "population" else "clinic"
    table["group"] = group
    table["age_years"] = np.clip(centre + width * n[:, 0], low, high).round(1)
    table["sex"] = np.where(male, "M", "F")
    table["icv_mm3"] = (np.where(male, 1.55e6, 1.38e6) * np.exp(0.08 * n[:, 1])).clip(9e5, 2.2e6).round()
    sites = _POPULATION_SITES if part == "population" else _CLINIC_SITES
    table["site"] = [f"{'P' if part == 'population' else 'C'}{1 + int(s)}" for s in u[:, 1] * sites]
    severity = np.array([_SEVERITY[g] for g in group]) + np.where(ill, 0.32 * n[:, 2], 0)
    table["severity"] = np.where(ill, np.maximum(severity, 0), 0)
    table["subtype"] = np.where(ill, np.array(list(SUBTYPES))[np.searchsorted(np.cumsum(list(SUBTYPES.values())), u[:, 2] * 0.999)], "")
    return table


def _stages(count: int) -> NDArray:
    """The poster's proportions to a person, evenly mixed."""
    exact = count * np.array(POSTER_PATIENTS) / sum(POSTER_PATIENTS)
    many = np.floor(exact).astype(int)
    many[np.argsort(many - exact, kind="stable")[: count - many.sum()]] += 1
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in many])
    return np.repeat(STAGES, many)[np.argsort(place, kind="stable")]


def _factors(people: pd.DataFrame, seed: int) -> NDArray:
    """Standard normal, (N, 12)."""
    parts = [_stream(seed, f"{part} factors").standard_normal((n, len(FACTORS))) for part, n in _parts(people)]
    return np.concatenate(parts)


def _parts(people: pd.DataFrame) -> list[tuple[str, int]]:
    names = people["subject"].str.extract(r"(\D+)")[0]
    return [(part, int((names == part).sum())) for part in ("population", "clinic", "patients")]


def _healthy(region: pd.DataFrame, people: pd.DataFrame, factors: NDArray, seed: int) -> NDArray:
    """Log volume in log mm3 without disease, (N, R)."""
    t = people["age_years"].to_numpy()[:, None]
    male = (people["sex"] == "M").to_numpy()[:, None]
    log_icv = np.log(people["icv_mm3"].to_numpy() / 1.45e6)[:, None]
    late = np.maximum(t - 65, 0)
    aging = (region["aging"].to_numpy() * (t - 60) + region["aging_faster"].to_numpy() * late**2 / 20) / 100
    mean = np.log(region["mean_mm3"].to_numpy()) + region["icv"].to_numpy() * log_icv + aging
    mean = mean + region["male"].to_numpy() / 100 * male + _sites(region, people, seed)
    return mean + region["cv"].to_numpy() * _varied(region, people, factors, seed)


def _varied(region: pd.DataFrame, people: pd.DataFrame, factors: NDArray, seed: int) -> NDArray:
    """What is left of log volume, of variance about 1, (N, R)."""
    of = dict(zip(FACTORS, factors.T))
    own = _stream(0, "loadings").uniform(0.6, 1.0, (len(region), 3))
    system = np.stack([of[name] for name in region["system"]], 1)
    # A few things are not sums: parietal cortex depends on how far frontal is from the middle, the medial temporal
    # lobe on the fluid around it together with size.
    bent = {"parietal": (of["frontal"] ** 2 - 1) / np.sqrt(2), "medial temporal": of["fluid"] * of["size"], "deep grey": of["size"] * of["white"]}
    system = system + 0.5 * np.stack([bent.get(name, 0 * of["size"]) for name in region["system"]], 1)
    asymmetry = np.where(region["system"].isin(["temporal", "frontal"]), region["side"], 0)
    shared = own[:, 0] * system + 0.45 * own[:, 1] * of["size"][:, None] + 0.3 * asymmetry * of["asymmetry"][:, None]
    shared = shared / np.sqrt((own[:, 0] ** 2 * 1.12 + 0.2 * own[:, 1] ** 2 + 0.09 * asymmetry**2))
    twins = {name: k for k, name in enumerate(dict.fromkeys(region["twin"]))}
    drawn = [
        (_stream(seed, f"{part} twins").standard_normal((n, len(twins))), _stream(seed, f"{part} own").standard_normal((n, len(region))))
        for part, n in _parts(people)
    ]
    both = np.concatenate([twin for twin, _ in drawn])[:, [twins[name] for name in region["twin"]]]
    alone = np.concatenate([noise for _, noise in drawn])
    return np.sqrt(_SYSTEM_SHARE) * shared + np.sqrt(_TWIN_SHARE) * both + np.sqrt(1 - _SYSTEM_SHARE - _TWIN_SHARE) * alone


def _sites(region: pd.DataFrame, people: pd.DataFrame, seed: int) -> NDArray:
    """A scanner's own scale: of everything, of each system, of each region, (N, R) in log mm3."""
    systems = sorted(set(region["system"]))
    place = [systems.index(name) for name in region["system"]]
    offsets = {}
    for site in sorted(set(people["site"])):
        draw = _stream(seed, f"site {site}")
        offsets[site] = 0.01 * draw.standard_normal() + 0.015 * draw.standard_normal(len(systems))[place] + 0.01 * draw.standard_normal(len(region))
    return np.stack([offsets[site] for site in people["site"]])


def _disease(region: pd.DataFrame, people: pd.DataFrame, seed: int) -> NDArray:
    """Loss of log volume, (N, R); negative where a region grows."""
    loss = np.zeros((len(people), len(region)))
    ill = np.flatnonzero(people["severity"] > 0)
    draw = _stream(seed, "disease").standard_normal((_patients(people), len(region)))[ill - (len(people) - _patients(people))]
    per_type = np.stack([region[f"loss_{name}"] for name in people["subtype"].iloc[ill]]) if len(ill) else loss[:0]
    # One side is usually hit harder, and no two patients alike.
    lopsided = np.exp(0.3 * region["side"].to_numpy() * draw[:, :1])
    grown = 1.5 * people["severity"].to_numpy()[ill, None] ** 1.2
    loss[ill] = region["cv"].to_numpy() * per_type * grown * lopsided * np.exp(0.5 * draw - 0.125)
    return loss


def _patients(people: pd.DataFrame) -> int:
    return int((people["split"] == "patients").sum())


def _assemble(volumes: pd.DataFrame, people: pd.DataFrame, seed: int) -> NDArray:
    """The 115 columns in mm3, (N, 115): subfields made to add up to their hippocampus, wholes measured again, sums."""
    v = volumes.copy()
    noise = np.concatenate([_stream(seed, f"{part} aseg").standard_normal((n, 2)) for part, n in _parts(people)])
    for k, (side, name) in enumerate((("lh", "Left"), ("rh", "Right"))):
        fields = [f"{side}_{field}" for field in SUBFIELDS]
        total = v[fields].sum(axis=1) / SUBFIELD_TOTAL
        v[f"{name}-Hippocampus"] = np.sqrt(total * v[f"{side}_whole"]) * np.exp(0.03 * noise[:, k])
    for side, name in (("lh", "Left"), ("rh", "Right")):
        v[f"{name}CorticalGM"] = v[[c for c in v if c.startswith(f"{side}_") and c.split("_", 1)[1] in DESIKAN]].sum(axis=1)
    deep = ("Thalamus", "Caudate", "Putamen", "Pallidum", "Hippocampus", "Amygdala", "Accumbens-area")
    v["SubcorticalGM"] = v[[f"{side}-{name}" for side in ("Left", "Right") for name in deep]].sum(axis=1)
    cerebellum = v[["Left-Cerebellum-Cortex", "Right-Cerebellum-Cortex"]].sum(axis=1)
    v["TotalGM"] = v[["LeftCorticalGM", "RightCorticalGM", "SubcorticalGM"]].sum(axis=1) + cerebellum
    return v[[name for m in MODALITIES.values() for name in m["regions"]]].to_numpy()


def _scores(people: pd.DataFrame, seed: int) -> pd.DataFrame:
    """ADAS13 (0 to 85, high is bad) and RAVLT immediate (0 to 75, low is bad), driven by severity; none in the population."""
    clinic = (people["cohort"] == "clinic").to_numpy()
    n = np.concatenate([_stream(seed, f"{part} scores").standard_normal((n, 3)) for part, n in _parts(people)])
    old = (people["age_years"].to_numpy() - 74) / 10
    seen = people["severity"].to_numpy() + 0.45 * n[:, 0]
    adas = np.clip(9 + 11 * seen + 1.5 * old + 3 * n[:, 1], 0, 85).round(1)
    ravlt = np.clip(45 - 11 * seen - 3 * old + 6 * n[:, 2], 0, 75).round()
    scores = pd.DataFrame({"adas13": np.where(clinic, adas, np.nan), "ravlt_immediate": np.where(clinic, ravlt, np.nan)})
    return scores.assign(severity=people["severity"], subtype=people["subtype"])


def check(subjects: int, seed: int) -> None:
    if subjects < 100:
        raise ValueError(f"`subjects` must be at least 100, got {subjects}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be a whole number from 0 to 2**32 - 1, got {seed}.")
