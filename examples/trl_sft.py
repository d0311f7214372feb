"""A method in TRL's SFTTrainer, on a tiny vision-language model: python examples/trl_sft.py"""

import transformers as hf
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import SFTConfig, SFTTrainer

from spiderbench import MethodCallback

WORDS = dict(zip(("<pad>", "<image>", "</s>", "What", "colour?", "red", "green", "blue"), range(8), strict=True))


def make_trainer(method: str, folder: str) -> SFTTrainer:
    """Return a trainer of a random LLaVA on pictures of one colour."""
    hf.set_seed(0)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "extra_special_tokens": ["<image>"]}
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        hf.PreTrainedTokenizerFast(tokenizer_object=words, **special),
        patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = hf.CLIPVisionConfig(image_size=16, patch_size=8, **sizes), hf.LlamaConfig(vocab_size=8, **sizes)
    model = hf.LlavaForConditionalGeneration(hf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=1))
    rows = [
        {"images": [Image.new("RGB", (16, 16), name)], "prompt": "<image> What colour?", "completion": f" {name} </s>"}
        for name in ("red", "green", "blue") * 8
    ]
    args = SFTConfig(folder, max_steps=20, learning_rate=1e-3, adam_epsilon=1e-6, use_cpu=True, bf16=False)
    method = MethodCallback(method)  # the method joins here
    return SFTTrainer(model, args, None, Dataset.from_list(rows), processing_class=processor, callbacks=[method])


if __name__ == "__main__":
    make_trainer("spider", "trl_sft_output").train()
