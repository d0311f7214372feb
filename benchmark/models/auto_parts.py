"""Where a model of any family keeps its language-model blocks, projector, vision tower and output layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from benchmark.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from benchmark.spec import ModelSpec


@dataclass(frozen=True)
class Parts:
    """Names of modules, as in model.get_submodule.

    Args:
        decoder: the list of the language model's blocks.
        projector: the modules between tower and language model; they may lie inside the tower.
        tower: the vision tower.
        head: the output layer.
    """

    decoder: str
    projector: tuple[str, ...]
    tower: str
    head: str = "lm_head"

    @property
    def projector_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the projector's parameter names."""
        return tuple(f"{name}." for name in self.projector)


_LLAVA = Parts("model.language_model.layers", ("model.multi_modal_projector",), "model.vision_tower")
_IDEFICS = Parts("model.text_model.layers", ("model.connector",), "model.vision_model")
_QWEN = Parts("model.language_model.layers", ("model.visual.merger",), "model.visual")
_DEEPSTACK = Parts(
    "model.language_model.layers", ("model.visual.merger", "model.visual.deepstack_merger_list"), "model.visual"
)
# model_type -> parts; each is checked against the loaded model.
PARTS: Mapping[str, Parts] = {
    "gemma3": _LLAVA,
    "idefics3": _IDEFICS,
    "internvl": _LLAVA,
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_onevision": _LLAVA,
    "mistral3": _LLAVA,
    "paligemma": _LLAVA,
    "qwen2_5_vl": _QWEN,
    "qwen2_vl": _QWEN,
    "qwen3_vl": _DEEPSTACK,
    "smolvlm": _IDEFICS,
}
# Children of the base model that are neither tower nor projector.
_OTHER = ("embed", "norm", "rotary", "audio", "video", "vqmodel", "generation")
_INSIDE = ("merger", "deepstack_merger_list", "patch_merger")  # projectors that lie inside a tower


def parts_of(model: PreTrainedModel, spec: ModelSpec) -> Parts:
    """Return the parts of a loaded model: from the table, or as the model's YAML file confirms them.

    Args:
        model: the model.
        spec: decoder, projector and tower name the parts of a type that is not in the table.

    Raises:
        UserError: the type is not in the table and the YAML file does not confirm the parts; or the model has no such
            part, or a trained tensor is the embedding or the output layer as well.
    """
    kind = model.config.model_type
    parts = PARTS.get(kind)
    if spec.decoder and spec.projector and spec.tower:
        parts = Parts(spec.decoder, tuple(spec.projector), spec.tower)
    elif parts is None:
        parts = detect(model)
        raise UserError(
            f"model_type={kind} is not in the table of known types. Its structure suggests decoder={parts.decoder}, "
            f"projector=[{', '.join(parts.projector)}], tower={parts.tower}. Look at the model, and confirm these "
            f"three in conf/model/{spec.id}.yaml (python -m benchmark model add writes them)."
        )
    check(model, parts)
    return parts


def detect(model: PreTrainedModel) -> Parts:
    """Return the parts that the structure of a model suggests.

    The decoder is what get_decoder returns, the tower what get_encoder(modality="image") returns. The projector is
    what else the base model holds, or a merger inside the tower.

    Raises:
        UserError: the structure does not say; the message names the key to set.
    """
    names = {id(module): name for name, module in model.named_modules()}
    kind = model.config.model_type

    def unclear(what: str) -> UserError:
        return UserError(
            f"The structure of model_type={kind} shows no {what}. Name it in the YAML file of the model: "
            f"{what}=... (print(model) shows the names)."
        )

    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or id(blocks) not in names:
        raise unclear("decoder")
    try:
        tower = model.get_encoder(modality="image")
    except (AttributeError, TypeError, ValueError):
        tower = None
    if not isinstance(tower, nn.Module) or tower is model or id(tower) not in names:
        raise unclear("tower")
    base = getattr(model, model.base_model_prefix, model)
    taken = {id(tower), id(decoder)}
    projector = tuple(
        names[id(child)] for name, child in base.named_children()
        if id(child) not in taken and not any(word in name for word in _OTHER) and any(True for _ in child.parameters())
        and not any(id(part) in taken for part in child.modules())
    )
    if not projector:
        projector = tuple(names[id(child)] for name, child in tower.named_children() if name in _INSIDE)
    if not projector:
        raise unclear("projector")
    return Parts(names[id(blocks)], projector, names[id(tower)])


def check(model: PreTrainedModel, parts: Parts) -> None:
    """Compare named parts with a model.

    Raises:
        UserError: with all faults: a part that does not exist or has no parameters, a wrong number of blocks, a part
            within another, or a trainable tensor that is also the embedding or the output layer.
    """
    modules, faults = dict(model.named_modules()), []
    for name in (parts.decoder, *parts.projector, parts.tower, parts.head):
        if name not in modules:
            faults.append(f"the model has no module {name}")
        elif not any(True for _ in modules[name].parameters()):
            faults.append(f"{name} has no parameters")
    if not faults:
        blocks, expected = modules[parts.decoder], model.config.get_text_config().num_hidden_layers
        count = len(blocks) if isinstance(blocks, nn.ModuleList) else 0
        if count != expected:
            faults.append(f"{parts.decoder} has {count} blocks, the configuration has {expected}")
        for name in parts.projector:
            if _within(name, [parts.decoder]) or _within(parts.tower, [name]):
                faults.append(f"the projector {name} and another part share modules")
        faults += _shared(model, parts)
    if faults:
        raise UserError(
            f"The parts of model_type={model.config.model_type} do not fit: {'; '.join(faults)}. Correct decoder, "
            "projector and tower in the model's YAML file, or use a version of transformers that has these names."
        )


def _shared(model: PreTrainedModel, parts: Parts) -> list[str]:
    """Return a fault for each trainable tensor that is tied to a tensor outside the trainable parts."""
    trainable = [parts.decoder, *parts.projector]
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    ends = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())
            if module is not None and hasattr(module, "weight")}
    faults = []
    for key, group in names.items():
        inside = [name for name in group if _within(name, trainable)]
        if inside and (key in ends or len(inside) < len(group)):
            other = next((name for name in group if name not in inside), "the embedding")
            faults.append(
                f"{inside[0]} is tied to {other}, so training it would change the vocabulary, which stays frozen"
            )
    return faults


def _within(name: str, modules: Sequence[str]) -> bool:
    """Return whether a module or parameter is one of some modules or inside of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
