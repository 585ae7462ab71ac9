"""Time variable-length batches against the full padded batch and against torch.

    python benchmarks/ragged.py
    python benchmarks/ragged.py -T 500 --cells lstm --threads 1 --rounds 5

Lengths are uniform in 1..T. The engines get the same weights and inputs: rnnfast with lengths=, rnnfast on the full
padded batch, torch with a packed sequence (pack_padded_sequence, the layer, pad_packed_sequence), and torch on the full
padded batch, which gives the same y before the ends. Results are checked before anything is timed. The engines take
turns; every figure is the median over all rounds, of times or of ratios within a round. Without torch, its columns are
left out.
"""

import argparse
import functools
import sys
from statistics import median

from rnnfast.commands.program import CannotRun, count, option, run_program
from rnnfast.commands.timing import ratio, take_turns, timed, versions

CELLS = {"lstm": "LSTM", "gru": "GRU"}
MODES = {"inference": "inference", "forward": "forward in training", "training": "forward + backward"}
TOLERANCE = 1e-4  # relative to the largest element of an array, for float32 sums in another order


def with_rnnfast(layer, mode, x, dy, lengths):
    """Return the call to be timed, which returns y and, in training, the gradients of x and of the parameters."""
    layer.freeze() if mode == "inference" else layer.unfreeze()

    def infer():
        return [layer(x, lengths=lengths)[0]]

    def forward():
        return [layer.forward(x, lengths=lengths)[0]]

    def train():
        y, _, tape = layer.forward(x, lengths=lengths)
        gradients = layer.backward(tape, dy)
        return [y, gradients.x, *gradients.parameters.values()]

    return {"inference": infer, "forward": forward, "training": train}[mode]


def with_torch(layer, mode, x, dy, lengths):
    """Do the same with torch; lengths make a packed sequence."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    x = torch.from_numpy(x).requires_grad_(mode != "inference")
    dy = torch.from_numpy(dy)
    T = len(x)
    lengths = None if lengths is None else torch.from_numpy(lengths)

    def run():
        if lengths is None:
            return layer(x)[0]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], total_length=T)[0]

    def infer():
        with torch.no_grad():
            return [run()]

    def forward():
        return [run()]

    def train():
        y = run()
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

    return {"inference": infer, "forward": forward, "training": train}[mode]


def check(calls, real):
    """Raise CannotRun if results differ at valid steps, or gradients anywhere."""
    import numpy as np

    expected = None
    for name, call in calls.items():
        y, *gradients = (np.asarray(a.detach() if hasattr(a, "detach") else a) for a in call())
        results = [y * real, *gradients]
        expected = expected or results
        for one, other in zip(results, expected, strict=True):
            error = abs(one - other).max()
            if not error <= TOLERANCE * abs(other).max():
                raise CannotRun(f"the results of {name} differ by {error:.2g} from the others: it is not timed")


def measure(cell, mode, options, threads, seed, torch):
    """Return the share of valid steps, and the seconds of each engine."""
    import numpy as np

    import rnnfast

    T, N, I, H = options.T, options.N, options.I or options.H, options.H
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, T, N, endpoint=True)
    real = (np.arange(T)[:, None] < lengths)[..., None]
    x = rng.standard_normal((T, N, I), np.float32)
    dy = rng.standard_normal((T, N, H), np.float32) * real
    layer = getattr(rnnfast, CELLS[cell])(I, H, rng=rng)
    rnnfast.set_num_threads(threads)
    calls = {
        "rnnfast": with_rnnfast(layer, mode, x, dy, lengths),
        "rnnfast full": with_rnnfast(layer, mode, x, dy, None),
    }
    if torch:
        torch.set_num_threads(threads)
        other = getattr(torch.nn, CELLS[cell])(I, H)
        other.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in layer.parameters.items()})
        calls["torch packed"] = with_torch(other, mode, x, dy, lengths)
        calls["torch full"] = with_torch(other, mode, x, dy, None)
    check(calls, real)
    timers = {name: functools.partial(timed, call) for name, call in calls.items()}
    return real.mean(), take_turns(timers, options.rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option(parser, "-N", count, 32, "batch size")
    option(parser, "-T", count, 100, "maximum length")
    option(parser, "-H", count, 256, "hidden units")
    option(parser, "-I", count, None, "input features (default: as many as hidden units)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="layers (default: all)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="what to time (default: all)")
    parser.add_argument(
        "--threads", nargs="+", type=count, default=[1, 2], metavar="N", help="numbers of threads (default: 1 2)"
    )
    option(parser, "--rounds", count, 7, "rounds per seed")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of the lengths (default: 0 1 2)"
    )
    options = parser.parse_args()
    return run_program(parser.prog, report, options)


def report(options):
    from rnnfast import _core

    try:
        import torch
    except ImportError:
        torch = None
        print("torch is not installed, so only rnnfast is timed (pip install torch).\n")
    installed = ", ".join(f"{name} {version}" for name, version in versions("torch").items() if version)
    sizes = f"N={options.N} T={options.T} I={options.I or options.H} H={options.H}"
    print(f"{installed}, {_core.get_default_isa()}; {sizes}, float32")
    print("valid: share of valid steps; of full: time relative to the full padded batch (ideally the share)")
    if torch:
        print("speed-up: time of torch, packed or on the full batch, relative to rnnfast with lengths=")
    print()
    heads = ["rnnfast, ms", "valid", "of full"]
    if torch:
        heads += ["speed-up, packed", "speed-up, full", "torch: packed of full"]
    print(f"{'':40s}" + "".join(f"{head:>{len(head) + 3}s}" for head in heads))
    for threads in options.threads:
        for cell in options.cells:
            for mode in options.modes:
                shares, all_seconds = [], {}
                for seed in options.seeds:
                    share, seconds = measure(cell, mode, options, threads, seed, torch)
                    shares.append(share)
                    for name, times in seconds.items():
                        all_seconds.setdefault(name, []).extend(times)
                own, full, *others = all_seconds.values()
                texts = [f"{1e3 * median(own):.2f}", f"{sum(shares) / len(shares):.3f}", f"{ratio(own, full):.3f}"]
                if others:
                    packed, padded = others
                    texts += [f"{ratio(packed, own):.2f}", f"{ratio(padded, own):.2f}"]
                    texts += [f"{ratio(packed, padded):.2f}"]
                name = f"{cell} {MODES[mode]}, {threads} thread{'s' * (threads > 1)}"
                cells = (f"{text:>{len(head) + 3}s}" for head, text in zip(heads, texts, strict=True))
                print(f"{name:40s}" + "".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
