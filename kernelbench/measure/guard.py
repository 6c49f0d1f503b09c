"""Wraps every step of a job: turns errors into failures, and undoes and blames changes of state."""

import traceback
from collections.abc import Callable
from typing import Any

from kernelbench.measure import ambient
from kernelbench.measure.failure import Failure, failure_of
from kernelbench.measure.session import DeviceLostError, Session, Tell
from kernelbench.measure.team import DeadlockError, PeerFailedError, first_reason, meet
from kernelbench.spec import DType, Family, UnwritableError


class Guard:
    """Runs a job's steps, and knows which provider each belongs to.

    disturbances: changes of process-wide state, in words, by the name of the provider to blame.
    """

    def __init__(self, family: Family[Any], session: Session, dtype: DType, tell: Tell) -> None:
        self._family, self._session, self._tell = family, session, tell
        self._ambient = ambient.ambient_for(dtype)
        self.at_work = ""  # the provider named last
        self.disturbances: dict[str, str] = {}

    def tell(self, provider: str, phase: str) -> None:
        """Report that this provider is at work from now on, in this phase."""
        self.undo()
        self.at_work = provider
        self._tell(provider, phase)

    def attempt(self, step: Callable[[], Any], provider: str = "") -> Any:
        """What the step returns, or a Failure if it raises.

        provider: whose step it is; where empty, the provider named last.
        Raises DeviceLostError where the GPU no longer works, and UnwritableError.
        """
        heard: PeerFailedError | None = None
        try:
            result = step()
            meet(self._session.team)  # who did well has failed with the others
            return result
        except (DeviceLostError, UnwritableError):
            raise
        except PeerFailedError as error:
            heard = error
            failure = error.failure
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            failure = failure_of(error, self._build_of(provider or self.at_work))
        finally:
            self.blame(provider or self.at_work)
        # The traceback, whose frames hold memory of the GPU, is released only here.
        self._survive(provider or self.at_work, failure.reason)
        if heard is None:
            heard = self._told(failure, provider or self.at_work)
        self.at_work = heard.provider if self._session.team.world > 1 else self.at_work
        return heard.failure

    def _told(self, failure: Failure, provider: str) -> PeerFailedError:
        """What all agree on once the others have heard of a failure of this rank."""
        try:
            return self._session.team.fail(failure, provider)
        except DeadlockError as error:
            raise DeviceLostError(provider, str(error)) from None

    def disturbance(self, provider: str) -> str:
        """What a provider changed, on whichever rank, in words; or ""."""
        return first_reason(self._session.team, self.disturbances.get(provider, ""))

    def undo(self) -> None:
        """Undo what the provider at work changed of device or process, and blame it."""
        self.blame(self.at_work)

    def blame(self, provider: str) -> None:
        """Undo all recent changes of device or process, and attribute them to this provider."""
        requires = next((p.requires for p in self._family.providers if p.name == provider), ())
        changes = (
            self._session.clock.undo_changes(),
            self._ambient.undo_changes(ambient.allowed_changes(requires)),
        )
        if any(changes):
            self.disturbances.setdefault(provider, " and ".join(filter(None, changes)))

    def _build_of(self, name: str) -> Any:
        """The function that builds this provider; None where there is no such provider."""
        return next((p.build for p in self._family.providers if p.name == name), None)

    def _survive(self, provider: str, reason: str) -> None:
        try:
            self._session.synchronize()
            self._session.release_memory()
        except RuntimeError:
            raise DeviceLostError(provider, reason) from None
