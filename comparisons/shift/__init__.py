"""Shift and the sparsity of representations (arXiv:2603.03415), and what models lose under shift."""

from sparse_lens.comparisons.shift.ladder import ShiftLadder as ShiftLadder
from sparse_lens.comparisons.shift.measuring import ShiftMeasurement as ShiftMeasurement
from sparse_lens.comparisons.shift.measuring import shift_sparsity as shift_sparsity
from sparse_lens.comparisons.shift.measuring import slope_differences as slope_differences
from sparse_lens.comparisons.shift.metrics import METRICS as METRICS
from sparse_lens.comparisons.shift.metrics import gaussian_null as gaussian_null
from sparse_lens.comparisons.shift.metrics import sparsity_metrics as sparsity_metrics
from sparse_lens.comparisons.shift.python_ladders import LADDERS as LADDERS
from sparse_lens.comparisons.shift.python_ladders import python_ladder as python_ladder
from sparse_lens.comparisons.shift.renamed_subroutines import renamed_ablation as renamed_ablation
from sparse_lens.comparisons.shift.representation import RepresentationSums as RepresentationSums
from sparse_lens.comparisons.shift.representation import representation_sparsity as representation_sparsity
from sparse_lens.comparisons.shift.robustness import renamed_task as renamed_task
from sparse_lens.comparisons.shift.robustness import robustness_slopes as robustness_slopes
from sparse_lens.comparisons.shift.table import shift_table as shift_table
