"""The documentation site: ``python -m sphinx -W -b html docs build/docs`` in the root of the checkout.

The examples on its pages are run while it is built, with the rnnfast that is installed. One that raises is a warning,
and with -W an error.
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

# What the examples of these pages need besides rnnfast. Where it is missing they are shown, and not run.
needs = {"from_torch.md": ["torch"], "from_keras.md": ["keras", "jax", "h5py"], "from_onnx.md": ["onnx"]}
os.environ["KERAS_BACKEND"] = "numpy"  # of the examples, and to import its adapter
hosts = ["torch", "onnx", "keras", "thinc", "jax", "sklearn", "dask"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_show_tb = True  # in the warning, which -W makes an error: it says more than nb_execution_raise_on_error
nb_execution_timeout = 300
nb_execution_excludepatterns = [page for page, modules in needs.items() if not all(map(find_spec, modules))]
nb_merge_streams = True

autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give types, with shapes
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
default_role = "code"  # single backticks in docstrings
# The page of a module stays empty where what it needs is missing.
suppress_warnings = [] if all(map(find_spec, hosts)) else ["autodoc.import_object"]

highlight_language = "none"  # of blocks that name none: commands, equations

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"rnnfast {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"  # by the browser itself: no script, no network


def visit_formula(translator, node):
    translator.body.append(tex2mathml(node.astext(), as_block=node.tagname == "math_block"))
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formula, None))
