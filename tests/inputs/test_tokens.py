"""Sentences as ids: what is taken, what is right, and what needs no update."""

import pytest
import torch
from torch import Generator

from inversefed.errors import ConfigError, InputError
from inversefed.inputs import MEASURES, InputSpace, Tokens
from inversefed.inputs.tokens import rouge

SPACE = Tokens(length=6, vocabulary=20)


class Letters:
    """A tokenizer: one id a letter, from 1."""

    def encode(self, text: str) -> list[int]:
        return [ord(each) - 96 for each in text]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(96 + each) for each in token_ids)


def test_sentences_are_padded_and_their_errors_count_only_tokens():
    truth = SPACE.ids([[1, 2, 3, 4], [5, 6]])
    assert truth.shape == (2, 6) and truth[1].tolist() == [5, 6, 0, 0, 0, 0]
    found = SPACE.ids([[5, 6], [1, 2, 4, 3], [5, 7, 8]])
    expected = torch.tensor([[1.0, 0.0], [0.5, 1.0], [1.0, 2 / 3]], dtype=torch.float64)
    assert torch.equal(SPACE.errors(found, truth), expected)
    assert SPACE.errors(found, truth).dtype == torch.float64


def test_measures_are_paired_and_one_only_where_all_is_right():
    truth = SPACE.ids([[1, 2, 3, 4], [5, 6, 7]])
    same = SPACE.measures(truth, truth)
    assert set(same) == {"tokens_in_place", "rouge_1", "rouge_2", "rouge_l", "exact_sentences"}
    assert all(torch.equal(each, torch.ones(2, dtype=torch.float64)) for each in same.values())
    other = SPACE.measures(SPACE.ids([[1, 2, 4, 3], [5, 6, 7, 8]]), truth)
    assert other["tokens_in_place"].tolist() == [0.5, 0.75] and other["exact_sentences"].tolist() == [0, 0]
    assert other["rouge_1"].tolist() == pytest.approx([1, 6 / 7]) and other["rouge_2"].tolist() == [1 / 3, 0.8]
    assert other["rouge_l"].tolist() == pytest.approx([0.75, 6 / 7])


def test_rouge_counts_repeated_tokens_once_each():
    assert rouge([1, 1, 1], [1, 2]) == pytest.approx((0.4, 0.0, 0.4))
    assert rouge([], []) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.ones(2, 5, dtype=torch.long), r"\[n, 6\].*shape \[2, 5\]"),
        (torch.ones(2, 6), "torch.float32"),
        (torch.full((1, 6), 20), "20 to 20"),
        (torch.tensor([[0, 1, 2, 3, 4, 5]]), "begins with the pad id 0"),
    ],
)
def test_what_are_no_sentences_is_refused(inputs, said):
    with pytest.raises(InputError, match=said):
        SPACE.check(inputs)
    SPACE.check(SPACE.stand_ins(3, Generator().manual_seed(0)))


def test_a_space_that_cannot_be_is_refused():
    for wrong in ({"length": 0}, {"vocabulary": 1}, {"pad": 20}, {"pad": -1}):
        with pytest.raises(ConfigError, match="Tokens need"):
            Tokens(**{"length": 6, "vocabulary": 20, **wrong})
    with pytest.raises(InputError, match="7 tokens"):
        SPACE.ids([[1] * 7])


def test_stand_ins_follow_zipf_and_their_generator():
    drawn = Tokens(32, 500).stand_ins(200, Generator().manual_seed(3))
    assert torch.equal(drawn, Tokens(32, 500).stand_ins(200, Generator().manual_seed(3)))
    counts = drawn[drawn != 0].bincount(minlength=500)
    assert counts[1] > counts[10:20].max() > counts[200:].max() and counts[0] == 0
    assert (drawn != 0).sum(dim=1).min() >= 16


def test_controls_come_from_others_alone():
    others = SPACE.ids([[1, 2, 3], [1, 4, 3, 5], [7, 2]])
    truth = SPACE.ids([[9, 9], [8, 8]])
    controls = SPACE.controls(truth, others)
    assert controls["most_frequent"][0].tolist() == [1, 2, 3, 0, 0, 0]
    assert all(any(torch.equal(each, other) for other in others) for each in controls["random_sentence"])
    assert set(SPACE.controls(truth, None)) == {"zipf"}
    assert all(each.shape == truth.shape for each in {**controls, **SPACE.controls(truth, None)}.values())


def test_a_tokenizer_is_no_part_of_equality_and_writes_text():
    space = Tokens(6, 27, tokenizer=Letters())
    assert space == Tokens(6, 27) and repr(space) == repr(Tokens(6, 27)) and hash(space) == hash(Tokens(6, 27))
    assert space.decode(space.encode(["abc", "longerword"])) == ("abc", "longer")
    with pytest.raises(ConfigError, match="no tokenizer"):
        Tokens(6, 27).decode(torch.ones(1, 6, dtype=torch.long))


def test_it_is_an_input_space_whose_measures_have_words():
    assert isinstance(SPACE, InputSpace) and SPACE.noun == "sentence"
    SPACE.check(SPACE.middle(2)), Tokens(4, 3, pad=1).check(Tokens(4, 3, pad=1).middle(1))
    truth = SPACE.ids([[1, 2]])
    assert set(SPACE.measures(truth, truth)) <= set(MEASURES)
    assert SPACE.cells(truth[0]) == [("1", "1"), ("2", "2")]
    assert Tokens(6, 27, tokenizer=Letters()).cells(truth[0]) == [("1", "a"), ("2", "b")]
