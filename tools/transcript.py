"""For cog: what a command prints, as a fenced block of a document."""

import os
import subprocess
import sys

import cog


def transcript(command: str, *, head: int = 1000, tail: int = 0, columns: int = 100) -> None:
    """Run `kernelbench …` as a user at so many columns would, and print prompt and output.

    head, tail: lines to keep of a long output; `…` stands for the others.
    """
    program, *arguments = command.split()
    assert program == "kernelbench"
    done = subprocess.run(
        [sys.executable, "-m", "kernelbench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": str(columns)},
    )
    if done.returncode > 1:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
    if len(lines) > head + tail:
        lines = [*lines[:head], "…", *lines[len(lines) - tail :]]
    cog.outl("\n".join(["```console", f"$ {command}", *lines, "```"]))
