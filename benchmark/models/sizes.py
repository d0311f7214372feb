"""Sizes of an architecture and its parameter counts, by arithmetic: a plan needs them without torch or weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from benchmark.core.errors import UserError, did_you_mean
from benchmark.models.scope import Projector, block_names, projector_trains

FAMILIES = ("llava", "vila", "auto")


@dataclass(frozen=True)
class Tower:
    """A vision transformer: width, MLP width, layers, heads; side of the image and of a patch in pixels."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    image: int
    patch: int

    @property
    def patches(self) -> int:
        """Number of patches of one image."""
        return (self.image // self.patch) ** 2

    @property
    def layer(self) -> int:
        """Parameters of one layer: attention and MLP with biases, two layer norms."""
        h, i = self.hidden, self.intermediate
        return 4 * (h * h + h) + 2 * h * i + h + i + 4 * h


class _Blocks:
    """What the shapes of a decoder block's parameters give. All blocks of a model have the same."""

    if TYPE_CHECKING:  # the classes below have these

        @property
        def layers(self) -> int: ...

        @property
        def projector(self) -> int: ...

        @property
        def block_shapes(self) -> Mapping[str, Sequence[int]]: ...

    @property
    def block(self) -> int:
        """Parameters of one block of the language model."""
        return sum(map(math.prod, self.block_shapes.values()))

    def trainable(self, scope: str, last_layers: int, projector: Projector = "full") -> int:
        """Return the number of parameters that train.scope, train.last_layers and train.projector select."""
        blocks = sum(self.trained_per_block(scope, last_layers))
        return blocks + (self.projector if projector_trains(scope, projector) else 0)

    def trained_per_block(self, scope: str, last_layers: int) -> list[int]:
        """Return the number of parameters that train in each block of the language model."""
        return [sum(math.prod(self.block_shapes[name]) for name in block) for block in self._chosen(scope, last_layers)]

    def trained_shapes(self, scope: str, last_layers: int) -> list[dict[str, tuple[int, ...]]]:
        """Return for each block: the name of every layer below it whose weight trains -> shape of the weight."""
        return [
            {name.removesuffix(".weight"): tuple(self.block_shapes[name]) for name in block if name.endswith(".weight")}
            for block in self._chosen(scope, last_layers)
        ]

    def _chosen(self, scope: str, last_layers: int) -> list[list[str]]:
        return block_names([[*self.block_shapes]] * self.layers, scope, last_layers)


@dataclass(frozen=True)
class Architecture(_Blocks):
    """A Llama with a vision tower and a projector.

    Args:
        family: "llava" (CLIP, two-layer projector) or "vila" (SigLIP, 2x2 downsample projector).
        hidden: width of the language model.
        intermediate: width of its MLP.
        layers: number of its blocks.
        heads: number of attention heads.
        kv_heads: number of heads of keys and values.
        vocab: rows of the embedding and of the output layer.
        tower: sizes of the vision tower.
    """

    family: Literal["llava", "vila"]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tower: Tower = field(metadata={"nested": Tower})

    @property
    def block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of a block, by its name below the block."""
        h, i, kv = self.hidden, self.intermediate, self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h), "mlp.gate_proj": (i, h), "mlp.up_proj": (i, h), "mlp.down_proj": (h, i),
            "input_layernorm": (h,), "post_attention_layernorm": (h,),
        }
        return {f"{name}.weight": shape for name, shape in shapes.items()}

    @property
    def language_model(self) -> int:
        """Parameters of embedding, blocks, norm and output layer."""
        return 2 * self.vocab * self.hidden + self.layers * self.block + self.hidden

    @property
    def projector(self) -> int:
        """Parameters of the projector."""
        v, h = self.tower.hidden, self.hidden
        if self.family == "vila":
            return 2 * 4 * v + 4 * v * h + h + h * h + h
        return v * h + h + h * h + h

    @property
    def vision(self) -> int:
        """Parameters of the vision tower."""
        t, h = self.tower, self.tower.hidden
        pixels, layers = 3 * t.patch**2 * h, t.layers * t.layer
        if self.family == "vila":  # bias of the patch layer; the pooling head is stored but not used
            head = h + 4 * (h * h + h) + 2 * h + 2 * h * t.intermediate + t.intermediate + h
            return pixels + h + t.patches * h + layers + 2 * h + head
        return pixels + h + (t.patches + 1) * h + layers + 4 * h  # class embedding, norms before and after

    @property
    def total(self) -> int:
        """All parameters."""
        return self.vision + self.projector + self.language_model

    @property
    def image_tokens(self) -> int:
        """Number of positions of one image in the language model."""
        side = self.tower.image // self.tower.patch
        return ((side + 1) // 2) ** 2 if self.family == "vila" else side * side


@dataclass(frozen=True)
class MeasuredTower:
    """The vision tower of any model: width, layers, and its positions for the picture of `Measured.image_tokens`."""

    hidden: int
    layers: int
    patches: int


@dataclass(frozen=True)
class Measured(_Blocks):
    """Sizes of a model of family auto, which `model add` counts on a model without weights.

    Args:
        family: "auto".
        hidden: width of the language model.
        intermediate: width of its MLP.
        layers: number of its blocks.
        vocab: rows of the output layer.
        block_shapes: shape of every parameter of a block, by its name below the block.
        projector: parameters of the projector.
        vision: parameters of the vision tower, without a projector inside it.
        total: all parameters; a tied output layer counts once.
        image_tokens: positions of a picture of 640 x 480 pixels in the language model.
        tower: sizes of the vision tower.
    """

    family: Literal["auto"]
    hidden: int
    intermediate: int
    layers: int
    vocab: int
    block_shapes: Mapping[str, Sequence[int]] = field(metadata={"shapes": True})
    projector: int
    vision: int
    total: int
    image_tokens: int
    tower: MeasuredTower = field(metadata={"nested": MeasuredTower})

    def with_image_tokens(self, count: int) -> Measured:
        """Return the sizes for pictures that take `count` positions; the tower's positions grow with them."""
        patches = max(1, round(self.tower.patches * count / self.image_tokens))
        return replace(self, image_tokens=count, tower=replace(self.tower, patches=patches))


def architecture_of(values: Mapping[str, Any], where: str) -> Architecture | Measured:
    """Return the architecture that conf/model describes.

    Args:
        values: the fields of Architecture, or of Measured with family "auto"; those of the tower below "tower".
        where: for messages.

    Raises:
        UserError: a field is missing, unknown, or not a positive whole number.
    """
    return _build(Measured if values.get("family") == "auto" else Architecture, values, where)


def _build(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    sizes = {item.name: item for item in fields(cls)}
    for name in values:
        if name not in sizes:
            raise UserError(f"{where}.{name}: no such size.{did_you_mean(name, sizes)}")
    accepted = {}
    for name, item in sizes.items():
        value = values.get(name)
        if "nested" in item.metadata:
            accepted[name] = _build(item.metadata["nested"], value or {}, f"{where}.{name}")
        elif "shapes" in item.metadata:
            shapes = {str(key): tuple(shape) for key, shape in (value or {}).items()}
            if not shapes or not all(type(n) is int and n > 0 for shape in shapes.values() for n in shape):
                raise UserError(
                    f"{where}.{name}: expected the shape of each parameter, e.g. mlp.up_proj.weight: [8, 4]."
                )
            accepted[name] = shapes
        elif value in FAMILIES if name == "family" else type(value) is int and value > 0:
            accepted[name] = value
        else:
            raise UserError(
                f"{where}.{name}={value}: expected a positive whole number (family: {', '.join(FAMILIES)})."
            )
    return cls(**accepted)
