"""Size classes of sealed streams: what is inside shows its length only up to a class.

Padmé (Nikitin, Barman, Lueks, Underwood, Hubaux and Ford 2019, section 4): of a length's binary digits only the first
O(log log n) may differ from zero, so n bytes fall into one of O(log n log log n) classes and grow by at most 12 %.
Below `smallest` all lengths are one class: the transfers of a consortium's usual policy all look alike.
"""

__all__ = ["size_class"]


def size_class(n_bytes: int, smallest: int) -> int:
    """Return the length that `n_bytes` are padded to.

    Parameters
    ----------
    n_bytes : int
        At least 1.
    smallest : int
        The smallest class, in bytes.
    """
    if n_bytes <= smallest:
        return smallest
    exponent = n_bytes.bit_length() - 1
    n_zeros = max(0, exponent - exponent.bit_length())
    mask = (1 << n_zeros) - 1
    return (n_bytes + mask) & ~mask
