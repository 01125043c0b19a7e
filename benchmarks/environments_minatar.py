"""Side of `benchmarks.environments`: the original's games are put into gymnax's states, and both take the same step.

Runs in an environment with MinAtar and gymnax. What the original draws at random is replaced by what gymnax drew; sticky
actions are off. Prints a line of JSON for each game, then what becomes of Asterix's rows where few of them are free.
"""

import collections
import json
import sys
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.minatar import asterix
from minatar import Environment

GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
WHOLE = {
    "Asterix": "player_x player_y spawn_speed spawn_timer move_speed move_timer ramp_timer ramp_index",
    "Breakout": "ball_y ball_x ball_dir pos last_x last_y",
    "Freeway": "pos move_timer",
    "Seaquest": "oxygen sub_x sub_y diver_count e_spawn_speed e_spawn_timer d_spawn_timer move_speed ramp_index shot_timer",
    "SpaceInvaders": "pos alien_dir enemy_move_interval alien_move_timer alien_shot_timer ramp_index shot_timer",
}
"""Whole numbers that both have under the same name."""
ARRAYS = {"Breakout": "brick_map", "SpaceInvaders": "f_bullet_map e_bullet_map alien_map"}
FLAGS = {"Breakout": "strike", "Seaquest": "sub_or surface"}
LISTS = {
    "f_bullets": ("f_bullet_count", "iib"),
    "e_bullets": ("e_bullet_count", "iib"),
    "e_fish": ("e_fish_count", "iibi"),
    "e_subs": ("e_subs_count", "iibii"),
    "divers": ("divers_count", "iibi"),
}
"""Of Seaquest: how many there are, and whether an entry is a whole number or a bool."""
FREEWAY_LIMIT = 2_501


def of_list(state: Any, name: str) -> list[list[Any]]:
    """Write one of Seaquest's lists as the original has it."""
    count, kinds = LISTS[name]
    rows = np.asarray(getattr(state, name))[: int(getattr(state, count))]
    return [[bool(x) if kind == "b" else int(x) for kind, x in zip(kinds, row, strict=False)] for row in rows]


def load(game: str, theirs: Any, state: Any) -> None:
    """Put the original's game into gymnax's state."""
    theirs.terminal = False
    for name in WHOLE[game].split():
        setattr(theirs, name, int(getattr(state, name)))
    for name in ARRAYS.get(game, "").split():
        setattr(theirs, name, np.array(getattr(state, name), float))
    for name in FLAGS.get(game, "").split():
        setattr(theirs, name, bool(getattr(state, name)))
    if game == "Freeway":
        theirs.cars = [[int(x) for x in car] for car in np.asarray(state.cars)]
        theirs.terminate_timer = FREEWAY_LIMIT - 1 - int(state.time)
    if game == "Asterix":
        rows = np.asarray(state.entities)
        theirs.entities = [[int(x), int(y), bool(lr), bool(gold)] if there else None for x, y, lr, gold, there in rows]
    if game == "Seaquest":
        for name in LISTS:
            setattr(theirs, name, of_list(state, name))


def draw_as_gymnax(game: str, theirs: Any, env: Any, key: Any, state: Any, params: Any) -> None:
    """Let the original's next draws be those that gymnax makes with this key."""
    if game == "Asterix" and theirs.spawn_timer == 0:
        entity, slot = asterix.spawn_entity(key, state)
        x, y, lr, gold, there = np.asarray(entity)
        new = [int(x), int(y), bool(lr), bool(gold)] if there else None
        theirs._spawn_entity = lambda: theirs.entities.__setitem__(int(slot), new)
    if game == "Freeway":
        speeds, directions = jax.random.split(key)
        drawn = jax.random.randint(speeds, (8,), 1, 6) * jax.random.choice(directions, jnp.array([-1, 1]), (8,))

        def randomize(initialize: bool = False) -> None:
            for car, speed in zip(theirs.cars, np.asarray(drawn), strict=True):
                car[2:4] = [abs(int(speed)), int(speed)]

        theirs._randomize_cars = randomize
    if game == "Seaquest":
        drawn = env._spawn_entities(*jax.random.split(key), state, params)

        def spawn(*names: str) -> None:
            for name in names:
                setattr(theirs, name, of_list(drawn, name))

        theirs._spawn_enemy = lambda: spawn("e_fish", "e_subs")
        theirs._spawn_diver = lambda: spawn("divers")


def act(game: str, state: Any, rng: np.random.Generator, actions: int) -> int:
    """Play so that an episode comes beyond its first frames: follow the ball, cross the road, dive; else at random."""
    if game == "Breakout" and rng.random() < 0.9:
        towards = int(state.ball_x) + (1 if int(state.ball_dir) in (1, 2) else -1)
        return 1 if towards < int(state.pos) else 2 if towards > int(state.pos) else 0
    if game == "Freeway" and rng.random() < 0.8:
        return 1
    if game == "Seaquest" and rng.random() < 0.4:
        return int(rng.choice([5, 4, 4, 1, 3]))
    return int(rng.integers(actions))


def compare(game: str, steps: int) -> dict[str, Any]:
    """Take so many steps of a game, and count in how many of them the two differ, and in what."""
    env, params = gymnax.make(f"{game}-MinAtar")
    original = Environment(GAMES[game], sticky_action_prob=0.0)
    step, reset = jax.jit(env.step_env), jax.jit(env.reset_env)
    rng, key = np.random.default_rng(0), jax.random.key(0)
    obs, state = reset(key, params)
    actions = np.asarray(env.action_set)
    differs: collections.Counter[str] = collections.Counter()
    total, episodes = 0.0, 0
    for _ in range(steps):
        key, ours = jax.random.split(key)
        action = act(game, state, rng, len(actions))
        theirs = original.env
        load(game, theirs, state)
        differs["observation"] += not np.array_equal(np.asarray(obs) > 0, theirs.state())
        draw_as_gymnax(game, theirs, env, ours, state, params)
        their_reward, their_end = theirs.act(int(actions[action]))
        obs, state, reward, end, _ = step(ours, state, action, params)
        if game == "Freeway":  # gymnax has its own limit, of one frame less; docs/guides/environments.md
            end = int(state.time) >= FREEWAY_LIMIT
        total += float(reward)
        differs["reward"] += float(reward) != float(their_reward)
        differs["end"] += bool(end) != bool(their_end)
        differs[("last " if end else "") + "observation"] += not np.array_equal(np.asarray(obs) > 0, theirs.state())
        if end:
            episodes += 1
            key, begin = jax.random.split(key)
            obs, state = reset(begin, params)
    return {"game": game, "reward": total, "episodes": episodes, "differs": {k: n for k, n in differs.items() if n}}


def asterix_rows(free: int, draws: int = 4_000) -> dict[str, Any]:
    """With so many of Asterix's eight rows free: how often nothing appears, and how often an entity vanishes then."""
    env, params = gymnax.make("Asterix-MinAtar")
    _, state = env.reset(jax.random.key(0), params)
    entities = np.array([[5, i + 1, 1, 0, 1] for i in range(8)])
    entities[:free] = 0
    state = state.replace(entities=jnp.asarray(entities), spawn_timer=0, player_x=0, player_y=1)
    drawn, slots = jax.vmap(lambda key: asterix.spawn_entity(key, state))(jax.random.split(jax.random.key(1), draws))
    nothing = np.asarray(drawn)[:, 4] == 0
    vanished = nothing & (entities[np.asarray(slots), 4] == 1)
    return {"free rows": free, "nothing appears": nothing.mean().item(), "an entity vanishes": vanished.mean().item()}


if __name__ == "__main__":
    for name in GAMES:
        print(json.dumps(compare(name, int(sys.argv[1]))), flush=True)
    for number in (0, 1, 2, 4):
        print(json.dumps(asterix_rows(number)), flush=True)
