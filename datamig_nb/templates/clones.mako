<%namespace name="dm" file="base.mako"/>\
<div class="dm">
${dm.style()}\
${dm.title("Clones of", "rehearsals")}\
<p>${counted(len(clones.clones), "clone")}</p>
% if clones.clones:
<table>
<caption style="text-align:left">Databases that rehearsals made</caption>
<thead><tr>\
% for column in ("name", "copy of", "made by", "made at", "state"):
<th scope="col" style="text-align:left">${column}</th>\
% endfor
<th scope="col" align="right">MB</th></tr></thead>
<tbody>
% for clone in clones.clones[: size.rows]:
<tr><th scope="row" style="text-align:left">${clone.name}</th>\
% for datum in (clone.source, clone.made_by, clone.made_at, "in use" if clone.in_use else "left"):
<td class="data" style="text-align:left">${dm.value(datum)}</td>\
% endfor
<td align="right">${f"{clone.size_bytes / 1e6:,.0f}"}</td></tr>
% endfor
${dm.more(len(clones.clones) - size.rows, "clone", 6)}\
</tbody>
</table>
% endif
</div>
