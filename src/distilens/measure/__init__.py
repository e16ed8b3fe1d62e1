"""Measures of trained models and of their maps. Every mean comes with n and its interval.

* For models: accuracy, agreement, calibration, confusion, cost; `predictions` holds all logits, and `corruptions` makes the test
  images harder.
* For maps: `faithfulness` (does the model confirm the map?), `localisation` (is it on the evidence?), `sparsity`, `sanity` (does
  it depend on the model?), `likeness` (are two maps alike?).
* For pairs of models: `transfer` (FSS, RS) and `unicam` (maps of what one model knows and the other does not), based on
  `distance_correlation` and `dependence` (intervals and p-values).

The names are listed in `__init__.pyi`; each is imported at its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
