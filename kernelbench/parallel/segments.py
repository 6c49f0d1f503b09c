"""Segments of dilated attention that several ranks share: which ranks, what they send each other,
and by which group.

Shapes: L tokens of a rank, H heads of q, G of k and v, D head size; k, v (B,L,G,D).
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch import Tensor

from kernelbench.kernels.dilated_attention.checks import offsets_of
from kernelbench.nn.branches import Piece, pieces_of, repeated
from kernelbench.nn.spans import Span

# Groups of some ranks of a group, by these: each is a communicator, which all modules share.
_GROUPS: WeakKeyDictionary[Any, dict[range, Any]] = WeakKeyDictionary()


class Ranks(NamedTuple):
    """group: of torch.distributed. rank of `ranks`, which have `rows` tokens each."""

    group: Any
    rank: int
    ranks: int
    rows: int


class Kept(NamedTuple):
    """Rows of a segment that spans ranks, of heads with one offset. piece: this rank's, of q. keys:
    heads of k and v that these share, each once; None: for each head of q its own. sent: how many
    that are. counts: how many rows each rank of the segment has."""

    piece: Piece
    keys: slice | None
    sent: int
    counts: list[int]

    def taken(self, x: Tensor, H: int) -> Tensor:
        """This rank's rows of k or v."""
        rows = x[:, self.piece.first :: self.piece.rate]
        return repeated(rows, H)[:, :, self.piece.heads] if not self.keys else rows[:, :, self.keys]

    def add(self, sums: Tensor, each: Tensor, H: int) -> None:
        """To a sum like k or v, what is like `taken`."""
        rows = sums[:, self.piece.first :: self.piece.rate]
        if self.keys:
            rows[:, :, self.keys].add_(each)
            return
        wide = each.new_zeros(*rows.shape[:2], H, rows.shape[3])
        wide[:, :, self.piece.heads] = each
        rows.add_(wide.unflatten(2, (rows.shape[2], -1)).sum(3))

    def sizes(self, B: int, D: int) -> tuple[int, ...]:
        """Of this class in a rank's message: k and v, samples, rows, heads, D."""
        return 2, B, max(self.counts), self.sent, D


class Branch(NamedTuple):
    """Of a rank. spans: what it attends to of its own keys. members: ranks that share a segment
    with it. classes: what they send each other, in group."""

    spans: list[Span]
    members: range
    classes: list[Kept]
    group: Any

    @property
    def shared(self) -> bool:
        return len(self.members) > 1 and bool(self.classes)


def misfit(lengths: Iterable[int], rows: int, N: int) -> str | None:
    """Why ranks of so many tokens each, N in all, cannot share segments so long, or None."""
    for w in lengths:
        if rows % w and (w < rows or (w % rows and w < N)):
            return (
                f"RingDilatedAttention takes segments that divide a rank's {rows} tokens, or are a "
                f"multiple of them, got {w}"
            )
    return None


def unmade(lengths: Iterable[int], at: Ranks) -> str | None:
    """Why some ranks of a group cannot have a group of their own, where that is bound to devices:
    PyTorch splits it from that of all ranks (ncclCommSplit), which all of them take part in; or
    None."""
    spans = {-(-w // at.rows) for w in lengths if w > at.rows > 0}
    some = [span for span in spans if span < at.ranks]
    if not some or not _is_bound():
        return None
    alone = [span for span in some if at.ranks % span == 1]
    if at.ranks == dist.get_world_size() and not alone:
        return None
    return (
        f"RingDilatedAttention needs groups of {min(alone or some)} of {at.ranks} ranks, which "
        f"would wait for ever for the others of {dist.get_world_size()}: init_process_group was "
        "given device_id. Leave that out, or let no rank be alone, of a group of all ranks"
    )


def _is_bound() -> bool:
    """Whether the group of all ranks was made for a device."""
    return getattr(dist.group.WORLD, "bound_device_id", None) is not None


def branch_of(H: int, G: int, at: Ranks, w: int, r: int, rule: str, causal: bool) -> Branch:
    """What a rank's part in the branch (w, r) is; H heads of q, G of k and v."""
    L = at.rows
    if w <= L:
        pieces = pieces_of(w, r, L, H, rule, at.rank * L // w)
        return Branch([Span(x, x, causal) for x in pieces], range(at.rank, at.rank + 1), [], None)
    span = -(-w // L)
    first = at.rank // span * span
    members = range(first, min(first + span, at.ranks))
    classes = [*_kept_of(H, G, at, members, w, r, rule)]
    spans = [Span(one.piece, one.piece, causal) for one in classes if one.piece.rows]
    return Branch(spans, members, classes, _group_of(at, members) if len(members) > 1 else None)


def _group_of(at: Ranks, members: range) -> Any:
    """That of some ranks of a group, made by them alone; see `unmade`."""
    if len(members) == at.ranks:
        return at.group
    of: Any = at.group or dist.group.WORLD
    known = _GROUPS.setdefault(of, {})
    if members not in known:
        known[members] = dist.new_group(
            [dist.get_global_rank(of, rank) for rank in members],
            backend=dist.get_backend(of),
            use_local_synchronization=True,
        )
    return known[members]


def _kept_of(
    H: int, G: int, at: Ranks, members: range, w: int, r: int, rule: str
) -> Iterator[Kept]:
    heads, turn = offsets_of(rule, H, r)
    segment = members[0] * at.rows // w
    offsets: dict[int, list[int]] = {}
    for h in range(H):
        offsets.setdefault((h // heads + segment * turn) % r, []).append(h)
    for offset, some in offsets.items():
        begins = [(offset - i * at.rows) % r for i in range(len(members))]
        counts = [len(range(begin, at.rows, r)) for begin in begins]
        if any(counts):
            own = at.rank - members[0]
            step = some[1] - some[0] if len(some) > 1 else 1
            heads_of_q = slice(some[0], some[-1] + 1, step)
            piece = Piece(begins[own], 1, at.rows, counts[own], r, heads_of_q)
            keys = _keys_of(some, H // G)
            number = len(range(*keys.indices(G))) if keys else len(some)
            yield Kept(piece, keys, number, counts)


def _keys_of(heads: list[int], group: int) -> slice | None:
    """Which heads of k and v those of q take, where as many that follow each other share one, and
    those are as far apart."""
    each = [h // group for h in heads]
    once = [*dict.fromkeys(each)]
    share = len(each) // len(once)
    step = once[1] - once[0] if len(once) > 1 else 1
    keys = slice(once[0], once[-1] + 1, step)
    alike = each == [h for h in range(*keys.indices(once[-1] + 1)) for _ in range(share)]
    return keys if alike else None
