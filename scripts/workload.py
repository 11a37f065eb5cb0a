"""A made-up workload: a language model of 40 GiB, two diffusion models, a classifier, and days of people who use them.

All of it follows from one seed, in integers. Each stream has its hours: in each minute of an hour a burst begins by the
chance that makes for so many bursts an hour; its uses follow each other by gaps that do not wait for an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gpuboss.fields import Priority
from gpuboss.simulation.uses import Model, Use

DEVICES_MIB = ((0, 48 * 1024), (1, 24 * 1024))  # the large model fits on the first alone
SEED = 1
DAYS = 2
MINUTE_MS, MINUTES_A_DAY = 60_000, 1_440
_MASK = 2**64 - 1


class Span(NamedTuple):
    """Both ends are in it."""

    least: int
    most: int


class Stream(NamedTuple):
    """Who uses a model: `bursts` begin in an hour, by day (08:00 to 22:00) and by night, of so many `uses`, `gap_ms`
    apart. A use takes `use_ms`; its service gives it up after `limit_ms`."""

    model: Model
    priority: Priority
    bursts: tuple[int, int]
    uses: Span
    gap_ms: Span
    use_ms: Span
    limit_ms: int


# Loading reads about 1.6 GB a second; the context of the process comes on top.
DEEPSEEK = Model("imajin-prompt", "deepseek-r1-70b-q4", 40 * 1024, load_ms=28_000, unload_ms=1_000)
PHOTOREALISTIC = Model("imajin-diffusion", "photorealistic", 8 * 1024, load_ms=7_000, unload_ms=500)
ANIME = Model("imajin-diffusion", "anime", 8 * 1024, load_ms=7_000, unload_ms=500)
CLASSIFIER = Model("imajin-classifier", "cultural-classifier", 4 * 1024, load_ms=4_000, unload_ms=500)

STREAMS = (
    # conversations
    Stream(DEEPSEEK, "normal", (8, 2), Span(2, 8), Span(20_000, 120_000), Span(8_000, 45_000), 120_000),
    # single pictures, and a few by people who look on
    Stream(PHOTOREALISTIC, "normal", (140, 20), Span(1, 3), Span(1_000, 20_000), Span(5_000, 25_000), 60_000),
    Stream(ANIME, "normal", (100, 20), Span(1, 3), Span(1_000, 20_000), Span(5_000, 25_000), 60_000),
    Stream(PHOTOREALISTIC, "high", (6, 0), Span(4, 12), Span(0, 4_000), Span(5_000, 15_000), 60_000),
    # series of them, left alone
    Stream(ANIME, "low", (1, 4), Span(20, 60), Span(0, 2_000), Span(10_000, 30_000), 60_000),
    # each picture and each prompt is looked at
    Stream(CLASSIFIER, "normal", (120, 30), Span(1, 4), Span(500, 5_000), Span(500, 3_000), 15_000),
)


class Draws:
    """Whole numbers that follow from a seed and nothing else (SplitMix64)."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, count: int) -> int:
        """One of 0 to count - 1."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((self._state ^ (self._state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((mixed ^ (mixed >> 31)) * count) >> 64

    def within(self, span: Span) -> int:
        """One of a span."""
        return span.least + self.below(span.most - span.least + 1)


def workload(days: int = DAYS, seed: int = SEED) -> list[Use]:
    """The uses of so many days, in the order of their time."""
    draws = Draws(seed)
    uses = [use for stream in STREAMS for use in _uses(stream, days, draws)]
    return sorted(uses, key=lambda use: use.submit_ms)


def _uses(stream: Stream, days: int, draws: Draws) -> Iterator[Use]:
    for minute in range(days * MINUTES_A_DAY):
        by_day = 8 <= minute % MINUTES_A_DAY // 60 < 22
        rate = stream.bursts[0 if by_day else 1]
        # As many bursts in a minute as there are whole ones in its share, and one more by the chance of the rest.
        for _ in range((rate + draws.below(60)) // 60):
            at_ms = minute * MINUTE_MS + draws.below(MINUTE_MS)
            for _ in range(draws.within(stream.uses)):
                yield Use(stream.model, at_ms, draws.within(stream.use_ms), stream.limit_ms, stream.priority)
                at_ms += draws.within(stream.gap_ms)
