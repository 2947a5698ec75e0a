"""The phase diagram of the toy model of superposition as a heatmap: what a budget of weights does at every activity of features."""

from __future__ import annotations

import numpy as np

from sparse_lens.comparisons.mechanism.toy_phases import PhaseDiagram
from sparse_lens.errors import UnknownNameError
from sparse_lens.report.heatmaps import Axes, heatmap

_TOLD = {
    "psi": "features per neuron",
    "shared_neurons": "share of the neurons with more than one feature",
    "features_per_neuron": "features with a weight, per neuron that has any",
    "loss": "loss, as a share of that of nothing",
}


def phase_plot(diagram: PhaseDiagram, metric: str = "psi") -> str:
    """SVG text: a row for every importance and activity, a column a budget, a number the mean over seeds.

    Colours are full at the largest number. Raises `UnknownNameError` for a metric that the diagram has not.
    """
    if metric not in diagram.measures:
        raise UnknownNameError("metric", metric, diagram.measures)
    places = [(decay, activity) for decay in diagram.decays for activity in diagram.activities]
    results = diagram.results
    values = [[results[activity, decay, budget][metric].value for budget in diagram.budgets] for decay, activity in places]
    rows = [f"{decay:g}; {activity:g}" for decay, activity in places]
    axes = Axes("decay; activity", "budget of weights", rows, [f"{budget:,}" for budget in diagram.budgets])
    told = _TOLD.get(metric, metric.replace("_", " "))
    about = (
        f"{diagram.config.n_features} features in {diagram.config.n_neurons} neurons: {told}, by decay of importance and activity"
    )
    limit = max([abs(value) for row in values for value in row if value is not None and np.isfinite(value)], default=1.0)
    return heatmap(values, axes, limit=limit, ident=f"phases-{metric}", title=about, description=about, write="{:.2f}".format)
