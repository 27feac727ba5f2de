"""A real Chromium for tests, and what is looked at in every page. Where there is none, the tests skip."""

import shutil
from contextlib import contextmanager

import pytest

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@contextmanager
def chromium():
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def log_in(page, served, onwards="/"):
    """Through the form, as a person does."""
    page.goto(f"{served.url}/login?next={onwards}")
    page.fill("#key", served.key)
    page.press("#key", "Enter")
    page.wait_for_url(served.url + onwards)


FAULTS = r"""() => {
  const faults = [];
  const rgb = (text) => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => { for (let at = node; at; at = at.parentElement) { const c = rgb(getComputedStyle(at).backgroundColor); if (c[3] > 0.99) return c; } return [255, 255, 255, 1]; };
  const seen = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest('.unseen, .skip');
  for (const node of document.querySelectorAll('body *')) {
    const words = [...node.childNodes].filter((child) => child.nodeType === 3).map((child) => child.data.trim()).join('');
    if (!words || !seen(node) || ['SCRIPT', 'STYLE', 'TEMPLATE', 'METER'].includes(node.tagName)) continue;
    const svg = node.namespaceURI.endsWith('svg');
    const [a, b] = [light(rgb(getComputedStyle(node)[svg ? 'fill' : 'color'])), light(ground(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faults.push(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)} of "${words.slice(0, 40)}"`);
    if (parseFloat(getComputedStyle(node).fontSize) < 11) faults.push(`small letters: "${words.slice(0, 40)}"`);
  }
  for (const field of document.querySelectorAll('input:not([type=hidden]), select, textarea'))
    if (!field.labels?.length && !field.getAttribute('aria-label')) faults.push(`no label: ${field.outerHTML.slice(0, 80)}`);
  for (const button of document.querySelectorAll('button, a[href]'))
    if (!(button.textContent.trim() || button.getAttribute('aria-label'))) faults.push(`no name: ${button.outerHTML.slice(0, 80)}`);
  for (const button of document.querySelectorAll('button, input, select')) {
    const box = button.getBoundingClientRect();
    if (seen(button) && (box.height < 24 || box.width < 24)) faults.push(`smaller than 24 px: ${button.outerHTML.slice(0, 80)}`);
  }
  const ids = [...document.querySelectorAll('[id]')].map((node) => node.id);
  for (const id of new Set(ids.filter((id, n) => ids.indexOf(id) !== n))) faults.push(`id twice: ${id}`);
  if (!document.documentElement.lang) faults.push('no language');
  if (document.querySelectorAll('h1').length !== 1) faults.push(`${document.querySelectorAll('h1').length} h1`);
  const levels = [...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]));
  levels.forEach((level, n) => { if (n && level > levels[n - 1] + 1) faults.push(`h${level} after h${levels[n - 1]}`); });
  for (const mark of ['main', 'header']) if (document.querySelectorAll(`body > ${mark}`).length !== 1) faults.push(`not one ${mark}`);
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) faults.push(`scrolls sideways: ${document.documentElement.scrollWidth} px`);
  for (const image of document.querySelectorAll('svg:not([aria-hidden]):not([aria-label]), img:not([alt])')) faults.push(`picture without words: ${image.outerHTML.slice(0, 80)}`);
  return faults;
}"""


def faults(page):
    """What people who see little, use the keyboard or hold a phone would stumble over; and what the page's own policy had to stop."""
    return page.evaluate(FAULTS)
