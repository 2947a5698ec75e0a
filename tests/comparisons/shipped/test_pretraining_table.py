"""The table of pretraining: means over trainings by hand, arms that differ in what they read alone, and one run to its end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sparse_lens.comparisons.compositionality.pretraining import COMPARED
from sparse_lens.comparisons.compositionality.training import ARMS, SUBROUTINES, quotes_and_brackets, train_arm
from sparse_lens.comparisons.mixed_data import MixedData
from sparse_lens.comparisons.shipped.pretraining_table import KEPT, TABLE, kept_effects, main, over_trainings, page
from sparse_lens.data import DataConfig, SourceFolder, TokenData, generate_program, prepare_data
from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.results import Result, exact, from_plain, not_measurable, write_json
from sparse_lens.training.recipes import get_recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated programs in the shipped pair's tokens."""
    source = tmp_path_factory.mktemp("source")
    for number in range(60):
        (source / f"module_{number}.py").write_text(generate_program(random.Random(number)))
    config = DataConfig(
        (SourceFolder(str(source)),), 0.1, valid_share=0.3, valid_generated_tokens=500, tokenizer_directory="python"
    )
    prepare_data(config, source.parent / "data")
    return source.parent / "data"


def effects(differences: tuple[float, ...]) -> list[dict[str, Result]]:
    """The alone arm has 0.1 of everything, the pretrained one the difference more."""
    found = []
    for difference in differences:
        sides = {f"alone_{name}": exact(0.1, n=64) for name in COMPARED}
        sides |= {f"pretrained_{name}": exact(0.1 + difference, n=64) for name in COMPARED}
        found.append(sides | {f"difference_{name}": exact(difference) for name in COMPARED})
    return found


def test_recipes_of_an_earlier_run_stay(tmp_path: Path) -> None:
    """If it was of the same scope; a file of another scope or of something else is refused, not overwritten."""
    scope = {"quick": False, "steps": None, "python_first": None, "seeds": [0, 1]}
    assert kept_effects(tmp_path, scope) == {}
    write_json({"scope": scope, "effects": {"tiny": effects((0.2, 0.3))}}, tmp_path / KEPT)
    assert kept_effects(tmp_path, scope) == {"tiny": effects((0.2, 0.3))}
    with pytest.raises(ConfigError, match=r"a run with quick False, .* name another folder with --out"):
        kept_effects(tmp_path, scope | {"steps": 5})
    (tmp_path / KEPT).write_text("[]")
    with pytest.raises(DataError, match="no file of this command"):
        kept_effects(tmp_path, scope)


def test_trainings_are_the_samples() -> None:
    """Of an arm the mean and the extremes, of the difference Student's interval; a missing training leaves no number."""
    found = over_trainings(effects((0.2, 0.3, 0.7)))
    own, difference = found["pretrained_d_abl"], found["difference_d_abl"]
    assert (own.value, own.lo, own.hi, own.seeds) == pytest.approx((0.5, 0.3, 0.8, 3))
    half = stats.t.ppf(0.975, 2) * np.std([0.2, 0.3, 0.7], ddof=1) / 3**0.5
    assert (difference.value, difference.lo, difference.hi) == pytest.approx((0.4, 0.4 - half, 0.4 + half))
    some = effects((0.2, 0.3))
    some[1] |= dict.fromkeys(("pretrained_d_abl", "difference_d_abl"), not_measurable("below the gate"))
    assert over_trainings(some)["difference_d_abl"].reason == "below the gate"
    table = page({"tiny": some})
    assert (
        "| tiny | `d_sub` | 0.35 [0.3, 0.4] | 0.1 [0.1, 0.1] |" in table
        and "| tiny | no number, pretrained: below the gate |" in table
    )


def test_arms_differ_in_what_they_read_first(corpus: Path, tmp_path: Path) -> None:
    """Python until the given step, then programs, which are all that the other arm reads."""
    data = TokenData(corpus)
    batches = {}
    for arm, first in zip(ARMS, (2, 0), strict=True):
        mixed = MixedData(data, quotes_and_brackets, 1.0, first)
        options = {"context": 32, "batch_size": 4, "seed": 0, "start_step": 0, "n_steps": 4, "state": None}
        batches[arm] = [batch for batch, _ in mixed.resumable_batches(**options)]
    same = [bool((one == other).all()) for one, other in zip(*batches.values(), strict=True)]
    assert same == [False, False, True, True]
    recipe = get_recipe("smoke").model_copy(update={"steps": 4})
    with pytest.raises(UnknownNameError, match="pretrained"):
        train_arm("pretraind", recipe, data, tmp_path / "a", python_first=2)
    with pytest.raises(ConfigError, match="some of the 4 steps"):
        train_arm("alone", recipe, data, tmp_path / "a", python_first=4)
    assert SUBROUTINES == ("quote", "bracket")


@pytest.mark.slow
def test_arms_are_trained_measured_and_taken_up_again(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the smallest form, with a page; asked again, nothing is trained or measured anew."""
    the_page = tmp_path / "page.md"
    the_page.write_text(f"# Page\n\n<!-- table: {TABLE} -->\nold\n<!-- end -->\n")
    arguments = [str(tmp_path / "models"), "--data", str(corpus), "--out", str(tmp_path / "out"), "--page", str(the_page)]
    arguments += ["--recipe", "smoke", "--seeds", "1", "--steps", "40", "--quick", "--workers", "1"]
    arguments += ["--cells", str(tmp_path / "cells")]
    main(arguments)
    kept = json.loads((tmp_path / "out" / KEPT).read_text())
    (effect,) = kept["effects"]["smoke"]
    assert {f"{arm}_quote_model_accuracy" for arm in ARMS} <= set(effect)
    table = the_page.read_text()
    assert "old" not in table and "| smoke | `d_abl` |" in table
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("model.safetensors")}
    capsys.readouterr()
    main(arguments)
    assert len(written) == 2 and all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert "| smoke | `d_abl` |" in capsys.readouterr().out


def test_the_page_shows_the_kept_numbers() -> None:
    docs = Path(__file__).parents[3] / "docs"
    kept = json.loads((docs / "pretraining" / KEPT).read_text(encoding="utf-8"))
    table = page(from_plain(kept["effects"]))
    assert f"<!-- table: {TABLE} -->\n{table}\n<!-- end -->" in (docs / "pages" / "claims-details.md").read_text(encoding="utf-8")
