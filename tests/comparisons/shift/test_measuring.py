"""Slopes and rank correlations along ladders: planted ones, controls, shuffled labels, brute force, the shipped pair."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.compositionality import CHEAP, structural_compositionality
from sparse_lens.comparisons.compositionality.scoring import right_answers
from sparse_lens.comparisons.compositionality.weight_masks import under_masks
from sparse_lens.comparisons.concepts.labelled_tokens import held_out_files
from sparse_lens.comparisons.shift import (
    LADDERS,
    METRICS,
    RepresentationSums,
    ShiftLadder,
    python_ladder,
    renamed_ablation,
    renamed_task,
    representation_sparsity,
    robustness_slopes,
    shift_sparsity,
    shift_table,
    slope_differences,
    sparsity_metrics,
)
from sparse_lens.comparisons.shift.excerpts import Excerpts, draw_excerpts
from sparse_lens.comparisons.shift.level_means import LevelSums
from sparse_lens.comparisons.shift.other_texts import generated_c_texts
from sparse_lens.comparisons.shift.python_ladders import Reader, identifier_ladder, language_ladder, length_ladder, shuffle_ladder
from sparse_lens.comparisons.shift.slopes import SlopeSums
from sparse_lens.comparisons.shift.token_surprise import NgramModel
from sparse_lens.data import load_tokenizer
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks import get_task

WIDTH, VOCAB = 64, 40
SITE = IdentityDictionary(WIDTH, "ln_final.hook_out")


class Planted(nn.Module):
    """A model whose state at a token has norm 1 and as many equal channels as the token `lag` places before says."""

    def __init__(self, lag: int = 1) -> None:
        super().__init__()
        self.point, self.lag = nn.Identity(), lag
        self.hook_dict = {"ln_final.hook_out": self.point}
        self.cfg = SimpleNamespace(n_ctx=None, d_model=WIDTH, n_layers=1)

    def forward(self, tokens: Tensor, return_type: str | None = None) -> Tensor:
        counts = 1 + torch.roll(tokens, self.lag, 1) % WIDTH
        state = (torch.arange(WIDTH) < counts[..., None]).double()
        self.point(state / counts[..., None].sqrt())
        return torch.zeros(*tokens.shape, VOCAB)


def planted_levels(counts: list[int], *, n: int = 30, seed: int = 0) -> dict[str, np.ndarray]:
    """Windows whose last token is random, the same at all levels, with a level's count (give or take one) before it."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, VOCAB, (n, 8))
    levels = {}
    for number, count in enumerate(counts):
        windows = base.copy()
        windows[:, -3] = count + generator.integers(-1, 2, n)
        levels[f"level {number}"] = windows
    return levels


def test_a_planted_ladder_has_rank_correlation_one_in_either_direction() -> None:
    """Fewer channels at each level: sparser, whatever the metric; turned round, minus one. Slopes go the same way."""
    falling = planted_levels([34, 26, 18, 10])
    for levels, sign in ((falling, 1.0), (dict(reversed(falling.items())), -1.0)):
        found = shift_sparsity(Planted(), levels, site=SITE).results
        for name in ("hoyer", "gini", "top_10_percent_energy"):
            result = found[f"{name}_rank_correlation"]
            assert (result.value, result.lo, result.hi) == pytest.approx((sign, sign, sign)), name
            for kind in ("slope", "plain_slope", "partial_correlation"):
                ends = found[f"{name}_{kind}"].lo, found[f"{name}_{kind}"].hi
                assert min(sign * end for end in ends) > 0, (name, kind)
        for name in ("effective_rank_energy_share", "participation_share", "l1"):
            assert found[f"{name}_rank_correlation"].value == pytest.approx(-sign), name


def test_shuffled_labels_have_intervals_that_cover_zero() -> None:
    """With each text's levels in a random order nothing is left; the rank correlation's interval covers 0 in most draws."""
    levels = planted_levels([34, 26, 18, 10])
    covered = []
    for seed in range(20):
        order = np.random.default_rng(seed).permuted(np.tile(np.arange(4), (30, 1)), axis=1)
        stacked = np.stack(list(levels.values()))
        mixed = {name: stacked[order[:, place], np.arange(30)] for place, name in enumerate(levels)}
        found = shift_sparsity(Planted(), mixed, site=SITE, n_boot=200).results["hoyer_rank_correlation"]
        covered.append(found.lo <= 0 <= found.hi)
    assert sum(covered) >= 16


def test_what_the_read_token_explains_is_no_shift() -> None:
    """The state depends on the token that is read alone, and so does the shift: a plain slope, and no controlled one."""
    levels = {f"{count}": np.full((30, 8), count) for count in (34, 26, 18)}
    found = shift_sparsity(Planted(lag=0), levels, site=SITE).results
    assert found["hoyer_plain_slope"].lo > 0
    assert not found["hoyer_slope"].measurable


def test_what_the_norm_explains_is_no_shift() -> None:
    """L1 of a state that is only scaled by the level, and nothing else: the log of the norm takes it."""
    generator = np.random.default_rng(0)
    n = 400
    shift, norm = generator.integers(0, 4, n).astype(float), generator.normal(size=n)
    rows = np.column_stack([shift, norm + shift, 2 * (norm + shift) + 0.01 * generator.normal(size=n)])
    sums = SlopeSums(20, 1, 1, 1)
    sums.add(rows, files=np.arange(n) % 20, ids=np.zeros(n, dtype=int))
    fit = sums.fit(np.ones((1, 20)))
    assert fit.plain[0, 0] == pytest.approx(2.0, abs=0.2)
    assert abs(fit.slopes[0, 0]) < 0.01
    assert abs(fit.partial[0, 0]) < 0.2


def test_slopes_against_plain_least_squares() -> None:
    """A weighted draw of texts is the regression of the rows repeated so often, with a dummy for every token id."""
    generator = np.random.default_rng(3)
    n, n_ids = 200, 6
    files, ids = generator.integers(0, 8, n), generator.integers(0, n_ids, n)
    shift, control = generator.normal(size=n) + ids, generator.normal(size=n)
    y = 0.5 * shift - control + ids**2 + generator.normal(size=n)
    rows = np.column_stack([shift, control, y])
    sums = SlopeSums(8, n_ids, 1, 1)
    for part in np.array_split(generator.permutation(n), 3):
        sums.add(rows[part], files=files[part], ids=ids[part])
    weights = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 0, 1, 1, 0]])
    fit = sums.fit(weights.astype(float))
    for draw, weight in enumerate(weights):
        repeated = np.repeat(np.arange(n), weight[files])
        dummies = np.eye(n_ids)[ids[repeated]]
        design = np.column_stack([shift[repeated], control[repeated], dummies])
        slope = np.linalg.lstsq(design, y[repeated], rcond=None)[0][0]
        others = design[:, 1:]
        rest = [v - others @ np.linalg.lstsq(others, v, rcond=None)[0] for v in (shift[repeated], y[repeated])]
        assert fit.slopes[draw, 0] == pytest.approx(slope)
        assert fit.partial[draw, 0] == pytest.approx(np.corrcoef(*rest)[0, 1])
        assert fit.plain[draw, 0] == pytest.approx(np.polyfit(shift[repeated], y[repeated], 1)[0])


def test_rank_correlations_over_texts_of_other_kinds() -> None:
    """Where each text is at one level: Spearman's over texts, as scipy has it, also where a draw repeats some."""
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    shift, level = (0.0, 2.0, 1.0), np.arange(30) % 3
    values = generator.normal(size=30) + np.array(shift)[level]
    sums = LevelSums(30, 3, 1)
    for number in range(3):
        here = level == number
        sums.add(values[here][:, None], level=number, files=np.flatnonzero(here))
    weights = sums.draw_weights(50, 0)
    assert (weights[:, level == 1].sum(1) == 10).all()
    assert sums.rank_correlations(shift, weights)[0, 0] == pytest.approx(spearmanr(np.array(shift)[level], values)[0])
    assert sums.slopes(shift, weights)[0, 0] == pytest.approx(np.polyfit(np.array(shift)[level], values, 1)[0])
    assert np.allclose(sums.levels(weights)[0, :, 0], [values[level == number].mean() for number in range(3)])


def test_batches_make_no_difference() -> None:
    """Of any size; and `all` reads every position from the start on."""
    levels = planted_levels([34, 26, 18])
    runs = [shift_sparsity(Planted(), levels, site=SITE, pos="all", batch_size=size, n_boot=20) for size in (1, 7, 100)]
    for name, draws in runs[0].draws.items():
        for run in runs[1:]:
            np.testing.assert_allclose(draws, run.draws[name], rtol=1e-7, atol=1e-9, err_msg=name)
    differences = slope_differences(runs[0], runs[0])
    assert all(result.value == 0 for result in differences.values() if result.measurable)


@dataclass(frozen=True)
class Changed(IdentityDictionary):
    """Latents times a number."""

    factor: float = 1.0

    def encode(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_bad_input() -> None:
    """Ladders that are none, latents that are no numbers or silent, wrong names, and comparisons of what does not compare."""
    levels = planted_levels([34, 26])
    with pytest.raises(DataError, match="two levels or more"):
        ShiftLadder.of({"only": levels["level 0"]})
    with pytest.raises(DataError, match="files="):
        ShiftLadder.of({"a": levels["level 0"], "b": levels["level 1"][:5]})
    with pytest.raises(DataError, match="no entry for the level 'level 1'"):
        ShiftLadder.of(levels, shift={"level 0": 1.0})
    with pytest.raises(DataError, match="no shift"):
        ShiftLadder.of(levels, shift={"level 0": 1.0, "level 1": 1.0})
    with pytest.raises(DataError, match="NaN or infinite"):
        shift_sparsity(Planted(), levels, site=Changed(WIDTH, SITE.hook, factor=float("nan")))
    with pytest.raises(DataError, match="silent"):
        shift_sparsity(Planted(), levels, site=Changed(WIDTH, SITE.hook, factor=0.0))
    with pytest.raises(UnknownNameError):
        shift_sparsity(Planted(), levels, site="ln_finale")
    with pytest.raises(UnknownNameError):
        shift_sparsity(Planted(), levels, site=SITE, pos="frist")
    first, second = (shift_sparsity(Planted(), planted_levels([34, 26]), site=SITE, n_boot=5) for _ in range(2))
    with pytest.raises(DataError, match="one ladder"):
        slope_differences(first, second)


def test_sums_of_a_representation() -> None:
    """Means over tokens as they come, with silent ones apart; batches make no difference."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, WIDTH, generator=generator, dtype=torch.float64)
    rows[7] = 0
    whole, parts = RepresentationSums(SITE), RepresentationSums(SITE)
    whole.add(rows)
    for part in (rows[30:], rows[:30]):
        parts.add(part)
    found = whole.results()
    expected = sparsity_metrics(rows[torch.arange(50) != 7]).mean(0)
    for place, name in enumerate(METRICS):
        assert found[name].value == pytest.approx(float(expected[place]) * (49 / 50 if name == "l1" else 1.0)), name
        assert found[name].value == pytest.approx(parts.results()[name].value)
    assert found["silent_share"].value == pytest.approx(0.02)
    with pytest.raises(DataError, match="no activations"):
        RepresentationSums(SITE).results()


@pytest.fixture(scope="module")
def bridges() -> dict[str, Any]:
    pair = ModelPair.open()
    return {"sparse": pair.open_model("sparse"), "dense": pair.open_model("dense_matched")}


@pytest.fixture(scope="module")
def reader() -> Reader:
    pair = ModelPair.open()
    tokenizer = load_tokenizer(pair.model_folder("sparse"))
    return Reader(tokenizer, NgramModel.of(pair.windows["reference"][:64], tokenizer.get_vocab_size()), context=32)


@pytest.fixture(scope="module")
def excerpts() -> Excerpts:
    documents, _ = held_out_files(ModelPair.open())
    return draw_excerpts(documents[:40], 24, context=32)


@pytest.fixture(scope="module")
def ladder(excerpts: Excerpts, reader: Reader) -> ShiftLadder:
    return identifier_ladder(excerpts, reader)


def test_the_shipped_pair(bridges: dict[str, Any], ladder: ShiftLadder) -> None:
    """Surprise and loss rise with renaming; rotated states are a Gaussian's; the pair's own weights are back afterwards."""
    before = {name: bridge(torch.zeros(1, 4, dtype=torch.long)) for name, bridge in bridges.items()}
    table = shift_table(bridges, ladder, n_boot=100)
    assert list(table) == ["sparse", "dense", "sparse - dense"]
    assert list(ladder.shift) == sorted(ladder.shift)
    for name in bridges:
        row = table[name]
        assert row["loss_slope"].lo > 0
        assert row["loss_rank_correlation"].value > 0.6
        rotated = row["rotated_hoyer_at_0%"]
        assert rotated.value == pytest.approx(rotated.null, abs=0.03)
        assert {"hoyer_slope", "rotated_hoyer_slope", "random_weights_hoyer_slope"} <= row.keys()
        assert torch.equal(before[name], bridges[name](torch.zeros(1, 4, dtype=torch.long)))
    assert table["sparse"]["hoyer_at_0%"].lo > table["sparse"]["hoyer_at_0%"].null + 0.1
    difference = table["sparse"]["hoyer_slope"].value - table["dense"]["hoyer_slope"].value
    assert table["sparse - dense"]["hoyer_slope"].value == pytest.approx(difference)


def test_losses_are_the_models(bridges: dict[str, Any], ladder: ShiftLadder) -> None:
    """Losses are those of the logits that the bridge gives (a table of bigrams included), not of `unembed` alone."""
    windows = torch.from_numpy(ladder.windows[0])
    logits = bridges["dense"](windows[:, :-1])[:, ladder.read_from[0] :]
    loss = nn.functional.cross_entropy(logits.detach().flatten(0, 1), windows[:, ladder.read_from[0] + 1 :].flatten())
    found = shift_sparsity(bridges["dense"], ladder, n_boot=5).levels["0%"]["loss"]
    assert found.value == pytest.approx(float(loss), abs=1e-5)
    other = robustness_slopes({"dense": bridges["dense"]}, ladder, n_boot=5)["dense"]["loss_at_0%"]
    assert other.value == pytest.approx(float(loss), abs=1e-5)


def test_robustness_with_a_tasks_accuracy(bridges: dict[str, Any], ladder: ShiftLadder) -> None:
    """Loss and accuracy along the ladder; at dose 0 the accuracy is that of the prompts as they are; any score will do."""
    task = get_task("single_double_quote")
    scores = {"accuracy": renamed_task(task, bridges["sparse"].tokenizer, n_pairs=16), "d_abl": lambda _, dose: np.array([-dose])}
    found = robustness_slopes(bridges, ladder, scores=scores, n_boot=100)
    assert found["sparse"]["accuracy_at_0"].value > 0.9
    assert found["sparse"]["accuracy_at_0"].n == 16
    assert found["sparse"]["loss_slope"].lo > 0
    assert found["dense"]["d_abl_slope"].value == pytest.approx(-1.0)
    assert found["dense"]["d_abl_slope"].lo is None
    assert abs(found["sparse"]["random_weights_accuracy_at_0"].value - 0.5) < 0.3
    difference = found["sparse"]["loss_slope"].value - found["dense"]["loss_slope"].value
    assert found["sparse - dense"]["loss_slope"].value == pytest.approx(difference)


def test_what_masks_spare_under_renaming(bridges: dict[str, Any]) -> None:
    """Without renaming the score is `d_abl` of the same masks before the floor; names leave the answers where they are."""
    dense, config = bridges["dense"], CHEAP.model_copy(update={"steps": 6})
    score = renamed_ablation(dense.tokenizer, config=config, n_search=64, n_heldout=48, shares=(0.0, 1.0))
    found = structural_compositionality(dense, config=config, seeds=(0,), n_search=64, n_heldout=48, progress=False)
    for which, name in enumerate(score.heldout[0.0].names):
        kept = dict(score._without_masks(dense))[which]
        own, other = right_answers(under_masks(dense, kept), score.heldout[0.0]).mean(1)[[which, 1 - which]]
        cell = found.cells_of([name])[0]
        assert float(own) == pytest.approx(cell.accuracies["abl_own"]) and float(other) == pytest.approx(
            cell.accuracies["abl_other"]
        )
    means = [float(np.mean(score(dense, share))) for share in (0.0, 1.0)]
    expected = [cell.accuracies["abl_own"] - cell.accuracies["abl_other"] for cell in found.cells_of(score.heldout[0.0].names)]
    assert means[0] == pytest.approx(np.mean(expected))
    with pytest.raises(DataError, match=r"not by 0\.5"):
        score(dense, 0.5)
    plain, rare = score.heldout[0.0], score.heldout[1.0]
    assert torch.equal(plain.right, rare.right) and not torch.equal(plain.inputs, rare.inputs)
    texts = [dense.tokenizer.decode(rare.inputs[row, 1 : int(rare.position[1, row]) + 1].tolist()) for row in range(8)]
    assert all(text[-1] in "\"'" for text in texts), "the bracket is asked for right behind the quote that closes"
    with random_weights(dense, seed=0):
        score(dense, 1.0)
    assert len(score._ablated) == 2, "other weights have masks of their own"


def test_scores_of_unlike_samples_are_refused(bridges: dict[str, Any], ladder: ShiftLadder) -> None:
    """A difference is of the same samples."""
    sparse = bridges["sparse"]
    with pytest.raises(DataError, match="unlike samples"):
        robustness_slopes(bridges, ladder, scores={"odd": lambda bridge, _: np.zeros(5 if bridge is sparse else 6)}, n_boot=5)


def test_task_prompts_are_renamed_but_for_their_answers(bridges: dict[str, Any]) -> None:
    """A task whose answers are words, and one whose sides differ in a name: pairs stay equally long, some at least."""
    for name in ("enumerate_range", "if_equals"):
        score = renamed_task(get_task(name), bridges["sparse"].tokenizer, n_pairs=8)
        assert 4 <= len(score(bridges["sparse"], 1.0)) <= 8
        with pytest.raises(DataError, match=r"not by 0\.3"):
            score(bridges["sparse"], 0.3)


def test_the_row_alone(bridges: dict[str, Any], ladder: ShiftLadder) -> None:
    """A Gaussian's value is the null, and random weights stand beside."""
    site = IdentityDictionary(bridges["sparse"].cfg.d_model, "ln_final.hook_out")
    found = representation_sparsity(bridges["sparse"], site, [ladder.windows[0][:4, :-1]])
    assert found["hoyer"].value > found["hoyer"].null + 0.1
    assert found["rotated_hoyer"].value == pytest.approx(found["hoyer"].null, abs=0.02)
    assert found["random_weights_hoyer"].value is not None
    assert found["l1"].null is not None


def test_the_length_ladder_reads_the_same_tokens(excerpts: Excerpts, reader: Reader) -> None:
    """At every level, after a context that is halved; it holds no position constant, which would be the shift itself."""
    found = length_ladder(excerpts, reader)
    assert found.shift == (0.0, 1.0, 2.0, 3.0)
    assert found.controls == ("token", "norm")
    assert [windows.shape[1] for windows in found.windows] == [33, 17, 9, 5]
    read = [windows[:, start:] for windows, start in zip(found.windows, found.read_from, strict=True)]
    assert all(np.array_equal(read[0], other) for other in read)


def test_the_shuffle_ladder_ends_at_the_same_line(excerpts: Excerpts, reader: Reader) -> None:
    """Each text is at every level, with its last line last; surprise rises."""
    found = shuffle_ladder(excerpts, reader)
    assert found.paired
    assert found.shift[-1] > found.shift[0]
    assert all(np.array_equal(found.windows[0][:, -1], windows[:, -1]) for windows in found.windows)


def test_the_language_ladder_is_in_order_of_surprise(excerpts: Excerpts, reader: Reader) -> None:
    """Other texts are texts of their own; kinds with too few are left out, and without any there is no ladder."""
    found = language_ladder(excerpts, {"c": generated_c_texts(4), "none": []}, reader)
    assert found.levels == ("python", "c")
    assert not found.paired
    assert "4 c" in found.source
    with pytest.raises(DataError, match="too few texts"):
        language_ladder(excerpts, {"none": []}, reader)


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDERS)
def test_ladders_by_name(name: str) -> None:
    """Each is made of the shipped pair and this installation."""
    found = python_ladder(ModelPair.open(), name, n_windows=12, context=32)
    assert found.name == name
    assert min(found.shift) < max(found.shift)


def test_an_unknown_ladder() -> None:
    """The names that there are."""
    with pytest.raises(UnknownNameError, match="identifiers"):
        python_ladder(ModelPair.open(), "identifier")
