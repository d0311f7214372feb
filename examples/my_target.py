import json
from pathlib import Path

from benchmark.data import Record

# Everything that conf/dataset/*.yaml would say; the folder is <data_root>/my_target.
DATASET = {
    "id": "my_target",
    "name": "My target",
    "metric": "exact_lower",
    "prompt": "{question}\nAnswer the question using a single word or phrase.",
    "max_new_tokens": 16,
}


def load(root, split, spec):
    """Read <root>/my_target/<split>.jsonl: {"image": file or null, "prompt": question, "answers": [...]} per line."""
    folder = Path(root) / spec.id
    records = []
    for number, line in enumerate((folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        records.append(Record(
            item_id=str(number), dataset=spec.id, split=split, image=folder / row["image"] if row["image"] else None,
            prompt=spec.prompt.format(question=row["prompt"]), target=row["answers"][0],
            references=tuple(row["answers"]), options=None, group=row["image"] or str(number),
        ))
    return records
