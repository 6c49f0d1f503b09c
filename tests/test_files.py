"""A path that a user names is written as a user means it, or refused with a reason."""

import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kernelbench import files
from kernelbench.spec import KernelbenchError

CODE = "from kernelbench import files; files.write({path!r}, {text!r})"


def test_a_new_file_has_the_mode_that_any_program_gives_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "new", "µs\n")
    finally:
        os.umask(before)
    assert (tmp_path / "new").read_text(encoding="utf-8") == "µs\n"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_an_old_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("a longer text than the new one")
    path.chmod(0o600)
    with path.open() as reader:
        files.write(path, b"new")
        assert reader.read() == "a longer text than the new one"  # whoever reads it meanwhile
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "file", tmp_path / "link", tmp_path / "second"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    second.symlink_to(link)
    files.write(second, "new")
    assert second.is_symlink() and link.is_symlink() and not target.is_symlink()
    assert target.read_text() == "new"


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(KernelbenchError, match="a: cannot be written"):
        files.write(tmp_path / "a", "x")


def test_devices_stay_devices() -> None:
    files.write("/dev/null", "x" * 100_000)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(KernelbenchError, match=r"/dev/full: cannot be written \(No space"):
        files.write("/dev/full", "x")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    path, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    files.write(path, "x" * 200_000)
    reader.join(10)
    assert got == [b"x" * 200_000] and stat.S_ISFIFO(path.stat().st_mode)


def test_a_file_that_is_to_stay_stays_for_root_too(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    path.chmod(0o444)
    (tmp_path / "link").symlink_to(path)
    for name in ("kept", "link"):
        with pytest.raises(KernelbenchError, match=r"read-only, mode 0444\)\. chmod u\+w it"):
            files.write(tmp_path / name, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "why"),
    [("", "Is a directory"), ("none/file", "No such file"), ("a/b", "Not a directory"),
     ("x" * 300, "name too long"), ("nul\0", "null byte")],
)  # fmt: skip
def test_what_cannot_be_written_says_why(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(KernelbenchError, match=f"cannot be written .*{why}"):
        files.write(tmp_path / name, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failure_midway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old"
    path.write_text("old")

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(KernelbenchError, match="No space left"):
        files.write(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_dash_is_stdout_in_utf_8_whatever_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(path="-", text="± µs\n")],
        capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout == "± µs\n".encode()
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    files.write("-", "text")
    assert stream.getvalue() == "text"
