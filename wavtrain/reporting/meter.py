"""How much speech a run has heard, and how fast."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator

from wavtrain.measures import Sums
from wavtrain.speech.waveforms import SAMPLING_RATE


class Meter:
    """Samples of speech heard by all processes since the run began, and how fast it goes while it trains."""

    def __init__(self, accelerator: Accelerator, samples: float) -> None:
        self.accelerator, self._before, self._heard = accelerator, samples, Sums()
        self._last, self._since = samples, time.perf_counter()

    def hear(self, num_samples: float) -> None:
        """Of this process's micro-batch."""
        self._heard.add({"samples": num_samples})

    def samples(self) -> float:
        """Whole numbers, so that a resumed run adds up to the same. A collective."""
        return self._before + float(self._heard.over_processes(self.accelerator)["samples"])

    def read(self) -> dict[str, float]:
        """A collective: hours so far, and audio-seconds per second since the last reading."""
        samples, now = self.samples(), time.perf_counter()
        rate = (samples - self._last) / SAMPLING_RATE / max(now - self._since, 1e-9)
        self._last, self._since = samples, now
        return {"audio_hours": samples / SAMPLING_RATE / 3600, "audio_seconds_per_second": rate}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not spent training."""
        self._since -= time.perf_counter()
        yield
        self._since += time.perf_counter()
