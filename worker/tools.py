"""Tools: typed Python functions that a model may call.

    from typing import Annotated
    from pydantic import Field
    from worker.tools import tool

    @tool
    async def weather(city: Annotated[str, Field(description="City and country")]) -> dict[str, float]:
        \"\"\"Return today's weather.\"\"\"

The decorator only marks the function; a worker offers those of the modules it
was told to load. Plain functions run in threads, coroutine functions on the
event loop, which they must not block.
"""

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final, TypeVar, get_type_hints, overload

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from typing_extensions import override

from worker.domain.problems import explain

ENTRY_POINTS: Final = "openai_worker.tools"
"""Group of entry points; each names a module with tools, or one tool."""

MAX_ARGUMENT_CHARS: Final = 256 * 1024

_MARK: Final = "__openai_tool__"
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
"""What OpenAI accepts as a function's name."""

Function = TypeVar("Function", bound=Callable[..., Any])


class ToolDefinitionError(Exception):
    """A function cannot serve as a tool, or tools cannot be loaded; the message says what to change."""


class ToolArgumentsError(Exception):
    """The model's arguments do not fit; the message is written for the model."""


@dataclass(frozen=True, slots=True)
class _Mark:
    name: str | None
    description: str | None


@overload
def tool(function: Function, /) -> Function: ...


@overload
def tool(*, name: str | None = None, description: str | None = None) -> Callable[[Function], Function]: ...


def tool(
    function: Function | None = None, /, *, name: str | None = None, description: str | None = None
) -> Function | Callable[[Function], Function]:
    """Mark a function as a tool; it stays the same function.

    The name defaults to the function's, the description to the first paragraph of its docstring.
    """

    def mark(marked: Function) -> Function:
        setattr(marked, _MARK, _Mark(name, description))
        return marked

    return mark if function is None else mark(function)


class Tool:
    """One function with what the model is told of it."""

    __slots__ = ("_arguments", "definition", "function", "is_async", "name")

    def __init__(self, function: Callable[..., Any]) -> None:
        """Derive everything from the signature. Raises ToolDefinitionError."""
        mark: _Mark = getattr(function, _MARK, _Mark(None, None))
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.name = mark.name or str(getattr(function, "__name__", ""))
        if not _NAME.fullmatch(self.name):
            raise ToolDefinitionError(
                f"{_where(function)}: a tool's name must be 1 to 64 letters, digits, underscores or dashes"
            )
        self._arguments = _arguments_model(function)
        self.definition = _definition(self.name, mark.description, function, self._arguments)
        """The tool as OpenAI takes it."""

    def arguments(self, text: str) -> dict[str, Any]:
        """Return the keyword arguments that the model's JSON stands for. Raises ToolArgumentsError."""
        if len(text) > MAX_ARGUMENT_CHARS:
            raise ToolArgumentsError(f"the arguments must be at most {MAX_ARGUMENT_CHARS} characters of JSON")
        try:
            # Models write nothing at all for a function without parameters.
            values = self._arguments.model_validate_json(text.strip() or "{}")
        except ValidationError as error:
            raise ToolArgumentsError(f"wrong arguments: {explain(error)}") from None
        # Only what the model gave: the function's own defaults do the rest.
        fields = type(values).model_fields
        return {fields[name].alias or name: getattr(values, name) for name in values.model_fields_set}


class Registry(Mapping[str, Tool]):
    """The tools a worker offers, by name; never changes."""

    __slots__ = ("_tools",)

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        """Raise ToolDefinitionError where two tools share a name."""
        self._tools: dict[str, Tool] = {}
        for one in tools:
            other = self._tools.setdefault(one.name, one)
            if other is not one:
                raise ToolDefinitionError(
                    f"two tools are named {one.name!r}: {_where(other.function)} and {_where(one.function)}"
                )

    @override
    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    @override
    def __len__(self) -> int:
        return len(self._tools)


def load_tools(modules: Iterable[str] = (), *, entry_points: bool = True) -> Registry:
    """Import the modules, and what is announced by entry points. Raises ToolDefinitionError.

    Modules may also lie in the current directory.
    """
    found = [function for name in modules for function in _marked(_import(name))]
    if entry_points:
        found += [function for point in _announced() for function in _tools_of(point)]
    # The same function may be met twice, where one module imports another's tool.
    return Registry(Tool(function) for function in {id(function): function for function in found}.values())


def _announced() -> Iterable[EntryPoint]:
    return entry_points(group=ENTRY_POINTS)


def _tools_of(point: EntryPoint) -> list[Callable[..., Any]]:
    try:
        target = point.load()
    except Exception as error:
        raise ToolDefinitionError(f"entry point {point.value!r} cannot be loaded: {_brief(error)}") from error
    if isinstance(target, ModuleType):
        return _marked(target)
    if inspect.isroutine(target):
        return [target]
    raise ToolDefinitionError(f"entry point {point.value!r} is neither a module nor a function")


def _import(name: str) -> ModuleType:
    _look_here_too()
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ToolDefinitionError(f"tool module {name!r} cannot be imported: {_brief(error)}") from error


def _look_here_too() -> None:
    """Find modules of the current directory, as `python -m worker` does and an installed command does not.

    Last, so that a file there takes no library's place; for good, since tools may import later.
    """
    here = str(Path.cwd())
    if not sys.flags.safe_path and not {"", here}.intersection(sys.path):
        sys.path.append(here)


def _marked(module: ModuleType) -> list[Callable[..., Any]]:
    return [value for value in vars(module).values() if isinstance(getattr(value, _MARK, None), _Mark)]


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _where(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"


# ---------------------------------------------------------------- from signature to schema


class _Schema(GenerateJsonSchema):
    """A schema without titles, which only repeat the names and cost tokens."""

    @override
    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    @override
    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """Leave out, without a word, the defaults that JSON cannot hold: the function knows them."""


class _Arguments(BaseModel):
    """What the arguments of all tools have in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _definition(
    name: str, description: str | None, function: Callable[..., Any], arguments: type[BaseModel]
) -> dict[str, Any]:
    try:
        parameters = arguments.model_json_schema(schema_generator=_Schema)
        described = {"name": name, "description": description or _summary(function)}
        given = {key: text for key, text in described.items() if text}
        parameters = {key: part for key, part in parameters.items() if key not in {"title", "description"}}
        definition = {"type": "function", "function": {**given, "parameters": parameters}}
        orjson.dumps(definition)
    except (PydanticUserError, TypeError) as error:
        raise ToolDefinitionError(f"{_where(function)}: no JSON Schema fits: {_brief(error)}") from None
    return definition


def _arguments_model(function: Callable[..., Any]) -> type[BaseModel]:
    """Build the model that validates arguments; aliases keep parameter names clear of pydantic's own."""
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        documented = _documented(inspect.getdoc(function) or "")
        fields: dict[str, Any] = {
            f"argument_{number}": _field(parameter, hints, documented)
            for number, parameter in enumerate(parameters)
        }
        return create_model("Arguments", __base__=_Arguments, **fields)
    except (NameError, AttributeError, TypeError, ValueError, PydanticUserError) as error:
        raise ToolDefinitionError(f"{_where(function)}: {_brief(error)}") from None


def _field(
    parameter: inspect.Parameter, hints: Mapping[str, Any], documented: Mapping[str, str]
) -> tuple[Any, Any]:
    name = parameter.name
    if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
        raise TypeError(f"parameter {name!r} must be one that can be passed by name")
    if name not in hints:
        raise TypeError(f"parameter {name!r} must have a type")
    if isinstance(parameter.default, FieldInfo):
        raise TypeError(f"parameter {name!r} must carry its Field inside Annotated, not as default")
    description = FieldInfo.from_annotation(hints[name]).description or documented.get(name)
    default = ... if parameter.default is parameter.empty else parameter.default
    return Annotated[hints[name], Field(alias=name, description=description)], default


def _summary(function: Callable[..., Any]) -> str:
    """Return the first paragraph of the docstring, on one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n", 1)[0].split())


_SECTION: Final = re.compile(r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*\n?|\n)+)", re.MULTILINE)
_ENTRY: Final = re.compile(r"(\w+)[ \t]*(?:\([^)]*\))?:[ \t]*(.*)")


def _documented(docstring: str) -> dict[str, str]:
    """Return what an `Args:` section of the docstring says of each parameter."""
    section = _SECTION.search(docstring)
    found: dict[str, list[str]] = {}
    words: list[str] = []
    for line in textwrap.dedent(section[1]).splitlines() if section else ():
        entry = _ENTRY.match(line)
        if entry:
            words = found.setdefault(entry[1], [])
        words += (entry[2] if entry else line).split()
    return {name: " ".join(told) for name, told in found.items()}
