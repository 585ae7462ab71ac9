"""Compare other frameworks that run on rnnfast with their own implementations.

    python benchmarks/backends.py                   all that are installed
    python benchmarks/backends.py torch --threads 2

Both get the same weights and inputs and take turns; times are medians. For PyTorch, the table also has the time that
the adapter adds to a call of rnnfast's layer. Each framework is timed in its own process, with the same number of
threads.
"""

import argparse
import copy
import functools
import importlib.util
import os
import subprocess
import sys
from statistics import median

HOSTS = ("torch", "onnx", "onnxruntime", "keras", "thinc", "jax")


def milliseconds(calls, rounds=15):
    """Return the median milliseconds of each of the named calls."""
    from rnnfast.commands.timing import take_turns, timed

    seconds = take_turns({name: functools.partial(timed, call) for name, call in calls.items()}, rounds)
    return {name: 1000 * median(values) for name, values in seconds.items()}


def show(case, own, ours, rest=""):
    print(f"{case:52} {own:9.3f} {ours:9.3f}   x{own / ours:5.2f}{rest}", flush=True)


def time_torch(threads):
    import torch

    torch.set_num_threads(threads)
    for cell in ("LSTM", "GRU", "RNN"):
        for sizes in ((1, 1, 8, 8), (1, 1, 64, 64), (10, 4, 8, 32), (37, 5, 13, 51), (100, 1, 64, 64)):
            time_torch_case(cell, *sizes)
        for sizes in ((64, 16, 128, 128), (64, 32, 256, 256)):
            time_torch_case(cell, *sizes)
        for sizes in ((1, 64), (16, 64), (1, 256)):
            time_torch_cell(f"{cell}Cell", *sizes)
    for cell in ("LSTM", "GRU"):
        for sizes in ((64, 32, 256), (64, 16, 128), (200, 1, 512), (100, 64, 256)):
            time_torch_model(cell, *sizes)


def time_torch_model(cell, T, N, H):
    """A recurrent layer between two layers of torch, whose threads still spin when rnnfast's call begins."""
    import torch

    from rnnfast.backends.torch import convert

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.readout = torch.nn.Linear(H, H), torch.nn.Linear(H, H)
            self.recurrent = getattr(torch.nn, cell)(H, H)

        def forward(self, x):
            return self.readout(self.recurrent(self.embedding(x))[0])

    own, x = Model(), torch.randn(T, N, H)
    ours = convert(copy.deepcopy(own))

    def train(model):
        model.zero_grad()
        model(x).sum().backward()

    case = f"T={T} N={N} I=H={H}"
    with torch.inference_mode():
        t = milliseconds({"own": lambda: own(x), "ours": lambda: ours(x)})
    show(f"Linear-{cell}-Linear inference {case}", t["own"], t["ours"])
    t = milliseconds({"own": lambda: train(own), "ours": lambda: train(ours)})
    show(f"Linear-{cell}-Linear training {case}", t["own"], t["ours"])


def time_torch_cell(cell, N, H):
    """One step, as in a loop over steps that is written by hand."""
    import torch

    from rnnfast.backends.torch import convert

    own = getattr(torch.nn, cell)(H, H)
    ours = convert(copy.deepcopy(own))
    x, h = torch.randn(N, H), torch.randn(N, H)
    state = (h, torch.randn(N, H)) if cell == "LSTMCell" else h

    def train(module):
        for parameter in module.parameters():
            parameter.grad = None
        after = module(x, state)
        (after[0] if isinstance(after, tuple) else after).sum().backward()

    with torch.inference_mode():
        t = milliseconds({"own": lambda: own(x, state), "ours": lambda: ours(x, state)}, 300)
    show(f"{cell} inference N={N} I=H={H}", t["own"], t["ours"])
    t = milliseconds({"own": lambda: train(own), "ours": lambda: train(ours)}, 300)
    show(f"{cell} training N={N} I=H={H}", t["own"], t["ours"])


def time_torch_case(cell, T, N, I, H):
    import torch

    import rnnfast
    from rnnfast.backends.torch import convert

    own = getattr(torch.nn, cell)(I, H)
    ours, layer = convert(copy.deepcopy(own)), getattr(rnnfast, cell)(I, H)
    layer.load_state_dict(own.state_dict())
    x, dy = torch.randn(T, N, I), torch.randn(T, N, H)
    x_array, dy_array = x.numpy(), dy.numpy()
    wanted = x.clone().requires_grad_()

    def train(module):
        wanted.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        module(wanted)[0].backward(dy)

    def train_layer():
        layer.backward(layer.forward(x_array)[2], dy_array)

    def compare(mode, calls):
        t = milliseconds(calls, 15 if T * N > 1000 else 300)
        rest = f"   adapter adds {1000 * (t['ours'] - t['layer']):.1f} µs"
        show(f"{cell} {mode} T={T} N={N} I={I} H={H}", t["own"], t["ours"], rest)

    with torch.inference_mode():
        layer.freeze()
        compare("inference", {"own": lambda: own(x), "ours": lambda: ours(x), "layer": lambda: layer(x_array)})
        layer.unfreeze()
    compare("training", {"own": lambda: train(own), "ours": lambda: train(ours), "layer": train_layer})


def time_onnx(_):
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    import rnnfast
    from rnnfast.backends.onnx import ops, to_onnx

    for T, N, I, H in ((100, 32, 128, 128), (100, 1, 128, 128), (100, 1, 16, 32)):
        model = to_onnx(rnnfast.LSTM(I, H, rng=0))
        own, ours = ReferenceEvaluator(model), ReferenceEvaluator(model, new_ops=ops)
        x = {"x": np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)}
        t = milliseconds({"own": lambda: own.run(None, x), "ours": lambda: ours.run(None, x)})  # noqa: B023
        show(f"reference evaluator, LSTM T={T} N={N} I={I} H={H}", t["own"], t["ours"])


def time_onnxruntime(threads):
    import numpy as np
    import onnxruntime

    import rnnfast
    from rnnfast.backends.onnx import session, to_onnx

    options = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
    for one in options:
        one.intra_op_num_threads = threads
        one.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    for kind in (rnnfast.LSTM, rnnfast.GRU):
        for T, N, I, H in ((1, 1, 128, 128), (100, 1, 128, 128), (100, 1, 512, 512), (100, 32, 128, 128)):
            model = to_onnx(kind(I, H, rng=0))
            own = onnxruntime.InferenceSession(
                model.SerializeToString(), options[0], providers=["CPUExecutionProvider"]
            )
            ours = session(model, options[1])
            x = {"x": np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)}
            t = milliseconds({"own": lambda: own.run(None, x), "ours": lambda: ours.run(None, x)})  # noqa: B023
            show(f"ONNX Runtime, {kind.__name__} T={T} N={N} I={I} H={H}", t["own"], t["ours"])


def time_keras(_):
    os.environ["KERAS_BACKEND"] = "numpy"
    import keras
    import numpy as np

    from rnnfast.backends.keras import enable

    for cell in ("LSTM", "GRU", "SimpleRNN"):
        model = keras.Sequential([keras.Input((100, 128)), getattr(keras.layers, cell)(128)])
        x = np.random.default_rng(0).standard_normal((32, 100, 128)).astype(np.float32)

        def predict(model=model, x=x):
            model.predict(x, batch_size=32, verbose=0)

        def predict_enabled():
            with enable():
                predict()

        t = milliseconds({"own": predict, "ours": predict_enabled}, 9)
        show(f"Keras {keras.__version__} predict, {cell} T=100 N=32 I=H=128", t["own"], t["ours"])


def time_thinc(_):
    import numpy as np
    from thinc.api import LSTM, use_ops, with_padded

    import rnnfast.backends.thinc  # noqa: F401

    rng = np.random.default_rng(0)
    for H, I, N, least, most in ((128, 128, 32, 100, 100), (128, 128, 32, 10, 60)):
        x = [rng.normal(size=(int(length), I)).astype("f") for length in rng.integers(least, most + 1, N)]
        models = {}
        for ops in ("numpy", "rnnfast"):
            with use_ops(ops):
                models[ops] = with_padded(LSTM(H, I)).initialize()

        def train(ops, models=models, x=x):
            y, backward = models[ops].begin_update(x)
            backward(y)

        t = milliseconds({"own": lambda: train("numpy"), "ours": lambda: train("rnnfast")}, 9)
        show(f"training, LSTM T={least}..{most} N={N} I={I} H={H}", t["own"], t["ours"])


def time_jax(_):
    import jax
    import jax.numpy as jnp

    import rnnfast
    from rnnfast.backends.jax import lstm

    def scan(x, parameters):
        """Run an LSTM written in JAX."""
        w_ih, w_hh, b_ih, b_hh = parameters.values()

        def step(state, gates):
            h, c = state
            i, f, g, o = jnp.split(gates + h @ w_hh.T, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
        return jax.lax.scan(step, (zeros, zeros), x @ w_ih.T + b_ih + b_hh)[1]

    def ours(x, parameters):
        return lstm(x, parameters)[0]

    for T, N, H in ((1, 1, 8), (20, 1, 16), (100, 1, 64), (64, 16, 128)):
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        own = rnnfast.LSTM(H, H, rng=0).parameters
        # jit sorts the keys of a dict; integers keep the order for the scan.
        parameters = {name: jnp.asarray(own[name]) for name in names}
        numbered = dict(enumerate(parameters.values()))
        x = jnp.ones((T, N, H), jnp.float32)
        for mode, run in (("inference", jax.jit), ("training", jitted_gradient)):
            theirs, mine = run(scan), run(ours)
            calls = {
                "own": lambda: jax.block_until_ready(theirs(x, numbered)),  # noqa: B023
                "ours": lambda: jax.block_until_ready(mine(x, parameters)),  # noqa: B023
            }
            t = milliseconds(calls, 15 if T * N > 1000 else 300)
            show(f"JAX {jax.__version__} {mode}, LSTM T={T} N={N} I=H={H}", t["own"], t["ours"])


def jitted_gradient(function):
    import jax

    return jax.jit(jax.grad(lambda x, parameters: function(x, parameters).sum(), argnums=(0, 1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("host", nargs="*", choices=[[], *HOSTS], help="frameworks (default: all that are installed)")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of all libraries (default: 1)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # run in the process of the framework
    arguments = parser.parse_args()
    if arguments.here:
        globals()[f"time_{arguments.host[0]}"](arguments.threads)
        return
    threads = str(arguments.threads)
    environment = {
        **os.environ,
        **dict.fromkeys(("RNNFAST_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
    }
    print(f"{'milliseconds, threads: ' + threads:52} {'own':>9} {'rnnfast':>9}   own / rnnfast")
    for host in arguments.host or HOSTS:
        if importlib.util.find_spec(host) is None:
            print(f"{host} is not installed: pip install 'rnnfast[{host.removesuffix('runtime')}]'")
            continue
        subprocess.run([sys.executable, __file__, host, "--here", "--threads", threads], env=environment, check=True)


if __name__ == "__main__":
    main()
