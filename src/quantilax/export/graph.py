"""From a program of JAX's primitives to an ONNX graph.

Each primitive has a function here that adds the nodes for it. Broadcasts are lazy: ONNX broadcasts
in its elementwise operators, so a value may have a smaller shape here than in JAX. It is expanded
where an operator needs all of it. Equal nodes are added once.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quantilax.errors import ConfigError
from quantilax.export.program import Operand, Program, Shape, Step, Value, sizes

OPSET = 18
IR_VERSION = 8
"""Versions of ONNX's operators and file format. onnxruntime reads them from 1.14 on."""


class Graph:
    """Nodes and constants, added one after another."""

    def __init__(self, program: Program, names: list[str]) -> None:
        """Begin with the program's inputs, under their names."""
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}
        """Shapes by name, which may be smaller than in JAX."""
        self.known: dict[Any, str] = {}
        """Names of the nodes and constants so far, by what they compute or hold."""
        self.made: dict[str, tuple[str, str, Any]] = {}
        """How a name was reshaped or transposed: the kind, the name before, the shape or order."""
        self.names: dict[int, str] = {}
        self.sized: dict[str, tuple[str, int]] = {}
        """The input and the axis from which each symbolic size can be read."""
        for value, name in zip(program.inputs, names, strict=True):
            self.names[id(value)], self.shapes[name] = name, value.shape
            self.sized |= {size: (name, axis) for axis, size in enumerate(value.shape) if isinstance(size, str)}

    def name(self, operand: Operand) -> str:
        """Return the name of a value or a constant, whose shape here may be smaller than in JAX."""
        if isinstance(operand, Value):
            return self.names[id(operand)]
        array = as_stored(operand)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.known:
            self.known[key] = f"c{len(self.constants)}"
            self.constants[self.known[key]], self.shapes[self.known[key]] = array, array.shape
        return self.known[key]

    def full(self, operand: Operand) -> str:
        """Return the name of a value or a constant in its full shape."""
        name, shape = self.name(operand), sizes(operand.shape)
        return name if self.shapes[name] == shape else self.add("Expand", [name, self.size_of(shape)], shape)

    def add(self, kind: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        """Add a node with one output of this shape, and return the output's name."""
        key = kind, *inputs, *sorted((k, str(v)) for k, v in attributes.items())
        if key not in self.known:
            name = f"v{len(self.nodes)}"
            self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
            self.known[key], self.shapes[name] = name, shape
        return self.known[key]

    def whole(self, *numbers: int) -> str:
        """Return the name of a list of whole numbers."""
        return self.name(np.array(numbers, np.int64))

    def size_of(self, shape: Shape) -> str:
        """Return the name of a list of sizes, read from the inputs where they are symbolic."""
        if all(isinstance(size, int) for size in shape):
            return self.whole(*map(int, shape))
        parts = []
        for size in shape:
            if isinstance(size, int):
                parts.append(self.whole(size))
                continue
            if size not in self.sized:
                raise ConfigError(f"ONNX: the size {size} is no axis of an input; export to a .stablehlo file")
            name, axis = self.sized[size]
            parts.append(self.add("Shape", [name], (1,), start=axis, end=axis + 1))
        return self.add("Concat", parts, (len(shape),), axis=0)

    def reshape(self, name: str, shape: Shape) -> str:
        """Return the name of the same numbers in another shape."""
        if name in self.constants:
            return self.name(self.constants[name].reshape([int(size) for size in shape]))
        how, of, _ = self.made.get(name, ("", name, None))
        name = of if how == "reshape" else name
        before = self.shapes[name]
        if before == shape:
            return name
        moved = [size for i, size in enumerate(shape) if isinstance(size, str) and before[i : i + 1] != (size,)]
        if len(moved) < 2:  # 0: the size that this axis has; -1: what is left
            plan = [size if isinstance(size, int) else -1 if size in moved else 0 for size in shape]
            target = self.whole(*plan)
        else:
            target = self.size_of(shape)
        new = self.add("Reshape", [name, target], shape)
        self.made[new] = "reshape", name, shape
        return new

    def transpose(self, name: str, order: tuple[int, ...]) -> str:
        """Return the name of the same numbers with their axes in another order."""
        if name in self.constants:
            return self.name(self.constants[name].transpose(order))
        how, of, before = self.made.get(name, ("", name, None))
        if how == "transpose":
            name, order = of, tuple(before[i] for i in order)
        if order == tuple(range(len(order))):
            return name
        new = self.add("Transpose", [name], tuple(self.shapes[name][i] for i in order), perm=list(order))
        self.made[new] = "transpose", name, order
        return new

    def cast(self, name: str, dtype: Any) -> str:
        """Return the name of the numbers in another format."""
        return self.add("Cast", [name], self.shapes[name], to=tensor_type(dtype))

    def take(self, step: Step) -> None:
        """Add the nodes of a step.

        Raises:
            ConfigError: there are none for its primitive.
        """
        if step.primitive not in NODES:
            raise ConfigError(
                f"ONNX: there is no operator here for JAX's {step.primitive}, which the policy uses; export to a"
                " .stablehlo file"
            )
        results = NODES[step.primitive](self, step)
        for value, name in zip(step.outputs, [results] if isinstance(results, str) else results, strict=True):
            self.names[id(value)] = name


def model(program: Program, inputs: dict[str, str], outputs: dict[str, str], facts: dict[str, str]) -> onnx.ModelProto:
    """Return the ONNX model of a program.

    Args:
        program: the function.
        inputs, outputs: names in the order of the program, each with what it means.
        facts: metadata of the file.
    """
    graph = Graph(program, list(inputs))
    for step in program.steps:
        graph.take(step)
    given = [
        helper.make_tensor_value_info(name, tensor_type(value.dtype), value.shape, meaning)
        for value, (name, meaning) in zip(program.inputs, inputs.items(), strict=True)
    ]
    told = []
    for value, (name, meaning) in zip(program.outputs, outputs.items(), strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.full(value)], [name]))
        told.append(helper.make_tensor_value_info(name, tensor_type(value.dtype), sizes(value.shape), meaning))
    used, nodes = set(outputs), []
    for node in reversed(graph.nodes):  # drop what is unused, such as the first of two reshapes
        if used & set(node.output):
            used |= set(node.input)
            nodes.append(node)
    arrays = {name: array for name, array in graph.constants.items() if name in used}
    made = helper.make_model(
        helper.make_graph(
            nodes[::-1], "policy", given, told, [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="quantilax",
        producer_version=facts["version"],
    )
    helper.set_model_props(made, facts)
    onnx.checker.check_model(made, full_check=True)
    return made


def as_stored(array: Any) -> np.ndarray:
    """Return numbers in a format that the file has: float32 instead of bfloat16."""
    return np.asarray(array, np.float32 if array.dtype.name == "bfloat16" else None)


def tensor_type(dtype: Any) -> int:
    """Return ONNX's number for a dtype."""
    name = np.dtype(dtype).name
    return int(helper.np_dtype_to_tensor_dtype(np.dtype("float32" if name == "bfloat16" else name)))


def together(*shapes: Shape) -> Shape:
    """Return the shape to which shapes broadcast."""
    rank = max(map(len, shapes))
    columns = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    return tuple(next((size for size in column if size != 1), 1) for column in columns)


Nodes = Callable[[Graph, Step], str]


def elementwise(kind: str) -> Nodes:
    """One operator on broadcast inputs."""

    def nodes(g: Graph, step: Step) -> str:
        names = [g.name(x) for x in step.inputs]
        return g.add(kind, names, together(*(g.shapes[name] for name in names)))

    return nodes


def composed(function: Callable[..., str]) -> Nodes:
    """Several elementwise operators: `function(apply, *names, **parameters)`."""

    def nodes(g: Graph, step: Step) -> str:
        def apply(kind: str, *inputs: Any) -> str:
            names = [x if isinstance(x, str) else g.name(np.asarray(x, dtype)) for x in inputs]
            return g.add(kind, names, together(*(g.shapes[name] for name in names)))

        dtype = as_stored(np.zeros(0, step.outputs[0].dtype)).dtype
        return function(apply, *map(g.name, step.inputs))

    return nodes


def same(g: Graph, step: Step) -> str:
    """Nothing changes."""
    return g.name(step.inputs[0])


def maximum(g: Graph, step: Step) -> str:
    """The larger one; `Relu` if the other is 0, which onnxruntime fuses with the product before."""
    for x, other in (step.inputs, step.inputs[::-1]):
        if isinstance(other, np.ndarray) and other.ndim == 0 and other == 0 and step.outputs[0].dtype == np.float32:
            name = g.name(x)
            return g.add("Relu", [name], g.shapes[name])
    return elementwise("Max")(g, step)


def integer_pow(g: Graph, step: Step) -> str:
    """x to a whole power."""
    y = step.params["y"]
    return composed(lambda apply, x: apply("Mul", x, x) if y == 2 else apply("Pow", x, float(y)))(g, step)


def round_(g: Graph, step: Step) -> str:
    """The nearest whole number; halves go to the even one."""
    if int(step.params["rounding_method"]) != 1:
        raise ConfigError(
            "ONNX: numbers are rounded away from zero, which no operator does; export to a .stablehlo file"
        )
    return elementwise("Round")(g, step)


def convert(g: Graph, step: Step) -> str:
    """Another number format."""
    name = g.name(step.inputs[0])
    before, after = tensor_type(step.inputs[0].dtype), tensor_type(step.outputs[0].dtype)
    return name if before == after else g.cast(name, step.outputs[0].dtype)


def select(g: Graph, step: Step) -> str:
    """The second case where the first input is true."""
    which, no, yes = map(g.name, step.inputs)
    return g.add("Where", [which, yes, no], together(*(g.shapes[name] for name in (which, no, yes))))


def reduce(kind: str) -> Nodes:
    """An operator over some axes."""

    def nodes(g: Graph, step: Step) -> str:
        name, of_bools = g.full(step.inputs[0]), step.inputs[0].dtype == np.bool_
        name = g.cast(name, np.int32) if of_bools else name
        axes = g.whole(*map(int, step.params["axes"]))
        name = g.add(kind, [name, axes], step.outputs[0].shape, keepdims=0)
        return g.cast(name, np.bool_) if of_bools else name

    return nodes


def argmax(g: Graph, step: Step) -> str:
    """The index of the first of the largest."""
    (axis,) = step.params["axes"]
    name = g.add("ArgMax", [g.full(step.inputs[0])], step.outputs[0].shape, axis=int(axis), keepdims=0)
    return g.cast(name, step.params["index_dtype"])


def cumsum(g: Graph, step: Step) -> str:
    """Sums from the first to each."""
    inputs = [g.full(step.inputs[0]), g.name(np.array(step.params["axis"], np.int64))]
    return g.add("CumSum", inputs, step.outputs[0].shape, reverse=int(step.params["reverse"]))


def broadcast(g: Graph, step: Step) -> str:
    """New axes, which stay of size 1."""
    name, shape = g.name(step.inputs[0]), list[int | str]([1] * len(step.outputs[0].shape))
    small = g.shapes[name]
    if not small:
        return name
    places = [int(axis) for axis in step.params["broadcast_dimensions"]][-len(small) :]
    for place, size in zip(places, small, strict=True):
        shape[place] = size
    return g.reshape(name, tuple(shape))


def reshape(g: Graph, step: Step) -> str:
    """Another shape."""
    return g.reshape(g.full(step.inputs[0]), step.outputs[0].shape)


def transpose(g: Graph, step: Step) -> str:
    """Another order of the axes."""
    return g.transpose(g.full(step.inputs[0]), tuple(map(int, step.params["permutation"])))


def concatenate(g: Graph, step: Step) -> str:
    """Several arrays along one axis."""
    axis = int(step.params["dimension"])
    return g.add("Concat", [g.full(x) for x in step.inputs], step.outputs[0].shape, axis=axis)


def stack(g: Graph, step: Step) -> str:
    """Several arrays along a new axis."""
    shape, axis = step.outputs[0].shape, int(step.params["axis"])
    parts = [g.reshape(g.full(x), (*shape[:axis], 1, *shape[axis + 1 :])) for x in step.inputs]
    return g.add("Concat", parts, shape, axis=axis)


def split(g: Graph, step: Step) -> list[str]:
    """Parts along one axis."""
    name, axis, shape, end = g.full(step.inputs[0]), int(step.params["axis"]), step.inputs[0].shape, 0
    parts = []
    for output in step.outputs:
        size = output.shape[axis]
        if size == shape[axis]:
            return [name]
        bounds = [g.whole(end), g.whole(end + int(size)), g.whole(axis)]
        parts.append(g.add("Slice", [name, *bounds], output.shape))
        end += int(size)
    return parts


def slice_(g: Graph, step: Step) -> str:
    """A part of each axis."""
    name, before = g.full(step.inputs[0]), step.inputs[0].shape
    starts, ends = sizes(step.params["start_indices"]), sizes(step.params["limit_indices"])
    strides = step.params["strides"] or (1,) * len(before)
    rows = [
        (start, end, axis, int(stride))
        for axis, (start, end, stride, size) in enumerate(zip(starts, ends, strides, before, strict=True))
        if (start, end, stride) != (0, size, 1)
    ]
    if not rows:
        return name
    return g.add("Slice", [name, *(g.whole(*column) for column in zip(*rows, strict=True))], step.outputs[0].shape)


def pad(g: Graph, step: Step) -> str:
    """A border of one number."""
    widths = [(int(low), int(high)) for low, high, _ in step.params["padding_config"]]
    if any(inner for *_, inner in step.params["padding_config"]):
        raise ConfigError(
            "ONNX: an array is padded between its cells, which no operator does; export to a .stablehlo file"
        )
    pads = g.whole(*(low for low, _ in widths), *(high for _, high in widths))
    return g.add("Pad", [g.full(step.inputs[0]), pads, g.full(step.inputs[1])], step.outputs[0].shape)


def dot(g: Graph, step: Step) -> str:
    """A product that sums over one axis of each input; batch axes come first."""
    (contract, batch), (left, right) = step.params["dimension_numbers"], step.inputs
    if len(contract[0]) != 1:
        raise ConfigError("ONNX: a product sums over several axes; export to a .stablehlo file")
    sides = [(left, batch[0], contract[0][0]), (right, batch[1], contract[1][0])]
    rest = [[i for i in range(len(x.shape)) if i not in (*common, k)] for x, common, k in sides]
    if not rest[0]:  # the result has the same axes in the same order
        sides, rest = sides[::-1], rest[::-1]
    (left, common, k), (right, common_right, k_right) = sides
    x = g.transpose(g.full(left), tuple(map(int, (*common, *rest[0], k))))
    y = g.transpose(g.full(right), tuple(map(int, (*common_right, k_right, *rest[1]))))
    (*shape, summed), columns, n = g.shapes[x], g.shapes[y][len(common) + 1 :], len(common)
    rows = shape[n:] or [1]
    width = columns[0] if len(columns) == 1 else math.prod(map(int, columns))
    x = g.reshape(x, (*shape[:n], *rows, summed))
    y = g.reshape(y, (*shape[:n], *[1] * (len(rows) - 1 if n else 0), summed, width))
    return g.reshape(g.add("MatMul", [x, y], (*shape[:n], *rows, width)), step.outputs[0].shape)


def gather(g: Graph, step: Step) -> str:
    """Whole slices at given places of one axis."""
    (data, places), numbers = step.inputs, step.params["dimension_numbers"]
    common, rank = len(numbers.operand_batching_dims), len(step.outputs[0].shape)
    axes, index = tuple(map(int, numbers.start_index_map)), g.full(places)
    kept = [i for i in range(len(data.shape)) if i >= common and i not in axes]
    others = len(places.shape) - 1 - common
    simple = (
        len(axes) == 1
        and tuple(map(int, numbers.collapsed_slice_dims)) == axes
        and tuple(numbers.operand_batching_dims) == tuple(numbers.start_indices_batching_dims) == tuple(range(common))
        and (not common or axes == (common,))
        and tuple(map(int, numbers.offset_dims)) == tuple(i if i < axes[0] else i + others - 1 for i in kept)
        and all(str(step.params["slice_sizes"][i]) == str(data.shape[i]) for i in kept)
        and rank == common + others + len(kept)
    )
    if not simple:
        raise ConfigError("ONNX: an array is indexed along several axes; export to a .stablehlo file")
    if common:
        return g.add("GatherND", [g.full(data), g.cast(index, np.int64)], step.outputs[0].shape, batch_dims=common)
    index = g.reshape(index, sizes(places.shape[:-1]))
    return g.add("Gather", [g.full(data), index], step.outputs[0].shape, axis=axes[0])


OPERATORS = {
    "abs": "Abs", "add": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos", "div": "Div", "eq": "Equal", "erf": "Erf",
    "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
    "logistic": "Sigmoid", "lt": "Less", "min": "Min", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or",
    "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh", "xor": "Xor",
}  # fmt: skip
"""Elementwise primitives for which there is one operator."""
FORMULAS: dict[str, Callable[..., str]] = {
    "clamp": lambda apply, low, x, high: apply("Min", apply("Max", x, low), high),
    "erfc": lambda apply, x: apply("Sub", 1.0, apply("Erf", x)),
    "expm1": lambda apply, x: apply("Sub", apply("Exp", x), 1.0),
    "log1p": lambda apply, x: apply("Log", apply("Add", x, 1.0)),
    "ne": lambda apply, x, y: apply("Not", apply("Equal", x, y)),
    "rsqrt": lambda apply, x: apply("Reciprocal", apply("Sqrt", x)),
    "square": lambda apply, x: apply("Mul", x, x),
}
"""Elementwise primitives made of several operators."""
NODES: dict[str, Callable[[Graph, Step], str | list[str]]] = {
    **dict.fromkeys(("stop_gradient", "copy", "copy_p", "optimization_barrier"), same),
    **{name: elementwise(kind) for name, kind in OPERATORS.items()},
    **{name: composed(function) for name, function in FORMULAS.items()},
    "max": maximum,
    "integer_pow": integer_pow,
    "round": round_,
    "convert_element_type": convert,
    "select_n": select,
    "reduce_sum": reduce("ReduceSum"),
    "reduce_max": reduce("ReduceMax"),
    "reduce_min": reduce("ReduceMin"),
    "reduce_or": reduce("ReduceMax"),
    "reduce_and": reduce("ReduceMin"),
    "argmax": argmax,
    "cumsum": cumsum,
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "transpose": transpose,
    "concatenate": concatenate,
    "stack": stack,
    "split": split,
    "slice": slice_,
    "pad": pad,
    "dot_general": dot,
    "gather": gather,
}
"""The nodes of each primitive."""
