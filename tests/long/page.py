#!/usr/bin/env python3
"""The page of a sweep in a headless Chromium, without a network: at three widths, in the dark, without its script, on paper.

    tests/long/page.py FOLDER... [--chromium PROGRAM] [--shots DIR] [--record FILE]

Each FOLDER holds an `index.html`. Of every page it checks that nothing is asked of a network, nothing is said on the console,
nothing sticks out at the width of a phone, no two texts of a plot lie on each other or beyond its edge, every plot is there
with its values, values show on pointing and by keyboard, and that paper cuts no figure. With --shots the pictures of what was
seen stay in DIR. Exit code 1 if anything is not as it should be.
"""
import argparse
import base64
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTHS = [400, 900, 1400]
# A4 without its margins, in CSS pixels.
PAPER = (round(184 / 25.4 * 96), round(269 / 25.4 * 96))


class Browser:
    """Chromium by its DevTools protocol over two pipes: JSON messages, each ended by a zero byte."""

    def __init__(self, program, profile):
        to_browser, self.to = os.pipe()
        self.back, from_browser = os.pipe()

        def pipes():
            # The protocol is spoken on descriptors 3 and 4; copies out of their way first.
            read, write = os.dup(to_browser), os.dup(from_browser)
            reading, writing = max(read, 10), max(write, 11)
            os.dup2(read, reading)
            os.dup2(write, writing)
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        command = [
            program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run",
            "--no-default-browser-check", "--disable-gpu", "--disable-extensions", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb",
            "--host-resolver-rules=MAP * ~NOTFOUND", "about:blank",
        ]
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")
        self.process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.rest = b""
        self.count = 0
        self.events = []
        self.session = None

    def receive(self):
        while b"\0" not in self.rest:
            chunk = os.read(self.back, 1 << 16)
            if not chunk:
                raise SystemExit("page.py: chromium ended before it answered; does it run on this machine at all?")
            self.rest += chunk
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data):]
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise SystemExit(f"page.py: {method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, address):
        if self.session:
            session, self.session = self.session, None
            self.call("Target.detachFromTarget", sessionId=session)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.address = address

    def load(self):
        self.events.clear()
        self.call("Page.navigate", url=self.address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def value(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise SystemExit(f"page.py: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def size(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def shot(self, path):
        height = self.value("document.documentElement.scrollHeight")
        width = self.value("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 15000), "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        session, self.session = self.session, None
        self.call("Browser.close")
        self.process.wait(timeout=30)


# Texts of a plot that lie on each other or beyond its edge, and labels on a value's mark.
OVERLAPS = """(() => {
  const found = [];
  for (const plot of document.querySelectorAll("svg.plot")) {
    const name = plot.closest("figure").dataset.panel;
    const edge = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5;
    texts.forEach(([words, box], at) => {
      if (box.height < 9) found.push(`${name}: "${words}" is too small to read`);
      if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1 || box.bottom > edge.bottom + 1)
        found.push(`${name}: "${words}" beyond the edge`);
      for (const [others, other] of texts.slice(at + 1))
        if (meet(box, other)) found.push(`${name}: "${words}" on "${others}"`);
      for (const mark of plot.querySelectorAll(".spot .mark"))
        if (meet(box, mark.getBoundingClientRect())) found.push(`${name}: "${words}" on a value`);
    });
  }
  return found;
})()"""

# What is wider than its place although it does not scroll in a box of its own.
WIDE = """(() => {
  const root = document.scrollingElement;
  if (root.scrollWidth <= innerWidth) return [];
  return [...document.querySelectorAll("body *")].filter((one) => !one.closest(".box")
    && one.getBoundingClientRect().right > innerWidth + 0.5).slice(0, 5).map((one) => one.tagName + "." + one.className);
})()"""

# Every plot's values: how many, how many say something when pointed at.
POINTED = """(() => {
  const tip = document.getElementById("tip");
  const wrong = [];
  let count = 0;
  for (const spot of document.querySelectorAll("svg.plot .spot")) {
    count += 1;
    const name = spot.closest("figure").dataset.panel + " " + spot.dataset.name;
    spot.dispatchEvent(new PointerEvent("pointerenter"));
    const box = tip.getBoundingClientRect();
    if (tip.hidden || tip.textContent.length < 5) wrong.push(name + ": nothing shows on pointing");
    else if (box.left < 0 || box.right > innerWidth) wrong.push(name + ": what shows sticks out");
    spot.dispatchEvent(new PointerEvent("pointerleave"));
    if (!tip.hidden) wrong.push(name + ": what shows does not go");
  }
  return [count, wrong.slice(0, 5)];
})()"""

# On paper: figures are kept whole, fit, and every point's table is laid out.
PRINTED = """((height) => {
  const wrong = [];
  for (const figure of document.querySelectorAll("figure")) {
    if (getComputedStyle(figure).breakInside !== "avoid") wrong.push(figure.dataset.panel + " may be cut");
    if (figure.getBoundingClientRect().height > height) wrong.push(figure.dataset.panel + " is higher than a page");
  }
  for (const table of document.querySelectorAll("details.point > .box > table"))
    if (table.getBoundingClientRect().height < 10) wrong.push("a point's table is not laid out");
  for (const table of document.querySelectorAll("table"))
    if (table.checkVisibility() && table.getBoundingClientRect().right > innerWidth + 1)
      wrong.push("the table of " + table.closest(".box").getAttribute("aria-label") + " is wider than paper");
  if (document.scrollingElement.scrollWidth > innerWidth) wrong.push("something is wider than paper");
  return wrong;
})"""


def external(browser, page):
    """What was asked for beyond the file itself, and what was said on the console."""
    said = []
    for event in browser.events:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            if address != page and not address.startswith("data:"):
                said.append(f"asks for {address}")
        elif method == "Runtime.consoleAPICalled":
            said.append("console: " + " ".join(str(one.get("value", one)) for one in parameters["args"]))
        elif method == "Runtime.exceptionThrown":
            said.append("exception: " + parameters["exceptionDetails"].get("text", ""))
        elif method == "Log.entryAdded":
            said.append("log: " + parameters["entry"]["text"])
    return said


def key(browser, name):
    for kind in ["rawKeyDown", "keyUp"]:
        code = {"Tab": 9, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}[name]
        browser.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)


def by_keyboard(browser):
    """The first plot's values, reached by the tabulator and stepped through by arrows."""
    wrong = []
    browser.value("document.activeElement.blur(); document.querySelector('svg.plot').scrollIntoView()")
    for _ in range(60):
        key(browser, "Tab")
        if browser.value("document.activeElement.classList.contains('spot')"):
            break
    else:
        return ["the tabulator reaches no value"]
    words = lambda: browser.value("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")
    first = words()
    if not first:
        wrong.append("nothing shows on focus")
    if browser.value("document.querySelectorAll('svg.plot')[0].querySelectorAll('.spot').length") > 1:
        key(browser, "ArrowRight")
        if words() in ("", first):
            wrong.append("an arrow key does not go on to the next value")
    key(browser, "Escape")
    if words():
        wrong.append("Escape does not hide what shows")
    # What shows stays at its value when the focus makes the page scroll.
    far = browser.value("""(async () => {
      const plots = [...document.querySelectorAll('svg.plot')];
      const spot = plots[plots.length - 1].querySelector('.spot');
      if (!spot) return 0;
      scrollTo(0, 0);
      spot.focus();
      await new Promise((done) => setTimeout(done, 300));
      const [mark, tip] = [spot.querySelector('.mark'), document.getElementById('tip')].map((one) => one.getBoundingClientRect());
      spot.blur();
      return Math.max(mark.top - tip.bottom, tip.top - mark.bottom);
    })()""")
    if far > 20:
        wrong.append(f"what shows is {far:.0f} px away from its value after scrolling")
    stops = browser.value("[...document.querySelectorAll('svg.plot')].map((plot) =>"
                          " plot.querySelectorAll('.spot[tabindex=\"0\"]').length).every((n) => n <= 1)")
    if not stops:
        wrong.append("a plot has several stops of the tabulator")
    return wrong


def check(browser, folder, shots):
    page = (folder / "index.html").resolve().as_uri()
    name = folder.name
    wrong, facts = [], {}

    def note(where, faults):
        wrong.extend(f"{name}, {where}: {fault}" for fault in faults)

    def shot(kind):
        if shots:
            browser.shot(shots / f"{name}-{kind}.png")

    for scheme in ["light", "dark"]:
        for width in WIDTHS:
            browser.open(page)
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            browser.size(width)
            browser.load()
            where = f"{width} px, {scheme}"
            note(where, external(browser, page))
            note(where, browser.value(WIDE))
            note(where, browser.value(OVERLAPS))
            if browser.value("document.title").startswith("pwned"):
                note(where, ["a string of the record ran as a script"])
            panels = browser.value("[...document.querySelectorAll('figure.panel')].filter((one) =>"
                                   " one.querySelector('svg').getBoundingClientRect().height > 100).length")
            if panels != browser.value("document.querySelectorAll('figure.panel').length"):
                note(where, ["a panel is not laid out"])
            if scheme == "light" or width == 900:
                shot(f"{width}-{scheme}")
            if scheme == "dark":
                continue
            count, silent = browser.value(POINTED)
            note(where, silent)
            if count:
                note(where, by_keyboard(browser))
            facts = {"panels": panels, "values": count}
            if count and width == 900 and shots:
                browser.value("document.querySelectorAll('svg.plot')[3].scrollIntoView();"
                              "document.querySelectorAll('svg.plot')[3].querySelectorAll('.spot')[1]?.focus()")
                data = browser.call("Page.captureScreenshot", format="png")["data"]
                (shots / f"{name}-tip.png").write_bytes(base64.b64decode(data))

    # Details open, where tables and items are, must hold at a phone's width too.
    browser.open(page)
    browser.size(WIDTHS[0])
    browser.load()
    browser.value("document.querySelectorAll('details').forEach((one) => one.open = true)")
    note("400 px, all open", browser.value(WIDE))
    shot("400-open")

    # Without the script everything is still there to read.
    browser.open(page)
    browser.size(WIDTHS[1])
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.load()
    tree = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
    titles = len(browser.call("DOM.querySelectorAll", nodeId=tree, selector="svg.plot .spot > title")["nodeIds"])
    if titles != facts["values"]:
        note("without its script", [f"{titles} of {facts['values']} values say what they are"])

    browser.open(page)
    browser.size(*PAPER)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.load()
    note("on paper", browser.value(f"{PRINTED}({PAPER[1]})"))
    browser.call("Emulation.setEmulatedMedia", media="")
    pdf = base64.b64decode(browser.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"])
    if not pdf.startswith(b"%PDF"):
        note("on paper", ["no PDF comes out"])
    facts["pages_of_paper"] = pdf.count(b"/Type /Page\n") or pdf.count(b"/Type/Page\n") or pdf.count(b"/Type /Page ")
    facts["bytes"] = (folder / "index.html").stat().st_size
    if shots:
        (shots / f"{name}.pdf").write_bytes(pdf)
    return wrong, facts


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folders", nargs="+", type=Path)
    arguments.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    arguments.add_argument("--shots", type=Path)
    arguments.add_argument("--record", type=Path)
    arguments = arguments.parse_args()
    if not arguments.chromium:
        raise SystemExit("page.py: no chromium on this machine; install Debian's package `chromium`, or name one with --chromium")
    for folder in arguments.folders:
        if not (folder / "index.html").is_file():
            raise SystemExit(f"page.py: {folder}: holds no index.html")
    if arguments.shots:
        arguments.shots.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([arguments.chromium, "--version"], capture_output=True, text=True).stdout.strip()
    wrong, pages = [], {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(arguments.chromium, profile)
        for folder in arguments.folders:
            start = time.monotonic()
            faults, facts = check(browser, folder, arguments.shots)
            wrong += faults
            pages[folder.name] = facts | {"faults": len(faults)}
            print(f"{folder.name}: {facts}, {len(faults)} faults, {time.monotonic() - start:.0f} s", file=sys.stderr)
        browser.close()
    for fault in wrong:
        print(fault)
    if arguments.record:
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": platform.machine(),
            "browser": version.split(" built")[0],
            "widths": WIDTHS,
            "pages": pages,
            "faults": wrong,
        }
        arguments.record.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
