"""The reference covers every public name, and an example that fails stops the build of the documentation."""

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rnnfast

DOCS = Path(__file__).resolve().parents[1] / "docs"

if not (DOCS / "conf.py").is_file():
    pytest.skip("the tests do not lie in a checkout of rnnfast, so there are no pages", allow_module_level=True)


def test_all_that_is_public_stands_in_the_reference():
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^\.\. auto(?:class|function|module):: ([\w.]+)", pages, flags=re.MULTILINE))
    package = Path(rnnfast.__file__).parent
    adapters = {f"rnnfast.backends.{path.stem}" for path in package.glob("backends/[!_]*")}
    adapters |= {f"rnnfast.{name}" for name in ("sklearn", "diagnostics", "quantization", "dask", "threads")}
    public = {name: getattr(rnnfast, name) for name in rnnfast.__all__ if name != "__version__"}
    names = {value.__name__ if isinstance(value, types.ModuleType) else name for name, value in public.items()}
    assert sorted((names | adapters) - documented) == []


def test_notebooks_have_no_stored_output():
    for path in DOCS.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


PAGE = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A page

```{{code-cell}} python
import rnnfast

assert rnnfast.RNN(2, 3).parameters["weight_hh_l0"].shape == {shape}
```
"""


@pytest.mark.parametrize(("shape", "builds"), [("(3, 3)", True), ("(3, 2)", False)])
def test_an_example_that_fails_stops_the_build_of_the_site(shape, builds, tmp_path):
    pytest.importorskip("myst_nb", reason="pip install '.[docs]'")
    pytest.importorskip("furo", reason="pip install '.[docs]'")
    source = tmp_path / "docs"
    source.mkdir()
    for name in ("conf.py", "style.css"):
        shutil.copy(DOCS / name, source)
    (source / "index.md").write_text(PAGE.format(shape=shape), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "sphinx", "-q", "-W", "-b", "html", str(source), str(tmp_path / "site")]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert (result.returncode == 0) == builds, result.stdout + result.stderr
    assert builds or "AssertionError" in result.stderr
