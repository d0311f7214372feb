"""`audit published`: check the arithmetic of the paper's tables, from results/published/*.csv alone.

Sums are exact decimals. A cell counts as reproduced if rounding half up to two places gives the printed value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from benchmark.paper import numbers
from eval.averages import a_s, h_average, o_average

UPSTREAM = ("okvqa", "textvqa", "ocrvqa", "gqa")
CENT = Decimal("0.01")

# Number of items that a column may have been measured on: first the number we use, then alternatives.
CANDIDATES: dict[str, tuple[tuple[int, str], ...]] = {
    "ocrvqa": ((2000, "the paper's sample"), (1000, "half of it"), (5000, ""), (100037, "the whole test set")),
    "iconqa": (
        (6316, "choose_txt test"), (6315, "one less"), (3638, "fill_in_blank test"), (11535, "choose_img test"),
        (5000, ""), (2000, ""),
    ),
    "scienceqa": ((4241, "the whole test set"), (2017, "its items with an image"), (2224, "those without"), (2000, "")),
    "gqa": ((12578, "testdev balanced"), (5000, "")),
    "okvqa": ((5046, "val2014, if scores were 0 or 1"),),
    "textvqa": ((5000, "val, if scores were 0 or 1"),),
}
LARGEST = 20000


@dataclass(frozen=True)
class Row:
    """One row of Table 5 or 6 with its averages recomputed.

    Attributes:
        name: model, target, method.
        cells: the four upstream scores and A_T as printed.
        printed: A_S, H, O as printed.
        exact: A_S, H, O recomputed, unrounded.
    """

    name: tuple[str, str, str]
    cells: dict[str, Decimal]
    printed: dict[str, Decimal]
    exact: dict[str, Decimal]

    @property
    def agrees(self) -> bool:
        """Whether all three averages match the printed values."""
        return all(rounded(self.exact[key]) == self.printed[key] for key in self.printed)


def rounded(value: Decimal) -> Decimal:
    """Return a value rounded half up to two places."""
    return value.quantize(CENT, ROUND_HALF_UP)


def rows() -> list[Row]:
    """Return the 44 rows of Tables 5 and 6."""
    found = []
    for table in numbers.RESULT_TABLES:
        for key, part in numbers.load(table).groupby(["model", "target", "method"], sort=False):
            values = {metric: Decimal(value) for metric, value in zip(part.metric, part.value, strict=True)}
            source = a_s([values[name] for name in UPSTREAM])
            found.append(Row(
                key, {name: values[name] for name in (*UPSTREAM, "A_T")}, {k: values[k] for k in ("A_S", "H", "O")},
                {"A_S": source, "H": h_average(source, values["A_T"]), "O": o_average(source, values["A_T"])},
            ))
    return found


def arithmetic(row: Row) -> str:
    """Return a row's sums in a form that a reader can check."""
    cells, exact, printed = row.cells, row.exact, row.printed
    source = " + ".join(str(cells[name]) for name in UPSTREAM)

    def result(key: str) -> str:
        right = rounded(exact[key]) == printed[key]
        return f"{exact[key]:.4f} -> {rounded(exact[key])}, printed {printed[key]} {'ok' if right else 'DIFFERS'}"

    return (
        f"{' / '.join(row.name)}\n"
        f"  A_S = ({source}) / 4 = {result('A_S')}\n"
        f"  H   = 2 x {exact['A_S']} x {cells['A_T']} / ({exact['A_S']} + {cells['A_T']}) = {result('H')}\n"
        f"  O   = ({exact['A_S']} + {cells['A_T']}) / 2 = {result('O')}"
    )


# ---------------------------------------------------------------------------------------------------------------
# Cells that equal others


@dataclass(frozen=True)
class Twin:
    """A value that occurs twice in one column of one model, in rows of tuned methods.

    Attributes:
        model: as in the files.
        metric: column; A_T only within one target.
        value: as printed.
        places: "target / method" of each.
        reason: why the cells are suspect; empty if they may be equal by chance.
    """

    model: str
    metric: str
    value: str
    places: tuple[str, ...]
    reason: str


def twins() -> list[Twin]:
    """Return every value that occurs twice in a column of a model; only tuned rows count."""
    places: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for table in numbers.RESULT_TABLES:
        frame = numbers.load(table)
        columns = (frame[name] for name in ("model", "target", "method", "metric", "value", "suspect", "reason"))
        for model, target, method, metric, value, _, reason in zip(*columns, strict=True):
            if method == "Zero-shot" or metric not in (*UPSTREAM, "A_T"):
                continue
            column = f"A_T on {target}" if metric == "A_T" else metric
            places.setdefault((model, column, value), []).append((target, method, reason))
    return [
        Twin(model, metric, value, tuple(f"{target} / {method}" for target, method, _ in found),
             next((reason for _, _, reason in found if reason), ""))
        for (model, metric, value), found in places.items() if len(found) > 1
    ]


# ---------------------------------------------------------------------------------------------------------------
# Evaluated sizes


def fits(cell: int, size: int) -> bool:
    """Return whether, for some k, k correct answers of `size` print as this many hundredths of a point."""
    right = (cell * size + 5000) // 10000
    gap = 2 * abs(10000 * right - cell * size)
    if gap != size:
        return gap < size
    # Half-way between two values, the printed digit depends on the float, as it did for the authors.
    return any(f"{100 * k / size:.2f}" == f"{cell / 100:.2f}" for k in (right - 1, right))


def column(name: str) -> list[int]:
    """Return the distinct cells of a column in hundredths; for iconqa and scienceqa, their A_T."""
    metric, target = (name, None) if name in UPSTREAM else ("A_T", name)
    return sorted({
        int(row.cells[metric] * 100) for row in rows() if target is None or row.name[1] == target
    })


def sizes(name: str) -> tuple[int, list[tuple[int, str, int, float]], int | None]:
    """Return the evidence in a column's digits on the number of items.

    Args:
        name: an upstream set, iconqa or scienceqa.

    Returns:
        (distinct cells, (n, what, cells that fit, share of all values that would fit by chance) per candidate, the
        smallest n up to 20,000 that fits all cells).
    """
    cells = column(name)
    found = [
        (n, what, sum(fits(cell, n) for cell in cells), sum(fits(cell, n) for cell in range(10001)) / 10001)
        for n, what in CANDIDATES[name]
    ]
    smallest = next((n for n in range(1, LARGEST) if all(fits(cell, n) for cell in cells)), None)
    return len(cells), found, smallest


def verdict(name: str, total: int, found: Sequence[tuple[int, str, int, float]]) -> str:
    """Return the conclusion for a column from its first candidate."""
    n, what, matched, chance = found[0]
    if matched < total:
        return f"{n} refuted for scores of 0 or 1: the column is a soft score, whose digits fix no n"
    if chance > 0.99:
        return f"{n} ({what}) is consistent, as any large n is"
    return f"{n} ({what}); by chance all {total} cells would fit with probability {chance ** total:.0e}"


# ---------------------------------------------------------------------------------------------------------------


def lines() -> list[str]:
    """Return the lines of the whole audit."""
    every = rows()
    out = ["Tables 5 and 6: averages recomputed from the printed cells, A_S not rounded before H and O", ""]
    for row in every:
        out += arithmetic(row).split("\n")
    agree = sum(row.agrees for row in every)
    early = sum(
        rounded(h_average(rounded(row.exact["A_S"]), row.cells["A_T"])) == row.printed["H"] for row in every
    )
    out += ["", f"{agree} of {len(every)} rows agree in A_S, H and O. With A_S rounded first, H agrees in {early}."]
    out += _ablations()
    out += ["", "Equal cells of tuned methods in one column of one model"]
    found = twins()
    for twin in [twin for twin in found if twin.reason]:
        out.append(f"  {twin.model} {twin.metric} {twin.value}: {' = '.join(twin.places)}. SUSPECT: {twin.reason}")
    for twin in [twin for twin in found if not twin.reason]:
        out.append(f"  {twin.model} {twin.metric} {twin.value}: {' = '.join(twin.places)}. May be chance.")
    out += ["", "Sizes of the evaluated sets, from the printed digits (k of n right prints as 100 k / n)"]
    for name in CANDIDATES:
        total, sized, smallest = sizes(name)
        shown = f", the smallest n that fits all is {smallest}" if smallest else ""
        out.append(f"  {name}: {total} distinct cells{shown}")
        for n, what, matched, chance in sized:
            about = f"n = {n}{f' ({what})' if what else ''}"
            out.append(f"    {about}: {matched} of {total} fit, a random value fits with probability {chance:.2f}")
        out.append(f"    verdict: {verdict(name, total, sized)}")
    return out


def _ablations() -> list[str]:
    """Return the checks of Tables 2 to 4, whose A_S are printed with only two places."""
    out = []
    for name in ("table3", "table4"):
        frame = numbers.load(name)
        cells = list(zip(frame.A_S, frame.A_T, frame.H, strict=True))
        near = sum(
            abs(h_average(Decimal(source), Decimal(target)) - Decimal(h)) <= Decimal("0.011")
            for source, target, h in cells
        )
        out.append(f"{name.capitalize()}: {near} of {len(cells)} H follow from the printed averages within rounding.")
    frame = numbers.load("table2")
    same = sum(
        (published := numbers.lookup("vila1.5-3b", "flickr30k", method, "H")) is not None
        and published.value == float(value)
        for method, value in zip(frame.method, frame.H_vila_flickr30k, strict=True)
    )
    out.append(f"Table2: {same} of {len(frame)} values are H of Table 5, VILA on Flickr30k.")
    return out


def main() -> int:
    """Print the audit; return 1 if a row contradicts its own arithmetic, else 0."""
    print("\n".join(lines()))
    return 0 if all(row.agrees for row in rows()) else 1
