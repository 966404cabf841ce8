"""Does a published claim hold in our numbers? Computed from the seeds, never written by hand.

Two variants that are trained with the same seed see the same batches, and layers that both have start from the same
weights. So runs of one seed are pairs, and a claim is judged by the differences within each seed: by a 95 % t-interval
of their mean.

An interval never lies on one side of a difference of nothing. So a claim that one errs more than another fails, too,
where no difference that counts is left in the interval: by default the standard error of one test error, which other
test images would have changed as much.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HOLDS, FAILS, UNDECIDED, UNDERPOWERED = "holds", "does not hold at this scale", "not decided", "underpowered"


class Claim(NamedTuple):
    """That a sum of errors, or of another metric, each with its weight, lies between two bounds.

    text: the claim in words.
    contrast: weight of each variant's error, e.g. `{"no-7": 1, "full": -1}`: what removing layer 7 costs.
    above, below: the bounds, in points of error or in the unit of the metric.
    metric: what is summed, by its name in a run's result; "" for the error that the table compares.
    least: the least difference that counts, of a claim that the sum is above 0; None: the test error's standard error,
    and of another metric any difference.
    """

    text: str
    contrast: Mapping[str, float]
    above: float = -math.inf
    below: float = math.inf
    metric: str = ""
    least: float | None = None

    @property
    def formula(self) -> str:
        """The claim as a formula, e.g. `no-7 − full < 1`."""
        terms = [
            ("− " if weight < 0 else "+ ") + (f"{abs(weight):g} × " if abs(weight) != 1 else "") + name
            for name, weight in self.contrast.items()
        ]
        lower, upper = (f"{bound:g}".replace("-", "−") for bound in (self.above, self.below))
        return (
            (f"{self.metric}: " if self.metric else "")
            + (f"{lower} < " if math.isfinite(self.above) and math.isfinite(self.below) else "")
            + " ".join(terms).removeprefix("+ ")
            + (f" < {upper}" if math.isfinite(self.below) else f" > {lower}")
        )


def interval(differences: Sequence[float], *, resolution: float = 0.0) -> tuple[float, float, float]:
    """Mean and 95 % t-interval (mean, low, high) of paired differences; infinitely wide for fewer than two.

    resolution: the least standard deviation that is believed. Errors come in steps of one test image, so that a few
    seeds may agree by chance.
    """
    n = len(differences)
    mean = math.fsum(differences) / n if n else math.nan
    if n < 2:
        return mean, -math.inf, math.inf
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * max(deviation, resolution) / math.sqrt(n)
    return mean, mean - half, mean + half


def judge(
    claims: Sequence[Claim],
    errors: Mapping[str, Mapping[int, float]],
    *,
    reference: str,
    bar: float,
    tested: int | None = None,
    published: Mapping[str, float | None] | None = None,
    further: Mapping[str, Mapping[str, Mapping[int, float]]] | None = None,
) -> dict[str, Any]:
    """The verdict on all claims together and on each, as plain data for `results.json`.

    errors: variant -> seed -> test error in %. reference: the variant whose mean error must not exceed `bar`, else the
    run and every claim are "underpowered". tested: of how many images each test error is: they say in what steps it
    comes, and what difference counts. published: the paper's error of each variant, if any. further: other metrics that
    claims name, each as `errors`.

    All claims hold: "holds". One does not: "does not hold at this scale". Else "not decided".
    """
    seeds = errors.get(reference, {}).values()
    error = math.fsum(seeds) / len(seeds) if seeds else math.nan
    resolution = 100 / tested if tested else 0.0
    least = math.sqrt(max(0.0, error * (100 - error)) / tested) if tested and seeds else 0.0
    rows = [
        _judge_one(claim, (further or {})[claim.metric], 0.0, 0.0, {})
        if claim.metric
        else _judge_one(claim, errors, resolution, least, published or {})
        for claim in claims
    ]
    counts = Counter(row["verdict"] for row in rows)
    if not seeds:
        verdict, reason = UNDECIDED, f"{reference}, by which the training is judged, was not run"
    else:
        reason = f"{reference} reached {error:.2f} % error (bar: {bar:g} %)"
        if not error <= bar:
            verdict, rows = UNDERPOWERED, [{**row, "verdict": UNDERPOWERED} for row in rows]
        else:
            verdict = FAILS if counts[FAILS] else HOLDS if 0 < counts[HOLDS] == len(rows) else UNDECIDED
            parts = {"holding": counts[HOLDS], "failing": counts[FAILS], "undecided": counts[UNDECIDED]}
            reason = f"of {len(rows)} claims: {', '.join(f'{n} {what}' for what, n in parts.items() if n)}; {reason}"
            reason += f"; less than {least:.2f} points are no difference" if least else ""
    return {"verdict": verdict, "reason": reason, "claims": rows}


def _judge_one(
    claim: Claim, errors, resolution: float, least: float, published: Mapping[str, float | None]
) -> dict[str, Any]:
    least = least if claim.least is None else claim.least
    runs = [errors.get(name, {}) for name in claim.contrast]
    seeds = sorted(set.intersection(*(set(run) for run in runs)))
    weights = claim.contrast.values()
    differences = [math.fsum(w * run[seed] for w, run in zip(weights, runs, strict=True)) for seed in seeds]
    mean, low, high = interval(differences, resolution=resolution)
    verdict = UNDECIDED
    if claim.above < low and high < claim.below:
        verdict = HOLDS
    elif high <= claim.above or low >= claim.below or (claim.above == 0 and high < least):
        verdict = FAILS
    papers = [published.get(name) for name in claim.contrast]
    known = [paper for paper in papers if paper is not None]
    paper = math.fsum(w * p for w, p in zip(weights, known, strict=True)) if len(known) == len(papers) else None
    return {
        "claim": claim.text,
        "formula": claim.formula,
        "verdict": verdict,
        "mean": mean if seeds else None,
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
        "n": len(seeds),
        "least": least if claim.above == 0 else None,
        "published": None if paper is None else round(paper, 6),
    }
