"""What random-matrix theory predicts for DEQs of random, orthogonal, GOE and antisymmetric W.

Sections named in docstrings are those of ``docs/theory.md``.

- Linear DEQ, section A: :func:`length_mean`, :func:`length_relative_variance`,
  :func:`orthogonal_length_variance`, :func:`length_quantile`, :func:`input_gradient_mean`,
  :func:`eigenvalue_density`, :func:`singular_value_density`.
- Nonlinear DEQ, section B: :func:`mean_field`, :func:`jacobian_norm`,
  :func:`jacobian_spectral_radius`, :func:`adjoint_amplification`, and the inverse problem:
  :func:`gain_for`, :func:`critical_gain`. Activations other than the named ones:
  :func:`custom_activation`.
"""

from deq_init.theory.activations import Activation, custom_activation
from deq_init.theory.fluctuations import length_relative_variance
from deq_init.theory.jacobians import (
    adjoint_amplification,
    critical_gain,
    gain_for,
    jacobian_norm,
    jacobian_spectral_radius,
)
from deq_init.theory.linear import (
    input_gradient_mean,
    length_mean,
    orthogonal_length_variance,
)
from deq_init.theory.nonlinear import MeanField, mean_field
from deq_init.theory.quantiles import length_quantile
from deq_init.theory.spectra import eigenvalue_density, singular_value_density

__all__ = [
    "Activation",
    "MeanField",
    "adjoint_amplification",
    "critical_gain",
    "custom_activation",
    "eigenvalue_density",
    "gain_for",
    "input_gradient_mean",
    "jacobian_norm",
    "jacobian_spectral_radius",
    "length_mean",
    "length_quantile",
    "length_relative_variance",
    "mean_field",
    "orthogonal_length_variance",
    "singular_value_density",
]
