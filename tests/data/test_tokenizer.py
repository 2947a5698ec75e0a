from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sparse_lens.data import END_OF_TEXT, load_tokenizer, save_tokenizer, train_tokenizer
from sparse_lens.data.tokenizer import REQUIRED_TOKENS
from sparse_lens.errors import DataError


def test_round_trip_of_any_unicode(tokenizer: Tokenizer) -> None:
    # The special token alone is not text: decoding drops it.
    @given(st.text().filter(lambda text: END_OF_TEXT not in text))
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text

    check()


def test_round_trip_of_source(tokenizer: Tokenizer, programs: list[str]) -> None:
    awkward = "\tx = '''a\r\n  b'''  # é\n\n\n    pass\n"
    for text in (programs[7], awkward, Path(__file__).read_text()):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("text", REQUIRED_TOKENS)
def test_required_strings_are_one_token(tokenizer: Tokenizer, text: str) -> None:
    assert len(tokenizer.encode(text).ids) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seen.add(1)", ["seen", ".add", "(", "1", ")"]),
        ("x = [[1], [22]]\n", ["x", " =", " [", "[", "1", "]", ",", " [", "2", "2", "]]", "\n"]),
        ("f(a[b[1]])", ["f", "(", "a", "[", "b", "[", "1", "]])"]),
        ('x = \'a\' + """b', ["x", " =", " '", "a", "'", " +", ' """', "b"]),
        ("if a_b == c:\n    x", ["if", " a", "_", "b", " ==", " c", ":", "\n    ", "x"]),
        ("x  # y\n\n\t", ["x", " ", " #", " y", "\n", "\n\t"]),
    ],
)
def test_pre_tokenizer_pieces(tokenizer: Tokenizer, text: str, expected: list[str]) -> None:
    pre_tokenizer = tokenizer.pre_tokenizer
    assert pre_tokenizer is not None
    assert [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)] == expected


def test_end_of_text_is_the_last_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id(END_OF_TEXT) == tokenizer.get_vocab_size() - 1 == 699


def test_transformers_reads_the_saved_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    text = f"x = [1]\n{END_OF_TEXT}y"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids == load_tokenizer(tmp_path).encode(text).ids
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert loaded.eos_token_id == loaded.bos_token_id == loaded.pad_token_id == end


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no single token for.*use at least"):
        train_tokenizer(["x = 1\n" * 100], vocab_size=270)
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
