"""Accept a change of a stage's code as one that changes no number, or raise the stage's version."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmark.core.errors import DONE, UserError, did_you_mean
from benchmark.core.files import digest_of
from benchmark.spec import ROOT, at_root
from benchmark.store import code_version

if TYPE_CHECKING:
    from benchmark.config.request import Request

# Tests that must pass in addition to the samples: order, workers and engine do not change the numbers.
TESTS = (
    "tests/benchmark/training/test_determinism.py", "tests/methods/test_reference.py",
    "tests/multiprocess/test_parity.py",
)

SAMPLES = ROOT / "conf" / "samples.yaml"


@dataclass(frozen=True)
class Sample:
    """A published cell that runs again.

    Attributes:
        model: its id.
        target: "" for an untuned model.
        method: its id.
        settings: as on the command line, if it is not the method's usual cell.
    """

    model: str
    target: str
    method: str
    settings: tuple[str, ...] = ()

    def request(self) -> Request:
        """Return the request for this cell."""
        from benchmark.config.request import request

        target = [f"dataset={self.target}"] if self.target else []
        return request([f"model={self.model}", f"method={self.method}", *target, *self.settings])


def main(names: Sequence[str], bump: bool = False, reference: Path | None = None) -> int:
    """Accept or bump stages.

    Args:
        names: of `code_version.stages()`, or "all" for those whose code has changed, or "samples" to run and compare
            every sample and accept nothing.
        bump: raise their versions instead, because their numbers have changed; their published cells become stale.
        reference: results to compare with; by default the published ones. Another processor rounds differently; there,
            run "samples" before the change and compare with the folder that it names below build/.

    Returns:
        0, or 1 if a test failed or a number changed; then nothing is written.

    Raises:
        UserError: an unknown stage, or one that has not changed.
    """
    if list(names) == ["samples"]:
        return 0 if _samples_agree([name for name in code_version.stages() if "/" not in name], reference) else 1
    changed = code_version.changed()
    wanted = changed if list(names) == ["all"] else list(names)
    for name in wanted:
        if name not in code_version.stages():
            raise UserError(f"Unknown stage {name!r}.{did_you_mean(name, code_version.stages())}")
        if name not in changed and not bump:
            raise UserError(f"The code of {name} has not changed. Changed: {', '.join(changed) or 'none'}.")
    if not wanted:
        print("No stage has changed.")
        return 0
    if not bump and not (_tests_pass() and _samples_agree(wanted, reference)):
        print("Nothing was accepted. If numbers are to change, raise the version: make accept BUMP=1 STAGE=...")
        return 1
    code_version.record(wanted, bump)
    print(f"{'Raised' if bump else 'Accepted'}: {', '.join(map(code_version.version, wanted))}.")
    return 0


def all_samples() -> list[Sample]:
    """Return the published cells to run again."""
    found = []
    for model, groups in yaml.safe_load(SAMPLES.read_text(encoding="utf-8")).items():
        for words, methods in groups.items():
            target, *settings = words.split() or [""]
            for method, *own in map(str.split, methods):
                found.append(Sample(model, target, method, (*settings, *own)))
    return found


def samples(stage: str) -> list[Sample]:
    """Return the samples that depend on a stage, family or method."""
    from methods.registry import METHODS

    everything = all_samples()
    kind, _, name = stage.partition("/")
    if kind == "method":
        return [sample for sample in everything if sample.method == name]
    if kind == "posthoc":
        return [sample for sample in everything if METHODS[sample.method].kind == "posthoc"]
    if kind == "family":
        models = {sample.model: sample.request().models[0] for sample in everything}
        return [sample for sample in everything if models[sample.model].family == name]
    return everything


def _tests_pass() -> bool:
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], cwd=ROOT, stdin=subprocess.DEVNULL)
    return done.returncode == 0


def _samples_agree(stages: Sequence[str], reference: Path | None) -> bool:
    """Run samples again in a folder for this version of the code, compare item scores and print differences."""
    from benchmark.config.request import request
    from benchmark.publishing.compare import compare, describe, line
    from benchmark.running import runner

    chosen = [sample for sample in all_samples() if any(sample in samples(stage) for stage in stages)]
    # The digest in the folder's name keeps results of other code apart and lets an interrupted run continue.
    digest = digest_of({name: code_version.code_digest(code_version.modules_of(name)) for name in stages})[:8]
    results = ROOT / "build" / f"accept-{digest}"
    asked = request([f"results={results}"], grid=False)
    theirs = reference or at_root(asked.profile.reference or "")
    if chosen:
        requests = [sample.request() for sample in chosen]
        cells = itertools.chain.from_iterable(one.cells for one in requests)
        if runner.run(replace(requests[0].of(cells), results=results)) != DONE:
            return False
        gaps, alone = compare(results, theirs)
        for text in [*(describe(gap) for gap in gaps if gap.verdict != "identical"), *alone]:
            print(text)
        print(line(gaps, theirs))
        if alone or any(gap.verdict != "identical" for gap in gaps):
            return False
    checks = {"footprint": _footprints_agree, "pid": _discrepancies_agree}
    return all(check(results, theirs) for stage, check in checks.items() if stage in stages)


def _footprints_agree(results: Path, reference: Path) -> bool:
    """Measure again the bytes that SPIDER keeps and compare them with the published ones. Times are not compared."""
    from benchmark.config.request import request
    from benchmark.planning import plan
    from benchmark.running import method_cost
    from benchmark.store import cell_measures
    from benchmark.store.cells import Store

    asked = request([f"model={_first_model()}", "dataset=flickr30k", "methods=full_ft,spider", f"results={results}"])
    store = Store(results)
    method_cost.measure(asked, plan.make(asked, store), store)
    agree = True
    for cell in asked.cells:
        ours, theirs = (cell_measures.footprint(Store(root).folder(cell)) for root in (results, reference))
        for name in ("memory", "peak"):
            if not _same(ours[name], theirs.get(name)):
                print(f"footprint of {cell.method.id}: {name} {ours[name]} | {theirs.get(name, 'not measured')}")
                agree = False
    return agree


def _discrepancies_agree(results: Path, reference: Path) -> bool:
    """Compute Fig. 1's numbers again and compare them with the published ones."""
    from benchmark.config.request import request
    from benchmark.running.worker import Worker
    from benchmark.store.cells import Store
    from benchmark.studies import discrepancy

    agree = True
    asked = request([f"models={_first_model()}", "methods=full_ft", "targets=coco", f"results={results}"])
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            ours = discrepancy.measure(asked, model, Worker(Store(results)), Path(folder)).to_dict("records")
        theirs = json.loads((reference / "pid" / f"{model.id}.json").read_text(encoding="utf-8"))["lines"]
        for one, other in zip(ours, theirs, strict=True):
            for key, value in other.items():
                if key != "by_shard" and not _same(one[key], value):
                    print(f"pid of {one['dataset']}, {one['part']}: {key} {one[key]} | {value}")
                    agree = False
    return agree


def _first_model() -> str:
    return all_samples()[0].model


def _same(ours: Any, theirs: Any) -> bool:
    return math.isclose(ours, theirs, rel_tol=1e-6) if isinstance(theirs, float) else ours == theirs
