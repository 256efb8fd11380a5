# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One model
#
# Trains one model of the cardiac part, or finds it trained, and shows what was measured. It is what a study repeats.

# %% tags=["parameters"]
profile = "laptop"        # "smoke", "laptop" or "paper"; trained on the smaller images that grids use
seed = 0                  # initial weights, order of subjects, noise
device = "auto"           # "auto", "cpu", "cuda" or "mps"
data_root = ""            # a prepared dataset; empty for the phantom
runs_root = "../../runs"  # where run records are looked up and written
retrain = False           # True trains although a record exists
model = "attri_vae"       # which model of medvae_lite.cardiac.MODELS
gamma_reg = 160.0         # weight of the attribute term
beta_kl = 0.5             # weight of the KL

# %%
import pandas as pd

from data_prep import phantom
from medvae_lite import cardiac, datasets, experiments, runs

runs.check_parameters(
    profile=profile, seed=seed, device=device, data_root=data_root, runs_root=runs_root, retrain=retrain,
    gamma_reg=(gamma_reg, 0.0, 1e5), beta_kl=(beta_kl, 1e-6, 1e3),
)
if model not in cardiac.MODELS:
    raise ValueError(f"`model` must be one of {', '.join(cardiac.MODELS)}, got {model!r}")

# %%
grid = experiments.GRID_PROFILE[profile]
size = cardiac.PROFILES[grid]
folder = data_root or phantom("cardiac", subjects=size.subjects, size=size.size)
data = datasets.load(folder, image_size=size.size)
study = cardiac.Study(
    data, profile=grid, phantom=phantom, seed=seed, device=device, runs_root=runs_root, retrain=retrain, progress=False
)

# %%
record = study.record(model, gamma_reg=gamma_reg, beta_kl=beta_kl)
pd.Series(record.metrics, name=record.folder.name)[["scc", "interpretability", "mse", "ssim", "kl"]]
