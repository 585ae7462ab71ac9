"""Configuration of the documentation site. Build it with ``python -m sphinx -W -b html docs build/docs``.

The build runs the examples of all pages with the installed rnnfast. An exception in an example is a warning, and an
error with -W.
"""

import os
from importlib.util import find_spec

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import rnnfast

project = "rnnfast"
author = "the rnnfast developers"
version = release = rnnfast.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# What the examples of these pages need besides rnnfast. If it is missing, they are shown but not run.
needs = {
    "estimators.md": ["sklearn", "pandas"],
    "from_torch.md": ["torch"],
    "from_keras.md": ["keras", "jax", "h5py"],
    "from_onnx.md": ["onnx", "onnxruntime"],
}
os.environ["KERAS_BACKEND"] = "numpy"  # for the examples, and to import the Keras adapter
hosts = ["torch", "onnx", "onnxruntime", "keras", "thinc", "jax", "sklearn", "sktime", "dask"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_show_tb = True  # in the warning; with -W this is more informative than nb_execution_raise_on_error
nb_execution_timeout = 300
nb_execution_excludepatterns = [page for page, modules in needs.items() if not all(map(find_spec, modules))]
nb_merge_streams = True

autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings state the types, with shapes
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
default_role = "code"  # single backticks in docstrings
# If the dependency of a module is missing, its page stays empty.
suppress_warnings = [] if all(map(find_spec, hosts)) else ["autodoc.import_object"]

highlight_language = "none"  # for blocks without a language: commands, equations

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"rnnfast {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"  # rendered by the browser, without scripts or network


def visit_formula(translator, node):
    translator.body.append(tex2mathml(node.astext(), as_block=node.tagname == "math_block"))
    raise nodes.SkipNode


def skip_fields(app, what, name, obj, skip, options):  # noqa: ARG001
    """Leave out the fields of named tuples, which the docstring of the class describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("autodoc-skip-member", skip_fields)
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formula, None))
