"""Writes the script: the record, its sources verbatim, the loop, and a call."""

from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

from kernelbench.repro import loop

HEAD = '''\
#!/usr/bin/env python3
"""{title}

{kind}

Written by `kernelbench repro`. Needs torch{triton}; embeds the sources that it runs:
{files}
On a machine without a GPU it checks correctness in Triton's interpreter (small cases only) and
prints no time. Exit code: 0 right, 1 an error above its budget.

Under a profiler (no latency to quote), where FILE.py is this script:
    nsys profile -t cuda,nvtx -o repro python FILE.py
    ncu --cache-control all --clock-control none {filter}--launch-count 20 \\
        --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum python FILE.py
"""
'''
TAIL = '''
def unpack(folder: str) -> None:
    """The embedded sources as files: Triton reads the text of its kernels."""
    for name, text in FILES.items():
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if not torch.cuda.is_available():  # before any kernel is defined
        os.environ["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        unpack(folder)
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        family = importlib.import_module({module!r}).FAMILY
        sys.exit(reproduce(family, RECORD))
'''
IMPORTS = "import importlib\nimport os\nimport pathlib\nimport sys\nimport tempfile\n"


def write(record: Mapping[str, Any], files: Mapping[str, str], module: str, notes: str = "") -> str:
    """The script. record: what `loop.reproduce` reads; module: the one that has FAMILY."""
    paths = [name for name, text in files.items() if text.strip()]
    uses_triton = any("triton" in text for name, text in files.items() if "/kernels/" in name)
    body = Path(loop.__file__).read_text(encoding="utf-8")
    blocks = "\n".join(f"FILES[{name!r}] = {_quoted(text)}\n" for name, text in files.items())
    kind = f"Recorded: {record['expected'] or 'no time'}."
    head = HEAD.format(
        title=_escaped(
            f"Reproduces {record['family']}/{record['case']}, provider {record['provider']}."
        ),
        kind=_escaped(f"{kind}\n{notes}".strip()),
        triton=" and triton" if uses_triton else "",
        files=_escaped("\n".join(f"    {name}" for name in paths)),
        filter="-k regex:'^(?!.*(vectorized|reduce|fill)).*' " if uses_triton else "",
    )
    facts = pformat(dict(record), width=96, sort_dicts=False)
    docstring, _, code = body.partition('"""\n\n')
    assert docstring.startswith('"""')
    return (
        f"{head}\n{IMPORTS}{code.rstrip()}\n\nRECORD = {facts}\n\n"
        f"FILES: dict[str, str] = {{}}\n{blocks}\n{TAIL.format(module=module)}"
    )


def _escaped(text: str) -> str:
    """Escaped, so that text from a record cannot end the docstring that it is put into."""
    text = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    plain = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return "".join(plain)


def _quoted(text: str) -> str:
    """As a literal: verbatim in raw triple quotes where possible."""
    if "'''" in text or text.endswith(("'", "\\")):
        return repr(text)
    return f"r'''{text}'''" if text else "''"
