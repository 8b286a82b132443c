<%namespace name="dm" file="base.mako"/>\
<div class="dm">
${dm.style()}\
${dm.title("Rows", set_aside.what)}\
<p>${counted(set_aside.count, "row")} of revision <code>${set_aside.revision}</code></p>
% if set_aside.rows:
<table>
<caption style="text-align:left">By table and key</caption>
<thead><tr>\
% for column in set_aside.columns:
<th scope="col" style="text-align:left">${column}</th>\
% endfor
</tr></thead>
<tbody>
% for row in set_aside.rows[: size.rows]:
<tr>\
% for datum in row:
<td class="data" style="text-align:left">${dm.value(datum)}</td>\
% endfor
</tr>
% endfor
${dm.more(set_aside.count - len(set_aside.rows[: size.rows]), "row", len(set_aside.columns))}\
</tbody>
</table>
% endif
</div>
