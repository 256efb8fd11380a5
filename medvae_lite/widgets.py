"""Pictures that move under the mouse, in JupyterLab and in the rendered page alike, without a kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path

__all__ = ["Experts"]

_IDS = count()


class Experts:
    """Up to three Gaussian experts of one latent dimension and their product: drag a curve, or use its sliders.

    Arguments:
        experts: Mean and standard deviation of each, by name.
        prior: Whether the prior N(0, 1) starts as one of them.

    Raises:
        ValueError: If there are none, or more than three, or a standard deviation is not positive.
    """

    def __init__(self, experts: Mapping[str, tuple[float, float]], *, prior: bool = True):
        if not 1 <= len(experts) <= 3 or min(sd for _, sd in experts.values()) <= 0:
            raise ValueError(f"`experts` must be one to three pairs of a mean and a positive standard deviation, got {dict(experts)}")
        self.state = {
            "prior": prior, "experts": [{"name": name, "mu": mu, "sd": sd, "on": True} for name, (mu, sd) in experts.items()],
        }  # fmt: skip

    def __repr__(self) -> str:
        names = ", ".join(e["name"] for e in self.state["experts"])
        return f"Experts({names})"

    def _repr_html_(self) -> str:
        name = f"experts{next(_IDS)}"
        code = (Path(__file__).parent / "widgets.js").read_text().replace("export function", "function")
        state = json.dumps(self.state | {"id": name})
        silent = "<noscript>Without scripts this picture stands still: see the figure below.</noscript>"
        return f'<div class="live" id="{name}">{silent}</div><script>(() => {{\n{code}\nexperts(document.getElementById("{name}"), {state});\n}})();</script>'
