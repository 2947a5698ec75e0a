"""Does a representation become sparser the farther the input is from what the model was trained on? (arXiv:2603.03415)

The paper's claim is about activations, and its own effects are small: .001 to .002 in the share of energy of the top 5 %, where a
Gaussian vector of its width gives .280. The size is unconfirmed: it is from files released before a fix of the masking that had
contaminated loss and sparsity. So every level stands beside the Gaussian, and slopes are within a model, with the token that is
read, its position and the norm held constant. Levels of two models do not compare where one has a privileged basis; differences of
slopes may. Before the final norm a few channels of massive activations may be all of the top 1 %: name the site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.comparisons.rows.superposition import finite_latents
from sparse_lens.comparisons.shift.ladder import ShiftLadder
from sparse_lens.comparisons.shift.level_means import LevelSums, result_of
from sparse_lens.comparisons.shift.losses import harvest_with_logits, read_losses
from sparse_lens.comparisons.shift.metrics import METRICS, gaussian_null
from sparse_lens.comparisons.shift.representation import both_bases
from sparse_lens.comparisons.shift.slopes import Fit, SlopeSums
from sparse_lens.dictionaries import Bridge, Dictionary, IdentityDictionary, random_rotation
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.results import Result

SITES = ("ln_final", "resid_post")
COLUMNS = (*METRICS, *(f"rotated_{name}" for name in METRICS))
"""What has all kinds of slope: the metrics of the latents, and of the same latents in a random rotation."""

FURTHER = ("norm", "silent_share", "loss")
"""What has plain slopes only: the norm of the state, tokens without a latent, the loss of all tokens read (nats per token)."""

POSITIONS = ("last", "all")


def shift_sparsity(
    bridge: Bridge,
    levels: ShiftLadder | Mapping[str, Int[np.ndarray, "_ _"]],
    *,
    site: str | Dictionary = "ln_final",
    pos: str = "last",
    batch_size: int = 32,
    n_boot: int = 1000,
    seed: int = 0,
) -> ShiftMeasurement:
    """Sparsity of a model's states, and its loss, along a ladder, or windows `[window, pos + 1]` by level (`ShiftLadder.of`).

    `site` is `ln_final` (the state after the final norm, the paper's), `resid_post` (of the last block, before it), or a
    dictionary. `pos` is `last`, the last token before the label, or `all` from the ladder's start on; the loss is of all of them
    in any case. A rotation of the latents is the control that no basis survives. Tokens on which all latents are 0 have no
    sparsity; they are counted.
    Raises what `harvest_activations` raises, and `DataError` for latents that are not finite, or silent at a whole level.
    """
    if pos not in POSITIONS:
        raise UnknownNameError("kind of position", pos, POSITIONS)
    ladder = levels if isinstance(levels, ShiftLadder) else ShiftLadder.of(levels)
    dictionary = site_dictionary(bridge, site) if isinstance(site, str) else site
    sums = ShiftSums(ladder, dictionary, pos, seed)
    for level, windows in enumerate(ladder.windows):
        for part, source, logits in harvest_with_logits(bridge, dictionary.hook_in, windows, batch_size):
            sums.add(level, part, source, logits)
    return sums.measurement(n_boot)


def site_dictionary(bridge: Any, site: str) -> IdentityDictionary:
    """The channels of the last hidden state after (`ln_final`) or before (`resid_post`) the final norm."""
    if site not in SITES:
        raise UnknownNameError("site", site, SITES)
    hook = "ln_final.hook_out" if site == "ln_final" else f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    return IdentityDictionary(bridge.cfg.d_model, hook)


class ShiftSums:
    """Streamed sums of one dictionary along one ladder; of a size that depends on texts and token ids, not on tokens."""

    def __init__(self, ladder: ShiftLadder, dictionary: Dictionary, pos: str = "last", seed: int = 0) -> None:
        self.ladder, self.dictionary, self.pos, self.seed = ladder, dictionary, pos, seed
        last = [tokens.shape[1] - 2 for tokens in ladder.windows]
        self.starts = last if pos == "last" else list(ladder.read_from)
        self.files = np.unique(np.concatenate(ladder.files))
        read = [tokens[:, start:-1].ravel() for tokens, start in zip(ladder.windows, self.starts, strict=True)]
        self.ids = np.unique(np.concatenate(read))
        n_ids = len(self.ids) if "token" in ladder.controls else 1
        covariates = sum(name in ladder.controls for name in ("position", "norm"))
        self.slopes = SlopeSums(len(self.files), n_ids, covariates, len(COLUMNS))
        self.means = LevelSums(len(self.files), len(ladder.levels), len(COLUMNS) + 2)
        self.losses = LevelSums(len(self.files), len(ladder.levels), 1)
        self.rotation = random_rotation(dictionary.n_latents, seed, dtype=torch.float64)

    @torch.no_grad()
    def add(self, level: int, part: slice, source: Float[Tensor, "token d_in"], logits: Float[Tensor, "window pos vocab"]) -> None:
        """Take in activations of some windows of a level, flattened over positions; raises `DataError` for latents not finite."""
        windows, start = self.ladder.windows[level][part], self.starts[level]
        length = windows.shape[1] - 1
        read = source.unflatten(0, (-1, length))[:, start:].flatten(0, 1)
        latents = finite_latents(self.dictionary, read).double()
        norm = latents.norm(dim=-1).cpu().numpy()
        metrics = both_bases(latents, self.rotation).cpu().numpy()
        files = np.searchsorted(self.files, self.ladder.files[level][part])
        read_files = np.repeat(files, length - start)
        ids = np.searchsorted(self.ids, windows[:, start:-1].ravel())
        rows = self._rows(level, np.tile(np.arange(start, length), len(windows)), norm, metrics)
        known = np.isfinite(rows).all(1)
        self.slopes.add(rows[known], files=read_files[known], ids=ids[known] if "token" in self.ladder.controls else 0 * ids[known])
        self.means.add(np.column_stack([metrics, norm, norm == 0]), level=level, files=read_files)
        losses = read_losses(logits, windows, self.ladder.read_from[level])
        self.losses.add(losses[:, None], level=level, files=files)

    def _rows(self, level: int, position: np.ndarray, norm: np.ndarray, metrics: np.ndarray) -> Float[np.ndarray, "row column"]:
        """`[shift, controls, metrics]`."""
        causes = [np.full(len(norm), self.ladder.shift[level])]
        if "position" in self.ladder.controls:
            causes.append(np.log(position + 1.0))
        if "norm" in self.ladder.controls:
            causes.append(np.log(np.where(norm > 0, norm, 1.0)))
        return np.column_stack([*causes, metrics])

    def measurement(self, n_boot: int = 1000) -> ShiftMeasurement:
        """What was taken in, with intervals by drawing texts anew; raises `DataError` where all states of a level are silent."""
        if not self.means.counts[:, :, 0].sum(0).all():
            raise DataError(f"dictionary {self.dictionary.name!r} is silent at a whole level of the ladder {self.ladder.name!r}")
        weights = self.means.draw_weights(n_boot, self.seed)
        parts, shift = (self.means, self.losses), self.ladder.shift
        return ShiftMeasurement(
            self.ladder,
            self.dictionary.name,
            self.dictionary.n_latents,
            (self.pos, n_boot, self.seed),
            self.slopes.fit(weights),
            np.concatenate([part.levels(weights) for part in parts], -1),
            np.concatenate([part.slopes(shift, weights) for part in parts], -1),
            np.concatenate([part.rank_correlations(shift, weights) for part in parts], -1),
            len(self.files),
        )


@dataclass(frozen=True, eq=False)
class ShiftMeasurement:
    """One dictionary along one ladder. Of all arrays the first draw is of the texts as they are, the others are bootstraps."""

    ladder: ShiftLadder
    dictionary: str
    width: int
    settings: tuple[str, int, int]
    fit: Fit
    level_draws: Float[np.ndarray, "draw level column"]
    slope_draws: Float[np.ndarray, "draw column"]
    rank_draws: Float[np.ndarray, "draw column"]
    n_files: int

    @cached_property
    def draws(self) -> dict[str, Float[np.ndarray, " draw"]]:
        """For each of `COLUMNS`: `_slope` and `_partial_correlation` (controls held constant), `_plain_slope`, and its Spearman
        correlation with the shift, `_rank_correlation`; of `FURTHER` the `_slope` is plain. Slopes are per unit of the shift."""
        found: dict[str, np.ndarray] = {}
        for place, name in enumerate(COLUMNS):
            found[f"{name}_slope"] = self.fit.slopes[:, place]
            found[f"{name}_plain_slope"] = self.fit.plain[:, place]
            found[f"{name}_partial_correlation"] = self.fit.partial[:, place]
            found[f"{name}_rank_correlation"] = self.rank_draws[:, place]
        for place, name in enumerate(FURTHER, len(COLUMNS)):
            found[f"{name}_slope"] = self.slope_draws[:, place]
            found[f"{name}_rank_correlation"] = self.rank_draws[:, place]
        return found

    @property
    def results(self) -> dict[str, Result]:
        """The `draws` with their intervals."""
        return {name: result_of(draws, self.n_files) for name, draws in self.draws.items()}

    @property
    def levels(self) -> dict[str, dict[str, Result]]:
        """Means at every level, with a Gaussian vector's as `null` (`l1`: of the same norm); and the level's `shift`."""
        gaussian = gaussian_null(self.width)
        found: dict[str, dict[str, Result]] = {}
        for index, level in enumerate(self.ladder.levels):
            draws, n = self.level_draws[:, index], len(np.unique(self.ladder.files[index]))
            null = gaussian | {"l1": gaussian["l1"] * float(draws[0, len(COLUMNS)])}
            found[level] = {
                name: result_of(draws[:, place], n, null=null.get(name.removeprefix("rotated_")))
                for place, name in enumerate((*COLUMNS, *FURTHER))
            }
            found[level]["shift"] = Result(self.ladder.shift[index], n=n)
        return found


def slope_differences(first: ShiftMeasurement, second: ShiftMeasurement) -> dict[str, Result]:
    """Everything in `results` of the first less that of the second on the same ladder, with intervals over the same draws of texts.

    Raises `DataError` for measurements on different ladders, or with other draws or positions.
    """
    if first.ladder is not second.ladder or first.settings != second.settings:
        raise DataError(
            "slopes are compared on one ladder and the same draws; measure both models with the same object and settings"
        )
    return {name: result_of(draws - second.draws[name], first.n_files) for name, draws in first.draws.items()}
