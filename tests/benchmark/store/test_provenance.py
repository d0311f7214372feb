"""A commit is recorded only if it is the program's own."""

from __future__ import annotations

import subprocess

import pytest

from benchmark.store import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    module = tmp_path / "spiderbench" / "benchmark" / "store" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.setattr(provenance, "ROOT", module.parents[2])
    for name in provenance.REDIRECTING:
        monkeypatch.delenv(name, raising=False)

    def git(folder, *arguments):
        command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    provenance.git_state.cache_clear()
    yield tmp_path, git
    provenance.git_state.cache_clear()


def committed(git, folder):
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    return git(folder, "rev-parse", "HEAD")


def test_a_folder_of_another_repository_has_no_commit(repository):
    top, git = repository
    committed(git, top)  # tracked there, but not its top
    assert provenance.git_state() == (None, None)


def test_an_untracked_program_has_no_commit(repository):
    top, git = repository
    git(top / "spiderbench", "init", "-q")
    git(top / "spiderbench", "commit", "-q", "--allow-empty", "-m", "empty")
    assert provenance.git_state() == (None, None)


def test_the_programs_own_commit_whatever_git_dir_says(repository, monkeypatch, tmp_path_factory):
    top, git = repository
    own = committed(git, top / "spiderbench")
    other = tmp_path_factory.mktemp("other")
    (other / "file").write_text("x")
    committed(git, other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert provenance.git_state() == (own, False)
