"""What a user says of functions to be measured, as data: of a suite, a manifest, a command line."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kernelbench.spec.errors import UsageError, suggest

COMPILE = {"default": "compile", "max-autotune": "compile_max_autotune"}


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One family made of functions: what `kernelbench bench` is asked, and what stands in a suite
    under `functions`.

    against: the reference: the baseline and, in fp64, the oracle. candidates: by name. args: see
    `families.functions.arguments`. grad: arguments
    that have a gradient, `all` for all that can. compile: modes of torch.compile in which the
    reference runs, too. inputs: a function that makes the arguments. oracle: a function that is
    right, in place of the reference in fp64. imports: files and modules to import first.
    max_error: of approximate candidates, the relative error that they promise.
    """

    name: str
    against: str
    candidates: Mapping[str, str] = field(default_factory=dict)
    args: str = ""
    grad: tuple[str, ...] = ()
    compile: tuple[str, ...] = ()
    inputs: str = ""
    oracle: str = ""
    imports: tuple[str, ...] = ()
    max_error: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mode in self.compile:
            if mode not in COMPILE:
                raise UsageError(f"{self.name}: compile: no mode {mode!r}{suggest(mode, COMPILE)}")
        for name in self.max_error:
            if name not in self.candidates:
                hint = suggest(name, self.candidates)
                raise UsageError(f"{self.name}: max_error: no candidate {name!r}{hint}")
            if not 0 < self.max_error[name] < 1:
                raise UsageError(
                    f"{self.name}: max_error: a relative error between 0 and 1, got "
                    f"{self.max_error[name]}"
                )
        if not self.args and not self.inputs:
            raise UsageError(f"{self.name}: says neither args nor inputs: nothing to call it with")

    def as_json(self) -> str:
        """One line, that stands among the plugins of a run."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def of(name: str, facts: Mapping[str, Any]) -> "Declaration":
        """From plain data, in which a list of one may be without its brackets."""
        typed: dict[str, Any] = {k: _tuple(v) if k in LISTS else v for k, v in facts.items()}
        return Declaration(**{**typed, "name": name})

    @staticmethod
    def from_json(text: str) -> "Declaration":
        """The inverse of `as_json`. Raises UsageError for what another version wrote."""
        try:
            facts = json.loads(text)
            return Declaration.of(facts["name"], facts)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"a declared function is not understood: {error}") from None

    def moved(self, base: Path) -> "Declaration":
        """With files named from the working directory that were named from `base`."""
        return self._renamed(lambda place: os.path.relpath(base / place))

    def from_folder(self, folder: Path) -> "Declaration":
        """With files named from `folder` that were named from the working directory."""
        return self._renamed(lambda place: os.path.relpath(place, folder))

    def _renamed(self, rename: Callable[[str], str]) -> "Declaration":
        def renamed(text: str) -> str:
            place, colon, rest = (text, "", "") if text.endswith(".pt2") else text.partition(":")
            if not place.endswith((".py", ".pt2")) or Path(place).is_absolute():
                return text
            return f"{rename(place)}{colon}{rest}"

        return replace(
            self,
            against=renamed(self.against),
            inputs=renamed(self.inputs),
            oracle=renamed(self.oracle),
            candidates={name: renamed(text) for name, text in self.candidates.items()},
            imports=tuple(renamed(text) for text in self.imports),
        )


LISTS = ("grad", "compile", "imports")


def _tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def is_declared(plugin: str) -> bool:
    """Whether a plugin of a run is no file but a declaration."""
    return plugin.startswith("{")
