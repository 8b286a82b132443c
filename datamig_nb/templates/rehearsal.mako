<%!
WAY_BACK = {
    "lossless": "the way back is lossless: after the downgrade everything was as before",
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
% if rehearsal.validation:
${dm.checks(rehearsal.validation.results, "Checks after the upgrade")}\
% endif
</div>
