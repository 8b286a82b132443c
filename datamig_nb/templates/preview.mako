<%! from itertools import groupby %>\
<%namespace name="dm" file="base.mako"/>\
<%def name="sides(part, keys)">\
<thead>
<tr>\
% if keys is not None:
<th scope="col" rowspan="2" style="text-align:left">why</th>\
% for column in keys:
<th scope="col" rowspan="2" style="text-align:left">${column}</th>\
% endfor
% endif
<th scope="colgroup" colspan="${len(part.reads)}" style="text-align:left">before</th><th scope="colgroup" colspan="${len(part.sets)}" style="text-align:left">→ after</th>\
% if keys is None:
<th scope="col" rowspan="2" align="right">rows</th>\
% endif
</tr>
<tr>\
% for column in (*part.reads, *part.sets):
<th scope="col" style="text-align:left">${column}</th>\
% endfor
</tr>
</thead>
</%def>\
<%def name="cells(pair, pairs)">\
% for datum in pair.before:
<td class="data" style="text-align:left">${dm.value(datum)}</td>\
% endfor
% for place, datum in enumerate(pair.after):
<td class="data" style="text-align:left">\
% if place in pairs and pair.before[pairs[place]] != datum:
<b>${dm.value(datum)}</b>\
% else:
${dm.value(datum)}\
% endif
</td>\
% endfor
</%def>\
<%def name="value_map(part)">\
<% pairs = compared(part) %>\
<table>
<caption style="text-align:left">${part.table}: ${counted(part.rows, "row")} looked at, ${f"{part.changed_rows:,}"} would change</caption>
${sides(part, None)}\
<tbody>
% for pair in part.map[: size.rows]:
<tr>${cells(pair, pairs)}<td align="right">${f"{pair.rows:,}"}</td></tr>
% endfor
${dm.more(part.distinct - len(part.map[: size.rows]), "combination", len(part.reads) + len(part.sets) + 1)}\
</tbody>
</table>
</%def>\
<%def name="samples(part)">\
<% pairs = compared(part) %>\
<table>
<caption style="text-align:left">Rows of ${part.table} that tend to go wrong</caption>
${sides(part, part.key_columns)}\
<tbody>
% for why, rows in groupby(part.samples[: size.rows], key=lambda sample: sample.why):
<% rows = list(rows) %>\
% for sample in rows:
<tr>\
% if loop.first:
<th scope="rowgroup" rowspan="${len(rows)}" style="text-align:left">${why}</th>\
% endif
% for datum in sample.key:
<td class="data" style="text-align:left">${dm.value(datum)}</td>\
% endfor
${cells(sample, pairs)}</tr>
% endfor
% endfor
${dm.more(len(part.samples) - size.rows, "row", 1 + len(part.key_columns) + len(part.reads) + len(part.sets))}\
</tbody>
</table>
</%def>\
<% stops = sum(hazard.severity == "stops" for hazard in preview.hazards) %>\
<% named = any(hazard.keys for hazard in preview.hazards) %>\
<div class="dm">
${dm.style()}\
${dm.title("Preview of", preview.migration)}\
<p>\
% if stops:
${dm.status("stops")} ${counted(stops, "hazard")} would stop it; \
% else:
${dm.status("passed")} no hazard would stop it; \
% endif
${counted(sum(part.changed_rows for part in preview.backfills), "row")} would change</p>
% if preview.hazards:
<table>
<caption style="text-align:left">Hazards</caption>
<thead><tr><th scope="col" style="text-align:left">status</th><th scope="col" style="text-align:left">what</th><th scope="col" align="right">rows</th>\
% if named:
<th scope="col" style="text-align:left">the first of them</th>\
% endif
<th scope="col" style="text-align:left">what to do</th></tr></thead>
<tbody>
% for hazard in preview.hazards[: size.checks]:
<tr><td style="text-align:left">${dm.status(hazard.severity)}</td><th scope="row" style="text-align:left">${hazard.what}</th><td align="right">${f"{hazard.rows:,}"}</td>\
% if named:
<td class="data" style="text-align:left">${dm.keys(hazard.keys)}</td>\
% endif
<td style="text-align:left">${hazard.advice}</td></tr>
% endfor
${dm.more(len(preview.hazards) - size.checks, "hazard", 5 if named else 4)}\
</tbody>
</table>
% endif
% for part in preview.backfills:
${value_map(part)}\
% if part.samples:
${samples(part)}\
% endif
% endfor
% for twin in preview.twins:
<p>${dm.status("passed" if twin.agrees else "note")} SQL twin of <code>${twin.function}()</code> for ${twin.column} of ${twin.table}: ${twin.summary}</p>
% if twin.differences:
<table>
<caption style="text-align:left">Where <code>${twin.expression}</code> gives something else</caption>
<thead><tr>\
% for name in twin.reads:
<th scope="col" style="text-align:left">${name}</th>\
% endfor
<th scope="col" style="text-align:left">→ Python</th><th scope="col" style="text-align:left">→ SQL</th><th scope="col" align="right">rows</th></tr></thead>
<tbody>
% for each in twin.differences:
<tr>\
% for datum in (*each.reads, each.python, each.sql):
<td class="data" style="text-align:left">${dm.value(datum)}</td>\
% endfor
<td align="right">${f"{each.rows:,}"}</td></tr>
% endfor
</tbody>
</table>
% endif
% endfor
<details><summary>${counted(len(preview.steps), "step")}</summary>
<ol>
% for step in preview.steps:
<li>${step}</li>
% endfor
</ol>
</details>
</div>
