"""Pictures that move under the mouse, in JupyterLab with the kernel and in a rendered page without one: one class an idea."""

from medvae_lite.widgets.dials import Dials, Knob
from medvae_lite.widgets.hearts import AttributeWalk, Interpolation, ModelComparison
from medvae_lite.widgets.layers import LayerMixing
from medvae_lite.widgets.people import Experts, PersonExperts

__all__ = ["AttributeWalk", "Dials", "Experts", "Interpolation", "Knob", "LayerMixing", "ModelComparison", "PersonExperts"]
