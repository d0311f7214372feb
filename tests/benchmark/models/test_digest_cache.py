"""Digests of large files are remembered where there is a place for that, and computed where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from benchmark.core.files import sha256_file
from benchmark.models import digest_cache


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digest_cache, "LARGE", 4)
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


def test_a_large_file_is_read_once(large, tmp_path, monkeypatch):
    monkeypatch.setenv("SPIDERBENCH_CACHE", str(tmp_path / "cache"))
    assert digest_cache.known_digest(large) is None
    digest = digest_cache.file_digest(large)
    assert digest == sha256_file(large) == digest_cache.known_digest(large)
    assert list(json.loads((tmp_path / "cache" / "digests.json").read_text()).values()) == [digest]
    large.write_bytes(b"other weights")
    assert digest_cache.known_digest(large) is None


def test_a_user_without_a_home_computes_it_each_time(large, tmp_path, monkeypatch):
    def unknown(*_):
        raise KeyError("uid not found")

    for name in ("SPIDERBENCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="home folder"):
        digest_cache.cache_file()
    assert digest_cache.file_digest(large) == sha256_file(large) and digest_cache.known_digest(large) is None
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]  # and no folder named ~


def test_a_tilde_in_the_variable_is_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPIDERBENCH_CACHE", "~/mine")
    assert digest_cache.cache_file() == tmp_path / "mine" / "digests.json"
