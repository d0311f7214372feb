"""Where `model add` writes a model's file: conf/model of a checkout, or conf/model in an installed package's folder."""

from __future__ import annotations

import re
from pathlib import Path

from benchmark.spec import CONF, IS_CHECKOUT, WORK

SHIPPED = CONF / "model"
FOLDER = SHIPPED if IS_CHECKOUT else WORK / "conf" / "model"
FAMILY = re.compile(r"^family:", re.MULTILINE)  # in each of our files; another program may have a conf/model, too


def own_models() -> dict[str, Path]:
    """Return the files of the models that an installed package does not ship, by id; none in a checkout."""
    if FOLDER == SHIPPED:
        return {}
    files = {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if not (SHIPPED / path.name).is_file()}
    return {name: path for name, path in files.items() if FAMILY.search(path.read_text("utf-8", errors="replace"))}
