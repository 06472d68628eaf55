"""A table from a file: what each column is taken for, what is left out and said, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch

from inversefed.errors import ConfigError, InputError
from inversefed.inputs import Category, Number, Table

LINES = ["name,joined,age,work,zip,income,constant,risk"]
LINES += [
    f"<script>{place}</script>,2024-01-{place % 28 + 1:02d},{20 + place % 30},{['state', 'private', '?'][place % 3]},"
    f"{10000 + place % 4},{'' if place == 7 else 1000.5 + place},x,{'bad' if place % 4 == 0 else 'good'}"
    for place in range(60)
]


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_becomes_a_schema_rows_and_targets(tmp_path: Path) -> None:
    table = Table.of(written(tmp_path, "\n".join(LINES)), target="risk")
    age, work, code, income = table.columns.columns
    assert (age.name, age.low, age.high, age.whole) == ("age", 20, 49, True)
    assert work == Category("work", ("private", "state", "(missing)"))
    assert isinstance(code, Number) and isinstance(income, Number) and not income.whole
    assert table.rows.shape == (59, 6) and table.classes == ("bad", "good")
    assert table.targets.tolist()[:5] == [0, 1, 1, 1, 0]
    table.columns.check(table.rows)
    mean, std = table.columns.normalization()
    fed = (table.rows - mean) / std
    assert torch.allclose(fed[:, 0].mean(), torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(fed[:, 0].std(correction=0), torch.tensor(1.0), atol=1e-5)


def test_what_is_left_out_is_said_and_a_name_with_tags_stays_text(tmp_path: Path) -> None:
    table = Table.of(written(tmp_path, "\n".join(LINES)), target="risk")
    told = {finding.code: finding.message for finding in table.findings}
    names = [finding.evidence["column"] for finding in table.findings if finding.code == "column-left-out"]
    assert names == ["name", "joined", "constant"]
    assert "1 of 60 rows were left out, for there is no number in income" in told["rows-left-out"]
    said = str(table)
    assert "text, 59 different cells" in said and "dates" in said and "<script>" not in said
    again = Table.of(written(tmp_path, "\n".join(LINES).replace("name,", "<b>,", 1)), target="risk")
    assert "<b>" not in str(again)


def test_the_inference_is_overridden_by_column(tmp_path: Path) -> None:
    path = written(tmp_path, "\n".join(LINES))
    kinds = {"zip": "category", "age": "number", "joined": "category", "income": "leave out"}
    table = Table.of(path, target="risk", kinds=kinds)
    kinds_found = {column.name: column for column in table.columns.columns}
    assert kinds_found["zip"] == Category("zip", ("10000", "10001", "10002", "10003"))
    assert kinds_found["age"].whole is False and "joined" in kinds_found and "income" not in kinds_found
    assert len(table.rows) == 60
    with pytest.raises(InputError, match="there is no column wealth; there are name, joined"):
        Table.of(path, target="wealth")
    with pytest.raises(InputError, match="column work is to be numbers, and state is none"):
        Table.of(path, kinds={"work": "number"})


def test_a_kind_that_there_is_not_is_refused(unchecked: None) -> None:
    with pytest.raises(ConfigError, match="a column is one of number, whole, category, leave out; got 'date'"):
        Table.of([{"zip": 1}, {"zip": 2}], kinds={"zip": "date"})


def test_semicolons_tabs_quotes_and_a_mark_at_the_beginning_are_read(tmp_path: Path) -> None:
    for delimiter in ";\t|":
        lines = [delimiter.join(["\ufeffa", "b"]), *(f'{i}{delimiter} "x, {i % 2}"' for i in range(9))]
        table = Table.of(written(tmp_path, "\n".join(lines)))
        assert [column.name for column in table.columns.columns] == ["a", "b"]
        assert table.columns.columns[1].values == ("x, 0", "x, 1") and table.targets is None


def test_targets_are_classes_or_numbers() -> None:
    rows = [{"a": place % 7, "few": place % 3, "many": place, "broken": place / 4, "c": "xy"[place % 2]}
            for place in range(50)]  # fmt: skip
    assert Table.of(rows, target="few").classes == ("0", "1", "2")
    for name in ("many", "broken"):
        table = Table.of(rows, target=name)
        assert table.classes == () and table.targets.tolist() == [row[name] for row in rows]
    assert len(Table.of(rows, target="many", kinds={"many": "category"}).classes) == 50


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it has 0 lines"),
        (b"a,b\n", "it has 1 lines"),
        (b"\x89PNG\r\n\x1a\n\xff\x00", "cannot be read as UTF-8 text"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 cells, and the header has 2"),
        (b"a,a\n1,2\n", "names are missing or stand twice in a, a"),
        (b"a,b\n1,\x00\n", "it holds zero bytes"),
        (b"a,b\n1,x\n1,x\n", "no column is left"),
        (b"a,b\n,\n,\n", "no column is left"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        Table.of(path)
    with pytest.raises(InputError, match="there is no such file"):
        Table.of(tmp_path / "other.csv")


def test_rows_must_have_the_same_columns() -> None:
    with pytest.raises(InputError, match="row 1 has other columns"):
        Table.of([{"a": 1}, {"b": 2}])
    with pytest.raises(InputError, match="one row or more"):
        Table.of([])


def test_parquet_is_read_where_pyarrow_is_and_named_where_it_is_not(tmp_path: Path, monkeypatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table({"age": [30, 31, None, 40], "sex": ["f", "m", "m", "f"]}), path)
    table = Table.of(path)
    assert table.rows.shape == (3, 3) and table.columns.columns[0].low == 30
    with pytest.raises(InputError, match="no Parquet file"):
        Table.of(written(tmp_path, "a,b", "false.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'inversefed\[parquet\]'"):
        Table.of(path)
