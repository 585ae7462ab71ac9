"""Models as C programs: one source file with the weights in it, for microcontrollers, WebAssembly and plug-ins.

The source consists of the same definitions in csrc/ from which the kernels are compiled, so its results are bitwise
those of the last of `rnnfast.isas()`, which fuses no product with a sum. It needs no library, not even the mathematical
functions of C.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnnfast
from rnnfast import narrow
from rnnfast._types import Array
from rnnfast.layers import Activation, Bidirectional, Dropout, Embedding, Linear, Recurrent, saving
from rnnfast.portable import Sources

__all__ = ["CSource", "c_source"]

FUNCTIONS = {"tanh": "hyperbolic_tangent", "sigmoid": "sigmoid", "relu": "relu"}  # of Activation
FLOAT = 4  # bytes
TYPES = {"full": "REAL", "bfloat16": "uint16_t", "int8": "int8_t"}  # of the weights of each kind

HEADER = """\
/* {title}, as rnnfast {version} wrote it.
 *
 *     static {name}_state state;
 *     float y[{NAME}_OUTPUTS];
 *     {name}_reset(&state);
 *     for (;;) {name}_step(&state, next_input(), y);
 *
 * x is {inputs}, y has {NAME}_OUTPUTS elements, and they do not overlap.
 * {name}_run() takes T steps: x and y are those of one step after the other. Any number of states can be in use.
 * Memory: {flash} bytes of constants, {state} for each state, and arrays of {scratch} on the stack in a step.
 * Nothing is allocated, and nothing can fail.
 */
#ifndef {NAME}_H
#define {NAME}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

enum {{ {NAME}_INPUTS = {I}, {NAME}_OUTPUTS = {outputs} }};

/* h and c of each recurrent layer, which may be read, stored and set. */
typedef struct {{
{members}
}} {name}_state;

void {name}_reset({name}_state *state); /* to the {initial} state */
void {name}_step({name}_state *state, const {input} *x, float *y);
void {name}_run({name}_state *state, const {input} *x, size_t T, float *y);

#ifdef __cplusplus
}}
#endif

#endif
"""

SOURCE = """\
/* {title}, as rnnfast {version} wrote it: see {name}.h.
 *
 * Compile it with any C11 compiler, optimised (-O2 or -O3). Results are bitwise those of rnnfast with the last
 * instruction set of rnnfast.isas() if the compiler follows IEEE 754 and fuses no product with a sum. gcc does so here
 * whatever its options, and clang unless it is given -ffp-contract=fast.
 * Vectors, where a compiler uses them, do not change a result.
 */
#include "{name}.h"

#include <float.h>
#include <string.h>

#if defined(__FAST_MATH__) || FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2
#error "{name}.c relies on the rounding of float: compile it without -ffast-math, and on 32-bit x86 with -mfpmath=sse"
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math", "no-math-errno")
#else
#pragma STDC FP_CONTRACT OFF
#endif

#define LANES 1

{definitions}
{layers}
/* ---- the model ---- */

void {name}_reset({name}_state *state)
{{
{reset}
}}

void {name}_step({name}_state *state, const {input} *x, float *y)
{{
{step}
}}

void {name}_run({name}_state *state, const {input} *x, size_t T, float *y)
{{
    for (; T > 0; T--, x += {NAME}_INPUTS, y += {NAME}_OUTPUTS) {name}_step(state, x, y);
}}
"""

LAYER = """\
static void layer_{n}({name}_state *state, const REAL *x)
{{
    REAL gates[{gates}]{zeros}{aux};
    const point at = {{{point}}};
{body}
}}
"""


class CSource(NamedTuple):
    """A model as C.

    Attributes
    ----------
    source, header : str
        The contents of NAME.c and NAME.h.
    flash : int
        Bytes of the constants: weights, biases and tables.
    state : int
        Bytes of the struct NAME_state.
    scratch : int
        Bytes of the arrays that a step has on the stack.
    """

    source: str
    header: str
    flash: int
    state: int
    scratch: int


def c_source(layer: Any, name: str = "model") -> CSource:
    """Return a layer or model as a C program that computes single steps.

    Parameters
    ----------
    layer : recurrent layer, such as LSTM, or Sequential
        With any options but zoneout, and not in the reverse direction. A Sequential can hold, besides at least one such
        layer, Linear, Activation, Dropout (which does nothing here), and an Embedding as its first layer. Weights of a
        float64 layer are rounded to float32. A layer that is frozen with weights in fewer bytes is written with these.
    name : str, default "model"
        A C identifier, with which the public names of the program start.

    Returns
    -------
    CSource
        The contents of ``NAME.c`` and ``NAME.h``, and the memory that the program needs.

    Raises
    ------
    TypeError
        If `layer`, or a layer of the Sequential, is not one of those above.
    ValueError
        If a layer runs in the reverse direction, has zoneout or is frozen with int8 activations, the parameters are not
        finite, or `name` is not an identifier.

    Notes
    -----
    The header declares ``NAME_state``, ``NAME_reset(state)``, ``NAME_step(state, x, y)`` and
    ``NAME_run(state, x, T, y)``. Results are bitwise those of a float32 layer with ``RNNFAST_ISA=scalar``, except that
    tanh and sigmoid of an Activation differ from NumPy's by rounding.

    Examples
    --------
    >>> import rnnfast
    >>> model = rnnfast.Sequential(rnnfast.LSTM(1, 16, rng=0), rnnfast.Linear(16, 1, rng=1))
    >>> program = rnnfast.export.c_source(model, "filter")
    >>> program.flash, program.state
    (4676, 128)
    >>> for line in program.header.splitlines():
    ...     if line.startswith("void"):
    ...         print(line)
    void filter_reset(filter_state *state); /* to the zero state */
    void filter_step(filter_state *state, const float *x, float *y);
    void filter_run(filter_state *state, const float *x, size_t T, float *y);
    """
    return _Program(_flat(layer), _identifier(name)).written(saving.describe(layer))


def _identifier(name: Any) -> str:
    """Check that a name is a C identifier."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"name must be a C identifier, such as 'model', got {name!r}")
    return name


def _flat(layer: Any) -> Iterator[Any]:
    """Yield the layers in a row, without those that do nothing."""
    from rnnfast.models import Sequential

    if isinstance(layer, Sequential) and layer._saves_class():
        for one in layer.layers:
            yield from _flat(one)
        return
    described = saving.describe(layer) if type(layer) in saving.CLASSES.values() else type(layer).__name__
    if isinstance(layer, Bidirectional) or getattr(layer, "bidirectional", False) or getattr(layer, "reverse", False):
        raise ValueError(
            f"{described} cannot be exported, because its reverse direction starts at the last step of the sequence, "
            "and the program computes one step after the other: use a layer with bidirectional=False and reverse=False"
        )
    if not isinstance(layer, (Recurrent, Linear, Activation, Dropout, Embedding)):
        raise TypeError(
            "layer must be a recurrent layer, or a Sequential of such layers, Embedding, Linear, "
            f"Activation and Dropout, got {described}"
        )
    if not isinstance(layer, Dropout):
        yield layer


class _Program:
    """The parts of a program, to which the methods for layers add."""

    def __init__(self, layers: Iterator[Any], name: str) -> None:
        self.name = name
        self.sources = Sources(Path(rnnfast.get_include()))
        self.needs: set[str] = set()
        self.layers: list[str] = []  # constants and functions
        self.states: dict[str, Array] = {}  # the initial state
        self.step: list[str] = []
        self.flash = self.inner = self.buffers = 0  # bytes of constants, of arrays of a layer, of arrays between layers
        self.cells = 0
        every = list(layers)
        first = next((layer for layer in every if not isinstance(layer, Activation)), None)
        self.inputs: int = getattr(first, "in_features", getattr(first, "input_size", 1))
        self.input, self.about = "float", f"an array of {name.upper()}_INPUTS elements"
        self.at, self.size = "x", self.inputs  # what the next layer reads: an expression, and its number of elements
        for n, layer in enumerate(every):
            to = f"a_{n}" if n + 1 < len(every) else "y"  # where a layer without a state writes
            if not isinstance(layer, Activation) and layer._kind() == "int8_products":
                raise ValueError(
                    f"C programs compute with float32 activations, but {saving.describe(layer)} is frozen with "
                    "activations='int8': call freeze(weights='int8', activations='float32')"
                )
            if isinstance(layer, Embedding):
                self.embed(layer, n)
            elif isinstance(layer, Linear):
                self.multiply(layer, n, to)
            elif isinstance(layer, Activation):
                self.activate(layer, to)
            else:
                for k in range(layer.num_layers):
                    own = {**layer.parameters, **layer.execution.extras}
                    end = f"_l{k}"
                    self.recur(layer.engine, {key.removesuffix(end): own[key] for key in own if key.endswith(end)})
        if not self.cells:
            raise TypeError("layer must have at least one recurrent layer, got only layers without a state")

    def constants(self, name: str, array: Array, kind: str = "full") -> str:
        """Define an array of constants, and return its name."""
        values = array.reshape(-1) if kind != "full" else np.ascontiguousarray(array, np.float32).reshape(-1)
        if not np.isfinite(values).all():
            raise ValueError(f"the parameters must be finite in float32, but some of {name} are not")
        texts = [f"{value}f" if kind == "full" else value for value in map(str, values)]
        lines = ",\n    ".join(", ".join(texts[i : i + 8]) for i in range(0, len(texts), 8))
        self.layers.append(f"static const {TYPES[kind]} {name}[{len(texts)}] = {{\n    {lines}}};\n")
        self.flash += values.nbytes
        return name

    def product(self, kind: str, to: str, x: str, name: str, weight: Array) -> str:
        """Define a weight (columns, K) of some kind, and return the statement that adds its product with x to `to`."""
        columns, K = weight.shape
        if kind == "full":
            self.needs.add("add_product")
            return f"add_product({to}, {x}, {K}, {self.constants(name, weight.T)}, {columns});"
        self.needs.add(f"add_{kind}_product")
        parts = narrow.encode(kind, np.ascontiguousarray(weight, np.float32))
        operands = [self.constants(name, np.ascontiguousarray(parts[""].T), kind)]
        operands += [self.constants(f"scale_of_{name}", parts[".scale"])] if ".scale" in parts else []
        return f"add_{kind}_product({to}, {x}, {K}, {', '.join(operands)}, {columns});"

    def begin(self, to: str, size: int) -> str:
        """Let the next layer read the array `to`, which is y or a new one; return what this one reads."""
        x, self.at, self.size = self.at, to, size
        if to != "y":
            self.step.append(f"REAL {to}[{size}];")
            self.buffers += FLOAT * size
        return x

    def embed(self, layer: Embedding, n: int) -> None:
        if n:
            raise TypeError(
                f"an Embedding must be the first layer, but {saving.describe(layer)} reads the output of another"
            )
        D, kind = layer.embedding_dim, layer._kind() or "full"
        self.input, self.about = "int32_t", f"an id from 0 to {layer.num_embeddings - 1}"
        if kind == "full":
            self.at, self.size = f"{self.constants('embedding', layer.parameters['weight'])} + *x * {D}", D
            return
        parts = narrow.encode(kind, layer.parameters["weight"])
        value = f"{self.constants('embedding', parts[''], kind)}[*x * {D} + j]"
        if kind == "int8":
            value = f"{value} * {self.constants('scale_of_embedding', parts['.scale'])}[*x]"
        else:
            self.needs.add("from_bits")
            value = f"from_bits((BITS){value} << 16)"
        self.begin("embedded", D)
        self.step.append(f"for (ptrdiff_t j = 0; j < {D}; j++) embedded[j] = {value};")

    def multiply(self, layer: Linear, n: int, to: str) -> None:
        O = layer.out_features
        x = self.begin(to, O)
        add = self.product(layer._kind() or "full", to, x, f"weight_{n}", layer.parameters["weight"])
        if layer.bias:
            bias = self.constants(f"bias_of_weight_{n}", layer.parameters["bias"])
            self.step.append(f"memcpy({to}, {bias}, sizeof {bias});")
        else:
            self.step.append(f"memset({to}, 0, {O} * sizeof *{to});")
        self.step.append(add)

    def activate(self, layer: Activation, to: str) -> None:
        function = FUNCTIONS[layer.function]
        self.needs.add(function)
        x = self.begin(to, self.size)
        self.step.append(f"for (ptrdiff_t j = 0; j < {self.size}; j++) {to}[j] = {function}({x}[j]);")

    def recur(self, engine: Any, own: dict[str, Array]) -> None:
        """Add one layer of a stack, as step_row() in csrc/forward.h computes it. `own` are its parameters."""
        if any(engine.zoneout):
            raise ValueError("layer has zoneout, which programs do not support: train and export a layer without")
        n, H, P, name = self.cells, engine.hidden_size, engine.output_size, engine.info.name
        ih, hh, stages = self.sources.cell(name)
        has_aux = bool(engine.proj_size) or any(stage.from_aux and stage.columns for stage in stages)
        point = {"H": H, "H_gate": H, "gates": "gates", "h_before": f"state->h_{n}"}
        point["h"] = "aux" if engine.proj_size else f"state->h_{n}"
        self.states[f"h_{n}"] = own.get("h0", np.zeros(P))
        if engine.info.has_c:
            self.states[f"c_{n}"] = own.get("c0", np.zeros(H))
            point["c_before"] = point["c"] = f"state->c_{n}"
        if has_aux:
            point["aux"] = "aux"
        if engine.info.reads_x:
            point["x"] = "x"
        if engine.extra or engine.options:
            point["options"] = "&" + self.options(engine, n, own.get(engine.extra))
        body = []

        def rows(name: str, gates: Sequence[int]) -> list[Array]:
            zero = np.zeros(H, np.float32)
            return [zero if gate < 0 else own[name][gate * H : (gate + 1) * H].astype(np.float32) for gate in gates]

        def product(to: str, x: str, name: str, weight: Array) -> str:
            return self.product(engine.weights, to, x, f"{name}_{n}", weight)

        if engine.bias:
            bias = np.concatenate(rows("bias_ih", ih)) + np.concatenate(rows("bias_hh", hh))
            body.append(f"memcpy(gates, {self.constants(f'bias_{n}', bias)}, sizeof gates);")
        body.append(product("gates", "x", "weight_ih", np.concatenate(rows("weight_ih", ih[: engine.gates]))))
        for i, (from_aux, first, count, forward) in enumerate(stages):
            source = "aux" if from_aux else f"state->h_{n}"
            if count:
                to = f"gates + {first * H}" if first else "gates"
                weight = np.concatenate(rows("weight_hh", hh[first : first + count]))
                body.append(product(to, source, f"weight_hh{i or ''}", weight))
            elif engine.proj_size:
                body.append(f"memset(state->h_{n}, 0, sizeof state->h_{n});")
                body.append(product(f"state->h_{n}", source, "weight_hr", own["weight_hr"]))
            if forward:
                self.needs.add(forward)
                body.append(f"{forward}(&at, (range){{0, {H}}});")
        members = ", ".join(f".{name} = {value}" for name, value in point.items())
        members = members.replace(", .h_before", ",\n                      .h_before")
        gates, zeros, aux = len(ih) * H, "" if engine.bias else " = {0}", f", aux[{H}]" if has_aux else ""
        self.layers.append(
            LAYER.format(n=n, name=self.name, gates=gates, zeros=zeros, aux=aux, point=members, body=_indented(body))
        )
        self.inner = max(self.inner, FLOAT * (gates + H * has_aux))
        self.step.append(f"layer_{n}(state, {self.at});")
        self.cells += 1
        self.at, self.size = f"state->h_{n}", P

    def options(self, engine: Any, n: int, extra: Array | None) -> str:
        """Define the options of a cell, and return their name."""
        functions, clip, coupled = "NULL", 0.0, False
        if engine.options:
            chosen, limit, _, coupled = engine.options
            functions, clip = f"functions_{n}", limit or 0.0
            texts = ", ".join(f"{{RNNFAST_{name.upper()}, {alpha!r}, {beta!r}}}" for name, alpha, beta in chosen[:3])
            self.layers.append(f"static const rnnfast_activation {functions}[3] = {{{texts}}};\n")
        values = "NULL" if extra is None else self.constants(f"{engine.extra}_{n}", extra)
        text = f"{{{functions}, {np.float32(clip)!s}f, {int(coupled)}, {values}}}"
        self.layers.append(f"static const cell_options options_{n} = {text};\n")
        return f"options_{n}"

    def written(self, title: str) -> CSource:
        """Return the program."""
        if self.at != "y":
            self.step.append(f"memcpy(y, {self.at}, {self.size} * sizeof *y);")
        reset = ["memset(state, 0, sizeof *state);"]
        for name, values in self.states.items():
            if np.any(values):
                reset.append(
                    f"memcpy(state->{name}, {self.constants(f'initial_{name}', values)}, sizeof state->{name});"
                )
        state = FLOAT * sum(values.size for values in self.states.values())
        known = {
            "title": title,
            "version": rnnfast.__version__,
            "name": self.name,
            "NAME": self.name.upper(),
            "input": self.input,
            "inputs": self.about,
            "I": self.inputs,
            "outputs": self.size,
            "initial": "learned initial" if len(reset) > 1 else "zero",
            "members": _indented(f"float {name}[{values.size}];" for name, values in self.states.items()),
            "reset": _indented(reset),
            "step": _indented(self.step),
            "layers": "\n".join(self.layers),
            "definitions": self.sources.select(self.needs),
            "flash": self.flash,
            "state": state,
            "scratch": self.inner + self.buffers,
        }
        return CSource(SOURCE.format(**known), HEADER.format(**known), self.flash, state, self.inner + self.buffers)


def _indented(lines: Any) -> str:
    return "\n".join("    " + line for line in lines)
