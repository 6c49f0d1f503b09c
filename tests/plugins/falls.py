"""A family whose providers fall in every way that a process can."""

import ctypes
import os
import signal
import threading
import time
from dataclasses import dataclass

import torch

from kernelbench.spec import Case, Cost, DType, Family, Provider, Role, Traffic, axis


@dataclass(frozen=True, kw_only=True)
class FallsCase(Case):
    """n numbers to double."""

    n: int = axis("how many")
    pause: float = axis("seconds that every call sleeps", 0.0)


def inputs(case, draw):
    if case.n == 14:
        time.sleep(3)  # long enough for what an earlier job left behind
    return {"x": draw(case.n)}


def oracle(case, a):
    yield "y", ..., 2 * a["x"].double()


def double(case, config):
    def call(a):
        time.sleep(case.pause)
        return a["x"] * 2

    return call


def falls(how):
    def build(case, config):
        def call(a):
            how()
            return a["x"] * 2

        return call

    return build


def fails():
    raise RuntimeError("this provider always raises")


def runs_out():
    raise torch.OutOfMemoryError("tried to allocate 1 PiB")


def leaves_a_thread_behind():
    threading.Timer(1.5, os._exit, [9]).start()


def forks_and_dies():
    for apart in (False, True):  # as data loaders do; they hold what this process holds
        if not os.fork():
            if apart:
                os.setsid()
            time.sleep(30)
            os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def cost(case):
    if case.n == 13:
        raise ArithmeticError("the cost of 13 is not known")
    return Cost(case.n, 4 * case.n, 4 * case.n)


def picky(case, device):
    raise LookupError("cannot say")


FAMILY = Family(
    name="falls",
    title="Doubling, and every way to fall at it",
    case=FallsCase,
    inputs=inputs,
    outputs=lambda case: ("y",),
    oracle=oracle,
    cost=cost,
    checks=(FallsCase(n=8, dtype=DType.fp32),),
    providers=(
        Provider(
            "plain",
            Role.baseline,
            double,
            traffic=lambda case: (Traffic("x", read=4 * case.n), Traffic("y", write=4 * case.n)),
        ),
        Provider("again", Role.torch_fused, double),
        Provider("exits", Role.peer, falls(lambda: os._exit(7))),
        Provider("segfaults", Role.peer, falls(lambda: ctypes.string_at(0))),
        Provider("forks", Role.peer, falls(forks_and_dies)),
        Provider("hangs", Role.peer, falls(lambda: time.sleep(600))),
        Provider("raises", Role.peer, falls(fails)),
        Provider("oom", Role.peer, falls(runs_out)),
        Provider("wrong", Role.peer, lambda case, config: lambda a: a["x"] * 2.02),
        Provider("late", Role.peer, falls(leaves_a_thread_behind)),
        Provider("picky", Role.peer, double, unsupported=picky),
        Provider("absent", Role.peer, double, requires=("no_such_module",)),
    ),
)
