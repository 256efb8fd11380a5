"""Imports run one way: what a module may import is written down here, and nothing else is allowed."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("medvae_lite", "data_prep", "book", "tests")

# Module of medvae_lite -> the modules of medvae_lite it may import.
ALLOWED = {
    "gaussian": set(),
    "losses": {"gaussian"},
    "nets": set(),
    "sivae": {"losses", "nets", "gaussian"},
    "experts": {"gaussian"},
    "mmvae": {"losses", "gaussian", "experts"},
    "mixtures": {"gaussian"},
    "layer_losses": {"losses"},
    "hvae": {"layer_losses", "losses", "nets", "gaussian", "mixtures"},
    "edits": {"hvae", "gaussian", "losses"},
    "brains": {"datasets", "prepared_files"},
    "brain_metrics": set(),
    "runs": set(),
    "checkpoints": {"runs"},
    "fit_config": set(),
    "parallel": set(),
    "shares": {"datasets", "losses"},
    "train": {"checkpoints", "datasets", "fit_config", "losses", "parallel", "runs", "shares"},
    "published": {"runs", "datasets", "parallel", "train"},
    "datasets": {"prepared_files"},
    "prepared_files": set(),
    "disentangle": set(),
    "fidelity": set(),
    "normative": set(),
    "covariates": set(),
    "regions": {"covariates", "datasets", "prepared_files"},
    "export": {"runs"},
    "widgets": {"export", "runs", "walks", "datasets", "edits", "hvae", "brains", "gaussian", "experts"},
    "plots": set(),
    "plots_results": {"plots"},
    "plots_objectives": {"plots"},
    "plots_training": {"plots"},
    "plots_walks": {"plots"},
    "plots_tables": {"plots"},
    "plots_brain": {"plots"},
    "plots_maps": {"plots", "plots_brain"},
    "plots_diagnosis": {"plots"},
    "walks": {"datasets"},
    "repulsion": set(),
    "crossval": {"disentangle"},
    # The experiments of one part of the book: they put the rest together, and nothing below imports them.
    "cardiac": {
        "datasets", "disentangle", "fidelity", "gaussian", "losses", "nets", "published", "runs", "sivae", "train",
    },
    "experiments": {"cardiac", "runs"},
    "judges": {"gaussian", "mmvae", "normative", "regions"},
    "cohort": {"gaussian", "judges", "mmvae", "normative", "published", "regions", "runs", "train"},
    "hierarchy_scores": {"brain_metrics", "brains", "edits", "fidelity", "hvae", "losses", "mixtures"},
    "hierarchy": {"brains", "hierarchy_scores", "hvae", "losses", "published", "runs", "train"},
    "realtable": {"cohort", "judges", "normative", "regions", "runs"},
    "record_files": {"cardiac", "hvae", "mmvae", "runs", "sivae"},
    "reevaluate": {
        "brains", "cardiac", "cohort", "datasets", "hierarchy", "judges", "losses", "nets", "record_files", "regions", "runs",
    },
    "records": {"record_files", "reevaluate", "runs", "train"},
    "sweep_worker": {"published", "runs"},
    "sweep_notebook": {"sweep_worker"},
    "sweep_study": {"runs", "sweep_notebook", "sweep_worker"},
    "sweep_executors": set(),
    "sweep": {"runs", "sweep_executors", "sweep_notebook", "sweep_study", "sweep_worker"},
    "diagnosis": {"cardiac", "crossval", "datasets", "disentangle", "runs", "sivae", "train"},
}
# Only data_prep knows file formats of images and cohorts.
FORMATS = {"nibabel", "nilearn", "pydicom", "SimpleITK"}
# Metrics take arrays and give numbers; these work without torch.
NUMPY_ONLY = ("brain_metrics", "covariates", "disentangle", "normative")


def modules(package: str) -> dict[str, Path]:
    """Name relative to the package ("" is its __init__) -> file."""
    top = ROOT / package
    files = {".".join(path.relative_to(top).with_suffix("").parts): path for path in top.rglob("*.py")}
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in files.items()}


def imported(path: Path) -> set[str]:
    """Absolute dotted names of everything `path` imports, wherever in the file the statement stands."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def internal(path: Path, package: str) -> set[str]:
    """The modules of `package` that `path` imports; a name the package re-exports counts as `__init__`."""
    known = set(modules(package)) - {""}
    names = {name.removeprefix(f"{package}.") for name in imported(path) if name.startswith(f"{package}.")}
    starts = lambda name: (name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1))
    return {next((start for start in starts(name) if start in known), "__init__") for name in names}


MODULES = sorted(set(modules("medvae_lite")) - {""})


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_one_way(module):
    part = module.split(".")[0]
    assert part in ALLOWED, f"say in ALLOWED what `medvae_lite.{part}` may import"
    own = {name for name in MODULES if name.split(".")[0] == part}
    back = internal(modules("medvae_lite")[module], "medvae_lite") - ALLOWED[part] - own
    assert not back, f"`medvae_lite.{module}` may not import {sorted(back)}"


@pytest.mark.parametrize("package", ["medvae_lite", "data_prep"])
def test_no_circle(package):
    graph = {name: internal(path, package) for name, path in modules(package).items() if name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError naming the circle


@pytest.mark.parametrize("package", ["medvae_lite", "data_prep"])
def test_packages_stand_alone(package):
    others = set(PACKAGES) - {package}
    for path in modules(package).values():
        foreign = {name for name in imported(path) if name.split(".")[0] in others}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_only_data_prep_knows_file_formats():
    for path in modules("medvae_lite").values():
        assert not {name.split(".")[0] for name in imported(path)} & FORMATS, path.name


@pytest.mark.parametrize("module", [m for m in NUMPY_ONLY if m in MODULES])
def test_metrics_on_arrays_do_without_torch(module):
    names = {name.split(".")[0] for name in imported(modules("medvae_lite")[module])}
    assert not names & {"torch", "torchvision", "torchmetrics"}
