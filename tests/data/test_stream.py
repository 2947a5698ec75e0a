from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparse_lens.data import END_OF_TEXT, DataConfig, TokenData, prepare_data, rebuild_documents
from sparse_lens.errors import DataError


def test_arrays_are_memory_maps_of_the_counted_length(token_data: TokenData) -> None:
    for split in ("train", "valid", "valid_generated"):
        tokens = token_data.tokens(split)
        assert isinstance(tokens, np.memmap)
        assert tokens.dtype == np.uint16
        assert len(tokens) == token_data.manifest["tokens"][split]
        assert tokens.max() < token_data.vocab_size


def test_validation_holds_the_held_out_real_files(token_data: TokenData) -> None:
    text = token_data.tokenizer.decode(token_data.valid.tolist(), skip_special_tokens=False)
    documents = text.split(END_OF_TEXT)[:-1]
    splits = rebuild_documents(token_data.manifest)
    assert set(documents) == {document.text for document in splits["valid"]}
    assert not set(documents) & {document.text for document in splits["train"]}


def test_generated_share_is_by_tokens(token_data: TokenData, data_config: DataConfig) -> None:
    share = token_data.manifest["generator"]["tokens"] / len(token_data.train)
    assert share == pytest.approx(data_config.generated_share, abs=0.03)


def test_total_tokens_bounds_the_corpus(data_config: DataConfig, tmp_path: Path) -> None:
    data = prepare_data(replace(data_config, total_tokens=8000), tmp_path / "small")
    assert 8000 <= len(data.train) < 10_500
    assert len([entry for entry in data.manifest["files"] if entry["split"] == "train"]) < 30


def test_building_again_opens_the_folder(token_data: TokenData, data_config: DataConfig) -> None:
    before = (token_data.directory / "train.bin").stat().st_mtime_ns
    again = prepare_data(data_config, token_data.directory)
    assert (again.directory / "train.bin").stat().st_mtime_ns == before
    assert not [path for path in token_data.directory.parent.iterdir() if path != token_data.directory]


def test_equal_configurations_give_equal_tokens(token_data: TokenData, data_config: DataConfig, tmp_path: Path) -> None:
    again = prepare_data(data_config, tmp_path / "again")
    assert np.array_equal(again.train, token_data.train)
    assert again.manifest == token_data.manifest


def test_a_trained_tokenizer_is_built_with_the_corpus(data_config: DataConfig, tmp_path: Path) -> None:
    config = replace(data_config, tokenizer_directory=None, vocab_size=640, tokenizer_mb=0.1)
    data = prepare_data(config, tmp_path / "own")
    assert data.vocab_size == 640
    assert int(data.train.max()) == 639


def test_each_batch_depends_on_seed_and_step_alone(token_data: TokenData) -> None:
    settings = {"context": 16, "batch_size": 4, "seed": 3}
    per_epoch = (len(token_data.train) - 1) // 16 // 4
    steps = per_epoch + 20
    whole = list(token_data.batches(**settings, n_steps=steps))
    resumed = list(token_data.batches(**settings, start_step=per_epoch - 5, n_steps=25))
    assert len(whole) == steps
    assert all(np.array_equal(a, b) for a, b in zip(whole[per_epoch - 5 :], resumed, strict=True))
    assert whole[0].shape == (4, 17)
    assert whole[0].dtype == np.int64
    other = next(token_data.batches(context=16, batch_size=4, seed=4, n_steps=1))
    assert not np.array_equal(whole[0], other)


def test_an_epoch_sees_every_window_once(token_data: TokenData) -> None:
    context, batch_size = 16, 4
    per_epoch = (len(token_data.train) - 1) // context // batch_size
    batches = np.concatenate(list(token_data.batches(context=context, batch_size=batch_size, seed=0, n_steps=per_epoch)))
    n_windows = (len(token_data.train) - 1) // context
    windows = token_data.train[: n_windows * context].reshape(n_windows, context)
    seen = {row.tobytes() for row in batches[:, :-1].astype(np.uint16)}
    missing = sum(window.tobytes() not in seen for window in windows)
    assert missing <= n_windows % batch_size


def test_validation_windows_are_fixed_and_spread(token_data: TokenData) -> None:
    windows = token_data.validation_windows(32, 5)
    assert windows.shape == (5, 33)
    assert np.array_equal(windows, token_data.validation_windows(32, 5))
    assert np.array_equal(windows[0], token_data.valid[:33])
    assert np.array_equal(windows[-1], token_data.valid[-33:])


def test_errors_of_folders_and_sizes(token_data: TokenData, data_config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another configuration"):
        prepare_data(replace(data_config, seed=9), token_data.directory)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        prepare_data(data_config, tmp_path)
    with pytest.raises(DataError, match="fewer than one batch"):
        next(token_data.batches(context=10**6, batch_size=1, seed=0, n_steps=1))
    with pytest.raises(DataError, match="fewer than one window"):
        token_data.validation_windows(10**6, 1)
    with pytest.raises(DataError, match="build the data with prepare_data"):
        _ = TokenData(tmp_path).train


def test_a_truncated_file_is_an_error(data_config: DataConfig, tmp_path: Path) -> None:
    data = prepare_data(data_config, tmp_path / "cut")
    with (data.directory / "train.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match="holds 50 tokens"):
        _ = TokenData(data.directory).train


@pytest.mark.parametrize(
    "wrong",
    [{"generated_share": 1.0}, {"valid_share": 0.0}, {"vocab_size": 70_000}, {"generated_share": -0.1}],
)
def test_impossible_configurations_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        DataConfig(**wrong)
