"""Where a host is heading: lines through its last values, short and long, and when they reach failure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from failavoid.prediction.grouping import Bools, Floats

_ALIKE = 1.5  # a longer window is as straight as a shorter one if its residuals are within this factor
_GRAIN = 0.002  # and this much more: what an application's memory moves anyway
# Growth itself wanders, however well it was measured. Its logarithm is a random walk at the pace of what was seen: the
# variance is this squared times the window and the time to failure, in windows
_WANDER = 0.2
STRAIGHT = 0.95  # R^2 of growth over more than moments: not two or three steps
_STRAIGHT_NOW = 0.85  # of growth in the last moments: not one jump
_SURE = 4.0  # standard errors
_NO_IDEA = 1.0  # the doubt of who knows nothing, or growth that is not sure


@dataclass(frozen=True)
class Line:
    """Least squares for each column: slope (1/s), level now, their standard errors, and the residuals' size.

    ``length`` is the time (s) over which the values lie, if they lie evenly.
    """

    slope: Floats
    level: Floats
    slope_error: Floats
    level_error: Floats
    residual: Floats
    count: Floats
    length: Floats

    def rises(self, straight: float) -> Bools:
        """Whether it rises beyond doubt, as a line with an R^2 of so much; k even steps have 1 - 1 / (k + 1)^2."""
        squares = (self.slope / self.slope_error) ** 2
        fits: Bools = squares >= straight / (1 - straight) * np.maximum(1.0, self.count - 2)
        return fits & (self.slope > _SURE * self.slope_error)

    def clearness(self) -> Floats:
        """The slope in its standard errors."""
        ratio: Floats = self.slope / self.slope_error
        return ratio

    def where(self, which: Bools, other: Line) -> Line:
        """This line for the columns that ``which`` names, the other for the rest."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__]
        return Line(*(np.where(which, mine, its) for mine, its in pairs))


@dataclass(frozen=True)
class Trend:
    """Each column's growth; times are seconds from now on, infinity where growth never leads there.

    ``doubt`` is the standard deviation of the logarithm of ``failure``: the interval is failure * exp(q * doubt) for
    quantiles q, which are learned from predictions that came true (`scoring.Calibration`).
    """

    slope: Floats
    sure: Bools  # the slope is positive beyond doubt
    lasting: Bools  # and has been for minutes
    failure: Floats
    doubt: Floats
    sustained: Floats  # time to failure by the least of the last few seconds' growths: a jump has none
    apart: Bools  # what it is over its group grows too, and not by one jump
    peers_slope: Floats  # its group's growth (1/s) over the same window

    @classmethod
    def nothing(cls, columns: int) -> Trend:
        """Of columns of which none is known."""
        never = np.full((2, columns), np.inf)
        no = np.zeros((3, columns), dtype=bool)
        unknown = np.full((2, columns), np.nan)
        return cls(unknown[0], no[0], no[1], never[0], np.ones(columns), never[1], no[2], unknown[1])


def fit(times: Floats, values: Floats, least: int) -> Line:
    """Fit a line to each column of ``values`` (rows at ``times``, the last is now); NaN left out.

    A column with fewer than ``least`` values has none (NaN).
    """
    known = np.isfinite(values)
    count: Floats = known.sum(axis=0).astype(np.float64)
    count[count < max(3, least)] = np.nan
    at = np.where(known, (times - times[-1])[:, None], 0.0)
    filled = np.where(known, values, 0.0)
    middle, mean = at.sum(axis=0) / count, filled.sum(axis=0) / count
    apart = np.where(known, at - middle, 0.0)
    spread = (apart**2).sum(axis=0)
    slope = (apart * filled).sum(axis=0) / spread
    residuals = np.where(known, filled - mean - slope * apart, 0.0)
    residual = np.sqrt((residuals**2).sum(axis=0) / np.maximum(1.0, count - 2))
    return Line(
        slope=slope,
        level=mean - slope * middle,
        slope_error=residual / np.sqrt(spread),
        level_error=residual * np.sqrt(1 / count + middle**2 / spread),
        residual=residual,
        count=count,
        length=np.sqrt(12 * spread / count),
    )


def slopes(times: Floats, values: Floats, least: int) -> Floats:
    """Each column's slope alone (1/s), as `fit` gives it; by one product where no value is missing."""
    at = times - times.mean()
    found: Floats = (at / (at**2).sum()) @ values
    lacking = np.flatnonzero(np.isnan(found))
    if len(lacking):
        found[lacking] = fit(times, values[:, lacking], least).slope
    return found


def find_trend(
    lines: list[Line],
    excess: list[Line],
    now: Floats,
    latest: Floats,
    times: Floats,
    failure: float,
    leaking: Bools,
    danger: Bools,
) -> Trend:
    """The trend by the longest of ``lines`` (short to long) that describes as well as the shorter ones.

    ``excess`` are the lines of what each host is over its group, ``latest`` the values of the short window (rows at
    ``times``). Of a host that is ``leaking``, as the whole of the longest window shows, that window tells more than
    moments do if none is sure. Of one that is in ``danger`` by where it is already, whichever line speaks most clearly
    for growth does: its leak may go up in steps.
    """
    chosen, over, short = lines[0], excess[0], np.ones(len(now), dtype=bool)
    for longer, over_longer in zip(lines[1:], excess[1:], strict=True):
        alike = (longer.residual <= _ALIKE * chosen.residual + _GRAIN) & (longer.slope > 0.8 * chosen.slope)
        better = alike | longer.rises(STRAIGHT) & ~chosen.rises(_STRAIGHT_NOW)
        chosen, over, short = longer.where(better, chosen), over_longer.where(better, over), short & ~better
    half = max(3, len(times) // 2)
    recent = fit(times[-half:], latest[-half:], half - 1)
    # what has just risen and stays is no growth, although a line through it rises: short lines show that in their later
    # half, longer ones by leaving the value below them
    goes_on = recent.slope >= 0.5 * chosen.slope - 2 * recent.slope_error
    keeps_up = now >= chosen.level - 2 * chosen.residual
    sure = np.where(short, chosen.rises(_STRAIGHT_NOW) & goes_on, chosen.rises(STRAIGHT) & keeps_up)
    slowly = leaking & ~sure
    for longer, over_longer in zip(lines[1:], excess[1:], strict=True):
        clearer = danger & ~sure & (longer.clearness() > np.nan_to_num(chosen.clearness()))
        chosen, over = longer.where(clearer, chosen), over_longer.where(clearer, over)
    chosen, over = lines[-1].where(slowly, chosen), excess[-1].where(slowly, over)
    until = time_to(failure, now, chosen.slope)
    measured = np.hypot(chosen.slope_error / chosen.slope, chosen.level_error / np.maximum(failure - now, 1e-9))
    doubt = np.hypot(measured, _WANDER * np.sqrt(1 + until / chosen.length))
    return Trend(
        slope=chosen.slope,
        sure=sure,
        lasting=sure & ~short,
        failure=until,
        doubt=np.where((sure | slowly) & (doubt < _NO_IDEA), doubt, _NO_IDEA),
        sustained=time_to(failure, now, sustained_growth(times, latest)),
        apart=over.rises(_STRAIGHT_NOW),
        peers_slope=chosen.slope - over.slope,
    )


def sustained_growth(times: Floats, latest: Floats) -> Floats:
    """The least growth (1/s) of the last step, the last two and the two before them; NaN where one is unknown."""
    if len(times) < 5:
        return np.full(latest.shape[1], np.nan)
    growths = [
        (latest[end] - latest[begin]) / (times[end] - times[begin]) for end, begin in ((-1, -2), (-1, -3), (-3, -5))
    ]
    least: Floats = np.minimum.reduce(growths)
    return least


def time_to(level: float | Floats, now: Floats, slope: Floats) -> Floats:
    """Seconds until ``level`` is reached: 0 if it is, inf if the slope never leads there or is unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rising: Floats = np.where(slope > 0, (level - now) / slope, np.inf)
    return np.where(now >= level, 0.0, rising)
