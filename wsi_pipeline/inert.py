"""Makes text of strangers harmless where it is shown: terminals, pages, tables.

Names of files, classes and metadata may hold anything that a file system takes.
"""

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def shown(text: str) -> str:
    r"""Escape what moves a cursor, turns the line's direction or is not seen.

    Parameters
    ----------
    text : str
        Any; also with bytes that were no text (surrogates).

    Returns
    -------
    str
        One line, which UTF-8 can hold; other characters as Python writes them:
        ``\x1b``, ``\u202e``, ``\udcff``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cell[T](value: T) -> T | str:
    """A value of a CSV file that no spreadsheet takes for a formula.

    Parameters
    ----------
    value : object
        Text is `shown`, and gets an apostrophe where it begins like a formula, spaces
        before it or not; all else is left as it is.

    References
    ----------
    OWASP, "CSV Injection": also the wide forms of the signs.
    """
    if not isinstance(value, str):
        return value
    text = shown(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def markdown_cell(text: str) -> str:
    """A cell of a Markdown table: no column and no tag begins in it."""
    return shown(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
