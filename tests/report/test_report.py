"""The report's folder and pages: complete, offline, safe from hostile strings, all of it or nothing."""

# ruff: noqa: RUF001 - the signs of the printed form are meant

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.errors import DataError, OutputError
from sparse_lens.report import check_report_folder, pages, write_patching_page, write_report
from sparse_lens.results import Result, not_measurable

from .elements import Elements

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}\n\u2028\ud800"
FILES = ["index.html", "metrics.csv", "metrics.json", "table.md"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_report_is_complete(metrics: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(metrics, tmp_path / "report")
    assert page == tmp_path / "report" / "index.html" and names(page.parent) == FILES and names(tmp_path) == ["report"]
    assert json.loads((page.parent / "metrics.json").read_text()) == metrics
    text = Elements(page.read_text(encoding="utf-8")).text
    for expected in (*metrics["tasks"], *metrics["verdict"], "6.8×", "5.2–8.9×", "22,908", "python-sparse", "mean", "torch"):
        assert expected in text


def test_results_may_be_objects(metrics: dict[str, Any], tmp_path: Path) -> None:
    metrics["summary"] = {
        "edge_ratio_geomean": Result(3.25, 2.0, 5.0, 1.0, 5),
        "node_ratio_geomean": not_measurable("one task only"),
    }
    page = write_report(metrics, tmp_path / "report")
    assert json.loads((page.parent / "metrics.json").read_text())["summary"]["edge_ratio_geomean"]["value"] == 3.25
    assert "one task only" in page.read_text()


def test_the_csv_has_a_row_for_every_number(metrics: dict[str, Any], tmp_path: Path) -> None:
    folder = write_report(metrics, tmp_path / "report").parent
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["section"], row["name"], row["column"], row["metric"]): row for row in rows}
    edges = metrics["tasks"]["if_equals"]["columns"]["dense_neurons"]["edges"]["value"]
    assert float(found["tasks", "if_equals", "dense_neurons", "edges"]["value"]) == edges
    assert found["tasks", "if_equals", "dense_sae", "edges_by_kind.v"]["value"] == ""
    assert found["tasks", "if_equals", "dense_sae", "edges_by_kind.v"]["reason"]
    assert ("models", "sparse", "", "nonzeros") in found and ("summary", "", "", "edge_ratio_geomean") in found
    assert len(rows) == len(found) == 9 + 4 + 5 * (1 + 4 * 17)


def test_the_page_loads_nothing(metrics: dict[str, Any], tmp_path: Path) -> None:
    for page in (write_report(metrics, tmp_path / "report"), write_patching_page(metrics["patching"], tmp_path / "patch.html")):
        text = page.read_text()
        assert set(re.findall(r"https?://[^\"'\s<]*", text)) <= {"http://www.w3.org/2000/svg"}
        elements = Elements(text).found
        assert not {"link", "iframe", "img", "object", "embed", "base", "form"} & {tag for tag, _ in elements}
        assert all(attrs == {"type": "application/json", "id": "metrics"} for tag, attrs in elements if tag == "script")
        assert all(str(attrs["href"]).startswith("#") for _, attrs in elements if "href" in attrs)
        assert not any("src" in attrs or "style" in attrs for _, attrs in elements)
        assert "url(" not in text and "@import" not in text and "default-src 'none'" in text


def test_every_figure_is_well_formed_and_ids_are_unique(metrics: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(metrics, tmp_path / "report").read_text()
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) > 20
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("aria-hidden") == "true" or root.get("role") == "img"
    ids = [attrs["id"] for _, attrs in Elements(page).found if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {str(attrs["href"])[1:] for _, attrs in Elements(page).found if "href" in attrs}
    assert links <= set(ids)


def hostile(metrics: dict[str, Any]) -> dict[str, Any]:
    """`metrics` with a hostile string in every place a name or text can stand."""
    task = metrics["tasks"].pop("if_equals")
    task["answers"] = [HOSTILE, "</script>"]
    task["columns"][HOSTILE] = task["columns"]["dense_sae"] | {"edges": not_measurable(HOSTILE).to_json()}
    task["columns"]["sparse_neurons"]["edges_by_kind"][HOSTILE] = task["columns"]["sparse_neurons"]["edges"]
    metrics["tasks"][HOSTILE] = task
    metrics["models"]["sparse"]["name"] = metrics["models"][HOSTILE] = {"name": HOSTILE, HOSTILE: task["target_loss"]}
    metrics["summary"][HOSTILE] = not_measurable(HOSTILE).to_json()
    model = metrics["patching"]["models"]["sparse"]
    model["tokens"][0], model["metric"] = HOSTILE, HOSTILE
    model["rows"].append({"component": HOSTILE, "position": HOSTILE, "token": "</script>", "effect": 5.0})
    metrics["patching"]["models"][HOSTILE] = model
    metrics["patching"]["task"] = metrics["command"] = HOSTILE
    metrics["versions"][HOSTILE] = metrics["effort"][HOSTILE] = [HOSTILE]
    metrics["verdict"].append(HOSTILE)
    return metrics


def test_hostile_strings_stay_text(metrics: dict[str, Any], tmp_path: Path) -> None:
    metrics = hostile(metrics)
    for page in (write_report(metrics, tmp_path / "report"), write_patching_page(metrics["patching"], tmp_path / "patch.html")):
        text = page.read_text(encoding="utf-8")
        elements = Elements(text)
        assert text.lower().count("<script") == text.lower().count("</script") == 1
        assert not any(tag == "img" or "onerror" in attrs for tag, attrs in elements.found)
        assert "{{ 7*7 }}" in elements.text and "&amp;lt;script" not in text
        data = re.search(r'id="metrics">(.*?)</script>', text, flags=re.DOTALL)
        assert data and json.loads(data[1])
        for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
            ElementTree.fromstring(figure)
    assert "<script" not in (tmp_path / "report" / "table.md").read_text()


def test_what_is_not_measurable_says_so(metrics: dict[str, Any], tmp_path: Path) -> None:
    metrics["tasks"]["if_equals"]["measurable"] = False
    metrics["tasks"]["if_equals"]["reason"] = "the dense model has 71 % accuracy"
    metrics["tasks"]["bracket_counting"] |= {"measurable": False, "failed_gate": ["dense_neurons"]}
    metrics["tasks"]["enumerate_range"]["columns"]["dense_neurons"]["nodes"] = not_measurable("no circuit reached 0.15").to_json()
    del metrics["tasks"]["enumerate_range"]["columns"]["dense_neurons"]["necessity"]
    metrics["summary"]["node_ratio_geomean"] = not_measurable("too few tasks").to_json()
    text = Elements(write_report(metrics, tmp_path / "report").read_text()).text
    for reason in (
        "not measurable: the dense model has 71 % accuracy",
        "not measurable: the accuracy gate is failed by Dense neurons",
        "Not measurable: no circuit reached 0.15",
        "Not measurable: not recorded in this run",
        "Not measurable: target not reached, best loss 0.431",
        "too few tasks",
    ):
        assert reason in text


@pytest.mark.parametrize("left", [("models",), ("tasks",), ("summary",), ("patching", "verdict", "effort", "versions", "command")])
def test_missing_parts_are_no_error(metrics: dict[str, Any], tmp_path: Path, left: tuple[str, ...]) -> None:
    write_report({key: value for key, value in metrics.items() if key not in left}, tmp_path / "report")
    write_report({"schema": 1}, tmp_path / "report")


def test_metrics_of_another_kind_are_refused(metrics: dict[str, Any], tmp_path: Path) -> None:
    broken = [
        {**metrics, "schema": 2},
        {**metrics, "tasks": [1]},
        {**metrics, "effort": {"x": float("nan")}},
        {**metrics, "verdict": "no"},
    ]
    for content in broken:
        with pytest.raises(DataError):
            write_report(content, tmp_path / "report")
    assert names(tmp_path) == []


def test_a_report_is_replaced_and_a_foreign_folder_is_not(metrics: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    check_report_folder(folder)
    write_report(metrics, folder)
    write_report({**metrics, "command": "second"}, folder)
    assert "second" in (folder / "index.html").read_text()
    (folder / "thesis.tex").write_text("years of work")
    for attempt in (lambda: write_report(metrics, folder), lambda: check_report_folder(folder)):
        with pytest.raises(OutputError, match=r"thesis\.tex.*choose a new or empty folder"):
            attempt()
    assert names(folder) == sorted([*FILES, "thesis.tex"])


def test_a_page_of_that_name_that_is_not_ours_is_left_alone(metrics: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>My site</h1>")
    (tmp_path / "file").write_text("x")
    for name in ("site", "file"):
        with pytest.raises(OutputError):
            write_report(metrics, tmp_path / name)
    assert (tmp_path / "site" / "index.html").read_text() == "<h1>My site</h1>"


def test_an_exception_leaves_nothing_behind(metrics: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_report(metrics, tmp_path / "report").parent
    before = {name: (folder / name).read_bytes() for name in FILES}
    write_text, calls = Path.write_text, []

    def fail_third(path: Path, *args: Any, **kwargs: Any) -> int:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", fail_third)
    for target in (folder, tmp_path / "new"):
        calls.clear()
        with pytest.raises(OutputError, match="No space left"):
            write_report({**metrics, "command": "other"}, target)
    monkeypatch.undo()
    monkeypatch.setattr(pages, "comparison_view", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(metrics, tmp_path / "new")
    assert names(tmp_path) == ["report"] and before == {name: (folder / name).read_bytes() for name in FILES}
