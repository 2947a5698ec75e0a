"""How much of a feature the others give away (EASE, arXiv:1905.03375), and structure against capacity."""

from sparse_lens.comparisons.predictability.capacity import structural_bias as structural_bias
from sparse_lens.comparisons.predictability.measuring import predictability as predictability
from sparse_lens.comparisons.predictability.measuring import predictability_columns as predictability_columns
from sparse_lens.comparisons.predictability.measuring import predictability_table as predictability_table
from sparse_lens.comparisons.predictability.predicted_features import Predictability as Predictability
from sparse_lens.comparisons.predictability.predicted_features import feature_predictability as feature_predictability
from sparse_lens.comparisons.predictability.recommending import recommender_report as recommender_report
from sparse_lens.comparisons.predictability.ridge import ease as ease
