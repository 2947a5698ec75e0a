"""The full comparison: its cells as jobs, the statistics over them, and what they do not show."""

from sparse_lens.comparisons.full.full_comparison import compare_fully as compare_fully
from sparse_lens.comparisons.full.plan import FullPlan as FullPlan
from sparse_lens.comparisons.full.plan import quick_plan as quick_plan
