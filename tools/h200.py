"""For the README: means of the runs kept in results/h200, and a picture of the page of some.

python tools/h200.py    takes the pictures anew; needs Chromium and the extras report and dev
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kernelbench.report import page
from kernelbench.report.gather import gather
from kernelbench.report.means import mean
from kernelbench.report.tables import figures

RUNS = Path("results/h200")
SHOWN = ("20261130T202128Z-h200-h200", "20261130T000102Z-h200-h200")
OF = "sha256 of the page"
WIDTH, COLOURS = 1180, 64
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """Of the page of a run: its top, so many px high, or the first element that `part` selects."""

    path: Path
    alt: str
    height: int = 0
    part: str = ""


PICTURES = {
    "best": Picture(
        Path("docs/best.png"),
        "RMSNorm forward on an H200, case by case: how many times as fast as the best other, which "
        "is named, and the share of the machine's ceiling, ours beside the best other's",
        part=".lead",
    ),
    "page": Picture(
        Path("docs/report.png"),
        "The top of a run's page: a verdict of each kernel, below it × best other and % of "
        "ceiling, case by case",
        height=900,
    ),
}


def means(*asked: tuple[str, str, str]) -> None:
    """A row each (run, family, mode): our exact kernel's speedups, measured, in the mean over the
    cases in which every opponent ran. run: names of one or more, that are parts of a suite."""
    import cog

    cog.outl(
        "| family | mode | cases | × best other | range | of these | against | × baseline | run |"
    )
    cog.outl("|---" * 9 + "|")
    for run, family, mode in asked:
        parts = [RUNS / part for part in run.split()]
        rows = [row for row in gather(parts, [family]).rows if row["mode"] == mode]
        ours = [r for r in rows if (r["provider"], r["status"]) == ("triton_fused", "ok")]
        found, slow = mean(ours, rows), mean(ours, rows, "speedup")
        where = " ".join(f"[{part.name[:16]}]({part})" for part in parts)
        if found is None or slow is None:
            [alone] = ours
            cells = ["1, no mean", _shown(alone, "speedup_best"), "", "", alone["best_other"],
                     _shown(alone, "speedup"), where]  # fmt: skip
        else:
            counts = (f"{count} {what}" for what, count in found.counts.items() if count)
            low, high = map(figures, found.range)
            cells = [found.cases.removesuffix(" cases"), _between(found.mid, found.lo, found.hi),
                     f"{low} to {high}", ", ".join(counts), ", ".join(found.opponents),
                     _between(slow.mid, slow.lo, slow.hi), where]  # fmt: skip
        cog.outl(f"| {' | '.join([family, mode, *cells])} |")


def _shown(row: Row, column: str) -> str:
    return _between(*(row[f"{column}{end}"] for end in ("", "_lo", "_hi")))


def _between(mid: float, low: float, high: float) -> str:
    return f"{figures(mid, 3)} [{figures(low, 3)}, {figures(high, 3)}]"


def picture(name: str) -> None:
    """A picture, if it is of the page as it is today; else what to do about it."""
    import cog

    found = PICTURES[name]
    with Image.open(found.path) as image:
        if image.info.get(OF) != _digest(_page()):
            raise SystemExit(f"{found.path} shows an older page: python tools/h200.py")
    cog.outl(f"![{found.alt}]({found.path})")


@cache
def _page() -> str:
    found = gather([RUNS / run for run in SHOWN])
    return page.render(found.records, found.measured, found.manifests)


def _digest(html: str) -> str:
    return sha256(html.encode()).hexdigest()


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from screenshot import shoot

    html = _page()
    with TemporaryDirectory() as folder:
        path, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        path.write_text(html, encoding="utf-8")
        for each in PICTURES.values():
            shoot(path, shot, width=WIDTH, height=each.height, scheme="light", part=each.part)
            known = PngInfo()
            known.add_text(OF, _digest(html))
            with Image.open(shot) as image:
                image.convert("RGB").quantize(COLOURS).save(each.path, optimize=True, pnginfo=known)
            print(f"{each.path}: {each.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
