"""Names and paths of others in messages: control characters escaped, long ones shortened."""

import unicodedata

_JOINERS = "\u200c\u200d"  # invisible, but letters of Persian and Indic scripts and emoji depend on them


def printable(text: str, limit: int | None = None) -> str:
    r"""`text` with control characters, lone surrogates and line ends escaped as in Python's strings.

    >>> printable("cup\n\x1b[31m"), printable("a" * 50, limit=9)
    ('cup\\n\\x1b[31m', 'aaaa…aaaa')

    Args:
        text: of any origin.
        limit: longer texts lose their middle; None keeps all.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-((limit - 1) // 2) :]}"
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    unseen = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in _JOINERS
    return letter.encode("unicode_escape", "surrogatepass").decode() if unseen else letter
