"""CIDEr with pycocoevalcap's tokeniser (Stanford PTBTokenizer 3.4.1) and its Cider class.

pycocoevalcap's Python wrapper for the tokeniser writes into site-packages, prints to the terminal, ignores a failing
Java, and shifts all later captions if one contains a line separator. This module therefore calls the same jar with the
same options and drops the same punctuation.

Like the wrapper, it keeps white space, because the tokeniser distinguishes it: "0<tab>1/2" is two tokens and "0 1/2" is
one. Only characters that end a line are replaced.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmark.core.errors import UserError
from eval.java import exception_of, find_java

# Newline, as in the wrapper, and the only five other Unicode characters that end a line for the tokeniser: VT, FF, CR,
# U+2028 and U+2029. NEL (U+0085) does not, it is read as "..."; nor do FS, GS, RS and US (U+001C to U+001F).
LINE_ENDS = dict.fromkeys(map(ord, "\n\v\f\r\u2028\u2029"), " ")


# The tokeniser starts in a second and takes 20 us per caption. A Java process that hangs must not block a run forever.
START_SECONDS, CAPTION_SECONDS = 300.0, 0.01


def one_line(caption: str) -> str:
    """Replace each character that would start a new line, and thus shift all later captions, with a space."""
    return caption.translate(LINE_ENDS)


def tokenise(captions: Sequence[str]) -> list[str]:
    """Tokenise captions and drop punctuation as COCO's caption evaluation does.

    Args:
        captions: any texts.

    Returns:
        One lower-case string per caption in the same order, with single spaces between tokens.

    Raises:
        UserError: Java is missing, or the tokeniser fails or returns a different number of lines.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not captions:
        return []
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    java = find_java()
    command = [str(java), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    try:
        # Captions go through stdin, because the tokeniser splits file names at spaces and TMPDIR may contain some. The
        # locale is for the jar's path: Java can read only those characters in it that the locale has.
        done = subprocess.run(
            [*command, "-preserveLines", "-lowerCase"], capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"},
            input="".join(f"{one_line(caption)}\n" for caption in captions).encode(),
            timeout=START_SECONDS + len(captions) * CAPTION_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"The caption tokeniser ({java}) did not end within {error.timeout:.0f} s and was stopped. Set JAVA_HOME "
            "to a working Java and run the command again."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot start Java at {java}: {error.strerror}. Set JAVA_HOME to a working Java.") from error
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(lines) != len(captions):
        reason = exception_of(done.stderr.decode(errors="replace"))
        raise UserError(
            f"The caption tokeniser returned {len(lines)} lines for {len(captions)} captions "
            f"({java}, exit code {done.returncode}): {reason}. Set JAVA_HOME to a working Java."
        )
    drop = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.rstrip().split(" ") if token not in drop) for line in lines]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score captions with CIDEr-D, commonly called CIDEr: with clipped counts and a length penalty.

    Document frequencies come from `references`, so a score on part of a test set is a different metric.

    Args:
        predictions: one caption per image.
        references: the reference captions of each image, at least one.

    Returns:
        One score per image; their mean is CIDEr, and 1.0 is 100 points.

    Raises:
        UserError: an image has no reference, or the tokeniser fails.
    """
    from pycocoevalcap.cider.cider import Cider

    empty = [index for index, captions in enumerate(references) if not captions]
    if len(predictions) != len(references) or empty:
        raise UserError(
            "CIDEr needs one answer and at least one reference caption per image, got "
            f"{len(predictions)} answers, {len(references)} images, {len(empty)} of them without a reference."
        )
    if not predictions:
        return []
    tokens = iter(tokenise([*predictions, *(caption for captions in references for caption in captions)]))
    answers = {index: [next(tokens)] for index in range(len(predictions))}
    golds = {index: [next(tokens) for _ in captions] for index, captions in enumerate(references)}
    _, scores = Cider().compute_score(golds, answers)
    return [float(score) for score in scores]
