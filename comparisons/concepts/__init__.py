"""What single latents tell about Python source: labels, scores, probes, separability, absorption."""

from sparse_lens.comparisons.concepts.absorption import Absorption as Absorption
from sparse_lens.comparisons.concepts.absorption import measure_absorption as measure_absorption
from sparse_lens.comparisons.concepts.coverage import ConceptScores as ConceptScores
from sparse_lens.comparisons.concepts.coverage import measure_concepts as measure_concepts
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens as LabelledTokens
from sparse_lens.comparisons.concepts.labelled_tokens import label_pair as label_pair
from sparse_lens.comparisons.concepts.labelled_tokens import label_texts as label_texts
from sparse_lens.comparisons.concepts.probes import ProbeScores as ProbeScores
from sparse_lens.comparisons.concepts.probes import measure_probes as measure_probes
from sparse_lens.comparisons.concepts.separability import Separability as Separability
from sparse_lens.comparisons.concepts.separability import measure_separability as measure_separability
