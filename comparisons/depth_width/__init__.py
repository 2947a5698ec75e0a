"""Depth against width at equal parameters or equal nonzeros, at several densities (arXiv:2402.14905, and its claim re-tested)."""

from sparse_lens.comparisons.depth_width.grid import make_grid as make_grid
from sparse_lens.comparisons.depth_width.sweeping import DepthWidthSweep as DepthWidthSweep
from sparse_lens.comparisons.depth_width.sweeping import depth_slopes as depth_slopes
from sparse_lens.comparisons.depth_width.sweeping import depth_width_sparsity_sweep as depth_width_sparsity_sweep
