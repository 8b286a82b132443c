"""What is odd about a table and its columns, judged by their figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from datamig_nb.display import counted
from datamig_nb.names import quote
from datamig_nb.table_profile import Alert, CandidateKey, ColumnProfile, Reference
from datamig_nb.tables import Table

# FROM user and the like do not fail: each of these is a function that is called without ().
_VALUE_WORDS = frozenset(
    "current_catalog current_date current_role current_schema current_time current_timestamp"
    " current_user localtime localtimestamp session_user system_user user".split()
)


def table_alerts(table: Table, facts: Any, keys: Sequence[CandidateKey]) -> Iterator[Alert]:
    """What is odd about the table itself; ``facts`` is its row of ``profile_catalog.TABLE``."""
    name, found = table.name.name, list[tuple[str, str, str]]()
    if name in _VALUE_WORDS:
        what = f"{name} is a reserved word: SELECT count(*) FROM {name} counts something else"
        found.append(("danger", what, f"write {table.name.sql}, always with the quotes"))
    elif quote(name) != name and re.fullmatch("[a-z_]+", name):
        what = f"{name} is a reserved word: without quotes it is a syntax error"
        found.append(("warning", what, f"write {table.name.sql}"))
    if not table.key and facts.relkind in "rp":
        what = "there is no primary key and no unique index over NOT NULL columns"
        proven = [", ".join(map(quote, key.columns)) for key in keys if key.proven]
        how = f"make ({proven[0]}) the key" if proven else "add one"
        found.append(("danger", what, f"{how}, so that batches can resume"))
    if facts.rows_hidden:
        what = "row security hides rows from this user"
        found.append(("danger", what, "profile as the owner, or as a role with BYPASSRLS"))
    for severity, what, advice in found:
        yield Alert(severity=severity, column=None, rows=None, finding=what, advice=advice)


def column_alerts(column: ColumnProfile, links: Sequence[Reference]) -> Iterator[Alert]:
    """What is odd about one column; a rule without rows is silent."""
    filled, about = column.filled, "" if column.distinct_is_exact else "about "

    def alert(severity: str, rows: int, finding: str, advice: str) -> Iterator[Alert]:
        if rows:
            yield Alert(
                severity=severity,
                column=column.name,
                rows=rows,
                finding=finding.replace("{}", counted(rows, "row"), 1),  # a mask may hold braces
                advice=advice,
            )

    for link in links:
        severity = "warning" if link.origin == "suggested" else "danger"
        finding = f"{{}} with a value that is not in {link.parent}.{link.parent_column}"
        yield from alert(severity, link.orphan_rows, finding, "decide on them before a foreign key")
    if filled == 0:
        yield from alert("warning", column.nulls, "{}, all NULL", "see whether it can go")
    elif 20 * column.nulls <= column.rows:
        finding, advice = "{} NULL, all others filled", "fill them before NOT NULL"
        yield from alert("note", column.nulls, finding, advice)
    if column.distinct_is_exact and column.distinct == 1 and filled == column.rows > 1:
        yield from alert("note", filled, "{}, all with one value", "see whether it can go")
    if 20 * column.repeated <= filled and _may_identify(column):
        finding, advice = f"unique but for {about}{{}}", "decide which to keep before a unique key"
        yield from alert("warning", column.repeated, finding, advice)
    yield from alert("warning", column.blanks, "{} blank", "decide whether blank means NULL")
    finding = "{} with white space before or behind"
    advice = "trim them; btrim(text) takes spaces only, no tabs"
    yield from alert("warning", column.padded, finding, advice)
    finding = "{} with a space beyond ASCII"
    advice = "replace them; neither btrim() nor split_part(…, ' ', …) sees them"
    yield from alert("warning", column.wide_spaces, finding, advice)
    finding = "{} with accents as characters of their own"
    advice = "normalize(text) makes them equal to those that look the same"
    yield from alert("warning", column.decomposed, finding, advice)
    about = "" if column.sample_rows is None else "about "
    finding = f"{about}{{}} spelled otherwise than most, by case or space only"
    finding += f", in {about}{counted(column.spelling_groups, 'group')}"
    yield from alert("warning", column.spelling_rows, finding, "map them to one spelling")
    if column.min_length != column.max_length:
        full = column.max_length == column.length_limit
        finding = f"{{}} within a tenth of the {column.length_limit} characters that fit"
        advice = "see whether values were cut" if full else "see that new values will fit"
        yield from alert("warning" if full else "note", column.near_limit, finding, advice)
    if column.looks_like:
        finding, advice = f"a {column.looks_like} kept as text: {{}}", "consider that type"
        yield from alert("note", filled, finding, advice)
    if column.masks and 2 * column.masks[0].rows >= (column.sample_rows or filled):
        finding = f"{{}} in shapes of under 1 % each (most are {column.masks[0].value!r})"
        yield from alert("note", column.rare_mask_rows, finding, "see that the transform fits them")


def _may_identify(column: ColumnProfile) -> bool:
    """Whether the type is one that keys have; nobody minds two equal moments."""
    return column.min_length is not None or column.type in ("smallint", "integer", "bigint", "uuid")
