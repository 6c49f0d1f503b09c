"""`kernelbench report`: what runs hold, in one of several formats, without torch."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from kernelbench import claims, files, metrics
from kernelbench.fanout import gather as fanout
from kernelbench.report import (
    claim_tables,
    export,
    failures,
    sheet,
    sheets,
    tables,
    terminal,
    trackers,
)
from kernelbench.report.choice import Choice, choice, table_names
from kernelbench.report.gather import Gathered, gather
from kernelbench.report.junit import junit
from kernelbench.report.markdown import append_summary, markdown
from kernelbench.report.progress import Output
from kernelbench.report.waits import Say, waiting
from kernelbench.spec import UsageError, suggest

if TYPE_CHECKING:
    from pandas import DataFrame

FORMATS = ("table", "md", "html", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What a report is to say of the runs in these folders, and where.

    tables: exactly these, instead of the default ones. out: a file instead of the terminal; for
    a tracker the folder of its files. baseline: the provider that speedups are to be against.
    """

    folders: tuple[Path, ...]
    families: tuple[str, ...] = ()
    format: str = "table"
    baseline: str = ""
    tables: tuple[str, ...] = ()
    out: Path | None = None
    junit: Path | None = None
    claims: bool = False
    to: str = ""


class _Report:
    """What was gathered, and each format of it made when it is asked for."""

    def __init__(self, gathered: Gathered, request: ReportRequest) -> None:
        self.gathered, self.request = gathered, request

    @cached_property
    def frame(self) -> "DataFrame":
        return metrics.frame_of(self.gathered.rows)

    @cached_property
    def shown(self) -> Choice:
        source = sheet.source(
            self.gathered.rows,
            self.gathered.measured,
            self.gathered.manifests,
            self.request.baseline,
        )
        return choice(self.request.tables, source)

    def markdown(self) -> str:
        text = markdown(self.shown, self.request.baseline)
        return f"{text}\n{claim_tables.markdown(self._claims())}" if self.request.claims else text

    def csv(self) -> str:
        return metrics.csv_of(self.frame)

    def json(self) -> str:
        return json.dumps(metrics.json_of(self.frame), allow_nan=False) + "\n"

    def html(self) -> str:
        from kernelbench.report import page

        return page.render(
            self.gathered.records,
            self.gathered.measured,
            self.gathered.manifests,
            baseline=self.request.baseline or None,
            rows=self.gathered.rows,
        )

    def exported(self) -> str:
        if self.request.to == "github":
            return json.dumps(export.github(self.frame), indent=1, ensure_ascii=False) + "\n"
        return json.dumps(export.hud(self.frame, self.gathered.manifests), indent=1) + "\n"

    def show(self, console: Console) -> None:
        terminal.show(
            self.shown,
            console,
            against=self.request.baseline,
            measured=self.gathered.measured,
            claimed_rows=self._claims() if self.request.claims else (),
        )

    def as_text(self) -> str:
        """What `show` would, at 100 columns without colour."""
        paper = Console(file=io.StringIO(), width=tables.WIDTH, color_system=None)
        self.show(paper)
        return cast(io.StringIO, paper.file).getvalue()

    def _claims(self) -> list[claims.ClaimRow]:
        files = claims.load(claims.shipped())
        return claims.rows(self.gathered.records, files, self.gathered.measured)

    def written(self) -> str:
        """The report as the text of a file."""
        makers: dict[str, Callable[[], str]] = {
            "table": self.as_text,
            "md": self.markdown,
            "html": self.html,
            "csv": self.csv,
            "json": self.json,
        }
        return self.exported() if self.request.to else makers[self.request.format]()


def report(request: ReportRequest, output: Output) -> int:
    """Print or write what the runs hold; name what cannot be read. Exit code 1 if a provider is
    bad or something could not be read.

    Raises UsageError for a path without runs, and for a family, baseline, format, table or
    target that there is not; KernelbenchError for what cannot be written, or a missing package.
    """
    _check(request)
    say = None if request.format == "json" else output.err
    with waiting("reading the runs, and deriving figures from what is new", say):
        gathered = gather(request.folders, request.families, request.baseline)
    _refuse_baseline(request.baseline, gathered)
    gaps = [gap for folder in request.folders for gap in fanout.gaps(folder)]
    for text in (*gathered.problems, *gathered.notes, *gaps):
        output.warn(text)
    report = _Report(gathered, request)
    _main(report, output, say)
    if request.junit:
        files.deliver(request.junit, junit(report.frame))
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        append_summary(report.markdown())
    differing = ", ".join(sheets.differences(gathered.manifests))
    if differing and "environment" not in table_names(request.tables):
        output.err(f"runs differ in {differing} (--tables environment)")
    if gathered.problems:
        count = len(gathered.problems)
        output.err(f"exit 1: {count} thing{'s' * (count != 1)} could not be read")
    if why := failures.why(gathered.rows):
        output.err(why)
    return int(bool(gathered.problems or why))


def _main(report: _Report, output: Output, say: Say | None) -> None:
    """The one thing that goes to the terminal, or to `out`."""
    request = report.request
    if request.to in export.TRACKERS:
        folder = request.out or Path()
        for line in trackers.log(request.to, report.frame, report.gathered.manifests, folder):
            output.err(line)
    elif request.out is None and request.format == "table" and not request.to:
        report.show(output.console)
    else:
        what = f"{request.to or request.format} of {len(report.gathered.rows)} records"
        with waiting(f"making {what}", say):
            text = report.written()
        if request.out is None:
            files.write(files.STDOUT, text)
        else:
            files.deliver(request.out, text)


def _check(request: ReportRequest) -> None:
    if request.format not in FORMATS:
        raise UsageError(f"--format: no {request.format!r}{suggest(request.format, FORMATS)}")
    if request.to:
        export.valid_target(request.to)
        if request.format != "table":
            raise UsageError(f"--to {request.to} has a format of its own: leave --format out")
    if request.claims and (request.to or request.format not in ("table", "md")):
        raise UsageError("--claims goes with --format table and md; see `kernelbench claims`")
    table_names(request.tables)
    if request.tables and (request.to or request.format not in ("table", "md")):
        raise UsageError("--tables goes with --format table and md")


def _refuse_baseline(baseline: str, gathered: Gathered) -> None:
    providers = dict.fromkeys(row["provider"] for row in gathered.rows)
    if baseline and baseline not in providers:
        raise UsageError(
            f"--baseline: no provider {baseline!r} in these runs{suggest(baseline, providers)}"
        )
