"""Runs as they are kept: what is packed is read as it was."""

import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbench import store
from kernelbench.store.kept import packed, unpacked

ROOT = Path(__file__).parent.parent
RUN = ROOT / "results/h200/20261130T202753Z-rcm-seed-h200"


def line(**timing: object) -> bytes:
    return json.dumps({"status": "ok", "timing": timing}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("samples", "kept"),
    [
        ([*range(96, 96 + 8 * 32, 32)], {"from": 96, "step": 32, "each": None, "text": "01234567"}),
        ([[7, 9], [11, 7, 7, 7, 7, 7]], {"from": 7, "step": 2, "each": [2, 6], "text": "01200000"}),
        ([[1, 2, 3, 4], [8, 7, 6, 5]], {"from": 1, "step": 1, "each": 4, "text": "01237654"}),
        ([5] * 9, {"from": 5, "step": 1, "each": None, "text": "0" * 9}),
        ([[], [3] * 8], {"from": 3, "step": 1, "each": [0, 8], "text": "0" * 8}),
    ],
)
def test_a_sample_is_a_character(samples: list[object], kept: object) -> None:
    given = line(blocks_ns=samples)
    assert json.loads(packed(given))["timing"]["blocks_ns"] == kept
    assert unpacked(packed(given)) == given


def test_any_count_has_a_character_that_ends_no_line() -> None:
    samples = [*range(1_111_000)]
    small = packed(line(blocks_ns=samples))
    assert unpacked(small) == line(blocks_ns=samples)
    text = small.decode()
    assert text.splitlines() == [text] == text.split("\n")
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0xA0 for c in text)
    far = line(blocks_ns=[*range(8), 1_200_000])
    assert packed(far) == far


@pytest.mark.parametrize(
    "given",
    [
        line(host_ns=[1, 2, 3]),
        line(blocks_ns=[[]], stop="time", missing={"graph": 'it says "each":'}),
        line(blocks_ns=[[1, 2], 3, 4, 5, 6, 7, 8, 9]),
        line(blocks_ns=[0.5] * 9),
        b'{"timing":null}',
        b'{"timing":{"a":[0,0,0,0,0,0,0,0]},"reason":"half a character \\udc80"}',
        b'{"timing":{"a":[0,0,0,0,0,0,0,0]},"reason":"and as bytes \xed\xb2\x80"}',
    ],
)
def test_what_is_no_list_of_samples_stays(given: bytes) -> None:
    assert packed(given) == given == unpacked(given)


@pytest.mark.parametrize(
    "damaged",
    [b'{"timing":{"a":{"from":1,"step":1,"each":[1,', b'["each":', b'{"x":{"each":1}}',
     b'{"timing":{"a":{"from":"x","step":1,"each":null,"text":"0"}}}',
     b'{"timing":{"a":{"from":1,"step":1,"each":0,"text":"0"}}}',
     b'{"timing":{"a":{"from":1,"step":1,"each":[1,3],"text":"000"}}}'],
)  # fmt: skip
def test_a_damaged_line_is_left_to_who_reads_it(damaged: bytes) -> None:
    assert unpacked(damaged) == damaged


def test_a_run_is_kept_whole(tmp_path: Path) -> None:
    plain = tmp_path / "runs" / RUN.name
    shutil.copytree(RUN, plain)
    records = store.lines(plain, "records.jsonl")
    (plain / "records.jsonl.xz").unlink()
    (plain / "records.jsonl").write_bytes(b"\n".join(records) + b"\n")
    kept = tmp_path / "kept"
    command = [sys.executable, str(ROOT / "tools/keep.py"), str(plain), str(kept)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert store.lines(kept / RUN.name, "records.jsonl") == records
    assert store.read(kept / RUN.name) == store.read(plain) == store.read(RUN)
    whole = lzma.compress((plain / "records.jsonl").read_bytes(), preset=9 | lzma.PRESET_EXTREME)
    size = (kept / RUN.name / "records.jsonl.xz").stat().st_size
    assert size < 0.85 * len(whole)
    assert (kept / RUN.name / "results.csv.xz").exists()
    (plain / "measured.jsonl").write_bytes(b"{}\n")
    in_place = [*command[:-1], str(plain.parent)]
    subprocess.run(in_place, check=True, cwd=ROOT)
    assert {path.suffix for path in plain.iterdir()} == {".json", ".xz"}
    assert store.lines(plain, "measured.jsonl") == [b"{}"]
    assert store.read_with_problems(plain) == (store.read(RUN), [])
    facts = json.loads((plain / "manifest.json").read_text())
    for git in ({**facts["git"], "dirty": True}, None):
        (plain / "manifest.json").write_text(json.dumps(facts | {"git": git}))
        failed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        assert failed.returncode == 1 and "its tree was not clean" in failed.stderr
