import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.studies import catalog, claims
from experiments.studies.arms import Arm, Outcome, Training
from experiments.studies.claims import Claim, Difference, Verdict
from experiments.studies.search import Finding
from experiments.studies.settings import MNIST

CLAIM = Claim("More is better.", "lines", "a", baseline="b", measure="m", matters=0.01)
SEEDS = 8


def finding(name, values, failed=(), edges=(), setting=MNIST):
    arm = Arm(name, setting, None, box={}, against="")
    trainings = [
        Training(
            "test", setting.name, name, {}, seed, 0.5, value, 0.1, 0.0, seed in failed, 1.0,
            {"m": value},
        )
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return Finding(arm, [], Outcome(arm, "test", {}, trainings), {}, 1, edges)


def known(*findings, full=True):
    return {"lines": (findings, full)}


@pytest.fixture
def judged(monkeypatch):
    def verdict(*findings, claim=CLAIM, full=True):
        monkeypatch.setattr(claims, "CLAIMS", (claim,))
        [found] = claims.judge(known(*findings, full=full))
        return found

    return verdict


NOISE = 0.001 * np.arange(SEEDS)
BASE = finding("b", NOISE)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (NOISE + 0.5, "true"),
        (NOISE - 0.5, "false"),
        (NOISE + 0.001 * (-1) ** np.arange(SEEDS), "false"),
        (NOISE + 0.1 * (-1) ** np.arange(SEEDS), "not shown"),
    ],
)
def test_the_verdict_is_that_of_the_differences(judged, values, word):
    assert judged(finding("a", values), BASE).word == word
    less = CLAIM._replace(less=True)
    opposite = {"true": "false", "false": "true"} if abs(values[0]) > 0.1 else {}
    assert judged(finding("a", values), BASE, claim=less).word == opposite.get(word, word)


def test_a_claim_that_holds_in_one_setting_alone_depends(judged):
    other = dataclasses.replace(MNIST, name="other")
    better, same = finding("a", NOISE + 0.5), finding("a", NOISE + 1e-9 * NOISE, setting=other)
    base = finding("b", NOISE, setting=other)
    assert judged(better, BASE, same, base).word == "depends"
    only = CLAIM._replace(settings=lambda name: name == "mnist")
    assert judged(better, BASE, same, base, claim=only).word == "true"


def test_failed_seeds_and_few_seeds_are_no_evidence(judged):
    few = judged(finding("a", NOISE + 0.5, failed=range(3, SEEDS)), BASE)
    assert few.word == "not shown"
    assert few.differences[0].pairs == 3
    none = judged(finding("a", NOISE + 0.5, failed=range(SEEDS)), BASE)
    assert none.word == "not shown"
    assert math.isnan(none.differences[0].mean)


def test_what_has_no_results_is_untested(judged, monkeypatch, tmp_path):
    assert judged(BASE).word == "untested"
    monkeypatch.undo()
    assert claims.read(tmp_path) == {}
    verdicts = claims.judge({})
    assert {one.word for one in verdicts} == {"untested"}
    assert verdicts[0].claim.text == "Gradient clipping makes the model smaller."
    assert "changes values and no shapes" in claims.sentence(verdicts[0])


def test_a_row_says_so_where_the_best_is_at_the_edge_and_where_the_form_is_quick(judged):
    found = judged(finding("a", NOISE + 0.5, edges=["limit"]), BASE, full=False)
    [row] = claims.table([found]).rows
    assert "+50.00 ± 0.00 (a best point is at the edge of its grid)" in row[3]
    assert "a first look only" in row[2]
    assert row[4:] == ["8", "python -m experiments compare lines --full"]


def test_many_claims_share_their_false_discoveries(monkeypatch):
    """One p-value of 1 in 128 among twenty of chance is none any more."""
    rng = np.random.default_rng(0)
    chance = [CLAIM._replace(arm=f"c{i}") for i in range(20)]
    monkeypatch.setattr(claims, "CLAIMS", (CLAIM, *chance))
    arms = [finding(one.arm, NOISE + rng.normal(0, 0.1, SEEDS)) for one in chance]
    alone, together = (
        [finding("a", NOISE + 0.02), BASE],
        [finding("a", NOISE + 0.02), BASE, *arms],
    )
    assert claims.judge(known(*alone))[0].word == "true"
    assert claims.judge(known(*together))[0].word == "not shown"


def test_every_claim_is_about_arms_that_there_are():
    for claim in claims.CLAIMS:
        arms = catalog.find(claim.study).arms(True)
        here = {}
        for arm in arms:
            here.setdefault(arm.setting.name, set()).add(arm.name)
        settings = [name for name in here if claim.settings(name)]
        assert settings
        for name in settings:
            assert {claim.arm, claim.baseline} <= here[name], (claim.text, name)
        measures = catalog.find(claim.study).measures
        assert claim.measure == claims.SCORE or claim.measure in measures


def test_the_page_of_the_claims_is_that_of_the_committed_results():
    page = Path(__file__).parents[3] / "docs" / "claims.md"
    assert page.read_text() == claims.markdown(), "python docs/claims.py"


def test_a_difference_in_words():
    one = Difference("here", -0.0123, 0.004, 0.01, 8, False)
    assert claims.effect(one) == "-1.23 ± 0.40"
    told = claims.sentence(Verdict(CLAIM, "true", [one], full=True))
    assert told == (
        "a against b: -1.23 ± 0.40 points on here, the most of 1 settings; a difference is seen on "
        "1."
    )
