import zlib

import numpy as np
import pytest

from benchmark.core.errors import UserError
from eval import stats
from eval.averages import h_average
from eval.score import ItemScore

UPSTREAM = ("okvqa", "textvqa", "ocrvqa", "gqa")
TARGET = "coco"
SIZES = {"okvqa": (12, 1), "textvqa": (10, 2), "ocrvqa": (8, 3), "gqa": (5, 4), "coco": (9, 1)}


Items = dict[str, dict[int, list[ItemScore]]]


def make_items(method_seed: int, seeds=(0, 1, 2), shift: float = 0.0) -> Items:
    """Return random item scores; `SIZES` gives groups and items per group."""
    random = np.random.default_rng(method_seed)
    return {
        dataset: {
            seed: [
                ItemScore(f"{group}-{item}", f"scene{group}", float(random.random() + shift), "")
                for group in range(groups)
                for item in range(1 + (group + per_group) % per_group)
            ]
            for seed in seeds
        }
        for dataset, (groups, per_group) in SIZES.items()
    }


def naive_draws(items, draws: int, seed: int) -> dict[str, list[float]]:
    """Resample by explicit loops over draws, seeds, groups and items."""
    seeds = sorted(items[TARGET])
    picks = np.random.default_rng([seed, zlib.crc32(b"training seeds"), *seeds])
    picked_seeds = picks.integers(0, len(seeds), size=(draws, len(seeds)))
    results = {name: [] for name in (*UPSTREAM, TARGET, *stats.AVERAGES)}
    picked_groups = {}
    for dataset in items:
        names = sorted({item.group for item in items[dataset][seeds[0]]})
        random = np.random.default_rng([seed, zlib.crc32(dataset.encode())])
        drawn = random.integers(0, len(names), size=(draws, len(names)))
        picked_groups[dataset] = [[names[index] for index in row] for row in drawn]
    for draw in range(draws):
        point = {}
        for dataset in items:
            seed_means = []
            for index in picked_seeds[draw]:
                scores = [
                    item.score
                    for group in picked_groups[dataset][draw]
                    for item in items[dataset][seeds[index]]
                    if item.group == group
                ]
                seed_means.append(100 * sum(scores) / len(scores))
            point[dataset] = sum(seed_means) / len(seed_means)
        point["A_S"] = sum(point[dataset] for dataset in UPSTREAM) / 4
        point["A_T"] = point[TARGET]
        point["H"] = h_average(point["A_S"], point["A_T"])
        point["O"] = (point["A_S"] + point["A_T"]) / 2
        for name, value in point.items():
            results[name].append(value)
    return results


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_draws_equal_a_naive_bootstrap(seeds):
    items = make_items(1, seeds)
    sample = stats.resample(items, TARGET, UPSTREAM, draws=60, seed=5)
    expected = naive_draws(items, draws=60, seed=5)
    assert sample.draws.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(sample.draws[name], values, rtol=1e-12)


def test_point_values_and_seed_values():
    items = make_items(1)
    sample = stats.resample(items, TARGET, UPSTREAM, draws=10)
    okvqa = [100 * np.mean([item.score for item in items["okvqa"][seed]]) for seed in (0, 1, 2)]
    assert sample.values["okvqa"] == pytest.approx(np.mean(okvqa))
    assert [sample.by_seed[seed]["okvqa"] for seed in (0, 1, 2)] == pytest.approx(okvqa)
    source = np.mean([sample.values[name] for name in UPSTREAM])
    assert sample.values["A_S"] == pytest.approx(source)
    assert sample.values["H"] == pytest.approx(h_average(source, sample.values["coco"]))
    assert sample.values["O"] == pytest.approx((source + sample.values["coco"]) / 2)
    one = sample.by_seed[2]
    assert one["H"] == pytest.approx(h_average(np.mean([one[name] for name in UPSTREAM]), one["coco"]))
    assert sample.n == {"okvqa": 12, "textvqa": 15, "ocrvqa": 15, "gqa": 11, "coco": 9}


def test_a_s_is_not_rounded_before_h():
    scores = {"okvqa": 0.4415, "textvqa": 0.4871, "ocrvqa": 0.6090, "gqa": 0.5297, "coco": 0.7015}
    items = {name: {0: [ItemScore("x", "x", score, "")]} for name, score in scores.items()}
    assert f"{stats.bootstrap(items, TARGET, UPSTREAM, draws=10)['H'].value:.2f}" == "59.52"


def test_intervals_cover_the_value_and_repeat_exactly():
    items = make_items(3)
    first = stats.bootstrap(items, TARGET, UPSTREAM, draws=300, seed=1)
    assert first == stats.bootstrap(items, TARGET, UPSTREAM, draws=300, seed=1)
    assert first != stats.bootstrap(items, TARGET, UPSTREAM, draws=300, seed=2)
    for interval in first.values():
        assert interval.low < interval.value < interval.high


def test_interval_has_the_binomial_width():
    """400 independent items at 30 %: standard error 2.29 points, 95 % interval about 2 x 1.96 x 2.29 wide."""
    items = [ItemScore(str(i), str(i), float(i < 120), "") for i in range(400)]
    interval = stats.dataset_interval("okvqa", {0: items})
    assert interval.value == pytest.approx(30)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.3 * 0.7 / 400), rel=0.07)


def test_items_of_one_image_widen_the_interval():
    """Ten equal items per image carry the information of one."""
    clustered = [ItemScore(str(i), str(i // 10), float(i // 10 < 12), "") for i in range(400)]
    single = [ItemScore(str(i), str(i), float(i < 12), "") for i in range(40)]
    wide, same = (stats.dataset_interval("okvqa", {0: items}) for items in (clustered, single))
    assert (wide.low, wide.high) == pytest.approx((same.low, same.high))


def test_dataset_interval_is_the_one_of_the_whole_sample():
    items = make_items(2)
    whole = stats.bootstrap(items, TARGET, UPSTREAM, draws=200)
    alone = stats.dataset_interval("gqa", items["gqa"], draws=200)
    assert (alone.value, alone.low, alone.high) == pytest.approx(
        (whole["gqa"].value, whole["gqa"].low, whole["gqa"].high)
    )


def test_order_of_items_and_datasets_does_not_matter():
    items = make_items(4)
    turned = {
        dataset: {seed: by_seed[seed][::-1] for seed in reversed(by_seed)}
        for dataset, by_seed in reversed(items.items())
    }
    first = stats.resample(items, TARGET, UPSTREAM, draws=50)
    second = stats.resample(turned, TARGET, UPSTREAM, draws=50)
    np.testing.assert_allclose(first.draws["H"], second.draws["H"], rtol=1e-12)


def test_paired_difference_uses_the_same_draws():
    """A method that is better by a constant is better in every draw, however noisy the items are."""
    base = stats.resample(make_items(6), TARGET, UPSTREAM, draws=400)
    better = stats.resample(make_items(6, shift=0.05), TARGET, UPSTREAM, draws=400)
    difference = stats.paired_difference(better, base, "A_S")
    assert difference.value == pytest.approx(5)
    assert (difference.low, difference.high) == pytest.approx((5, 5))
    assert difference.error == pytest.approx(0, abs=1e-9)
    assert difference.p == pytest.approx(2 / 401)
    opposite = stats.paired_difference(base, better, "A_S")
    assert (opposite.value, opposite.p) == (pytest.approx(-5), pytest.approx(2 / 401))


def test_no_difference_has_p_1():
    sample = stats.resample(make_items(6), TARGET, UPSTREAM, draws=100)
    same = stats.paired_difference(sample, sample, "H")
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_p_counts_draws_beyond_zero():
    one = stats.resample(make_items(6), TARGET, UPSTREAM, draws=400)
    two = stats.resample(make_items(7), TARGET, UPSTREAM, draws=400)
    difference = stats.paired_difference(one, two, "H")
    delta = one.draws["H"] - two.draws["H"]
    expected = 2 * (1 + min((delta <= 0).sum(), (delta >= 0).sum())) / 401
    assert difference.p == pytest.approx(expected)
    assert difference.error == pytest.approx(np.std(delta, ddof=1))
    assert 2 / 401 < difference.p < 1


def test_one_training_seed_can_be_compared_with_three():
    zero_shot = stats.resample(make_items(6, seeds=(0,)), TARGET, UPSTREAM, draws=50)
    tuned = stats.resample(make_items(7), TARGET, UPSTREAM, draws=50)
    difference = stats.paired_difference(tuned, zero_shot, "O")
    assert difference.low < difference.value < difference.high


def test_differences_need_the_same_items():
    items = make_items(6)
    other = make_items(6)
    other["gqa"] = {seed: part[:-1] for seed, part in other["gqa"].items()}
    left, right = (stats.resample(part, TARGET, UPSTREAM, draws=20) for part in (items, other))
    with pytest.raises(UserError, match="different items .*gqa"):
        stats.paired_difference(left, right, "H")
    with pytest.raises(UserError, match="one bootstrap seed"):
        stats.paired_difference(left, stats.resample(items, TARGET, UPSTREAM, draws=20, seed=1), "H")


def test_a_summary_over_a_part_is_refused():
    items = make_items(6)
    with pytest.raises(UserError, match="textvqa"):
        stats.resample({name: part for name, part in items.items() if name != "textvqa"}, TARGET, UPSTREAM)
    with pytest.raises(UserError, match="different training seeds"):
        stats.resample({**items, "coco": {0: items["coco"][0]}}, TARGET, UPSTREAM)
    with pytest.raises(UserError, match="different items of coco"):
        stats.resample({**items, "coco": {**items["coco"], 2: items["coco"][2][1:]}}, TARGET, UPSTREAM)
    with pytest.raises(UserError, match="No item scores for coco"):
        stats.resample({**items, "coco": {0: [], 1: [], 2: []}}, TARGET, UPSTREAM)


def test_h_is_zero_when_everything_is():
    items = {
        name: {0: [ItemScore(item.item_id, item.group, 0.0, "") for item in part[0]]}
        for name, part in make_items(1, seeds=(0,)).items()
    }
    assert stats.bootstrap(items, TARGET, UPSTREAM, draws=20)["H"] == stats.Interval(0, 0, 0)


def test_holm_example():
    """Holm (1979): the smallest p is multiplied by m, the next by m - 1, and the order is kept."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_smallest_resolvable_is_found_four_times_in_five():
    """If the true difference is the resolvable one, a two-sided 5 % test sees it in about 80 % of trials."""
    error = 1.3
    difference = stats.Difference(0.0, 0.0, 0.0, error, 1.0)
    resolvable = stats.smallest_resolvable([difference] * 3)
    observed = np.random.default_rng(0).normal(resolvable, error, size=20_000)
    assert np.mean(np.abs(observed) > 1.96 * error) == pytest.approx(0.8, abs=0.01)
    assert stats.smallest_resolvable([]) is None
