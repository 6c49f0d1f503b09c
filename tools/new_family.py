"""For cog: the file that `kernelbench new family` writes, as a fenced block of a document."""

import cog

from kernelbench.verbs import new


def new_family(name: str) -> None:
    cog.outl(f"```python\n{new.family_text(name)}```")
