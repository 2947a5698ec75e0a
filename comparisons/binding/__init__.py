"""Binding of names to values (arXiv:2012.05208): segregation, representation, composition, on variable-binding programs."""

from sparse_lens.comparisons.binding.measuring import binding_columns as binding_columns
from sparse_lens.comparisons.binding.measuring import binding_report as binding_report
from sparse_lens.comparisons.binding.measuring import binding_table as binding_table
from sparse_lens.comparisons.binding.programs import BindingProgram as BindingProgram
