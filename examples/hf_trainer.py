"""A method in transformers' Trainer: python examples/hf_trainer.py, from the repository's folder."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or have the repository on PYTHONPATH

from benchmark.training.callback import MethodCallback


def train(method: str, folder: str) -> dict[str, float]:
    """Train a tiny text model on random tokens; return the last row of the log."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    ))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (64, 12))]
    args = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=4, report_to="none",
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=data, callbacks=[MethodCallback(method)])  # the method joins here
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row][-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(train("spider", folder))
