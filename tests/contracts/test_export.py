"""Exported policies act as the policies do: ONNX in a process without JAX, and StableHLO."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import quantilax
from quantilax import ALGORITHMS, Box, ConfigError, Discrete, TimeStep, cli, export, pytree, train
from quantilax.agent import create
from quantilax.algorithms.actor_critic import Bounds
from quantilax.export import function
from quantilax.heads import HEADS
from quantilax.types import Policy
from tests import guides
from tests.conftest import TINY, tiny

SMALL = dict(num_atoms=7, v_min=-2.0, v_max=2.0, num_quantiles=5, num_fractions=4, num_cosines=8,
             num_tau_samples=4, num_tau_prime_samples=3, num_quantile_samples=5)  # fmt: skip
TAUS = np.array([0.03, 0.41, 0.77, 0.96], np.float32)


def still(space, actions, masks=False):
    """An environment of any spaces, in which nothing happens."""

    @pytree.dataclass
    class Still:
        name = "still"
        observation_space, action_space, max_episode_steps = space, actions, 3

        def reset(self, key):
            return (), jnp.zeros(space.shape, space.dtype), *([jnp.ones(actions.n, bool)] if masks else [])

        def step(self, key, state, action):
            _, obs, *legal = self.reset(key)
            mask, false = legal[0] if masks else None, jnp.zeros((), bool)
            return (), TimeStep(obs, obs, jnp.zeros(()), false, false, mask, mask)

    return Still()


VECTOR, PICTURE = Box((6,)), Box((10, 9, 2), jnp.uint8, 0, 255)
CHOICE, PUSH = Discrete(3), Box((2,), jnp.float32, np.array([-1.0, 2.0]), np.array([3.0, 4.0]))


def agent(loop, env=None, **changes):
    """A tiny agent; actor-critics act in a box."""
    env = env or still(VECTOR, PUSH if ALGORITHMS[loop].actions == (Box,) else CHOICE)
    return create(ALGORITHMS[loop], env, {**TINY[loop], **SMALL, **changes})


def filled(algo, seed=0):
    """A state with random numbers, without running anything."""
    rng = np.random.default_rng(seed)

    def leaf(path, spec):
        if jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if not jnp.issubdtype(spec.dtype, jnp.floating):
            return np.zeros(spec.shape, spec.dtype)
        is_weight = "params" in str(path)
        draw = rng.normal(0, 0.5, spec.shape) if is_weight else rng.uniform(0.5, 1.5, spec.shape)
        return jnp.asarray(draw, spec.dtype)

    state = jax.tree.map_with_path(leaf, train.state_spec(*algo.arguments()))
    return replace(state, bounds=Bounds.of(algo.env.action_space)) if hasattr(state, "bounds") else state


def observations(space, n, seed=1):
    rng = np.random.default_rng(seed)
    if jnp.issubdtype(space.number, jnp.floating):
        return rng.normal(size=(n, *space.shape)).astype(np.float32)
    return rng.integers(0, 2 if space.number == jnp.bool_ else 9, (n, *space.shape)).astype(space.number)


def session(data):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def run(data, **given):
    made = session(data)
    usual = {"risk": np.array(1, np.float32), "taus": TAUS}
    given = {name: usual[name] for name in usual if name in {told.name for told in made.get_inputs()}} | given
    return dict(zip([output.name for output in made.get_outputs()], made.run(None, given), strict=True))


def without_chance(algo):
    has = hasattr(algo.config, "acting_tau_sampling")
    return algo.replace(acting_tau_sampling="midpoints") if has else algo


def expected(algo, state, obs, legal=None, taus=TAUS):
    """What the agent says: action, q and quantiles."""
    algo = without_chance(algo)
    policy, q = algo.policy(state), algo.algorithm.q

    @jax.jit
    def all_of(obs, legal):
        key = jax.random.key(5)
        action = jax.vmap(lambda x, *mask: policy(x, key, *mask))(obs, *([] if legal is None else [legal]))
        return action, jax.vmap(lambda x: q(algo.config, state, x, key))(obs)

    found = dict(zip(("action", "q"), map(np.asarray, all_of(obs, legal)), strict=True))
    if HEADS[algo.config.head].quantiles is not None:
        found["quantiles"] = np.asarray(jax.jit(lambda x: algo.quantiles(state, x, taus))(obs))
    return found


def assert_the_same(found, wanted, tolerance=1e-5):
    assert set(found) == set(wanted)
    for name in set(found) - {"action"}:
        scale = max(1.0, np.abs(wanted[name]).max())
        assert_allclose(found[name], wanted[name], rtol=0, atol=tolerance * scale, err_msg=name)
    one, other = found["action"], wanted["action"]
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    if jnp.issubdtype(one.dtype, jnp.floating):
        assert_allclose(one, other, rtol=0, atol=tolerance)
    elif wanted["q"].shape[1] > 1:  # actions may differ only in a tie
        rows = np.arange(len(one))
        assert_allclose(wanted["q"][rows, one], wanted["q"][rows, other], rtol=0, atol=2 * tolerance)
        assert (one == other).mean() > 0.999
    else:
        assert_array_equal(one, other)


QUICK = {
    "q_learning": set(HEADS),
    "pqn": {"implicit_quantile"},
    "ppo": {"quantile"},
    "sac": {"implicit_quantile"},
    "td3": {"quantile"},
}
"""Pairs in `make test`: each head once, and each loop. The others are in `make validate`."""
PAIRS = [
    pytest.param(loop, head, marks=() if head in quick else pytest.mark.validation)
    for loop, quick in QUICK.items()
    for head in HEADS
]


@pytest.mark.parametrize(("loop", "head"), PAIRS)
def test_every_pair_of_loop_and_head_does_the_same_in_onnx(loop, head):
    algo = agent(loop, head=head, normalize_observations=True, reward_scale=0.5)
    state, obs = filled(algo), observations(VECTOR, 10_000 if head.endswith("quantile") else 64)
    data = export.to_onnx(algo, state)
    assert_the_same(run(data, observation=obs), expected(algo, state, obs))
    one = run(data, observation=obs[:1])
    assert [len(x) for x in one.values()] == [1] * len(one), "any batch"


KINDS = {
    "bools": (still(Box((10, 10, 4), jnp.bool_, 0, 1), CHOICE), dict(head="scalar", torso="minatar"), 1e-5),
    "frames of bytes": (
        still(Box((10, 9, 4), jnp.uint8, 0, 255, frames=4), CHOICE),
        dict(torso="minatar", layer_norm=True),
        1e-5,
    ),
    "large pictures": (still(Box((44, 40, 2), jnp.uint8, 0, 255), CHOICE), dict(head="scalar", torso="nature"), 1e-5),
    "residual blocks": (still(VECTOR, CHOICE), dict(head="scalar", torso="simba", activation="gelu"), 1e-5),
    "non-crossing": (still(VECTOR, CHOICE), dict(head="quantile", non_crossing=True, activation="swish"), 1e-5),
    "a noisy network, at its mean": (
        still(VECTOR, CHOICE),
        dict(head="implicit_quantile", noisy=True, dueling=True, activation="tanh"),
        1e-5,
    ),
    "bfloat16, to the rounding": (still(VECTOR, CHOICE), dict(head="quantile", compute_dtype="bfloat16"), 0.05),
}
LONG = {
    "impala": (still(PICTURE, CHOICE), dict(head="scalar", torso="impala", spectral_norm=True), 1e-4),
    "whole numbers": (still(Box((3, 2), jnp.int32, 0, 9), CHOICE), dict(head="hl_gauss"), 1e-5),
}


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.validation) for kind in LONG)])
def test_every_kind_of_observation_and_layer_does_the_same_in_onnx(kind):
    env, changes, tolerance = (KINDS | LONG)[kind]
    algo = agent("q_learning", env, **changes)
    state, obs = filled(algo), observations(env.observation_space, 32)
    data, wanted = export.to_onnx(algo, state), expected(algo, state, obs)
    found = run(data, observation=obs)
    if tolerance > 1e-5:
        found["action"] = wanted["action"]  # its ties are wider
    assert_the_same(found, wanted, tolerance)


def test_the_file_has_the_masks_and_the_risk_level_of_the_policy():
    algo = agent("q_learning", still(VECTOR, CHOICE, masks=True), head="implicit_quantile")
    state, obs = filled(algo), observations(VECTOR, 64)
    legal = np.random.default_rng(2).random((64, CHOICE.n)) < 0.4
    legal[:, 1] |= ~legal.any(axis=1)
    data = export.to_onnx(algo, state)
    assert_the_same(run(data, observation=obs, legal=legal), expected(algo, state, obs, legal))
    cautious = algo.replace(risk="cvar", risk_eta=0.2)
    found = run(data, observation=obs, legal=legal, risk=np.array(0.2, np.float32))
    assert_the_same(found, expected(cautious, state, obs, legal))
    assert np.abs(found["q"] - run(data, observation=obs, legal=legal)["q"]).max() > 0.01


@pytest.mark.parametrize("risk", ["wang", pytest.param("cpw", marks=pytest.mark.validation)])
def test_the_risk_level_of_a_run_with_another_distortion_is_its_eta(risk):
    algo = agent("q_learning", head="implicit_quantile", risk=risk, risk_eta=0.6)
    state, obs = filled(algo), observations(VECTOR, 64)
    data = export.to_onnx(algo, state)
    at = dict(observation=obs, risk=np.array(0.6, np.float32))
    assert_the_same(run(data, **at), expected(algo, state, obs))
    found = run(data, **at | dict(risk=np.array(0.3, np.float32)))
    assert_the_same(found, expected(algo.replace(risk_eta=0.3), state, obs))


@pytest.mark.parametrize("loop", ["sac", pytest.param("ppo", marks=pytest.mark.validation)])
def test_a_policy_that_does_not_depend_on_the_risk_level_has_no_such_input(loop):
    algo = agent(loop, head="implicit_quantile")
    assert set(function.of_agent(algo, filled(algo)).inputs) == {"observation", "taus"}


def test_wrappers_that_encode_are_in_the_file_and_a_stack_of_frames_is_not():
    wrappers = ["normalize", {"frame_stack": {"frames": 2}}, "flatten"]
    algo = create(ALGORITHMS["dqn"], still(PICTURE, CHOICE), TINY["dqn"], wrappers=wrappers)
    state, obs = filled(algo), np.random.default_rng(0).random((8, 10, 9, 4)).astype(np.float32)
    found = run(export.to_onnx(algo, state), observation=obs)
    assert_the_same(found, expected(algo, state, obs.reshape(8, -1)))


@pytest.mark.parametrize(
    ("objective", "stocks"), [("static_cvar", 1), pytest.param("spectral", 2, marks=pytest.mark.validation)]
)
def test_stocks_are_an_input_in_the_units_of_returns(objective, stocks):
    asked = dict(risk_objective=objective, risk_levels=(0.1, 0.5), return_min=-3.0, return_max=5.0)
    one_hot = still(Box((2,), jnp.int32, 0, np.array([2, 3])), CHOICE)
    algo = create(ALGORITHMS["qrdqn"], one_hot, {**TINY["qrdqn"], "num_quantiles": 5, **asked}, wrappers=["one_hot"])
    state, rng = filled(algo), np.random.default_rng(0)
    obs = rng.integers(0, [3, 4], (64, 2)).astype(np.int32)
    stock = -np.sort(-rng.uniform(-5, 3, (64, stocks)).astype(np.float32), axis=1)
    encoded = jax.vmap(lambda x, c: algo.env.shown(algo.env.env.encode(x), c))(obs, stock)
    found = run(export.to_onnx(algo, state), observation=obs, stock=stock)
    assert_the_same(found, expected(algo, state, np.asarray(encoded)))
    others = run(export.to_onnx(algo, state), observation=obs, stock=stock[::-1])
    assert np.abs(found["quantiles"] - others["quantiles"]).max() > 0.01


def test_the_first_stock_of_the_guide_is_that_of_the_agent():
    asked = dict(risk_objective="static_cvar", risk_level=0.125, return_min=-3.0, return_max=5.0, num_quantiles=16)
    algo = agent("q_learning", head="quantile", **asked)
    state = filled(algo)
    policy = session(export.to_onnx(algo, state))
    (block,) = re.findall(r"```py\n(low, high, level.*?)```", (guides.GUIDES / "deploy.md").read_text(), re.DOTALL)
    block = block.replace("0.1  #", "0.125  #")
    for first in observations(VECTOR, 4):
        wanted = algo.env.of(algo.begin(state, ((), jnp.zeros(1)), algo.env.shown(first, jnp.zeros(1)))[1])
        names = {"np": np, "policy": policy, "return_max": 5.0, "return_min": -3.0, "first": first}
        exec(block, names)
        assert_allclose(names["stock"], wanted, atol=1e-5)


def test_a_file_of_the_action_alone_leaves_the_critics_out():
    algo = agent("sac", head="quantile")
    state, obs = filled(algo), observations(VECTOR, 16)
    whole, small = (export.to_onnx(algo, state, outputs) for outputs in (function.OUTPUTS, ["action"]))
    found = run(small, observation=obs)
    assert list(found) == ["action"]
    assert_array_equal(found["action"], run(whole, observation=obs)["action"])
    assert len(small) < len(whole)
    with pytest.raises(ConfigError, match="outputs: unknown output 'quantile'; did you mean 'quantiles'"):
        export.to_onnx(algo, state, ["quantile"])


def test_what_a_file_says_about_itself():
    algo = agent("q_learning", head="quantile")
    model = onnx.load_from_string(export.to_onnx(algo, filled(algo), seed=3))
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told == {
        "version": quantilax.__version__,
        "algorithm": "q_learning",
        "head": "quantile",
        "environment": "still",
        "gamma": "0.99",
        "env_steps": "0",
        "action": "a whole number from 0 to 2",
        "seed": "3",
    }
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "observation": ["batch", 6],
        "taus": ["taus"],
        "action": ["batch"],
        "q": ["batch", 3],
        "quantiles": ["batch", "taus", 3],
    }
    assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))


def test_stablehlo_takes_any_batch_and_any_fractions():
    algo = agent("q_learning", head="implicit_quantile")
    state, obs = filled(algo), observations(VECTOR, 7)
    data = export.to_stablehlo(algo, state)
    assert b".py" not in data, "no paths of this machine"
    policy = jax.export.deserialize(bytearray(data))
    assert policy.platforms == export.PLATFORMS
    wanted = expected(algo, state, obs)
    for given in (obs, obs[:3]):
        found = policy.call({"observation": given, "taus": TAUS, "risk": np.float32(1)})
        assert_the_same(jax.tree.map(np.asarray, found), {name: x[: len(given)] for name, x in wanted.items()})
    two = policy.call({"observation": obs, "taus": TAUS[:2], "risk": np.float32(1)})
    assert_allclose(two["quantiles"], wanted["quantiles"][:, :2], atol=1e-5)


WITHOUT_JAX = """
import json, runpy, sys
for name in ("jax", "jaxlib", "flax", "quantilax", "onnx"):
    sys.modules[name] = None  # importing it fails
import numpy as np, onnxruntime
told = np.load("told.npz")
given = {"observation": told["obs"], "taus": told["taus"], "risk": np.array(1, np.float32)}
action, q, quantiles = onnxruntime.InferenceSession("policy.onnx").run(["action", "q", "quantiles"], given)
apart = [float(np.abs(x - told[name]).max()) for x, name in ((q, "q"), (quantiles, "quantiles"))]
print(json.dumps([int((action != told["action"]).sum()), *apart]))
runpy.run_path("play.py")
"""


def test_the_program_of_the_guide_plays_and_ten_thousand_observations_agree_without_jax(tmp_path):
    algo = create(ALGORITHMS["iqn"], "CartPole-v1", {**TINY["iqn"], "torso_sizes": (64, 64), "head_sizes": (64,)})
    state, obs = filled(algo), observations(Box((4,)), 10_000)
    (tmp_path / "policy.onnx").write_bytes(export.to_onnx(algo, state))
    (tmp_path / "play.py").write_text(guides.files("deploy.md")["play.py"])
    wanted = expected(algo, state, obs)
    np.savez(tmp_path / "told.npz", obs=obs, taus=TAUS, **wanted)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_JAX]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.stderr == ""
    told, steps = ended.stdout.splitlines()
    others, of_q, of_quantiles = json.loads(told)
    scale = np.abs(wanted["q"]).max()
    assert others <= 10
    assert max(of_q, of_quantiles) <= 1e-5 * scale
    assert re.fullmatch(r"\d+ steps", steps)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "dqn"
    quantilax.run(tiny("dqn"), path, seeds=[3, 5], quiet=True)
    return path


def test_a_run_is_exported_by_the_command_line(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["quantilax", "export", str(finished), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    status, out, err = call("--seed", 5)
    assert (status, err) == (0, "")
    assert out == f"policy.onnx: {(tmp_path / 'policy.onnx').stat().st_size:,} bytes\n"
    algo, state, _ = quantilax.load(finished, seed=5)
    obs = observations(algo.env.observation_space, 5)
    assert_the_same(run((tmp_path / "policy.onnx").read_bytes(), observation=obs), expected(algo, state, obs))
    told = session((tmp_path / "policy.onnx").read_bytes()).get_modelmeta().custom_metadata_map
    assert told["seed"] == "5"
    assert {"commit", "env_steps"} <= set(told)

    exists = "error: --out: policy.onnx exists, and nothing is overwritten; choose another name\n"
    assert call() == (2, "", exists)
    suffix = "error: --out: p.pb: expected a name that ends with .onnx or .stablehlo\n"
    assert call("--out", "p.pb") == (2, "", suffix)
    missing = "error: --out: no is no directory; choose another name\n"
    assert call("--out", "no/p.onnx") == (2, "", missing)
    assert call("--out", "p.onnx", "--seed", 6)[::2] == (2, f"error: {finished}: has no seed 6; it has 3, 5\n")
    assert "expected last, best or a number" in call("--out", "p.onnx", "--checkpoint", "first")[2]

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.files, "write_whole", full)
    unwritable = "error: --out: p.onnx cannot be written: No space left on device; choose another name\n"
    assert call("--out", "p.onnx") == (2, "", unwritable)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.onnx"]


def test_a_run_without_a_checkpoint_is_refused(finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "config.yaml"):
        (run / name).write_bytes((finished / name).read_bytes())
    with pytest.raises(quantilax.RunError, match="has no checkpoint; the run was stopped before its first one"):
        export.export(run, tmp_path / "policy.onnx")


def with_policy(act, carry=()):
    """An agent whose policy is a function of observation and carry."""
    algo = agent("q_learning", head="scalar")
    policy = Policy(lambda obs, carry, key, legal: (act(obs, carry), carry), carry)
    return replace(algo, algorithm=algo.algorithm._replace(policy=lambda env, config, state: policy, q=None))


@pytest.mark.parametrize(
    ("algo", "line"),
    [
        (with_policy(lambda obs, carry: jnp.int32(0), jnp.zeros(3)), "q_learning: its policy remembers something"),
        (
            with_policy(lambda obs, carry: jnp.sort(obs).argmax()),
            "ONNX: there is no operator here for JAX's sort, which the policy uses; export to a .stablehlo file",
        ),
    ],
)
def test_a_policy_that_no_file_can_hold_is_refused_in_one_line(algo, line):
    with pytest.raises(ConfigError, match=line):
        export.to_onnx(algo, filled(algo))


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    algo = agent("q_learning", head="scalar")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    for to, package in ((export.to_onnx, "onnx"), (export.to_stablehlo, "flatbuffers")):
        with pytest.raises(ConfigError, match=rf"^{package} is not installed; pip install 'quantilax\[export\]'$"):
            to(algo, None)


def test_several_states_at_once_are_refused():
    algo = agent("q_learning", head="scalar")
    states = jax.tree.map(lambda x: jnp.stack([x, x]), filled(algo))
    with pytest.raises(ConfigError, match="expected that of one run, got 2 on a leading axis"):
        export.to_onnx(algo, states)
