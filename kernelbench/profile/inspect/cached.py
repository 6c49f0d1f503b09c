"""The kernels that a job would launch on a GPU, compiled into Triton's cache by a process that has
no GPU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kernelbench.kernels.ahead_of_time import CompileError, into_cache
from kernelbench.kernels.launch import Target
from kernelbench.measure import tune
from kernelbench.profile.inspect.launches import calls_of, ours
from kernelbench.spec import Context, Device, Family, Job, Provider


@dataclass(frozen=True)
class Kernel:
    """What became of one launch. compiled: False where the cache had its kernel. error: why it did
    not compile, or why its provider cannot be called without memory; then `name` is the
    provider's."""

    name: str
    compiled: bool = False
    error: str = ""


@dataclass(frozen=True)
class Compiling:
    """How jobs are compiled: for the GPU of a `machine`, as `measure.environment` describes it, and
    where `search` says so with every config of a provider.

    The configs are those that the worker will take, a stored search's included.
    """

    machine: Mapping[str, Any]
    search: bool = False

    @property
    def device(self) -> Device:
        facts = {name: self.machine[name] for name in ("name", "total_bytes", "l2_bytes", "sms")}
        number = int(self.machine["arch"].removeprefix("sm_"))
        return Device(kind="cuda", capability=divmod(number, 10), **facts)

    def job(self, family: Family[Any], job: Job, source: str) -> Iterator[Kernel]:
        """Every kernel once, in the order in which the worker first launches them."""
        for name in job.providers:
            provider = family.provider(name)
            if ours(provider) and provider.unsupported(job.case, self.device) is None:
                for config in self._configs(provider, job, source):
                    yield from self._called(family, job, provider, config)

    def _configs(self, provider: Provider[Any], job: Job, source: str) -> list[Any]:
        if provider.configs is None:
            return [None]
        device = self.device
        configs = list(provider.configs(job.case, device))
        context = Context(run_id="", gpu=device.name, seed=0, source=source)
        known, _ = tune.choose(configs, tune.identity(device, context, job, provider))
        return configs if self.search else [known]

    def _called(
        self, family: Family[Any], job: Job, provider: Provider[Any], config: Any
    ) -> Iterator[Kernel]:
        arch = self.machine["arch"]
        target = Target(arch, self.machine["sms"])
        try:
            launches, _ = calls_of(family, job.case, provider, config, target)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            yield Kernel(provider.name, error=f"{type(error).__name__}: {error}")
            return
        for launch in launches:
            name = launch.kernel.__name__
            try:
                compiled = into_cache(launch, arch)
            except CompileError as error:
                yield Kernel(name, error=str(error))
            else:
                if compiled is not None:
                    yield Kernel(name, compiled)
