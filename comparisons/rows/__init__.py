"""What each column of the comparison is measured on, one question to a file: loss, reconstruction, superposition and the like."""

from sparse_lens.comparisons.rows.correspondence import Correspondence as Correspondence
from sparse_lens.comparisons.rows.correspondence import measure_correspondence as measure_correspondence
from sparse_lens.comparisons.rows.jacobians import measure_jacobian as measure_jacobian
from sparse_lens.comparisons.rows.jacobians import weight_sparsity as weight_sparsity
from sparse_lens.comparisons.rows.reconstruction import spliced_loss as spliced_loss
from sparse_lens.comparisons.rows.superposition import decoder_similarity as decoder_similarity
from sparse_lens.comparisons.rows.superposition import measure_superposition as measure_superposition
