"""Fetching, from a server of our own that runs while the test does."""

import gzip
import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from zanalysis.errors import ZAnalysisError
from zanalysis.experiments.data import DATASETS, load, sources

pooch = pytest.importorskip("pooch")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The published CIFAR-100 of this test: files by name, and what was asked for."""
    files, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            asked.append(name)
            content = files.get(name)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.delenv("ZANALYSIS_DATA", raising=False)
        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")

        def publish(name, contents, digests=None):
            files.update(contents)
            known = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}
            source = replace(
                sources.SOURCES[name],
                base=f"http://127.0.0.1:{running.server_address[1]}/",
                files=digests or known,
            )
            monkeypatch.setitem(sources.SOURCES, name, source)

        yield publish, asked, tmp_path / "cache"
        running.shutdown()
        thread.join()


def idx_files():
    def packed(head, body):
        return gzip.compress(b"\0\0\x08" + head + body, mtime=0)

    images = packed(b"\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02", bytes(range(8)))
    labels = packed(b"\x01\0\0\0\x02", bytes([3, 4]))
    return {name: images if "images" in name else labels for name in sources.SOURCES["mnist"].files}


def test_files_are_fetched_once_verified_and_loaded(server):
    publish, asked, cache = server
    publish("mnist", idx_files())
    data = load("mnist")
    assert (data.train_labels.tolist(), data.image) == ([3, 4], (1, 2, 2))
    assert sorted(asked) == sorted(idx_files())
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(idx_files())
    load("mnist")
    assert len(asked) == 4


def test_a_file_that_is_not_the_published_one_is_not_kept(server):
    publish, _, cache = server
    publish("mnist", idx_files(), digests=dict.fromkeys(idx_files(), "0" * 32))
    with pytest.raises(
        ZAnalysisError, match=r"mnist could not be fetched from http.* \(ValueError\)\. Put train-images"
    ):
        load("mnist")
    assert not [path for path in (cache / "mnist").glob("*") if path.is_file()]


@pytest.mark.parametrize("name", sorted(n for n, source in sources.SOURCES.items() if source.files))
def test_a_source_that_is_gone_says_what_to_put_where(server, name):
    publish, asked, _ = server
    publish(name, {}, digests=sources.SOURCES[name].files)
    with pytest.raises(
        ZAnalysisError, match=rf"{name} could not be fetched .* \(HTTPError\)\. Put .* folder named {name}"
    ):
        load(name)
    assert asked == [next(iter(sources.SOURCES[name].files))]


def test_the_table_of_sources_is_whole():
    assert set(sources.SOURCES) | {"digits", "pydoc"} == set(DATASETS)
    for source in sources.SOURCES.values():
        assert source.base.startswith("http")
        assert source.base.endswith("/") or not source.files
        assert all(len(digest) == 32 and int(digest, 16) for digest in source.files.values())
        assert source.put
        assert source.page
