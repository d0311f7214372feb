"""The installer on a stand-in for Python: a cut-off installation is made anew, a folder of the user's is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmark.spec import ROOT

# `-m venv DIR` puts this very script into DIR/bin; `-m pip` leaves half a package while the file "slow" is there.
PYTHON = """#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [ "$1 $2" = "-m pip" ]; then
  echo half > "$(dirname "$0")/package"
  if [ -e slow ]; then touch started; sleep 60; fi
  echo whole > "$(dirname "$0")/package"
fi
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "python3").write_text(PYTHON)
    (tmp_path / "tools" / "python3").chmod(0o755)
    return tmp_path


def install(project: Path, venv: str = ".venv") -> subprocess.Popen:
    environment = {**os.environ, "PATH": f"{project / 'tools'}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", ".ci/install.sh", venv], cwd=project, env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("upgrade", [False, True])
def test_an_installation_that_was_cut_off_is_made_anew(project, upgrade):
    if upgrade:
        assert install(project).wait(30) == 0
    (project / "slow").touch()
    process = install(project)
    deadline = time.monotonic() + 60
    while not (project / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project / ".venv" / ".installed").exists()  # make installs again
    (project / "slow").unlink()
    (project / ".venv" / "left").write_text("of a package")
    again = install(project)
    assert "was cut off: starting again" in again.communicate(timeout=60)[0] and again.returncode == 0
    assert (project / ".venv" / "bin" / "package").read_text() == "whole\n"
    assert (project / ".venv" / ".installed").exists() and not (project / ".venv" / "left").exists()
    assert not (project / ".venv" / ".installing").exists()


def test_a_folder_of_the_users_keeps_its_files(project):
    (project / "mine").mkdir()
    (project / "mine" / "notes").write_text("keep")
    (project / "tools" / "python3").write_text(PYTHON.replace("echo whole", "exit 1; echo whole"))
    assert install(project, "mine").wait(30) == 1  # no network, say
    assert not (project / "mine" / ".installing").exists()
    (project / "tools" / "python3").write_text(PYTHON)
    shutil.rmtree(project / "mine" / "bin")
    assert install(project, "mine").wait(30) == 0
    assert (project / "mine" / "notes").read_text() == "keep"


def test_an_environment_behind_a_link_is_not_marked(project):
    """It may serve other copies of the repository, which would make it anew."""
    assert install(project, "shared").wait(30) == 0
    (project / "mine").symlink_to("shared")
    (project / "tools" / "python3").write_text(PYTHON.replace("echo whole", "exit 1; echo whole"))
    assert install(project, "mine").wait(30) == 1
    assert (project / "shared" / ".installed").exists() and not (project / "shared" / ".installing").exists()
