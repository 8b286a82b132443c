<%namespace name="dm" file="base.mako"/>\
<div class="dm">
${dm.style()}\
${dm.title("Migration:", migration.name)}\
<ol>
% for number, (step, sql) in enumerate(steps, 1):
<li>${step}\
% for what, text in sql:
<br><span class="soft">${what}</span> \
% if text:
<code>${text}</code>\
% endif
% endfor
</li>
% endfor
</ol>
</div>
