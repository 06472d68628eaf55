"""What a network is fed: pictures, rows of a table, series and sentences, each a value of one protocol.

One tensor travels through the package, `[n, *shape]`: real numbers in [0, 1], or integer ids. The space says what its
numbers mean, what can be stored, what nobody's examples look like, and how examples are compared.
"""

from collections.abc import Mapping

from inversefed.inputs import columns, series, tokens
from inversefed.inputs.columns import Category, Columns, Number
from inversefed.inputs.images import Images, pictured
from inversefed.inputs.series import Series
from inversefed.inputs.space import InputSpace, Measure
from inversefed.inputs.table_file import Table
from inversefed.inputs.tokens import Tokenizer, Tokens

__all__ = [
    "MEASURES",
    "Category",
    "Columns",
    "Images",
    "InputSpace",
    "Measure",
    "Number",
    "Series",
    "Table",
    "Tokenizer",
    "Tokens",
    "pictured",
]

MEASURES: Mapping[str, Measure] = {**columns.MEASURES, **series.MEASURES, **tokens.MEASURES}
"""What the input spaces say of an example, by name, in the words of a report."""
