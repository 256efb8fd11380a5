"""A test of the tests: one error is put into a copy of the package, and the test meant for it must fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What is wrong -> module, what stands there, what is put there, the tests that must notice.
MUTATIONS = {
    "the KL loses a sign": ("gaussian", "1 + q.logvar - q.mu", "1 + q.logvar + q.mu", "kl_fixture"),
    "the repulsion attracts": ("losses", "torch.exp(-alpha * energy)", "torch.exp(alpha * energy)", "closed_form_and_slope"),
    "attributes order codes backwards": ("losses", "- torch.sign(d_a)", "+ torch.sign(d_a)", "attribute_fixture"),
    "equation 6 rewards disorder": ("sivae", "return self.gamma_reg * self.attribute + elbo", "return elbo - self.gamma_reg * self.attribute", "equation_6"),
    "equation 7 subtracts generated images": ("sivae", "self.beta_rec * self.recon + fake", "self.beta_rec * self.recon - fake", "equation_7"),
    "generated images are not detached": ("sivae", "with torch.no_grad():\n            target", "with torch.enable_grad():\n            target", "generated_images_are_data"),
    "the scale forgets the channels": ("sivae", 'self.config["channels"] * pixels', 'pixels', "slope_per_nat"),
    "the prior is no expert": ("experts", "precision.sum(0) + float(prior)", "precision.sum(0)", "integration_on_a_grid"),
    "a missing modality still speaks": ("experts", "precision = precision * available[..., None]", "pass", "integration_on_a_grid"),
    "beta never rises": ("mmvae", "(step.number + 1)", "step.number", "beta_rises"),
    "p of an absolute value": ("normative", '(2 if mode == "two-sided" else 1)', "1", "p_is_two_sided"),
    "discoveries down the wrong axis": ("normative", 'p if within == "person" else p.T', 'p.T if within == "person" else p', "who_else_is_in_the_table"),
    "a small holdout is taken for a large one": ("normative", "np.sqrt(1 + 1 / self.count)", "1", "small_holdout"),
    "a year never seen is used in silence": ("covariates", 'if beyond == "refuse":', "if False:", "ages_beyond_training"),
    "equation 4 as printed": ("mixtures", "torch.exp(delta.logvar) - delta.logvar - 1", "torch.exp(delta.logvar) - p.logvar - 1", "residual_kl"),
    "components weigh one each": ("mixtures", "torch.logsumexp(each, 1) - math.log(each.shape[1])", "torch.logsumexp(each, 1)", "mixture_log_prob_agrees"),
    "layers balanced the other way": ("layer_losses", 'size / dims if mode == "per_dim"', 'size * dims if mode == "per_dim"', "balance_fixture"),
    "samples forget the mixture": ("hvae", "sample(p, step.noise(*p.mu.shape)) if layer else self.draw_top(count, step)", "sample(p, step.noise(*p.mu.shape))", "samples_start_in_the_mixture"),
    "a bound with the wrong top prior": ("hvae", "mixture_log_prob(self.top_prior(), z, places=self.places[0]) if layer == 0 else", "log_prob(p, z) if layer == 0 else", "the_weight_is_the_joint"),
    "fluid makes healthy tissue stand out": ("brain_metrics", " & ~wet[wide]", "", "fluid_beside_a_lesion"),
    "a kept layer does not follow": ("edits", 'latent.z if mode == "absolute" else', "latent.z if mode else", "two_ways_of_keeping"),
    "another network is the same file": ("export", "digest.update(key.encode() + weight.detach().cpu().contiguous().numpy().tobytes())", "digest.update(key.encode())", "another_is_not"),
    "company goes the other way": ("widgets/hearts", "np.array(wanted) - z[asked]", "z[asked] - np.array(wanted)", "conditional_mean"),
    "the other half of a pair has no gradient": ("losses", "2 * z - z.detach()", "z", "doubling_the_gradient"),
    "every process draws the first rows of noise": ("losses", ".select(rows + 1, self.part)", ".select(rows + 1, 0)", "every_row_of_noise"),
    "every part draws its own noise": ("shares", "generator.set_state(start)  # every share", "pass  # every share", "gradients_of_the_whole"),
    "parts are added and not averaged": ("shares", "loss / len(shares) if len(shares) > 1 else loss", "loss", "gradients_of_the_whole"),
    "a damaged checkpoint is read": ("checkpoints", "if first != _first_line(rest):", "if False:", "any_changed_bit"),
    "a continued run forgets its optimiser": ("train", "optimiser.load_state_dict(state)", "pass", "killed_run_is_continued"),
}  # fmt: skip


def run_tests(where: Path, modules: set[str], names: set[str]) -> subprocess.CompletedProcess:
    """Runs the tests called `names` with the `medvae_lite` that lies in `where`."""
    environment = os.environ | {"PYTHONPATH": str(where), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    files = [str(ROOT / "tests" / f"test_{module.replace('/', '_')}.py") for module in sorted(modules)]
    # Without plugins and without checks of shapes: what must notice the error is the law, and quickly.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--basetemp", str(where / "tmp")]
    return subprocess.run(
        [*command, *options, *files, "-k", " or ".join(sorted(names))],
        cwd=where, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "medvae_lite", tmp_path / "medvae_lite", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_copy_passes_unchanged(copy):
    modules, names = ({m[i] for m in MUTATIONS.values()} for i in (0, 3))
    result = run_tests(copy, modules, names)
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.parametrize("error", MUTATIONS, ids=lambda error: f"{error}-caught-by-{MUTATIONS[error][3]}".replace(" ", "_"))
def test_an_error_is_caught(copy, error):
    module, right, wrong, name = MUTATIONS[error]
    path = copy / "medvae_lite" / f"{module}.py"
    source = path.read_text()
    assert source.count(right) == 1, f"`{module}` no longer reads {right!r} once: bring the mutation up to date"
    path.write_text(source.replace(right, wrong))
    result = run_tests(copy, {module}, {name})
    # 1 is a failed test; anything else (2 an import that broke, 5 nothing selected) would prove nothing.
    assert result.returncode == 1 and "1 failed" in result.stdout, result.stdout[-2000:]
