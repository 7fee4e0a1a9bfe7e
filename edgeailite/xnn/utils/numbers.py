"""Arithmetic on channel counts."""

__all__ = ["make_divisible"]


def make_divisible(channels: float, divisor: int = 8, least: int | None = None) -> int:
    """Round a channel count to a multiple of `divisor`, losing at most a tenth of it.

    Args:
        channels: Wanted number of channels, such as a width multiplier times a base.
        divisor: The result is a multiple of it.
        least: Smallest allowed result; None: `divisor`.

    Returns:
        The nearest multiple, or the next one above where that would be below ``0.9 * channels``.

    Raises:
        ValueError: `channels` or `divisor` is not positive.

    Reference: Howard et al. 2017, https://arxiv.org/abs/1704.04861; the rule is that of the
    authors' released MobileNet models.
    """
    if channels <= 0 or divisor <= 0:
        raise ValueError(f"channels and divisor must be positive, got {channels} and {divisor}.")
    nearest = int(channels + divisor / 2) // divisor * divisor
    rounded = max(divisor if least is None else least, nearest)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
