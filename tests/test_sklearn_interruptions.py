"""Estimators whose fit or update is interrupted are as they were before, and usable."""

import gc

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from support.estimators import ALL, task
from support.interruptions import Action, broken_at_bytecodes, broken_at_random

import rnnfast
from rnnfast.sklearn import SequenceForecaster

OPTIONS = {"hidden_size": 3, "max_epochs": 2, "random_state": 0, "early_stopping": True}


def look_of(value):
    """The value of an attribute, in a form that can be compared."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, list | tuple):
        return [look_of(one) for one in value]
    if isinstance(value, rnnfast.Linear | rnnfast.LSTM):
        return look_of(list(value.state_dict().values()))
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if hasattr(value, "state_dict"):
        return look_of(list(value.state_dict().values()))
    return repr(value)


def action(estimator, method, fitted):
    """The action of a method with more data, on an estimator that is new or fitted."""
    first, more = task(estimator, np.random.default_rng(0), 20), task(estimator, np.random.default_rng(1), 20)

    def make():
        made = estimator(**OPTIONS)
        return made.fit(*first) if fitted else made

    def observe(made):
        look = {name: look_of(value) for name, value in sorted(vars(made).items())}
        made.fit(*more)
        return look, {name: look_of(value) for name, value in sorted(vars(made).items())}

    classes = {"classes": [0, 1]} if method == "partial_fit" and hasattr(estimator, "predict_proba") else {}
    return Action(make, lambda made: getattr(made, method)(*more, **classes), observe)


CASES = [(kind, method, fitted) for kind in ALL for method in ("fit", "partial_fit") for fitted in (False, True)]
CASES.append((SequenceForecaster, "update", True))
every = pytest.mark.parametrize(("estimator", "method", "fitted"), CASES)


@pytest.mark.parametrize("estimator", ALL)
def test_exception_before_some_bytecodes(estimator):
    check(broken_at_bytecodes(action(estimator, "fit", True), most=4))


@pytest.mark.full
@every
def test_exception_before_many_bytecodes(estimator, method, fitted):
    check(broken_at_bytecodes(action(estimator, method, fitted), most=80))


@pytest.mark.full
@every
def test_exception_at_random_times(estimator, method, fitted):
    check(broken_at_random(action(estimator, method, fitted), 1))


def test_a_context_that_was_not_left_restores_nothing_later():
    """An exception may arrive after it is entered and before its block begins; its traceback then keeps the context."""
    first, more = (
        task(SequenceForecaster, np.random.default_rng(0), 20),
        task(SequenceForecaster, np.random.default_rng(1), 20),
    )
    made = SequenceForecaster(**OPTIONS).fit(*first)
    context = made._restored_on_error()
    context.__enter__()
    made.fit(*more)
    expected = {name: look_of(value) for name, value in vars(made).items()}
    del context
    gc.collect()
    assert {name: look_of(value) for name, value in vars(made).items()} == expected


def check(result):
    interrupted, broken = result
    assert interrupted
    assert not broken, f"{broken.total()} of {interrupted} exceptions: {broken.most_common(5)}"
