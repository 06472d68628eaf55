"""Sphinx settings. The pages need no network, neither to be built nor to be read."""

import doctest
import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

sys.path.insert(0, str(Path(__file__).parent / "guides"))  # own_network.py, which a page shows and runs

project = "inversefed"
author = "The inversefed developers"
copyright = "2026, The inversefed developers"
version = release = installed("inversefed")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"inversefed {version}"
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown as they were committed

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
doctest_test_doctest_blocks = ""  # docstrings run with the test suite
doctest_global_setup = """
import warnings
import torch
warnings.simplefilter("error")
torch.set_num_threads(1)
"""


def code_in_docstring(*event):
    """Read docstrings as they are written: `x` is code, and an indented paragraph after a blank line is an equation."""
    what, lines, read, last = event[1], event[-1], [], ""
    if what in ("data", "attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", " -- ")  # napoleon takes what stands before a colon for a type
    for position, line in enumerate(lines):
        indented = line.startswith("    ") and not line.lstrip().startswith(">>>")
        if indented and position and not lines[position - 1].strip() and last and not last.startswith(" "):
            read += ["::", ""]
        line = re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", line)
        read.append(re.sub(r"^(\s*)([A-Z])\. ", r"\1\\\2. ", line))  # an author's initial begins no list
        last = line if line.strip() else last
    lines[:] = read


def write_inline(writer, node):
    """Inline math as MathML, which browsers draw without a script."""
    writer.body.append(tex2mathml(node.astext()))
    raise SkipNode


def write_block(writer, node):
    """The same for an equation on its own line."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    app.connect("autodoc-process-docstring", code_in_docstring, priority=100)
