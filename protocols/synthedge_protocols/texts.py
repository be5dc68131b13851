"""Texts that a peer wrote, as people may be shown them."""

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return a peer's text on one line, with a space for every character that does not print.

    What a terminal would obey, what turns the direction of writing, what breaks a line and what a database cannot
    hold (NUL) says nothing that a reason has to say. The signed statement keeps its own bytes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)
