"""How the documentation is built: Markdown pages, and the reference from the docstrings."""

import re
import shutil
from pathlib import Path
from typing import Any

import daskdml
import daskdml.io

project = "daskdml"
author = "The daskdml developers"
copyright = "2026, The daskdml developers"
version = release = daskdml.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "daskdml"
html_copy_source = False
html_show_sourcelink = False
myst_heading_anchors = 3

autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings say the types, and the shapes
numpydoc_show_class_members = False  # autodoc lists them already
suppress_warnings = ["myst.xref_missing"]  # links to files outside docs/ are meant for the checkout


def public_names(module: Any) -> str:
    """Return a Markdown list of a module's public names, each a link to its definition."""
    lines = []
    for name in (name for name in module.__all__ if not name.startswith("_")):
        value = getattr(module, name)
        summary = (value.__doc__ or "").strip().partition("\n")[0]
        target = f"{getattr(value, '__module__', module.__name__)}.{name}"
        lines.append(f"- {{py:obj}}`{name} <{target}>`: {summary}\n")
    return "".join(lines)


generated = Path(__file__).with_name("generated")
shutil.rmtree(generated, ignore_errors=True)  # pages of modules that are no more
generated.mkdir()
for module in (daskdml, daskdml.io):
    page = generated / f"{module.__name__}.txt"
    page.write_text(public_names(module), encoding="utf-8")


def skip_generated(
    app: Any, kind: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out the methods that scikit-learn writes into every estimator, with links to itself."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Any) -> None:
    """Connect what is defined here to Sphinx."""
    app.connect("autodoc-skip-member", skip_generated)
