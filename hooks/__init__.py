"""The live side of zanalysis: attach to a training loop, and it is recorded.

`RankTracker` keeps numbers, `Recorder` keeps tensors; `every`, `logspaced` and `at` say when; `alerts` says what to
be told of. `hooks.integrations` has the frameworks.
"""

from hooks import alerts
from hooks.recorder import Recorder
from hooks.schedules import at, every, logspaced
from hooks.tracker import RankTracker

__all__ = ["RankTracker", "Recorder", "alerts", "at", "every", "logspaced"]
