"""Three kinds of sources, one set of records; resumed, compared with the first time, nothing of the user's touched."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.core.files import lock
from benchmark.data import check_images, load, open_image
from benchmark.data.prepare import main, wanted_splits
from benchmark.data.prepare.files import Index, Place
from tests.real_layouts import COUNTS, SAMPLE, overrides

EIGHT = ("okvqa", "textvqa", "ocrvqa", "gqa", "flickr30k", "coco", "iconqa", "scienceqa")


@pytest.fixture
def specs():
    return request(overrides(), grid=False).datasets


def prepared(specs, root: Path, *argv: str) -> dict[str, dict[str, list]]:
    """Prepare and return dataset -> split -> records, images checked."""
    main(["--no-hub", *argv], specs, root)
    names = [item for item in argv if item in EIGHT] or EIGHT
    records = {name: {split: load(specs[name], root, split) for split in wanted_splits(specs[name])} for name in names}
    check_images([record for splits in records.values() for rows in splits.values() for record in rows])
    return records


def own(folder: Path, names=EIGHT) -> list[str]:
    """Return options that give each dataset its own folder: two drawn sets use the same COCO names."""
    return [f"--from={name}={folder / name}" for name in names]


def content(record) -> tuple:
    """Return what a model and a scorer see of a record."""
    pixels = None if record.image is None else hashlib.sha256(open_image(record).tobytes()).hexdigest()
    return record.prompt, record.target, record.references, record.options, pixels


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_official_files_hub_tables_and_group_files_give_the_same_records(specs, drawn, hub, group, tmp_path, capsys):
    before = tree(drawn)
    official = prepared(specs, tmp_path / "a", *own(drawn))
    told = capsys.readouterr().out
    assert "iconqa: licence CC BY-NC-SA 4.0" in told and "train: 16 items, 16 images, from official files" in told
    assert tree(drawn) == before
    for name in EIGHT:
        assert len(official[name]["test"]) == (10 if name == "ocrvqa" else COUNTS["test"])
    assert len(official["coco"]["train"]) == SAMPLE
    # The hub has no training split of IconQA, and no problem ids of ScienceQA.
    tables = prepared(specs, tmp_path / "b", "--from", str(hub), *(name for name in EIGHT if name != "iconqa"))
    for name, splits in tables.items():
        for split, rows in splits.items():
            ours = [content(record) for record in rows]
            if (name, split) == ("scienceqa", "train"):
                assert len(ours) == SAMPLE
            else:
                assert sorted(ours, key=str) == sorted(map(content, official[name][split]), key=str), (name, split)
            if name != "scienceqa":
                assert [record.item_id for record in rows] == [record.item_id for record in official[name][split]]
    # The group's own list of OCR-VQA questions is accepted as it is; Flickr30k's test set is in none of its files.
    capsys.readouterr()
    files = prepared(specs, tmp_path / "c", *own(group), *(name for name in EIGHT if name != "flickr30k"))
    told = capsys.readouterr().out
    assert told.count("every prompt is the same, byte for byte") == 7
    for name, splits in files.items():
        for split, rows in splits.items():
            if name == "ocrvqa":
                continue
            assert [content(r) for r in rows] == [content(r) for r in official[name][split]], (name, split)
    lines = (group / "ocrvqa" / "sampled_ocrvqa_test.jsonl").read_text().splitlines()
    listed = {(Path(row["image"]).stem, row["text"], row["answer"]) for row in map(json.loads, lines)}
    ours = {(r.meta["image_id"], r.prompt, r.target) for r in files["ocrvqa"]["test"]}
    assert ours == listed and len(listed) == 10


def test_a_training_split_that_lost_rows_is_refused(drawn, hub, tmp_path):
    """10,000 of 12,000 rows are 10,000 rows, but other ones: the whole split is counted before it is sampled."""
    whole = request([*overrides(), "dataset.scienceqa.counts.train_rows=12726"], grid=False).datasets
    for given, source in ((own(drawn, ["scienceqa"]), "official files"), (["--from", str(hub)], "hub")):
        with pytest.raises(UserError, match=rf"train .train. has 24 rows in {source}, the official split has 12,726"):
            prepared(whole, tmp_path, *given, "scienceqa")
        assert not (tmp_path / "scienceqa").exists()


def test_the_paper_profile_counts_whole_training_splits():
    specs = request(["profile=paper"], grid=False).datasets
    assert {name: specs[name].counts.get("train_rows") for name in ("flickr30k", "coco", "iconqa", "scienceqa")} == {
        "flickr30k": 29_000, "coco": 82_783, "iconqa": 18_946, "scienceqa": 12_726,
    }
    restval = request(["profile=paper", "protocol.coco=karpathy_restval"], grid=False).datasets["coco"]
    assert restval.counts["train_rows"] == 113_287


def test_prepared_again_is_a_check_and_an_interrupted_one_goes_on(specs, drawn, tmp_path, capsys, monkeypatch):
    from benchmark.data.prepare import images

    names = ("gqa", "iconqa")
    real, calls = images._link, []

    def link(path, source):
        calls.append(path)
        if len(calls) == 9:
            raise KeyboardInterrupt
        real(path, source)

    monkeypatch.setattr(images, "_link", link)
    with pytest.raises(KeyboardInterrupt):
        main(["--no-hub", "--from", str(drawn), *names], specs, tmp_path)
    first = prepared(specs, tmp_path, "--from", str(drawn), *names)
    assert len(calls) == len(set(calls)) + 1  # only the one that was interrupted was made again
    known = (tmp_path / "ids.json").read_bytes()
    capsys.readouterr()
    assert prepared(specs, tmp_path, *names) == first  # without --from: all is there
    assert capsys.readouterr().out.count("prepared already") == 2
    assert (tmp_path / "ids.json").read_bytes() == known


def test_other_items_than_the_first_time_are_refused(specs, drawn, tmp_path):
    prepared(specs, tmp_path / "data", "--from", str(drawn), "ocrvqa")
    before = tree(tmp_path / "data")
    other = tmp_path / "other" / "ocrvqa"
    other.mkdir(parents=True)
    books = json.loads((drawn / "ocrvqa" / "dataset.json").read_text())
    first = next(key for key, book in books.items() if book["split"] == 3)
    renamed = {("9" + key if key == first else key): book for key, book in books.items()}
    (other / "dataset.json").write_text(json.dumps(renamed))
    (other / "images").mkdir()
    for path in (drawn / "ocrvqa" / "images").iterdir():
        name = "9" + path.name if path.stem == first else path.name
        (other / "images" / name).write_bytes(path.read_bytes())
    (tmp_path / "data" / "ocrvqa" / "prepared.json").write_text("{}")  # as if it had been interrupted
    (tmp_path / "data" / "ocrvqa" / ".preparing").write_text("")
    with pytest.raises(UserError, match="test has other items than at the first prepare") as caught:
        main(["--no-hub", "--from", str(other), "ocrvqa"], specs, tmp_path / "data")
    assert "delete the line ocrvqa/test/" in str(caught.value)
    after = tree(tmp_path / "data")
    assert {name: after[name] for name in before if not name.endswith("prepared.json")} == {
        name: content for name, content in before.items() if not name.endswith("prepared.json")
    }


def test_books_without_a_cover_are_reported_and_not_sampled(specs, drawn, tmp_path, capsys):
    source = tmp_path / "source" / "ocrvqa"
    (source / "images").mkdir(parents=True)
    (source / "dataset.json").write_bytes((drawn / "ocrvqa" / "dataset.json").read_bytes())
    covers = [path for path in sorted((drawn / "ocrvqa" / "images").iterdir()) if path.stem.startswith("3")]
    for path in covers[:-1]:
        (source / "images" / path.name).write_bytes(path.read_bytes())
    records = prepared(specs, tmp_path / "data", "--from", str(source), "ocrvqa")["ocrvqa"]["test"]
    told = capsys.readouterr().out
    assert f"1 of {len(covers)} books have no cover (first: {covers[-1].stem})" in told
    assert len(records) == 10 and covers[-1].stem not in {record.group for record in records}
    assert any(record.image.name != find.name for record in records if (find := _found(record)))  # the .gif


def _found(record):
    from benchmark.data import find_image

    return find_image(record.image)


def test_a_list_of_ids_takes_the_place_of_the_seed(specs, drawn, tmp_path):
    everything = load(_free(specs["ocrvqa"]), drawn, "test")
    chosen = [record.item_id for record in everything][:10]
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(reversed(chosen)) + "\n")
    argv = ["--from", str(drawn), "--ids", f"ocrvqa={listed}", "ocrvqa"]
    records = prepared(specs, tmp_path / "data", *argv)["ocrvqa"]["test"]
    assert [record.item_id for record in records] == chosen
    listed.write_text("0_0\n")
    with pytest.raises(UserError, match="lists 1 ids that the data lack, such as 0_0"):
        main(["--no-hub", *argv], specs, tmp_path / "again")


def _free(spec):
    from dataclasses import replace

    return replace(spec, counts={}, options={})


def test_subsets_nest(specs, drawn, tmp_path):
    prepared(specs, tmp_path, *own(drawn), "coco")
    kept = [{record.item_id for record in load(specs["coco"], tmp_path, "train", limit)} for limit in (2, 5, 11, None)]
    assert [len(ids) for ids in kept] == [2, 5, 11, SAMPLE]
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))
    both = ["dataset.coco.splits.train=[train,restval]", f"dataset.coco.counts.train_rows={COUNTS['train']}"]
    restval = request([*overrides(), *both], grid=False).datasets["coco"]
    other = tmp_path / "with_restval"
    main(["--no-hub", *own(drawn, ["coco"]), "coco"], {"coco": restval}, other)
    every = json.loads((other / "coco" / "dataset_coco.json").read_text())["images"]
    assert sum(entry["split"] == "restval" for entry in every) == 3


def test_files_that_the_user_put_in_place_are_only_checked(specs, drawn, tmp_path, capsys):
    shutil.copytree(drawn / "gqa", tmp_path / "gqa")
    before = tree(tmp_path / "gqa")
    for _ in range(2):
        prepared(specs, tmp_path, "gqa")
        assert "they are checked and left as they are" in capsys.readouterr().out
        assert {name: data for name, data in tree(tmp_path / "gqa").items() if name != "prepared.json"} == before


def test_archives_are_unpacked_once_and_nothing_outside(specs, drawn, tmp_path, capsys):
    source = tmp_path / "downloads"
    source.mkdir()
    with zipfile.ZipFile(source / "gqa_everything.zip", "w") as file:
        for path in sorted((drawn / "gqa").rglob("*")):
            if path.is_file() and path.name in ("testdev_balanced_questions.json",) or path.suffix == ".jpg":
                file.write(path, path.relative_to(drawn / "gqa"))
    before = tree(source)
    prepared(specs, tmp_path / "data", "--from", str(source), "gqa")
    assert f"unpacking {source / 'gqa_everything.zip'}" in capsys.readouterr().out and tree(source) == before
    for name in ("../escaped.txt", "/tmp/escaped.txt", "C:\\escaped.txt", "a/../../escaped.txt",
                 "..\\escaped.txt", "a\\..\\..\\escaped.txt", "\\tmp\\escaped.txt"):
        with zipfile.ZipFile(source / "gqa_everything.zip", "w") as file:
            file.writestr(zipfile.ZipInfo(name), b"x")
        with pytest.raises(UserError, match="would leave its folder. It is not unpacked"):
            main(["--no-hub", "--from", str(source), "gqa"], specs, tmp_path / "bad")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_what_is_missing_is_said_with_the_place_to_get_it(specs, drawn, hub, tmp_path):
    with pytest.raises(UserError) as caught:
        main(["--no-hub", "--from", str(tmp_path), "coco", "okvqa"], specs, tmp_path / "data")
    text = str(caught.value)
    assert "2 of 2 datasets are not prepared" in text and "train2014.zip, val2014.zip (cocodataset.org)" in text
    assert not (tmp_path / "data" / "coco").exists()
    with pytest.raises(UserError, match="iconqa: no source has train .*iconqa_data.zip"):
        main(["--no-hub", "--from", str(hub), "iconqa"], specs, tmp_path / "data")
    wrong = request([*overrides(), "dataset.gqa.counts.test=12578"], grid=False).datasets
    with pytest.raises(UserError, match="gqa/test has 12 items .* expected 12578"):
        main(["--no-hub", "--from", str(drawn), "gqa"], wrong, tmp_path / "data")
    assert not (tmp_path / "data" / "gqa").exists()


def both(drawn, group, out: Path, name: str) -> Path:
    """Return a folder with a dataset's official files and images and, beside them, the group's files."""
    shutil.copytree(drawn / name, out / name)
    shutil.copytree(group / name, out / name / "lists", ignore=shutil.ignore_patterns("images_of_it"))
    return out / name


def test_the_groups_own_questions_are_taken_where_official_files_are_there_too(specs, drawn, group, tmp_path, capsys):
    """Covers come with dataset.json, icons with problems.json: the group's samples could otherwise never be used."""
    source = both(drawn, group, tmp_path / "source", "ocrvqa")
    listed = [json.loads(line) for line in (source / "lists" / "sampled_ocrvqa_test.jsonl").read_text().splitlines()]
    wanted = {(Path(row["image"]).stem, row["text"]) for row in listed}

    def taken(root: Path, *argv: str) -> set[tuple[str, str]]:
        records = prepared(specs, root, *argv, "ocrvqa")["ocrvqa"]["test"]
        return {(record.meta["image_id"], record.prompt) for record in records}

    assert taken(tmp_path / "own", f"--from=ocrvqa={source}") != wanted
    assert "--group-first takes its questions instead of a sample of our own" in capsys.readouterr().out
    assert taken(tmp_path / "theirs", f"--from=ocrvqa={source}", "--group-first") == wanted
    assert "test: 10 items" in (told := capsys.readouterr().out) and "from the group's files" in told
    assert taken(tmp_path / "theirs") == wanted and "prepared already" in capsys.readouterr().out
    icons = both(drawn, group, tmp_path / "source", "iconqa")
    prepared(specs, tmp_path / "theirs", f"--from=iconqa={icons}", "--group-first", "iconqa")
    assert capsys.readouterr().out.count("from the group's files") == 2
    with pytest.raises(UserError, match="goes below --from, with --group-first"):
        main([f"--ids=ocrvqa={source / 'lists' / 'sampled_ocrvqa_test.jsonl'}", "ocrvqa"], specs, tmp_path / "ids")


def test_a_list_of_ids_stays_until_the_folder_is_deleted(specs, drawn, tmp_path, capsys):
    chosen = [record.item_id for record in load(_free(specs["ocrvqa"]), drawn, "test")][-10:]
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(chosen))
    prepared(specs, tmp_path / "data", "--from", str(drawn), "--ids", f"ocrvqa={listed}", "ocrvqa")
    capsys.readouterr()
    again = prepared(specs, tmp_path / "data", "--from", str(drawn), "ocrvqa")["ocrvqa"]["test"]
    assert [record.item_id for record in again] == chosen and "prepared already" in capsys.readouterr().out


def test_books_whose_cover_is_broken_are_drawn_anew(specs, drawn, tmp_path, capsys):
    """Hundreds of the covers that Amazon served are no images, and cannot be fetched again."""
    shutil.copytree(drawn / "ocrvqa", tmp_path / "source" / "ocrvqa")
    broken = load(specs["ocrvqa"], drawn, "test")[0].group
    next((tmp_path / "source").rglob(f"{broken}.*")).write_bytes(b"<html>gone</html>")
    records = prepared(specs, tmp_path / "data", "--from", str(tmp_path / "source"), "ocrvqa")["ocrvqa"]["test"]
    assert f"1 books have a cover that cannot be decoded (first: {broken})" in capsys.readouterr().out
    assert len(records) == 10 and broken not in {record.group for record in records}
    # The same questions as if the book had never been there.
    (tmp_path / "without").mkdir()
    shutil.copytree(tmp_path / "source" / "ocrvqa", tmp_path / "without" / "ocrvqa")
    next((tmp_path / "without").rglob(f"{broken}.*")).unlink()
    other = prepared(specs, tmp_path / "other", "--from", str(tmp_path / "without"), "ocrvqa")["ocrvqa"]["test"]
    assert [record.item_id for record in other] == [record.item_id for record in records]
    for path in (tmp_path / "source").rglob("3*.*"):
        path.write_bytes(b"<html>gone</html>")
    with pytest.raises(UserError, match=r"ocrvqa/test has .* have a cover that cannot be decoded \(first: ") as caught:
        main(["--no-hub", "--from", str(tmp_path / "source"), "ocrvqa"], specs, tmp_path / "none")
    assert ".checking-" not in str(caught.value)


def test_the_number_of_images_is_asserted(specs, drawn, tmp_path):
    paper = request(["profile=paper"], grid=False).datasets
    assert {name: paper[name].counts["test_images"] for name in ("textvqa", "gqa", "scienceqa")} == {
        "textvqa": 3166, "gqa": 398, "scienceqa": 2017,
    }
    with pytest.raises(UserError, match=r"test has 12 items on \d+ images, the official split has 398 images"):
        prepared(request([*overrides(), "dataset.gqa.counts.test_images=398"], grid=False).datasets, tmp_path,
                 "--from", str(drawn), "gqa")
    assert not (tmp_path / "gqa").exists()


def test_an_archive_beside_what_came_out_of_it_and_a_link_to_the_folder_above_do_no_harm(specs, drawn, tmp_path):
    source = tmp_path / "downloads" / "gqa"
    shutil.copytree(drawn / "gqa", source)
    (source / "up").symlink_to(source, target_is_directory=True)
    with zipfile.ZipFile(source / "questions1.2.zip", "w") as file:
        file.write(source / "testdev_balanced_questions.json", "testdev_balanced_questions.json")
    prepared(specs, tmp_path / "data", "--from", str(tmp_path / "downloads"), "gqa")
    assert len(Index([Place(tmp_path / "downloads")])._names["testdev_balanced_questions.json"]) == 1
    other = source / "old" / "testdev_balanced_questions.json"
    other.parent.mkdir()
    other.write_text("{}")
    with pytest.raises(UserError, match="files are called testdev_balanced_questions.json"):
        main(["--no-hub", "--from", str(tmp_path / "downloads"), "gqa"], specs, tmp_path / "again")


def test_an_archive_with_damaged_bytes_is_named(specs, drawn, tmp_path):
    path = tmp_path / "gqa.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(drawn / "gqa" / "testdev_balanced_questions.json", "testdev_balanced_questions.json")
    content = bytearray(path.read_bytes())
    content[80:140] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"gqa.zip cannot be read as an archive .* Fetch it again"):
        main(["--no-hub", "--from", str(tmp_path), "gqa"], specs, tmp_path / "data")


def test_files_of_other_datasets_with_similar_names_are_no_training_rows(specs, drawn, hub, tmp_path):
    """OK-VQA's mscoco_train2014_annotations.json and LAVIS's coco_karpathy_train.json are not the group's files."""
    place = tmp_path / "place"
    shutil.copytree(drawn / "coco", place / "coco", ignore=shutil.ignore_patterns("*.json"))
    for name in ("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"):
        (place / name).write_text('{"questions": []}')
    (place / "coco_karpathy_train.json").write_text('[{"caption": "a cat", "image": "val2014/1.jpg"}]')
    records = prepared(specs, tmp_path / "data", "--from", str(place), "--from", str(hub), "coco")
    assert len(records["coco"]["train"]) == SAMPLE


@pytest.mark.parametrize("argv", [["--form", "x"], ["cocoa"], ["--splits", "val"], ["--ids", "coca=x"]])
def test_wrong_options(specs, tmp_path, argv):
    with pytest.raises(UserError, match="Valid: "):
        main(argv, specs, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "ZIP", "tar"])
def test_back_slashes_in_an_archive_are_folders(specs, drawn, tmp_path, kind):
    """Tools of Windows write gqa\\images\\1.jpg; unzip reads it so, Python's zipfile makes one odd file name of it."""
    source = tmp_path / "downloads"
    source.mkdir()
    members = {
        "\\".join(path.relative_to(drawn).parts): path.read_bytes() for path in sorted((drawn / "gqa").rglob("*"))
        if path.name == "testdev_balanced_questions.json" or path.suffix == ".jpg"
    }
    if kind == "tar":
        with tarfile.open(source / "gqa.tar", "w") as file:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    else:
        with zipfile.ZipFile(source / f"gqa.{kind}", "w") as file:
            for name, data in members.items():
                file.writestr(zipfile.ZipInfo(name), data)
    prepared(specs, tmp_path / "data", "--no-hub", "--from", str(source), "gqa")
    assert not [path for path in (tmp_path / "data").rglob("*") if "\\" in path.name]


def test_a_missing_picture_is_named_with_its_folder(specs, drawn, tmp_path):
    source = tmp_path / "scienceqa"
    shutil.copytree(drawn / "scienceqa", source)
    gone = min((source / "images" / "test").glob("*/image.png"))
    gone.unlink()
    with pytest.raises(UserError, match=f"1 of .* images are missing, the first is images/test/{gone.parent.name}/"):
        main(["--no-hub", "--from", f"scienceqa={source}", "scienceqa"], specs, tmp_path / "data")


def test_a_read_only_hub_home_needs_no_writing(specs, hub, tmp_path, monkeypatch):
    """Tables on disk and a shared HF_HOME: the tables are converted below the data folder."""
    import datasets

    closed = tmp_path / "home"
    closed.write_text("a file: nobody, not even root, can make a folder below it")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", closed / "datasets")
    prepared(specs, tmp_path / "data", "--no-hub", "--from", str(hub), "ocrvqa")
    assert list((tmp_path / "data" / ".tables").iterdir())


@pytest.mark.parametrize("ending", [".JPG", ".Jpg", ".JPEG", ".webp", ".WEBP", ".PNG"])
def test_endings_in_any_case_and_webp(specs, drawn, tmp_path, ending):
    source = tmp_path / "gqa"
    shutil.copytree(drawn / "gqa", source)
    for path in list(source.rglob("*.jpg")):
        Image.open(path).save(path.with_suffix(ending))
        path.unlink()
    prepared(specs, tmp_path / "data", "--no-hub", "--from", f"gqa={source}", "gqa")
    prepared(specs, tmp_path, "gqa")  # the same folder as a data folder of the user's own


def test_a_read_only_folder_of_another_owner_is_checked_without_writing(specs, drawn, tmp_path, capsys, monkeypatch):
    shutil.copytree(drawn / "gqa", tmp_path / "gqa")
    before = tree(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    prepared(specs, tmp_path, "gqa")
    assert "the folder is read-only" in capsys.readouterr().out and tree(tmp_path) == before


def test_a_machine_without_a_network_is_found_out_once(specs, tmp_path, monkeypatch, capsys):
    """Every look-up fails by itself only after 20 seconds and more, and there are several for each dataset."""
    import datasets

    from benchmark.data.prepare import hub as tables

    checks, looked = [], []
    monkeypatch.setattr(tables, "reachable", lambda: bool(checks.append(1)))
    monkeypatch.setattr(tables, "_cached", lambda ident: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: looked.append(path))
    with pytest.raises(UserError, match="2 of 2 datasets") as caught:
        main(["okvqa", "gqa"], specs, tmp_path)
    assert (len(checks), looked) == (1, [])
    assert "neither below --from nor in the hub client's cache" in str(caught.value)
    assert capsys.readouterr().out.count("The hub cannot be reached") == 1


def test_where_every_split_has_files_or_the_hub_is_not_wanted_nobody_asks_for_it(specs, drawn, tmp_path, monkeypatch):
    from benchmark.data.prepare import hub as tables

    monkeypatch.setattr(tables, "reachable", lambda: pytest.fail("asked for the hub"))
    main([*own(drawn, ["gqa"]), "gqa"], specs, tmp_path)
    with pytest.raises(UserError, match="no source has"):
        main(["--no-hub", "okvqa"], specs, tmp_path)


def test_two_prepares_at_once_do_one_after_the_other(specs, drawn, tmp_path, capsys):
    """Else each would write away what the other noted in ids.json."""
    root = tmp_path / "data"
    root.mkdir()
    said: list[str] = []
    done: list[bool] = []
    with open(root / ".lock", "a") as held:
        lock(held)
        argv = ["--no-hub", *own(drawn, ["gqa"]), "gqa"]
        other = threading.Thread(target=lambda: (main(argv, specs, root), done.append(True)))
        other.start()
        end = time.monotonic() + 60
        while "waiting" not in "".join(said):
            assert time.monotonic() < end and not done and not (root / "gqa").exists()
            said.append(capsys.readouterr().out)
            time.sleep(0.02)
    other.join(60)
    assert done and (root / "gqa").is_dir() and f"Another command prepares {root}: waiting for it" in "".join(said)
