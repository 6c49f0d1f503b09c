"""Which query rows a block of 128 keys meets in `hopper.fused`, and in what order.

A program goes through tiles of query rows, of one head of q after another where heads share keys.
Of packed sequences it takes the tiles that hide something first: the last one, behind whose rows
another sequence's begin, then those on the diagonal. The others are not masked. Where keys are seen
by two sequences of queries, as by both chunks of zigzag's, one comes after the other.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


class Place(NamedTuple):
    """The keys of a program: sample, head of k, row of (B, heads of k), the first key; tiles of
    query rows of each head that they meet; rows of a sample. span: of packed sequences, else
    None."""

    b: Any
    h: Any
    bh: Any
    key: Any
    tiles: Any
    N: Any
    span: Any


class Span(NamedTuple):
    """The packed sequence of a program.

    begin, end: the first query row of its tiles, and the one behind the sequence's last. keys_end:
    the key behind its last; stored: behind the last that dk and dv have. shift: row r sees keys up
    to r + shift where causal. masked: so many tiles come first that hide something; tail: 1 if the
    last one is the first of them, else 0. turn: the tile that comes first of the others. heads: of
    k. steps: tiles, of all heads, that come before.
    """

    begin: Any
    end: Any
    keys_end: Any
    stored: Any
    shift: Any
    masked: Any
    tail: Any
    turn: Any
    heads: Any
    steps: Any


class Sequences(NamedTuple):
    """Packed sequences, and their tiles of keys.

    q_starts, k_starts, S, keys: as `places.Packed` has them. listed: what `order.list_tiles` writes
    of keys. heads: of k, of a section. dk_ptr, dv_ptr: (keys, heads of k, D) and contiguous, for
    keys of a tile within which a sequence ends. lse_ptr, delta_ptr: statistics, (heads of q, N).
    """

    q_starts: Any
    k_starts: Any
    S: Any
    keys: Any
    listed: Any
    heads: Any
    dk_ptr: Any
    dv_ptr: Any
    lse_ptr: Any
    delta_ptr: Any


class Pointers(NamedTuple):
    """Of `Sequences`, what the copy engine does not reach."""

    dk_ptr: Any
    dv_ptr: Any
    lse_ptr: Any
    delta_ptr: Any


class Twice(NamedTuple):
    """Keys that two sequences of queries see, and their tiles: place, as LIES takes it; the rest as
    `Sequences` has it."""

    place: Any
    listed: Any
    heads: Any
    dk_ptr: Any
    dv_ptr: Any
    lse_ptr: Any
    delta_ptr: Any


@gluon.jit
def span_of(
    rows,
    ahead,
    keys,
    number,
    LEAST: gl.constexpr,
    BLOCK_M: gl.constexpr,
    CAUSAL: gl.constexpr,
    ROTATED: gl.constexpr,
):
    """The first row that tile `number` of 128 keys meets, in a sequence of so many rows, the first
    of which is as far ahead among so many keys; how many tiles of rows it takes from there, LEAST
    at least; masked, tail and turn of `Span`. The tile behind the tail counts as masked, too: it
    may be then that the tail's part of dq is added.
    """
    first = 0
    if CAUSAL:
        first = max(number * 128 - ahead, 0)
    left = rows - first
    tiles = max((left + BLOCK_M - 1) // BLOCK_M, LEAST)
    tail = min(tiles * BLOCK_M - left, 1)
    masked = 2 * tail
    if CAUSAL:
        hidden = max(number * 128 + 127 - ahead - first, 0)
        masked = tail + max((hidden + BLOCK_M - 1) // BLOCK_M, tail)
    if number * 128 + 128 > keys:
        masked = tiles
    masked = min(masked, tiles)
    turn = 0
    if ROTATED and not CAUSAL:
        turn = number * (128 // BLOCK_M) % max(tiles - tail, 1)
    return first, tiles, masked, tail, turn


@gluon.jit
def row_of(i, at, BLOCK_M: gl.constexpr, CAUSAL: gl.constexpr, ROTATED: gl.constexpr):
    """First query row of tile i of a program."""
    row = i * BLOCK_M
    if at.span is not None:
        tile = i - at.span.tail
        if ROTATED and not CAUSAL:
            tile += at.span.turn
            if tile >= at.tiles - at.span.tail:
                tile -= at.tiles - at.span.tail
        if i < at.span.tail:
            tile = at.tiles - 1
        row = at.span.begin + tile * BLOCK_M
    elif CAUSAL:
        row += at.key
    elif ROTATED:
        row += at.key
        if row >= at.tiles * BLOCK_M:
            row -= at.tiles * BLOCK_M
    return row


@gluon.jit
def step_of(i, member, at, GROUP: gl.constexpr):
    """How many tiles come before tile i of head number `member` of those that share the keys."""
    if GROUP > 1:
        i += member * at.tiles
    if at.span is not None:
        i += at.span.steps
    return i


@gluon.jit
def before(i, member, at, GROUP: gl.constexpr):
    """The tile, and the head, in front of tile i of head number `member`."""
    last = i - 1
    if GROUP > 1:
        wraps = max(1 - i, 0)
        last += wraps * at.tiles
        member -= wraps
    return last, member


@gluon.jit
def head_of(head, member, GROUP: gl.constexpr):
    """A head of q, or its row of (B,H), from that of the keys that it shares."""
    if GROUP > 1:
        head = head * GROUP + member
    return head


@gluon.jit
def find_tile(of, heads):
    """The head and the tile of 128 keys of a program, by `listed` of `Sequences`: whether there is
    one, its sequence, and its number in it. heads: of k."""
    index = gl.program_id(0)
    each = gl.load(of.listed + 1)
    known = index < each * heads
    each = gl.maximum(each, 1)
    section = index // (each * of.heads)
    rest = index % (each * of.heads)
    h = gl.where(known, section * of.heads + rest % of.heads, 0)
    tile = of.listed + 2 + 2 * (rest // of.heads)
    s = gl.load(tile, mask=known, other=0)
    number = gl.load(tile + 1, mask=known, other=0)
    return h, known, s, number


@gluon.jit
def find_keys(of, heads):
    """Of the tile of `find_tile`: the head; where the sequence begins among the rows and among the
    keys, how many it has of each, and the tile's number in it. Of programs that are left over, no
    rows and no keys."""
    h, known, s, number = find_tile(of, heads)
    below = gl.minimum(s + 1, of.S)
    q0 = gl.load(of.q_starts + s)
    k0 = gl.load(of.k_starts + s)
    rows = gl.load(of.q_starts + below) - q0
    keys = gl.where(s == of.S, of.keys, gl.load(of.k_starts + below)) - k0
    rows = gl.where(known, gl.maximum(rows, 0), 0)
    keys = gl.where(known, keys, 0)
    return h, q0, k0, rows, keys, number


@gluon.jit
def place_of_part(
    of,
    found,
    N,
    heads,
    steps,
    PART: gl.constexpr,
    LIES: gl.constexpr,
    BLOCK_M: gl.constexpr,
    CAUSAL: gl.constexpr,
    ROTATED: gl.constexpr,
):
    """The place of a program, see `Twice`, for one of the sequences that see its keys. found: as
    `find_tile` has it. heads: of k. LIES(place, s, part): the first row, how many there are, how
    far their positions among the keys are ahead, the first key, and how many there are, first those
    that are seen, then those that dk and dv have."""
    h, known, s, number = found
    q0, rows, ahead, k0, keys, stored = LIES(of.place, s, PART)
    rows = gl.where(known, gl.maximum(rows, 0), 0)
    keys = gl.where(known, keys, 0)
    stored = gl.where(known, stored, 0)
    if CAUSAL:  # the first tile of keys is the longest
        number = gl.maximum((stored + 127) // 128 - 1 - number, 0)
    rows = gl.where(number * 128 < keys, rows, 0)  # nobody sees what is padded
    first, tiles, masked, tail, turn = span_of(
        rows, ahead, keys, number, 0, BLOCK_M, CAUSAL, ROTATED
    )
    shift = k0 - q0 + ahead
    ends = k0 + keys, k0 + stored
    none = number * 0  # what is returned holds no constants: Triton 3.6
    span = Span(q0 + first, q0 + rows, *ends, shift, masked, tail, turn, heads, none + steps)
    return Place(none, h, h, k0 + number * 128, tiles, N, span)
