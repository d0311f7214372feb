"""Hub tables: which are refused, which name is tried when, and what is said where none can be had."""

from __future__ import annotations

from typing import Any

import pytest

from benchmark.core.errors import UserError
from benchmark.data.prepare import hub
from benchmark.data.prepare.catalogue import sources
from benchmark.data.prepare.files import Place
from tests.real_layouts import _table

TABLE = {"question_id": ["12", "25"], "question": ["What?", "Who?"], "answers": [["a"] * 10, ["b"] * 10]}


def source(*ids: str) -> dict[str, Any]:
    return {"test": {"ids": list(ids), "config": "default", "split": "val2014"}}


@pytest.mark.parametrize("ident", ["lmms-lab/flickr30k", "lmms-lab-encoder/flickr30k"])
def test_the_table_whose_test_split_holds_the_training_images_is_refused(tmp_path, ident):
    with pytest.raises(UserError, match="is the whole corpus, 31,783 images"):
        hub.load("flickr30k", {"test": "test"}, source(ident), [Place(tmp_path)])
    configured = [i for entry in sources().values() for part in entry["hub"].values() for i in part["ids"]]
    assert not set(configured) & set(hub.REFUSED)


def test_names_are_tried_in_order_and_a_loading_script_is_never_run(monkeypatch, tmp_path):
    import datasets

    tried = []

    def refuse(path: str, **options: Any) -> None:
        tried.append(path)
        assert "trust_remote_code" not in options
        raise RuntimeError("Dataset scripts are no longer supported, but found OK.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(hub.Unavailable, match="new/OK: it is a loading script, which is never run; old/OK: it is") as e:
        hub.load("okvqa", {"test": "val2014"}, source("new/OK", "old/OK"), [])
    assert tried == ["new/OK", "old/OK"] and "trust" not in str(e.value)


def test_the_users_folder_comes_before_the_network(tmp_path):
    _table(tmp_path, "old/OK", None, "val2014", TABLE)
    rows = hub.load("okvqa", {"test": "val2014"}, source("new/OK", "old/OK"), [Place(tmp_path)])["val2014"]
    assert [(row.id, row.image, row.stored) for row in rows] == [("12", "1", None), ("25", "2", None)]


def test_the_second_flickr30k_table_has_its_captions_under_another_name(tmp_path):
    """AnyModal's alt_text is rewritten; Karpathy's captions are in original_alt_text."""
    _table(tmp_path, "AnyModal/flickr30k", None, "test", {
        "image": [{"bytes": b"x", "path": "7.jpg"}], "alt_text": [["rewritten"]], "original_alt_text": [["a", "b"]],
        "sentids": [["0"]], "split": ["test"], "img_id": ["3"], "filename": ["7.jpg"],
    })
    (row,) = hub.load("flickr30k", {"test": "test"}, sources()["flickr30k"]["hub"], [Place(tmp_path)], False)["test"]
    assert (row.id, row.image, row.fields["captions"], row.stored.read()) == ("3", "7.jpg", ["a", "b"], b"x")


def test_images_that_the_tables_metadata_calls_images_stay_bytes_until_they_are_read(tmp_path):
    """As tables from the hub are: read without this, `datasets` would decode every image on access."""
    import datasets

    columns = {**TABLE, "image": [{"bytes": b"no image", "path": f"{i}.jpg"} for i in "12"]}
    features = datasets.Features({
        "question_id": datasets.Value("string"), "question": datasets.Value("string"), "image": datasets.Image(),
        "answers": datasets.List(datasets.Value("string")),
    })
    folder = tmp_path / "old" / "OK" / "data"
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "val2014-00000-of-00001.parquet")
    rows = hub.load("okvqa", {"test": "val2014"}, source("old/OK"), [Place(tmp_path)], False)["val2014"]
    assert [(row.id, row.stored.read()) for row in rows] == [("12", b"no image"), ("25", b"no image")]


def test_a_folder_of_the_dataset_alone_may_be_the_table(tmp_path):
    """`hf download lmms-lab/OK-VQA --local-dir anything` and then --from okvqa=anything."""
    _table(tmp_path, "anything", None, "val2014", TABLE)
    for own, there in ((True, True), (False, False)):
        asked = [Place(tmp_path / "anything", own=own)]
        if there:
            assert len(hub.load("okvqa", {"test": "val2014"}, source("new/OK", "old/OK"), asked, False)["val2014"]) == 2
        else:
            with pytest.raises(hub.Unavailable, match="new/OK: neither below --from nor in .*; old/OK: neither"):
                hub.load("okvqa", {"test": "val2014"}, source("new/OK", "old/OK"), asked, False)


def test_a_snapshot_in_the_hub_clients_cache_serves_a_machine_without_a_network(monkeypatch, tmp_path):
    from huggingface_hub import constants

    _table(tmp_path, "datasets--old--OK/snapshots/5f1e", None, "val2014", TABLE)
    (tmp_path / "datasets--new--OK" / "snapshots" / "0").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def unreachable(path: str, *args: Any, **options: Any):
        if path.startswith(str(tmp_path)):
            return real(path, *args, **options)
        raise ConnectionError(f"Couldn't reach {path!r} on the Hub")

    import datasets

    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for online in (True, False):
        assert len(hub.load("okvqa", {"test": "val2014"}, source("new/OK", "old/OK"), [], online)["val2014"]) == 2
    by_hand = [Place(tmp_path)]  # --from ~/.cache/huggingface/hub
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nowhere"))
    assert len(hub.load("okvqa", {"test": "val2014"}, source("new/OK", "old/OK"), by_hand)["val2014"]) == 2


@pytest.mark.parametrize("answer", [True, False])
def test_any_answer_of_the_hub_is_one_and_every_error_is_none(monkeypatch, answer):
    import huggingface_hub.utils

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append((url, timeout))
            if not answer:
                raise OSError("no route to host")

    asked = []
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    assert hub.reachable() is answer
    assert len(asked) == 1 and asked[0][1] == hub.REACH_SECONDS


def test_without_the_hub_the_table_with_the_images_is_not_downloaded_either(monkeypatch, tmp_path):
    import datasets

    _table(tmp_path, "yerevann/coco-karpathy", None, "test", {
        "filepath": ["val2014"], "filename": ["COCO_val2014_000000000001.jpg"], "sentences": [["a cat"]], "cocoid": [1],
    })
    tried, real = [], datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: tried.append(path) or real(path, **options))
    with pytest.raises(hub.Unavailable, match="KoreanImageCaptioningDataset: neither below --from nor in the"):
        hub.load("coco", {"test": "test"}, sources()["coco"]["hub"], [Place(tmp_path)], False)
    assert [path for path in tried if not path.startswith(str(tmp_path))] == []


@pytest.mark.parametrize(("column", "value", "message"), [
    ("question_id", [None, "25"], "row 0 has question_id=null"), ("question_id", ["12", "12"], "item 12 occurs twice"),
    ("question", ["What?", ""], "row 1 has an empty question"),
    ("answers", [[], ["b"]], "answers of row 0 has 0 entries"),
    ("answers", None, "row 0 lacks the key 'answers'"),
])
def test_a_broken_table_is_named_with_its_row(tmp_path, column, value, message):
    changed = {**TABLE, column: value}
    _table(tmp_path, "some/OK", None, "val2014", {key: item for key, item in changed.items() if item is not None})
    with pytest.raises(UserError, match=message) as caught:
        hub.load("okvqa", {"test": "val2014"}, source("some/OK"), [Place(tmp_path)])
    assert "some/OK (val2014)" in str(caught.value)


def test_options_joined_by_commas_that_cannot_be_told_apart_are_refused(tmp_path):
    _table(tmp_path, "some/OK", None, "val2014", {
        "question_id": ["1"], "question": ["?"], "choices": ["1,000,2,000"], "answer": ["1,000"],
        "ques_type": ["choose_txt"],
    })
    with pytest.raises(UserError, match="the table joins them by commas, .* Use the official iconqa_data.zip"):
        hub.load("iconqa", {"test": "test"}, source("some/OK"), [Place(tmp_path)])
