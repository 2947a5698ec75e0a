"""Structural compositionality (arXiv:2301.10884): are two subroutines two subnetworks?"""

from sparse_lens.comparisons.compositionality.cells import Compositionality as Compositionality
from sparse_lens.comparisons.compositionality.measuring import compositionality_columns as compositionality_columns
from sparse_lens.comparisons.compositionality.measuring import compositionality_table as compositionality_table
from sparse_lens.comparisons.compositionality.measuring import structural_compositionality as structural_compositionality
from sparse_lens.comparisons.compositionality.pretraining import pretraining_effect as pretraining_effect
from sparse_lens.comparisons.compositionality.shared_prompts import SUBROUTINES as SUBROUTINES
from sparse_lens.comparisons.compositionality.weight_masks import CHEAP as CHEAP
from sparse_lens.comparisons.compositionality.weight_masks import MaskConfig as MaskConfig
