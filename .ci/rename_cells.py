"""Give the cells of a results folder today's names: .venv/bin/python .ci/rename_cells.py results/pocket [TEXT...]

The words of a name changed (what differs from the defaults), the digits at its end did not. Folders are moved; their
cell.yaml, SHA256SUMS and the texts that are named get the new names. Running it again changes nothing.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmark.compose import changed, usual  # noqa: E402
from benchmark.files import SUMS, read_sums, sha256_file, write_atomic  # noqa: E402
from benchmark.spec import cell_id, is_name_of  # noqa: E402
from benchmark.store import Store, read_cell  # noqa: E402


def rename(root: Path, texts: list[Path]) -> dict[str, str]:
    """Rename a results folder's cells and their mentions; return old name -> new name."""
    names: dict[str, str] = {}
    for folder in Store(root).all_cells():
        cell = read_cell(folder)
        assert is_name_of(folder.name, cell), f"{folder}: cell.yaml describes {cell_id(cell)}"
        cell = replace(cell, changed=changed(cell, usual(cell.profile)))
        if folder.name != cell_id(cell):
            text = (folder / "cell.yaml").read_text(encoding="utf-8").partition("changed:")[0]
            more = yaml.safe_dump({"changed": list(cell.changed)}, allow_unicode=True)
            write_atomic(folder / "cell.yaml", text + more)
            names[folder.name] = cell_id(cell)
            folder.rename(folder.with_name(cell_id(cell)))
    if names and (root / SUMS).is_file():
        sums = {}
        for path, digest in read_sums(root / SUMS).items():
            top, *rest = path.split("/")
            if top == "cells" and rest[0] in names:
                rest[0] = names[rest[0]]
                digest = sha256_file(root / top / Path(*rest)) if rest[1:] == ["cell.yaml"] else digest
            sums["/".join([top, *rest])] = digest
        write_atomic(root / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    for path in texts:
        text = path.read_text(encoding="utf-8")
        new = re.sub(r"[\w.-]+-[0-9a-f]{8}\b", lambda match: names.get(match[0], match[0]), text)
        if new != text:
            write_atomic(path, new)
    return names


if __name__ == "__main__":
    done = rename(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    for old, new in done.items():
        print(f"{old} -> {new}")
