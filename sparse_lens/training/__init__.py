"""Training of weight-sparse and dense models: recipes, schedules, projection, the loop."""

from sparse_lens.training.config import SparsityConfig as SparsityConfig
from sparse_lens.training.config import TrainingConfig as TrainingConfig
from sparse_lens.training.evaluation import window_losses as window_losses
from sparse_lens.training.loop import MODEL_FILES as MODEL_FILES
from sparse_lens.training.loop import TrainingResult as TrainingResult
from sparse_lens.training.loop import train as train
from sparse_lens.training.recipes import available_recipes as available_recipes
from sparse_lens.training.recipes import get_recipe as get_recipe
