"""ring_flash_attn's zigzag paths on our kernels.

    from kernelbench.integrations import ring_flash_attn
    patch = ring_flash_attn.patch()
    …
    patch.undo()

Released (0.1.8), `zigzag_ring_flash_attn_func` and `zigzag_ring_flash_attn_varlen_func`, with their
kvpacked and qkvpacked forms, are thin: what they call, an autograd.Function, is replaced, so that
it does not matter who has imported them before. Forks have a path of their own,
`zigzag_llama3_flash_attn_varlen`, which gathers keys and values and then calls a function of 15
arguments for the attention of a rank's two chunks: this function is replaced, and the path's own
backward goes on from our o and lse.

Environment variables, read when it is patched:
    ZIGZAG_USE_FUSED_TRITON_V2: 0 for the package's own functions all the same; 1 unless set.
    ZIGZAG_VERIFY_CORRECTNESS: 1 to call both and compare, gradients of the released paths, too; an
        error beyond the budget of the dtype raises, on every rank of a released path.
    ZIGZAG_PROFILE_KERNELS: 1 for an NVTX range around each forward call.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, TracebackType
from typing import Any

from kernelbench.integrations.ring_flash_attn.comparison import (
    WrongAttentionError as WrongAttentionError,
)
from kernelbench.integrations.ring_flash_attn.flags import Flags as Flags
from kernelbench.integrations.ring_flash_attn.grouped import Grouped as Grouped
from kernelbench.integrations.ring_flash_attn.grouped import grouped_attention as grouped_attention
from kernelbench.integrations.ring_flash_attn.grouped import replaced as _grouped
from kernelbench.integrations.ring_flash_attn.released import Communication, Zigzag

PACKAGE = "ring_flash_attn"
MODULES = (
    "zigzag_llama3_flash_attn_varlen",
    "zigzag_ring_flash_attn",
    "zigzag_ring_flash_attn_varlen",
)
NAMES = (
    "execute_grouped_attention",  # of forks, as they call it
    "execute_two_kernels_mode",
    "ZigZagRingFlashAttnFunc",
    "ZigZagRingFlashAttnVarlenFunc",
)


@dataclass
class Patch:
    """What was replaced: modules, names in them and originals. `undo`, or the end of a `with`, puts
    it back."""

    replaced: list[tuple[ModuleType, str, Any]] = field(default_factory=list)

    def undo(self) -> None:
        """Put the package's own functions back; once more is no matter."""
        for module, name, original in self.replaced:
            setattr(module, name, original)
        self.replaced = []

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def patch(
    module: ModuleType | None = None,
    flags: Flags | None = None,
    *,
    heads_k_stride: int = 1,
    cp_comm_type: str = "all_gather",
) -> Patch:
    """Replace the attention of ring_flash_attn's zigzag paths by ours.

    module: the one to patch; all of the installed package that have a zigzag path unless given.
    flags: instead of the environment.
    heads_k_stride, cp_comm_type: of the released paths, as `zigzag_attention_func` takes them.

    Released paths take causal attention without dropout, windows, ALiBi and `return_attn_probs`,
    and raise NotImplementedError for these.
    Raises ImportError where the package cannot be imported or has none of the functions.
    """
    flags = Flags.of(os.environ) if flags is None else flags
    modules = _installed() if module is None else [module]
    found = [(each, name) for each in modules for name in NAMES if hasattr(each, name)]
    if not found:
        names = ", ".join(each.__name__ for each in modules)
        raise ImportError(f"{names or PACKAGE} has none of the functions {', '.join(NAMES)}")
    patched = Patch()
    if not flags.fused:
        return patched
    communication = Communication(cp_comm_type, heads_k_stride)
    released = partial(Zigzag, flags=flags, communication=communication)
    make: dict[str, Callable[[Any], Any]] = {
        "ZigZagRingFlashAttnFunc": partial(released, packed=False),
        "ZigZagRingFlashAttnVarlenFunc": partial(released, packed=True),
    }
    for each, name in found:
        original = getattr(each, name)
        replacement = make[name](original) if name in make else _grouped(original, flags)
        setattr(each, name, replacement)
        patched.replaced.append((each, name, original))
    return patched


def _installed() -> list[ModuleType]:
    try:
        importlib.import_module(PACKAGE)
    except ImportError as error:
        raise ImportError(
            f"{PACKAGE} cannot be imported ({error}): pip install ring-flash-attn, and what it "
            "imports, flash-attn and transformers"
        ) from None
    names = [f"{PACKAGE}.{name}" for name in MODULES]
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]
