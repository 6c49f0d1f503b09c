"""Plugins: what is said of mistakes in them, and what they import from beside them."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kernelbench import families, store
from kernelbench.cli import app
from kernelbench.repro.record import repro
from kernelbench.source import source_hash
from kernelbench.spec import UsageError

MINE = """
from dataclasses import dataclass

from kernelbench.spec import Case, Cost, DType, Family, Provider, Role, axis


@dataclass(frozen=True, kw_only=True)
class MyCase(Case):
    n: int = axis("how many")


def inputs(case, draw):
    return {"x": draw(case.n)}


def outputs(case):
    return ("y",)


def oracle(case, a):
    yield "y", ..., 2 * a["x"].double()


def cost(case):
    return Cost(case.n, 4 * case.n, 4 * case.n)


def twice(case, config):
    return lambda a: a["x"] * 2


def other(case, config):
    return lambda a: a["x"] + a["x"]


FAMILY = Family(
    name="NAME", title="Doubling", case=MyCase, inputs=inputs, outputs=outputs, oracle=oracle,
    cost=cost, checks=(MyCase(n=8, dtype=DType.fp32),),
    providers=(Provider("plain", Role.baseline, twice), Provider("other", Role.peer, other)),
)
"""
RAISING = [  # what stands there, what instead, the words, and a piece of the line that is named
    ('a["x"] + a["x"]', 'a["nope"]', "KeyError: 'nope'", 'a["nope"]'),
    ("4 * case.n, 4 * case.n)", "4 * case.m, 0)",
     "cost raised AttributeError: 'MyCase' object has no attribute 'm'", "case.m"),
    ('{"x": draw(case.n)}', '{}["d"]', "inputs raised KeyError: 'd'", '{}["d"]'),
    ('return ("y",)', 'return {}["y"]', "outputs raised KeyError: 'y'", '{}["y"]'),
    ('2 * a["x"].double()', '2 * a["z"].double()', "oracle raised KeyError: 'z'", 'a["z"]'),
    ("def other(case, config):", "def other(case):",
     r"TypeError: other\(\) takes 1 positional argument but 2 were given", "def other(case):"),
    ("def cost(case):", "def cost():",
     r"cost raised TypeError: cost\(\) takes 0 positional arguments .*", "def cost():"),
    ("Role.peer, other)", "Role.peer, other, unsupported=lambda case, device: {}[0])",
     "KeyError: 0", "unsupported="),
    ("Role.peer, other)", "Role.peer, other, traffic=lambda case: 3)",
     "other: traffic returned int 3, expected a tuple of Traffic.*", "traffic="),
    ("return Cost(case.n, ", "return Cost(case.n / 2, ",
     "cost says flops=float 4.0, expected a whole number .*", "def cost(case):"),
    ('return {"x": draw(case.n)}', "return [draw(case.n)]",
     "inputs returned a list of 1, expected a dict of tensors by name", "def inputs"),
    ('2 * a["x"].double()', '2 * a["x"]',
     "oracle yields torch.float32 for 'y', expected torch.float64: .*", "def oracle"),
    ("Role.peer, other)", "Role.peer, other, prepare=lambda case, a: [1])",
     "PrepareError: prepare returned list, expected names to tensors", "prepare="),
]  # fmt: skip


def plugin(folder: Path, text: str = MINE, name: str = "mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text.replace("NAME", f"mine_{name}"))
    return path


def kb(*words: str):
    return CliRunner().invoke(app, [*words])


def said(path: Path) -> tuple[int, str]:
    done = kb("check", "--plugin", str(path), "--family", f"mine_{path.stem}", "-v")
    return done.exit_code, done.output


def test_an_error_names_the_users_own_file_and_line(tmp_path, monkeypatch):
    """All mistakes at once, since a worker takes seconds to start: each a plugin of its own."""
    monkeypatch.chdir(tmp_path)
    paths = []
    for number, (old, new, *_) in enumerate(RAISING):
        assert MINE.count(old) == 1, old
        paths.append(plugin(tmp_path / "kernels", MINE.replace(old, new), f"m{number}"))
    words = [word for path in paths for word in ("--plugin", str(path))]
    of = [word for path in paths for word in ("--family", f"mine_{path.stem}")]
    done = kb("check", *words, *of, "-v")
    assert done.exit_code == 1, done.output
    assert str(tmp_path) not in done.output, "a path is named from where the command is given"
    for number, (_, _, message, line) in enumerate(RAISING):
        start = rf"mine_m{number}/n8-fp32-fwd other: failed: (?:PartError: mine_m{number}: )?"
        place = rf" \(kernels/m{number}\.py:(\d+)(?:: (.*))?\)\n"
        found = re.search(rf"{start}(?:PartError: )?{message}{place}", done.output)
        assert found, (message, done.output)
        stands = paths[number].read_text().splitlines()[int(found[1]) - 1]
        assert line in stands and found[2] in (None, stands.strip())
    assert '  File "kernels/m0.py", line ' in done.output and "job.py" not in done.output


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('D = {}["nope"]', "KeyError: 'nope' (mine.py:2: D = {}[\"nope\"])"),
        ("D = (", "SyntaxError: '(' was never closed (mine.py:2: D = ()"),
        ("import no_such", "ModuleNotFoundError: No module named 'no_such' (mine.py:2: import "
         "no_such)"),
    ],
)  # fmt: skip
def test_an_error_at_import_names_its_line_and_v_shows_the_way(tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path, f"\n{line}\n{MINE}")
    verbs = ("check", "run", "list", "profile") if "{}" in line else ("list",)
    for verb in verbs:
        done = kb(verb, "--plugin", "mine.py")
        assert (done.exit_code, done.output.splitlines()[-1]) == (
            2, f"error: --plugin mine.py: {said}"
        )  # fmt: skip
        assert "Traceback" not in done.output and 'File "' not in done.output
        shown = kb(verb, "--plugin", "mine.py", "-v").output
        assert '  File "mine.py", line 2' in shown and shown.endswith(f"{said}\n")
        assert "importlib" not in shown and "kernelbench/" not in shown


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("cost=cost", "cost=3", "`cost` must be a function"),
        ("checks=(MyCase(n=8, dtype=DType.fp32),)", "checks=3", "`checks` must be a tuple of My"),
        ("providers=(Provider(", "providers=(1, Provider(", "`providers` must be a tuple of Prov"),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(tmp_path, monkeypatch, old, new, what):
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path, MINE.replace(old, new))
    assert f"error: --plugin mine.py: {what}" in kb("list", "--plugin", "mine.py").output


def test_a_case_that_cannot_be_made_by_mistake_is_named_by_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = '    n: int = axis("how many")\n'
    wrong = f'{body}\n    def __post_init__(self):\n        self.n == 9 and {{}}["nope"]\n'
    plugin(tmp_path, MINE.replace(body, wrong))
    (tmp_path / "s.yaml").write_text("name: s\nfamilies: {mine_mine: {cases: [{n: 9}]}}\n")
    done = kb("run", "s.yaml", "--plugin", "mine.py", "--dry-run")
    assert done.exit_code == 2
    assert "s.yaml:2:32: mine_mine refuses n=9: KeyError: 'nope' (mine.py:12: " in done.output


BESIDE = MINE.replace(
    "from kernelbench", "import helper\nfrom parts.scale import TWO\nfrom kernelbench", 1
).replace('a["x"] * 2', 'helper.twice(a["x"]) * (TWO / 2)')


def with_neighbours(folder: Path, text: str = BESIDE, name: str = "mine") -> Path:
    path = plugin(folder, text, name)
    (folder / "helper.py").write_text(
        "def twice(x):\n    import deeper\n    return x * deeper.TWO\n"
    )
    (folder / "deeper.py").write_text("TWO = 2\n")
    (folder / "parts").mkdir(exist_ok=True)
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "scale.py").write_text("from .one import ONE\nTWO = ONE + ONE\n")
    (folder / "parts" / "one.py").write_text("ONE = 1\n")
    return path


def test_a_plugin_imports_its_neighbours_in_the_worker_too_and_shadows_nothing(tmp_path):
    path = with_neighbours(tmp_path / "a")
    (tmp_path / "a" / "json.py").write_text("raise RuntimeError('shadowed')\n")
    (tmp_path / "a" / "statistics.py").write_text("raise RuntimeError('shadowed')\n")
    before = [*sys.path]
    code, output = said(path)
    assert code == 0, output
    assert "2 right, 0 wrong" in output
    assert sys.path == before


def test_the_hash_of_the_source_holds_the_neighbours(tmp_path):
    path = with_neighbours(tmp_path)
    (tmp_path / "unrelated.py").write_text("A = 1\n")
    family = families.load((str(path),))["mine_mine"]
    hashes = [source_hash(family)]
    for name in ("helper.py", "deeper.py", "parts/__init__.py", "parts/one.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
        hashes.append(source_hash(family))
    assert len({*hashes}) == 5
    (tmp_path / "unrelated.py").write_text("A = 2\n")
    assert source_hash(family) == hashes[-1]


def test_neighbours_of_one_name_in_two_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = with_neighbours(tmp_path / "a"), with_neighbours(tmp_path / "b", name="yours")
    with pytest.raises(UsageError) as caught:
        families.load((str(one), str(two)))
    assert str(caught.value) == (
        "--plugin b/yours.py: it imports 'helper', which lies beside it, but that name already "
        "means a/helper.py: rename the one beside it"
    ) or "'deeper'" in str(caught.value)
    plain = plugin(tmp_path / "b", MINE, "plain")  # imports none of them
    assert {"mine_mine", "mine_plain"} <= {*families.load((str(one), str(plain)))}


def test_plugins_of_one_file_name_are_modules_of_their_own(tmp_path):
    one = plugin(tmp_path / "a")
    two = plugin(tmp_path / "b", MINE.replace("NAME", "yours"))
    known = families.load((str(one), str(two)))
    classes = known["mine_mine"].case, known["yours"].case
    assert [vars(sys.modules[cls.__module__])["MyCase"] for cls in classes] == [*classes]


def test_a_neighbour_of_an_installed_modules_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = plugin(tmp_path, f"import yaml\n{MINE}")
    (tmp_path / "yaml.py").write_text("A = 1\n")
    with pytest.raises(UsageError, match=r"it imports 'yaml'.*already means yaml/__init__.py"):
        families.load((str(path),))


@pytest.mark.parametrize("line", ["from . import helper", "from .helper import twice"])
def test_a_relative_import_is_refused_in_words(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path, f"{line}\n{MINE}")
    with pytest.raises(UsageError, match=r"--plugin mine.py:1: the file is in no package.*'helper"):
        families.load((str(tmp_path / "mine.py"),))


def test_repro_writes_the_neighbours_into_its_script(tmp_path):
    path = with_neighbours(tmp_path / "a")
    (tmp_path / "s.yaml").write_text(
        "name: s\nmeasure: {max_seconds: 0.1}\n"
        "families: {mine_mine: {cases: [{n: 8, dtype: fp32}]}}\n"
    )
    done = kb("run", str(tmp_path / "s.yaml"), "--plugin", str(path), "--quiet",
              "--out", str(tmp_path / "out"))  # fmt: skip
    assert done.exit_code == 0, done.output
    (run,) = store.find_runs([tmp_path / "out"])
    script, _ = repro("n8-fp32-fwd", "plain", run)
    from test_repro import run_alone

    (tmp_path / "alone").mkdir()
    ran = run_alone(script, tmp_path / "alone")
    assert ran.returncode == 0, ran.stderr
    assert "mine_mine n8-fp32-fwd · plain" in ran.stdout and "y: relative error" in ran.stdout
