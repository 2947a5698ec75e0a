"""The words of a circuit's page."""

from __future__ import annotations

WORDS = (
    ("Node", "One channel (or latent of a dictionary) at one site of the model, shared over all positions."),
    (
        "Site",
        "A place in the forward pass: eight in every layer, final_resid, which the unembedding reads, and the residual stream "
        "where a dictionary sees it.",
    ),
    (
        "attn_in, mlp_in",
        "What attention and MLP read: channels of the residual stream behind the norm.",
    ),
    ("attn_q, attn_k, attn_v", "Queries, keys and values of all heads, as one row of channels."),
    ("attn_out, mlp_out", "What attention and MLP write to the residual stream."),
    ("mlp_neuron", "The MLP's neurons behind their activation function."),
    ("Edge", "One nonzero weight between two kept nodes; from the tokens in which prompts differ, and to the two answers."),
    ("Heads' output", "Values mixed by a head's attention. It is no node: it varies with its value channel and with its pattern."),
    ("Residual channel", "A channel that every layer reads and adds to. Drawn as a vertical lane; it has no weights of its own."),
    ("Circuit", "The kept nodes (and edges); everything else is ablated, that is, replaced by what the ablation gives it."),
    ("Mean ablation", "In place of its value, an ablated node has its mean over the training distribution."),
    ("Task loss", "Two-token cross-entropy between the right and the wrong answer at the answer position, in nats."),
    ("Target loss", "The task loss that the search had to reach with as few nodes (and edges) as it could."),
    (
        "Ablation delta",
        "Rise of the task loss, in nats, when this node alone is ablated as well. Deltas of several nodes do not add up.",
    ),
    ("In the circuit, in the model", "Whether the node is dropped from the circuit, or from the model with nothing else ablated."),
    (
        "Effect of an edge",
        "Its weight times the change of its input between the two prompts of a pair: largest position, mean over pairs.",
    ),
    ("Density", "Share of tokens of the reference windows on which the node is not zero."),
    ("Context", "A cutting from the window in which the node is largest in size. Blue tokens: positive; orange: negative."),
    ("Logit lens", "What the node's direction would add to the logits, per unit of activation, if nothing lay between."),
    ("Sufficiency", "Share of the model's gain over full ablation that the circuit alone keeps: 1 is all, 0 none."),
    ("Necessity", "Share of that gain that is lost when the circuit alone is taken out of the model."),
)
"""Term and meaning, in the order of the page."""
