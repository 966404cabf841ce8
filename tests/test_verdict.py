"""A claim is judged by the interval of its paired differences, and by nothing else."""

import math

import pytest

from cnnjax.verdict import Claim, interval, judge

WORSE = Claim("b is worse than a", {"b": 1, "a": -1}, above=0)
ALIKE = Claim("b is hardly worse than a", {"b": 1, "a": -1}, below=1)


def verdict(claims, b, *, a=(3.0, 3.1, 2.9), bar=5.0, **more):
    errors = {"a": dict(enumerate(a)), "b": dict(enumerate(b))}
    return judge(claims, errors, reference="a", bar=bar, **more)


def test_the_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.302653
    assert mean == pytest.approx(2) and high - 2 == pytest.approx(4.302653 / math.sqrt(3)) == pytest.approx(2 - low)


@pytest.mark.parametrize(
    "claim, b, expected",
    [
        (WORSE, (4.0, 4.2, 3.9), "holds"),
        (WORSE, (2.0, 2.2, 1.9), "does not hold at this scale"),
        (WORSE, (3.1, 2.9, 3.2), "not decided"),
        (WORSE, (4.0,), "not decided"),  # one pair has no spread
        (WORSE, (), "not decided"),
        (ALIKE, (3.1, 3.2, 2.9), "holds"),
        (ALIKE, (4.9, 5.2, 4.9), "does not hold at this scale"),
        (ALIKE, (3.0, 5.0, 3.0), "not decided"),
    ],
)
def test_a_claim_holds_when_the_whole_interval_is_within_its_bounds(claim, b, expected):
    judged = verdict([claim], b)
    assert judged["claims"][0]["verdict"] == judged["verdict"] == expected


def test_differences_are_taken_within_each_seed():
    """Seeds differ by far more than the variants do, and yet each seed says the same of them."""
    judged = verdict([WORSE], (2.5, 4.4, 3.6), a=(2.0, 4.0, 3.0))
    assert judged["verdict"] == "holds" and judged["claims"][0]["mean"] == pytest.approx(0.5)


def test_three_seeds_that_agree_to_the_image_are_not_certain():
    judged = verdict([WORSE], (3.1, 3.2, 3.0), tested=1000)
    assert judged["claims"][0]["low"] == pytest.approx(0.1 - 4.302653 * 0.1 / math.sqrt(3))
    assert judged["verdict"] == "does not hold at this scale"  # at most 0.35 points, and 0.54 would count


@pytest.mark.parametrize(
    "b, tested, expected",
    [
        ((3.1, 3.2, 2.8), 1000, "does not hold at this scale"),  # -0.36 to 0.43; 3 % of 1,000 images: ± 0.54 points
        ((3.1, 3.2, 2.8), 10_000, "not decided"),  # ± 0.17 points
        ((3.1, 3.2, 2.8), None, "not decided"),
        ((3.3, 3.4, 3.3), 1000, "holds"),  # small, but seen
    ],
)
def test_a_difference_that_other_test_images_would_have_made_is_none(b, tested, expected):
    assert verdict([WORSE], b, tested=tested)["claims"][0]["verdict"] == expected


def test_what_counts_can_be_said_of_any_metric():
    def of(least):
        claim = Claim("later", {"b": 1, "a": -1}, above=0, metric="epochs", least=least)
        epochs = {"epochs": {"a": {0: 1.0, 1: 1.2, 2: 1.1}, "b": {0: 1.1, 1: 1.15, 2: 1.1}}}
        return verdict([claim], (), further=epochs)["claims"][0]

    assert of(None)["verdict"] == of(0.1)["verdict"] == "not decided"
    assert of(0.3)["verdict"] == "does not hold at this scale" and of(0.3)["least"] == 0.3


def test_a_claim_with_a_bound_of_its_own_knows_what_counts():
    """That b is hardly better than a: from -1.13 to -0.30 is not decided by what two test errors differ by."""
    claim = Claim("hardly better", {"b": 1, "a": -1}, above=-0.5)
    judged = verdict([claim], (2.4, 2.4, 2.05), tested=1000)["claims"][0]
    assert judged["verdict"] == "not decided" and judged["least"] is None


@pytest.mark.parametrize("claims, expected", [([WORSE, ALIKE], "not decided"), ([WORSE], "holds"), ([], "not decided")])
def test_all_claims_must_hold(claims, expected):
    assert verdict(claims, (3.9, 4.2, 3.7))["verdict"] == expected


def test_one_claim_that_fails_is_enough():
    assert verdict([WORSE, ALIKE], (9.0, 9.2, 8.9))["verdict"] == "does not hold at this scale"


@pytest.mark.parametrize("a", [(5.0, 5.1, 5.0), (math.nan, 3.0, 3.0)])
def test_a_reference_that_was_not_trained_well_says_nothing(a):
    judged = verdict([WORSE], (9.0, 9.2, 8.9), a=a)
    assert judged["claims"][0]["verdict"] == judged["verdict"] == "underpowered"


def test_without_the_reference_nothing_is_decided():
    judged = judge([WORSE], {"b": {0: 1.0, 1: 1.0}}, reference="a", bar=5)
    assert judged["verdict"] == "not decided" and judged["claims"][0]["mean"] is None


def test_the_papers_own_contrast_stands_beside_ours():
    claim = Claim("more than the sum", {"both": 1, "one": -1, "other": -1, "none": 1}, above=0)
    paper = {"none": 18.1, "one": 22.1, "other": 22.4, "both": 50.1}
    assert judge([claim], {}, reference="none", bar=5, published=paper)["claims"][0]["published"] == 23.7
    assert (
        judge([claim], {}, reference="none", bar=5, published={**paper, "one": None})["claims"][0]["published"] is None
    )


@pytest.mark.parametrize(
    "claim, formula",
    [
        (WORSE, "b − a > 0"),
        (ALIKE, "b − a < 1"),
        (Claim("", {"a": -2, "b": 0.5}, above=-1, below=1), "−1 < − 2 × a + 0.5 × b < 1"),
    ],
)
def test_a_claim_can_be_read_as_a_formula(claim, formula):
    assert claim.formula == formula


def test_a_claim_on_another_metric_is_judged_by_it():
    """By its own numbers, without the errors' resolution and the paper's errors."""
    deeper = Claim("b's gradient is larger", {"b": 1, "a": -1}, above=0, metric="log_gradient")
    further = {"log_gradient": {"a": {0: 0.0, 1: 0.1, 2: 0.2}, "b": {0: 1.0, 1: 1.1, 2: 1.3}}}
    papers = {"a": 3.0, "b": 2.0}
    judged = verdict([WORSE, deeper], (2.0, 2.2, 1.9), further=further, published=papers, tested=11)
    of_error, of_gradient = judged["claims"]
    assert of_error["published"] == -1.0 and of_gradient["published"] is None
    assert of_gradient["verdict"] == "holds" and of_gradient["mean"] == pytest.approx(1.1 / 3 + 2 / 3)
    assert of_gradient["formula"] == "log_gradient: b − a > 0"
