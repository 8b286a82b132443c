"""SQL expressions for what people get wrong: text to put into any step, ``dm.expr.trim("email")``.

Each function takes SQL expressions over a row and gives one.  None depends on the locale, the time
zone or the settings of a session; NULL gives NULL.  The tests hold each against Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from datamig_nb.errors import MigrationError
from datamig_nb.expressions import Expression, expression_text
from datamig_nb.names import literal

#: What ``str.isspace()`` calls a space, for a class of a regular expression; PostgreSQL's own
#: ``\s`` depends on the locale, and ``trim()`` takes plain spaces only.
SPACES = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


# ---------------------------------------------------------------- text


def trim(text: Expression) -> str:
    """The text without spaces of any kind at its ends, as ``str.strip()`` gives it."""
    return f"regexp_replace({expression_text(text)}, '^[{SPACES}]+|[{SPACES}]+$', '', 'g')"


def squeeze(text: Expression) -> str:
    """As :func:`trim`, and each run of spaces as one, as ``" ".join(text.split())`` gives it."""
    return f"btrim(regexp_replace({expression_text(text)}, '[{SPACES}]+', ' ', 'g'), ' ')"


def blank_to_null(text: Expression) -> str:
    """The trimmed text; NULL where nothing is left."""
    return f"nullif({trim(text)}, '')"


def name_parts(full_name: Expression) -> tuple[str, str]:
    """First and last name, the spaces between them squeezed.

    The first word is the first name, with initials (``George H.``) and a nickname in quotes
    (``Paul 'The Bear'``) right behind it; the rest is the last name.  A name of one word has no
    last name (NULL); a blank name gives two NULLs.
    """
    clean, first = squeeze(full_name), r"^\S+(?: [[:alpha:]]\.| ''[^'']+'')*(?= |$)"
    return (
        f"substring(\n    {clean}\n    FROM '{first}'\n)",
        f"nullif(btrim(regexp_replace(\n    {clean},\n    '{first}', ''\n)), '')",
    )


# Letters that Unicode does not take apart, and what they become.
_LETTERS = {"ß": "ss", "ẞ": "ss", "æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "þ": "th", "Þ": "th"}
_BARRED, _UNBARRED = "øØłŁđĐðÐıħĦ", "oollddddihh"


def slug(text: Expression) -> str:
    """The text as part of a URL: ``Crème Brûlée / Øl`` gives ``creme-brulee-ol``.

    Accents go, letters become small, and each run of what is neither a letter from a to z nor a
    digit becomes one hyphen, none at the ends.  NULL where nothing is left; two texts may have one
    slug.  The database must be encoded in UTF8.
    """
    plain = f"translate({expression_text(text)}, '{_BARRED}', '{_UNBARRED}')"
    for letter, letters in _LETTERS.items():
        plain = f"replace({plain}, '{letter}', '{letters}')"
    bare = rf"regexp_replace(normalize({plain}, NFKD), '[\u0300-\u036f]', '', 'g')"
    return (
        f'nullif(btrim(regexp_replace(\n    lower({bare} COLLATE "C"),\n'
        f"    '[^a-z0-9]+', '-', 'g'\n), '-'), '')"
    )


# ---------------------------------------------------------------- codes and arrays


def recode(text: Expression, codes: Mapping[str, str]) -> str:
    """The text with each code replaced by its new one, all at once: two may change places.

    What is no code stays.
    """
    value = expression_text(text)
    if not codes:
        return value
    whens = " ".join(f"WHEN {literal(old)} THEN {literal(new)}" for old, new in codes.items())
    return f"CASE {value} {whens} ELSE {value} END"


def array_elements(array: Expression, expression: Expression, *, name: str = "element") -> str:
    """The array with each element replaced, in their order; NULLs among them, too.

    Parameters
    ----------
    expression
        Gives the new element from ``name``, the old one.

    An array that is NULL stays NULL, an empty one stays empty; of several dimensions one is made.
    """
    value = expression_text(array)
    elements = (
        f"ARRAY(SELECT {expression_text(expression)}\n"
        f"      FROM unnest({value}) WITH ORDINALITY AS each ({name}, place) ORDER BY place)"
    )
    return f"CASE WHEN ({value}) IS NOT NULL THEN {elements} END"


# ---------------------------------------------------------------- types

# Type -> regular expression of texts that it takes, before one can ask it; and the bounds of its
# values.  Of numeric and date a little more is taken: exponents of four digits, other dates.
_GAP = r"[ \t\n\v\f\r]*"
_INTEGER = rf"{_GAP}[-+]?[0-9]{{1,30}}{_GAP}"
_BOOLEAN = (
    "[Tt]([Rr]([Uu][Ee]?)?)?|[Ff]([Aa]([Ll]([Ss][Ee]?)?)?)?|[Yy]([Ee][Ss]?)?|[Nn][Oo]?"
    "|[Oo]([Nn]|[Ff][Ff]?)|1|0"
)
_UUID = "([0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}"
WRITTEN = {
    "smallint": (_INTEGER, "-32768 AND 32767"),
    "integer": (_INTEGER, "-2147483648 AND 2147483647"),
    "bigint": (_INTEGER, "-9223372036854775808 AND 9223372036854775807"),
    "numeric": (
        rf"{_GAP}[-+]?([0-9]{{1,1000}}(\.[0-9]{{0,1000}})?|\.[0-9]{{1,1000}})([eE][-+]?[0-9]{{1,3}})?{_GAP}",
        "",
    ),
    "boolean": (f"{_GAP}({_BOOLEAN}){_GAP}", ""),
    "uuid": (rf"({_UUID}|\{{{_UUID}\}})", ""),
    "date": (r"(?!0000)[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", ""),
}


def try_cast(
    text: Expression, type: str, *, otherwise: Expression = "NULL", server: int = 16
) -> str:
    """The text as a value of a type; ``otherwise`` where it is none.  NULL stays NULL.

    Parameters
    ----------
    server
        PostgreSQL's major version.  16 and newer ask the type itself; before, the usual forms of
        integer, numeric, boolean, uuid and ISO dates are known, and what else the type would take
        gives ``otherwise``.

    Raises
    ------
    MigrationError
        If the type cannot be asked on that server.
    """
    value, other = f"({expression_text(text)})::text", expression_text(otherwise)
    if other != "NULL":
        other = f"CASE WHEN {value} IS NOT NULL THEN {other} END"
    if server >= 16:
        valid = f"pg_input_is_valid({value}, {literal(type)})"
        return f"CASE WHEN {valid} THEN {value}::{type} ELSE {other} END"
    if type not in WRITTEN:
        raise MigrationError(
            f"before PostgreSQL 16 nothing tells whether a text is a value of type {type}",
            f"use one of {', '.join(WRITTEN)}, or write the condition yourself",
        )
    form, bounds = WRITTEN[type]
    # CASE in CASE: the parts of an AND may be evaluated in any order.
    then = f"{value}::{type}"
    if bounds:
        then = f"CASE WHEN {value}::numeric BETWEEN {bounds} THEN {then} ELSE {other} END"
    elif type == "date":
        days = f"(left({value}, 8) || '01')::date + interval '1 month - 1 day'"
        last = f"extract(day FROM {days})"
        then = f"CASE WHEN right({value}, 2)::integer <= {last} THEN {then} ELSE {other} END"
    return f"CASE WHEN {value} ~ '^{form}$' THEN {then} ELSE {other} END"


# ---------------------------------------------------------------- time


def local_time(timestamp: Expression, zone: Expression, *, otherwise: str = "UTC") -> str:
    """The instant of a local time in the zone that the row names, as ``timestamptz``.

    A zone that is NULL or unknown to PostgreSQL counts as ``otherwise``.  Of a time that the clock
    showed twice it is the second, as PostgreSQL takes it; a time that it skipped is moved on by the
    change.  :func:`is_skipped_or_repeated` finds both.
    """
    return f"({_plain(timestamp)} AT TIME ZONE {known_zone(zone, otherwise=otherwise)})"


def known_zone(zone: Expression, *, otherwise: str = "UTC") -> str:
    """The zone's name where PostgreSQL knows it; else ``otherwise``.

    The names are read once a statement, which takes some hundredths of a second: little for a
    batch, much for a trigger that fires for each row.
    """
    name = expression_text(zone)
    known = f"{name} IN (SELECT name FROM pg_timezone_names)"
    return f"CASE WHEN {known} THEN {name} ELSE {literal(otherwise)} END"


def is_skipped_or_repeated(
    timestamp: Expression, zone: Expression, *, otherwise: str = "UTC"
) -> str:
    """Condition: the clock of the zone never showed this local time, or showed it twice."""
    local, named = _plain(timestamp), known_zone(zone, otherwise=otherwise)
    instant = f"({local} AT TIME ZONE {named})"
    # Clocks are put back by 20 minutes to two hours, but for a few days long ago.
    twice = " OR ".join(
        f"({instant} - interval '{minutes} minutes') AT TIME ZONE {named} = {local}"
        for minutes in (20, 30, 60, 120)
    )
    return f"({instant} AT TIME ZONE {named} <> {local} OR {twice})"


# ---------------------------------------------------------------- JSON


def json_set(document: Expression, path: str | Sequence[str], value: Expression) -> str:
    """The ``jsonb`` document with a value, also of type ``jsonb``, at a path.

    A value that is SQL NULL becomes JSON's ``null``; ``jsonb_set`` alone would lose the document.
    Where the parent of the path is no object, the document stays as it is.
    """
    text, keys = _plain(document), _keys(path)
    new = f"coalesce({expression_text(value)}, 'null'::jsonb)"
    return _where_object(text, keys[:-1], f"jsonb_set({text}, {_path(keys)}, {new})")


def json_remove(document: Expression, path: str | Sequence[str]) -> str:
    """The ``jsonb`` document without the key at the end of a path."""
    text, keys = _plain(document), _keys(path)
    return _where_object(text, keys[:-1], f"{text} #- {_path(keys)}")


def json_move(document: Expression, path: str | Sequence[str], to: str | Sequence[str]) -> str:
    """The ``jsonb`` document with what is at a path at another one; also to rename a key.

    A document without the old key stays as it is, and so does one that has nothing to hold the new
    key or holds it already: nothing is overwritten.
    """
    text, old, new = _plain(document), _keys(path), _keys(to)
    if old == new[: len(old)]:
        raise MigrationError(
            f"{'.'.join(old)} cannot move into itself", "give a path that is not below it"
        )
    rest = f"({text} #- {_path(old)})"
    moved = f"jsonb_set({rest}, {_path(new)}, {text} #> {_path(old)})"
    moves = [_has(text, old), f"NOT {_has(text, new)}", _is_object(rest, new[:-1])]
    # coalesce: of a document that is NULL, each condition is.
    return f"CASE WHEN {' AND '.join(moves)} THEN {moved} ELSE {text} END"


def json_elements(
    document: Expression,
    path: str | Sequence[str],
    expression: Expression,
    *,
    name: str = "element",
) -> str:
    """The ``jsonb`` document with each element of the array at a path replaced, in their order.

    Parameters
    ----------
    path
        () where the document itself is the array.  What is no array there stays as it is.
    expression
        Gives the new element, of type ``jsonb``, from ``name``, the old one.
    """
    text, keys = _plain(document), (path,) if isinstance(path, str) else tuple(path)
    array = f"{text} #> {_path(keys)}" if keys else text
    elements = (
        f"(SELECT coalesce(jsonb_agg({expression_text(expression)} ORDER BY place), '[]'::jsonb)\n"
        f"      FROM jsonb_array_elements({array}) WITH ORDINALITY AS each ({name}, place))"
    )
    new = f"jsonb_set({text}, {_path(keys)}, {elements})" if keys else elements
    return f"CASE WHEN jsonb_typeof({array}) = 'array' THEN {new} ELSE {text} END"


#: What a value of each kind is to an expression.
_KINDS = {"number": "numeric", "string": "text", "boolean": "boolean"}


def json_change(
    document: Expression,
    kind: Literal["number", "string", "boolean"],
    changes: Mapping[str | tuple[str, ...], Expression],
    *,
    name: str = "value",
) -> str:
    """The ``jsonb`` document with values changed where they are; all else stays as it is.

    Parameters
    ----------
    kind
        What a value must be to be changed: what is missing, null or of another kind stays.
    changes
        Path -> expression over ``name``, the old value, as ``numeric``, ``text`` or ``boolean``:
        ``{("position", "width"): "value * 2"}``.
    """
    result = _plain(document)
    # OFFSET 0: else PostgreSQL would compute a document anew for each of the four that read it.
    for path, expression in changes.items():
        at = _path(_keys(path))
        new = (
            f"(SELECT coalesce(to_jsonb({expression_text(expression)}), 'null')"
            f" FROM (SELECT (document #>> {at})::{_KINDS[kind]}) AS old ({name}))"
        )
        result = (
            f"(SELECT CASE WHEN jsonb_typeof(document #> {at}) = '{kind}'\n"
            f"             THEN jsonb_set(document, {at}, {new})\n"
            f"             ELSE document END\n"
            f"   FROM (SELECT {result} OFFSET 0) AS old (document))"
        )
    return result


def _keys(path: str | Sequence[str]) -> tuple[str, ...]:
    keys = (path,) if isinstance(path, str) else tuple(path)
    if not keys:
        raise MigrationError("the path has no key", "name at least one")
    return keys


def _path(keys: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(map(literal, keys))}]::text[]"


def _is_object(document: str, keys: Sequence[str]) -> str:
    parent = f"{document} #> {_path(keys)}" if keys else document
    return f"jsonb_typeof({parent}) = 'object'"


def _where_object(document: str, keys: Sequence[str], changed: str) -> str:
    return f"CASE WHEN {_is_object(document, keys)} THEN {changed} ELSE {document} END"


def _has(document: str, keys: Sequence[str]) -> str:
    """Condition: the document has the key at the end of a path, in an object."""
    return f"({_is_object(document, keys[:-1])} AND {document} #> {_path(keys)} IS NOT NULL)"


def _plain(text: Expression) -> str:
    """The expression as an operand."""
    written = expression_text(text)
    return written if written.replace("_", "").isalnum() else f"({written})"
