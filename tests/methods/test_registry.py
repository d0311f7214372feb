"""The method table: names, parameters, configuration files, and a user's own method."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import methods
from benchmark.errors import UserError
from methods.base import Method
from methods.registry import METHODS, build, entry, load_class, make_params

ROOT = Path(methods.__file__).parents[1]


def test_importing_the_table_imports_no_torch():
    code = "import sys, methods.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_table_has_the_rows_of_table_5_in_order():
    names = [item.name for item in METHODS.values()]
    assert names == ["Zero-shot", "Full FT", "L2-Reg", "Grafting", "Half FT", "DARE", "Tailor", "SPIDER"]


@pytest.mark.parametrize("method", METHODS)
def test_table_class_and_configuration_agree(method):
    config = yaml.safe_load((ROOT / "conf" / "method" / f"{method}.yaml").read_text())
    assert config["id"] == method and set(config) == {"id", "params"}
    item = entry(method)
    if not item.cls:
        assert item.kind == "none" and config["params"] == {}
        with pytest.raises(UserError, match="no training stage"):
            build(method, {}, 0)
        return
    cls = load_class(item.cls)
    assert (
        issubclass(cls, Method) and cls.__doc__ and "Extra memory" in cls.__doc__ and "Source" in cls.__doc__
    )
    assert item.kind == ("posthoc" if cls.posthoc else "training")
    defaults = asdict(make_params(method, {}))
    assert config["params"] == defaults
    assert {name: type(value) for name, value in config["params"].items()} == {
        name: type(value) for name, value in defaults.items()
    }
    assert build(method, config["params"], 3).seed == 3


def test_every_configuration_file_is_in_the_table():
    assert {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")} == set(METHODS)


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("spidre", {}, ["spidre", "Did you mean 'spider'", "l2_reg"]),
        ("spider", {"momentun": 0.5}, ["momentun", "Did you mean 'momentum'"]),
        ("full_ft", {"momentum": 0.5}, ["no parameter 'momentum'", "It has none"]),
        ("zero_shot", {"momentum": 0.5}, ["no parameter 'momentum'"]),
        ("tailor", {"blok": 1, "keep": "x"}, ["'block'", "keep='x' must be float"]),
        ("tailor", {"block": 1.5}, ["block=1.5 must be int"]),
        ("dare", {"keep": True}, ["keep=True must be float"]),
        ("spider", {"momentum": 1.0}, ["momentum=1.0", "below 1"]),
        ("dare", {"keep": 0}, ["keep=0.0", "above 0"]),
        ("tailor", {"keep": 2.0}, ["keep=2.0"]),
        ("tailor", {"percdamp": 0.0}, ["percdamp"]),
        ("l2_reg", {"strength": -1.0}, ["strength=-1.0"]),
        ("grafting", {"strength": float("nan")}, ["strength=nan"]),
        ("no_such_module:Mine", {}, ["no_such_module", "PYTHONPATH"]),
        ("methods.spider:Spidr", {}, ["Spidr", "Did you mean 'Spider'"]),
        ("methods.spider:SpiderParams", {}, ["no method class"]),
    ],
)
def test_mistakes_are_named_with_the_fix(method, params, words):
    with pytest.raises(UserError) as caught:
        build(method, params, 0)
    for word in words:
        assert word in str(caught.value)


def test_a_whole_number_is_accepted_for_a_float():
    assert make_params("dare", {"keep": 1}).keep == 1.0


def test_a_users_own_method(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(
        "from dataclasses import dataclass\n"
        "from methods.base import Method\n"
        "@dataclass(frozen=True)\n"
        "class MyParams:\n"
        "    rate: float = 0.5\n"
        "class MyMethod(Method):\n"
        "    title = 'Mine'\n"
        "    Params = MyParams\n"
        "    def after_step(self, shards):\n"
        "        for shard in shards:\n"
        "            shard.weight.lerp_(shard.pretrained, self.params.rate)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    item = entry("my_module:MyMethod")
    assert (item.name, item.kind) == ("Mine", "training")
    assert build("my_module:MyMethod", {"rate": 0.25}, 0).params.rate == 0.25
    with pytest.raises(UserError, match="Did you mean 'rate'"):
        build("my_module:MyMethod", {"rat": 1.0}, 0)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        build("broken:X", {}, 0)
