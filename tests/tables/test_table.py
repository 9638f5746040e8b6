"""Tables: columns are told from a frame of any library, rows become samples and come back, frames are checked."""

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, SpecError
from hmoevae.tables import Binary, Category, Column, Count, Number, Table, table_from_json

COLUMNS: dict[str, list[Any]] = {
    "mass": [3750.0, None, 3250.0, 5000.0, 4100.0],
    "island": ["Torgersen", "Dream", None, "Biscoe", "Dream"],
    "eggs": [2, 1, 0, 2, 2],
    "ringed": [True, False, True, True, False],
    "year": [2007, 2008, 2009, 2007, 2008],
}
KINDS = {"eggs": "count"}
LIBRARIES = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "pyarrow": pa.table,
    "dict": dict,
}


def frame() -> pd.DataFrame:
    return pd.DataFrame(COLUMNS)


def same(one: Any, other: Any) -> bool:
    """Whether two cells are equal, or both gaps."""
    gaps = [cell is None or cell is pd.NA or cell != cell for cell in (one, other)]
    return all(gaps) if any(gaps) else bool(one == other or one == pytest.approx(other))


def cells(frame: Any, name: str) -> list[Any]:
    column = frame[name]
    return column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)


# --- inference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_columns_of_a_frame_are_told(library: str) -> None:
    table = Table.of(LIBRARIES[library](COLUMNS), kinds=KINDS)
    assert [column.kind for column in table.columns] == ["number", "category", "count", "binary", "number"]
    mass, island, eggs, ringed, year = table.columns
    known = [3750.0, 3250.0, 5000.0, 4100.0]
    assert mass == Number("mass", np.mean(known), np.std(known), missing=True)
    assert island == Category("island", ("Biscoe", "Dream", "Torgersen"), missing=True)
    assert (eggs, ringed) == (Count("eggs"), Binary("ringed", (False, True)))
    assert not year.missing
    assert table.missing
    assert table.library == library


@pytest.mark.parametrize("library", LIBRARIES)
def test_rows_come_back_from_samples(library: str) -> None:
    data = LIBRARIES[library](COLUMNS)
    table = Table.of(data, kinds=KINDS)
    x = table.encode(data)
    assert (x.shape, x.dtype) == ((5, 5), torch.float64)
    back = table.decode(x)
    assert type(back) is type(data)
    for name in COLUMNS:
        assert all(map(same, cells(back, name), cells(data, name))), name


def test_every_library_gives_the_same_samples() -> None:
    table = Table.of(COLUMNS, kinds=KINDS)
    x = [table.encode(make(COLUMNS)) for make in LIBRARIES.values()]
    for other in x[1:]:
        assert torch.equal(other.nan_to_num(-99), x[0].nan_to_num(-99))


class Foreign:
    """A frame of a library that nobody knows, which hands its columns over by one protocol."""

    def __init__(self, protocol: str) -> None:
        frame = pa.table(COLUMNS)
        if protocol == "arrow":
            self.__arrow_c_stream__ = frame.__arrow_c_stream__
        else:
            self.__dataframe__ = frame.__dataframe__


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("protocol", ["arrow", "dataframe"])
def test_other_frames_come_by_a_protocol_of_exchange(protocol: str) -> None:
    table = Table.of(Foreign(protocol), kinds=KINDS)
    assert table == Table.of(COLUMNS, kinds=KINDS)


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([0, 1, 1, 0], Binary("x", (0, 1))),
        ([0.0, 1.0, None, 0.0], Binary("x", (0.0, 1.0), missing=True)),
        ([True, True], Binary("x", (False, True))),
        ([2, 2, 2], Number("x", 2.0, ties=1.0)),
        ([0.1] * 10, Number("x", 0.1, ties=1.0)),
        ([1, 5], Number("x", 3.0, 2.0)),
        (pd.array([1, None, 5], dtype="Int64"), Number("x", 3.0, 2.0, missing=True)),
        (np.array([1, 5, None], dtype=object), Number("x", 3.0, 2.0, missing=True)),
        (pd.array(["a", None, "b"], dtype="string"), Category("x", ("a", "b"), missing=True)),
        (pd.array([True, None, False], dtype="boolean"), Binary("x", (False, True), missing=True)),
        (pd.Categorical(["u", None, "v"], categories=["w", "v", "u"]), Category("x", ("w", "v", "u"), missing=True)),
        (pd.Categorical([3, 1, 3]), Category("x", (1, 3))),
        (np.array(["a", "b"]), Category("x", ("a", "b"))),
        (np.ma.masked_equal([1.0, -9999.0, 5.0], -9999.0), Number("x", 3.0, 2.0, missing=True)),
        (torch.tensor([1.0, 5.0]), Number("x", 3.0, 2.0)),
    ],
)
def test_a_column_is_told_by_its_cells(values: Any, column: Column) -> None:
    assert Table.of({"x": values}).columns == (column,)
    if not isinstance(values, np.ma.MaskedArray | torch.Tensor):
        assert Table.of(pd.DataFrame({"x": values})).columns == (column,)


def test_an_array_has_columns_by_place() -> None:
    x = np.array([[1.0, np.nan], [5.0, 2.0], [3.0, 4.0]])
    table = Table.of(x)
    assert (table.names, table.library) == (["x0", "x1"], "numpy")
    assert np.allclose(table.decode(table.encode(x)), x, equal_nan=True)
    mixed = np.array([[1.5, "a"], [2.0, "b"]], dtype=object)
    assert np.array_equal(Table.of(mixed).decode(Table.of(mixed).encode(mixed)), mixed)


def test_a_structured_array_has_columns_by_name() -> None:
    x = np.array([(1.0, 3), (5.0, 1)], dtype=[("a", "f8"), ("b", "i4")])
    assert Table.of(x, kinds={"b": "count"}) == Table((Number("a", 3.0, 2.0), Count("b")))


@pytest.mark.parametrize(
    ("kind", "values", "column"),
    [
        ("category", [3, 1, 3], Category("x", (1, 3))),
        ("category", [0, 1], Category("x", (0, 1))),
        ("number", [True, False], Number("x", 0.5, 0.5)),
        ("log", [1.0, math.e**2], Number("x", 1.0, 1.0, log=True)),
        ("count", [3.0, None], Count("x", missing=True)),
        ("binary", ["no", "yes"], Binary("x", ("no", "yes"))),
        (Category("x", ("S", "M", "L")), ["L", "S"], Category("x", ("S", "M", "L"))),
    ],
)
def test_kinds_can_be_told(kind: str | Column, values: list[Any], column: Column) -> None:
    assert Table.of({"x": values}, kinds={"x": kind}).columns == (column,)


def test_cells_of_later_frames_may_be_missing_if_said() -> None:
    table = Table.of({"x": [1.0, 5.0]}, missing=True)
    assert table.encode({"x": [None, 5.0]})[0].isnan().all()
    expected = r"frame\['x'\]: expected no gaps, as where the table was made, got None in 1 of 2 rows, first 0 \(Table"
    with pytest.raises(DataError, match=expected):
        Table.of({"x": [1.0, 5.0]}).encode({"x": [None, 5.0]})


# --- what cannot be used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, float("nan")], "a cell that is not missing .leave the column out., got gaps only"),
        ([1.0, math.inf, -math.inf], "finite numbers, got inf in 2 of 3 rows, first 1"),
        ([1e200, -1e300], "numbers whose variance a float64 can hold, got values from -1e"),
        ([dt.date(2020, 1, 1)], "numbers or text in place of dates, such as the days since the first, got"),
        (pd.to_datetime(["2020-01-01", None]), "numbers or text in place of dates"),
        (pd.to_timedelta([1, 2]), "numbers or text in place of dates"),
        ([1, "?", 2], r"numbers, truth values or text, and None or NaN for gaps, got 1 \(int\) and '\?' \(str\)"),
        ([[1], [2, 3]], r"numbers, truth values or text, and None or NaN for gaps, got \[1\] \(list\)"),
        ([1j, 2.0], "numbers, truth values or text"),
        (["1", "2.5", "?"], r"text that does not read as numbers, got text such as '\?', and '\?' \(astype"),
        (["1", "2.5"], r"text that does not read as numbers, got text such as '2.5' \(astype"),
        ([f"name {i}" for i in range(150)], "a category for two rows or more, got 150 categories in 150 rows .leave"),
        (pd.cut(range(10), 3), "a column of kind 'category', got Category.categories: expected a tuple of different"),
        (
            pd.Categorical(["a"] * 150, categories=[f"{i}" for i in "abc"] + [f"c{i}" for i in range(197)]),
            "a category for two rows .*, got 200 c",
        ),
    ],
)
def test_what_cannot_be_told_is_named(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"^frame\['x'\]: expected (numbers, or )?{message}"):
        Table.of(pd.DataFrame({"x": values}))


def test_many_categories_can_be_asked_for() -> None:
    table = Table.of({"x": [f"name {i}" for i in range(150)]}, kinds={"x": "category"})
    assert len(table.columns[0].categories) == 150


@pytest.mark.parametrize("marker", [" ?", "", "NA", "."])
def test_what_files_write_for_a_gap_is_warned_of(marker: str) -> None:
    expected = r"frame\['x'\]: expected None or NaN for gaps, got the category '.{0,2}' \(is it a gap\? Make gaps None"
    with pytest.warns(UserWarning, match=expected):
        Table.of({"x": ["a", "b", marker]})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("count", [1, -2], "counts: integers >= 0, got -2 in 1 of 2 rows, first 1"),
        ("count", [1.5, None], "counts: integers >= 0, got 1.5 in 1 of 2 rows, first 0"),
        ("count", ["1", "2"], "numbers, got '1' in 2 of 2 rows, first 0 .astype"),
        ("number", [1, " ?"], r"numbers, got ' \?' in 1 of 2 rows, first 1 .is it a gap"),
        ("log", [1.0, 0.0], "numbers > 0, of which the logarithm is taken, got 0.0 in 1 of 2 rows, first 1"),
        ("binary", ["a", "b", "c"], "a column of kind 'binary', got Binary.categories: expected 2 different"),
        ("category", ["a", 1], r"categories of one type, got 1 \(int\) and 'a' \(str\)"),
        (Category("x", ("a",)), ["a", "b"], "one of the 1 categories 'a', got 'b' in 1 of 2 rows, first 1"),
    ],
)
def test_cells_fit_the_kind_that_is_told(kind: str | Column, values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^frame\['x'\]: expected {message}"):
        Table.of({"x": values}, kinds={"x": kind})


def test_kinds_name_columns_and_kinds_that_there_are() -> None:
    with pytest.raises(ArgumentError, match=r"kinds: expected names of columns \(is it 'eggs'\?\), got 'egg'"):
        Table.of(COLUMNS, kinds={"egg": "count"})
    with pytest.raises(ArgumentError, match=r"kinds\['eggs'\]: expected one of 'number', 'linear', .*, got 'counts'"):
        Table.of(COLUMNS, kinds={"eggs": "counts"})
    with pytest.raises(ArgumentError, match=r"kinds\['eggs'\]: expected a column of that name, got 'size'"):
        Table.of(COLUMNS, kinds={"eggs": Count("size")})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, DataError, "at least one row and one column, got none"),
        (pd.DataFrame({"a": []}), DataError, "at least one row and one column, got none"),
        (np.zeros((0, 2)), DataError, "at least one row and one column, got none"),
        (np.zeros(3), ShapeError, r"\(rows, columns\), got \(3,\)"),
        ({"a": [1], "b": [1, 2]}, ShapeError, "columns of one length, got 1 in 'a' and 2 in 'b'"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), DataError, "column names that differ, got 'a' 2 times"),
        (pa.table([[1], [2]], names=["a", "a"]), DataError, "column names that differ, got 'a' 2 times"),
        (pd.DataFrame([[1, 2]], columns=[1, "1"]), DataError, "column names that differ, got '1' 2 times"),
        (
            pd.Series([1.0], name="a"),
            ArgumentTypeError,
            r"a data frame .*, got a Series \(frame.to_frame\(\) makes one\)",
        ),
        (pl.DataFrame({"a": [1]}).lazy(), ArgumentTypeError, r"a data frame .*, got a lazy frame \(frame.collect"),
        ([[1.0, 2.0]], ArgumentTypeError, "a data frame .*, got a list"),
        (torch.zeros(2, 2), ArgumentTypeError, "a data frame .*, got a Tensor"),
    ],
)
def test_what_is_no_frame_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^frame: expected {message}"):
        Table.of(given)


def test_columns_are_named_and_have_one_axis() -> None:
    with pytest.raises(ArgumentTypeError, match=r"frame.columns: expected names that are strings, got \('a', 'b'\)"):
        Table.of(pd.DataFrame({("a", "b"): [1.0]}))
    assert Table.of(pd.DataFrame([[1.0, 2.0]])).names == ["0", "1"]
    with pytest.raises(ShapeError, match=r"frame\['a'\]: expected a column: one axis, got 2 axes"):
        Table.of({"a": np.zeros((2, 2))})
    for scalar in (1.0, "text"):
        with pytest.raises(ShapeError, match=r"frame\['a'\]: expected a column: a sequence of cells, got"):
            Table.of({"a": scalar})


# --- later frames ---------------------------------------------------------------------------------------------------


def test_columns_are_found_by_name_and_others_ignored() -> None:
    table = Table.of(frame(), kinds=KINDS)
    shuffled = frame()[["year", "ringed", "eggs", "island", "mass"]].assign(species="Adelie")
    assert torch.equal(table.encode(shuffled).nan_to_num(), table.encode(frame()).nan_to_num())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="mass"), "expected a column 'mass', got none$"),
        (lambda f: f.rename(columns={"mass": "mass_g"}), r"expected a column 'mass', got none \(is it 'mass_g'\?\)"),
        (lambda f: f.iloc[:0], "expected at least one row and one column, got none"),
    ],
)
def test_a_column_that_is_missing_is_named(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^frame: {message}"):
        Table.of(frame(), kinds=KINDS).encode(change(frame()))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "island",
            ["Dream", "Anvers", "Anvers"],
            "one of the 3 categories 'Biscoe', .*, got 'Anvers' in 2 of 3 rows, fi",
        ),
        (
            "island",
            ["Dream", " ?", "Dream"],
            r"one of the 3 categories .*, got ' \?' in 1 of 3 rows, first 1 \(is it a gap",
        ),
        ("island", [1, 2, 3], "one of the 3 categories .*, got 1 in 3 of 3 rows, first 0"),
        ("mass", ["heavy", "light", "1"], "numbers, got 'heavy' in 3 of 3 rows, first 0 .astype"),
        ("mass", [1.0, math.inf, 2.0], "finite numbers, got inf in 1 of 3 rows, first 1"),
        ("eggs", [1.0, -1.0, 0.5], "counts: integers >= 0, got -1.0 in 2 of 3 rows, first 1"),
        ("ringed", [1, 2, 0], "one of the 2 categories False, True, got 2 in 1 of 3 rows, first 1"),
        ("year", [1, None, 2], "no gaps, as where the table was made"),
    ],
)
def test_cells_that_a_column_cannot_hold_are_named(name: str, values: list[Any], message: str) -> None:
    table = Table.of(COLUMNS, kinds=KINDS)
    later = {key: column[:3] for key, column in COLUMNS.items()} | {name: values}
    with pytest.raises(DataError, match=rf"^rows\['{name}'\]: expected {message}"):
        table.encode(later, name="rows")


def test_an_array_has_as_many_columns_as_the_table() -> None:
    table = Table.of({"a": [1.0, 5.0], "b": [2.0, 3.0]})
    assert table.encode(np.array([[3.0, 2.0]])).tolist() == [[0.0, -1.0]]
    with pytest.raises(ShapeError, match=r"frame: expected \(rows, 2\), got \(1, 3\)"):
        table.encode(np.zeros((1, 3)))


def test_a_column_of_gaps_is_one_of_gaps() -> None:
    table = Table.of(frame(), kinds=KINDS)
    later = frame().assign(mass=None, island=np.nan)
    assert table.encode(later)[:, :2].isnan().all()


# --- back to rows ---------------------------------------------------------------------------------------------------


def test_codes_become_the_nearest_cells() -> None:
    table = Table((Category("island", ("a", "b", "c")), Count("eggs"), Binary("ringed", (False, True))))
    back = table.decode(torch.tensor([[0.6, 2.5, 0.2], [1.9, 1.0, 0.9]]))
    assert [column.tolist() for column in back.values()] == [["b", "c"], [2.5, 1.0], [False, True]]
    assert table.decode(torch.tensor([[0.0, 3.0, 1.0]]))["eggs"].dtype == np.int64


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[3.0, 0.0]], DataError, r"x\[:, 0\] \('island'\): expected codes from 0 to 2, got codes from 3 to 3"),
        ([[0.0, -1.0]], DataError, r"x\[:, 1\] \('eggs'\): expected counts >= 0, got -1"),
        ([[0.0]], ShapeError, r"x: expected \(rows, 2\), got \(1, 1\)"),
    ],
)
def test_codes_of_no_cell_are_refused(x: list[list[float]], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Table((Category("island", ("a", "b", "c")), Count("eggs"))).decode(torch.tensor(x))


@pytest.mark.usefixtures("as_users_call")
def test_samples_are_floating_point_tensors() -> None:
    for x, got in ((np.zeros((1, 1)), "a ndarray"), (torch.zeros(1, 1, dtype=torch.long), "torch.int64")):
        with pytest.raises(
            ArgumentTypeError, match=rf"x: expected a floating point tensor \(rows, columns\), got {got}"
        ):
            Table((Count("eggs"),)).decode(x)


def test_no_rows_are_rows_too() -> None:
    assert Table.of(frame(), kinds=KINDS).decode(torch.zeros(0, 5)).shape == (0, 5)


numbers = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(
    st.lists(
        st.tuples(
            st.none() | numbers, st.none() | st.sampled_from("abc"), st.integers(0, 1 << 40), st.floats(1e-9, 1e9)
        ),
        min_size=2,
    )
)
def test_rows_survive_the_way_there_and_back(rows: list[tuple[Any, ...]]) -> None:
    columns = {name: list(values) for name, values in zip("wxyz", zip(*rows, strict=True), strict=True)}
    if any(all(cell is None for cell in values) for values in columns.values()):
        return
    table = Table.of(columns, kinds={"y": "count", "x": "category", "w": "number", "z": "log"})
    x = table.encode(columns)
    back = table.decode(x)
    spread = max(abs(cell) for cell in columns["w"] if cell is not None)
    for name in columns:
        for one, other in zip(back[name].tolist(), columns[name], strict=True):
            close = isinstance(other, float) and abs(one - other) <= 1e-12 * (spread if name == "w" else 1e3 * other)
            assert same(one, other) or close
    assert table_from_json(table.to_json()) == table


# --- densities ------------------------------------------------------------------------------------------------------


def test_the_jacobian_turns_densities_of_samples_into_those_of_rows() -> None:
    rng = np.random.default_rng(0)
    columns = {"mass": rng.normal(4000, 800, 20), "fare": rng.lognormal(3, 1, 20), "eggs": rng.poisson(2, 20)}
    table = Table.of(columns, kinds={"fare": "log", "eggs": "count"})
    mass, fare, _ = table.columns
    x = table.encode(columns)
    of_samples = torch.from_numpy(stats.norm.logpdf(x[:, :2].numpy()).sum(1))
    exact = stats.norm.logpdf(columns["mass"], mass.mean, mass.std)
    exact += stats.lognorm.logpdf(columns["fare"], fare.std, scale=np.exp(fare.mean))
    assert torch.allclose(of_samples + table.log_jacobian(x), torch.from_numpy(exact))
    x[0, 0] = torch.nan
    assert table.log_jacobian(x)[0].item() == pytest.approx(-math.log(fare.std * columns["fare"][0]))
    x[0] = torch.nan
    assert table.log_jacobian(x)[0] == 0


# --- as data --------------------------------------------------------------------------------------------------------


def test_a_table_is_data() -> None:
    table = Table.of(frame(), kinds=KINDS | {"mass": "log"})
    assert table_from_json(table.to_json()) == table
    assert eval(repr(table)) == table
    assert len({table, Table.of(frame(), kinds=KINDS | {"mass": "log"})}) == 1
    assert str(table).splitlines()[2] == "eggs    count"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table(()), "Table.columns: expected a tuple of columns"),
        (lambda: Table((Count("a"), Count("a"))), "Table.columns: expected columns whose names differ"),
        (lambda: Table((Count("a"),), "excel"), "Table.library: expected 'pandas', 'polars',"),
        (lambda: Number("a", std=0), "Number.std: expected a finite number > 0, got 0"),
        (lambda: Number("a", mean=math.nan), "Number.mean: expected a finite number, got nan"),
        (lambda: Number(""), "Number.name: expected the name of a column, got ''"),
        (lambda: Category("a", ("x", "x")), "Category.categories: expected a tuple of different"),
        (lambda: Category("a", "xy"), "Category.categories: expected a tuple of different"),
        (lambda: Category("a", (1, True)), "Category.categories: expected a tuple of different"),
        (lambda: Binary("a", (1, 2, 3)), "Binary.categories: expected 2 different"),
        (lambda: table_from_json("{"), "table: expected valid JSON"),
        (lambda: table_from_json(hm.VAE().to_json()), "table: expected a Table, got VAE"),
        (
            lambda: table_from_json('{"kind": "table", "columns": [{"kind": "number", "name": "a", "std": -1}]}'),
            r"table.columns\[0\].std: expected a finite number > 0, got -1",
        ),
    ],
)
def test_a_table_that_is_not_valid_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        make()


def test_weights_decide_on_a_logarithm_as_repeated_rows_do() -> None:
    x, weight = np.exp(np.random.default_rng(0).normal(size=15)), np.full(15, 2.0)
    weighted, repeated = Table.of({"x": x}, sample_weight=weight), Table.of({"x": np.repeat(x, 2)})
    assert weighted.columns[0].log, "thirty cells are enough"
    assert repeated.columns[0].log
    assert not Table.of({"x": x}).columns[0].log


def test_cells_of_any_type_may_be_refused_as_categories() -> None:
    table = Table.of({"a": ["x", "y"] * 2})
    with pytest.raises(DataError, match=r"^frame\['a'\]: expected one of the 2 categories 'x', 'y', got \{'y': 1\}"):
        table.encode({"a": ["x", {"y": 1}]})


def test_draws_of_a_lone_category_are_that_category() -> None:
    table = Table.of({"a": ["x"] * 4})
    assert table.decode(torch.tensor([[0.0], [1.0]]))["a"].tolist() == ["x", "x"]  # two codes, by its likelihood
    model = hm.HMoEVAE(hm.VAE(2, likelihood=table.likelihood()), table)
    assert set(table.decode(model.sample(50, observe=True))["a"]) == {"x"}
    with pytest.raises(DataError, match="expected codes from 0 to 1, got codes from 2 to 2"):
        table.decode(torch.tensor([[2.0]]))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("weight", [[1.0, 1.0], np.ones(3), np.array([1.0, -1.0]), np.array([1.0, math.nan])], ids=str)
def test_weights_that_cannot_be_are_named(weight: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^sample_weight: expected an array of 2 finite numbers >= 0, got "):
        Table.of({"x": [1.0, 2.0]}, sample_weight=weight)


@pytest.mark.usefixtures("as_users_call")
def test_kinds_are_a_mapping() -> None:
    kinds: Any = ["x0"]
    for make in (lambda x: Table.of(x, kinds=kinds), hm.VAEMixture(1, kinds=kinds).fit):
        with pytest.raises(ArgumentTypeError, match=r"^kinds: expected a mapping such as .*got \['x0'\]"):
            make(np.ones((3, 1)))


def test_a_decimal_that_is_not_a_number_is_a_gap() -> None:
    cells = [Decimal("1.5"), Decimal("NaN"), Decimal("2.5")]
    assert Table.of({"x": cells}).encode({"x": cells})[:, 0].isnan().tolist() == [False, True, False]
