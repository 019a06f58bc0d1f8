"""Pages of HTML, taken apart as a document or asked in a browser."""

import re
from html import unescape
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "rect", "img", "br"}


class Page(HTMLParser):
    """A page taken apart; fails where elements are not nested properly."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs, _ in self.tags if name == tag]

    def text_of(self, tag):
        return [data for name, data in self.texts if name == tag]


def verdicts(text):
    """The findings at the top: kind and words."""
    found = re.findall(r'class="verdict (\w+)"><span[^>]*>.</span><div><b>(.*?)</b>', text)
    return [(kind, unescape(words)) for kind, words in found]


def names(browser):
    """The tensors that the table shows, from top to bottom."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#tensors tbody tr:not([hidden]) th')]"
        ".map((cell) => cell.textContent)"
    )


def find(browser, css):
    return browser.find_element("css selector", css)


def count(browser, css):
    return browser.execute_script("return document.querySelectorAll(arguments[0]).length", css)


def type_into(browser, css, words):
    find(browser, css).clear()
    find(browser, css).send_keys(words)


#: The contrast of texts with what is behind them, for both colour schemes.
CONTRAST = """
const parse = (text) => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => {
    v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
};
const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
const ratio = (a, b) => {
  const [x, y] = [light(parse(a)), light(parse(b))].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const style = getComputedStyle(document.documentElement);
const of = (name) => style.getPropertyValue(name).trim();
const pairs = [["--ink", "--paper"], ["--soft", "--paper"], ["--soft", "--card"],
  ["--soft", "--cell"], ["--ink", "--cell"], ["--blue", "--paper"], ["--blue", "--card"],
  ["--orange", "--card"], ["--good", "--paper"], ["--good", "--card"], ["--bad", "--paper"],
  ["--card", "--blue"], ["--card", "--orange"]];
return pairs.map(([a, b]) => [a, b, ratio(of(a), of(b))]);
"""


def check_drawn(browser):
    """The page is no wider than the screen, and no chart holds a number that is none."""
    wide, seen = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= seen
    assert not browser.execute_script(
        "return [...document.querySelectorAll('svg *')].some((e) => "
        "[...e.attributes].some((a) => /NaN|undefined|Infinity/.test(a.value)))"
    )
