"""Time of batches whose rows have unequal lengths, against the full padded batch and against torch.

    python benchmarks/ragged.py
    python benchmarks/ragged.py -T 500 --cells lstm --threads 1 --rounds 5

Lengths are uniform in 1..T. On the same weights and inputs run rnnfast with lengths=, rnnfast on the full padded batch,
torch on the same packed (pack_padded_sequence, its layer, pad_packed_sequence), and torch on the full padded batch,
which gives the same y, with zeros put beyond the ends. Nothing is timed before its results are checked. The engines
take turns; each number is the median over all rounds, of times, or of ratios within a round. Without torch its columns
are left out.
"""

import argparse
import sys
import time
from statistics import median

CELLS = {"lstm": "LSTM", "gru": "GRU"}
MODES = {"inference": "inference", "forward": "forward in training", "training": "forward + backward"}
PAUSE = 0.03  # seconds: threads of the engine before spin on for some milliseconds, in which they take a core
TOLERANCE = 1e-4  # of the greatest value of an array: what float32 keeps after sums in another order


class WrongAnswer(Exception):
    """An engine differs from the others, so that its time means nothing."""


def with_rnnfast(layer, mode, x, dy, lengths):
    """What is timed; it gives y, and in training the gradients of x and of the parameters."""
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
    """The same; with lengths as a packed sequence."""
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
    """Refuse to go on where results differ at real steps, or gradients anywhere."""
    import numpy as np

    expected = None
    for name, call in calls.items():
        y, *gradients = (np.asarray(a.detach() if hasattr(a, "detach") else a) for a in call())
        results = [y * real, *gradients]
        expected = expected or results
        for one, other in zip(results, expected, strict=True):
            error = abs(one - other).max()
            if not error <= TOLERANCE * abs(other).max():
                raise WrongAnswer(f"{name} differs by {error:.2g} from the others: its time would mean nothing")


def take_turns(calls, rounds):
    """Seconds of each call in each round; who begins changes from round to round."""
    names, seconds = list(calls), {name: [] for name in calls}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(PAUSE)
            calls[name]()
            begin = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def measure(cell, mode, options, threads, seed, torch):
    """The share of real steps, and the seconds of each engine."""
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
    return real.mean(), take_turns(calls, options.rounds)


def ratios(seconds, over):
    return median(a / b for a, b in zip(seconds, over, strict=True))


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text}")
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-N", type=count, default=32, help="rows of the batch (default: %(default)s)")
    parser.add_argument("-T", type=count, default=100, help="the greatest length (default: %(default)s)")
    parser.add_argument("-H", type=count, default=256, help="units (default: %(default)s)")
    parser.add_argument("-I", type=count, help="features of the input (default: as many as units)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="which layers (default: all)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="what to time (default: all)")
    parser.add_argument(
        "--threads", nargs="+", type=count, default=[1, 2], metavar="N", help="numbers of threads (default: 1 2)"
    )
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help="for each seed (default: %(default)s)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of the lengths (default: 0 1 2)"
    )
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        torch = None
        print("torch is not installed: rnnfast is timed alone (pip install torch).\n")
    try:
        report(options, torch)
    except WrongAnswer as error:
        sys.exit(f"{parser.prog}: {error}")


def report(options, torch):
    import rnnfast

    versions = [f"rnnfast {rnnfast.__version__} with {rnnfast.isas()[0]}"]
    if torch:
        versions.append(f"torch {torch.__version__}")
    print(f"{', '.join(versions)}; N={options.N} T={options.T} I={options.I or options.H} H={options.H}, float32")
    print("real: share of real steps; of full: time over that of the full padded batch (real is the ideal)")
    if torch:
        print("lead: time of torch, packed or on the full batch, over that of rnnfast with lengths=")
    print()
    heads = ["rnnfast, ms", "real", "of full"]
    if torch:
        heads += ["lead, packed", "lead, full", "torch: packed of full"]
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
                texts = [f"{1e3 * median(own):.2f}", f"{sum(shares) / len(shares):.3f}", f"{ratios(own, full):.3f}"]
                if others:
                    packed, padded = others
                    texts += [f"{ratios(packed, own):.2f}", f"{ratios(padded, own):.2f}"]
                    texts += [f"{ratios(packed, padded):.2f}"]
                name = f"{cell} {MODES[mode]}, {threads} thread{'s' * (threads > 1)}"
                cells = (f"{text:>{len(head) + 3}s}" for head, text in zip(heads, texts, strict=True))
                print(f"{name:40s}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
