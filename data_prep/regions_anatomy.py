"""What the region phantom knows of brains: sizes, how regions hang together, what age and disease do to them.

Sizes are round figures of adult FreeSurfer volumes; they agree with the 293 adults of ABIDE's tables (Di Martino et al.
2014) in order and size. Disease follows the usual account of Alzheimer's disease: the medial temporal lobe first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from data_prep.region_names import CORTICAL, DESIKAN, HEMISPHERES, SUBFIELDS

__all__ = ["FACTORS", "STAGES", "SUBFIELD_TOTAL", "SUBTYPES", "anatomy"]

STAGES = ("SMC", "EMCI", "LMCI", "AD")
SUBTYPES = {"typical": 0.6, "limbic": 0.2, "hippocampal-sparing": 0.2}

# mm3 per hemisphere, in the order of DESIKAN.
_CORTEX_MM3 = (
    2900, 2300, 7000, 3250, 2000, 11300, 15900, 11900, 3000, 12600, 8550, 7400, 5650, 13100, 2500, 4100, 5100, 2700, 4550,
    2400, 10400, 3800, 14700, 11300, 2800, 17800, 25200, 14600, 13400, 12200, 1000, 2500, 1200, 7650,
)  # fmt: skip
_DEEP_MM3 = {
    "Lateral-Ventricle": 11000, "Cerebellum-White-Matter": 15500, "Cerebellum-Cortex": 53000, "Thalamus": 7300,
    "Caudate": 3700, "Putamen": 5600, "Pallidum": 1800, "Amygdala": 1750, "Accumbens-area": 620,
    "Cerebral-White-Matter": 245000,
}  # fmt: skip
_MIDLINE_MM3 = {
    "3rd-Ventricle": 1300, "Brain-Stem": 21500, "CSF": 1150, "WM-hypointensities": 1900, "CC_Anterior": 880,
    "CC_Mid_Anterior": 470, "CC_Central": 470, "CC_Mid_Posterior": 450, "CC_Posterior": 930,
}  # fmt: skip
_WHOLE_MM3 = 4100

_LOBES = {
    "frontal": "caudalmiddlefrontal lateralorbitofrontal medialorbitofrontal paracentral parsopercularis parsorbitalis "
               "parstriangularis precentral rostralmiddlefrontal superiorfrontal frontalpole",
    "temporal": "bankssts fusiform inferiortemporal middletemporal superiortemporal temporalpole transversetemporal insula",
    "parietal": "inferiorparietal postcentral precuneus superiorparietal supramarginal",
    "occipital": "cuneus lateraloccipital lingual pericalcarine",
    "cingulate": "caudalanteriorcingulate isthmuscingulate posteriorcingulate rostralanteriorcingulate",
    "medial temporal": "entorhinal parahippocampal",
}  # fmt: skip
_DEEP_SYSTEM = {
    "Lateral-Ventricle": "fluid", "3rd-Ventricle": "fluid", "CSF": "fluid", "WM-hypointensities": "fluid",
    "Cerebellum-White-Matter": "hindbrain", "Cerebellum-Cortex": "hindbrain", "Brain-Stem": "hindbrain",
    "Thalamus": "deep grey", "Caudate": "deep grey", "Putamen": "deep grey", "Pallidum": "deep grey",
    "Accumbens-area": "deep grey", "Amygdala": "medial temporal", "Cerebral-White-Matter": "white",
}  # fmt: skip
FACTORS = ("size", "frontal", "temporal", "parietal", "occipital", "cingulate", "medial temporal", "deep grey", "fluid", "white", "hindbrain", "asymmetry")
"""What the low-rank part of healthy variation is made of."""

# Per system: exponent of ICV, coefficient of variation, % a year at 60 and its change per decade after 65, % in men.
_SYSTEM = {
    "frontal": (0.75, 0.11, -0.30, -0.10, 0.5), "temporal": (0.75, 0.11, -0.30, -0.15, 0.5),
    "parietal": (0.75, 0.12, -0.30, -0.10, -0.5), "occipital": (0.65, 0.13, -0.15, -0.05, 0.5),
    "cingulate": (0.65, 0.16, -0.20, -0.05, -1.0), "medial temporal": (0.60, 0.11, -0.30, -0.45, 1.0),
    "deep grey": (0.60, 0.10, -0.30, -0.10, 1.5), "fluid": (1.00, 0.33, 1.90, 0.80, 3.0),
    "white": (0.85, 0.08, -0.05, -0.35, 0.5), "hindbrain": (0.60, 0.10, -0.15, -0.15, 2.0),
}  # fmt: skip

# Loss at severity 1 in standard deviations of the healthy, by subtype; everything not named loses 0.15.
_LOSS = {
    "typical": {
        "entorhinal": 1.0, "parahippocampal": 0.7, "inferiortemporal": 0.7, "middletemporal": 0.6, "fusiform": 0.5,
        "superiortemporal": 0.4, "inferiorparietal": 0.5, "precuneus": 0.4, "isthmuscingulate": 0.5,
        "posteriorcingulate": 0.4, "supramarginal": 0.3, "superiorfrontal": 0.2, "rostralmiddlefrontal": 0.2,
        "Amygdala": 0.9, "Hippocampus": 1.0, "Thalamus": 0.2, "Accumbens-area": 0.3, "Cerebral-White-Matter": 0.2,
        "Lateral-Ventricle": -0.6, "3rd-Ventricle": -0.3, "CSF": -0.2, "WM-hypointensities": -0.4,
        "CA1": 1.2, "subiculum": 1.1, "presubiculum": 1.1, "CA4_DG": 0.9, "CA2_3": 0.8, "tail": 0.6, "fimbria": 0.6,
        "hippocampal-fissure": -0.2,
    },
}  # fmt: skip
_LIMBIC = {"entorhinal", "parahippocampal", "Amygdala", "Hippocampus", *SUBFIELDS}
_LOSS["limbic"] = {name: loss * (1.3 if name in _LIMBIC else 0.4) for name, loss in _LOSS["typical"].items()}
_LOSS["hippocampal-sparing"] = {name: loss * (0.3 if name in _LIMBIC else 1.5) for name, loss in _LOSS["typical"].items()}
# Share of the whole hippocampus.
_SUBFIELD_SHARE = dict(zip(SUBFIELDS, (0.19, 0.065, 0.155, 0.09, 0.13, 0.025, 0.045, 0.17)))
SUBFIELD_TOTAL = sum(_SUBFIELD_SHARE.values())
"""Of the whole hippocampus, what its listed subfields add up to."""


def anatomy() -> pd.DataFrame:
    """One row a region, indexed by its canonical name, all 68 cortical ones and the subfields' wholes included.

    Columns: mean_mm3, system, icv (exponent), cv, aging and aging_faster (% a year; more % a year per decade past
    65), male (%), twin (the region's name without its side), side (-1 left, 1 right, 0 midline), and one `loss_...`
    a subtype (healthy standard deviations at severity 1).
    """
    system = {name: lobe for lobe, names in _LOBES.items() for name in names.split()}
    rows = {}
    for sign, side, long in zip((-1, 1), HEMISPHERES, ("Left", "Right")):
        for name, mm3 in zip(DESIKAN, _CORTEX_MM3):
            rows[f"{side}_{name}"] = (mm3, system[name], name, sign)
        for name, mm3 in _DEEP_MM3.items():
            rows[f"{long}-{name}"] = (mm3, _DEEP_SYSTEM[name], name, sign)
        rows[f"{side}_whole"] = (_WHOLE_MM3, "medial temporal", "Hippocampus", sign)
        for name, share in _SUBFIELD_SHARE.items():
            rows[f"{side}_{name}"] = (_WHOLE_MM3 * share, "medial temporal", name, sign)
    for name, mm3 in _MIDLINE_MM3.items():
        rows[name] = (mm3, _DEEP_SYSTEM.get(name, "white"), name, 0)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean_mm3", "system", "twin", "side"])
    table[["icv", "cv", "aging", "aging_faster", "male"]] = [_SYSTEM[s] for s in table["system"]]
    # A large region is measured more precisely; what is small varies more.
    table["cv"] *= np.clip((table["mean_mm3"] / 6000) ** -0.12, 0.85, 1.3)
    for subtype in SUBTYPES:
        table[f"loss_{subtype}"] = [_LOSS[subtype].get(name, 0.15) for name in table["twin"]]
    assert set(CORTICAL) <= set(table.index)
    return table
