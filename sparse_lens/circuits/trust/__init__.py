"""How far a circuit can be trusted: tests, controls, and one card with a plain verdict (`evaluate_circuit`)."""

from sparse_lens.circuits.trust.backups import find_backups as find_backups
from sparse_lens.circuits.trust.card import CircuitCard as CircuitCard
from sparse_lens.circuits.trust.controls import random_circuits as random_circuits
from sparse_lens.circuits.trust.controls import random_weights as random_weights
from sparse_lens.circuits.trust.curves import Curve as Curve
from sparse_lens.circuits.trust.curves import completeness_curve as completeness_curve
from sparse_lens.circuits.trust.curves import faithfulness_curve as faithfulness_curve
from sparse_lens.circuits.trust.evaluate import evaluate_circuit as evaluate_circuit
from sparse_lens.circuits.trust.hypotheses import HypothesisTest as HypothesisTest
from sparse_lens.circuits.trust.hypotheses import equivalence_test as equivalence_test
from sparse_lens.circuits.trust.hypotheses import holm as holm
from sparse_lens.circuits.trust.hypotheses import independence_test as independence_test
from sparse_lens.circuits.trust.hypotheses import minimality_test as minimality_test
from sparse_lens.circuits.trust.interchange import interchange_accuracy as interchange_accuracy
from sparse_lens.circuits.trust.knockouts import random_knockouts as random_knockouts
from sparse_lens.circuits.trust.knockouts import same_under_knockouts as same_under_knockouts
from sparse_lens.circuits.trust.mixtures import adversarial_ablation as adversarial_ablation
from sparse_lens.circuits.trust.mixtures import stochastic_ablation as stochastic_ablation
from sparse_lens.circuits.trust.runs import CircuitRuns as CircuitRuns
from sparse_lens.circuits.trust.stability import jaccard as jaccard
from sparse_lens.circuits.trust.stability import overlap as overlap
