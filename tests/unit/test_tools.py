"""Functions become tools: schema, checked arguments, loading."""

import contextlib
import enum
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from worker.tools import (
    ENTRY_POINTS,
    MAX_ARGUMENT_CHARS,
    Registry,
    Tool,
    ToolArgumentsError,
    ToolDefinitionError,
    load_tools,
    tool,
)


class Unit(enum.StrEnum):
    """Of a temperature."""

    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Place(BaseModel):
    """A place on earth."""

    city: str
    country: str | None = None


def function_of(source: str, name: str) -> Callable[..., Any]:
    """Return a function as a module of its own would define it."""
    names: dict[str, Any] = {"__name__": "made", "tool": tool, "Field": Field, "Callable": Callable}
    exec(source, names)  # noqa: S102 (wrong functions cannot stand in a file that linters read)
    function: Callable[..., Any] = names[name]
    return function


@tool
def weather(
    place: Place,
    unit: Unit = Unit.CELSIUS,
    *,
    days: Annotated[int, Field(description="How far to look ahead", ge=1, le=7)] = 1,
    schema: Literal["short", "long"] = "short",
) -> str:
    """Return the weather of a place, made up
    as it is.

    More is not told.

    Args:
        place: Where; anywhere
            on earth.
        unit (Unit): Of the temperature.
        days: not used, the annotation wins
        schema: How much.

    Returns:
        place: nothing of the kind.

    """  # noqa: D205 (a summary of two lines is what is tested)
    return f"{place.city} {unit} {days} {schema}"


def test_a_marked_function_stays_a_function() -> None:
    """The decorator only marks: called directly, it does what it did."""
    assert weather(Place(city="Bonn"), Unit.KELVIN) == "Bonn kelvin 1 short"


def test_the_schema_is_derived() -> None:
    """Name, description, types, bounds, defaults and parameter texts come from the function itself."""
    function = Tool(weather).definition["function"]
    assert Tool(weather).definition["type"] == "function"
    assert (function["name"], function["description"]) == (
        "weather",
        "Return the weather of a place, made up as it is.",
    )
    parameters = function["parameters"]
    assert (parameters["type"], parameters["required"]) == ("object", ["place"])
    assert parameters["additionalProperties"] is False
    properties = parameters["properties"]
    assert list(properties) == ["place", "unit", "days", "schema"]
    assert properties["place"]["description"] == "Where; anywhere on earth."
    assert properties["unit"]["description"] == "Of the temperature."
    days = {"type": "integer", "minimum": 1, "maximum": 7, "default": 1}
    assert properties["days"] == {**days, "description": "How far to look ahead"}
    length = {"type": "string", "enum": ["short", "long"], "default": "short"}
    assert properties["schema"] == {**length, "description": "How much."}


def test_name_and_description_may_be_given() -> None:
    """They win over the function's own."""

    @tool(name="other-name", description="Other text")
    def function() -> None:
        """Own text."""

    made = Tool(function)
    assert made.name == "other-name"
    assert made.definition["function"]["description"] == "Other text"
    assert made.definition["function"]["parameters"]["properties"] == {}


def test_a_function_without_docstring_has_no_description() -> None:
    """Nothing is made up."""

    def function() -> None: ...

    assert "description" not in Tool(function).definition["function"]


def test_coroutine_functions_are_told_apart() -> None:
    """They run on the loop, all others in threads."""

    async def one() -> None: ...

    assert Tool(one).is_async
    assert not Tool(weather).is_async


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"place": {"city": "Bonn"}}', {"place": Place(city="Bonn")}),
        ('{"place": {"city": "Bonn"}, "unit": "kelvin"}', {"place": Place(city="Bonn"), "unit": Unit.KELVIN}),
        (
            ' {"schema": "long", "place": {"city": "x"}, "days": 7} ',
            {"place": Place(city="x"), "schema": "long", "days": 7},
        ),
    ],
)
def test_arguments_are_validated_into_types(text: str, arguments: dict[str, Any]) -> None:
    """The function gets what its signature says, and its own defaults for the rest."""
    assert Tool(weather).arguments(text) == arguments


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "place: is missing"),
        ("{}", "place: is missing"),
        ("[]", "must be an object"),
        ("null", "must be an object"),
        ('{"place": {"city": "x"', "invalid JSON"),
        ("not json", "invalid JSON"),
        ('{"place": {"city": 5}}', "place.city: must be a text"),
        ('{"place": {"city": "x"}, "days": 8}', "days: must be less than or equal to 7"),
        ('{"place": {"city": "x"}, "days": 1e400}', "days: must be a finite number"),
        ('{"place": {"city": "x"}, "unit": "rankine"}', "unit: must be 'celsius' or 'kelvin'"),
        ('{"place": {"city": "x"}, "__class__": 1}', "__class__: is not a known field"),
        ('{"place": {"city": "x"}, "argument_0": 1}', "argument_0: is not a known field"),
        ('{"place": ' + "[" * 10_000, "recursion limit"),
        ('{"place": "' + "x" * MAX_ARGUMENT_CHARS + '"}', "at most"),
    ],
)
def test_bad_arguments_are_explained_to_the_model(text: str, reason: str) -> None:
    """The message names the field and the rule."""
    with pytest.raises(ToolArgumentsError) as caught:
        Tool(weather).arguments(text)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_are_finite(number: str) -> None:
    """No tool has to expect what JSON does not have."""

    def scale(factor: float) -> float:
        return factor

    with pytest.raises(ToolArgumentsError, match="factor: must be a finite number"):
        Tool(scale).arguments(f'{{"factor": {number}}}')


@given(st.text())
def test_any_text_is_arguments_or_refused(text: str) -> None:
    """Whatever the model writes raises nothing else."""
    with contextlib.suppress(ToolArgumentsError):
        assert "place" in Tool(weather).arguments(text)


def test_annotations_may_be_texts() -> None:
    """A module that postpones the evaluation of its annotations works the same."""
    source = "from __future__ import annotations\nimport datetime\ndef day(when: datetime.date) -> str: ..."
    assert Tool(function_of(source, "day")).arguments('{"when": "2026-12-01"}') == {"when": date(2026, 12, 1)}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(city): ...", "parameter 'city' must have a type"),
        ("def f(city: str, /): ...", "parameter 'city' must be one that can be passed by name"),
        ("def f(*cities: str): ...", "parameter 'cities' must be one"),
        ("def f(**cities: str): ...", "parameter 'cities' must be one"),
        ("def f(city: 'Nowhere'): ...", "Nowhere"),
        ("def f(call: Callable[[int], int]): ...", "no JSON Schema fits"),
        ("class Own: ...\ndef f(own: Own): ...", "f: PydanticSchemaGenerationError"),
        ("def f(city: object()): ...", "f: "),
        ("def f(city: str = Field(description='x')): ...", "inside Annotated"),
        ("def f(number: int = 2**70): ...", "no JSON Schema fits"),
        ("f = lambda: None", "1 to 64 letters"),
        ("@tool(name='has space')\ndef f(): ...", "1 to 64 letters"),
        ("@tool(name='x' * 65)\ndef f(): ...", "1 to 64 letters"),
    ],
)
def test_what_cannot_be_a_tool_says_why(source: str, reason: str) -> None:
    """The message names the function and what to change, on one line."""
    with pytest.raises(ToolDefinitionError) as caught:
        Tool(function_of(source, "f"))
    assert reason in str(caught.value)
    assert str(caught.value).startswith(("made.f: ", "made.<lambda>: "))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- loading


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that modules can be imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, name: str, *lines: str) -> None:
    """Write a module."""
    head = "from worker.tools import tool"
    (folder / f"{name}.py").write_text("\n".join([head, *lines, ""]))


def test_marked_functions_of_modules_are_loaded(package: Path) -> None:
    """All marked ones, none of the others; one met twice counts once."""
    write(package, "shop", "@tool", "def find(name: str) -> str: ...", "def helper(x): ...")
    write(package, "bank", "from shop import find", "@tool", "async def pay(cents: int) -> str: ...")
    registry = load_tools(["shop", "bank"], entry_points=False)
    assert sorted(registry) == ["find", "pay"]
    assert registry["pay"].is_async
    assert len(registry) == 2
    assert "helper" not in registry
    assert load_tools([], entry_points=False) == {}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["raise RuntimeError('no database')"],
            "tool module 'shop' cannot be imported: RuntimeError: no database",
        ),
        (["def broken("], "tool module 'shop' cannot be imported: SyntaxError"),
        (["@tool", "def find(name): ..."], "shop.find: TypeError: parameter 'name' must have a type"),
        (
            ["@tool", "def find() -> str: ...", "@tool(name='find')", "def other() -> str: ..."],
            "two tools are named 'find': shop.find and shop.other",
        ),
    ],
)
def test_a_wrong_module_stops_the_start(package: Path, lines: list[str], reason: str) -> None:
    """One line names the module, the function and the mistake."""
    write(package, "shop", *lines)
    with pytest.raises(ToolDefinitionError) as caught:
        load_tools(["shop"], entry_points=False)
    assert reason in str(caught.value)


def test_a_missing_module_is_named() -> None:
    """A typing error in the setting is found at the start."""
    with pytest.raises(ToolDefinitionError, match="tool module 'no_such_tools' cannot be imported"):
        load_tools(["no_such_tools"], entry_points=False)


def announce(folder: Path, *entries: str) -> None:
    """Install a distribution that announces entry points."""
    info = folder / "shop_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-tools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINTS}]", *entries, ""]))


def test_entry_points_are_loaded(package: Path) -> None:
    """A package announces a module of tools, or a single function, marked or not."""
    write(package, "shop", "@tool", "def find(name: str) -> str: ...")
    write(package, "bank", "def pay(cents: int) -> str: ...")
    announce(package, "shop = shop", "pay = bank:pay")
    assert {"find", "pay"} <= set(load_tools())
    assert set(load_tools(entry_points=False)) == set()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("x = no_such_tools", "entry point 'no_such_tools' cannot be loaded"),
        ("x = shop:missing", "entry point 'shop:missing' cannot be loaded"),
        ("x = shop:number", "neither a module nor a function"),
    ],
)
def test_a_wrong_entry_point_stops_the_start(package: Path, entry: str, reason: str) -> None:
    """It is named with its mistake."""
    write(package, "shop", "number = 7")
    announce(package, entry)
    with pytest.raises(ToolDefinitionError) as caught:
        load_tools()
    assert reason in str(caught.value)


def test_a_registry_is_a_mapping() -> None:
    """It has the names, and nothing to change it with."""
    registry = Registry([Tool(weather)])
    assert registry["weather"].function is weather
    assert registry.get("other") is None
    assert not hasattr(registry, "__setitem__")
