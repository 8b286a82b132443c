<%!
def share(part):
    """A share in per cent; what is there never shows as nothing, what is missing not as all."""
    if 0 < part < 0.001:
        return "under 0.1 %"
    return "over 99.9 %" if 0.999 < part < 1 else f"{part:.1%}".replace("%", " %")
%>\
<%namespace name="dm" file="base.mako"/>\
<%def name="filled(column)">\
<% parts = [(column.nulls, column.null_share, "NULL"), (column.blanks, column.blank_share, "blank")] %>\
<% words = [f"{rows:,} {what}, {share(part)}" for rows, part, what in parts if rows] or ["every row"] %>\
<span class="bar" role="img" aria-label="${"; ".join(words)}"><i style="width:${f"{100 * (1 - column.null_share - column.blank_share):.1f}"}%"></i><i style="width:${f"{100 * column.blank_share:.1f}"}%"></i></span>\
% for line in words:
${line}\
% if not loop.last:
<br>\
% endif
% endfor
</%def>\
<%def name="extent(column)">\
% if column.minimum is not None:
<span class="data">${dm.value(column.minimum, 26)}</span> <span class="soft">to</span> <span class="data">${dm.value(column.maximum, 26)}</span>\
% endif
% if column.max_length is not None:
<br><span class="soft">${"" if column.min_length == column.max_length else f"{column.min_length:,} to "}${counted(column.max_length, "character")}${f" of {column.length_limit:,}" if column.length_limit else ""}</span>\
% elif len(column.quantiles) == 5:
<br><span class="soft">median</span> <span class="data">${dm.value(column.quantiles[2], 26)}</span>\
% endif
</%def>\
<%def name="shape(column)">\
<% odd = [(column.padded, "padded"), (column.non_ascii, "not ASCII"), (column.wide_spaces, "with wide spaces"), (column.decomposed, "not NFC")] %>\
<% odd = ", ".join(f"{rows:,} {what}" for rows, what in odd if rows) %>\
${dm.counts(column.masks[: min(4, size.keys)])}\
% if column.distinct_masks > 4:
<span class="soft">, … ${counted(column.distinct_masks, "shape")}</span>\
% endif
% if column.sample_rows is not None and column.masks:
<br><span class="soft">in a sample of ${counted(column.sample_rows, "row")}</span>\
% endif
% if odd:
<br><span class="soft">${odd}</span>\
% endif
</%def>\
<% spelled = [column for column in profile.columns if column.spellings] %>\
<% severities = [alert.severity for alert in profile.alerts] %>\
<div class="dm">
${dm.style()}\
${dm.title("Profile of", profile.table)}\
<p>\
% for severity in dict.fromkeys(severities):
${dm.status(severity, severities.count(severity))} \
% endfor
% if not severities:
${dm.status("passed")} no alerts; \
% endif
${counted(profile.rows, "row")}, ${counted(len(profile.columns), "column")}, ${"every figure exact" if profile.is_exact else "figures with ≈ estimated"}</p>
% if profile.alerts:
<table>
<caption style="text-align:left">Alerts</caption>
<thead><tr><th scope="col" style="text-align:left">status</th><th scope="col" style="text-align:left">column</th><th scope="col" style="text-align:left">what was found</th><th scope="col" style="text-align:left">what to do</th></tr></thead>
<tbody>
% for alert in profile.alerts[: size.checks]:
<tr><td style="text-align:left">${dm.status(alert.severity)}</td><th scope="row" class="data" style="text-align:left">${alert.column or ""}</th><td style="text-align:left">${alert.finding}</td><td style="text-align:left">${alert.advice}</td></tr>
% endfor
${dm.more(len(profile.alerts) - size.checks, "alert", 4)}\
</tbody>
</table>
% endif
<table>
<caption style="text-align:left">Columns</caption>
<thead><tr><th scope="col" style="text-align:left">column</th><th scope="col" style="text-align:left">filled</th><th scope="col" align="right">distinct</th><th scope="col" style="text-align:left">most frequent, with rows</th><th scope="col" style="text-align:left">least to greatest</th><th scope="col" style="text-align:left">shapes: Aa letters, 9 digits, + more</th></tr></thead>
<tbody>
% for column in profile.columns[: size.checks]:
<tr><th scope="row" style="text-align:left"><span class="data">${column.name}</span><br><span class="soft">${column.type}</span></th><td class="tight" style="text-align:left">${filled(column)}</td><td align="right">${"" if column.distinct_is_exact else "≈ "}${f"{column.distinct:,}"}\
% if column.is_unique:
<br><span class="soft">unique</span>\
% endif
</td><td style="text-align:left">${dm.counts(column.top[: min(5, size.keys)])}</td><td style="text-align:left">${extent(column)}</td><td style="text-align:left">${shape(column)}</td></tr>
% endfor
${dm.more(len(profile.columns) - size.checks, "column", 6)}\
</tbody>
</table>
% if spelled:
<table>
<caption style="text-align:left">Values that differ only by case or space</caption>
<thead><tr><th scope="col" style="text-align:left">column</th><th scope="col" style="text-align:left">spellings, with rows</th></tr></thead>
<tbody>
% for column in spelled[: size.rows]:
<% groups = column.spellings[: min(5, size.keys)] %>\
<% about = "" if column.distinct_is_exact else "about " %>\
% for group in groups:
<tr>\
% if loop.first:
<th scope="rowgroup" class="data" rowspan="${len(groups)}" style="text-align:left">${column.name}</th>\
% endif
<td style="text-align:left">${dm.counts(group[:6], 40)}\
% if loop.last and column.spelling_groups > len(groups):
<br><span class="soft">and ${about}${counted(column.spelling_groups - len(groups), "more group")}</span>\
% endif
</td></tr>
% endfor
% endfor
</tbody>
</table>
% endif
% if profile.references:
<table>
<caption style="text-align:left">References without a valid foreign key</caption>
<thead><tr><th scope="col" style="text-align:left">column</th><th scope="col" style="text-align:left">refers to</th><th scope="col" style="text-align:left">known</th><th scope="col" align="right">orphans</th><th scope="col" style="text-align:left">missing values, with rows</th></tr></thead>
<tbody>
% for link in profile.references[: size.rows]:
<tr><th scope="row" class="data" style="text-align:left">${link.column}</th><td class="data" style="text-align:left">${link.parent}.${link.parent_column}</td><td style="text-align:left">${link.origin}</td><td align="right">${f"{link.orphan_rows:,}"}</td><td style="text-align:left">${dm.counts(link.first_missing[: min(5, size.keys)])}</td></tr>
% endfor
</tbody>
</table>
% endif
<p>candidate keys: \
% for key in profile.candidate_keys[: size.rows]:
<span class="data">${", ".join(key.columns)}</span> <span class="soft">(${"a unique index says so" if key.indexed else "no unique index yet" if key.proven else "in the part looked at; not proven"})</span>${"" if loop.last else "; "}\
% endfor
${"" if profile.candidate_keys else "none found"}</p>
</div>
