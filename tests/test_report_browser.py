"""The page of a run in a real browser: phone and desktop, light and dark, and no request at all."""

import os

import pytest
from report_runs import HOSTILE, without_drawing, write_pictures, write_run

from vit_hf.sharing.report import write_report

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

# What sticks out of the window, or of its own box without scrolling.
STICKING_OUT = """() => [...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect(), scrolls = element.closest('.scroll, pre');
  return box.width && !scrolls && (box.right > innerWidth + 1 || box.left < -1);
}).map(element => element.outerHTML.slice(0, 80))"""

# The least contrast of text with what lies behind it (WCAG 2.1), and the text.
CONTRAST = """() => {
  const light = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(Number)
    .map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!colour.endsWith(', 0)') && colour !== 'transparent') return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  let least = [99, ''];
  for (const element of document.querySelectorAll('body *')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, element.outerHTML.slice(0, 80)];
  }
  return least;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report whose words are long, foreign or hostile."""
    root = tmp_path_factory.mktemp("browser")
    place = write_pictures(root / "<b>data", HOSTILE, train=1, test=2)
    evil = "x" * 300
    changes = {"device": evil, "recipe": evil, "command": f"vit-hf train {evil}", "versions": {"a": evil}}
    run = write_run(root / "run", place, fields={"augmentation.mixup_alpha": 0.5}, **changes)
    with without_drawing():
        return write_report(run, output=root / "out").page.parent


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Visit:
    """A tab on the page; it notes what the page asks for and complains of."""

    def __init__(self, browser, folder, width: int, scheme: str = "light"):
        mobile = {"is_mobile": True, "device_scale_factor": 2} if width < 600 else {}
        self.context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, **mobile)
        self.tab = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page = (folder / "report.html").as_uri()
        self.context.route(lambda url: url != page and not url.startswith("data:"), self._refuse)
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(page)

    def _refuse(self, route):
        self.requests.append(route.request.url)
        route.abort()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window_asks_for_nothing_and_can_be_read(browser, folder, width, scheme, tmp_path):
    with Visit(browser, folder, width, scheme) as visit:
        tab = visit.tab
        tab.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.evaluate(STICKING_OUT) == []
        contrast, where = tab.evaluate(CONTRAST)
        assert contrast >= 4.5, where
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        shown = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert shown == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]
        chosen = tab.evaluate(
            "document.querySelector('picture img').currentSrc === document.querySelector('source').srcset"
        )
        assert chosen == (scheme == "dark")
        size = tab.evaluate("parseFloat(getComputedStyle(document.querySelector('figcaption')).fontSize)")
        assert size >= 14
        tab.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 20_000
        assert visit.requests == []
        assert visit.complaints == []


def test_a_request_would_be_seen_and_refused_by_the_page_itself(browser, folder, tmp_path):
    page = (folder / "report.html").read_text(encoding="utf-8")
    evil = (
        '<img src="https://example.com/a.png"><script src="https://example.com/a.js"></script>'
        '<script>document.title = "run"</script>'
    )
    (tmp_path / "report.html").write_text(page.replace("<main>", f"<main>{evil}"), encoding="utf-8")
    with Visit(browser, tmp_path, 390) as visit:
        assert visit.requests == []
        assert len(visit.complaints) == 3
        assert all("Content Security Policy" in complaint for complaint in visit.complaints)
        assert visit.tab.title() != "run"
    (tmp_path / "report.html").write_text(evil, encoding="utf-8")
    with Visit(browser, tmp_path, 390) as visit:
        assert len(visit.requests) == 2
        assert visit.tab.title() == "run"


def test_on_paper_it_is_light(browser, folder):
    with Visit(browser, folder, 1280, "dark") as visit:
        visit.tab.emulate_media(media="print")
        assert visit.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        picture = "document.querySelector('picture img').currentSrc === document.querySelector('picture img').src"
        visit.tab.wait_for_function(picture)
        assert visit.tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
