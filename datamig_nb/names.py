"""Names and literals as PostgreSQL reads them: pure text, no connection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.base import PGCompiler, PGDialect, PGIdentifierPreparer
from sqlalchemy.exc import CompileError

from datamig_nb.errors import MigrationError

#: Every word that quote_ident() quotes on PostgreSQL 14 to 18 (pg_get_keywords(), catcode <>
#: 'U'); a test compares the list with the server.
KEYWORDS = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit
    boolean both case cast char character check coalesce collate collation column concurrently
    constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user dec decimal default deferrable desc distinct do else end except
    exists extract false fetch float for foreign freeze from full grant greatest group grouping
    having ilike in initially inner inout int integer intersect interval into is isnull join json
    json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar
    json_serialize json_table json_value lateral leading least left like limit localtime
    localtimestamp merge_action national natural nchar none normalize not notnull null nullif
    numeric offset on only or order out outer overlaps overlay placing position precision primary
    real references returning right row select session_user setof similar smallint some substring
    symmetric system_user table tablesample then time timestamp to trailing treat trim true union
    unique user using values varchar variadic verbose when where window with xmlattributes
    xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize
    xmltable
    """.split()
)
# What may hide a name: literals (with E'' escapes), dollar quotes, comments; then the names.
TOKENS = re.compile(
    r"""
      (?:\b[eE]'(?:[^'\\]|\\.|'')*')
    | '(?:[^']|'')*'
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | --[^\n]*
    | /\*.*?\*/
    | "(?P<quoted>(?:[^"]|"")+)"
    | (?P<plain>[^\W\d][\w$]*)
    """,
    re.VERBOSE | re.DOTALL,
)

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def quote(name: str) -> str:
    """The name as SQL, quoted only where PostgreSQL needs it (as ``quote_ident`` does)."""
    if _PLAIN.fullmatch(name) and name not in KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | int | bool | None) -> str:
    """The value as a SQL literal, safe with ``standard_conforming_strings``, the default."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("'", "''") + "'"


class _Preparer(PGIdentifierPreparer):
    """Quotes as :func:`quote` does, so that a file has one manner: SQLAlchemy knows fewer words."""

    def _requires_quotes(self, value: str) -> bool:
        return quote(value) != value


class _Compiler(PGCompiler):
    """Refuses a value that was never given, where SQLAlchemy writes NULL.

    ``sa.text("note <> ':y'")`` has one: what looks like a literal is a parameter.
    """

    def render_literal_bindparam(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, bindparam: sa.BindParameter[Any], **kw: Any
    ) -> str:
        if bindparam.required:
            raise CompileError(
                rf"there is no value for :{bindparam.key}; a colon that is none of SQLAlchemy's is"
                r" written as '\:'"
            )
        return cast("str", super().render_literal_bindparam(bindparam, **kw))


def sqlalchemy_dialect() -> PGDialect:
    """The dialect that lets SQLAlchemy write the text that PostgreSQL reads."""
    # paramstyle "named" leaves % alone, which other styles double.
    dialect = postgresql.dialect(paramstyle="named")
    dialect.identifier_preparer = _Preparer(dialect)
    dialect.statement_compiler = _Compiler
    # SQLAlchemy 2.0 doubles backslashes until it has asked a server whether it should.
    dialect._backslash_escapes = False  # pyright: ignore[reportPrivateUsage]
    return dialect


#: Bytes of a name; PostgreSQL cuts a longer one without a word, and it could not be found again.
MOST_NAME_BYTES = 63


def cut(name: str) -> str:
    """As much of a name as PostgreSQL takes."""
    return name.encode()[:MOST_NAME_BYTES].decode(errors="ignore")


@dataclass(frozen=True)
class TableName:
    """A table's name, with its schema where one was given."""

    #: Schema as PostgreSQL stores it; None means: as the search path finds it.
    schema: str | None
    #: Name as PostgreSQL stores it.
    name: str

    @classmethod
    def parse(cls, text: str | TableName) -> TableName:
        """Read ``player``, ``players.player`` or ``"My Schema"."My.Table"``.

        Letters keep their case, as PostgreSQL stores them; quotes are needed only around a dot.
        """
        if isinstance(text, TableName):
            return text
        parts: list[str] = []
        position = 0
        while match := _PART.match(text, position):
            parts.append(match[1].replace('""', '"') if match[1] else match[2])
            position = match.end() + 1
            if text[match.end() : position] != ".":
                break
        if match is None or match.end() != len(text) or len(parts) > 2:
            raise MigrationError(
                f"{text!r} is no table name", "write 'table' or 'schema.table', without a database"
            )
        return cls(parts[0] if len(parts) == 2 else None, parts[-1])

    @property
    def sql(self) -> str:
        """The name as SQL, quoted where needed."""
        return (
            quote(self.name) if self.schema is None else f"{quote(self.schema)}.{quote(self.name)}"
        )

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"
