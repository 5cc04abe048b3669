"""Light and weather of a street scene: what differs between two visits to the same place."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .plan import Tensors

CONDITIONS = ("day", "dusk", "night", "fog", "rain", "snow")


@dataclass(frozen=True)
class Weather(Tensors):
    """Light and weather of a batch of photos; every tensor's first axis is the photo, colours are linear RGB."""

    sun: Tensor  # (batch, 3) unit vector to the sun, east, north, up
    sun_light: Tensor  # (batch, 3)
    sky_light: Tensor  # (batch, 3) light from the whole sky
    zenith: Tensor  # (batch, 3) of the sky
    horizon: Tensor  # (batch, 3)
    clouds: Tensor  # (batch,) share of cloud, 0 to 1
    fog_per_m: Tensor  # (batch,) extinction; the sky's horizon is its colour
    lamps: Tensor  # (batch,) strength of street lamps and windows, 0 by day
    lit_share: Tensor  # (batch,) share of windows with light behind them
    wet: Tensor  # (batch,) 0 to 1
    snow: Tensor  # (batch,) 0 to 1
    fall: Tensor  # (batch,) 1 where rain or snow is falling
    leaves: Tensor  # (batch,) 1 where trees have them, 0 where they are bare
    autumn: Tensor  # (batch,) 0 for green leaves to 1 for brown ones
    traffic: Tensor  # (batch,) share of parking bays that are taken
    exposure: Tensor  # (batch,) factor before the camera's tone curve
    tint: Tensor  # (batch, 3) white balance
    grain: Tensor  # (batch,) standard deviation of the sensor noise, after the tone curve
    visit: Tensor  # (batch,) int64 number from which cars, lit windows, drops and grain are drawn

    def spread(self, photo: Tensor) -> "Weather":
        """The weather of each of many points, given their photo's row; one photo's is left to broadcast."""
        return self if len(self) == 1 else self.each(lambda values: values.index_select(0, photo))


@dataclass(frozen=True)
class _Range:
    """What one condition draws from, each pair uniform; colours are linear RGB."""

    elevation_deg: tuple[float, float]
    sun: tuple[float, float, float]
    sun_strength: tuple[float, float]
    sky: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    clouds: tuple[float, float]
    visibility_m: tuple[float, float]
    lamps: tuple[float, float] = (0.0, 0.0)
    lit: tuple[float, float] = (0.0, 0.0)
    wet: float = 0.0
    snow: float = 0.0
    exposure: tuple[float, float] = (0.9, 1.25)
    grain: tuple[float, float] = (0.004, 0.010)


_OVERCAST = (0.0, 0.0, 0.0)
_RANGES = {
    "day": _Range(
        elevation_deg=(34, 58), sun=(1.0, 0.94, 0.82), sun_strength=(0.3, 1.3), sky=(0.62, 0.70, 0.82),
        zenith=(0.20, 0.38, 0.72), horizon=(0.66, 0.76, 0.86), clouds=(0.1, 0.7), visibility_m=(700, 2500),
    ),
    "dusk": _Range(
        elevation_deg=(3, 9), sun=(1.0, 0.58, 0.30), sun_strength=(0.25, 0.9), sky=(0.40, 0.38, 0.46),
        zenith=(0.13, 0.17, 0.34), horizon=(0.82, 0.46, 0.28), clouds=(0.2, 0.8), visibility_m=(400, 900),
        lamps=(0.25, 0.5), lit=(0.2, 0.5), exposure=(1.1, 1.5), grain=(0.008, 0.016),
    ),
    "night": _Range(
        elevation_deg=(20, 40), sun=_OVERCAST, sun_strength=(0, 0), sky=(0.060, 0.072, 0.110),
        zenith=(0.010, 0.014, 0.030), horizon=(0.045, 0.045, 0.060), clouds=(0.0, 0.6), visibility_m=(250, 700),
        lamps=(0.8, 1.2), lit=(0.3, 0.6), exposure=(1.7, 2.5), grain=(0.014, 0.026),
    ),
    "fog": _Range(
        elevation_deg=(30, 50), sun=_OVERCAST, sun_strength=(0, 0), sky=(0.72, 0.74, 0.77),
        zenith=(0.60, 0.62, 0.65), horizon=(0.62, 0.64, 0.66), clouds=(1.0, 1.0), visibility_m=(28, 55),
        lamps=(0.0, 0.25), lit=(0.05, 0.3), wet=0.4, exposure=(0.85, 1.15),
    ),
    "rain": _Range(
        elevation_deg=(30, 50), sun=_OVERCAST, sun_strength=(0, 0), sky=(0.42, 0.45, 0.50),
        zenith=(0.26, 0.28, 0.31), horizon=(0.42, 0.44, 0.47), clouds=(0.9, 1.0), visibility_m=(110, 250),
        lamps=(0.0, 0.6), lit=(0.1, 0.5), wet=1.0, exposure=(1.1, 1.6), grain=(0.008, 0.016),
    ),
    "snow": _Range(
        elevation_deg=(30, 50), sun=_OVERCAST, sun_strength=(0, 0), sky=(0.72, 0.75, 0.82),
        zenith=(0.55, 0.57, 0.62), horizon=(0.66, 0.68, 0.71), clouds=(1.0, 1.0), visibility_m=(90, 200),
        lamps=(0.0, 0.3), lit=(0.05, 0.35), snow=1.0, exposure=(0.8, 1.05),
    ),
}  # fmt: skip


def draw_weather(
    conditions: list[str],
    random: torch.Generator,
    *,
    traffic: tuple[float, float] = (0.3, 0.8),
    steady: bool = False,
    seasons: bool = False,
) -> Weather:
    """Weather for a batch of photos, one condition each.

    Args:
        conditions: names out of `CONDITIONS`, one a photo.
        random: a CPU generator, from which everything is drawn.
        traffic: range of the share of parking bays that are taken.
        seasons: snow that lies, bare trees and brown ones, and roads that are still wet; else it is summer.
        steady: one sun and one sky for all photos of a condition, as if taken within one hour.
    """
    if unknown := sorted(set(conditions) - set(CONDITIONS)):
        raise ValueError(f"conditions holds {unknown}; known are {list(CONDITIONS)}. Use those names.")
    ranges = [_RANGES[name] for name in conditions]
    count = len(conditions)
    # One column a quantity; `steady` repeats one row, but for the visit and the traffic.
    draw = torch.rand(1 if steady else count, 12, generator=random).expand(count, 12)
    if steady:
        draw = 0.3 + 0.4 * draw  # one odd hour would mark the whole set

    def between(name: str, column: int) -> Tensor:
        low, high = torch.tensor([getattr(limits, name) for limits in ranges], dtype=torch.float32).unbind(1)
        return low + (high - low) * draw[:, column]

    def fixed(name: str) -> Tensor:
        return torch.tensor([getattr(limits, name) for limits in ranges], dtype=torch.float32)

    elevation, azimuth = torch.deg2rad(between("elevation_deg", 0)), math.pi * (0.65 + 0.7 * draw[:, 1])
    sun = torch.stack([elevation.cos() * azimuth.sin(), elevation.cos() * azimuth.cos(), elevation.sin()], dim=1)
    clouds = between("clouds", 2)
    tint = 1 + 0.10 * (torch.stack([draw[:, 3], torch.full_like(draw[:, 3], 0.5), 1 - draw[:, 3]], dim=1) - 0.5)
    low, high = traffic
    weather = Weather(
        sun=sun, sun_light=fixed("sun") * (between("sun_strength", 4) * (1.15 - 0.9 * clouds))[:, None],
        sky_light=fixed("sky"), zenith=fixed("zenith"), horizon=fixed("horizon"), clouds=clouds,
        fog_per_m=1 / between("visibility_m", 5), lamps=between("lamps", 6), lit_share=between("lit", 7),
        wet=fixed("wet"), snow=fixed("snow"),
        fall=torch.tensor([float(name in ("rain", "snow")) for name in conditions]), leaves=torch.ones(count),
        autumn=torch.zeros(count), traffic=low + (high - low) * torch.rand(count, generator=random),
        exposure=between("exposure", 8), tint=tint, grain=between("grain", 9),
        visit=torch.randint(2**31 - 1, (count,), generator=random),
    )  # fmt: skip
    return _in_season(weather, random) if seasons else weather


def _in_season(weather: Weather, random: torch.Generator) -> Weather:
    """Two fifths summer, three tenths winter, mostly with snow, two tenths autumn, and the rest after rain."""
    season, amount, snows = torch.rand(3, len(weather), generator=random)
    winter, autumn, wet = (season > 0.4) & (season <= 0.7), (season > 0.7) & (season <= 0.9), season > 0.9
    winter = winter | (weather.snow > 0)
    raining = (weather.fall > 0) & (weather.snow == 0)
    lies = winter & ~raining & (snows < 0.65)
    return replace(
        weather,
        snow=torch.maximum(weather.snow, lies * (0.55 + 0.45 * amount)),
        wet=torch.maximum(weather.wet, (wet | (autumn & (snows < 0.5)) | (winter & ~lies)) * (0.3 + 0.5 * amount)),
        leaves=(~winter & ~(autumn & (amount < 0.25))).float(),
        autumn=autumn * (0.3 + 0.7 * amount),
    )
