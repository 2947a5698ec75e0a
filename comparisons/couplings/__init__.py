"""Couplings (the bridges of arXiv:2511.13653) of a dense and a weight-sparse model, what runs through them, and steering."""

from sparse_lens.comparisons.couplings.coupling import Coupling as Coupling
from sparse_lens.comparisons.couplings.coupling import load_coupling as load_coupling
from sparse_lens.comparisons.couplings.coupling import ridge_coupling as ridge_coupling
from sparse_lens.comparisons.couplings.hybrids import hybrid_losses as hybrid_losses
from sparse_lens.comparisons.couplings.steering import Steering as Steering
from sparse_lens.comparisons.couplings.steering import measure_steering as measure_steering
from sparse_lens.comparisons.couplings.training import CouplingTrainingConfig as CouplingTrainingConfig
from sparse_lens.comparisons.couplings.training import train_coupling as train_coupling
