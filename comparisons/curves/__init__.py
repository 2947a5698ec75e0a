"""The curve of a circuit's bits against its divergence, and all that it is read from."""

from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve as CircuitCurve
from sparse_lens.comparisons.curves.curve_areas import area_between as area_between
from sparse_lens.comparisons.curves.edge_levels import EdgeLevels as EdgeLevels
from sparse_lens.comparisons.curves.edge_levels import decompose as decompose
