"""`kernelbench cache`: what is kept of earlier runs and reports."""

import json

from kernelbench.measure import tune
from kernelbench.report import cache
from kernelbench.report.progress import Output


def show(output: Output) -> int:
    """Where it lies, and how much it is."""
    configs, reports = len(tune.cached_files()), len(cache.files())
    if output.as_json:
        facts = {
            "folder": str(tune.cache_dir()),
            "configs": configs,
            "reports": str(cache.folder()),
            "derived": reports,
        }
        print(json.dumps(facts))
    else:
        output.say(f"{configs} tuned configs in {tune.cache_dir()}")
        output.say(f"{reports} runs' derived figures in {cache.folder()}")
    return 0


def clear(output: Output) -> int:
    """Forget every tuned config, and every figure that `report` derived."""
    output.say(f"{tune.clear()} tuned configs forgotten")
    output.say(f"{cache.clear()} runs' derived figures forgotten")
    return 0
