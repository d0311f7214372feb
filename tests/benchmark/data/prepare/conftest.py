"""The small suite in its three forms, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import real_layouts


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what `datasets` caches of small tables out of the user's cache."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """Return the suite in the official layout."""
    with pytest.MonkeyPatch.context() as patch:
        return real_layouts.draw_official(tmp_path_factory.mktemp("official"), patch)


@pytest.fixture(scope="session")
def hub(drawn, tmp_path_factory) -> Path:
    """Return the suite as hub tables."""
    return real_layouts.write_hub(drawn, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def group(drawn, tmp_path_factory) -> Path:
    """Return the suite as the group's files."""
    return real_layouts.write_group(drawn, tmp_path_factory.mktemp("group"))
