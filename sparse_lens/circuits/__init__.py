"""Circuits: node spaces, mask learning, search, scores, edges."""

from sparse_lens.circuits.circuit import Circuit as Circuit
from sparse_lens.circuits.edges import APART_KINDS as APART_KINDS
from sparse_lens.circuits.edges import EDGE_KINDS as EDGE_KINDS
from sparse_lens.circuits.edges import count_apart as count_apart
from sparse_lens.circuits.edges import count_edges as count_edges
from sparse_lens.circuits.learning import SearchConfig as SearchConfig
from sparse_lens.circuits.masking import mask_hooks as mask_hooks
from sparse_lens.circuits.masking import mean_reference as mean_reference
from sparse_lens.circuits.paths import on_paths as on_paths
from sparse_lens.circuits.scoring import CircuitScores as CircuitScores
from sparse_lens.circuits.scoring import both_sides as both_sides
from sparse_lens.circuits.scoring import evaluate_circuit as evaluate_circuit
from sparse_lens.circuits.search import circuit_edges as circuit_edges
from sparse_lens.circuits.search import find_circuit as find_circuit
from sparse_lens.circuits.sites import NodeSpace as NodeSpace
from sparse_lens.circuits.sites import Site as Site
from sparse_lens.circuits.sites import model_fingerprint as model_fingerprint
from sparse_lens.circuits.sites import node_space as node_space
from sparse_lens.circuits.weights import weight_graph as weight_graph
