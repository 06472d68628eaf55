"""What the page about 2020 shows is run as it stands."""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "legacy.md"
BLOCK = re.compile(r"```\{testcode\}\n(.*?)```\s+```\{testoutput\}\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_examples_of_the_page_are_true():
    names, blocks = {}, BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 3
    for code, expected in blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, str(PAGE), "exec"), names)
        assert doctest.OutputChecker().check_output(expected, said.getvalue(), doctest.ELLIPSIS), said.getvalue()
