from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

_F = TypeVar("_F", bound=Callable[..., Any])

ABI: int  # RNNFAST_ABI of csrc/rnnfast.h
COMPILER: str
CELLS: dict[str, CellInfo]  # in the order of rnnfast_cell
FUNCTIONS: tuple[str, ...]
WEIGHTS: tuple[str, ...]
SUM_ROWS: int
api: object  # a capsule, for csrc/rnnfast_python.h
xla: dict[str, object]  # capsules: handlers "forward" and "backward" for XLA, see csrc/xla_ffi.h

class CellInfo(NamedTuple):
    name: str
    id: int  # rnnfast_cell
    gates: str  # a letter each, in torch's order
    has_c: bool
    projects: bool
    functions: tuple[str, ...]  # default activations: of the gates, the candidate, and c for h
    generic: int | None  # id of the cell that options select
    extra: str  # name of the per-unit extras, "" for none
    extra_rows: int
    extra_trained: bool
    elementwise: bool  # there are no weight_hh and bias_hh
    reads_x: bool

class Sizes(NamedTuple):
    tape: int
    forward_workspace: int
    backward_workspace: int

def address(array: NDArray[Any]) -> int: ...
def assign(targets: list[NDArray[Any]], sources: list[NDArray[Any]]) -> None: ...
def swap(arrays: list[NDArray[Any]], others: list[NDArray[Any]], flag: NDArray[np.int64]) -> None: ...

@disjoint_base
class swapped:
    def __new__(cls, arrays: list[NDArray[Any]], others: list[NDArray[Any]], flag: NDArray[np.int64]) -> Self: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

def switch(
    attributes: list[tuple[Any, str, Any]],
    arrays: list[NDArray[Any]],
    writeable: bool,
    targets: list[NDArray[Any]],
    sources: list[NDArray[Any]],
) -> None: ...
def committed(check: _F) -> _F: ...
def overlaps(arrays: list[NDArray[Any]]) -> list[tuple[int, int]]: ...
def optimize(
    kind: str,
    parameters: list[NDArray[Any]],
    gradients: list[NDArray[Any]],
    moments: list[list[NDArray[Any]]],
    steps: NDArray[np.int64],
    options: tuple[float, ...],
) -> None: ...
def add_scaled(targets: list[NDArray[Any]], factors: NDArray[Any], sources: list[NDArray[Any]]) -> None: ...

@disjoint_base
class BufferPool:
    most: int
    def __new__(cls, most: int, empty: Callable[[int], NDArray[Any]]) -> Self: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def acquire(self, nbytes: int) -> Any: ...
    def pop(self) -> Any: ...
    def release(self, buffer: Any) -> None: ...
    def clear(self) -> None: ...
    def lease(self, nbytes: int) -> Lease: ...

@disjoint_base
class Lease:
    buffer: Any
    def __new__(cls, pool: BufferPool, buffer: Any, nbytes: int) -> Self: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

@disjoint_base
class Weights:
    def __new__(cls, engine: Engine, packed: NDArray[Any], initial: Any) -> Self: ...

@disjoint_base
class Slots:
    def __new__(
        cls,
        engine: Engine,
        packed: NDArray[Any],
        states: list[NDArray[Any]],
        initial: Any = None,
        *,
        pool: BufferPool,
        empty: Callable[..., NDArray[Any]],
    ) -> Self: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def members(self) -> list[int]: ...
    def starts(self) -> Any: ...
    def replace(self, packed: NDArray[Any], initial: Any) -> None: ...
    def join(self, h: NDArray[Any] | None, c: NDArray[Any] | None) -> int: ...
    def leave(self, id: int) -> Any: ...  # noqa: A002
    def step(self, ids: list[int], x: Any, out: Any, check: Callable[..., Any]) -> NDArray[Any]: ...

@disjoint_base
class Engine:
    cell: str
    isa: str
    weights: str
    dtype: np.dtype[Any]
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    output_size: int
    bidirectional: bool
    reverse: bool
    bias: bool
    directions: int
    gates: int
    info: CellInfo
    extra: str
    options: Any
    zoneout: tuple[float, float]
    packed_size: int
    packed_back_size: int
    def __new__(
        cls,
        cell: str,
        dtype: np.dtype[Any],
        input_size: int,
        hidden_size: int,
        *,
        proj_size: int = 0,
        num_layers: int = 1,
        bidirectional: bool = False,
        reverse: bool = False,
        bias: bool = True,
        isa: str | None = None,
        options: Any = None,
        openmp: bool = False,
        weights: str = "full",
        zoneout: tuple[float, float] = (0.0, 0.0),
    ) -> Self: ...
    def draw_zoneout(
        self, T: int, N: int, key: Sequence[int], empty: Callable[[int], NDArray[Any]]
    ) -> NDArray[Any]: ...
    def sizes(self, T: int, N: int, order: Order | None = None) -> Sizes: ...
    def host_call(self, time_first: bool, has_h0: bool, has_c0: bool) -> bytes: ...

@disjoint_base
class Pointers:
    def __new__(
        cls,
        engine: Engine,
        arrays: Sequence[NDArray[Any] | None],
        flags: int = 0,
        optional: bool = False,
        members: int = 1,
    ) -> Self: ...

@disjoint_base
class Order:
    begin: NDArray[np.intp]
    positions: tuple[NDArray[np.intp], NDArray[np.intp]]
    edges: NDArray[np.intp]
    masked_steps: NDArray[np.intp]
    steps: int
    sequences: int
    def __new__(
        cls,
        sequences: int,
        begin: NDArray[np.intp],
        positions: tuple[NDArray[np.intp], ...],
        edges: NDArray[np.intp],
        masked_steps: NDArray[np.intp],
    ) -> Self: ...
    def fill(self, source: int, array: NDArray[Any]) -> None: ...

def arrange(
    T: int,
    N: int,
    lengths: NDArray[np.intp] | None,
    mask: NDArray[np.bool_] | None,
    reset: NDArray[np.bool_] | None,
    empty: Callable[[int], NDArray[np.intp]],
) -> tuple[
    NDArray[np.intp],
    tuple[NDArray[np.intp], NDArray[np.intp]],
    NDArray[np.intp],
    NDArray[np.intp],
    NDArray[np.intp],
    NDArray[np.intp],
]: ...
def cells(
    engine: Engine, T: int, N: int, tape: NDArray[Any], out: NDArray[Any], order: Order | None = None
) -> None: ...
def fold(engine: Engine, dy: NDArray[Any], order: Order) -> None: ...

@disjoint_base
class Inputs:
    x: Any
    h0: Any
    c0: Any
    masks: Any
    order: Order | None
    recurrent_masks: Any
    zoneout_masks: Any
    def __new__(
        cls,
        x: Any,
        h0: Any = None,
        c0: Any = None,
        masks: Any = None,
        order: Order | None = None,
        recurrent_masks: Any = None,
        zoneout_masks: Any = None,
    ) -> Self: ...

@disjoint_base
class Outputs:
    y: Any
    h_n: Any
    c_n: Any
    state: Any
    def __new__(cls, y: Any, h_n: Any, c_n: Any = None) -> Self: ...

@disjoint_base
class OutputGradients:
    dy: Any
    dh_n: Any
    dc_n: Any
    def __new__(cls, dy: Any = None, dh_n: Any = None, dc_n: Any = None) -> Self: ...

@disjoint_base
class InputGradients:
    dx: Any
    dh0: Any
    dc0: Any
    dparameters: Any
    dh: Any
    def __new__(cls, dx: Any, dh0: Any, dc0: Any, dparameters: Any, dh: Any = None) -> Self: ...

def forward_members(
    engine: Engine,
    parameters: Pointers | None,
    packed: Any,
    packed_back: Any,
    inputs: Inputs,
    outputs: Outputs,
    workspace: Any,
    tape: Any = None,
) -> None: ...
def backward_members(
    engine: Engine,
    packed_back: Any,
    inputs: Inputs,
    y: Any,
    tape: Any,
    output_gradients: OutputGradients,
    input_gradients: InputGradients,
    workspace: Any,
) -> None: ...

@disjoint_base
class PreparedCall:
    packed: NDArray[Any] | None
    initial: Any
    def __new__(
        cls,
        engine: Engine,
        packed: NDArray[Any] | None,
        shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...] | None],
        *,
        time_first: bool,
        pool: Any,
        empty: Callable[..., NDArray[Any]],
        states: tuple[Sequence[NDArray[Any]], Sequence[NDArray[Any]] | None] | None = None,
        parameters: Sequence[NDArray[Any]] | Pointers | None = None,
        initial: Any = None,
    ) -> Self: ...
    def run(self, x: Any, state: Any) -> tuple[NDArray[Any], Any] | None: ...
    def step(self, x: Any, out: Any, target: NDArray[Any] | None = None) -> NDArray[Any] | None: ...
    def update(self, function: Callable[..., tuple[Any, Any]]) -> Any: ...
    def replace(self, packed: NDArray[Any], initial: Any) -> None: ...

def isas() -> list[str]: ...
def get_default_isa() -> str: ...
def set_default_isa(name: str) -> None: ...

@disjoint_base
class use_isa:
    def __new__(cls, name: str) -> Self: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def find_openmp(path: str) -> bool: ...
def set_on_openmp(on: bool) -> None: ...
def pack(
    engine: Engine,
    parameters: Sequence[NDArray[Any]] | Pointers,
    packed: NDArray[Any] | None,
    packed_back: NDArray[Any] | None,
) -> None: ...
def forward(
    engine: Engine,
    packed: NDArray[Any],
    inputs: Inputs,
    outputs: Outputs,
    workspace: NDArray[Any],
    tape: NDArray[Any] | None = None,
) -> None: ...
def backward(
    engine: Engine,
    packed_back: NDArray[Any],
    inputs: Inputs,
    y: NDArray[Any],
    tape: NDArray[Any],
    output_gradients: OutputGradients,
    input_gradients: InputGradients,
    workspace: NDArray[Any],
) -> None: ...
def linear_sizes(
    M: int, I: int, O: int, item: int, isa: str | None = None, weights: str = "full"
) -> tuple[int, int]: ...
def linear_pack(
    weight: NDArray[Any], bias: NDArray[Any] | None, packed: NDArray[Any], isa: str | None = None, weights: str = "full"
) -> None: ...
def linear_forward(
    x: NDArray[Any], packed: NDArray[Any], y: NDArray[Any], isa: str | None = None, weights: str = "full"
) -> None: ...
def linear_backward(
    x: NDArray[Any],
    weight: NDArray[Any],
    dy: NDArray[Any],
    dx: NDArray[Any],
    dweight: NDArray[Any],
    dbias: NDArray[Any] | None,
    workspace: NDArray[Any],
    isa: str | None = None,
) -> None: ...
def activation(name: str, a: NDArray[Any], out: NDArray[Any], isa: str | None = None) -> None: ...
