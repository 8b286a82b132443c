<%! from itertools import groupby %>\
<%namespace name="dm" file="base.mako"/>\
<%def name="share(state)">\
% if state.share is not None:
<span class="bar" role="img" aria-label="${f"{state.share:.0%} done"}"><i style="width:${f"{100 * state.share:.1f}"}%"></i></span>\
% endif
</%def>\
<%def name="table(revision, states)">\
<table>
<caption style="text-align:left">Revision ${revision}</caption>
<thead><tr><th scope="col" style="text-align:left">status</th><th scope="col" style="text-align:left">step</th><th scope="col" style="text-align:left">done</th>\
% for column in ("scanned", "changed", "batches", "rows a second", "time left", "last heard of"):
<th scope="col" align="right">${column}</th>\
% endfor
<th scope="col" style="text-align:left">what it says</th></tr></thead>
<tbody>
% for state in states[: size.checks]:
<% alive = state.status != "succeeded" %>\
<tr><td style="text-align:left">${dm.status(state.status)}</td><th scope="row" style="text-align:left">${state.name}</th><td style="text-align:left">${share(state)}</td>\
% for figure in (state.scanned, state.changed, state.batches, state.rows_per_second):
<td align="right">${f"{figure:,.0f}" if figure else ""}</td>\
% endfor
<td align="right">${"" if state.seconds_left is None else lasting(state.seconds_left)}</td><td align="right">${lasting(state.heartbeat_age_seconds) + " ago" if alive else ""}</td>\
<td style="text-align:left">\
% if state.note:
<span>${dm.value(state.note, size.title)}</span> \
% endif
% if state.error:
<span class="bad">${dm.value(state.error, size.title)}</span>\
% endif
</td></tr>
% endfor
${dm.more(len(states) - size.checks, "step", 10)}\
</tbody>
</table>
</%def>\
<div class="dm">
${dm.style()}\
${dm.title("Runs:", runs.summary)}\
% for revision, states in groupby(runs.states, key=lambda state: state.revision):
${table(revision, list(states))}\
% endfor
</div>
