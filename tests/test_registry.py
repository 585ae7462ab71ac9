"""The facts of each cell, which the registry in C declares and everything else derives."""

import re
from pathlib import Path

import numpy as np
import pytest

import rnnfast
from rnnfast import functional
from rnnfast.functional import CELLS
from rnnfast.options import Options

FLOAT = np.dtype(np.float32)


def test_cells_are_listed_in_the_order_of_the_enumeration():
    ids = [info.id for info in CELLS.values()]
    assert ids == sorted(set(ids))
    assert all(info.name == name for name, info in CELLS.items())
    assert {"rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"} <= CELLS.keys()


@pytest.mark.parametrize("cell", CELLS)
def test_engine_derives_its_facts_from_the_registry(cell):
    engine = functional.Engine(cell, FLOAT, 3, 3)
    assert engine.info == CELLS[cell]
    assert engine.gates == len(engine.info.gates) == len(set(engine.info.gates))
    shapes = functional.parameter_shapes(engine)
    assert shapes["weight_ih_l0"] == (engine.gates * 3, 3)
    assert ("weight_hh_l0" in shapes) == ("bias_hh_l0" in shapes) == (not engine.info.elementwise)


@pytest.mark.parametrize("given", [{"input_size": 4}, {"num_layers": 2, "bidirectional": True}])
def test_cells_that_read_x_refuse_inputs_of_other_sizes(given):
    with pytest.raises(ValueError, match="the inputs of all layers must have hidden_size=3 features"):
        functional.Engine("sru", FLOAT, **{"input_size": 3, "hidden_size": 3, **given})


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("proj_size", [1, 4, 5])
def test_projection_is_refused_by_cells_that_do_not_support_it(cell, proj_size):
    if CELLS[cell].projects and proj_size < 5:
        assert functional.Engine(cell, FLOAT, 3, 5, proj_size=proj_size).output_size == proj_size
        return
    with pytest.raises(ValueError, match=f"proj_size is {proj_size}, but"):
        functional.Engine(cell, FLOAT, 5, 5, proj_size=proj_size)


def test_unknown_cells_are_refused_by_name():
    with pytest.raises(ValueError, match=r"cell is 'elman'; expected one of rnn_tanh, .*gru_reset_before"):
        functional.Engine("elman", FLOAT, 3, 5)


def test_instruction_sets_are_found_once_and_named_as_their_tables():
    assert functional.isas() == functional.isas()
    for isa in functional.isas():
        assert functional.Engine("gru", FLOAT, 3, 5, isa=isa).isa == isa
    with pytest.raises(ValueError, match=re.escape("isa is 'avx9', which does not run here; choose one of")):
        functional.Engine("gru", FLOAT, 3, 5, isa="avx9")


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"dtype": np.dtype(np.int64)}, TypeError, "dtype must be"),
        ({"dtype": FLOAT.newbyteorder()}, TypeError, "in native byte order"),
        ({"hidden_size": -1}, ValueError, "must be positive"),
        ({"input_size": 0}, ValueError, "must be positive"),
        ({"num_layers": 0}, ValueError, "must be positive"),
        ({"proj_size": -1}, ValueError, "proj_size not negative"),
        ({"options": Options((("tanh", 0.0, 0.0),) * 9, None, False, False)}, ValueError, "three activations for each"),
    ],
)
def test_engine_refuses_invalid_numbers(given, error, match):
    with pytest.raises(error, match=match):
        functional.Engine("lstm", **{"dtype": FLOAT, "input_size": 3, "hidden_size": 5, **given})


@pytest.mark.parametrize(("T", "N"), [(-1, 1), (1, -1), (0, 1), (1, 0)])
def test_sizes_refuse_lengths_that_are_not_positive(T, N):
    with pytest.raises(ValueError, match="T and N must be positive"):
        functional.Engine("gru", FLOAT, 3, 5).sizes(T, N)


def test_pack_counts_its_arrays():
    layer = rnnfast.LSTM(3, 5, 2, rng=0)
    packed = functional.empty(layer.engine.packed_size)
    with pytest.raises(ValueError, match=r"expected 8 arrays, .* got 7"):
        functional.pack(layer.engine, list(layer.parameters.values())[:7], packed, None)


@pytest.mark.parametrize("cell", CELLS)
def test_default_activations_are_functions_that_options_can_name(cell):
    info = CELLS[cell]
    assert info.functions
    assert set(info.functions) <= set(functional.FUNCTIONS)


def test_names_of_functions_are_those_of_the_header():
    header = (Path(rnnfast.get_include()) / "rnnfast.h").read_text(encoding="utf-8")
    enum = header.partition("Activations, functions of x")[2].partition("} rnnfast_function;")[0]
    names = [name.lower() for name in re.findall(r"^ *RNNFAST_(\w+)", enum, re.MULTILINE)]
    assert names == [*functional.FUNCTIONS, "activations"]


@pytest.mark.parametrize("cell", [cell for cell, info in CELLS.items() if info.generic is not None])
def test_options_select_a_generic_cell_of_the_same_gates(cell):
    info = functional.Engine(cell, FLOAT, 3, 5, options=Options((("tanh", 0.0, 0.0),) * 3, None, False, False)).info
    assert info.id == info.generic == CELLS[cell].generic
    assert (info.gates, info.has_c, info.projects) == (CELLS[cell].gates, CELLS[cell].has_c, CELLS[cell].projects)


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_masks_need_no_tape(layers, bidirectional):
    # Without a tape, two buffers take turns for the outputs of layers: masking must not use the next layer's buffer.
    T, N, H = 9, 3, 4
    engine = functional.Engine("lstm", FLOAT, H, H, num_layers=layers, bidirectional=bidirectional)
    rng = np.random.default_rng(0)
    parameters = [rng.uniform(-1, 1, shape).astype(FLOAT) for shape in functional.parameter_shapes(engine).values()]
    packed, sizes = functional.empty(engine.packed_size), engine.sizes(T, N)
    functional.pack(engine, parameters, packed, None)
    masks = rng.uniform(0, 2, (layers - 1, T, N, engine.directions * H)).astype(FLOAT)
    inputs = functional.Inputs(rng.uniform(-1, 1, (T, N, H)).astype(FLOAT), None, None, masks)
    found = []
    for tape in (functional.empty(sizes.tape), None):
        states = np.empty((2, layers * engine.directions, N, H), FLOAT)
        outputs = functional.Outputs(np.empty((T, N, engine.directions * H), FLOAT), *states)
        functional.forward(engine, packed, inputs, outputs, functional.empty(sizes.forward_workspace), tape)
        found.append((outputs.y.tobytes(), states.tobytes()))
    assert found[0] == found[1]
