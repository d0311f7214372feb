"""What a launcher left in the shell changes no run; what our launcher tells its processes stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from benchmark.core import variables
from benchmark.core.errors import UserError
from benchmark.core.variables import neutralise
from benchmark.running import multi_process, worker
from benchmark.spec import ROOT
from tests.benchmark import hostile

LEFT = {
    "ACCELERATE_MIXED_PRECISION": "bf16", "FSDP_OFFLOAD_PARAMS": "true", "NVIDIA_TF32_OVERRIDE": "1",
    "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "CUBLAS_WORKSPACE_CONFIG": ":16:8",
}
LAYOUT = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "other", "TORCHELASTIC_RUN_ID": "x"}
HARMLESS = {"PATH": "/bin", "HF_HOME": "/h", "NCCL_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu", "SLURM_PROCID": "1"}


@pytest.mark.parametrize("launched", [False, True])
def test_only_a_launched_process_keeps_the_launchers_variables(launched):
    environment = {**LEFT, **LAYOUT, **HARMLESS}
    gone = neutralise(environment, launched=launched)
    assert gone == (LEFT if launched else LEFT | LAYOUT)
    assert environment == (HARMLESS | LAYOUT if launched else HARMLESS)


def test_a_worker_removes_them_and_those_that_it_starts_know(monkeypatch):
    monkeypatch.setattr(variables, "removed", set())
    own = dict(os.environ) | LEFT | {name: value for name, value in LAYOUT.items() if name != "RANK"}
    monkeypatch.setattr(worker.os, "environ", own)
    worker.prepare_process(2, "cpu", None)
    gone = set(LEFT | LAYOUT) - {"RANK"}
    assert not set(own) & gone and variables.removed == gone
    monkeypatch.setattr(variables, "removed", set())
    variables.neutralise_process(launched=False)
    assert variables.removed == gone


def test_one_of_several_processes_of_another_launcher_is_refused(monkeypatch):
    for name, value in LAYOUT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="started this program 2 times .*engine=zero2 gpus=2 starts the processes"):
        variables.neutralise_process(launched=False)
    variables.neutralise_process(launched=True)
    assert os.environ["RANK"] == "1"


@pytest.mark.slow
def test_a_variable_that_changes_precision_is_removed_before_torch_is_imported_and_is_recorded(tmp_path, monkeypatch):
    """Case B08, on a tiny world: the same weights as without it, and provenance says what was there."""
    world = hostile.write_world(tmp_path)
    monkeypatch.setattr(variables, "removed", set())

    def run(name: str, call: Callable[[list[str]], tuple[int, str]]) -> tuple[str, tuple[str, bytes], list[str]]:
        results = tmp_path / "runs" / name
        own = ["table=table6", "targets=iconqa", "methods=full_ft", "train.epochs=1", f"results={results}"]
        code, errors = call(["run", *world.settings(*own), "--cells-only"])
        assert code == 0, errors
        cell = next(results.glob("cells/*full_ft*"))
        said = json.loads((cell / "provenance.json").read_text())["removed_variables"]
        return errors, (cell.name, (cell / "delta.safetensors").read_bytes()), said

    def quietly(arguments: list[str]) -> tuple[int, str]:
        done = world.call(arguments)
        return done.code, done.err

    def loudly(arguments: list[str]) -> tuple[int, str]:  # in a new process: here torch is imported already
        done = subprocess.run(
            [sys.executable, "-m", "benchmark", *arguments], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "ACCELERATE_MIXED_PRECISION": "bf16"},
        )
        return done.returncode, done.stderr

    errors, expected, said = run("quiet", quietly)
    assert said == [] and "note: ignored" not in errors
    errors, found, said = run("loud", loudly)
    assert said == ["ACCELERATE_MIXED_PRECISION"] and "note: ignored" in errors
    assert found == expected


def test_the_processes_that_we_launch_do_not_inherit_them(monkeypatch):
    for name, value in (LEFT | LAYOUT).items():
        monkeypatch.setenv(name, value)
    cell = type("Cell", (), {"device": "cpu", "devices": ()})()
    assert not set(multi_process.environment(cell, None)) & set(LEFT | LAYOUT)


@pytest.mark.slow
def test_without_docstrings_help_prints_and_a_run_is_refused_with_the_reason():
    def ask(*arguments):
        command = [sys.executable, "-OO", "-c", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    shown = ask("import sys; from benchmark.cli import main; sys.exit(main(['--help']))")
    assert shown.returncode == 0 and "verify" in shown.stdout, shown.stderr
    refused = ask("from benchmark.running.worker import prepare_process; prepare_process(1, 'cpu', None)")
    assert refused.returncode and "UserError: python -OO drops docstrings" in refused.stderr
