"""`python -m kernelbench`."""

from kernelbench.cli import app

app(prog_name="kernelbench")
