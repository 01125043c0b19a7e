"""Checkpoints on disk: what comes back, which ones are kept, and what becomes of damaged ones."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantilax import Transition, replay, train
from quantilax.runs import checkpoints
from quantilax.runs.errors import CheckpointError
from tests.conftest import tiny
from tests.trees import assert_same_bits

STEPS = (100, 200, 300)


def facts(return_mean: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"config": {}, "rows": 0, "return_mean": return_mean, "versions": {"quantilax": "7.7"}, **more}


def some_arrays(step: int) -> checkpoints.Arrays:
    rng = np.random.default_rng(step)
    return {
        "state/kernel": rng.standard_normal((2, 3, 4), np.float32),
        "state/frames": rng.integers(0, 256, (2, 5, 7), np.uint8),
        "state/done": rng.integers(0, 2, (2, 5)).astype(bool),
        "state/step": np.array(step, np.int32),
    }


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def assert_same(there: checkpoints.Arrays, expected: checkpoints.Arrays) -> None:
    assert there.keys() == expected.keys()
    for name, array in expected.items():
        assert (there[name].dtype, there[name].shape) == (array.dtype, array.shape), name
        assert there[name].tobytes() == array.tobytes(), name


def sign(path: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> None:
    """Write a checkpoint's manifest anew: digests of the files as they are, `change` applied, the sum right."""
    content = json.loads((path / "checkpoint.json").read_text())["content"]
    for name in content["files"]:
        data = (path / name).read_bytes()
        content["files"][name] = [len(data), hashlib.sha256(data).hexdigest()]
    changed = change(content)
    content = content if changed is None else changed
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps({"sha256": digest, "content": content}))


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 100, 200 and 300; not to be changed."""
    root = tmp_path_factory.mktemp("saved") / "checkpoints"
    for step in STEPS:
        checkpoints.save(root, step, some_arrays(step), facts())
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run" / "checkpoints"))


@pytest.fixture
def newest(root: Path) -> Path:
    return root / "000000000300"


def found(root: Path, which: str | int = "last") -> tuple[int, list[str]]:
    """The step that `find` comes to, its arrays verified, and its warnings."""
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
    path = checkpoints.save(tmp_path / "checkpoints", 7, arrays, facts(2.5, seeds=[3]))
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
    program = train.compile_fit(algorithm, env, config, keys)
    state = program.init(env, config, keys)
    back = checkpoints.unpack(checkpoints.Checkpoint(Path(), {}, checkpoints.pack(state)), program.specs[0])
    for here, there in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert here.sharding.is_equivalent_to(there.sharding, there.ndim)
    assert_same_bits(back, state)


def rings(capacity: int, filled: int) -> replay.Ring:
    """Two runs' replay of frames from two environments, as training holds them; the second run has a cut in each half."""

    def one(seed: int) -> replay.Ring:
        frames = jax.random.randint(jax.random.key(seed), (filled, 2, 50), 0, 256).astype(jnp.uint8)
        flags = jnp.zeros((filled, 2), bool)
        cut = flags.at[filled // 4, 0].set(seed == 1).at[filled * 3 // 4, 0].set(seed == 1)
        steps = Transition(frames, frames[..., 0].astype(jnp.int32), frames[..., 1] / 7, frames, flags, cut)
        first = jax.tree.map(lambda x: x[0, 0], steps)
        ring = replay.init(first, frames[0], capacity)
        return jax.lax.scan(lambda ring, step: (replay.add(ring, step, step.obs + 1), None), ring, steps)[0]

    return jax.tree.map(lambda *x: jnp.stack(x), one(0), one(1))


@pytest.mark.parametrize("filled", [1, 9, 1000, 3210])
def test_only_the_filled_part_of_the_replay_is_stored_in_its_own_dtype_and_the_rest_comes_back_empty(tmp_path, filled):
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
    assert sum(file.stat().st_size for file in files(path)) < 250 * slots + 20_000
    back = checkpoints.unpack(read, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_what_does_not_fit_is_named_leaf_by_leaf_with_the_versions_that_wrote_it(tmp_path):
    path = checkpoints.save(tmp_path / "checkpoints", 1, some_arrays(1), facts())
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
    assert "(and 1 more)" in line  # state/step is unknown here
    assert "quantilax 7.7" in line


def test_packing_copies_so_that_a_donated_state_cannot_change_what_is_written():
    state = {"x": np.zeros(3, np.float32)}
    packed = checkpoints.pack(state)
    state["x"][:] = 1
    assert packed["x"].tolist() == [0, 0, 0]


# Which ones are kept


def save_all(root: Path, means: dict[int, float]) -> None:
    for step, mean in means.items():
        checkpoints.save(root, step, {"x": np.array(step)}, facts(mean))


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
    shutil.copytree(root / "000000000300", root / "000000000900.partial")
    shutil.copytree(root / "000000000300", root / "000000000200.replaced")
    (root / "000000000950.partial").mkdir()
    assert found(root) == (300, [])
    checkpoints.save(root, 400, some_arrays(400), facts())
    assert names(root) == ["000000000200", "000000000300", "000000000400"]


def test_a_leftover_of_the_same_step_does_not_hinder_the_save(root):
    for name in ("000000000400.partial", "000000000400.replaced", "000000000400"):
        shutil.copytree(root / "000000000300", root / name)
        (root / name / "checkpoint.json").write_text("{")
    checkpoints.save(root, 400, some_arrays(400), facts())
    assert found(root) == (400, [])
    assert names(root) == ["000000000200", "000000000300", "000000000400"]


class FullError(OSError):
    """No space left."""


@pytest.mark.parametrize("place", ["_write_arrays", "flush", "_digests"])
def test_a_save_that_fails_leaves_everything_as_it_was(root, monkeypatch, place):
    def fail(*args: Any) -> None:
        raise FullError(28, "No space left on device")

    before = tree(root)
    monkeypatch.setattr(checkpoints, place, fail)
    with pytest.raises(FullError):
        checkpoints.save(root, 400, some_arrays(400), facts())
    assert tree(root) == before
    with pytest.raises(FullError):
        checkpoints.save(root, 300, some_arrays(300), facts())
    assert tree(root) == before


def test_after_falling_back_behind_damaged_ones_what_is_saved_next_stays(tmp_path):
    root = tmp_path / "checkpoints"
    for step in (100, 300, 400, 500):
        checkpoints.save(root, step, some_arrays(step), facts(9.0 if step == 100 else 1.0))
    for step in (300, 400, 500):
        os.truncate(root / f"{step:012d}" / "arrays" / "_METADATA", 5)
    assert found(root)[0] == 100
    for step in (200, 300, 400, 500):  # the run goes on from step 100
        checkpoints.save(root, step, some_arrays(step), facts())
        assert found(root)[0] == step
    assert checkpoints.steps(root) == [100, 300, 400, 500]


# Which one is the last


@pytest.mark.parametrize("base", [0, 2**33], ids=["past", "future"])
def test_file_times_in_reversed_order_do_not_change_which_one_is_the_last_or_kept(root, base):
    for age, step in enumerate(STEPS):
        path = root / f"{step:012d}"
        for there in (*path.rglob("*"), path):
            os.utime(there, (base + 1000 - age, base + 1000 - age))
    assert found(root) == (300, [])
    assert found(root, "best") == (300, [])
    checkpoints.save(root, 400, some_arrays(400), facts())
    assert checkpoints.steps(root) == [200, 300, 400]


def test_names_that_are_no_steps_are_no_checkpoints(root):
    for name in ("²", "notes", ".hidden", "000000000900x", "-5", "٣"):
        (root / name).mkdir()
    (root / "000000000300.bak").write_text("")
    assert found(root) == (300, [])
    checkpoints.save(root, 400, some_arrays(400), facts())
    assert found(root) == (400, [])


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text(""), lambda p: p.symlink_to("nowhere")])
@pytest.mark.parametrize("name", ["000000000400", "400", "999999999999999999999999"])
def test_an_extra_empty_checkpoint_is_named_and_the_one_before_is_used(root, name, make):
    make(root / name)
    step, (warning,) = found(root)
    assert step == 300
    assert warning.startswith(str(root))
    assert "checkpoint.json" in warning
    assert warning.endswith("; skipped, step 300 is used")
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


def test_a_checkpoint_cut_at_every_twentieth_is_named_and_the_one_before_is_used(root, newest):
    """As if the files had been written one after another, and a crash had come in between."""
    contents = [(file, file.read_bytes()) for file in files(newest)]
    total = sum(len(content) for _, content in contents)
    for i in range(20):
        left = total * i // 20
        for file, content in contents:
            file.write_bytes(content[:left])
            left -= min(left, len(content))
        step, (warning,) = found(root)
        assert step == 200
        assert warning.startswith(f"{newest}: ")
        assert warning.endswith("; skipped, step 200 is used")
        assert "\n" not in warning
    for file, content in contents:
        file.write_bytes(content)
    assert found(root) == (300, [])


def test_a_byte_flipped_anywhere_is_never_read_as_something_else(newest):
    rng = random.Random(0)
    for file in files(newest):
        whole = file.read_bytes()
        for place in sorted({0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))}):
            for mask in (0x01, 0x80):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
                with pytest.raises(CheckpointError, match=str(newest)):
                    checkpoints.read(newest)
        file.write_bytes(whole)
    assert_same(checkpoints.read(newest).arrays, some_arrays(300))


def test_each_missing_file_is_named_and_the_one_before_is_used(root, newest):
    for file in files(newest):
        whole = file.read_bytes()
        file.unlink()
        step, (warning,) = found(root)
        assert step == 200
        assert file.relative_to(newest).as_posix() in warning
        file.write_bytes(whole)
    assert found(root) == (300, [])


def test_bytes_appended_to_a_file_are_detected(newest):
    for file in files(newest):
        with file.open("ab") as stream:
            stream.write(b"\0")
        with pytest.raises(CheckpointError, match=file.name):
            checkpoints.read(newest)
        os.truncate(file, file.stat().st_size - 1)


def with_kernel(content: dict[str, Any], spec: Any) -> dict[str, Any]:
    return {**content, "leaves": {**content["leaves"], "state/kernel": spec}}


WRONG = {
    "another step": lambda c: {**c, "env_step": 250},
    "a list": lambda c: [],
    "a word": lambda c: "checkpoint",
    "a later format": lambda c: {**c, "format": 2},
    "a format that is no number": lambda c: {**c, "format": {"x": []}},
    "no files": lambda c: {k: v for k, v in c.items() if k != "files"},
    "files without sizes": lambda c: {**c, "files": dict.fromkeys(c["files"], "x")},
    "files that are numbers": lambda c: {**c, "files": dict.fromkeys(c["files"], 3)},
    "a file outside": lambda c: {**c, "files": {**c["files"], "../../../etc/passwd": [1, "0"]}},
    "a file more": lambda c: {**c, "files": {**c["files"], "arrays/more": [1, "0"]}},
    "no leaves": lambda c: {**c, "leaves": []},
    "leaves without dtypes": lambda c: {**c, "leaves": dict.fromkeys(c["leaves"], ((1,),))},
    "a leaf more": lambda c: {**c, "leaves": {**c["leaves"], "state/more": [[1], "float32"]}},
    "an unknown dtype": lambda c: with_kernel(c, [[2, 3, 4], "float33"]),
    "a leaf of no size there is": lambda c: with_kernel(c, [[0, 10**30], "float32"]),
    "a leaf of negative size": lambda c: with_kernel(c, [[0, -1], "float32"]),
    "a leaf without a shape": lambda c: with_kernel(c, [None, "float32"]),
    "a mean return in words": lambda c: {**c, "return_mean": "high"},
    "a step in words": lambda c: {**c, "env_step": "300"},
    "versions in words": lambda c: {**c, "versions": "7.7", "format": 2},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_manifest_that_is_wrong_though_its_sum_is_right_is_named_and_the_one_before_is_used(root, newest, change):
    sign(newest, change)
    step, (warning,) = found(root)
    assert step == 200
    assert warning.startswith(str(newest))
    assert "\n" not in warning


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"sha256": 1}', '{"content": {}}', "[" * 100_000, "\udcff", "1e999"]
)
def test_a_manifest_that_is_none_is_named_and_the_one_before_is_used(root, newest, text):
    (newest / "checkpoint.json").write_bytes(text.encode(errors="surrogateescape"))
    step, (warning,) = found(root)
    assert step == 200
    assert warning.startswith(f"{newest}: checkpoint.json ")


def test_arrays_that_do_not_read_though_every_digest_is_right_are_one_line(root, newest):
    rng, refused = random.Random(1), set()
    for file in files(newest / "arrays"):
        whole = file.read_bytes()
        for content in (b"", rng.randbytes(len(whole)), whole[: len(whole) // 2], b"{}", b"[1]"):
            file.write_bytes(content)
            sign(newest)
            step, warnings = found(root)  # some files Orbax does without
            assert (step, len(warnings)) in ((300, 0), (200, 1)), file.name
            assert all("\n" not in line for line in warnings)
            refused |= {file.name} if warnings else set()
        file.write_bytes(whole)
    assert {"_METADATA", "manifest.ocdbt"} <= refused


def test_if_none_can_be_read_there_is_one_error_and_nothing_is_deleted(root):
    for step in STEPS:
        os.truncate(root / f"{step:012d}" / "arrays" / "_METADATA", 10)
    before = tree(root)
    for which in ("last", "best", 100):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.find(root, which, lambda line: pytest.fail(line))
        line = str(caught.value)
        assert "\n" not in line
        assert "_METADATA has 10 of" in line
        assert str(root) in line
    assert tree(root) == before


def test_the_best_falls_back_to_the_next_best(root):
    for step, mean in ((100, 7.0), (200, 9.0), (300, 8.0)):
        sign(root / f"{step:012d}", lambda content, mean=mean: {**content, "return_mean": mean})
    assert found(root, "best") == (200, [])
    os.truncate(root / "000000000200" / "arrays" / "_METADATA", 10)
    step, (warning,) = found(root, "best")
    assert step == 300
    assert warning.endswith("; skipped, step 300 is used")


def test_no_directory_and_an_empty_one_hold_no_checkpoints(tmp_path):
    assert checkpoints.steps(tmp_path / "checkpoints") == []
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        checkpoints.find(tmp_path / "checkpoints")


def test_a_file_in_the_place_of_the_directory_holds_no_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError):
        checkpoints.find(tmp_path / "checkpoints")
