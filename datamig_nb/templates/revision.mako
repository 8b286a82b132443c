<%namespace name="dm" file="base.mako"/>\
<% functions, _, sql = revision.story.partition("# -------- SQL\n") %>\
<% lines = revision.text.splitlines() %>\
<div class="dm">
${dm.style()}\
${dm.title("Revision of", revision.migration.name)}\
<p><code>${revision.id}</code>, ${"follows " + revision.down_revision if revision.down_revision else "the first of its project"}, ${counted(len(lines), "line")}</p>
<pre>\
% for line in functions.strip().splitlines()[: size.lines]:
% if line.startswith("def "):
<b>${line}</b>
% else:
${line}
% endif
% endfor
</pre>
<details><summary>its SQL</summary>
<pre>${"\n".join(sql.strip().splitlines()[: size.lines])}</pre>
</details>
<details><summary>the whole file</summary>
<pre>${"\n".join(lines[: size.lines])}
% if len(lines) > size.lines:
… ${counted(len(lines) - size.lines, "more line")} in the file
% endif
</pre>
</details>
</div>
