"""Questions about a frozen value, each answered once.

The answer lives with the value and ends with it: nothing of one audit is left in a module when the next begins.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Self, TypeVar

__all__ = ["Asked"]

Answer = TypeVar("Answer")


class Asked:
    """A frozen value that other rooms ask about: label rules, searches and controls ask the same.

    A value that `dataclasses.replace` makes of it is another one, and is asked anew.

    >>> class Word(str, Asked):
    ...     pass
    >>> def length(word):
    ...     print("counted")
    ...     return len(word)
    >>> word = Word("update")
    >>> word.once(length) + word.once(length)
    counted
    12
    """

    def once(self, question: Callable[[Self], Answer]) -> Answer:
        """The answer to a question, worked out where it is asked for the first time.

        Args:
            question: a function of this value alone; questions that are equal have one answer. An exception is no
                answer, and is raised again.
        """
        if question not in self._answers:
            self._answers[question] = question(self)
        answer: Answer = self._answers[question]
        return answer

    @cached_property
    def _answers(self) -> dict[Callable[..., object], Any]:
        return {}
