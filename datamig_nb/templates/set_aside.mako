<%namespace name="dm" file="base.mako"/>\
<div class="dm">
${dm.style()}\
${dm.title("Rows", aside.what)}\
<p>${counted(aside.count, "row")} of revision <code>${aside.revision}</code></p>
% if aside.rows:
<table>
<caption style="text-align:left">By table and key</caption>
<thead><tr>\
% for column in aside.columns:
<th scope="col" style="text-align:left">${column}</th>\
% endfor
</tr></thead>
<tbody>
% for row in aside.rows[: size.rows]:
<tr>\
% for datum in row:
<td class="data" style="text-align:left">${dm.value(datum)}</td>\
% endfor
</tr>
% endfor
${dm.more(aside.count - len(aside.rows[: size.rows]), "row", len(aside.columns))}\
</tbody>
</table>
% endif
</div>
