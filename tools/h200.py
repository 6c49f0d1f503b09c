"""For the README: means of the runs kept in results/h200, and a picture of the page of one.

python tools/h200.py    takes the picture anew; needs Chromium and the extras report and dev
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kernelbench.report import headline, page
from kernelbench.report.gather import gather
from kernelbench.report.tables import figures

RUNS = Path("results/h200")
SHOWN = "20261121T034914Z-h200-h200"
PICTURE = Path("docs/report.png")
OF = "sha256 of the page"
SIZE = (1180, 1640)
COLOURS = 64
Row = Mapping[str, Any]


def means(*asked: tuple[str, str, str]) -> None:
    """A row each (run, family, mode): geometric means of our exact kernel's speedups, measured."""
    import cog

    cog.outl("| family | mode | cases | × best other | × baseline | beyond noise | run |")
    cog.outl("|---" * 7 + "|")
    for run, family, mode in asked:
        rows = [*_ours(run, family, mode)]
        beyond = [row["speedup_best"] for row in rows if row["speedup_best_lo"] > 1]
        behind = [row["speedup_best"] for row in rows if row["speedup_best_hi"] < 1]
        cells = [
            family,
            mode,
            str(len(rows)),
            _mean(rows, "speedup_best"),
            _mean(rows, "speedup"),
            f"{len(beyond)} faster, {len(behind)} slower",
            f"[{run[:16]}]({RUNS / run})",
        ]
        cog.outl(f"| {' | '.join(cells)} |")


def _ours(run: str, family: str, mode: str) -> Iterator[Row]:
    for row in gather([RUNS / run], [family]).rows:
        if (row["provider"], row["mode"], row["status"]) == ("triton_fused", mode, "ok"):
            yield row


def _mean(rows: Sequence[Row], column: str) -> str:
    found = headline.mean(rows, column)
    assert found is not None, column
    middle, low, high = (figures(value, 3) for value in found)
    return f"{middle} [{low}, {high}]"


def picture() -> None:
    """The picture, if it is of the page as it is today; else what to do about it."""
    import cog

    with Image.open(PICTURE) as image:
        if image.info.get(OF) != _digest(_page()):
            raise SystemExit(f"{PICTURE} shows an older page: python tools/h200.py")
    said = "bars of speedups by case and provider, below a table of geometric means"
    cog.outl(f"![The page of a run on an H200: {said}]({PICTURE})")


def _page() -> str:
    found = gather([RUNS / SHOWN])
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
        width, height = SIZE
        shoot(path, shot, width=width, height=height, scheme="light", part="")
        known = PngInfo()
        known.add_text(OF, _digest(html))
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True, pnginfo=known)
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
