"""Inputs of the estimators: documented errors, or finite predictions that follow the data in any unit."""

import warnings

import numpy as np
from sklearn.exceptions import NotFittedError

from fuzz import assume, outcome
from rnnfast import sklearn as estimators

KINDS = ["SequenceClassifier", "SequenceRegressor", "SequenceTagger", "SequenceForecaster"]
SCALES = [1e-300, 1e-30, 1e-6, 1.0, 1e6, 1e12, 1e30, 1e148, 1e300]
OFFSETS = [0.0, 1.0, 1e12, -1e15, 1.7e18 / 3, 1e40 / 3]
FORMS = [
    "array", "list", "ragged", "nested", "object", "float32", "int", "uint8", "bool", "fortran", "table", "strided",
    "tuple", "float16", "longdouble", "swapped", "read-only",
]  # fmt: skip
FAULTS = [
    "nan", "inf", "complex", "text", "masked", "none", "empty", "no features", "no steps", "mixed features",
    "dates", "sparse", "5 axes", "one sequence", "objects", "labels", "short", "scalar", "dict",
]  # fmt: skip
SHAPES = [
    "random",
    "constant",
    "constant feature",
    "constant series",
    "one outlier",
    "line",
    "season",
    "zeros",
    "duplicates",
]


def generate(random):
    kind = random.choice(KINDS)
    case = {
        "kind": kind,
        "cell": random.choice(["lstm", "gru", "rnn"]),
        "N": random.choice([1, 2, 6, 12]),
        "T": random.choice([1, 2, 7, 30]),
        "F": random.choice([1, 1, 2, 3]),
        "form": random.choice(FORMS),
        "shape": random.choice(SHAPES),
        "scale": random.choice(SCALES),
        "offset": random.choice([0.0, 0.0, *OFFSETS]),
        "target": random.choice(SHAPES),
        "target_scale": random.choice(SCALES),
        "outputs": random.choice([1, 1, 2]),
        "fault": random.choice([None] * 3 + FAULTS),
        "options": {},
        "seed": random.getrandbits(24),
    }
    options = {
        "early_stopping": [True, False],
        "dtype": ["float32", "float64"],
        "standardize": [True, True, False],
        "num_layers": [1, 2],
        "batch_size": [1, 3, 64],
        "clip": [None, 1.0],
    }
    if kind == "SequenceForecaster":
        options |= {
            "differences": [0, 1, 4, [1, 2], "auto"],
            "window": [None, 1, 3],
            "horizon": [1, 3],
            "multivariate": [True, False],
        }
        case["T"] = random.choice([2, 12, 30, 60])
    elif kind != "SequenceTagger":
        options |= {"pooling": ["last", "mean"], "bidirectional": [True, False]}
    for name, values in options.items():
        if random.random() < 0.5:
            case["options"][name] = random.choice(values)
    return case


def values_of(shape, rng, N, T, F):
    """Values of about 1, (N, T, F)."""
    X = rng.standard_normal((N, T, F))
    steps = np.arange(T)[:, np.newaxis]
    if shape == "constant":
        X[...] = 0.7
    elif shape == "constant series":
        X[0] = 0.7
    elif shape == "constant feature":
        X[..., 0] = 0.7
    elif shape == "one outlier":
        X[0, 0] = 1e6
    elif shape == "line":
        X = np.broadcast_to(0.3 * steps, X.shape).copy()
    elif shape == "season":
        X = np.broadcast_to(np.take([0.1, 0.2, 0.3, 0.4], steps % 4), X.shape).copy()
    elif shape == "zeros":
        X[...] = 0
    elif shape == "duplicates":
        X[...] = X[:1]
    return X


def formed(X, form, rng, ragged):
    """X in another form; `ragged` says whether sequences may differ in length."""
    kinds = {
        "float32": np.float32,
        "int": np.int64,
        "uint8": np.uint8,
        "bool": bool,
        "float16": np.float16,
        "longdouble": np.longdouble,
    }
    with np.errstate(all="ignore"):
        if form in kinds:
            return X.astype(kinds[form])
    if form in ("list", "ragged", "object", "tuple") and X.ndim > 1:
        members = [x[: rng.integers(1, len(x) + 1)] if form == "ragged" and ragged else x for x in X]
        if form == "object":
            held = np.empty(len(members), object)
            held[:] = members
            return held
        return tuple(members) if form == "tuple" else members
    return {
        "nested": lambda: X.tolist(),
        "fortran": lambda: np.asfortranarray(X),
        "table": lambda: X[..., 0] if X.ndim == 3 else X,
        "strided": lambda: np.repeat(X, 2, axis=0)[::2],
        "swapped": lambda: X.astype(X.dtype.newbyteorder()),
        "read-only": lambda: np.broadcast_to(X, X.shape),
    }.get(form, lambda: X)()


def faulty(X, fault):
    """X with a fault, which must be an error. X is an array."""
    X = X.copy()
    if fault in ("nan", "inf"):
        X[(0,) * X.ndim] = np.nan if fault == "nan" else np.inf
        return X
    if fault == "sparse":
        import scipy.sparse

        return scipy.sparse.csr_array(X.reshape(len(X), -1))
    if fault == "objects":
        X = X.astype(object)
        X[(0,) * X.ndim] = {}
        return X
    return {
        "complex": lambda: X + 1j,
        "text": lambda: np.full(X.shape, "a"),
        "masked": lambda: np.ma.masked_array(X, np.arange(X.size).reshape(X.shape) == 0),
        "none": lambda: None,
        "empty": lambda: X[:0],
        "no features": lambda: X[..., :0],
        "no steps": lambda: [x[:0] for x in np.atleast_2d(X)],
        "mixed features": lambda: [np.ones((3, 1)), np.ones((3, 2)), *[np.ones((3, 1))] * max(0, len(X) - 2)],
        "dates": lambda: np.zeros(X.shape, "M8[s]"),
        "5 axes": lambda: X[..., np.newaxis, np.newaxis, np.newaxis],
        "scalar": lambda: 1.0,
        "dict": lambda: {"a": X},
    }.get(fault, lambda: X)()


def check(case):
    assume(case["kind"] in KINDS and min(case["N"], case["T"], case["F"], case["outputs"]) >= 1)
    rng = np.random.default_rng(case["seed"])
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in case["options"].items()}
    if options.get("differences") == 0:
        options["differences"] = ()
    make = getattr(estimators, case["kind"])
    estimator = make(case["cell"], hidden_size=2, max_epochs=2, random_state=0, **options)
    with np.errstate(all="ignore"):
        X = (
            values_of(case["shape"], rng, case["N"], case["T"], case["F"]) * case["scale"]
            + case["offset"] * case["scale"]
        )
    assume(np.isfinite(X).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # trends, and integers that look like tokens
        if case["kind"] == "SequenceForecaster":
            forecaster(case, estimator, X, rng)
        else:
            supervised(case, estimator, X, rng)


def run(estimator, call, must_fail):
    """Return the result of a call, or None after a documented error, which leaves the estimator as it was."""
    before = dict(vars(estimator))
    result, error = outcome(call, ValueError, TypeError, NotFittedError)
    if error is not None:
        assert str(error).strip(), "an error without a message"
        changed = {name for name, value in vars(estimator).items() if name not in before or before[name] is not value}
        assert not changed, f"an error has changed {changed}"
        assert before.keys() == vars(estimator).keys(), "an error has removed attributes"
        return None
    assert not must_fail, f"accepted: {must_fail}"
    return result


MUST_FAIL = {
    "nan",
    "inf",
    "complex",
    "text",
    "masked",
    "none",
    "empty",
    "no features",
    "no steps",
    "mixed features",
    "dates",
    "objects",
    "scalar",
}


def supervised(case, estimator, X, rng):
    N, fault = case["N"], case["fault"]
    data = faulty(X, fault) if fault else formed(X, case["form"], rng, True)
    y = targets(case, rng, data)
    must_fail = fault if fault in MUST_FAIL or (fault in ("labels", "short") and N > 1) else None
    if run(estimator, lambda: estimator.fit(data, y), must_fail) is None:
        return
    predictions = [estimator.predict(data)]
    if hasattr(estimator, "predict_proba"):
        probabilities = estimator.predict_proba(data)
        for p in probabilities if isinstance(probabilities, list) else [probabilities]:
            assert np.isfinite(p).all(), "probabilities are not finite"
            assert np.abs(np.asarray(p).sum(-1) - 1).max(initial=0) < 1e-5, "probabilities do not sum to 1"
    else:
        [got] = predictions
        assert np.isfinite(got).all(), f"predictions are not finite: {got}"
        expected = (N,) if np.ndim(y) == 1 else (N, case["outputs"])
        assert got.shape == expected, got.shape
        constant(y, got)
    assert len(predictions[0]) == N
    if estimator.standardize and case["form"] == "array" and not fault and 1e-30 <= case["scale"] <= 1e30:
        # Changing the unit by a power of two is exact, so it changes nothing at all.
        again = type(estimator)(**estimator.get_params()).fit(np.ldexp(data, 40), y)
        for one, other in zip(again.predict(np.ldexp(data, 40)), predictions[0], strict=True):
            np.testing.assert_array_equal(one, other, err_msg="predictions in another unit of X")


def constant(y, got):
    """Targets without spread are predicted exactly."""
    y = np.asarray(y, float).reshape(len(y), -1)
    for column, values in zip(y.T, got.reshape(len(y), -1).T, strict=True):
        if (column == column[0]).all() and np.abs(column[0]) < 1e290:
            assert np.allclose(values, column[0], rtol=1e-9, atol=0), (
                f"targets of {column[0]} are predicted as {values}"
            )


def targets(case, rng, data):
    N, T, fault = case["N"], case["T"], case["fault"]
    if case["kind"] == "SequenceRegressor":
        y = values_of(case["target"], rng, N, 1, case["outputs"])[:, 0] * case["target_scale"]
        y = y[:, 0] if case["outputs"] == 1 else y
        if fault == "labels":
            y = y.copy()
            y[0] = np.nan
    elif case["kind"] == "SequenceTagger":
        lengths = [len(x) for x in data] if isinstance(data, (list, tuple)) and len(data) == N else [T] * N
        y = [rng.integers(0, 2, length) for length in lengths]
        if fault == "labels":
            y = [labels[:-1] for labels in y]
    else:
        y = rng.integers(0, 2, N)
        y = y if N < 2 else np.where(np.arange(N) < 2, np.arange(N), y)
        if fault == "labels":
            y = np.full(N, np.nan)
    return y[:-1] if fault == "short" else y


def forecaster(case, estimator, X, rng):
    fault, multivariate = case["fault"], estimator.multivariate
    X = X if case["F"] > 1 else X[..., 0]
    if case["N"] == 1 or multivariate:
        X = X[0]
    data = faulty(X, fault) if fault else formed(X, case["form"], rng, False)
    must_fail = fault if fault in MUST_FAIL - {"mixed features"} else None
    if run(estimator, lambda: estimator.fit(data), must_fail) is None:
        return
    got = estimator.predict(5)
    assert np.isfinite(got).all(), f"forecasts are not finite: {got}"
    if run(estimator, lambda: estimator.predict_interval(1, 0.5), None):
        lower, upper = estimator.predict_interval(1, 0.5)
        assert (lower <= upper).all(), "the bounds of an interval are in the wrong order"
    without_spread(case, estimator, X, got)


def without_spread(case, estimator, X, got):
    """What repeats or grows evenly goes on exactly, whatever its unit."""
    exact = {
        "constant": True,
        "constant series": True,
        "zeros": True,
        "line": estimator.differences == 1,
        "season": estimator.differences == 4,
    }.get(case["shape"], False)
    if (
        not (exact and estimator.standardize)
        or case["fault"]
        or case["form"] in ("int", "uint8", "bool", "float16", "float32", "table")
        or case["offset"] > 2
    ):
        return
    several = not estimator.multivariate or case["form"] in ("list", "tuple", "object", "ragged")
    axis = 1 if X.ndim == 3 or (X.ndim == 2 and several) else 0
    if case["shape"] == "constant series":  # one of several series
        if axis == 0:
            return
        X, got = X[:1], got[:1]
    history = np.moveaxis(X, axis, 0)
    unit = np.abs(history).max() or 1.0
    step = {"line": history[-1] - history[-2]}.get(case["shape"], 0)
    ahead = [history[-4 + i % 4] if case["shape"] == "season" else history[-1] + (i + 1) * step for i in range(5)]
    worst = np.abs(np.moveaxis(got, axis, 0) - np.array(ahead)).max() / unit
    assert worst < 1e-6, f"a {case['shape']} is continued with an error of {worst:.2g} of its size"
