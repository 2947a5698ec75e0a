"""How much of a feature the others give away (EASE, arXiv:1905.03375), and structure against capacity."""

from sparse_lens.comparisons.predictability.measuring import predictability_table as predictability_table
from sparse_lens.comparisons.predictability.predicted_features import Predictability as Predictability
