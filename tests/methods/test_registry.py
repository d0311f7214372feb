"""The method table: names, parameters, configuration files, and a user's own method."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

import methods
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.planning.plan import expand
from benchmark.spec import cell_id, sees_sources
from benchmark.store.code_version import STAGE_MODULES, _imported_methods, method_modules
from methods import registry
from methods.adapter import AdapterMethod
from methods.base import Method
from methods.registry import METHODS, build, entry, list_methods, load_class, make_params
from methods.subspaces import LoraNull

ROOT = Path(methods.__file__).parents[1]
# The rows of Table 5: their class as it is. All others are variants.
TABLE_5 = {
    "zero_shot": "Zero-shot", "full_ft": "Full FT", "l2_reg": "L2-Reg", "grafting": "Grafting", "half_ft": "Half FT",
    "dare": "DARE", "tailor": "Tailor", "spider": "SPIDER",
}


class OwnNull(LoraNull):
    """A user's adapter that calibrates on source samples."""


def test_importing_the_table_imports_no_torch():
    code = "import sys, methods.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_table_begins_with_the_rows_of_table_5_in_order():
    assert [(name, item.name) for name, item in METHODS.items()][: len(TABLE_5)] == list(TABLE_5.items())
    assert max(Counter(item.name for item in METHODS.values()).values()) == 1, (
        "two rows of a table with one name"
    )


def test_a_users_adapter_that_reads_source_samples_is_marked_and_keyed():
    asked = request([f"method={__name__}:OwnNull", "model=llava_pocket", "dataset=coco"])
    assert entry(asked.cells[0].method.id).sees_sources and sees_sources(asked.cells[0])
    gone = replace(asked.cells[0], method=replace(asked.cells[0].method, id="module_that_is_gone:Own"))
    assert not sees_sources(gone)


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
    assert issubclass(cls, Method) and cls.__doc__
    assert " = " in cls.__doc__ or " <- " in cls.__doc__, f"{item.cls} has no equation"
    for word in ("Granularity: ", "Tensors: ", "Acts: ", "|M|", "Source: ", "Disagreements: ", "Variants: "):
        assert word in " ".join(cls.__doc__.split()), f"{item.cls} does not say: {word}"
    adapter = issubclass(cls, AdapterMethod)
    assert item.kind == ("posthoc" if cls.posthoc else "adapter" if adapter else "training")
    if adapter:
        assert item.sees_sources == (build(method, {}, 0).calibrates_on == "sources")
    assert item.sees_generic == (getattr(cls, "measures_on", "") == "generic")
    params = asdict(make_params(method, {}))
    assert config["params"].items() <= params.items()
    assert {name: type(value) for name, value in config["params"].items()} == {
        name: type(params[name]) for name in config["params"]
    }
    assert (
        build(method, {}, 3).seed == 3
        and build(method, {}, 3).params == build(method, config["params"], 3).params
    )
    assert build(method, {}, 0).calibration_samples == config["params"].get("samples", 0)
    if method in TABLE_5:
        assert params == asdict(cls.Params()), "the paper's row is the class as it is"
    else:
        assert method in cls.__doc__, f"{item.cls} does not say what {method} is"


def test_no_two_methods_are_the_same():
    meanings = [(item.cls, str(make_params(name, {}))) for name, item in METHODS.items()]
    assert len(set(meanings)) == len(METHODS)


OWN_NAMES = {  # methods of other papers, and the opposite of one
    "wise_ft", "ewc", "fisher", "soup", "ties", "lines", "intruder", "gps", "spu", "gmt", "mofo", "model_dowser",
    "largest_weights",
}


def test_a_variant_is_named_by_its_method():
    for name, item in METHODS.items():
        # Adapters have the names of their papers; the docstring of the class says which belong together.
        if item.kind != "adapter":
            assert any(name == base or name.startswith(f"{base}_") for base in (*TABLE_5, *OWN_NAMES)), name


IMPORTED = """
import importlib, sys
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("methods.")]:
        del sys.modules[name]
    importlib.import_module(module)
    print(module, *(name for name in sys.modules if name.startswith("methods.")))
"""


@pytest.mark.slow
def test_every_module_behind_a_method_is_hashed():
    """Importing a method loads nothing of methods/ that its stage key does not cover."""
    of_module = {item.cls.partition(":")[0]: name for name, item in METHODS.items() if item.cls}
    command = [sys.executable, "-c", IMPORTED, *of_module]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(loaded.splitlines()) == len(of_module)
    for module, *found in map(str.split, loaded.splitlines()):
        hashed = {*method_modules(of_module[module]), *STAGE_MODULES["train"]}
        assert {f"{name.replace('.', '/')}.py" for name in found} <= hashed, module
    assert "methods/threshold.py" in method_modules("spider_gradient")


def test_a_method_of_ones_own_is_hashed_with_what_it_imports_from_methods(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import methods.fused as f\nfrom methods import ops\nimport json\n"
        "def later():\n    from methods.base import Method\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = method_modules("mine:Mine")
    assert found[0] == str(tmp_path / "mine.py")
    assert {*found[1:]} == {"methods/fused.py", "methods/ops.py", "methods/base.py"}


@pytest.mark.parametrize("line", ["from . import beside", "from .beside import work"])
def test_a_relative_import_in_methods_counts(line, tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    _imported_methods.cache_clear()
    (tmp_path / "methods" / "near.py").write_text(f"{line}\n")
    (tmp_path / "methods" / "beside.py").write_text("")
    monkeypatch.setattr("benchmark.store.code_version.ROOT", tmp_path)
    monkeypatch.setattr("benchmark.store.code_version.at_root", lambda name: tmp_path / name)
    assert method_modules("methods.near:Near") == ("methods/near.py", "methods/beside.py")


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
        ("tailor", {"salience": float("nan")}, ["salience=nan must be a finite number"]),
        ("l2_reg", {"strength": float("inf")}, ["strength=inf must be a finite number"]),
        ("spider", {"momentum": 1.0}, ["momentum=1.0", "below 1"]),
        ("dare", {"keep": 0}, ["keep=0.0", "above 0"]),
        ("tailor", {"keep": 2.0}, ["keep=2.0"]),
        ("tailor", {"percdamp": 0.0}, ["percdamp"]),
        ("tailor", {"salience": -0.5}, ["salience=-0.5", "at least 0"]),
        ("tailor", {"sensitivity": -1}, ["sensitivity=-1.0", "at least 0"]),
        ("tailor", {"salience": 0, "sensitivity": 0.0}, ["not both 0"]),
        ("l2_reg", {"strength": 10**400}, ["strength=1000", "finite number"]),
        ("l2_reg", {"strength": -1.0}, ["strength=-1.0"]),
        ("grafting", {"strength": float("nan")}, ["strength=nan"]),
        ("grafting_scaled", {"reference_size": -1}, ["reference_size=-1"]),
        ("spider_code", {"accumulate": "summ"}, ["accumulate='summ'", "Did you mean 'sum'", "average"]),
        ("spider_idm", {"mask": "Soft"}, ["mask='Soft' is unknown", "Did you mean 'soft'"]),
        ("half_ft_elements", {"shares": 0.5}, ["no parameter 'shares'", "Did you mean 'share'", "momentum"]),
        ("half_ft_elements", {"share": 1.5}, ["share=1.5", "between 0 and 1"]),
        ("spider_magnitude", {"share": -0.1}, ["share=-0.1", "between 0 and 1"]),
        ("spider_gradient", {"momentum": 1.0}, ["momentum=1.0", "below 1"]),
        ("spider_gradient", {"by": "grad"}, ["by='grad'", "Did you mean 'gradient'"]),
        ("half_ft_step", {"redraw": 1}, ["redraw=1 must be bool"]),
        ("dare_magnitude", {"keep": 1.01}, ["keep=1.01"]),
        ("tailor_official", {"compensation": "plus"}, ["compensation='plus'", "subtract"]),
        ("tailor_official", {"keep": -1.0}, ["keep=-1.0"]),
        ("wise_ft", {"alpha": 1.1}, ["alpha=1.1", "between 0 and 1"]),
        ("wise_ft", {"alpha": -0.1}, ["alpha=-0.1"]),
        ("wise_ft", {"alfa": 0.1}, ["Did you mean 'alpha'"]),
        ("wiseft", {}, ["Did you mean 'wise_ft'"]),
        ("fisher", {"alpha": 1.5}, ["alpha=1.5", "between 0 and 1"]),
        ("fisher", {"samples": 0}, ["samples=0", "at least 1"]),
        ("wise_ft_tensors", {"share": -1.0}, ["share=-1.0", "between 0 and 1"]),
        ("wise_ft_tensors", {"steps": 0}, ["steps=0"]),
        ("wise_ft_tensors", {"rate": 0.0}, ["rate=0.0", "above 0"]),
        ("soup", {"members": 1}, ["members=1", "at least two Full FT runs", "use wise_ft"]),
        ("soup", {"members": 0}, ["members=0"]),
        ("soup", {"alpha": -0.5}, ["alpha=-0.5", "between 0 and 1"]),
        ("ties", {"members": 1}, ["members=1", "at least two Full FT runs"]),
        ("ties", {"keep": 0.0}, ["keep=0.0", "above 0"]),
        ("lines", {"alpha": 1.5}, ["alpha=1.5", "between 0 and 1"]),
        ("intruder", {"scale": -0.1}, ["scale=-0.1", "between 0 and 1"]),
        ("intruder", {"threshold": 2.0}, ["threshold=2.0", "between 0 and 1"]),
        ("intruder", {"top": 0}, ["top=0", "at least 1"]),
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


POSTHOC = [name for name, item in METHODS.items() if item.kind == "posthoc"]


@pytest.mark.parametrize("method", POSTHOC)
def test_a_posthoc_method_alone_brings_its_full_ft_cell(method):
    asked = request([f"method={method}", "model=llava_pocket", "dataset=coco"])
    *sources, (cell, needs) = expand(asked.cells, asked.full_ft)
    assert {(source.method.id, needed) for source, needed in sources} == {("full_ft", ())}
    assert [source.seed for source, _ in sources] == list(range(cell.method.params.get("members", 1)))
    assert cell.method.id == method and needs == tuple(cell_id(source) for source, _ in sources)


def test_a_wise_ft_curve_shares_one_full_ft_cell():
    asked = request(
        ["method=wise_ft", "method.alpha=0.1,0.5,0.9", "model=llava_pocket", "dataset=coco"]
    )
    cells = [cell for cell, _ in expand(asked.cells, asked.full_ft)]
    assert [cell.method.params.get("alpha") for cell in cells] == [None, 0.1, 0.5, 0.9]
    assert len({cell_id(cell) for cell in cells}) == 4


def test_the_rows_of_the_paper_keep_their_cells():
    """Variants must not add parameters to them: their names hash the parameters, and published results are by name."""
    asked = request(["table=table5"])
    params = {cell.method.id: cell.method.params for cell in asked.cells}
    assert {name: sorted(values) for name, values in params.items()} == {
        "zero_shot": [], "full_ft": [], "l2_reg": ["strength"], "grafting": ["strength"], "half_ft": [],
        "dare": ["keep"], "spider": ["momentum"],
        "tailor": ["block", "keep", "percdamp", "salience", "samples", "sensitivity"],
    }


def test_the_document_lists_every_method_with_its_parameters():
    rows, before = {}, ""
    for line in (ROOT / "docs" / "methods.md").read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if line.startswith("| `"):
            assert before.startswith("|"), f"{cells[0]} is in no table"
            rows[cells[0].strip("`")] = cells[1], cells[3]
        before = line
    assert set(rows) == set(METHODS)
    for name, (kind, listed) in rows.items():
        config = yaml.safe_load((ROOT / "conf" / "method" / f"{name}.yaml").read_text())["params"]
        values = [f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in config.items()]
        assert kind.replace("-", "") == METHODS[name].kind and listed == ", ".join(values), name


def test_a_variants_parameters_cannot_be_set_on_its_method():
    with pytest.raises(UserError, match="no such parameter in spider"):
        request(["method=spider", "method.mask=hard", "model=llava_pocket", "dataset=coco"])


# ---------------------------------------------------------------------------------------------------------------
# Methods of other packages


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Return a function that installs a package whose entry points name methods."""
    monkeypatch.syspath_prepend(tmp_path)
    registry._offers.cache_clear()

    def install(package: str, **methods: str) -> None:
        folder = tmp_path / f"{package}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        lines = "".join(f"{name} = {value}\n" for name, value in methods.items())
        (folder / "entry_points.txt").write_text(f"[spiderbench.methods]\n{lines}")

    yield install
    registry._offers.cache_clear()


def test_a_method_of_another_package_is_known_by_its_id(offer):
    offer("theirs", top="examples.my_method:TopKGradient")
    assert list_methods()["top"] == entry("top") == entry("examples.my_method:TopKGradient")
    assert build("top", {"share": 0.3}, 0).params.share == 0.3
    assert request(["methods=top", "model=llava_pocket", "target=coco"]).cells[0].method.id == (
        "examples.my_method:TopKGradient"
    )
    with pytest.raises(UserError, match="Did you mean 'top'"):
        entry("topp")


def test_an_id_that_is_used_twice_is_refused_with_both_packages(offer):
    offer("theirs", spider="examples.my_method:TopKGradient", mine="examples.my_method:TopKGradient")
    offer("others", mine="methods.spider:Spider")
    for name, packages in {"spider": "SpiderBench and theirs", "mine": "(others and theirs|theirs and others)"}.items():
        for use in (lambda name=name: entry(name), lambda name=name: build(name, {}, 0), list_methods):
            with pytest.raises(UserError, match=f"method '({name}|spider)' is in (SpiderBench and theirs|{packages})"):
                use()
        with pytest.raises(UserError, match=packages):
            request([f"methods={name}", "model=llava_pocket", "target=coco"])
    assert entry("half_ft").name == "Half FT"


@pytest.mark.parametrize(("value", "reason"), [
    ("nowhere.at_all:Method", "ModuleNotFoundError"), ("methods.spider:Spidr", "Did you mean 'Spider'"),
    ("methods.registry:MethodEntry", "no method class 'MethodEntry'"), ("methods.spider", "Unknown method"),
])
def test_a_broken_entry_names_its_package(offer, value, reason):
    offer("theirs", broken=value)
    for use in (lambda: entry("broken"), list_methods):
        with pytest.raises(UserError, match=f"The package theirs adds the method 'broken' as {value}.*{reason}"):
            use()
    with pytest.raises(UserError, match="The package theirs adds"):
        request(["methods=broken", "model=llava_pocket", "target=coco"])
    assert entry("spider").name == "SPIDER"
