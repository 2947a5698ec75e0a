"""Which unit of one model is which unit of another? Matching by activation on the same tokens, since their bases differ.

Between two models a cosine of decoder rows is undefined. Units are matched by the Pearson correlation of their activations, and
by that of their firing (`latent > 0`: a GELU neuron is never exactly zero, and one rule serves every column); signs are ignored.
The null turns one side's tokens by half a window within each window: it keeps each unit's distribution and each side's own
correlations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from torch import Tensor

from sparse_lens.comparisons.rows.superposition import finite_latents
from sparse_lens.dictionaries import Bridge, Dictionary, harvest_activations
from sparse_lens.dictionaries.harvest import refuse_padding
from sparse_lens.errors import DataError
from sparse_lens.results import Result, exact, not_measurable

PARTNER = 0.7
"""Above this correlation two units are partners."""

_MOST_NONZERO = 0.1
"""Share of nonzero latents from which a dense product is the faster one."""


def measure_correspondence(
    first: Bridge,
    first_dictionary: Dictionary,
    second: Bridge,
    second_dictionary: Dictionary,
    token_batches: Iterable[Any],
) -> Correspondence:
    """Match the latents of two models (or of two dictionaries of one) on batches of token ids `[batch, pos]`.

    Raises `DataError` for models whose tokenizers differ: token by token there is nothing to correlate; and what
    `harvest_activations` raises.
    """
    (found,) = match_each_pair([(first, first_dictionary), (second, second_dictionary)], token_batches)
    return found


def match_each_pair(sides: Sequence[tuple[Bridge, Dictionary]], token_batches: Iterable[Any]) -> Iterator[Correspondence]:
    """`measure_correspondence` of every two of the sides, in `itertools.combinations`' order; each side reads a batch once.

    Until it is yielded each pair holds four matrices `[n1 n2]` in float64.
    """
    pairs = list(combinations(range(len(sides)), 2))
    for a, b in pairs:
        check_same_tokens(sides[a][0], sides[b][0])
    sums = [CorrelationSums() for _ in pairs]
    for batch in token_batches:
        tokens = torch.as_tensor(batch)
        refuse_padding(tokens)
        latents = [_latents(bridge, dictionary, tokens) for bridge, dictionary in sides]
        for of_pair, (a, b) in zip(sums, pairs, strict=True):
            of_pair.add(latents[a], latents[b])
    while sums:
        yield sums.pop(0).correspondence()


def _latents(bridge: Bridge, dictionary: Dictionary, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos latent"]:
    (activations,) = harvest_activations(bridge, [dictionary.hook_in], [tokens])
    return finite_latents(dictionary, activations[dictionary.hook_in]).unflatten(0, tuple(tokens.shape))


def check_same_tokens(first: Bridge, second: Bridge) -> None:
    """Raise `DataError` for two models that do not read the same token ids."""
    if first is second:
        return
    vocabularies = [_vocabulary(bridge) for bridge in (first, second)]
    if vocabularies[0] != vocabularies[1]:
        names = " and ".join(repr(getattr(bridge.cfg, "model_name", "?")) for bridge in (first, second))
        raise DataError(
            f"correspondence compares token by token, but the models {names} have tokenizers of their own; compare them by tasks "
            "and labels, or train a pair on one tokenizer"
        )


def _vocabulary(bridge: Any) -> Any:
    tokenizer = getattr(bridge, "tokenizer", None)
    return getattr(bridge.cfg, "d_vocab", None) if tokenizer is None else tokenizer.get_vocab()


@dataclass
class CorrelationSums:
    """Running sums, in float64, behind the correlations of every unit of one side with every unit of the other, and the null."""

    n_tokens: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def add(self, first: Float[Tensor, "batch pos n1"], second: Float[Tensor, "batch pos n2"]) -> None:
        """Take in whole windows of both sides' latents on the same tokens; one of fewer than two tokens cannot be turned."""
        if first.shape[1] < 2:
            raise DataError(f"a window of {first.shape[1]} token has no other place to turn to; give longer windows")
        turned = second.roll(second.shape[1] // 2, dims=1)
        self.n_tokens += first.shape[0] * first.shape[1]
        for kind, sides in (("value", (first, second, turned)), ("firing", (first > 0, second > 0, turned > 0))):
            a, b, shifted = (side.flatten(0, 1).double() for side in sides)
            self._sum(f"{kind}.first", a.sum(0))
            self._sum(f"{kind}.second", b.sum(0))
            self._sum(f"{kind}.first_squares", a.square().sum(0))
            self._sum(f"{kind}.second_squares", b.square().sum(0))
            self._sum(f"{kind}.products", _products(a, b))
            self._sum(f"{kind}.shifted_products", _products(a, shifted))

    def _sum(self, name: str, value: Tensor) -> None:
        self.moments[name] = self.moments[name].add_(value) if name in self.moments else value

    def correspondence(self) -> Correspondence:
        """The matching over everything taken in; raises `DataError` if that is nothing."""
        if not self.n_tokens:
            raise DataError("no tokens to match units on; give at least one batch")
        value, firing = self._correlations("value", "products"), self._correlations("firing", "products")
        nulls = (self._correlations("value", "shifted_products"), self._correlations("firing", "shifted_products"))
        results = _matching(value, nulls[0], "correlation", self.n_tokens) | _matching(firing, nulls[1], "mcc", self.n_tokens)
        varies = (~value.isnan().all(1), ~value.isnan().all(0))
        results["varying_units"], results["varying_units_reverse"] = (exact(int(side.sum()), n=len(side)) for side in varies)
        return Correspondence(results, value, firing, *_assignment(value))

    def _correlations(self, kind: str, products: str) -> Float[Tensor, "n1 n2"]:
        """Pearson correlations; NaN for a unit that does not vary."""
        n, of = self.n_tokens, {part.removeprefix(f"{kind}."): tensor for part, tensor in self.moments.items()}
        covariance = of[products] / n - torch.outer(of["first"] / n, of["second"] / n)
        deviations = []
        for side in ("first", "second"):
            squares = of[f"{side}_squares"] / n
            variance = squares - (of[side] / n).square()
            deviations.append(torch.where(variance > 1e-12 * squares, variance, torch.nan).sqrt())
        return covariance / torch.outer(*deviations)


def _products(a: Float[Tensor, "token n1"], b: Float[Tensor, "token n2"]) -> Float[Tensor, "n1 n2"]:
    """`a.T @ b`, through the nonzeros of the sparser side if it has few, as latents have (scipy's product is the faster one)."""
    if a.device.type != "cpu":
        return a.T @ b
    shares = [float(torch.count_nonzero(side)) / max(1, side.numel()) for side in (a, b)]
    if min(shares) > _MOST_NONZERO:
        return a.T @ b
    if shares[1] < shares[0]:
        return _products(b, a).T
    return torch.from_numpy(csr_array(a.numpy()).T @ b.numpy())


def _assignment(correlations: Float[Tensor, "n1 n2"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Pairs of the Hungarian matching among the units that vary: of all matchings the one with the largest sum of magnitudes."""
    rows, columns = (torch.nonzero(~correlations.isnan().all(axis)).flatten() for axis in (1, 0))
    chosen = linear_sum_assignment(correlations[rows][:, columns].abs().cpu().numpy(), maximize=True)
    return rows[torch.from_numpy(chosen[0])], columns[torch.from_numpy(chosen[1])]


def _matching(found: Tensor, shifted: Tensor, name: str, n_tokens: int) -> dict[str, Result]:
    """The numbers of one kind of correlation, each with that of the turned tokens as its null."""
    numbers, nulls = _summary(found), _summary(shifted)
    if numbers is None or nulls is None:
        reason = "no unit of one of the sides varies" + (": all fire on every token, or on none" if name == "mcc" else "")
        return {metric.format(name): not_measurable(reason, n=n_tokens) for metric in _SUMMARY}
    return {metric.format(name): Result(numbers[metric], null=nulls[metric], n=n_tokens) for metric in _SUMMARY}


_SUMMARY = ("matched_{}", "best_{}", "best_{}_reverse", "partner_share_{}", "partner_share_{}_reverse")


def _summary(correlations: Float[Tensor, "n1 n2"]) -> dict[str, float] | None:
    size = correlations.abs()
    size = size[~size.isnan().all(1)][:, ~size.isnan().all(0)]
    if not size.numel():
        return None
    rows, columns = linear_sum_assignment(size.cpu().numpy(), maximize=True)
    best, best_reverse = size.amax(1), size.amax(0)
    values = (
        size[torch.from_numpy(rows), torch.from_numpy(columns)].mean(),
        best.mean(),
        best_reverse.mean(),
        (best > PARTNER).double().mean(),
        (best_reverse > PARTNER).double().mean(),
    )
    return {name: float(value) for name, value in zip(_SUMMARY, values, strict=True)}


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Correlations of every unit with every unit, the matching, and the numbers.

    `results`, for `correlation` (of activations) and `mcc` (of firing): `matched_*` is the mean magnitude over the matched pairs,
    `best_*` that of each unit of the first side with its best partner (`_reverse`: of the second), `partner_share_*` the share of
    units whose best partner is above .7. Units that do not vary are left out; `varying_units` counts the others, of n.

    `correlation`, `mcc`: signed, NaN for units that do not vary. Unit `first[i]` is matched with `second[i]`.
    """

    results: dict[str, Result]
    correlation: Float[Tensor, "n1 n2"]
    mcc: Float[Tensor, "n1 n2"]
    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]

    def partners(self) -> Bool[Tensor, " pair"]:
        """Which matched pairs correlate above .7."""
        return self.correlation[self.first, self.second].abs() > PARTNER


def concept_agreement(
    matched: Correspondence,
    first_scores: Float[np.ndarray, "n1 label"],
    second_scores: Float[np.ndarray, "n2 label2"],
    *,
    least: float = 0.5,
) -> dict[str, Result]:
    """Do matched units mean the same? Share of the partner pairs (correlation above .7) whose best labels are the same.

    The scores are each unit's for each label (`ConceptScores.gained`: of F1 itself the commonest labels would be everyone's best);
    NaN where a label was not measurable. Only pairs in which both best scores reach `least` count; `null` is the agreement of such
    pairs put together at random. Raises `DataError` for scores of other units.
    """
    shapes = (matched.correlation.shape[0], matched.correlation.shape[1])
    if (len(first_scores), len(second_scores)) != shapes or first_scores.shape[1] != second_scores.shape[1]:
        raise DataError(
            f"scores {first_scores.shape} and {second_scores.shape} (units, labels) "
            f"do not fit a matching of {shapes[0]} and {shapes[1]} units; give those of the same dictionaries and labels"
        )
    pairs = matched.partners()
    sides = [
        np.nan_to_num(scores[units[pairs].cpu().numpy()], nan=-1.0)
        for scores, units in ((first_scores, matched.first), (second_scores, matched.second))
    ]
    kept = (sides[0].max(1, initial=-1) >= least) & (sides[1].max(1, initial=-1) >= least)
    counts = {"concept_pairs": exact(int(kept.sum()), n=int(pairs.sum()))}
    if not kept.any():
        return counts | {
            "concept_agreement": not_measurable(f"no pair above {PARTNER} has a label with a score of {least} on both sides")
        }
    labels = [side[kept].argmax(1) for side in sides]
    shares = [np.bincount(side, minlength=first_scores.shape[1]) / len(side) for side in labels]
    agreement = Result(float((labels[0] == labels[1]).mean()), null=float(shares[0] @ shares[1]), n=int(kept.sum()))
    return counts | {"concept_agreement": agreement}
