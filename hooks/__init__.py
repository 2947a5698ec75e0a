"""The TransformerLens plug-in: importing it registers the architecture; `load` gives a `TransformerBridge`."""

from sparse_lens.hooks.adapter import CircuitGPTArchitectureAdapter as CircuitGPTArchitectureAdapter
from sparse_lens.hooks.adapter import register as register
from sparse_lens.hooks.bridge import CircuitGPTBridge as CircuitGPTBridge
from sparse_lens.hooks.checking import ModelCheck as ModelCheck
from sparse_lens.hooks.checking import check_model as check_model
from sparse_lens.hooks.loading import available_models as available_models
from sparse_lens.hooks.loading import load as load
from sparse_lens.hooks.loading import wrap as wrap
from sparse_lens.hooks.names import reference_hook_name as reference_hook_name
from sparse_lens.hooks.names import to_reference_layout as to_reference_layout
from sparse_lens.hooks.names import to_transformerlens_layout as to_transformerlens_layout
from sparse_lens.hooks.names import transformerlens_hook_name as transformerlens_hook_name
from sparse_lens.hooks.published import PublishedFigure as PublishedFigure
from sparse_lens.hooks.published import check_published as check_published
from sparse_lens.hooks.saelens import with_saelens as with_saelens
from sparse_lens.hooks.sparsity import SparsityReport as SparsityReport
from sparse_lens.hooks.sparsity import sparsity_report as sparsity_report
from sparse_lens.hooks.splicing import Blend as Blend
from sparse_lens.hooks.splicing import SplicedSite as SplicedSite
from sparse_lens.hooks.splicing import splice as splice

register()
