"""Training of weight-sparse and dense models: recipes, schedules, sparsifiers, the loop."""

from sparse_lens.training.config import TrainingConfig as TrainingConfig
from sparse_lens.training.evaluation import window_losses as window_losses
from sparse_lens.training.folder import MODEL_FILES as MODEL_FILES
from sparse_lens.training.loop import TrainingResult as TrainingResult
from sparse_lens.training.loop import train as train
from sparse_lens.training.penalties import PenaltyConfig as PenaltyConfig
from sparse_lens.training.recipes import available_recipes as available_recipes
from sparse_lens.training.recipes import get_recipe as get_recipe
from sparse_lens.training.sparsity import LearnedMask as LearnedMask
from sparse_lens.training.sparsity import LotteryTicket as LotteryTicket
from sparse_lens.training.sparsity import MagnitudePruning as MagnitudePruning
from sparse_lens.training.sparsity import RandomMask as RandomMask
from sparse_lens.training.sparsity import RigL as RigL
from sparse_lens.training.sparsity import SparsityConfig as SparsityConfig
from sparse_lens.training.sparsity import TopK as TopK
