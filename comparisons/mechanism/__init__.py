"""The mechanism: does weight sparsity undo superposition, and is it few wires per neuron or few weights?"""

from sparse_lens.comparisons.mechanism.doses import Dose as Dose
from sparse_lens.comparisons.mechanism.doses import DoseResponse as DoseResponse
from sparse_lens.comparisons.mechanism.doses import dose_response as dose_response
from sparse_lens.comparisons.mechanism.doses import measure_doses as measure_doses
from sparse_lens.comparisons.mechanism.neuron_wiring import ARMS as ARMS
from sparse_lens.comparisons.mechanism.neuron_wiring import NeuronWiring as NeuronWiring
from sparse_lens.comparisons.mechanism.neuron_wiring import measure_wiring as measure_wiring
from sparse_lens.comparisons.mechanism.regression import regress_wiring as regress_wiring
from sparse_lens.comparisons.mechanism.regression import wiring_table as wiring_table
from sparse_lens.comparisons.mechanism.toy_phases import PhaseDiagram as PhaseDiagram
from sparse_lens.comparisons.mechanism.toy_phases import phase_diagram as phase_diagram
from sparse_lens.comparisons.mechanism.toy_training import ToyConfig as ToyConfig
