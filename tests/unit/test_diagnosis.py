"""The rules on frames made by hand: what is named, in which order, with which evidence; and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from quantilax import ALGORITHMS, ConfigError, pytree
from quantilax.algorithms import IQN, pqn
from quantilax.checks import diagnosis
from quantilax.checks.diagnosis import diagnose
from quantilax.checks.figures import quantities
from quantilax.checks.findings import Finding
from quantilax.checks.rules import RULES, Healthy, Range, healthy, own_ranges
from quantilax.signals import OF_CHOICES, Signals
from quantilax.studies import definition
from tests.studies import GOOD, store

STEPS = [1000 * i for i in range(11)]
CONFIG = pytree.to_dict(IQN(batch_size=16))
CARTPOLE = str(Path(__file__).parents[2] / "configs" / "gymnax" / "cartpole.yaml")


def middle(name: str) -> float:
    low, high = healthy()[name]
    return math.sqrt(low * high) if low > 0 else (low + high) / 2


def frame(returns=None, seed=0, **columns) -> pl.DataFrame:
    """Eleven evaluations of a run in whose signals there is nothing wrong, but for `columns`."""
    rows = {name: np.full(len(STEPS), middle(name) if name in healthy() else 0.5) for name in Signals._fields}
    rows["limit_reached"], rows["limit_deaths"] = np.full((2, len(STEPS)), [[0.5], [0.0]])
    rows["gradient_signal"] = np.full(len(STEPS), 1.0)
    rows["gradient_noise"] = np.full(len(STEPS), 16 * middle("noise_to_signal"))
    rows["reference_q"] = np.arange(len(STEPS)) / 5  # learns, and its target follows
    rows["reference_q_target"] = rows["reference_q"] - 0.01
    rows["start_return"] = np.full(len(STEPS), middle("return_size"))
    rows["exploration"] = np.full(len(STEPS), middle("explored"))
    rows |= {name: np.broadcast_to(np.asarray(x, float), len(STEPS)) for name, x in columns.items()}
    returns = np.linspace(10, 200, len(STEPS)) if returns is None else np.asarray(returns, float)
    return pl.DataFrame(
        {
            "seed": [seed] * len(STEPS),
            "env_step": STEPS,
            "return_mean": returns,
            "return_std": np.ones(len(STEPS)),
            **rows,  # `columns` may have these two as well
        }
    )


def named(run, config=CONFIG) -> list[str]:
    return [cause.cause for cause in diagnose(run, config)[0].causes]


def test_a_run_like_healthy_ones_has_no_cause_and_asks_for_no_study():
    (one,) = diagnose(frame(), CONFIG)
    assert (one.causes, one.near, one.study, one.outcome.word) == ((), (), None, "learned")
    assert diagnosis.told([one])[1:] == ["  every figure that the rules read is within its healthy range"]


def test_what_is_outside_by_less_than_names_a_cause_is_told_as_a_hint_the_farthest_first():
    # So with M-IQN on Freeway-MinAtar, whose epsilon was the cause (investigations/0015-munchausen-freeway).
    (one,) = diagnose(
        frame(adam_damping=0.7 * healthy()["adam_damping"].low, update_ratio=1.1 * healthy()["update_ratio"].high),
        CONFIG,
    )
    assert one.causes == ()
    assert [cause.cause for cause in one.near] == ["adam_eps", "learning_rate"]
    lines = diagnosis.told([one])
    assert lines[1] == "  no cause is measured; outside the healthy range, but by too little to name one:"
    assert lines[2].startswith(
        "  - adam_eps: adam_damping 0.192, in healthy runs 0.274 to 0.958; outside from step 1,000 on"
    )
    assert lines[3].startswith("     try: adam_eps=")
    assert diagnosis.as_json(one)["near"][0]["cause"] == "adam_eps"
    (both,) = diagnose(frame(**FAULTS["kappa"], adam_damping=0.7 * healthy()["adam_damping"].low), CONFIG)
    assert (both.causes[0].cause, both.near) == ("kappa", ())


FAULTS = {
    "noise": {"gradient_noise": 1e5},
    "learning_rate": {"update_ratio": 0.05},
    "target": {"reference_q_target": 0.1},
    "time_limit": {"limit_deaths": 1.0, "limit_error": 0.5},
    "exploration": {"exploration": 0.0},
    "buffer": {"replay_episodes": 1.0},
    "kappa": {"huber_scale": 500.0},
    "adam_eps": {"adam_damping": 1e-3},
    "reward_scale": {"start_return": 5_000.0},
    "clipping": {"clip_factor": 1e-5},
    "sparse_reward": {"return_mean": -200.0, "return_std": 0.0},
}


def test_there_is_a_fault_for_each_rule():
    assert {rule.cause for rule in RULES if not rule.is_own} == set(FAULTS)
    assert {(rule.cause, rule.quantity) for rule in RULES if rule.is_own} == set(OWN_FAULTS)


HEALTHY = {name: np.full(len(STEPS), 0.1) for name in ("dormant", "without_gradient", "value_change", "exploration")}
"""Of a section whose own healthy runs are known."""
OWN = Healthy("the ten seeds of mine", own_ranges(frame(**HEALTHY), CONFIG), {})
OWN_FAULTS = {
    ("learning_rate", "first_step"): {"update_ratio": 3 * healthy()["update_ratio"].high},
    ("small_learning_rate", "first_step"): {"update_ratio": 1e-6},
    ("adam_eps", "epsilon_room"): {"adam_scale": 1e3},
    ("fast_target", "target_steps"): {"target_lag": 0.0},
    ("endless_exploration", "last_exploration"): {"exploration": 0.5},
    ("exploration", "last_exploration"): {"exploration": [*[0.1] * 10, 0.02]},
    ("time_limit", "limit_deaths"): {"limit_deaths": 0.9, "limit_error": 0.0},
    ("small_rewards", "first_return"): {"start_return": 1e-3},
    ("reward_scale", "first_return"): {"start_return": [100.0, *[middle("return_size")] * 10]},
    ("horizon", "horizon"): {"gamma": 0.5},
    ("dead_units", "first_dormant"): {"dormant": 0.9, "without_gradient": 0.8},
    ("frozen_weights", "frozen"): {"without_gradient": 0.6},
    ("noisy_observations", "roughness"): {"value_change": 0.9},
}


@pytest.mark.parametrize("cause", OWN_FAULTS, ids=" by ".join)
def test_a_quantity_out_of_the_range_of_the_sections_own_healthy_runs_names_its_cause_first(cause):
    columns = dict(OWN_FAULTS[cause])
    config = {**CONFIG, "gamma": columns.pop("gamma", CONFIG["gamma"])}
    (one,) = diagnose(frame(**HEALTHY | columns), config, own=OWN)
    first = one.causes[0]
    assert (first.cause, first.evidence[0].quantity, one.healthy) == (*cause, "the ten seeds of mine")
    assert first.change or first.remark
    assert set(first.change) <= set(first.config)
    pytree.replace(IQN(**({"gamma": 0.5} if "gamma" in first.change else {})), **first.change)
    assert "  judged by the ranges of the ten seeds of mine" in diagnosis.told([one])


def test_ranges_of_the_sections_own_healthy_runs_pass_over_the_general_ones():
    (one,) = diagnose(frame(**HEALTHY), CONFIG, own=OWN)
    assert (one.causes, one.near) == ((), ())
    unusual = frame(**HEALTHY, huber_scale=30.0)
    assert named(unusual) == ["kappa"]
    (one,) = diagnose(unusual, CONFIG, own=Healthy("", own_ranges(unusual, CONFIG), {}))
    assert one.causes == ()
    (one,) = diagnose(of_actor(**HEALTHY | FAULTS["kappa"]), CONFIG, own=OWN)  # of any loop
    assert ([cause.cause for cause in one.causes], one.unranged) == (["kappa"], {})


def test_a_cause_whose_field_differs_from_the_healthy_section_comes_first():
    both = frame(**HEALTHY | FAULTS["clipping"] | {"replay_episodes": 1.0})
    for field, cause in (("buffer_size", "buffer"), ("max_grad_norm", "clipping")):
        (one,) = diagnose(both, CONFIG, own=OWN._replace(changed={field: 7}))
        assert (one.causes[0].cause, one.causes[0].change) == (cause, {field: 7}), "back to the section's value"


def test_a_run_that_failed_without_a_sign_is_tried_with_the_sections_values_first():
    failed = frame([10.0] * 11, **HEALTHY)
    (one,) = diagnose(failed, CONFIG, own=OWN._replace(changed={"num_epochs": 7}))
    assert (one.outcome.word, one.causes) == ("did not learn", ())
    assert next(iter(one.study["one_at_a_time"].items())) == ("num_epochs", [7])


def test_a_little_more_exploration_than_in_healthy_runs_is_no_cause():
    assert diagnose(frame(**HEALTHY | {"exploration": 0.2}), CONFIG, own=OWN)[0].causes == ()


def test_a_run_without_signals_is_not_said_to_be_judged_by_ranges():
    (one,) = diagnose(frame().drop(Signals._fields), CONFIG, own=OWN)
    assert (one.causes, one.healthy) == ((), "")


def test_own_ranges_hold_what_every_seed_measured_and_nothing_that_holds_everywhere():
    seeds = pl.concat([frame(seed=0, huber_scale=0.1), frame(seed=1, huber_scale=0.2, dormant=math.nan)])
    found = own_ranges(seeds, CONFIG)
    assert found["huber_scale"] == Range(0.1, 0.2)
    assert not {"dormant", "frozen", "return_range", "limit_surprise"} & set(found)


def test_no_cause_explains_itself_by_way_of_others():
    explained = {}
    for rule in RULES:
        explained.setdefault(rule.cause, set()).update(rule.explains)

    def within(cause: str, path: tuple[str, ...]) -> None:
        assert cause not in path, (*path, cause)
        for other in explained[cause]:
            within(other, (*path, cause))

    for cause in explained:
        within(cause, ())


@pytest.mark.parametrize("cause", FAULTS)
def test_a_quantity_out_of_its_range_names_its_cause_and_nothing_else(cause):
    assert named(frame(**FAULTS[cause])) == [cause]


@pytest.mark.parametrize("cause", FAULTS)
def test_a_change_is_one_of_the_configs_fields_with_another_value_that_it_may_have(cause):
    (found,) = diagnose(frame(**FAULTS[cause]), {**CONFIG, "max_grad_norm": 1e-4, "eps_start": 0.0, "eps_end": 0.0})[
        0
    ].causes
    if cause == "time_limit":
        assert found.change == {}
        assert "truncated" in found.remark
        return
    assert set(found.change) <= set(found.config)
    assert all(CONFIG[field] != value or cause == "exploration" for field, value in found.change.items())
    pytree.replace(IQN(), **found.change)  # it may have them


def of_actor(**columns) -> pl.DataFrame:
    """A run of a loop that does not choose among values of actions."""
    return frame(**columns).with_columns(**{name: pl.lit(None, pl.Float64) for name in OF_CHOICES})


@pytest.mark.parametrize("cause", FAULTS)
def test_a_loop_with_an_actor_is_not_judged_by_ranges_that_were_measured_in_q_learning(cause):
    (one,) = diagnose(of_actor(**FAULTS[cause]), pytree.to_dict(ALGORITHMS["sac"].config()))
    holds = cause in ("sparse_reward", "time_limit")
    assert [found.cause for found in one.causes] == [cause] * holds
    assert one.near == ()
    figures = {rule.quantity for rule in RULES if not rule.is_own and rule.cause not in ("sparse_reward", "time_limit")}
    assert set(one.unranged) == figures
    lines = diagnosis.told([one])
    assert sum("figures without ranges, which were measured in Q-learning only: return_size" in x for x in lines) == 1
    assert any("sparse_reward, time_limit" in x for x in lines) == (not holds)
    assert not any("within its healthy range" in x for x in lines)
    assert diagnosis.as_json(one)["unranged"] == one.unranged


@pytest.mark.parametrize(("name", "change"), [
    ("td3", {"exploration_noise": 0.5}), ("sac", {"target_entropy": 0.0}), ("ppo", {"entropy_coefficient": 0.01}),
])  # fmt: skip
def test_where_nothing_an_actor_did_made_a_difference_it_is_to_explore_more(name, change):
    kind = ALGORITHMS[name].config
    (one,) = diagnose(of_actor(**FAULTS["sparse_reward"]), pytree.to_dict(kind()))
    assert one.causes[0].change == change
    pytree.replace(kind(), **change)
    (again,) = diagnose(of_actor(**FAULTS["sparse_reward"]), pytree.to_dict(pytree.replace(kind(), **change)))
    assert again.causes[0].change == {}
    assert "     try: more exploration, or rewards on the way to the goal" in diagnosis.told([again])


def test_a_change_is_told_as_the_command_line_takes_it():
    text = diagnosis.told(diagnose(frame(**FAULTS["reward_scale"]), CONFIG))
    assert "     try: reward_scale=0.0007" in text
    assert any(line.endswith("reward_scale=1.0") for line in text)


def test_a_smaller_factor_on_the_rewards_brings_returns_into_the_range_whatever_the_factor_was():
    for factor in (0.1, 1.0, 20.0):
        row = {"return_size": 5_000.0}
        (rule,) = (rule for rule in RULES if rule.cause == "reward_scale" and not rule.is_own)
        change = rule.change({**CONFIG, "reward_scale": factor}, row, healthy())
        assert set(change) == {"reward_scale"}
        low, high = healthy()["return_size"]
        assert low < 5_000 * change["reward_scale"] / factor < high


def test_where_every_episode_came_to_the_same_return_that_is_told_first_whatever_else_is_out_of_range():
    run = frame(return_mean=-200.0, return_std=0.0, huber_scale=1e-4, adam_damping=1e-4)
    (one,) = diagnose(run, CONFIG)
    assert one.outcome.word == "did not learn"
    assert one.causes[0].cause == "sparse_reward"
    assert one.causes[0].change == {"exploration_repeats": 100}
    repeated = {**CONFIG, "exploration_repeats": 100}
    assert diagnose(run, repeated)[0].causes[0].change == {"exploration_fraction": 0.5, "eps_end": 0.1}


def test_a_run_that_differs_from_what_it_was_before_training_is_no_sparse_one():
    solved_at_once = [0.0] + [1.0] * (len(STEPS) - 1)
    assert "sparse_reward" not in named(frame(return_mean=solved_at_once, return_std=0.0))


def test_one_episode_that_came_to_another_return_is_a_difference():
    once = np.zeros(len(STEPS))
    once[5] = 0.8  # of 128 episodes one ended 9 steps earlier
    assert named(frame(return_mean=-200.0, return_std=once)) == []


def test_limit_deaths_that_the_network_saw_coming_are_no_fault():
    # The task ends there by its own rules, and time is observed: Q falls to the last reward.
    assert named(frame(limit_deaths=1.0, limit_error=0.0)) == []


def test_kappa_is_out_of_range_on_either_side():
    assert named(frame(huber_scale=1e-4)) == ["kappa"]


def test_what_explains_another_cause_comes_first_whatever_their_scores():
    # Rewards a thousand times too large make TD errors a million kappas.
    run = frame(start_return=5_000.0, huber_scale=1e6)
    (one,) = diagnose(run, CONFIG)
    assert [cause.cause for cause in one.causes] == ["reward_scale", "kappa"]
    assert one.causes[0].score < one.causes[1].score


def test_among_others_the_one_farthest_out_comes_first():
    assert named(frame(adam_damping=1e-4, replay_episodes=5.0)) == ["adam_eps", "buffer"]


def test_the_evidence_says_since_when_and_how_long_before_the_fall():
    low, high = healthy()["clip_factor"]
    factors = [1.0] * 4 + [1e-4] * 7
    (one,) = diagnose(frame([10, 50, 100, 150, 200, 200, 200, 20, 10, 10, 10], clip_factor=factors), CONFIG)
    assert one.outcome == ("fell", 10, 200, 10, 7000)
    first = one.causes[0].evidence[0]
    # The median of ten rows, 1 three times and 1e-4 seven times; out from the fifth evaluation on.
    assert (first.quantity, first.median, first.low, first.high, first.since) == ("clip_factor", 1e-4, low, high, 4000)
    text = "\n".join(diagnosis.told([one]))
    assert "outside from step 4,000 on, 3,000 steps before the fall" in text
    assert "read from the config: max_grad_norm=inf" in text


def test_a_run_that_failed_without_a_sign_gets_a_study_that_would_decide():
    (one,) = diagnose(frame([10] * 11), CONFIG)
    assert one.outcome.word == "did not learn"
    assert one.causes == ()
    vary, together = one.study["one_at_a_time"], one.study.get("named", {})
    assert 1 <= sum(map(len, vary.values())) + len(together) <= diagnosis.PROPOSED
    assert all(CONFIG[field] not in values for field, values in vary.items())
    assert all(CONFIG[field] != value for variant in together.values() for field, value in variant.items())
    (line,) = (line for line in diagnosis.told([one]) if "the evidence is inconclusive" in line)
    told = yaml.safe_load("{" + line.partition("a study that would decide: ")[2] + "}")
    assert told == {"variants": one.study, "seeds": 10}  # as a study's file takes it
    definition.make({"base": {"config": CARTPOLE, "section": "iqn"}, **told}, "s")


def proposed(config, **columns) -> dict:
    (one,) = diagnose(frame([10] * 11, **columns), config)
    assert (one.outcome.word, one.causes) == ("did not learn", ())
    return one.study


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=list(ALGORITHMS))
def test_a_study_is_proposed_for_every_algorithm_and_from_what_was_measured_alone(algorithm):
    config = pytree.to_dict(algorithm.config())
    nothing = dict.fromkeys(Signals._fields, math.nan)
    absent = dict.fromkeys(("huber_scale", "replay_episodes", "reference_q_target"), math.nan)
    for columns in (absent, nothing, *([{}] if algorithm.config is IQN else [])):
        study = proposed(config, **columns)
        variants = [{f: v} for f, values in study.get("one_at_a_time", {}).items() for v in values]
        for change in (*variants, *study.get("named", {}).values()):
            assert all(config[field] != value for field, value in change.items())
            pytree.from_dict(algorithm.config, {**config, **change})
    rate = config["learning_rate"]
    varied = proposed(config, **nothing)["one_at_a_time"]["learning_rate"]
    assert varied == pytest.approx([rate / 10, rate * 3])


def test_fields_that_belong_together_are_proposed_together():
    # A soft target becomes a hard one: polyak alone would leave no target network, its frequency alone one that lags twice.
    config = {**CONFIG, "polyak": 0.97, "target_update_freq": 1}
    (target,) = (rule for rule in RULES if rule.cause == "target")
    study = diagnosis.proposal(config, {}, {target: -0.1}, healthy())
    assert study["named"]["target"] == {"polyak": 0.0, "target_update_freq": 32}
    assert not {"polyak", "target_update_freq"} & set(study.get("one_at_a_time", {}))


def test_minibatches_are_proposed_that_divide_what_is_collected():
    (rule,) = (rule for rule in RULES if rule.cause == "noise")
    for beyond in (0.1, 5.29, 60.0):
        config = pytree.to_dict(pqn.Config(num_minibatches=128))
        change = rule.change(config, {"noise_to_signal": beyond * healthy()["noise_to_signal"].high}, healthy())
        assert change["num_minibatches"] <= 64
        assert (config["num_envs"] * config["num_steps"]) % change["num_minibatches"] == 0


def test_cut_steps_that_a_config_takes_for_ends_are_a_field_to_change():
    (one,) = diagnose(frame(**FAULTS["time_limit"]), {**CONFIG, "bootstrap_truncated": False})
    assert one.causes[0].change == {"bootstrap_truncated": True}
    assert "     try: bootstrap_truncated=true" in diagnosis.told([one])


def test_noise_that_could_not_have_been_named_is_not_said_to_be_in_its_range():
    run = frame(gradient_noise=1.0, gradient_signal=-1.0)
    (one,) = diagnose(run, {**CONFIG, "batch_size": 64})
    assert diagnosis.told([one])[-1].startswith(
        "  noise cannot be judged with this batch and 10 evaluations: noise_to_signal"
    )
    assert named(run, {**CONFIG, "batch_size": 50}) == ["noise"]


LARGE = Finding("warning", "learning_rate", "learning_rate=0.1 is large", "by arithmetic", "", {"learning_rate": 0.01})


def test_what_lint_finds_is_a_cause_and_the_first_variant_of_the_proposed_study():
    config = {**CONFIG, "learning_rate": 0.1}
    (one,) = diagnose(frame([10] * 11), config, [LARGE, LARGE._replace(severity="note", change={"gamma": 0.9})])
    (cause,) = one.causes
    assert (cause.cause, cause.evidence, cause.change) == ("learning_rate", (), {"learning_rate": 0.01})
    assert cause.config == {"learning_rate": 0.1}
    assert one.study["one_at_a_time"]["learning_rate"][0] == 0.01
    lines = diagnosis.told([one])
    assert "  1. learning_rate: learning_rate=0.1 is large" in lines
    assert "     lint: by arithmetic, without a measurement" in lines
    assert "     try: learning_rate=0.01" in lines
    table = diagnosis.summary({"base": [one]})
    assert table["evidence"].to_list() == ["lint: learning_rate=0.1 is large"]
    (learned,) = diagnose(frame(), config, [LARGE])
    assert ([cause.cause for cause in learned.causes], learned.study) == (["learning_rate"], None)


def test_what_lint_finds_of_a_cause_that_was_measured_stands_beside_it():
    (one,) = diagnose(
        frame(update_ratio=0.1, limit_deaths=1.0, limit_error=0.5), {**CONFIG, "learning_rate": 0.1}, [LARGE]
    )
    assert [cause.cause for cause in one.causes] == ["learning_rate", "time_limit"]
    assert [cause.lint for cause in one.causes] == ["learning_rate=0.1 is large", ""]
    assert one.causes[0].evidence


def test_variants_of_a_study_without_signals_are_left_out(tmp_path):
    made = store(tmp_path / "s", {"base": [GOOD] * 2, "measured": [GOOD] * 2}, seeds=2)
    rows = made.records().to_dicts()
    for file in (made.path / "records").iterdir():
        file.unlink()
    signals = {name: middle(name) if name in healthy() else 0.5 for name in Signals._fields}
    made.write([row | (signals if row["variant"] == "measured" else {}) for row in rows])
    assert diagnosis.can_diagnose(made.records())
    assert list(diagnosis.diagnose_study(made.path)) == ["measured"]
    without = made.records().filter(variant="base")
    assert not diagnosis.can_diagnose(without)


def test_a_hyperparameter_that_came_after_a_study_was_begun_stood_at_its_default(tmp_path):
    made = store(tmp_path / "s", {"base": [GOOD] * 2}, seeds=2)
    for file in (made.path / "records").iterdir():
        file.unlink()
    made.write(frame(**FAULTS["reward_scale"]).with_columns(variant=pl.lit("base"), finite=True).rows(named=True))
    fields = made.facts["variants"]["base"]
    made.update(variants={"base": {name: value for name, value in fields.items() if name != "reward_scale"}})
    (one,) = diagnosis.diagnose_study(made.path)["base"]
    assert 0 < one.causes[0].change["reward_scale"] < 1

    made.update(variants={"base": fields | {"env": "gone/Away-v0", "gone": 1}})  # which lint cannot create
    assert [cause.cause for cause in diagnosis.diagnose_study(made.path)["base"][0].causes] == ["reward_scale"]


@pytest.mark.parametrize(
    ("returns", "word", "fall"),
    [
        ([10, 50, 100, 200, 200], "learned", None),
        ([10, 50, 200, 150, 120], "learned", None),  # not half of the way down from 200: 105
        ([10, 50, 200, 100, 200], "fell and came back", 3000),
        ([10, 50, 200, 100, 30], "fell", 3000),
        ([10, 11, 10, 9, 10], "did not learn", None),
        ([10, 10, 10, 10, 10], "did not learn", None),
        ([-500, -400, -100, -450, -500], "fell", 3000),
    ],
)
def test_how_a_run_went(returns, word, fall):
    run = frame(np.resize(returns, len(STEPS)))[: len(returns)]
    assert (diagnosis.judge(run).word, diagnosis.judge(run).fall) == (word, fall)


@pytest.mark.parametrize("how", ["finite", "return_mean"])
def test_a_run_whose_numbers_are_no_longer_finite_broke_and_did_not_learn_well(how):
    run = frame([10, 50, 100] + [200] * 8)
    bad = pl.Series([False] * 6 + [True] * 5)
    run = (
        run.with_columns(finite=~bad)
        if how == "finite"
        else run.with_columns(return_mean=pl.when(bad).then(math.nan).otherwise(pl.col("return_mean")))
    )
    (one,) = diagnose(run, CONFIG)
    assert one.outcome == ("broke", 10, 200, 200, 6000)
    assert one.study is not None, "what would decide is proposed"
    assert "seed 0: broke (at step 6,000)" in "\n".join(diagnosis.told([one]))


def test_the_noise_is_of_the_batch_that_is_trained_on_and_its_parts_are_summed_before_they_are_divided():
    # After the row before training S = 640 always and G2 = 2, -2, 6: sums 2, 0, 6. The standard error of one G2 is at most
    # sqrt(2) 640 / 512 = 1.7678, of the sums sqrt(1), sqrt(2), sqrt(3) times that.
    run = frame(gradient_noise=640.0, gradient_signal=[9.0, 2.0, -2.0, 6.0] + [1.0] * 7)
    made = quantities(run, {**CONFIG, "batch_size": 32})["noise_to_signal"]
    expected = [20 / (2 + 3.5355), 40 / (0 + 5), 60 / (6 + 6.1237)]
    assert made[:3].to_list() == pytest.approx(expected, rel=1e-4)


def test_noise_of_which_no_signal_could_be_told_is_not_called_large():
    # With B = 16 and ten evaluations of 512 transitions, no more than 512 sqrt(10) / (16 * 2 sqrt(2)) can be said.
    made = quantities(frame(gradient_noise=1.0, gradient_signal=-1.0), CONFIG)["noise_to_signal"]
    assert made[9] == pytest.approx(32 * 10**0.5 / 8**0.5)


def test_seeds_are_told_apart_and_in_sum():
    run = pl.concat([frame(seed=s, **(FAULTS["clipping"] if s else {})) for s in range(3)])
    found = diagnose(run, CONFIG)
    assert [one.seed for one in found] == [0, 1, 2]
    assert diagnosis.sums(found) == ["clipping named first in 2 of 3 seeds", "no cause named first in 1 of 3 seeds"]
    assert json.dumps([diagnosis.as_json(one) for one in found], allow_nan=False)


def test_an_algorithm_without_replay_target_and_quantiles_is_judged_by_the_rest():
    absent = ["replay_episodes", "reference_q_target", "target_lag", "huber_scale", "huber_share", "calibration"]
    run = frame().with_columns(**{name: pl.lit(None, pl.Float64) for name in absent})
    config = pytree.to_dict(pqn.Config(num_minibatches=128))  # of 16 transitions each
    assert named(run, config) == []
    assert named(run.with_columns(gradient_noise=pl.lit(1e7)), config) == ["noise"]
    assert named(run.with_columns(exploration=pl.lit(0.0)), config) == ["exploration"]


def test_of_a_run_without_signals_the_curve_and_the_config_are_judged():
    (one,) = diagnose(frame().drop(Signals._fields), CONFIG, [LARGE])
    assert (one.outcome.word, [cause.cause for cause in one.causes]) == ("learned", ["learning_rate"])
    assert one.unjudged == (diagnosis.CURVES_ONLY,)
    sparse = frame(return_mean=-200.0, return_std=0.0).drop(Signals._fields)
    (one,) = diagnose(sparse, CONFIG)
    assert [cause.cause for cause in one.causes] == ["sparse_reward"]
    assert [evidence.quantity for evidence in one.causes[0].evidence] == ["return_range", "return_std"]  # as measured


def test_too_few_evaluations_are_refused():
    with pytest.raises(ConfigError, match="3 evaluations"):
        diagnose(frame()[:3], CONFIG)


def test_a_run_from_before_a_signal_existed_is_judged_by_those_it_has():
    assert named(frame(huber_scale=30.0).drop("without_gradient", "value_change"), CONFIG) == ["kappa"]


def test_every_rule_reads_a_range_that_was_measured():
    for rule in RULES:
        assert rule.is_own or rule.quantity in healthy()
        assert rule.is_own or set(rule.beside) <= set(healthy())
        assert set(rule.explains) <= {other.cause for other in RULES}


def test_the_page_has_each_signal_and_rule_and_the_counts_of_the_validation():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "diagnosis.md").read_text()
    for name in (*Signals._fields, *(rule.cause for rule in RULES)):
        assert f"\n| `{name}` |" in page
    held = pl.read_csv(root / "investigations" / "0003-diagnosis" / "results.csv").filter(split="held out")
    faults, sound = held.filter(kind="fault"), held.filter(kind="healthy")
    right = faults.filter(pl.col("named_first") == pl.col("cause")).height
    alarms = sound.filter(pl.col("named_first") != "none").height
    assert (
        f"**{right} of {faults.height} faults are named first. A cause is named in {alarms} of {sound.height} runs"
        in page
    )
