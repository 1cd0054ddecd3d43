"""How the page looks: light or dark as the reader's system asks, readable on a desk and on a phone."""

STYLESHEET = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b646d; --line: #dfe3e7; --paper: #ffffff; --tint: #f5f7f9;
  --good: #00684a; --bad: #a83c00; --level: #5b646d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a3abb3; --line: #363c42; --paper: #141618; --tint: #1d2124;
    --good: #4fd0a5; --bad: #ff9a66; --level: #a3abb3; }
  /* turns the white panels dark and keeps their hues */
  figure img, .swatch { filter: invert(0.915) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
main { padding-bottom: 56px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 14px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 22px 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 6px; padding-top: 18px; border-top: 1px solid var(--line); }
p, .findings { max-width: 78ch; }
p { margin: 8px 0 12px; overflow-wrap: anywhere; }
.lede { font-size: 1.09rem; }
.soft, small { color: var(--soft); }
small { font-size: 0.82rem; }
ul { padding-left: 1.2em; margin: 8px 0 12px; }
li { margin: 5px 0; overflow-wrap: anywhere; }
.findings { list-style: none; padding-left: 1.2em; }
.findings .swatch { margin-left: -1.2em; }
.scroll { overflow-x: auto; margin: 14px 0; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: left; vertical-align: top; }
tbody > tr > * { border-top: 1px solid var(--line); }
thead th { background: var(--tint); font-weight: 600; white-space: nowrap; vertical-align: bottom; }
thead small { font-weight: 400; display: block; }
tbody th { font-weight: 600; min-width: 11em; max-width: 17em; }
td.number, th.number { text-align: right; white-space: nowrap; }
li small, td small, th small { display: block; font-weight: 400; }
td.name { min-width: 9em; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.5em; }
.beats { color: var(--good); font-weight: 600; white-space: nowrap; }
.behind { color: var(--bad); white-space: nowrap; }
.level { color: var(--level); white-space: nowrap; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); gap: 22px 18px;
  margin: 16px 0; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; background: #ffffff; }
figcaption { font-size: 0.82rem; line-height: 1.4; color: var(--soft); padding: 4px 8px 0; }
details { margin: 10px 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--tint); border-radius: 8px; padding: 14px;
  font-size: 0.8rem; line-height: 1.45; }
@media (max-width: 640px) {
  main, header { padding-left: 14px; padding-right: 14px; }
  header { padding-top: 22px; }
  h1 { font-size: 1.55rem; }
}
@media print { figure, tr { break-inside: avoid; } .scroll { overflow: visible; } }
"""
