"""AdamW (Loshchilov and Hutter, 2019, Algorithm 2) in float64 numpy."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


class AdamW:
    """Decoupled weight decay; `rates` holds one learning rate per tensor."""

    def __init__(self, rates: dict[str, float], decay: float, betas=(0.9, 0.999), eps: float = 1e-8) -> None:
        self.rates, self.decay, self.betas, self.eps = rates, decay, betas, eps
        self.count = 0
        self.first: Arrays = {}
        self.second: Arrays = {}

    def step(self, weights: Arrays, gradients: Arrays) -> Arrays:
        """Return the weights after one step."""
        self.count += 1
        b1, b2 = self.betas
        result = {}
        for name, w in weights.items():
            g, rate = gradients[name], self.rates[name]
            self.first[name] = m = b1 * self.first.get(name, 0.0) + (1 - b1) * g
            self.second[name] = v = b2 * self.second.get(name, 0.0) + (1 - b2) * g * g
            m_hat, v_hat = m / (1 - b1**self.count), v / (1 - b2**self.count)
            result[name] = w - rate * self.decay * w - rate * m_hat / (np.sqrt(v_hat) + self.eps)
        return result
