"""One self-contained page: figures, sortable tables, and every case's records and commands.

It loads nothing: its styles, its script and its figures are in the file. Text from records is
escaped wherever it is printed.
"""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import resources
from typing import Any

from kernelbench import metrics
from kernelbench.metrics import MEANING
from kernelbench.report import (
    bars,
    charts,
    environment,
    headline,
    leads,
    roofline,
    tables,
    verdict,
)
from kernelbench.report.cases import CaseView, anchor, case_anchor, cases, record_anchor
from kernelbench.report.figures import Figure, Look, Row, looks, parts, require, style, text
from kernelbench.report.grid import Grid, checks, speeds
from kernelbench.report.panels import Panel, bad, panels
from kernelbench.spec import (
    KernelbenchError,
    Measured,
    RunRecord,
    Status,
    Tool,
    UsageError,
    suggest,
)

Manifests = Mapping[str, Mapping[str, Any]]

SHOWN = 6  # verdicts that are shown at once
READING = " ".join(
    [
        "Every number says its kind.",
        *(f"{kind.capitalize()}: {said.replace('`', '')}." for kind, said in MEANING.items()),
        "~: no difference beyond noise. Approximate providers are marked ≈.",
    ]
)
_SMOKE = tables.SMOKE[0].upper() + tables.SMOKE[1:]
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
class FamilyView:
    anchor: str
    name: str
    about: str
    parts: Sequence[Part]
    grids: Sequence[Grid]
    cases: Sequence[CaseView]


@dataclass(frozen=True)
class _Family:
    """The data of one family, run by run."""

    name: str
    rows: Sequence[Row]
    measured: Sequence[Measured]
    baseline: str
    look: Mapping[str, Look] = field(default_factory=dict)

    def runs(self) -> Iterator[tuple[str, str, list[Row]]]:
        """(run, the title of its figures, its rows) of runs that are not smoke runs."""
        by_run = parts(self.speedy, "run_id")
        for (run,), rows in by_run.items():
            yield run, f"{self.name} · {run}" if len(by_run) > 1 else self.name, rows

    @property
    def speedy(self) -> list[Row]:
        return [row for row in self.rows if not row["smoke"]]


def render(
    records: Sequence[RunRecord],
    measured: Sequence[Measured],
    manifests: Manifests,
    *,
    baseline: str | None = None,
    rows: Sequence[Row] | None = None,
) -> str:
    """The page as HTML. The same arguments give the same text.

    manifests: of each run, by its id; a run without one says so.
    baseline: the provider that speedups are against; without it each family's own baseline.
    rows: `metrics.rows_of` these records against that baseline, where they are there already.
    Raises KernelbenchError where matplotlib or Jinja2 is missing, and UsageError for a baseline
    that no record is of.
    """
    require()
    baseline = baseline or ""
    providers = dict.fromkeys(record.provider for record in records)
    if baseline and records and baseline not in providers:
        raise UsageError(f"--baseline: no provider {baseline!r}{suggest(baseline, providers)}")
    rows = _rows(records, metrics.rows_of(records, baseline) if rows is None else rows)
    names = dict.fromkeys([r.family for r in records] + [m.family for m in measured])
    runs = dict.fromkeys([r.run_id for r in records] + [m.run_id for m in measured])
    manifest_of = {run: manifests.get(run) or {} for run in runs}
    families = [_family_data(name, rows, measured, baseline) for name in names]
    with style():
        first = _first(rows, families)
        views = [_family(family, manifest_of) for family in families]
    script = _asset("page.js")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return str(
        _template().render(
            title=headline.title(rows, measured, manifest_of),
            machine=headline.machine(rows, measured, manifest_of),
            problems=headline.problems(rows, measured),
            **first,
            means=headline.headlines(rows, baseline),
            smoke=_SMOKE if any(row["smoke"] for row in rows) else "",
            families=views,
            runs=[environment.view(run, manifest) for run, manifest in manifest_of.items()],
            differences=environment.differences(manifest_of),
            reading=READING,
            footer=FOOTER,
            css=_asset("page.css"),
            script=script,
            script_hash=f"sha256-{digest}",
        )
    )


def _first(rows: Sequence[Row], families: Sequence["_Family"]) -> dict[str, Any]:
    """The first screen: a verdict and two figures of each of our kernels; of many, first those that
    are wrong or have most cases, the others folded."""
    look = {family.name: family.look for family in families}
    all_panels = panels(rows)
    answers = 1 if all(row["smoke"] for row in rows) else len(verdict.HEADS)
    most = max(SHOWN, sum(bool(bad(panel.rows)) for panel in all_panels))
    groups = [
        (all_panels[:most], ""),
        (all_panels[most:], f"{len(all_panels) - most} more, of fewer cases"),
    ]
    drawn = [(some_leads, more) for part, more in groups if (some_leads := _leads(part, look))]
    names = dict.fromkeys(
        name for some_leads, _ in drawn for lead in some_leads for name, _ in lead.figures
    )
    return {
        "heads": verdict.HEADS[:answers],
        "about_verdicts": " ".join(verdict.ABOUT[:answers]),
        "verdicts": [(verdict.verdicts(part), more) for part, more in groups if part],
        "leads": drawn,
        "captions": [leads.caption(name, rows) for name in names],
    }


def _leads(panels: Sequence[Panel], look: Mapping[str, Mapping[str, Look]]) -> list[leads.Lead]:
    return [
        lead
        for panel in panels
        if not panel.rows[0]["smoke"]
        for lead in leads.leads(panel, look[str(panel.rows[0]["family"])])
    ]


def _template() -> Any:
    """page.html; all values are escaped, and an unknown name raises."""
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def between_tags(lines: str) -> Markup:
        """Escape lines but keep quotes: records have many."""
        return Markup("\n".join(html.escape(text(line), quote=False) for line in lines.split("\n")))

    templates = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=finalize
    )
    templates.filters["drawn"] = Markup  # our own SVG, CSS and script alone
    templates.filters["between_tags"] = between_tags
    return templates.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    try:
        return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    except OSError as error:
        raise KernelbenchError(
            f"{name}: a part of the page cannot be read ({error.strerror}); install it anew"
        ) from None


def _rows(records: Sequence[RunRecord], rows: Sequence[Row]) -> list[Row]:
    """Every row with its record, and whether its machine has no GPU."""
    filled = metrics.filled(rows)
    smoke = {row["run_id"] for row in filled if row["timer"] == "host"}
    return [
        {**row, "record": record, "smoke": record.run_id in smoke}
        for row, record in zip(filled, records, strict=True)
    ]


def _family_data(
    name: str, rows: Sequence[Row], measured: Sequence[Measured], baseline: str
) -> _Family:
    mine = [row for row in rows if row["family"] == name]
    calls = [call for call in measured if call.family == name]
    providers = {row["provider"] for row in mine}
    others: list[Row] = [
        {"provider": call.provider, "role": call.role, "accuracy": ""}
        for call in calls
        if call.provider not in providers
    ]
    return _Family(name, mine, calls, baseline, looks([*mine, *others]))


def _family(family: _Family, manifests: Manifests) -> FamilyView:
    rows, smoke = family.speedy, [row for row in family.rows if row["smoke"]]
    grids = [
        speeds(rows, record_anchor, case_anchor) if rows else None,
        checks(smoke, record_anchor, case_anchor) if smoke else None,
    ]
    count = len(parts(family.rows, "case"))
    about = f"{count} case{'s' * (count != 1)}, {len(family.rows)} records. " if count else ""
    return FamilyView(
        anchor("family", family.name),
        text(family.name),
        about + (_SMOKE + "." if smoke else ""),
        list(_parts(family, manifests)) if rows or family.measured else (),
        [grid for grid in grids if grid],
        list(cases(family.rows, manifests)),
    )


def _parts(family: _Family, manifests: Manifests) -> Iterator[Part]:
    look = family.look
    figures: dict[str, list[Figure]] = {
        "speed": [],
        "scaling": [],
        "roof": [],
        "error": [],
        "raw": [],
    }
    for run, where, rows in family.runs():
        base = family.baseline or _baseline(rows)
        figures["speed"] += bars.speedups(rows, look, where, base)
        figures["scaling"] += roofline.scaling(rows, look, where)
        figures["roof"] += roofline.roofline(rows, look, where, manifests.get(run, {}))
        figures["error"] += charts.accuracy(rows, look, where)
        figures["raw"] += charts.strips(rows, look, where)
    if family.speedy:
        yield _part(
            "Speedup over the baseline",
            figures["speed"],
            "No speedup could be formed: see the table.",
        )
        yield _part("Scaling", figures["scaling"], "No axis was swept over three values or more.")
        yield _part(
            "Roofline", figures["roof"], "No ceiling was measured, or no rate could be formed."
        )
    yield _part("Modelled and measured bytes", _bytes(family), NO_BYTES)
    if family.speedy:
        yield _part("Error against speed", figures["error"], "Too few providers have both.")
        widest = max(map(charts.arm_pct, family.speedy), default=0)
        quiet = f"No case was noisy: the widest interval is ± {tables.percent(widest)}."
        yield _part("Raw samples", figures["raw"], quiet)


def _part(title: str, figures: Sequence[Figure], absent: str) -> Part:
    return Part(title, "" if figures else absent, figures)


def _bytes(family: _Family) -> list[Figure]:
    counted = [
        call for call in family.measured if call.tool is Tool.ncu and call.status is Status.ok
    ]
    runs = dict.fromkeys(call.run_id for call in counted)
    return [
        figure
        for run in runs
        for figure in bars.bytes_moved(
            [call for call in counted if call.run_id == run],
            family.look,
            f"{family.name} · {run}" if len(runs) > 1 else family.name,
        )
    ]


def _baseline(rows: Sequence[Row]) -> str:
    names = dict.fromkeys(str(row["provider"]) for row in rows if row["role"] == "baseline")
    return ", ".join(names) or "the baseline"
