"""The regression recovers what is planted, gives nothing on shuffled outcomes, and reads a real model's wires."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.concepts.coverage import measure_concepts
from sparse_lens.comparisons.concepts.labelled_tokens import label_pair
from sparse_lens.comparisons.mechanism.neuron_wiring import ARMS, NeuronWiring, measure_wiring, unit_concepts
from sparse_lens.comparisons.mechanism.regression import regress_wiring, wiring_table
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.hooks import sparsity_report
from sparse_lens.training import available_recipes


def planted(
    weights: int, *, seed: int, fan_in: float = 0.0, of_weights: float = 0.0, noise: float = 1.0, n: int = 800, scale: int = 1
) -> NeuronWiring:
    """A model whose outcome is linear in the logarithms of its fan-in and its weights."""
    rng = np.random.default_rng(seed)
    reads, writes = scale * rng.integers(4, 64, n), scale * rng.integers(4, 64, n)
    outcome = fan_in * np.log2(reads) + of_weights * np.log2(weights) + noise * rng.standard_normal(n)
    return NeuronWiring(reads, writes, weights, {name: outcome for name in ("concepts", "effective_concepts", "best_gain")})


def test_planted_coefficients_are_recovered() -> None:
    """As numpy's least squares on standardised columns; the interval holds the planted value; fan-out has none."""
    models = {str(w): planted(w, seed=w, fan_in=1.0, of_weights=0.5) for w in (1000, 4000, 16_000)}
    found = regress_wiring(models, n_resamples=200)
    columns = [
        np.concatenate([np.log2(m.fan_in) for m in models.values()]),
        np.concatenate([np.log2(m.fan_out) for m in models.values()]),
        np.concatenate([np.full(800, np.log2(m.weights)) for m in models.values()]),
        np.concatenate([m.outcomes["concepts"] for m in models.values()]),
    ]
    X = np.stack([(column - column.mean()) / column.std() for column in columns], axis=1)
    beta = np.linalg.lstsq(X[:, :3], X[:, 3], rcond=None)[0]
    for name, coefficient, truth in zip(("fan_in", "fan_out", "weights"), beta, (1.0, 0.0, 0.5), strict=True):
        result = found[f"coefficient_{name}"]
        column = columns[("fan_in", "fan_out", "weights").index(name)]
        assert result.value == pytest.approx(float(coefficient), abs=1e-9)
        assert (result.lo or 0) < truth * column.std() / columns[3].std() < (result.hi or 0)
    r2 = 1 - np.square(X[:, 3] - X[:, :3] @ beta).mean()
    assert found["r2_all"].value == pytest.approx(float(r2)) and found["r2_all"].n == 2400
    alone = np.corrcoef(columns[0], columns[3])[0, 1] ** 2
    assert found["r2_fan_in"].value == pytest.approx(float(alone))


def test_wires_and_weights_are_told_apart() -> None:
    """Only wires matter, then only weights: what the other adds is its null."""
    wires = regress_wiring({str(w): planted(w, seed=w, fan_in=1.0) for w in (1000, 16_000)}, n_resamples=50)
    assert (wires["wires_beyond_weights"].lo or 0) > 0.3 and (wires["weights_beyond_wires"].value or 0) < 0.01
    weights = regress_wiring({str(w): planted(w, seed=w, of_weights=1.0) for w in (1000, 16_000)}, n_resamples=50)
    assert (weights["weights_beyond_wires"].lo or 0) > 0.5 and (weights["wires_beyond_weights"].value or 0) < 0.01


def test_confounded_wires_say_nothing_beyond_weights() -> None:
    """Denser models have longer fans: alone these explain much, beyond the weights nothing."""
    models = {str(w): planted(w, seed=w, of_weights=1.0, scale=scale) for w, scale in ((1000, 1), (4000, 4), (16_000, 16))}
    found = regress_wiring(models, n_resamples=50)
    assert (found["r2_fan_in"].value or 0) > 0.3 and (found["wires_beyond_weights"].value or 1) < 0.01
    assert abs(found["coefficient_fan_in"].value or 1) < 0.05


def test_what_weights_explain_is_of_as_many_numbers_as_there_are_recipes() -> None:
    """Means that differ at random between six recipes of two seeds: thousands of neurons make weights certain of themselves, six
    recipes do not, and dealing the weights to the recipes at random explains as much. With real weights the null is far below."""
    rng = np.random.default_rng(3)
    random, real, recipes = {}, {}, {}
    for number in range(6):
        shift = float(rng.standard_normal())
        for seed in range(2):
            name, model = f"r{number}-seed{seed}", planted(1000 * 2**number, seed=10 * number + seed, noise=0.3)
            recipes[name] = f"r{number}"
            random[name] = replace(model, outcomes={key: values + shift for key, values in model.outcomes.items()})
            real[name] = replace(model, outcomes={key: values + number for key, values in model.outcomes.items()})
    neurons, over = regress_wiring(random, n_resamples=200), regress_wiring(random, recipes=recipes, n_resamples=200)
    assert over["r2_weights"].value == neurons["r2_weights"].value and (neurons["r2_weights"].null or 1) < 0.01
    assert (neurons["coefficient_weights"].lo or 0) * (neurons["coefficient_weights"].hi or 0) > 0
    assert (over["coefficient_weights"].lo or 0) < 0 < (over["coefficient_weights"].hi or 0)
    assert abs((over["r2_weights"].value or 0) - (over["r2_weights"].null or 0)) < 0.25
    true = regress_wiring(real, recipes=recipes, n_resamples=200)
    assert (true["coefficient_weights"].lo or 0) > 0.9 and (true["r2_weights"].lo or 0) > 3 * (true["r2_weights"].null or 1)
    assert true["r2_wires"].null == pytest.approx(2 / 9600, rel=0.3)


def test_recipes_by_brute_force() -> None:
    """The interval over recipes is that of tables put together from drawn recipes; of few recipes there is none."""
    models = {f"{w}-{seed}": planted(w, seed=w + seed, fan_in=w / 4000) for w in (1000, 2000, 4000, 8000, 9000) for seed in (0, 1)}
    recipes = {name: name.partition("-")[0] for name in models}
    found = regress_wiring(models, recipes=recipes, n_resamples=400)["r2_fan_in"]
    rng, drawn = np.random.default_rng(7), []
    for _ in range(400):
        picked = [of for w in rng.choice(sorted(set(recipes.values())), 5) for name, of in models.items() if recipes[name] == w]
        x, y = (np.concatenate(parts) for parts in zip(*((np.log2(m.fan_in), m.outcomes["concepts"]) for m in picked), strict=True))
        drawn.append(np.corrcoef(x, y)[0, 1] ** 2)
    np.testing.assert_allclose([found.lo, found.hi], np.percentile(drawn, [2.5, 97.5]), atol=0.03)
    few = regress_wiring({name: models[name] for name in list(models)[:8]}, recipes=recipes, n_resamples=20)
    assert few["r2_weights"].value is not None and few["r2_weights"].lo is None
    with pytest.raises(ConfigError, match="'1000-0' has none"):
        regress_wiring(models, recipes={})
    table = wiring_table(models, recipes=recipes, n_resamples=20)
    assert list(table) == [*dict.fromkeys(recipes.values()), "pooled"] and table["pooled"]["r2_all"].n == 8000


def test_seeds_of_one_recipe_have_one_number_of_weights() -> None:
    """One weight more by chance is no predictor; nor is a recipe without any neuron that has the outcome a recipe."""
    one, other = planted(100_000, seed=0), planted(100_001, seed=1)
    shifted = replace(other, outcomes={name: values + 0.15 for name, values in other.outcomes.items()})
    table = wiring_table({"a": one, "a-seed1": shifted}, recipes={"a": "a", "a-seed1": "a"}, n_resamples=20)
    assert not table["a"]["r2_weights"].measurable and table["a"]["r2_wires"].measurable
    nothing = NeuronWiring(one.fan_in, one.fan_out, 7, {name: np.full(800, np.nan) for name in one.outcomes})
    models = {str(w): planted(1000 * w, seed=w) for w in range(1, 5)} | {"none": nothing}
    found = regress_wiring(models, recipes={name: name for name in models}, n_resamples=20)
    assert found["r2_all"].n == 3200 and found["r2_all"].lo is None
    rest = {name: model for name, model in models.items() if name != "none"}
    assert found["r2_weights"].value == regress_wiring(rest, n_resamples=20)["r2_weights"].value


def test_resamples_in_which_a_predictor_is_constant_make_no_interval() -> None:
    """One neuron of another fan-in is missing from a third of them; with twenty the interval is a share of variance."""
    one = planted(1000, seed=0)
    for n_other, measurable in ((1, False), (20, True)):
        fan_in = np.where(np.arange(800) < n_other, 255, 256)
        found = regress_wiring({"m": NeuronWiring(fan_in, one.fan_out, 1000, one.outcomes)}, n_resamples=200)
        assert (found["r2_wires"].lo is not None) == measurable and found["r2_fan_out"].lo is not None
        if measurable:
            assert 0 <= (found["r2_wires"].lo or 0) <= (found["r2_wires"].value or 0)


def test_a_permuted_outcome_explains_nothing() -> None:
    """R² near the shuffled null of three predictors; no coefficient away from zero."""
    models = {}
    for w in (1000, 4000):
        model = planted(w, seed=w, fan_in=1.0)
        mixed = np.random.default_rng(9).permutation(model.outcomes["concepts"])
        models[str(w)] = NeuronWiring(model.fan_in, model.fan_out, w, dict.fromkeys(model.outcomes, mixed))
    found = regress_wiring(models, n_resamples=200)
    assert found["r2_all"].null == pytest.approx(3 / 1600, rel=0.25) and (found["r2_all"].value or 1) < 0.01
    assert (found["coefficient_fan_in"].lo or 1) < 0 < (found["coefficient_fan_in"].hi or -1)


def test_what_cannot_be_told_is_not_measurable() -> None:
    """One model has one number of weights; equal fans; fans that go together; an outcome that does not vary."""
    one = planted(1000, seed=0, fan_in=1.0)
    alone = regress_wiring({"one": one}, n_resamples=20)
    assert not alone["r2_weights"].measurable and alone["r2_wires"].measurable and alone["r2_all"].value == alone["r2_wires"].value
    assert "weights is the same" in str(alone["wires_beyond_weights"].reason)
    equal = regress_wiring({"equal": NeuronWiring(np.full(800, 8), one.fan_out, 1000, one.outcomes)}, n_resamples=20)
    assert not equal["coefficient_fan_in"].measurable and equal["r2_fan_out"].measurable and not equal["r2_wires"].measurable
    tied = regress_wiring({"tied": NeuronWiring(one.fan_in, 2 * one.fan_in, 1000, one.outcomes)}, n_resamples=20)
    assert "follows from fan_in" in str(tied["coefficient_fan_out"].reason)
    flat = regress_wiring({"flat": NeuronWiring(one.fan_in, one.fan_out, 1, {"concepts": np.ones(800)})}, "concepts")
    assert all(not result.measurable for result in flat.values()) and len(flat) == 10
    nothing = wiring_table({"none": NeuronWiring(one.fan_in, one.fan_out, 1, {"concepts": np.full(800, np.nan)})}, "concepts")
    assert not nothing["pooled"]["mean_concepts"].measurable


def test_names_that_are_none() -> None:
    """Outcome and models; every arm is a recipe."""
    one = planted(1000, seed=0)
    with pytest.raises(UnknownNameError, match="concept_s"):
        regress_wiring({"one": one}, "concept_s")
    with pytest.raises(ConfigError, match="no model"):
        regress_wiring({})
    assert set(ARMS.values()) <= set(available_recipes())


def test_the_shipped_sparse_model() -> None:
    """Fans add up to the matrices' nonzeros; concepts are those of the concept rows; the table has a row a model."""
    pair = ModelPair.open()
    train, test = label_pair(pair, n_tokens=4096, max_files=12).split()
    bridge = pair.open_model("sparse")
    wiring = measure_wiring(bridge, train, test, layers=[0])
    counted = {matrix.name: matrix.nonzeros for matrix in sparsity_report(bridge).matrices}
    assert wiring.fan_in.sum() == counted["blocks.0.mlp.in"] and wiring.fan_out.sum() == counted["blocks.0.mlp.out"]
    assert wiring.weights == sum(counted.values())
    scores = measure_concepts(bridge, IdentityDictionary(bridge.cfg.d_mlp, "blocks.0.mlp.hook_post"), train, test, magnitude=True)
    concepts = unit_concepts(scores, train, test)["concepts"]
    expected = scores.results["concepts_per_unit"].value
    assert (np.isnan(concepts).all() and expected is None) or float(np.nanmean(concepts)) == pytest.approx(expected)
    table = wiring_table({"sparse": wiring}, n_resamples=20)
    assert list(table) == ["sparse", "pooled"] and table["sparse"]["r2_wires"].measurable
    assert (wiring.outcomes["effective_concepts"][np.isfinite(wiring.outcomes["effective_concepts"])] >= 1 - 1e-9).all()
