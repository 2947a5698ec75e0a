"""Results: intervals with known answers, gates that never become zeros, JSON and tables of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_lens.errors import OutputError
from sparse_lens.results import (
    Result,
    bootstrap_mean,
    exact,
    geometric_mean,
    not_measurable,
    to_frame,
    to_plain,
    write_json,
)

FIELDS = ["value", "lo", "hi", "null", "n", "seeds", "measurable", "reason"]


def test_a_number_has_its_eight_fields() -> None:
    """The fields of every number in `metrics.json`, in order."""
    assert list(exact(3).to_json()) == FIELDS
    assert exact(3, n=2).to_json() == dict(zip(FIELDS, [3.0, None, None, None, 2, 1, True, None], strict=True))


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_measurable_result_needs_a_number(value: float | None) -> None:
    """A NaN is no measurement: it must say why there is none."""
    with pytest.raises(ValueError, match="finite value"):
        Result(value=value)


def test_what_is_not_measurable_has_a_reason_and_no_value() -> None:
    """It prints as a dash, never as a zero."""
    result = not_measurable("accuracy 0.71 is below 0.90", n=256)
    assert result.value is None and not result.measurable and result.n == 256
    assert str(result) == "—"
    with pytest.raises(ValueError, match="needs a reason"):
        Result(value=None, measurable=False)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (exact(15_234), "15,234"),
        (exact(0.12345), "0.123"),
        (Result(2.5, 2.0, 3.25), "2.5 [2, 3.25]"),
        (exact(0), "0"),
    ],
)
def test_how_a_result_prints(result: Result, text: str) -> None:
    """Counts with thousands separators, measurements with three digits and their interval."""
    assert str(result) == text


def test_the_interval_of_equal_samples_is_a_point() -> None:
    """No spread in, no spread out."""
    result = bootstrap_mean(np.full(10, 0.25), null=0.5, seeds=3)
    assert result == Result(0.25, 0.25, 0.25, 0.5, n=10, seeds=3)


def test_the_interval_is_the_textbook_one() -> None:
    """For many samples the percentile bootstrap agrees with mean ± 1.96 standard errors."""
    samples = np.random.default_rng(1).normal(3.0, 2.0, 400)
    result = bootstrap_mean(samples, n_resamples=4000)
    error = 1.96 * samples.std() / math.sqrt(len(samples))
    assert result.value == pytest.approx(samples.mean())
    assert result.lo == pytest.approx(samples.mean() - error, abs=0.02)
    assert result.hi == pytest.approx(samples.mean() + error, abs=0.02)
    assert bootstrap_mean(samples, n_resamples=4000) == result


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.floats(0.5, 10), st.floats(-10, 10))
def test_the_interval_moves_with_the_samples(values: list[float], scale: float, shift: float) -> None:
    """Scaling and shifting the samples scales and shifts value and interval."""
    plain, moved = bootstrap_mean(np.array(values)), bootstrap_mean(np.array(values) * scale + shift)
    assert plain.lo is not None and plain.value is not None and plain.hi is not None
    assert plain.lo - 1e-9 <= plain.value <= plain.hi + 1e-9
    for before, after in ((plain.lo, moved.lo), (plain.value, moved.value), (plain.hi, moved.hi)):
        assert after == pytest.approx(before * scale + shift, abs=1e-9)


def test_geometric_mean() -> None:
    """4 and 16 have the geometric mean 8; the interval is Student's on the logs; the null of a ratio is 1."""
    result = geometric_mean(np.array([4.0, 16.0]))
    assert result.value == pytest.approx(8)
    half = 12.706 * np.log(2)
    assert (result.lo, result.hi) == (pytest.approx(8 / np.exp(half)), pytest.approx(8 * np.exp(half)))
    assert result.null == 1 and result.n == 2


def test_interval_of_a_geometric_mean_covers_as_often_as_it_says() -> None:
    """Of 2,000 samples of five lognormal ratios around 3, about 95 % have an interval that holds 3."""
    samples = 3 * np.exp(np.random.default_rng(0).normal(size=(2000, 5)))
    intervals = [geometric_mean(sample) for sample in samples]
    held = [result.lo <= 3 <= result.hi for result in intervals if result.lo is not None and result.hi is not None]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_plain_values() -> None:
    """Results, numpy numbers and tuples become what JSON knows, at any depth; the rest stays."""
    content = {"a": exact(1), 2: [np.float32(0.5), (np.int64(3), "x")], "flag": True, "none": None}
    assert to_plain(content) == {"a": exact(1).to_json(), "2": [0.5, [3, "x"]], "flag": True, "none": None}


def test_written_json_reads_back(tmp_path: Path) -> None:
    """What is written is strict JSON: a NaN hidden in it is an error that leaves no file."""
    write_json({"loss": bootstrap_mean(np.array([1.0, 2.0]))}, tmp_path / "metrics.json")
    read = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert read["loss"]["value"] == 1.5
    with pytest.raises(ValueError, match="JSON"):
        write_json({"bad": math.nan}, tmp_path / "bad.json")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_json_into_an_unwritable_place(tmp_path: Path) -> None:
    """A file where the folder should be is an `OutputError`."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_json({}, tmp_path / "out" / "metrics.json")


def test_a_tidy_table() -> None:
    """One row a number; the levels are columns, what lies below them is the metric; flags are no numbers."""
    content = {
        "quotes": {"sparse": {"nodes": exact(12), "edges_by_kind": {"v": exact(3)}, "nonsense_reached": True}},
        "brackets": {"sparse": {"nodes": not_measurable("not learned")}},
    }
    frame = to_frame(content, ("task", "column"))
    assert list(frame.columns) == ["task", "column", "metric", *FIELDS]
    assert frame[["task", "column", "metric"]].to_numpy().tolist() == [
        ["quotes", "sparse", "nodes"],
        ["quotes", "sparse", "edges_by_kind.v"],
        ["brackets", "sparse", "nodes"],
    ]
    assert frame["value"].tolist()[:2] == [12, 3]
    assert frame["value"].isna().tolist() == [False, False, True]
