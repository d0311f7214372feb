"""Each method against its float64 transcription; `load` returns a module of `methods` (or a mutated copy)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml

import methods
from tests.methods import toy
from tests.reference import (
    dare,
    ewc,
    fisher,
    grafting_mask,
    half_ft,
    intruder,
    lines,
    model_dowser,
    penalties,
    select,
    soup,
    sparse,
    spider,
    tailor,
    ties,
    wise_ft,
)
from tests.reference.adamw import AdamW

Load = Callable[[str], ModuleType]
DECAY = 0.1
CONF = Path(methods.__file__).parents[1] / "conf" / "method"


def original(name: str) -> ModuleType:
    return importlib.import_module(f"methods.{name}")


def configured(method: str) -> dict[str, Any]:
    """Parameters of a variant: what makes it one is in its configuration file."""
    return yaml.safe_load((CONF / f"{method}.yaml").read_text())["params"]


def compare(run: toy.Run, expected: dict[str, np.ndarray], optimizer: AdamW, tolerance: float) -> None:
    for name, value in expected.items():
        # A NaN would spread through the recorded gradients into the expected values.
        assert np.isfinite(run.weights[name]).all(), name
        np.testing.assert_allclose(run.weights[name], value, rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(
            run.moments[name], optimizer.first[name], tolerance, tolerance, err_msg=f"moment of {name}"
        )


def check_full_ft(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    run = toy.train(load("full_ft").FullFT(None, 0), decay=DECAY, dtype=dtype)
    optimizer = AdamW(run.rates, DECAY)
    weights = run.pretrained
    for gradients in run.gradients:
        weights = optimizer.step(weights, gradients)
    compare(run, weights, optimizer, tolerance)


def check_spider(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("spider")
    run = toy.train(module.Spider(module.SpiderParams(), 0), decay=DECAY, dtype=dtype)
    optimizer = AdamW(run.rates, DECAY)
    expected = spider.train(run.pretrained, run.gradients, optimizer, momentum=0.85)
    compare(run, expected, optimizer, tolerance)


def spider_groups(names) -> list[list[str]]:
    """The decoder layers' tensors, and all others."""
    return [[n for n in names if n.startswith("layers.") == inside] for inside in (True, False)]


def check_spider_variant(method: str, **variant) -> Callable:
    def check(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
        module = load("spider")
        run = toy.train(module.Spider(module.SpiderParams(**configured(method)), 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        settings = {"momentum": 0.85} | variant
        if method == "spider_global":
            settings["groups"] = spider_groups(run.pretrained)
        compare(run, spider.train(run.pretrained, run.gradients, optimizer, **settings), optimizer, tolerance)

    return check


def check_l2_reg(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("l2_reg")
    for params, strength in ((module.L2RegParams(), 1e-3), (module.L2RegParams(strength=0.3), 0.3)):
        run = toy.train(module.L2Reg(params, 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        expected = penalties.train(run.pretrained, run.gradients, optimizer, penalties.l2_gradient, strength)
        compare(run, expected, optimizer, tolerance)


def check_grafting(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("grafting")
    for params, strength in ((module.GraftingParams(), 1e-6), (module.GraftingParams(strength=0.02), 0.02)):
        run = toy.train(module.Grafting(params, 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        expected = penalties.train(run.pretrained, run.gradients, optimizer, penalties.l1_gradient, strength)
        compare(run, expected, optimizer, tolerance)


def check_ewc(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("ewc")
    for params, strength in ((module.EwcParams(), 1.0), (module.EwcParams(strength=0.07), 0.07)):
        run = toy.train(module.Ewc(params, 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        samples = toy.sample_gradients({name: torch.tensor(value) for name, value in run.pretrained.items()})
        importance = ewc.fisher([toy.arrays(sample) for sample in samples])
        compare(run, ewc.train(run.pretrained, run.gradients, optimizer, importance, strength), optimizer, tolerance)


def check_penalty_mean(method: str, penalty: Callable, strength: float) -> Callable:
    def check(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
        file = method.removesuffix("_mean").removesuffix("_two_step")
        module = load(file)
        cls, params = {"l2_reg": ("L2Reg", "L2RegParams"), "grafting": ("Grafting", "GraftingParams")}[file]
        settings = configured(method)
        for lam in (strength, 5.0):  # the configured one hardly acts; a strong one shows the means
            made = getattr(module, params)(**(settings | ({} if lam == strength else {"strength": lam})))
            run = toy.train(getattr(module, cls)(made, 0), decay=DECAY, dtype=dtype)
            optimizer = AdamW(run.rates, DECAY)
            two = method.endswith("two_step")
            expected = penalties.train_mean(run.pretrained, run.gradients, optimizer, penalty, lam, two)
            compare(run, expected, optimizer, tolerance)

    return check


def check_penalty_scaled(method: str, penalty: Callable, strength: float) -> Callable:
    def check(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
        module = load(method.removesuffix("_scaled"))
        cls = {"l2_reg_scaled": "L2Reg", "grafting_scaled": "Grafting"}[method]
        run = toy.train(
            getattr(module, cls)(getattr(module, f"{cls}Params")(**configured(method)), 0),
            decay=DECAY,
            dtype=dtype,
        )
        size = sum(value.size for value in run.pretrained.values())
        optimizer = AdamW(run.rates, DECAY)
        lam = strength * 425_746_432 / size  # LLaVA-1.5-7B's two last layers and projector
        compare(
            run, penalties.train(run.pretrained, run.gradients, optimizer, penalty, lam), optimizer, tolerance
        )

    return check


MATRICES = {
    "attention": [f"self_attn.{x}_proj.weight" for x in "qkvo"],
    "feed_forward": [f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")],
    "norms": ["input_layernorm.weight", "post_attention_layernorm.weight"],
}


def layer_names(layers: int) -> list[str]:
    """Names of the tensors of `layers` decoder layers, numbered as in the last layers of a deep model."""
    leaves = [leaf for group in MATRICES.values() for leaf in group]
    return [f"model.language_model.layers.{8 + i}.{leaf}" for i in range(layers) for leaf in leaves]


def check_draw(module: ModuleType, layers: int, seed: int, step: int | None = None) -> set[str]:
    """Check one draw's counts; return the frozen names."""
    names = layer_names(layers)
    others = ["model.multi_modal_projector.linear_1.weight", "mm_projector.layers.2.weight"]
    frozen = module.draw_frozen(names + others, seed, step)
    assert len(set(frozen)) == len(frozen) and set(frozen) <= set(names)
    for category, expected in half_ft.trained_per_layer(layers).items():
        counts = [
            sum(f"model.language_model.layers.{8 + i}.{leaf}" not in frozen for leaf in MATRICES[category])
            for i in range(layers)
        ]
        assert sorted(counts) == expected, (category, counts)
    return set(frozen)


def check_half_ft(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("half_ft")
    draws = [check_draw(module, layers, seed) for layers in (1, 2, 5, 8) for seed in range(3)]
    assert len({frozenset(draw) for draw in draws[-3:]}) == 3, "the seed does not change the draw"
    # Every matrix must be able to train: over many seeds, none is always or never frozen.
    share = np.mean(
        [[n in module.draw_frozen(layer_names(2), s) for n in layer_names(2)] for s in range(60)], 0
    )
    assert (share > 0.2).all() and (share < 0.8).all()
    method = module.HalfFT(module.HalfFTParams(), 5)
    run = toy.train(method, decay=DECAY, dtype=dtype)
    frozen = set(module.draw_frozen(run.pretrained, 5))
    for name, value in run.weights.items():
        assert (value == run.pretrained[name]).all() == (name in frozen), name
    optimizer = AdamW(run.rates, DECAY)
    draws = [frozen] * len(run.gradients)
    compare(run, half_ft.train(run.pretrained, run.gradients, optimizer, draws), optimizer, tolerance)


def check_half_ft_step(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("half_ft")
    steps = [frozenset(check_draw(module, 2, 5, step)) for step in range(4)]
    assert len(set(steps)) == 4, "steps share their draw"
    run = toy.train(
        module.HalfFT(module.HalfFTParams(**configured("half_ft_step")), 5), decay=DECAY, dtype=dtype
    )
    optimizer = AdamW(run.rates, DECAY)
    draws = [set(module.draw_frozen(run.pretrained, 5, step)) for step in range(len(run.gradients))]
    compare(run, half_ft.train(run.pretrained, run.gradients, optimizer, draws), optimizer, tolerance)


def check_half_ft_elements(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("select")
    selected = {}
    for seed in (0, 1):
        method = module.Select(module.SelectParams(**configured("half_ft_elements")), seed)
        run = toy.train(method, decay=DECAY, dtype=dtype)
        selected[seed] = {s.name: method.mask(s).numpy().reshape(s.shape) for s in run.attachment.shards}
        every = np.concatenate([mask.ravel() for mask in selected[seed].values()])
        assert abs(every.mean() - 0.5) < 4 * 0.5 / every.size**0.5, "selected share"
        for name, mask in selected[seed].items():
            assert (run.weights[name][~mask] == run.pretrained[name][~mask]).all(), f"{name} not restored"
        optimizer = AdamW(run.rates, DECAY)
        expected = select.train_static(run.pretrained, run.gradients, optimizer, selected[seed])
        compare(run, expected, optimizer, tolerance)
    one, other = (selected[seed]["layers.0.self_attn.q_proj.weight"] for seed in (0, 1))
    assert (one != other).any() and (one != selected[0]["layers.0.self_attn.k_proj.weight"]).any()


def check_spider_magnitude(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("select")
    for share in (0.5, 0.3, 1.0):
        params = configured("spider_magnitude") | ({} if share == 0.5 else {"share": share})
        run = toy.train(module.Select(module.SelectParams(**params), 0), decay=DECAY, dtype=dtype)
        selected = {
            name: select.small(value, {0.5: value.size // 2, 0.3: value.size * 7 // 10, 1.0: 0}[share])
            for name, value in run.pretrained.items()
        }
        optimizer = AdamW(run.rates, DECAY)
        expected = select.train_static(run.pretrained, run.gradients, optimizer, selected)
        compare(run, expected, optimizer, tolerance)


def check_spider_gradient(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("select")
    for share in (0.5, 0.2, 1.0):
        params = configured("spider_gradient") | ({} if share == 0.5 else {"share": share})
        run = toy.train(module.Select(module.SelectParams(**params), 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        expected = select.train_gradient(run.pretrained, run.gradients, optimizer, share, momentum=0.85)
        compare(run, expected, optimizer, tolerance)


def check_gps(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("sparse")
    assert module.GpsParams(**configured("gps")) == module.GpsParams() == module.GpsParams(count=1, steps=1)
    for count, steps in ((1, 1), (3, 1), (2, 3), (40, 2)):
        method = module.Gps(module.GpsParams(count, steps), 0)
        run = toy.train(method, decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        expected = sparse.train_first(
            run.pretrained, run.gradients, optimizer, steps, lambda total, count=count: sparse.gps(total, count)
        )
        compare(run, expected, optimizer, tolerance)


def check_spu(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("sparse")
    assert module.SpuParams(**configured("spu")) == module.SpuParams() == module.SpuParams(share=0.1, steps=1)
    for share, steps in ((0.1, 1), (0.3, 1), (0.1, 3), (1.0, 2)):
        run = toy.train(module.Spu(module.SpuParams(share, steps), 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        expected = sparse.train_first(
            run.pretrained, run.gradients, optimizer, steps, lambda total, share=share: sparse.spu(total, share)
        )
        compare(run, expected, optimizer, tolerance)


def check_gmt(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("sparse")
    assert module.GmtParams(**configured("gmt")) == module.GmtParams() == module.GmtParams(share=0.2)
    for share in (0.2, 0.5, 1.0):
        run = toy.train(module.Gmt(module.GmtParams(share), 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        compare(run, sparse.train_gmt(run.pretrained, run.gradients, optimizer, share), optimizer, tolerance)


def check_mofo(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("sparse")
    assert module.MofoParams(**configured("mofo")) == module.MofoParams() == module.MofoParams(0.15, 0.9)
    for share in (0.15, 0.5, 1.0):
        run = toy.train(module.Mofo(module.MofoParams(share), 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        compare(run, sparse.train_mofo(run.pretrained, run.gradients, optimizer, share), optimizer, tolerance)


def check_largest_weights(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("sparse")
    for share in (0.5, 0.3, 1.0):
        params = configured("largest_weights") | ({} if share == 0.5 else {"share": share})
        run = toy.train(module.LargestWeights(module.LargestWeightsParams(**params), 0), decay=DECAY, dtype=dtype)
        counts = {0.5: lambda n: n // 2, 0.3: lambda n: n * 3 // 10, 1.0: lambda n: n}
        selected = {name: select.largest(value, counts[share](value.size)) for name, value in run.pretrained.items()}
        optimizer = AdamW(run.rates, DECAY)
        expected = select.train_static(run.pretrained, run.gradients, optimizer, selected)
        compare(run, expected, optimizer, tolerance)


def check_model_dowser(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("model_dowser")
    assert module.ModelDowserParams(**configured("model_dowser")) == module.ModelDowserParams()
    assert module.ModelDowserParams() == module.ModelDowserParams(share=0.1, samples=64, probes=8)
    for share in (0.1, 0.5):
        run = toy.train(module.ModelDowser(module.ModelDowserParams(share), 0), decay=DECAY, dtype=dtype)
        base = {name: torch.from_numpy(value).to(dtype) for name, value in run.pretrained.items()}
        samples = [toy.arrays(sample) for sample in toy.sample_gradients(base, matrices=True)]
        selected = model_dowser.chosen(run.pretrained, samples, share)
        optimizer = AdamW(run.rates, DECAY)
        expected = select.train_static(run.pretrained, run.gradients, optimizer, selected)
        compare(run, expected, optimizer, tolerance)


def random_weights(seed: int, shapes: dict[str, tuple[int, ...]]) -> tuple[dict, dict]:
    """Return (pretrained, fine-tuned) float32 tensors whose change is nowhere 0."""
    source = torch.Generator().manual_seed(seed)
    pretrained = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    finetuned = {
        name: value + 0.1 * torch.randn(value.shape, generator=source) for name, value in pretrained.items()
    }
    return pretrained, finetuned


def check_dare(load: Load = original) -> None:
    module = load("dare")
    shapes = {
        "layers.0.mlp.up_proj.weight": (40, 50),
        "layers.1.mlp.up_proj.weight": (40, 50),
        "norm": (400,),
    }
    pretrained, finetuned = random_weights(0, shapes)
    kept = {}
    for seed in (0, 1):
        method = module.Dare(module.DareParams(), seed)
        result = method.finish(finetuned, pretrained, None)
        assert list(result) == list(finetuned)
        for name, value in result.items():
            assert value.dtype == torch.float32
            kept[seed, name] = mask = (value != pretrained[name]).numpy()
            assert abs(mask.mean() - 0.1) < 4 * (0.1 * 0.9 / mask.size) ** 0.5, "kept share"
            expected = dare.merge(
                pretrained[name].double().numpy(), finetuned[name].double().numpy(), mask, keep=0.1
            )
            np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-5)
        backwards = method.finish(dict(reversed(finetuned.items())), pretrained, None)
        assert all(torch.equal(backwards[name], result[name]) for name in result), "depends on tensor order"
    first, second, _ = shapes
    for one, other in (((0, first), (0, second)), ((0, first), (1, first))):
        both = (kept[one] & kept[other]).mean()
        assert both < 0.03, "two tensors or two seeds share their draw"


POSTHOC = {"layers.0.mlp.up_proj.weight": (40, 50), "norm": (401,), "one": (1,)}


def double(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in tensors.items()}


def check_transform(result: dict, finetuned: dict, expected: Callable[[str], np.ndarray]) -> None:
    assert list(result) == list(finetuned)
    for name, value in result.items():
        assert value.dtype == torch.float32 and value.shape == finetuned[name].shape
        np.testing.assert_allclose(value.numpy(), expected(name), rtol=0, atol=1e-5, err_msg=name)


def check_dare_drop_only(load: Load = original) -> None:
    module = load("dare")
    pretrained, finetuned = random_weights(0, POSTHOC)
    result = module.Dare(module.DareParams(**configured("dare_drop_only")), 3).finish(
        finetuned, pretrained, None
    )
    kept = {name: (value != pretrained[name]).numpy() for name, value in result.items()}
    whole = np.concatenate([mask.ravel() for mask in kept.values()])
    assert abs(whole.mean() - 0.1) < 4 * (0.1 * 0.9 / whole.size) ** 0.5, "kept share"
    p, f = double(pretrained), double(finetuned)
    check_transform(result, finetuned, lambda name: dare.drop_only(p[name], f[name], kept[name]))
    scaled = module.Dare(module.DareParams(), 3).finish(finetuned, pretrained, None)
    assert all(((scaled[n] != pretrained[n]).numpy() == kept[n]).all() for n in kept), "not DARE's own draw"


def check_dare_magnitude(load: Load = original) -> None:
    module = load("dare")
    pretrained, finetuned = random_weights(0, POSTHOC)
    p, f = double(pretrained), double(finetuned)
    for keep in (0.1, 0.25, 1.0):
        params = configured("dare_magnitude") | ({} if keep == 0.1 else {"keep": keep})
        result = module.Dare(module.DareParams(**params), 3).finish(finetuned, pretrained, None)
        check_transform(result, finetuned, lambda name, keep=keep: dare.magnitude(p[name], f[name], keep))


def check_wise_ft(load: Load = original) -> None:
    module = load("wise_ft")
    pretrained, finetuned = random_weights(0, POSTHOC)
    p, f = double(pretrained), double(finetuned)
    assert (
        module.WiseFTParams(**configured("wise_ft")) == module.WiseFTParams()
        and module.WiseFTParams().alpha == 0.5
    )
    for alpha in (0.5, 0.2, 0.9):
        result = module.WiseFT(module.WiseFTParams(alpha=alpha), 0).finish(finetuned, pretrained, None)
        check_transform(
            result, finetuned, lambda name, alpha=alpha: wise_ft.interpolate(p[name], f[name], alpha)
        )
    for alpha, exact in ((0.0, pretrained), (1.0, finetuned)):
        result = module.WiseFT(module.WiseFTParams(alpha=alpha), 0).finish(finetuned, pretrained, None)
        assert all(torch.equal(result[name], exact[name]) for name in exact)


def seeds(count: int) -> tuple[dict, list[dict]]:
    """Base weights, and those of several runs from it."""
    pretrained, first = random_weights(0, POSTHOC)
    source = torch.Generator().manual_seed(8)
    others = [{name: value + 0.3 * torch.randn(value.shape, generator=source) for name, value in pretrained.items()}
              for _ in range(count - 1)]
    return pretrained, [first, *others]


def check_soup(load: Load = original) -> None:
    module = load("soup")
    assert module.SoupSeedsParams(**configured("soup")) == module.SoupSeedsParams() == module.SoupSeedsParams(1.0, 3)
    pretrained, tuned = seeds(3)
    p, f = double(pretrained), [double(one) for one in tuned]
    for count, alpha in ((3, 1.0), (2, 0.4), (3, 0.7)):
        params = module.SoupSeedsParams(members=count, alpha=alpha)
        result = module.Soup(params, 0).combine(tuned[:count], pretrained)
        check_transform(result, tuned[0], lambda name, count=count, alpha=alpha: soup.average(
            p[name], [one[name] for one in f[:count]], alpha,
        ))
    result = module.Soup(module.SoupSeedsParams(), 0).combine(tuned, pretrained)
    check_transform(result, tuned[0], lambda name: soup.mergekit_linear([one[name] for one in f], [1.0, 1.0, 1.0]))
    base = module.Soup(module.SoupSeedsParams(alpha=0.0), 0).combine(tuned, pretrained)
    assert all(torch.equal(base[name], pretrained[name]) for name in base)


def check_ties(load: Load = original) -> None:
    module = load("ties")
    params = module.TiesSeedsParams(**configured("ties"))
    assert params == module.TiesSeedsParams() and (params.keep, params.scale, params.members) == (0.2, 1.0, 3)
    pretrained, tuned = seeds(3)
    p, f = double(pretrained), [double(one) for one in tuned]
    for variant in ("released", "mergekit"):
        for keep, scale in ((0.2, 1.0), (0.5, 0.6)):
            params = module.TiesSeedsParams(keep, scale, variant)
            result = module.Ties(params, 0).combine(tuned, pretrained)
            expected = getattr(ties, variant)(p, f, keep, scale)
            check_transform(result, tuned[0], expected.__getitem__)


def flat(values: dict) -> np.ndarray:
    return np.concatenate([value.ravel() for value in values.values()])


def check_fisher(load: Load = original) -> None:
    module = load("fisher")
    assert module.FisherParams(**configured("fisher")) == module.FisherParams()
    pretrained, finetuned = random_weights(0, POSTHOC)
    p, f = double(pretrained), double(finetuned)
    tuned = fisher.diagonal([3.0 * np.sin(7 * flat(f) + shift) ** 3 for shift in (0.0, 0.4, 1.1)])
    base = fisher.diagonal([0.01 * np.cos(5 * flat(p) + shift) for shift in (0.2, 0.9)])
    ends = np.cumsum([value.size for value in p.values()])[:-1]

    def weights(alpha: float) -> dict:
        params = module.FisherParams(alpha=alpha)
        return module.Fisher(params, 0).finish(finetuned, pretrained, FixedInputs([], {}))

    for alpha in (0.5, 0.2, 0.9):
        merged = dict(zip(p, np.split(fisher.merge(flat(p), flat(f), base, tuned, alpha), ends), strict=True))
        check_transform(weights(alpha), finetuned, lambda name, m=merged: m[name].reshape(p[name].shape))
        # With Fishers far above its floor, MergeLM's arithmetic gives the same; scaling a Fisher changes nothing.
        theirs = fisher.mergelm([flat(p), flat(f)], [1e9 * base, 1e6 * tuned], [1 - alpha, alpha], floor=0.0)
        np.testing.assert_allclose(theirs, flat(merged), rtol=0, atol=1e-3)
    for alpha, exact in ((0.0, pretrained), (1.0, finetuned)):
        result = weights(alpha)
        assert all(torch.equal(result[name], exact[name]) for name in exact)


def check_wise_ft_tensors(load: Load = original) -> None:
    module = load("wise_ft_tensors")
    defaults = module.WiseFTTensorsParams()
    assert module.WiseFTTensorsParams(**configured("wise_ft_tensors")) == defaults
    assert (defaults.share, defaults.samples) == (0.5, 128)
    pretrained, finetuned = random_weights(0, POSTHOC)
    p, f = double(pretrained), double(finetuned)
    for share, steps, rate in ((0.5, 10, 0.5), (0.0, 1, 0.5), (1.0, 3, 0.5), (0.2, 4, 3.0)):
        params = module.WiseFTTensorsParams(share, steps, rate)
        result = module.WiseFTTensors(params, 0).finish(finetuned, pretrained, FixedInputs([], {}))
        expected, alphas = wise_ft.per_tensor(
            p, f, lambda at: {name: np.sin(7 * value) for name, value in at.items()},
            lambda at: {name: 0.5 * np.cos(3 * value) for name, value in at.items()},
            params.share, params.steps, params.rate,
        )
        assert max(alphas) - min(alphas) > 0.05, "tensors differ"
        check_transform(result, finetuned, expected.__getitem__)


LAYERED = {
    "layers.10.mlp.up_proj.weight": (6, 5),  # the tenth layer sorts before the second as text
    "layers.2.mlp.up_proj.weight": (6, 5),
    "layers.2.norm.weight": (5,),
    "layers.7.mlp.up_proj.weight": (6, 5),
    "projector.layers.2.weight": (4, 4),  # in no layer, in spite of its name
}
DEPTHS = {"layers.2": 0, "layers.7": 1, "layers.10": 2}


def check_lines(load: Load = original) -> None:
    module = load("lines")
    assert module.LinesParams(**configured("lines")) == module.LinesParams()
    pretrained, finetuned = random_weights(0, LAYERED)
    p, f = double(pretrained), double(finetuned)
    for alpha in (0.5, 0.1):
        result = module.Lines(module.LinesParams(alpha=alpha), 0).finish(finetuned, pretrained, None)
        check_transform(result, finetuned, lambda name, alpha=alpha: lines.scale(
            p[name], f[name], DEPTHS.get(".".join(name.split(".")[:2])), 3, alpha,
        ))
    # The last layer keeps Full FT's weights; at alpha 0 the first layer and the projector are the base's.
    result = module.Lines(module.LinesParams(alpha=0.0), 0).finish(finetuned, pretrained, None)
    assert torch.equal(result["layers.10.mlp.up_proj.weight"], finetuned["layers.10.mlp.up_proj.weight"])
    for name in ("layers.2.norm.weight", "projector.layers.2.weight"):
        assert torch.equal(result[name], pretrained[name])
    whole = module.Lines(module.LinesParams(alpha=1.0), 0).finish(finetuned, pretrained, None)
    assert all(torch.equal(whole[name], finetuned[name]) for name in finetuned)
    # Two stacks, and a stack of one layer, whose layer is the last.
    two = ["tower.layers.0.a.weight", "tower.layers.4.a.weight", "layers.1.a.weight", "head.weight"]
    assert list(module.depths(two).values()) == [0.0, 1.0, 1.0, 0.0]


INTRUDED = {"layers.0.mlp.up_proj.weight": (24, 16), "layers.0.self_attn.q_proj.weight": (12, 20), "norm": (9,)}


def intruded() -> tuple[dict, dict]:
    """Weights with a few large directions that are new, and with small random changes."""
    pretrained, finetuned = random_weights(4, INTRUDED)
    source = torch.Generator().manual_seed(5)
    for name, shape in INTRUDED.items():
        finetuned[name] = pretrained[name] + 0.01 * torch.randn(shape, generator=source)
        if len(shape) == 2:
            for size in (12.0, 7.0, 4.0):
                one, two = (torch.randn(n, generator=source) for n in shape)
                finetuned[name] += size * torch.outer(one / one.norm(), two / two.norm())
    return pretrained, finetuned


def check_intruder(load: Load = original) -> None:
    module = load("intruder")
    params = module.IntruderParams(**configured("intruder"))
    assert params == module.IntruderParams() and (params.top, params.threshold, params.scale) == (10, 0.5, 0.75)
    pretrained, finetuned = intruded()
    p, f = double(pretrained), double(finetuned)
    for top, threshold, scale in ((10, 0.6, 0.75), (10, 0.68, 0.0), (2, 0.68, 0.3), (1, 0.9, 0.5)):
        params = module.IntruderParams(top, threshold, scale)
        result = module.Intruder(params, 0).finish(finetuned, pretrained, None)
        changed = [name for name in finetuned if not torch.equal(result[name], finetuned[name])]
        assert changed == list(INTRUDED)[:2], "every matrix has an intruder, the vector has none"
        check_transform(result, finetuned, lambda name, params=params: (
            intruder.reduce(p[name], f[name], params.top, params.threshold, params.scale)
            if p[name].ndim == 2 else f[name]
        ))
    # A change along the pretrained directions is none.
    grown = {name: value * 1.5 for name, value in pretrained.items()}
    result = module.Intruder(module.IntruderParams(scale=0.0), 0).finish(grown, pretrained, None)
    assert all(torch.equal(result[name], grown[name]) and result[name] is not grown[name] for name in grown)


def check_spider_posthoc(load: Load = original) -> None:
    module = load("spider_posthoc")
    pretrained, finetuned = random_weights(
        0, POSTHOC | {"unchanged": (30,), "constant": (30,), "zero": (30,)}
    )
    finetuned["unchanged"] = pretrained["unchanged"].clone()
    pretrained["constant"].fill_(0.7)
    pretrained["zero"].zero_()
    p, f = double(pretrained), double(finetuned)
    result = module.SpiderPosthoc(None, 0).finish(finetuned, pretrained, None)
    check_transform(result, finetuned, lambda name: spider.posthoc(p[name], f[name]))


class Waves:
    """Other data than `FixedInputs`, whose loss has other and much smaller gradients."""

    def gradient(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: 0.5 * torch.cos(3 * value) for name, value in weights.items()}

    def sample_gradients(self, weights: dict[str, torch.Tensor]):
        for shift in (0.2, 0.9):
            yield {name: 0.01 * torch.cos(5 * value + shift) for name, value in weights.items()}


class FixedInputs:
    """Calibration whose inputs are given, and depend on the first matrix of its own and the last block."""

    def __init__(self, blocks: list[list[str]], columns: dict[str, int]) -> None:
        source = torch.Generator().manual_seed(9)
        self.blocks = blocks
        self.generic = Waves()
        self.inputs = {}
        for name, d in columns.items():
            mixing = torch.randn(d, d, generator=source, dtype=torch.float64) / 20
            self.inputs[name] = [
                torch.randn(64, d, generator=source, dtype=torch.float64) @ mixing for _ in range(2)
            ]
            self.inputs[name][0][:, 1] = self.inputs[name][1][:, 1] = 0  # an input that is never active

    def gradient(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of a loss that waves, so that some changes help and others harm."""
        return {name: torch.sin(7 * value) for name, value in weights.items()}

    def sample_gradients(self, weights: dict[str, torch.Tensor]):
        for shift in (0.0, 0.4, 1.1):
            yield {name: 3.0 * torch.sin(7 * value + shift) ** 3 for name, value in weights.items()}

    def gram(self, weights: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
        result = {}
        for name in names:
            block = next(i for i, block in enumerate(self.blocks) if name in block)
            amount = weights[self.blocks[block - 1][0]].double().sum()
            amount += weights[self.blocks[block][0]].double().sum()
            x = self.inputs[name][0] + amount * self.inputs[name][1]
            result[name] = 2 * x.T @ x / len(x)
        return result


def check_grafting_mask(load: Load = original) -> None:
    module = load("grafting_mask")
    pretrained, finetuned = random_weights(0, POSTHOC)
    params = module.GraftingMaskParams(**configured("grafting_mask"))
    assert params == module.GraftingMaskParams()
    assert (params.share, params.bias, params.samples) == (0.1, 10.0, 128)
    # Of which the third lets more than a third cross, and the last takes everything that helps.
    for changed in (
        {}, {"share": 0.3, "steps": 3}, {"share": 0.3, "rate": 5.0}, {"share": 1.0, "bias": 4.0, "rate": 2.0},
    ):
        params = module.GraftingMaskParams(**changed)
        result = module.GraftingMask(params, 0).finish(finetuned, pretrained, FixedInputs([], {}))
        before, after = (
            np.concatenate([value.ravel() for value in double(weights).values()]) for weights in (pretrained, finetuned)
        )
        flat = grafting_mask.train(
            before, after,
            lambda weights: np.sin(7 * weights), params.share, params.steps, params.rate, params.bias,
        )
        ends = np.cumsum([value.numel() for value in pretrained.values()])
        expected = dict(zip(pretrained, np.split(flat, ends[:-1]), strict=True))
        check_transform(result, finetuned, lambda name, e=expected: e[name].reshape(pretrained[name].shape))


TAILORED = {
    "projector.linear_1.weight": (7, 6),
    "projector.linear_1.bias": (7,),
    "layers.0.self_attn.q_proj.weight": (9, 11),
    "layers.0.mlp.up_proj.weight": (10, 11),
    "layers.0.input_layernorm.weight": (11,),
    "layers.1.mlp.down_proj.weight": (6, 13),
}


def check_tailored(module: ModuleType, params: Any, projector: bool = False, **variant) -> None:
    """Compare one setting; projector: it keeps its fine-tuned weights."""
    shapes = TAILORED
    blocks = [[name for name in shapes if name.startswith(prefix) and len(shapes[name]) == 2]
              for prefix in ("projector", "layers.0", "layers.1")]
    pretrained, finetuned = random_weights(1, shapes)
    calibration = FixedInputs(blocks, {name: shape[1] for name, shape in shapes.items() if len(shape) == 2})
    untouched = {name: value.clone() for name, value in finetuned.items()}
    result = module.Tailor(params, 0).finish(finetuned, pretrained, calibration)
    assert all(torch.equal(finetuned[name], untouched[name]) for name in shapes), "argument changed"
    expected = {name: value.double() for name, value in finetuned.items()}
    if not projector:
        expected["projector.linear_1.weight"] = pretrained["projector.linear_1.weight"].double()
    for block in blocks[1:]:
        grams = calibration.gram(expected, block)
        for name in block:
            value = tailor.patch(
                pretrained[name].double().numpy(), finetuned[name].double().numpy(), grams[name].numpy(),
                params.keep, params.salience, params.sensitivity, params.block, params.percdamp, **variant,
            )
            expected[name] = torch.from_numpy(value)
    for name in shapes:
        np.testing.assert_allclose(
            result[name].numpy(), expected[name].numpy(), rtol=0, atol=1e-5, err_msg=f"{name} {params}"
        )


def check_tailor(load: Load = original) -> None:
    module = load("tailor")
    defaults = module.TailorParams()
    assert (defaults.keep, defaults.salience, defaults.sensitivity) == (0.1, 0.5, 0.5)
    assert (defaults.block, defaults.percdamp, defaults.samples) == (128, 0.01, 128)
    for changed in ({}, {"block": 4, "keep": 0.3}, {"block": 5, "salience": 0.8, "sensitivity": 0.2}):
        check_tailored(module, module.TailorParams(**changed))


def check_tailor_variant(method: str, projector: bool = False, **variant) -> Callable:
    def check(load: Load = original) -> None:
        module = load("tailor")
        for changed in ({}, {"block": 4, "keep": 0.3}):
            params = module.TailorParams(**(configured(method) | changed))
            check_tailored(module, params, projector, **variant)

    return check


CHECKS = {
    "full_ft": check_full_ft,
    "spider": check_spider,
    "l2_reg": check_l2_reg,
    "grafting": check_grafting,
    "half_ft": check_half_ft,
    "dare": check_dare,
    "tailor": check_tailor,
    "l2_reg_mean": check_penalty_mean("l2_reg_mean", penalties.l2_gradient, 1e-3),
    "l2_reg_two_step": check_penalty_mean("l2_reg_two_step", penalties.l2_gradient, 1e-3),
    "l2_reg_scaled": check_penalty_scaled("l2_reg_scaled", penalties.l2_gradient, 1e-3),
    "grafting_mean": check_penalty_mean("grafting_mean", penalties.l1_gradient, 1e-6),
    "grafting_two_step": check_penalty_mean("grafting_two_step", penalties.l1_gradient, 1e-6),
    "grafting_scaled": check_penalty_scaled("grafting_scaled", penalties.l1_gradient, 1e-6),
    "ewc": check_ewc,
    "grafting_mask": check_grafting_mask,
    "half_ft_step": check_half_ft_step,
    "half_ft_elements": check_half_ft_elements,
    "spider_magnitude": check_spider_magnitude,
    "spider_gradient": check_spider_gradient,
    "spider_idm": check_spider_variant("spider_idm", hard=True),
    "spider_code": check_spider_variant("spider_code", total=True),
    "spider_lag": check_spider_variant("spider_lag", total=True, lag=True),
    "spider_posthoc": check_spider_posthoc,
    "spider_instant": check_spider_variant("spider_instant", momentum=0.0),
    "spider_abs": check_spider_variant("spider_abs", absolute=True),
    "spider_global": check_spider_variant("spider_global"),
    "dare_drop_only": check_dare_drop_only,
    "dare_magnitude": check_dare_magnitude,
    "tailor_official": check_tailor_variant("tailor_official", sign=1.0, one_more=True),
    "tailor_no_compensation": check_tailor_variant("tailor_no_compensation", sign=0.0),
    "tailor_change_sensitivity": check_tailor_variant("tailor_change_sensitivity", of_change=True),
    "tailor_keep_projector": check_tailor_variant("tailor_keep_projector", projector=True),
    "wise_ft": check_wise_ft,
    "wise_ft_tensors": check_wise_ft_tensors,
    "fisher": check_fisher,
    "soup": check_soup,
    "ties": check_ties,
    "lines": check_lines,
    "intruder": check_intruder,
    "gps": check_gps,
    "spu": check_spu,
    "gmt": check_gmt,
    "mofo": check_mofo,
    "model_dowser": check_model_dowser,
    "largest_weights": check_largest_weights,
}
