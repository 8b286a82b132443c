## What all reports are made of.  Text cells are aligned in the cell itself and not by a rule, for
## JupyterLab aligns every cell to the right and drops <style> where a notebook is not trusted.

<%def name="style()">\
<style>
.dm.dm.dm {
  --ink: var(--jp-ui-font-color0, var(--vscode-foreground, currentColor));
  --soft: color-mix(in srgb, var(--ink) 70%, transparent);
  --line: color-mix(in srgb, var(--ink) 15%, transparent);
  --wash: color-mix(in srgb, var(--ink) 5%, transparent);
  --good: color-mix(in srgb, var(--jp-success-color1, #388e3c) 70%, var(--ink));
  --bad: color-mix(in srgb, var(--jp-error-color1, #d32f2f) 70%, var(--ink));
  --warn: color-mix(in srgb, var(--jp-warn-color1, #f57c00) 55%, var(--ink));
  --odd: color-mix(in srgb, var(--jp-warn-color1, #f57c00) 30%, transparent);
  color: var(--ink); font-size: 13px; line-height: 1.5; max-width: 1200px;
}
.dm.dm.dm p { margin: 0 0 4px }
.dm.dm.dm .title { font-size: 15px }
.dm.dm.dm .title b, .dm.dm.dm caption, .dm.dm.dm .status { font-weight: 600 }
.dm.dm.dm .soft, .dm.dm.dm summary, .dm.dm.dm thead th { color: var(--soft); font-weight: 400 }
.dm.dm.dm .good { color: var(--good) }
.dm.dm.dm .bad { color: var(--bad) }
.dm.dm.dm .warn { color: var(--warn) }
.dm.dm.dm .status { white-space: nowrap }
.dm.dm.dm p .status { background: color-mix(in srgb, currentColor 10%, transparent); border-radius: 4px; padding: 2px 8px; margin-right: 6px }
.dm.dm.dm table { border-collapse: collapse; margin: 16px 0 8px; font-size: 13px; color: inherit; table-layout: auto }
.dm.dm.dm caption { caption-side: top; text-align: left; padding: 0 0 4px; color: inherit; white-space: nowrap }
.dm.dm.dm tr:nth-child(n) { background: none }
.dm.dm.dm tbody tr:hover { background: var(--wash) }
.dm.dm.dm td, .dm.dm.dm th { padding: 4px 20px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; line-height: 1.5; font-weight: 400 }
.dm.dm.dm thead th { border-color: var(--soft); vertical-align: bottom }
.dm.dm.dm thead [scope=colgroup] { border-color: var(--line) }
.dm.dm.dm [align=right] { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.dm.dm.dm .data, .dm.dm.dm code, .dm.dm.dm pre { font-family: var(--jp-code-font-family, ui-monospace, monospace); font-size: 12px; line-height: 1.5 }
.dm.dm.dm span.data, .dm.dm.dm .tight { white-space: nowrap }
.dm.dm.dm code, .dm.dm.dm .data .long { overflow-wrap: anywhere; white-space: pre-wrap }
.dm.dm.dm mark, .dm.dm.dm em { font-style: normal; color: inherit; border-radius: 3px; padding: 0 2px }
.dm.dm.dm mark { background: var(--odd) }
.dm.dm.dm em { color: var(--soft); border: 1px solid var(--line); font-size: 11px; padding: 0 4px }
.dm.dm.dm code { background: none; padding: 0 }
.dm.dm.dm pre { background: var(--wash); border-radius: 4px; padding: 10px 14px; margin: 10px 0; white-space: pre-wrap }
.dm.dm.dm .bar { display: flex; width: 96px; height: 6px; margin: 7px 0 5px; border-radius: 3px; overflow: hidden; background: var(--line) }
.dm.dm.dm .bar i { background: var(--soft) }
.dm.dm.dm .bar i + i { background: var(--odd) }
.dm.dm.dm details { margin: 8px 0 0 }
.dm.dm.dm summary { cursor: pointer }
.dm.dm.dm ol { margin: 8px 0 0; padding-left: 28px }
.dm.dm.dm li { margin: 0 0 6px }
.dm.dm.dm li::marker { color: var(--soft) }
</style>
</%def>

<%def name="status(word, number=None)">\
<% tone, glyph = {"passed": ("good", "✓"), "exported": ("good", "✓"), "ready": ("good", "✓"), "not ready": ("bad", "✗"), "FAILED": ("bad", "✗"), "stops": ("bad", "!"), "danger": ("bad", "✗"), "warning": ("warn", "!"), "note": ("soft", "i"), "running": ("soft", "→"), "paused": ("warn", "="), "stopped": ("bad", "!"), "cancelled": ("warn", "✗"), "failed": ("bad", "✗"), "succeeded": ("good", "✓")}.get(word, ("soft", "?")) %>\
<strong class="status ${tone}">${glyph}&nbsp;${word if number is None else counted(number, word)}</strong>\
</%def>

<%def name="title(kind, name)">\
<p class="title"><span class="soft">${kind}</span> <b>${name}</b></p>
</%def>

## One datum; NULL and the empty string in <em>, what cannot be seen in <mark>.
<%def name="value(datum, limit=None)">\
<% text, limit = str(datum), min(size.text, limit or size.text) %>\
% if len(text) > limit:
<span class="long" title="${text[:size.title]}">\
% elif len(text) > 24:
<span class="long">\
% endif
% for kind, piece in pieces(datum, limit):
% if kind == "none":
<em>${piece}</em>\
% elif kind == "mark":
<mark>${piece}</mark>\
% else:
${piece}\
% endif
% endfor
% if len(text) > 24:
</span>\
% endif
</%def>

## The first keys of some rows: 2, 3 or (2, a), (3, b).
<%def name="keys(tuples)">\
% for number, key in enumerate(tuples[:size.keys]):
${", " if number else ""}${"(" if len(key) > 1 else ""}\
% for place, datum in enumerate(key):
${", " if place else ""}${value(datum)}\
% endfor
${")" if len(key) > 1 else ""}\
% endfor
${", …" if len(tuples) > size.keys else ""}\
</%def>

## Values with their rows: BOEING ×12, AIRBUS ×3.
<%def name="counts(found, limit=24)">\
% for count in found:
<span class="data">${value(count.value, limit)}</span>&nbsp;<span class="soft">×${f"{count.rows:,}"}</span>${"" if loop.last else ", "}\
% endfor
</%def>

<%def name="more(number, noun, columns)">\
% if number > 0:
<tr><td class="soft" style="text-align:left" colspan="${columns}">and ${counted(number, "more " + noun)}</td></tr>
% endif
</%def>

## Checks, the failed ones first; columns for failing rows only where there are some.
<%def name="checks(results, caption)">\
<% failed = any(not result.passed for result in results) %>\
<table>
<caption style="text-align:left">${caption}</caption>
<thead><tr><th scope="col" style="text-align:left">status</th><th scope="col" style="text-align:left">what holds</th>\
% if failed:
<th scope="col" align="right">failing rows</th><th scope="col" style="text-align:left">the first of them</th>\
% endif
</tr></thead>
<tbody>
% for result in sorted(results, key=lambda result: result.passed)[: size.checks]:
<tr><td style="text-align:left">${status("passed" if result.passed else "FAILED")}</td><th scope="row" style="text-align:left">${result.name}</th>\
% if failed:
<td align="right">${f"{result.failing_rows:,}"}</td><td style="text-align:left">\
% if result.keys:
<span class="soft">${", ".join(result.key_columns)}</span> <span class="data">${keys(result.keys)}</span>\
% endif
</td>\
% endif
</tr>
% endfor
${more(len(results) - size.checks, "check", 4 if failed else 2)}\
</tbody>
</table>
</%def>
