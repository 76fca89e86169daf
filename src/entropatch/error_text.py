"""What an error says, for a message that is one line."""

from __future__ import annotations


def one_line(error: BaseException | str, *, first: bool = False, longest: int = 300) -> str:
    """An error's message as one line; its class, where it says nothing.

    Args:
        error: the error, or what it says.
        first: whether only its first line that is not empty counts, as of errors that go on about themselves.
        longest: characters; the end is left out of a longer one.
    """
    text = str(error)
    if first:
        text = next((line for line in text.splitlines() if line.strip()), "")
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
