"""Binding measures on models whose way to bind is known, and on the shipped one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.binding import binding_report, binding_table
from sparse_lens.data import load_tokenizer
from sparse_lens.errors import ConfigError, DataError, UnknownNameError

WIDTH = 256
CODES = 8
SCORES = ("segregation", "held_out_accuracy", "composition_gap", "renaming", "representation", "leakage_logits")
SMALL = {"n_pairs": 24}


class Planted(nn.Module):
    """A dictionary behind the interface of a bridge, with two hooks on a stream that it reads its bindings from.

    `how` it binds: `codes` adds one vector for the place of an assignment to its name's token, another to its value's, and matches
    them up; `names` writes the name next to the value; `bag` finds every value of the program equally likely; `last` answers with
    the last one.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.tokenizer = load_tokenizer(ModelPair.open().model_folder("sparse"))
        self.cfg = SimpleNamespace(n_layers=2, n_ctx=64, device="cpu", model_name="planted")
        self.first, self.second = nn.Identity(), nn.Identity()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(self.tokenizer.get_vocab_size(), WIDTH, generator=generator) * 4 / WIDTH**0.5)
        basis = torch.linalg.qr(torch.randn(WIDTH, 2 * CODES, generator=generator)).Q.T
        self.name_codes, self.value_codes = 4 * basis[:CODES], 4 * basis[CODES:]
        self.equals, self.newline = (self.tokenizer.token_to_id(text) for text in ("Ġ=", "Ċ"))

    @property
    def hook_dict(self) -> dict[str, nn.Module]:
        """Under the names of a bridge's."""
        return {"blocks.0.hook_resid_pre": self.first, "blocks.1.hook_resid_pre": self.second}

    def __call__(self, tokens: Tensor, return_type: str | None = "logits") -> Tensor | None:
        x = self.embedding[tokens] + 0
        row, at = (tokens == self.equals).nonzero().T
        place = torch.cat([torch.arange(n) for n in torch.bincount(row, minlength=len(tokens)).tolist()])
        if self.how == "codes":
            x[row, at - 1] += self.name_codes[place]
            x[row, at + 1] += self.value_codes[place]
        if self.how == "names":
            x = self.first(x).clone()
            x[row, at + 1] += 3 * x[row, at - 1]
            x = self.second(x)
        else:
            x = self.second(self.first(x))
        return None if return_type is None else torch.stack([self._row(*pair) for pair in zip(tokens, x, strict=True)])

    def _row(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Logits at all positions of a row: each position asks for the name that it holds."""
        at = (tokens == self.equals).nonzero()[:, 0]
        names, values = x[at - 1], x[at + 1]
        if self.how == "codes":
            keys = (names @ self.name_codes.T).argmax(1)
            found = (values @ self.value_codes.T)[:, keys[(self.embedding[tokens] @ names.T).argmax(1)]].argmax(0)
            chosen = torch.nn.functional.one_hot(found, len(at)).float()
        elif self.how == "names":
            known = (values - self.embedding[tokens[at + 1]]) @ self.embedding.T
            chosen = torch.nn.functional.one_hot(known[:, tokens].argmax(0), len(at)).float()
        else:
            chosen = torch.ones(len(tokens), len(at)) if self.how == "bag" else torch.eye(len(at))[-1].expand(len(tokens), -1)
        logits = self.embedding.sum() * torch.zeros(len(tokens), len(self.embedding))
        return logits.index_add(1, self._answers(tokens[at + 1]), 9 * chosen)

    def _answers(self, values: Tensor) -> Tensor:
        kinds = {"Ġset": ".add", "Ġstr": "Ġ+="}
        texts = [self.tokenizer.id_to_token(token) for token in values.tolist()]
        return torch.tensor([self.tokenizer.token_to_id(kinds.get(text, text)) for text in texts])


@pytest.mark.parametrize(("kind", "n_vars", "distractors"), [("value", 2, 0), ("value", 3, 2), ("type", 2, 1), ("type", 3, 0)])
def test_additive_binding_vectors_flip_and_restore(kind: str, n_vars: int, distractors: int) -> None:
    """A dictionary that binds by added vectors: R = 1 at each layer and at all, no gap, no leak, random vectors do nothing."""
    found = binding_report(Planted("codes"), kind=kind, n_vars=n_vars, distractors=distractors, **SMALL)
    for prefix in ("", "layer0_", "layer1_"):
        values = [found[f"{prefix}{name}"].value for name in ("flip_attribute", "flip_entity", "restore", "random_flip")]
        assert values == [1, 1, 1, 0], prefix
        assert found[f"{prefix}representation"].value == 1
        assert found[f"{prefix}representation"].null == pytest.approx(1 / 3)
        assert found[f"{prefix}both_shift_logits"].value == 0
        assert found[f"{prefix}attribute_shift_logits"].value == -18
    assert [found[name].value for name in ("accuracy", "held_out_accuracy", "composition_gap", "renaming")] == [1, 1, 0, 1]
    assert found["segregation"].value == pytest.approx(1 - (found["heuristic_accuracy"].value or 0))
    if n_vars == 3:
        assert found["leakage_logits"].value == 0
    else:
        assert "third variable" in (found["leakage_logits"].reason or "")


def test_heuristics_are_balanced() -> None:
    """Two or three different values: no rule of position beats chance, whose complement is the segregation of a perfect model."""
    for n_vars in (2, 3):
        found = binding_report(Planted("codes"), n_vars=n_vars, **SMALL)
        assert found["segregation"].value == pytest.approx(1 - 1 / n_vars)
        assert found["accuracy"].null == 1 / n_vars


def test_a_name_beside_its_value_is_found_by_exchange_only() -> None:
    """Means over random names hold no name: the swap does nothing and R is its null of a third; the exchange flips all."""
    found = binding_report(Planted("names"), **SMALL)
    assert found["accuracy"].value == 1
    assert found["flip_attribute"].value == 0
    assert found["representation"].value == pytest.approx(1 / 3)
    assert found["layer1_exchange_flip_attribute"].value == 1
    assert found["layer1_exchange_flip_attribute"].null == 0
    assert found["layer1_exchange_flip_entity"].value == 0


@pytest.mark.parametrize("how", ["bag", "last"])
@pytest.mark.parametrize("n_vars", [2, 3])
def test_a_bag_of_values_segregates_nothing(how: str, n_vars: int) -> None:
    """Without the gate its segregation is 0; with it nothing is measurable, and nothing is 0."""
    found = binding_report(Planted(how), n_vars=n_vars, gate=0.0, **SMALL)
    assert found["accuracy"].value == pytest.approx(1 / n_vars)
    assert found["segregation"].value == pytest.approx(0, abs=1e-12)
    gated = binding_report(Planted(how), n_vars=n_vars, **SMALL)
    assert gated.keys() == found.keys()
    for name, result in gated.items():
        if name not in ("accuracy", "heuristic_accuracy"):
            assert result.value is None
            assert "gate" in (result.reason or "")


def test_a_table_has_the_controls() -> None:
    """The model with random weights cannot look up; the rotated twin has its reason; the model is as it was."""
    model = Planted("codes")
    before = model.embedding.detach().clone()
    table = binding_table({"codes": model}, forms=[("value", 2, 0), ("type", 2, 0)], **SMALL)
    assert table.keys() == {"codes"}
    assert table["codes"].keys() == {"model", "value_2_0", "type_2_0"}
    assert not table["codes"]["model"]["loss"].measurable and table["codes"]["model"]["parameters"].value
    assert torch.equal(model.embedding, before)
    assert "rotation" in (table["codes"]["value_2_0"]["rotated_representation"].reason or "")


def test_the_shipped_models_fail_the_gate() -> None:
    """Trained on Python alone, they do not bind: nothing is measurable, in the model and in its random twin."""
    pair = ModelPair.open()
    bridges = {role: pair.open_model(role) for role in ("sparse", "dense_matched")}
    table = binding_table(bridges, forms=[("value", 2, 0)], heldout=pair.windows["heldout"][:8], **SMALL)
    assert abs(table["sparse - dense_matched"]["model"]["loss"].value or 1) < 0.3
    for report in (table[role]["value_2_0"] for role in bridges):
        assert report["accuracy"].value is not None and report["accuracy"].value < 0.9
        assert report["random_weights_accuracy"].value is not None
        for name in (*SCORES, "layer1_exchange_flip_attribute", "random_weights_representation"):
            assert not report[name].measurable


def test_results_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows at a time give the same numbers."""
    whole = binding_report(Planted("names"), n_vars=3, **SMALL)
    monkeypatch.setattr("sparse_lens.comparisons.binding.prompts.ROWS", 7)
    parts = binding_report(Planted("names"), n_vars=3, **SMALL)
    assert parts.keys() == whole.keys()
    for name, result in whole.items():
        assert parts[name].value == pytest.approx(result.value), name


def test_more_variables_than_the_table_has() -> None:
    """Five of them: what matches names and places still binds, what answers with the last one is right as often as a rule."""
    found = binding_report(Planted("codes"), n_vars=5, n_pairs=20)
    assert found["accuracy"].value == 1.0 and found["segregation"].value == pytest.approx(0.8)
    last = binding_report(Planted("last"), n_vars=5, n_pairs=20)
    assert last["accuracy"].value == pytest.approx(0.2) == last["heuristic_accuracy"].value and not last["renaming"].measurable


def test_bad_input_is_refused() -> None:
    model = Planted("codes")
    with pytest.raises(UnknownNameError, match="kind of binding"):
        binding_report(model, kind="float")
    with pytest.raises(ConfigError, match="2 to 6 variables"):
        binding_report(model, n_vars=7)
    with pytest.raises(ConfigError, match="up to 3 distractors"):
        binding_report(model, distractors=4)
    with pytest.raises(ConfigError, match="at least 2"):
        binding_report(model, n_pairs=1)
    with torch.no_grad():
        model.embedding.fill_(torch.nan)
    with pytest.raises(DataError, match="NaN"):
        binding_report(model, **SMALL)
