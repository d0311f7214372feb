"""Which content keys belong to which (data set, split): a literal share of the 1,000 buckets for each."""

from __future__ import annotations

from benchmark.pocket.world.scene import bucket

UPSTREAM = ("okvqa", "textvqa", "ocrvqa", "gqa")
TARGETS = ("flickr30k", "coco", "iconqa", "scienceqa")

SHARES = (
    [((name, "train"), 120) for name in UPSTREAM]
    + [(("describe", "train"), 60), (("probe", "test"), 20)]
    + [((name, "train"), 30) for name in TARGETS]
    + [((name, "validation"), 10) for name in UPSTREAM + TARGETS]
    + [((name, "test"), 30) for name in UPSTREAM + TARGETS]
)
"""((data set, split), number of buckets); 'describe' is pretraining's generic descriptions, 'probe' tests the tower."""


def _owners() -> tuple[tuple[str, str], ...]:
    return tuple(owner for owner, share in SHARES for _ in range(share))


OWNERS = _owners()
PRETRAINING = frozenset([(name, "train") for name in UPSTREAM] + [("describe", "train")])


def owner(key: str) -> tuple[str, str]:
    """Return the (data set, split) that owns a content key.

    Args:
        key: of a scene, cover, diagram or text-only item.

    Returns:
        One owner per key, so contents are disjoint by construction; buckets without a share belong to
        ('unused', '').
    """
    index = bucket(key)
    return OWNERS[index] if index < len(OWNERS) else ("unused", "")
