"""A pytest plugin: functions proven and timed in tests, by the fixture `kernelbench`.

    def test_fused(kernelbench):
        kernelbench.check(fused, against=reference, args="x=64x129:bf16, w=129:bf16")
        times = kernelbench.bench(fused, against=reference, args="x=4096x1024:bf16, w=1024:bf16")
        kernelbench.assert_not_slower(times, than="main.jsonl", by="3%")

Nothing of kernelbench is imported, and no test is touched, unless a test asks for the fixture.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kernelbench.report.records import Records

TABLES = "kernelbench tables"  # the name of a test's property that holds them


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernelbench", "kernels, proven and timed")
    group.addoption(
        "--kernelbench-skip-timing",
        action="store_true",
        help="Prove kernels right, and time none.",
    )
    group.addoption(
        "--kernelbench-out",
        metavar="DIR",
        default="results",
        help="Make the run folders of what was timed in this one.",
    )
    group.addoption(
        "--kernelbench-save",
        metavar="FILE",
        help="Append what was timed to this file, for assert_not_slower(than=FILE).",
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, [])
        if getattr(report, "when", "") == "call"
    ]
    tables = [
        (report.nodeid, text)
        for report in reports
        for name, text in report.user_properties
        if name == TABLES
    ]
    if tables:
        terminalreporter.section("kernelbench")
    for nodeid, text in tables:
        terminalreporter.write_line(f"{nodeid}\n{text}\n")


@pytest.fixture
def kernelbench(request: pytest.FixtureRequest) -> "Kernelbench":
    """Proves functions, times them, and holds the times against earlier ones."""
    return Kernelbench(request.config, request.node.user_properties)


class Kernelbench:
    """What a test does with kernels. properties: the test's, which are shown when all have run."""

    def __init__(self, config: pytest.Config, properties: list[tuple[str, object]]) -> None:
        self._config, self._properties = config, properties

    def check(self, *candidates: Callable[..., Any] | str, **asked: Any) -> "Records":
        """Prove functions right; arguments as those of `kernelbench.bench`.

        Raises AssertionError where one is not, or the reference is not.
        """
        from kernelbench.verbs.here import bench

        return _hold_right(bench(*candidates, timing=False, **asked))

    def bench(self, *candidates: Callable[..., Any] | str, **asked: Any) -> "Records":
        """Prove functions right and time them together; arguments as those of `kernelbench.bench`.
        What was timed is kept in a run folder. Without a GPU, or with --kernelbench-skip-timing,
        nothing is timed.

        Raises AssertionError where one is not right, and UsageError where other processes of the
        test run would use the GPU meanwhile.
        """
        from kernelbench.verbs.here import bench

        if not self._times(asked.get("device", "auto")):
            return self.check(*candidates, **asked)
        _hold_alone(self._config)
        out = self._config.getoption("--kernelbench-out")
        records = _hold_right(bench(*candidates, out=out, **asked))
        self._properties.append((TABLES, str(records)))
        if file := self._config.getoption("--kernelbench-save"):
            from kernelbench import files

            files.append(file, "".join(f"{record.to_json()}\n" for record in records))
        return records

    def assert_not_slower(self, records: "Records", *, than: str | Path, by: str = "3%") -> None:
        """Hold what `bench` timed against earlier records, by the rules of `kernelbench compare`.

        than: a file of --kernelbench-save, or a run folder. by: the change that counts as none.
        Skips the test where nothing was timed. Raises AssertionError where a function is slower by
        more, beyond noise, and UsageError for a file that has none of these records.
        """
        from kernelbench.compare.regression import regressions

        if not any(record.timing for record in records):
            pytest.skip("nothing was timed: no GPU, or --kernelbench-skip-timing")
        slower = regressions(records, Path(than), by)
        assert not slower, "\n".join([f"against {than}:", *slower])

    def _times(self, device: str) -> bool:
        import torch

        skips = self._config.getoption("--kernelbench-skip-timing")
        return not skips and device != "cpu" and torch.cuda.is_available()


def _hold_right(records: "Records") -> "Records":
    bad = [f"{r.case} {r.provider}: {r.status}: {r.reason}" for r in records if r.status.bad]
    assert not bad, "\n".join(bad)
    return records


def _hold_alone(config: pytest.Config) -> None:
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        from kernelbench.spec import UsageError

        raise UsageError(
            f"{workers} processes of this test run would use the GPU at once, and no time would "
            "be true: pytest -n 0, or --kernelbench-skip-timing"
        )
