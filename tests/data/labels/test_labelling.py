"""Labels land on the right tokens, whatever the tokenizer, and the catalogue asks what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from sparse_lens.data import END_OF_TEXT, load_tokenizer
from sparse_lens.data.labels import CATALOGUE, HIERARCHIES, available_concepts, binary_labels, label_tokens
from sparse_lens.data.labels.lexemes import scan_source
from sparse_lens.data.labels.offsets import main_lexemes
from sparse_lens.data.labels.states import lexical_states
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.models_shipped import tokenizer_folder

TEXT = '''\
class Köln:
    """Ein Gruß: „hä?“"""
    def größe(self, *, maß=1.5):
        ß = {"ä": [1, (2, 3)]}  # Öl 🙂
        return f"{ß['ä']}" if self.maß else None
'''


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer(tokenizer_folder())


def byte_level(trim_offsets):
    """A byte-level tokenizer like GPT-2's, with an added special token and offsets that may be trimmed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def check_round_trip(text, tokenizer):
    """Offsets tile the text, and each token's bytes are those of its characters, or some of one character's."""
    found = label_tokens(text, tokenizer)
    covered = 0
    for start, end in found.offsets:
        assert start <= covered <= end or start == covered
        covered = max(covered, int(end))
    assert covered == len(text)
    assert "".join(text[s:e] for i, (s, e) in enumerate(found.offsets) if not i or s >= found.offsets[i - 1, 1]) == text
    return found


@pytest.mark.parametrize("trim", [False, True])
def test_offsets_round_trip_with_any_byte_level_tokenizer(trim):
    check_round_trip(TEXT, byte_level(trim))


@given(text=st.text(alphabet="ab \n\té🙂ß'\"()#:=漢", max_size=40))
def test_offsets_round_trip_on_any_text(text):
    check_round_trip(text, load_tokenizer(tokenizer_folder()))


def test_state_labels_are_those_after_the_last_character(shipped):
    found = check_round_trip(TEXT, shipped)
    states = lexical_states(TEXT, scan_source(TEXT))
    for name, values in states.items():
        assert np.array_equal(found.values[name], values[found.offsets[:, 1] - 1])


def test_span_labels_are_those_of_the_majority(shipped):
    found = label_tokens("x = abc\n", shipped)
    kinds = {"x = abc\n"[s:e]: int(kind) for (s, e), kind in zip(found.offsets, found.values["kind"], strict=True)}
    assert kinds["x"] == 4 and kinds["\n"] == 1  # a name, a line's end
    offsets = np.array([[0, 3], [2, 6], [3, 3], [5, 6], [3, 5]])
    starts, rank = np.array([0, 2, 3, 5]), np.array([2, 2, 0, 2])  # lexemes aa b __ c
    assert main_lexemes(offsets, starts, rank, 6).tolist() == [0, 3, -1, 3, 2]


def test_fast_tokenizers_and_their_special_tokens(shipped):
    fast = PreTrainedTokenizerFast(tokenizer_object=shipped, eos_token=END_OF_TEXT)
    text = f"x = '{END_OF_TEXT}'\n"
    plain, wrapped = label_tokens(text, shipped), label_tokens(text, fast)
    assert np.array_equal(plain.ids, wrapped.ids) and shipped.token_to_id(END_OF_TEXT) not in plain.ids
    assert shipped.encode_special_tokens is False  # the caller's tokenizer is as it was


def test_tokens_of_no_width_are_unknown_where_there_is_nothing():
    tokenizer = Tokenizer(models.WordLevel({"▁": 0, "x": 1, "?": 2}, unk_token="?"))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "isolated")
    found = label_tokens("x", tokenizer)
    assert len(found.ids) == 2 and found.values["kind"][1] == 4
    assert set(found.values["kind"].tolist()) <= {-1, 4}


def test_labels_of_the_token_that_follows(shipped):
    found = label_tokens("f(x)\n", shipped)
    following = found.following()
    assert following.values["bracket_depth"].tolist() == [*found.values["bracket_depth"].tolist()[1:], -1]


@pytest.mark.parametrize(("text", "tokenizer"), [("x", object()), ("\ud800", None)])
def test_what_cannot_be_labelled(text, tokenizer, shipped):
    with pytest.raises(DataError):
        label_tokens(text, tokenizer or shipped)


def test_empty_text(shipped):
    found = label_tokens("", shipped)
    assert len(found.ids) == 0 and binary_labels(found)[1].shape == (0, len(CATALOGUE))


def concepts_of(text, tokenizer):
    found = label_tokens(text, tokenizer)
    names, matrix = binary_labels(found)
    return {
        name: [text[s:e].strip() for (s, e), value in zip(found.offsets, matrix[:, column], strict=True) if value == 1]
        for column, name in enumerate(names)
    }


def test_catalogue(shipped):
    assert len(available_concepts()) >= 40
    assert all(name in CATALOGUE for general, special in HIERARCHIES.items() for name in (general, *special))
    found = concepts_of("def f(a):\n    x = set()\n    y = 'b' + x[{1}]\nelse_ = \"c\"\n", shipped)
    assert found["word_def"] == ["def"] and found["in_single_quotes"] == ["'", "b"] and found["in_double_quotes"] == ['"', "c"]
    assert found["bracket_depth_2"] == ["{", "1"]
    assert found["innermost_curly"] == ["{", "1"] and found["is_number"] == ["1"]
    assert found["variable_is_set"] == ["x", "x"] and found["role_parameter"] == ["a"] and found["in_function"][0] == "def"


def test_unknown_labels_are_neither_yes_nor_no(shipped):
    names, matrix = binary_labels(label_tokens("def f(x:\n  y = 'a", shipped))
    column = {name: matrix[:, index] for index, name in enumerate(names)}
    assert (column["in_function"] == -1).all() and (column["variable_is_set"] == -1).all()
    assert set(column["in_string"].tolist()) == {0, 1} and column["word_def"][0] == 1


def test_unknown_concepts_are_named(shipped):
    with pytest.raises(UnknownNameError, match="unknown concept 'in_loops': did you mean 'in_loop'"):
        binary_labels(label_tokens("x", shipped), ["in_loops"])
