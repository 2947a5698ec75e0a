"""The table of circuits: records are resumed, tables say what is in them, the page holds what the kept records hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons.circuit_sizes import common_target
from sparse_lens.comparisons.shipped.circuit_records import MODELS, Plan, fill_records, fingerprint, read_record, record_path
from sparse_lens.comparisons.shipped.circuit_table import (
    QUICK_TASK,
    SAID,
    circuit_tables,
    main,
    progress_line,
    ratio_table,
    size_table,
    verdict_table,
)
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.tasks import available_tasks

DOCS = Path(__file__).parents[3] / "docs"
KEPT, PAGE = DOCS / "circuits", DOCS / "pages" / "circuit-table.md"


def seed(nodes: int, *, reached: bool = True, fitted: bool = True) -> dict[str, Any]:
    settled = {"nodes": {"settled": True}, "edges": {"settled": False}}
    nonsense = {"nodes": 900, "reached": fitted, "loss": 0.15}
    facts = {"nodes": nodes, "reached": reached, "edges_between_nodes": 10 * nodes, "edges": 2 * nodes, "edges_reached": reached}
    scores = {"sufficiency": {"value": 0.9, "lo": 0.8}, "necessity": {"value": nodes / 100, "lo": 0.1}}
    said = ["small", "rephrased prompts: 0.10, it does not hold there", "a random circuit of equal size: -0.00", "not tested"]
    return facts | scores | {"nonsense": nonsense, "convergence": settled, "verdict": said}


def record(seeds: dict[str, Any], accuracy: float = 1.0) -> dict[str, Any]:
    return {"accuracy": {"value": accuracy}, "target": 0.15, "seeds": seeds}


def test_rows_say_what_the_records_hold() -> None:
    """Means and ranges over seeds that reached the target; what was not measured or not fitted is said."""
    records = {
        ("a", "m"): record({"0": seed(20), "1": seed(40), "2": seed(999, reached=False)}),
        ("a", "n"): record({"0": seed(7, fitted=False)}),
        ("b", "m"): record({}, accuracy=0.5),
    }
    rows = size_table(records).splitlines()[2:]
    assert rows == [
        "| a | `m` | 100.0 % | 0.15 | 2 of 3 | 30 (20 to 40) | 300 (200 to 400) | 60 (40 to 80) | 900 (900 to 900) | 3 of 6 |",
        "| a | `n` | 100.0 % | 0.15 | 1 of 1 | 7 | 70 | 14 | not fitted | 1 of 2 |",
        "| b | `m` | 50.0 % | 0.15 |  | not measurable |  |  |  |  |",
    ]
    assert all(row.count("|") == 11 for row in rows)
    assert progress_line(records, 4) == "3 of 4 task-model cells are done; 4 circuits."


def test_verdicts_have_one_row_a_task_and_model() -> None:
    """Means and ranges of the scores; of what a card names in some seeds only, how many; a cell without circuits has no row."""
    first = seed(20)
    first["verdict"].insert(0, "worse than its model on 75% of the pairs")
    records = {
        ("a", "m"): record({"0": first, "1": seed(40)}),
        ("a", "n"): record({"0": seed(7, fitted=False)}),
        ("b", "m"): record({}),
    }
    header, _, *rows = verdict_table(records).splitlines()
    assert header.startswith("| task | model | sufficient, necessary | sufficiency | necessity | nonsense, times | rephrased |")
    many = "0.90 | 0.30 (0.20 to 0.40) | 33.8 (22.5 to 45.0) | 0.10 | 0.00 | — | — | — | — | — | 75; 1 of 2"
    one = "0.90 | 0.07 | not fitted | 0.10 | 0.00 | — | — | — | — | — | —"
    assert rows == [f"| a | `m` | 2, 0 of 2 | {many} |", f"| a | `n` | 1, 0 of 1 | {one} |"]


def test_ratios_are_geometric_means_of_seed_means() -> None:
    """4 and 1 have the mean 2; a task that one model does not do, or does with everything ablated, has no ratio."""
    sizes = {("a", "m"): 10, ("a", "n"): 40, ("b", "m"): 10, ("b", "n"): 10, ("c", "m"): 10, ("d", "m"): 10, ("d", "n"): 0}
    records = {place: record({"0": seed(nodes), "1": seed(999, reached=False)}) for place, nodes in sizes.items()}
    records["d", "n"] = record({"0": seed(0)})
    records["e", "n"] = record({"0": seed(5), "1": seed(7)})
    rows = ratio_table(records, ("m", "n", "o")).splitlines()
    assert rows[2].startswith("| `n` | 2 | 2.0 [0.00030, 1.3e+04] | 2.0 [") and rows[3] == "| `o` | 0 | — | — | — |"
    assert "| d | `n` | 100.0 % | 0.15 | 1 of 1 | target met with everything ablated |  |  | 900" in size_table(records)
    assert "| d | `n` | target met with everything ablated |" in verdict_table(records)
    assert progress_line(records, 8) == "All 8 task-model cells are done; 15 circuits, 1 of them without a node."


def test_the_page_holds_what_the_records_hold(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_tables(page, circuit_tables(KEPT))
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_no_sentence_of_a_kept_verdict_is_lost() -> None:
    """Each is a column, or is told by the sizes, the scores, the nonsense circuit, or the page's own text."""
    elsewhere = r"^(small|of middle size|large) \(|^nonsense labels |^not tested \(quick\): other seeds, random weights, backups$"
    for path in KEPT.glob("*/*.json"):
        for found in json.loads(path.read_text(encoding="utf-8"))["seeds"].values():
            for line in found.get("verdict", []) if found["nodes"] else []:
                assert re.search(elsewhere, line) or any(re.search(pattern, line) for pattern in SAID.values()), line


def kept_tasks() -> list[str]:
    return [task for task in available_tasks() if any(record_path(KEPT, model, task).is_file() for model in MODELS)]


@pytest.mark.slow
@pytest.mark.parametrize("task", kept_tasks())
def test_records_are_of_todays_models_prompts_and_settings(task: str, plan: Plan) -> None:
    settings = plan.settings(task)
    target = common_target(list(settings.values()))
    for model, setting in settings.items():
        if (kept := read_record(record_path(KEPT, model, task))) is not None:
            assert kept["fingerprint"] == fingerprint(setting, target, plan), model


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan()


@pytest.mark.slow
def test_the_quick_form_finds_a_circuit_and_goes_on(tmp_path: Path) -> None:
    """One task and one seed in the smallest model; asked again, nothing is searched anew, unless it is of other inputs."""
    arguments = ["--quick", "--only", "python-dense-matched", "--out", str(tmp_path)]
    main(arguments)
    path = record_path(tmp_path, "python-dense-matched", QUICK_TASK)
    first = json.loads(path.read_text())
    found = first["seeds"]["0"]
    assert found["reached"] and found["edges_reached"] and 0 < found["edges"] <= found["edges_between_nodes"]
    assert found["nonsense"]["nodes"] > found["nodes"] and found["verdict"]
    path.write_text(json.dumps(first | {"seeds": {"0": found | {"nodes": -1}}}))
    main(arguments)
    assert json.loads(path.read_text())["seeds"]["0"]["nodes"] == -1
    path.write_text(json.dumps(first | {"fingerprint": "another", "seeds": {"0": found | {"nodes": -1}}}))
    fill_records(tmp_path, Plan(tasks=[QUICK_TASK], seeds=[], max_doublings=1), ["python-dense-matched"])
    assert json.loads(path.read_text())["seeds"] == {}
