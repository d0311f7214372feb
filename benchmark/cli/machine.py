"""Commands that measure a machine: doctor, bench, gpu-check."""

from __future__ import annotations

from benchmark.core.errors import UserError


def doctor(arguments: list[str]) -> int:
    """check Python, packages, Java, processors, memory and disk; with profile=paper also GPUs, checkpoints, data"""
    from benchmark.profiling.doctor import main as doctor_main

    if words := [item for item in arguments if "=" not in item and item != "--packages"]:
        raise UserError(f"doctor {' '.join(words)}: it takes keys only, e.g. doctor profile=paper.")
    return doctor_main(arguments)


def bench(arguments: list[str]) -> int:
    """measure what each method's optimizer step costs (size=small or llava15_7b, methods=, device=, out=FILE);
    bench scorers: how long scoring takes"""
    if arguments[:1] == ["scorers"]:
        from benchmark.profiling.bench_scorers import main as bench_scorers

        return bench_scorers(arguments[1:])
    from benchmark.profiling.bench_methods import main as bench_methods

    return bench_methods(arguments)


def gpu_check(arguments: list[str]) -> int:
    """measure a GPU with full-size models of random weights: gpu-check part=train|memory|eval"""
    from benchmark.profiling.gpu_check import main as check_main

    return check_main(arguments)
