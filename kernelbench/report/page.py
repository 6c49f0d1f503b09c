"""One self-contained page: figures, sortable tables, and every case's records and commands.

It loads nothing and asks nobody: its styles, its script and its figures are in the file. What a
record says is escaped wherever it is printed.
"""

import base64
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from typing import Any

from kernelbench import metrics
from kernelbench.report import charts, environment, roofline, tables
from kernelbench.report.figures import Figure, Look, Row, looks, require, text
from kernelbench.report.grid import Grid, checks, speeds
from kernelbench.spec import KernelbenchError, Measured, RunRecord, Status, Tool, UsageError, suggest

Manifests = Mapping[str, Mapping[str, Any]]

TITLE = "Kernel benchmarks"
READING = (
    "Every number says its kind. Measured: read off a clock, a counter or a comparison on the "
    "machine that is named. Modelled: follows from shapes and an account of bytes or flops. Mixed: "
    "a modelled amount over a measured time. Quoted: claimed by somebody else; none is on this "
    "page. ~: no difference beyond noise. Approximate providers are marked ≈."
)
FOOTER = "Made by kernelbench report --format html from the records of the runs named above."
NO_BYTES = (
    "Not measured here: no profiler counted bytes of this family. kernelbench profile --ncu does, "
    "on a GPU whose counters may be read."
)


@dataclass(frozen=True)
class Part:
    """A heading, a sentence, and figures that share one caption."""

    title: str
    says: str = ""
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class RecordView:
    anchor: str
    summary: str
    facts: str


@dataclass(frozen=True)
class CaseView:
    """A case in one run: how to run it again, and its records."""

    anchor: str
    name: str
    about: str
    commands: str
    records: Sequence[RecordView]


@dataclass(frozen=True)
class FamilyView:
    anchor: str
    name: str
    about: str
    parts: Sequence[Part]
    grids: Sequence[Grid]
    cases: Sequence[CaseView]


@dataclass(frozen=True)
class _Family:
    """What there is of one family, run by run."""

    name: str
    rows: Sequence[Row]
    measured: Sequence[Measured]
    baseline: str | None
    look: Mapping[str, Look] = field(default_factory=dict)

    def runs(self) -> Iterator[tuple[str, str, list[Row]]]:
        """(run, what its figures are called, the rows that say something about speed)."""
        found = charts.parts(self.speedy, "run_id")
        for (run,), rows in found.items():
            yield run, f"{self.name} · {run}" if len(found) > 1 else self.name, rows

    @property
    def speedy(self) -> list[Row]:
        return [row for row in self.rows if not row["smoke"]]


def render(
    records: Sequence[RunRecord],
    measured: Sequence[Measured],
    manifests: Manifests,
    *,
    baseline: str | None = None,
    title: str = TITLE,
) -> str:
    """The page as HTML. The same arguments give the same text.

    manifests: of each run, by its id; a run without one says so.
    baseline: the provider that speedups are against; without it each family's own baseline.
    Raises KernelbenchError where matplotlib or Jinja2 is missing, and UsageError for a baseline
    that no record is of.
    """
    require()
    frame = metrics.frame(records)
    rows = _rows(records, frame.to_dict("records"), baseline)
    names = dict.fromkeys([r.family for r in records] + [one.family for one in measured])
    views = [_family(_gathered(name, rows, measured, baseline), manifests) for name in names]
    runs = dict.fromkeys([r.run_id for r in records] + [one.run_id for one in measured])
    gpus = dict.fromkeys(filter(None, [*(r.gpu for r in records), *(m.gpu for m in measured)]))
    machine = f"{', '.join(map(text, gpus))} · {len(runs)} run{'s' * (len(runs) != 1)}"
    script, css = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return str(
        _template().render(
            title=text(title),
            machine=machine,
            summary=text_lines(tables.summary(frame).plain),
            reading=READING,
            families=views,
            runs=[environment.view(run, manifests.get(run, {})) for run in runs],
            differences=environment.differences({run: manifests.get(run, {}) for run in runs}),
            footer=FOOTER,
            css=css,
            script=script,
            script_hash=f"sha256-{digest}",
        )
    )


def text_lines(lines: str) -> list[str]:
    return [text(line) for line in lines.splitlines()]


def _template() -> Any:
    """page.html; whatever is printed into it is escaped, and a name it does not know raises."""
    import jinja2
    from markupsafe import Markup

    shown = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    shown.filters["drawn"] = Markup  # our own SVG, CSS and script alone
    return shown.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    try:
        return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    except OSError as error:
        raise KernelbenchError(
            f"{name}: a part of the page cannot be read ({error.strerror}). Install kernelbench anew"
        ) from None


def _rows(
    records: Sequence[RunRecord], found: Sequence[Mapping[Any, Any]], baseline: str | None
) -> list[Row]:
    """Rows of the frame, each with its record and whether its machine has no GPU."""
    smoke = {row["run_id"] for row in found if row["timer"] == "host"}
    rows: list[dict[str, Any]] = [
        {**row, "record": record, "smoke": record.run_id in smoke}
        for row, record in zip(found, records, strict=True)
    ]
    if baseline is not None:
        _against(rows, baseline)
    return list(rows)


def _against(rows: Sequence[dict[str, Any]], baseline: str) -> None:
    """Put the speedups over this provider in the place of those over the family's baseline."""
    known = dict.fromkeys(row["provider"] for row in rows)
    if rows and baseline not in known:
        raise UsageError(f"--baseline: no provider {baseline!r}{suggest(baseline, known)}")
    others = {
        (r["run_id"], r["family"], r["case"], r["record"].group): r["record"]
        for r in rows
        if r["provider"] == baseline
    }
    for row in rows:
        record = row["record"]
        other = others.get((row["run_id"], row["family"], row["case"], record.group))
        one = other is record and metrics.timed(record)
        ratio = None if one or other is None else metrics.speedup(record, other)
        row["speedup"] = ratio.mid if ratio else 1.0 if one else math.nan
        row["speedup_lo"] = ratio.lo if ratio else math.nan
        row["speedup_hi"] = ratio.hi if ratio else math.nan


def _gathered(
    name: str, rows: Sequence[Row], measured: Sequence[Measured], baseline: str | None
) -> _Family:
    mine = [row for row in rows if row["family"] == name]
    seen = [one for one in measured if one.family == name]
    known = {row["provider"] for row in mine}
    others: list[Row] = [
        {"provider": one.provider, "role": one.role, "accuracy": ""}
        for one in seen
        if one.provider not in known
    ]
    return _Family(name, mine, seen, baseline, looks([*mine, *others]))


def _family(family: _Family, manifests: Manifests) -> FamilyView:
    rows, smoke = family.speedy, [row for row in family.rows if row["smoke"]]
    grids = [
        speeds(rows, _record_anchor, _case_anchor) if rows else None,
        checks(smoke, _record_anchor, _case_anchor) if smoke else None,
    ]
    cases = len(charts.parts(family.rows, "case"))
    about = f"{cases} case{'s' * (cases != 1)}, {len(family.rows)} records. " if cases else ""
    return FamilyView(
        _anchor("family", family.name),
        text(family.name),
        about + (tables.SMOKE.capitalize() + "." if smoke else ""),
        list(_parts(family, manifests)) if rows or family.measured else (),
        [grid for grid in grids if grid],
        list(_cases(family.rows, manifests)),
    )


def _parts(family: _Family, manifests: Manifests) -> Iterator[Part]:
    look = family.look
    found: dict[str, list[Figure]] = {"speed": [], "scaling": [], "roof": [], "error": [], "raw": []}
    for run, where, rows in family.runs():
        base = family.baseline or _baseline(rows)
        found["speed"] += charts.speedups(rows, look, where, base)
        found["scaling"] += roofline.scaling(rows, look, where)
        found["roof"] += roofline.roofline(rows, look, where, manifests.get(run, {}))
        found["error"] += charts.accuracy(rows, look, where)
        found["raw"] += charts.strips(rows, look, where)
    if family.speedy:
        yield _part("Speedup", found["speed"], "No speedup could be formed: see the table.")
        yield _part("Scaling", found["scaling"], "No axis was swept over three values or more.")
        yield _part("Roofline", found["roof"], "No ceiling was measured, or no rate could be formed.")
    yield _part("Modelled and measured bytes", _bytes(family), NO_BYTES)
    if family.speedy:
        yield _part("Error against speed", found["error"], "Too few providers have both.")
        widest = max(map(charts.arm_pct, family.speedy), default=0)
        quiet = f"No case was noisy: the widest interval is ± {tables.percent(widest)}."
        yield _part("Raw samples", found["raw"], quiet)


def _part(title: str, figures: Sequence[Figure], absent: str) -> Part:
    return Part(title, "" if figures else absent, figures)


def _bytes(family: _Family) -> list[Figure]:
    counted = [one for one in family.measured if one.tool is Tool.ncu and one.status is Status.ok]
    runs = dict.fromkeys(one.run_id for one in counted)
    return [
        figure
        for run in runs
        for figure in charts.bytes_moved(
            [one for one in counted if one.run_id == run],
            family.look,
            f"{family.name} · {run}" if len(runs) > 1 else family.name,
        )
    ]


def _baseline(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(str(row["provider"]) for row in rows if row["role"] == "baseline")
    return ", ".join(names) or "the baseline"


def _cases(rows: Sequence[Row], manifests: Manifests) -> Iterator[CaseView]:
    several = len({row["run_id"] for row in rows}) > 1
    for (run, family, case), part in charts.parts(rows, "run_id", "family", "case").items():
        about = " · ".join(filter(None, (text(part[0]["label"]), text(run) if several else "")))
        yield CaseView(
            _case_anchor(part[0]),
            text(case),
            about,
            commands(family, case, manifests.get(run, {})),
            [RecordView(_record_anchor(row), _summary(row), facts(row["record"])) for row in part],
        )


def commands(family: str, case: str, manifest: Mapping[str, Any]) -> str:
    """The lines that measure and profile this case again, as a shell takes them."""
    asked = manifest.get("asked") or {}
    argv = [str(word) for word in manifest.get("argv") or ()]
    files = [word for word in argv if word.endswith((".yaml", ".yml")) and word[0] != "-"]
    suite = files[0] if files else str(manifest.get("suite") or "SUITE")
    words = [suite, "--family", family, "--case", case]
    for option, values in (("--plugin", asked.get("plugins")), ("--seed", [asked.get("seed")])):
        words += [word for value in values or () if value for word in (option, str(value))]
    again = [word for value in asked.get("overrides") or () for word in ("--set", str(value))]
    lines = (["kernelbench", "run", *words, *again], ["kernelbench", "profile", "--ncu", *words])
    return "\n".join(text(shlex.join(line)) for line in lines)


def _summary(row: Row) -> str:
    time = row["median_us"]
    said = "" if row["smoke"] or math.isnan(time) else f"{tables.figures(time, 4)} µs"
    return " · ".join(filter(None, (text(row["provider"]), str(row["status"]), said)))


def facts(record: RunRecord) -> str:
    """The record as JSON, a field a line; of the samples only how many there are."""
    known = json.loads(record.to_json())
    if "timing" in known:
        known["timing"] = {name: _counted(value) for name, value in known["timing"].items()}
    lines = (f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in known.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _counted(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    count = sum(len(each) if isinstance(each, list) else 1 for each in value)
    return f"{count} samples, in records.jsonl" if count else "none"


def _anchor(kind: str, *words: str) -> str:
    """An id of this page that holds nothing of what names it."""
    return f"{kind}-{sha256('|'.join(map(repr, words)).encode()).hexdigest()[:10]}"


def _case_anchor(row: Row) -> str:
    return _anchor("case", *(str(row[name]) for name in ("run_id", "family", "case")))


def _record_anchor(row: Row) -> str:
    return _anchor("record", *(str(row[n]) for n in ("run_id", "family", "case", "provider")))
