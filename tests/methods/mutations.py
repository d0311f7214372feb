"""Named faults: (method that is checked, file that is changed, text, replacement)."""

from __future__ import annotations

MUTATIONS: dict[str, tuple[str, str, str, str]] = {
    # SPIDER: accumulation
    "spider: momentum swapped": ("spider", "spider", "gradient, 1 - self", "gradient, self"),
    "spider: no momentum": (
        "spider",
        "spider",
        ".lerp_(gradient, 1 - self.params.momentum)",
        ".copy_(gradient)",
    ),
    "spider: sum instead of momentum": (
        "spider",
        "spider",
        "lerp_(gradient, 1 - self.params.momentum)",
        "add_(gradient)",
    ),
    "spider: absolute gradients accumulated": (
        "spider",
        "spider",
        "if self.params.absolute else",
        "if True else",
    ),
    "spider: another default momentum": (
        "spider",
        "spider",
        "momentum: float = 0.85",
        "momentum: float = 0.9",
    ),
    # SPIDER: rank (Eqs. 2 and 4)
    "spider: biased deviation": ("spider", "ops", "/ (count - 1).clamp(min=1)", "/ count"),
    "spider: no absolute value": ("spider", "ops", "values.abs().sub_(", "values.sub("),
    "spider: mean not removed": ("spider", "ops", ".sub_(moments[0])", ""),
    "spider: not divided by the deviation": ("spider", "ops", ".div_(moments[1])", ""),
    "spider: variance instead of deviation": ("spider", "ops", "torch.inf, variance**0.5", "torch.inf, variance"),
    "spider: no sigmoid": ("spider", "ops", ".sigmoid_()", ""),
    "spider: all-zero tensors rank 1/2": (
        "spider",
        "ops",
        "torch.where(zero, torch.inf, mean)",
        "mean",
    ),
    "spider: constant tensors rank 0": (
        "spider",
        "ops",
        "torch.stack([torch.where(zero, torch.inf, mean)",
        "torch.stack([torch.where(deviation == torch.inf, torch.inf, mean)",
    ),
    "spider: constant tensors give NaN": (
        "spider",
        "ops",
        "CONSTANT * mean * mean, torch.inf",
        "CONSTANT * mean * mean, 0.0",
    ),
    "spider: rank over all tensors": (
        "spider",
        "spider",
        "sums = shards.totals(function)",
        "sums = (s := shards.totals(function)) and dict.fromkeys(s, sum(s.values()))",
    ),
    "spider: importance of current weights": (
        "spider",
        "spider",
        "self.accumulated[name], shard.source, self",
        "self.accumulated[name], shard.weight, self",
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
    "spider: no rescale": ("spider", "ops", "(mask / mean).clamp_(max=1.0)", "mask"),
    "spider: no upper bound": ("spider", "ops", "(mask / mean).clamp_(max=1.0)", "(mask / mean)"),
    "spider: mean over all elements": (
        "spider",
        "ops",
        "part.sign().sum(-1)",
        "part.sign().abs().add(1).sign().sum(-1)",
    ),
    "spider: mean of Eq. 8 over all tensors": (
        "spider",
        "spider",
        "_rows(ops.mask_mean, sums)",
        "_rows(ops.mask_mean, dict.fromkeys(sums, sum(sums.values())))",
    ),
    # SPIDER: blend (Eq. 6)
    "spider: w and w* swapped": (
        "spider",
        "ops",
        "torch.lerp(pretrained, weight, mask)",
        "torch.lerp(weight, pretrained, mask)",
    ),
    "spider: masked one step late": ("spider", "spider", "lag: bool = False", "lag: bool = True"),
    "spider: gradient masked instead of weights": (
        "spider",
        "spider",
        "_blend(shard.weight, *self._known(shard), self._mean.get(shard.name))",
        "shard.grad.mul_(self.mask(shard))",
    ),
    "spider: projector left out": (
        "spider",
        "spider",
        "            _blend(shard.weight",
        "            if 'projector' not in shard.name:\n                _blend(shard.weight",
    ),
    # EWC
    "ewc: sign": ("ewc", "ewc", "alpha=self.params.strength", "alpha=-self.params.strength"),
    "ewc: twice": ("ewc", "ewc", "alpha=self.params.strength", "alpha=2 * self.params.strength"),
    "ewc: another default": ("ewc", "ewc", "strength: float = 1.0", "strength: float = 2.0"),
    "ewc: gradients not squared": ("ewc", "ewc", "else gradient.square()", "else gradient.abs()"),
    "ewc: the last sample alone": (
        "ewc", "ewc", "squares[name] + gradient.square() if", "gradient.square() if",
    ),
    "ewc: square of the sum": (
        "ewc", "ewc", "squares[name] + gradient.square() if", "(squares[name].sqrt() + gradient).square() if",
    ),
    "ewc: not divided by the mean": ("ewc", "ewc", "values / mean", "values"),
    "ewc: divided by the sum": ("ewc", "ewc", "/ sum(values.numel() for values in squares.values())", "/ 1"),
    "ewc: mean of each tensor": ("ewc", "ewc", "values / mean", "values / values.mean()"),
    "ewc: equal importances": (
        "ewc", "ewc", "change.mul_(self.importance[shard.name])", "change",
    ),
    "ewc: towards zero": ("ewc", "ewc", "shard.weight - shard.pretrained", "shard.weight + 0"),
    "ewc: after the step": ("ewc", "ewc", "def before_step", "def after_step"),
    # L2-Reg and Grafting
    "l2: sign": ("l2_reg", "l2_reg", "alpha=2 *", "alpha=-2 *"),
    "l2: half": ("l2_reg", "l2_reg", "alpha=2 *", "alpha=1 *"),
    "l2: another default": ("l2_reg", "l2_reg", "strength: float = 1e-3", "strength: float = 1e-2"),
    "l2: mean instead of sum": (
        "l2_reg",
        "penalty",
        "if self.params.mean else 1.0",
        "if not self.params.mean else 1.0",
    ),
    "l2: towards zero": ("l2_reg", "penalty", "shard.weight - shard.pretrained", "shard.weight + 0"),
    "l2: after the step": ("l2_reg", "penalty", "def before_step", "def after_step"),
    "l2: decoupled": (
        "l2_reg",
        "penalty",
        "self.add(shard.grad, shard.weight - shard",
        "self.add(shard.weight, shard.weight - shard",
    ),
    "l2: matrices only": (
        "l2_reg",
        "penalty",
        "        task = {}\n        for shard in shards:\n",
        "        task = {}\n        for shard in (s for s in shards if len(s.shape) == 2):\n",
    ),
    "l1: sign": ("grafting", "grafting", "alpha=factor", "alpha=-factor"),
    "l1: not the sign of the change": ("grafting", "grafting", ".sign_()", ""),
    "l1: sign(0) = 1": ("grafting", "grafting", ".sign_()", ".ge_(0).mul_(2).sub_(1)"),
    "l1: towards zero": ("grafting", "penalty", "shard.weight - shard.pretrained", "shard.weight + 0"),
    "l1: another default": ("grafting", "grafting", "strength: float = 1e-6", "strength: float = 1e-5"),
    "l1: mean instead of sum": (
        "grafting",
        "penalty",
        "if self.params.mean else 1.0",
        "if not self.params.mean else 1.0",
    ),
    "l1: after the step": ("grafting", "penalty", "def before_step", "def after_step"),
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
        "self.frozen, self._drawn = frozenset(drawn), step",
        "self.frozen, self._drawn = frozenset(self._sizes) - {*drawn}, step",
    ),
    "hft: three of four": ("half_ft", "half_ft", "(layer in generous)) // 2", "2) // 2"),
    "hft: both norms": ("half_ft", "half_ft", "(layer in generous)) // 2", "2 * (len(modules) < 3)) // 2"),
    "hft: two of three everywhere": ("half_ft", "half_ft", "(layer in generous)) // 2", "1) // 2"),
    "hft: the smaller half is wide": ("half_ft", "half_ft", "(len(ordered) + 1) // 2", "len(ordered) // 2"),
    "hft: not drawn": (
        "half_ft",
        "half_ft",
        "torch.randperm(len(modules), generator=source).tolist()[trained:]",
        "range(trained, len(modules))",
    ),
    "hft: seed ignored": ("half_ft", "half_ft", "generator(seed, ", "generator(0, "),
    "hft: drawn at every step": ("half_ft", "half_ft", "redraw: bool = False", "redraw: bool = True"),
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
        "local[:, i + 1 :] += sign",
        "local[:, i + 1 :] += -sign",
    ),
    "tailor: released sign between blocks": (
        "tailor",
        "tailor",
        "weight[:, columns.stop :] += sign",
        "weight[:, columns.stop :] += -sign",
    ),
    "tailor: no compensation between blocks": (
        "tailor",
        "tailor",
        "        weight[:, columns.stop :] += sign * (errors @ factor[columns, columns.stop :])\n",
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
        'if params.sensitive == "change" else local',
        'if params.sensitive != "change" else local',
    ),
    "tailor: sensitivity before compensation": (
        "tailor",
        "tailor",
        "row_scores(sensitive.square()",
        "row_scores(finetuned[:, columns].double().square()",
    ),
    "tailor: sensitivity without the Hessian": ("tailor", "tailor", " / root.diagonal().square()", ""),
    "tailor: keeps the least important": ("tailor", "tailor", "descending=True", "descending=False"),
    "tailor: keeps nine tenths": (
        "tailor",
        "tailor",
        "kept[order[:count]]",
        "kept[order[-count:]]",
    ),
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
    # L2-Reg and Grafting: variants
    "l2 mean: over tensors only": ("l2_reg_mean", "penalty", "1 / (len(sizes) * size)", "1 / len(sizes)"),
    "l2 mean: over elements only": ("l2_reg_mean", "penalty", "1 / (len(sizes) * size)", "1 / size"),
    "l1 mean: over all elements at once": (
        "grafting_mean",
        "penalty",
        "(len(sizes) * size)",
        "sum(sizes.values())",
    ),
    "l2 two steps: the penalty of the task's step": (
        "l2_reg_two_step",
        "penalty",
        "shard.grad.copy_(task[shard.name])",
        "shard.grad.add_(task[shard.name])",
    ),
    "l2 two steps: not on its own": (
        "l2_reg_two_step",
        "penalty",
        "                shard.grad.zero_()\n",
        "",
    ),
    "l2 two steps: no step": ("l2_reg_two_step", "penalty", "self.extra_step()", "pass"),
    "l2 two steps: gradient not put back": (
        "l2_reg_two_step",
        "penalty",
        "copy_(task[shard.name])",
        "clone()",
    ),
    "l1 two steps: no step": ("grafting_two_step", "penalty", "self.extra_step()", "pass"),
    "l2 scaled: not": (
        "l2_reg_scaled",
        "penalty",
        "if self.params.reference_size else 1.0",
        "if False else 1.0",
    ),
    "l2 scaled: upside down": (
        "l2_reg_scaled",
        "penalty",
        "self.params.reference_size / sum(sizes.values())",
        "sum(sizes.values()) / self.params.reference_size",
    ),
    "l1 scaled: by tensors": ("grafting_scaled", "penalty", "/ sum(sizes.values())", "/ len(sizes)"),
    # Half FT: variants
    "hft step: one draw": ("half_ft_step", "half_ft", "if self.params.redraw:\n", "if False:\n"),
    "hft step: steps are not counted": ("half_ft_step", "half_ft", "self._steps[shard.name] += 1", "pass"),
    "hft step: draws do not differ": ("half_ft_step", "half_ft", 'f"half_ft/{step}"', '"half_ft/"'),
    "hft step: back to the base": (
        "half_ft_step",
        "half_ft",
        "self._kept[shard.name] = shard.weight.clone()",
        "self._kept[shard.name] = shard.pretrained.clone()",
    ),
    "hft step: gradient kept": ("half_ft_step", "half_ft", "                shard.grad.zero_()\n", ""),
    # Selectors of Table 3
    "random: gradient kept": (
        "half_ft_elements",
        "select",
        "shard.grad.masked_fill_(~self.mask(shard), 0.0)",
        "pass",
    ),
    "random: weights left": (
        "half_ft_elements",
        "select",
        "shard.weight.copy_(torch.where(",
        "(torch.where(",
    ),
    "random: seed ignored": (
        "half_ft_elements",
        "select",
        "generator(self.seed, shard.name)",
        "generator(0, shard.name)",
    ),
    "random: one draw for all": ("half_ft_elements", "select", "(self.seed, shard.name)", "(self.seed, '')"),
    "random: another share": (
        "half_ft_elements",
        "select",
        "shard.name)) < share",
        "shard.name)) < share / 2",
    ),
    "magnitude: trains the large ones": ("spider_magnitude", "select", "return ~self._largest", "return self._largest"),
    "magnitude: one more frozen": ("spider_magnitude", "select", "int(size * frozen)", "int(size * frozen) + 1"),
    "magnitude: share of the frozen": ("spider_magnitude", "select", "1 - ops.exact(share)", "ops.exact(share)"),
    "magnitude: without the sign": ("spider_magnitude", "threshold", "at_least(values.abs(),", "at_least(values,"),
    "ties: none of them": ("spider_magnitude", "ops", " | (tied & first.view_as(tied))", ""),
    "ties: all of them": ("spider_magnitude", "ops", "(tied & first.view_as(tied))", "tied"),
    "ties: one less": ("spider_magnitude", "ops", "dtype=torch.int32) <= ties", "dtype=torch.int32) < ties"),
    "ties: the last ones": (
        "spider_magnitude",
        "ops",
        "tied.flatten().cumsum(0, dtype=torch.int32) <= ties",
        "tied.flatten().flip(0).cumsum(0, dtype=torch.int32).flip(0) <= ties",
    ),
    "magnitude: gradient kept": (
        "spider_magnitude",
        "select",
        "shard.grad.masked_fill_(~self.mask(shard), 0.0)",
        "pass",
    ),
    "gradient: of this step only": (
        "spider_gradient",
        "select",
        "lerp_(shard.grad, 1 - self.params.momentum)",
        "copy_(shard.grad)",
    ),
    "gradient: sum": (
        "spider_gradient",
        "select",
        "lerp_(shard.grad, 1 - self.params.momentum)",
        "add_(shard.grad)",
    ),
    "gradient: momentum swapped": ("spider_gradient", "select", "shard.grad, 1 - self", "shard.grad, self"),
    "gradient: trains the small ones": ("spider_gradient", "select", "return self._largest", "return ~self._largest"),
    "gradient: one more": ("spider_gradient", "select", "int(size * share)", "int(size * share) + 1"),
    "gradient: chosen once": (
        "spider_gradient",
        "select",
        "self._largest |= largest(",
        "self._largest = self._largest or largest(",
    ),
    "gradient: keeps the last value": (
        "spider_gradient",
        "select",
        "shard.weight, shard.pretrained))",
        "shard.weight, shard.weight))",
    ),
    "threshold: a bit too few": ("spider_gradient", "threshold", "bits - 2, -1, -1", "bits - 2, 0, -1"),
    "threshold: one element more": ("spider_gradient", "threshold", ">= limit).sum().d", "> limit).sum().d"),
    "threshold: bits forgotten": ("spider_gradient", "threshold", "patterns | 1 << bit", "patterns * 0 | 1 << bit"),
    "threshold: of a whole tensor, one element more": (
        "spider_gradient", "threshold", "kthvalue(values.numel() - count)",
        "kthvalue(max(1, values.numel() - 1 - count))",
    ),
    "threshold: of a whole tensor, with the sign": (
        "spider_gradient", "threshold", "values.abs().nan_to_num_", "values.clone().nan_to_num_"
    ),
    # SPIDER: variants
    "idm: soft": ("spider_idm", "spider", 'self.params.mask == "soft"', "True"),
    "idm: >=": ("spider_idm", "ops", "torch.gt(specialization", "torch.ge(specialization"),
    "idm: selects the important ones": (
        "spider_idm",
        "ops",
        "torch.gt(specialization",
        "torch.lt(specialization",
    ),
    "idm: another momentum": ("spider_idm", "spider", "gradient, 1 - self", "gradient, 0.5 * self"),
    "code: average": ("spider_code", "spider", 'self.params.accumulate == "sum"', "False"),
    "code: without the first gradient": (
        "spider_code",
        "spider",
        "self.accumulated[shard.name].add_(gradient)",
        "self.accumulated[shard.name].add_(gradient if self._mean else 0)",
    ),
    "lag: none": (
        "spider_lag",
        "spider",
        "        if self.params.lag:\n            self._blend",
        "        if False:\n            self._blend",
    ),
    "lag: masked at the end as well": ("spider_lag", "spider", "if not self.params.lag:", "if True:"),
    "instant: averaged": ("spider_instant", "spider", "gradient, 1 - self", "gradient, 0.15 - self"),
    "abs: signed": ("spider_abs", "spider", "if self.params.absolute else", "if False else"),
    "abs: of the average": (
        "spider_abs",
        "spider",
        "shard.grad.abs() if self.params.absolute else shard.grad",
        "shard.grad",
    ),
    "global: per tensor": (
        "spider_global",
        "spider",
        'self.params.scope == "tensor":\n            return sums',
        "True:\n            return sums",
    ),
    "global: one group": ("spider_global", "spider", '"layers" if split_layer(name) else OUTSIDE', "OUTSIDE"),
    "global: a group per layer": (
        "spider_global",
        "spider",
        '"layers" if split_layer(name) else OUTSIDE',
        "str((split_layer(name) or [0])[0])",
    ),
    "posthoc: of the weights": (
        "spider_posthoc",
        "spider_posthoc",
        "ops.whole_rank(after - before)",
        "ops.whole_rank(after)",
    ),
    "posthoc: swapped": (
        "spider_posthoc",
        "spider_posthoc",
        "ops.blend(before, after",
        "ops.blend(after, before",
    ),
    "posthoc: no rescale": ("spider_posthoc", "spider_posthoc", "ops.rescale(mask, mean)", "mask"),
    "posthoc: mean over all elements": (
        "spider_posthoc",
        "spider_posthoc",
        "ops.mask_mean(ops.mask_sums(mask.flatten()))",
        "mask.mean()",
    ),
    # DARE: variants, and WiSE-FT
    "drop only: rescaled": (
        "dare_drop_only",
        "dare",
        "self.params.keep if self.params.rescale else 1.0",
        "self.params.keep",
    ),
    "trim: rescaled": (
        "dare_magnitude",
        "dare",
        "self.params.keep if self.params.rescale else 1.0",
        "self.params.keep",
    ),
    "trim: at random": ("dare_magnitude", "dare", 'self.params.choose == "random"', "True"),
    "trim: keeps the smallest": (
        "dare_magnitude",
        "ops",
        "return change > limit",
        "return change < limit",
    ),
    "trim: keeps the limit": (
        "dare_magnitude",
        "ops",
        "return change > limit",
        "return change >= limit",
    ),
    "trim: of the weights": (
        "dare_magnitude",
        "ops",
        "change = (finetuned - pretrained).abs()",
        "change = finetuned.abs()",
    ),
    "trim: without the sign": (
        "dare_magnitude",
        "ops",
        "change = (finetuned - pretrained).abs()",
        "change = finetuned - pretrained",
    ),
    "trim: share dropped": ("dare_magnitude", "ops", "(1 - exact(keep))", "exact(keep)"),
    "wise: the other end": (
        "wise_ft",
        "wise_ft",
        "self.params.alpha)\n            for",
        "1 - self.params.alpha)\n            for",
    ),
    "wise: from zero": (
        "wise_ft",
        "wise_ft",
        "torch.lerp(pretrained[name].float()",
        "torch.lerp(0 * pretrained[name].float()",
    ),
    # Fisher merging and an alpha for each tensor
    "fisher: swapped": ("fisher", "fisher", "torch.lerp(pretrained[name].float().to(weight.device), weight.float(),",
                        "torch.lerp(weight.float(), pretrained[name].float().to(weight.device),"),
    "fisher: absolute gradients": (
        "fisher",
        "fisher",
        "squares[name] + gradient.square() if name in squares else gradient.square()",
        "squares[name] + gradient.abs() if name in squares else gradient.abs()",
    ),
    "fisher: the last sample alone": (
        "fisher", "fisher", "squares[name] + gradient.square() if name in squares else", "",
    ),
    "fisher: at the other weights": (
        "fisher", "fisher", "contrast.sample_gradients(finetuned)", "contrast.sample_gradients(pretrained)",
    ),
    "fisher: of the base at the other weights": (
        "fisher", "fisher", "generic.sample_gradients(pretrained)", "generic.sample_gradients(finetuned)",
    ),
    "fisher: on the target alone": ("fisher", "fisher", "contrast.generic.sample", "contrast.sample"),
    "fisher: not normalised": ("fisher", "fisher", "values / scale", "values"),
    "fisher: normalised per tensor": ("fisher", "fisher", "values / scale", "values / values.square().mean().sqrt()"),
    "fisher: alpha of both": ("fisher", "fisher", "(1 - self.params.alpha) *", "self.params.alpha *"),
    "tensors: ascent": ("wise_ft_tensors", "wise_ft_tensors", "score - rate", "score + rate"),
    "tensors: one alpha": (
        "wise_ft_tensors", "wise_ft_tensors", "rate * slopes[name] for", "rate * sum(slopes.values()) for",
    ),
    "tensors: shares swapped": (
        "wise_ft_tensors",
        "wise_ft_tensors",
        "params.share * target[name].double() + (1 - params.share)",
        "(1 - params.share) * target[name].double() + params.share",
    ),
    "tensors: slope of the weight": (
        "wise_ft_tensors", "wise_ft_tensors", "* (after[name] - before[name])", "* after[name]",
    ),
    "tensors: slope of alpha": ("wise_ft_tensors", "wise_ft_tensors", "along * alpha * (1 - alpha)", "along"),
    "tensors: every step as long": ("wise_ft_tensors", "wise_ft_tensors", "if rate is None:", "if True:"),
    "tensors: the other end": (
        "wise_ft_tensors", "wise_ft_tensors", "_logistic(score)) for", "1 - _logistic(score)) for",
    ),
    "tensors: gradient at w_ft": (
        "wise_ft_tensors", "wise_ft_tensors", "contrast.gradient(merged), contrast",
        "contrast.gradient(after), contrast",
    ),
    # Merges over seeds
    "soup: the first seed alone": ("soup", "soup", "[one[name] for one in tuned], self", "[tuned[0][name]], self"),
    "soup: a sum": ("soup", "soup", ".mean(0)", ".sum(0)"),
    "soup: the other end": ("soup", "soup", "+ alpha *", "+ (1 - alpha) *"),
    "soup: of zero": ("soup", "soup", "return before + alpha", "return alpha"),
    "ties: no election": ("ties", "ties", "(changes.sign() == sign) & (changes != 0)", "changes != 0"),
    "ties: the sign that loses": ("ties", "ties", "(changes.sign() == sign)", "(changes.sign() == -sign)"),
    "ties: mean of all": ("ties", "ties", "agreeing.sum(0).clamp(min=1)", "len(changes)"),
    "ties: signs of the untrimmed": ("ties", "ties", "total = changes.sum(0)\n        sign =",
                                     "total = sum(one.float() - base.float() for one in tuned)\n        sign ="),
    "ties: share dropped": ("ties", "ties", "int(size * (1 - exact(keep)))", "int(size * exact(keep))"),
    "ties: no scale": ("ties", "ties", "self.params.scale * mean", "mean"),
    "ties: of the weights": ("ties", "ties", "base.float() + self.params.scale", "self.params.scale"),
    "ties: the first seed alone": ("ties", "ties", "others = [one[name]", "others = [tuned[0][name]"),
    # LiNeS and intruder reduction
    "lines: the other way round": ("lines", "lines", "alpha) * depth", "alpha) * (1 - depth)"),
    "lines: the first layer keeps nothing": ("lines", "lines", "params.alpha + (1", "(1"),
    "lines: the last layer grows": ("lines", "lines", "(1 - params.alpha) * depth", "depth"),
    "lines: layers as text": ("lines", "lines", "sorted(indices)", "sorted(indices, key=str)"),
    "lines: by the layer's number": ("lines", "lines", "layers.index(place[1])", "place[1]"),
    "lines: one depth more": ("lines", "lines", "/ (len(layers) - 1)", "/ len(layers)"),
    "lines: the projector keeps its change": ("lines", "lines", "result[name] = 0.0", "result[name] = 1.0"),
    "lines: of zero": ("lines", "lines", "torch.lerp(pretrained.float()", "torch.lerp(0 * pretrained.float()"),
    "intruder: grows": ("intruder", "intruder", "finetuned - (1 -", "finetuned + (1 -"),
    "intruder: the rest": ("intruder", "intruder", ".amax(1) < params.threshold", ".amax(1) >= params.threshold"),
    "intruder: with a sign": ("intruder", "intruder", "before).abs()", "before)"),
    "intruder: share removed": ("intruder", "intruder", "(1 - params.scale)", "params.scale"),
    "intruder: all directions": (
        "intruder",
        "intruder",
        "left[:, : params.top], values[: params.top], right[: params.top]",
        "left, values, right",
    ),
    "intruder: without the sizes": ("intruder", "intruder", "[:, intruders] * values[intruders]", "[:, intruders]"),
    "intruder: of the nearest few": ("intruder", "intruder", "(left.T @ before)", "(left.T @ before[:, : params.top])"),
    # Grafting's mask
    "mask: not learned": ("grafting_mask", "grafting_mask", "alpha=rate", "alpha=0.0"),
    "mask: ascent": ("grafting_mask", "grafting_mask", "z.sub_(", "z.add_("),
    "mask: slope of the weight": ("grafting_mask", "grafting_mask", ".mul_(change[name])", ".mul_(after[name])"),
    "mask: slope of gamma": ("grafting_mask", "grafting_mask", ".mul_(gamma * (1 - gamma))", ""),
    "mask: every step as long": ("grafting_mask", "grafting_mask", "if rate is None:", "if True:"),
    "mask: no bound": ("grafting_mask", "grafting_mask", "top_share(params.share, scores)", "top_share(1.0, scores)"),
    "mask: always the whole share": ("grafting_mask", "grafting_mask", "chosen[name] & (z > 0)", "chosen[name]"),
    "mask: the smallest changes first": (
        "grafting_mask",
        "grafting_mask",
        "{name: values.abs()",
        "{name: -values.abs()",
    ),
    "mask: the released patch": ("grafting_mask", "grafting_mask", 'count == "released" and size', "size"),
    "mask: the other weights": (
        "grafting_mask",
        "grafting_mask",
        "(z > 0), after[name], before[name]",
        "(z > 0), before[name], after[name]",
    ),
    # Tailor: variants
    "official: the right sign": ("tailor_official", "tailor", '"add": 1.0', '"add": -1.0'),
    "official: our count": ("tailor_official", "tailor", 'if self.count == "released"', "if False"),
    "official: ties kept": ("tailor_official", "tailor", "kept &= score > ranked[count]", "pass"),
    "official: as many as dropped": (
        "tailor_official",
        "tailor",
        "size - int(size * (1 - keep)) - 1",
        "size - int(size * (1 - keep))",
    ),
    "no compensation: some": ("tailor_no_compensation", "tailor", '"none": 0.0', '"none": -0.1'),
    "change sensitivity: of the weight": (
        "tailor_change_sensitivity",
        "tailor",
        'local - target if params.sensitive == "change" else local',
        "local",
    ),
    "change sensitivity: before compensation": (
        "tailor_change_sensitivity",
        "tailor",
        "sensitive = local - target if",
        "sensitive = salience[:, columns] if",
    ),
    "keep projector: reset": (
        "tailor_keep_projector",
        "tailor",
        'elif self.params.projector == "reset":',
        "else:",
    ),
    # GPS
    "gps: a signed gradient": (
        "gps", "row_threshold", "lay(values(shard).abs()) >= limits", "lay(values(shard)) >= limits"
    ),
    "gps: norms train": ("gps", "sparse", 'shard.name.endswith(".bias")', "True"),
    "gps: biases do not": ("gps", "sparse", 'shard.name.endswith(".bias")', "False"),
    "gps: last gradient only": ("gps", "sparse", "].add_(shard.grad)", "].copy_(shard.grad)"),
    "gps: weights move while gradients are summed": (
        "gps", "sparse", "return torch.zeros_like(shard.weight, dtype=torch.bool)",
        "return torch.ones_like(shard.weight, dtype=torch.bool)",
    ),
    "gps: one step late": ("gps", "sparse", "] >= self.params.steps", "] > self.params.steps"),
    "gps: Adam sees all": ("gps", "sparse", "shard.grad.masked_fill_(~self.mask(shard), 0.0)", "pass"),
    "gps: decay moves the rest": (
        "gps", "sparse",
        "self.mask(shard), shard.weight, shard.pretrained",
        "self.mask(shard), shard.weight, shard.weight",
    ),
    # SPU
    "spu: the last matrix": ("spu", "sparse", '"mlp.up_proj", ', '"mlp.down_proj", '),
    "spu: all matrices": ("spu", "sparse", "layer is not None and layer[1] in FIRST_MATRICES", "layer is not None"),
    "spu: the rest trains": (
        "spu", "sparse",
        "torch.full_like(shard.weight, _is_first(shard.name), dtype",
        "torch.full_like(shard.weight, True, dtype",
    ),
    "spu: the smallest": (
        "spu", "sparse",
        "limits[shard.name].mask(self.accumulated[shard.name]) if",
        "~limits[shard.name].mask(self.accumulated[shard.name]) if",
    ),
    # GMT
    "gmt: the smallest": (
        "gmt", "sparse", "~limits[shard.name].mask(shard.grad)", "limits[shard.name].mask(shard.grad)"
    ),
    "gmt: gradients with a sign": (
        "gmt", "threshold", "return at_least(values.abs(), self.limit", "return at_least(values, self.limit"
    ),
    "gmt: the limit of signed gradients": (
        "gmt", "threshold", "(values.abs() >= limit).sum().double()[None]", "(values >= limit).sum().double()[None]"
    ),
    "gmt: the share is dropped": (
        "gmt", "sparse", "shard.grad, lambda size: int(size * share))",
        "shard.grad, lambda size: size - int(size * share))",
    ),
    "gmt: one element more": (
        "gmt", "sparse", "shard.grad, lambda size: int(size * share))",
        "shard.grad, lambda size: min(size, int(size * share) + 1))",
    ),
    "gmt: at least one element": (
        "gmt", "sparse", "shard.grad, lambda size: int(size * share))",
        "shard.grad, lambda size: max(1, int(size * share)))",
    ),
    "gmt: by the weights": (
        "gmt", "sparse", "largest(shards, lambda shard: shard.grad,", "largest(shards, lambda shard: shard.weight,"
    ),
    "gmt: matrices alone": (
        "gmt", "sparse", "limits = largest(shards, lambda shard: shard.grad",
        "shards = shards.where(lambda shard: len(shard.shape) > 1)\n"
        "        limits = largest(shards, lambda shard: shard.grad",
    ),
    "gmt: one share of all tensors": (
        "gmt", "sparse", "shard.grad.masked_fill_(~limits[shard.name].mask(shard.grad)",
        "shard.grad.masked_fill_(shard.grad.abs() < max(one.limit for one in limits.values())",
    ),
    "gmt: what is left is scaled": (
        "gmt", "sparse", "mask(shard.grad), 0.0)", "mask(shard.grad), 0.0).div_(self.params.share)"
    ),
    "gmt: another default": (
        "gmt", "sparse", '"""share: of each tensor\'s gradient that a step keeps."""\n\n    share: float = 0.2',
        '"""share: of each tensor\'s gradient that a step keeps."""\n\n    share: float = 0.1',
    ),
    # MoFO
    "mofo: the gradient": ("mofo", "sparse", "].lerp_(shard.grad, 1 - self", "].lerp_(shard.grad, 1.0 + 0 * self"),
    "mofo: swapped": ("mofo", "sparse", "].lerp_(shard.grad, 1 - self", "].lerp_(shard.grad, self"),
    "mofo: the share is dropped": (
        "mofo", "sparse", "lambda shard: self.accumulated[shard.name], lambda size: int(size * share))\n        for",
        "lambda shard: self.accumulated[shard.name], lambda size: size - int(size * share))\n        for",
    ),
    "mofo: Adam sees the mask": (
        "mofo", "sparse", "self._before[shard.name] = shard.weight.clone()",
        "self._before[shard.name] = shard.weight.clone()\n"
        "            shard.grad.mul_(shard.grad.abs() > shard.grad.abs().mean())",
    ),
    "mofo: back to w*": ("mofo", "sparse", "self._before.pop(shard.name))", "shard.pretrained)"),
    "mofo: the smallest": ("mofo", "sparse", "moved = limits", "moved = ~limits"),
    # Largest weights
    "largest weights: the smallest": (
        "largest_weights", "sparse", "return self._largest[shard.name]", "return ~self._largest[shard.name]"
    ),
    "largest weights: the current ones": (
        "largest_weights", "sparse", ".mask(shard.pretrained)", ".mask(shard.weight)"
    ),
    # Model-Dowser
    "dowser: the most sensitive": ("model_dowser", "model_dowser", "~frozen[shard.name]", "frozen[shard.name]"),
    "dowser: without the weight": ("model_dowser", "model_dowser", ".mul_(shard.pretrained.abs())", ""),
    "dowser: signed": ("model_dowser", "model_dowser", "values.abs() if name in total", "values if name in total"),
    "dowser: the last sample alone": (
        "model_dowser", "model_dowser", "total[name] + values.abs() if", "values.abs() if",
    ),
    "dowser: the share freezes": ("model_dowser", "model_dowser", "size - int(size * share)", "int(size * share)"),
    "dowser: of one element less": (
        "model_dowser", "model_dowser", "size - int(size * share)", "min(size, size - int(size * share) + 1)"
    ),
    "dowser: vectors train": (
        "model_dowser", "model_dowser", "else torch.zeros_like(shard.weight, dtype",
        "else torch.ones_like(shard.weight, dtype",
    ),
    "dowser: decay moves the rest": (
        "model_dowser", "model_dowser", "self.mask(shard), shard.weight, shard.pretrained",
        "self.mask(shard), shard.weight, shard.weight",
    ),
    "dowser: Adam sees all": (
        "model_dowser", "model_dowser", "shard.grad.masked_fill_(~self.mask(shard), 0.0)", "pass"
    ),
}
