"""How many bits does it take to write a circuit down? The one size on which neurons and latents can be compared.

Node and edge counts alone hide what a dictionary costs: a latent counts as one node, though its encoder and decoder rows are
hundreds of numbers. Here every number is priced alike, at `BITS` bits (8), and every choice at its logarithm.

| part | what is written | bits |
|---|---|---|
| `nodes` | which `n` of a site's `N` nodes are kept | `log2 C(N, n)`, summed over sites |
| `edges` | which `e` of a matrix' `E` pairs of kept nodes are joined | `log2 C(E, e)`, summed over matrices |
| `edge_values` | each edge that is an entry of one of the model's matrices | 8 |
| `virtual_values` | each edge that is one number through a dictionary: `W_dec @ W_out`, a transcoder's entries | 8 |
| `skips` | each nonzero entry that a skip transcoder has between kept channels of mlp_in and mlp_out | 8 |
| `biases` | each nonzero bias of the model at a kept channel | 8 |
| `means` | each reading node into which constants fold: means of ablated inputs, of cut edges, of ablated writes | 8 |
| `calibration` | scale and shift of the logits, where the circuit was searched with them | 16 |
| `encoder_rows` | the nonzero encoder entries, biases, thresholds of each kept latent; a site's shift once | 8 each |
| `decoder_rows` | the nonzero decoder entries of each kept latent | 8 each |
| `hidden` | what lies between mlp_in and an SAE on the neurons: the nonzero `W_in` entries of kept channels, and `b_in` | 8 each |
| `error` | a kept error node: what it takes to compute it (below) | 8 each |

An error node `t - decode(encode(s))` needs all rows of its site's dictionary (those of kept latents are charged once), and of the
model what leads from mlp_in to `t` and from the error to the kept channels of mlp_out: `W_out`'s columns of these, for a transcoder
`W_in` and `b_in`, too. It has no edge values. Nor have edges from mlp_in to a latent behind a hidden layer: no single number says
what they do.

Three totals. `total` is the sum of all parts: the rule of the comparison. A dictionary's virtual values could be computed from its
rows: `total_once` leaves them out and so charges no number twice. `total_without_dictionary` leaves out rows, hidden layer and
error nodes: what a latent would cost if dictionaries were free.

Not in the total, since every column has them and no node or edge stands for them: `apart` prices learned positions at read
channels, bigram entries between last tokens and answers, and sink logits. Not priced at all: how many nodes and edges there are (a
few bits a site), the norms' gains, and the embeddings of tokens that are no inputs of the task. A Rotation's rows are priced like
an SAE's, the identity has none.

`log2 C(N, n)` falls beyond `n = N / 2`: a circuit of nearly all nodes is told by what it leaves out. The sum still rises there as
long as a node brings more bits of values than its choice saves.

The parts are those of section 5 of the comparison's definitions; arXiv:2410.11179 measures dictionaries alone in bits a token.
"""

from __future__ import annotations

from math import lgamma, log

import torch
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.counting import count_apart, count_biases
from sparse_lens.circuits.edges.encoders import encoder_rows
from sparse_lens.circuits.edges.latents import as_channels, count_skips
from sparse_lens.circuits.edges.space import EdgeSpace, candidate_edges, possible_edges
from sparse_lens.circuits.sites import FINAL_SITE, Site
from sparse_lens.circuits.weights import WeightGraph
from sparse_lens.results import Result, exact

BITS = 8
"""Bits of a number, whatever it is of."""

PARTS = (
    *("nodes", "edges", "edge_values", "virtual_values", "skips", "biases", "means", "calibration"),
    *("encoder_rows", "decoder_rows", "hidden", "error"),
)
OF_DICTIONARIES = ("encoder_rows", "decoder_rows", "hidden", "error")


def description_length(circuit: Circuit, graph: WeightGraph) -> dict[str, Result]:
    """Bits of each of `PARTS`, `total`, `total_once`, `total_without_dictionary`, and `apart`; names end in `_bits`.

    The edges are those that a search has kept, else all (virtual) weights between kept nodes. `graph` delimits the task: its input
    tokens and answers (`weight_graph`, for a KL target `Objective("kl").graph` of it). Raises `CircuitError` for dictionaries
    elsewhere than in an MLP, and for one without encoder rows.
    """
    edges = candidate_edges(circuit.space, circuit.mask, graph) if circuit.edges is None else circuit.edges.kept
    kept = circuit.space.split(circuit.mask)
    possible = possible_edges(circuit.space, circuit.mask, graph, nonzero_only=False)
    bits = dict.fromkeys(PARTS, 0.0)
    bits["nodes"] = sum(log2_choices(len(part), int(part.sum())) for part in kept.values())
    bits["edges"] = sum(log2_choices(int(possible[name].sum()), len(index)) for name, index in edges.index.items())
    real, virtual = _edge_values(circuit, edges)
    bits["edge_values"], bits["virtual_values"] = BITS * real, BITS * virtual
    bits["skips"] = BITS * count_skips(circuit.space, circuit.mask, graph)
    bits["biases"] = BITS * count_biases(circuit.space, circuit.mask, graph)
    bits["means"] = BITS * folded_constants(circuit, graph, edges)
    bits["calibration"] = 2 * BITS if circuit.search.get("calibration") is not None else 0
    for site in circuit.space.sites:
        if not site.is_identity:
            for part, numbers in _dictionary_numbers(site, kept, graph).items():
                bits[part] += BITS * numbers
    return {f"{name}_bits": exact(value) for name, value in (bits | _totals(bits) | _apart(circuit, graph)).items()}


def _totals(bits: dict[str, float]) -> dict[str, float]:
    total = sum(bits.values())
    free = sum(bits[part] for part in OF_DICTIONARIES)
    once = total - bits["virtual_values"] if free else total
    return {"total": total, "total_once": once, "total_without_dictionary": total - free}


def _apart(circuit: Circuit, graph: WeightGraph) -> dict[str, float]:
    counts = count_apart(circuit, graph)
    return {"apart": BITS * sum(counts[kind] for kind in ("positions", "bigram", "sinks"))}


def log2_choices(n: int, k: int) -> float:
    """`log2` of the number of ways to choose `k` of `n`."""
    return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)


def _edge_values(circuit: Circuit, edges: EdgeSpace) -> tuple[int, int]:
    """Edges that are one number each: of the model's matrices, and through dictionaries."""
    through = {site.layer: site for site in circuit.space.sites if not site.is_identity}
    real = virtual = 0
    for name, index in edges.index.items():
        kind, _, layer = name.partition(".")
        site = through.get(int(layer)) if kind in ("mlp_in", "mlp_out") else None
        if site is None:
            real += len(index)
        elif kind == "mlp_out" or site.reads_elsewhere:
            virtual += int((index[:, 1 if kind == "mlp_out" else 0] < site.n_latents).sum())
    return real, virtual


def _dictionary_numbers(site: Site, kept: dict[str, Tensor], graph: WeightGraph) -> dict[str, int]:
    """Numbers of each of `OF_DICTIONARIES` at one site."""
    mask, weights = kept[site.name], graph.layers[site.layer or 0]
    latents, error = mask[: site.n_latents], not site.dictionary.exact and bool(mask[-1])
    rows, decoder = encoder_rows(site.dictionary), site.dictionary.W_dec
    if not bool(latents.any()) and not error:
        return {}
    n, on_neurons = int(latents.sum()), not site.reads_elsewhere
    encoder_entries, decoder_entries = (rows.weight != 0).sum(0), (decoder != 0).sum(1)
    shift = int((rows.shift != 0).sum())
    read, written = weights.fc_in[:, kept[f"mlp_in.{site.layer}"]], weights.fc_out[kept[f"mlp_out.{site.layer}"]]
    hidden = int(read.sum()) + int(graph.biases.get(f"blocks.{site.layer}.mlp.in.bias", torch.zeros(0)).sum())
    numbers = {
        "encoder_rows": int(encoder_entries[latents].sum()) + rows.n_biases * n + shift,
        "decoder_rows": int(decoder_entries[latents].sum()),
        "hidden": hidden if on_neurons else 0,
    }
    if error:
        rest = int(encoder_entries[~latents].sum() + decoder_entries[~latents].sum()) + rows.n_biases * int((~latents).sum())
        numbers["error"] = rest + int((decoder_bias(site) != 0).sum()) + int(written.sum()) + (0 if on_neurons else hidden)
    return numbers


def decoder_bias(site: Site) -> Tensor:
    """What a dictionary decodes nothing to, `[d_out]`."""
    with torch.no_grad():
        return site.dictionary.decode(site.dictionary.W_dec.new_zeros(1, site.n_latents))[0]


def folded_constants(circuit: Circuit, graph: WeightGraph, edges: EdgeSpace) -> int:
    """Reading nodes into which a constant folds: a mean over a weight that is no kept edge, or an ablated write to the channel."""
    space, graph = as_channels(circuit.space, graph)
    kept, values = space.split(circuit.mask), circuit.how_ablated.fixed_values()
    means = {name: torch.cat([ref.latents, ref.error.abs().sum()[None]])[: len(kept[name])] != 0 for name, ref in values.items()}
    found = 0
    everything = possible_edges(space, torch.ones_like(circuit.mask), graph, nonzero_only=True)
    for name, index in edges.index.items():
        kind, _, layer = name.partition(".")
        if kind == "embedding":
            continue
        pattern = _weights(graph, everything, name).clone()
        pattern[index[:, 0], index[:, 1]] = False
        source = {"q": "attn_in", "k": "attn_in", "v": "attn_in", "mlp_in": "mlp_in", "mlp_out": "mlp_neuron"}.get(kind)
        constant = pattern if source is None else pattern & means[f"{source}.{layer}"]
        outputs = _outputs(kind, layer, kept, pattern, graph)
        found += int((constant.any(1) & outputs).sum())
    return found + _folded_writes(kept, means, graph)


def _weights(graph: WeightGraph, everything: dict[str, Tensor], name: str) -> Bool[Tensor, "out in"]:
    """Nonzero weights of a matrix; of the output matrix also those of head outputs that are constant."""
    kind, _, layer = name.partition(".")
    return graph.layers[int(layer)].o if kind == "output" else everything[name]


def _outputs(kind: str, layer: str, kept: dict[str, Tensor], pattern: Tensor, graph: WeightGraph) -> Bool[Tensor, " out"]:
    """The kept nodes, or the answers, that a matrix writes to."""
    if kind == "unembedding":
        answers = torch.zeros(len(pattern), dtype=torch.bool)
        answers[list(graph.answers)] = True
        return answers
    site = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "output": "attn_out", "mlp_in": "mlp_neuron", "mlp_out": "mlp_out"}[kind]
    return kept[f"{site}.{layer}"]


def _folded_writes(kept: dict[str, Tensor], means: dict[str, Tensor], graph: WeightGraph) -> int:
    """Kept reads of residual channels to which some earlier ablated node writes a mean other than 0."""
    constant = torch.zeros(graph.d_model, dtype=torch.bool)
    found = 0
    for layer in range(len(graph.layers)):
        for read, write in (("attn_in", "attn_out"), ("mlp_in", "mlp_out")):
            found += int((kept[f"{read}.{layer}"][: graph.d_model] & constant).sum())
            constant = constant | (~kept[f"{write}.{layer}"] & means[f"{write}.{layer}"])
    return found + int((kept[FINAL_SITE] & constant).sum())
