"""What a suite says of the machines that `kernelbench fanout` hands its jobs to."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LINE = r"^[^\x00-\x1f\x7f]*$"
ENV = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Strict(BaseModel):
    """A mapping of a suite: no other keys, and values of just these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Executor(Strict):
    """Where the jobs of `kernelbench fanout` run. {gpu} in partition, gres and constraint is the
    GPU's name in lower case, {gpus} how many a job takes."""

    partition: str = Field("", pattern=LINE, description="of Slurm")
    gres: str = Field("", pattern=LINE, description="of Slurm: 'gpu:{gpu}:{gpus}'")
    constraint: str = Field("", pattern=LINE, description="of Slurm")
    account: str = Field("", pattern=LINE, description="of Slurm")
    qos: str = Field("", pattern=LINE, description="of Slurm")
    time: int = Field(60, ge=1, description="minutes that Slurm gives a job")
    array: int = Field(1001, ge=1, description="tasks of an array; fewer where the cluster says so")
    parallel: int = Field(0, ge=0, description="jobs at a time; 0: as many as there is room for")
    cpus: int = Field(2, ge=1, description="CPU cores of a job")
    setup: list[Annotated[str, Field(pattern=LINE)]] = Field(
        [], description="lines of shell before a job on Slurm, such as 'module load cuda'"
    )
    env: list[Annotated[str, Field(pattern=ENV)]] = Field(
        [], description="names of further environment variables that jobs are handed"
    )
    address: str = Field("auto", pattern=LINE, description="of the Ray cluster")

    @classmethod
    def default(cls) -> "Executor":
        """That of a suite which says nothing."""
        return cls.model_validate({})
