"""From lines of raw data to rows of the table: medians, ratios within a round, and whether a goal is kept. Pure."""

import math
import statistics
from dataclasses import dataclass

# Requests that come one by one wake everybody for each; the batches of a saturated proxy do not. So at half of the load that
# saturates it, a processor may have no time left, and what is measured is its queue.
BUSY_MAX = 0.5

KEPT, MISSED, DIVIDED = "kept", "missed", "open: share and beats differ"


@dataclass(frozen=True)
class Result:
    """A row of the table: figures are medians; ratios are medians of those within each round."""

    scenario: str
    row: object
    runs: int
    value: float
    other: float
    ratios: tuple  # (by share, by beats) for costs and volumes, else (of the figures,)
    least: float
    most: float
    marked: int
    verdict: str


def calm(rate, busiest):
    """The rate, lowered where at its share the busiest processor has less than half of its time left."""
    return rate * min(1.0, BUSY_MAX / busiest)


def by_round(lines, scenario, variant):
    return {line["run"]: line for line in lines if line["scenario"] == scenario and line["variant"] == variant}


def pairs(lines, scenario, row):
    """Lines of the same round; those disturbed by other processes are left out where there are others."""
    subject, against = by_round(lines, scenario, row.subject), by_round(lines, scenario, row.against)
    found = [(subject[run], against[run]) for run in sorted(subject) if run in against]
    quiet = [pair for pair in found if not any(line["marked"] for line in pair)]
    return quiet or found


def ratio(form, subject, against, figure):
    """How the subject compares, one number for each way to compare."""
    if form == "cost":
        return tuple(subject[way] / against[way] for way in ("share", "beats"))
    if form == "volume":
        return tuple(against[way] / subject[way] for way in ("share", "beats"))
    if form == "added":
        return ((subject[figure] - against[figure]) / subject["rtt_us"],)
    return (subject[figure] / against[figure] if against[figure] else math.nan,)


def verdict(goal, value, ratios):
    if goal is None:
        return ""
    if goal.value_max is not None:
        kept = [value <= goal.value_max]
    elif goal.ratio_max is not None:
        kept = [one <= goal.ratio_max for one in ratios]
    else:
        kept = [one >= goal.ratio_min for one in ratios]
    if all(kept):
        return KEPT
    return DIVIDED if any(kept) else MISSED


def result(lines, scenario, row):
    """The row's result, or None where it was not measured."""
    found = pairs(lines, scenario, row)
    if not found:
        return None
    figure = row.figure
    value, other = (statistics.median(pair[side][figure] for pair in found) for side in (0, 1))
    if row.form == "added":
        value = statistics.median(subject[figure] - against[figure] for subject, against in found)
        other = statistics.median(subject["rtt_us"] for subject, _ in found)
    each = [ratio(row.form, *pair, figure) for pair in found]
    ratios = tuple(statistics.median(way) for way in zip(*each))
    last = [one[-1] for one in each]
    marked = sum(any(line["marked"] for line in pair) for pair in found)
    return Result(scenario, row, len(found), value, other, ratios, min(last), max(last), marked,
                  verdict(row.goal, value, ratios))


def results(lines, scenarios):
    found = [result(lines, scenario.name, row) for scenario in scenarios for row in scenario.rows]
    return [one for one in found if one is not None]
