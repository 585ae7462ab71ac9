"""Build a package on rnnfast's kernels: pip install --no-build-isolation . where rnnfast and Cython are installed."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import rnnfast

setup(
    name="sequence-scores",
    version="0.1",
    ext_modules=cythonize(Extension("scores", ["scores.pyx"], include_dirs=[rnnfast.get_include()])),
)
