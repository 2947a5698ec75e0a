"""One prompt and its answers as token ids, however they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparse_lens.errors import CircuitError
from sparse_lens.tasks.batch import PromptPair, encode_pair
from sparse_lens.tasks.tokens import Encoder


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt, their texts, and the ids of the answers to explain: none, one, or one and what it is compared to."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    answers: tuple[int, ...]
    encoder: Encoder | None

    def text_of(self, token: int) -> str:
        """A token's text; its number in a model without a tokenizer."""
        return f"[{token}]" if self.encoder is None else self.encoder.text(token)


def encode_prompt(bridge: Any, prompt: str | PromptPair | Sequence[int], answers: Sequence[str | int]) -> EncodedPrompt:
    """The prompt as a model reads it: texts behind an end-of-text token, token ids as they are.

    Raises `CircuitError` for more than two answers, answers that are not one token each or equal, texts without a tokenizer, ids
    outside the vocabulary, and prompts that are empty or longer than the context.
    """
    encoder = None if bridge.tokenizer is None else Encoder(bridge.tokenizer)
    if isinstance(prompt, PromptPair):
        tokens, given = _pair(encoder, prompt)
        given = tuple(answers) or given
    else:
        tokens = (_needed(encoder).end, *_needed(encoder).ids(prompt)) if isinstance(prompt, str) else tuple(map(int, prompt))
        given = tuple(answers)
    found = tuple(_answer(encoder, answer) for answer in given)
    if len(found) > 2 or len(set(found)) < len(found):
        raise CircuitError(f"one answer, or one and another that it is compared to, are explained; got {given!r}")
    context, vocabulary = int(bridge.cfg.n_ctx), int(bridge.cfg.d_vocab)
    if not 0 < len(tokens) <= context:
        raise CircuitError(f"the prompt has {len(tokens)} tokens, the model reads 1 to {context}; give another prompt")
    if wrong := [token for token in (*tokens, *found) if not 0 <= token < vocabulary]:
        raise CircuitError(f"token id {wrong[0]} does not exist: this model's ids are 0 to {vocabulary - 1}")
    encoded = EncodedPrompt(tokens, (), found, encoder)
    return EncodedPrompt(tokens, tuple(encoded.text_of(token) for token in tokens), found, encoder)


def _pair(encoder: Encoder | None, pair: PromptPair) -> tuple[tuple[int, ...], tuple[str | int, ...]]:
    """Ids of a pair's clean prompt, and of its two answers."""
    encoder = _needed(encoder)
    ids = encoder.answers((pair.target, pair.distractor), "of this prompt")
    sides = encode_pair(pair, encoder, ids)
    if sides is None:
        raise CircuitError("the two prompts of the pair are not equally long, or an answer merges with its prompt; take another")
    return tuple(sides[0][0]), (ids[pair.target], ids[pair.distractor])


def _answer(encoder: Encoder | None, answer: str | int) -> int:
    if not isinstance(answer, str):
        return int(answer)
    ids = _needed(encoder).ids(answer)
    if len(ids) != 1:
        raise CircuitError(
            f"the answer {answer!r} is {len(ids)} tokens in this model's tokenizer, not one; give another, or its id"
        )
    return ids[0]


def _needed(encoder: Encoder | None) -> Encoder:
    if encoder is None:
        raise CircuitError("the model has no tokenizer, so it reads no text; give token ids")
    return encoder
