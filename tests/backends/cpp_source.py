"""Read the bindings' C++: schemas, functions with their parameters, calls and struct fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from .build_script import ROOT

BINDINGS = ("bind_cpu.cpp", "bind_cuda.cpp")
CPP_TYPES = {
    "int": "int64_t",
    "float": "double",
    "bool": "bool",
    "ScalarType": "ScalarType",
    "Tensor": "Tensor",
    "Tensor?": "OptionalTensor",
}


@dataclass(frozen=True)
class Function:
    """A C++ function. parameters: (type, name) of each, without const and &."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    body: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.parameters)


@cache
def source(name: str) -> str:
    """Return a file of python_bindings or a header of csrc/include/rao, without its comments."""
    folder = "python_bindings" if (ROOT / "python_bindings" / name).exists() else "csrc/include/rao"
    return re.sub(r"//[^\n]*", "", (ROOT / folder / name).read_text())


def schemas(text: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return for each operator the (C++ type, name) of its arguments, parsed by torch."""
    found = {}
    for literals in re.findall(r"constexpr char k\w+\[\] =((?:\s*\"[^\"]*\")+);", text):
        schema = torch._C.parse_schema("".join(re.findall(r'"([^"]*)"', literals)))
        types = (CPP_TYPES[_type(argument)] for argument in schema.arguments)
        names = (argument.name for argument in schema.arguments)
        found[schema.name] = tuple(zip(types, names, strict=True))
    return found


def _type(argument: torch._C.Argument) -> str:
    name = str(argument.real_type)
    return f"{name[9:-1]}?" if name.startswith("Optional[") else name


def functions(text: str) -> dict[str, Function]:
    """Return the functions that a file defines, by name."""
    pattern = r"^(?:inline )?[\w:&<> ]+?[ *&](\w+)\(([^()]*)\) \{(?:([^\n]+)\}|\n(.*?)^\})$"
    return {
        name: Function(name, tuple(map(_parameter, _split(parameters))), line or body)
        for name, parameters, line, body in re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    }


def _parameter(text: str) -> tuple[str, str]:
    text = text.replace("const ", "").replace("std::optional<Tensor>", "OptionalTensor")
    kind, name = re.fullmatch(r"([\w:]+)[ *&]+(\w+)", text).groups()
    return kind, name


def _split(arguments: str) -> list[str]:
    """Split arguments at the commas outside brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [" ".join(part.split()) for part in parts if part.strip()]


def calls(body: str, name: str) -> Iterator[list[str]]:
    """Yield the arguments of each call ``name(...)`` or initialisation ``Name x{...}``."""
    for match in re.finditer(rf"\b{name}(?:<\w+>)?(?: \w+)?([({{])", body):
        depth, end = 1, match.end()
        while depth:
            depth += (body[end] in "([{") - (body[end] in ")]}")
            end += 1
        yield _split(body[match.end() : end - 1])


def fields(struct: str, text: str) -> tuple[str, ...]:
    """Return the names of a struct's fields, in order."""
    (body,) = re.findall(rf"struct {struct} \{{(.*?)\}};", text, re.DOTALL)
    return tuple(re.findall(r"(\w+);", body))
