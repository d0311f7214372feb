"""Use Llama's tokenizer.model in the tokenizers library so that it splits every text as sentencepiece does.

transformers ranks merges by the id of the merged piece. Llama's ids follow its scores, except for pieces of several
spaces. Their score is -1e9, so sentencepiece merges spaces last.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from benchmark.core.errors import UserError

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at run time

SPACE = "\u2581"  # how sentencepiece writes a space


def read(path: Path) -> ModelProto:
    """Return the content of a tokenizer.model.

    Raises:
        ImportError: sentencepiece or protobuf is not installed.
        UserError: the file cannot be read.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at run time

    try:
        model = ModelProto.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise UserError(f"{path} cannot be read as a sentencepiece model ({error}). Fetch it again.") from None
    if not model.pieces:
        raise UserError(f"{path} holds no pieces. Fetch it again.")
    return model


def vocabulary(model: ModelProto) -> dict[str, int]:
    """Return piece -> id."""
    return {piece.piece: number for number, piece in enumerate(model.pieces)}


def unlike_llama(model: ModelProto) -> str | None:
    """Return why `install` could not split texts exactly as sentencepiece does; None if it can.

    Every merge has its own rank. Where pieces share a score, sentencepiece merges the leftmost first. Ranks can express
    that only for repetitions of one character.
    """
    kinds, rules = model.SentencePiece, model.normalizer_spec
    trainer = model.trainer_spec
    plain = (kinds.NORMAL, kinds.UNKNOWN, kinds.CONTROL, kinds.BYTE)
    odd = [piece.piece for piece in model.pieces if piece.type not in plain]
    scores = Counter(score for piece, score in _normal(model).items() if len(piece) > 1 and piece.strip(SPACE))
    score, count = max(scores.items(), key=lambda item: item[1], default=(0.0, 0))
    for wrong, reason in (
        (trainer.model_type != trainer.BPE, "it is not of the type BPE"),
        (not trainer.byte_fallback, "it has no byte fallback"),
        (bool(rules.precompiled_charsmap), f"it normalises texts ({rules.name})"),
        (rules.remove_extra_whitespaces, "it removes spaces"),
        (not rules.add_dummy_prefix, "it puts no space before a text"),
        (trainer.treat_whitespace_as_suffix, "its spaces end words"),
        (bool(odd), f"it has {len(odd)} user-defined or unused pieces (first: {odd[:1]})"),
        (count > 1, f"{count} of its pieces share the score {score:g}"),
    ):
        if wrong:
            return reason
    return None


def install(model: ModelProto, backend: Tokenizer) -> None:
    """Make a tokenizer split texts as a sentencepiece model like Llama's does; its added tokens stay.

    Args:
        model: one for which `unlike_llama` returns None.
        backend: changed in place.
    """
    normal, merges = _normal(model), []
    for piece, score in normal.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        # Spaces share a score: the longer piece goes first, so that spaces merge from the left, as in sentencepiece.
        merges += [(-score, -len(piece), pair) for pair in halves if pair[0] in normal and pair[1] in normal]
    merges.sort(key=lambda merge: merge[:2])
    unknown = next(piece.piece for piece in model.pieces if piece.type == model.SentencePiece.UNKNOWN)
    backend.model = BPE(
        vocabulary(model), [pair for *_, pair in merges], unk_token=unknown, byte_fallback=True, fuse_unk=True
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])


def _normal(model: ModelProto) -> dict[str, Any]:
    """Return piece -> score of the pieces that texts consist of; "</s>" or "<0x0A>" in a text is not such a piece."""
    return {piece.piece: piece.score for piece in model.pieces if piece.type == model.SentencePiece.NORMAL}
