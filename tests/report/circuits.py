"""Made-up edges for circuits, and strings that a tokenizer should never have."""

from __future__ import annotations

import random

from sparse_lens.circuits import Circuit
from sparse_lens.circuits.cards.connections import ANSWER, EMBEDDING, HEAD_OUT, TOKEN, Connection, Connections, Place

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "\"' onload=alert(1) x='",
    "]]><svg onload=alert(1)>",
    "</title></desc></svg><script>alert(1)</script>",
    "{{ 7*7 }}{% raw %}",
    "\x00\x07\x1b[31m\u202e\u2028\ud800\ufffe\U000e0041",
    "&lt;b&gt;&#x27;<!--",
    "汉" * 40,
]

_PARTS = {
    "q": ("attn_in", "attn_q"),
    "k": ("attn_in", "attn_k"),
    "v": ("attn_in", "attn_v"),
    "mlp_in": ("mlp_in", "mlp_neuron"),
    "mlp_out": ("mlp_neuron", "mlp_out"),
}


def edges_between(circuit: Circuit, most: int, given: list[tuple[str, Place, Place]] | None = None) -> Connections:
    """`given` edges, or at most so many random ones of all kinds between the circuit's nodes, with random weights and effects."""
    rng, kept = random.Random(0), circuit.kept()
    pairs = list(given or [])
    if given is None:
        pairs += [("unembedding", Place("final_resid", i), Place(ANSWER, 3 + i % 2)) for i in kept["final_resid"]]
        for layer in sorted({site.layer for site in circuit.space.sites if site.layer is not None}):
            for kind, (source, target) in _PARTS.items():
                sources, targets = kept[f"{source}.{layer}"], kept[f"{target}.{layer}"]
                pairs += [(kind, Place(f"{source}.{layer}", i), Place(f"{target}.{layer}", j)) for i in sources for j in targets]
            for target in kept[f"attn_out.{layer}"]:
                pairs += [
                    ("output", Place(f"{HEAD_OUT}.{layer}", i), Place(f"attn_out.{layer}", target)) for i in kept[f"attn_v.{layer}"]
                ]
        pairs += [("embedding", Place(TOKEN, 1 + i % 3), Place(EMBEDDING, i)) for i in kept["attn_in.0"]]
        pairs = rng.sample(pairs, min(most, len(pairs)))
    edges = [Connection(kind, source, target, rng.gauss(0, 1), rng.gauss(0, 1)) for kind, source, target in pairs]
    ordered = tuple(sorted(edges, key=lambda edge: -edge.size))
    texts = {1: ' "', 2: " '", 3: '"', 4: "'"}
    return Connections(ordered, len(ordered), True, texts, n_head=8, n_kv_head=8, d_head=8, d_model=64)
