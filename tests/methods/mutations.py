"""Named faults: (method that is checked, file that is changed, text, replacement)."""

from __future__ import annotations

MUTATIONS: dict[str, tuple[str, str, str, str]] = {
    # SPIDER: accumulation
    "spider: momentum swapped": ("spider", "spider", "shard.grad, 1 - self", "shard.grad, self"),
    "spider: no momentum": (
        "spider",
        "spider",
        ".lerp_(shard.grad, 1 - self.params.momentum)",
        ".copy_(shard.grad)",
    ),
    "spider: sum instead of momentum": (
        "spider",
        "spider",
        ".lerp_(shard.grad, 1 - self.params.momentum)",
        ".add_(shard.grad)",
    ),
    "spider: absolute gradients accumulated": (
        "spider",
        "spider",
        "lerp_(shard.grad,",
        "lerp_(shard.grad.abs(),",
    ),
    "spider: another default momentum": (
        "spider",
        "spider",
        "momentum: float = 0.85",
        "momentum: float = 0.9",
    ),
    # SPIDER: rank (Eqs. 2 and 4)
    "spider: biased deviation": ("spider", "ops", "/ (count - 1) if count", "/ count if count"),
    "spider: no absolute value": ("spider", "ops", "values.abs().sub_(", "values.sub("),
    "spider: mean not removed": ("spider", "ops", ".sub_(moments.mean)", ""),
    "spider: not divided by the deviation": ("spider", "ops", ".div_(moments.std)", ""),
    "spider: variance instead of deviation": ("spider", "ops", "variance**0.5", "variance"),
    "spider: no sigmoid": ("spider", "ops", ".sigmoid_()", ""),
    "spider: all-zero tensors rank 1/2": (
        "spider",
        "ops",
        "torch.zeros_like(values)\n    if moments.std",
        "torch.full_like(values, 0.5)\n    if moments.std",
    ),
    "spider: constant tensors rank 0": (
        "spider",
        "ops",
        "torch.full_like(values, 0.5)",
        "torch.zeros_like(values)",
    ),
    "spider: constant tensors give NaN": ("spider", "ops", "if moments.std == 0:", "if False:"),
    "spider: rank over all tensors": (
        "spider",
        "spider",
        "        return {shard.name: ops.Moments.from_sums(*sums[shard.name], shard.numel) for",
        "        a, b = (sum(c) for c in zip(*sums.values()))\n"
        "        n = sum(shard.numel for shard in shards)\n"
        "        return {shard.name: ops.Moments.from_sums(a, b, n) for",
    ),
    "spider: importance of current weights": (
        "spider",
        "spider",
        "ops.rank(shard.pretrained, self._generic",
        "ops.rank(shard.weight, self._generic",
    ),
    # SPIDER: mask (Eqs. 5, 7, 8)
    "spider: > becomes >=": (
        "spider",
        "ops",
        "torch.gt(specialization",
        "torch.ge(specialization",
    ),
    "spider: > becomes <": (
        "spider",
        "ops",
        "torch.gt(specialization",
        "torch.lt(specialization",
    ),
    "spider: G and I swapped": (
        "spider",
        "ops",
        "def importance_mask(specialization: Tensor, generalization: Tensor)",
        "def importance_mask(generalization: Tensor, specialization: Tensor)",
    ),
    "spider: I in the numerator": (
        "spider",
        "ops",
        "return (specialization / total)",
        "return (generalization / total)",
    ),
    "spider: hard mask": (
        "spider",
        "ops",
        "(specialization / total).mul_(selected)",
        "selected",
    ),
    "spider: no rescale": ("spider", "ops", "(mask / mean).clamp_(max=1.0) if mean else mask", "mask"),
    "spider: no upper bound": ("spider", "ops", "(mask / mean).clamp_(max=1.0)", "(mask / mean)"),
    "spider: mean over all elements": (
        "spider",
        "ops",
        "part.sign().sum()",
        "part.sign().abs().add(1).sign().sum()",
    ),
    "spider: mean of Eq. 8 over all tensors": (
        "spider",
        "spider",
        "            total, count = sums[shard.name]\n",
        "            total, count = (sum(c) for c in zip(*sums.values()))\n",
    ),
    # SPIDER: blend (Eq. 6)
    "spider: w and w* swapped": (
        "spider",
        "ops",
        "torch.lerp(pretrained, weight, mask)",
        "torch.lerp(weight, pretrained, mask)",
    ),
    "spider: blend before the update": (
        "spider",
        "spider",
        "lerp_(shard.grad, 1 - self.params.momentum)\n\n    def after_step(self, shards: Shards) -> None:",
        "lerp_(shard.grad, 1 - self.params.momentum)\n        self._blend(shards)\n\n"
        "    def _blend(self, shards: Shards) -> None:",
    ),
    "spider: gradient masked instead of weights": (
        "spider",
        "spider",
        "shard.weight.copy_(ops.blend(shard.pretrained, shard.weight, mask))",
        "shard.grad.mul_(mask)",
    ),
    "spider: projector left out": (
        "spider",
        "spider",
        "        for shard in shards:\n            total, count",
        "        for shard in shards:\n            if 'projector' in shard.name:\n"
        "                continue\n            total, count",
    ),
    # L2-Reg and Grafting
    "l2: sign": ("l2_reg", "l2_reg", "alpha=2 *", "alpha=-2 *"),
    "l2: half": ("l2_reg", "l2_reg", "alpha=2 *", "alpha=1 *"),
    "l2: another default": ("l2_reg", "l2_reg", "strength: float = 1e-3", "strength: float = 1e-2"),
    "l2: mean instead of sum": (
        "l2_reg",
        "l2_reg",
        "alpha=2 * self.params.strength",
        "alpha=2 * self.params.strength / shard.numel",
    ),
    "l2: towards zero": ("l2_reg", "l2_reg", "shard.weight - shard.pretrained", "shard.weight"),
    "l2: after the step": ("l2_reg", "l2_reg", "def before_step", "def after_step"),
    "l2: decoupled": (
        "l2_reg",
        "l2_reg",
        "def before_step(self, shards: Shards) -> None:\n"
        "        for shard in shards:\n            shard.grad.add_(",
        "def after_step(self, shards: Shards) -> None:\n"
        "        for shard in shards:\n            shard.weight.sub_(",
    ),
    "l2: matrices only": (
        "l2_reg",
        "l2_reg",
        "for shard in shards:",
        "for shard in (s for s in shards if len(s.shape) == 2):",
    ),
    "l1: sign": ("grafting", "grafting", "alpha=self.params", "alpha=-self.params"),
    "l1: not the sign of the change": ("grafting", "grafting", ".sign_()", ""),
    "l1: sign(0) = 1": ("grafting", "grafting", ".sign_()", ".ge_(0).mul_(2).sub_(1)"),
    "l1: towards zero": ("grafting", "grafting", "shard.weight - shard.pretrained", "shard.weight + 0"),
    "l1: another default": ("grafting", "grafting", "strength: float = 1e-6", "strength: float = 1e-5"),
    "l1: mean instead of sum": (
        "grafting",
        "grafting",
        "alpha=self.params.strength",
        "alpha=self.params.strength / shard.numel",
    ),
    "l1: after the step": ("grafting", "grafting", "def before_step", "def after_step"),
    # Half FT
    "hft: gradient kept": ("half_ft", "half_ft", "                shard.grad.zero_()\n", ""),
    "hft: weight not restored": (
        "half_ft",
        "half_ft",
        "shard.weight.copy_(self._kept.pop(shard.name))",
        "pass",
    ),
    "hft: restored before the update": ("half_ft", "half_ft", "def after_step", "def unused"),
    "hft: frozen and trained swapped": (
        "half_ft",
        "half_ft",
        "frozenset(draw_frozen([shard.name for shard in shards], self.seed))",
        "{s.name for s in shards} - {*draw_frozen([shard.name for shard in shards], self.seed)}",
    ),
    "hft: three of four": ("half_ft", "half_ft", "(ATTENTION, 2)", "(ATTENTION, 3)"),
    "hft: both norms": ("half_ft", "half_ft", "(NORMS, 1)", "(NORMS, 2)"),
    "hft: two of three everywhere": (
        "half_ft",
        "half_ft",
        "wide = 2 if layer in generous else 1",
        "wide = 2",
    ),
    "hft: the smaller half is wide": ("half_ft", "half_ft", "(len(complete) + 1) // 2", "len(complete) // 2"),
    "hft: not drawn": (
        "half_ft",
        "half_ft",
        "torch.randperm(len(modules), generator=source).tolist()[trained:]",
        "range(trained, len(modules))",
    ),
    "hft: seed ignored": ("half_ft", "half_ft", "generator(seed, ", "generator(0, "),
    "hft: drawn at every step": (
        "half_ft",
        "half_ft",
        "    def before_step(self, shards: Shards) -> None:\n",
        "    def before_step(self, shards: Shards) -> None:\n"
        "        self.seed += 1\n        self.start(shards)\n",
    ),
    "hft: projector frozen": (
        "half_ft",
        "half_ft",
        "return sorted(frozen)",
        "return sorted(frozen + [n for n in names if 'projector' in n])",
    ),
    # DARE
    "dare: no rescale": ("dare", "ops", "(finetuned - pretrained) / keep", "(finetuned - pretrained)"),
    "dare: sign": ("dare", "ops", "pretrained + (finetuned", "pretrained - (finetuned"),
    "dare: keeps what it should drop": ("dare", "dare", ") < self.params.keep", ") >= self.params.keep"),
    "dare: drops to zero": ("dare", "ops", "/ keep, pretrained)", "/ keep, 0.0)"),
    "dare: another default": ("dare", "dare", "keep: float = 0.1", "keep: float = 0.2"),
    "dare: one draw for all tensors": (
        "dare",
        "dare",
        "generator(self.seed, name)",
        "generator(self.seed, 'all')",
    ),
    "dare: seed ignored": ("dare", "dare", "generator(self.seed, name)", "generator(0, name)"),
    "dare: global stream": ("dare", "dare", ", generator=generator(self.seed, name)", ""),
    "dare: whole rows": (
        "dare",
        "dare",
        "torch.rand(weight.shape, generator=generator(self.seed, name))",
        "torch.rand(weight.shape[:1], generator=generator(self.seed, name))"
        ".view(-1, *[1] * (weight.dim() - 1)).expand_as(weight)",
    ),
    # Tailor
    "tailor: released sign inside a block": (
        "tailor",
        "tailor",
        "local[:, i + 1 :] -=",
        "local[:, i + 1 :] +=",
    ),
    "tailor: released sign between blocks": (
        "tailor",
        "tailor",
        "weight[:, columns.stop :] -=",
        "weight[:, columns.stop :] +=",
    ),
    "tailor: no compensation between blocks": (
        "tailor",
        "tailor",
        "        weight[:, columns.stop :] -= errors @ factor[columns, columns.stop :]\n",
        "",
    ),
    "tailor: released weights": (
        "tailor",
        "tailor",
        "salience: float = 0.5\n    sensitivity: float = 0.5",
        "salience: float = 0.8\n    sensitivity: float = 0.2",
    ),
    "tailor: salience of the weight": (
        "tailor",
        "tailor",
        "salience = (weight - pretrained).abs()",
        "salience = weight.abs()",
    ),
    "tailor: sensitivity of the change": (
        "tailor",
        "tailor",
        "row_scores(local.square()",
        "row_scores((local - target).square()",
    ),
    "tailor: sensitivity before compensation": (
        "tailor",
        "tailor",
        "row_scores(local.square()",
        "row_scores(finetuned[:, columns].double().square()",
    ),
    "tailor: sensitivity without the Hessian": ("tailor", "tailor", " / root.diagonal().square()", ""),
    "tailor: keeps the least important": ("tailor", "tailor", "descending=True", "descending=False"),
    "tailor: keeps nine tenths": ("tailor", "tailor", "kept[order[: round", "kept[order[-round"),
    "tailor: one threshold per layer": (
        "tailor",
        "tailor",
        "range(0, weight.shape[1], params.block)",
        "[params := __import__('dataclasses').replace(params, block=9999)] and [0]",
    ),
    "tailor: scores of whole blocks, not rows": (
        "tailor",
        "ops",
        "centred = values - values.mean(1, keepdim=True)",
        "centred = values - values.mean()",
    ),
    "tailor: damping": ("tailor", "tailor", "percdamp: float = 0.01", "percdamp: float = 0.1"),
    "tailor: dead inputs": ("tailor", "tailor", "diagonal[diagonal == 0] = 1", "pass"),
    "tailor: reset to zero": ("tailor", "tailor", "local[:, i], target[:, i])", "local[:, i], 0.0)"),
    "tailor: projector kept": ("tailor", "tailor", "weights[name] = before.float().clone()", "pass"),
    "tailor: projector patched": (
        "tailor",
        "tailor",
        "[name for name in names if split_layer(name)]",
        "names",
    ),
    "tailor: measured on fine-tuned weights": (
        "tailor",
        "tailor",
        "calibration.gram(weights,",
        "calibration.gram(finetuned,",
    ),
    "tailor: measured after the layer's first patch": (
        "tailor",
        "tailor",
        "patch(before, weights[name], grams[name], self.params)",
        "patch(before, weights[name], calibration.gram(weights, [name])[name], self.params)",
    ),
}
