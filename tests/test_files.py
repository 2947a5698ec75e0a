"""Writing whole or not at all: an error leaves what was there, an unwritable place is an `OutputError`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_lens.errors import DataError, OutputError
from sparse_lens.files import check_writable, made_folder, new_directory, new_file, read_text


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones included, by its relative path."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    """What lies directly in a folder, hidden staging folders included."""
    return sorted(path.name for path in folder.iterdir())


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    """Nothing stands at the place until the block ends; missing parents are made, nothing is left beside it."""
    place = tmp_path / "deep" / "model"
    with new_directory(place) as staging:
        (staging / "weights").write_text("w")
        assert not place.exists()
    assert contents(tmp_path) == {"deep/model/weights": "w"}
    assert names(place.parent) == ["model"]
    assert place.stat().st_mode & 0o777 == 0o755


def test_a_new_directory_replaces_an_old_one(tmp_path: Path) -> None:
    """The old files go, none of them is mixed with the new ones."""
    for written in ({"card": "old"}, {"card": "new", "weights": "new"}):
        with new_directory(tmp_path / "model") as staging:
            for name, text in written.items():
                (staging / name).write_text(text)
    assert contents(tmp_path) == {"model/card": "new", "model/weights": "new"}
    assert names(tmp_path) == ["model"]


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """A folder that holds anything of another name is somebody's work: refused, before the work where the names are known."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    with pytest.raises(OutputError, match=r"chapter.*choose a new or empty folder"), new_directory(tmp_path / "thesis") as staging:
        (staging / "card").write_text("new")
    with pytest.raises(OutputError, match="chapter"):
        check_writable(tmp_path / "thesis", ["card"])
    check_writable(tmp_path / "thesis", ["card", "chapter"])
    assert contents(tmp_path) == {"thesis/chapter": "years of work"}
    assert names(tmp_path) == ["thesis"]


def test_an_error_leaves_the_old_directory(tmp_path: Path) -> None:
    """The caller's error comes through as it is, and nothing half-written is left."""
    with new_directory(tmp_path / "model") as staging:
        (staging / "weights").write_text("old")
    with pytest.raises(ValueError, match="stop"), new_directory(tmp_path / "model") as staging:
        (staging / "weights").write_text("half")
        raise ValueError("stop")
    assert contents(tmp_path) == {"model/weights": "old"}
    assert names(tmp_path) == ["model"]


def test_a_new_file_appears_whole(tmp_path: Path) -> None:
    """As with folders: staged beside, renamed at the end."""
    place = tmp_path / "out" / "metrics.json"
    with new_file(place) as staging:
        staging.write_text("{}")
        assert not place.exists()
    assert contents(tmp_path) == {"out/metrics.json": "{}"}


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    """An interrupted rewrite, here by Ctrl-C, keeps the last good file."""
    place = tmp_path / "metrics.json"
    place.write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(place) as staging:
        staging.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"metrics.json": "old"}
    assert names(tmp_path) == ["metrics.json"]


def test_a_file_in_the_way_of_a_directory(tmp_path: Path) -> None:
    """A file is never replaced by a folder; the message says so."""
    (tmp_path / "report").write_text("mine")
    with pytest.raises(OutputError, match="a file of that name is in the way"), new_directory(tmp_path / "report"):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"report": "mine"}


def test_a_directory_in_the_way_of_a_file(tmp_path: Path) -> None:
    """A folder is never replaced by a file."""
    (tmp_path / "metrics.json").mkdir()
    place = tmp_path / "metrics.json"
    with pytest.raises(OutputError, match=r"cannot write .*metrics\.json"), new_file(place) as staging:
        staging.write_text("{}")
    assert names(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("parent", ["file", "file/deeper"])
def test_an_unwritable_place(tmp_path: Path, parent: str) -> None:
    """Where a parent is no folder nothing can be written: the error names the place and says what to do."""
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / parent / "out"
    for attempt in (lambda: new_directory(place).__enter__(), lambda: new_file(place).__enter__()):
        with pytest.raises(OutputError, match=r"cannot write .*out: .*; choose a folder that you may write to"):
            attempt()
    with pytest.raises(OutputError, match="cannot write"):
        check_writable(place)
    assert contents(tmp_path) == {"file": "in the way"}


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    """The check before an hour's work makes no file, and does not touch what is there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("kept")
    check_writable(tmp_path / "out")
    check_writable(tmp_path / "new")
    assert contents(tmp_path) == {"out/kept": "kept"}
    assert names(tmp_path) == ["out"]


def test_a_folder_is_made_or_its_place_is_taken(tmp_path: Path) -> None:
    assert made_folder(tmp_path / "a" / "b").is_dir() and made_folder(tmp_path / "a").is_dir()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError):
            made_folder(place)


def test_text_is_read_up_to_a_size(tmp_path: Path) -> None:
    """Also from what says that it has no size."""
    (tmp_path / "text").write_text("12345")
    assert read_text(tmp_path / "text", 5) == "12345"
    for path in (tmp_path / "text", Path("/dev/zero")):
        with pytest.raises(DataError, match="more than 4 bytes"):
            read_text(path, 4)
