"""Around every step of a job: a failure becomes a fact; what was changed is undone and blamed."""

import traceback
from collections.abc import Callable
from typing import Any

from kernelbench.measure import ambient
from kernelbench.measure.failure import failure_of
from kernelbench.measure.session import DeviceLostError, Session, Tell
from kernelbench.spec import DType, Family, UnwritableError


class Guard:
    """Runs a job's steps, and knows whose each is.

    disturbed: what providers changed that others would feel, by name.
    """

    def __init__(self, family: Family[Any], session: Session, dtype: DType, tell: Tell) -> None:
        self._family, self._session, self._tell = family, session, tell
        self._ambient = ambient.as_asked(dtype)
        self.at_work = ""  # the provider that was named last
        self.disturbed: dict[str, str] = {}

    def tell(self, provider: str, phase: str) -> None:
        """From now on this provider is at work, on something."""
        self.undo()
        self.at_work = provider
        self._tell(provider, phase)

    def attempt(self, step: Callable[[], Any], provider: str = "") -> Any:
        """What the step returns, or a Failure: the one place where one becomes a fact.

        provider: whose step it is; that of whoever was named last where it is empty.
        """
        try:
            return step()
        except (DeviceLostError, UnwritableError):
            raise
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            failure = failure_of(error, self._built(provider or self.at_work))
        finally:
            self.blame(provider or self.at_work)
        # Only here is the traceback gone, and with it what its frames held on the GPU.
        self._survive(provider or self.at_work, failure.reason)
        return failure

    def undo(self) -> None:
        """What whoever is at work changed of device or process."""
        self.blame(self.at_work)

    def blame(self, provider: str) -> None:
        """Whatever was changed of device or process just now is undone, and was its doing."""
        requires = next((p.requires for p in self._family.providers if p.name == provider), ())
        changes = (
            self._session.clock.disturbed(),
            self._ambient.disturbed(ambient.known(requires)),
        )
        if any(changes):
            self.disturbed.setdefault(provider, " and ".join(filter(None, changes)))

    def _built(self, name: str) -> Any:
        """The function that builds a provider; None for what is no provider's doing."""
        return next((p.build for p in self._family.providers if p.name == name), None)

    def _survive(self, provider: str, reason: str) -> None:
        try:
            self._session.synchronize()
            self._session.hand_back()
        except RuntimeError:
            raise DeviceLostError(provider, reason) from None
