"""Which provider to use where, by what was measured: tables, and choices. Standard library only."""

from kernelbench.dispatch.choice import Choice as Choice
from kernelbench.dispatch.choice import Dispatch as Dispatch
from kernelbench.dispatch.choice import NoChoiceError as NoChoiceError
from kernelbench.dispatch.monitor import Look as Look
from kernelbench.dispatch.monitor import Monitor as Monitor
from kernelbench.dispatch.table import Entry as Entry
from kernelbench.dispatch.table import FamilyTable as FamilyTable
from kernelbench.dispatch.table import Option as Option
from kernelbench.dispatch.table import Table as Table
from kernelbench.dispatch.table import TableError as TableError
from kernelbench.dispatch.table import Where as Where
from kernelbench.dispatch.tree import as_python as as_python
