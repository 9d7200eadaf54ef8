"""The cache on disk: whole entries or none, and never an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lucid_gpu import disk_cache


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The folder of the cache, which is not there yet."""
    monkeypatch.setenv("LUCID_GPU_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


def test_the_folder_is_the_one_that_is_named(folder):
    assert disk_cache.directory() == folder


@pytest.mark.parametrize("own", [None, ""])
def test_else_it_is_one_below_the_user_s_caches(monkeypatch, own):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    if own is None:
        monkeypatch.delenv("LUCID_GPU_CACHE_DIR")
    else:
        monkeypatch.setenv("LUCID_GPU_CACHE_DIR", own)
    assert disk_cache.directory() == Path("/caches/lucid_gpu")


def test_else_it_is_below_home(monkeypatch):
    monkeypatch.delenv("LUCID_GPU_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert disk_cache.directory() == Path("/somewhere/.cache/lucid_gpu")


def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("LUCID_GPU_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert disk_cache.directory() is None
    assert disk_cache.keep("a", ".bin", b"1", {}) is None
    assert disk_cache.find("a", ".bin") is None


def test_what_was_kept_is_found(folder):
    kept = disk_cache.keep("a", ".bin", b"code", {"name": "lowered"})
    found = disk_cache.find("a", ".bin")
    assert found == kept == disk_cache.Entry(folder / "a.bin", {"name": "lowered"})
    assert found.path.read_bytes() == b"code"


def test_an_entry_of_another_name_or_suffix_is_not_found():
    disk_cache.keep("a", ".bin", b"code", {})
    assert disk_cache.find("b", ".bin") is None
    assert disk_cache.find("a", ".ptx") is None


def test_a_later_entry_replaces_an_earlier_one():
    for content in (b"one", b"two"):
        disk_cache.keep("a", ".bin", content, {"content": content.decode()})
    found = disk_cache.find("a", ".bin")
    assert (found.path.read_bytes(), found.notes) == (b"two", {"content": "two"})


def test_the_folder_is_the_user_s_alone(folder):
    disk_cache.keep("a", ".bin", b"code", {})
    assert folder.stat().st_mode & 0o77 == 0


def test_nothing_but_the_entry_is_left_behind(folder):
    disk_cache.keep("a", ".bin", b"code", {})
    assert {path.name for path in folder.iterdir()} == {"a.bin", "a.json"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.bin").write_bytes(b"cod"),
        lambda folder: (folder / "a.bin").write_bytes(b""),
        lambda folder: (folder / "a.bin").unlink(),
        lambda folder: (folder / "a.json").unlink(),
        lambda folder: (folder / "a.json").write_bytes(b"\xff"),
        lambda folder: (folder / "a.json").write_text(""),
        lambda folder: (folder / "a.json").write_text("[]"),
        lambda folder: (folder / "a.json").write_text("{}"),
        lambda folder: edit(folder / "a.json", notes=3),
        lambda folder: edit(folder / "a.json", sha256="0"),
        lambda folder: ((folder / "a.json").unlink(), (folder / "a.json").mkdir()),
    ],
)
def test_a_damaged_entry_is_none_and_can_be_kept_again_or_not(folder, damage):
    disk_cache.keep("a", ".bin", b"code", {})
    damage(folder)
    assert disk_cache.find("a", ".bin") is None
    kept = disk_cache.keep("a", ".bin", b"code", {})
    assert disk_cache.find("a", ".bin") == kept


def edit(path, **members):
    path.write_text(json.dumps(json.loads(path.read_text()) | members))


def test_a_folder_that_cannot_be_written_keeps_nothing(folder):
    folder.parent.mkdir()
    folder.write_text("a file")
    assert disk_cache.keep("a", ".bin", b"code", {}) is None
    assert disk_cache.find("a", ".bin") is None


def test_a_disk_that_is_full_leaves_no_part_of_a_file(folder, monkeypatch):
    def full(fd, *_):
        raise OSError(28, "No space left on device")

    folder.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert disk_cache.keep("a", ".bin", b"code", {}) is None
    assert [*folder.iterdir()] == []


def test_a_folder_that_can_be_made_is_writable_and_a_file_is_not(folder):
    assert disk_cache.is_writable()
    folder.parent.mkdir()
    folder.write_text("a file")
    assert not disk_cache.is_writable()


@pytest.mark.parametrize("other", [("source", ("-O2",)), ("sourc", "e", ("-O3",)), ("source",)])
def test_all_parts_count_for_a_key(other):
    assert disk_cache.key("source", ("-O3",)) == disk_cache.key("source", ("-O3",))
    assert disk_cache.key("source", ("-O3",)) != disk_cache.key(*other)
