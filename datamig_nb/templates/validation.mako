<%namespace name="dm" file="base.mako"/>\
<% failed = sum(not result.passed for result in validation.results) %>\
<div class="dm">
${dm.style()}\
${dm.title("Validation of", validation.migration)}\
<p>\
% if validation.passed:
${dm.status("passed")} ${counted(len(validation.results), "check")}, no row fails\
% else:
${dm.status("FAILED")} ${failed} of ${counted(len(validation.results), "check")}\
% endif
</p>
${dm.checks(validation.results, "Checks")}\
</div>
