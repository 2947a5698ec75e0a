"""Fracture and entanglement (arXiv:2505.11581), of networks that draw pictures and of language models."""

from sparse_lens.comparisons.fracture.index import picture_fracture as picture_fracture
from sparse_lens.comparisons.fracture.index import picture_network_fracture as picture_network_fracture
from sparse_lens.comparisons.fracture.model_fracture import FractureConfig as FractureConfig
from sparse_lens.comparisons.fracture.model_fracture import fracture_columns as fracture_columns
from sparse_lens.comparisons.fracture.model_fracture import fracture_index as fracture_index
from sparse_lens.comparisons.fracture.model_fracture import fracture_table as fracture_table
