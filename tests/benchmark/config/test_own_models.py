"""An installed package finds the models of the user's own conf/model; a checkout has only its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import cli
from benchmark.config import compose, own_models
from benchmark.config.compose import options_of
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.spec import CONF
from tests.benchmark.models import auto_tiny

ONE = ("method=full_ft", "dataset=coco")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the working folder's conf/model, as an installed package sees it."""
    folder = tmp_path / "conf" / "model"
    monkeypatch.setattr(own_models, "FOLDER", folder)
    forget()
    yield folder
    forget()


def forget() -> None:
    compose.composed.cache_clear()
    compose._library.cache_clear()


def write(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = (CONF / "model" / "llava_pocket.yaml").read_text(encoding="utf-8")
    (folder / f"{name}.yaml").write_text(text.replace("id: llava_pocket", f"id: {name}"), encoding="utf-8")


def test_a_checkout_has_no_second_folder():
    assert own_models.FOLDER == CONF / "model" and own_models.own_models() == {}


def test_a_model_of_the_working_folder_makes_cells_and_takes_overrides(folder):
    write(folder, "mine")
    (folder / "resnet.yaml").write_text("depth: 50\n")  # another program's
    assert "mine" in options_of("model") and "resnet" not in options_of("model")
    shipped, mine = request([*ONE, "models=llava_pocket,mine", "model.max_length=300"]).cells
    assert (shipped.model.id, mine.model.id, mine.model.max_length) == ("llava_pocket", "mine", 300)


def test_a_file_that_is_no_yaml_is_named(folder):
    write(folder, "mine")
    (folder / "mine.yaml").write_text("id: mine\nfamily: auto\n  checkpoint: [\n")
    with pytest.raises(UserError, match=r"Cannot compose conf/: (?s:.*)mine\.yaml"):
        request([*ONE, "model=llava_pocket"])


def test_a_profile_that_names_an_unknown_model_is_refused(monkeypatch):
    real = compose._hydra

    def hydra(name, chosen):
        config = real(name, chosen)
        if name:
            config.profile.learning_rates = {"vila_pokcet": 1e-3}
        return config

    monkeypatch.setattr(compose, "_hydra", hydra)
    with pytest.raises(UserError, match=r"conf/profile/pocket.yaml: .*'vila_pokcet'. Did you mean 'vila_pocket'"):
        compose.composed.__wrapped__((("profile", "pocket"),))


def test_a_file_does_not_replace_a_shipped_model(folder):
    write(folder, "llava_pocket")
    (folder / "llava_pocket.yaml").write_text("family: llava\nid: broken\n")
    assert request([*ONE, "model=llava_pocket"]).cells[0].model.id == "llava_pocket"


def test_model_add_writes_there_and_refuses_a_shipped_name(folder, tmp_path, capsys):
    tiny = auto_tiny.write("qwen2_vl", tmp_path / "tiny")
    assert cli.main(["model", "add", str(tiny), "vila_pocket"]) == 2
    assert "The model vila_pocket exists. Give another name" in capsys.readouterr().err
    assert cli.main(["model", "add", str(tiny), "mine"]) == 0
    assert f"Wrote {folder / 'mine.yaml'}" in capsys.readouterr().out
    assert request([*ONE, "model=mine"]).cells[0].model.family == "auto"
