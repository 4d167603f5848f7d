"""Headless Chromium opens the page as a person would. Prints one JSON object; `--screenshot FILE` keeps what it saw."""

import argparse
import json

import chromium

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


def main(args):
    errors = []
    with chromium.opened(args, errors) as page:
        first = page.evaluate(chromium.FRAMES)
        chromium.wait_frames(page, args.frames)
        result = {
            "width": page.evaluate("() => document.querySelector('video').videoWidth"),
            "height": page.evaluate("() => document.querySelector('video').videoHeight"),
            "frames_before": first,
            "frames": page.evaluate(chromium.FRAMES),
            "deviation": page.evaluate(DEVIATION),
        }
        if args.prompt:
            chromium.type_prompt(page, args.prompt)
            chromium.wait_frames(page, args.frames)
        # From here on a fault is awaited.
        print("playing", flush=True)
        if args.recover:
            chromium.wait_state(page, "recovering")
            result["curtain"] = page.inner_text("#curtain")
            before = page.evaluate(chromium.FRAMES)
            chromium.wait_state(page, "live")
            chromium.wait_frames(page, args.frames)
            result["frames_recovered"] = page.evaluate(chromium.FRAMES) - before
            result["curtain_away"] = page.evaluate("() => document.getElementById('curtain').classList.contains('away')")
        if args.curtain:
            result["curtain"] = chromium.wait_text(page, "#curtain", args.curtain)
        chromium.shot(page, args)
        result["text"] = page.inner_text("body")
        result["errors"] = errors
    print(json.dumps(result))


parser = chromium.arguments(argparse.ArgumentParser())
parser.add_argument("--frames", type=int, default=40, help="decoded frames to wait for")
parser.add_argument("--prompt", help="typed into the page while it plays")
parser.add_argument("--recover", action="store_true", help="wait until the page tells of a fault, and plays on")
parser.add_argument("--curtain", help="wait until this stands before the picture")
main(parser.parse_args())
