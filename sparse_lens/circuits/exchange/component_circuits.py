"""From circuits of channels to graphs of heads and MLPs, and back.

**From channels to components.** A head is in the graph if any of its query, key or value channels is kept, an MLP if any of its
neurons is; `input` and `logits` always. An edge is in the graph if some residual channel joins its ends: the source writes the
channel by a nonzero weight from what it keeps, and the channel is kept where the source writes (`attn_out`, `mlp_out`) and where
the target reads (`attn_in`, `mlp_in`, `final_resid`) by a nonzero weight to what it keeps. In a dense model every weight is
nonzero, and the kept channels alone decide. `input` writes what embeddings write, and positions that are added to them; positions
that are concatenated never enter the residual stream and make no edges. `logits` reads by the unembedding of any token.

**From components to channels.** All channels of the listed heads and MLPs are kept, with everything that their sublayers read and
write, and all of `final_resid`. Edges are not: a circuit of nodes keeps all edges between them, so it may do more than the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparse_lens.circuits.circuit import NOT_MEASURED, Circuit
from sparse_lens.circuits.exchange.components import COMPONENT, INPUT, LOGITS, ComponentGraph
from sparse_lens.circuits.masking import Reference, mean_reference
from sparse_lens.circuits.search.nodes import DEFAULT_TARGET, default_windows
from sparse_lens.circuits.sites import FINAL_SITE, LAYER_SITES, full_mask, model_fingerprint, node_space
from sparse_lens.circuits.weights import heads_of, reached_by, reaching
from sparse_lens.errors import CircuitError
from sparse_lens.hooks.layout import DecoderLayout, decoder_layout, gather, layer_matrices, spread

Parts = Mapping[str, Tensor]
Channels = Bool[Tensor, " d_model"]


def component_graph(bridge: Any, circuit: Circuit) -> ComponentGraph:
    """The heads and MLPs of a circuit of channels, and the edges between them, by the rule that this file begins with.

    An edge's score is the number of residual channels that join its ends. Raises `CircuitError` for another model, and for a
    circuit of latents, which have no weights of their own.
    """
    space = circuit.check_model(bridge)
    if space.has_dictionaries:
        raise CircuitError("heads and MLPs have channels, not latents; give a circuit found without dictionaries")
    layout, kept = decoder_layout(bridge), space.split(circuit.mask)
    writes, reads, nodes = _ends(bridge, layout, kept)
    sizes = (layout.n_layers, layout.n_head, layout.d_model)
    step, joined = ComponentGraph(*sizes).step, {}
    steps = [{name: step(name.partition("<")[0]) for name in ends} for ends in (writes, reads)]
    shared = torch.stack(list(reads.values())).float() @ torch.stack(list(writes.values())).float().T
    sources, targets = list(writes), list(reads)
    for t, s in shared.nonzero().tolist():
        if steps[0][sources[s]] < steps[1][targets[t]]:
            joined[f"{sources[s]}->{targets[t]}"] = float(shared[t, s])
    return ComponentGraph(*sizes, nodes=frozenset(nodes), edges=frozenset(joined), edge_scores=joined)


def component_circuit(
    bridge: Any,
    graph: ComponentGraph,
    *,
    task: str,
    reference: Mapping[str, Reference] | None = None,
    windows: Int[np.ndarray, "window pos"] | None = None,
    target_loss: float = DEFAULT_TARGET,
    progress: bool = False,
) -> Circuit:
    """The circuit that keeps all channels of a graph's components, ready for `score_circuit`.

    `reference` gives the ablation values by site, or they are the means over `windows` (token ids; by default those that come with
    the model). Its loss is not a number until somebody measures it. Raises `CircuitError` for a graph of other sizes than the
    bridge's, and for one without components: a file of scores alone has none yet.
    """
    layout, space = decoder_layout(bridge), node_space(bridge)
    sizes, found = (graph.n_layers, graph.n_heads, graph.d_model), (layout.n_layers, layout.n_head, layout.d_model)
    if sizes != found or graph.parallel:
        kind = "in parallel" if graph.parallel else "one after the other"
        raise CircuitError(
            f"the graph is of a model of {sizes} layers, heads and d_model, attention and MLP {kind}, the bridge's of {found}, one "
            "after the other; load the model that the graph belongs to"
        )
    if not graph.nodes - {INPUT, LOGITS}:
        raise CircuitError("no head and no MLP is in the graph; choose components by their scores first")
    mask = full_mask(space, keep=False)
    for name in sorted(graph.nodes):
        for site, channels in _channels(name, layout).items():
            mask[space.slices[site]] |= channels
    if reference is None:
        reference = mean_reference(bridge, space, default_windows(bridge) if windows is None else windows, progress=progress)
    search = {"source": "heads and MLPs", "components": sorted(graph.nodes), "edges_of_the_graph": len(graph.edges)}
    return Circuit(mask, space, reference, task, model_fingerprint(bridge), target_loss, NOT_MEASURED, search)


def _channels(name: str, layout: DecoderLayout) -> dict[str, Bool[Tensor, " d"]]:
    """The channels of a component, by site; those of `input` and `logits` are the final residual stream."""

    def whole(*kinds: str, layer: int) -> dict[str, Tensor]:
        return {f"{kind}.{layer}": torch.ones(layout.widths[kind], dtype=torch.bool) for kind in kinds}

    match = COMPONENT.fullmatch(name)
    assert match is not None
    channels = {FINAL_SITE: torch.ones(layout.d_model, dtype=torch.bool)}
    if match["mlp"] is not None:
        channels |= whole("mlp_in", "mlp_neuron", "mlp_out", layer=int(match["mlp"]))
    elif match["layer"] is not None:
        layer, query = int(match["layer"]), _head_channels(int(match["head"]), layout)
        key = gather(query, layout.n_kv_head, layout.n_head)
        channels |= whole("attn_in", "attn_out", layer=layer)
        channels |= {f"attn_q.{layer}": query, f"attn_k.{layer}": key, f"attn_v.{layer}": key}
    return channels


def _ends(bridge: Any, layout: DecoderLayout, kept: Parts) -> tuple[dict[str, Channels], dict[str, Channels], set[str]]:
    """Residual channels that each source writes, that each target reads, and the components in the graph."""
    writes, reads, nodes = {INPUT: _embedded(bridge, layout)}, {}, {INPUT, LOGITS}
    for layer in range(layout.n_layers):
        matrices, of = layer_matrices(bridge, layer), {kind: kept[f"{kind}.{layer}"] for kind in LAYER_SITES}
        by_head = {"q": of["attn_q"]} | {k: spread(of[f"attn_{k}"], layout.n_kv_head, layout.n_head) for k in "kv"}
        output, mixed = _nonzero(matrices.o), _mixed(by_head, layout)
        inputs = {letter: _nonzero(getattr(matrices, letter)) for letter in "qkv"}
        for head in range(layout.n_head):
            name, own = f"a{layer}.h{head}", _head_channels(head, layout)
            if any(bool((part & own).any()) for part in by_head.values()):
                nodes.add(name)
                writes[name] = of["attn_out"] & reaching(output, mixed & own)
                reads |= {f"{name}<{letter}>": _read_by(letter, of, own, inputs, layout) for letter in "qkv"}
        if bool(of["mlp_neuron"].any()):
            nodes.add(f"m{layer}")
            fc_in = _nonzero(matrices.fc_in) if matrices.gate is None else _nonzero(matrices.fc_in) | _nonzero(matrices.gate)
            reads[f"m{layer}"] = (of["mlp_in"] & reached_by(fc_in, of["mlp_neuron"]))[: layout.d_model]
            writes[f"m{layer}"] = of["mlp_out"] & reaching(_nonzero(matrices.fc_out), of["mlp_neuron"])
    reads[LOGITS] = kept[FINAL_SITE] & _nonzero(bridge.W_U).any(1)
    return writes, reads, nodes


def _head_channels(head: int, layout: DecoderLayout) -> Bool[Tensor, " d_attn"]:
    channels = torch.zeros(layout.n_head, layout.widths["attn_q"] // layout.n_head, dtype=torch.bool)
    channels[head] = True
    return channels.flatten()


def _mixed(by_head: Parts, layout: DecoderLayout) -> Bool[Tensor, " d_attn"]:
    """Channels of the heads' outputs that vary: of kept values; with a sink, which scales even a constant, of patterns, too."""
    if not layout.sink:
        return by_head["v"]
    return by_head["v"] | heads_of(by_head["q"] | by_head["k"], layout.n_head)


def _read_by(letter: str, of: Parts, own: Bool[Tensor, " d_attn"], inputs: Parts, layout: DecoderLayout) -> Channels:
    """Residual channels that a head's kept queries, keys or values read."""
    channels = own if letter == "q" else gather(own, layout.n_kv_head, layout.n_head)
    sources = reached_by(inputs[letter], of[f"attn_{letter}"] & channels)
    return (of["attn_in"] & sources)[: layout.d_model]


def _embedded(bridge: Any, layout: DecoderLayout) -> Channels:
    written = _nonzero(bridge.W_E).any(0)
    if layout.concatenated or "pos_embed" not in bridge.adapter.component_mapping:
        return written
    return written | _nonzero(bridge.pos_embed.W_pos).any(0)


def _nonzero(tensor: Tensor) -> Tensor:
    return (tensor.detach() != 0).cpu()
