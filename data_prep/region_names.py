"""The regions of a table by their canonical names, which are FreeSurfer 7's.

Cortical regions are `lh_` or `rh_` and a name of the Desikan-Killiany atlas; subcortical ones are as in `aseg.stats`;
hippocampal subfields are `lh_` or `rh_` and the name of the subfield. A name means one region everywhere in the book, so
tables are matched by name and never by position.
"""

from __future__ import annotations

__all__ = ["AGGREGATES", "CORTICAL", "DESIKAN", "HEMISPHERES", "HIPPOCAMPAL", "POSTER", "SUBCORTICAL", "SUBFIELDS"]

HEMISPHERES = ("lh", "rh")

DESIKAN = (
    "bankssts", "caudalanteriorcingulate", "caudalmiddlefrontal", "cuneus", "entorhinal", "fusiform", "inferiorparietal",
    "inferiortemporal", "isthmuscingulate", "lateraloccipital", "lateralorbitofrontal", "lingual", "medialorbitofrontal",
    "middletemporal", "parahippocampal", "paracentral", "parsopercularis", "parsorbitalis", "parstriangularis",
    "pericalcarine", "postcentral", "posteriorcingulate", "precentral", "precuneus", "rostralanteriorcingulate",
    "rostralmiddlefrontal", "superiorfrontal", "superiorparietal", "superiortemporal", "supramarginal", "frontalpole",
    "temporalpole", "transversetemporal", "insula",
)  # fmt: skip
"""The 34 regions of one hemisphere (Desikan et al. 2006)."""

_LEFT_OUT = ("bankssts", "temporalpole")  # the first is certain; the second is what UK Biobank's table leaves out
CORTICAL = tuple(f"{side}_{name}" for side in HEMISPHERES for name in DESIKAN if name not in _LEFT_OUT)
"""The 64 cortical regions of Kumar et al. 2022."""

_PAIRED = (
    "Lateral-Ventricle", "Cerebellum-White-Matter", "Cerebellum-Cortex", "Thalamus", "Caudate", "Putamen", "Pallidum",
    "Hippocampus", "Amygdala", "Accumbens-area", "Cerebral-White-Matter",
)  # fmt: skip
SUBCORTICAL = (
    *(f"{side}-{name}" for side in ("Left", "Right") for name in _PAIRED),
    "3rd-Ventricle", "Brain-Stem", "CSF", "WM-hypointensities",
    "CC_Anterior", "CC_Mid_Anterior", "CC_Central", "CC_Mid_Posterior", "CC_Posterior",
)  # fmt: skip
"""Their 31 subcortical regions that are measured."""

AGGREGATES = ("LeftCorticalGM", "RightCorticalGM", "SubcorticalGM", "TotalGM")
"""Their other four subcortical inputs: sums of other regions, which say nothing that the summands do not."""

SUBFIELDS = ("CA1", "CA2_3", "CA4_DG", "presubiculum", "subiculum", "fimbria", "hippocampal-fissure", "tail")
HIPPOCAMPAL = tuple(f"{side}_{name}" for side in HEMISPHERES for name in SUBFIELDS)
"""Their 16 hippocampal subfields."""

POSTER = {"cortical": CORTICAL, "subcortical": SUBCORTICAL, "hippocampal": HIPPOCAMPAL}
"""The three modalities, aggregates left out: 64 + 31 + 16 regions."""
