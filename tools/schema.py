"""Write kernelbench/suite.schema.json, by which editors complete and check suites, and
kernelbench/families.json, from which `kernelbench list` answers."""

import json
from pathlib import Path

from kernelbench import families, suite
from kernelbench.verbs import list as listing

path = Path(suite.__file__).parent.parent / "suite.schema.json"
path.write_text(json.dumps(suite.json_schema(families.load()), indent=0) + "\n", encoding="utf-8")
listing.SHIPPED.write_text(listing.text(), encoding="utf-8")
