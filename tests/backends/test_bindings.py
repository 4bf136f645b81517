"""One order of arguments in schema, C++ function and structs; one list of instruction sets."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest
import torch

from rao_kernels import _env, _native
from rao_kernels.backends import RowGradients, RowState

from . import cpp_source
from .build_script import ROOT, SETUP
from .cpp_source import BINDINGS, calls, functions, schemas, source

RECORDS = {"RowState": RowState, "RowGradients": RowGradients}
# Two names that must be equal: of a tensor in error messages, of a field that is assigned.
PAIRS = (
    r'_of(?:<\w+>)?\(\*?(\w+), "(\w+)"',
    r'\.(\w+) =\s+\w+_of(?:<\w+>)?\(\*?(\w+), "',
    r"\.(\w+) =\s+static_cast<\w+>\((\w+)\)",
)


def differences(text: str, header: str) -> Iterator[str]:
    """Find arguments of a binding that differ from what it calls, or the fields it fills.

    header: params.h, whose functions the binding calls.
    """
    found = functions(text)
    helpers = [one for one in (functions(header) | found).values() if one.name not in schemas(text)]
    for name, arguments in schemas(text).items():
        function = found[name]
        if function.parameters != arguments:
            yield f"the schema of {name}: {arguments}, its function: {function.parameters}"
    for function in found.values():
        for helper in helpers:
            for given in calls(function.body, helper.name):
                swapped = [
                    (name, parameter)
                    for name, parameter in zip(given, helper.names, strict=True)
                    if name != parameter and name in helper.names
                ]
                if swapped:
                    yield f"{function.name} calls {helper.name} with {swapped}"
        for struct in RECORDS:
            for given in calls(function.body, struct):
                names = tuple(re.match(r"\w+\((\w+)", value)[1] for value in given)
                if names != cpp_source.fields(struct, source("rows.h")):
                    yield f"{function.name} fills {struct} with {names}"
    for function in [*found.values(), *functions(header).values()]:
        for pattern in PAIRS:
            for first, second in re.findall(pattern, function.body):
                if first != second:
                    yield f"{function.name} uses {first!r} for {second!r}"


@pytest.mark.parametrize("file", BINDINGS)
def test_schema_function_and_structs_have_one_order(file: str) -> None:
    assert list(differences(source(file), source("params.h"))) == []


@pytest.mark.parametrize(
    ("file", "first", "second"),
    [
        ("bind_cpu.cpp", "float scale", "float softcap"),  # of a schema
        ("bind_cpu.cpp", "Tensor(h!) packed_weight", "Tensor(i!) packed_hidden"),
        ("bind_cpu.cpp", "double scale", "double softcap"),  # parameters
        ("bind_cpu.cpp", "Tensor packed_weight", "Tensor packed_hidden"),
        ("bind_cpu.cpp", "scale", "softcap"),  # of a call
        ("bind_cpu.cpp", "packed_weight", "packed_hidden"),
        ("bind_cpu.cpp", 'floats_of(row_max, "row_max", head.rows)',
         'floats_of(row_sum, "row_sum", head.rows)'),  # of a struct
        ("bind_cuda.cpp", "int first_entry", "int entries"),
        ("bind_cuda.cpp", "double scale", "double softcap"),
        ("bind_cuda.cpp", "Tensor logp", "Tensor logp_grad"),
        ("bind_cuda.cpp", "values", "maxima"),
    ],
)  # fmt: skip
def test_swapped_arguments_are_found(file: str, first: str, second: str) -> None:
    text = source(file)
    pattern = rf"\b{re.escape(first)},(\s+){re.escape(second)}(?!\w)"
    found = list(re.finditer(pattern, text))
    assert found
    for match in found:
        swapped = f"{second},{match[1]}{first}"
        mutated = text[: match.start()] + swapped + text[match.end() :]
        assert list(differences(mutated, source("params.h"))) != [], match


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('floats_of(logp, "logp"', 'floats_of(log_sum, "logp"'),
        ("out.dbias = floats_of(dbias", "out.dhidden = floats_of(dbias"),
        ("head.scale = static_cast<float>(scale)", "head.scale = static_cast<float>(softcap)"),
        ("scratch.rows = bytes_of(rows", "scratch.threads = bytes_of(rows"),
    ],
)
def test_a_tensor_of_another_name_is_found(right: str, wrong: str) -> None:
    text, header = source("bind_cpu.cpp"), source("params.h")
    assert right in text + header
    assert list(differences(text.replace(right, wrong), header.replace(right, wrong))) != []


@pytest.mark.parametrize("struct", RECORDS)
def test_records_have_the_fields_of_the_structs(struct: str) -> None:
    """A record is passed by its fields' names, so these are the schema's and the struct's."""
    names = tuple(field.name for field in dataclasses.fields(RECORDS[struct]))
    assert names == cpp_source.fields(struct, source("rows.h"))


@pytest.mark.parametrize("file", BINDINGS)
def test_every_schema_is_registered_with_its_function(file: str) -> None:
    text = source(file)
    constants = re.findall(r"constexpr char (k\w+)\[\]", text)
    assert sorted(re.findall(r"m\.def\(rao::bindings::(\w+)\)", text)) == sorted(constants)
    pairs = re.findall(r'm\.impl\("(\w+)", TORCH_BOX\(&rao::bindings::(\w+)\)', text)
    assert dict(pairs) == {name: name for name in schemas(text)}


def test_call_puts_arguments_in_the_schemas_order() -> None:
    operator = torch.ops.aten.clamp
    got = _native.call(operator, max=3, self=torch.tensor([0, 2, 9]), min=1)
    assert got.tolist() == [1, 2, 3]


@pytest.mark.parametrize("arguments", [{"min": 1}, {"min": 1, "max": 3, "mid": 2}])
def test_call_names_the_argument_that_differs(arguments: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="max|mid"):
        _native.call(torch.ops.aten.clamp, self=torch.tensor([0]), **arguments)


def test_one_list_of_instruction_sets() -> None:
    """setup.py, _native.py, the documentation, enum Isa and dispatch.cpp have the same ones."""
    header = source("tile_kernels.h")
    enum = re.search(r"enum class Isa : int \{(.*?)\}", header)[1]
    spelled = [
        re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in re.findall(r"k(\w+)", enum)
    ]
    assert tuple(spelled) == _native.ISAS
    assert f"kIsaCount = {len(_native.ISAS)};" in header
    compiled = [*SETUP.ISA_FLAGS, SETUP.AMX_FLAGS[-1].removeprefix("-DRAO_ISA=")]
    assert tuple(compiled) == _native.ISAS
    documented = re.findall(r"`(\w+)`", _env.VARIABLES["RAO_KERNELS_CPU_ISA"])
    assert tuple(reversed(documented)) == _native.ISAS


def test_dispatch_has_every_instruction_set() -> None:
    text = (ROOT / "csrc/cpu/dispatch.cpp").read_text()
    assert tuple(re.findall(r"^RAO_DECLARE\((\w+)\)", text, re.MULTILINE)) == _native.ISAS
    table = dict(re.findall(r"case Isa::k(\w+):\s+return (\w+)::kKernels", text))
    assert {isa.title().replace("_", ""): isa for isa in _native.ISAS[1:]} == table
    asked = re.findall(r"case Isa::k(\w+):\s+return (?:true|has_\w+\(\)|amx_problem\(\))", text)
    assert sorted(asked) == sorted(isa.title().replace("_", "") for isa in _native.ISAS)
