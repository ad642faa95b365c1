"""A file is there whole or not at all, and what is in the way is said."""

from __future__ import annotations

import pytest

from histostore.atomic import atomic
from histostore.errors import ImageError, StorageError


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, durable):
    path = tmp_path / "told.txt"
    path.write_text("old")
    with atomic(path, durable=durable) as hidden:
        hidden.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, ImageError, StorageError])
def test_what_ends_the_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "told.txt"
    path.write_text("old")

    def write():
        with atomic(path) as hidden:
            hidden.write_text("half")
            raise error("in between")

    with pytest.raises(error, match="in between"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / "file" / "told.txt", tmp_path / "folder"):
        with pytest.raises(StorageError) as caught, atomic(path) as hidden:
            hidden.write_text("new")
        assert str(caught.value).startswith(f"cannot write {path}: ")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", tmp_path / "folder"]
