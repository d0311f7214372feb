from pathlib import Path

from benchmark.data import Record, json_rows

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
    records = []
    for number, row in enumerate(json_rows(Path(root) / spec.id / f"{split}.jsonl")):
        image, answers = row.image("image"), row.texts("answers")
        records.append(Record(
            item_id=str(number), dataset=spec.id, split=split, image=image,
            prompt=spec.prompt.format(question=row.text("prompt")), target=answers[0], references=answers,
            options=None, group=row.content["image"] or str(number),
        ))
    return records
