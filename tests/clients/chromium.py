"""Headless Chromium as the page's scripts share it."""

import contextlib
import tempfile

from playwright.sync_api import sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--allow-loopback-in-peer-connection",
]
FRAMES = "() => document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames"
PATIENCE_MS = 60_000


def arguments(parser):
    parser.add_argument("--url", required=True)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshot", help="file, or the beginning of several files' names")
    parser.add_argument("--scheme", default="light", choices=["light", "dark"])
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    return parser


@contextlib.contextmanager
def opened(args, errors):
    """The page, once it shows a picture. What it complains of goes to `errors`."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=args.chromium,
            headless=True,
            args=FLAGS,
            viewport={"width": args.width, "height": args.height},
            color_scheme=args.scheme,
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(args.url)
        page.wait_for_function("() => document.querySelector('video')?.videoWidth > 0")
        yield page
        context.close()


def wait_frames(page, count):
    """Waits until so many more frames are shown."""
    wanted = page.evaluate(FRAMES) + count
    page.wait_for_function(f"() => ({FRAMES})() >= {wanted}")


def wait_text(page, selector, text):
    """Waits until the element says `text`, and returns all it says."""
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector).textContent.includes(text)", arg=[selector, text]
    )
    return page.inner_text(selector)


def note_texts(page, selector):
    """From now on all that the element says is noted, however short it stands."""
    page.evaluate(
        """(selector) => {
            const element = document.querySelector(selector);
            window.noted = [];
            const note = () => window.noted.push(element.textContent);
            new MutationObserver(note).observe(element, { childList: true, characterData: true, subtree: true });
        }""",
        selector,
    )


def wait_noted(page, text):
    """Waits until the noted element has said `text`, and returns all it said then."""
    page.wait_for_function("(text) => window.noted.some((said) => said.includes(text))", arg=text)
    return page.evaluate("(text) => window.noted.find((said) => said.includes(text))", text)


def wait_state(page, *states):
    """Waits until the connection line is in one of these states."""
    page.wait_for_function("(states) => states.includes(document.getElementById('connection').dataset.state)", arg=states)


def type_prompt(page, text, send=True):
    """By keyboard alone: the shortcut that focuses the prompt, the text, Enter."""
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.press("Control+a")
    page.keyboard.type(text)
    if send:
        page.keyboard.press("Enter")


def shot(page, args, name=""):
    if args.screenshot:
        page.screenshot(path=f"{args.screenshot}{name}.png" if name else args.screenshot)
