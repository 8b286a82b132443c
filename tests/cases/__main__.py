"""Renew the table in README.md."""

from __future__ import annotations

from tests.cases.harness import HERE, table_of_lines

readme = HERE / "README.md"
before = readme.read_text(encoding="utf-8").partition("| case |")[0]
readme.write_text(before + table_of_lines(), encoding="utf-8")
