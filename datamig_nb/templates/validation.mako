<%namespace name="dm" file="base.mako"/>\
<% failed = sum(not result.passed for result in report.results) %>\
<div class="dm">
${dm.style()}\
${dm.title("Validation of", report.migration)}\
<p>\
% if report.passed:
${dm.status("passed")} ${counted(len(report.results), "check")}, no row fails\
% else:
${dm.status("FAILED")} ${failed} of ${counted(len(report.results), "check")}\
% endif
</p>
${dm.checks(report.results, "Checks")}\
</div>
