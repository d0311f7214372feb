"""Load models and tokenizers from checkpoint folders, with one clear message for every fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmark.core.errors import UserError
from benchmark.models import tokenizer_model
from benchmark.models.checkpoint_files import FIX, read_json, safetensors_files


def load_pretrained(cls: type[PreTrainedModel], folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Call from_pretrained on a checked local folder, and refuse anything except an exact match.

    Args:
        cls: the model class.
        folder: has config.json and safetensors.
        kwargs: passed on to from_pretrained (dtype, config, attn_implementation).

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: a file is damaged, or tensors are missing, unexpected or of another shape.
    """
    config = read_json(folder / "config.json")
    if config.get("transformers_weights"):
        raise UserError(
            f"{folder / 'config.json'} has transformers_weights={config['transformers_weights']!r}: other weights than "
            "those that are checked. Remove the key, or give the folder of those weights."
        )
    safetensors_files(folder)
    try:
        with quiet():
            # With output_loading_info it returns a pair, which transformers does not declare: so mypy knows neither
            # the model nor the lists below.
            model, info = cls.from_pretrained(  # type: ignore[misc]
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **kwargs,
            )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise UserError(
            f"Checkpoint {folder} does not load as {cls.__name__}: {_first_line(error)}. {FIX}"
        ) from None
    refuse_mismatch(
        folder, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]  # type: ignore[has-type]
    )
    return model  # type: ignore[has-type]


def refuse_mismatch(folder: Path, missing: Any, unexpected: Any, mismatched: Any = ()) -> None:
    """Refuse tensors that do not fit, with their number and names.

    Raises:
        UserError: any of the three is not empty.
    """
    faults = []
    for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        names = sorted(str(name) for name in names)
        if names:
            faults.append(f"{len(names)} tensors {word} (first: {names[0]})")
    if faults:
        raise UserError(f"Checkpoint {folder} does not match its config.json: {'; '.join(faults)}. {FIX}")


def load_tokenizer(folder: Path, rows: int | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder. Padding is always <unk>, as in LLaVA and VILA.

    A tokenizer.model decides how texts are split, even beside a tokenizer.json with the same ids: older converters
    wrote the merges in another order.

    Args:
        folder: has tokenizer.json or tokenizer.model, and tokenizer_config.json.
        rows: rows of the model's embedding; None if no model is loaded.

    Raises:
        UserError: tokenizer files are missing or invalid; a tokenizer.model without tokenizer.json is not like Llama's;
            a begin, end or unknown token is not defined; or there are more tokens than rows.
    """
    pieces, has_json = folder / "tokenizer.model", (folder / "tokenizer.json").is_file()
    if not has_json and not pieces.is_file():
        raise UserError(f"Checkpoint {folder} has no tokenizer.json or tokenizer.model. {FIX}")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, legacy=False, padding_side="right"
            )
        if pieces.is_file():
            _use_pieces(tokenizer, pieces, has_json)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"The tokenizer in {folder} is a tokenizer.model, and reading it needs a package that is missing "
            f"({_first_line(error)}). Install it: pip install sentencepiece protobuf."
        ) from None
    except Exception as error:  # the tokenizers library raises bare Exception for a corrupt file
        raise UserError(f"The tokenizer in {folder} does not load: {_first_line(error)}. {FIX}") from None
    missing = [n for n in ("bos", "eos", "unk") if getattr(tokenizer, f"{n}_token_id") is None]
    if missing:
        raise UserError(f"The tokenizer in {folder} defines no {', '.join(missing)} token. {FIX}")
    if rows is not None and len(tokenizer) > rows:
        raise UserError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, the model only {rows} rows for them: they do not "
            f"belong together. {FIX}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def _use_pieces(tokenizer: PreTrainedTokenizerBase, path: Path, has_json: bool) -> None:
    """Split texts by tokenizer.model, unless it does not fit tokenizer.json or is not like Llama's."""
    model = tokenizer_model.read(path)
    known, reason = tokenizer.get_vocab(), tokenizer_model.unlike_llama(model)
    same = all(known.get(piece) == number for piece, number in tokenizer_model.vocabulary(model).items())
    if same and reason is None:
        tokenizer_model.install(model, tokenizer.backend_tokenizer)
    elif not has_json:
        raise UserError(
            f"{path} cannot be read exactly as sentencepiece reads it: {reason or 'other tokens have its ids'}. Put "
            "the tokenizer.json of the checkpoint beside it."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and reports; what matters is raised as an error."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
