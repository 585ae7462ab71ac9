"""Modules that `import rnnfast` leaves out until they are used."""

import pytest
from support.processes import python

LAZY = ["backends", "dask", "diagnostics", "export", "online", "portable", "quantization", "reference", "sklearn"]
LAZY += ["threads"]


def test_import_loads_no_lazy_module():
    run = python(code="import sys, rnnfast; print([name for name in sys.modules if name.startswith('rnnfast.')])")
    assert not any(f"'rnnfast.{name}'" in run.stdout for name in LAZY)
    assert "'rnnfast.layers'" in run.stdout


@pytest.mark.parametrize("name", [name for name in LAZY if name not in ("dask", "portable", "sklearn")])
def test_modules_are_reachable_as_attributes(name):
    run = python(code=f"import rnnfast; print(rnnfast.{name}.__name__, {name!r} in dir(rnnfast))")
    assert run.stdout.split() == [f"rnnfast.{name}", "True"], run.stderr


@pytest.mark.parametrize(
    ("module", "host", "install"),
    [
        ("sklearn", "sklearn", "pip install 'rnnfast[sklearn]'"),
        ("dask", "dask", "pip install 'rnnfast[dask]'"),
        ("backends.torch", "torch", "pip install"),
        ("backends.jax", "jax", "pip install"),
        ("backends.onnx", "onnx", "pip install 'rnnfast[onnx]'"),
        ("backends.thinc", "thinc", "pip install 'rnnfast[thinc]'"),
    ],
)
def test_a_missing_extra_says_what_to_install(module, host, install):
    run = python(code=f"import sys; sys.modules[{host!r}] = None; import rnnfast; rnnfast.{module}")
    assert run.returncode == 1
    assert "ImportError" in run.stderr
    assert install in run.stderr.splitlines()[-1]


def test_an_old_onnx_says_what_to_install():
    pytest.importorskip("onnx", reason="onnx is not installed")
    run = python(code="import onnx; onnx.__version__ = '1.15.0'; import rnnfast.backends.onnx")
    assert run.stderr.splitlines()[-1].endswith("found 1.15.0: pip install 'onnx>=1.16'")


def test_unknown_names_are_attribute_errors():
    run = python(code="import rnnfast; rnnfast.nothing")
    assert "AttributeError: module 'rnnfast' has no attribute 'nothing'" in run.stderr
    run = python(code="import rnnfast; rnnfast.backends.nothing")
    assert "AttributeError: module 'rnnfast.backends' has no attribute 'nothing'" in run.stderr
