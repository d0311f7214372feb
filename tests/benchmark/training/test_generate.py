"""Generation: batched answers equal single ones, files survive interruption, broken images are all named."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image

import benchmark.training.generate
from benchmark.core.errors import UserError
from benchmark.data.record import Record
from benchmark.models.batch import Items, split_image
from benchmark.spec import DatasetSpec
from benchmark.store.provenance import odd_answers
from benchmark.training.generate import NotANumber, answer_batch, before_stop, cut, generate, prompt_hash
from tests.benchmark.models import tiny

QUESTIONS = ["what?", "what colour is this animal?", "A or B?", "is this a dog? " * 6, "red or blue cat?", "1 2 3", "a"]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made = []
    for i in range(14):
        image = None
        if i % 3 != 2:
            image = folder / f"{i}.png"
            Image.effect_noise((30 + i, 24), 90).convert("RGB").save(image)
        made.append(Record(f"q{i}", "toy", "test", image, QUESTIONS[i % 7] + str(i), None, ("x",), None, str(i), {}))
    return made


@pytest.fixture(scope="module", params=["llava", "vila"])
def loaded(request, records, tmp_path_factory):
    loaded = tiny.load(request.param, tiny.write(request.param, tmp_path_factory.mktemp(request.param)))
    # A random model hardly ever ends an answer: the end token takes the place of one that several answers contain.
    items = Items(loaded, records, supervised=False)
    answers = [answer_batch(loaded, [items[i]], 6)[0][0] for i in range(len(records))]
    tokens = [set(loaded.tokenizer(answer, add_special_tokens=False).input_ids) for answer in answers]
    common = min(range(3, 200), key=lambda token: (abs(sum(token in row for row in tokens) - 5), token))
    with torch.no_grad():
        head = loaded.model.get_output_embeddings().weight
        head[loaded.eos_token_id] = head[common] * 1.01
    return loaded


def dataset(max_new_tokens=6):
    return DatasetSpec("toy", "Toy", "target", "cider", "{question}", max_new_tokens, {}, {}, {})


def read(path):
    return {row["item_id"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.slow
def test_batched_answers_equal_single_ones(loaded, records, tmp_path):
    generate(loaded, records, dataset(), tmp_path / "batched.jsonl", 5)
    generate(loaded, records, dataset(), tmp_path / "single.jsonl", 1)
    batched, single = read(tmp_path / "batched.jsonl"), read(tmp_path / "single.jsonl")
    assert batched == single and batched.keys() == {record.item_id for record in records}
    texts = {row["text"] for row in batched.values()}
    lengths = {row["n_tokens"] for row in batched.values()}
    assert len(texts) > 7 and len(lengths) > 1 and max(lengths) == 6


def test_answers_equal_a_plain_greedy_loop(loaded, records):
    """No padding, no cache, no generate: the argmax of a full forward pass, until the end token."""
    items = Items(loaded, records[:4], supervised=False)
    for index, (text, n_tokens) in enumerate(answer_batch(loaded, [items[i] for i in range(4)], 6)):
        ids = torch.tensor([items[index].input_ids])
        image = {}
        if records[index].image is not None:
            image["pixel_values"] = loaded.image_processor(Image.open(records[index].image))[None]
        new = []
        with torch.no_grad():
            while len(new) < 6:
                token = int(loaded.model(input_ids=ids, **image).logits[0, -1].argmax())
                if token == loaded.eos_token_id:
                    break
                new.append(token)
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert n_tokens == len(new)
        assert text == loaded.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_the_language_head_runs_on_the_last_position_only(loaded, records, monkeypatch):
    items = Items(loaded, records[:3], supervised=False)
    seen = []
    hook = loaded.model.get_output_embeddings().register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    answer_batch(loaded, [items[i] for i in range(3)], 3)
    hook.remove()
    assert set(seen) == {1}


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(loaded, records):
    """What a stop rule leaves is the plain answer up to the string, whoever shares the batch; the model stops there."""
    items = Items(loaded, records, supervised=False)
    batch = [items[i] for i in range(len(records))]
    plain = answer_batch(loaded, batch, 6)
    letters = "".join(text[1:] for text, _ in plain if len(text) > 1)
    stop = (max(sorted(set(letters)), key=letters.count), "never said")
    stopped = answer_batch(loaded, batch, 6, stop=stop)
    for (text, count), (before, fewer) in zip(plain, stopped, strict=True):
        assert before == text.partition(stop[0])[0].strip()
        assert fewer < count if stop[0] in text else fewer == count
    assert 0 < sum(stop[0] in text for text, _ in plain) < len(plain)
    assert [answer_batch(loaded, [item], 6, stop=stop)[0] for item in batch] == stopped
    assert answer_batch(loaded, batch, 6, stop=("never said",)) == plain
    early = min(range(len(plain)), key=lambda i: (stop[0] not in plain[i][0], stopped[i][1]))
    steps, saved = [], min(plain[early][1] + 1, 6) - (stopped[early][1] + 1)
    hook = loaded.model.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))
    answer_batch(loaded, [batch[early]], 6)
    whole = len(steps)
    answer_batch(loaded, [batch[early]], 6, stop=stop)
    hook.remove()
    assert whole - (len(steps) - whole) == saved > 0  # the token that completes the string is the last


def test_an_empty_first_line_is_no_answer():
    assert before_stop("\n red\nblue", ["\n"]) == "red" and before_stop(" a ### b", ["###", "b"]) == "a "
    assert before_stop("red ", []) == "red " and before_stop("", ["\n"]) == ""


def test_the_stop_rule_of_the_protocol_reaches_the_answers(loaded, records, tmp_path):
    generate(loaded, records, dataset(), tmp_path / "plain.jsonl", 5)
    letter = next(row["text"] for row in read(tmp_path / "plain.jsonl").values() if len(row["text"]) > 1)[1]
    generate(loaded, records, dataclasses.replace(dataset(), stop=(letter,)), tmp_path / "stop.jsonl", 5)
    plain, stopped = read(tmp_path / "plain.jsonl"), read(tmp_path / "stop.jsonl")
    assert plain != stopped
    assert {name: row["text"].partition(letter)[0].strip() for name, row in plain.items()} == {
        name: row["text"] for name, row in stopped.items()
    }


@pytest.fixture
def counted(monkeypatch):
    """Sizes of the batches that were really generated."""
    sizes = []

    def count(loaded, items, *rest):
        sizes.append(len(items))
        return answer_batch(loaded, items, *rest)

    monkeypatch.setattr(benchmark.training.generate, "answer_batch", count)
    return sizes


def test_interrupted_files_are_completed(loaded, records, tmp_path, counted):
    path, whole = tmp_path / "a.jsonl", tmp_path / "whole.jsonl"
    generate(loaded, records, dataset(), whole, 4)
    assert counted == [4, 4, 4, 2]
    lines = whole.read_text().splitlines()
    path.write_text("\n".join(lines[:6]) + "\n" + lines[6][:20])
    counted.clear()
    progress = []
    generate(loaded, records, dataset(), path, 4, lambda done, total: progress.append((done, total)))
    # The second batch was half answered: it runs again as a whole, so that its answers cannot differ.
    assert counted == [4, 4, 2] and progress == [(8, 14), (12, 14), (14, 14)]
    assert path.read_text() == whole.read_text()
    counted.clear()
    generate(loaded, records, dataset(), path, 4)
    assert counted == [] and path.read_text() == whole.read_text()


def test_answers_to_other_prompts_and_strangers_are_replaced(loaded, records, tmp_path, counted):
    path, whole = tmp_path / "a.jsonl", tmp_path / "whole.jsonl"
    generate(loaded, records, dataset(), whole, 4)
    rows = read(whole)
    stale = rows["q0"] | {"prompt_hash": "0" * 16, "text": "stale"}
    stranger = rows["q1"] | {"item_id": "stranger"}
    others = [row for name, row in rows.items() if name != "q0"]
    path.write_text("".join(json.dumps(row) + "\n" for row in [stale, stranger, *others, others[0]]) + "[1]\nnull\n")
    generate(loaded, records, dataset(), path, 4)
    assert read(path) == rows and len(path.read_text().splitlines()) == 14


def test_prompt_hash_follows_the_prompt_only(records):
    base = records[0]
    changed = Record(**{**base.__dict__, "prompt": base.prompt + "!"})
    text_only = Record(**{**base.__dict__, "image": None})
    moved = Record(**{**base.__dict__, "image": base.image.with_name("1.png"), "references": ("y",)})
    assert prompt_hash(moved) == prompt_hash(base)
    assert len({prompt_hash(base), prompt_hash(changed), prompt_hash(text_only)}) == 3


def test_broken_images_are_counted_and_named(loaded, records, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(records[0].image.read_bytes()[:60])
    extra = [
        Record("lost", "toy", "test", tmp_path / "lost.png", "what?", None, (), None, "l", {}),
        Record("cut", "toy", "test", cut, "what?", None, (), None, "c", {}),
    ]
    with pytest.raises(UserError) as error:
        generate(loaded, [*records, *extra], dataset(), tmp_path / "a.jsonl", 4)
    assert "2 of 12 images cannot be read" in str(error.value)
    assert "lost.png" in str(error.value) and "cut.png" in str(error.value)
    assert not (tmp_path / "a.jsonl").exists()


def test_image_sets_larger_than_memory_are_read_by_workers(loaded, records, tmp_path, monkeypatch):
    generate(loaded, records, dataset(), tmp_path / "a.jsonl", 5)
    monkeypatch.setattr("benchmark.models.batch.FEATURE_BYTES", 0)
    monkeypatch.setattr(loaded, "features", {})
    generate(loaded, records, dataset(), tmp_path / "b.jsonl", 5)
    assert read(tmp_path / "b.jsonl") == read(tmp_path / "a.jsonl")
    lost = Record("lost", "toy", "test", tmp_path / "lost.png", "what?", None, (), None, "l", {})
    with pytest.raises(UserError, match="1 of 11 images cannot be read"):
        generate(loaded, [*records, lost], dataset(), tmp_path / "c.jsonl", 4)


def test_answers_of_any_characters_survive(tmp_path):
    rows = {f"q{i}": {"item_id": f"q{i}", "prompt_hash": "h", "text": text, "n_tokens": 1} for i, text in
            enumerate(["caf\u00e9", "two\u2028lines", "a\nb", "\x85"])}
    path = tmp_path / "a.jsonl"
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()).encode()
    path.write_bytes(data + '{"item_id": "caf\u00e9'.encode()[:-1])
    hashes = dict.fromkeys([*rows, "q9"], "h")
    assert benchmark.training.generate._resume(path, hashes) == set(rows)
    assert path.read_bytes() == data


def test_other_bad_input(loaded, records, tmp_path):
    with pytest.raises(UserError, match="1 duplicate item ids"):
        generate(loaded, [*records, records[0]], dataset(), tmp_path / "a.jsonl", 4)
    with pytest.raises(UserError, match="exceeds the model's 512 positions"):
        generate(loaded, records, dataset(max_new_tokens=500), tmp_path / "a.jsonl", 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        generate(loaded, records, dataset(), tmp_path / "file" / "a.jsonl", 4)


@pytest.mark.parametrize("batch_size", [3, 16])
def test_a_shared_image_changes_no_answer(loaded, records, tmp_path, batch_size, monkeypatch):
    """Four images with up to five questions each, some items without an image, some images with one question."""
    questions = [
        dataclasses.replace(record, item_id=f"{record.item_id}/{i}", prompt=record.prompt + " ?" * i)
        for record in records[:6] for i in range(1 if record.item_id == "q4" else 5)
    ]
    calls = []
    answer = benchmark.training.generate.answer_batch

    def noting(loaded, items, tokens, one_image=False, stop=()):
        calls.append((one_image, len(items)))
        return answer(loaded, items, tokens, one_image, stop)

    monkeypatch.setattr(benchmark.training.generate, "answer_batch", noting)
    generate(loaded, questions, dataset(), tmp_path / "plain.jsonl", batch_size)
    assert not any(shared for shared, _ in calls)
    calls.clear()
    generate(loaded, questions, dataset(), tmp_path / "shared.jsonl", batch_size, share_images=True)
    assert read(tmp_path / "plain.jsonl") == read(tmp_path / "shared.jsonl")
    assert sum(size for shared, size in calls if shared) == 15 and {shared for shared, _ in calls} == {True, False}


def test_the_shared_part_of_questions_on_one_image(loaded, records):
    items = Items(loaded, [dataclasses.replace(records[0], prompt=text) for text in QUESTIONS], supervised=False)
    start, rest = split_image(loaded, [items[i] for i in range(len(QUESTIONS))])
    assert start.count(loaded.image_token_id) == loaded.image_seq_length
    assert all(start + one.input_ids == items[i].input_ids and one.image is None for i, one in enumerate(rest))
    same, (left,) = split_image(loaded, [items[0]])
    assert len(left.input_ids) == 1 and same + left.input_ids == items[0].input_ids


def test_batches_without_shared_images_are_those_of_ever():
    lengths = [5, 9, 9, 1, 7]
    assert cut(lengths, [None] * 5, 2) == [[1, 2], [4, 0], [3]]
    images = ["a", "b", "a", "a", None]
    assert cut(lengths, images, 2) == [[1, 4], [2, 0], [3]]


def test_an_output_that_is_no_number_is_no_answer(loaded, records):
    """Not an unlucky token but an overflow: the items are named, and no answer is written."""
    items = Items(loaded, records[:3], supervised=False)
    norm = next(p for name, p in reversed(list(loaded.model.named_parameters())) if name.endswith("norm.weight"))
    kept = norm.detach().clone()
    try:
        with torch.no_grad():
            norm.fill_(float("nan"))
        with pytest.raises(NotANumber, match=r"not a number for 3 items, q0, q1, q2\."):
            answer_batch(loaded, [items[i] for i in range(3)], 6)
    finally:
        with torch.no_grad():
            norm.copy_(kept)


def test_an_answer_that_never_ends_is_cut_and_counted(loaded, records, tmp_path):
    head = loaded.model.get_output_embeddings().weight
    kept = head[loaded.eos_token_id].clone()
    try:
        with torch.no_grad():
            head[loaded.eos_token_id] = 0.0  # its logit is 0, and of 200 others one is larger
        generate(loaded, records[:4], dataset(3), tmp_path / "answers.jsonl", batch_size=2)
    finally:
        with torch.no_grad():
            head[loaded.eos_token_id] = kept
    rows = read(tmp_path / "answers.jsonl")
    assert {row["n_tokens"] for row in rows.values()} == {3}
    assert odd_answers(tmp_path / "answers.jsonl", 3)["unfinished"] == 4
    (tmp_path / "odd.jsonl").write_text('{"text": " ", "n_tokens": 0}\n{"text": "a", "n_tokens": 3}\n{"text": "b"}\n')
    assert odd_answers(tmp_path / "odd.jsonl", 3) == {"empty": 1, "unfinished": 1}
