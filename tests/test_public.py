"""The public surface: it is what it says, sorted, and light to import."""

import subprocess
import sys

import pytest

import inversefed


def test_all_is_sorted_and_true() -> None:
    assert inversefed.__all__ == sorted(inversefed.__all__)
    for name in inversefed.__all__:
        assert getattr(inversefed, name) is not None, name
    assert set(inversefed.__all__) <= set(dir(inversefed))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'audti'"):
        _ = inversefed.audti


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, inversefed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
