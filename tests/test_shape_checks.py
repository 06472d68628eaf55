"""The checks of the test run still see every call, though a checker is made once."""

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

import tests.shape_checks
from inversefed.evaluation.metrics import structural_similarity
from tests.shape_checks import jaxtyped

Row = Float[Tensor, "n"]


def test_the_package_is_checked_at_every_call() -> None:
    pictures = torch.zeros(2, 3, 4, 4)
    for _ in range(2):
        assert structural_similarity(pictures, pictures).shape == (2,)
        with pytest.raises(jaxtyping.TypeCheckError):
            structural_similarity(pictures[0], pictures[0])


def defined(annotation: object) -> object:
    @jaxtyped(typechecker=beartype)
    def last(row: annotation, count: int = 1) -> Row:
        return row[-count:] if count < 3 else row

    return last


def test_a_function_defined_again_shares_its_checker_and_another_annotation_has_its_own() -> None:
    made = tests.shape_checks._made
    row = torch.arange(4.0)
    assert torch.equal(defined(Row)(row, 3), row)
    before = len(made)
    assert torch.equal(defined(Row)(row, 3), row) and len(made) == before
    with pytest.raises(jaxtyping.TypeCheckError):
        defined(Row)(row)
    with pytest.raises(jaxtyping.TypeCheckError):
        defined(Row)(row.int())
    with pytest.raises(jaxtyping.TypeCheckError):
        defined(Row)(row, "2")
    assert torch.equal(defined(Tensor)(row, 3), row) and len(made) > before
