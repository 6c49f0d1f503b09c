"""The page in a real headless Chromium: it sorts, filters, opens and prints without complaint."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from page_run import MANIFEST, counted, noisy, sweep

from kernelbench.report import page as report
from kernelbench.spec import Role, Status

pytest.importorskip("matplotlib", reason="matplotlib draws the page: the extra `report`")
driver = pytest.importorskip(
    "playwright.sync_api", reason="playwright drives Chromium: the extra `dev`"
)

ROOT = Path(__file__).parent.parent
TABLE = ".filter ~ .scroll table"
FACTS = "[...document.querySelectorAll('.filter ~ .scroll tbody tr')].filter(r => !r.hidden)"


def screenshot() -> Any:
    spec = importlib.util.spec_from_file_location("screenshot", ROOT / "tools/screenshot.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Opened:
    """A tab, what it complained of, and what it asked the network for."""

    tab: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = screenshot().chromium()
    if found is None:
        pytest.skip("no Chromium on PATH, and CHROMIUM names none (Debian: apt install chromium)")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found, chromium_sandbox=os.geteuid() != 0
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every figure, a failure, and names that would run if they were not escaped."""
    evil = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
    records = [*sweep(), *sweep(mode="bwd", label=evil)]
    records[2] = noisy(records[2], evil)
    records[3] = replace(records[3], status=Status.incorrect, reason=evil, timing=None)
    measured = (counted(), counted("eager", 2 * 2**30, role=Role.baseline, case=evil))
    out = tmp_path_factory.mktemp("page") / "page.html"
    out.write_text(report.render(records, measured, {"run": MANIFEST | {"suite": evil}}), "utf-8")
    return out


@pytest.fixture(
    params=[(1280, "light"), (800, "light"), (390, "dark")],
    ids=["desktop", "tablet", "phone in the dark"],
)
def opened(browser: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    width, scheme = request.param
    tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    found = Opened(tab)
    tab.on("console", lambda said: found.complaints.append(said.text))
    tab.on("pageerror", lambda error: found.complaints.append(str(error)))
    tab.on("request", lambda asked: found.asked.append(asked.url))
    tab.goto(file.as_uri())
    yield found
    tab.close()


@pytest.fixture
def tab(opened: Opened) -> Any:
    return opened.tab


def column(tab: Any, number: int) -> list[str]:
    found: list[str] = tab.evaluate(f"{FACTS}.map(r => r.cells[{number}].textContent)")
    return found


def test_it_complains_of_nothing_and_asks_nobody(opened: Opened, file: Path) -> None:
    tab = opened.tab
    tab.get_by_role("searchbox").first.fill("triton")
    tab.locator("thead button").first.click()
    tab.locator("details.case > summary").first.click()
    assert opened.complaints == []
    assert opened.asked == [file.as_uri()]
    assert tab.evaluate("window.ran") is None
    assert tab.title().startswith("<script>window.ran")
    assert tab.locator(".about").last.inner_text().startswith("<script>window.ran")


def test_nothing_is_wider_than_the_screen(tab: Any) -> None:
    """Tables scroll in themselves; with everything open, too."""
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    wide = tab.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide[0] <= wide[1]


def test_a_table_that_scrolls_says_so_and_keeps_its_first_column(tab: Any) -> None:
    told = tab.evaluate(
        """[...document.querySelectorAll('.scroll')].map(box => [
            box.scrollWidth > box.clientWidth + 1, box.previousElementSibling.checkVisibility(),
        ])"""
    )
    assert len(told) == 2 and all(wide == says for wide, says in told)
    assert [True, True] in told
    box = tab.locator(".filter ~ .scroll")
    box.evaluate("b => { b.scrollLeft = 200 }")
    for part in ("thead th", "tbody th"):
        lefts = [e.bounding_box()["x"] for e in (box, box.locator(part).first)]
        assert lefts[1] - lefts[0] == pytest.approx(1, abs=0.6), part  # its border
    tab.set_viewport_size({"width": 4000, "height": 800})
    tab.evaluate("document.body.style.maxWidth = 'none'; dispatchEvent(new Event('resize'))")
    assert tab.locator(".sideways:visible").count() == 0


def test_every_word_of_the_verdict_is_on_the_screen(tab: Any) -> None:
    """Nothing of it scrolls: on a phone it is a card a kernel."""
    outside = tab.evaluate(
        """[...document.querySelectorAll('.verdict tbody *')].filter(e => {
            const box = e.getBoundingClientRect();
            return e.checkVisibility() && (box.left < 0 || box.right > innerWidth);
        }).map(e => e.textContent)"""
    )
    assert outside == []
    assert tab.locator(".verdict .tone").count() == 4 * 3


def test_no_label_of_a_figure_leaves_it_or_lies_on_another(tab: Any) -> None:
    bad = tab.evaluate(
        """[...document.querySelectorAll('svg')].flatMap(svg => {
            const all = svg.getBoundingClientRect();
            const boxes = [...svg.querySelectorAll('text')]
                .map(t => [t, t.getBoundingClientRect()]);
            return boxes.flatMap(([t, a], i) => {
                const out = a.left < all.left - 1 || a.right > all.right + 1
                    || a.top < all.top - 1 || a.bottom > all.bottom + 1;
                const over = boxes.slice(i + 1).filter(([, b]) =>
                    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > a.height / 2);
                return [...(out ? ['outside: ' + t.textContent] : []),
                        ...over.map(([o]) => t.textContent + ' | ' + o.textContent)];
            });
        })"""
    )
    assert bad == []


def test_a_header_sorts_up_then_down_with_what_is_empty_last(tab: Any) -> None:
    head = tab.locator(f"{TABLE} th", has=tab.get_by_role("button", name="time µs"))
    head.get_by_role("button").press("Enter")  # by the keyboard alone
    assert head.get_attribute("aria-sort") == "ascending"
    number = head.evaluate("h => h.cellIndex")
    times = column(tab, number)
    filled = [float(time) for time in times if time]
    assert filled == sorted(filled) and 39 == len(filled) < len(times)
    assert times[len(filled) :] == [""] * (len(times) - len(filled))
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(t) for t in column(tab, number) if t] == filled[::-1]
    assert column(tab, number)[-1] == ""
    tab.locator(f"{TABLE} thead button", has_text="provider").click()
    assert head.get_attribute("aria-sort") is None
    assert column(tab, 1) == sorted(column(tab, 1))


def test_the_filter_keeps_the_rows_that_have_every_word(tab: Any) -> None:
    box = tab.get_by_label("Filter")
    assert len(column(tab, 1)) == 48
    box.fill("TRITON  -fwd")
    assert set(column(tab, 1)) == {"triton"} and len(column(tab, 0)) == 4
    assert all(case.endswith("-fwd") for case in column(tab, 0))
    assert tab.locator(".filter output").inner_text() == "4 of 48 rows"
    box.fill("nothing at all")
    assert column(tab, 0) == []
    box.fill("")
    assert len(column(tab, 1)) == 48


def test_a_link_opens_the_record_and_its_case(tab: Any) -> None:
    link = tab.locator(f"{TABLE} td a", has_text="compile").first
    target = tab.locator(str(link.get_attribute("href")))
    assert not target.is_visible()
    link.click()
    assert target.is_visible() and target.evaluate("d => d.open")
    assert 'provider: "compile"' in target.locator("pre").inner_text()
    assert "kernelbench repro rms_norm/" in target.locator("..").locator(".command").inner_text()


def test_every_colour_of_text_stands_out_as_it_is_drawn(tab: Any) -> None:
    """Of every text, against the first ground behind it: at least 4.5 to 1."""
    faint = tab.evaluate(
        """(() => {
            const rgb = c => c.match(/[\\d.]+/g).map(Number);
            const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const light = ([r, g, b]) =>
                0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
            const behind = e => {
                for (; e; e = e.parentElement) {
                    const c = rgb(getComputedStyle(e).backgroundColor);
                    if (c.length < 4 || c[3] > 0) return c;
                }
                return rgb(getComputedStyle(document.documentElement).backgroundColor);
            };
            return [...document.querySelectorAll('body *:not(script, style)')]
                .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
                .filter(e => !['title', 'desc'].includes(e.tagName))
                .map(e => {
                    const style = getComputedStyle(e);
                    const ink = rgb(e instanceof SVGElement ? style.fill : style.color);
                    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
                    return [e.tagName + ' ' + e.textContent.slice(0, 30), (a + 0.05) / (b + 0.05)];
                })
                .filter(([, ratio]) => !(ratio >= 4.5));
        })()"""
    )
    assert faint == []


def test_the_dark_is_dark(browser: Any, file: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(file.as_uri())
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]
        assert not tab.locator(".filter").first.is_visible()
        assert not tab.locator("nav").is_visible()
        assert tab.locator("svg").first.is_visible()
        tab.close()
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_it_is_all_there_without_scripts(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(file.as_uri())
    assert tab.locator(f"{TABLE} tbody tr").count() == 48
    assert tab.locator("svg[role=img]").count() >= 6
    context.close()


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(("name", "magic"), [("page.png", b"\x89PNG"), ("page.pdf", b"%PDF")])
def test_the_tool_writes_it_down(name: str, magic: bytes, file: Path, tmp_path: Path) -> None:
    out = tmp_path / name
    words = [ROOT / "tools/screenshot.py", file, out, "--width", "390", "--height", "844"]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    written = out.read_bytes()
    assert written.startswith(magic)
    if magic == b"\x89PNG":
        assert int.from_bytes(written[16:20], "big") == 2 * 390  # as sharp as a phone
