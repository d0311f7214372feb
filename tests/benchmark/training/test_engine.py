"""DeepSpeed's configuration follows the cell; what methods cannot work with is refused before anything is loaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from benchmark.core.errors import UserError
from benchmark.spec import ROOT
from benchmark.training.engine import deepspeed_config, in_turn, place
from benchmark.training.fragments import REFUSED

SETTINGS = {"micro_batch_size": 2, "accumulation": 4, "max_grad_norm": 1, "dtype": "bfloat16"}


def test_the_configuration_follows_the_cell():
    config = deepspeed_config({"stage": 2, "overlap_comm": False}, **SETTINGS)
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    assert config["train_micro_batch_size_per_gpu"] == 2 and config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 1.0 and config["bf16"]["enabled"] is True
    # Sums in bfloat16 would depend on the number of processes; an optimizer section would compile FusedAdam.
    assert config["data_types"]["grad_accum_dtype"] == config["communication_data_type"] == "fp32"
    assert "optimizer" not in config and json.loads(json.dumps(config)) == config
    assert deepspeed_config({"stage": 3}, **SETTINGS | {"dtype": "float32"})["bf16"]["enabled"] is False


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_every_engine_has_its_stage(name):
    engine = yaml.safe_load((ROOT / "conf" / "engine" / f"{name}.yaml").read_text())
    assert engine["id"] == name and f"zero{engine['zero_optimization']['stage']}" == name
    deepspeed_config(engine["zero_optimization"], **SETTINGS)


def test_wrong_sections_are_refused():
    for stage in (None, 0, 4, "2"):
        with pytest.raises(UserError, match="must be 1, 2 or 3"):
            deepspeed_config({"stage": stage}, **SETTINGS)
    section = {"stage": 2, "round_robin_gradients": True, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(UserError) as caught:
        deepspeed_config(section, **SETTINGS)
    for words in ("round_robin_gradients, offload_optimizer", "which weights are where", "device that has the grad"):
        assert words in str(caught.value)
    deepspeed_config({"stage": 2, "round_robin_gradients": False}, **SETTINGS)


def test_the_refused_options_have_these_names_in_deepspeed():
    """Read from the sources, because importing DeepSpeed takes seconds."""
    package = find_spec("deepspeed")
    if package is None:
        pytest.skip("deepspeed is not installed")
    runtime = Path(package.origin).parent / "runtime"
    text = "".join(path.read_text() for folder in ("zero", "zenflow") for path in runtime.glob(f"{folder}/*.py"))
    for name in REFUSED:
        assert f".{name} = " in text, name


def test_one_process_needs_no_group():
    assert place() == (0, 1) and in_turn(lambda: 5) == 5
