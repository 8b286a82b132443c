"""Results as HTML: escaped, well-formed, small, the same every time, and plain without colour."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sqlalchemy as sa

from datamig_nb import display, html_pages
from datamig_nb.checks import check, no_nulls
from datamig_nb.clones import Clones, LeftClone
from datamig_nb.display import Shown, to_html
from datamig_nb.export import Export
from datamig_nb.hazards import Hazard as RevisionHazard
from datamig_nb.migration import Migration
from datamig_nb.operations import add_column, create_enum
from datamig_nb.preview import BackfillPreview, MapRow, Preview, SampleRow
from datamig_nb.preview_hazards import Hazard
from datamig_nb.rehearsal import Rehearsal, Stage
from datamig_nb.render import Revision
from datamig_nb.set_aside import SetAside
from datamig_nb.steps import backfill, keep_in_step
from datamig_nb.table_profile import (
    Alert,
    CandidateKey,
    ColumnProfile,
    Reference,
    TableProfile,
    ValueCount,
)
from datamig_nb.validate import CheckResult, ValidationReport
from datamig_nb.watch import Runs, RunState

#: A name, a value or a piece of SQL that would be markup, an attribute or a template's code.
HOSTILE = "<script>alert('1')</script>\" onclick=\"x & ${1+1} <% y %>"

# ---------------------------------------------------------------- values, hostile wherever they can

SPLIT = {"first_name": f"split_part(full_name, '{HOSTILE}', 1)"}

MIGRATION = Migration(
    f"split {HOSTILE}",
    add_column("player", sa.Column("first_name", sa.String(50)), schema="players"),
    create_enum("players.kind", "a", HOSTILE),
    keep_in_step("players.player", SPLIT),
    backfill("players.player", SPLIT, where=f"full_name <> '{HOSTILE}'"),
    check(f"nobody is {HOSTILE}", f"SELECT id FROM players.player WHERE x = '{HOSTILE}'"),
    no_nulls("players.player", "first_name"),
)

REVISION = Revision(
    migration=MIGRATION,
    text=f'''"""{HOSTILE}"""

def upgrade() -> None:
    """Split {HOSTILE}."""


def downgrade() -> None:
    pass


# -------- SQL

FIRST_NAME = r"{HOSTILE}"


# -------- functions


def step() -> None:
    pass
''',
    id="0123456789ab",
    down_revision=None,
)

REPORT = ValidationReport(
    migration=f"split {HOSTILE}",
    results=(
        CheckResult(name=f"no {HOSTILE}", failing_rows=0, key_columns=(), keys=()),
        CheckResult(
            name="every name is split",
            failing_rows=2_000,
            key_columns=(HOSTILE, "nr"),
            keys=((HOSTILE, 1), (None, 2)),
        ),
    ),
)

REHEARSAL = Rehearsal(
    revision=REVISION,
    digest=REVISION.digest,
    server_version="18.6",
    rows=5_198,
    stages=(
        Stage(name="upgrade", passed=True, seconds=1.2345),
        Stage(name="checks", passed=False, seconds=0.001, detail=f"2 rows {HOSTILE}"),
    ),
    validation=REPORT,
    verdict="not known",
)

PART = BackfillPreview(
    table="players.player",
    reads=("full_name", HOSTILE),
    sets=("first_name", "full_name"),
    key_columns=("id",),
    rows=5_198,
    changed_rows=5_000,
    distinct=2,
    map=(
        MapRow(before=(HOSTILE, None), after=("", "Ada "), rows=1_200),
        MapRow(before=("Ada", "x"), after=("Ada", "Ada"), rows=1),
    ),
    samples=(
        SampleRow(why="NULL", key=("1",), before=(None, HOSTILE), after=(None, None)),
        SampleRow(why="NULL", key=("2",), before=(None, "y" * 200), after=(None, None)),
        SampleRow(why=HOSTILE, key=(HOSTILE,), before=(" a", "b"), after=("a", "b")),
    ),
)

PREVIEW = Preview(
    migration=f"split {HOSTILE}",
    steps=(f"fill {HOSTILE}",),
    hazards=(
        Hazard(severity="stops", what=HOSTILE, rows=3, keys=((HOSTILE,),), advice=HOSTILE),
        Hazard(severity="note", what="2 old values become one", rows=2, advice="keep the old"),
    ),
    backfills=(PART,),
)

COLUMN = ColumnProfile(
    name=HOSTILE,
    type="character varying(50)",
    rows=10_000,
    nulls=2,
    blanks=100,
    padded=300,
    non_ascii=5,
    distinct=1_669,
    distinct_is_exact=False,
    top=(ValueCount(value=HOSTILE, rows=6_000), ValueCount(value=" ", rows=50)),
    minimum="",
    maximum=HOSTILE,
    min_length=0,
    mean_length=12.6,
    max_length=70,
    length_limit=70,
    masks=tuple(ValueCount(value=mask, rows=7) for mask in ("Aa+ Aa+", "<a>", "9", "A", "a")),
    distinct_masks=26,
    spellings=((ValueCount(value="ADA", rows=3), ValueCount(value="Ada ", rows=1)),) * 6,
    spelling_groups=323,
    spelling_rows=700,
    sample_rows=10_000,
)

NUMBERS = ColumnProfile(
    name="id",
    type="bigint",
    rows=10_000,
    nulls=0,
    distinct=10_000,
    distinct_is_exact=True,
    minimum="1001",
    maximum="11000",
    quantiles=("1500", "3500", "6000", "8500", "10500"),
)

PROFILE = TableProfile(
    table=f"players.{HOSTILE}",
    rows=10_000,
    total_bytes=1_000_000,
    alerts=(
        Alert(severity="danger", column=None, rows=None, finding=HOSTILE, advice=HOSTILE),
        Alert(severity="warning", column=HOSTILE, rows=1, finding="1 row blank", advice="decide"),
        Alert(severity="note", column="id", rows=1, finding="1 row NULL", advice="fill it"),
    ),
    columns=(NUMBERS, COLUMN),
    candidate_keys=(
        CandidateKey(columns=("id",), indexed=True, proven=True),
        CandidateKey(columns=("a", HOSTILE), indexed=False, proven=False),
    ),
    references=(
        Reference(
            column=HOSTILE,
            parent="players.team",
            parent_column="id",
            origin="suggested",
            orphan_rows=50_094,
            missing_values=2,
            first_missing=(ValueCount(value=HOSTILE, rows=575),),
        ),
    ),
)

EXPORT = Export(revision=REVISION, path=Path("/home/ada/project/versions/0123_<b>split</b>.py"))

RUN = RunState(
    revision=HOSTILE,
    step=HOSTILE,
    part=1,
    status="running",
    total=1_000,
    scanned=250,
    changed=100,
    batches=5,
    seconds=50.0,
    heartbeat_age_seconds=2.5,
    note=HOSTILE,
    error=HOSTILE,
)

RUNS = Runs(
    states=(
        RUN,
        replace(RUN, part=2, status="paused", total=None, note=None),
        replace(RUN, revision="0123456789ab", step="", status="succeeded", note=None, error=None),
        replace(RUN, revision="0123456789ab", status=HOSTILE),
    )
)

SET_ASIDE = SetAside(
    revision=HOSTILE,
    what="in quarantine",
    count=2_000,
    columns=("relation", "key", HOSTILE),
    rows=((HOSTILE, "1", None), ("players.player", HOSTILE, HOSTILE)),
)

CLONES = Clones(
    clones=(
        LeftClone(
            name="datamig_clone_<b>",
            source="shop & co",
            made_by="<i>@host",
            made_at="2026-11-01T10:00:00Z",
            size_bytes=8_000_000,
            in_use=False,
        ),
    )
)

VALUES = (
    *(MIGRATION, PROFILE, PREVIEW, REVISION, REHEARSAL, EXPORT, REPORT),
    *(RUNS, SET_ASIDE, CLONES),
)

each_value = pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)


# ---------------------------------------------------------------- helpers


def shown(value: object) -> str:
    markup = to_html(value)
    assert markup is not None
    return markup


def parsed(markup: str) -> ElementTree.Element:
    """The markup as a tree; raises where an element is not closed or an attribute not quoted."""
    closed = markup.replace("<br>", "<br/>").replace("&nbsp;", "\u00a0")
    return ElementTree.fromstring(f"<root>{closed}</root>")


def words(markup: str) -> str:
    """What is left where there are no tags and no style, as for a reader of plain text."""
    plain = re.sub(r"<style>.*?</style>|<[^>]*>", " ", markup, flags=re.DOTALL)
    return " ".join(plain.replace("&nbsp;", " ").split())


def ragged_tables(markup: str) -> list[list[int]]:
    """Cells in each row of the tables that have more in one than in another."""
    found: list[list[int]] = []
    for table in parsed(markup).iter("table"):
        rows = list(table.iter("tr"))
        widths = [0] * len(rows)
        for place, row in enumerate(rows):
            for cell in row:
                for reached in range(place, place + int(cell.get("rowspan", 1))):
                    widths[reached] += int(cell.get("colspan", 1))
        if len(set(widths)) > 1:
            found.append(widths)
    return found


def cells_of(datum: str | None) -> str:
    """The markup of a datum: what becomes of it in a value map."""
    row = MapRow(before=(datum,), after=("",), rows=1)
    part = replace(PART, reads=("a",), sets=("b",), map=(row,), samples=(), distinct=1)
    markup = shown(replace(PREVIEW, hazards=(), backfills=(part,)))
    return markup.partition('<td class="data" style="text-align:left">')[2].partition("</td>")[0]


# ---------------------------------------------------------------- what holds for all of them


def result_types(cls: type = Shown) -> Iterator[type]:
    for known in cls.__subclasses__():
        if known.__module__.startswith("datamig_nb."):
            yield known
        yield from result_types(known)


def test_every_result_type_has_a_renderer_and_is_tried_here() -> None:
    assert {type(value) for value in VALUES} == set(result_types())


@each_value
def test_markup_is_well_formed(value: object) -> None:
    root = parsed(shown(value))

    assert [child.get("class") for child in root] == ["dm"]


@each_value
def test_what_comes_from_the_database_is_escaped(value: object) -> None:
    markup = shown(value)

    assert "<script" not in markup
    assert "<b>split</b>" not in markup
    assert "onclick" not in {name for node in parsed(markup).iter() for name in node.attrib}


@each_value
def test_there_are_no_scripts_ids_handlers_or_links(value: object) -> None:
    nodes = list(parsed(shown(value)).iter())

    allowed = {"class", "style", "title", "scope", "align", "colspan", "rowspan", "role"}
    assert {name for node in nodes for name in node.attrib} <= {*allowed, "aria-label"}
    assert not {node.tag for node in nodes} & {"script", "iframe", "img", "a", "link", "h1", "h2"}


@each_value
def test_the_same_value_gives_the_same_markup(value: object) -> None:
    assert shown(value) == shown(value)


@each_value
def test_tables_have_captions_and_named_columns(value: object) -> None:
    for table in parsed(shown(value)).iter("table"):
        assert table.findtext("caption")
        assert all(cell.get("scope") for cell in table.iter("th"))


@each_value
def test_rows_are_as_wide_as_their_table(value: object) -> None:
    assert ragged_tables(shown(value)) == []


@each_value
def test_text_is_aligned_without_the_style_and_numbers_are_too(value: object) -> None:
    for cell in parsed(shown(value)).iter():
        if cell.tag in ("td", "th"):
            assert (cell.get("style") == "text-align:left") != (cell.get("align") == "right")


@each_value
def test_style_reaches_nothing_outside_the_output(value: object) -> None:
    style = parsed(shown(value)).findtext(".//style")

    assert style is not None
    selectors = re.findall(r"([^{}]+)\{[^}]*\}", style)
    assert selectors
    assert {part.split()[0] for rule in selectors for part in rule.split(",")} == {".dm.dm.dm"}


@each_value
def test_the_machines_paths_are_not_shown(value: object) -> None:
    assert "/home/" not in shown(value)


# ---------------------------------------------------------------- data


LOOKALIKES = (
    None, "NULL", "", "''", " ", "·", "a", " a", "·a", "a ", "a·", "a b", "a  b", "a··b", "a\tb",
    "a⇥b", "a\nb", "a↵b", "a\u00a0b", "a⍽b", "a\u200bb", "aU+200Bb", "a\u2007b", "ab",
)  # fmt: skip


def test_values_that_look_alike_differ_in_the_markup() -> None:
    assert len({cells_of(datum) for datum in LOOKALIKES}) == len(LOOKALIKES)


@pytest.mark.parametrize(
    ("datum", "markup"),
    [
        (None, "<em>NULL</em>"),
        ("NULL", "NULL"),
        ("", "<em>&#39;&#39;</em>"),
        ("Ada ", "Ada<mark>·</mark>"),
        (" Ada", "<mark>·</mark>Ada"),
        ("Ada  B", "Ada<mark>··</mark>B"),
        ("Ada B", "Ada B"),
        ("Ada\tB", "Ada<mark>⇥</mark>B"),
        ("Ada\u00a0B", "Ada<mark>⍽</mark>B"),
        ("Ada\u202eB", "Ada<mark>U+202E</mark>B"),
        ("<b>", "&lt;b&gt;"),
    ],
)
def test_nothing_in_a_datum_is_invisible(datum: str | None, markup: str) -> None:
    assert cells_of(datum) == markup


def test_a_long_datum_is_cut_and_whole_in_its_title() -> None:
    datum = "<" * 50 + "x" * 50

    markup = parsed(cells_of(datum))

    assert [(node.text, node.get("title")) for node in markup] == [
        ("<" * 50 + "x" * 9 + "…", datum)
    ]


# ---------------------------------------------------------------- one by one


def test_validation_says_in_words_what_failed_and_shows_it_first() -> None:
    text = words(shown(REPORT))

    assert "✗ FAILED 1 of 2 checks" in text
    assert text.index("✗ FAILED every name is split 2,000") < text.index("✓ passed no")
    assert "FAILED" not in shown(replace(REPORT, results=REPORT.results[:1]))


def test_preview_puts_what_stops_it_first() -> None:
    text = words(shown(PREVIEW))

    assert "! stops 1 hazard would stop it; 5,000 rows would change" in text
    assert text.index("! stops") < text.index("i note") < text.index("5,198 rows looked at")
    assert "✓ passed no hazard would stop it" in words(shown(replace(PREVIEW, hazards=())))


def test_preview_marks_the_values_that_change() -> None:
    same = MapRow(before=("a",), after=("a",), rows=1)
    other = MapRow(before=("b",), after=("c",), rows=1)
    part = replace(PART, reads=("x",), sets=("y",), map=(same, other), samples=())

    markup = shown(replace(PREVIEW, backfills=(part,)))

    assert '<td class="data" style="text-align:left">a</td>' in markup
    assert '<td class="data" style="text-align:left"><b>c</b></td>' in markup


def test_preview_says_how_much_of_the_map_is_missing() -> None:
    assert "more combination" not in words(shown(PREVIEW))
    assert "and 998 more combinations" in words(
        shown(replace(PREVIEW, backfills=(replace(PART, distinct=1_000),)))
    )


def test_rehearsal_gives_its_verdict_in_words_and_seconds_in_one_form() -> None:
    markup = shown(REHEARSAL)

    assert "✗ FAILED at checks; the way back is not known" in words(markup)
    assert '<td class="seconds" align="right">1.23 s</td>' in markup
    assert '<td class="seconds" align="right">0.00 s</td>' in markup
    stages = (Stage(name="upgrade", passed=True, seconds=1),)
    passed = replace(REHEARSAL, stages=stages, validation=None, verdict="lossless")
    assert "✓ passed the way back is lossless" in words(shown(passed))
    assert "✓ ready no hazard blocks it" in words(shown(passed))
    risk = RevisionHazard(rule="unbatched", blocking=True, what=f"one UPDATE {HOSTILE}", rows=9)
    risky = words(shown(replace(passed, hazards=(risk,))))
    assert "✗ not ready unbatched, one UPDATE" in risky
    assert "✗ danger unbatched one UPDATE" in risky


def test_revision_tells_the_story_and_holds_the_whole_file() -> None:
    root = parsed(shown(REVISION))

    story, sql, whole = ("".join(node.itertext()).strip() for node in root.iter("pre"))
    assert f"{story}\n\n\n# -------- SQL\n\n{sql}" == REVISION.story.strip()
    assert whole == REVISION.text.strip()
    assert "0123456789ab , the first of its project, 20 lines" in words(shown(REVISION))


def test_migration_shows_its_sql_once() -> None:
    root = parsed(shown(MIGRATION))

    codes = ["".join(code.itertext()) for code in root.iter("code")]
    assert codes.count(SPLIT["first_name"]) == 1
    assert "as in step 3" in words(shown(MIGRATION))
    assert len(list(root.iter("li"))) == len(MIGRATION.steps)


def test_profile_counts_alerts_in_words_and_marks_estimates() -> None:
    text = words(shown(PROFILE))

    assert "✗ 1 danger ! 1 warning i 1 note 10,000 rows, 2 columns, figures with ≈" in text
    assert text.index("✗ danger") < text.index("! warning") < text.index("Columns")
    assert "≈ 1,669" in text
    assert "10,000 unique" in text
    assert "2 NULL, under 0.1 % 100 blank, 1.0 %" in text
    assert "and about 318 more groups" in text
    assert "50,094" in text


def test_bars_say_in_words_what_they_show() -> None:
    bars = [node for node in parsed(shown(PROFILE)).iter() if node.get("role") == "img"]

    assert [bar.get("aria-label") for bar in bars] == [
        "every row",
        "2 NULL, under 0.1 %; 100 blank, 1.0 %",
    ]
    assert [part.get("style") for part in bars[1]] == ["width:99.0%", "width:1.0%"]


def test_a_small_report_as_a_whole() -> None:
    report = ValidationReport(
        migration="split full_name",
        results=(
            CheckResult(name="every <b> is split", failing_rows=0, key_columns=(), keys=()),
            CheckResult(
                name="no NULLs",
                failing_rows=2,
                key_columns=("id", "a"),
                keys=((7, " x"), (8, None)),
            ),
        ),
    )

    before, style, after = re.split("(<style>.*</style>\n)", shown(report), flags=re.DOTALL)

    assert style
    assert before + after == WHOLE


WHOLE = """\
<div class="dm">
<p class="title"><span class="soft">Validation of</span> <b>split full_name</b></p>
<p><strong class="status bad">✗&nbsp;FAILED</strong> 1 of 2 checks</p>
<table>
<caption style="text-align:left">Checks</caption>
<thead><tr><th scope="col" style="text-align:left">status</th>\
<th scope="col" style="text-align:left">what holds</th>\
<th scope="col" align="right">failing rows</th>\
<th scope="col" style="text-align:left">the first of them</th></tr></thead>
<tbody>
<tr><td style="text-align:left"><strong class="status bad">✗&nbsp;FAILED</strong></td>\
<th scope="row" style="text-align:left">no NULLs</th><td align="right">2</td>\
<td style="text-align:left"><span class="soft">id, a</span> \
<span class="data">(7, <mark>·</mark>x), (8, <em>NULL</em>)</span></td></tr>
<tr><td style="text-align:left"><strong class="status good">✓&nbsp;passed</strong></td>\
<th scope="row" style="text-align:left">every &lt;b&gt; is split</th><td align="right">0</td>\
<td style="text-align:left"></td></tr>
</tbody>
</table>
</div>
"""


def test_runs_say_how_far_they_are_in_words() -> None:
    fill = replace(RUN, revision="aaa", step="fill", note=None, error=None)
    states = (
        replace(fill, step="upgrade", part=0, total=None, scanned=0, changed=0, batches=0),
        fill,
        replace(fill, part=2, status="paused", error="value  too long"),
        replace(fill, revision="bbb", status="succeeded", scanned=1_000, note="by id"),
    )

    text = words(shown(Runs(states=states)))

    assert text == (
        "Runs: 2 running, 1 paused, 1 succeeded"
        f" Revision aaa {HEADS} → running upgrade 2.5 s ago"
        " → running fill 250 100 5 5 2 min 30 s 2.5 s ago"
        " = paused fill, part 2 250 100 5 5 2.5 s ago value ·· too long"
        f" Revision bbb {HEADS} ✓ succeeded fill 1,000 100 5 20 by id"
    )


HEADS = (
    "status step done scanned changed batches rows a second time left last heard of what it says"
)


def test_shares_of_runs_are_bars_that_say_in_words_what_they_show() -> None:
    states = (RUN, replace(RUN, total=None), replace(RUN, status="succeeded"))

    bars = [b for b in parsed(shown(Runs(states=states))).iter() if b.get("role") == "img"]

    assert [bar.get("aria-label") for bar in bars] == ["25% done", "100% done"]
    assert [bar[0].get("style") for bar in bars] == ["width:25.0%", "width:100.0%"]


def test_rows_set_aside_are_shown_with_how_many_there_are() -> None:
    text = words(shown(replace(SET_ASIDE, revision="aaa")))

    assert text.startswith("Rows in quarantine 2,000 rows of revision aaa By table and key")
    assert text.endswith("and 1,998 more rows")
    assert words(shown(replace(SET_ASIDE, revision="aaa", count=0, rows=()))) == (
        "Rows in quarantine 0 rows of revision aaa"
    )


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("value", [RUNS, SET_ASIDE], ids=["runs", "set aside"])
def test_a_list_of_thousands_is_small(value: Runs | SetAside) -> None:
    if isinstance(value, Runs):
        value = Runs(states=(replace(RUN, error="x" * 5_000),) * 2_000)
    else:
        value = replace(value, count=5_000, rows=(("y" * 3_000,) * 3,) * 1_000)

    assert len(shown(value).encode()) < 60_000
    assert re.search("and [0-9,]+ more (step|row)s", words(shown(value)))


def test_a_report_of_200_checks_is_small_and_complete() -> None:
    name = "every first_name of players.player is filled"
    keys = tuple((1_000 + number,) for number in range(20))
    failed = CheckResult(name=name, failing_rows=2_000, key_columns=("id",), keys=keys)
    passed = CheckResult(name=name, failing_rows=0, key_columns=(), keys=())

    markup = shown(replace(REPORT, results=(passed,) * 180 + (failed,) * 20))

    assert len(markup.encode()) < 60_000
    assert "✗ FAILED 20 of 200 checks" in words(markup)
    assert words(markup).count(name) == 200


def test_a_report_of_200_failed_checks_is_small_and_says_what_is_left_out() -> None:
    markup = shown(replace(REPORT, results=REPORT.results[1:] * 200))

    assert len(markup.encode()) < 60_000
    assert "✗ FAILED 200 of 200 checks" in words(markup)
    assert "and 100 more checks" in words(markup)
    assert ragged_tables(markup) == []


@pytest.mark.parametrize("characters", [10, 100, 10_000])
def test_a_preview_of_1000_pairs_is_small(characters: int) -> None:
    texts = [f"{number:04}{'&' * characters}" for number in range(1_000)]
    pairs = tuple(MapRow(before=(text, text), after=(text, text), rows=1) for text in texts)
    samples = tuple(replace(PART.samples[0], before=(t, t), after=(t, t)) for t in texts[:40])
    hazards = tuple(replace(PREVIEW.hazards[0], keys=((t, t),) * 20) for t in texts[:100])
    part = replace(PART, map=pairs, samples=samples, distinct=20_000)

    markup = shown(replace(PREVIEW, hazards=hazards, backfills=(part,)))

    assert len(markup.encode()) < 60_000
    assert re.search("and 19,9[0-9]{2} more combinations", words(markup))
    assert ragged_tables(markup) == []


def test_a_profile_of_13_columns_is_small_and_complete() -> None:
    profile = replace(PROFILE, columns=(COLUMN,) * 13, alerts=PROFILE.alerts * 20)

    root = parsed(shown(profile))

    assert len(shown(profile).encode()) < 60_000
    assert sum(node.get("role") == "img" for node in root.iter()) == 13


def test_a_revision_of_5000_lines_is_cut_and_says_so() -> None:
    revision = replace(REVISION, text=REVISION.text + "    # & once more\n" * 5_000)

    assert len(shown(revision).encode()) < 60_000
    assert re.search("… [0-9,]+ more lines in the file", words(shown(revision)))


# ---------------------------------------------------------------- a page


def test_page_is_a_document_with_the_same_markup_in_light_and_dark() -> None:
    document = html_pages.page(REPORT, PREVIEW)

    assert document.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert document.endswith("</body>\n</html>\n")
    assert shown(REPORT) in document
    assert shown(PREVIEW) in document
    assert "<title>ValidationReport, Preview</title>" in document
    assert "prefers-color-scheme: dark" in document


def test_page_of_what_has_no_renderer_is_refused() -> None:
    with pytest.raises(TypeError, match="int has no HTML"):
        html_pages.page(REPORT, 3)


def test_page_can_be_saved(tmp_path: Path) -> None:
    html_pages.save_html(tmp_path / "report.html", REPORT)

    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html_pages.page(REPORT)


def test_renderers_are_found_by_type_only() -> None:
    assert to_html("text") is None
    assert display.to_html(REPORT) == REPORT._repr_html_()
