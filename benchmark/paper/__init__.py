"""The paper's own numbers, and the zero-shot check against them."""
