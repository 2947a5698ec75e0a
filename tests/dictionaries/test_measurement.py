"""Harvested activations and the statistics on them have known answers."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.predictability.measuring import collect_sums
from sparse_lens.comparisons.rows.correspondence import measure_correspondence
from sparse_lens.comparisons.rows.superposition import measure_superposition
from sparse_lens.dictionaries import IdentityDictionary, harvest_activations, measure_dictionary
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.hooks import load

VALUES = torch.tensor([[1.0, 0, 2], [3, 0, 0], [0, 4, 0], [1, 1, 1]])
"""Activation of each of four token ids."""


@dataclass(eq=False)
class ToyBridge:
    """A lookup table with a hook on its rows, and one that splits them by head."""

    cfg: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(n_ctx=8, device="cpu", model_name="toy"))
    hook_dict: dict = field(default_factory=lambda: {name: nn.Identity() for name in ("rows", "heads", "never")})

    def __call__(self, tokens, **options):
        self.hook_dict["heads"](VALUES[tokens][..., None, :])
        return self.hook_dict["rows"](VALUES[tokens])


@dataclass(frozen=True)
class Halved(IdentityDictionary):
    """Reconstructs half of the activation."""

    def decode(self, f):
        return f / 2


def test_harvest_flattens_positions():
    tokens = np.array([[0, 1, 2], [3, 0, 0]])
    (found,) = harvest_activations(ToyBridge(), ["rows"], [tokens])
    assert torch.equal(found["rows"], VALUES[[0, 1, 2, 3, 0, 0]])


def test_harvest_leaves_other_hooks_on_and_its_own_off():
    bridge = ToyBridge()
    point = bridge.hook_dict["rows"]
    point.register_forward_hook(lambda *seen: -seen[-1])
    found = list(harvest_activations(bridge, ["rows"], 2 * [torch.tensor([[1]])]))
    assert torch.equal(found[1]["rows"], -VALUES[[1]]) and len(point._forward_hooks) == 1


@pytest.mark.parametrize(
    ("hook", "tokens", "message"),
    [
        ("rows", torch.zeros(1, 9, dtype=torch.long), r"9 tokens are longer than .* 8; cut them"),
        ("rows", torch.zeros(1, 3), r"integer \[batch, pos\], got torch.float32"),
        ("rows", torch.zeros(3, dtype=torch.long), r"integer \[batch, pos\], got torch.int64 \(3,\)"),
        ("heads", torch.zeros(1, 3, dtype=torch.long), r"gives \(1, 3, 1, 3\), not \[batch, pos, width\]"),
        ("never", torch.zeros(1, 3, dtype=torch.long), "did not run"),
    ],
)
def test_harvest_refuses(hook, tokens, message):
    bridge = ToyBridge()
    with pytest.raises(DataError, match=message):
        list(harvest_activations(bridge, [hook], [tokens]))
    assert not bridge.hook_dict[hook]._forward_hooks


@pytest.mark.parametrize("padding", [-1, -100])
def test_padding_counts_nowhere(padding):
    """Rows of unlike length in one padded batch give what they give by themselves: the same vectors, the same statistics."""
    bridge, hook = load("python-sparse"), "blocks.1.mlp.hook_post"
    rows = [torch.from_numpy(row[:n]) for row, n in zip(ModelPair.open().windows["heldout"], (20, 7, 33), strict=False)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    alone = torch.cat([found[hook] for found in harvest_activations(bridge, [hook], [row[None] for row in rows])])
    (together,) = harvest_activations(bridge, [hook], [padded])
    assert torch.allclose(together[hook], alone, atol=1e-5)
    neurons = IdentityDictionary(alone.shape[1], hook)
    found, expected = (measure_superposition(bridge, neurons, batches) for batches in ([padded], [row[None] for row in rows]))
    assert found["psi"].value == pytest.approx(expected["psi"].value, rel=1e-5) and found["psi"].n == 60
    with pytest.raises(DataError, match="windows that are whole"):
        measure_correspondence(bridge, neurons, bridge, neurons, [padded])
    with pytest.raises(DataError, match="windows that are whole"):
        collect_sums(bridge, neurons, [padded])
    for bad in (padded.flip(1), torch.full((1, 4), padding)):
        with pytest.raises(DataError, match="padding"):
            list(harvest_activations(bridge, [hook], [bad]))


def test_a_pass_ends_at_the_last_hook_with_what_the_whole_pass_has():
    """Hooks of the user before it take effect, later modules do not run, and the model is as it was."""
    bridge, hooks = load("python-sparse"), ["blocks.0.mlp.hook_post", "blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"]
    tokens, ran = torch.from_numpy(ModelPair.open().windows["heldout"][:2, :30]), []
    _, cache = bridge.run_with_cache(tokens)
    handle = bridge.hook_dict["blocks.1.hook_mlp_out"].register_forward_hook(lambda *_: ran.append(True))
    (found,) = harvest_activations(bridge, hooks[::2], [tokens])
    assert not ran and all(torch.equal(found[hook], cache[hook].flatten(0, 1)) for hook in hooks[::2])
    (whole,) = harvest_activations(bridge, [hooks[0]], [tokens], whole=True)
    assert ran.pop() and torch.equal(whole[hooks[0]], found[hooks[0]])
    with bridge.hooks(fwd_hooks=[(hooks[0], lambda value, hook: value * 0)]):
        (silenced,) = harvest_activations(bridge, [hooks[0]], [tokens])
    assert not silenced[hooks[0]].any()
    bridge(tokens)
    assert ran and torch.equal(bridge.run_with_cache(tokens)[1][hooks[1]], cache[hooks[1]])
    handle.remove()


def test_unknown_hooks_are_named():
    with pytest.raises(UnknownNameError, match="unknown hook 'row': did you mean 'rows'"):
        list(harvest_activations(ToyBridge(), ["row"], []))


def test_hand_computed_statistics():
    statistics = measure_dictionary(ToyBridge(), Halved(3, "rows"), [torch.tensor([[0, 1, 2, 3]])])
    squares = 5 + 9 + 16 + 3  # the mean row is (5, 5, 3) / 4, its square 59 / 16
    assert statistics.n_tokens == 4 and statistics.l0 == pytest.approx((2 + 1 + 1 + 3) / 4)
    assert statistics.fvu == pytest.approx(squares / 4 / 4 / (squares / 4 - 59 / 16))
    assert statistics.dead is None and statistics.rare is None and statistics.dense == 1


def test_identity_leaves_no_variance_unexplained():
    assert measure_dictionary(ToyBridge(), IdentityDictionary(3, "rows"), [torch.tensor([[0, 1, 2, 3]])]).fvu == 0


def test_statistics_do_not_depend_on_the_batches():
    tokens = torch.randint(4, (12, 8), generator=torch.Generator().manual_seed(0))
    all_at_once = measure_dictionary(ToyBridge(), Halved(3, "rows"), [tokens])
    in_pieces = measure_dictionary(ToyBridge(), Halved(3, "rows"), [*tokens[:9].split(2), *tokens[9:].split(1)])
    assert in_pieces.fvu == pytest.approx(all_at_once.fvu, rel=1e-12) and in_pieces.l0 == all_at_once.l0


def test_dead_latents_are_counted_once_there_are_enough_tokens():
    bridge = ToyBridge(SimpleNamespace(n_ctx=None, device="cpu"))
    tokens = torch.zeros(1, 104_000, dtype=torch.long)
    statistics = measure_dictionary(bridge, IdentityDictionary(3, "rows"), [tokens])
    assert statistics.dead == pytest.approx(1 / 3) and statistics.rare == statistics.dead
    assert statistics.fvu is None  # one token only: nothing varies


def test_nothing_to_measure_on():
    with pytest.raises(DataError, match="at least one batch"):
        measure_dictionary(ToyBridge(), IdentityDictionary(3, "rows"), [])
