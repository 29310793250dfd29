"""Colours and the style sheet of reports and figures, on light and on dark grounds."""

from __future__ import annotations

from typing import NamedTuple


class Theme(NamedTuple):
    """The colours of one ground, as #rrggbb."""

    ground: str
    raised: str
    """Behind table heads and cards."""
    line: str
    faint: str
    """Secondary text."""
    ink: str
    good: str
    bad: str
    series: tuple[str, ...]
    """Told apart by those who see no red, no green or no blue as well."""


LIGHT = Theme(
    ground="#ffffff",
    raised="#f3f5f7",
    line="#d5dade",
    faint="#59626b",
    ink="#1a1f24",
    good="#1b6e4c",
    bad="#a32a1c",
    series=("#003abb", "#a25300", "#288666", "#841279", "#8d961f", "#298eff", "#2c2040", "#ff2496"),
)
DARK = Theme(
    ground="#14171b",
    raised="#1e2328",
    line="#3a424a",
    faint="#a3adb7",
    ink="#e8ebee",
    good="#6fd3a4",
    bad="#ff9a8a",
    series=("#3ab1ff", "#ff6422", "#319da0", "#fd6fd7", "#ffbb2f", "#95f6ff", "#9dd5c6", "#d5696e"),
)


def variables(theme: Theme) -> str:
    """Return a theme as declarations of CSS variables."""
    plain = {name: value for name, value in theme._asdict().items() if isinstance(value, str)}
    named = plain | {f"s{i}": colour for i, colour in enumerate(theme.series)}
    return "".join(f"--{name}:{value};" for name, value in named.items())


def themed(selector: str) -> str:
    """Return rules that give an element the colours of the ground that its reader prefers; paper is light."""
    return (
        f"{selector}{{{variables(LIGHT)}color-scheme:light dark}}\n"
        f"@media screen and (prefers-color-scheme:dark){{{selector}{{{variables(DARK)}}}}}\n"
    )


FIGURE_RULES = (
    "".join(f"svg .s{i}{{fill:var(--s{i});stroke:var(--s{i})}}\n" for i in range(len(LIGHT.series)))
    + """\
svg text{fill:var(--ink);font:11px system-ui,sans-serif}
svg .title{font-weight:bold}
svg .faint{fill:var(--faint)}
svg .grid{stroke:var(--line);fill:none}
svg .axis{stroke:var(--faint);fill:none}
svg .ground{fill:var(--ground)}
svg .line{fill:none;stroke-width:1.6;stroke-linejoin:round}
svg .dashed{stroke-dasharray:5 3}
svg .range{stroke:var(--ink);stroke-width:1.2;fill:none}
svg .spread{fill:none}
svg rect.mark{stroke:none}
svg .cloud{fill-opacity:.65;stroke:none}
"""
)

PAGE_RULES = """\
*{box-sizing:border-box}
html{background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:70rem;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0 1rem}
h2{font-size:1.25rem;margin:3rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1.1rem;margin:2rem 0 .5rem}
h4{font-size:1rem;margin:2rem 0 .5rem}
h2+section h3,h3+section h4{margin-top:.5rem}
p{margin:.5rem 0;max-width:46rem}
.lead{font-size:1.1rem}
a{color:var(--s0)}
nav ul{list-style:none;margin:1rem 0;padding:0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
:focus-visible{outline:2px solid var(--s0);outline-offset:2px}
.scroll{overflow-x:auto;margin:.75rem 0;border:1px solid var(--line);border-radius:6px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.875rem;line-height:1.4;font-variant-numeric:tabular-nums}
caption{caption-side:top;text-align:left;padding:.6rem .75rem;color:var(--faint)}
th,td{padding:.45rem .75rem;text-align:left;vertical-align:top;border-top:1px solid var(--line);unicode-bidi:isolate}
thead th{background:var(--raised);font-weight:600;vertical-align:bottom}
th{overflow-wrap:normal}
tbody th{font-weight:600;position:sticky;left:0;background:var(--ground)}
caption span{position:sticky;left:.75rem;display:inline-block;max-width:min(62rem,calc(100vw - 4rem))}
.numbers th:not(:first-child),.numbers td{text-align:right}
.numbers td{white-space:nowrap}
.prose td{min-width:5rem}
.prose td.long,.prose th.long{min-width:min(20rem,60vw);overflow-wrap:anywhere}
.prose tbody th.long{position:static}
td small,th small{display:block;color:var(--faint);font-weight:400}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1.5rem;margin:1rem 0}
figure{margin:0;min-width:0;display:flex;flex-direction:column;justify-content:space-between}
figure svg{display:block;width:100%;height:auto;max-width:32rem}
figcaption{font-weight:600;margin-bottom:.25rem}
figcaption small{display:block;font-weight:400;color:var(--faint)}
summary{cursor:pointer;padding:.35rem 0}
@media(max-width:40rem){th,td{padding:.4rem .5rem}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}nav{display:none}
.scroll{overflow:visible;border:0}.numbers td{white-space:normal}
table{font-size:8pt}th,td{padding:.2rem .3rem}thead{display:table-header-group}
tr,figure,figcaption{break-inside:avoid}h2,h3,caption{break-after:avoid}
.figures{grid-template-columns:1fr 1fr}details::details-content{content-visibility:visible;block-size:auto}}
"""
