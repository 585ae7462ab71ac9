"""The engine in a process: out-of-bounds reads, threads, their processors and stacks, and forks."""

import os
import sys

import pytest
from support.processes import run_script


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fences are made with Linux's mprotect")
@pytest.mark.cover(1)
@pytest.mark.parametrize("side", ["before", "behind"])
def test_nothing_is_read_outside_of_a_buffer(isa, side):
    """The kernels read nothing outside a buffer, because no memory may be mapped there."""
    script = f"""
    import numpy as np
    from support.cells import VARIANTS
    from support.guards import Fences, Run
    from support.linear import linear_problem, run_linear
    from support.problems import EDGES, variant_problem

    for k, H in enumerate(EDGES):
        N, I, dtype = 1 + k % 7, EDGES[-1 - k], (np.float32, np.float64)[k % 2]
        options = dict(num_layers=2, dropout=True, bidirectional=k % 3 == 0, dtype=dtype)
        for variant in VARIANTS:
            print(variant, N, I, H, options, flush=True)
            p = variant_problem(variant, 2, N, I, H, **options)
            Run(p, {isa!r}, guards=Fences(dtype, {side!r}), keep_tape=False)
            Run(p, {isa!r}, guards=Fences(dtype, {side!r})).backward()
            for p.weights in ("bfloat16", "int8") if dtype == np.float32 else ():
                print(p.weights, flush=True)
                Run(p, {isa!r}, guards=Fences(dtype, {side!r}), keep_tape=False)
        print("linear", N, I, H, dtype, flush=True)
        for weights in ("full", "bfloat16", "int8") if dtype == np.float32 else ("full",):
            arrays = linear_problem(N, I, H, dtype, True)
            run_linear(*arrays, {isa!r}, guards=Fences(dtype, {side!r}), weights=weights)
    """
    run_script(script)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not show the threads of a process")
def test_threads_are_made_when_they_are_needed():
    script = """
    import os
    from support.guards import run_engine
    from support.problems import problem
    from rnnfast import functional

    def tasks():
        return len(os.listdir("/proc/self/task"))

    assert tasks() == 1, "import made threads"
    functional.set_num_threads(1)
    for shape in ((20, 64, 32, 64), (3, 1, 64, 700)):
        run_engine(problem("lstm", *shape))
    assert tasks() == 1, "one thread made more"
    functional.set_num_threads(3)
    run_engine(problem("lstm", 1, 1, 2, 2))
    run_engine(problem("lstm", 20, 64, 32, 64))
    assert tasks() == 3, f"{tasks()} threads in place of 3"
    """
    run_script(script)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind a process to a processor")
@pytest.mark.parametrize("shape", ["100, 1, 16, 256", "40, 32, 64, 128"])
def test_threads_without_processors_cost_little(shape):
    """A call does not wait for workers that have no processor. Waiting would take processor time."""
    script = f"""
    import os, time
    from support.guards import Run
    from support.problems import problem
    from rnnfast import functional

    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    forward = Run(problem("lstm", {shape})).forward
    best = {{1: 9.0, 3: 9.0}}
    for _ in range(40):
        for threads in best:
            functional.set_num_threads(threads)
            start = time.process_time()
            forward()
            best[threads] = min(best[threads], time.process_time() - start)
    assert best[3] < 1.4 * best[1], best
    """
    run_script(script)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_child_can_run_the_engine():
    """A child can be forked while other threads run the engine."""
    script = """
    import os, threading
    from support.guards import run_engine
    from support.problems import problem
    from rnnfast import functional

    functional.set_num_threads(2)
    p = problem("gru", 20, 64, 32, 64, bidirectional=True)
    expected = run_engine(p)
    done = threading.Event()

    def work():
        while not done.is_set():
            run_engine(p)

    worker = threading.Thread(target=work)
    worker.start()
    children = []
    for _ in range(10):
        run_engine(p)
        child = os.fork()
        if child == 0:
            results = [run_engine(p) for _ in range(3)]
            same = all(r[name].tobytes() == expected[name].tobytes() for r in results for name in expected)
            os._exit(0 if same else 1)
        children.append(child)
    done.set()
    worker.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 10
    """
    run_script(script)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two processors and Linux"
)
def test_workers_follow_the_processors_of_the_caller():
    """Workers run only where the calling thread may run, and everywhere there again once its affinity is widened."""
    script = """
    import os
    from support.guards import Run
    from support.problems import problem
    from rnnfast import functional

    functional.set_num_threads(2)
    every = os.sched_getaffinity(0)
    forward = Run(problem("lstm", 20, 64, 32, 64)).forward

    def workers():
        forward()
        return [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]

    [worker] = workers()
    assert worker and worker < every, (worker, every)
    for first in sorted(every) * 3:
        os.sched_setaffinity(0, {first})
        assert workers() == [{first}]
        os.sched_setaffinity(0, every)
        [worker] = workers()
        assert worker < every and len(worker) == len(every) - 1, (first, worker, every)
    """
    run_script(script)


@pytest.mark.skipif(sys.platform == "win32", reason="threads of Windows have stacks of at least 64 KiB")
@pytest.mark.parametrize("frozen", [False, True])
def test_threads_with_small_stacks(frozen):
    """Every operation runs in a thread whose stack is the smallest that Python allows."""
    script = f"""
    import threading
    import numpy as np
    import rnnfast

    rnnfast.set_num_threads(1)
    x, one = np.ones((5, 2, 8), np.float32), np.float32(1)
    options = dict(num_layers=2, peepholes=True, bidirectional=True)
    layers = [rnnfast.LSTM(8, 16, rng=0), rnnfast.GRU(8, 40, rng=0), rnnfast.LSTM(8, 16, rng=0, **options)]
    readout, embedding = rnnfast.Linear(8, 16, rng=0), rnnfast.Embedding(10, 4, rng=0)
    stream = layers[0].stream(2)

    def work():
        a = np.ones((8, 8), np.float32)
        a @ a
        if {frozen}:
            for layer in [*layers, readout]:
                layer.freeze()
        for layer in layers:
            for _ in range(3):
                layer(x)
            y, _, tape = layer.forward(x, mask=np.arange(10).reshape(5, 2) > 2, reset=np.arange(10).reshape(5, 2) > 5)
            layer.backward(tape, np.ones_like(y))
        y, tape = readout.forward(x)
        readout.backward(tape, y)
        y, tape = embedding.forward([1, 2, 3])
        embedding.backward(tape, y)
        stream.step(x[0])
        done.append(True)

    done = []
    work()
    for size in range(32, 128, 16):
        try:
            threading.stack_size(size << 10)
            break
        except ValueError:  # CPython 3.14 refuses less than 52 KiB
            pass
    assert threading.stack_size()
    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(done) == 3
    """
    run_script(script)
