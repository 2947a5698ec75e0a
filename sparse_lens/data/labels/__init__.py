"""Labels of every token of Python source, computed from the text alone, for the tokens of any tokenizer."""

from sparse_lens.data.labels.catalogue import CATALOGUE as CATALOGUE
from sparse_lens.data.labels.catalogue import HIERARCHIES as HIERARCHIES
from sparse_lens.data.labels.catalogue import Concept as Concept
from sparse_lens.data.labels.catalogue import available_concepts as available_concepts
from sparse_lens.data.labels.catalogue import binary_labels as binary_labels
from sparse_lens.data.labels.labelling import TokenLabels as TokenLabels
from sparse_lens.data.labels.labelling import label_tokens as label_tokens
from sparse_lens.data.labels.offsets import OffsetEncoder as OffsetEncoder
