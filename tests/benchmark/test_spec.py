"""Command line to specs: composition, sweeps, all faults at once, and what names a cell."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmark.config.compose import options_of
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.planning import plan as planning
from benchmark.spec import (
    LONGEST_LABEL,
    ROOT,
    CellSpec,
    EvalSpec,
    Faults,
    ModelSpec,
    TrainSpec,
    at_root,
    build,
    cell_hash,
    cell_id,
    cell_of,
    is_name_of,
    label,
    plain,
)

ONE = ["method=spider", "model=vila_pocket", "dataset=iconqa"]
TWO = [*ONE, "gpus=2", "train.micro_batch_size=8"]


@pytest.mark.parametrize(("text", "reason"), [
    ("train.epochs=range(0,1000000000)", "has more than 10000 values"),
    ("train.limit=" + "[" * 3000, "cannot be read"), ("seeds=1\x00", "control characters"),
    ("model.checkpoint=\udcff", "control characters"), ("data_root=" + "x" * 10_001, "more than 10000 characters"),
    ("dataset.gqa.id=../../evil", "results are named after it"),
    ("model.id=../evil", "results are named after it"),
    ("table.id=../evil", "only conf/table/table6.yaml can set it"),
])
def test_settings_of_strangers(text, reason):
    with pytest.raises(UserError, match=reason) as caught:
        request(["table=table6", text])
    assert len(str(caught.value)) < 3000


def test_a_grid_has_an_end():
    many = [f"train.{key}=range(1,60)" for key in ("epochs", "batch_size", "limit")]
    with pytest.raises(UserError, match=r"205379 combinations, but a grid has at most 10000"):
        request([*ONE, *many])


@pytest.mark.slow
def test_a_tilde_is_the_users_home_in_every_path(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "own").mkdir(parents=True)
    (home / "hosts").write_text("a slots=1\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    asked = request([
        "table=smoke", "results=~/runs", "checkpoints=mine:~/own", "data_root=~/data", "model.checkpoint=~/base",
        "model.vision_tower=~/tower",
    ])
    cells = {cell.method.id: cell for cell in asked.cells}
    assert asked.results == home / "runs" and asked.data_root == cells["spider"].data_root == f"{home}/data"
    assert cells["checkpoint.mine"].model.checkpoint == f"{home}/own"
    assert (cells["spider"].model.checkpoint, cells["spider"].model.vision_tower) == (f"{home}/base", f"{home}/tower")
    assert request([*ONE, "engine=zero2", "hostfile=~/hosts"]).cells[0].hostfile == f"{home}/hosts"
    assert at_root("~/data") == home / "data" and at_root("data") == ROOT / "data"
    for key in ("results=", "data_root=", "model.checkpoint=", "checkpoints=a:"):
        with pytest.raises(UserError, match=r"~nobody-here/x: the home folder is unknown"):
            request([*ONE, f"{key}~nobody-here/x"])


def one(*more: str) -> CellSpec:
    (cell,) = request([*ONE, *more]).cells
    return cell


def faults(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        request(list(overrides))
    return str(caught.value)


# -- composition --------------------------------------------------------------------------------------------------


def test_the_example_of_the_design():
    cell = one("train.epochs=10", "seed=1")
    assert (cell.profile, cell.model.id, cell.method.id, cell.target, cell.seed) == (
        "pocket", "vila_pocket", "spider", "iconqa", 1
    )
    assert cell.train.epochs == 10
    assert cell.method.params == {"momentum": 0.85}
    assert [dataset.id for dataset in cell.datasets] == ["okvqa", "textvqa", "ocrvqa", "gqa", "iconqa"]
    assert cell.dataset("textvqa").prompt == (
        "{question}\nReference OCR token: {ocr_tokens}\nAnswer the question using a single word or phrase."
    )


def test_models_that_a_table_takes_by_default_are_shipped():
    for table in ("table5", "table6"):
        asked = request([f"table={table}"])
        assert {cell.model.id for cell in asked.cells} == set(asked.profile.models)
        for model in asked.models:
            assert at_root(model.checkpoint).is_dir(), model.checkpoint


@pytest.mark.slow
def test_tables_have_the_papers_rows_and_columns():
    both = "models=vila_pocket,llava_pocket"
    five, six = request(["table=table5", both]), request(["table=table6", both])
    assert len(five.cells) == 2 + 2 * 2 * 7
    assert {cell.target for cell in five.cells} == {None, "flickr30k", "coco"}
    assert {cell.target for cell in six.cells} == {None, "iconqa", "scienceqa"}
    assert {cell.model.id for cell in six.cells} == {"llava_pocket", "vila_pocket"}
    assert {cell.model.id for cell in request(["table=table6", "profile=paper"]).cells} == {"vila15_3b"}
    untuned = [cell for cell in five.cells if cell.train is None]
    assert [[d.id for d in cell.datasets] for cell in untuned] == [
        ["okvqa", "textvqa", "ocrvqa", "gqa", "flickr30k", "coco", "textvqa_no_ocr"]
    ] * 2


@pytest.mark.parametrize("profile", options_of("profile"))
@pytest.mark.parametrize("table", options_of("table"))
def test_every_profile_and_table_compose(profile, table):
    asked = request([f"profile={profile}", f"table={table}"])
    assert asked.profile.id == profile and asked.cells


@pytest.mark.slow
def test_a_table_leaves_out_what_the_engine_cannot_train_and_a_named_method_is_refused():
    asked = request(["profile=paper", "table=variants"])
    assert asked.left_out == ("l2_reg_two_step", "grafting_two_step")
    assert not set(asked.left_out) & {cell.method.id for cell in asked.cells}
    assert request(["profile=paper", "table=variants", "engine=single"]).left_out == ()
    with pytest.raises(UserError, match="l2_reg_two_step refuses engine=zero2"):
        request(["profile=paper", "table=variants", "methods=l2_reg_two_step"])


def test_the_paper_profile_has_the_papers_settings():
    vila, llava = (request(["profile=paper", "method=full_ft", f"model={name}", "dataset=coco"]).cells[0]
                   for name in ("vila15_3b", "llava15_7b"))
    assert (vila.train.learning_rate, vila.train.projector_learning_rate) == (1e-4, 1e-4)
    assert (llava.train.learning_rate, llava.train.projector_learning_rate) == (2e-4, 2e-5)
    assert (vila.train.epochs, vila.train.batch_size, vila.train.last_layers, vila.dtype) == (5, 16, 2, "bfloat16")
    assert vila.dataset("coco").options["sample"]["train"] == 10_000
    assert vila.dataset("okvqa").counts["test"] == 5046 and vila.dataset("gqa").counts["test"] == 12_578


def test_a_rate_of_the_run_keeps_the_models_ratio_to_the_projector():
    llava = request(["method=full_ft", "model=llava_pocket", "dataset=coco", "train.learning_rate=1e-3"]).cells[0]
    assert llava.train.learning_rate == 1e-3
    assert llava.train.projector_learning_rate == pytest.approx(1e-4)
    both = one("train.learning_rate=1e-3", "train.projector_learning_rate=3e-3")
    assert both.train.projector_learning_rate == 3e-3


def test_lists_and_ranges_become_cells():
    swept = request([*ONE, "train.epochs=5,10", "seed=range(0,3)", "method.momentum=0.8,0.9"]).cells
    assert len(swept) == 12 and len({cell_id(cell) for cell in swept}) == 12
    assert {(c.seed, c.train.epochs, c.method.params["momentum"]) for c in swept} == {
        (s, e, m) for s in range(3) for e in (5, 10) for m in (0.8, 0.9)
    }
    same = request(["methods=spider,full_ft,spider", "models=vila_pocket", "targets=[coco,iconqa]", "seeds=0,0"]).cells
    assert [(c.target, c.method.id) for c in same] == [
        ("coco", "spider"), ("coco", "full_ft"), ("iconqa", "spider"), ("iconqa", "full_ft")
    ]


def test_a_method_parameter_reaches_only_the_methods_that_have_it():
    cells = request(["methods=full_ft,spider,dare", "model=vila_pocket", "dataset=coco", "method.keep=0.2"]).cells
    assert {c.method.id: c.method.params for c in cells} == {
        "full_ft": {}, "spider": {"momentum": 0.85}, "dare": {"keep": 0.2}
    }
    assert {c.method.id: c.method.posthoc for c in cells} == {"full_ft": False, "spider": False, "dare": True}


@pytest.mark.slow
def test_a_cell_of_several_processes_has_the_machine_to_itself():
    """Cells at a time are the profile's two only where each is one process; a zero engine asked for two refuses."""
    assert request(ONE).jobs == min(2, os.cpu_count())
    assert request([*ONE, "engine=zero2"]).jobs == request([*TWO, "engine=zero3"]).jobs == 1
    assert request([*ONE, "engine=zero2", "jobs=1"]).jobs == 1
    with pytest.raises(UserError, match="jobs=2: with engine=zero1 one cell uses all GPUs. Leave jobs out"):
        request([*ONE, "engine=zero1", "jobs=2"])


def test_processes_that_cannot_share_a_batch_are_refused_before_they_start(tmp_path):
    paper = ["profile=paper", "table=table5", "methods=full_ft"]
    hosts = tmp_path / "hosts"
    hosts.write_text("# two machines\nworker-0 slots=8\n\nworker-1 slots=8\n")
    assert "16 processes with train.micro_batch_size=2 each do not divide train.batch_size=16. " in (
        refused := faults(*paper, "gpus=8", f"hostfile={hosts}")
    )
    assert refused.endswith("Set train.micro_batch_size=1.") and faults(*paper, f"hostfile={hosts}") == refused
    assert request([*paper, "gpus=8", f"hostfile={hosts}", "train.micro_batch_size=1"]).cells
    assert request([*paper, "gpus=4", f"hostfile={hosts}"]).cells  # eight together
    assert faults(*paper, "gpus=3").endswith("Use one of these numbers of processes: 1, 2, 4, 8.")
    assert request(["profile=paper", "table=table5", "methods=zero_shot", "gpus=3"]).cells  # nothing trains
    hosts.write_text("worker-0\n")
    assert "no machine is named. Write a line like 'host1 slots=8'" in faults(*paper, f"hostfile={hosts}")


def test_results_folder_and_workers(tmp_path):
    asked = request([*ONE, f"results={tmp_path}/a,b [1]", "jobs=3", "gpus=0,1", "device=cuda"])
    assert asked.results == tmp_path / "a,b [1]" and asked.jobs == 3 and asked.gpus == (0, 1)
    assert request([*ONE, "device=cuda", "gpus=0,1,2"]).jobs == 3  # one cell per GPU unless jobs says otherwise
    assert request(ONE).results == ROOT / "results" / "runs" / "pocket"
    assert request(["table=smoke"]).results == ROOT / "results" / "runs" / "pocket-smoke"


def test_a_method_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "my_own_method.py").write_text(
        "from methods.base import Method\nclass Mine(Method):\n    title = 'Mine'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cells = request(["methods=full_ft,my_own_method:Mine", "model=vila_pocket", "dataset=coco"]).cells
    assert [cell.method.id for cell in cells] == ["full_ft", "my_own_method:Mine"]
    assert "Its" not in cell_id(cells[1]) and ":" not in cell_id(cells[1])
    assert "no method class 'Mein'. Did you mean 'Mine'?" in faults(*ONE, "method=my_own_method:Mein")


def test_the_parameters_of_a_method_of_the_users_own():
    name = "examples.my_method:TopKGradient"
    cells = request([*ONE, f"methods=full_ft,{name}", "method.share=0.2,0.3"]).cells
    own = [cell.method.params for cell in cells if cell.method.id == name]
    assert own == [{"share": 0.2, "momentum": 0.9}, {"share": 0.3, "momentum": 0.9}]
    assert request([*ONE, f"method={name}"]).cells[0].method.params == {"share": 0.1, "momentum": 0.9}
    assert "Did you mean 'method.share'?" in faults(*ONE, f"method={name}", "method.shares=0.2")


@pytest.mark.slow
def test_composing_needs_no_torch():
    program = (
        "import sys; from benchmark.config.request import request; import benchmark.planning.plan;"
        "request(['table=table5']);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


# -- faults -------------------------------------------------------------------------------------------------------


def test_all_faults_are_said_at_once():
    text = faults(
        "table=table5", "models=vila_poket", "methods=spidr,full_ft", "targets=okvqa,coc", "seeds=a", "train.epoch=3",
        "eval.batch_size=0", "dtype=fp8", "nonsense", "jobs=many",
    )
    assert text.startswith("10 faults in the configuration:")
    for part in (
        "Unknown model 'vila_poket'. Did you mean 'vila_pocket'?", "Unknown method 'spidr'. Did you mean 'spider'?",
        "'okvqa' is not a target", "Unknown dataset 'coc'. Did you mean 'coco'?", "seed=a: a seed is a whole number",
        "train.epoch: no such key. Did you mean 'train.epochs'?", "eval.batch_size=0: must be at least 1",
        "dtype=fp8: unknown value", "'nonsense' is not of the form key=value", "jobs=many: expected a whole number",
    ):
        assert part in text, part


def test_parameters_out_of_range_are_said_with_the_other_faults():
    text = faults("methods=tailor,spider,dare", *ONE[1:], "method.keep=2", "method.momentum=1", "train.epochs=0")
    assert text.startswith("4 faults")
    for part in (
        "Method tailor: keep=2.0 must be between 0 and 1", "Method dare: keep=2.0 must be above 0 and at most 1",
        "Method spider: momentum=1.0 must be at least 0 and below 1", "train.epochs=0: must be at least 1",
    ):
        assert part in text, text


def test_an_engine_that_a_method_refuses():
    for engine in ("zero1", "zero2", "zero3", "fsdp2"):
        text = faults("methods=spider,grafting_two_step", *ONE[1:], f"engine={engine}")
        assert text.startswith(f"method=grafting_two_step refuses engine={engine}: a penalty with two_step takes")
        assert "Train on engine=single" in text and "\n" not in text
    one("method=l2_reg_two_step")
    one("method=spider_global", "engine=zero2")
    one("method=spider_global", "engine=fsdp2")
    text = faults(*ONE, "engine=fsdp2", "engine.zero_optimization.stage=2")
    assert text.startswith("engine.zero_optimization.stage: engine=fsdp2 does not use DeepSpeed")
    assert "Train on engine=zero2" in faults(*ONE, "method=spider_global", "engine=zero3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("profile=poket", "Unknown profile 'poket'. Did you mean 'pocket'?"),
        ("table=table7", "Unknown table 'table7'. Did you mean 'table"),
        ("train=papre", "Unknown train 'papre'. Did you mean 'paper'?"),
        ("trian.epochs=3", "trian: no such key. Did you mean 'train'?"),
        ("seed=1.5", "seed=1.5: a seed is a whole number"),
        ("seed=-1", "seed=-1: a seed is a whole number"),
        ("seed=true", "seed=True: a seed is a whole number"),
        ("seeds=0,one", "seed=one: a seed is a whole number"),
        ("train.epochs=five", "train.epochs=five: expected a whole number"),
        ("train.epochs=null", "train.epochs=null: expected a whole number"),
        ("train.epochs=true", "train.epochs=True: expected a whole number"),
        ("train.learning_rate=0", "train.learning_rate=0.0: must be more than 0"),
        ("train.learning_rate=nan", "must be more than 0"),
        ("train.warmup_ratio=1.5", "must be at most 1"),
        ("train.micro_batch_size=5", "train.batch_size=16 is not a multiple of train.micro_batch_size=5"),
        ("train.scheduler=cosin", "Did you mean 'cosine'?"),
        ("train.scope=last_layer", "Did you mean 'last_layers'?"),
        ("model.family=lava", "model.family=lava: unknown value. Did you mean 'llava'?"),
        ("model.chekpoint=x", "model.chekpoint: no such key. Did you mean 'model.checkpoint'?"),
        ("method.momentun=1", "no such parameter in spider. Did you mean 'method.momentum'?"),
        ("method.momentum=high", "method.momentum=high: expected a value like 0.85"),
        ("dataset.coco.metric=cidre", "Did you mean 'cider'?"),
        ("dataset.textvqa.options.ocr_tokens=3", "expected a value like True"),
        ("dataset.coco=3", "a group of keys"),
        ("eval.split=dev", "eval.split=dev: unknown value"),
        ("engine=zero9", "Unknown engine 'zero9'"),
        ("report_to=tensorbord", "Did you mean 'tensorboard'?"),
        ("threads=0", "threads=0: must be at least 1"),
        ("gpus=first", "gpus=first: expected device numbers"),
        ("~train.epochs", "is not of the form key=value"),
        ("dataset@x=coco", "an override can set a key, not remove or move it"),
        ("train.epochs=[1", "cannot be read"),
        ("train.epochs=glob(*)", "cannot be read"),
        ("profile=pocket,paper", "give one"),
        ("method=nowhere.to.find:Method", "Cannot import method module"),
    ],
)
def test_each_bad_input_is_one_message(override, message):
    text = faults(*ONE, override)
    assert message in text
    assert "Traceback" not in text and len(text) < 700


def test_what_is_missing_is_named():
    assert "model=, method= missing" in faults()
    assert faults("method=spider") == (
        "model=, dataset= missing. Give table=table5, or method=, model= and dataset= (see list)."
    )
    assert len(request(["method=zero_shot", "model=vila_pocket"]).cells) == 1  # needs no target


def test_build_names_missing_and_unknown_fields():
    found = Faults()
    assert build(EvalSpec, {"batchsize": 3, "limit": 0}, "eval", found) is None
    assert [message.split(":")[0].split(" is")[0] for message in found.messages] == [
        "eval.batchsize", "eval.batch_size", "eval.limit=0"
    ]


# -- identity -----------------------------------------------------------------------------------------------------


def test_a_cell_survives_its_yaml():
    for cell in (one(), request(["method=zero_shot", "model=llava_pocket"]).cells[0]):
        assert cell_of(yaml.safe_load(yaml.safe_dump(plain(cell)))) == cell


def test_the_name_of_a_cell_is_readable():
    parts = cell_id(one("seed=7")).split("-")
    assert parts[:4] == ["vila_pocket", "iconqa", "spider", "s7"] and len(parts[4]) == 8


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "spider-s0"),
        (["train.epochs=10"], "spider-epochs10-s0"),
        (["train.epochs=5", "method.momentum=0.85"], "spider-s0"),  # the defaults, said aloud
        (["method=wise_ft", "method.alpha=0.4"], "wise_ft-alpha0.4-s0"),
        (["train.scheduler=linear", "train.limit=8", "eval.limit=4"], "spider-scheduler_linear-limit8-eval.limit4-s0"),
        (["model.learning_rate=1e-3", "train.epochs=2"], "spider-epochs2-learning_rate0.001-s0"),
        (["model.learning_rate=1e-3", "train.scope=projector", "train.warmup_ratio=0.1", "train.weight_decay=0.5"],
         "spider-learning_rate0.001-scope_projector-and2more-s0"),
        (["dtype=bfloat16", "engine=zero2", "eval.batch_size=3"], "spider-dtype_bfloat16-s0"),
        (['dataset.iconqa.prompt="{question} ../x\ty"'], "spider-iconqa.prompt-s0"),
        (["method=zero_shot", "eval.split=validation"], "zero_shot-eval.split_validation"),
    ],
)
def test_the_name_of_a_cell_says_what_differs_from_the_defaults(overrides, words):
    name = cell_id(one(*overrides))
    assert name.rpartition("-")[0] == f"vila_pocket-{'iconqa-' * ('zero_shot' not in words)}{words}"
    assert re.fullmatch(r"[\w.+-]+", name, re.ASCII)


def test_what_a_cell_is_made_from_does_not_carry_its_parameters():
    asked = request(["methods=wise_ft", "model=vila_pocket", "dataset=coco", "method.alpha=0.4", "train.epochs=3"])
    names = [cell_id(cell).rpartition("-")[0] for cell, _ in planning.expand(asked.cells, asked.full_ft)]
    assert names == ["vila_pocket-coco-full_ft-epochs3-s0", "vila_pocket-coco-wise_ft-alpha0.4-epochs3-s0"]


@pytest.mark.slow
@given(st.lists(st.text(), max_size=9), st.text("abc.:", min_size=1, max_size=300))
def test_no_setting_makes_a_name_that_is_long_or_unsafe(changed, method):
    cell = replace(one(), changed=tuple(changed))
    assert re.fullmatch(r"[\w.+-]*", label(changed), re.ASCII) and len(label(changed)) <= LONGEST_LABEL + 12
    cell = replace(cell, method=replace(cell.method, id=method))
    assert len(cell_id(cell)) <= 240 and is_name_of(cell_id(cell), cell)


def test_an_older_cell_file_loads_and_keeps_its_name():
    new = one("train.epochs=10")
    values = {key: value for key, value in plain(new).items() if key != "changed"}
    assert cell_of(values) == new and cell_id(cell_of(values)) == f"vila_pocket-iconqa-spider-s0-{cell_hash(new)}"


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "method=full_ft", "model=llava_pocket", "dataset=coco", "method.momentum=0.9", "train.epochs=6",
        "train.limit=100", "train.loss_group=4", "eval.limit=10", "eval.split=validation", "dtype=bfloat16",
        "dataset.iconqa.max_new_tokens=13", "dataset.okvqa.metric=vqa_official", "model.preprocess=pad",
        "dataset.textvqa.options.ocr_tokens=false", "model.learning_rate=1e-3",
    ],
)
def test_what_changes_a_cell(override):
    other = request([*ONE, override]).cells[0]
    assert cell_hash(other) != cell_hash(one())


@pytest.mark.parametrize(
    "override",
    [
        "data_root=/elsewhere", "model.checkpoint=/elsewhere", "threads=4", "device=cuda", "eval.batch_size=8",
        "model.name=Other", "dataset.iconqa.name=Other", "dataset.okvqa.counts.test=7", "jobs=2", "results=/elsewhere",
        "engine=zero2", "dataset.coco.max_new_tokens=13", "train.learning_rate=5e-4",
    ],
)
def test_what_does_not_change_a_cell(override):
    assert cell_id(one(override)) == cell_id(one())


def test_no_field_is_forgotten():
    """Every field of a spec either changes the cell or is known not to."""
    cell = one()
    same = {
        "checkpoint", "name", "learning_rate", "projector_learning_rate", "counts", "role", "posthoc", "data_root",
        "device", "threads", "checkpoint_minutes", "checkpoint_steps", "engine", "zero_optimization", "batch_size",
        "repository", "absent", "vision_tower", "architecture",
        "processes", "devices", "hostfile", "report_to", "changed",
    }
    changed = {int: 99, float: 0.123, str: "other", dict: {"other": 1}, type(None): 99, tuple: ()}
    for spec, place in ((cell, None), (cell.model, "model"), (cell.train, "train"), (cell.method, "method"),
                        (cell.eval, "eval")):
        for item in dataclasses.fields(spec):
            value = getattr(spec, item.name)
            if type(value) not in changed:
                continue
            new = cell.datasets[0] if item.name == "generic" else ("other",) if value == () else changed[type(value)]
            other = replace(spec, **{item.name: new})
            other = other if place is None else replace(cell, **{place: other})
            # The model's rates count through the TrainSpec, whose own fields all count.
            expected_same = item.name in same and place != "train"
            assert (cell_hash(other) == cell_hash(cell)) == expected_same, (place, item.name)


def test_an_untuned_model_is_one_cell_whatever_its_targets_and_seeds():
    cells = request(["method=zero_shot", "model=vila_pocket", "targets=coco,iconqa", "seeds=0,1"]).cells
    fewer = request(["method=zero_shot", "model=vila_pocket", "targets=flickr30k"]).cells
    assert len(cells) == 1 and cell_id(cells[0]) == cell_id(fewer[0])


def test_specs_are_frozen():
    for cls in (CellSpec, ModelSpec, TrainSpec, EvalSpec):
        assert cls.__dataclass_params__.frozen


def test_conf_comments_say_where_every_training_setting_comes_from():
    lines = (Path(ROOT) / "conf" / "train" / "default.yaml").read_text().splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert len(settings) == len(dataclasses.fields(TrainSpec))
    assert all("#" in line for line in settings)
