"""The middle of some numbers."""


def median(numbers):
    """The middle one of `numbers` by size; of an even count the mean of the two in the middle."""
    ordered = sorted(numbers)
    if not ordered:
        raise ValueError("no numbers, no median")
    middle = len(ordered) // 2
    return ordered[middle]
