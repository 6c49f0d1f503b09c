"""The optional parts: packages and programs that something here uses where they are.

One list, which a test holds against every `requires` of a provider, every extra of pyproject.toml
and every program that is looked for. Nothing is imported to see whether it is there.
"""

import importlib.metadata
import shutil
import sys
from typing import NamedTuple


class Package(NamedTuple):
    """A distribution. modules: what is imported of it. adds: what is had with it. extra: of ours,
    that brings it; empty where it comes along. python: the oldest that it installs on."""

    requirement: str
    modules: tuple[str, ...]
    adds: str
    extra: str = ""
    python: tuple[int, int] = (3, 11)

    @property
    def name(self) -> str:
        """Without the versions."""
        return self.requirement.partition(">=")[0].partition("=")[0]

    @property
    def version(self) -> str | None:
        """The one that is installed."""
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None

    @property
    def remedy(self) -> str:
        """How to get it: a command for this Python, or which Python it takes."""
        command = f"pip install '{self.requirement}'"
        if sum(self.extra == other.extra for other in PACKAGES) > 1 and self.extra:
            command += f", or all of pip install 'kernelbench[{self.extra}]'"
        if sys.version_info < self.python:
            return f"needs Python {self.python[0]}.{self.python[1]} or newer, then {command}"
        return command


class Program(NamedTuple):
    """names: any of these will do."""

    names: tuple[str, ...]
    adds: str
    remedy: str

    @property
    def path(self) -> str | None:
        """Where it is."""
        return next(filter(None, map(shutil.which, self.names)), None)


PACKAGES = (
    Package("liger-kernel>=0.8", ("liger_kernel",), "peer `liger` of rms_norm, rotary and swiglu",
            "peers"),
    Package("quack-kernels>=0.6", ("quack",), "peers `quack` of rms_norm and rotary, on a GPU",
            "peers", (3, 12)),
    Package("flash-attn-4>=4.0.0b36", ("flash_attn",), "peer `fa4` of rcm_attention, on a GPU",
            "peers", (3, 12)),
    Package("fa3-fwd>=0.0.3", ("fa3_fwd_interface",), "peers `fa3` of rcm_attention, on a GPU",
            "peers"),
    Package("sageattention>=1.0.6,<2", ("sageattention",), "peer `sage1` of rcm_attention, on a "
            "GPU", "peers"),
    Package("ring-flash-attn>=0.1.8", ("ring_flash_attn",), "peers `ring_flash_attn_zigzag` and "
            "`ring_flash_attn_llama3` of zigzag_parallel", "peers"),
    Package("jinja2>=3.1", ("jinja2", "markupsafe"), "pages: report --format html", "report"),
    Package("matplotlib>=3.9", ("matplotlib",), "the figures of those pages", "report"),
    Package("wandb>=0.19", ("wandb",), "report --to wandb", "wandb"),
    Package("tensorboard>=2.18", ("tensorboard",), "report --to tensorboard", "tensorboard"),
    Package("submitit>=1.5.3", ("submitit",), "fanout slurm", "slurm"),
    Package("ray>=2.9", ("ray",), "fanout ray", "ray"),
    Package("nvidia-ml-py>=12.560.30", ("pynvml",), "clocks, power and throttling in records"),
    Package("nvtx>=0.2.12", ("nvtx",), "names in what nsys and ncu show"),
)  # fmt: skip
PROGRAMS = (
    Program(("c++", "g++"), "torch.compile on a CPU", "Debian, Ubuntu: apt install g++"),
    Program(("gcc", "clang", "cc"), "Triton, which builds its launcher with it",
            "Debian, Ubuntu: apt install gcc"),
    Program(("unshare",), "profile --nsys keeps other processes' environments out of its reports",
            "Debian, Ubuntu: apt install util-linux"),
)  # fmt: skip
PROFILERS = {  # how to get these, they say themselves
    "nsys": "profile --nsys: timelines, launches, gaps",
    "ncu": "profile --ncu: DRAM bytes that hardware counted",
    "compute-sanitizer": "check --sanitize: bad addresses, races, memory that nobody wrote",
}
DEVELOPING = "dev"  # the extra for work on kernelbench itself


def developing() -> list[str]:
    """Packages of the extra `dev` that are not installed."""
    wanted = importlib.metadata.requires("kernelbench") or []
    names = [
        text.partition(";")[0].partition(">=")[0].strip()
        for text in wanted
        if f'extra == "{DEVELOPING}"' in text.replace("'", '"')
    ]
    return [name for name in names if Package(name, (), "").version is None]
