"""How a report looks: one column of calm text with figures beside each other where there is room.

Letters are the system's own. Colours are those of `vit_hf.inspection.style`: paper and ink of its two themes, blue for
data. The page follows the reader's theme; on paper it is light.
"""

from ...inspection.style import BLUE, DARK, LIGHT, SKY, Theme


def _colours(theme: Theme, *, data: str, soft: str, muted: str) -> str:
    return f"--paper:{theme.paper};--ink:{theme.ink};--muted:{muted};--line:{theme.pale};--data:{data};--soft:{soft};"


CSS = (
    ":root{color-scheme:light;" + _colours(LIGHT, data=BLUE, soft="#F6F7F9", muted="#5C5F66") + "}"
    "@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;"
    + _colours(DARK, data=SKY, soft="#1E2127", muted="#A7ABB3")
    + "}}"
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0 auto;max-width:76rem;padding:2.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
 font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",sans-serif;
 overflow-wrap:anywhere}
h1{margin:0;font-size:clamp(1.7rem,1.3rem + 2vw,2.5rem);line-height:1.15;letter-spacing:-.02em;font-weight:650}
h2{margin:0 0 .9rem;font-size:1.4rem;line-height:1.25;letter-spacing:-.01em;font-weight:650}
h3{margin:1.6rem 0 .5rem;font-size:1.05rem;line-height:1.3;font-weight:650}
p{margin:.5rem 0 1rem;max-width:42rem}
a{color:var(--data);text-underline-offset:.2em}
:focus-visible{outline:2px solid var(--data);outline-offset:2px;border-radius:3px}
.kicker{margin:0 0 .4rem;color:var(--muted);font-size:.9rem}
.lead{margin:.7rem 0 0;font-size:1.1rem;color:var(--muted)}
.warning{margin:1rem 0 0;padding:.7rem 1rem;border-left:3px solid #D55E00;background:var(--soft)}
nav{margin:1.6rem 0 0;border-block:1px solid var(--line)}
nav ul{display:flex;flex-wrap:wrap;gap:0 1.2rem;margin:0;padding:.35rem 0;list-style:none;font-size:.9rem}
nav a{display:inline-block;padding:.4rem 0;text-decoration:none}
nav a:hover{text-decoration:underline}
section{padding:2.4rem 0 .6rem;border-bottom:1px solid var(--line)}
section:last-child{border-bottom:0}
.hero{display:grid;gap:1rem 3rem;align-items:end;margin:0 0 1.6rem}
.big{font-size:clamp(3rem,2.2rem + 4vw,4.6rem);line-height:1;font-weight:650;letter-spacing:-.035em;
 font-variant-numeric:tabular-nums}
.label{color:var(--muted);font-size:.9rem}
.interval{position:relative;height:1.5rem;margin:.2rem 0 0}
.interval::before{content:"";position:absolute;inset:.7rem 0 auto;height:2px;background:var(--line)}
.interval .range{position:absolute;top:.5rem;height:.5rem;min-width:2px;border-radius:.25rem;background:var(--data);
 opacity:.45}
.interval .point{position:absolute;top:.3rem;width:.3rem;height:.9rem;margin-left:-.15rem;border-radius:.15rem;
 background:var(--data)}
.ends{display:flex;justify-content:space-between;color:var(--muted);font-size:.8rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:0 0 1.6rem;padding:0;
 list-style:none}
.tiles li{padding:.8rem 1rem;border-radius:.6rem;background:var(--soft)}
.tiles b{display:block;font-size:1.45rem;line-height:1.25;font-weight:650;letter-spacing:-.015em;
 font-variant-numeric:tabular-nums}
.tiles .unit{font-size:.85rem;font-weight:400;letter-spacing:0}
.tiles small{display:block;color:var(--muted);font-size:.8rem;line-height:1.4}
.facts{margin:1.2rem 0}
.facts div{display:grid;grid-template-columns:minmax(6.5rem,9rem) 1fr;gap:0 1rem;padding:.45rem 0;
 border-bottom:1px solid var(--line)}
.facts div:last-child{border-bottom:0}
.facts dt{color:var(--muted)}
.facts dd{margin:0}
.side{display:grid;gap:1.2rem 2.5rem;grid-template-columns:minmax(0,1fr);align-items:start;margin:1rem 0}
figure{margin:0 0 1rem;min-width:0;max-width:36rem}
figure img{display:block;width:100%;height:auto}
figcaption,.note{margin:.5rem 0 0;color:var(--muted);font-size:.9rem;line-height:1.5;max-width:40rem}
.missing{padding:.7rem 1rem;border-radius:.6rem;background:var(--soft);color:var(--muted);max-width:42rem}
.scroll{overflow-x:auto;margin:.4rem 0 1.2rem}
table{border-collapse:collapse;width:100%;font-size:.92rem;line-height:1.4}
caption{padding:0 0 .5rem;text-align:left;color:var(--muted);font-size:.9rem}
th,td{padding:.42rem .7rem .42rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:baseline;
 font-weight:400}
thead th{color:var(--muted);font-size:.82rem;vertical-align:bottom}
tr>:last-child{padding-right:0}
.n{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal;white-space:nowrap}
thead .n{white-space:normal}
.w{min-width:5.5rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1.5rem;margin:1.2rem 0;
 padding:0;list-style:none}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.4rem}
.pair img,.strip img{display:block;width:100%;height:auto;border-radius:.3rem;background:var(--soft)}
img.px{image-rendering:pixelated}
.cards p{margin:.5rem 0 0;line-height:1.4}
.cards .label{margin:.1rem 0 0}
.strips{margin:1.2rem 0;padding:0;list-style:none}
.strips>li{margin:0 0 1.4rem}
.strips p{margin:0 0 .4rem}
.strip{display:grid;grid-template-columns:repeat(6,minmax(0,1fr));gap:.4rem;max-width:52rem}
.strip.three{grid-template-columns:repeat(3,minmax(0,1fr));max-width:26rem}
.mixes{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:0 1.5rem}
details{margin:.8rem 0;border:1px solid var(--line);border-radius:.6rem}
summary{padding:.7rem 1rem;cursor:pointer;font-weight:550}
details>:not(summary){margin:0 1rem 1rem}
pre{overflow-x:auto;padding:.9rem 1rem;border-radius:.6rem;background:var(--soft);font-size:.85rem;line-height:1.5;
 overflow-wrap:normal}
pre,code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{font-size:.88em}
pre code{font-size:1em}
.command span{display:inline-block}
pre.command{white-space:pre-wrap;overflow-wrap:anywhere}
@media(min-width:50rem){
 body{padding:4rem 2.5rem 6rem}
 .hero{grid-template-columns:auto minmax(0,1fr)}
 .side{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}
 .trio{grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr))}
}
@media(max-width:30rem){
 .facts div{grid-template-columns:7rem 1fr}
 .strip{grid-template-columns:repeat(3,minmax(0,1fr))}
}
@media print{
 body{max-width:none;padding:0;font-size:10pt}
 nav{display:none}
 pre{white-space:pre-wrap;overflow-wrap:anywhere}
 figure,.cards li,.strips li,tr{break-inside:avoid}
 h2,h3{break-after:avoid}
 .side{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}
}
"""
)
