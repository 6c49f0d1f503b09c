"""The process that compute-sanitizer watches: one provider, called once on each of its cases.

argv: the file of the request (see `Sanitizer`). Each case that went through is a line,
`{"done": CASE-ID}`, in the file that the request calls `answers`. What a provider raises ends the
process: its traceback is in what the process printed.
"""

import gc
import json
from pathlib import Path
from typing import Any

import torch

from kernelbench import families
from kernelbench.measure import environment
from kernelbench.measure.inputs import CaseInputs
from kernelbench.profile.child import Answers, built, config_of
from kernelbench.spec import Context, Device, Family, Job


def serve(path: str) -> None:
    """The whole life of the process. path: of its request."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    device = environment.device(environment.use(request["device"]))
    family = families.load(tuple(request["plugins"]))[request["family"]]
    answers, context = Answers(request["answers"]), Context(**request["context"])
    for facts in request["jobs"]:
        job = Job.from_json(facts, family.case)
        torch._dynamo.reset()  # it takes few shapes of one function
        _call(family, job, device, context)
        gc.collect()
        answers.write(done=job.case.id)


def _call(family: Family[Any], job: Job, device: Device, context: Context) -> None:
    [name] = job.providers
    provider = family.provider(name)
    inputs = CaseInputs(family, job.case, device.kind, context.seed)
    config = config_of(provider, job, device, context)
    workload = built(family, job, provider, inputs, config)
    with workload.grad_mode():
        workload.restore()
        workload.call()
    if device.kind == "cuda":
        torch.cuda.synchronize()
