"""The comparison of weight-sparse models with dense neurons and SAE latents."""

from sparse_lens.comparisons.columns import COLUMNS as COLUMNS
from sparse_lens.comparisons.comparing_columns import compare_columns as compare_columns
from sparse_lens.comparisons.comparison import Comparison as Comparison
from sparse_lens.comparisons.comparison import compare as compare
from sparse_lens.comparisons.head_patching import PatchingTable as PatchingTable
from sparse_lens.comparisons.head_patching import patch_task as patch_task
from sparse_lens.comparisons.instrument import Report as Report
from sparse_lens.comparisons.instrument import claims as claims
from sparse_lens.comparisons.pair import ModelPair as ModelPair
from sparse_lens.comparisons.pair import model_facts as model_facts
from sparse_lens.comparisons.pair import model_sizes as model_sizes
