"""Does what CONTRIBUTING.md says, with its own examples."""

import re
import textwrap
from pathlib import Path

import pytest

import jaxclip
from jaxclip.methods import named
from tests import test_contract
from tests.helpers import INF, Case

ROOT = Path(__file__).parent.parent


@pytest.fixture
def space(monkeypatch):
    """The names that the examples of the page define; the list of methods is as before after it."""
    monkeypatch.setattr(named, "_methods", dict(named._methods))
    page = (ROOT / "CONTRIBUTING.md").read_text()
    space: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(textwrap.dedent(block), "CONTRIBUTING.md", "exec"), space)
    return space


def test_contributing_a_method_is_held_by_the_contract(space):
    method = space["clip_by_row_norm"]
    assert "clip_by_row_norm" in jaxclip.named()
    case = Case(method, {"limit": 0.5}, {"limit": INF}, limit=0.5)
    test_contract.test_contract_no_block_exceeds_its_limit(case, [test_contract.jnp.float32])
    test_contract.test_contract_within_the_limit_is_the_identity_bit_for_bit(case)
    test_contract.test_contract_state_is_final_from_init(case)
    test_contract.test_contract_through_a_train_of_extremes(case)
    test_contract.test_contract_works_inside_optax(case)


def test_contributing_a_task_and_a_study_end_in_outcomes(space, tmp_path):
    compare = pytest.importorskip("experiments.studies.compare")
    study = space["STUDY"]
    findings = compare.compare(
        study, study.arms(False), full=False, folder=tmp_path, folders={}, chunk=64, command=""
    )
    bare, clipped = findings
    assert (bare.arm.name, clipped.arm.name) == ("no clip", "a clip")
    assert bare.chosen.mean > -0.1
    assert clipped.arm.config == bare.arm.config, "they are one program"
    assert len(list(tmp_path.glob("sweeps/*"))) == 4


def test_contributing_names_files_that_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    names = set(re.findall(r"`((?:jaxclip|tests|experiments|docs)/[\w/.]*)`", page))
    assert len(names) > 8
    assert all((ROOT / name).exists() for name in names)
