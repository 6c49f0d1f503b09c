"""The runs that the README quotes, in pieces that fit a machine that is lent for minutes.

    python tools/campaign.py --seconds 540 --out OUT          # goes on where OUT left off
    python tools/campaign.py --seconds 540 --out OUT layer    # these pieces alone

Each piece is a run folder below OUT/PIECE; a piece that is begun is resumed, one that is whole is
left as it is. Run it from a clean checkout: manifests name the commit. Exit code: 0 all that was
asked is whole, 1 time ran out first or a provider was wrong.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PIECES = {
    "layer": "rcm_seed --family rcm_layer --family dit_block",
    "bwd64": "rcm_seed --family rcm_attention --mode bwd --filter -D64",
    "bwd128": "rcm_seed --family rcm_attention --mode bwd --filter (2048|8192).*-D128",
    "longgrad": "rcm_seed --family rcm_attention --mode bwd --filter N(32768|65536)",
    "long": "rcm_seed --family rcm_attention --mode fwd --filter N(32768|65536)",
    "fwd": "rcm_seed --family rcm_attention --mode fwd --filter N[1248]...?-",
    "attn64": "attention --mode fwd --filter -D64-",
    "attn128": "attention --mode fwd --filter ^[^=]*-D128-[^=]*$",
    "documents": "attention --mode fwd --filter =",
    "grad64": "attention --mode bwd --filter -D64-",
    "grad128": "attention --mode bwd --filter ^[^=]*-D128-[^=]*$",
    "docgrad": "attention --mode bwd --filter =",
    "nfwd": "h200 --family rms_norm --mode fwd --filter /(?!.*residual)",
    "nbwd": "h200 --family rms_norm --mode bwd --filter /(?!.*residual)",
    "nres": "h200 --family rms_norm --filter residual",
    "rotary": "h200 --family rotary",
    "swiglu": "swiglu",
    "train": "train_step",
}
LEAST_S = 30  # with less left no piece is begun
# FlashAttention-4 compiles for every process anew, unless it is told to keep what it has.
KEPT = {"FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pieces", nargs="*", choices=[[], *PIECES])
    parser.add_argument("--seconds", type=float, required=True, help="for all of them together")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    os.environ.update(KEPT)
    end, code = time.monotonic() + asked.seconds, 0
    for piece in asked.pieces or PIECES:
        left = end - time.monotonic()
        if left < LEAST_S:
            print(f"{piece}: not begun, {max(left, 0):.0f} s are left")
            code = 1
            continue
        started = time.monotonic()
        whole, said = measure(PIECES[piece].split(), asked.out / piece, left)
        print(f"{piece}: {said}, {time.monotonic() - started:.0f} s", flush=True)
        code = code if whole else 1
    return code


def measure(words: list[str], out: Path, seconds: float) -> tuple[bool, str]:
    """Begin a piece or go on with it; whether it is whole and right, and in words.

    A job that has begun when the time is over, as it may be with a compiler that tries everything,
    is interrupted: the run keeps what it has, and the job is done again.
    """
    runs = sorted(out.glob("*/manifest.json"))
    what = ["--resume", str(runs[-1].parent)] if runs else words
    options = ["--out", str(out), "--budget", f"{seconds:.0f}s", "--json"]
    command = [sys.executable, "-m", "kernelbench", "run", *what, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        shown, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate()
        return False, "interrupted"
    if process.returncode not in (0, 1):
        return False, f"exit code {process.returncode}"
    (run,) = json.loads(shown)
    bad = sorted({r["status"] for r in run["records"]} - {"ok", "skipped"})
    left = f"{run['jobs_left']} jobs left" if run["jobs_left"] else "whole"
    return not (bad or run["jobs_left"]), f"{left}{', ' + ' '.join(bad) if bad else ''}"


if __name__ == "__main__":
    sys.exit(main())
