"""The phase diagram's ends are exact: nothing, one feature a neuron, antipodal pairs; and its bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_lens.comparisons.mechanism.toy_model import loss_of_antipodal_pairs, loss_of_nothing
from sparse_lens.comparisons.mechanism.toy_phases import PhaseDiagram, phase_diagram
from sparse_lens.comparisons.mechanism.toy_training import ToyConfig
from sparse_lens.errors import ConfigError

CONFIG = ToyConfig(n_features=10, n_neurons=3, steps=1000)
NOTHING, OWN, PAIRS, FULL = 0, 3, 6, 30


@pytest.fixture(scope="module")
def diagram() -> PhaseDiagram:
    return phase_diagram((1.0, 0.02), (1.0, 0.7), (NOTHING, OWN, PAIRS, FULL), config=CONFIG, seeds=(0, 1))


def test_without_weights_nothing_is_represented(diagram: PhaseDiagram) -> None:
    """The loss is the sum of variances, whatever activity and importance; what has no value is not measurable."""
    for (_, _, budget), found in diagram.results.items():
        if budget == NOTHING:
            assert found["loss"].value == pytest.approx(1, abs=0.01) and found["represented"].value == 0
            assert found["dropped_importance"].value == 1
            assert not found["psi"].measurable and found["psi"].value is None


@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_dense_features_get_a_neuron_each(diagram: PhaseDiagram, decay: float) -> None:
    """As many weights as neurons: the most important features, one a neuron, with the least loss that this can have."""
    found = diagram.results[1.0, decay, OWN]
    assert found["nonzeros"].value == OWN and found["represented"].value == 3
    assert found["features_per_neuron"].value == 1 and found["neurons_per_feature"].value == 1
    assert found["dimensionality"].value == pytest.approx(1) and found["shared_neurons"].value == 0
    assert found["psi"].value == pytest.approx(1, abs=1e-3)
    assert found["loss"].value == pytest.approx(found["loss"].null, abs=2e-3)
    if decay < 1:
        assert found["importance_order"].value == 1
        assert (diagram.gains[:, 0, 1, 1, :3] > 0.9).all() and (diagram.gains[:, 0, 1, 1, 3:] == 0).all()


def test_more_weights_do_not_help_dense_features(diagram: PhaseDiagram) -> None:
    """The full budget has the loss of the three best features: principal components, in any basis of neurons."""
    found = diagram.results[1.0, 0.7, FULL]
    assert found["loss"].value == pytest.approx(found["loss"].null, abs=0.01)
    assert (found["features_per_neuron"].value or 0) > 1.5


def test_rare_features_share_neurons_in_antipodal_pairs(diagram: PhaseDiagram) -> None:
    """A weight for each of twice as many features as neurons: superposition survives the budget, two a neuron."""
    found = diagram.results[0.02, 1.0, PAIRS]
    assert found["represented"].value == 6 and found["features_per_neuron"].value == pytest.approx(2, abs=0.01)
    assert found["neurons_per_feature"].value == 1 and found["shared_neurons"].value == 1
    assert found["dimensionality"].value == pytest.approx(0.5, abs=0.01) and found["psi"].value == pytest.approx(2, abs=0.01)
    one = np.ones(1)
    known = (loss_of_antipodal_pairs(np.ones(6), 0.02) + 4 * loss_of_nothing(one, 0.02)) / (10 * loss_of_nothing(one, 0.02))
    assert found["loss"].value == pytest.approx(known, abs=0.01)


def test_rare_features_at_full_budget(diagram: PhaseDiagram) -> None:
    """Superposition: more features than neurons, each over several neurons, better than one feature a neuron can be."""
    found = diagram.results[0.02, 1.0, FULL]
    assert (found["psi"].lo or 0) > 2 and (found["represented"].lo or 0) > 6
    assert (found["loss"].hi or 1) < 0.5 < (found["loss"].null or 0)
    assert (found["neurons_per_feature"].value or 0) > 1.2


def test_seeds_and_tables(diagram: PhaseDiagram) -> None:
    """The rows of the table are the results; seeds bound the mean; the same call gives the same numbers."""
    frame = diagram.to_frame()
    assert len(frame) == 2 * 2 * 4 * len(diagram.measures)
    row = frame.query("activity == 1.0 and decay == 0.7 and budget == 3 and metric == 'psi'").iloc[0]
    assert row["value"] == diagram.results[1.0, 0.7, 3]["psi"].value and row["seeds"] == 2
    small = ToyConfig(n_features=4, n_neurons=2, steps=20)
    first, second = (phase_diagram((0.5,), (1.0,), (2,), config=small, seeds=(3,)) for _ in range(2))
    assert np.array_equal(first.gains, second.gains) and (first.measures["nonzeros"] == 2).all()


def test_a_budget_beyond_the_matrix_keeps_it_whole() -> None:
    """Nine weights of eight."""
    found = phase_diagram((0.5,), (1.0,), (9,), config=ToyConfig(n_features=4, n_neurons=2, steps=5), seeds=(0,))
    assert (found.measures["nonzeros"] == 8).all()


def test_bad_axes() -> None:
    """Axes without an entry, and an importance that grows."""
    with pytest.raises(ConfigError, match="at least one activity"):
        phase_diagram(())
    with pytest.raises(ConfigError, match=r"got \[1\.5\]"):
        phase_diagram(decays=(1.5,))
