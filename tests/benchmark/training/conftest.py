"""Small models of both families, their training records, and other datasets in place of the real ones."""

from __future__ import annotations

import pytest

from benchmark import data
from benchmark.data.record import Record
from benchmark.training.checkpoint import apply_delta, snapshot
from tests.benchmark.models import tiny

ANSWERS = ["red", "a blue dog", "B", "a red cat", "blue", "cat", "a dog", "A", "dog", "red red red"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folders = {family: tiny.write(family, tmp_path_factory.mktemp(family)) for family in ("llava", "vila")}
    return {family: tiny.load(family, folder) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made = []
    for i, answer in enumerate(ANSWERS):
        image = None
        if i % 4 != 3:
            image = folder / f"{i}.png"
            tiny.picture(30 + i, 24).save(image)
        made.append(Record(f"item{i}", "toy", "train", image, f"what is {i}?", answer, (answer,), None, str(i), {}))
    return made


@pytest.fixture(params=["llava", "vila"])
def loaded(request, models):
    yield from fresh(models[request.param])


@pytest.fixture
def vila(models):
    yield from fresh(models["vila"])


def fresh(loaded):
    """Hand out a shared model and give it its base weights back."""
    names = [name for name, _ in loaded.model.named_parameters()]
    base = snapshot(loaded.model, names)
    yield loaded
    apply_delta(loaded.model, base)
    loaded.model.requires_grad_(False).eval()


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Give every dataset seven training samples of its own; return what was read."""
    read = []

    def load(dataset, root, split, limit):
        read.append((dataset.id, split, limit))
        made = []
        for i in range(7):
            image = None
            if i % 2:
                image = tmp_path / f"{dataset.id}{i}.png"
                tiny.picture(60 + i, 24).save(image)
            made.append(Record(f"item{i}", dataset.id, "train", image, f"what is {i}?", "a red dog", (), None, "", {}))
        return made[:limit]

    monkeypatch.setattr(data, "load", load)
    return read
