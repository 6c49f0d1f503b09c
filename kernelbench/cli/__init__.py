"""The command line: one function a verb, no logic, imports inside the verbs."""

# In the order in which `--help` lists their verbs.
from kernelbench.cli import measuring  # isort: skip
from kernelbench.cli import spreading  # isort: skip
from kernelbench.cli import reading  # isort: skip
from kernelbench.cli import looking  # isort: skip
from kernelbench.cli import making  # isort: skip
from kernelbench.cli.app import app

__all__ = ["app", "looking", "making", "measuring", "reading", "spreading"]
