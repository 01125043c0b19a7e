"""Findings on a config: fields without effect, supports that do not fit, advice of the loop."""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import ALGORITHMS, Metrics, Record, pytree, train
from quantilax.agent import Agent, ConfigWarning, create
from quantilax.algorithms import IQN, SAC, q_learning
from quantilax.checks import inert
from quantilax.checks.dependence import value_hash
from quantilax.checks.inert import CURVE, Programs, Trial, alternatives
from quantilax.checks.lint import Finding, _advice, _chosen, is_clean, lint
from quantilax.envs.probes import Corridor
from quantilax.hyperparameters import RiskObjective
from tests.conftest import TINY, each, tiny
from tests.unit.test_torsos import Pixels

as_it_should_be = q_learning.compared


def blind_update(config, state, key):
    """IQN's update with the mistake of a library: the online network stands where the target network should."""

    def blind(config, network, networks, *rest):
        online, _, selector = networks
        return as_it_should_be(config, network, (online, jax.lax.stop_gradient(online), selector), *rest)

    with mock.patch.object(q_learning, "compared", blind):
        return q_learning.update(config, state, key)


BLIND = ALGORITHMS["iqn"]._replace(name="iqn_blind", update=blind_update)


@pytree.dataclass
class Config(IQN):
    """IQN's config, with fields that nothing reads."""

    unread: float = pytree.field(0.5, "of no use")
    unread_number: int = pytree.field(3, "of no use", ge=0)
    unread_name: str = pytree.field("x", "of no use; other values are not known")
    unread_array: Any = pytree.field(None, "of no use, and no number")


FORGETFUL = ALGORITHMS["iqn"]._replace(name="forgetful", config=Config)


def agent(algorithm, env="probe/corridor", **changes) -> Agent:
    """As `tiny`, without the warnings at creation."""
    with warnings.catch_warnings(action="ignore", category=ConfigWarning):
        return create(algorithm, env, {**TINY["iqn"], **changes})


def of(found: list[Finding], field: str) -> Finding:
    (one,) = (finding for finding in found if finding.field == field)
    return one


HEALTHY = {
    "iqn": ("iqn", dict(risk="cvar", risk_eta=0.5, prioritized=True)),
    "iqn with munchausen": ("iqn", dict(munchausen=True)),
    "pqn": ("pqn", {}),
    "pqn with munchausen": ("pqn", dict(munchausen=True)),
    "pqn of quantiles": ("pqn", dict(head="implicit_quantile", num_tau_samples=3, num_cosines=4)),
    "pqn of atoms": ("pqn", dict(head="categorical", num_atoms=7, v_min=-2.0, v_max=3.0)),
}
"""Agents in which, taken together, every float has its effect."""


@pytest.fixture(scope="module", params=each(HEALTHY))
def healthy(request) -> tuple[Agent, Programs, Trial]:
    """An agent, its programs and a trial of it."""
    name, changes = HEALTHY[request.param]
    one = tiny(name, "CartPole-v1", exploration_fraction=0.5, **changes)
    return one, Programs(one, lambda _: None), Trial(one)


@cache
def programs_of(name: str) -> Programs:
    """The programs of a tiny agent; they remember what they have traced."""
    return Programs(tiny(name), lambda _: None)


@pytest.fixture
def plain() -> Programs:
    """The programs of an IQN whose acting policy is not distorted."""
    return programs_of("iqn")


@pytest.fixture
def examined(monkeypatch) -> Callable[..., None]:
    """Let the program examine only the fields of these names: a variant is traced for each."""

    def only(algorithm, *names: str) -> None:
        monkeypatch.setattr(inert, "LOOP", tuple(set(algorithm.config.__dataclass_fields__) - set(names)))

    return only


def inert_of(programs: Programs, given=None, trial=None) -> list[Finding]:
    """The findings on fields without effect, as if every field had been chosen."""
    return inert.findings(programs, programs.agent.config.__dataclass_fields__ if given is None else given, trial)


@pytest.mark.parametrize("name", each(first=("iqn",)))
def test_no_field_of_a_registered_algorithm_is_without_effect_whatever_the_others_say(name):
    found = inert_of(programs_of(name))
    assert [one for one in found if "was not examined" in one.finding] == []
    assert [one for one in found if one.severity == "error" or "takes effect with" not in one.remedy] == []


@pytest.mark.parametrize("name", ["dqn", "c51", "fqf"])
def test_an_algorithm_whose_head_has_no_measures_of_risk_has_no_fields_for_them(name):
    assert not set(RiskObjective.__dataclass_fields__) & set(ALGORITHMS[name].config.__dataclass_fields__)


def test_a_field_that_needs_another_head_and_another_objective_is_without_effect_and_no_error(examined):
    programs = Programs(tiny("q_learning", head="scalar"), lambda _: None)
    examined(programs.agent.algorithm, "risk_level", "risk_levels", "risk_objective")
    found = {one.field: (one.severity, one.remedy) for one in inert_of(programs)}
    remedy = "takes effect with head=quantile and risk_objective={}, for example; otherwise omit it"
    assert found == {
        "risk_level": ("warning", remedy.format("static_cvar")),
        "risk_levels": ("warning", remedy.format("spectral")),
    }


def test_a_field_that_needs_several_others_at_their_defaults_is_without_effect_and_no_error(examined):
    # Munchausen's targets go with neither returns over several steps nor double Q-learning.
    examined(ALGORITHMS["iqn"], "munchausen", "munchausen_alpha", "n_step", "double")
    found = inert_of(Programs(tiny("iqn", n_step=3, double=True), lambda _: None), given=("munchausen_alpha",))
    remedy = "takes effect with munchausen=true and n_step=1 and double=false, for example; otherwise omit it"
    assert {one.field: (one.severity, one.remedy) for one in found} == {"munchausen_alpha": ("warning", remedy)}


def test_every_float_is_alive_in_a_healthy_agent():
    alive = {name: set() for name, _ in HEALTHY.values()}
    others = (
        ("iqn", dict(risk_objective="static_cvar")),
        ("pqn", dict(head="hl_gauss", num_atoms=7, v_min=-2.0, v_max=3.0)),
        ("pqn", dict(head="implicit_quantile", risk="cvar", risk_eta=0.5)),
        ("pqn", dict(head="proposed", num_fractions=4)),
    )
    for name, changes in (*HEALTHY.values(), *others):
        reaches = Programs(tiny(name, **changes), lambda _: None).base.reaches
        alive[name] |= {field for field, outputs in reaches.items() if CURVE in outputs}
    assert alive == {name: set(pytree.float_fields(ALGORITHMS[name].config)) for name in alive}


def test_every_float_that_reaches_the_curve_changes_curve_or_weights_and_no_other_does(healthy):
    one, programs, trial = healthy
    assert trial.is_repeatable()
    for name, reaches in programs.base.reaches.items():
        changes = inert._unseen(one, name, trial) == []
        assert changes == (CURVE in reaches), name


@pytest.fixture(scope="module")
def outputs(healthy) -> Callable[..., list[tuple[str, np.ndarray]]]:
    """Run a whole training with floats changed: the outputs and their names; of keys, the bits."""
    one, _, _ = healthy
    algorithm, env, config = one.arguments()
    run = jax.jit(lambda config: train.train(algorithm, env, config, jax.random.key(0)))

    def outputs(**changes):
        changes = {name: jnp.float32(value) for name, value in changes.items()}
        named = jax.tree_util.tree_flatten_with_path(run(replace(config, **changes)))[0]
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
        return [(inert._output(path), np.asarray(jax.random.key_data(x) if is_key(x) else x)) for path, x in named]

    return outputs


def test_outputs_that_a_float_is_said_not_to_reach_keep_their_bits_when_it_changes(healthy, outputs):
    one, programs, _ = healthy
    base, kept, moved = outputs(), 0, 0
    for name in pytree.float_fields(type(one.config)):
        changed = outputs(**{name: alternatives(one, name)[0]})
        for (output, before), (_, after) in zip(base, changed, strict=True):
            if output not in programs.base.reaches[name]:
                assert before.tobytes() == after.tobytes(), f"{name} moves {output}"
                kept += 1
            moved += before.tobytes() != after.tobytes()
    assert kept > 50, "the analysis tells some apart"
    assert moved > 50


@pytest.mark.validation
def test_a_library_that_never_reads_its_target_network_is_caught(plain):
    found = lint(agent(BLIND, target_update_freq=1, polyak=0.5))
    for field in ("target_update_freq", "polyak"):
        finding = of(found, field)
        assert finding.severity == "error"
        assert finding.finding.startswith(f"{field}=")
        assert "has no effect on the curve" in finding.finding
        assert finding.evidence.startswith("by the program; confirmed: curves with ")
        assert "are equal, bit for bit, over" in finding.evidence
        assert "iqn_blind" in finding.remedy
    assert "reaches only target_params of the state, the metric target_distance" in of(found, "polyak").finding
    assert "please report" not in str(found)
    others = {f.field for f in found if "by the program" in f.evidence} - {"target_update_freq", "polyak"}
    healthy = {f.field for f in inert_of(plain)}
    assert others <= healthy | {"double"}, "with one network, it does not matter which selects"


def test_with_its_target_network_read_the_same_is_not_said(plain):
    assert not {"target_update_freq", "polyak", "double"} & {f.field for f in inert_of(plain)}


def test_what_brings_a_field_to_life_is_told_if_the_field_was_chosen_and_only_then(plain):
    (one,) = inert_of(plain, given=["risk_eta", "gamma"])
    assert (one.field, one.severity, one.evidence) == ("risk_eta", "warning", "by the program")
    assert "with risk=cvar" in one.remedy
    assert inert_of(plain, given=["gamma"]) == []


def test_fields_that_differ_from_their_defaults_count_as_chosen():
    assert set(_chosen(tiny("iqn"))) == set(TINY["iqn"]) - {"num_epochs"}, "2 is the default"
    assert _chosen(create(ALGORITHMS["iqn"], "probe/corridor", {"gamma": 0.99, "risk_eta": 0.5})) == ["risk_eta"]


def test_static_fields_without_effect_are_found_with_what_brings_them_to_life(examined):
    # Without layers there is nothing to activate or to normalise.
    examined(ALGORITHMS["iqn"], "activation", "layer_norm", "torso_sizes")
    programs = Programs(agent(ALGORITHMS["iqn"], torso_sizes=[], head_sizes=[]), lambda _: None)
    for field in ("activation", "layer_norm"):
        finding = of(inert_of(programs), field)
        assert finding.evidence == "by the program"
        assert finding.remedy == "takes effect with torso_sizes=[1], for example; otherwise omit it"


def test_fields_that_nobody_reads_are_found_in_an_algorithm_of_ones_own(examined):
    examined(FORGETFUL, "unread", "unread_number", "unread_name", "unread_array")
    found = lint(agent(FORGETFUL, unread_array=np.ones(3), unread_name="y"))
    for field in ("unread", "unread_number"):
        assert of(found, field).severity == "error"
        assert "confirmed: curves with" in of(found, field).evidence
        assert "reaches only" not in of(found, field).finding
    assert of(found, "unread_array").evidence == "by the program", "there is no other value to compare with"
    assert of(found, "unread_name") == Finding(
        "note", "unread_name", "unread_name=y was not examined: no other legal value is known", "none", ""
    )
    assert not is_clean(found)
    assert found == sorted(found, key=lambda f: ("error", "warning", "note").index(f.severity))


def test_what_a_value_hides_is_told_by_curves_and_called_no_proof(examined):
    examined(ALGORITHMS["iqn"], *pytree.float_fields(IQN))
    # With epsilon constant the length of its schedule is of no matter: the program cannot see that.
    constant = dict(eps_start=0.1, eps_end=0.1, exploration_fraction=0.2)
    found = lint(tiny("iqn", Corridor(cells=2), **constant, total_timesteps=2400, eval_freq=1200))
    (finding,) = (f for f in found if "changes neither curve nor weights" in f.finding)
    assert (finding.severity, finding.field) == ("note", "exploration_fraction")
    # 1,000 steps, and before them the warm-up of 40.
    assert "in the first 1,040 of 2,400 environment steps" in finding.finding
    assert finding.evidence.startswith("by equal curves with exploration_fraction=0.7, bit for bit, of one seed")
    assert finding.evidence.endswith("not a proof: it may act later; use --steps to look further")


def test_a_device_that_does_not_repeat_its_runs_compares_no_curves(plain, monkeypatch):
    monkeypatch.setattr(inert, "Programs", lambda *_: plain)
    monkeypatch.setattr(Trial, "is_repeatable", lambda self: False)
    found = lint(plain.agent, given=["risk_eta"])
    assert any("so no curves were compared" in f.finding for f in found)
    assert of(found, "risk_eta").evidence == "by the program"


def test_curves_that_contradict_the_program_are_told_and_not_hidden(plain, monkeypatch):
    monkeypatch.setattr(Trial, "equal_until", lambda *_, **__: None)
    assert all("please report" in f.evidence for f in inert_of(plain, trial=Trial(plain.agent)))


def test_what_the_algorithm_and_the_loop_advise_is_among_the_findings():
    one = agent(ALGORITHMS["iqn"], batch_size=8, eval_freq=70, eps_end=0.5)
    found = list(_advice(one))
    for line in train.advice(one.env, one.config):
        (finding,) = (f for f in found if line.startswith(f.finding))
        assert line == f"{finding.finding}; {finding.remedy}"
        assert (finding.severity, finding.evidence) == ("warning", "by arithmetic")
        assert line.startswith(f"{finding.field}=") or finding.field == "eps_end"


def test_torsos_that_fit_the_observations_are_other_values_and_the_norm_where_there_are_blocks():
    one = tiny("dqn", Pixels((10, 10, 1)), torso="impala")
    assert alternatives(one, "torso") == ["mlp", "simba", "minatar"]  # nature needs 36 x 36
    assert alternatives(one, "spectral_norm") == [True]
    assert alternatives(one.replace(torso="minatar"), "spectral_norm") == []


def test_other_values_are_legal_and_others():
    one = tiny("iqn", max_grad_norm=float("inf"))
    for name in one.config.__dataclass_fields__:
        values = alternatives(one, name)
        assert bool(values) == (name != "spectral_norm")  # a corridor has no rows and columns: refused
        for value in values:
            assert getattr(one.replace(**{name: value}).config, name) != getattr(one.config, name)
    assert alternatives(one, "gamma") == pytest.approx([0.49])
    assert alternatives(one, "eval_epsilon") == [0.5]
    assert alternatives(one, "kappa") == [0.5, 0.001, 2.0]
    assert alternatives(one, "max_grad_norm") == [1e-3, 1.0]
    assert alternatives(one, "torso_sizes") == [(9,), (8, 8), ()]
    assert alternatives(one, "double") == [True]
    assert alternatives(one, "num_epochs") == [4, 1, 3]


def test_a_trial_is_the_run_itself_at_its_beginning(healthy, outputs):
    # The second row of a trial stands at the end of a run as short as this one.
    one, _, trial = healthy
    curve = [rows for output, rows in outputs() if output == CURVE]
    record, told, _ = trial.base(1)
    assert record.env_step == one.evaluation_steps[-1]
    assert told == [value_hash(rows[-1]) for rows in curve]
    assert told != [value_hash(rows[0]) for rows in curve]


def test_a_trial_takes_the_steps_that_are_asked_for_and_no_more_than_the_run():
    one = tiny("iqn", total_timesteps=50_000, eval_freq=12_500)  # 4 environment steps per iteration
    assert Trial(one).iterations() == [32, 32, 64, 122]
    assert Trial(one, steps=1).iterations() == [32, 32]
    assert sum(Trial(one, steps=10**6).iterations()) == (50_000 - 40) / 4
    assert Trial(tiny("iqn", total_timesteps=80, eval_freq=40)).iterations() == [5, 5]


def test_a_support_that_leaves_out_a_tenth_of_the_returns_or_less_is_not_told_and_one_that_leaves_more_is_with_figures():
    returns = np.array([*np.linspace(0, 9, 18), 12.0, 20.0])
    assert train.uncovered((0.0, 10.0), returns) is None  # 2 of 20
    assert train.uncovered((0.0, 1.0), np.full(20, np.nan)) is None
    assert train.uncovered((0.0, 8.9), returns) == (
        "v_max: 15% of the returns of an evaluation, discounted and in learned units, lie outside the support from 0 to"
        " 8.9: they go from 0 to 20; widen the support, or change reward_scale"
    )
    assert train.uncovered((1.2, 30.0), returns).startswith("v_min: 15% of the returns")


def test_a_field_that_a_loop_trains_without_is_no_error_of_its_code():
    nothing = SimpleNamespace(reaches={})
    programs = SimpleNamespace(agent=tiny("ppo"), base=nothing, statics=(), enabling=lambda *_: None)
    (found,) = inert._inert(programs, "risk_eta", [0.5], True, None)
    assert (found.severity, found.remedy) == ("warning", "omit it: ppo trains without it")
    assert inert._inert(programs, "risk_eta", [0.5], False, None) == []
    for is_given in (False, True):
        (found,) = inert._inert(programs, "gamma", [0.5], is_given, None)
        assert found.severity == "error"


def test_the_returns_that_sac_learns_include_the_entropy_of_the_steps_after_the_first():
    # alpha H = 0.5 * 2 = 1: over three steps 0.9 + 0.81, over one step nothing. The second seed is from before training.
    config = SAC(gamma=0.9)
    means = dict.fromkeys(("loss", "gradient_norm", "q", "td_error", "epsilon"), np.zeros(2))
    metrics = Metrics(**means, temperature=np.array([0.5, np.nan]), entropy=np.array([2.0, np.nan]))
    returns = np.array([[10.0, 20.0], [30.0, 40.0]])
    record = Record(np.zeros(2), np.array([[3, 1], [3, 1]]), returns, np.ones(2), metrics, learned_returns=returns)
    np.testing.assert_allclose(train.returns_to_learn(config, record), [[11.71, 20], [30, 40]])
    longest = train.returns_to_learn(SAC(gamma=1.0), record)
    np.testing.assert_allclose(longest, [[12, 20], [30, 40]])
    plain = record._replace(metrics=metrics._replace(temperature=None, entropy=None))
    np.testing.assert_array_equal(train.returns_to_learn(config, plain), returns)
    assert train.returns_to_learn(config, record._replace(learned_returns=None)) is None


@pytest.mark.parametrize(
    ("algorithm", "head"),
    [pytest.param("c51", {}, marks=pytest.mark.validation), ("pqn", {"head": "categorical"})],
)
def test_a_categorical_support_that_does_not_cover_the_returns_of_the_first_evaluations_is_found(
    algorithm, head, monkeypatch
):
    monkeypatch.setattr(inert, "findings", lambda *_: [])
    for v_max, is_found in ((1.0, True), (100.0, False)):
        one = tiny(algorithm, "CartPole-v1", **head, v_min=0.0, v_max=v_max)
        found = [finding for finding in lint(one) if finding.field == "v_max"]
        assert bool(found) == is_found
        if is_found:
            assert found[0].severity == "warning"
            assert "100% of the returns" in found[0].finding
            assert re.fullmatch(r"measured at environment step \d+ of one seed", found[0].evidence)
            assert found[0].remedy == "widen the support, or change reward_scale"


def test_returns_are_compared_with_the_support_as_they_are_learned(monkeypatch):
    monkeypatch.setattr(inert, "findings", lambda *_: [])
    one = tiny("c51", "CartPole-v1", v_min=0.0, v_max=1.0, reward_scale=0.01)
    assert [finding for finding in lint(one) if finding.field == "v_max"] == []
