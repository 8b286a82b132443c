<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>
:root { color-scheme: light dark; --jp-ui-font-color0: #111; --jp-success-color1: #388e3c; --jp-error-color1: #d32f2f; --jp-warn-color1: #f57c00 }
body { background: #fff; color: var(--jp-ui-font-color0); font: 14px/1.5 system-ui, sans-serif; margin: 32px }
.dm + .dm { margin-top: 48px }
@media (prefers-color-scheme: dark) {
:root { --jp-ui-font-color0: #eee; --jp-success-color1: #4caf50; --jp-error-color1: #f44336; --jp-warn-color1: #ff9800 }
body { background: #1b1b1b }
}
</style>
</head>
<body>
${body | n}
</body>
</html>
