"""VILA1.5: SigLIP tower, 2x2 downsample projector, Llama, in VILA's own folder layout (arXiv 2312.07533)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from benchmark.core.errors import UserError
from benchmark.core.files import canonical_json, write_atomic
from benchmark.models import folder as folders
from benchmark.models.checkpoint_files import read_json, safetensors_files
from benchmark.models.prompt import encode as encode  # vicuna_v1
from benchmark.models.vision import load_image_processor

if TYPE_CHECKING:
    from benchmark.spec import ModelSpec

PROJECTOR_PREFIX = "mm_projector."
BLOCK_PREFIX = "llm.model.layers."
# No embedding row belongs to it: the vocabulary stays as pretrained. The original code uses the same number.
IMAGE_TOKEN_ID = -200


class VilaConfig(PreTrainedConfig):
    """Configuration of the three parts.

    Args:
        text_config: LlamaConfig or its dict.
        vision_config: SiglipVisionConfig or its dict.
        image_token_id: id at the image positions of input_ids, outside the vocabulary.
    """

    model_type = "vila"
    sub_configs = {"text_config": LlamaConfig, "vision_config": SiglipVisionConfig}

    def __init__(
        self,
        text_config: LlamaConfig | dict | None = None,
        vision_config: SiglipVisionConfig | dict | None = None,
        image_token_id: int = IMAGE_TOKEN_ID,
        **kwargs: Any,
    ) -> None:
        if not isinstance(text_config, LlamaConfig):
            text_config = LlamaConfig(**(text_config or {}))
        if not isinstance(vision_config, SiglipVisionConfig):
            vision_config = SiglipVisionConfig(**(vision_config or {}))
        self.text_config = text_config
        self.vision_config = vision_config
        self.image_token_id = image_token_id
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            kwargs.setdefault(name, getattr(text_config, name))
        super().__init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        """Number of image positions: the patch grid, padded to an even side, halved in both directions."""
        # SigLIP's sizes are whole numbers; the class allows others.
        return ((self.vision_config.image_size // self.vision_config.patch_size + 1) // 2) ** 2  # type: ignore[operator]


class Downsample(nn.Module):
    """Join 2x2 patches into one token; tokens run down the columns, as in VILA1.5's DownSampleBlock."""

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, ceil(side/2)^2, 4 channels) from (batch, side^2, channels)."""
        batch, patches, channels = features.shape
        side = round(patches**0.5)
        grid = features.view(batch, side, side, channels)
        grid = F.pad(grid, (0, 0, 0, side % 2, 0, side % 2))
        half = (side + 1) // 2
        cells = grid.view(batch, half, 2, half, 2, channels).permute(0, 3, 1, 2, 4, 5)
        return cells.reshape(batch, half * half, 4 * channels)


class VilaProjector(nn.Module):
    """Downsample, LayerNorm, Linear, GELU, Linear; the names layers.1, 2, 4 are those of the checkpoint."""

    def __init__(self, vision_size: int, text_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Downsample(),
            nn.LayerNorm(4 * vision_size),
            nn.Linear(4 * vision_size, text_size),
            nn.GELU(),
            nn.Linear(text_size, text_size),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, tokens, text_size) from the tower's (batch, patches, vision_size)."""
        return self.layers(features)


class VilaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """VILA1.5 with the calling conventions of LlavaForConditionalGeneration."""

    config_class = VilaConfig
    config: VilaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # as LlavaForConditionalGeneration has it
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "SiglipEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VilaConfig) -> None:
        super().__init__(config)
        self.vision_tower = SiglipVisionModel._from_config(config.vision_config)
        self.mm_projector = VilaProjector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.llm = LlamaForCausalLM._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def get_tower_features(self, pixel_values: Tensor) -> Tensor:
        """Return the tower's hidden_states[-2], (images, patches, channels), from (images, 3, H, W)."""
        tower = self.vision_tower
        trained = any(p.requires_grad for p in tower.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            # hidden_states[-2] is the input of the last layer, so that layer, the norm and the head need not run.
            features = tower.embeddings(pixel_values)
            for layer in tower.encoder.layers[:-1]:
                features = layer(features, None)
        return features

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return (images, image_seq_length, hidden) from pixels or from tower features, which have 3 dimensions."""
        features = pixel_values if pixel_values.dim() == 3 else self.get_tower_features(pixel_values)
        return self.mm_projector(features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the language model over text embeddings with the image features written at the image positions.

        Args:
            input_ids: (batch, length); config.image_token_id at the image_seq_length positions of an image.
            attention_mask: (batch, length), 1 for real tokens.
            position_ids: (batch, length).
            pixel_values: (images, 3, H, W), one per row with image positions, in row order; or the tower's features
                of them, (images, patches, channels); None without images.
            labels: (batch, length), -100 where nothing is supervised.
            past_key_values: cache of earlier positions.
            inputs_embeds: (batch, length, hidden) in place of input_ids, images already written.
            use_cache: return the cache.
            logits_to_keep: last positions (or position indices) for which logits are computed; 0 means all.

        Returns:
            loss (with labels), logits (batch, kept, vocabulary), past_key_values.

        Raises:
            ValueError: the number of image positions differs from the number of image features.
        """
        if inputs_embeds is None:
            # Without inputs_embeds there are input_ids.
            is_image: Tensor = input_ids == self.config.image_token_id  # type: ignore[assignment]
            inputs_embeds = self.get_input_embeddings()(
                input_ids.masked_fill(is_image, 0)  # type: ignore[union-attr]
            )
            features = None if pixel_values is None else self.get_image_features(pixel_values)
            positions = int(is_image.sum())
            found = 0 if features is None else features.shape[0] * features.shape[1]
            if positions != found:
                raise ValueError(
                    f"input_ids have {positions} image positions, pixel_values give {found} features"
                )
            if features is not None:
                inputs_embeds = inputs_embeds.masked_scatter(
                    is_image[..., None], features.to(inputs_embeds.dtype)
                )
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers' options are those of its own layout
        cls, path: str | Path, dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
    ) -> VilaForConditionalGeneration:
        """Load VILA's folder: config.json with the three *_cfg, llm/, vision_tower/, mm_projector/.

        Args:
            path: local folder.
            dtype: of all weights.
            attn_implementation: of language model and tower.

        Returns:
            The model in evaluation mode.

        Raises:
            UserError: a file is missing, broken or does not match.
        """
        root = Path(path)
        config = cls._read_config(root)
        options = {"dtype": dtype, "attn_implementation": attn_implementation}
        llm = folders.load_pretrained(LlamaForCausalLM, root / "llm", config=config.text_config, **options)
        tower = folders.load_pretrained(
            SiglipVisionModel, root / "vision_tower", config=config.vision_config, **options
        )
        weights: dict[str, Tensor] = {}
        for file in safetensors_files(root / "mm_projector"):
            weights |= load_file(file)
        with torch.device("meta"):
            model = cls(config)
        expected = {name: tensor.shape for name, tensor in model.mm_projector.state_dict().items()}
        folders.refuse_mismatch(
            root / "mm_projector",
            expected.keys() - weights.keys(),
            weights.keys() - expected.keys(),
            [name for name in expected.keys() & weights.keys() if weights[name].shape != expected[name]],
        )
        model.llm, model.vision_tower = llm, tower
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        model.mm_projector.load_state_dict(weights, assign=True)
        for parameter in model.mm_projector.parameters():
            parameter.requires_grad_(True)
        model.generation_config = llm.generation_config
        return model.eval()

    @staticmethod
    def _read_config(root: Path) -> VilaConfig:
        raw = read_json(root / "config.json")
        parts = {}
        for name, part in (
            ("llm_cfg", "llm"),
            ("vision_tower_cfg", "vision_tower"),
            ("mm_projector_cfg", "mm_projector"),
        ):
            value = raw.get(name)
            # The public 3B file holds full dictionaries; other exports name the sub-folder instead.
            parts[name] = value if isinstance(value, dict) else read_json(root / part / "config.json")
        kind = parts["mm_projector_cfg"].get("mm_projector_type")
        if kind != "mlp_downsample":
            raise UserError(
                f"{root / 'config.json'}: mm_projector_type={kind!r}, but family vila reads VILA1.5's "
                "'mlp_downsample'. Use a VILA1.5 checkpoint."
            )
        return VilaConfig(text_config=parts["llm_cfg"], vision_config=parts["vision_tower_cfg"])

    def save_pretrained(  # type: ignore[override]  # transformers' options are those of its own layout
        self, path: str | Path, **_: Any
    ) -> None:
        """Write VILA's folder layout (without tokenizer and preprocessor: see save).

        Args:
            path: folder, created.
        """
        root = Path(path)
        with folders.quiet():
            self.llm.save_pretrained(root / "llm")
            self.vision_tower.save_pretrained(root / "vision_tower")
        projector_config = {
            "architectures": ["MultimodalProjector"],
            "mm_projector_type": "mlp_downsample",
            "model_type": "v2l_projector",
        }
        (root / "mm_projector").mkdir(exist_ok=True)
        write_atomic(root / "mm_projector" / "config.json", canonical_json(projector_config))
        weights = {name: tensor.contiguous() for name, tensor in self.mm_projector.state_dict().items()}
        save_file(weights, root / "mm_projector" / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architectures": ["LlavaLlamaModel"],
            "model_type": "llava_llama",
            "image_aspect_ratio": "resize",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "cls_patch",
            "llm_cfg": json.loads((root / "llm" / "config.json").read_text()),
            "vision_tower_cfg": json.loads((root / "vision_tower" / "config.json").read_text()),
            "mm_projector_cfg": projector_config,
        }
        write_atomic(root / "config.json", json.dumps(config, indent=2, sort_keys=True))


def load(path: Path, spec: ModelSpec, dtype: torch.dtype) -> dict:
    """Load a VILA1.5 folder.

    Args:
        path: config.json, llm/ (and tokenizer), vision_tower/ (and preprocessor_config.json), mm_projector/.
        spec: preprocess: "resize" as in VILA1.5, "pad" or "crop".
        dtype: of all weights.

    Returns:
        The fields of LoadedModel that depend on the architecture.

    Raises:
        UserError: a file is missing, broken or does not match.
    """
    model = VilaForConditionalGeneration.from_pretrained(path, dtype=dtype)
    config = model.config
    vision = config.vision_config
    processor = load_image_processor(path / "vision_tower", spec.preprocess, spec.transparency)
    size = vision.image_size
    if (processor.height, processor.width) != (size, size):
        raise UserError(
            f"The image processor in {path / 'vision_tower'} makes {processor.height}x{processor.width} images, the "
            f"tower takes {size}x{size}. Correct its file."
        )
    return {
        "model": model,
        "tokenizer": folders.load_tokenizer(path / "llm", config.text_config.vocab_size),
        "image_processor": processor,
        "image_token_id": config.image_token_id,
        "image_seq_length": config.image_seq_length,
        "tower": model.get_tower_features,
        "feature_shape": (
            (vision.image_size // vision.patch_size) ** 2,  # type: ignore[operator]  # as in VilaConfig
            vision.hidden_size,
        ),
        "vocab_size": config.text_config.vocab_size,
    }


def blocks(model: VilaForConditionalGeneration) -> tuple[str, list[str]]:
    """Return the prefixes of parameter names of the projector, and of each block of the language model in order."""
    return PROJECTOR_PREFIX, [f"{BLOCK_PREFIX}{i}." for i in range(model.config.text_config.num_hidden_layers)]


def save(
    model: VilaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, preprocessor: dict, path: Path
) -> None:
    """Write a model in the layout that load reads.

    Args:
        model: with weights in the dtype to store.
        tokenizer: its tokenizer.
        preprocessor: content of preprocessor_config.json (size, image_mean, image_std, resample).
        path: folder, created.
    """
    model.save_pretrained(path)
    tokenizer.save_pretrained(path / "llm")
    write_atomic(path / "vision_tower" / "preprocessor_config.json", canonical_json(preprocessor))
