"""A record and its line: strict JSON that comes back equal; damage is never a traceback."""

import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_metrics import error, record, timing

from kernelbench import metrics
from kernelbench.report import terminal
from kernelbench.spec import (
    Accuracy,
    KernelbenchError,
    OutputError,
    Role,
    RunRecord,
    Status,
    Timing,
    Traffic,
)

words = st.text(min_size=1, max_size=12)
reals = st.floats()
finite = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(0, 2**62 - 1)
samples = st.lists(whole, max_size=4).map(tuple)
blocks = st.lists(samples, max_size=3).map(tuple)
maybe = st.none
timings = st.builds(
    Timing,
    timer=st.sampled_from(["gated", "ungated", "host"]),
    blocks_ns=blocks,
    again_ns=blocks,
    overhead_ns=whole,
    kernel_ns=samples,
    host_ns=samples,
    graph_ns=samples,
    graph_nodes=maybe() | finite,
    missing=st.dictionaries(words, words, max_size=2),
    stop=st.text(max_size=5),
)
errors = st.builds(
    OutputError,
    name=words,
    rel=reals,
    worst=reals,
    rel_budget=reals,
    worst_budget=reals,
    baseline_rel=maybe() | reals,
    baseline_worst=maybe() | reals,
)
traffic = st.builds(Traffic, tensor=words, read=whole, write=whole)
values = whole | finite | st.booleans() | words
made = st.builds(
    RunRecord,
    run_id=words,
    utc=words,
    family=words,
    provider=words,
    case=words,
    status=st.sampled_from(Status),
    role=st.sampled_from(Role),
    accuracy=st.sampled_from(Accuracy),
    mode=words,
    dtype=words,
    axes=st.dictionaries(words, values, min_size=1, max_size=3),
    label=st.text(max_size=9),
    reason=st.text(max_size=40),
    detail=st.text(max_size=40),
    flags=st.lists(words, max_size=2).map(tuple),
    source=st.text(max_size=9),
    group=st.text(max_size=9),
    seed=whole,
    gpu=st.text(max_size=9),
    config=maybe() | st.dictionaries(words, values, min_size=1, max_size=3),
    compile_s=maybe() | reals,
    flops=maybe() | whole,
    read_bytes=maybe() | whole,
    write_bytes=maybe() | whole,
    traffic=maybe() | st.lists(traffic, min_size=1, max_size=2).map(tuple),
    prepacked=st.booleans(),
    errors=st.lists(errors, max_size=2).map(tuple),
    timing=maybe() | timings,
    peak_bytes=maybe() | whole,
    ceilings=maybe() | st.dictionaries(words, reals, min_size=1, max_size=2),
    telemetry=maybe() | st.dictionaries(words, reals, min_size=1, max_size=2),
)


def strict(text: str) -> Any:
    """As parsers of other languages read JSON."""

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refused)


@settings(max_examples=150, deadline=None)
@given(made)
def test_a_record_survives_its_line(one: RunRecord) -> None:
    line = one.to_json()
    assert "\n" not in line
    strict(line)
    again = RunRecord.from_json(line.encode().decode())
    assert repr(again) == repr(one)  # where NaN is equal to itself
    assert again.to_json() == line


def test_numbers_that_json_has_not_are_text() -> None:
    bad = record(
        errors=(replace(error("y", 1, math.inf, math.inf), rel=math.nan, worst_budget=1.0),),
        ceilings={"read_gbps": -math.inf},
    )
    facts = strict(bad.to_json())
    assert [facts["errors"][0][n] for n in ("rel", "worst", "rel_budget")] == ["nan", "inf", "inf"]
    assert facts["ceilings"] == {"read_gbps": "-inf"}
    assert RunRecord.from_json(bad.to_json()) == bad  # math.nan itself comes back
    (once,) = RunRecord.from_json(bad.to_json().replace('"nan"', "NaN")).errors
    assert math.isnan(once.rel)  # as earlier versions wrote it


def test_text_is_not_taken_for_a_number_where_text_may_be() -> None:
    odd = record(axes={"inputs": "nan", "M": 1}, config={"mode": "inf", "shape": (1, (2, None))})
    assert RunRecord.from_json(odd.to_json()) == odd


WHOLE = record(
    errors=(error("y", 1e-3, 1e-2),),
    traffic=(Traffic("x", read=64, write=64),),
    timing=timing(10, kernel_ns=(9000,), missing={"graph": "raised"}),
    config={"rows": 4},
    telemetry={"sm_mhz": 1980.0},
    flags=("shared",),
    label="llama",
    compile_s=1.5,
)
FACTS = json.loads(WHOLE.to_json())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"axes": [1]}, "axes: list, not Mapping"),
        ({"axes": {"M": None}}, "axes: NoneType, not int"),
        ({"axes": {"M": 2**70}}, "axes: a whole number of more than 62 bits"),
        ({"case": []}, "case: list, not str"),
        ({"config": "x"}, "config: str, not Mapping"),
        ({"telemetry": [1]}, "telemetry: list, not Mapping"),
        ({"timing": {**FACTS["timing"], "blocks_ns": [["a"]]}}, "timing: blocks_ns: str, not int"),
        ({"timing": {**FACTS["timing"], "blocks_ns": [[1.5]]}}, "blocks_ns: float, not int"),
        ({"timing": {"blocks_ns": []}}, "missing 1 required .* 'timer'"),
        ({"errors": [{**FACTS["errors"][0], "rel": "x"}]}, "errors: rel: str, not float"),
        ({"ceilings": {"read_gbps": "x"}}, "ceilings: str, not float"),
        ({"ceilings": {"read_gbps": 10**400}}, "int too large"),
        ({"status": "fine"}, "status: 'fine' is not a valid Status"),
        ({"prepacked": 1}, "prepacked: int, not bool"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"schema": True}, "no 'schema'"),
        ({"schema": [[]]}, "no 'schema'"),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, Any], said: str) -> None:
    assert RunRecord.from_json(json.dumps(FACTS)) == WHOLE
    with pytest.raises(KernelbenchError, match=said):
        RunRecord.from_json(json.dumps(FACTS | change))


def shown(line: str) -> bool:
    """Whether a line is a record; then every reader of records must bear it."""
    try:
        found = RunRecord.from_json(line)
    except KernelbenchError as refused:
        str(refused).encode()
        return False
    records = [WHOLE, found]
    terminal.show_run(metrics.rows_of(records), Console(file=io.StringIO()))
    strict(json.dumps(metrics.rows_json(records), allow_nan=False))
    return True


def test_nesting_without_end_is_named() -> None:
    with pytest.raises(KernelbenchError, match="not JSON"):
        RunRecord.from_json("[" * 100_000)
    depths = [10, 100, 300, 400, 450, 500, 900, 100_000]
    lines = [json.dumps(FACTS | {"config": {"a": "deep"}}).replace('"deep"', "[" * n + "]" * n)
             for n in depths]  # fmt: skip
    answers = [shown(line) for line in lines]
    assert (answers[0], answers[-1]) == (True, False)


def test_half_a_character_can_be_printed() -> None:
    odd = RunRecord.from_json(json.dumps(FACTS | {"reason": "no \udcff"}))
    assert odd.reason == "no ?"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be changed."""
    below = list(value.items()) if isinstance(value, dict) else []
    below += enumerate(value) if isinstance(value, list) else []
    return [path, *(place for name, each in below for place in places(each, (*path, name)))]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
odd_text = st.sampled_from(["inf", "nan", "\udcff", "[/b]", "gated", "ok", "NaN", "a\nb"])
anything = st.recursive(
    scalars | odd_text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | odd_text, inner, max_size=3)
    ),
    max_leaves=6,
)
SHORT = json.loads(
    WHOLE.to_json().replace(
        json.dumps(FACTS["timing"]["blocks_ns"], separators=(",", ":")),
        "[[10,11],[12,13],[9,10]]",
    )
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_line_is_a_record_that_can_be_shown_or_one_clear_error(data: Any) -> None:
    facts = json.loads(json.dumps(SHORT))
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from([p for p in places(facts) if p]))
        target = facts
        for name in above:
            target = target[name]
        if data.draw(st.booleans()):
            target[last] = data.draw(anything)
        elif len(facts) > 1:
            del target[last]
    shown(json.dumps(facts))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 30), st.binary(max_size=6))
def test_a_line_with_other_bytes_in_it_likewise(start: int, length: int, put: bytes) -> None:
    line = json.dumps(SHORT).encode()
    shown((line[:start] + put + line[start + length :]).decode(errors="replace"))
