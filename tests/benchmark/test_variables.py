"""What a launcher left in the shell changes no run; what our launcher tells its processes stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmark import launch, variables, worker
from benchmark.spec import ROOT
from benchmark.variables import neutralise

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


def test_a_worker_removes_them_and_remembers(monkeypatch):
    monkeypatch.setattr(variables, "removed", {})
    monkeypatch.setattr(worker.os, "environ", dict(os.environ) | LEFT | LAYOUT)
    worker.prepare_process(2, "cpu", None)
    assert not set(worker.os.environ) & set(LEFT | LAYOUT)
    assert (LEFT | LAYOUT).items() <= variables.removed.items()


def test_the_processes_that_we_launch_do_not_inherit_them(monkeypatch):
    for name, value in (LEFT | LAYOUT).items():
        monkeypatch.setenv(name, value)
    cell = type("Cell", (), {"device": "cpu", "devices": ()})()
    assert not set(launch.environment(cell, None)) & set(LEFT | LAYOUT)


def test_without_docstrings_help_prints_and_a_run_is_refused_with_the_reason():
    def ask(*arguments):
        command = [sys.executable, "-OO", "-c", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    shown = ask("import sys; from benchmark.cli import main; sys.exit(main(['--help']))")
    assert shown.returncode == 0 and "verify" in shown.stdout, shown.stderr
    refused = ask("from benchmark.worker import prepare_process; prepare_process(1, 'cpu', None)")
    assert refused.returncode and "UserError: python -OO drops docstrings" in refused.stderr
