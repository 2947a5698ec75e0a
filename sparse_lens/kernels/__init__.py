"""Kernels with a plain-torch form and a fast form each; the tests hold the two equal."""

from sparse_lens.kernels.abstopk import abs_topk as abs_topk
from sparse_lens.kernels.abstopk import abs_topk_mask as abs_topk_mask
from sparse_lens.kernels.attention import causal_attention as causal_attention
from sparse_lens.kernels.compressed import compress_rows as compress_rows
from sparse_lens.kernels.compressed import expand as expand
from sparse_lens.kernels.compressed import expand_rows as expand_rows
from sparse_lens.kernels.compressed import rows_from_mask as rows_from_mask
from sparse_lens.kernels.products import CompressedRows as CompressedRows
from sparse_lens.kernels.products import CompressedWeight as CompressedWeight
from sparse_lens.kernels.products import compress as compress
from sparse_lens.kernels.products import multiply as multiply
from sparse_lens.kernels.products import sparse_linear as sparse_linear
from sparse_lens.kernels.projection import check_budget as check_budget
from sparse_lens.kernels.projection import projection_mask as projection_mask
from sparse_lens.kernels.threads import share_rows as share_rows
