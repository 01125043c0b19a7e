"""Reading a jaxpr: what may influence what, and which programs are equal; each is checked by running."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from quantilax.checks.dependence import dependence, fingerprint


def rows(function, *inputs) -> list[set[int]]:
    """Positions of the inputs that each output may depend on."""
    jaxpr = jax.make_jaxpr(function)(*inputs)
    return [set(row) for row in dependence(jaxpr, [[i] for i in range(len(jaxpr.out_avals))])]


def same(f, g, *inputs, outputs=(0,)) -> bool:
    """Whether two functions are told to compute these outputs alike."""
    f, g = (fingerprint(jax.make_jaxpr(function)(*inputs), outputs) for function in (f, g))
    return f == g


def test_an_output_depends_on_what_it_is_computed_from_and_on_nothing_else():
    assert rows(lambda x, y, z: (x + y, 2.0, z), 1.0, 2.0, 3.0) == [{0, 1}, set(), {2}]


def test_what_is_computed_and_not_used_does_not_count():
    def f(x, y):
        unused = jnp.sin(y) * x  # noqa: F841
        return x * 2

    assert rows(f, 1.0, 2.0) == [{0}]


def test_a_barrier_over_everything_keeps_its_inputs_apart():
    assert rows(lambda *xs: jax.lax.optimization_barrier(xs), 1.0, 2.0, 3.0) == [{0}, {1}, {2}]


def test_a_call_hands_on_what_the_called_depends_on():
    inner = jax.jit(lambda x, y: (y, x + 1))
    outer = jax.jit(lambda x, y, z: (*inner(x, y), z))
    assert rows(outer, 1.0, 2.0, 3.0) == [{1}, {0}, {2}]


def test_a_call_is_inlined_in_the_comparison():
    assert same(lambda x: jax.jit(jnp.sin)(x) + 1, lambda x: jnp.sin(x) + 1, 1.0)


@jax.custom_vjp
def first_of(x, y):
    return x * 2


first_of.defvjp(lambda x, y: (x * 2, y), lambda y, g: (2 * g, y * g))


@jax.custom_jvp
def second_of(x, y):
    return y * 3


second_of.defjvp(lambda primals, tangents: (second_of(*primals), 3 * tangents[1] + primals[0]))


def test_rules_of_derivatives_play_no_part_where_nothing_is_derived():
    assert rows(first_of, 1.0, 2.0) == [{0}]
    assert rows(second_of, 1.0, 2.0) == [{1}]


def test_rules_of_derivatives_play_their_part_in_a_gradient():
    assert rows(jax.grad(first_of, argnums=(0, 1)), 1.0, 2.0) == [set(), {1}]
    assert rows(jax.grad(second_of, argnums=1), 1.0, 2.0) != [{1}]


def test_a_scan_carries_influence_from_one_carry_to_another_over_several_turns():
    def shift(carry, x):
        a, b, c, d = carry
        return (a, a + b, b + c, d), d + x  # a reaches c in two turns, nothing reaches d

    def f(a, b, c, d, xs):
        return jax.lax.scan(shift, (a, b, c, d), xs)

    assert rows(f, 1.0, 2.0, 3.0, 4.0, jnp.ones(3)) == [{0}, {0, 1}, {0, 1, 2}, {3}, {3, 4}]


def test_a_scans_constants_and_what_it_goes_over_enter_where_they_are_used():
    def f(k, m, c, xs, ys):
        return jax.lax.scan(lambda c, row: (c * k + row[0], row[1] * m), c, (xs, ys))

    assert rows(f, 1.0, 2.0, 3.0, jnp.ones(3), jnp.ones(3)) == [{0, 2, 3}, {1, 4}]


def test_the_condition_of_a_while_reaches_all_that_the_loop_changes():
    def f(limit, a, b, c):
        def body(carry):
            i, a, b, c = carry
            return i + 1, a * 2, b, c + a

        return jax.lax.while_loop(lambda carry: carry[0] < limit, body, (0, a, b, c))

    assert rows(f, 3, 1.0, 2.0, 3.0) == [{0}, {0, 1}, {2}, {0, 1, 3}]


def test_the_condition_of_a_while_is_followed_through_what_it_reads():
    def f(a, b, c):
        def body(carry):
            a, b, c = carry
            return a + b, b * 0.5, c + 1  # c never meets a or b but for the number of turns

        return jax.lax.while_loop(lambda carry: carry[0] < 10, body, (a, b, c))

    assert rows(f, 1.0, 2.0, 3.0) == [{0, 1}, {0, 1}, {0, 1, 2}]


def test_a_loop_of_fixed_length_adds_no_condition():
    assert rows(lambda a, b: jax.lax.fori_loop(0, 3, lambda i, c: (c[0] + 1, c[1] * 2), (a, b)), 1.0, 2.0) == [{0}, {1}]


def test_the_predicate_of_a_cond_reaches_all_that_it_gives():
    def f(p, x, y, z):
        return jax.lax.cond(p > 0, lambda x, y, z: (x, z), lambda x, y, z: (y, 2 * z), x, y, z)

    assert rows(f, 1.0, 2.0, 3.0, 4.0) == [{0, 1, 2}, {0, 3}]


def test_a_switch_is_a_cond_of_several_branches():
    def f(i, x, y, z):
        return jax.lax.switch(i, [lambda x, y, z: x, lambda x, y, z: y, lambda x, y, z: 0.0 * y], x, y, z)

    assert rows(f, 1, 1.0, 2.0, 3.0) == [{0, 1, 2}]


def test_loops_and_branches_within_each_other():
    def f(a, b, c, p):
        def turn(carry, _):
            a, b, c = carry
            b = jax.lax.cond(p > 0, lambda: b + a, lambda: b)
            c = jax.lax.while_loop(lambda c: c < 5, lambda c: c + 1, c)
            return (a, b, c), None

        return jax.lax.scan(turn, (a, b, c), length=4)[0]

    assert rows(f, 1.0, 2.0, 3.0, 4.0) == [{0}, {0, 1, 3}, {2}]


def test_a_checkpoint_and_a_vmap_are_looked_through():
    def f(x, y, z):
        return jax.checkpoint(lambda x, y: (jnp.sin(x), y))(x, y), jax.vmap(lambda z: z * 2)(z)

    assert rows(f, 1.0, 2.0, jnp.ones(2)) == [{0}, {1}, {2}]


def test_a_shard_map_is_looked_through():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("runs",))
    f = jax.shard_map(
        lambda x, y: (x + 1, jax.lax.psum(y, "runs")),
        mesh=mesh,
        in_specs=P("runs"),
        out_specs=P("runs"),
        check_vma=False,
    )
    assert rows(f, jnp.ones(1), jnp.ones(1)) == [{0}, {1}]


def test_an_unknown_primitive_mixes_all_into_all():
    def f(x, y):
        return jax.lax.custom_linear_solve(lambda v: 2 * v, x, lambda matvec, b: b / 2), jax.lax.sort(
            (x, y), num_keys=1
        )

    solved, *sorted_ = rows(f, jnp.ones(2), jnp.ones(2))
    assert solved == {0}
    assert sorted_ == [{0, 1}, {0, 1}]


def test_references_let_values_flow_past_the_variables():
    def f(x, y):
        ref = jax.new_ref(x)
        ref[...] = y
        return ref[...], x

    assert rows(f, 1.0, 2.0) == [{0, 1}, {0, 1}]
    assert not same(f, f, 1.0, 2.0), "and what is not understood is like nothing else"


def test_references_within_a_call_are_of_no_concern_outside():
    @jax.jit
    def inner(x, y):
        ref = jax.new_ref(x)
        ref[...] = y
        return ref[...]

    assert rows(lambda x, y, z: (inner(x, y), z), 1.0, 2.0, 3.0) == [{0, 1}, {2}]


def test_printing_changes_nothing():
    def f(x, y):
        jax.debug.print("{}", y)
        return x

    assert rows(f, 1.0, 2.0) == [{0}]
    assert same(f, lambda x, y: x, 1.0, 2.0)


def test_a_call_of_the_host_with_effects_may_remember():
    from jax.experimental import io_callback

    def f(x, y):
        io_callback(lambda y: None, None, y, ordered=True)
        return io_callback(lambda x: x, jax.ShapeDtypeStruct((), np.float32), x, ordered=True)

    assert rows(f, jnp.float32(1), jnp.float32(2)) == [{0, 1}]


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: jax.lax.scan(lambda c, _: (jnp.sin(c) * y, c), x, length=3),
        lambda x, y: jax.lax.while_loop(lambda c: c[0] < y, lambda c: (c[0] + 1, c[1] * c[0]), (x, x)),
        lambda x, y: jax.lax.cond(x > 0, lambda: jnp.cos(y), lambda: x),
        lambda x, y: jax.grad(lambda x: jax.nn.relu(x) ** 2 + y)(x),
        lambda x, y: jax.random.normal(jax.random.key(3)) * x,
        lambda x, y: x + jnp.arange(5.0)[2] * np.array([1.0, 2.0]),
    ],
    ids=["scan", "while", "cond", "grad", "random", "constant"],
)
def test_the_same_program_traced_twice_has_one_fingerprint(f):
    assert same(f, lambda x, y: f(x, y), 1.0, 2.0)  # another function: traced anew


def test_order_names_repetition_and_dead_code_play_no_part():
    def f(x, y):
        a = jnp.sin(x)
        b = jnp.cos(y)
        return a + b, a * b

    def g(x, y):
        b = jnp.cos(y)
        unused = jnp.tan(b)
        return jnp.sin(x) + jnp.cos(y), unused

    assert same(f, g, 1.0, 2.0)
    assert not same(f, g, 1.0, 2.0, outputs=(1,))


def two_loops(outer):
    """A loop in a loop: the inner one hands on what the outer one carries, or what it carries itself."""

    def inner(a):
        return jax.lax.scan(lambda b, _: ((a if outer else b) * 2, b), a, length=2)[1].sum()

    return lambda x, y: jax.lax.scan(lambda a, _: (inner(a), None), x, length=2)[0]


@pytest.mark.parametrize(
    ("f", "g"),
    [
        (lambda x, y: x + y, lambda x, y: x - y),
        (lambda x, y: x - y, lambda x, y: y - x),
        (lambda x, y: x * 2.0, lambda x, y: x * 3.0),
        (lambda x, y: x + np.arange(3.0), lambda x, y: x + np.arange(3.0)[::-1]),
        (lambda x, y: jnp.full(3, x)[None], lambda x, y: jnp.full(3, x)[:, None]),
        (lambda x, y: x.astype(jnp.int32), lambda x, y: x.astype(jnp.int8)),
        (lambda x, y: jax.random.normal(jax.random.key(0)), lambda x, y: jax.random.normal(jax.random.key(1))),
        (
            lambda x, y: jax.lax.cond(x > 0, lambda: x, lambda: y),
            lambda x, y: jax.lax.cond(x > 0, lambda: y, lambda: x),
        ),
        (
            lambda x, y: jax.lax.scan(lambda c, _: (c * x, None), y, length=3)[0],
            lambda x, y: jax.lax.scan(lambda c, _: (c * x, None), y, length=4)[0],
        ),
        (
            lambda x, y: jax.lax.scan(lambda c, _: (c * x, None), y, length=3)[0],
            lambda x, y: jax.lax.scan(lambda c, _: (c * y, None), y, length=3)[0],
        ),
        (
            lambda x, y: jax.lax.scan(lambda c, _: ((c[1], c[0] * 2), None), (x, y), length=3)[0][0],
            lambda x, y: jax.lax.scan(lambda c, _: ((c[1] * 2, c[0]), None), (x, y), length=3)[0][0],
        ),
        (
            lambda x, y: jax.lax.scan(lambda c, _: ((c[1], c[0]), None), (x, y), length=3)[0][0],
            lambda x, y: jax.lax.scan(lambda c, _: ((c[1], c[0]), None), (x, y), length=3)[0][1],
        ),
        (
            lambda x, y: jax.lax.while_loop(lambda c: c < 5, lambda c: c + y, x),
            lambda x, y: jax.lax.while_loop(lambda c: c < 6, lambda c: c + y, x),
        ),
        (two_loops(outer=True), two_loops(outer=False)),
    ],
    ids=[
        "primitive", "order of operands", "literal", "constant", "parameter", "dtype", "key", "branches", "length",
        "a constant of a loop", "what is carried", "which is taken", "condition", "which of two loops carries it",
    ],
)  # fmt: skip
def test_another_program_has_another_fingerprint(f, g):
    assert not same(f, g, jnp.float32(1), jnp.float32(2))


def test_what_another_output_needs_plays_no_part_within_a_loop():
    def of(rate):
        def f(x, y):
            def turn(carry, _):
                a, b = carry
                return (a + 1, b * rate + a), None

            return jax.lax.scan(turn, (x, y), length=3)[0]

        return f

    assert same(of(2.0), of(3.0), 1.0, 2.0, outputs=(0,))
    assert not same(of(2.0), of(3.0), 1.0, 2.0, outputs=(1,))


def test_a_carry_that_nothing_reads_plays_no_part():
    def lean(x, y):
        return jax.lax.scan(lambda c, _: (c * 2, None), x, length=3)[0]

    def laden(x, y):
        return jax.lax.scan(lambda c, _: ((c[0] + c[1], c[1] * 2), None), (y, x), length=3)[0][1]

    assert same(lean, laden, 1.0, 2.0)


def test_functions_that_cannot_be_told_apart_are_taken_to_differ():
    def of(f):
        return lambda x: jax.pure_callback(f, jax.ShapeDtypeStruct((), np.float32), x)

    assert not same(of(lambda x: x), of(lambda x: x + 1), jnp.float32(1))


def test_no_program_of_random_parts_hides_an_influence():
    # Programs put together at random from loops, branches and calls; each input is changed, and what then changes in an
    # output must have been told. A change rarely vanishes, so most rows
    # are seen in full.
    random = np.random.default_rng(0)
    exact = 0
    for _ in range(8):
        parts = [(int(random.integers(5)), random.integers(4, size=3)) for _ in range(4)]

        def f(*xs, parts=parts):
            xs = list(xs)
            for kind, (i, j, k) in parts:
                a, b = xs[i], xs[j]
                if kind == 0:
                    xs[k] = jnp.sin(a) + 0.5 * b
                elif kind == 1:
                    xs[k], xs[i] = jax.lax.scan(lambda c, _, b=b: ((jnp.cos(c[0]) + c[1], b), None), (a, b), length=3)[
                        0
                    ]
                elif kind == 2:
                    xs[k] = jax.lax.cond(a > 0.5, lambda a=a: a * 2, lambda b=b: b + 1)
                elif kind == 3:
                    xs[k] = jax.lax.while_loop(lambda c: c[0] < 3.0, lambda c: (c[0] + 1.0, c[1] * 1.1), (a, b))[1]
                else:
                    xs[k], xs[j] = jax.jit(lambda a, b: (jnp.tanh(b), a))(a, b)
            return xs

        start = list(random.uniform(0, 1, 4))
        told, run = rows(f, *start), jax.jit(f)
        base = run(*start)
        seen = [set() for _ in base]
        for i in range(4):
            for value in (-2.0, 0.2, 0.7, 2.5):
                for found, x, y in zip(seen, run(*start[:i], value, *start[i + 1 :]), base, strict=True):
                    found |= {i} if x != y else set()
        assert all(found <= row for found, row in zip(seen, told, strict=True)), parts
        exact += seen == told
    assert exact >= 4
