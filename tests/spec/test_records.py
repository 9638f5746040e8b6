"""Records: what the decorator asks for, what a record holds, and what JSON says of it."""

import dataclasses
import re
from typing import Any

import pytest

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, SpecError
from hmoevae.spec.record import read, record, write


class Shape:
    """A family of the tests."""


@record(kind="test_records_table")
class Table(Shape):
    """Takes anything."""

    content: Any = ()


@record(kind="test_records_named")
class Named(Shape):
    """Takes one argument by its place."""

    first: int = 0
    _: dataclasses.KW_ONLY
    second: int = 0


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("kind", [Shape, len, 3])
@pytest.mark.parametrize(
    ("decorator", "message"),
    [
        (hm.record, """kind: expected a name, as in record(kind="mine"), got """),
        (hm.balance, """kind: expected a name, as in balance("mine"), got """),
        (hm.objective, """name: expected a name, as in objective("mine"), got """),
    ],
)
def test_a_decorator_without_a_name_is_refused_where_it_stands(decorator: Any, message: str, kind: object) -> None:
    with pytest.raises(ArgumentTypeError, match=f"^{re.escape(message + repr(kind))}$"):
        decorator(kind)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1}, ((1, [2]),)])
def test_what_has_no_hash_is_refused_in_a_record(content: object) -> None:
    message = "Table.content: expected a tuple or another value that can be hashed, got "
    with pytest.raises(SpecError, match=f"^{re.escape(message)}"):
        Table(content)


def test_code_of_a_users_own_needs_no_hash() -> None:
    @dataclasses.dataclass
    class Brighter(hm.views.View):
        by: float = 1.2

        def __call__(self, x, *, index=None, generator=None, share=None):
            return x * self.by

    assert hm.Agreement(partner=hm.views.Compose([Brighter()])).partner.views == (Brighter(),)


def test_arguments_by_name_are_not_given_by_place() -> None:
    assert Named(1, second=2) == Named(first=1, second=2)
    with pytest.raises(SpecError, match=r"^Named: expected at most the arguments \(first\), got 2$"):
        Named(1, 2)


def test_a_class_that_inherits_from_a_record_is_not_written_as_that_record() -> None:
    class Mine(hm.MLP):
        pass

    with pytest.raises(SpecError, match=r"^VAE\.encoder: expected a record: Mine needs the decorator .*, got Mine\(\)"):
        hm.VAE(encoder=Mine())


def test_a_tree_with_an_option_of_training_in_it_is_no_tree() -> None:
    with pytest.raises(SpecError, match=r"root.encoder.epochs: expected an integer > 0, got 0"):
        hm.tree_from_json('{"kind": "vae", "encoder": {"kind": "warmup", "epochs": 0}}')


def test_what_is_no_record_may_be_written_and_read_by_others() -> None:
    data = write(Table((1, len)), lambda value: {"function": value.__name__})
    assert data == {"kind": "test_records_table", "content": [1, {"function": "len"}]}
    assert read(data, "table", lambda data, path: (data["function"], path)) == Table((1, ("len", "table.content[1]")))


def test_no_name_of_a_field_in_a_file_is_python_s_own() -> None:
    with pytest.raises(SpecError, match=r"^root.self: expected no such field"):
        hm.tree_from_json('{"kind": "vae", "self": 1}')


def test_errors_of_a_record_are_of_the_type_that_it_names() -> None:
    for make in (lambda: hm.Warmup(0), lambda: hm.Warmup(3, foo=1), lambda: hm.Warmup(), lambda: hm.Warmup(1, 2, 3, 4)):
        with pytest.raises(ArgumentError, match=r"^Warmup"):
            make()
