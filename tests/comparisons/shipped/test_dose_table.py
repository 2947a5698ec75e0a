"""The table of doses: planted responses, what is interpolated, and the cells of shipped models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_lens.comparisons.instrument.kept_rows import read_kept
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.dose_table import (
    KEPT,
    dose_page,
    kept_models,
    main,
    merged,
    prevention_row,
    responses,
)
from sparse_lens.comparisons.shipped.measuring_family import BITS, CONTROLS, PSI, SHUFFLED, control_of
from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.results import exact, not_measurable, to_plain
from sparse_lens.training import get_recipe


def planted(seeds: int = 1) -> dict[str, dict[str, Any]]:
    """Five densities; at the target's loss a measure is ten times the density, and another cannot be had at one of them.

    Features per neuron rise with the logarithm of the density, by 0.5 (a little less with each seed), shuffled weights' do not.
    """
    models = {}
    for seed in range(seeds):
        for recipe, density, loss in [
            *((f"d{density}", density, 3.5) for density in (0.025, 0.05, 0.1, 0.2)),
            ("wide", 1.0, 3.3),
            ("narrow", 1.0, 3.7),
        ]:
            values = {"up": exact(10 * density), "some": not_measurable("gate") if density == 0.1 else exact(1 / density)}
            if density == 1:
                values["up"] = exact(20.0 if recipe == "wide" else 0.0)
            values |= {
                PSI: exact(1 + (0.5 - 0.01 * seed) * np.log10(density)),
                SHUFFLED: exact(1 + 0.001 * np.sin(9 * density + seed)),
            }
            name = recipe if seed == 0 else f"{recipe}-seed{seed}"
            models[name] = {
                "recipe": recipe,
                "seed": seed,
                "density": density,
                "loss": exact(loss + 0.1 * seed, n=8),
                "values": values,
            }
    return models


def test_measures_are_read_at_one_loss() -> None:
    """Each training seed at its own target's."""
    found = responses(planted(2), "d0.025")
    for seed in (0, 1):
        up, some = found["up"][seed], found["some"][seed]
        assert up.points[-1][1].value == pytest.approx(10) and up.results["spearman"].value == pytest.approx(1)
        assert some.results["spearman"].value == pytest.approx(-1) and some.results["doses"].value == 4
    with pytest.raises(UnknownNameError, match="d0"):
        responses(planted(), "d0.3")


def test_the_page_names_the_tasks_of_fracture() -> None:
    """And says so where models have been measured on other tasks than others."""
    models = planted()
    assert "Fracture" not in dose_page(models, "d0.025")["doses"]
    told = {name: model | {"fracture_tasks": ["with_as", "else_elif"]} for name, model in models.items()}
    assert dose_page(told, "d0.025")["doses"].endswith("on `with_as`, `else_elif`: what all models do.")
    told["wide"]["fracture_tasks"] = ["with_as"]
    assert "not of the same tasks" in dose_page(told, "d0.025")["doses"]


def test_the_page_has_every_recipe_and_measure() -> None:
    page = dose_page(planted(2), "d0.025")
    assert page["dose models"].count("\n") == 7 and "| `narrow` | 100 % | 3.700, 3.800 |" in page["dose models"]
    first, up, some = page["doses"].splitlines()[2:5]
    assert first.startswith(f"| {PSI} |")  # in the order of the measures, and any other behind them
    assert up.startswith("| up | 0.25 | 0.5 | 1 | 2 | 10 | ") and up.endswith("| 1, 1 | — | no control |") and "| — |" in some
    [psi] = [row for row in page["doses"].splitlines() if row.startswith(f"| {PSI} |")]
    assert psi.endswith(" | — |") and "weights shuffled -0.0004" in psi and f"| {SHUFFLED} |" not in page["doses"]
    [psi] = [row for row in dose_page(planted(3), "d0.025")["doses"].splitlines() if row.startswith(f"| {PSI} |")]
    assert psi.endswith(" | yes |")
    alike = planted(3)
    for model in alike.values():
        model["values"][SHUFFLED] = model["values"][PSI]
    assert dose_page(alike, "d0.025")["doses"].count("| no |") == 1


def test_models_measured_apart_are_put_together() -> None:
    """Values of both runs by model, fracture's tasks from the run that has them; the page has what all models have."""
    kept, new = planted(), planted()
    for model in kept.values():
        model |= {"fracture_tasks": ["with_as"]}
    for model in new.values():
        model |= {"fracture_tasks": [], "values": {"features": exact(1.0)}}
    both = merged(kept, new)
    assert set(both["wide"]["values"]) == {"up", "some", PSI, SHUFFLED, "features"}
    assert both["wide"]["fracture_tasks"] == ["with_as"]
    retrained = {"wide": new["wide"] | {"loss": exact(3.31)}}
    assert merged(kept, retrained)["wide"] == retrained["wide"] and merged(kept, retrained)["narrow"] == kept["narrow"]
    del both["wide"]["values"]["up"]
    assert set(responses(both, "d0.025")) == {"some", PSI, SHUFFLED, "features"}


def test_the_claim_is_decided_by_slopes_over_seeds(tmp_path: Path) -> None:
    row = prevention_row(planted(3), "d0.025")
    assert row.verdict == "supports" and row.judgement.difference.value == pytest.approx(0.49)
    assert row.sparse.value == pytest.approx(1 + 0.49 * np.log10(0.025)) and row.dense.value == pytest.approx(1)
    path = tmp_path / KEPT
    path.write_text(json.dumps(to_plain({"claims": [row.to_plain()]})))
    assert read_kept(path)[0].judgement == row.judgement
    few = prevention_row(planted(1), "d0.025")
    assert few.verdict == "not measurable" and "1 training seed" in few.judgement.reasons[0]
    alike = planted(3)
    for model in alike.values():
        model["values"][SHUFFLED] = model["values"][PSI]
    assert prevention_row(alike, "d0.025").verdict == "indistinguishable"


def test_the_recipes_are_one_family() -> None:
    """Nonzeros in the matrices of blocks are within a factor of ten, and AbsTopK is everywhere."""
    names = ["2.5-256", "5-96", "5-160", "10-64", "10-96", "20-64", "20-128", "100-32", "100-64"]
    recipes = [get_recipe(f"dose-{name}") for name in names]
    assert len({(recipe.steps, recipe.batch_size, recipe.context, recipe.model["afrac"]) for recipe in recipes}) == 1
    shares = [recipe.sparsity.density if recipe.sparsity is not None else 1.0 for recipe in recipes]
    weights = [share * int(recipe.model["d_model"] or 0) ** 2 for share, recipe in zip(shares, recipes, strict=True)]
    assert sorted(set(shares)) == [0.025, 0.05, 0.1, 0.2, 1.0] and max(weights) / min(weights) == pytest.approx(10)


def test_what_was_measured_before_is_read_back(tmp_path: Path) -> None:
    scope = {"smoke": False, "tasks": ["if_equals"]}
    assert kept_models(tmp_path, scope) == {}
    models = planted(2)
    (tmp_path / KEPT).write_text(json.dumps(to_plain({"models": models, "scope": scope, "claims": []})))
    kept = kept_models(tmp_path, scope)
    assert kept == models and dose_page(kept, "d0.025") == dose_page(models, "d0.025")
    for other in ({"smoke": True}, {"tasks": ["with_as"]}):
        with pytest.raises(ConfigError, match=r"a run with smoke False, tasks \['if_equals'\]; name another folder"):
            kept_models(tmp_path, scope | other)
    (tmp_path / KEPT).write_text("[]")
    with pytest.raises(DataError, match="--out"):
        kept_models(tmp_path, scope)


def test_folders_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """Two of one name; a training seed without a model of the target's recipe."""
    for place, recipe in (("a/one", "wide"), ("b/one", "wide"), ("a/two", "narrow")):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(json.dumps({"config": {"name": recipe, "seed": 0}}))
    options = ["--target", "wide", "--out", str(tmp_path / "kept")]
    with pytest.raises(ConfigError, match="one name in the tables"):
        main([str(tmp_path / "a/one"), str(tmp_path / "b/one"), *options])
    with pytest.raises(UnknownNameError, match="recipe of training seed 0"):
        main([str(tmp_path / "a/two"), *options])
    assert not (tmp_path / "kept").exists()


def test_the_docs_hold_the_kept_tables() -> None:
    """Tables and the claim's row are what the kept models give."""
    docs = Path(__file__).parents[3] / "docs"
    kept = json.loads((docs / "doses" / KEPT).read_text())
    models, page = kept_models(docs / "doses", kept["scope"]), (docs / "pages" / "claims-details.md").read_text()
    for marker, table in dose_page(models, kept["target"]).items():
        assert f"<!-- table: {marker} -->\n{table}\n<!-- end -->" in page
    assert to_plain(prevention_row(models, kept["target"]).to_plain()) == kept["claims"][0] and not kept["scope"]["smoke"]


@pytest.mark.slow
def test_shipped_models_are_measured(tmp_path: Path) -> None:
    """In the smallest form, and again from what was kept: one density is no order, every number has a place."""
    folders = [str(ModelPair.open().model_folder("dense_matched"))]
    options = ["--target", "python-dense-matched", "--out", str(tmp_path / "kept"), "--cells", str(tmp_path / "cells"), "--smoke"]
    options += ["--tasks", "single_double_quote", "--only", "predictability", "--workers", "1"]
    page = tmp_path / "page.md"
    page.write_text("<!-- table: dose models -->\n<!-- end -->\n<!-- table: doses -->\n<!-- end -->\n")
    main([*folders, *options, "--page", str(page)])
    kept = json.loads((tmp_path / "kept" / KEPT).read_text())["models"]
    told = "held-out R² of a neuron from the others"
    controls = {control_of(told, control) for control in CONTROLS[told]}
    assert set(kept["python-dense-matched"]["values"]) == {told, BITS} | controls and len(controls) == 2
    assert np.isfinite(kept["python-dense-matched"]["values"][told]["value"])
    assert "not measurable: 1 densit" in page.read_text()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    main([*folders, *options])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
    assert json.loads((tmp_path / "kept" / KEPT).read_text())["models"] == kept
