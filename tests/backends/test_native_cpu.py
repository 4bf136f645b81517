"""The native library: loading, choice of the instruction set, and the results of each one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rao_kernels import _native
from rao_kernels.backends import RetainedSlot, RowState, cpu, eager, precision_of
from rao_kernels.errors import BackendError

from ..cases import FLOOR, error
from . import amx_emulation
from .tile_walk import Case, Result, assert_as_good_as_eager, make_case, walk

ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MISSING = _native.cpu_library()
needs_library = pytest.mark.skipif(
    isinstance(MISSING, _native.Missing), reason=str(getattr(MISSING, "reason", ""))
)


@needs_library
def test_the_best_instruction_set_runs_unless_one_is_forced(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    monkeypatch.delenv("RAO_KERNELS_CPU_ISA", raising=False)
    _native.cpu_library.cache_clear()
    library = _native.cpu_library()
    assert isinstance(library, _native.CpuLibrary)
    assert library.isa == library.host_isas[0]
    assert library.host_isas[-1] == "portable"


def test_a_forced_instruction_set_is_used(isa: str) -> None:
    library = _native.cpu_library()
    assert isinstance(library, _native.CpuLibrary)
    assert library.isa == isa


@needs_library
def test_an_impossible_instruction_set_names_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    monkeypatch.setenv("RAO_KERNELS_CPU_ISA", "avx9000")
    with pytest.raises(BackendError, match="avx9000: this processor has .*portable"):
        _native.cpu_library()


@needs_library
def test_a_processor_without_amx_says_so(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    monkeypatch.delenv("RAO_KERNELS_CPU_ISA", raising=False)
    _native.cpu_library.cache_clear()
    library = _native.cpu_library()
    assert isinstance(library, _native.CpuLibrary)
    assert (library.amx_problem is None) == ("avx512_amx" in library.host_isas)
    if library.amx_problem is None:
        pytest.skip("this processor has AMX")
    assert library.amx_problem
    monkeypatch.setenv("RAO_KERNELS_CPU_ISA", "avx512_amx")
    _native.cpu_library.cache_clear()
    with pytest.raises(BackendError, match=f"avx512_amx: .*has {', '.join(library.host_isas)}"):
        _native.cpu_library()


def test_amx_is_not_used_where_another_set_is_forced(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    """The retained tile and the widths are then the other set's too."""
    amx_emulation.require_hardware()
    monkeypatch.setenv("RAO_KERNELS_CPU_ISA", "avx512_bf16")
    _native.cpu_library.cache_clear()
    assert cpu.traits("cpu").dense_width == 2048
    assert cpu.retained_bytes(33, 64, precision_of(torch.bfloat16)) == 33 * (256 * 2 + 4)
    assert_as_good_as_eager(lambda: make_case(37, 70, 100, 64, torch.bfloat16), retain=True)


def test_a_missing_library_is_a_reason_that_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(_native, "_LIBRARY", tmp_path / "_native_cpu.so")
    reason = cpu.supports(torch.device("cpu"), torch.float32)
    assert reason is not None and _native.BUILD_COMMAND in reason


def test_a_broken_library_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, fresh_library: None, tmp_path: Path
) -> None:
    (tmp_path / "_native_cpu.so").write_bytes(b"not a library")
    monkeypatch.setattr(_native, "_LIBRARY", tmp_path / "_native_cpu.so")
    reason = cpu.supports(torch.device("cpu"), torch.float32)
    assert reason is not None and "does not load" in reason


@dataclass(frozen=True, eq=False)
class Operator:
    """A stand-in for one of torch.ops."""

    default: SimpleNamespace


def older_libraries() -> dict[str, SimpleNamespace]:
    """Return operators without score_tile, and operators whose arguments have other names."""
    schema = torch._C.parse_schema("score_tile(int isa, Tensor hidden, int first_word) -> ()")
    others = {"host_isas": lambda: 1, "amx_problem": lambda: "", "compiler": lambda: ""}
    return {
        "no operator": SimpleNamespace(**others),
        "other arguments": SimpleNamespace(
            **others, score_tile=Operator(SimpleNamespace(_schema=schema))
        ),
    }


@pytest.mark.parametrize("which", older_libraries())
def test_an_older_library_is_a_reason(
    which: str, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    """As after an update of a checkout that was not built again."""
    monkeypatch.setattr(_native, "_load", lambda path, command: None)
    monkeypatch.setattr(torch.ops, "rao_native", older_libraries()[which])
    reason = cpu.supports(torch.device("cpu"), torch.float32)
    assert reason is not None and "older" in reason and _native.BUILD_COMMAND in reason


def test_every_source_is_listed() -> None:
    listed = (ROOT / "setup.py").read_text()
    for path in (*ROOT.glob("csrc/cpu/**/*.cpp"), *ROOT.glob("python_bindings/*.cpp")):
        assert f'"{path.relative_to(ROOT).as_posix()}"' in listed


@pytest.mark.usefixtures("isa", "nan_filled_memory")
@pytest.mark.parametrize("retain", [False, True], ids=["recomputed", "retained"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "size", "entries", "width"),
    [
        (1, 1, 1, 64),
        (1, 576, 700, 512),
        (2, 3, 257, 256),
        (5, 33, 1000, 300),
        (7, 64, 513, 512),
        (97, 65, 600, 512),
        (131, 300, 300, 300),
    ],
)
def test_odd_sizes(
    rows: int, size: int, entries: int, width: int, dtype: torch.dtype, retain: bool
) -> None:
    assert_as_good_as_eager(lambda: make_case(rows, size, entries, width, dtype), retain=retain)


@pytest.mark.usefixtures("isa")
def test_depth_of_several_blocks() -> None:
    assert_as_good_as_eager(lambda: make_case(12, 1100, 300, 300, torch.float32))
    assert_as_good_as_eager(lambda: make_case(1100, 20, 300, 300, torch.bfloat16))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [1e-4, 20.0], ids=["near zero", "capped"])
def test_bias_softcap_and_scale(dtype: torch.dtype, spread: float) -> None:
    def case_of(bias: bool) -> Case:
        return make_case(19, 40, 500, 256, dtype, spread=spread, bias=bias, scale=-0.7, softcap=5.0)

    assert_as_good_as_eager(lambda: case_of(bias=True))
    assert_as_good_as_eager(lambda: case_of(bias=False), retain=True)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_of_another_dtype(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """As under autocast: products in the operands' dtype, dweight in the weight's."""
    case = make_case(23, 48, 600, 512, dtype, weight_dtype=weight_dtype)
    got, plain = (walk(backend, case, retain=False) for backend in (cpu, eager))
    assert got.dweight.dtype == weight_dtype
    rounded = replace(case, head=replace(case.head, weight=case.head.weight.to(dtype)))
    truth = walk(eager, rounded.to(torch.float64), retain=False)
    floor = max(FLOOR[dtype], FLOOR[weight_dtype])
    for name in ("dhidden", "dweight", "dbias"):
        mine, true = getattr(got, name), getattr(truth, name)
        assert error(mine, true) <= 2 * error(getattr(plain, name), true) + floor, name


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_retained_rows_are_found_by_index_and_left_as_they_are(dtype: torch.dtype) -> None:
    case = make_case(41, 24, 700, 512, dtype)
    kept_rows = torch.tensor([3, 4, 9, 33, 40])
    draws = itertools.chain([case], (make_case(41, 24, 700, 512, dtype) for _ in range(15)))
    assert_as_good_as_eager(lambda: next(draws), retain=True, kept_rows=kept_rows)
    before = walk(cpu, case, retain=True).retained
    after = walk(cpu, case, retain=True, kept_rows=kept_rows).retained
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first.memory, second.memory)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_size_of_a_retained_tile_is_that_of_the_library(isa: str, dtype: torch.dtype) -> None:
    number = _native.ISAS.index(isa)
    for rows, entries in itertools.product((1, 2, 15, 16, 17, 100, 1000), (1, 255, 256, 257, 2048)):
        size = cpu.retained_bytes(rows, entries, precision_of(dtype))
        assert size == cpu._operators().retained_bytes(number, dtype, rows, entries)


@pytest.mark.usefixtures("isa")
def test_a_short_buffer_is_refused() -> None:
    case = make_case(5, 8, 300, 300, torch.bfloat16)
    (tile,), head = case.cut, case.head
    size = cpu.retained_bytes(head.rows, tile.width, head.precision)
    state = RowState(*(torch.zeros(head.rows) for _ in range(3)), None, None, None)
    scratch = cpu.scratch(head, tile.width, backward=False)
    whole = RetainedSlot(torch.empty(size, dtype=torch.uint8), head.rows)
    cpu.begin(head, scratch, backward=False)
    cpu.score_tile(head, tile, state, whole, scratch, True)
    for memory, rows in ((whole.memory[:-1], head.rows), (whole.memory, head.rows - 1)):
        slot = RetainedSlot(memory, rows)
        with pytest.raises(RuntimeError, match="retained"):
            cpu.score_tile(head, tile, state, slot, scratch, True)
    scratch = cpu.scratch(head, tile.width, backward=True)
    with pytest.raises(RuntimeError, match="packed_hidden"):
        cpu.begin(head, (scratch[0], scratch[1][:-1], *scratch[2:]), backward=True)


@pytest.mark.usefixtures("isa")
def test_infinite_and_nan_logits() -> None:
    case = make_case(6, 8, 600, 256, torch.float32, bias=True)
    assert case.head.bias is not None
    case.head.bias[:300] = -torch.inf
    case.head.hidden[2, 0] = torch.nan
    got, truth = walk(cpu, case, retain=False), walk(eager, case, retain=False)
    assert got.row_sum[2].isnan() and got.entropy_sum[2].isnan()
    assert got.dhidden[2].isnan().all()
    good = torch.tensor([0, 1, 3, 4, 5])
    for name in ("row_max", "row_sum", "entropy_sum", "sum_sq_probs"):
        torch.testing.assert_close(getattr(got, name)[good], getattr(truth, name)[good])


@pytest.mark.usefixtures("isa")
def test_logp_is_never_positive() -> None:
    for spread in (0.01, 3.0, 100.0):
        case = make_case(64, 16, 700, 256, torch.float32, spread=spread)
        got = walk(cpu, case, retain=False)
        assert ((got.target_logit - got.row_max) - got.row_sum.log() <= 0).all()


@pytest.mark.usefixtures("isa")
def test_the_number_of_threads_does_not_change_a_bit() -> None:
    case = make_case(77, 100, 1300, 512, torch.bfloat16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(walk(cpu, case, retain=False))
    finally:
        torch.set_num_threads(threads)
    for field in fields(Result):
        if field.name != "retained":
            first, *others = (getattr(result, field.name) for result in results)
            assert all(torch.equal(first, other) for other in others), field.name


@pytest.mark.usefixtures("isa")
def test_scratch_stays_small() -> None:
    """With the fp32 dhidden, under 5 % of full fp32 logits at N=4096, D=1024, V=65536."""
    rows, size, vocabulary = 4096, 1024, 65536
    hidden = torch.empty(rows, size, dtype=torch.bfloat16)
    library = _native.cpu_library()
    assert isinstance(library, _native.CpuLibrary)
    isa, width = _native.ISAS.index(library.isa), cpu.traits("cpu").dense_width
    *shared, thread = cpu._operators().scratch_sizes(isa, hidden, width, True)
    if library.isa in ("avx512_bf16", "avx512_amx"):
        assert sum(shared) + 2 * thread + 4 * rows * size < 0.05 * 4 * rows * vocabulary
    assert thread < (2_550_000 if library.isa == "avx512_amx" else 600_000)
