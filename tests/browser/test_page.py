"""The page in a real browser: four connections, on a desktop and on a phone, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import DESKTOP, PHONE, Browser, Look, browsing, needed
from tests.browser.scenes import CLIENT, SCENES, playing

pytestmark = needed

LOOKS = [Look(*size, scheme) for size in (DESKTOP, PHONE) for scheme in ("light", "dark")]
NARROW = Look(320, 640, "light")
#: What WCAG 2 asks of ordinary text at level AA.
ENOUGH = 4.5
# Of each element with text of its own: that text, and how its colour stands out from what is behind it.
CONTRASTS = """
const channels = colour => colour.match(/[0-9.]+/g).map(Number);
const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const luminance = colour => channels(colour).slice(0, 3).map(value => linear(value / 255))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
const isThere = colour => channels(colour)[3] !== 0;
const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return isThere(colour) ? colour : behind(element.parentElement);
};
const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
return [...document.body.querySelectorAll('*')].filter(hasText).map(element => {
    const pair = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => b - a);
    return [element.textContent.trim().slice(0, 60), (pair[0] + 0.05) / (pair[1] + 0.05)];
});
"""
# Whether anything reaches over the right edge, be it where it is cut off.
OVERFLOWING = """
const width = document.documentElement.clientWidth;
const wide = [...document.body.querySelectorAll('*')]
    .filter(element => element.getBoundingClientRect().right > width + 0.5).map(element => element.outerHTML);
return document.documentElement.scrollWidth > width ? ['the document', ...wide] : wide;
"""
# What tells a kind of stop apart where there is no colour: words, and the shape of its mark.
SHAPES = """
return [...document.querySelectorAll('.way > li')].map(stop => {
    const mark = getComputedStyle(stop, '::before');
    const words = stop.querySelector('.badge')?.textContent ?? stop.querySelector('.role').textContent;
    return [words, [mark.content, mark.borderTopStyle, mark.borderRadius, mark.transform].join(' ')];
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Its name and its URL."""
    with playing(SCENES[request.param]) as url:
        yield request.param, url


@pytest.fixture(scope="module")
def chain() -> Iterator[str]:
    with playing(SCENES["alb"]) as url:
        yield url


def contrasts(browser: Browser) -> list[tuple[str, float]]:
    return [(text, ratio) for text, ratio in browser.run(CONTRASTS)]


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_each_scene_in_each_look(browser: Browser, scene: tuple[str, str], look: Look) -> None:
    name, url = scene
    browser.open(url, look, SCENES[name].headers)
    assert browser.find("h1 b").text == SCENES[name].client
    assert browser.requested() == [url]
    assert browser.complaints() == []
    assert browser.run(OVERFLOWING) == []
    found = contrasts(browser)
    assert len(found) > 50
    assert [(text, ratio) for text, ratio in found if ratio < ENOUGH] == []


def test_the_two_colour_schemes_differ(browser: Browser, chain: str) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        browser.open(chain, Look(*DESKTOP, scheme))
        backgrounds.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert backgrounds[0] != backgrounds[1]


def test_trusted_and_not_trusted_differ_in_words_and_in_shape(browser: Browser, chain: str) -> None:
    stops = set()
    for line in ("6.6.6.6, 203.0.113.7, 10.0.0.9", "unknown, 10.0.0.9"):
        browser.open(chain, LOOKS[0], {"X-Forwarded-For": line})
        stops |= {(words, shape) for words, shape in browser.run(SHAPES)}
    assert {words for words, _ in stops} == {"never read", "not trusted", "trusted", "no address", "Service"}
    # Of each one shape, and of no two the same.
    assert len({shape for _, shape in stops}) == len(stops) == 5


def test_the_winning_address_is_the_largest_text(browser: Browser, chain: str) -> None:
    browser.open(chain, LOOKS[0])
    sizes = (
        "return [...document.querySelectorAll('*')].map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    largest = browser.run("return parseFloat(getComputedStyle(document.querySelector('h1 b')).fontSize)")
    assert largest == max(browser.run(sizes)) >= 64


LONG = {
    "X-Forwarded-For": "2001:db8:1111:2222:3333:4444:5555:6666, fd00:1111:2222:3333:4444:5555:6666:7777",
    "X-Forwarded-Host": "a" * 3000,
    "X-A-Name-Of-More-Letters-Than-A-Phone-Has-Room-For-In-One-Line-AndNoPlaceToBreak" + "k" * 60: "b" * 500,
}


@pytest.mark.parametrize("look", [NARROW, Look(*PHONE, "dark"), Look(*DESKTOP, "light")], ids=str)
def test_long_texts_break_and_nothing_scrolls_sideways(browser: Browser, chain: str, look: Look) -> None:
    browser.open(chain, look, LONG)
    assert browser.find("h1 b").text.replace("\n", "") == "fd00:1111:2222:3333:4444:5555:6666:7777"
    assert browser.run(OVERFLOWING) == []


@pytest.mark.parametrize("look", [Look(*DESKTOP, "light"), Look(*PHONE, "dark"), NARROW], ids=str)
def test_the_box_is_filled_in_and_sent_with_the_keyboard(browser: Browser, chain: str, look: Look) -> None:
    browser.open(chain, look)
    peer = browser.find("#peer-field")
    peer.clear()
    peer.send_keys("10.0.0.5", Keys.TAB)
    browser.type("X-Forwarded-For: 6.6.6.6, 198.51.100.23", Keys.ENTER, "X-Forwarded-For: 10.0.0.9", Keys.TAB)
    browser.type(Keys.TAB)
    assert browser.run("return document.activeElement.tagName") == "BUTTON"
    assert float(browser.run("return parseFloat(getComputedStyle(document.activeElement).outlineWidth)")) >= 2
    browser.type(Keys.ENTER)
    browser.wait_for("a[href='']")
    assert browser.find("h1").text.split("\n") == ["With this, the client would be", "198.51.100.23"]
    assert browser.requested() == [chain, chain]
    assert browser.complaints() == []
    assert browser.run(OVERFLOWING) == []
    browser.find("a[href='']").click()
    browser.wait_for("h1 b")
    assert browser.find("h1").text.startswith("The client of this request is")


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_wrong_input_is_told_at_the_top_and_at_the_field(browser: Browser, chain: str, look: Look) -> None:
    browser.open(chain, look)
    browser.find("#preamble-field").send_keys("not hexadecimal")
    browser.find("button").click()
    problem = browser.wait_for("[role=alert]")
    assert "Preamble: 'not hexadecimal'" in problem.text
    assert problem.location["y"] < look.height / 2
    field = browser.find("#preamble-field")
    assert field.get_attribute("aria-invalid") == "true"
    assert field.get_attribute("value") == "not hexadecimal"
    assert [(text, ratio) for text, ratio in contrasts(browser) if ratio < ENOUGH] == []
    # Chromium tells of every answer that is no success, and of nothing else.
    (complaint,) = browser.complaints()
    assert "400 (Bad Request)" in complaint


def test_markup_stays_text(browser: Browser, chain: str) -> None:
    markup = "<script>document.title='!'</script><img src=//127.0.0.1:9/x onerror=alert(1)>"
    browser.open(f"{chain}{markup}", LOOKS[0], {"X-Forwarded-For": markup.replace(" ", "/")})
    assert browser.find("h1 b").text == "127.0.0.1"
    assert len(browser.requested()) == 1
    assert browser.complaints() == []
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "body script, body img")


def test_the_policy_is_in_force(browser: Browser, chain: str) -> None:
    """Were markup to get through one day, it could neither run nor load anything."""
    browser.open(chain, LOOKS[0])
    browser.run("""
        const add = (name, set) => document.body.append(Object.assign(document.createElement(name), set));
        add('script', {textContent: "document.title = 'ran'"});
        add('img', {src: '/picture'});
        add('style', {textContent: 'h1 { display: none }'});
    """)
    assert browser.driver.title != "ran"
    assert browser.find("h1").is_displayed()
    assert len([line for line in browser.complaints() if "Content Security Policy" in line]) == 3


def test_the_names_and_values_are_tables_for_who_listens(browser: Browser, chain: str) -> None:
    """They are drawn as grids, which is not to take their meaning away."""
    browser.open(chain, LOOKS[0], {"X-Forwarded-For": CLIENT})
    roles = browser.roles()
    tables = browser.run("return document.querySelectorAll('table').length")
    assert roles.count("table") == tables
    assert roles.count("rowheader") == browser.run("return document.querySelectorAll('th[scope=row]').length")
    assert {"main", "list", "listitem", "heading", "textbox", "button"} <= {*roles}
