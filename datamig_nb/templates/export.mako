<%namespace name="dm" file="base.mako"/>\
<div class="dm">
${dm.style()}\
${dm.title("Export of", export.revision.migration.name)}\
<p>${dm.status("exported")} <code>${export.path.name}</code>: the rehearsed file, with its evidence</p>
<p>next, in the project's directory: <code>alembic upgrade ${export.revision.id}</code></p>
</div>
