"""The files and the page of a full comparison, from a small record with hostile names in it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sparse_lens.report.full.contents import faithful_points, grids, mean_points, pooled_points, row_cell
from sparse_lens.report.full.figures import figures
from sparse_lens.report.full.files import FULL_FILES, numbers, write_full
from sparse_lens.report.full.tables import headline_table, latex, latex_text, markdown, tables
from sparse_lens.report.full.view import full_view
from sparse_lens.report.numbers import DASH, MINUS, RANGE, TIMES
from sparse_lens.results import Result, exact, not_measurable, to_plain

HOSTILE = "<script>alert(1)</script> & 50% $x_1$"


def curve(column: str, seed: int, factor: float) -> dict[str, Any]:
    points = [
        {
            "target": target,
            "results": {
                "kl_heldout": Result(target * 1.1, null=4.4),
                "loss_heldout": exact(target * 0.5),
                "kl_zero": Result(target * 1.1, null=2.2),
                "total_bits": exact(factor * 1000 / target),
                "nodes": exact(factor * 20 / target),
                "structural_edges": not_measurable("not counted"),
            },
        }
        for target in (2.0, 0.5)
    ]
    return {"column": column, "seed": seed, "points": points}


def record() -> dict[str, Any]:
    """Two columns, one of them a control, one task with a hostile name, two seeds."""
    rows = {
        "superposition": {"sparse_neurons": {"layer 0": {"psi": exact(0.5)}, "layer 1": {"psi": exact(0.7)}}},
        "concepts": {"sparse_neurons": {"layer 0": {"coverage_f1": Result(0.4, 0.3, 0.5, null=0.2)}}},
        "activation": {"sparse_neurons": {"layer 0": {"l0": exact(64)}}},
        "probes": {HOSTILE: {"layer 0": {"probe_accuracy_k1": exact(0.6), "probe_accuracy_k2": exact(0.65)}}},
    }
    losses = {
        "loss_dense": exact(2.7),
        "loss_sparse": exact(3.4),
        f"loss_dense_to_sparse_at_{HOSTILE}": Result(3.6, 3.5, 3.7, null=5.0),
    }
    effect = {"effect": Result(-1.5, -2.0, -1.0, null=0.01), "flipped": Result(0.25, null=0.0)}
    steering = {HOSTILE: {"a": {"channel": 7, "results": effect}, "b": {"channel": 8, "results": {"effect": exact(0.5)}}}}
    return to_plain(
        {
            "couplings": {"boundaries": [HOSTILE, "b"], "losses": losses, "steering": steering},
            "columns": {"sparse_neurons": {"control": False}, HOSTILE: {"control": True}},
            "curves": {HOSTILE: {"sparse_neurons": [curve("a", 0, 1.0), curve("a", 1, 4.0)], HOSTILE: [curve("b", 0, 3.0)]}},
            "rows": rows,
            "maps": {
                "concepts": {
                    "sparse_neurons": {
                        "layer 0": {"rows": [HOSTILE, "in_string"], "columns": ["3"], "values": [[0.9], [0.2]]},
                        "layer 1": {"rows": ["one"], "columns": ["3", "4"], "values": [[0.9]]},
                    },
                    HOSTILE: {"layer 0": {"rows": ["one"], "columns": ["3"], "values": [[0.9]]}},
                }
            },
            "headline": {HOSTILE: {"bits_ratio_at_0.5": Result(3.0, 1.5, 6.0, null=1.0)}},
            "undistinguished": [HOSTILE],
            "caveats": ["one"],
        }
    )


def test_numbers_are_means_over_layers_and_geometric_means_over_seeds() -> None:
    full = record()
    psi = row_cell(full, "superposition", "sparse_neurons", "psi").reading
    assert psi.value == pytest.approx(0.6) and (psi.lo, psi.hi) == (0.5, 0.7)
    assert row_cell(full, "concepts", "sparse_neurons", "coverage_f1").null == 0.2
    (tight, loose) = mean_points(full, HOSTILE, "sparse_neurons", "kl_heldout", "total_bits")
    assert tight == pytest.approx((0.55, 4000, 2000, 8000, 2)) and loose[1] == pytest.approx(1000)


def test_pooled_curves_are_over_the_tasks_that_all_columns_have() -> None:
    """Geometric means by hand; a task that a column lacks, and a target that a task lacks, do not count."""
    full = record()
    full["columns"]["other"] = {"control": False}
    more = {"sparse_neurons": [curve("a", 0, 9.0)], "other": [curve("b", 0, 1.0)], HOSTILE: []}
    more["other"][0]["points"].pop()
    full["curves"] |= to_plain({"second": more, "third": {"sparse_neurons": [curve("a", 0, 100.0)]}})
    full["curves"][HOSTILE]["other"] = full["curves"][HOSTILE]["sparse_neurons"]
    tasks, found = pooled_points(full, "kl_heldout", "total_bits")
    assert tasks == [HOSTILE, "second"]
    tight, loose = found["sparse_neurons"]
    assert tight == pytest.approx((0.55, (4000 * 18000) ** 0.5)) and loose == pytest.approx((2.2, (1000 * 4500) ** 0.5))
    assert found["other"] == [pytest.approx((2.2, (1000 * 500) ** 0.5))] and found[HOSTILE] == []
    assert pooled_points(full, "kl_heldout", "structural_edges") == ([], {"sparse_neurons": [], HOSTILE: [], "other": []})


def test_every_figure_is_well_formed_and_escaped() -> None:
    found = figures(record())
    assert {"coverage", "psi", "probes"} < set(found) and len(found) == 10
    for _, svg in found.values():
        ElementTree.fromstring(svg)
        assert "<script>" not in svg


def test_all_files_are_written(tmp_path: Path) -> None:
    write_full(record(), tmp_path)
    assert set(FULL_FILES) == {path.name for path in tmp_path.iterdir()}
    assert all("/" not in path.stem and "<" not in path.stem for path in (tmp_path / "figures").iterdir())
    rows = list(csv.DictReader((tmp_path / "full.csv").open()))
    assert {row["section"] for row in rows} == {"headline", "rows", "curves", "couplings"}
    assert {row["metric"] for row in rows if row["section"] == "couplings"} >= {"loss_dense", "effect", "flipped"}
    import pandas as pd

    assert len(pd.read_parquet(tmp_path / "full.parquet")) == len(rows)


def test_a_number_names_its_dictionary() -> None:
    """By dictionary seed and layer; neurons have none, nor has what is over several seeds."""
    full = record()
    full["columns"]["sae"] = {"dictionaries": [["a0", "a1"], ["b0", None]]}
    places = {place: {"x": exact(1.0).to_json()} for place in ("layer 1", "layer 0, seed 1", "layer 1, seed 1", "layer 7", "model")}
    full["rows"] = {"concepts": {"sae": places, "sparse_neurons": {"layer 0": {"x": exact(1.0).to_json()}}}}
    found = [row["dictionary"] for row in numbers(full) if row["section"] == "rows"]
    assert found == ["", "b0", "", "", "", ""]
    full["columns"]["sae"]["dictionaries"].pop()
    assert next(row["dictionary"] for row in numbers(full) if row["section"] == "rows") == "a1"


def test_tables_are_safe_in_each_format() -> None:
    full = record()
    assert latex_text("50% of $x_1$ & \\a{b}\n") == r"50\% of \$x\_1\$ \& \textbackslash{}a\{b\} "
    assert "<script>" not in markdown(full).replace("\\<", "") or "&lt;script" in markdown(full)
    assert r"\begin{tabular}" in latex(full) and "50%" not in latex(full).replace(r"50\%", "")
    assert headline_table(full).row_count == 1


def test_the_page_shows_it_escaped(tmp_path: Path) -> None:
    from sparse_lens.report import write_report

    metrics = {"schema": 1, "tasks": {}, "models": {}, "summary": {}, "verdict": [], "full": record()}
    page = write_report(metrics, tmp_path / "report").read_text(encoding="utf-8")
    assert "The full comparison" in page and "<script>alert" not in page
    write_report(metrics, tmp_path / "report")  # a report takes the place of a report, figures and all
    assert full_view({}) is None


def test_maps_are_drawn_where_they_are_whole() -> None:
    """The control's is not drawn, nor one whose values do not fit its labels; hostile labels are text."""
    full = record()
    drawn = {name: svg for name, (_, svg) in figures(full).items() if name.startswith("map-")}
    assert list(drawn) == ["map-concepts-sparse_neurons-layer-0"]
    assert "<script>" not in drawn["map-concepts-sparse_neurons-layer-0"]
    assert list(grids(full, "correspondence", "sparse_neurons")) == []


def test_faithfulness_by_hand_and_what_survives() -> None:
    """KL 2.2 and 0.55 of 4.4 are faithful by .5 and .875; under zero ablation they are all and a quarter of everything ablated."""
    full = record()
    assert faithful_points(full, HOSTILE, "sparse_neurons") == [pytest.approx((20.0, 0.5)), pytest.approx((80.0, 0.875))]
    table = next(table for table in tables(full) if table.title.startswith("What survives"))
    assert table.rows[0][:3] == [table.rows[1][0], "0", "2"]
    assert table.rows[0][4] == "2.20 (100%)" and table.rows[1][4] == "0.550 (25%)" and table.rows[0][5] == DASH


def test_hybrids_and_steering() -> None:
    """Losses by boundary with what nothing crossing gives; the boundary at which a channel does most."""
    found = {table.title.partition(",")[0].partition(" the dense")[0]: table for table in tables(record())}
    hybrids, steering = found["Hybrids"], found["Steering"]
    assert "dense alone 2.7" in hybrids.title and hybrids.rows[0][1].startswith("3.6")
    assert "null 5" in hybrids.rows[0][1] and hybrids.rows[1][1:] == [DASH, DASH]
    (row,) = steering.rows
    assert row[1] == "a, channel 7" and "1.5" in row[2] and row[3] == DASH
    without = {name: value for name, value in record().items() if name != "couplings"}
    assert not any(table.title.startswith(("Hybrids", "Steering")) for table in tables(without))


def test_a_mean_over_places_says_what_it_leaves_out() -> None:
    """One layer of two has no number: the mean is of the other, and the cell says so."""
    full = record()
    full["rows"]["superposition"]["sparse_neurons"]["layer 1"]["psi"] = not_measurable("dead").to_json()
    cell = row_cell(full, "superposition", "sparse_neurons", "psi")
    assert (cell.reading.value, cell.places, cell.missing) == (0.5, 2, 1)
    table = next(table for table in tables(full) if table.title.startswith("Superposition"))
    assert table.rows[0][1] == "0.500, 1 of 2 without"


def test_ratios_stand_with_their_tasks_and_their_losses() -> None:
    full = record()
    full["headline"][HOSTILE]["bits_ratio_at_0.5"] |= {"n": 5}
    full["matching"] = to_plain(
        {HOSTILE: {"how": "too far apart", "reason": "r", "difference": exact(-0.64), "difference_spliced": exact(-0.3)}}
    )
    (row,) = next(tables(full)).rows
    assert row[1] == f"{MINUS}0.640 (not matched), spliced {MINUS}0.300" and row[2] == f"3.0{TIMES} [1.5{RANGE}6.0{TIMES}] (n=5)"
    full["unmatched"], full["left_out"] = [HOSTILE], ["two"]
    page = full_view(full)
    assert page is not None and [title for title, _ in page["said"]][:2] == [
        "Not distinguishable in this run",
        "Not at matched loss",
    ]
    assert ("Left out", ["two"]) in page["said"]


def test_the_frontier_is_a_table_and_two_figures(tmp_path: Path) -> None:
    """Sorted by width and active latents; one line a width; every number is in the CSV, too."""
    full = record()

    def rows(l0: float, added: float) -> dict[str, Any]:
        return {"activation": {"layer 0": {"l0": exact(l0)}}, "reconstruction": {"layer 0": {"loss_added_spliced": exact(added)}}}

    sizes = {(896, 8): 0.5, (448, 16): 0.4, (448, 8): 0.6}
    full["frontier"] = to_plain(
        {f"topk {w} k{k}": {"d_sae": w, "k": k, "rows": rows(float(k), added)} for (w, k), added in sizes.items()}
    )
    table = next(table for table in tables(full) if "widths" in table.title)
    assert [row[:2] for row in table.rows] == [["448", "8"], ["448", "16"], ["896", "8"]]
    drawn = figures(full)
    assert "448 latents" in drawn["widths-loss"][1] and "896 latents" in drawn["widths-loss"][1]
    write_full(full, tmp_path)
    kept = [row for row in csv.DictReader((tmp_path / "full.csv").open()) if row["section"] == "frontier"]
    assert len(kept) == 6 and {row["name"] for row in kept} == {"activation", "reconstruction"}


def test_edges_have_a_table_by_kind() -> None:
    full = record()
    point = full["curves"][HOSTILE]["sparse_neurons"][0]["points"][0]
    point["edges"] = to_plain({"structural": {"mlp_in": exact(12), "q": exact(3)}, "searched": {"mlp_in": exact(4), "q": exact(0)}})
    table = next(table for table in tables(full) if table.title.startswith("Edges by kind"))
    assert [row[1:] for row in table.rows] == [["2.0", "structural", "12", "3"], ["2.0", "searched", "4", "0"]]


def test_further_training_seeds_are_among_the_numbers(tmp_path: Path) -> None:
    full = record()
    full["further_training_seeds"] = {"1": {"task": {"sparse_neurons": to_plain([curve("a", 0, 1.0)])}}}
    write_full(full, tmp_path)
    places = {row["place"] for row in csv.DictReader((tmp_path / "full.csv").open()) if row["name"] == "task"}
    search = "training seed 1, seed 0"
    assert places == {search, f"{search}, target 2.0", f"{search}, target 0.5"}
