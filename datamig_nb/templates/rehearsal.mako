<%!
WAY_BACK = {
    "lossless": "the way back is lossless: after the downgrade everything was as before",
    "lossless with backup": "the way back is lossless with backup: values that had changed were brought back",
    "lossy": "the way back is lossy: after the downgrade something was not as before",
    "irreversible": "there is no way back: the downgrade refuses, as the revision says",
    "not known": "the way back is not known: the rehearsal did not come so far",
}
%>\
<%namespace name="dm" file="base.mako"/>\
<div class="dm">
${dm.style()}\
${dm.title("Rehearsal of", rehearsal.revision.migration.name)}\
<p>\
% if rehearsal.passed:
${dm.status("passed")} ${WAY_BACK.get(rehearsal.verdict, f"the way back is {rehearsal.verdict}")}\
% else:
${dm.status("FAILED")} at ${[stage.name for stage in rehearsal.stages if not stage.passed][0]}; ${WAY_BACK.get(rehearsal.verdict, f"the way back is {rehearsal.verdict}")}\
% endif
</p>
% if rehearsal.ready:
<p>${dm.status("ready")} no hazard blocks it</p>
% else:
% for reason in rehearsal.reasons[: size.checks]:
<p>${dm.status("not ready")} ${reason}</p>
% endfor
% endif
<p class="soft">revision <code>${rehearsal.revision.id}</code> on a clone, PostgreSQL ${rehearsal.server_version}, ${counted(rehearsal.rows, "row")}</p>
<table>
<caption style="text-align:left">Stages</caption>
<thead><tr><th scope="col" style="text-align:left">status</th><th scope="col" style="text-align:left">stage</th><th scope="col" align="right">time</th><th scope="col" style="text-align:left">what was found</th></tr></thead>
<tbody>
% for stage in rehearsal.stages:
<tr><td style="text-align:left">${dm.status("passed" if stage.passed else "FAILED")}</td><th scope="row" style="text-align:left">${stage.name}</th><td class="seconds" align="right">${f"{stage.seconds:.2f} s"}</td><td style="text-align:left">${stage.detail}</td></tr>
% endfor
</tbody>
</table>
% if rehearsal.hazards:
<table>
<caption style="text-align:left">Hazards, read in the file, in its script and in what it sent</caption>
<thead><tr><th scope="col" style="text-align:left">status</th><th scope="col" style="text-align:left">rule</th><th scope="col" style="text-align:left">what was found</th><th scope="col" align="right">rows</th></tr></thead>
<tbody>
% for hazard in sorted(rehearsal.hazards, key=lambda hazard: not hazard.blocking)[: size.checks]:
<tr><td style="text-align:left">${dm.status("danger" if hazard.blocking else "note")}</td><th scope="row" style="text-align:left">${hazard.rule}</th><td style="text-align:left">${hazard.what}</td><td align="right">${f"{hazard.rows:,}" if hazard.rows else ""}</td></tr>
% endfor
${dm.more(len(rehearsal.hazards) - size.checks, "hazard", 4)}\
</tbody>
</table>
% endif
% if rehearsal.validation:
${dm.checks(rehearsal.validation.results, "Checks after the upgrade")}\
% endif
% if rehearsal.faults:
<table>
<caption style="text-align:left">Faults</caption>
<thead><tr><th scope="col" style="text-align:left">status</th><th scope="col" style="text-align:left">fault</th><th scope="col" style="text-align:left">what was done</th><th scope="col" style="text-align:left">what happened</th></tr></thead>
<tbody>
% for fault in rehearsal.faults:
<tr><td style="text-align:left">${dm.status("passed" if fault.passed else "FAILED" if fault.done else "not tried")}</td><th scope="row" style="text-align:left">${fault.name}</th><td style="text-align:left">${fault.done}</td><td style="text-align:left">${fault.happened}</td></tr>
% endfor
</tbody>
</table>
% endif
% if rehearsal.measured:
<% cost = rehearsal.measured[0] %>\
<section class="measured">
% for walk in cost.walks:
% if len(walk.points) > 1:
<% width, height = max(point.seconds for point in walk.points) or 1, max(point.rows for point in walk.points) or 1 %>\
<figure style="margin:16px 0 8px">
<figcaption>Batches over time: ${walk.step}</figcaption>
<svg viewBox="0 0 480 100" width="480" height="100" role="img" aria-label="rows looked at over time">
<path d="M0 99.5H480" stroke="var(--line)" fill="none"/>
<polyline fill="none" stroke="var(--good)" stroke-width="2" points="0,99 ${" ".join(f"{480 * point.seconds / width:.0f},{99 - 95 * point.rows / height:.0f}" for point in walk.points)}"/>
</svg>
<div class="soft">${counted(walk.points[-1].rows, "row")} in ${lasting(walk.points[-1].seconds)}, the last batch of ${counted(walk.points[-1].batch_rows, "row")}</div>
</figure>
% endif
% endfor
% if cost.holds:
<table>
<caption style="text-align:left">Longest locks</caption>
<thead><tr><th scope="col" style="text-align:left">table</th><th scope="col" style="text-align:left">mode</th><th scope="col" align="right">held for</th></tr></thead>
<tbody>
% for hold in cost.holds[: size.rows]:
<tr><th scope="row" style="text-align:left">${hold.relation}</th><td style="text-align:left">${hold.mode}</td><td align="right">${f"{hold.at_least_seconds:.2f} to {hold.at_most_seconds:.2f} s"}</td></tr>
% endfor
</tbody>
</table>
<p class="soft">${cost.sampling}</p>
% endif
% if rehearsal.forecast:
<table>
<caption style="text-align:left">Forecast for ${counted(rehearsal.forecast.rows, "row")} of the source</caption>
<thead><tr><th scope="col" style="text-align:left">what</th><th scope="col" align="right">least</th><th scope="col" align="right">most</th></tr></thead>
<tbody>
<tr><th scope="row" style="text-align:left">time</th><td align="right">${lasting(rehearsal.forecast.seconds.low)}</td><td align="right">${lasting(rehearsal.forecast.seconds.high)}</td></tr>
% for name, bytes in (("WAL", rehearsal.forecast.wal_bytes), ("disk", rehearsal.forecast.disk_bytes)):
<tr><th scope="row" style="text-align:left">${name}</th><td align="right">${f"{bytes.low / 1e6:,.1f} MB"}</td><td align="right">${f"{bytes.high / 1e6:,.1f} MB"}</td></tr>
% endfor
</tbody>
</table>
<p class="soft">${"; ".join(rehearsal.forecast.assumptions)}</p>
% endif
</section>
% endif
</div>
