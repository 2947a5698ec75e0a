"""The side questions: tables of planted numbers, which models are read, and the cells of shipped models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparse_lens.comparisons.fracture.hidden_until_shift import LOSSES
from sparse_lens.comparisons.mechanism.neuron_wiring import OUTCOMES, NeuronWiring
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.side_cells import QUICK, SideModel, SideSize, measure_side, side_jobs, side_model
from sparse_lens.comparisons.shipped.side_questions import (
    KEPT,
    OUTCOME,
    bias_page,
    main,
    named_arms,
    named_models,
    shift_page,
    shifts_of,
    wires_of,
    wires_page,
)
from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.results import Result, exact, from_plain, not_measurable, to_plain

PAIR = ModelPair.open()


def planted_wiring(weights: int, *, dense: bool = False, n: int = 300) -> NeuronWiring:
    """Every doubling of a neuron's fan-in gives half a concept; nothing else does, but for noise."""
    rng = np.random.default_rng(weights)
    fan_in, fan_out = (np.full(n, 64) if dense else rng.integers(2, 64, n) for _ in range(2))
    outcome = 1 + 0.5 * np.log2(fan_in) + 0.1 * rng.standard_normal(n)
    return NeuronWiring(fan_in, fan_out, weights, dict.fromkeys(OUTCOMES, outcome))


def planted() -> dict[str, SideModel]:
    """Three sparse models of unlike weights and three dense ones (one weight of the last is zero), each a recipe of its own; the
    more fracture, the more accuracy is lost to noise, and the less the loss rises by it. The last has no fracture."""
    models = {}
    for number, density in enumerate((0.05, 0.1, 0.2, 1.0, 1.0, 0.999_999)):
        shift = {"fracture": exact(1 + number / 10), "accuracy": exact(1.0), "task_loss": exact([3, 1, 4, 2, 5, 6][number])}
        shift |= dict.fromkeys(LOSSES, exact(0.0))
        shift |= {"accuracy_lost_to_noise": exact(number), "loss_rise_by_noise": exact(-number)}
        if number == 5:
            shift["fracture"] = not_measurable("no neuron fires")
        models[f"m{number}"] = SideModel(density, planted_wiring(1000 * 2**number, dense=number > 2), shift)
    return models


def test_wires_are_told_for_each_model_and_for_the_sparse_ones_together() -> None:
    """Fan-in explains nearly everything, weights nothing; dense models, with or without a chance zero, are not pooled."""
    table = wires_of(planted())
    assert list(table) == ["m0", "m1", "m2", "m3", "m4", "m5", "pooled"]
    pooled = table["pooled"]
    assert pooled["r2_wires"].n == 900 and (pooled["r2_wires"].value or 0) > 0.9 and (pooled["r2_weights"].value or 0) < 0.05
    assert (pooled["coefficient_fan_in"].value or 0) > 0.9 and not table["m5"]["r2_all"].measurable
    assert pooled["coefficient_fan_in"].lo is None and pooled[f"mean_{OUTCOME}"].seeds == 3  # of three recipes no interval
    page = wires_page(table).splitlines()
    assert page[0].startswith("| recipe | seeds | neurons | effective concepts | fan-in | fan-out | weights |") and len(page) == 11
    assert page[2].startswith("| `m0` | 1 | 300 | ") and page[2].count("; null ") == 4 and page[2].count("—") == 2
    assert page[7].endswith(" | — | — | — | — | — | — |") and page[8].startswith("| weight-sparse models, pooled | 3 | 900 | ")
    assert page[10].startswith("Not measurable: ") and "(`m3`, `m4`, `m5`)" in page[10]
    assert all(row.count("|") == 11 for row in page[:9])


def test_training_seeds_are_one_recipe() -> None:
    """Their neurons together in one row; one point of the correlation, at their means; models stay apart in the file."""
    models = planted()
    seeds = {"a": models["m0"], "a-seed1": models["m1"], "a-seed22": models["m2"], "a-seeds": models["m3"], "b-seed1": models["m4"]}
    table = wires_of(seeds)
    assert list(table) == ["a", "a-seeds", "b", "pooled"] and table["a"]["r2_wires"].n == 900 == table["pooled"]["r2_wires"].n
    assert table["a"][f"mean_{OUTCOME}"].seeds == 3 and table["a"]["coefficient_fan_in"].lo is not None
    page = shift_page(seeds, shifts_of(seeds)).splitlines()
    assert page[2] == "| `a` | 3 | 1.1 [1, 1.2] | 1 [1, 1] | 2.67 [1, 4] | 1 [0, 2] | 0 [0, 0] | -1 [-2, 0] | 0 [0, 0] |"
    assert page[3].startswith("| `a-seeds` | 1 | 1.3 | ") and "3 models" in page[-1]
    assert "no neuron fires" in str(shift_page({"a": models["m0"], "a-seed1": models["m5"]}, {}))


def test_without_a_sparse_model_nothing_is_pooled() -> None:
    dense = {name: model for name, model in planted().items() if name in ("m3", "m5")}
    assert list(wires_of(dense)) == ["m3", "m5"]


def test_a_column_without_a_number_is_left_out() -> None:
    """Models of equally many weights: no column of what weights explain, and one reason whatever the number of neurons."""
    models = planted()
    for name, n in (("m0", 200), ("m1", 300)):
        models[name] = SideModel(0.1, planted_wiring(1000, n=n), {})
    page = wires_page(wires_of({name: models[name] for name in ("m0", "m1")}))
    assert "R² of wires" in page and "weights" not in page.splitlines()[0] and "—" not in page and "Not measurable" not in page
    dense = {f"d{n}": SideModel(1.0, planted_wiring(1000, dense=True, n=n), {}) for n in (200, 300)}
    assert "fan_in is the same for all neurons (`d200`, `d300`)" in wires_page(wires_of({"m0": models["m0"]} | dense))


def test_correlations_are_over_recipes_that_have_all_numbers() -> None:
    """Five of six: what grows with fracture, what falls with it, and what does not vary."""
    models = planted()
    found = shifts_of(models)
    assert list(found) == list(LOSSES)
    noise, rise = found["accuracy_lost_to_noise"]["fracture_with_lost"], found["loss_rise_by_noise"]["fracture_with_lost"]
    assert noise.value == pytest.approx(1) and rise.value == pytest.approx(-1) and noise.n == 5
    assert found["accuracy_lost_to_noise"]["fracture_with_loss"].value == pytest.approx(0.5)
    assert not found["loss_rise_by_shift"]["fracture_with_lost"].measurable
    page = shift_page(models, found).splitlines()
    assert page[2] == "| `m0` | 1 | 1 | 1 | 3 | 0 | 0 | 0 | 0 |" and page[7] == "| `m5` | 1 | — | 1 | 6 | 5 | 0 | -5 | 0 |"
    assert page[9] == "Not measurable: no neuron fires (`m5`)."
    assert page[13].startswith("| accuracy lost to noise | 5 | 1 [1, 1] | 0.5 [")
    few = {name: models[name] for name in ("m0", "m1", "m5")}
    assert "2 models" in str(shifts_of(few)["loss_rise_by_noise"]["fracture_with_lost"].reason)


def test_the_page_of_arms() -> None:
    """Differences with the spread of seeds beside them, and why there is none."""
    counts = {"nonzeros": exact(185_134.5), "tokens": exact(12_288_000)}
    table = {
        "fixed": counts | {"loss": Result(3.0, 2.9, 3.1, seeds=2), "loss_above_baseline": Result(0.2, 0.1, 0.3, 0.05, seeds=2)},
        "wide": counts | {"loss": exact(2.5), "loss_above_baseline": not_measurable("not equal")},
    }
    assert bias_page(table, "narrow").splitlines() == [
        "| arm | seeds | nonzeros | tokens | loss | loss above narrow |",
        "|---|---:|---:|---:|---:|---:|",
        "| fixed | 2 | 185,134 | 12,288,000 | 3 [2.9, 3.1] | 0.2 [0.1, 0.3]; null 0.05 |",
        "| wide | 1 | 185,134 | 12,288,000 | 2.5 | — |",
        "",
        "Not measurable: not equal (wide).",
    ]


def test_cells_are_read_back() -> None:
    """None is NaN again, results are results again."""
    wiring = {"density": 0.1, "weights": 7, "fan_in": [1, 2], "fan_out": [3, 4], "labels": "files"}
    outcomes: dict[str, list[float | None]] = {name: [1.5, None] for name in OUTCOMES}
    model = side_model(wiring | {"outcomes": outcomes}, json.loads(json.dumps(to_plain({"fracture": exact(1.2)}))))
    assert model.density == 0.1 and model.wiring.weights == 7 and model.shift == {"fracture": exact(1.2)}
    assert model.wiring.fan_in.tolist() == [1, 2] and model.wiring.fan_out.tolist() == [3, 4]
    np.testing.assert_array_equal(model.wiring.outcomes["concepts"], [1.5, np.nan])


def test_cells_depend_on_their_size() -> None:
    """Two a model, in order; the quick form has cells of its own, as have other tasks."""
    folders = {role: PAIR.model_folder(role) for role in ("sparse", "dense_matched")}
    jobs, quick = (side_jobs(PAIR, folders, size, ["if_equals"]) for size in (SideSize(), QUICK))
    assert [job.name for job in jobs] == [f"{what} of {role}" for what in ("wiring", "shift") for role in folders]
    assert len({job.fingerprint for job in (*jobs, *quick, *side_jobs(PAIR, folders, QUICK, ["with_as"]))}) == 10
    assert jobs[2].arguments["tasks"] == ["if_equals"]


def test_a_task_is_done_by_all_or_nothing_is_measured(tmp_path: Path) -> None:
    """`with_open` is done by no model."""
    folders = {role: PAIR.model_folder(role) for role in ("sparse", "dense_matched")}
    with pytest.raises(ConfigError, match="none of with_open is done by all of sparse, dense_matched"):
        measure_side(PAIR, folders, replace(QUICK, tasks=("with_open",)), cache=tmp_path, workers=1)


def test_models_by_name(tmp_path: Path) -> None:
    """Names, folders, and the default pair's; neither; two of one name."""
    assert {"python-sparse", "python-sparse-seed2", "python-dense", "arm-magnitude"} < set(named_models([]))
    assert not any(name.startswith("binding") for name in named_models([]))
    folder = tmp_path / "python-sparse"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert named_models([str(folder), "python-dense"]) == {"python-sparse": folder, "python-dense": PAIR.model_folder("dense")}
    with pytest.raises(ConfigError, match="one name"):
        named_models([str(folder), "python-sparse"])
    with pytest.raises(UnknownNameError, match="did you mean 'python-sparse'"):
        named_models(["python-spars"])


def test_arms_by_name() -> None:
    """One folder a seed; other forms, a baseline that is none, and one without the other."""
    arms = ["a=python-sparse", "b=python-dense", "a=python-sparse-seed1"]
    assert [len(folders) for folders in named_arms(arms, "b").values()] == [2, 1] and named_arms([], None) == {}
    with pytest.raises(UnknownNameError, match="arm 'c'"):
        named_arms(arms, "c")
    with pytest.raises(ConfigError, match="twice"):
        named_arms(["a=python-sparse", "a=python-sparse"], "a")
    for bad, baseline in ((["python-sparse"], "a"), (["=python-sparse"], "a"), (arms, None), ([], "a")):
        with pytest.raises(ConfigError, match=r"NAME=FOLDER|go together"):
            named_arms(bad, baseline)


def test_the_page_holds_the_kept_tables() -> None:
    """Those of claims-details.md are what the run kept gives: the wires as they are, the correlations from its models."""
    docs = Path(__file__).parents[3] / "docs"
    page, kept = (docs / "pages" / "claims-details.md").read_text(), json.loads((docs / "mechanism" / KEPT).read_text())
    for facts in kept["models"].values():
        del facts["weights"]
    none = NeuronWiring(*np.zeros((2, 0), dtype=np.int64), 0, {name: np.zeros(0) for name in OUTCOMES})
    models = {name: SideModel(facts.pop("density"), none, from_plain(facts)) for name, facts in kept["models"].items()}
    assert not kept["scope"]["quick"] and to_plain(shifts_of(models)) == kept["hidden until shift"]
    tables = {"wires": wires_page(from_plain(kept["wires"])), "hidden until shift": shift_page(models, shifts_of(models))}
    if (asked := from_plain(kept.get("structural bias", {}))) and asked["arms"]:
        tables["structural bias"] = bias_page(asked["arms"], asked["baseline"])
    for name, table in tables.items():
        assert f"<!-- table: {name} -->\n{table}\n<!-- end -->" in page


def test_arms_alone_leave_the_other_answers_as_they_are(tmp_path: Path) -> None:
    arms = ["--bias-arm", "sparse=python-sparse", "--bias-arm", "narrow=python-dense-matched", "--baseline", "narrow"]
    (tmp_path / KEPT).write_text(json.dumps({"scope": {"quick": False}, "wires": {"a": 1}}))
    main(["--out", str(tmp_path), "--quick", "--bias-only", *arms])
    kept = json.loads((tmp_path / KEPT).read_text())
    bias = kept["structural bias"]
    assert kept["wires"] == {"a": 1} and bias["quick"] and bias["arms"]["sparse"]["loss"]["measurable"]
    with pytest.raises(ConfigError, match="--bias-only needs arms"):
        main(["--out", str(tmp_path), "--bias-only"])
    (tmp_path / KEPT).write_text("[]")
    with pytest.raises(DataError, match="--out"):
        main(["--out", str(tmp_path), "--quick", "--bias-only", *arms])
    assert (tmp_path / KEPT).read_text() == "[]"


@pytest.mark.slow
def test_shipped_models_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the smallest form, with arms, printed, kept and on the page; again from its cells, without arms."""
    names = ["python-dense-matched", "python-sparse"]
    options = [*names, "--quick", "--out", str(tmp_path / "kept"), "--cells", str(tmp_path / "cells"), "--workers", "1"]
    arms = ["--bias-arm", "sparse=python-sparse", "--bias-arm", "narrow=python-dense-matched", "--baseline", "narrow"]
    page, markers = tmp_path / "page.md", ("wires", "hidden until shift", "structural bias")
    page.write_text("".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in markers))
    main([*options, *arms, "--page", str(page)])
    text, printed = page.read_text(), capsys.readouterr().out
    kept = json.loads((tmp_path / "kept" / KEPT).read_text())
    assert set(kept) == {"scope", "models", *markers} and kept["scope"]["quick"] and len(kept["scope"]["labels"]) == 1
    assert kept["scope"]["tasks"] == ["if_equals", "else_elif"]
    assert list(kept["wires"]) == [*names, "pooled"] and kept["wires"]["pooled"]["r2_wires"]["value"] is not None
    sparse = kept["models"]["python-sparse"]
    assert sparse["weights"] == 185_134 and 0 < sparse["fracture"]["value"] < 2 and sparse["task_loss"]["value"] > 0
    assert kept["hidden until shift"]["loss_rise_by_noise"]["fracture_with_lost"]["n"] == 2
    assert kept["structural bias"]["arms"]["sparse"]["loss_above_baseline"]["measurable"]
    for table in text.split("<!-- end -->\n")[:3]:
        assert table.partition("-->\n")[2].strip() in printed
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    main(options)
    assert len(before) == 6 and {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
    again = json.loads((tmp_path / "kept" / KEPT).read_text())
    assert again == kept
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(DataError, match="wires"):
        main([*options, "--page", str(tmp_path / "empty.md")])
