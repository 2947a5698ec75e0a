"""The CircuitGPT architecture: configuration, forward pass, Hugging Face shell, checkpoints."""

from sparse_lens.models.checkpoints import load_checkpoint as load_checkpoint
from sparse_lens.models.checkpoints import save_packed as save_packed
from sparse_lens.models.checkpoints import save_reference as save_reference
from sparse_lens.models.config import ABSTOPK_SITES as ABSTOPK_SITES
from sparse_lens.models.config import PAPER_SITES as PAPER_SITES
from sparse_lens.models.config import CircuitGPTConfig as CircuitGPTConfig
from sparse_lens.models.config import validate_config as validate_config
from sparse_lens.models.config_files import read_config as read_config
from sparse_lens.models.core import AbsTopK as AbsTopK
from sparse_lens.models.core import CircuitGPTCore as CircuitGPTCore
from sparse_lens.models.hf import CircuitGPTForCausalLM as CircuitGPTForCausalLM
from sparse_lens.models.hf import next_token_loss as next_token_loss
from sparse_lens.models.hf import register_auto_classes as register_auto_classes
from sparse_lens.models.sparse_execution import dense_execution as dense_execution
from sparse_lens.models.sparse_execution import is_sparse as is_sparse
from sparse_lens.models.sparse_execution import weight_bytes as weight_bytes
from sparse_lens.models.sparse_loading import load_sparse as load_sparse
from sparse_lens.models.tokenizer_files import read_tokenizer as read_tokenizer
