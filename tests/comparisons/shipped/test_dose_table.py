"""The table of doses: planted responses, what is interpolated, and the cells of shipped models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.dose_table import BITS, KEPT, MEASURES, density_of, dose_jobs, dose_page, main, responses
from sparse_lens.errors import UnknownNameError
from sparse_lens.results import exact, not_measurable
from sparse_lens.training import get_recipe


def planted() -> dict[str, dict[str, Any]]:
    """Five densities; at the target's loss a measure is ten times the density, and another cannot be had at one of them."""
    models = {}
    for density in (0.025, 0.05, 0.1, 0.2):
        values = {"up": exact(10 * density), "some": not_measurable("gate") if density == 0.1 else exact(1 / density)}
        models[f"d{density}"] = {"density": density, "loss": exact(3.5, n=8), "values": values}
    for name, loss, up in (("wide", 3.3, 20.0), ("narrow", 3.7, 5.0)):
        models[name] = {"density": 1.0, "loss": exact(loss, n=8), "values": {"up": exact(up), "some": exact(1.0)}}
    return models


def test_measures_are_read_at_one_loss() -> None:
    found = responses(planted(), "d0.025")
    assert found["up"].points[-1][1].value == pytest.approx(10) and found["up"].results["spearman"].value == pytest.approx(1)
    assert found["some"].results["spearman"].value == pytest.approx(-1) and found["some"].results["doses"].value == 4
    with pytest.raises(UnknownNameError, match="d0"):
        responses(planted(), "d0.3")


def test_the_page_has_every_model_and_measure() -> None:
    page = dose_page(planted(), "d0.025")
    assert page["dose models"].count("\n") == 7 and "| `narrow` | 100 % | 3.700 |" in page["dose models"]
    up, some = page["doses"].splitlines()[2:]
    assert up.startswith("| up | 0.25 | 0.5 | 1 | 2 | 10 | 1 [") and "| — |" in some


def test_the_recipes_are_one_family() -> None:
    """Nonzeros in the matrices of blocks are within a factor of five, and AbsTopK is everywhere."""
    names = ["2.5-256", "5-160", "5-224", "10-96", "10-160", "20-64", "20-128", "100-32", "100-64"]
    recipes = [get_recipe(f"dose-{name}") for name in names]
    assert len({(recipe.steps, recipe.batch_size, recipe.context, recipe.model["afrac"]) for recipe in recipes}) == 1
    shares = [recipe.sparsity.density if recipe.sparsity is not None else 1.0 for recipe in recipes]
    weights = [share * int(recipe.model["d_model"] or 0) ** 2 for share, recipe in zip(shares, recipes, strict=True)]
    assert sorted(set(shares)) == [0.025, 0.05, 0.1, 0.2, 1.0] and max(weights) / min(weights) == 5


def test_models_are_measured_two_by_two() -> None:
    """Of three models each has every measure once, the last beside itself, and a curve for each task."""
    pair = ModelPair.open()
    folders = {f"m{number}": pair.model_folder(role) for number, role in enumerate(("sparse", "dense_matched", "sparse"))}
    jobs = dose_jobs(pair, folders, ["if_equals", "with_as"])
    assert all(len(of) == len(MEASURES) + 2 for of in jobs.values())
    assert len({job.fingerprint for of in jobs.values() for job in of}) == 2 * len(MEASURES) + 6
    assert density_of(folders["m0"]) == pytest.approx(0.05) and density_of(folders["m1"]) == 1.0


@pytest.mark.slow
def test_shipped_models_are_measured(tmp_path: Path) -> None:
    """In the smallest form, and again from what was kept: two densities are no order, every number has a place."""
    pair = ModelPair.open()
    folders = [str(pair.model_folder(role)) for role in ("sparse", "dense_matched")]
    options = ["--target", "python-sparse", "--out", str(tmp_path / "kept"), "--cells", str(tmp_path / "cells"), "--smoke"]
    options += ["--tasks", "single_double_quote", "--only", "predictability", "--workers", "1"]
    page = tmp_path / "page.md"
    page.write_text("<!-- table: dose models -->\n<!-- end -->\n<!-- table: doses -->\n<!-- end -->\n")
    main([*folders, *options, "--page", str(page)])
    kept = json.loads((tmp_path / "kept" / KEPT).read_text())["models"]
    told = "held-out R² of a neuron from the others"
    assert set(kept["python-sparse"]["values"]) == {told, BITS}
    assert np.isfinite([kept[name]["values"][told]["value"] for name in kept]).all()
    assert "not measurable: 2 densities" in page.read_text()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    main([*folders, *options])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
