"""How nsys is found, started and judged, with executables that only play nsys."""

import os
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nsys_export import H200, Export

from kernelbench.profile import nsys, tool
from kernelbench.profile.nsys import program
from kernelbench.profile.tool import ToolError

SCRIPT = """#!/bin/sh
for word in "$@"; do
  case "$word" in --output=*) out="${{word#--output=}}";; esac
done
cd {folder}
echo "$@" >> calls
case "$1" in
--version) {version};;
profile)
  env > env
  {profile};;
export) {export};;
shutdown) echo "$@" >> shutdown;;
esac
"""
VERSION = "echo 'NVIDIA Nsight Systems version 2023.4.4.54-234433681190v0'"
REPORT = 'echo report > "$out.nsys-rep"'
EXPORT = f'cp {shlex.quote(str(H200))} "$out"'
CHILD = ["python", "child.py", "an argument"]
STARTS = nsys.START_FAILURES[0]


class Fake:
    """An executable that plays nsys, and a folder with a space for what it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stem = folder / "a run" / "case 1.5"
        self.stem.parent.mkdir()
        self.path = folder / "target-linux-x64" / "nsys"
        self.path.parent.mkdir()

    def found(
        self, profile: str = REPORT, *, export: str = EXPORT, importer: str | None = None
    ) -> nsys.Program:
        self.write(self.path, profile=profile, export=export)
        if importer is None:
            return nsys.Program(self.path, "2023.4.4")
        path = self.folder / "host-linux-x64" / "QdstrmImporter"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{importer}\n")
        path.chmod(0o755)
        return nsys.Program(self.path, "2023.4.4", path)

    def write(self, path: Path, *, version: str = VERSION, **parts: str) -> Path:
        filled = {"profile": REPORT, "export": EXPORT, **parts}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            SCRIPT.format(folder=shlex.quote(str(self.folder)), version=version, **filled)
        )
        path.chmod(0o755)
        return path

    def capture(self, *args: str, **kwargs: Any) -> nsys.Report:
        known = ("cuda", "timeout", "gpu_metrics", "extra")
        capturing = {"cuda": True, "timeout": 20.0} | {
            name: kwargs.pop(name) for name in known if name in kwargs
        }
        found = self.found(*args, **kwargs)
        return nsys.capture(found, CHILD, self.stem, **capturing)  # type: ignore[arg-type]

    def fails(self, *args: str, **kwargs: Any) -> str:
        """The message of the error of a capture; it is one line."""
        with pytest.raises(ToolError) as raised:
            self.capture(*args, **kwargs)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def profiled(self) -> list[str]:
        return [line for line in self.lines("calls") if line.startswith("profile ")]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """No nsys but those of the given globs; returns an environment with an empty PATH."""

    def only(*places: str) -> dict[str, str]:
        monkeypatch.setattr(program, "PLACES", places)
        monkeypatch.setattr(program, "IMPORTERS", ())
        return {"PATH": "/nowhere"}

    return only


def test_a_capture_brings_ranges_and_leaves_its_files(fake: Fake) -> None:
    report = fake.capture("echo hello; " + REPORT)
    assert [one.name for one in report.ranges] == ["kb.rms_norm.eager", "kb.add.triton"]
    folder = fake.stem.parent
    assert report.rep == folder / "case 1.5.nsys-rep"
    assert report.sqlite == folder / "case 1.5.sqlite"
    assert (report.qdstrm, report.notes, report.version) == (None, (), "2023.4.4")
    assert sorted(path.name for path in folder.iterdir()) == [
        "case 1.5.log", "case 1.5.nsys-rep", "case 1.5.sqlite",
    ]  # fmt: skip
    assert (folder / "case 1.5.log").read_text() == "hello\n"


def test_on_a_gpu_the_child_says_what_is_captured_and_outlives_it(fake: Fake) -> None:
    fake.capture(cuda=True)
    (line,) = fake.profiled
    for flag in (
        "--trace=cuda,nvtx", "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
        "--kill=none", "--cuda-graph-trace=node", "--sample=none", "--cpuctxsw=none",
        "--force-overwrite=true",
    ):  # fmt: skip
        assert f" {flag} " in line
    assert line.endswith(" ".join(CHILD))


def test_without_a_gpu_the_whole_child_is_captured(fake: Fake) -> None:
    report = fake.capture(cuda=False)
    (line,) = fake.profiled
    assert " --trace=nvtx,osrt " in line
    assert "capture-range" not in line
    assert report.notes == ()


def test_further_options_go_before_the_child(fake: Fake) -> None:
    nsys.capture(
        fake.found(), CHILD, fake.stem, cuda=False, extra=["--stats=false"], timeout=20, env={}
    )
    assert fake.profiled[0].endswith("--stats=false " + " ".join(CHILD))


def test_a_percent_sign_in_a_path_is_no_pattern_of_nsys(fake: Fake) -> None:
    fake.stem = fake.stem.with_name("50%p")
    fake.fails()  # the fake takes the doubled sign literally
    assert "/50%%p" in fake.profiled[0]


def test_secrets_of_the_environment_stay_out(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    fake.capture()
    seen = {line.partition("=")[0] for line in fake.lines("env")}
    assert "PATH" in seen
    assert "SECRET_TOKEN" not in seen


@pytest.mark.parametrize("stem", ["missing/x", "file/x"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(
    fake: Fake, stem: str
) -> None:
    (fake.folder / "file").write_text("")
    fake.stem = fake.folder / stem
    assert "nsys cannot write its report there" in fake.fails()
    assert not fake.profiled


@pytest.mark.parametrize(
    ("code", "said"),
    [(3, r"ended with code 3;"), (137, r"ended with code 137 \(SIGKILL\)"), (134, "SIGABRT")],
)
def test_a_child_that_fails_is_told_with_its_last_lines(fake: Fake, code: int, said: str) -> None:
    progress = "Generating '/tmp/x.qdstrm'\\n[1/1] [0%%  ] x.nsys-rep\\rGenerated:\\n    /x\\n"
    message = fake.fails(
        f"echo Traceback; echo 'no such axis'; {REPORT}; printf \"{progress}\"; exit {code}"
    )
    assert re.search(said, message)
    assert message.endswith("case 1.5.log: Traceback | no such axis")
    assert "case 1.5.nsys-rep shows it until then" in message
    assert not fake.lines("shutdown")


def test_nsys_killed_itself_takes_what_it_started_along(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "isolation", tuple)  # the first of a namespace cannot kill itself
    assert "was killed by signal 9 (SIGKILL) and wrote no report" in fake.fails("kill -9 $$")
    assert len(fake.lines("shutdown")) == 1


def test_a_hang_ends_in_time_and_nothing_goes_on(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "isolation", tuple)  # what a namespace holds ends with it
    start = time.monotonic()
    message = fake.fails("echo measuring; sleep 60", timeout=0.5)
    assert time.monotonic() - start < 10
    assert "did not end within 0.5 s and were killed" in message
    assert "measuring" in message
    (shutdown,) = fake.lines("shutdown")
    session = re.search(r"--session-new=(\S+)", fake.profiled[0])
    assert session is not None
    assert shutdown == f"shutdown --session={session[1]} --kill=sigkill"


def test_ctrl_c_leaves_nothing_behind(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tool.run
    monkeypatch.setattr(tool, "isolation", tuple)

    def interrupted(command: Any, *rest: Any) -> tool.ProcessEnd:
        if "profile" in command:
            raise KeyboardInterrupt
        return run(command, *rest)

    monkeypatch.setattr(tool, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fake.capture()
    assert len(fake.lines("shutdown")) == 1


def test_a_flood_of_output_goes_to_the_log_alone(fake: Fake) -> None:
    flood = "head -c 50000000 /dev/zero | tr '\\0' x"
    assert fake.capture(f"{flood}; {REPORT}").ranges
    assert fake.stem.with_name("case 1.5.log").stat().st_size == 50_000_000


def test_of_a_flood_a_message_shows_the_end(fake: Fake) -> None:
    message = fake.fails("head -c 50000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")
    assert message.endswith(" | the end")
    assert len(message) < 1000


def test_no_report_on_a_gpu_asks_for_the_capture_range(fake: Fake) -> None:
    message = fake.fails("echo Generated:")
    assert "ended well without a report" in message
    assert "was cudaProfilerStart never called?" in message


def test_a_report_that_went_elsewhere_is_named(fake: Fake) -> None:
    message = fake.fails("echo Generated:; echo '    /tmp/nsys-report-1f.nsys-rep'", cuda=False)
    assert "it wrote /tmp/nsys-report-1f.nsys-rep instead" in message
    assert "cudaProfilerStart" not in message


def test_an_empty_report_is_none(fake: Fake) -> None:
    assert "without a report" in fake.fails(': > "$out.nsys-rep"')


def test_an_older_report_is_not_taken_for_the_new_one(fake: Fake) -> None:
    fake.capture()
    for suffix in (".nsys-rep", ".sqlite"):
        assert fake.stem.with_name(fake.stem.name + suffix).exists()
    assert "without a report" in fake.fails("true")
    assert "could not export" in fake.fails(export="true")


def test_a_start_that_failed_is_tried_once_more(fake: Fake) -> None:
    once = f"if [ ! -e tried ]; then touch tried; echo '{STARTS}.'; exit 1; fi; {REPORT}"
    report = fake.capture(once)
    assert report.ranges
    assert len(fake.profiled) == 2
    assert [f"tried again: {STARTS}" in note for note in report.notes] == [True]


def test_a_start_that_fails_twice_is_an_error(fake: Fake) -> None:
    message = fake.fails(f"echo '{STARTS}.'; exit 1")
    assert "ended with code 1 and wrote no report" in message
    assert STARTS in message
    assert len(fake.profiled) == 2


def test_no_other_failure_is_tried_again(fake: Fake) -> None:
    assert "out of memory" in fake.fails("echo out of memory; exit 1")
    assert len(fake.profiled) == 1


def test_a_child_that_says_the_same_is_not_run_again(fake: Fake) -> None:
    assert fake.capture(f"echo '{STARTS}'; {REPORT}").notes == ()
    assert "ended with code 3" in fake.fails(f"echo '{STARTS}'; {REPORT}; exit 3")
    assert len(fake.profiled) == 2


def test_an_option_that_an_old_nsys_lacks_is_told_as_that(fake: Fake) -> None:
    message = fake.fails("echo \"unrecognised option '--cuda-graph-trace=node'\"; exit 1")
    assert "which lacks an option: unrecognised option '--cuda-graph-trace=node'" in message
    assert "tools/nsys_bundle.sh" in message


def test_a_further_option_that_there_is_not_is_told_as_that(fake: Fake) -> None:
    says = "echo \"unrecognised option '--no-such=1'\"; exit 1"
    message = fake.fails(says, extra=["--no-such=1"])
    assert message == "nsys has no option --no-such: see `nsys profile --help`"
    assert "which lacks an option" in fake.fails(says, extra=["--other"])


def test_a_report_newer_than_the_nsys_that_reads_it(fake: Fake) -> None:
    newer = "echo Report was created in version 2025.3, newer than your current version; exit 1"
    message = fake.fails(export=newer)
    assert "could not export" in message
    assert "the report is newer than this nsys" in message
    assert "nsys export -t sqlite" in message
    assert fake.stem.with_name("case 1.5.nsys-rep").exists()


def test_an_export_without_our_ranges_is_an_error(fake: Fake, tmp_path: Path) -> None:
    empty = Export.copied(tmp_path / "empty.sqlite")
    empty.range("somebody's", 10, 20)
    empty.range("kb.open", 30, None)
    message = fake.fails(export=f'cp {shlex.quote(str(empty.path))} "$out"')
    assert "holds no range kb.* of the NVTX domain kernelbench; kb.open had no end" in message
    assert "open_ranges" in message


def test_what_no_range_launched_is_noted(fake: Fake, tmp_path: Path) -> None:
    export = Export.copied(tmp_path / "some.sqlite")
    export.range("kb.a", 10, 20)
    export.range("kb.open", 30, None)
    export.launched("in it", 100, 110, at=15)
    export.launched("outside", 120, 130, at=25)
    report = fake.capture(export=f'cp {shlex.quote(str(export.path))} "$out"')
    outside, endless = report.notes
    assert outside.startswith("1 of 2 GPU operations were launched outside every range")
    assert "the capture ended within kb.open" in endless


@pytest.mark.parametrize(("cuda", "notes"), [(True, 1), (False, 0)])
def test_a_gpu_that_did_nothing_is_noted(
    fake: Fake, tmp_path: Path, cuda: bool, notes: int
) -> None:
    export = Export.copied(tmp_path / "idle.sqlite")
    export.range("kb.a", 10, 20)
    report = fake.capture(export=f'cp {shlex.quote(str(export.path))} "$out"', cuda=cuda)
    assert ["no GPU operation was seen" in note for note in report.notes] == [True] * notes


QDSTRM = 'echo raw > "$out.qdstrm"'
IMPORT = 'echo report > "$4"'  # -i FILE -o FILE


def test_a_raw_capture_is_imported_where_that_can_be(fake: Fake) -> None:
    report = fake.capture(QDSTRM, importer=IMPORT)
    assert report.ranges
    assert report.qdstrm is None
    assert not fake.stem.with_name("case 1.5.qdstrm").exists()


@pytest.mark.parametrize(
    ("importer", "why"),
    [
        (None, "has no QdstrmImporter beside it"),
        ("echo cannot open libssh.so; exit 127", "(ended with code 127): cannot open libssh.so"),
        ("echo says nothing wrong", "could not make a report"),
    ],
)
def test_a_raw_capture_that_cannot_be_imported_is_kept(
    fake: Fake, importer: str | None, why: str
) -> None:
    report = fake.capture(QDSTRM, importer=importer)
    assert (report.rep, report.sqlite, report.ranges) == (None, None, ())
    assert report.qdstrm == fake.stem.with_name("case 1.5.qdstrm")
    assert report.qdstrm.read_text() == "raw\n"
    (note,) = report.notes
    assert why in note
    assert f"Keep {report.qdstrm}; on a machine with Nsight Systems 2023.4.4 or newer" in note
    assert "QdstrmImporter -i case 1.5.qdstrm" in note


HELP = """echo 'Possible {0} values are:'; echo '  0: GPU'; echo '  {1}: Select GPUs'; exit 0"""
UNKNOWN = "echo \"unrecognised option '$2'\"; exit 1"


@pytest.mark.parametrize(
    ("new", "old", "option"),
    [
        (HELP.format("x", "cuda-visible"), "exit 9", "--gpu-metrics-devices=cuda-visible"),
        (HELP.format("x", "all"), "exit 9", "--gpu-metrics-devices=all"),
        (UNKNOWN, HELP.format("x", "all"), "--gpu-metrics-device=all"),
    ],
)
def test_gpu_metrics_are_asked_for_as_the_version_wants(
    fake: Fake, new: str, old: str, option: str
) -> None:
    profile = f'case "$2" in *devices=help) {new};; *device=help) {old};; esac; {REPORT}'
    report = fake.capture(profile, gpu_metrics=True)
    assert f" {option} " in fake.profiled[-1]
    assert report.notes == ()


def test_gpu_metrics_that_are_not_permitted_are_a_note(fake: Fake) -> None:
    denied = "echo 'Insufficient privilege, see ERR_NVGPUCTRPERM.'; exit 1"
    report = fake.capture(f'case "$2" in *=help) {denied};; esac; {REPORT}', gpu_metrics=True)
    (note,) = report.notes
    assert note.startswith("GPU metrics were not sampled: Insufficient privilege")
    assert "NVreg_RestrictProfilingToAdminUsers=0" in note
    assert "gpu-metrics" not in fake.profiled[-1]
    assert report.ranges


def test_an_nsys_on_the_path_goes_first(fake: Fake, nowhere: Callable[..., dict[str, str]]) -> None:
    elsewhere = fake.write(fake.folder / "opt" / "nsys")
    on_path = fake.write(fake.folder / "bin" / "nsys")
    env = nowhere(str(elsewhere))
    assert nsys.find(env).path == elsewhere
    found = nsys.find({"PATH": str(on_path.parent)})
    assert (found.path, found.version) == (on_path, "2023.4.4.54-234433681190v0")
    assert found.importer is None


def test_the_newest_of_a_place_is_taken_and_its_importer(
    fake: Fake, nowhere: Callable[..., dict[str, str]]
) -> None:
    for year in ("2023", "2025", "2024"):
        path = fake.write(fake.folder / year / "target-linux-x64" / "nsys")
        (fake.folder / year / "bin").mkdir()
        (fake.folder / year / "bin" / "nsys").symlink_to("../target-linux-x64/nsys")
    importer = fake.write(fake.folder / "2025" / "host-linux-x64" / "QdstrmImporter")
    found = nsys.find(nowhere(f"{fake.folder}/*/bin/nsys", str(path)))
    assert found.path == fake.folder / "2025" / "bin" / "nsys"
    assert found.importer == importer


def test_an_importer_of_another_nsys_does_too(
    fake: Fake, nowhere: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake.write(fake.folder / "ncu" / "target-linux-x64" / "nsys")
    importer = fake.write(fake.folder / "other" / "host-linux-x64" / "QdstrmImporter")
    env = nowhere(str(path))
    monkeypatch.setattr(program, "IMPORTERS", (f"{fake.folder}/other/host-linux-*/QdstrmImporter",))
    assert nsys.find(env).importer == importer


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("echo NVIDIA Nsight Systems version 2020.4.3.7-10543b6", "is version 2020.4.3.7-10543b6"),
        ("echo segmentation fault; exit 1", "does not say its version, but 'segmentation fault'"),
        ("exit 1", "does not say its version, but 'nothing'"),
    ],
)
def test_an_nsys_that_does_not_do_is_told_and_the_next_taken(
    fake: Fake, nowhere: Callable[..., dict[str, str]], version: str, why: str
) -> None:
    old = fake.write(fake.folder / "old" / "nsys", version=version)
    good = fake.write(fake.folder / "good" / "nsys")
    with pytest.raises(ToolError) as raised:
        nsys.find(nowhere(str(old)))
    assert why in str(raised.value)
    assert nsys.find(nowhere(str(old), str(good))).path == good


def test_an_nsys_in_a_folder_with_a_space_cannot_start(
    fake: Fake, nowhere: Callable[..., dict[str, str]]
) -> None:
    spaced = fake.write(fake.folder / "cache dir" / "nsys")
    with pytest.raises(ToolError, match="cannot start its parts from a folder with a space"):
        nsys.find(nowhere(str(spaced)))


@pytest.mark.parametrize(
    "version", ["2021.4.1.73-08591f7", "2022.4.2.50", "2025.3.1.90-253135822126v0", "2026.10.1"]
)
def test_newer_versions_are_taken(
    fake: Fake, nowhere: Callable[..., dict[str, str]], version: str
) -> None:
    path = fake.write(
        fake.folder / "x" / "nsys", version=f"echo NVIDIA Nsight Systems version {version}"
    )
    assert nsys.find(nowhere(str(path))).version == version


def test_without_nsys_the_places_and_the_remedies_are_said(
    nowhere: Callable[..., dict[str, str]],
) -> None:
    with pytest.raises(ToolError) as raised:
        nsys.find(nowhere("/nowhere/*/nsys"))
    for word in ("PATH", "/nowhere/*/nsys", "there is none", "nsight-systems", "nsys_bundle.sh"):
        assert word in str(raised.value)


def test_the_path_of_this_process_is_the_default(
    fake: Fake, nowhere: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere()
    path = fake.write(fake.folder / "bin" / "nsys")
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    assert nsys.find().path == path
