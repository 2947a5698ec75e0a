"""What the full comparison does: `FullPlan`, by default that of `sparse-lens compare --full`, and the smallest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparse_lens.circuits import SearchConfig
from sparse_lens.comparisons.curves.circuit_curve import TARGETS
from sparse_lens.comparisons.full.cells import ROW_TOKENS
from sparse_lens.errors import ConfigError

BASE = "sparse_neurons"
TRANSCODERS = ("transcoder", "skip_transcoder")


@dataclass(frozen=True)
class FullPlan:
    """What the full comparison does; the defaults are those of `sparse-lens compare --full`.

    **Searches.** `seeds` are search seeds of the main columns: the neurons of the three models, the first and the first
    transcoder of the `kinds` of dictionaries. All others get the first seed alone, and so does each further one of the pair's
    `training_seeds`, which have the two neuron columns of matched loss. Edges are searched at the `edge_targets`, functional ones
    at the `functional_targets`, with the first seed, in the main columns: the views that single edges of latents need cost more
    than all else. Circuits are measured on `curve_windows` of real files and `curve_pairs` of prompts of each kind.

    **Dictionaries** have `ratio` latents for each neuron, `k` active ones, and read `tokens`; `dictionary_seeds` of each kind are
    trained on the loss-matched model, and one of the first kind on the sparse model. Rows are of all of these seeds, curves of as
    many as there are search seeds. The first kind also comes in each of the `frontier_ratios` with each of the `frontier_k`.

    The coupling of the dense twin and the sparse model reads `coupling_tokens`, a row `row_tokens`; rows are of all layers, or of
    the `row_layers`. `arms` are further models by name, as folders, beside those that the pair brings; `dictionaries` are further
    ones of the loss-matched model by name, SAELens' folders, one for each layer's MLP.
    """

    tasks: Sequence[str] = ()
    seeds: int = 3
    training_seeds: int = 3
    targets: Sequence[float] = TARGETS
    edge_targets: Sequence[float] = (0.5,)
    functional_targets: Sequence[float] = (0.5,)
    config: SearchConfig = field(default_factory=SearchConfig)
    ratio: float = 4.0
    k: int = 16
    tokens: int = 400_000
    dictionary_seeds: int = 3
    frontier_ratios: Sequence[float] = (2.0, 4.0, 8.0)
    frontier_k: Sequence[int] = (8, 16, 32)
    coupling_tokens: int = 200_000
    row_tokens: int = ROW_TOKENS
    row_layers: Sequence[int] | None = None
    curve_windows: int = 32
    curve_pairs: int = 128
    kinds: Sequence[str] = ("topk", "batchtopk", "matryoshka", "jumprelu", "frozen", *TRANSCODERS)
    arms: Mapping[str, str] = field(default_factory=dict)
    dictionaries: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {"seeds": self.seeds, "training_seeds": self.training_seeds, "dictionary_seeds": self.dictionary_seeds}
        if min(counts.values()) < 1:
            raise ConfigError(f"each kind of seed is needed once at least, got {counts}")
        if missing := {*self.edge_targets, *self.functional_targets} - {*self.targets}:
            raise ConfigError(f"edges are searched at some of the targets {list(self.targets)}, not at {sorted(missing)}")

    def layers(self, n_layers: int) -> Sequence[int]:
        """Those of a model's layers that rows are of."""
        return range(n_layers) if self.row_layers is None else [layer for layer in self.row_layers if layer < n_layers]

    @property
    def main_columns(self) -> tuple[str, ...]:
        """The columns that every search seed searches, and single edges are searched in."""
        dictionaries = dict.fromkeys([self.kinds[0], *[kind for kind in self.kinds if kind in TRANSCODERS][:1]])
        return (BASE, "dense_neurons", "dense_matched_neurons", *(f"dense_{kind}" for kind in dictionaries))


def quick_plan(
    tasks: Sequence[str] = (),
    arms: Mapping[str, str] | None = None,
    dictionaries: Mapping[str, Sequence[str]] | None = None,
) -> FullPlan:
    """Everything at its smallest: to see that it runs, not to learn from it."""
    config = SearchConfig(steps=20, search_pairs=64, evaluation_pairs=32, evaluations=6)
    return FullPlan(
        tasks=tasks or ("if_equals",),
        seeds=1,
        training_seeds=1,
        targets=(2.0, 0.5),
        config=config,
        **{"ratio": 0.25, "k": 4, "tokens": 6000, "dictionary_seeds": 1, "kinds": ("topk", "frozen", "skip_transcoder")},
        frontier_ratios=(0.5,),
        frontier_k=(4,),
        coupling_tokens=8192,
        row_tokens=6_400,
        row_layers=(0,),
        curve_windows=8,
        curve_pairs=32,
        arms=arms or {},
        dictionaries=dictionaries or {},
    )
