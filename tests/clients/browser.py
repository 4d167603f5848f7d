"""Headless Chromium opens the page as a person would. Prints one JSON object; `--screenshot FILE` keeps what it saw."""

import argparse
import json
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

# The picture as numbers: how much brightness varies over the frame.
DEVIATION = """() => {
  const video = document.querySelector('video');
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0, squares = 0, count = data.length / 4;
  for (let i = 0; i < data.length; i += 4) {
    const luma = 0.3 * data[i] + 0.6 * data[i + 1] + 0.1 * data[i + 2];
    sum += luma; squares += luma * luma;
  }
  return Math.sqrt(Math.max(0, squares / count - (sum / count) ** 2));
}"""
FRAMES = "() => document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames"


def main(args):
    errors = []
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
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(args.url, timeout=20_000)
        page.wait_for_function("() => document.querySelector('video')?.videoWidth > 0", timeout=60_000)
        first = page.evaluate(FRAMES)
        page.wait_for_function(f"() => ({FRAMES})() >= {first + args.frames}", timeout=60_000)
        result = {
            "width": page.evaluate("() => document.querySelector('video').videoWidth"),
            "height": page.evaluate("() => document.querySelector('video').videoHeight"),
            "frames_before": first,
            "frames": page.evaluate(FRAMES),
            "deviation": page.evaluate(DEVIATION),
        }
        if args.prompt:
            # By keyboard alone: the shortcut that focuses the prompt, the text, Enter.
            page.keyboard.press("/")
            page.keyboard.press("Control+a")
            page.keyboard.type(args.prompt)
            page.keyboard.press("Enter")
            page.wait_for_function(f"() => ({FRAMES})() >= {result['frames'] + args.frames}", timeout=60_000)
        if args.screenshot:
            page.screenshot(path=args.screenshot)
        result["text"] = page.inner_text("body")
        result["errors"] = errors
        context.close()
    print(json.dumps(result))


parser = argparse.ArgumentParser()
parser.add_argument("--url", required=True)
parser.add_argument("--chromium", default="/usr/bin/chromium")
parser.add_argument("--frames", type=int, default=40, help="decoded frames to wait for")
parser.add_argument("--prompt", help="typed into the page while it plays")
parser.add_argument("--screenshot")
parser.add_argument("--scheme", default="light", choices=["light", "dark"])
parser.add_argument("--width", type=int, default=1280)
parser.add_argument("--height", type=int, default=800)
main(parser.parse_args())
