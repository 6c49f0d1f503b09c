"""Help is whole sentences at any width: nothing is cut, and exit codes are stated."""

import re
from typing import Any

import pytest
import typer.main

from kernelbench.cli import app

WIDTHS = (60, 80, 200)
ROOT: Any = typer.main.get_command(app)
VERBS = [(), *((name,) for name in ROOT.commands), ("cache", "clear"), ("new", "family")]
CUT = re.compile(r"[^\].A-Z}]\.\.\.|…")  # `[SUITE]...` and `DIR...` mean several


def command(verb: tuple[str, ...]) -> Any:
    found = ROOT
    for name in verb:
        found = found.commands[name]
    return found


def shown(verb: tuple[str, ...], width: int) -> str:
    """As a terminal of this width shows it; Click's own limit is 80."""
    of = command(verb)
    text = of.get_help(typer.Context(of, info_name="kernelbench", terminal_width=width - 2))
    assert max(map(len, text.splitlines())) <= width
    return text


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_no_help_is_cut(verb: tuple[str, ...], width: int) -> None:
    text, of = shown(verb, width), command(verb)
    assert not CUT.search(text), CUT.findall(text)
    whole = flat(text)
    assert flat(of.help) in whole
    for parameter in of.params:
        assert flat(parameter.help) in whole, parameter.name
    for name, each in getattr(of, "commands", {}).items():
        first = re.match(r"[^.]*(\.(?!\s)[^.]*)*\.", flat(each.help))
        assert first and f"{name} {first[0].removesuffix('.')}" in whole


@pytest.mark.parametrize("verb", VERBS[1:], ids=" ".join)
def test_every_verb_states_its_exit_codes_and_every_option_is_a_sentence(
    verb: tuple[str, ...],
) -> None:
    of = command(verb)
    assert re.search(r"^Exit code: 0 .*2 ", of.help, re.M | re.S)
    for parameter in of.params:
        assert re.fullmatch(r"[A-Z][a-z]+ .*\.", parameter.help), (parameter.name, parameter.help)


def test_what_a_shell_completes_is_not_cut_either() -> None:
    items = ROOT.shell_complete(typer.Context(ROOT), "")
    assert {item.value for item in items} >= {"run", "check"}
    assert all(item.help.endswith(".") and not CUT.search(item.help) for item in items)
