"""The kernels that a job would launch on a GPU, compiled into Triton's cache by a process that has
no GPU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kernelbench.kernels.ahead_of_time import into_cache
from kernelbench.kernels.launch import Target
from kernelbench.measure import tune
from kernelbench.measure.workload import why_not
from kernelbench.profile.inspect.launches import calls_of, ours
from kernelbench.spec import Context, Device, Family, Job, Provider

_OF_DEVICE = ("name", "total_bytes", "l2_bytes", "sms", "no_triton")


@dataclass(frozen=True)
class Compiling:
    """For the GPU of a `machine`, as `measure.environment` describes it, with the configs that a
    worker takes: of the table or of a stored search; all of them, where it is to `search`."""

    machine: Mapping[str, Any]
    search: bool = False

    def job(self, family: Family[Any], job: Job, source: str) -> Iterator[tuple[str, str]]:
        """Every kernel once, in the order in which the worker first launches them: `compiled`,
        `found` (in the cache) or `failed`, and then why."""
        arch = self.machine["arch"]
        device = Device(
            kind="cuda",
            capability=divmod(int(arch.removeprefix("sm_")), 10),
            **{name: self.machine[name] for name in _OF_DEVICE},
        )
        for provider in map(family.provider, job.providers):
            if not ours(provider) or why_not(provider, job.case, device) is not None:
                continue
            for config in self._configs(provider, job, source, device):
                target = Target(arch, device.sms)
                try:
                    launches, _ = calls_of(family, job.case, provider, config, target)
                    for launch in launches:
                        if (compiled := into_cache(launch, arch)) is not None:
                            yield "compiled" if compiled else "found", ""
                except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                    yield "failed", f"{provider.name}: {type(error).__name__}: {error}"

    def _configs(self, provider: Provider[Any], job: Job, source: str, device: Device) -> list[Any]:
        if provider.configs is None:
            return [None]
        configs = list(provider.configs(job.case, device))
        context = Context(run_id="", gpu=device.name, seed=0, source=source)
        known, _ = tune.choose(configs, tune.identity(device, context, job, provider))
        return configs if self.search else [known]
