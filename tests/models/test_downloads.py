"""Fetching from a store on the loopback interface, laid out as the released one; the connection breaks, files change."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from sparse_lens.models import downloads
from sparse_lens.models.downloads import DownloadError, cached_folder, fetch, fetch_hub, fetch_released
from sparse_lens.models.released import RELEASED_MODELS, released_model

CONTENT = bytes(range(256)) * 10_000


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Store:
    """What the server holds and what it was asked for; `breaks` connections are cut after 300,000 bytes."""

    files: dict[str, bytes] = field(default_factory=dict)
    breaks: int = 0
    ranges: list[str | None] = field(default_factory=list)
    etags: bool = True


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    content = Store()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            body = content.files.get(unquote(self.path).removeprefix("/"))
            self.send_response(404 if body is None else 200)
            if body is not None:
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", hashlib.sha256(body).hexdigest())
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()

        def do_GET(self) -> None:
            body = content.files.get(unquote(self.path.split("?")[0]).removeprefix("/store/").removeprefix("/"))
            if body is None:
                self.send_error(404)
                return
            etag, wanted = hashlib.sha256(body).hexdigest(), self.headers.get("Range")
            content.ranges.append(wanted)
            start = 0
            if wanted and self.headers.get("If-Range") == etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if content.etags:
                self.send_header("ETag", etag)
            self.end_headers()
            end = len(body)
            if content.breaks and len(body) > 300_000:
                content.breaks -= 1
                end = start + 300_000
            self.wfile.write(body[start:end])
            if end != len(body):
                self.close_connection = True
                self.connection.close()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("SPARSE_LENS_RELEASED", f"http://127.0.0.1:{server.server_port}/store/")
    monkeypatch.setenv("SPARSE_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_wait", lambda seconds: None)
    yield content
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once(store: Store) -> None:
    store.files["a/b.bin"] = CONTENT
    assert fetch("a/b.bin", progress=False).read_bytes() == CONTENT
    store.files.clear()
    assert fetch("a/b.bin", progress=False).read_bytes() == CONTENT
    assert len(store.ranges) == 1


def test_a_broken_connection_goes_on(store: Store) -> None:
    store.files["b.bin"], store.breaks = CONTENT, 3
    path = fetch("b.bin", progress=False)
    assert path.read_bytes() == CONTENT
    starts = [int(wanted[6:-1]) for wanted in store.ranges if wanted]
    assert starts == sorted(set(starts))
    assert len(starts) == 3
    assert starts[0] > 200_000
    assert sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock") == ["b.bin", "digests.json"]


def test_it_goes_on_in_a_later_process(store: Store) -> None:
    store.files["b.bin"], store.breaks = CONTENT, 99
    with pytest.raises(DownloadError, match="repeat the command: it goes on"):
        fetch("b.bin", progress=False)
    store.breaks = 0
    store.ranges.clear()
    store.files["b.bin"] = CONTENT
    assert fetch("b.bin", progress=False).read_bytes() == CONTENT
    assert store.ranges[0] is not None


def test_a_file_that_changed_meanwhile_starts_anew(store: Store) -> None:
    store.files["b.bin"], store.breaks = CONTENT, 99
    with pytest.raises(DownloadError):
        fetch("b.bin", progress=False)
    store.files["b.bin"], store.breaks = CONTENT[::-1], 0
    assert fetch("b.bin", progress=False).read_bytes() == CONTENT[::-1]


def test_without_a_mark_nothing_is_joined(store: Store) -> None:
    store.files["b.bin"], store.breaks, store.etags = CONTENT, 2, False
    assert fetch("b.bin", progress=False).read_bytes() == CONTENT
    assert store.ranges == [None, None, None]


def test_the_first_digest_is_held_to(store: Store, tmp_path: Path) -> None:
    store.files["b.bin"] = CONTENT
    path = fetch("b.bin", progress=False)
    digests = json.loads((tmp_path / "cache" / "digests.json").read_text())
    assert digests == {"b.bin": hashlib.sha256(CONTENT).hexdigest()}
    path.unlink()
    store.files["b.bin"] = CONTENT[:-1]
    with pytest.raises(DownloadError, match="is not the file that was fetched before"):
        fetch("b.bin", progress=False)
    assert not path.exists()
    store.files["b.bin"] = CONTENT
    assert fetch("b.bin", progress=False).read_bytes() == CONTENT


def test_missing_and_empty_files(store: Store) -> None:
    with pytest.raises(DownloadError, match="404"):
        fetch("nothing.bin", progress=False)
    store.files["empty.bin"] = b""
    with pytest.raises(DownloadError, match="empty file"):
        fetch("empty.bin", progress=False)


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE_LENS_RELEASED", "http://127.0.0.1:9")
    monkeypatch.setenv("SPARSE_LENS_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "_wait", lambda seconds: None)
    with pytest.raises(DownloadError, match="check the network"):
        fetch("b.bin", progress=False)


def test_a_hub_repository(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights and tables are fetched, code is not."""
    monkeypatch.setenv("HF_ENDPOINT", os.environ["SPARSE_LENS_RELEASED"].removesuffix("/store/"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    files = {"config.json": b"{}", "model.safetensors": b"weights", "modeling_circuitgpt.py": b"import os"}
    listing = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
    store.files["api/models/owner/name/revision/main"] = json.dumps(listing).encode()
    tree = [{"type": "file", "path": name, "size": len(body), "oid": "0" * 40} for name, body in files.items()]
    store.files[f"api/models/owner/name/tree/{COMMIT}"] = json.dumps(tree).encode()
    for name, body in files.items():
        store.files[f"owner/name/resolve/{COMMIT}/{name}"] = body
    folder = fetch_hub("owner/name@main")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }


def test_a_whole_model(store: Store) -> None:
    model = RELEASED_MODELS["csp_yolo2"]
    assert cached_folder("csp_yolo2") is None
    for file in ("beeg_config.json", "final_model.pt"):
        store.files[f"models/csp_yolo2/{file}"] = file.encode()
    for file in ("encoder.json", "vocab.bpe"):
        store.files[f"tinypython/{file}"] = file.encode()
    folder = fetch_released(model, progress=False)
    assert cached_folder("csp_yolo2") == folder
    for file in ("beeg_config.json", "final_model.pt", "encoder.json", "vocab.bpe"):
        assert (folder / file).read_text() == file


def test_the_catalogue() -> None:
    assert len(RELEASED_MODELS) == 65
    assert RELEASED_MODELS["csp_yolo1"].parameters == 160_568_320
    assert released_model("csp_bridge1") is RELEASED_MODELS["csp_bridges1"]
    unlisted = released_model("csp_sweep1_4x_1.9Mnonzero_afrac0.125")
    assert unlisted is not None
    assert "not in this package's list" in unlisted.about
    assert released_model("gpt2") is None
    assert released_model("../csp_yolo1") is None
