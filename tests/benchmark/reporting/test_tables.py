import dataclasses
import io
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.paper.numbers import Published
from benchmark.reporting import lettering, render, tables, view
from eval import stats
from tests.benchmark.table_rows import DELTAS, METHODS, UPSTREAM, row, rows

DRAWS = 1000


def build(found, **options) -> tables.Table:
    return tables.build("Table 5", found, UPSTREAM, draws=DRAWS, **options)


def to_text(table: tables.Table, width: int = render.WIDTH) -> str:
    """Return what `show` prints where there is no colour."""
    output = io.StringIO()
    render.show(table, Console(file=output, width=width, force_terminal=False, color_system=None))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()) + "\n"


def line(table: tables.Table, method: str, metric: str, model: str = "llava", target: str = "flickr30k"):
    """Return the one line of the frame."""
    frame = table.frame
    cell = {"method": method, "metric": metric, "model": model, "target": target}
    chosen = frame[(frame[list(cell)] == pd.Series(cell)).all(axis=1)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def note(table: tables.Table, start: str) -> str:
    """Return the one note that starts like this."""
    (found,) = [text for text in table.texts() if text.startswith(start)]
    return found


@pytest.fixture(scope="module")
def full() -> tables.Table:
    """All methods, two models, two targets, three seeds."""
    return build(rows(seeds=(0, 1, 2)))


# -- numbers ------------------------------------------------------------------------------------------------


def test_values_and_intervals_are_those_of_the_bootstrap(full):
    source = row("spider", seeds=(0, 1, 2))
    expected = stats.bootstrap(source.items, "flickr30k", list(UPSTREAM), draws=DRAWS)
    for metric in (*UPSTREAM, "A_S", "A_T", "H", "O"):
        found = line(full, "spider", metric)
        assert (found.value, found.low, found.high) == dataclasses.astuple(expected[metric])
    assert line(full, "spider", "A_T").n == line(full, "spider", "okvqa").n == 60
    assert line(full, "spider", "H").seeds == "0 1 2"
    assert len(line(full, "spider", "H").by_seed.split()) == 3
    assert line(full, "zero_shot", "H").seeds == "0"


def test_one_line_per_model_target_method_and_metric(full):
    assert len(full.frame) == 2 * 2 * len(METHODS) * 8
    assert [(model, target) for model, target, _ in full.blocks()] == [
        ("LLaVA", "Flickr30k"), ("LLaVA", "COCO-Caption"), ("VILA", "Flickr30k"), ("VILA", "COCO-Caption"),
    ]


def test_differences_from_full_ft_are_paired(full):
    samples = [
        stats.resample(row(method, seeds=(0, 1, 2)).items, "flickr30k", list(UPSTREAM), draws=DRAWS)
        for method in ("spider", "full_ft")
    ]
    expected = stats.paired_difference(*samples, "H")
    found = line(full, "spider", "H")
    assert (found.delta, found.delta_low, found.delta_high) == (expected.value, expected.low, expected.high)
    assert pd.isna(line(full, "full_ft", "H").delta)


def test_best_marks_tuned_methods_and_ties_as_printed(full):
    assert line(full, "spider", "okvqa").best
    assert not line(full, "zero_shot", "okvqa").best
    assert line(full, "zero_shot", "okvqa").value > line(full, "spider", "okvqa").value
    tied = build([row("full_ft"), row("spider", items=row("full_ft").items)])
    assert line(tied, "full_ft", "H").best
    assert line(tied, "spider", "H").best


def test_stars_are_holm_corrected_over_the_tuned_methods_of_the_whole_table(full):
    tested = full.frame[(full.frame.metric == "H") & full.frame.tuned & (full.frame.method != "full_ft")]
    assert len(tested) == 4 * 6
    assert full.frame["p_holm"].notna().sum() == len(tested)
    assert tested.p_holm.tolist() == pytest.approx(stats.holm(tested.p.tolist()))
    assert (tested.star == (tested.p_holm < 0.05)).all()
    assert tested.star.any()
    assert not tested.star.all()
    assert "Holm-corrected over 24 comparisons" in note(full, "*:")
    assert not full.frame.loc[full.frame.metric != "H", "star"].any()


def test_too_few_draws_for_a_star_are_admitted():
    few = tables.build("t", rows(), UPSTREAM, draws=200)
    assert not few.frame.star.any()
    assert note(few, "200 draws") == "200 draws are too few for a star among so many comparisons."
    assert not [text for text in tables.build("t", rows(), UPSTREAM, draws=1000).texts() if "too few" in text]


def test_without_full_ft_there_are_no_differences():
    table = build([row("zero_shot"), row("spider")])
    assert table.frame.delta.isna().all()
    assert not [text for text in table.texts() if text.startswith(("*", "Bold", "Smallest"))]
    assert "vs FT" in to_text(table)


def test_rows_on_different_items_are_refused():
    with pytest.raises(UserError, match="different items"):
        build([row("full_ft"), row("spider", n=58)])


# -- missing numbers ----------------------------------------------------------------------------------------


def test_a_missing_dataset_leaves_no_average():
    partial = dict(row("spider").items)
    del partial["gqa"]
    broken = row("spider", items=partial, problems=("gqa: 3 of 60\nanswers missing.",))
    table = build([row("full_ft"), broken])
    assert pd.isna(line(table, "spider", "gqa").value)
    assert all(pd.isna(line(table, "spider", metric).value) for metric in ("A_S", "H", "O"))
    assert line(table, "spider", "okvqa").value == line(build([row("spider")]), "spider", "okvqa").value
    assert line(table, "spider", "A_T").value > 0
    assert note(table, "Missing") == (
        "Missing: SPIDER (LLaVA, Flickr30k): no complete result: gqa: 3 of 60 answers missing."
    )
    cells = render.to_markdown(table).split("| SPIDER |")[1].split("\n")[0].split("|")
    assert [cell.strip() for cell in cells[3:5]] == ["-", "-"]
    assert [cell.strip() for cell in cells[6:11]] == ["-"] * 4 + ["-"]


def test_a_failed_cell_is_a_dash_everywhere():
    table = build([row("full_ft"), row("spider", items={}, problems=("seed 0 failed: out of memory",))])
    assert table.frame.loc[table.frame.method == "spider", "value"].isna().all()
    assert "out of memory" in note(table, "Missing")
    (printed,) = [text for text in to_text(table).splitlines() if text.startswith(" SPIDER")]
    assert printed.split() == ["SPIDER", *["-"] * 11]
    assert r"SPIDER & - & - & - & - & - & - & - & - \\" in render.to_latex(table)


def test_a_missing_seed_is_left_out_and_named():
    whole = row("spider", seeds=(0, 1, 2))
    items = {name: {seed: part for seed, part in seeds.items() if (name, seed) != ("gqa", 1)}
             for name, seeds in whole.items.items()}
    table = build([row("full_ft", seeds=(0, 1, 2)), dataclasses.replace(whole, items=items)])
    assert line(table, "spider", "okvqa").seeds == "0 2"
    assert note(table, "Missing") == (
        "Missing: SPIDER (LLaVA, Flickr30k): seed 1 left out: not run or not finished."
    )


def test_no_row_at_all_is_still_a_table():
    table = build([row("full_ft", items={}), row("spider", items={})])
    assert table.frame.value.isna().all()
    assert "SPIDER" in to_text(table)
    assert "SPIDER" in render.to_latex(table)


# -- notes --------------------------------------------------------------------------------------------------


def test_notes_state_items_seeds_and_protocol(full):
    assert note(full, "Items") == (
        "Items (n): OKVQA 60, TextVQA 60, OCRVQA 60, GQA 60, Flickr30k 60, COCO-Caption 60."
    )
    assert "0, 1, 2" in note(full, "Training seeds")
    assert note(full, "OKVQA:") == "OKVQA: accuracy of okvqa."
    assert note(full, "COCO-Caption:") == "COCO-Caption: accuracy of coco."
    assert "not another training run" in note(build(rows()), "Training seed: 0")


def test_mixed_protocols_are_called_out():
    other = row("spider", protocol={"okvqa": "the official rule"})
    assert "DIFFERENTLY" in note(build([row("full_ft"), other]), "OKVQA")


def test_penalties_as_far_from_the_start_as_full_ft_are_named(full):
    found = note(full, "L2-Reg")
    assert "within 1 % of Full FT's" in found
    assert "LLaVA, Flickr30k: 0.0199 and 0.02" in found
    assert not [text for text in full.texts() if text.startswith("Grafting")]
    assert DELTAS["grafting"] < DELTAS["l2_reg"]
    far = build([row("full_ft"), row("l2_reg", diagnostics={0: {"rms_delta": 0.0197}})])
    assert not [text for text in far.texts() if text.startswith("L2-Reg")]


def test_smallest_resolvable_difference_is_stated_per_block(full):
    block = full.frame[
        (full.frame.metric == "H") & (full.frame.model == "llava") & (full.frame.target == "coco")
    ]
    expected = 2.801585 * block.loc[block.tuned, "delta_error"].median()
    assert f"LLaVA, COCO-Caption {expected:.2f}" in note(full, "Smallest")


def test_the_paper_has_a_column_only_where_it_can_be_compared(full):
    assert "no number at this scale" in note(full, "Paper H")
    assert full.frame.paper.isna().all()
    copied = row("spider", paper={"H": Published(66.61, "duplicate")})
    table = build([row("full_ft", paper={"H": Published(55.16, "")}), copied, row("dare")])
    assert line(table, "spider", "H").paper == 66.61
    assert pd.isna(line(table, "spider", "O").paper)
    text = render.to_markdown(table)
    ours = line(table, "spider", "H").value
    assert f"| 66.61? ({ours - 66.61:+.2f}) |" in text
    assert "| 55.16 (" in text
    assert "look copied (SPIDER, Flickr30k)" in note(table, "? marks")


def test_own_notes_come_first():
    assert build(rows(), notes=["Small profile."]).texts()[0] == "Small profile."


def test_protocol_names_metric_split_prompt_and_length():
    from types import SimpleNamespace

    spec = SimpleNamespace(
        metric="gqa", prompt="{question}\nOne word.", max_new_tokens=12, splits={"test": "testdev"}, stop=()
    )
    assert tables.protocol(spec, "test") == (
        "exact match, lower case, final periods dropped; test split (testdev); "
        'prompt "{question}\\nOne word."; at most 12 new tokens, greedy'
    )


# -- text ---------------------------------------------------------------------------------------------------


def test_text_fits_110_columns_and_brackets_the_best(full):
    text = to_text(full)
    assert max(map(len, text.splitlines())) <= 110
    assert "…" not in text
    assert f"[{line(full, 'spider', 'H').value:.2f}]" in text
    assert "[Brackets]: best of the tuned methods" in text and "Bold" not in text
    assert [text for text in full.texts() if text.startswith("Bold: best")]
    own = build(rows(), notes=["Bold: a word of mine."])  # no note of the table's is taken for another's
    assert "Bold: a word of mine." in to_text(own) and "[Brackets]: best of" in to_text(own)
    for block in ("LLaVA, fine-tuned on Flickr30k", "VILA, fine-tuned on COCO-Caption"):
        assert block in text
    for name, _, _ in METHODS.values():
        assert text.count(f"\n {name} ") == 4


def test_numbers_are_never_cut_on_a_narrow_terminal(full):
    text = to_text(full, width=60)
    assert "…" not in text
    assert f"[{line(full, 'spider', 'H').value:.2f}]" in text


def test_values_above_100_are_never_cut(full):
    frame = full.frame.assign(value=full.frame.value + 100, delta=full.frame.delta - 10)
    text = to_text(dataclasses.replace(full, frame=frame))
    assert "…" not in text
    assert f"{line(full, 'full_ft', 'O').value + 100:.2f}" in text


def test_a_terminal_gets_bold(full):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    render.show(full, console)
    out = console.file.getvalue()
    assert f"\x1b[1m{line(full, 'spider', 'H').value:.2f}" in out
    assert "Bold: best" in out


def test_difference_has_arrow_size_and_star(full):
    spider = line(full, "spider", "H")
    assert spider.star
    assert f"↑{spider.delta:.2f}*" in to_text(full)
    shot = line(full, "zero_shot", "H")
    assert f"{'↑' if shot.delta > 0 else '↓'}{abs(shot.delta):.2f} " in to_text(full)


# -- Markdown, CSV, LaTeX -----------------------------------------------------------------------------------


def test_markdown_rows_have_one_cell_per_column(full):
    lines = render.to_markdown(full).splitlines()
    starts = [index for index, text in enumerate(lines) if text.startswith("| Method | OKVQA")]
    assert len(starts) == 4
    for start in starts:
        assert {text.count("|") for text in lines[start : start + 2 + len(METHODS)]} == {13}
    assert f"**{line(full, 'spider', 'H').value:.2f}**" in lines[starts[0] + 9]


def test_markdown_details_hold_the_intervals(full):
    spider = line(full, "spider", "H")
    text = render.to_markdown(full)
    assert f"| {spider.low:.2f} to {spider.high:.2f} |" in text
    assert f"({spider.delta_low:+.2f} to {spider.delta_high:+.2f})" in text
    assert text.count("<details>") == text.count("</details>") == 4


def test_markdown_escapes_what_would_be_markup():
    names = {**UPSTREAM, "gqa": "G|QA"}
    own = row("full_ft", method_name="my_method|*x*\n# y", model_name="a|b", target_name="c|d")
    text = render.to_markdown(tables.build("t", [own], names, notes=["a_b <c>"], draws=20))
    assert r"my\_method\|\*x\* # y" in text and r"| G\|QA |" in text and r"### a\|b, fine-tuned on c\|d" in text
    assert {line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("| ")} == {13, 9}
    assert r"a\_b \<c\>" in text


def test_csv_reads_back_with_all_numbers(full):
    frame = pd.read_csv(io.StringIO(render.to_csv(full)), keep_default_na=True)
    assert len(frame) == len(full.frame)
    assert frame.value.to_numpy() == pytest.approx(full.frame.value.to_numpy(), abs=1e-4)
    for column in ("low", "high", "n", "delta", "p_holm", "best", "star", "paper", "by_seed", "seeds"):
        assert column in frame


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)"])
def test_no_text_of_a_csv_is_a_formula(name):
    text = render.to_csv(build([row("full_ft", method_name=name, model_name=name), row("spider")]))
    frame = pd.read_csv(io.StringIO(text))
    assert set(frame["method_name"]) == {f"'{name}", "SPIDER"} and f"'{name}" in set(frame["model_name"])
    assert lettering.as_written(f"'{name}") == name and lettering.as_written("'s") == "'s"
    numbers = frame.loc[frame["metric"] == "H", "delta"].dropna()
    assert numbers.dtype == float and len(numbers) == 1


def test_latex_has_a_block_per_model_and_target(full):
    text = render.to_latex(replace(full, title="Table 5. Comparison"))
    starts = tuple(f"{name} & " for name, _, _ in METHODS.values())
    body = [part for part in text.splitlines() if part.startswith(starts)]
    assert len(body) == 2 * 2 * len(METHODS)  # a block for each model and target
    assert {part.count("&") for part in body} == {8}
    assert r"\caption{Comparison}" in text  # "Table 5." would stand behind LaTeX's own number
    assert "LLaVA, fine-tuned on Flickr30k" in text and "VILA, fine-tuned on COCO-Caption" in text
    assert rf"\textbf{{{line(full, 'spider', 'H').value:.2f}}}" in text
    assert r"$\mathcal{A}^{S}$" in text
    own = line(full, "spider", "H")
    below = text.splitlines()[text.splitlines().index(body[7]) + 1]  # the intervals of the last method
    assert below.count("&") == 8 and rf"{{\tiny {own.low:.1f}--{own.high:.1f}}}" in text


def test_a_terminal_shows_the_interval_below_each_score(full):
    own = line(full, "spider", "H")
    lines = to_text(full).splitlines()
    place = next(number for number, text in enumerate(lines) if text.startswith(" SPIDER"))
    assert lines[place + 1].count("±") == 8 and f"±{(own.high - own.low) / 2:.1f}" in lines[place + 1]


def test_latex_specials_are_escaped():
    table = build([row("full_ft", method_name="my_method & co")], notes=['prompt "{q}\\n" 50 %'])
    text = render.to_latex(table)
    assert r"my\_method \& co" in text
    assert r"prompt \texttt{\char34}\{q\}\textbackslash{}n\texttt{\char34} 50 \%" in text
    assert text.isascii()


def test_files_are_written(full, tmp_path):
    paths = render.write(full, tmp_path / "tables", "table5")
    assert [path.name for path in paths] == ["table5.md", "table5.csv", "table5.tex"]
    assert paths[0].read_text() == render.to_markdown(full)


def test_a_folder_that_cannot_be_written_is_a_user_error(full, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        render.write(full, tmp_path / "file", "table5")


# -- other references and measures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variants() -> tables.Table:
    found = [
        row("full_ft"), row("half_ft"), row("spider", reference="half_ft", diagnostics={0: {"restored": 0.5}}),
        row("dare", reference="missing"),
    ]
    return build(found, shown=("A_S", "A_T", "H", "rms_delta", "restored"))


def test_a_row_is_compared_with_the_method_that_it_names(variants):
    values = {method: line(variants, method, "H").value for method in ("full_ft", "half_ft", "spider")}
    spider, half = line(variants, "spider", "H"), line(variants, "half_ft", "H")
    assert spider.delta == pytest.approx(values["spider"] - values["half_ft"]) and spider.reference == "half_ft"
    assert half.delta == pytest.approx(values["half_ft"] - values["full_ft"])
    assert pd.isna(line(variants, "dare", "H").delta)  # what it is compared with is not there
    text = render.to_markdown(variants)
    assert f"{view.difference(variants, spider)}".replace("*", r"\*").replace("_", r"\_") in text
    assert view.difference(variants, spider).endswith(" half_ft") and "| vs |" in text
    assert "difference from the method named" in note(variants, "Bold:")


def test_only_the_columns_asked_for_are_printed_with_their_measures(variants):
    head = next(text for text in render.to_markdown(variants).splitlines() if text.startswith("| Method"))
    assert head == "| Method | A^S | A^T | H | vs | rms | restored % | Paper H |"
    assert view.number(variants, line(variants, "full_ft", "rms_delta")).text == "20.00"  # 0.02, times 1000
    assert view.number(variants, line(variants, "spider", "restored")).text == "50.0"
    assert view.number(variants, line(variants, "dare", "restored")).text == "-"
    assert "rms: root mean square" in note(variants, "Columns")
    assert not variants.frame.loc[variants.frame["metric"] == "restored", "best"].any()
    for written in (render.to_latex(variants), to_text(variants)):
        assert "OKVQA" not in written.split("Items")[0] and "restored" in written


def test_structural_numbers_of_the_paper_stand_at_every_scale():
    from benchmark.paper import numbers

    found = numbers.of_row("vila_pocket", "flickr30k", "spider", "SPIDER")
    assert {name: number.value for name, number in found.items()} == {"memory": 2, "learnable": 0.5}
    paper = numbers.of_row("vila15_3b", "coco", "spider_idm", "SPIDER, IDM only (G > I)")
    assert paper["H"].value == 70.60 and "memory" not in paper
    table = build([row("spider", paper=found, diagnostics={0: {"memory": 2.25}})], shown=("memory", "H"))
    assert "| 2.25 | " in render.to_markdown(table) and "2.00 (+0.25)" in render.to_markdown(table)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "targets", "heading"), [
    ("table6", "iconqa", "Table 6. Comparison on visual question answering (IconQA)"),
    ("table5", "flickr30k,coco", "Table 5. Comparison on image captioning (Flickr30k, COCO-Caption)"),
    ("table2", "coco", "Table 2. Memory, learnable ratio, time and H (COCO-Caption)"),
])
def test_a_heading_names_the_targets_that_the_table_has(name, targets, heading, tmp_path):
    from benchmark.planning.plan import recorded
    from benchmark.reporting.outputs import _sets, build_table
    from benchmark.store.cells import Store

    asked = request([f"table={name}", f"targets={targets}", f"results={tmp_path}"])
    waiting = recorded(asked, Store(tmp_path))
    assert build_table(asked, waiting, Store(tmp_path)).title == heading
    half = [row("full_ft"), row("full_ft", target="coco", items={}), row("zero_shot", target="coco")]
    assert _sets(half) == "Flickr30k"  # nothing was tuned on the other


@pytest.mark.parametrize(("setting", "names"), [
    ("eval.limit=5", "COCO-Caption"), ("dataset.coco.options.sample.test=5", "COCO-Caption"), ("seed=0", None),
])
def test_cider_on_a_part_of_a_test_set_is_labelled(setting, names):
    from benchmark.reporting.outputs import _notes

    given = ["profile=paper", "method=full_ft", "model=llava15_7b", "dataset=coco", setting]
    notes = " ".join(_notes(request(given), []))
    label = f"CIDEr of a part of a test set is NOT COMPARABLE with any other ({names})."
    assert (label in notes) == (names is not None) and ("NOT COMPARABLE" in notes) == (names is not None)


def test_rows_that_saw_the_source_sets_are_marked_and_explained(tmp_path):
    marked = [row("full_ft"), row("spider", method_name=f"SPIDER {tables.SEES_SOURCES}")]
    table = tables.build("Title", marked, UPSTREAM)
    assert tables.SEEN in table.texts() and tables.SEEN not in tables.build("T", [row("full_ft")], UPSTREAM).texts()
    for path in render.write(table, tmp_path, "marked"):
        text = path.read_text()
        assert ("SPIDER $\\ddagger$" if path.suffix == ".tex" else "SPIDER ‡") in text, path.name


def test_a_difference_is_over_the_seeds_that_both_rows_have():
    whole = rows(methods=("zero_shot", "full_ft", "spider"), models=("llava",), targets=("coco",), seeds=(0, 1, 2))
    spider = next(one for one in whole if one.method == "spider")
    some = replace(spider, items={name: {seed: own[seed] for seed in (0, 2)} for name, own in spider.items.items()})
    cut = [some if one is spider else one for one in whole]
    full_ft = next(one for one in whole if one.method == "full_ft")
    fewer = replace(full_ft, items={name: {seed: own[seed] for seed in (0, 2)} for name, own in full_ft.items.items()})
    both = [some if one is spider else fewer if one is full_ft else one for one in whole]
    built = [tables.build("T", found, UPSTREAM, draws=200) for found in (cut, both)]
    frames = [one.frame.set_index(["method", "metric"]) for one in built]
    names = ["delta", "delta_low", "delta_high", "p"]
    one, other = (frame.loc[("spider", "H"), names].tolist() for frame in frames)
    assert one == other
    assert frames[0].loc[("full_ft", "H"), "value"] != frames[1].loc[("full_ft", "H"), "value"]  # of all its seeds
    notes = " ".join(map(str, built[0].notes))
    assert "differences are over those that both have" in notes
