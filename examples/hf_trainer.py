"""A method in transformers' Trainer: python examples/hf_trainer.py"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from spiderbench import MethodCallback


def make_trainer(method: str, folder: str) -> Trainer:
    """Return a trainer of a tiny text model on random tokens."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    ))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (64, 12))]
    args = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=8, max_steps=20, learning_rate=1e-3, adam_epsilon=1e-6,
        logging_steps=5, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
    )
    return Trainer(model, args, train_dataset=data, callbacks=[MethodCallback(method)])  # the method joins here


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make_trainer("spider", folder).train()
