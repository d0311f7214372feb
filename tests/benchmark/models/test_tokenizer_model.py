"""tokenizer.model of Llama's kind against the sentencepiece package itself, on generated texts."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from benchmark.core.errors import UserError
from benchmark.models.folder import load_tokenizer
from benchmark.spec import ROOT
from tests.benchmark.models import tiny

sentencepiece = pytest.importorskip("sentencepiece")

SPACE = "\u2581"
LINES = [line for line in (ROOT / "LICENSE").read_text().splitlines() if line.strip()]
WORDS = [
    *" ".join(LINES).split(), "", "é", "漢字", "😀", "ﬁ", "0 1 23", "<s>", "</s>", "<unk>", "<0x0A>", "<image>", "----",
    "ababab",
]
SPACES = [
    " ", " ", " ", "  ", "   ", "\t", "\n", "\r\n", "\v", "\f", "\x85", "\u00a0", "\u2003", "\u2028", "\u3000",
    "\u200b", SPACE, "\x00",
]
CONFIG = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "legacy": False, "model_max_length": 4096, "padding_side": "right", "tokenizer_class": "LlamaTokenizer",
}


def llama(runs=range(2, 17)):
    """Return a model as Llama's: BPE with byte fallback; pieces of several spaces among the first ids, score -1e9."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    out = io.BytesIO()
    marks = [character * count for character in "-=." for count in range(2, 30)] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *marks, *tiny.CORPUS]), model_writer=out, vocab_size=900, model_type="bpe",
        byte_fallback=True, split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )
    model = ModelProto.FromString(out.getvalue())
    pieces = list(model.pieces)
    for count in runs:
        pieces.insert(257 + 2 * count, model.SentencePiece(piece=SPACE * count, score=-1e9, type=1))
    del model.pieces[:]
    model.pieces.extend(pieces)
    return model


def texts(count: int):
    """Yield texts of words and marks between spaces of all kinds, and runs of up to 40 spaces."""
    draw = random.Random(16)
    for _ in range(count):
        text = ""
        for _ in range(draw.randint(0, 7)):
            text += draw.choice(WORDS) + "".join(draw.choices(SPACES, k=draw.randint(0, 3)))
            text += draw.choice(" \t-.a") * (draw.randint(1, 40) if draw.random() < 0.3 else 0)
        yield text


def write(folder: Path, model) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def disagreements(model, encode: Callable[[str], list[int]], count: int = 5000) -> list[str]:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    return [text for text in texts(count) if encode(text) != theirs.encode(text)]


def ids(tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.mark.slow
@pytest.mark.parametrize("runs", [range(2, 17), (2, 4, 8, 16), (3, 5, 9, 15)], ids=str)
def test_every_text_is_split_as_sentencepiece_splits_it(tmp_path, runs):
    model = llama(runs)
    tokenizer = load_tokenizer(write(tmp_path, model))
    assert disagreements(model, ids(tokenizer)) == []
    assert [getattr(tokenizer, f"{name}_token_id") for name in ("unk", "bos", "eos", "pad")] == [0, 1, 2, 0]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in texts(500):
        assert tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


def test_two_spaces_are_two_pieces(tmp_path):
    """The example of the fault: merged by id, the pair of spaces takes the one that the word needs."""
    tokenizer = load_tokenizer(write(tmp_path, llama()))
    assert tokenizer.tokenize("a  the") == [f"{SPACE}a", SPACE, f"{SPACE}the"]


def test_a_converted_file_beside_it_does_not_change_that(tmp_path):
    """llava-hf's layout: tokenizer.json by an older converter (equal scores by id) and two further tokens."""
    model = llama()
    tokenizer = load_tokenizer(write(tmp_path, model))
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    score = {piece.piece: piece.score for piece in model.pieces}
    number = content["model"]["vocab"]
    merges = sorted(content["model"]["merges"], key=lambda pair: number["".join(pair)])
    content["model"]["merges"] = sorted(merges, key=lambda pair: -score["".join(pair)])
    path.write_text(json.dumps(content))
    converted = Tokenizer.from_file(str(path))
    assert disagreements(model, lambda text: converted.encode(text, add_special_tokens=False).ids, 300)
    again = load_tokenizer(tmp_path)
    assert again.convert_tokens_to_ids(["<image>", "<pad>"]) == [len(model.pieces), len(model.pieces) + 1]
    assert disagreements(model, ids(again), 1000) == []
    assert again("a<image>b", add_special_tokens=False).input_ids[1:2] == [len(model.pieces)]
    # One that numbers the pieces otherwise is another tokenizer: the tokenizer.model is a stranger then.
    content["model"] = json.loads(Tokenizer(BPE({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, [])).to_str())["model"]
    content["added_tokens"] = content["added_tokens"][:3]
    path.write_text(json.dumps(content))
    assert len(load_tokenizer(tmp_path)) < 10


def _kind(number: int):
    def change(model) -> None:
        model.pieces[400].type = number
    return change


@pytest.mark.parametrize(("change", "reason"), [
    (lambda model: setattr(model.pieces[400], "score", model.pieces[401].score), "2 of its pieces share the score -"),
    (_kind(4), "1 user-defined or unused pieces"), (_kind(5), "1 user-defined or unused pieces"),
    (lambda model: setattr(model.trainer_spec, "model_type", 1), "not of the type BPE"),
    (lambda model: setattr(model.trainer_spec, "byte_fallback", False), "no byte fallback"),
    (lambda model: setattr(model.normalizer_spec, "precompiled_charsmap", b"x"), "it normalises texts"),
    (lambda model: setattr(model.normalizer_spec, "remove_extra_whitespaces", True), "it removes spaces"),
    (lambda model: setattr(model.normalizer_spec, "add_dummy_prefix", False), "puts no space before a text"),
    (lambda model: setattr(model.trainer_spec, "treat_whitespace_as_suffix", True), "its spaces end words"),
])
def test_what_cannot_be_split_exactly_is_refused(tmp_path, change, reason):
    model = llama()
    change(model)
    with pytest.raises(UserError, match=f"cannot be read exactly as sentencepiece reads it: .*{reason}"):
        load_tokenizer(write(tmp_path, model))


def test_a_broken_file(tmp_path):
    folder = write(tmp_path, llama())
    for content in (b"", (folder / "tokenizer.model").read_bytes()[:-100]):
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer"):
            load_tokenizer(folder)
