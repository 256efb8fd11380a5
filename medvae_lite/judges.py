"""Judges of people: a normative model on its table, trained or linear, calibrated through whatever it may look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medvae_lite.gaussian import Gaussian
from medvae_lite.mmvae import PoEVAE
from medvae_lite.normative import Calibration, PCAResidual, Regression
from medvae_lite.regions import Regions

__all__ = ["Linear", "Normative", "VAE"]

Array = NDArray[np.float64]


class Normative:
    """A model of healthy people: what it expects of a person, and how unusual the rest is.

    Arguments:
        data: The table as the model sees it.
    """

    knows_nothing = True
    """Whether it can say what to expect of a person none of whose modalities it may look at."""

    def __init__(self, data: Regions):
        self.data = data
        self._calibrations: dict = {}

    def deviation(self, rows: NDArray[np.int64], given: Sequence[str] | None = None) -> Array:
        """Observed less expected regions, in the scale of the model's input, with shape (N, F).

        Arguments:
            rows: People, as rows of the table.
            given: Modalities the model may look at; those each person has, when None.
        """
        raise NotImplementedError

    def calibration(self, given: Sequence[str] | None = None) -> Calibration:
        """From those of the holdout who have the modalities in `given` (all, when None), seen through these alone.

        Raises:
            ValueError: If too few of the holdout have them.
        """
        key = tuple(self.known(given))
        if key not in self._calibrations:
            rows = self.data.rows("holdout")
            rows = rows[self.has(rows)[:, [name in key for name in self.data.modalities]].all(1)]
            self._calibrations[key] = Calibration.fit(self.deviation(rows, key))
        return self._calibrations[key]

    def has(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which modalities each person has, with shape (N, M)."""
        first = np.cumsum([0, *self.data.sizes.values()])[:-1]
        return np.isfinite(self.data.raw[np.ix_(rows, first)])

    def z(self, rows: NDArray[np.int64], given: Sequence[str] | None = None) -> Array:
        """Calibrated deviations, standard normal in healthy people, with shape (N, F).

        A person who lacks a modality is compared with healthy people seen without it.
        """
        names, d = np.array(list(self.data.modalities)), self.deviation(rows, given)
        seen = self.has(rows) & np.isin(names, self.known(given))
        z = np.empty_like(d)
        for pattern in np.unique(seen, axis=0):
            same = (seen == pattern).all(1)
            z[same] = self.calibration(names[pattern].tolist())(d[same])
        return z

    def known(self, given: Sequence[str] | None) -> list[str]:
        """The names in `given`, checked.

        Raises:
            ValueError: If the model has no such modality.
        """
        names = list(self.data.modalities)
        unknown = [] if given is None else [name for name in given if name not in names]
        if unknown:
            raise ValueError(f"`given` must be among the model's modalities {', '.join(names)}, got {unknown[0]!r}")
        return names if given is None else list(given)


class VAE(Normative):
    """A trained `PoEVAE` on its table."""

    def __init__(self, model: PoEVAE, data: Regions):
        super().__init__(data)
        self.model = model.cpu().eval()
        self.knows_nothing = model.prior_expert

    def inputs(self, rows: NDArray[np.int64], given: Sequence[str] | None = None):
        """Regions with zeros where not measured (N, F), covariates (N, C), available modalities (M, N)."""
        x = torch.from_numpy(self.data.x[rows]).float()
        chosen = torch.tensor([name in self.known(given) for name in self.data.modalities])
        available = self.model.available(x.isfinite().float()) & chosen[:, None]
        return x.nan_to_num(0), torch.from_numpy(self.data.covariates[rows]), available

    @torch.no_grad()
    def codes(self, rows: NDArray[np.int64], given: Sequence[str] | None = None) -> Gaussian:
        """Joint posteriors, with shape (N, D)."""
        return self.model.encode(*self.inputs(rows, given))

    @torch.no_grad()
    def expected(self, rows: NDArray[np.int64], given: Sequence[str] | None = None) -> Array:
        """Decoded posterior means, in the scale of the input, with shape (N, F)."""
        x, c, available = self.inputs(rows, given)
        return self.model.decode(self.model.encode(x, c, available).mu, c).double().numpy()

    def deviation(self, rows: NDArray[np.int64], given: Sequence[str] | None = None) -> Array:
        return self.data.x[rows] - self.expected(rows, given)


class Linear(Normative):
    """The baseline: covariates by least squares and, with `components`, principal components of what is left.

    Raises:
        ValueError: If too few training people have every modality.
    """

    def __init__(self, data: Regions, *, components: int = 0):
        super().__init__(data)
        rows = data.rows("train")
        x, c = data.x[rows], data.covariates[rows].astype(float)
        whole = np.isfinite(x).all(1)
        if whole.sum() <= c.shape[1] + 1:
            raise ValueError(f"regression needs more than {c.shape[1] + 1} training people who have every modality, got {whole.sum()}; choose fewer with `only`")
        fit = PCAResidual.fit if components else Regression.fit
        self.model = fit(x[whole], c[whole], **({"components": components} if components else {}))

    def deviation(self, rows: NDArray[np.int64], given: Sequence[str] | None = None) -> Array:
        x, c = self.data.x[rows], self.data.covariates[rows].astype(float)
        if isinstance(self.model, Regression):
            return self.model.residual(x, c)
        chosen = np.repeat([name in self.known(given) for name in self.data.modalities], list(self.data.sizes.values()))
        measured, out = np.isfinite(x) & chosen, np.empty_like(x)
        for gaps in np.unique(measured, axis=0):  # people with the same gaps together
            same = (measured == gaps).all(1)
            out[same] = self.model.residual(x[same], c[same], gaps)
        return out
