"""A method in a training loop of your own, on a vision model of torch alone: python examples/own_trainer.py"""

import torch
from torch import Tensor, nn

from spiderbench import attach


def make_model() -> nn.Module:
    """Return a small convolutional classifier of images with three channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 16, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 10),
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, method: str = "spider") -> dict[str, float]:
    """Train on images (steps, samples, 3, height, width) and their labels; return the method's own numbers."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)
    attachment = attach(method, optimizer, model)  # the method joins here; w* is what the model holds now
    for batch, label in zip(images, labels, strict=True):
        nn.functional.cross_entropy(model(batch), label).backward()
        optimizer.step()  # the method acts before and after
        optimizer.zero_grad()
    return attachment.diagnostics()


if __name__ == "__main__":
    torch.manual_seed(1)
    print(train(make_model(), torch.randn(20, 16, 3, 12, 12), torch.randint(10, (20, 16))))
