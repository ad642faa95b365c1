"""Files: one answer wherever they lie, few requests, and no credentials in any message."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import HistostoreError, MissingExtra, StorageError
from histostore.files import (
    Source,
    driver_errors,
    filesystem,
    local_path,
    public_url,
    read_bytes,
    stat,
    stat_many,
)

SECRET = "AKIA-very-secret-key"


@pytest.fixture
def memory() -> Any:
    """An empty memory:// file system."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def requests(monkeypatch) -> list[str]:
    """Every listing and inquiry that reaches the memory file system, which answers as ever."""
    seen: list[str] = []

    def count(name):
        real = getattr(MemoryFileSystem, name)

        def counted(self, path, *args, **kwargs):
            seen.append(f"{name} {path}")
            return real(self, path, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, counted)

    count("ls")
    count("info")
    return seen


def test_a_file_is_the_same_on_disk_and_in_memory(tmp_path, memory):
    (tmp_path / "a b é.png").write_bytes(b"pixels")
    memory.pipe("/x/a b é.png", b"pixels")
    for url in (
        str(tmp_path / "a b é.png"),
        f"file://{tmp_path}/a b é.png",
        "memory://x/a b é.png",
    ):
        assert read_bytes(url) == b"pixels"
        assert stat(url).size == 6
        assert stat_many([url]) == {url: stat(url)}


@pytest.mark.parametrize("base", ["{tmp}/", "file://{tmp}/", "memory://", "memory://x/"])
def test_a_missing_file_is_named(base, tmp_path, memory):
    url = base.format(tmp=tmp_path) + "nothing.png"
    for ask in (read_bytes, stat):
        with pytest.raises(StorageError, match=r"nothing\.png: no such file"):
            ask(url)
    assert stat_many([url]) == {url: None}


@pytest.mark.parametrize("base", ["{tmp}", "memory://x"])
def test_a_folder_is_not_a_file(base, tmp_path, memory):
    folder = base.format(tmp=tmp_path) + "/deep"
    fs, path = filesystem(folder)
    fs.makedirs(path, exist_ok=True)
    fs.pipe(f"{path}/a.png", b"")
    with pytest.raises(StorageError, match="no such file"):
        stat(folder)
    assert stat_many([folder, f"{folder}/a.png/b.png"]) == {
        folder: None,
        f"{folder}/a.png/b.png": None,
    }


@pytest.mark.parametrize("base", ["{tmp}", "memory://x"])
def test_a_changed_file_has_another_version(base, tmp_path, memory):
    url = base.format(tmp=tmp_path) + "/a.png"
    fs, path = filesystem(url)
    fs.pipe(path, b"old")
    before = stat(url)
    time.sleep(0.02)
    fs.pipe(path, b"new")
    assert stat(url).size == before.size
    assert stat(url).version != before.version


def test_requests_grow_with_folders_not_with_files(memory, requests):
    for folder in range(3):
        for image in range(50):
            memory.pipe(f"/data/{folder}/{image}.png", b"x" * image)
    requests.clear()
    urls = [f"memory://data/{folder}/{image}.png" for folder in range(3) for image in range(51)]
    found = stat_many(urls * 2)
    assert sorted(requests) == [f"ls /data/{folder}" for folder in range(3)]
    assert list(found) == urls
    assert [url for url in urls if found[url] is None] == urls[50::51]
    assert all(found[url].size == i % 51 for i, url in enumerate(urls) if i % 51 < 50)


def test_stat_many_agrees_with_stat(tmp_path, memory):
    memory.pipe("/top.png", b"1")
    memory.pipe("/a/b.png", b"22")
    (tmp_path / "c.png").write_bytes(b"333")
    urls = ["memory://top.png", "memory://a/b.png", str(tmp_path / "c.png")]
    assert stat_many(urls) == {url: stat(url) for url in urls}


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("s3://bucket/a.png", "s3fs", "s3"),
        ("gs://bucket/a.png", "gcsfs", "gcs"),
        ("az://container/a.png", "adlfs", "azure"),
        ("abfs://container/a.png", "adlfs", "azure"),
    ],
)
def test_a_missing_driver_names_the_extra(url, library, extra):
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    with pytest.raises(MissingExtra, match=rf"{library} .* 'histostore\[{extra}\]'"):
        read_bytes(url, {"key": SECRET})


def test_an_unknown_protocol_is_refused_with_the_reason():
    with pytest.raises(StorageError, match=r"^foo://x/a\.png: .*foo"):
        filesystem("foo://x/a.png")


def test_an_unreadable_folder_gives_the_reason(tmp_path):
    """A fault of the file system, not a missing file: it must not read as one."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert stat_many([f"{tmp_path}/loop/a.png"]) == {f"{tmp_path}/loop/a.png": None}
    with pytest.raises(StorageError, match="symbolic links"):
        read_bytes(f"{tmp_path}/loop/a.png")


def test_a_refused_listing_is_an_error_and_not_a_missing_file(monkeypatch):
    def refuse(self, path, **kwargs):
        raise PermissionError(f"403 for {SECRET}\nat https://me:{SECRET}@host/x?sig={SECRET}")

    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    with pytest.raises(StorageError) as caught:
        stat_many(["memory://x/a.png"], {"client_kwargs": {"secret": SECRET}})
    assert "403" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(secret=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8))
def test_no_message_holds_a_credential(secret):
    options = {"key": secret, "client_kwargs": {"aws_secret": secret + "-more"}}
    url = f"s3://me:{secret}@bucket/a.png?token={secret}"
    with pytest.raises(StorageError) as caught, driver_errors(url, options):
        raise RuntimeError(f"refused {secret}-more, {url}")
    rest = str(caught.value).replace("bucket", "").replace("refused", "")
    assert secret not in rest


@pytest.mark.parametrize("words", [(), (None,), ("",)])
def test_where_a_driver_has_no_words_the_code_of_the_service_is_said(words):
    class Refused(Exception):
        response = {  # noqa: RUF012 - as botocore's errors have it
            "Error": {"Code": "SignatureDoesNotMatch"},
            "ResponseMetadata": {"HTTPStatusCode": 403},
        }

    with pytest.raises(StorageError) as caught, driver_errors("s3://bucket/a"):
        raise PermissionError(*words) from Refused()
    assert str(caught.value) == "s3://bucket/a: the service answers SignatureDoesNotMatch (403)"
    with pytest.raises(StorageError) as caught, driver_errors("s3://bucket/a"):
        raise PermissionError(*words)
    assert str(caught.value) == "s3://bucket/a: PermissionError"


def test_our_own_errors_pass_through():
    original = HistostoreError("already said")
    with pytest.raises(HistostoreError) as caught, driver_errors("memory://x"):
        raise original
    assert caught.value is original


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("relative/a.png", "relative/a.png"),
        ("/abs/a.png", "/abs/a.png"),
        ("file:///abs/a.png", "/abs/a.png"),
        ("s3://bucket/a.png", None),
        ("zip://a.png::file:///abs/b.zip", None),
    ],
)
def test_local_paths_are_told_from_urls(url, path):
    assert local_path(url) == path


def test_a_file_inside_an_archive_is_reached(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("d/a.png", b"pixels")
    url = f"zip://d/a.png::file://{tmp_path}/b.zip"
    assert read_bytes(url) == b"pixels"
    assert stat_many([url])[url] == stat(url)


@given(size=st.none() | st.integers(0), version=st.none() | st.text(), url=st.text())
def test_a_source_survives_json(size, version, url):
    source = Source(url=url, size=size, version=version)
    assert Source.from_json(source.to_json()) == source


def test_public_urls_keep_what_is_not_secret():
    assert public_url("/data/what?.png") == "/data/what?.png"
    assert public_url("s3://bucket/a@b.png") == "s3://bucket/a@b.png"
