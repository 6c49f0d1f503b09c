"""YAML text → a tree of plain values that knows where each of them stands.

Reads a safe, strict part of YAML: one document, no tags, keys are words that stand once, numbers
as in YAML 1.2 (`1e-5` is a number, `010` and `no` are words). Anchors, aliases and merge keys
work; how far they may expand is bounded, and so are depth and size.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from kernelbench.spec import UsageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 24
MAX_NODES = 200_000  # after the aliases are expanded
MAX_PROBLEMS = 100  # shown

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_PARTED = re.compile(r"[-+]?[0-9][0-9.eE+-]*")  # digits in groups, which YAML 1.1 had
_ENDLESS = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Where(NamedTuple):
    """A place in a file, from 1, or (line 0) an option of the command line."""

    source: str
    line: int = 0
    col: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.col}" if self.line else self.source


class Problem(NamedTuple):
    where: Where
    message: str


def refusal(problems: Sequence[Problem]) -> UsageError:
    """One error of all problems in the order of the file, each once, options last."""
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (not p.where.line, p.where[1:]))
    lines = [f"{where}: {message}" for where, message in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"… and {len(ordered) - MAX_PROBLEMS} more")
    return UsageError("\n".join(lines))


@dataclass(frozen=True)
class Node:
    """A scalar, a dict of nodes or a list of nodes; `keys` says where a dict's keys stand."""

    where: Where
    value: Any
    keys: Mapping[str, Where] = field(default_factory=dict)
    size: int = 1  # nodes in it, aliases expanded
    depth: int = 1

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def spot(self, loc: Sequence[str | int], *, key: bool = False) -> Where:
        """Where the value (or its key) at `loc` stands; of its parent if there is none."""
        node, key_where = self, self.where
        for part in loc:
            if isinstance(part, str) and isinstance(node.value, dict) and part in node.value:
                key_where, node = node.keys[part], node.value[part]
            elif isinstance(part, int) and isinstance(node.value, list) and part < len(node.value):
                node = node.value[part]
                key_where = node.where
            else:
                break
        return key_where if key else node.where

    def put(self, path: Sequence[str], new: "Node") -> "Node":
        """A tree with `new` at `path`. Mappings on the way are made. ValueError: no way there."""
        if not path:
            return new
        head, rest = path[0], path[1:]
        if self.value is None or isinstance(self.value, dict):
            items = dict(self.value or {})
            child = items.get(head, Node(new.where, None))
            items[head] = child.put(rest, new)
            return replace(self, value=items, keys={head: new.where, **self.keys})
        if isinstance(self.value, list):
            if not (head.isascii() and head.isdigit() and int(head[:9]) < len(self.value)):
                raise ValueError(f"{head!r} is none of the {len(self.value)} entries, from 0")
            at = int(head[:9])
            child = self.value[at].put(rest, new)
            return replace(self, value=[*self.value[:at], child, *self.value[at + 1 :]])
        raise ValueError(f"{head!r} leads into {self.value!r}, which is not a mapping")


def read_file(path: Path) -> str:
    """The text of a file. Raises UsageError that says where and why it is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: cannot be read: {reason}") from None
    try:
        if len(data) <= MAX_BYTES:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        where = _place(str(path), before, len(before))
        raise UsageError(f"{where}: not UTF-8: byte 0x{data[error.start]:02x}") from None
    raise UsageError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no suite is")


def read(text: str, source: str, *, option: bool = False) -> Node:
    """The tree of a YAML text; of null if it is empty. Raises UsageError with all problems.

    option: the text comes from the command line, where lines mean nothing.
    """
    return _Reader(text, source, option).document()


def read_option(option: str) -> tuple[list[str], Node]:
    """`measure.max_seconds=1` → the path of its key, and its value."""
    key, equals, text = option.partition("=")
    path = key.strip().split(".")
    source = f"--set {key.strip()}"
    if not equals or not all(path):
        raise UsageError(f"{source}: expected key=value, such as measure.max_seconds=1")
    if len(path) > MAX_DEPTH:
        raise UsageError(f"{source}: nested deeper than {MAX_DEPTH} levels")
    return path, read(text, source, option=True)


def _place(source: str, text: str, at: int) -> Where:
    before = text[:at]
    return Where(source, before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1)


class _Reader:
    """Builds the tree from the events of PyYAML's parser, which does not recurse."""

    def __init__(self, text: str, source: str, option: bool) -> None:
        self.text, self.source, self.option = text, source, option
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.merges = 0  # values that merge keys have copied
        self.last = Where(source) if option else Where(source, 1, 1)

    def document(self) -> Node:
        try:
            self.parser = yaml.SafeLoader(self.text)
            root = self._document()
        except yaml.reader.ReaderError as error:
            where = self.last if self.option else _place(self.source, self.text, error.position)
            self._stop(where, f"the character {chr(error.character)!r} may not stand here")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = ": ".join(part for part in (error.context, error.problem) if part)
            self._stop(self._where(mark) if mark else self.last, f"not YAML: {message}")
        except (ValueError, OverflowError) as error:  # PyYAML lets "\U00110000" through to chr()
            self._stop(self._where(self.parser.get_mark()), f"not YAML: {error}")
        if self.problems:
            raise refusal(self.problems)
        return root

    def _document(self) -> Node:
        self._next()  # the stream starts
        if isinstance(self._next(), yaml.StreamEndEvent):
            return Node(self.last, None)
        root = self._node(1)
        self._next()  # the document ends
        following = self._next()
        if not isinstance(following, yaml.StreamEndEvent):
            self._stop(self._where(following.start_mark), "a second document; a file holds one")
        return root

    def _next(self) -> Any:
        event: Any = self.parser.get_event()  # type: ignore[no-untyped-call]
        self.last = self._where(event.start_mark)
        return event

    def _where(self, mark: Any) -> Where:
        return (
            Where(self.source)
            if self.option
            else Where(self.source, mark.line + 1, mark.column + 1)
        )

    def _stop(self, where: Where, message: str) -> NoReturn:
        raise refusal([*self.problems, Problem(where, message)]) from None

    def _node(self, depth: int) -> Node:
        event = self._next()
        where = self.last
        if depth > MAX_DEPTH:
            self._stop(where, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                self._stop(where, f"alias '*{event.anchor}' stands for nothing that ended above it")
            return self._bounded(replace(self.anchors[event.anchor], where=where), depth)
        if event.tag not in (None, "!"):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.append(Problem(where, f"tag {tag!r}: a suite has no tags"))
        if isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(where, depth)
        elif isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(where, depth)
        else:
            node = Node(where, self._scalar(event, where))
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _sequence(self, where: Where, depth: int) -> Node:
        nodes: list[Node] = []
        while not self.parser.check_event(yaml.SequenceEndEvent):
            nodes.append(self._node(depth + 1))
        self._next()
        return self._sized(Node(where, nodes), nodes, depth)

    def _mapping(self, where: Where, depth: int) -> Node:
        items: dict[str, Node] = {}
        keys: dict[str, Where] = {}
        while not self.parser.check_event(yaml.MappingEndEvent):
            key, value = self._node(depth + 1), self._node(depth + 1)
            if not isinstance(key.value, str):
                self.problems.append(Problem(key.where, f"a key is a word, got {_shown(key)}"))
            elif key.value in keys:
                first = keys[key.value]
                message = f" (first at line {first.line})" if first.line else ""
                self.problems.append(Problem(key.where, f"duplicate key {key.value!r}{message}"))
            else:
                keys[key.value] = key.where
                items[key.value] = value
        self._next()
        if "<<" in items:
            del keys["<<"]
            for other in self._merged(items.pop("<<")):
                items = {**items, **{k: v for k, v in other.value.items() if k not in items}}
                keys = {**other.keys, **keys}
        return self._sized(Node(where, items, keys), list(items.values()), depth)

    def _merged(self, value: Node) -> list[Node]:
        nodes = value.value if isinstance(value.value, list) else [value]
        if not all(isinstance(node.value, dict) for node in nodes):
            self.problems.append(Problem(value.where, "'<<' takes a mapping or a list of them"))
            return []
        self.merges += sum(len(node.value) for node in nodes)
        if self.merges > MAX_NODES:
            self._stop(value.where, f"merge keys expand to more than {MAX_NODES} values")
        return nodes

    def _sized(self, node: Node, children: Sequence[Node], depth: int) -> Node:
        size = 1 + sum(child.size for child in children)
        tall = 1 + max((child.depth for child in children), default=0)
        return self._bounded(replace(node, size=size, depth=tall), depth)

    def _bounded(self, node: Node, depth: int) -> Node:
        if node.size > MAX_NODES:
            self._stop(node.where, f"its aliases expand to more than {MAX_NODES} values")
        if depth + node.depth - 1 > MAX_DEPTH:
            self._stop(node.where, f"nested deeper than {MAX_DEPTH} levels")
        return node

    def _scalar(self, event: Any, where: Where) -> Any:
        text: str = event.value
        if any("\ud800" <= char <= "\udfff" for char in text):
            self.problems.append(Problem(where, f"half a character in {text!r}"))
        if event.style is not None or event.tag == "!":
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            if len(text) <= 18:
                return int(text)
            self.problems.append(Problem(where, f"the number {text[:24]}… is too large"))
        elif _FLOAT.fullmatch(text):
            number = float(text)
            if not math.isfinite(number):
                self.problems.append(Problem(where, f"the number {text[:24]} is not finite"))
            elif number == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
                self.problems.append(Problem(where, f"the number {text[:24]} is too small: 0"))
            else:
                return number
        elif "_" in text and _PARTED.fullmatch(text.replace("_", "")):
            message = f"{text[:24]} is no number of YAML 1.2: no underscores, or quotes for text"
            self.problems.append(Problem(where, message))
        elif _ENDLESS.fullmatch(text):
            self.problems.append(Problem(where, f"the number {text} is not finite"))
        return text


def _shown(node: Node) -> str:
    if isinstance(node.value, (dict, list)):
        return "a mapping" if isinstance(node.value, dict) else "a list"
    return repr(node.value)
