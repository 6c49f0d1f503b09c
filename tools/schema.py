"""Write kernelbench/suite.schema.json, by which editors complete and check suites."""

import json
from pathlib import Path

from kernelbench import families, suite

path = Path(suite.__file__).parent.parent / "suite.schema.json"
path.write_text(json.dumps(suite.json_schema(families.load()), indent=1) + "\n", encoding="utf-8")
