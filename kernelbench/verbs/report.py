"""`kernelbench report`: what runs hold, in one of several formats, without torch."""

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from kernelbench import claims, files, metrics
from kernelbench.report import claimed, export, failed, sheet, sheets, tables, terminal, trackers
from kernelbench.report.choice import Choice, choice, chosen
from kernelbench.report.gather import Gathered, gather
from kernelbench.report.junit import junit
from kernelbench.report.markdown import append_summary, markdown
from kernelbench.report.waiting import Say, waiting
from kernelbench.spec import UsageError, suggest

if TYPE_CHECKING:
    from pandas import DataFrame

FORMATS = ("table", "md", "html", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a report is to say and where.

    tables: exactly these, instead of the default ones. out: a file instead of the terminal; for
    a tracker the folder of its files. baseline: the provider that speedups are to be against.
    """

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

    def __init__(self, found: Gathered, wanted: Wanted) -> None:
        self.found, self.wanted = found, wanted

    @cached_property
    def frame(self) -> "DataFrame":
        return metrics.frame_of(self.found.rows)

    @cached_property
    def shown(self) -> Choice:
        given = sheet.source(
            self.found.rows,
            self.found.measured,
            self.found.manifests,
            self.wanted.baseline,
        )
        return choice(self.wanted.tables, given)

    def markdown(self) -> str:
        text = markdown(self.shown, self.wanted.baseline)
        return f"{text}\n{claimed.markdown(self._claims())}" if self.wanted.claims else text

    def csv(self) -> str:
        return metrics.csv_of(self.frame)

    def json(self) -> str:
        return json.dumps(metrics.json_of(self.frame), allow_nan=False) + "\n"

    def html(self) -> str:
        from kernelbench.report import page

        return page.render(
            self.found.records,
            self.found.measured,
            self.found.manifests,
            baseline=self.wanted.baseline or None,
            rows=self.found.rows,
        )

    def exported(self) -> str:
        if self.wanted.to == "github":
            return json.dumps(export.github(self.frame), indent=1, ensure_ascii=False) + "\n"
        return json.dumps(export.hud(self.frame, self.found.manifests), indent=1) + "\n"

    def show(self, console: Console) -> None:
        terminal.show(
            self.shown,
            console,
            against=self.wanted.baseline,
            measured=self.found.measured,
            claimed_rows=self._claims() if self.wanted.claims else (),
        )

    def as_text(self) -> str:
        """What `show` would, at 100 columns without colour."""
        paper = Console(file=io.StringIO(), width=tables.WIDTH, color_system=None)
        self.show(paper)
        return cast(io.StringIO, paper.file).getvalue()

    def _claims(self) -> list[claims.Row]:
        files = claims.load(claims.shipped())
        return claims.rows(self.found.records, files, self.found.measured)

    def written(self) -> str:
        """The report as the text of a file."""
        makers: dict[str, Callable[[], str]] = {
            "table": self.as_text,
            "md": self.markdown,
            "html": self.html,
            "csv": self.csv,
            "json": self.json,
        }
        return self.exported() if self.wanted.to else makers[self.wanted.format]()


def report(folders: Sequence[Path], wanted: Wanted, console: Console, errors: Console) -> int:
    """Print or write what the runs hold; name what cannot be read. Exit code 1 if a provider is
    bad or something could not be read.

    Raises UsageError for a path without runs, and for a family, baseline, format, table or
    target that there is not; KernelbenchError for what cannot be written, or a missing package.
    """
    _check(wanted)
    say = None if wanted.format == "json" else partial(_say, errors)
    with waiting("reading the runs, and deriving figures from what is new", say):
        found = gather(folders, wanted.families, wanted.baseline)
    _refuse_baseline(wanted.baseline, found)
    for text in (*found.problems, *found.notes):
        errors.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    made = _Report(found, wanted)
    _main(made, console, errors, say)
    if wanted.junit:
        files.deliver(wanted.junit, junit(made.frame))
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        append_summary(made.markdown())
    differing = ", ".join(sheets.differences(found.manifests))
    if differing and "environment" not in chosen(wanted.tables):
        _say(errors, f"runs differ in {differing} (--tables environment)")
    if found.problems:
        count = len(found.problems)
        _say(errors, f"exit 1: {count} thing{'s' * (count != 1)} could not be read")
    if why := failed.why(found.rows):
        _say(errors, why)
    return int(bool(found.problems or why))


def _main(made: _Report, console: Console, errors: Console, say: Say | None) -> None:
    """The one thing that goes to the terminal, or to `out`."""
    wanted = made.wanted
    if wanted.to in export.TRACKERS:
        folder = wanted.out or Path()
        for line in trackers.log(wanted.to, made.frame, made.found.manifests, folder):
            _say(errors, line)
    elif wanted.out is None and wanted.format == "table" and not wanted.to:
        made.show(console)
    else:
        what = f"{wanted.to or wanted.format} of {len(made.found.rows)} records"
        with waiting(f"making {what}", say):
            text = made.written()
        if wanted.out is None:
            files.write(files.STDOUT, text)
        else:
            files.deliver(wanted.out, text)


def _check(wanted: Wanted) -> None:
    if wanted.format not in FORMATS:
        raise UsageError(f"--format: no {wanted.format!r}{suggest(wanted.format, FORMATS)}")
    if wanted.to:
        export.known(wanted.to)
        if wanted.format != "table":
            raise UsageError(f"--to {wanted.to} has a format of its own: leave --format out")
    if wanted.claims and (wanted.to or wanted.format not in ("table", "md")):
        raise UsageError("--claims goes with --format table and md; see `kernelbench claims`")
    chosen(wanted.tables)
    if wanted.tables and (wanted.to or wanted.format not in ("table", "md")):
        raise UsageError("--tables goes with --format table and md")


def _refuse_baseline(baseline: str, found: Gathered) -> None:
    providers = dict.fromkeys(row["provider"] for row in found.rows)
    if baseline and baseline not in providers:
        raise UsageError(
            f"--baseline: no provider {baseline!r} in these runs{suggest(baseline, providers)}"
        )


def _say(errors: Console, text: str) -> None:
    errors.print(text, highlight=False, markup=False, soft_wrap=True)
