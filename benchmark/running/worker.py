"""The stages of one cell: train, generate, score, summarise. The model and the records stay loaded between cells."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core import signals, temporary
from benchmark.core.errors import UserError, explained, printable
from benchmark.core.files import write_atomic
from benchmark.core.progress import Told, images_told
from benchmark.core.variables import neutralise_process
from benchmark.models.loading import how_to_load, load_model
from benchmark.planning.plan import with_datasets
from benchmark.spec import CellSpec, ModelSpec, TunedCell, at_root, is_tuned, replay_sets, steps_per_epoch
from benchmark.store.cells import Store, read_cell
from benchmark.store.keys import Digests, Keys, keys_of
from eval.java import find_java

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.data import Record
    from benchmark.models import LoadedModel
    from methods.base import Method

Step = Callable[[str, int, int, str], None]
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")  # read before a worker narrows it to its own GPU


@dataclass(frozen=True)
class Failure:
    """Why a cell is not finished.

    Attributes:
        message: one line for the screen.
        user: whether the user can fix it; otherwise it is a fault of the program.
        model: whether the base model cannot be used, so that no other cell of it can run either.
    """

    message: str
    user: bool
    model: bool = False


class ModelUnusable(UserError):
    """The checkpoint cannot be loaded."""


def prepare_process(threads: int, device: str, gpu: int | str | None) -> None:
    """Set the variables that torch reads when it is imported, then the number of threads.

    Args:
        threads: intra-op threads. Always the same number, because another one rounds differently.
        device: "cpu" hides every GPU, so that a CPU profile gives the same numbers on a machine with a GPU.
        gpu: the GPU to use; None for the first visible one.

    Raises:
        UserError: device is cuda and torch sees no GPU; Python runs without docstrings; no folder can hold temporary
            files.
    """
    if sys.flags.optimize > 1:
        raise UserError(
            "python -OO drops docstrings, but transformers needs its docstrings to load a model. Use python or "
            "python -O, and unset PYTHONOPTIMIZE."
        )
    neutralise_process(launched=False)
    temporary.settle()
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else str(gpu) if gpu is not None else (
        os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    )
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DS_ACCELERATOR", device)  # otherwise DeepSpeed searches for one and warns
    import torch

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no CUDA device. Use a machine with a GPU, or device=cpu.")


def seed_everything(seed: int) -> None:
    """Seed the global generators that a library may use; our own code has its own generators."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def method_of(cell: CellSpec) -> Method:
    """Seed every generator, then return a new instance of the cell's method."""
    from methods.registry import build

    seed_everything(cell.seed)
    return build(cell.method.id, dict(cell.method.params), cell.seed)


def answer(
    cell: CellSpec, loaded: LoadedModel, records: Sequence[Record], dataset: str, folder: Path, path: Path,
    told: Callable[..., None] | None = None,
) -> None:
    """Answer records with a cell's model, untuned or tuned.

    Args:
        cell: the cell.
        loaded: its base model; for a tuned cell the tuned weights are written into it.
        records: the questions.
        dataset: their dataset.
        folder: the cell's, with delta.safetensors.
        path: file of the answers; answers that it has already are kept.
        told: callback (answered items, total).
    """
    from benchmark.training.generate import generate
    from benchmark.training.tuned import tuned

    with tuned(cell, loaded, folder) if is_tuned(cell) else contextlib.nullcontext():
        generate(
            loaded, records, cell.dataset(dataset), path, cell.eval.batch_size, told,
            share_images=cell.eval.share_images,
        )


def _images(stage: str, step: Step) -> Told:
    """Return a callback for the images that a stage reads before its first step; 10,000 images take minutes."""
    return lambda done, total: step(f"{stage}: images", done, total, "")


class Worker:
    """Runs cells one after another.

    Args:
        store: where results go.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._model: tuple[tuple[ModelSpec, str, str, str], LoadedModel] | None = None
        self._records: dict[tuple[Any, ...], list[Record]] = {}

    def run(self, cell: CellSpec, keys: Keys, sources: Sequence[CellSpec], step: Step) -> str | Failure:
        """Run the unfinished stages of a cell.

        Args:
            cell: the cell.
            keys: its stage keys.
            sources: the finished Full FT cells that a post-hoc method starts from.
            step: callback (stage, done, total, info).

        Returns:
            One line about the result, or a Failure; status.json then has the traceback.

        Raises:
            Locked: another process works on the cell.
            UserError: the results folder cannot be written.
        """
        store, folder = self._store, self._store.folder(cell)
        with store.lock(cell):
            cell, keys = self._with_evaluated(cell, keys)
            missing = store.missing(cell, keys)
            if not missing:
                return "done already"
            started, seconds = time.monotonic(), {}
            try:
                if any(dataset.metric == "cider" for dataset in cell.datasets):
                    find_java()  # the scorer needs it: fail now, not after training and answering
                here = cell.engine == "single"  # otherwise other processes load the model
                first = next((stage for stage in missing if not stage.startswith(("score/", "summary"))), None)
                if here and first is not None:
                    self._load(cell, answering=first != "train")
                store.begin(cell)
                for stage in missing:
                    began = time.monotonic() - store.start_stage(cell, stage, keys.stages[stage])
                    taken = store.take_weights(cell, keys.train) if stage == "train" and keys.train else None
                    if taken is None:
                        try:
                            with signals.children_watched():
                                self.stage(stage, cell, sources, step)
                        except (KeyboardInterrupt, signals.Terminated):  # the next run goes on, and adds its own time
                            store.stop_stage(cell, stage, time.monotonic() - began)
                            raise
                    seconds[stage] = round(time.monotonic() - began, 3) if taken is None else taken
                    store.finish_stage(cell, stage, keys.stages[stage], seconds[stage])
                self._provenance(cell, folder, seconds)
                store.finish(cell, "done")
            except Exception as error:
                return self._failed(cell, explained(error))
            except BaseException:  # ctrl-C, SIGTERM or SIGUSR1: the next run continues from the stage's files
                if (folder / "status.json").is_file():
                    store.finish(cell, "interrupted")
                raise
            return f"done in {time.monotonic() - started:.0f} s  {headline(folder)}"

    def _with_evaluated(self, cell: CellSpec, keys: Keys) -> tuple[CellSpec, Keys]:
        """Add to an untuned cell the datasets that another run has evaluated it on since this one was planned."""
        folder = self._store.folder(cell)
        if cell.train is not None or not (folder / "cell.yaml").is_file():
            return cell, keys
        digests = Digests(self._store.root / "digests.json")
        try:
            wider = with_datasets(cell, read_cell(folder).datasets)
            if wider == cell:
                return cell, keys
            missing = self._store.missing(wider, keys_of(wider, digests, []))
        except UserError:  # a damaged file, of another version, or data that are gone: the cell is written as planned
            return cell, keys
        unknown = {stage.partition("/")[2] for stage in missing}
        cell = with_datasets(cell, [dataset for dataset in wider.datasets if dataset.id not in unknown])
        return cell, keys_of(cell, digests, [])

    def _failed(self, cell: CellSpec, error: Exception) -> Failure:
        """Record why a cell failed. If its model cannot be loaded, the cell gets no folder."""
        user = isinstance(error, UserError)
        self._model = None  # a training that failed may have left its tensors in float32
        # It may contain item ids from files that we did not write.
        message = printable(str(error) if user else f"{type(error).__name__}: {error}")
        if isinstance(error, ModelUnusable):
            return Failure(message, user=True, model=True)
        self._store.check_writable()
        text = "".join(traceback.format_exception(error))
        self._store.finish(cell, "failed", {"message": message, "traceback": text})
        return Failure(message, user)

    # -- stages -------------------------------------------------------------------------------------------------

    def stage(self, stage: str, cell: CellSpec, sources: Sequence[CellSpec], step: Step) -> None:
        """Run one stage on the files of earlier stages."""
        kind, _, dataset = stage.partition("/")
        step(stage, 0, 1, "")
        if kind == "train":
            assert is_tuned(cell)
            self._posthoc(cell, sources, step) if cell.method.posthoc else self._train(cell, step)
        elif kind == "generate":
            self._generate(cell, dataset, step)
        elif kind == "score":
            self._score(cell, dataset)
        else:
            self._summarise(cell)

    def _train(self, cell: TunedCell, step: Step) -> None:
        def told(done: int, total: int, row: Mapping[str, Any]) -> None:
            step("train", done, total, f"loss {row['loss']:.3f}" if "loss" in row else "")

        records, folder = self.training_records(cell), self._store.folder(cell)
        if cell.engine != "single":
            from benchmark.running.multi_process import train_together

            self._free()  # the processes need this one's GPU memory
            steps = cell.train.epochs * steps_per_epoch(cell.train, len(records))
            train_together(cell, folder, VISIBLE, steps, told, _images("train", step))
            return
        from benchmark.training.train import train

        method = method_of(cell)
        with self.base(cell), images_told(_images("train", step)):
            train(cell, self._load(cell), records, method, folder, told)

    def _posthoc(self, cell: TunedCell, sources: Sequence[CellSpec], step: Step) -> None:
        from benchmark.training.posthoc import transform

        method = method_of(cell)
        deltas = [self._store.folder(source) / "delta.safetensors" for source in sources]
        out = self._store.folder(cell) / "delta.safetensors"
        with self.base(cell) as base, images_told(_images("train", step)):
            transform(cell, self._load(cell), self.training_records(cell), method, base, deltas, out)

    def _generate(self, cell: CellSpec, dataset: str, step: Step) -> None:
        folder = self._store.folder(cell)
        records, label = self.questions(cell, dataset), f"generate/{dataset}"

        def told(done: int, total: int, *_: Any) -> None:
            step(label, done, total, "")

        if cell.engine != "single":
            from benchmark.running.multi_process import answer_together, processes_of

            if cell.hostfile or processes_of(cell, VISIBLE) > 1:
                self._free()
                ids = [record.item_id for record in records]
                answer_together(cell, folder, VISIBLE, dataset, ids, told, _images(label, step))
                return
        loaded = self._load(cell, answering=True)
        path = folder / "answers" / f"{dataset}.jsonl"
        kept = self.base(cell, answering=True) if is_tuned(cell) else contextlib.nullcontext()
        with kept, images_told(_images(label, step)):
            answer(cell, loaded, records, dataset, folder, path, told)

    def _score(self, cell: CellSpec, dataset: str) -> None:
        from benchmark.store.scores import read_answers, write_items
        from eval.score import score

        folder = self._store.folder(cell)
        records = self.records(cell, dataset, cell.eval.split, cell.eval.limit)
        items = score(cell.dataset(dataset).metric, records, read_answers(folder / "answers" / f"{dataset}.jsonl"))
        write_items(folder / "items" / f"{dataset}.jsonl.gz", items)

    def _summarise(self, cell: CellSpec) -> None:
        from benchmark.store.scores import read_answers, read_items, summarise, write_scores

        folder, names = self._store.folder(cell), [dataset.id for dataset in cell.datasets]
        write_scores(folder, summarise(
            cell,
            {name: read_items(folder / "items" / f"{name}.jsonl.gz") for name in names},
            {name: self.records(cell, name, cell.eval.split, cell.eval.limit) for name in names},
            {name: read_answers(folder / "answers" / f"{name}.jsonl") for name in names},
        ))

    def _provenance(self, cell: CellSpec, folder: Path, seconds: dict[str, float]) -> None:
        """Write provenance.json; stages of an earlier process keep their time."""
        from benchmark.store.cell_measures import last_row
        from benchmark.store.provenance import describe
        from benchmark.training.trainable import trained_counts

        trained = trained_counts(folder / "delta.safetensors") if is_tuned(cell) else None
        if adapted := last_row(folder).get("trained_parameters"):  # the delta has the weights that it was merged into
            trained = {"adapter and projector": int(adapted)}
        earlier = {name: value for name, value in self._store.seconds(folder).items() if name not in seconds}
        content = json.dumps(describe(cell, {**earlier, **seconds}, self._items(cell), trained), indent=1)
        write_atomic(folder / "provenance.json", content + "\n")

    def rescored(self, cell: CellSpec) -> None:
        """Record that today's code has scored all answers of a cell; the caller holds its lock.

        A cell without provenance.json was killed before it was done: its next run writes the file.
        """
        from benchmark.store.keys import code_of

        path = self._store.folder(cell) / "provenance.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        now = code_of(cell)
        content["code"] = (content.get("code") or {}) | {kind: now[kind] for kind in ("score", "summary")}
        write_atomic(path, json.dumps(content, indent=1) + "\n")
        self._store.finish(cell, "done")

    # -- what is kept between cells -----------------------------------------------------------------------------

    def _load(self, cell: CellSpec, answering: bool = False) -> LoadedModel:
        """Return the cell's base model; successive cells of one model load it once.

        Args:
            cell: the cell.
            answering: load it in the dtype of the cell's answers.

        Raises:
            ModelUnusable: the checkpoint is missing, truncated or does not match.
        """
        wanted = how_to_load(cell, answering)
        if self._model is None or self._model[0] != wanted:
            self._model = None  # first: memory may not hold two models
            try:
                self._model = wanted, load_model(*wanted)
            except UserError as error:
                raise ModelUnusable(str(error)) from error
        return self._model[1]

    def _free(self) -> None:
        """Release the model and its GPU memory."""
        import gc

        import torch

        self._model = None
        gc.collect()
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def base(self, cell: TunedCell, answering: bool = False) -> Iterator[dict[str, Tensor]]:
        """Yield the base values of all tensors that the cell may change; restore them at the end."""
        from benchmark.models import tuned_names
        from benchmark.training.checkpoint import apply_delta, snapshot

        loaded = self._load(cell, answering)
        base = snapshot(loaded.model, tuned_names(loaded, cell.train))
        try:
            yield base
        finally:
            apply_delta(loaded.model, base)

    def _items(self, cell: CellSpec) -> dict[str, Any]:
        """Return the number of items that the cell used of each dataset, and the digest of their ids."""
        from benchmark import data
        from benchmark.data import ids_digest
        from benchmark.store.provenance import odd_answers

        splits = ((dataset.id, cell.eval.split, cell.eval.limit) for dataset in cell.datasets)
        used: list[tuple[str, str, int | None]] = [*splits]
        if is_tuned(cell):
            used.append((cell.target, "train", cell.train.limit))
        items: dict[str, Any] = {}
        for name, split, limit in used:
            records = self.records(cell, name, split, limit)
            items.setdefault(name, {})[split] = {"n": len(records), "ids": ids_digest(records)}
        for dataset, rows in replay_sets(cell) if is_tuned(cell) else []:
            records = data.load(dataset, at_root(cell.data_root), "train", rows)
            items.setdefault(dataset.id, {})["replayed"] = {"n": len(records), "ids": ids_digest(records)}
        for dataset in cell.datasets:
            path = self._store.folder(cell) / "answers" / f"{dataset.id}.jsonl"
            items[dataset.id][cell.eval.split] |= odd_answers(path, dataset.max_new_tokens)
        return items

    def training_records(self, cell: TunedCell) -> list[Record]:
        """Return what a cell is trained on."""
        return self.records(cell, cell.target, "train", cell.train.limit)

    def questions(self, cell: CellSpec, dataset: str) -> Sequence[Record]:
        """Return what a cell's model is asked of a dataset."""
        from benchmark.data import few_shot

        how = cell.eval
        return few_shot.questions(how.examples, how.split, how.limit, partial(self.records, cell, dataset))

    def records(self, cell: CellSpec, dataset: str, split: str, limit: int | None) -> list[Record]:
        """Return the records of a split; each split is read once."""
        from benchmark import data

        spec = cell.dataset(dataset)
        key = (repr(spec), cell.data_root, split, limit)
        if key not in self._records:
            self._records[key] = data.load(spec, at_root(cell.data_root), split, limit)
        return self._records[key]


def headline(folder: Path) -> str:
    """Return the averages of a finished cell in one line."""
    from benchmark.store.scores import read_scores

    try:
        averages = read_scores(folder)["averages"]
    except UserError:
        return ""
    parts = []
    for target, values in averages.items():
        numbers = "  ".join(f"{name.replace('_', '^')} {values[name]['value']:.1f}" for name in ("A_S", "A_T", "H"))
        parts.append(f"{target}: {numbers}" if len(averages) > 1 else numbers)
    return "; ".join(parts)
