"""The phase diagram as a figure: one cell a number, those without one marked."""

from __future__ import annotations

import pytest

from sparse_lens.comparisons.mechanism import phase_diagram
from sparse_lens.comparisons.mechanism.toy_training import ToyConfig
from sparse_lens.errors import UnknownNameError
from sparse_lens.report.standalone import standalone_svg
from sparse_lens.report.toy_phases import phase_plot


def test_every_cell_of_the_diagram_is_a_cell_of_the_figure() -> None:
    """Without a weight there are no features to count."""
    diagram = phase_diagram((1.0, 0.1), (1.0,), (0, 2, 5), config=ToyConfig(steps=20), seeds=(0,))
    figure = phase_plot(diagram)
    assert figure.count('class="missing"') == 2 and figure.count('class="positive through"') == 4
    value = diagram.results[0.1, 1.0, 5]["psi"].value
    assert f"decay; activity 1; 0.1, budget of weights 5: {value:.2f}<" in figure and "features per neuron" in figure
    assert standalone_svg(phase_plot(diagram, "loss")).startswith("<svg")
    with pytest.raises(UnknownNameError, match="did you mean 'psi'"):
        phase_plot(diagram, "psy")
