"""train.scope, train.last_layers and train.projector choose tensors by name, in models and in plans alike."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.models import trainable_names
from benchmark.models.scope import SCOPES, block_names, fault_of, projector_trains
from benchmark.models.sizes import architecture_of
from benchmark.training.trainable import trained_counts
from tests.benchmark.models import tiny

BLOCK = [
    "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.o_proj.weight", "self_attn.q_norm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
    "mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
]
ATTENTION, MLP = [*BLOCK[:5]], BLOCK[6:9]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        family: tiny.load(family, tiny.write(family, tmp_path_factory.mktemp(family))) for family in ("llava", "vila")
    }


@pytest.mark.parametrize(("scope", "first", "names"), [
    ("last_layers", 2, BLOCK), ("all", 0, BLOCK), ("llm", 0, BLOCK), ("attention", 2, ATTENTION), ("mlp", 2, MLP),
    ("gate_up", 2, MLP[:2]), (r"re:layers\.[13]\..*v_proj", 1, ["self_attn.v_proj.weight"]),
    ("re:norm", 0, [BLOCK[5], *BLOCK[9:]]),
])
def test_each_scope_chooses_its_parts_of_its_blocks(scope, first, names):
    chosen = block_names([BLOCK] * 4, scope, 2)
    expected = [names if number >= first else [] for number in range(4)]
    if scope.startswith("re:layers"):
        expected[2] = []
    assert chosen == expected


def test_the_projector_scope_trains_no_block():
    assert block_names([BLOCK] * 4, "projector", 2) == [[]] * 4


def test_the_projector_trains_unless_it_is_frozen_or_outside_the_scope():
    assert [scope for scope in SCOPES if not projector_trains(scope)] == ["llm"]
    assert not any(projector_trains(scope, "frozen") for scope in SCOPES)


@pytest.mark.parametrize(("scope", "projector", "text"), [
    ("last_layer", "full", "Did you mean 'last_layers'?"), ("re:(q_proj", "full", "not a regular expression"),
    ("q_proj", "full", "re:PATTERN"), ("projector", "frozen", "trains nothing"),
])
def test_a_scope_that_cannot_be_used_is_refused_with_the_way_out(scope, projector, text):
    assert text in fault_of(scope, projector)


@pytest.mark.parametrize("scope", ["re:vision_tower", "re:embed_tokens", "re:lm_head", "re:mm_projector"])
def test_a_pattern_sees_only_the_blocks_and_a_miss_names_what_there_is(scope):
    with pytest.raises(UserError, match=r"matches no parameter .*layers\.3\.self_attn\.q_proj\.weight"):
        block_names([BLOCK] * 4, scope, 2)


@pytest.mark.parametrize("family", ["llava", "vila"])
@pytest.mark.parametrize("scope", [*SCOPES, "re:v_proj"])
@pytest.mark.parametrize("projector", ["full", "frozen"])
def test_a_plan_counts_what_a_model_trains(models, family, scope, projector):
    """By name in a loaded model, and by arithmetic from its sizes."""
    loaded = models[family]
    config = getattr(loaded.model, "llm", loaded.model).config
    config = getattr(config, "text_config", config)
    sizes = architecture_of({
        "family": family, "hidden": config.hidden_size, "intermediate": config.intermediate_size,
        "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads, "vocab": config.vocab_size,
        "tower": {"hidden": 64, "intermediate": 128, "layers": 4, "heads": 2, "image": 48, "patch": 8},
    }, "model.architecture")
    names = trainable_names(loaded, scope, 2, projector)
    blocks = [name for name in names if not name.startswith(loaded.projector_prefix)]
    parameters = dict(loaded.model.named_parameters())
    assert sum(parameters[name].numel() for name in blocks) == sum(sizes.trained_per_block(scope, 2))
    assert (len(names) > len(blocks)) == projector_trains(scope, projector)
    if projector == "full":
        assert names == [name for name in trainable_names(loaded, "all", 2) if name in set(names)] or scope == "llm"


def test_counts_by_part_come_from_a_delta(models, tmp_path):
    from safetensors.torch import save_file

    loaded = models["vila"]
    parameters = dict(loaded.model.named_parameters())
    names = trainable_names(loaded, "last_layers", 2)
    save_file({name: parameters[name].detach().contiguous() for name in names}, tmp_path / "delta.safetensors")
    counts = trained_counts(tmp_path / "delta.safetensors")
    assert list(counts) and set(counts) == {"projector", "attention", "mlp", "norms"}
    assert sum(counts.values()) == sum(parameters[name].numel() for name in names)
    attention = trainable_names(loaded, "attention", 2, "frozen")
    assert counts["attention"] == sum(parameters[name].numel() for name in attention)
    assert counts["norms"] == sum(parameters[n].numel() for n in names if "layernorm" in n)
