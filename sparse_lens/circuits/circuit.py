"""A circuit is data: the kept nodes, the ablation values, and what it was found in, by and for; and how it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation, AblationKind
from sparse_lens.circuits.edges.cutting import CircuitEdges
from sparse_lens.circuits.edges.latents import hooked_mask
from sparse_lens.circuits.masking import Hook, Reference, mask_hooks
from sparse_lens.circuits.sites import NodeSpace, model_fingerprint
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import CircuitError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from sparse_lens.circuits.compiled.program import CompiledCircuit, CompiledForm
    from sparse_lens.circuits.prompts import Prompts
    from sparse_lens.tasks import TaskBatch

NodeNames = Mapping[str, Sequence[int]]
"""Indices of nodes by the name of their site, as `Circuit.kept` gives them."""

NOT_MEASURED = math.nan
"""The loss of a circuit that was put together and not scored since."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """Kept nodes (`mask [node]`) of a model on a task, with the values that stand in for all others (`reference`, by site).

    `model` is the fingerprint of the model's weights, `search` says how the circuit was found (effort, seed, trace),
    `target_loss` and `loss` are two-token task losses in nats, the latter on prompts of the search templates that no mask was
    learned on (not a number where none was measured); under a KL target (`search["target_kind"]`) they are divergences from the
    model. `ablation` says what the reference values are used for. Immutable; saved as safetensors and JSON.

    A circuit can be used like a set of nodes (`a | b`, `a & b`, `a - b`, `with_nodes`, `without_nodes`) and put into its model
    for any tool of TransformerLens: `with circuit.applied(bridge): bridge.run_with_cache(tokens)`. After a search of edges it also
    has `edges`; what is derived from it has none.
    """

    mask: Bool[Tensor, " node"]
    space: NodeSpace
    reference: Mapping[str, Reference]
    task: str
    model: str
    target_loss: float
    loss: float
    search: dict[str, Any] = field(default_factory=dict)
    ablation: AblationKind = "mean"
    frozen_norms: bool = False
    edges: CircuitEdges | None = None

    @property
    def how_ablated(self) -> Ablation:
        """The ablation that the circuit was found under."""
        return Ablation(self.reference, self.ablation, self.frozen_norms)

    @property
    def n_nodes(self) -> int:
        return int(self.mask.sum())

    @property
    def reached(self) -> bool:
        """Whether the circuit meets its target loss; False while its loss is not measured."""
        return self.loss <= self.target_loss

    @property
    def beats_model(self) -> bool | None:
        """Whether its task loss was below the whole model's on the prompts it was selected on; None if that is not recorded."""
        return self.search.get("beats_model")

    def kept(self) -> dict[str, list[int]]:
        """Indices of the kept nodes by site name; the last index of a site with a dictionary is its error node."""
        return {name: part.nonzero().flatten().tolist() for name, part in self.space.split(self.mask).items()}

    def edges_frame(self) -> pd.DataFrame:
        """One row for each kept edge: `kind`, `layer` (-1: none), `output`, `input`; `CircuitError` if none were searched."""
        import pandas as pd

        if self.edges is None:
            raise CircuitError("this circuit has nodes only; sparse_lens.circuits.find_edges finds the edges between them")
        rows = []
        for name, index in self.edges.kept.index.items():
            kind, _, layer = name.partition(".")
            rows += [(kind, int(layer or -1), output, source) for output, source in index.tolist()]
        return pd.DataFrame(rows, columns=["kind", "layer", "output", "input"])  # pyright: ignore[reportArgumentType]

    def to_frame(self) -> pd.DataFrame:
        """One row for each kept node: `site`, `layer` (-1: final_resid), `kind`, `hook`, `index`, `latent` (False: a channel)."""
        import pandas as pd

        rows = []
        for site in self.space.sites:
            for index in self.mask[self.space.slices[site.name]].nonzero().flatten().tolist():
                layer = -1 if site.layer is None else site.layer
                rows.append((site.name, layer, site.kind, site.hook, index, not site.is_identity))
        return pd.DataFrame(rows, columns=["site", "layer", "kind", "hook", "index", "latent"])  # pyright: ignore[reportArgumentType]

    def check_model(self, bridge: Any) -> NodeSpace:
        """The circuit's node space; raises `CircuitError` if `bridge` is another model than it was found in."""
        if (found := model_fingerprint(bridge)) != self.model:
            raise CircuitError(
                f"this circuit was found in the model {self.model}, the bridge holds {found}; load the model it belongs to"
            )
        return self.space

    def fwd_hooks(self) -> list[tuple[str, Hook]]:
        """The circuit as forward hooks for `run_with_hooks` and the like: everything outside it at its reference value.

        Raises `CircuitError` where the ablation depends on the prompts: `how_ablated.hooks` makes its hooks for each batch; and for
        a circuit of edges, which are weights: `applied` cuts them, too.
        """
        if self.edges is not None:
            raise CircuitError("hooks cannot cut the edges of this circuit; use `with circuit.applied(bridge)`")
        return self._node_hooks()

    def _node_hooks(self) -> list[tuple[str, Hook]]:
        if not self.how_ablated.fixed:
            norms = " with frozen norms" if self.frozen_norms else ""
            raise CircuitError(
                f"{self.ablation} ablation{norms} has other values for every prompt; use circuit.how_ablated.hooks(bridge, "
                "circuit.space, circuit.mask, prompts), or a circuit found under mean ablation"
            )
        mask = self.mask if self.edges is None else hooked_mask(self.space, self.mask)
        return mask_hooks(self.space, mask, self.how_ablated.fixed_values())

    @contextmanager
    def applied(self, bridge: Any) -> Iterator[Any]:
        """Run `bridge` as this circuit inside the block; yields the bridge. Hooks of one's own act on what the circuit leaves.

        `reset_hooks`, which many tools call, does not end it; leaving the block, also by an exception, does. Raises
        `CircuitError` for another model.
        """
        self.check_model(bridge)
        points = bridge.hook_dict
        with ExitStack() as stack:
            for name, hook in self._node_hooks():
                stack.callback(points[name].register_forward_hook(_as_torch_hook(hook)).remove)
            if self.edges is not None:
                stack.enter_context(self.edges.cut_in(bridge))
            yield bridge

    def compile(self, bridge: Any, *, form: CompiledForm = "exact", prompts: Prompts | TaskBatch | None = None) -> CompiledCircuit:
        """The circuit as a program of its own, without the rest of the model: see `compile_circuit`."""
        from sparse_lens.circuits.compiled.program import compile_circuit

        return compile_circuit(bridge, self, form=form, prompts=prompts)

    def __or__(self, other: Circuit) -> Circuit:
        """The nodes of either circuit."""
        return self._combined(other, self.mask | other.mask, "|")

    def __and__(self, other: Circuit) -> Circuit:
        """The nodes of both circuits."""
        return self._combined(other, self.mask & other.mask, "&")

    def __sub__(self, other: Circuit) -> Circuit:
        """The nodes that `other` lacks."""
        return self._combined(other, self.mask & ~other.mask, "-")

    def with_nodes(self, nodes: NodeNames) -> Circuit:
        """The circuit with `nodes` added; raises as `without_nodes` does."""
        return self._derived(self.mask | self._select(nodes), "added")

    def without_nodes(self, nodes: NodeNames) -> Circuit:
        """The circuit less `nodes`; raises `UnknownNameError` for an unknown site, `CircuitError` for an index outside it."""
        return self._derived(self.mask & ~self._select(nodes), "dropped")

    def _combined(self, other: Circuit, mask: Tensor, sign: str) -> Circuit:
        if self.model != other.model or self.space.signature() != other.space.signature():
            raise CircuitError(
                f"these circuits belong to different models or dictionaries ({self.model}, {other.model}); combine circuits of one"
            )
        task = self.task if self.task == other.task else f"{self.task} {sign} {other.task}"
        return replace(self._derived(mask, f"{self.task} {sign} {other.task}"), task=task)

    def _derived(self, mask: Tensor, how: str) -> Circuit:
        return replace(self, mask=mask, loss=NOT_MEASURED, search={"derived": how}, edges=None)

    def _select(self, nodes: NodeNames) -> Tensor:
        selected = self.mask.new_zeros(self.mask.shape)
        for name, indices in nodes.items():
            if name not in self.space.slices:
                raise UnknownNameError("site", name, self.space.slices)
            part = selected[self.space.slices[name]]
            if wrong := [index for index in indices if not 0 <= index < len(part)]:
                raise CircuitError(f"the site {name} has nodes 0 to {len(part) - 1}, there is no {wrong[0]}")
            part[list(indices)] = True
        return selected

    def save(self, path: str | Path) -> None:
        """Write `circuit.safetensors` and `circuit.json` into the folder `path`."""
        from sparse_lens.circuits.circuit_files import save_circuit

        save_circuit(self, path)

    @classmethod
    def load(cls, path: str | Path, bridge: Any, dictionaries: Sequence[Dictionary] = ()) -> Circuit:
        """Read a saved circuit for `bridge`; raises `CircuitError` if file, model or dictionaries do not fit."""
        from sparse_lens.circuits.circuit_files import load_circuit

        return load_circuit(path, bridge, dictionaries)


def _as_torch_hook(hook: Hook) -> Callable[[Any, Any, Tensor], Tensor | None]:
    return lambda module, args, output: hook(output, hook=module)  # noqa: ARG005 - torch's signature
