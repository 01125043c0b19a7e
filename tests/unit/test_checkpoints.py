"""Checkpoints on disk: what comes back, which ones are kept, and what becomes of damaged ones."""

import contextlib
import logging
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from quantilax import Transition, devices, replay
from quantilax.errors import CheckpointError
from quantilax.runs import checkpoints
from quantilax.runs.checkpoints import Packed, path_of
from tests.conftest import tiny
from tests.manifests import content_of, write_manifest
from tests.trees import assert_same_bits

STEPS = (100, 200, 300)


def facts(return_mean: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"config": {}, "rows": 0, "return_mean": return_mean, "versions": {"quantilax": "7.7"}, **more}


def some(step: int) -> Packed:
    """Arrays of all three kinds: of the state, of a replay of more than one block, and a row of evaluations per step."""
    rng = np.random.default_rng(step)
    arrays = {
        "state/kernel": rng.standard_normal((2, 3, 4), np.float32),
        "state/frames": rng.integers(0, 256, (2, 5, 7), np.uint8),
        "state/done": rng.integers(0, 2, (2, 5)).astype(bool),
        "state/step": np.array(step, np.int32),
    }
    replay = np.zeros((2, 40, 5), np.uint8)
    replay[:, 8:9] = rng.integers(0, 256, (2, 1, 5), np.uint8)
    rows = step // 100
    evaluations = {"history/returns": np.arange(rows * 4.0, dtype=np.float32).reshape(rows, 2, 2)}
    return Packed(arrays, {"state/replay/observations": replay}, evaluations)


def some_arrays(step: int) -> checkpoints.Arrays:
    packed = some(step)
    return {**packed.arrays, **packed.blocks, **packed.evaluations}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def assert_same(there: checkpoints.Arrays, expected: checkpoints.Arrays) -> None:
    assert there.keys() == expected.keys()
    for name, array in expected.items():
        assert (there[name].dtype, there[name].shape) == (array.dtype, array.shape), name
        assert there[name].tobytes() == array.tobytes(), name


def sign(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let a checkpoint's manifest say something else, with the sum right."""
    content = content_of(path)
    changed = change(content)
    write_manifest(path, content if changed is None else changed)


def files(path: Path) -> list[Path]:
    """The files that only the last checkpoint reads, except for the end of the evaluations' file."""
    others = {digest for other in path.parent.glob("*.safetensors") if other != path for digest in blocks_of(other)}
    return [path, *(path.parent / "blocks" / digest for digest in sorted(blocks_of(path) - others))]


def blocks_of(path: Path) -> set[str]:
    return {digest for *_, digests in content_of(path)["blocks"].values() for digest in digests}


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """A block holds eight rows of the replay of `some`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "BLOCK", (40, 40))
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 100, 200 and 300; not to be changed."""
    root = tmp_path_factory.mktemp("saved") / "checkpoints"
    for step in STEPS:
        checkpoints.save(root, step, some(step), facts())
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run" / "checkpoints"))


@pytest.fixture
def newest(root: Path) -> Path:
    return path_of(root, 300)


def found(root: Path, which: str | int = "last") -> tuple[int, list[str]]:
    """The step of the checkpoint that `find` returns, and its warnings; its arrays are verified."""
    warnings: list[str] = []
    checkpoint = checkpoints.find(root, which, warnings.append)
    step = checkpoint.facts["env_step"]
    assert_same(checkpoint.arrays, some_arrays(step))
    return step, warnings


# What comes back


def test_arrays_come_back_bit_for_bit_with_their_dtypes_zero_size_and_bfloat16_among_them(tmp_path):
    arrays = {
        "frames": np.arange(256, dtype=np.uint8).reshape(2, 128),
        "flags": np.array([[True, False], [False, True]]),
        "half": np.asarray(jnp.linspace(-3, 3, 7, dtype=jnp.bfloat16)),
        "no_rows": np.zeros((2, 0, 3), np.uint8),
        "nothing": np.zeros((0,), jnp.bfloat16),
        "number": np.array(2**31 - 1, np.int32),
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "key": np.array([2**32 - 1, 0], np.uint32),
        "deep/er.and/0/x y": np.ones((1,), np.float32),
    }
    path = checkpoints.save(tmp_path / "checkpoints", 7, Packed(arrays), facts(2.5, seeds=[3]))
    read = checkpoints.read(path)
    assert_same(read.arrays, arrays)
    assert (read.facts["env_step"], read.facts["return_mean"], read.facts["seeds"]) == (7, 2.5, [3])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_come_back_and_draw_the_same(tmp_path, impl):
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    state = {"key": keys, "raw": jax.random.PRNGKey(1)}
    path = checkpoints.save(tmp_path / "checkpoints", 1, checkpoints.pack(state), facts())
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    back = checkpoints.unpack(checkpoints.read(path), specs)
    assert back["key"].dtype == keys.dtype
    assert back["raw"].dtype == jnp.uint32
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(keys))
    np.testing.assert_array_equal(jax.vmap(jax.random.bits)(back["key"]), jax.vmap(jax.random.bits)(keys))


def test_a_state_comes_back_to_the_devices_of_its_program():
    algorithm, env, config = tiny("iqn").arguments()
    keys = jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32))
    program = devices.compile_fit(algorithm, env, config, keys)
    state = program.init(env, config, keys)
    back = checkpoints.unpack(as_read(checkpoints.pack(state)), program.specs[0])
    for here, there in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert here.sharding.is_equivalent_to(there.sharding, there.ndim)
    assert_same_bits(back, state)


def as_read(packed: Packed) -> checkpoints.Checkpoint:
    return checkpoints.Checkpoint(Path(), {}, {**packed.arrays, **packed.blocks})


def rings(capacity: int, filled: int, frames: int = 1) -> replay.Ring:
    """Two runs' replay of frames from two environments, as training holds them; the second run has a cut in each half."""

    def one(seed: int) -> replay.Ring:
        seen = jax.random.randint(jax.random.key(seed), (filled, 2, 50), 0, 256).astype(jnp.uint8)
        flags = jnp.zeros((filled, 2), bool)
        cut = flags.at[filled // 4, 0].set(seed == 1).at[filled * 3 // 4, 0].set(seed == 1)
        steps = Transition(seen, seen[..., 0].astype(jnp.int32), seen[..., 1] / 7, seen, flags, cut)
        first = jax.tree.map(lambda x: x[0, 0], steps)
        ring = replay.init(first, seen[0], capacity, frames=frames)
        return jax.lax.scan(lambda ring, step: (replay.add(ring, step, step.obs + 1), None), ring, steps)[0]

    return jax.tree.map(lambda *x: jnp.stack(x), one(0), one(1))


@pytest.mark.parametrize("filled", [1, 9, 1000, 3210])
def test_only_the_filled_part_of_the_replay_is_stored_in_its_own_dtype_and_the_rest_comes_back_empty(
    tmp_path, monkeypatch, filled
):
    monkeypatch.setattr(checkpoints, "BLOCK", (2**16, 2**22))
    state = {"replay": rings(2000, filled)}
    path = checkpoints.save(tmp_path / "checkpoints", 1, checkpoints.pack(state), facts())
    read = checkpoints.read(path)
    stored = {name: (str(array.dtype), array.shape) for name, array in read.arrays.items() if array.ndim > 2}
    rows, slots = min(filled, 1000), min(filled + 2 + (filled > 1), 1000 + 31 + 3)  # with one cut or two
    assert stored == {
        "replay/rows/action": ("int32", (2, rows, 2)),
        "replay/rows/reward": ("float32", (2, rows, 2)),
        "replay/rows/terminated": ("bool", (2, rows, 2)),
        "replay/rows/truncated": ("bool", (2, rows, 2)),
        "replay/rows/offset": ("uint8", (2, rows, 2)),
        "replay/observations": ("uint8", (2, slots, 2, 50)),
        "replay/anchors": ("uint32", (2, 9, 2)),
    }
    # 200 bytes a slot for the frames, incompressible, and at most 44 a row; nothing else here is large.
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 250 * slots + 20_000
    back = checkpoints.unpack(read, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_a_replay_of_stacked_frames_comes_back_whole(tmp_path):
    state = {"replay": rings(2000, 9, frames=5)}
    path = checkpoints.save(tmp_path / "checkpoints", 1, checkpoints.pack(state), facts())
    read = checkpoints.read(path)
    assert read.arrays["replay/observations"].shape == (2, 12, 2, 10)
    assert read.arrays["replay/depth"].shape == (2, 12, 2)
    back = checkpoints.unpack(read, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_what_does_not_fit_is_named_leaf_by_leaf_with_the_versions_that_wrote_it(tmp_path):
    path = checkpoints.save(tmp_path / "checkpoints", 1, some(1), facts())
    specs = {
        "state": {
            "done": jax.ShapeDtypeStruct((2, 5), bool),
            "frames": jax.ShapeDtypeStruct((2, 5, 7), jnp.float32),
            "kernel": jax.ShapeDtypeStruct((2, 3, 8), jnp.float32),
            "new": jax.ShapeDtypeStruct((), jnp.float32),
        }
    }
    with pytest.raises(CheckpointError) as caught:
        checkpoints.unpack(checkpoints.read(path), specs)
    line = str(caught.value)
    assert "\n" not in line
    assert "state/frames is uint8[2, 5, 7] in the checkpoint, float32[2, 5, 7] here" in line
    assert "state/kernel is float32[2, 3, 4] in the checkpoint, float32[2, 3, 8] here" in line
    assert "state/new is not in the checkpoint" in line
    assert "(and 3 more)" in line  # state/step, the replay and the evaluations are unknown here
    assert "quantilax 7.7" in line


def test_packing_copies_so_that_a_donated_state_cannot_change_what_is_written():
    state = {"x": np.zeros(3, np.float32)}
    packed = checkpoints.pack(state)
    state["x"][:] = 1
    assert packed.arrays["x"].tolist() == [0, 0, 0]


def test_a_save_and_a_read_leave_logging_and_hooks_of_the_application_alone(tmp_path, monkeypatch):
    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio")]
        return [(x.level, x.disabled, list(x.filters), list(x.handlers)) for x in loggers] + [sys.unraisablehook]

    before = state()
    monkeypatch.setattr(checkpoints, "flush", lambda path: seen.append(state()))  # in the midst of a save
    seen: list[Any] = []
    checkpoints.read(checkpoints.save(tmp_path / "checkpoints", 1, some(100), facts()))
    assert seen
    assert all(one == before for one in [*seen, state()])


# Which ones are kept


def save_all(root: Path, means: dict[int, float]) -> None:
    for step, mean in means.items():
        checkpoints.save(root, step, Packed({"x": np.array(step)}), facts(mean))


def test_the_last_three_and_the_best_are_kept(tmp_path):
    root = tmp_path / "checkpoints"
    save_all(root, {1: 0.0, 2: 5.0, 3: 1.0, 4: 2.0, 5: 3.0, 6: 4.0})
    assert checkpoints.steps(root) == [2, 4, 5, 6]
    save_all(root, {7: 0.0})
    assert checkpoints.steps(root) == [2, 5, 6, 7]
    save_all(root, {8: 5.5})
    assert checkpoints.steps(root) == [6, 7, 8]


def test_of_two_equally_good_ones_the_later_is_the_best(tmp_path):
    root = tmp_path / "checkpoints"
    save_all(root, {1: 5.0, 2: 5.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0})
    assert checkpoints.steps(root) == [2, 4, 5, 6]
    assert checkpoints.find(root, "best").facts["env_step"] == 2


def test_a_mean_return_that_is_nan_is_never_the_best(tmp_path):
    root = tmp_path / "checkpoints"
    nan = float("nan")
    save_all(root, {1: nan, 2: 5.0, 3: nan, 4: 1.0, 5: nan, 6: nan, 7: nan})
    assert checkpoints.steps(root) == [2, 5, 6, 7]
    assert checkpoints.find(root, "best").facts["env_step"] == 2


def test_what_is_asked_for_is_found_and_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    root = tmp_path / "checkpoints"
    save_all(root, {1000: 5.0, 2000: 1.0})
    assert [checkpoints.find(root, which).facts["env_step"] for which in ("last", "best", 1000)] == [2000, 1000, 1000]
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 1,500; there are 1,000, 2,000$"):
        checkpoints.find(root, 1500)


def test_a_word_that_names_no_checkpoint_is_refused(root):
    with pytest.raises((CheckpointError, ValueError), match="bset"):
        checkpoints.find(root, "bset")


def test_a_step_as_numpys_integer_is_that_step(root):
    assert checkpoints.find(root, np.int64(200)).facts["env_step"] == 200


def test_leftovers_of_a_crash_are_never_read_and_vanish_at_the_next_save(root):
    shutil.copy(path_of(root, 300), root / "000000000900.safetensors.partial")
    (root / "000000000950.safetensors.partial").write_text("")
    for name in ("0" * 64, "1" * 64 + ".partial"):
        (root / "blocks" / name).write_text("")
    assert found(root) == (300, [])
    checkpoints.save(root, 400, some(400), facts())
    assert names(root) == [*(path_of(root, step).name for step in (200, 300, 400)), "blocks", "evaluations.bin"]
    assert set(names(root / "blocks")) == set.union(*(blocks_of(path_of(root, step)) for step in (200, 300, 400)))


def test_a_leftover_of_the_same_step_does_not_hinder_the_save(root):
    for name in ("000000000400.safetensors.partial", "000000000400.safetensors"):
        (root / name).write_bytes(path_of(root, 300).read_bytes()[:100])
    checkpoints.save(root, 400, some(400), facts())
    assert found(root) == (400, [])
    assert checkpoints.steps(root) == [200, 300, 400]


class FullError(OSError):
    """No space left."""


@pytest.mark.parametrize("place", ["serialized", "flush", "_append", "_write_blocks", "_read"])
def test_a_save_that_fails_leaves_everything_as_it_was(root, monkeypatch, place):
    def fail(*args: Any, **more: Any) -> None:
        raise FullError(28, "No space left on device")

    before = tree(root)
    monkeypatch.setattr(checkpoints, place, fail)
    with pytest.raises(FullError):
        checkpoints.save(root, 400, some(400), facts())
    assert tree(root) == before
    with pytest.raises(FullError):
        checkpoints.save(root, 300, some(300), facts())
    assert tree(root) == before


def test_after_falling_back_behind_damaged_ones_what_is_saved_next_stays(tmp_path):
    root = tmp_path / "checkpoints"
    for step in (100, 300, 400, 500):
        checkpoints.save(root, step, some(step), facts(9.0 if step == 100 else 1.0))
    for step in (300, 400, 500):
        os.truncate(path_of(root, step), 500)
    assert found(root)[0] == 100
    for step in (200, 300, 400, 500):  # the run goes on from step 100
        checkpoints.save(root, step, some(step), facts())
        assert found(root)[0] == step
    assert checkpoints.steps(root) == [100, 300, 400, 500]


# Which one is the last


@pytest.mark.parametrize("base", [0, 2**33], ids=["past", "future"])
def test_file_times_in_reversed_order_do_not_change_which_one_is_the_last_or_kept(root, base):
    for age, step in enumerate(STEPS):
        os.utime(path_of(root, step), (base + 1000 - age, base + 1000 - age))
    assert found(root) == (300, [])
    assert found(root, "best") == (300, [])
    checkpoints.save(root, 400, some(400), facts())
    assert checkpoints.steps(root) == [200, 300, 400]


def test_names_that_are_no_steps_are_no_checkpoints(root):
    for name in ("²", "notes", ".hidden", "000000000900x", "-5", "٣"):
        (root / name).mkdir()
    (root / "000000000300.bak").write_text("")
    assert found(root) == (300, [])
    checkpoints.save(root, 400, some(400), facts())
    assert found(root) == (400, [])


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text(""), lambda p: p.symlink_to("nowhere")])
@pytest.mark.parametrize(
    "name", ["000000000400.safetensors", "400.safetensors", "999999999999999999999999.safetensors"]
)
def test_an_extra_empty_checkpoint_is_named_and_the_one_before_is_used(root, name, make):
    make(root / name)
    step, (warning,) = found(root)
    assert step == 300
    assert warning.startswith(str(root))
    assert warning.endswith("; using step 300 instead")
    assert found(root, "best")[0] == 300


# Damage


def test_each_file_cut_at_every_twentieth_of_its_length_is_detected(newest):
    for file in files(newest):
        whole = file.read_bytes()
        for length in sorted({len(whole) * i // 20 for i in range(20)}):
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=file.name):
                checkpoints.read(newest)
        file.write_bytes(whole)
    assert_same(checkpoints.read(newest).arrays, some_arrays(300))


def test_a_damaged_checkpoint_is_named_in_a_line_and_the_one_before_is_used(root, newest):
    for file in files(newest):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        step, (warning,) = found(root)
        assert step == 200
        assert warning.startswith(f"{newest}: ")
        assert warning.endswith("; using step 200 instead")
        assert "\n" not in warning
        file.write_bytes(whole)
    assert found(root) == (300, [])


def test_a_byte_flipped_anywhere_is_never_read_as_something_else(newest):
    rng = random.Random(0)
    for file in files(newest):
        whole = file.read_bytes()
        for place in sorted({0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(100))}):
            for mask in (0x01, 0x80):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
                if file == newest:
                    with pytest.raises(CheckpointError, match=str(newest)):
                        checkpoints.read(newest)
                else:  # the compression has bits that it does not use
                    with contextlib.suppress(CheckpointError):
                        assert_same(checkpoints.read(newest).arrays, some_arrays(300))
        file.write_bytes(whole)
    assert_same(checkpoints.read(newest).arrays, some_arrays(300))


def test_each_missing_file_is_named_and_the_one_before_is_used(root, newest):
    for file in files(newest)[1:]:
        whole = file.read_bytes()
        file.unlink()
        step, (warning,) = found(root)
        assert step == 200
        assert f"blocks/{file.name} is missing" in warning
        file.write_bytes(whole)
    assert found(root) == (300, [])


def test_bytes_appended_to_a_file_are_detected(newest):
    for file in files(newest):
        with file.open("ab") as stream:
            stream.write(b"\0")
        with pytest.raises(CheckpointError, match=file.name):
            checkpoints.read(newest)
        os.truncate(file, file.stat().st_size - 1)


def test_evaluations_cut_short_or_altered_cost_only_the_checkpoints_that_need_them(root, newest):
    file = root / "evaluations.bin"
    whole = file.read_bytes()
    file.write_bytes(whole + b"of a later checkpoint")
    assert found(root) == (300, [])
    file.write_bytes(whole[:-1])
    step, (warning,) = found(root)
    assert step == 200
    assert f"{newest}: evaluations.bin has 47 of 48 bytes" in warning
    file.write_bytes(whole[:20] + b"x" + whole[21:])
    step, warnings = found(root)
    assert step == 100
    assert [line.split(": ")[1].split(";")[0] for line in warnings] == ["evaluations.bin was altered"] * 2
    file.unlink()
    with pytest.raises(CheckpointError, match=r"evaluations\.bin has 0 of 48 bytes; nothing was deleted"):
        checkpoints.find(root)


# What is written


def test_a_block_that_did_not_change_is_written_once_and_a_row_of_the_evaluations_too(root, monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(checkpoints, "flush", lambda path: written.append(path.name))
    rows = (root / "evaluations.bin").read_bytes()
    packed = some(300)
    packed.blocks["state/replay/observations"][1, 39] += 1  # in the last of ten blocks
    checkpoints.save(root, 400, packed._replace(evaluations=some(400).evaluations), facts())
    assert len([name for name in written if re.fullmatch(r"[0-9a-f]{64}\.partial", name)]) == 1
    assert (root / "evaluations.bin").read_bytes()[: len(rows)] == rows
    assert (root / "evaluations.bin").stat().st_size == len(rows) * 4 // 3


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 2**16), (1, 2**16), (2**22, 2**16), (2**22 + 1, 2**17), (2**33, 2**22)]
)
def test_a_replay_is_cut_into_64_blocks_unless_these_are_very_small_or_very_large(monkeypatch, size, expected):
    monkeypatch.setattr(checkpoints, "BLOCK", (2**16, 2**22))
    assert checkpoints._block_size(np.broadcast_to(np.uint8(0), (3, size))) == expected


def test_a_block_that_was_damaged_is_written_again_when_it_is_needed(root, newest):
    for file in files(newest)[1:]:
        file.write_bytes(bytes(file.stat().st_size))
    assert found(root)[0] == 200
    checkpoints.save(root, 300, some(300), facts())
    assert found(root) == (300, [])


def test_what_cannot_be_read_back_is_not_saved_and_the_checkpoints_before_stay(root, monkeypatch):
    """A disk that takes writes and gives something else back."""
    before = tree(root)
    monkeypatch.setattr(
        checkpoints, "serialized", lambda arrays, metadata: save({**arrays, "state/step": np.array(5)}, metadata)
    )
    with pytest.raises(CheckpointError, match="state/step was altered"):
        checkpoints.save(root, 400, some(400), facts())
    assert tree(root) == before


def test_evaluations_of_a_run_that_went_on_from_an_older_checkpoint_take_the_place_of_what_came_after_it(root):
    other = some(300)
    other.evaluations["history/returns"][2] += 1  # the third evaluation came out otherwise
    checkpoints.save(root, 300, other, facts())
    assert_same(checkpoints.read(path_of(root, 300)).arrays, {**other.arrays, **other.blocks, **other.evaluations})
    assert_same(checkpoints.read(path_of(root, 200)).arrays, some_arrays(200))


def test_a_checkpoint_of_the_former_format_is_refused_in_a_line_that_says_what_reads_it(tmp_path):
    (tmp_path / "checkpoints" / "000000000300").mkdir(parents=True)
    assert checkpoints.steps(tmp_path / "checkpoints") == [300]
    with pytest.raises(CheckpointError, match=r"000000000300: is a checkpoint of format 1, .* run\.json names"):
        checkpoints.find(tmp_path / "checkpoints")


def with_kernel(content: dict[str, Any], spec: Any) -> dict[str, Any]:
    return {**content, "leaves": {**content["leaves"], "state/kernel": spec}}


def with_blocks(content: dict[str, Any], *spec: Any) -> dict[str, Any]:
    return {**content, "blocks": {"state/replay/observations": list(spec)}}


def with_evaluations(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**content, "evaluations": {**content["evaluations"], **changes}}


WRONG = {
    "another step": lambda c: {**c, "env_step": 250},
    "a list": lambda c: [],
    "a word": lambda c: "checkpoint",
    "a later format": lambda c: {**c, "format": 4},
    "a format that is no number": lambda c: {**c, "format": {"x": []}},
    "no blocks": lambda c: {k: v for k, v in c.items() if k != "blocks"},
    "no leaves": lambda c: {**c, "leaves": []},
    "leaves without dtypes": lambda c: {**c, "leaves": dict.fromkeys(c["leaves"], ((1,),))},
    "a leaf more": lambda c: {**c, "leaves": {**c["leaves"], "state/more": [[1], "float32", ""]}},
    "a leaf less": lambda c: {**c, "leaves": {k: v for k, v in c["leaves"].items() if k != "state/kernel"}},
    "an unknown dtype": lambda c: with_kernel(c, [[2, 3, 4], "float33", c["leaves"]["state/kernel"][2]]),
    "a leaf without a shape": lambda c: with_kernel(c, [None, "float32", c["leaves"]["state/kernel"][2]]),
    "a leaf without a digest": lambda c: with_kernel(c, [[2, 3, 4], "float32", None]),
    "blocks of no size there is": lambda c: with_blocks(c, [0, 10**30], "float32", 40, []),
    "blocks of more seeds than there are numbers": lambda c: with_blocks(c, [10**30, 1], "float32", 40, []),
    "blocks of negative size": lambda c: with_blocks(c, [-1, -1], "float32", 40, []),
    "blocks without a shape": lambda c: with_blocks(c, [], "float32", 40, []),
    "blocks of an unknown dtype": lambda c: with_blocks(c, [2, 40, 5], "float33", 40, []),
    "blocks outside": lambda c: with_blocks(c, [1, 1], "uint8", 40, ["../../../../etc/hostname"]),
    "blocks that are numbers": lambda c: with_blocks(c, [1, 1], "uint8", 40, [3]),
    "blocks of no bytes": lambda c: with_blocks(c, [2, 40, 5], "uint8", 0, []),
    "blocks of many bytes": lambda c: with_blocks(c, [2, 40, 5], "uint8", 10**30, ["0" * 64] * 2),
    "blocks of half a byte": lambda c: with_blocks(c, [2, 40, 5], "uint8", 0.5, ["0" * 64] * 2),
    "too few blocks": lambda c: with_blocks(c, [2, 40, 5], "uint8", 40, ["0" * 64]),
    "evaluations that are a number": lambda c: {**c, "evaluations": 3},
    "evaluations of many rows": lambda c: with_evaluations(c, rows=10**30),
    "evaluations of fewer rows": lambda c: with_evaluations(c, rows=2),
    "evaluations of negative rows": lambda c: with_evaluations(c, rows=-3),
    "evaluations of half a row": lambda c: with_evaluations(c, rows=2.5),
    "evaluations of objects": lambda c: with_evaluations(c, leaves={"history/returns": [[3, 2, 2], "object"]}),
    "evaluations without names": lambda c: with_evaluations(c, leaves=[]),
    "a mean return in words": lambda c: {**c, "return_mean": "high"},
    "a step in words": lambda c: {**c, "env_step": "300"},
    "versions in words": lambda c: {**c, "versions": "7.7", "format": 4},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_manifest_that_is_wrong_though_its_sum_is_right_is_named_and_the_one_before_is_used(root, newest, change):
    sign(newest, change)
    step, (warning,) = found(root)
    assert step == 200
    assert warning.startswith(str(newest))
    assert "\n" not in warning


@pytest.mark.parametrize("text", ["", "null", "[]", '{"sha256": 1}', '{"content": {}}', "[" * 100_000, "\0", "1e999"])
def test_a_manifest_that_is_none_is_named_and_the_one_before_is_used(root, newest, text):
    save_file(load_file(newest), newest, {"quantilax": text} if text else {})
    step, (warning,) = found(root)
    assert step == 200
    assert warning.startswith(f"{newest}: ")


def test_a_file_that_is_no_checkpoint_is_named_and_the_one_before_is_used(root, newest):
    whole = newest.read_bytes()
    for content in (b"", random.Random(1).randbytes(len(whole)), b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 8):
        newest.write_bytes(content)
        step, (warning,) = found(root)
        assert step == 200
        assert warning.startswith(f"{newest}: ")
        assert "\n" not in warning


def test_if_none_can_be_read_there_is_one_error_and_nothing_is_deleted(root):
    for step in STEPS:
        os.truncate(path_of(root, step), 1000)
    before = tree(root)
    for which in ("last", "best", 100):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.find(root, which, lambda line: pytest.fail(line))
        line = str(caught.value)
        assert "\n" not in line
        assert "is cut short or altered" in line
        assert str(root) in line
    assert tree(root) == before


def test_the_best_falls_back_to_the_next_best(root):
    for step, mean in ((100, 7.0), (200, 9.0), (300, 8.0)):
        sign(path_of(root, step), lambda content, mean=mean: {**content, "return_mean": mean})
    assert found(root, "best") == (200, [])
    os.truncate(path_of(root, 200), 1000)
    step, (warning,) = found(root, "best")
    assert step == 300
    assert warning.endswith("; using step 300 instead")


def test_no_directory_and_an_empty_one_hold_no_checkpoints(tmp_path):
    assert checkpoints.steps(tmp_path / "checkpoints") == []
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        checkpoints.find(tmp_path / "checkpoints")


def test_a_file_in_the_place_of_the_directory_holds_no_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError):
        checkpoints.find(tmp_path / "checkpoints")
