"""Methods that make a model sparse while it trains, behind one interface: `Sparsifier`."""

from __future__ import annotations

from sparse_lens.models import CircuitGPTCore
from sparse_lens.training.config import TrainingConfig
from sparse_lens.training.sparsifiers.base import Sparsifier as Sparsifier
from sparse_lens.training.sparsifiers.fixed import RandomMasks, RigLMasks
from sparse_lens.training.sparsifiers.learned import LearnedMasks
from sparse_lens.training.sparsifiers.matrices import SparseMatrix as SparseMatrix
from sparse_lens.training.sparsifiers.matrices import sparse_matrices as sparse_matrices
from sparse_lens.training.sparsifiers.pruning import CyclePruning
from sparse_lens.training.sparsifiers.top_k import TopKProjection as TopKProjection
from sparse_lens.training.sparsity import LotteryTicket, MagnitudePruning, RandomMask, RigL, TopK


def make_sparsifier(core: CircuitGPTCore, config: TrainingConfig, *, fast: bool = True) -> Sparsifier:
    """The sparsifier that a configuration asks for; raises `ConfigError` for a budget that cannot keep the minimum alive."""
    match config.sparsity:
        case None:
            return Sparsifier()
        case TopK() as sparsity:
            return TopKProjection(core, sparsity, config.steps, fast=fast)
        case RandomMask() as sparsity:
            return RandomMasks(core, sparsity)
        case RigL() as sparsity:
            return RigLMasks(core, sparsity, config.steps)
        case MagnitudePruning() | LotteryTicket():
            return CyclePruning(core, config)
        case _:
            return LearnedMasks(core, config)
