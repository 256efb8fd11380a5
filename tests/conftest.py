"""What every test starts from: one thread, one seed, no window for figures."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """The global generators start equal in every test, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)
